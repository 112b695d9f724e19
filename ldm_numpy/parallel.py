"""A batch cut into shards, and the shards spread over threads (by processes.py over processes).

NumPy computes elementwise on one core. Here every thread runs its own shard, forward and backward,
with single-threaded matrix products: all cores work all the time, and a shard's arrays stay in
cache. Results are combined in shard order, so they do not depend on the number of threads, only on
the shard size. A GPU runs the whole batch as one shard.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

from .backend import array_module, cpu_count
from .checks import whole
from .function import no_grad
from .tensor import Tensor, gradients

SMALLEST_HALF = 16  # rows; a batch of up to so many is not halved
FORWARD_ROWS = 512  # at a time, where a forward pass has no shard size: a data set need not fit


class Shards:
    """Runs work on slices of a batch.

    Args:
        size: rows a shard at most; None for the whole batch at once
        threads: how many shards run at a time; None for as many as there are processors
    """

    def __init__(self, size: int | None = None, threads: int | None = None):
        for name, value in (("shard size", size), ("number of threads", threads)):
            if value is not None:
                whole(name, value, at_least=1)
        self.size = size
        self.threads = cpu_count() if threads is None else threads
        self._pool = None

    def slices(self, n: int) -> list[slice]:
        """[0:size], [size:2 size], ... up to n; smaller ones where there would be only one.

        Large shards are the fastest, for NumPy's calls cost threads time at the interpreter's lock,
        but two processors want two.
        """
        size = n if self.size is None else min(self.size, max(SMALLEST_HALF, -(-n // 2)))
        return [slice(i, min(i + size, n)) for i in range(0, n, size)]

    def map(self, work, items):
        """Yield work(item) for each item, in order; up to `threads` at a time."""
        items = list(items)
        if self.threads == 1 or len(items) < 2:
            return map(work, items)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="shard")
        return self._pool.map(work, items)

    def each(self, work, items) -> None:
        """Call work(item) for each item, for its effects; returns when all are done."""
        for _ in self.map(work, items):
            pass

    # What is otherwise where processes share the work (processes.py):

    leads = True  # whether this is the process that does what must be done once

    def own(self, items) -> list:
        """The items to be worked on in this process."""
        return list(items)

    def barrier(self) -> None:
        """Wait until every process has come here."""

    def shared(self, array):
        """The array, where every process sees what the others write into it."""
        return array

    def forward(self, function, *arrays):
        """function(*arrays), a shard at a time and without a graph; returns one array.

        Every argument is an array whose first axis is the batch; function returns one such array
        or Tensor. Raises ValueError for batches of different sizes.
        """
        n = len(arrays[0])
        if any(len(a) != n for a in arrays):
            raise ValueError(f"batches of different sizes: {[len(a) for a in arrays]}")

        def work(rows):
            with no_grad():
                y = function(*[a[rows] for a in arrays])
            return y.data if isinstance(y, Tensor) else y

        if self.size is None:  # a GPU: large pieces, one after the other
            rows = [slice(i, i + FORWARD_ROWS) for i in range(0, n, FORWARD_ROWS)]
            parts = [work(r) for r in rows]
        else:
            parts = list(self.map(work, self.slices(n)))
        return parts[0] if len(parts) == 1 else array_module(parts[0]).concatenate(parts)

    def backward(self, loss, n: int, parameters) -> list:
        """Add the gradient of the batch's mean loss to every parameter's `.grad`.

        Args:
            loss: slice of the batch -> Tensors, the first being the mean loss over the slice that
                is differentiated, any others being reported only
            n: rows in the batch
            parameters: those that receive a gradient

        Returns the batch means of what `loss` returned, as arrays that are still on the device.
        """

        def work(rows):
            share = (rows.stop - rows.start) / n
            values = loss(rows)
            seed = array_module(values[0].data).full((), share, values[0].dtype)
            return [v.data * share for v in values], gradients(values[0], parameters, seed)

        return self._accumulate(work, self.slices(n), parameters)

    def coupled_backward(self, towers, loss, n: int, parameters, coupled_parameters=()):
        """Like `backward`, for a loss that looks at the whole batch at once, such as CLIP's.

        The towers run a shard at a time; the loss runs once, on the gathered rows; then every
        shard's backward pass continues from its slice of the loss's gradient.

        Args:
            towers: slice of the batch -> list of Tensors of its rows
            loss: one Tensor a tower, with all n rows -> mean loss
            parameters: the towers' parameters
            coupled_parameters: parameters of the loss itself (a temperature)

        Returns the loss, an array on the device.
        """
        slices = self.slices(n)
        own = self.own(slices)
        graphs = {rows.start: outputs for rows, outputs in zip(own, self.map(towers, own))}
        gathered = [
            Tensor(self._gather(slices, [y.data for y in parts]), requires_grad=True)
            for parts in zip(*graphs.values())
        ]
        total = loss(*gathered)
        g = gradients(total, [*gathered, *coupled_parameters])
        if self.leads:
            add(coupled_parameters, g[len(gathered) :])

        def work(rows):
            # A linear stand-in for the loss: its gradient in each output is that output's gy.
            outputs = graphs.pop(rows.start)
            stand_in = sum((y * gy[rows]).sum() for y, gy in zip(outputs, g))
            return [], gradients(stand_in, parameters)

        self._accumulate(work, slices, parameters)
        return total.data

    def _gather(self, slices, parts):
        """One array of the rows that `parts` hold, a part a slice."""
        return array_module(parts[0]).concatenate(parts)

    def _accumulate(self, work, slices, parameters) -> list:
        """Add up each work(slice) -> (values, gradients), in order: the gradients in `.grad`;
        returns the sums of the values.

        A thread adds its own shard's gradients, as soon as the shard before has: the other threads
        go on meanwhile, and no gradients lie about until somebody comes for them.
        """
        added = [Event() for _ in slices]

        def work_and_add(i):
            try:
                values, parts = work(slices[i])
                if i > 0:
                    added[i - 1].wait()  # it began earlier: threads take shards in order
                add(parameters, parts)
            finally:
                added[i].set()  # after an error too: nobody shall wait for ever
            return values

        first, *others = self.map(work_and_add, range(len(slices)))
        for values in others:
            first = [a + b for a, b in zip(first, values)]
        return first


def add(parameters, parts) -> None:
    """Add gradients to those that parameters have."""
    for parameter, g in zip(parameters, parts):
        if parameter.grad is None:
            parameter.grad = g.copy()
        else:
            parameter.grad += g
