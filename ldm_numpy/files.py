"""Files: read without trusting them, written so that none is ever lost.

A file of a stranger may be huge, nested without end, or no file at all: what reading it costs is
bounded, and what is wrong with it is one line. A file of our own is written beside its final name,
forced to disk, then renamed: at every moment the name holds the old file or the new one, whole. The
old one may be kept under a second name.
"""

import contextlib
import hashlib
import json
import os
import re
import reprlib
from collections import Counter
from pathlib import Path

MAX_JSON = 4 << 20  # bytes of a JSON file; CLIP's vocabulary has 860,000

# Reading -----------------------------------------------------------------------------------


def read_json(path: str | Path, what: str) -> object:
    """What a JSON file says; ValueError where it cannot be read (see `read_file`, `parse_json`)."""
    content = read_file(path, what)
    try:
        return parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def read_file(path: str | Path, what: str) -> bytes:
    """The bytes of a small file; `what` it is, for the message of ValueError, which is raised for a
    file that is missing, no regular file (a pipe would be waited for) or larger than MAX_JSON."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError(f"cannot read {what} {path}: it is not a file")
        with open(path, "rb") as file:
            content = file.read(MAX_JSON + 1)
    except OSError as error:
        raise ValueError(f"cannot read {what} {path}: {error.strerror}") from None
    if len(content) > MAX_JSON:
        raise ValueError(f"cannot read {what} {path}: it has more than {MAX_JSON:,} bytes")
    return content


def parse_json(content: str | bytes) -> object:
    """What JSON says. ValueError, in one line, where it is none, where an object has a name twice
    (which of the values would count?), or where it is nested deeper than Python can follow."""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(one_line(error)) from None


def checksum(content: dict) -> str:
    """SHA-256 of all that an object of JSON says but for its own entry "sha256".

    It is of the contents, not of the bytes: blanks, line ends and the order of names may change.
    """
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_intact(path: str | Path, content: dict) -> None:
    """ValueError unless an object's checksum, where it has one, is right."""
    if "sha256" in content and content["sha256"] != checksum(content):
        raise ValueError(
            f'{path} was altered: its contents do not match their checksum "sha256" (remove that '
            "entry if you changed the file on purpose)"
        )


def one_line(words: object, limit: int = 300) -> str:
    """A stranger's words for a message: printable, on one line, cut where they are long."""
    text = "".join(c if c.isprintable() else " " for c in str(words))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _object(pairs: list[tuple[str, object]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise ValueError(f"{reprlib.repr(names.most_common(1)[0][0])} stands twice in one object")
    return content


# Writing -----------------------------------------------------------------------------------


def previous(path: str | Path) -> Path:
    """Where the file before the one at `path` is kept: unet.previous.safetensors."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_atomically(path: str | Path, content: bytes, keep: bool = False) -> None:
    """Replace the file at `path` by `content`, or leave it untouched (ValueError) if that fails.

    With `keep`, the file that is replaced becomes `previous(path)`.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        try:
            temporary.unlink(missing_ok=True)  # of a dead process with our number; or a link
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if keep and path.exists():
                _keep(path)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # there only if something failed
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from None
    with contextlib.suppress(OSError):  # the new name reaches the disk too, where folders can sync
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep(folder: str | Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote into `folder`."""
    if os.name != "posix":  # elsewhere nothing tells harmlessly whether a process is alive
        return
    for path in Path(folder).glob(".*.tmp"):
        owner = re.fullmatch(r"\..+\.(\d{1,7})\.tmp", path.name)
        if owner and not _alive(int(owner[1])):
            with contextlib.suppress(OSError):  # another sweeps too; or it is another user's
                path.unlink()


def _temporary(path: Path) -> Path:
    """A name beside `path`, and so on the same disk, that tells whose it is."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _alive(process: int) -> bool:
    """Whether another process of that number is running. (This one may have a dead one's number:
    in containers numbers are few.)"""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _keep(path: Path) -> None:
    """Give the file at `path` its second name; while it does, `path` is never without a file."""
    older = previous(path)
    second = _temporary(older)
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # a file system without hard links
        os.replace(path, older)
        return
    try:
        os.replace(second, older)
    finally:
        second.unlink(missing_ok=True)  # there, too, if `older` was the same file already
