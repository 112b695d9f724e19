"""A run's folder: that it can be written, that one training at a time does, and which of a stage's
two checkpoints to go on from."""

import contextlib
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from .. import checkpoint
from ..files import previous, sweep

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two trainings apart
    fcntl = None

LOCK = ".lock"
_held: dict[Path, tuple[int, int]] = {}  # folders this process has locked: thread, descriptor


def prepare_folder(folder: Path) -> None:
    """Make the folder; ValueError, before hours of work, where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}.tmp"
        probe.unlink(missing_ok=True)  # it may be a link
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write into the folder {folder}: {error.strerror}") from None


# One training at a time --------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside the block nobody else trains into the folder; left over temporary files are removed.

    The lock is the kernel's, on an open file: it ends with this process, whatever ends it. Forked
    processes do not keep it. The same thread may lock a folder again, within. ValueError while
    another training has it.
    """
    place = folder.resolve()
    if place in _held and _held[place][0] == threading.get_ident():
        yield
        return
    descriptor = _lock(place / LOCK, folder) if fcntl else None
    if descriptor is not None:
        _held[place] = threading.get_ident(), descriptor
    try:
        sweep(folder)
        yield
    finally:
        if place in _held:  # not in a forked process
            (place / LOCK).unlink(missing_ok=True)  # before others can lock it
            os.close(_held.pop(place)[1])


def _lock(path: Path, folder: Path) -> int | None:
    """Lock the file at `path`; its descriptor, or None where a file system knows no locks."""
    while True:
        try:
            # A lock in a stranger's folder may be a link to a file that is not to be touched.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror}") from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(descriptor)
            raise ValueError(f"{path} is no lock of a training: remove it")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                with contextlib.suppress(OSError):  # a full disk: the number is for people only
                    os.truncate(descriptor, 0)
                    os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except BlockingIOError:
            owner = os.read(descriptor, 20).decode(errors="replace")
            os.close(descriptor)
            raise ValueError(
                f"another training (process {owner or '?'}) writes into {folder}: wait until it "
                "has ended, or choose another folder with --out"
            ) from None
        except FileNotFoundError:  # who had the lock removed the file in between
            pass
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        os.close(descriptor)


def _forget() -> None:
    """In a forked process: close what would keep the locks after the one that has them."""
    for _, descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


if fcntl:
    os.register_at_fork(after_in_child=_forget)


# The last two checkpoints ------------------------------------------------------------------


def existing(path: Path) -> Path | None:
    """The checkpoint at `path` or, where only that is left, the one before it."""
    return next((p for p in (path, previous(path)) if p.exists()), None)


def of_a_training(path: Path) -> tuple[dict, dict]:
    """Arrays and metadata of a checkpoint that a training wrote; ValueError for another."""
    arrays, metadata = checkpoint.load(path)
    kinds = {"step": int, "step_count": int, "options": dict, "measured": dict}
    if not all(isinstance(metadata.get(name), kind) for name, kind in kinds.items()):
        raise ValueError(f"{path} is not the checkpoint of a training")
    return arrays, metadata


def newest(path: Path) -> tuple[dict, dict, Path]:
    """Arrays and metadata of the checkpoint at `path` or, with a UserWarning, of the one before it
    where that is missing or damaged; and which of them it was. ValueError if neither can be used.
    """
    older = previous(path)
    if path.exists():
        try:
            return *of_a_training(path), path
        except checkpoint.DamagedError as error:
            reason = str(error)
    else:
        reason = f"{path} does not exist"
    if not older.exists():
        raise ValueError(f"{reason}; there is no {older.name}: delete the file to begin again")
    try:
        arrays, metadata = of_a_training(older)
    except checkpoint.DamagedError as error:
        raise ValueError(f"{reason}; {error}: delete both to begin again") from None
    step = metadata["step"]
    warnings.warn(f"{reason}: the training goes on from step {step}, of {older.name}", stacklevel=2)
    return arrays, metadata, older


def reinstate(path: Path) -> None:
    """Put the older checkpoint in the place of the newest, which is kept as NAME.damaged: the next
    save must not make the damaged one the older, and for a moment the only one."""
    if path.exists():
        os.replace(path, path.with_name(f"{path.stem}.damaged{path.suffix}"))
    os.replace(previous(path), path)
