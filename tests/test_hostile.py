"""Files that lie. Each is refused in one line that says what is wrong, in little time and memory,
and nothing in any of them is ever run.

The tables: what the file is called here -> its content, and words that its message must contain.
Models: test_hostile_models.py. Files that are merely damaged: test_bit_flips.py.
"""

import ast
import gzip
import json
import os
import re
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from safetensors.numpy import save as plain_save

from ldm_numpy import checkpoint, images
from ldm_numpy.data import mnist

from .hostile import (
    DEEP,
    EXA,
    MEMORY,
    TERABYTE,
    array,
    bounded,
    chunk,
    drawn,
    holes,
    png,
    put,
    refuse,
    safetensors,
)

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.name != "posix", reason="files with holes, and pipes, are POSIX's"),
]
ROOT = Path(__file__).resolve().parent.parent

# Checkpoints -------------------------------------------------------------------------------


def ours(metadata: object = "{}", **arrays) -> dict:
    """A header that says it is of a checkpoint of ours."""
    entry = {"version": 1, "sha256": "0" * 64, "metadata": metadata}
    return {"__metadata__": {"ldm_numpy": json.dumps(entry)}} | arrays


def signed(text: str) -> bytes:
    """A checkpoint without arrays whose checksum is right, whatever its metadata are."""
    entry = {"version": 1, "sha256": checkpoint._checksum({}, text), "metadata": text}
    return plain_save({}, {"ldm_numpy": json.dumps(entry)})


def entry(text: str) -> bytes:
    return plain_save({}, {"ldm_numpy": text})


def array_of_holes(size: int):
    head = safetensors(ours(x=array([size], 0, size, "U8")))
    return holes(head, len(head) + size)


LIES = ["is truncated or no safetensors file"]
CHECKPOINTS = {
    "header of 2^60 bytes": (safetensors({}, length=EXA), [*LIES, f"{EXA:,}", "4,194,304"]),
    "header of 2^64 - 1 bytes": (safetensors({}, length=2**64 - 1), LIES),
    "header longer than the file": (safetensors({}, length=1000), LIES),
    "header of a gigabyte": (holes(struct.pack("<Q", 10**9), 10**9 + 8), [*LIES, "1,000,000,000"]),
    "header not UTF-8": (safetensors(b'{"\xff": 1}'), [*LIES, "UTF-8"]),
    "header nested deeply": (safetensors(b'{"a":' * 100_000), [*LIES, "recursion limit"]),
    "header no object": (safetensors(DEEP.encode()), LIES),
    "offsets beyond the end": (safetensors(ours(x=array([4], 0, 16)), bytes(8)), LIES),
    "offsets backwards": (safetensors(ours(x=array([1], 4, 0)), bytes(4)), [*LIES, "offset"]),
    "offsets negative": (safetensors(ours(x=array([1], -4, 0)), bytes(4)), LIES),
    "arrays that overlap": (
        safetensors(ours(x=array([2], 0, 8), y=array([2], 4, 12)), bytes(12)),
        [*LIES, "invalid offset for tensor `y`"],
    ),
    "an array's name twice": (
        safetensors(
            json.dumps(ours(x=array([1], 0, 4)))[:-1].encode()
            + b', "x": ' + json.dumps(array([1], 0, 4)).encode() + b"}",
            bytes(4),
        ),
        ["was altered", "'x' stands twice"],
    ),
    "bytes of no array": (safetensors(ours(x=array([1], 4, 8)), bytes(8)), LIES),
    "shape of exabytes": (safetensors(ours(x=array([2**31] * 2, 0, 4)), bytes(4)), LIES),
    "shape beyond 64 bits": (safetensors(ours(x=array([2**33] * 2, 0, 4)), bytes(4)), LIES),
    "shape of exabytes times 0": (
        safetensors(ours(x=array([0, EXA, EXA], 0, 0))), ["'x'", "kind that NumPy has not"]),
    "shape of 100 axes": (safetensors(ours(x=array([1] * 100, 0, 4)), bytes(4)), ["'x'", "64"]),
    "array of bfloat16": (
        safetensors(ours(x=array([2], 0, 4, "BF16")), bytes(4)), ["NumPy has not", "bfloat16"]),
    "array of float8": (
        safetensors(ours(x=array([4], 0, 4, "F8_E4M3")), bytes(4)), ["NumPy has not", "float8"]),
    "a terabyte of holes": (array_of_holes(TERABYTE), ["does not fit into memory"]),
    "holes that could be mapped, but not read": (
        array_of_holes(MEMORY * 3 // 4), ["does not fit into memory: Unable to allocate"]),
    "metadata nested deeply": (signed(DEEP), ["metadata", "nested too deeply"]),
    "metadata a number": (signed("3"), ["metadata", "no object"]),
    "metadata a name twice": (signed('{"step": 1, "step": 2}'), ["'step' stands twice"]),
    "metadata no text": (safetensors(ours(metadata=3)), ["incomplete (they are no text)"]),
    "metadata a lone surrogate": (safetensors(ours(metadata="\ud800")), ["are incomplete"]),
    "metadata a number of 5,000 digits": (signed(f'{{"step": {"1" * 5000}}}'), ["4300 digits"]),
    "entry nested deeply": (entry(DEEP), ["metadata are incomplete", "nested too deeply"]),
    "entry a name twice": (
        entry('{"version": 1, "version": 1, "sha256": "", "metadata": ""}'), ["stands twice"]),
    "version of a megabyte": (
        entry(json.dumps({"version": "9" * 10**6, "sha256": "", "metadata": ""})),
        ["version '999"]),
    "name of a megabyte": (safetensors(ours(**{"n" * 10**6: array([1], 4, 0)})), [*LIES, "nnn"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name, tmp_path):
    content, words = CHECKPOINTS[name]
    path = put(tmp_path / "model.safetensors", content)
    refuse(lambda: checkpoint.load(path), [str(path), *words])


# Data --------------------------------------------------------------------------------------

IMAGES, LABELS = mnist.FILES["train"]
HEADER = struct.pack(">4I", 2051, 5, 28, 28)


def bomb(start: bytes, gigabytes: int) -> bytes:
    """A gzip file of a megabyte a gigabyte: `start`, then zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + first + zeros * (1024 * gigabytes)


def zip_with_holes(content: bytes, then: int):
    """A gzip file, and zeros without end behind it."""
    packed = gzip.compress(content)
    return holes(packed, len(packed) + then)


DIGITS = {
    "bomb of 8 gigabytes": (bomb(HEADER + bytes(3920), 8), ["bytes after the 5 items"]),
    "bomb of zeros": (bomb(b"", 8), ["starts with 0x00000000, not 0x00000803"]),
    "bomb in a bomb": (gzip.compress(bomb(HEADER, 1)), ["starts with 0x1f8b"]),
    "a terabyte of holes": (
        zip_with_holes(HEADER + bytes(3920), TERABYTE), ["bytes after the 5 items"]),
    "a part of nothing, then holes": (zip_with_holes(b"", TERABYTE), ["bytes follow"]),
    "a million parts of nothing": (gzip.compress(b"") * 10**6, ["bytes follow"]),
    "two parts": (
        gzip.compress(HEADER + bytes(3000)) + gzip.compress(bytes(920)), ["bytes follow"]),
    "a terabyte of holes, plain": (
        holes(HEADER + bytes(3920), TERABYTE), ["bytes after the 5 items"]),
    "dimensions of exabytes": (
        struct.pack(">4I", 2051, 5, 2**32 - 1, 2**32 - 1), ["[4294967295, 4294967295] pixels"]),
    "a million images, none there": (
        struct.pack(">4I", 2051, 10**6, 28, 28), ["0 bytes follow the header, not 784000000"]),
    "a million images and one": (
        struct.pack(">4I", 2051, 10**6 + 1, 28, 28), ["promises 1000001 items: 1 to 1000000"]),
    "floats": (struct.pack(">4I", 0x0D03, 5, 28, 28) + bytes(4 * 3920), ["starts with 0x00000d03"]),
    "a zip": (b"PK\x03\x04" + bytes(100), ["starts with 0x504b0304"]),
    "a name without end": (
        b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 10**6,
        ["truncated: its compressed data end early"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DIGITS)
def test_digits(name, tmp_path):
    content, words = DIGITS[name]
    path = put(tmp_path / IMAGES, content)
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if zipped:
        path = path.rename(tmp_path / f"{IMAGES}.gz")
    put(tmp_path / LABELS, struct.pack(">2I", 2049, 5) + bytes(5))
    refuse(lambda: mnist.load("train", tmp_path), [str(path), *words])


# Pictures ----------------------------------------------------------------------------------


PIXELS = bytes(28 * 29)  # a byte a row tells the filter
ZEROS = zlib.compress(bytes(10**8), 9)
OTHER = [Image.new("L", (28, 28), 255)]
PICTURES = {
    "bomb of 400 million pixels": (drawn(20_000, 20_000), ["400000000 pixels", "bomb"]),
    "picture of 100 million pixels": (png("1", (10_000, 10_000)), ["10000x10000", "4096 a side"]),
    "picture 28 pixels high": (drawn(10**6, 28, PIXELS), ["1000000x28", "4096 a side"]),
    "picture of 2^31 pixels a side": (drawn(2**31 - 1, 2**31 - 1), ["pixels"]),
    "picture of no pixels": (drawn(0, 0), ["no PNG"]),
    "text that is a bomb": (
        drawn(28, 28, PIXELS, chunk(b"zTXt", b"a\0\0" + ZEROS)), ["too large"]),
    "profile that is a bomb": (
        drawn(28, 28, PIXELS, chunk(b"iCCP", b"a\0\0" + ZEROS)), ["too large"]),
    "pixels that are a bomb": (drawn(4096, 4096, bytes(10)), ["truncated"]),
    "fewer pixels than promised": (drawn(28, 28, PIXELS[:99]), ["truncated"]),
    "cut in half": (png()[:-20], ["cannot be read as a picture"]),
    "cut inside its header": (png()[:20], ["cannot be read as a picture"]),
    "no pixels at all": (png()[:33] + chunk(b"IEND", b""), ["parts are not in order"]),
    "a wrong checksum": (png()[:-20] + b"\0" + png()[-19:], ["checksum"]),
    "a gigabyte of holes": (holes(png(), 10**9), ["more than 67,108,864 bytes"]),
    "a JPEG": (png(format="JPEG"), ["it is no PNG file"]),
    "a GIF": (png(format="GIF"), ["it is no PNG file"]),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n", ["it is no PNG file"]),
    "a text": (b"seven", ["it is no PNG file"]),
    "empty": (b"", ["it is no PNG file"]),
    "a folder": (Path.mkdir, ["is no file"]),
    "a pipe": (lambda path: os.mkfifo(path), ["is no file"]),
    "animated": (png(save_all=True, append_images=OTHER), ["is animated (2 frames)"]),
    "an animation without frames": (
        drawn(28, 28, PIXELS, chunk(b"acTL", bytes(8))), ["Invalid APNG"]),
    "an animation of a corner": (
        drawn(28, 28, PIXELS, chunk(b"acTL", struct.pack(">II", 1, 0))
              + chunk(b"fcTL", struct.pack(">5I2H2B", 0, 2, 2, 0, 0, 1, 1, 0, 0))),
        ["is animated (1 frames)"]),
    "16 bits": (png("I;16"), ["has 16 bits a pixel: save it with 8"]),
    "transparent": (png("RGBA"), ["has transparency"]),
    "grey and transparent": (png("LA"), ["has transparency"]),
    "one grey transparent": (png(transparency=0), ["has transparency"]),
    "palette and transparent": (png("P", transparency=0), ["has transparency"]),
    "palette cut short": (
        drawn(28, 28, PIXELS, chunk(b"PLTE", bytes(1025)), colour=3), ["palette"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name, tmp_path):
    content, words = PICTURES[name]
    path = put(tmp_path / "seven.png", content)
    refuse(lambda: images.read_png(path), [str(path), *words])


def test_pictures_that_are_none_of_these_are_read(tmp_path):
    for mode in ("L", "1", "P", "RGB"):
        path = put(tmp_path / "picture.png", png(mode, (28, 27)))
        with bounded():
            assert images.read_png(path).mode == mode and images.read_png(path).size == (28, 27)


# Nothing is run ----------------------------------------------------------------------------

# Modules whose files can hold code, and calls that run what they are given.
UNSAFE_MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "__import__"}
UNSAFE_METHODS = {"read_pickle", "unsafe_load", "run_path", "run_module", "read_array"}
# A lesson is run by its runner: code of this repository, which is what it is there for.
ALLOWED = {"lessons/run.py": {"exec"}}


def unsafe(source: str) -> set[str]:
    """What in Python source could run code out of a file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
            found |= names & UNSAFE_MODULES
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module.split(".")[0]} & UNSAFE_MODULES
        elif isinstance(node, ast.Name):
            found |= {node.id} & UNSAFE_CALLS
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "builtins":
            found |= {node.attr} & UNSAFE_CALLS
        elif isinstance(node, ast.Attribute):
            found |= {node.attr} & (UNSAFE_MODULES | UNSAFE_METHODS)
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            refused = isinstance(node.value, ast.Constant) and node.value.value is False
            found |= set() if refused else {"allow_pickle"}
        elif isinstance(node, ast.Dict):  # as **{...}
            names = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            found |= names & {"allow_pickle"}
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in {"import_module", "getattr"}:  # by a name that is a text
                texts = {a.value for a in node.args if isinstance(a, ast.Constant)}
                found |= texts & (UNSAFE_MODULES | UNSAFE_CALLS)
            of = getattr(getattr(node.func, "value", None), "id", "")
            if (of, name) in {("np", "load"), ("numpy", "load")} and len(node.args) > 2:
                found |= {"allow_pickle"}
    return found


@pytest.mark.parametrize(
    "source, found",
    [
        ("import pickle", {"pickle"}),
        ("import numpy, pickle as p", {"pickle"}),
        ("from pickle import loads", {"pickle"}),
        ("import joblib.numpy_pickle", {"joblib"}),
        ("np.lib.format.pickle.loads(x)", {"pickle"}),
        ("eval('1')", {"eval"}),
        ("run = exec", {"exec"}),
        ("builtins.eval('1')", {"eval"}),
        ("__import__('os')", {"__import__"}),
        ("np.load(f, allow_pickle=True)", {"allow_pickle"}),
        ("np.load(f, allow_pickle=unknown)", {"allow_pickle"}),
        ("np.load(f, 'r', True)", {"allow_pickle"}),
        ("np.load(f, **{'allow_pickle': True})", {"allow_pickle"}),
        ("np.lib.format.read_array(f, True)", {"read_array"}),
        ("importlib.import_module('pickle')", {"pickle"}),
        ("getattr(builtins, 'eval')", {"eval"}),
        ("pd.read_pickle(f); yaml.unsafe_load(f)", {"read_pickle", "unsafe_load"}),
        ("runpy.run_path(f)", {"run_path"}),
        ("np.load(f, allow_pickle=False)", set()),
        ("network.eval(); re.compile('x')  # exec, pickle", set()),
    ],
)
def test_the_scan_finds(source, found):
    assert unsafe(source) == found


def test_nothing_can_run_code_out_of_a_file():
    scanned = {}
    for top in ("ldm_numpy", "lessons", "tests", "benchmarks"):
        for path in sorted((ROOT / top).rglob("*.py")):
            scanned[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "lessons").glob("*.md")):
        blocks = re.findall(r"^```python[^\n]*\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)
        scanned[path.relative_to(ROOT).as_posix()] = "\n".join(blocks)
    assert len(scanned) > 100
    found = {name: unsafe(source) for name, source in scanned.items()}
    assert {name: what for name, what in found.items() if what} == ALLOWED
