"""What tests of files that lie share: bounds on memory and time, and makers of such files."""

import contextlib
import io
import json
import signal
import struct
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

MEMORY = 400 << 20  # bytes more than before
SECONDS = 20  # the machines that tests run on are slow at times; most files take milliseconds
DEEP = "[" * 100_000
TERABYTE, EXA = 10**12, 2**60


@contextlib.contextmanager
def bounded(memory: int = MEMORY, seconds: float = SECONDS):
    """The block may take so much memory and time, or it fails."""
    if sys.platform != "linux":
        yield
        return
    import resource

    def late(*_):
        raise TimeoutError(f"more than {seconds} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def refuse(read, words: list[str]) -> str:
    """`read` must fail with one short, printable line that has all these words in it."""
    with bounded(), pytest.raises(ValueError) as error:
        read()
    message = str(error.value)
    assert message.isprintable() and len(message) < 700, message
    for word in words:
        assert word in message, message
    return message


def put(path: Path, content) -> Path:
    """A file with this content: bytes, a text, what JSON can hold, or what a function writes."""
    if callable(content):
        content(path)
        return path
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def holes(start: bytes, size: int):
    """A file of `size` bytes that begin as given; the rest are zeros that take no room on disk."""

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            file.write(start)
            try:
                file.truncate(size)
            except OSError:
                pytest.skip("this file system has no files with holes, or none so large")

    return write


def safetensors(header, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file; `length` is what it says of its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def array(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def png(mode: str = "L", size: tuple[int, int] = (28, 28), **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG file, with its checksum."""
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def drawn(width: int, height: int, data: bytes = b"", more: bytes = b"", colour: int = 0) -> bytes:
    """A PNG file of these parts, whose checksums are right."""
    head = struct.pack(">2I5B", width, height, 8, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head) + more + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts
