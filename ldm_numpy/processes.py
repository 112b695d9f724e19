"""Shards spread over processes: data-parallel training, one program running on every rank.

Threads of one Python take turns at the interpreter's lock; processes have one each. `Ring.fork`
copies this process: the copies are called ranks, and all of them run the same training loop. They
have in common the memory that was mapped before (the optimizer's buffers), and one token:

    rank 0 -> rank 1 -> ... -> rank n-1 -> rank 0

Shard i belongs to rank i mod n, so the token visits shards in their order. Whoever holds it adds
the shard's gradients and passes it on: sums have the bits that one process would have found.
"""

import json
import mmap
import os
import signal
import sys
import threading
import traceback
import warnings

import numpy as np

from .parallel import Shards, add

FOR_RANK_0 = (signal.SIGINT, signal.SIGTERM)  # the others go on until it has answered
END = getattr(signal, "SIGUSR1", signal.SIGTERM)  # by which it ends them


def can_fork() -> bool:
    """Whether processes can be had this way. macOS forks, but its matrix library then fails."""
    return sys.platform.startswith("linux")


class Ring:
    """Processes that pass a token round, through one pipe from each to the next.

        with Ring(2) as ring:
            ring.fork()
            ...  # on both ranks, which meet where they share, pass or wait for a token
        ...  # on rank 0 alone

    Where a process ends, its neighbour finds the pipe closed instead of a token, and ends too: none
    is left waiting, whichever of them was killed.

    Args:
        size: number of processes, this one included

    Attributes:
        rank: 0 here, 1 ... size - 1 in the processes that `fork` makes
        memory: of all ranks, for what is too long for a token: a file that is on no disk
    """

    def __init__(self, size: int):
        self.size, self.rank, self.children = size, 0, []
        self.source = self.sink = self.memory = None

    def fork(self) -> None:
        """Make the other ranks. They, too, return from here."""
        if self.size == 1:
            return
        self.memory = os.fdopen(os.memfd_create("rows of all ranks"), "r+b", 0)
        pipes = [os.pipe() for _ in range(self.size)]  # number r leads from rank r to the next
        # Signals wait until everyone knows which rank it is. (Only the main thread hears them.)
        heard, before = [], {}
        if threading.current_thread() is threading.main_thread():
            for number in FOR_RANK_0:
                before[number] = signal.signal(number, lambda number, _: heard.append(number))
        try:
            for rank in range(1, self.size):
                with warnings.catch_warnings():
                    # Of other threads: those of BLAS start anew in the child by themselves, and
                    # the rest are idle.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    child = os.fork()
                if child == 0:
                    self.rank, self.children = rank, []
                    for number in FOR_RANK_0:
                        signal.signal(number, signal.SIG_IGN)
                    signal.signal(END, signal.SIG_DFL)
                    break
                self.children.append(child)
        finally:  # also where there can be no more processes, so that those made find an end
            reading, writing = pipes[self.rank - 1][0], pipes[self.rank][1]
            for fd in {fd for pipe in pipes for fd in pipe} - {reading, writing}:
                os.close(fd)
            self.source, self.sink = os.fdopen(reading, "rb"), os.fdopen(writing, "wb", 0)
            if self.rank == 0:
                for number, handler in before.items():
                    signal.signal(number, handler or signal.SIG_DFL)
                for number in heard:
                    signal.raise_signal(number)

    def send(self, token) -> None:
        """Pass a token (what JSON can hold) to the next rank."""
        try:
            self.sink.write(json.dumps(token).encode() + b"\n")
        except BrokenPipeError:
            raise RingBrokenError(self.rank) from None

    def receive(self):
        """Wait for the token from the rank before."""
        line = self.source.readline()
        if not line.endswith(b"\n"):
            raise RingBrokenError(self.rank)
        return json.loads(line)

    def share(self, token=None):
        """The token of rank 0, on all ranks."""
        if self.size == 1:
            return token
        if self.rank > 0:
            token = self.receive()
        if self.rank < self.size - 1:
            self.send(token)
        return token

    def common(self, size: int) -> mmap.mmap:
        """The first `size` bytes that all ranks have in common. What is beyond them is gone."""
        try:
            os.ftruncate(self.memory.fileno(), size)
            return mmap.mmap(self.memory.fileno(), size)
        except OSError as error:
            raise ValueError(
                f"processes cannot share {size:,} bytes ({error.strerror}): try --threads 1"
            ) from None

    def barrier(self) -> None:
        """Return when all ranks have come here: once round to collect them, once to let them go."""
        if self.size == 1:
            return
        self.share()
        if self.rank == self.size - 1:
            self.send(None)
        elif self.rank == 0:
            self.receive()
        self.share()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        """End the other ranks, which never come back; ChildProcessError if one of them failed."""
        if self.rank > 0:
            if isinstance(error, ValueError):
                print(f"error on rank {self.rank}: {error}", file=sys.stderr, flush=True)
            elif error is not None and not isinstance(error, RingBrokenError):
                traceback.print_exception(error)
                sys.stderr.flush()
            os._exit(error is not None)  # no clean-up: files and threads are rank 0's
        self.close()
        codes = [self._end(child, at_once=error is not None) for child in self.children]
        self.children = []
        if isinstance(error, RingBrokenError) or (error is None and any(codes)):
            codes = [code for code in codes if code not in (0, -END)]
            ended = [f"by signal {-code}" if code < 0 else f"with {code}" for code in codes]
            often = " (often: memory ran out)" if -signal.SIGKILL in codes else ""
            raise ChildProcessError(
                f"a process of the training ended {' and '.join(ended) or 'too early'}{often}: "
                "continue with --resume, perhaps --threads 1"
            ) from None

    @staticmethod
    def _end(child: int, at_once: bool) -> int:
        """Wait for another rank to end, as it does when it misses the token; `at_once` tells it to,
        for another ring's ranks may hold its pipes open. Returns its exit code."""
        try:
            if at_once:
                os.kill(child, END)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except (ProcessLookupError, ChildProcessError):  # gone, where nobody keeps children's codes
            return 0

    def close(self) -> None:
        """Let go of the token for good, which ends ranks that wait for it."""
        for file in (self.source, self.sink, self.memory):
            if file is not None:
                file.close()


class RingBrokenError(Exception):
    """Another rank has ended."""

    def __init__(self, rank: int):
        super().__init__(f"rank {rank} lost its neighbour")


class RankShards(Shards):
    """The shards of one rank; all ranks together compute what `Shards` does, to the last bit.

    Every rank calls the same methods in the same order, and each gets the same results. `map` and
    `forward` are local: they do all the work on the rank that calls them. Gradients are added to
    what parameters have as `.grad`, which must be `shared`, as an optimizer's buffers are.

    Args:
        size: rows a shard at most
        ring: of two ranks at least, and at most as many as a batch has shards
    """

    def __init__(self, size: int, ring: Ring):
        super().__init__(size, threads=1)
        self.ring = ring

    def own(self, items):
        """Those of `items` that are this rank's."""
        return list(items)[self.ring.rank :: self.ring.size]

    def each(self, work, items) -> None:
        super().each(work, self.own(items))
        self.barrier()

    def barrier(self) -> None:
        self.ring.barrier()

    def shared(self, array: np.ndarray) -> np.ndarray:
        """A copy in memory that processes forked later have in common."""
        copy = np.frombuffer(mmap.mmap(-1, max(1, array.nbytes)), array.dtype, array.size)
        copy = copy.reshape(array.shape)
        copy[...] = array
        return copy

    @property
    def leads(self) -> bool:
        return self.ring.rank == 0

    def _gather(self, slices, parts) -> np.ndarray:
        """All rows, through the ring's memory: every rank writes its own into their places, then
        copies all."""
        n, shape, dtype = slices[-1].stop, parts[0].shape[1:], parts[0].dtype
        memory = self.ring.common(max(1, n * parts[0][0].nbytes))
        all_rows = np.frombuffer(memory, dtype, n * parts[0][0].size).reshape(n, *shape)
        for rows, part in zip(self.own(slices), parts):
            all_rows[rows] = part
        self.ring.barrier()
        gathered = all_rows.copy()
        self.ring.barrier()  # nobody writes what comes next before all have read
        return gathered

    def _accumulate(self, work, slices, parameters) -> list:
        """The token carries the sum of the results. After the last shard it goes on until every
        rank has seen it, which tells each that all gradients are there."""
        ring, count = self.ring, len(slices)
        last = count + ring.size - 2  # of the token's stations
        for i in range(ring.rank, last + 1, ring.size):
            if i < count:
                values, parts = work(slices[i])
            total = ring.receive() if i > 0 else None
            if i < count:
                add(parameters, parts)
                total = values if i == 0 else [v + v.dtype.type(t) for v, t in zip(values, total)]
                total = [float(v) for v in total]
            if i < last:
                ring.send(total)
        return total
