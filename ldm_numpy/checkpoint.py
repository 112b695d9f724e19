"""Checkpoints: named arrays and a little metadata in one safetensors file, checked when read.

A SHA-256 over names, shapes, bytes and metadata tells an altered file. Nothing is ever pickled, so
reading a file cannot run code.
"""

import hashlib
import json
import reprlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from .backend import to_host
from .files import one_line, parse_json, write_atomically

VERSION = 1
MAX_HEADER = 4 << 20  # bytes; a training of Stable Diffusion's U-Net, 1,400 arrays, needs 200,000
_KEY = "ldm_numpy"  # all our metadata is one entry: safetensors writes several in random order


class DamagedError(ValueError):
    """A checkpoint is not what was written: cut short, or altered."""


def save(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping, keep: bool = False
) -> None:
    """Write `arrays` and `metadata` (anything JSON can hold; tuples come back as lists) to `path`.

    With `keep`, a file already there becomes `previous(path)`; an older one there is replaced.

    Equal contents make equal files, byte for byte. Raises ValueError when something cannot be
    stored or the file cannot be written; a file already there then stays as it was.
    """
    # C order is required: safetensors stores other layouts' bytes as they lie in memory.
    host = {name: np.asarray(to_host(array), order="C") for name, array in arrays.items()}
    foreign = [name for name, array in host.items() if not array.dtype.isnative]
    if foreign or "__metadata__" in host:
        raise ValueError(f"cannot store {foreign or ['__metadata__']}: byte order or name")
    try:
        text = json.dumps(dict(metadata), sort_keys=True)
    except TypeError as error:
        raise ValueError(f"checkpoint metadata must be what JSON can hold: {error}") from None
    entry = {"version": VERSION, "sha256": _checksum(host, text), "metadata": text}
    try:
        content = to_safetensors(host, {_KEY: json.dumps(entry)})
    except SafetensorError as error:
        raise ValueError(f"cannot store these arrays: {error}") from None
    write_atomically(path, content, keep)


def load(path: str | Path) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays and metadata that `save` wrote.

    Raises ValueError, in one line, for a file that is missing, truncated, altered (DamagedError),
    of another format version, or not ours. The memory it takes is the file's size, a few times,
    whatever the header says.
    """
    if not Path(path).is_file():
        raise ValueError(f"checkpoint {path} does not exist")
    try:
        header = _header_size(path)
        if header > MAX_HEADER:
            raise DamagedError(
                f"{path} is truncated or no safetensors file: its header should have {header:,} "
                f"bytes, of {MAX_HEADER:,} at most"
            )
        with safe_open(path, framework="numpy") as file:
            entry = (file.metadata() or {}).get(_KEY)
            if entry is None:
                raise DamagedError(f"{path} is a safetensors file, but not one of ldm_numpy")
            _check_names(path, header)
            version, checksum, text = _read_entry(path, entry)
            if version != VERSION:
                raise ValueError(
                    f"{path} has format version {reprlib.repr(version)}, not {VERSION}"
                )
            np.empty(Path(path).stat().st_size, np.uint8)  # there is room: safetensors would panic
            arrays = {name: _array(path, file, name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, UnicodeDecodeError) as error:
        raise DamagedError(
            f"{path} is truncated or no safetensors file: {one_line(error)}"
        ) from None
    except MemoryError as error:
        raise ValueError(f"checkpoint {path} does not fit into memory: {error}") from None
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error}") from None
    if _checksum(arrays, text) != checksum:
        raise DamagedError(f"{path} was altered: its contents do not match their checksum")
    return arrays, _metadata(path, text)


def half_precision(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Floating arrays as float16, half the size, for export; others unchanged.

    Raises ValueError, naming the array, where a value does not fit float16's range of +-65504.
    """
    halves = {}
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating):
            limit = np.finfo(np.float16).max
            if not (np.abs(array) <= limit).all():
                raise ValueError(f"{name} has values that float16 cannot hold (over {limit:.0f})")
            array = array.astype(np.float16)
        halves[name] = array
    return halves


def _read_entry(path: str | Path, entry: str) -> tuple[object, str, str]:
    """Version, checksum and metadata text of our metadata entry."""
    try:
        fields = parse_json(entry)
        version, checksum, text = fields["version"], fields["sha256"], fields["metadata"]
        if not isinstance(text, str):
            raise TypeError("they are no text")
        text.encode()
        return version, checksum, text
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} was altered: its metadata are incomplete ({error})") from None


def _header_size(path: str | Path) -> int:
    """What a safetensors file says of its header: its first 8 bytes."""
    with open(path, "rb") as file:
        return int.from_bytes(file.read(8), "little")


def _check_names(path: str | Path, header: int) -> None:
    """DamagedError where the header has a name twice: safetensors would take the last."""
    with open(path, "rb") as file:
        file.seek(8)
        content = file.read(header)
    try:
        parse_json(content)
    except ValueError as error:
        raise DamagedError(f"{path} was altered: {error}") from None


def _array(path: str | Path, file, name: str) -> np.ndarray:
    """One array of an open safetensors file; DamagedError for a kind that NumPy has not."""
    try:
        return file.get_tensor(name)
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{path}: array {reprlib.repr(name)} is of a kind that NumPy has not "
            f"({one_line(error)})"
        ) from None


def _metadata(path: str | Path, text: str) -> dict:
    """The metadata in a file whose checksum is right."""
    try:
        metadata = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: its metadata are not JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: its metadata are no object of JSON")
    return metadata


def _checksum(arrays: Mapping[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
