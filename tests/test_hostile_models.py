"""Tokenizers and model folders that lie, and the command line given any of such files.

See test_hostile.py. All checksums here are right: who writes a file can also compute them.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ldm_numpy import checkpoint, model_folder
from ldm_numpy.__main__ import main
from ldm_numpy.data import mnist
from ldm_numpy.files import MAX_JSON, checksum
from ldm_numpy.text import END, START, Tokenizer, byte_symbols

from . import tiny
from .hostile import DEEP, MEMORY, SECONDS, bounded, drawn, holes, png, put, refuse

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.name != "posix", reason="files with holes, and pipes, are POSIX's"),
]


def many(item: str) -> str:
    """A list in JSON that is just too long to be read."""
    return "[" + f"{item}," * (MAX_JSON // (len(item) + 1)) + f"{item}]"


# Tokenizers --------------------------------------------------------------------------------


def tokenizer(**changes) -> dict:
    content = {"format": "ldm_numpy tokenizer", "version": 1, "context_length": 12, "merges": []}
    content |= changes
    return content | {"sha256": checksum(content)}


TOKENIZERS = {
    "nested deeply": (DEEP, ["is not JSON", "nested too deeply"]),
    "nested as deep as can be read": ("[" * 960 + "]" * 960, ["tokenizer.json"]),
    "of four megabytes": (many("[]"), ["more than 4,194,304 bytes"]),
    "a gigabyte of holes": (holes(b"", 10**9), ["more than 4,194,304 bytes"]),
    "a pipe": (lambda path: os.mkfifo(path), ["is not a file"]),
    "not UTF-8": (b'{"format": "\xff"}', ["is not JSON", "utf-8"]),
    "a name twice": ('{"version": 1, "version": 2}', ["'version' stands twice"]),
    "a number of 5,000 digits": ("1" * 5000, ["is not JSON", "4300 digits"]),
    "an entry more": (tokenizer(vocab={}), ["an entry 'vocab'"]),
    "a version of a megabyte": (tokenizer(version="9" * 10**6), ["version '999", "not 1"]),
    "a version of lists": (tokenizer(version=[[[[[[[[1]]]]]]]]), ["version [[[[[[[...]]]]]]]"]),
    "a context of 10^12": (tokenizer(context_length=10**12), ["1024 at most", "1000000000000"]),
    "a context of true": (tokenizer(context_length=True), ["must be a number", "True"]),
    "a merge of three": (tokenizer(merges=[["a", "b", "c"]]), ["must be a list of pairs"]),
    "a merge of a megabyte": (tokenizer(merges=[["a" * 10**6, "b"]]), ["'aaa", "not tokens"]),
    "a merge of a lone surrogate": (tokenizer(merges=[["\ud800", "b"]]), ["ud800", "not tokens"]),
    "a merge of signals to the terminal": (
        tokenizer(merges=[["\x1b[2J\n", "b"]]), ["x1b[2J", "not tokens"]),
    "merges of nothing": (tokenizer(merges=[["", ""]]), ["not tokens"]),
    "another checksum": (tokenizer() | {"sha256": "0" * 64}, ["was altered", "checksum"]),
    "a checksum that is none": (tokenizer() | {"sha256": None}, ["was altered", "checksum"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(name, tmp_path):
    content, words = TOKENIZERS[name]
    path = put(tmp_path / "tokenizer.json", content)
    refuse(lambda: Tokenizer.load(path), [str(path), *words])


SYMBOLS = list(byte_symbols().values())
MERGES = ["i n", "t h"]
VOCABULARY = [*SYMBOLS, *(s + "</w>" for s in SYMBOLS), "in", "th", START, END]
IDS = {token: i for i, token in enumerate(VOCABULARY)}
OTHER_IDS = ["vocab.json is not the vocabulary that"]
CLIP_FILES = {
    "ids twice": (IDS | {"th": IDS["in"]}, None, OTHER_IDS),
    "ids out of range": (IDS | {"th": 10**9}, None, OTHER_IDS),
    "ids below 0": (IDS | {"th": -1}, None, OTHER_IDS),
    "ids no numbers": (IDS | {"th": [[]]}, None, OTHER_IDS),
    "a token twice": (json.dumps(IDS)[:-1] + ', "in": 512}', None, ["'in' stands twice"]),
    "no object": ([*VOCABULARY], None, OTHER_IDS),
    "an enormous vocabulary": (many('"a"'), None, ["vocab.json", "more than 4,194,304 bytes"]),
    "a deep vocabulary": (DEEP, None, ["vocab.json is not JSON", "nested too deeply"]),
    "merges no pairs": (IDS, "i n\nth\n", ["merges.txt", "two tokens with a blank between"]),
    "merges of nothing": (IDS, "i n\n \n", ["merges.txt", "joins what are not tokens"]),
    "merges not UTF-8": (IDS, b"i n\n\xff h\n", ["merges.txt is not UTF-8"]),
    "merges enormous": (IDS, "i n\n" * (MAX_JSON // 4 + 1), ["more than 4,194,304 bytes"]),
    "a merge of a megabyte": (IDS, f"i {'n' * 10**6}\n", ["merges.txt", "joins what are not"]),
    "merges a pipe": (IDS, lambda path: os.mkfifo(path), ["merges.txt", "is not a file"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CLIP_FILES)
def test_clip_files(name, tmp_path):
    vocabulary, merges, words = CLIP_FILES[name]
    first = put(tmp_path / "vocab.json", vocabulary)
    second = put(tmp_path / "merges.txt", "\n".join(MERGES) if merges is None else merges)
    refuse(lambda: Tokenizer.from_clip(first, second), words)


# Model folders -----------------------------------------------------------------------------

NETWORKS = ("unet", "autoencoder", "text_encoder")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    pipe = tiny.text_to_image()
    networks = {name: getattr(pipe, name) for name in NETWORKS}
    weights = {name: network.state_dict() for name, network in networks.items()}
    configs = {name: dataclasses.asdict(network.config) for name, network in networks.items()}
    folder = tmp_path_factory.mktemp("good")
    model_folder.save(folder, weights, configs, pipe.tokenizer, pipe.config)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "model")


def largest(limit: int, least: int = 1) -> str:
    return f"must be a whole number {least} ... {limit}, not 1000000000"


BILLION = 10**9
CONFIGS = {
    "channels": ("unet", {"block_out_channels": [BILLION, 16]}, [largest(100_000)]),
    "channels that pass": ("unet", {"block_out_channels": [8, 100_000]}, ["Unable to allocate"]),
    "channels in": ("unet", {"in_channels": BILLION}, ["in_channels", largest(100_000)]),
    "levels": ("unet", {"block_out_channels": [8] * 10**5}, ["a list of at most 8"]),
    "layers": ("unet", {"layers_per_block": BILLION}, ["layers_per_block", largest(32, 0)]),
    "transformers": ("unet", {"transformer_layers_per_block": BILLION}, [largest(12)]),
    "Fourier": ("unet", {"fourier_exponents": [BILLION]}, ["each of fourier", largest(16, 0)]),
    "channels below 0": ("autoencoder", {"in_channels": -4}, ["in_channels must be a whole", "-4"]),
    "channels of half": ("autoencoder", {"in_channels": 1.5}, ["in_channels must be a whole"]),
    "channels of true": ("autoencoder", {"in_channels": True}, ["in_channels must be", "True"]),
    "channels in words": ("unet", {"in_channels": "4"}, ["in_channels must be", "'4'"]),
    "channels of none": ("unet", {"in_channels": None}, ["in_channels must be", "None"]),
    "channels in lists": ("unet", {"in_channels": [[[4]]]}, ["in_channels must be", "[[[4]]]"]),
    "channels NaN": ("unet", {"in_channels": float("nan")}, ["in_channels must be", "nan"]),
    "levels in words": ("unet", {"attention_levels": ["a", "b"]}, ["true or false, not 'a'"]),
    "levels no list": ("unet", {"block_out_channels": 8}, ["must be a list", "8"]),
    "hidden layers": ("text_encoder", {"num_hidden_layers": BILLION}, [largest(32)]),
    "vocabulary": ("text_encoder", {"vocab_size": BILLION}, ["vocab_size", largest(100_000)]),
    "context": ("text_encoder", {"max_position_embeddings": BILLION}, [largest(1024)]),
    "patches": ("autoencoder", {"patch_size": BILLION}, ["patch_size", largest(100_000)]),
    "groups of 0": ("autoencoder", {"norm_num_groups": 0}, ["norm_num_groups must be a", "not 0"]),
    "a pictures' side": ("pipeline", {"image_size": BILLION}, ["image_size", largest(512)]),
    "sides that agree": ("pipeline", {"latent_size": 256, "padded_size": 512},
                         ["latent_size must be a whole number 1 ... 128"]),
    "steps": ("pipeline", {"num_inference_steps": BILLION}, [largest(1000)]),
    "levels of noise": ("pipeline", {"sigma_max": 1e300}, ["sigma_max", "1e-9 ... 1e9", "1e+300"]),
    "just too much noise": ("pipeline", {"sigma_max": 1.01e9}, ["sigma_max", "1010000000.0"]),
    "just too little noise": ("pipeline", {"sigma_min": 0.99e-9}, ["sigma_min", "9.9e-10"]),
    "no noise": ("pipeline", {"sigma_min": 1e-300}, ["sigma_min", "1e-9 ... 1e9", "1e-300"]),
    "noise without end": ("pipeline", {"sigma_max": float("inf")}, ["sigma_max", "inf"]),
    "a scale of NaN": ("pipeline", {"latent_scale": float("nan")}, ["latent_scale", "nan"]),
    "a scale of 400 digits": ("pipeline", {"latent_scale": 10**400}, ["latent_scale", "000...000"]),
    "an interval of three": ("pipeline", {"guidance_interval": [1, 2, 3]}, ["two numbers"]),
    "a sampler of a megabyte": ("pipeline", {"sampler": "m" * 10**6}, ["unknown sampler 'mmm"]),
    "an option more": ("unet", {"../../evil": 1}, ["no option '../../evil' in UNetConfig"]),
    "an option of a megabyte": ("unet", {"x" * 10**6: 1}, ["no option 'xxx"]),
    "code": ("unet", {"in_channels": "__import__('os').abort()"}, ["in_channels must be"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(name, folder):
    section, changes, words = CONFIGS[name]
    config = model_folder.read_config(folder)
    config[section] |= changes
    model_folder.write_config(folder, config)
    refuse(lambda: model_folder.load(folder, "cpu"), [str(folder / "config.json"), *words])


def test_a_configuration_at_its_bounds(folder):
    config = model_folder.read_config(folder)
    config["pipeline"] |= {"sigma_min": 1e-9, "sigma_max": 1e9, "num_inference_steps": 1000}
    model_folder.write_config(folder, config)
    found = model_folder.load(folder, "cpu").config
    assert (found.sigma_min, found.sigma_max, found.num_inference_steps) == (1e-9, 1e9, 1000)


def test_a_network_too_large_for_the_memory(folder, monkeypatch):
    def build(section):
        raise MemoryError

    monkeypatch.setitem(model_folder.BUILDERS, "unet", build)
    words = ["does not fit this program: unet: it is too large for this machine's memory"]
    refuse(lambda: model_folder.load(folder, "cpu"), words)


WHOLE_CONFIGS = {
    "a section more": (lambda c: c | {"../evil": {}}, ["describes '../evil'"]),
    "a section no object": (lambda c: c | {"unet": [1]}, ["unet", "[1] is no set of options"]),
    "a version of a megabyte": (lambda c: c | {"format_version": "1" * 10**6}, ["version '111"]),
    "nested deeply": (lambda c: DEEP, ["is not JSON", "nested too deeply"]),
    "enormous": (lambda c: many("[]"), ["more than 4,194,304 bytes"]),
    "a name twice": (lambda c: json.dumps(c)[:-1] + ', "unet": {}}', ["'unet' stands twice"]),
    "another checksum": (lambda c: c | {"sha256": "0" * 64}, ["was altered", "checksum"]),
    "a scale that was not meant": (
        lambda c: c | {"pipeline": c["pipeline"] | {"latent_scale": 0.25}}, ["was altered"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE_CONFIGS)
def test_whole_configurations(name, folder):
    change, words = WHOLE_CONFIGS[name]
    path = folder / "config.json"
    put(path, change(json.loads(path.read_text())))
    refuse(lambda: model_folder.load(folder, "cpu"), [str(path), *words])
    if words == ["was altered"]:
        refuse(lambda: model_folder.read_config(folder), [str(path), *words])


def test_any_depth_is_read_or_refused(tmp_path):
    """There is none that can be read and whose checksum cannot be computed."""
    refused = 0
    for depth in range(700, 1000, 3):
        deep = '{"format_version": 1, "sha256": "0", "unet": ' + "[" * depth + "]" * depth + "}"
        put(tmp_path / "config.json", deep)
        message = refuse(lambda: model_folder.read_config(tmp_path), [])
        refused += "nested too deeply" in message
    assert 0 < refused < 100


@pytest.mark.parametrize(
    "section, words",
    [
        ({"text": {}}, ["it must consist of projection_dim, text, vision"]),
        ({"text": {}, "vision": 1, "projection_dim": 8}, ["1 is no set of options"]),
        ({"text": {}, "vision": {}, "projection_dim": 1.5}, ["projection_dim must be a whole"]),
        ({"text": {}, "vision": {"num_hidden_layers": BILLION}, "projection_dim": 8}, ["1 ... 32"]),
    ],
)
def test_configurations_of_clip(folder, section, words):
    model_folder.write_config(folder, model_folder.read_config(folder) | {"clip": section})
    config = model_folder.read_config(folder)
    refuse(lambda: model_folder.load_network(folder, config, "clip"), words)


FIRST = "conv_in.bias"
WEIGHTS = {
    "of another shape": ({FIRST: np.zeros(9, np.float32)}, ["misshapen: conv_in.bias (9,)"]),
    "of another rank": ({FIRST: np.zeros((8, 1), np.float32)}, ["misshapen", "(8, 1)"]),
    "one more": ({"../../evil": np.zeros(8, np.float32)}, ["unexpected: ../../evil"]),
    "thousands more": (
        {f"w{i}": np.zeros(1, np.float32) for i in range(3000)}, ["unexpected", "2992 more"]),
    "a name with signals to the terminal": (
        {"x\x1b[2J\ny": np.zeros(8, np.float32)}, ["unexpected: x [2J y"]),
    "NaN": ({FIRST: np.full(8, np.nan, np.float32)}, ["'conv_in.bias'", "must be finite"]),
    "infinite": ({FIRST: np.full(8, -np.inf, np.float16)}, ["'conv_in.bias'", "must be finite"]),
    "whole numbers": ({FIRST: np.zeros(8, np.int64)}, ["(int64) must be finite numbers of float"]),
    "complex": ({FIRST: np.zeros(8, np.complex64)}, ["(complex64) must be finite numbers"]),
    "double": ({FIRST: np.full(8, 1e300)}, ["(float64) must be finite numbers of float16"]),
    "more than there can be": (
        {"x": np.zeros(6 << 20, np.uint8)}, ["more than", "its config.json"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name, folder):
    changes, words = WEIGHTS[name]
    path = folder / "unet.safetensors"
    arrays, _ = checkpoint.load(path)
    checkpoint.save(path, arrays | changes, {})
    refuse(lambda: model_folder.load(folder, "cpu"), [str(path), *words])
    assert not (folder.parent.parent / "evil").exists()


def test_weights_with_holes(folder):
    put(folder / "unet.safetensors", holes(b"", 10**12))
    refuse(lambda: model_folder.load(folder, "cpu"), ["unet.safetensors does not belong"])


def test_what_is_not_loaded_does_no_harm(folder):
    """Numbers that were measured are for people; other files are nobody's."""
    for name in ("metrics.json", "evil.py", "unet.pickle", "sitecustomize.py"):
        put(folder / name, DEEP)
    with bounded():
        assert model_folder.load(folder, "cpu").sample(["seven"]).shape == (1, 8, 8, 4)


# The command line --------------------------------------------------------------------------

CPU = ["--device", "cpu"]
COMMANDS = {
    "sample": (["sample", "3", "--model", "MODEL", *CPU], ["config.json", largest(32, 0)]),
    "info": (["info", "--model", "MODEL"], ["config.json", largest(32, 0)]),
    "edit": (["edit", "3", "--image", "BOMB"], ["bomb.png", "400000000 pixels"]),
    "edit, a hole": (
        ["edit", "3", "--image", "SEVEN", "--mask-image", "BOMB"], ["bomb.png", "400000000"]),
    "edit, a JPEG": (["edit", "3", "--image", "JPEG"], ["jpeg.png", "it is no PNG file"]),
    "train": (["train", "--data", "DATA", "--out", "OUT", *CPU], ["idx3", "bytes after the 5"]),
    "evaluate": (["evaluate", "--data", "DATA", "--per-combination", "1"], ["t10k", "no file"]),
}  # fmt: skip


@pytest.fixture
def places(folder, tmp_path):
    """Where the files of COMMANDS are."""
    config = model_folder.read_config(folder)
    config["unet"]["layers_per_block"] = BILLION
    model_folder.write_config(folder, config)
    (tmp_path / "data").mkdir()
    header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (5, 28, 28))
    put(tmp_path / "data" / mnist.FILES["train"][0], holes(header, 10**12))
    put(tmp_path / "data" / mnist.FILES["train"][1], b"")
    files = {"BOMB": drawn(20_000, 20_000), "SEVEN": png(), "JPEG": png(format="JPEG")}
    places = {n: str(put(tmp_path / f"{n.lower()}.png", content)) for n, content in files.items()}
    return places | {
        "MODEL": str(folder), "DATA": str(tmp_path / "data"), "OUT": str(tmp_path / "run")
    }  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_line_exits_with_2(name, places, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, words = COMMANDS[name]
    with bounded():
        assert main([places.get(a, a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for word in words:
        assert word in error


@pytest.mark.parametrize("name", ["sample", "edit", "train"])
def test_in_a_process_of_its_own(name, places, tmp_path):
    """With little memory and little time, and nothing said but the one line."""
    import resource

    arguments, words = COMMANDS[name]
    memory = MEMORY + (600 << 20)  # what Python and its libraries take, and the limit of the others
    done = subprocess.run(
        [sys.executable, "-m", "ldm_numpy", *(places.get(a, a) for a in arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=3 * SECONDS,
        env=os.environ | {"PYTHONPATH": os.getcwd(), "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_a_folder_written_anew_keeps_no_figures_of_the_model_before(folder):
    (folder / "metrics.json").write_text("{}")
    pipe = tiny.text_to_image()
    weights = {name: getattr(pipe, name).state_dict() for name in NETWORKS}
    configs = {name: dataclasses.asdict(getattr(pipe, name).config) for name in NETWORKS}
    model_folder.save(folder, weights, configs, pipe.tokenizer, pipe.config)
    assert not (folder / "metrics.json").exists() and (folder / "config.json").is_file()
