"""A training that cannot be lost: killed in a save, checkpoints damaged, a disk full."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from ldm_numpy import checkpoint, files, images, training
from ldm_numpy.processes import can_fork
from ldm_numpy.training import loop
from ldm_numpy.training.loop import load_trained, run

from . import tiny
from .small_training import DAMAGED, NAME, OLDER, OpenFile, quicken, resume, rows, same_run, step

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


def copy_of(folder, target):
    for name in (NAME, OLDER, "classifier.csv", "classifier_000006.png"):
        (target / name).write_bytes((folder / name).read_bytes())
    return target


# The last two checkpoints ------------------------------------------------------------------


def test_the_last_two_are_kept(undisturbed, tmp_path):
    assert [step(undisturbed / name) for name in (OLDER, NAME)] == [3, 6]
    run(tiny.stage("classifier", checkpoint_every=1), tmp_path, 0, threads=1)
    assert [step(tmp_path / name) for name in (OLDER, NAME)] == [5, 6]
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_the_last_two_where_files_have_one_name_each(undisturbed, tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    run(tiny.stage("classifier"), tmp_path, 0, threads=1)
    same_run(tmp_path, undisturbed)
    assert (tmp_path / OLDER).read_bytes() == (undisturbed / OLDER).read_bytes()


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "the name of its metadata": lambda content: content.replace(b'"ldm_numpy"', b'"lem_numpy"', 1),
    "a bit": flip,
    "half of it": lambda content: content[: len(content) // 2],
    "all of it": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "a type": lambda content: content.replace(b'"F32"', b'"F33"', 1),
    "a type that is another": lambda content: content.replace(b'"F32"', b'"U32"', 1),
    "the header's size": lambda content: content[:6] + b"\xff" + content[7:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_older_one(damage, undisturbed, tmp_path):
    """With a warning; the damaged file is put aside, and the end is that of no damage."""
    path = copy_of(undisturbed, tmp_path) / NAME
    spoiled = DAMAGES[damage](path.read_bytes())
    path.write_bytes(spoiled)
    with pytest.warns(UserWarning, match=rf"{NAME} .*goes on from step 3, of {OLDER}"):
        resume(tmp_path)
    same_run(tmp_path, undisturbed)
    assert (tmp_path / DAMAGED).read_bytes() == spoiled
    assert step(tmp_path / OLDER) == 3


def test_a_missing_checkpoint_too(undisturbed, tmp_path):
    """As a kill leaves it where the older one could only be had by renaming."""
    (copy_of(undisturbed, tmp_path) / NAME).unlink()
    with pytest.raises(ValueError, match=rf"{OLDER} exists: continue it with --resume"):
        run(tiny.stage("classifier"), tmp_path, 0)
    with pytest.warns(UserWarning, match=rf"{NAME} does not exist.* step 3, of {OLDER}"):
        resume(tmp_path)
    same_run(tmp_path, undisturbed)


def test_two_damaged_checkpoints_are_an_error(undisturbed, tmp_path):
    copy_of(undisturbed, tmp_path)
    before = {}
    for name in (NAME, OLDER):
        (tmp_path / name).write_bytes(flip((tmp_path / name).read_bytes()))
        before[name] = (tmp_path / name).read_bytes()
    with pytest.raises(ValueError, match=rf"{NAME} was altered.*{OLDER} was altered") as error:
        resume(tmp_path)
    assert "\n" not in str(error.value)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    (tmp_path / OLDER).unlink()
    with pytest.raises(ValueError, match=rf"{NAME} was altered.*no {OLDER}.*delete .* begin again"):
        resume(tmp_path)


def test_what_is_not_damaged_does_not_give_way(undisturbed, tmp_path):
    """A checkpoint of a later version, or made with other options, stays where it is."""
    path = copy_of(undisturbed, tmp_path) / NAME
    arrays, metadata = checkpoint.load(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "VERSION", 2)
        checkpoint.save(path, arrays, metadata)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="format version 2"):
        resume(tmp_path)
    assert path.read_bytes() == before
    path.write_bytes(flip(before))
    with pytest.raises(ValueError, match="other options"), pytest.warns(UserWarning):
        path.write_bytes(flip((undisturbed / NAME).read_bytes()))
        resume(tmp_path, batch_size=24)
    assert path.is_file() and not (tmp_path / DAMAGED).exists()


def test_a_damaged_finished_stage_is_trained_again_and_built_upon(tmp_path, monkeypatch):
    """What was built upon it stays valid, for it ends with the same bits."""
    whole = tiny.run_all(monkeypatch, tmp_path)
    for name in ("autoencoder", "noisy"):
        whole.fit(name)
    path = tmp_path / "autoencoder.safetensors"
    good = path.read_bytes()
    path.write_bytes(flip(good))
    with pytest.raises(ValueError, match=r"autoencoder\.safetensors was altered.*--resume"):
        whole.fit("noisy", resume=True)
    with pytest.raises(ValueError, match=r"altered.*--resume"):
        load_trained(tiny.stage("autoencoder"), tmp_path)
    assert path.read_bytes() == flip(good)
    with pytest.warns(UserWarning, match="goes on from step 3"):
        whole.fit("autoencoder", resume=True)
    assert path.read_bytes() == good
    whole.fit("noisy", resume=True)


def test_a_run_with_an_older_checkpoint_alone_is_not_begun_again(tmp_path, monkeypatch):
    whole = tiny.run_all(monkeypatch, tmp_path)
    whole.fit("clip")
    (tmp_path / "clip.safetensors").unlink()
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    marked = tokenizer.read_text()
    with pytest.raises(ValueError, match=r"holds a training already \(clip\)"):
        whole.fit("clip")
    with (
        pytest.warns(UserWarning, match="does not exist"),
        pytest.raises(ValueError, match=r"upstream\.tokenizer\.json"),
    ):
        whole.fit("clip", resume=True)
    assert tokenizer.read_text() == marked  # it belongs to the checkpoint


def test_a_lost_tokenizer_is_made_again(tmp_path, monkeypatch):
    """From the same captions. Another one than CLIP was trained with is refused."""
    whole = tiny.run_all(monkeypatch, tmp_path)
    whole.fit("clip")
    path, before = tmp_path / "tokenizer.json", (tmp_path / "tokenizer.json").read_bytes()
    path.unlink()
    whole.fit("clip", resume=True)
    assert path.read_bytes() == before
    path.write_bytes(before[:-20])
    with pytest.raises(ValueError, match=r"tokenizer\.json .*without the file, it is made again"):
        whole.fit("clip", resume=True)
    path.unlink()
    monkeypatch.setattr(training, "CONTEXT_LENGTH", tiny.CONTEXT_LENGTH + 1)
    with pytest.raises(ValueError, match="is gone, and these captions make another one: clip"):
        whole.fit("clip", resume=True)
    assert not path.exists()


# Killed at every step of saving ------------------------------------------------------------


def test_killed_before_every_call_that_changes_a_file(undisturbed, tmp_path, monkeypatch):
    """Wherever in a save: each checkpoint under its name is whole, and a resume ends the same.

    Files are written in halves. Only the second save of two is looked at, which has everything to
    lose; then comes the picture.
    """
    calls, fatal = 0, None

    def counted(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    class Halves(OpenFile):
        """A file that is written in two calls."""

        def write(self, content):
            for part in (content[: len(content) // 2], content[len(content) // 2 :]):
                counted(self.file.write)(part)
                self.file.flush()

    save = loop.save_checkpoint

    def trace(*args):
        if args[-2] == 6:
            for name in ("fsync", "link", "replace", "unlink"):
                monkeypatch.setattr(os, name, counted(getattr(os, name)))
            monkeypatch.setattr(files, "open", Halves, raising=False)
        save(*args)

    monkeypatch.setattr(loop, "save_checkpoint", trace)
    steps_found = []
    for fatal in range(1, 100):
        folder = tmp_path / str(fatal)
        folder.mkdir()
        child = os.fork()
        if child == 0:
            try:
                run(tiny.stage("classifier"), folder, 0, threads=1)
            finally:
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "save_checkpoint", save)
            steps_found.append([step(p) for p in sorted(folder.glob("*.safetensors"))])
            resume(folder)
        same_run(folder, undisturbed)
        assert step(folder / OLDER) == 3
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert fatal > 10  # and each of them was one moment
    assert [3] in steps_found and [3, 3] in steps_found and [3, 6] in steps_found


def test_a_picture_that_a_kill_cost_is_drawn_by_the_resume(undisturbed, tmp_path, monkeypatch):
    (copy_of(undisturbed, tmp_path) / "classifier_000006.png").unlink()
    resume(tmp_path)
    same_run(tmp_path, undisturbed)
    drawn = []
    monkeypatch.setattr(training.ClassifierStage, "draw", lambda *args: drawn.append(args))
    resume(tmp_path)
    assert drawn == []  # it is there


def test_rows_beyond_the_checkpoint_go_when_it_is_resumed(undisturbed, tmp_path, monkeypatch):
    """Before anything else is done."""
    (copy_of(undisturbed, tmp_path) / NAME).write_bytes((undisturbed / OLDER).read_bytes())
    stage = tiny.stage("classifier")
    seen = []
    monkeypatch.setattr(stage, "after_step", lambda: seen.append(rows(tmp_path / "classifier.csv")))
    run(stage, tmp_path, 0, resume=True, threads=1)
    assert [row[0] for row in seen[0]] == ["step", "2", "3"]


# What the dead leave behind ----------------------------------------------------------------


def test_temporary_files_of_the_dead_are_removed(undisturbed, tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = os.getppid()
    for pid in (dead.pid, alive, os.getpid()):  # the last was a dead one's, too
        (tmp_path / f".clip.csv.{pid}.tmp").write_bytes(b"half")
    for other in (".hidden", ".notes.tmp", "a.1.tmp"):
        (tmp_path / other).write_bytes(b"not ours")
    stays = tmp_path / f".folder.{dead.pid}.tmp"  # as another user's file: it cannot be removed
    stays.mkdir()
    resume(tmp_path)
    left = {path.name for path in tmp_path.glob("*") if "tmp" in path.name or path.name[0] == "."}
    assert left == {f".clip.csv.{alive}.tmp", ".hidden", ".notes.tmp", "a.1.tmp", stays.name}


def test_a_models_folder_is_swept_too(tmp_path, monkeypatch):
    whole = tiny.run_all(monkeypatch, tmp_path)
    (tmp_path / "model").mkdir()
    left = tmp_path / "model" / f".unet.safetensors.{os.getpid()}.tmp"
    left.write_bytes(b"half")
    whole.fit("clip")
    assert not left.exists()


# Disks -------------------------------------------------------------------------------------


def test_a_write_that_fails_half_way_loses_nothing(undisturbed, tmp_path, monkeypatch):
    copy_of(undisturbed, tmp_path)
    (tmp_path / NAME).write_bytes((undisturbed / OLDER).read_bytes())
    before = {name: (tmp_path / name).read_bytes() for name in (NAME, OLDER)}

    class Full(OpenFile):
        def write(self, content):
            self.file.write(content[: len(content) // 2])
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", Full, raising=False)
        with pytest.raises(ValueError, match=r"^cannot write .*Input/output error$"):
            resume(tmp_path)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    assert not list(tmp_path.glob(".*"))
    resume(tmp_path)
    same_run(tmp_path, undisturbed)


def test_a_picture_is_whole_or_as_it_was(tmp_path, monkeypatch):
    pictures = images.to_pil(tiny.digits("train").pixels(slice(0, 2)))
    path = tmp_path / "picture.png"
    images.save_png(pictures[0], path)
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"^cannot write .*picture\.png: No space left"):
        images.save_png(pictures[1], path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["picture.png"]


def test_a_folder_that_goes_away(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    stage = tiny.stage("classifier")
    stage.after_step = lambda: folder.exists() and folder.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"cannot write .*run/classifier\.csv: No such file"):
        run(stage, folder, 0, threads=1)
    with pytest.raises(ValueError, match=r"cannot write .*run/\.lock: No such file"):
        run(tiny.stage("classifier"), folder, 0, threads=1)


@pytest.mark.parametrize("metadata", [{}, {"step": 6}, {"step": 6, "options": 3}, {"step": "6"}])
def test_what_no_training_wrote_is_refused(metadata, tmp_path):
    """Its checksum is right; it is of something else."""
    path = tmp_path / NAME
    checkpoint.save(path, {}, metadata)
    for look in (lambda: loop.finished(path), lambda: resume(tmp_path)):
        with pytest.raises(ValueError, match=f"{NAME} is not the checkpoint of a training$"):
            look()
