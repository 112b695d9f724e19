"""MNIST: 60,000 + 10,000 handwritten digits, read from the IDX files inside the package.

An IDX file is a big-endian header (magic number, then one 32-bit size a dimension) and the bytes of
the array. Any folder holding the same four files (Fashion-MNIST, KMNIST) can take MNIST's place.

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits" (CC BY-SA 3.0).
"""

import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..backend import generator

SIDE = 28  # height and width of an image, in pixels
CLASSES = 10
MAX_IMAGES = 1_000_000  # a header that promises more is not believed, nor is its memory allocated
CHUNK = 1 << 20  # bytes decompressed at a time
SLACK = 1 << 16  # bytes that a .gz file may have for itself: names, and data that do not shrink

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MD5 = {  # of the files as published, before compression
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
_EMBEDDED = Path(__file__).parent


def load(split: str, folder: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) uint8, 0 paper and 255 ink, and labels (N,) uint8 of "train" or "test".

    Without a folder, the embedded digits: checked against MNIST's checksums at first read, then
    kept in memory. With one, its four IDX files, plain or .gz, checked for shape and range only: a
    plain IDX file has no checksum, and wrong pixels in one look like others; a .gz file has one.
    The arrays are read-only. Raises ValueError, naming the file and what would be right.
    """
    if split not in FILES:
        raise ValueError(f"unknown split {split!r}: use 'train' or 'test'")
    return _embedded(split) if folder is None else _read_split(Path(folder), split)


def to_float(images: np.ndarray) -> np.ndarray:
    """Pixels as the networks see them: (N, 28, 28) uint8 -> (N, 28, 28, 1) float32 in [-1, 1]."""
    return images[..., None].astype(np.float32) / 127.5 - 1.0


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Which of `n` examples make up batch number `step`: (batch_size,) int64.

    Epochs, each a fresh permutation, follow one another without a gap, and batches are cut from
    that endless sequence: every batch is full, a batch may straddle two epochs, and every example
    comes exactly once an epoch. The answer depends on the arguments alone, so a resumed run goes
    on with the very batch it would have had.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"cannot cut batches of {batch_size} from {n} examples: both must be >= 1")
    if step < 0:
        raise ValueError(f"step must be >= 0, not {step}")
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // n, (last - 1) // n + 1)
    order = np.concatenate([_permutation(n, seed, epoch) for epoch in epochs])
    start = first - epochs[0] * n
    return order[start : start + batch_size]


def batches(n: int, batch_size: int, seed: int, step: int = 0) -> Iterator[np.ndarray]:
    """The endless sequence of `batch_indices`, from batch number `step` on."""
    while True:
        yield batch_indices(n, batch_size, seed, step)
        step += 1


class Unzipped:
    """A .gz file, read as far as it is asked for. It has one part: `gzip.open` would go on to
    others, and look through billions that hold nothing, or zeros, for the next one's beginning.

    Raises EOFError where the file ends too early, zlib.error where it is damaged.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.part = file, zlib.decompressobj(wbits=31)  # 31: with gzip's header, CRC-32

    def read(self, n: int) -> bytes:
        content = b""
        while len(content) < n and not self.part.eof:
            packed = self.part.unconsumed_tail or self.file.read(CHUNK)
            if not packed:
                raise EOFError
            content += self.part.decompress(packed, n - len(content))
        if self.part.eof and (self.part.unused_data or self.file.read(1)):
            raise zlib.error("bytes follow its compressed data")
        return content


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, "shuffle", epoch).permutation(n)


@lru_cache(maxsize=2)
def _embedded(split: str) -> tuple[np.ndarray, np.ndarray]:
    return _read_split(_EMBEDDED, split, MD5)


def _read_split(
    folder: Path, split: str, md5: dict[str, str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    if not folder.is_dir():
        raise ValueError(f"data folder {folder} does not exist")
    image_name, label_name = FILES[split]
    image_path, label_path = _find(folder, image_name), _find(folder, label_name)
    checksums = md5 or {}
    images = _read_idx(image_path, (SIDE, SIDE), checksums.get(image_name))
    labels = _read_idx(label_path, (), checksums.get(label_name))
    if len(images) != len(labels):
        raise ValueError(
            f"{label_path} has {len(labels)} labels, but {image_path} has {len(images)} images"
        )
    if labels.max() >= CLASSES:
        raise ValueError(f"{label_path} holds label {labels.max()}: labels must be 0 to 9")
    return images, labels


def _find(folder: Path, name: str) -> Path:
    """The file `name`, under either spelling in use (-idx3 or .idx3), plain or compressed."""
    for spelling in (name, name.replace("-idx", ".idx")):
        for suffix in ("", ".gz"):
            path = folder / (spelling + suffix)
            if path.is_file():
                return path
    raise ValueError(f"{folder} has no file {name} (nor {name}.gz)")


def _read_idx(path: Path, item_shape: tuple[int, ...], md5: str | None) -> np.ndarray:
    """The array (N, *item_shape) uint8 of one IDX file, read-only.

    No more is read or decompressed than the header promises, and one byte to see that it ends; no
    more memory is taken than what is there fills.
    """
    ndim = 1 + len(item_shape)
    expected_magic = 0x0800 + ndim  # 0x08: unsigned bytes; low byte: number of dimensions
    try:
        with open(path, "rb") as opened:
            file = Unzipped(opened) if path.suffix == ".gz" else opened
            header = file.read(4 + 4 * ndim)
            if len(header) < 4 + 4 * ndim:
                raise ValueError(f"{path} is truncated: it ends inside the header")
            magic, count, *sizes = struct.unpack(f">{1 + ndim}I", header)
            if magic != expected_magic:
                raise ValueError(
                    f"{path} is no IDX file of {ndim}-dimensional bytes: "
                    f"it starts with {magic:#010x}, not {expected_magic:#010x}"
                )
            if tuple(sizes) != item_shape:
                raise ValueError(f"{path} holds images of {sizes} pixels, not {list(item_shape)}")
            if not 1 <= count <= MAX_IMAGES:
                raise ValueError(f"{path} promises {count} items: 1 to {MAX_IMAGES} can be read")
            size = count * math.prod(item_shape)
            too_long = f"{path} has bytes after the {count} items its header promises"
            if path.stat().st_size > size + size // 64 + SLACK:
                raise ValueError(too_long)
            content = bytearray()
            while len(content) < size and (chunk := file.read(min(size - len(content), CHUNK))):
                content += chunk
            if len(content) < size:
                raise ValueError(
                    f"{path} is truncated: {len(content)} bytes follow the header, not {size}"
                )
            if file.read(1):
                raise ValueError(too_long)
    except EOFError:
        raise ValueError(f"{path} is truncated: its compressed data end early") from None
    except zlib.error as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if md5 is not None:
        digest = hashlib.md5(header, usedforsecurity=False)
        digest.update(content)
        if digest.hexdigest() != md5:
            raise ValueError(f"{path} was altered: its md5 is {digest.hexdigest()}, not {md5}")
    array = np.frombuffer(content, np.uint8).reshape(count, *item_shape)
    array.flags.writeable = False
    return array
