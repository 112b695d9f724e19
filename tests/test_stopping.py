"""Signals finish a step and save it; two trainings never write into one folder."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ldm_numpy import model_folder, training
from ldm_numpy.__main__ import main
from ldm_numpy.processes import Ring, can_fork
from ldm_numpy.training import folder as run_folder
from ldm_numpy.training.folder import locked
from ldm_numpy.training.loop import run
from ldm_numpy.training.stop import Stopped

from . import tiny
from .small_training import NAME, ROOT, quicken, resume, same_run, step

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not can_fork(), reason="tried on Linux alone"),
]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quicken(monkeypatch.setattr)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a small training of six steps, with checkpoints at 3 and 6."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch.setattr)
        resume(folder)
    return folder


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard():
    """A shell's background jobs start with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# Signals -----------------------------------------------------------------------------------


def signalled(at, *numbers):
    """A stage that is sent signals in the midst of step `at`; on all ranks, as by a terminal."""
    stage = tiny.stage("classifier")
    after_step, done = stage.after_step, []

    def hear():
        after_step()
        done.append(None)
        if len(done) == at:
            for number in numbers:
                signal.raise_signal(number)

    stage.after_step = hear
    return stage


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 5, 6])
def test_a_signal_finishes_the_step_and_saves(number, threads, at, undisturbed, tmp_path):
    with pytest.raises(Stopped, match=f"classifier stopped at step {at} of 6") as stopped:
        run(signalled(at, number), tmp_path, 0, threads=threads)
    assert stopped.value.signal == number
    assert step(tmp_path / NAME) == at
    assert not list(tmp_path.glob(".*"))
    resume(tmp_path, threads)
    same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["measure", "draw"])
def test_a_signal_at_the_very_end_is_heard(where, number, threads, undisturbed, tmp_path):
    """While the last step is saved, or its picture drawn: the next stage must not begin."""
    stage, done = signalled(6), []
    after_step, usual = stage.after_step, getattr(stage, where)

    def count():
        after_step()
        done.append(None)

    def hear(*arguments):
        if len(done) == 6:
            signal.raise_signal(number)
        return usual(*arguments)

    stage.after_step = count
    setattr(stage, where, hear)
    with pytest.raises(Stopped, match="classifier stopped at its end, which is saved") as stopped:
        run(stage, tmp_path, 0, threads=threads)
    assert stopped.value.signal == number
    assert step(tmp_path / NAME) == 6
    resume(tmp_path, threads)
    same_run(tmp_path, undisturbed)


def test_a_signal_saves_no_weights_that_have_gone_astray(tmp_path):
    stage, done = signalled(5, signal.SIGTERM), []
    after_step = stage.after_step

    def astray():
        done.append(None)
        if len(done) == 5:
            next(iter(stage.networks.values())).parameters()[0].data[...] = np.nan
        after_step()

    stage.after_step = astray
    with pytest.raises(ValueError, match=r"NaN or infinity by step 5 .*keeps the last good step"):
        run(stage, tmp_path, 0, threads=1)
    assert step(tmp_path / NAME) == 3


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("between", [[], [signal.SIGTERM]])
def test_a_second_ctrl_c_stops_at_once(between, threads, tmp_path, undisturbed):
    signals = [signal.SIGINT, *between, signal.SIGINT]
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(signalled(5, *signals), tmp_path, 0, threads=threads)
    assert type(stopped.value) is KeyboardInterrupt
    assert step(tmp_path / NAME) == 3
    resume(tmp_path)
    same_run(tmp_path, undisturbed)


def test_a_second_sigterm_is_the_first_one_again(tmp_path):
    """What stops a group of processes and their parent's parting word reach one process."""
    with pytest.raises(Stopped):
        run(signalled(5, signal.SIGTERM, signal.SIGTERM), tmp_path, 0, threads=2)
    assert step(tmp_path / NAME) == 5


def test_the_first_ctrl_c_saves_also_after_a_sigterm(tmp_path):
    with pytest.raises(Stopped) as stopped:
        run(signalled(5, signal.SIGTERM, signal.SIGINT), tmp_path, 0, threads=2)
    assert stopped.value.signal == signal.SIGINT
    assert step(tmp_path / NAME) == 5


def test_other_ranks_leave_signals_to_rank_0():
    with Ring(2) as ring:
        ring.fork()
        if ring.rank == 1:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        ring.barrier()


def test_a_signal_that_is_ignored_stays_ignored(tmp_path, undisturbed):
    """As with nohup, or in a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run(signalled(4, signal.SIGINT), tmp_path, 0, threads=1)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    same_run(tmp_path, undisturbed)


def test_a_training_outside_the_main_thread_hears_no_signal(tmp_path, undisturbed):
    thread = threading.Thread(target=resume, args=(tmp_path,))
    thread.start()
    thread.join()
    same_run(tmp_path, undisturbed)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_signal_does_not_save_weights_gone_astray(tmp_path):
    """At a step that no log looks at."""
    stage = signalled(5, signal.SIGTERM)
    gradients = stage.gradients

    def spoiled(number, shards, parameters):
        values = gradients(number, shards, parameters)
        if number == 4:
            parameters[0].grad[...] = np.nan
        return values

    stage.gradients = spoiled
    with pytest.raises(ValueError, match="NaN or infinity by step 5"):
        run(stage, tmp_path, 0, threads=1)
    assert step(tmp_path / NAME) == 3


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_other_commands_end_with_the_signals_code(
    number, code, word, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(model_folder, "load", lambda *_: signal.raise_signal(number))
    assert main(["sample", "3", "--device", "cpu", "--out", str(tmp_path / "s.png")]) == code
    assert capsys.readouterr().err == f"\n{word}\n"


# The lock ----------------------------------------------------------------------------------


def refused(folder):
    """Whether another process is refused the folder; what it is told."""
    code = (
        "import sys; from pathlib import Path; from ldm_numpy.training.folder import locked\n"
        "try:\n"
        "    with locked(Path(sys.argv[1])): print('free')\n"
        "except ValueError as error: print(error)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return found.stdout.strip()


def test_a_second_training_is_refused_while_the_first_runs(tmp_path):
    stage, told = tiny.stage("classifier"), []
    after_step = stage.after_step

    def ask():
        after_step()
        if not told:
            told.append(refused(tmp_path))

    stage.after_step = ask
    run(stage, tmp_path, 0, threads=1)
    assert told == [
        f"another training (process {os.getpid()}) writes into {tmp_path}: wait until it has "
        "ended, or choose another folder with --out"
    ]
    assert refused(tmp_path) == "free"
    assert not list(tmp_path.glob(".*"))


def test_who_may_write_into_the_folder_may_lock_it(tmp_path):
    """A lock file is as open to others as files that one makes."""
    before = os.umask(0)
    try:
        with locked(tmp_path):
            assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


@pytest.mark.parametrize("kind", ["link", "hard link", "link to nothing", "pipe", "folder"])
def test_a_lock_that_is_none(tmp_path, kind):
    """What a stranger's folder may hold in its place; a link's target is not written to."""
    thesis, run = tmp_path / "thesis.txt", tmp_path / "run"
    thesis.write_text("years of work")
    run.mkdir()
    {
        "link": lambda lock: lock.symlink_to(thesis),
        "hard link": lambda lock: lock.hardlink_to(thesis),
        "link to nothing": lambda lock: lock.symlink_to(tmp_path / "new"),
        "pipe": os.mkfifo,
        "folder": os.mkdir,
    }[kind](run / ".lock")
    files = len(os.listdir("/proc/self/fd"))
    words = r"\.lock(: | is no lock of a training: remove it)"
    with pytest.raises(ValueError, match=words), locked(run):
        pass
    assert thesis.read_text() == "years of work"
    assert sorted(os.listdir(tmp_path)) == ["run", "thesis.txt"]
    assert os.listdir(run) == [".lock"]
    assert len(os.listdir("/proc/self/fd")) == files  # none is left open


def test_a_run_and_its_command_hold_the_lock(tmp_path, monkeypatch):
    told = []
    whole = tiny.run_all(monkeypatch, tmp_path)
    build = training.Run.build
    monkeypatch.setattr(
        training.Run, "build", lambda *args: told.append(refused(tmp_path)) or build(*args)
    )
    whole.fit("clip")
    assert "another training" in told[0]


def test_a_thread_is_refused_what_another_has(tmp_path):
    told = []

    def second():
        try:
            with locked(tmp_path):
                told.append("free")
        except ValueError as error:
            told.append(str(error))

    with locked(tmp_path), locked(tmp_path):  # one training within another's thread is the same
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another training" in told[0]
    second()
    assert told[1] == "free"


def test_a_lock_ends_with_its_process_and_not_with_its_children(tmp_path):
    """Rank 0 is killed while another rank is busy: the folder is free at once."""
    reading, writing = os.pipe()
    leader = os.fork()
    if leader == 0:
        with locked(tmp_path), Ring(2) as ring:
            ring.fork()
            if ring.rank == 1:
                os.write(writing, str(os.getpid()).encode())
                time.sleep(60)
            time.sleep(60)
    child = int(os.read(reading, 20))
    os.close(reading)
    os.close(writing)
    try:
        assert f"process {leader}" in refused(tmp_path)
        os.kill(leader, signal.SIGKILL)
        os.waitpid(leader, 0)
        os.kill(child, 0)  # still there
        assert (tmp_path / ".lock").exists()  # the file says nothing
        with locked(tmp_path):
            pass
        assert not (tmp_path / ".lock").exists()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lock_file_that_was_removed_while_it_was_waited_for(tmp_path, monkeypatch):
    """Its lock is worth nothing: a third training would make, and lock, a new file."""
    flock, times = run_folder.fcntl.flock, []

    def late(descriptor, operation):
        times.append(descriptor)
        if len(times) == 1:
            (tmp_path / ".lock").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(run_folder.fcntl, "flock", late)
    with locked(tmp_path):
        assert len(times) == 2 and "another training" in refused(tmp_path)


def test_a_lock_file_is_removed_while_it_is_locked(tmp_path, monkeypatch):
    """Otherwise somebody else could lock it, and a third would make, and lock, a new one."""
    unlink, told = Path.unlink, []

    def spy(path, missing_ok=False):
        if path.name == ".lock":
            told.append(refused(tmp_path))
        unlink(path, missing_ok)

    with locked(tmp_path):
        monkeypatch.setattr(Path, "unlink", spy)
    assert len(told) == 1 and "another training" in told[0]
    monkeypatch.undo()
    assert refused(tmp_path) == "free"


def test_where_there_are_no_locks(undisturbed, tmp_path, monkeypatch):
    """Neither a system nor a file system without them stops a training."""

    def unsupported(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    for folder in (tmp_path / "1", tmp_path / "2"):
        folder.mkdir()
        if folder.name == "1":
            monkeypatch.setattr(run_folder.fcntl, "flock", unsupported)
        else:
            monkeypatch.setattr(run_folder, "fcntl", None)
        resume(folder)
        assert not list(folder.glob(".*"))
        same_run(folder, undisturbed)
