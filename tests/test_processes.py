"""A training step over processes: the bits of one process, and an end to all when one has ended."""

import os
import signal
import sys
import time

import numpy as np
import pytest

from ldm_numpy import ops, optim, processes
from ldm_numpy.__main__ import main
from ldm_numpy.nn import Linear, Module, Parameter
from ldm_numpy.optim import EMA, AdamW, Muon
from ldm_numpy.parallel import Shards
from ldm_numpy.processes import RankShards, Ring, RingBrokenError
from ldm_numpy.training import loop

from . import tiny

pytestmark = pytest.mark.skipif(not processes.can_fork(), reason="processes are Linux's")
RANKS = (1, 2, 3)
N = 11


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    with pytest.raises(ChildProcessError, match="No child"):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture(autouse=True)
def _nobody_waits_for_ever():

    def late(*_):
        raise TimeoutError("a test took a minute: somebody waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard():
    """A shell's background jobs start with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Net(Module):
    def __init__(self):
        self.first, self.second, self.scale = Linear(5, 16), Linear(16, 3), Parameter(())
        self.initialise(0)
        self.scale.data[...] = 0.7
        self.astype(np.float32)

    def forward(self, x):
        return self.second(ops.silu(self.first(x)))


@pytest.fixture
def data(rng):
    """Inputs whose size grows from row to row: a shard's loss differs much from another's."""
    x = rng.normal(size=(N, 5)) * np.arange(1, N + 1)[:, None]
    return x.astype(np.float32), rng.normal(size=(N, 3)).astype(np.float32)


# The ring ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", RANKS)
def test_a_token_of_rank_0_reaches_all(size):
    with Ring(size) as ring:
        ring.fork()
        for token in ([1.5, -0.1], None, "text", [float("inf"), 1e-310]):
            assert ring.share(token if ring.rank == 0 else "nothing") == token
        assert np.isnan(ring.share([float("nan")])[0])


def test_memory_in_common():
    """Of any size, one after the other; it is on no disk, which may be full."""
    with Ring(2) as ring:
        ring.fork()
        for size in (5000, 3, 70_000):
            memory = ring.common(size)
            assert len(memory) == size
            memory[ring.rank] = 7 + ring.rank
            memory[size - 1] = size % 256
            ring.barrier()
            assert memory[:2] == b"\7\10" and memory[size - 1] == size % 256
            ring.barrier()
        assert os.readlink(f"/proc/self/fd/{ring.memory.fileno()}").startswith("/memfd:")
        with pytest.raises(ValueError, match=r"cannot share .*,832 bytes.* try --threads 1"):
            ring.common(7 << 60)


def test_what_is_too_long_to_be_shared_is_told_in_a_line_a_rank(capfd):
    with pytest.raises(ChildProcessError, match="ended with 1: continue"), Ring(2) as ring:
        ring.fork()
        if ring.rank == 1:
            ring.common(7 << 60)
        ring.barrier()
    shown = capfd.readouterr().err
    assert shown.startswith("error on rank 1: processes cannot share") and shown.count("\n") == 1


@pytest.mark.parametrize("size", RANKS)
def test_a_barrier_is_passed_when_all_have_come(size):
    shards = RankShards(1, Ring(size))
    come = shards.shared(np.zeros(size, int))
    with shards.ring as ring:
        ring.fork()
        for i in range(1, 30):
            time.sleep(0.002 * (ring.rank == i % size))  # somebody else is late each time
            come[ring.rank] = i
            ring.barrier()
            assert (come == i).all()
            ring.barrier()


def test_what_is_shared_is_a_copy_that_all_ranks_write_to(rng):
    shards = RankShards(1, Ring(2))
    for array in (rng.normal(size=(3, 4)).astype(np.float32), np.arange(5), np.zeros((0, 2))):
        copy = shards.shared(array)
        assert copy.dtype == array.dtype and copy.shape == array.shape and copy is not array
        np.testing.assert_array_equal(copy, array)
        assert copy.flags.writeable
    numbers = shards.shared(np.zeros(7))
    with shards.ring as ring:
        ring.fork()

        def write(i):
            time.sleep(0.01 * ring.rank)  # rank 0 has done first, and waits
            numbers[i] = ring.rank + 1

        shards.each(write, range(7))
        np.testing.assert_array_equal(numbers, [1, 2, 1, 2, 1, 2, 1])
        assert shards.leads == (ring.rank == 0)


# Somebody ends -----------------------------------------------------------------------------


def test_a_rank_that_waits_in_vain_says_so():
    ring = Ring(2)
    for name, mode in (("source", "rb"), ("sink", "wb")):
        setattr(ring, name, open(os.devnull, mode))  # noqa: SIM115 - `close` closes it
    with pytest.raises(RingBrokenError, match="rank 0 lost its neighbour"):
        ring.receive()
    ring.close()
    assert ring.source.closed and ring.sink.closed


def test_an_error_on_another_rank_is_told(capfd):
    with pytest.raises(ChildProcessError, match=r"ended with 1\b.*: .*--resume"), Ring(3) as ring:
        ring.fork()
        if ring.rank == 1:
            raise FloatingPointError("on rank one")
        ring.barrier()
    shown = capfd.readouterr().err
    assert shown.count("FloatingPointError: on rank one") == 1 and "RingBroken" not in shown


@pytest.mark.parametrize("victim", [1, 2])
@pytest.mark.parametrize("wait", ["barrier", "share", "at the end"])
def test_a_killed_process_ends_all(victim, wait, capfd):
    with pytest.raises(ChildProcessError, match=r"by signal 9 .*memory"), Ring(3) as ring:
        ring.fork()
        ring.barrier()
        if ring.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        if wait == "barrier":
            ring.barrier()
        elif wait == "share":
            for _ in range(1000):
                ring.share()
                ring.barrier()
    assert not capfd.readouterr().err


def test_only_who_ended_by_itself_is_named():
    """Not the rank that rank 0 had to end."""
    with pytest.raises(ChildProcessError) as told, Ring(3) as ring:
        ring.fork()
        if ring.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if ring.rank == 2:
            time.sleep(60)
        while True:  # until the pipe to rank 1 is found closed
            ring.send("token")
            time.sleep(0.01)
    assert str(told.value) == (
        "a process of the training ended by signal 9 (often: memory ran out): continue with "
        "--resume, perhaps --threads 1"
    )


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_an_error_on_rank_0_passes_and_ends_the_others(kind):
    with pytest.raises(kind, match="mine"), Ring(3) as ring:
        ring.fork()
        ring.barrier()
        if ring.rank == 0:
            raise kind("mine")
        ring.barrier()


def test_an_error_ends_a_ring_whose_pipes_another_ring_inherited():
    with Ring(2) as other:
        with pytest.raises(ValueError, match="astray"), Ring(2) as ring:
            ring.fork()
            other.fork()  # its second process keeps the first ring's pipes open
            if other.rank > 0 or ring.rank > 0:
                time.sleep(30)
                os._exit(0)
            raise ValueError("astray")
        os.kill(other.children[0], signal.SIGKILL)
        with pytest.raises(ChildProcessError, match="signal 9"):
            other.__exit__(None, None, None)


def test_where_nobody_keeps_the_codes_of_children():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a shell's `trap '' CHLD`
    try:
        with Ring(3) as ring:
            ring.fork()
            ring.barrier()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert ring.children == []


def test_ctrl_c_during_a_fork_finds_the_ranks_told_apart(monkeypatch):
    """It comes at once in both processes; the new one ignores it, this one has made its ranks."""
    fork = os.fork

    def interrupted():
        child = fork()
        os.kill(os.getpid(), signal.SIGINT)
        return child

    monkeypatch.setattr(os, "fork", interrupted)
    with pytest.raises(KeyboardInterrupt), Ring(2) as ring:
        ring.fork()
        ring.barrier()
    assert ring.rank == 0 and ring.children == []


def test_the_others_end_when_rank_0_is_killed(tmp_path):
    """With nobody there to close the ring: the kernel does, for whoever is left."""
    child = os.fork()
    if child == 0:
        with Ring(3) as ring:
            ring.fork()
            (tmp_path / str(ring.rank)).write_text(str(os.getpid()))
            ring.barrier()
            if ring.rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            ring.barrier()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    for rank in (1, 2):
        pid = int((tmp_path / str(rank)).read_text())
        deadline = time.monotonic() + 20
        while os.path.exists(f"/proc/{pid}") and "Z (zombie)" not in status(pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def status(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/status") as lines:
            return lines.read()
    except (FileNotFoundError, ProcessLookupError):
        return "Z (zombie)"


def test_ctrl_c_is_for_rank_0():
    """A terminal sends it to all; the others go on until rank 0 has decided."""
    shards = RankShards(1, Ring(2))
    heard = shards.shared(np.zeros(2, bool))
    with shards.ring as ring:
        ring.fork()
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            heard[ring.rank] = True
        ring.barrier()
    assert heard.tolist() == [True, False]


def test_a_process_that_cannot_be_made(monkeypatch):
    """The second of two: the first ends, too."""
    fork, made = os.fork, []

    def failing():
        if made:
            raise BlockingIOError("no more processes")
        made.append(fork())
        return made[0]

    monkeypatch.setattr(processes.os, "fork", failing)
    with pytest.raises(BlockingIOError), Ring(3) as ring:
        ring.fork()
        ring.barrier()


# The same bits -----------------------------------------------------------------------------


def unit(x):
    return x / (x * x).sum(axis=-1, keepdims=True) ** 0.5


def results(shards, data, kind):
    """Two steps of a training, with a loss that a mean makes up and with one that looks at the
    whole batch; on every rank."""
    (x, target), net = data, Net()
    own = net.first.parameters()
    optimizer = kind(net.parameters(), shards=shards)
    average, found = EMA(optimizer, 0.5), []

    def loss(rows):
        y = net(x[rows])
        return [ops.mse_loss(y, target[rows]), y.mean()]

    def towers(rows):
        return [unit(net.first(a[rows])) for a in (x, x[::-1])]

    def together(a, b):
        return ops.contrastive_loss(a, b, net.scale, np.eye(N, dtype=bool))

    with shards.ring if isinstance(shards, RankShards) else Ring(1) as ring:
        ring.fork()
        for _ in range(2):
            optimizer.zero_grad()
            values = shards.backward(loss, N, net.parameters()[:4])
            found.append(shards.coupled_backward(towers, together, N, own, [net.scale]))
            found += [*values, optimizer.gradient.copy(), optimizer.clip_gradient(0.1)]
            optimizer.step(0.1)
            average.update()
            found += [optimizer.weights.copy(), average.average.copy()]
            found += [optimizer.m.copy(), optimizer.v.copy()]
        if ring.rank > 0:
            same = [np.array_equal(np.float32(a), e) for a, e in zip(found, EXPECTED, strict=True)]
            assert all(same), same
    return found


EXPECTED = []  # what one process has found, for ranks to compare with


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_ranks_find_the_bits_of_one_process(kind, ranks, size, data, monkeypatch):
    """Every rank; in float32, with 11 rows in shards that the ranks share unevenly, and with
    pieces of the optimizer's buffers for all of them."""
    monkeypatch.setattr(optim, "PIECE", 7)
    EXPECTED[:] = results(Shards(size, 1), data, kind)
    assert all(np.asarray(e).dtype == np.float32 for e in EXPECTED)
    found = results(RankShards(size, Ring(ranks)), data, kind)
    for a, e in zip(found, EXPECTED, strict=True):
        np.testing.assert_array_equal(np.float32(a), e)


def test_a_loss_that_is_not_finite_is_told_as_such(data):
    x, target = data
    x[7] = np.nan  # a row of rank 1
    net, shards = Net(), RankShards(2, Ring(2))
    optimizer = AdamW(net.parameters(), shards=shards)
    with shards.ring as ring, np.errstate(invalid="ignore"):
        ring.fork()
        (loss,) = shards.backward(
            lambda rows: [ops.mse_loss(net(x[rows]), target[rows])], N, optimizer.parameters[:4]
        )
        assert np.isnan(loss)


# Trainings ---------------------------------------------------------------------------------


def test_as_many_ranks_as_there_is_work_for(monkeypatch):
    for threads, size, batch, count in [
        (1, 32, 128, 1), (2, 32, 128, 2), (9, 32, 128, 4), (2, 32, 16, 1), (4, None, 128, 1),
    ]:  # fmt: skip
        here = Shards(size, threads)
        ring, shards = loop.ranks(here, batch)
        assert ring.size == count
        assert shards is here if count == 1 else shards.ring is ring
        assert shards.size == here.size
    monkeypatch.setattr(sys, "platform", "darwin")
    here = Shards(32, 2)
    assert loop.ranks(here, 128)[1] is here


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_where_there_is_no_fork_threads_do_the_same(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Log, "plot", lambda self: None)
    files = []
    for can in (True, False):
        monkeypatch.setattr(loop, "can_fork", lambda can=can: can)
        folder = tmp_path / str(can)
        folder.mkdir()
        loop.run(tiny.stage(kind), folder, 0, threads=2)
        files.append({file.name: file.read_bytes() for file in folder.glob("*.safetensors")})
    assert files[0] == files[1]


def test_a_killed_process_of_a_training_is_one_line_and_code_2(tmp_path, monkeypatch, capfd):
    """And what was saved before is there to go on from, to the same end."""
    monkeypatch.setattr(loop.Log, "plot", lambda self: None)
    tiny.run_all(monkeypatch, tmp_path)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert train(undisturbed) == 0
    steps, first = [], os.getpid()

    def fatal(stage):
        steps.append(None)
        if len(steps) == 5 and os.getpid() != first:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Stage, "after_step", fatal)
        capfd.readouterr()
        assert train(killed) == 2
    shown = capfd.readouterr().err
    assert "error: a process of the training ended by signal 9" in shown
    assert "Traceback" not in shown
    assert train(killed, "--resume") == 0
    for name in ("perceptual.safetensors", "autoencoder.safetensors"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()


def train(folder, *options) -> int:
    arguments = ["train", "autoencoder", "--out", str(folder), "--threads", "2", "--device", "cpu"]
    return main([*arguments, *options])
