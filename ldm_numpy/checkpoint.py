"""Checkpoints: named arrays and a little metadata in one safetensors file, checked when read.

A file is written beside its final name, forced to disk, then renamed: at every moment the name
holds the old checkpoint or the new one, whole. A SHA-256 over names, shapes, bytes and metadata
tells an altered file. Nothing is ever pickled, so reading a file cannot run code.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from .backend import to_host

VERSION = 1
_KEY = "ldm_numpy"  # all our metadata is one entry: safetensors writes several in random order


def save(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping) -> None:
    """Write `arrays` and `metadata` (anything JSON can hold; tuples come back as lists) to `path`.

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
    write_atomically(path, content)


def load(path: str | Path) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays and metadata that `save` wrote.

    Raises ValueError, in one line, for a file that is missing, truncated, altered, of another
    format version, or not ours.
    """
    if not Path(path).is_file():
        raise ValueError(f"checkpoint {path} does not exist")
    try:
        with safe_open(path, framework="numpy") as file:
            entry = (file.metadata() or {}).get(_KEY)
            if entry is None:
                raise ValueError(f"{path} is a safetensors file, but not one of ldm_numpy")
            version, checksum, text = _read_entry(path, entry)
            if version != VERSION:
                raise ValueError(f"{path} has format version {version!r}, not {VERSION}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from None
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error}") from None
    if _checksum(arrays, text) != checksum:
        raise ValueError(f"{path} was altered: its contents do not match their checksum")
    return arrays, json.loads(text)


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


def write_atomically(path: str | Path, content: bytes) -> None:
    """Replace the file at `path` by `content`, or leave it untouched (ValueError) if that fails."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same folder: same disk
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
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


def _read_entry(path: str | Path, entry: str) -> tuple[object, str, str]:
    """Version, checksum and metadata text of our metadata entry."""
    try:
        fields = json.loads(entry)
        return fields["version"], fields["sha256"], fields["metadata"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} was altered: its metadata are incomplete ({error})") from None


def _checksum(arrays: Mapping[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
