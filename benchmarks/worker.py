"""A worker process: one side, answering requests, one JSON line each way.

    python -m benchmarks.worker ours | torch | torch-last

prepare NAME SPEC   build a job and run it once
check NAME FILE     write what it computes to an .npz file
time NAME SECONDS   median seconds a run
drop NAME           forget it
memory SPEC         bytes by which three steps raise the peak, above the built networks, with all
                    processes that they start
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

SIDES = ("ours", "torch", "torch-last")  # the last: channels last, allocator tuned as ours


def kernel_bytes(file: str, *names: str) -> int:
    """The sum of some lines of a file below /proc, which have kB."""
    lines = dict(line.split(":") for line in Path("/proc", file).read_text().splitlines()[1:])
    return sum(int(lines[name].split()[0]) * 1024 for name in names)


def peak_bytes() -> int:
    """The most memory that this process has held at a time, and its children beside what they have
    in common with it: private now, and given back since their peak (Linux)."""
    peak = kernel_bytes("self/status", "VmHWM")
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        peak += kernel_bytes(f"{child}/smaps_rollup", "Private_Clean", "Private_Dirty")
        peak += kernel_bytes(f"{child}/status", "VmHWM") - kernel_bytes(f"{child}/status", "VmRSS")
    return peak


class Worker:
    def __init__(self, side: str):
        if side != "torch":
            from ldm_numpy.backend import tune_cpu

            tune_cpu()
        if side == "ours":
            from . import ours as code
        else:
            from . import theirs as code

            code.LAST = side == "torch-last"
        self.code, self.jobs = code, {}

    def prepare(self, name: str, spec: dict) -> None:
        self.jobs[name] = job = self.code.build(spec)
        job.start()

    def check(self, name: str, file: str) -> None:
        np.savez(file, **self.jobs[name].check())

    def time(self, name: str, seconds: float) -> float:
        return self.code.timed(self.jobs[name], seconds)

    def drop(self, name: str) -> None:
        self.jobs.pop(name).end()

    def memory(self, spec: dict) -> int:
        job = self.code.build(spec)
        before = peak_bytes()
        job.start()
        for _ in range(3):
            self.code.timed(job, 0)
        grown = peak_bytes() - before
        job.end()
        return grown


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # what libraries print must not mix with the answers
    os.dup2(2, 1)
    worker = Worker(sys.argv[1])
    for line in sys.stdin:
        request, *arguments = json.loads(line)
        try:
            reply = {"result": getattr(worker, request)(*arguments)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
