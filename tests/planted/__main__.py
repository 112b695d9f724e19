"""`python -m tests.planted`: every mutant must be killed. Exit code 1 where one survives."""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from .rules import blind, digest, generated
from .run import judge, load, save


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("--sample", type=int, help="this many mutants, the same in every run")
    parser.add_argument("--only", default="", help="mutants whose id contains this")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--record", action="store_true", help="remember the killers found")
    options = parser.parse_args()

    mutants = generated() + blind(load("blind.json", []))
    mutants = [m for m in mutants if options.only in m.id]
    mutants.sort(key=lambda m: digest(m.id))  # files mixed: a part of a run is a fair sample
    mutants = mutants[: options.sample]
    killers, equivalent = load("killers.json", {}), load("equivalent.json", {})
    mutants = [m for m in mutants if m.id not in equivalent]
    started = time.monotonic()

    def one(mutant):
        began = time.monotonic()
        return mutant, judge(mutant, killers.get(mutant.id)), time.monotonic() - began

    survivors = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in as_completed([pool.submit(one, mutant) for mutant in mutants]):
            mutant, found, seconds = done.result()
            print(f"{seconds:5.1f} s  {mutant.id}  {found or 'SURVIVES'}", flush=True)
            if found:
                killers[mutant.id] = found
            else:
                survivors.append(mutant)
            if options.record:
                save("killers.json", killers)
    for mutant in survivors:
        print(f"survives: ldm_numpy/{mutant.file}:{mutant.line}  {mutant.id}\n"
              f"  - {mutant.before}\n  + {mutant.after}")  # fmt: skip
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} killed, {len(equivalent)} listed as "
          f"equivalent, {time.monotonic() - started:.0f} s")  # fmt: skip
    return 1 if survivors or not mutants else 0


if __name__ == "__main__":
    sys.exit(main())
