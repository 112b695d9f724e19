"""One wrong bit, anywhere in any file that is read: it is told in one line, or it changes nothing
of what is loaded. No third outcome: no crash, no hang, nothing other than what was written in use.

A plain IDX file has no checksum, so there only the header is safe; its .gz has one.
"""

import collections
import dataclasses
import gzip
import io
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_numpy import checkpoint, images, model_folder
from ldm_numpy.data import mnist
from ldm_numpy.text import Tokenizer, byte_symbols

from . import tiny
from .hostile import bounded

pytestmark = pytest.mark.host
ENDS = 512  # bytes at a file's ends, where headers, names and checksums are: half of the flips
MEMORY = 1 << 30


def places(size: int, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(byte, bit) to flip, all different: half near the ends of a file of `size` bytes."""
    chosen: dict[tuple[int, int], None] = {}
    while len(chosen) < min(count, 8 * size):
        byte = int(rng.integers(size))
        if len(chosen) % 2:
            byte = int(rng.integers(-ENDS, ENDS)) % size
        chosen[byte, int(rng.integers(8))] = None
    return list(chosen)


def same(a: object, b: object) -> bool:
    """Whether two loaded contents are identical: types, shapes, names and every bit."""
    if isinstance(a, dict | tuple | list):
        if type(a) is not type(b) or len(a) != len(b):
            return False
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
        return all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


def flip(path: Path, read, count: int, seed: int = 0, among: range | None = None):
    """Flip bits of a file, one at a time: how many were "detected" and "harmless".

    `read` returns all that is loaded from it. The flips are in the bytes of `among`, or anywhere.
    """
    content = path.read_bytes()
    good = read()
    outcomes = collections.Counter()
    among = among or range(len(content))
    for byte, bit in places(len(among), count, np.random.default_rng(seed)):
        altered = bytearray(content)
        altered[among[byte]] ^= 1 << bit
        path.write_bytes(altered)
        where = f"{path.name}: bit {bit} of byte {among[byte]}"
        try:
            with bounded(MEMORY):
                found = read()
        except ValueError as error:
            message = str(error)
            assert str(path) in message and message.isprintable(), f"{where}: {message!r}"
            outcomes["detected"] += 1
        else:
            assert same(found, good), f"{where} changes what is loaded, and nothing tells"
            outcomes["harmless"] += 1
    path.write_bytes(content)
    return outcomes


# Files that there are ----------------------------------------------------------------------


def seal(folder: Path) -> None:
    """Write tokenizer and configuration as this version of the library does."""
    Tokenizer.load(folder / "tokenizer.json").save(folder / "tokenizer.json")
    model_folder.write_config(folder, model_folder.read_config(folder))


@pytest.fixture
def shipped(tmp_path) -> Path:
    folder = shutil.copytree(model_folder.SHIPPED, tmp_path / "weights")
    for one in (folder, folder / "pixel"):
        seal(one)
    return folder


def read_tokenizer(path: Path):
    def read():
        tokenizer = Tokenizer.load(path)
        return tokenizer.merges, tokenizer.context_length

    return read


def of_a_training(tmp_path: Path):
    arrays = {f"weights/unet/{i}": np.arange(40, dtype=np.float32) / 7 for i in range(4)}
    metadata = {"step": 6, "options": {"steps": 6, "seed": 0}, "measured": {"latent_scale": 0.9}}
    path = tmp_path / "unet.safetensors"
    checkpoint.save(path, arrays, metadata)
    return path, lambda: checkpoint.load(path)


def digits(tmp_path: Path, name: str, packed: bool):
    """A data folder of five digits: its images or its labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    images_name, labels_name = mnist.FILES["train"]
    (tmp_path / images_name).write_bytes(struct.pack(">4I", 2051, 5, 28, 28) + pixels.tobytes())
    (tmp_path / labels_name).write_bytes(struct.pack(">2I", 2049, 5) + bytes([3, 1, 4, 1, 5]))
    path = tmp_path / name
    if packed:
        plain, path = path, tmp_path / f"{name}.gz"
        with gzip.GzipFile(path, "wb", mtime=1) as file:
            file.write(plain.read_bytes())
        plain.unlink()
    return path, lambda: mnist.load("train", tmp_path)


def embedded(tmp_path: Path, split: str, which: int):
    """One of the four files of the package, read as the package reads it."""
    name, shape = mnist.FILES[split][which], ((28, 28), ())[which]
    path = Path(shutil.copy(mnist._EMBEDDED / f"{name}.gz", tmp_path))
    return path, lambda: mnist._read_idx(path, shape, mnist.MD5[name])


def of_clip(tmp_path: Path, name: str):
    symbols = list(byte_symbols().values())
    vocabulary = [*symbols, *(s + "</w>" for s in symbols), "in", "th"]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(vocabulary)}
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    files[0].write_text(json.dumps(ids), encoding="utf-8")
    files[1].write_text("#version: 0.2\ni n\nt h\n")

    def read():
        tokenizer = Tokenizer.from_clip(*files)
        return tokenizer.merges, tokenizer._ids

    return tmp_path / name, read


def picture(tmp_path: Path):
    path = tmp_path / "seven.png"
    content = io.BytesIO()
    Image.fromarray(mnist.load("test")[0][0]).save(content, "PNG")
    path.write_bytes(content.getvalue())

    def read():
        found = images.read_png(path)
        return found.mode, np.asarray(found)

    return path, read


def of_shipped(folder: Path, name: str):
    path = folder / name
    if path.suffix == ".safetensors":
        config = model_folder.read_config(path.parent)
        read = lambda: model_folder.load_network(path.parent, config, path.stem).state_dict()  # noqa: E731
    elif path.name == "config.json":
        read = lambda: {  # noqa: E731
            key: value
            for key, value in model_folder.read_config(path.parent).items()
            if key != "sha256"
        }
    else:
        read = read_tokenizer(path)
    return path, read


SHIPPED = [
    path.relative_to(model_folder.SHIPPED).as_posix()
    for path in sorted(model_folder.SHIPPED.rglob("*"))
    if path.is_file() and path.name != "metrics.json"  # which is for people: nothing loads it
]
FILES = {
    "checkpoint": of_a_training,
    "images.gz": lambda tmp: digits(tmp, mnist.FILES["train"][0], True),
    "labels.gz": lambda tmp: digits(tmp, mnist.FILES["train"][1], True),
    "embedded test images": lambda tmp: embedded(tmp, "test", 0),
    "embedded test labels": lambda tmp: embedded(tmp, "test", 1),
    "vocab.json": lambda tmp: of_clip(tmp, "vocab.json"),
    "merges.txt": lambda tmp: of_clip(tmp, "merges.txt"),
    "picture": picture,
}
SLOW = {
    "embedded training images": lambda tmp: embedded(tmp, "train", 0),
    "embedded training labels": lambda tmp: embedded(tmp, "train", 1),
}


def test_the_comparison_tells_what_differs():
    a = {"x": np.zeros(2, np.float32)}
    assert same((a, [1, "s"]), ({"x": np.zeros(2, np.float32)}, [1, "s"]))
    for b in ({"x": np.zeros(2)}, {"y": a["x"]}, {"x": -a["x"]}, {"x": a["x"][:1]}, {}, [a["x"]]):
        assert not same(a, b)
    assert not same([1], [1.0]) and not same([1], [True]) and not same(1, 2)


def test_a_silent_flip_is_told(tmp_path):
    """The test of these tests: pixels of a plain IDX file, which nothing can guard."""
    path, read = digits(tmp_path, mnist.FILES["train"][0], False)
    with pytest.raises(AssertionError, match="changes what is loaded, and nothing tells"):
        flip(path, read, 4, among=range(16, 3936))


def test_headers_of_plain_data(tmp_path):
    for name, header in zip(mnist.FILES["train"], (16, 8)):
        path, read = digits(tmp_path, name, False)
        outcomes = flip(path, read, 8 * header, among=range(header))
        assert outcomes == {"detected": 8 * header}  # every bit there is


@pytest.mark.parametrize("name", FILES)
def test_a_few_flips(name, tmp_path):
    outcomes = flip(*FILES[name](tmp_path), 8 if "images" in name else 16)
    assert outcomes["detected"] > 0


@pytest.mark.parametrize("name", SHIPPED)
def test_a_few_flips_of_the_shipped_model(name, shipped):
    flip(*of_shipped(shipped, name), 4 if name.endswith("safetensors") else 16)


def test_flips_met_by_a_model_as_a_whole(tmp_path):
    """`load` comes upon some of them before it looks at the checksum."""
    pipe = tiny.text_to_image()
    networks = {name: getattr(pipe, name) for name in ("unet", "autoencoder", "text_encoder")}
    folder = tmp_path / "model"
    configs = {name: dataclasses.asdict(network.config) for name, network in networks.items()}
    weights = {name: network.state_dict() for name, network in networks.items()}
    model_folder.save(folder, weights, configs, pipe.tokenizer, pipe.config)

    def read():
        try:
            loaded = model_folder.load(folder, "cpu")
        except ValueError as error:  # some speak of the folder, or of weights that do not fit now
            raise ValueError(f"{error} [{folder / 'config.json'}]") from None
        return vars(loaded.config), *(getattr(loaded, n).state_dict() for n in networks)

    outcomes = flip(folder / "config.json", read, 30)
    assert outcomes["detected"] > 25


@pytest.mark.slow
def test_many_flips(tmp_path, shipped, capsys):
    """At least 500 in all, in every kind of file."""
    total = collections.Counter()
    for number, (name, make) in enumerate({**FILES, **SLOW}.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        count = 10 if name == "embedded training images" else 40
        total[name] = flip(*make(folder), count, seed=1)
    for name in SHIPPED:
        total[name] = flip(*of_shipped(shipped, name), 30, seed=1)
    detected, harmless = (sum(c[kind] for c in total.values()) for kind in ("detected", "harmless"))
    with capsys.disabled():
        for name, outcomes in total.items():
            counts = f"{outcomes['detected']:3} detected, {outcomes['harmless']:2} harmless"
            print(f"\n{name:35} {counts}", end="")
        print(f"\n{detected + harmless} bits flipped, {detected} detected, {harmless} harmless")
    assert detected + harmless >= 500


def test_shipped_files_carry_their_checksums():
    sealed = [name for name in SHIPPED if name.endswith(".json")]
    assert len(sealed) >= 2
    for name in sealed:
        assert "sha256" in json.loads((model_folder.SHIPPED / name).read_text())
