"""Any text as an argument of the command line ends with code 0 or 2, and never with a traceback.

The commands run in this process, on the shipped model, for a step or two; training and measuring
stop where, after all checks, the work would begin.
"""

import io
import tempfile
import warnings
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm_numpy import commands, evaluation
from ldm_numpy.__main__ import build_parser, main
from ldm_numpy.training import Run

from .hypothesis_profile import fewer

# What tends to go wrong, in turn with anything at all: lone surrogates (bytes of a file name that
# are no UTF-8), controls, numbers that are none.
ODD = ["", "-", "--", "-1", "0", "nan", "-inf", "1e999", "٣", "1_0", "9" * 5000, "\x00", "a\nb"]
ODD += ["%s %(prog)s", "\udcff", "é.png", "\udcff.png", ".png", "a/.png", "x" * 300, "heun", "edm"]
texts = st.sampled_from(ODD) | st.text(max_size=20) | st.text(st.characters(), max_size=20)
whole = st.integers(0, 9).map(str) | st.integers().map(str)
real = st.floats(0, 1).map(str) | st.floats().map(str)
numbers = whole | real
counts = st.sampled_from(["-1", "0", "1", "2", "1.0"]) | texts.filter(lambda t: not is_number(t))


def is_number(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def inside(text: str) -> bool:
    """Whether a path of this name stays in the working directory."""
    return not text.startswith("/") and ".." not in text


paths = texts.filter(inside) | texts.filter(inside).map(lambda text: text + ".png")


def finish(arguments: list[str]) -> tuple[int, str, str]:
    """The exit code and what was written to the two streams, which are as Python sets them up."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    error = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with redirect_stdout(out), redirect_stderr(error), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as when Python runs a program: a warning is no error
        try:
            code = main(arguments)
        except SystemExit as stop:  # by argparse
            code = stop.code
    out.flush(), error.flush()
    return code, out.buffer.getvalue().decode(), error.buffer.getvalue().decode()


def check(arguments: list[str]) -> int:
    code, _, error = finish(arguments)
    assert code in (0, 2), (code, error)
    assert "Traceback" not in error
    if code == 2:
        assert "error: " in error
    return code


# The parser ------------------------------------------------------------------------------------

COMMANDS = {  # and the options of each that take one value
    name: [a.option_strings[0] for a in parser._actions if a.option_strings and a.nargs is None]
    for action in build_parser()._actions
    for name, parser in (getattr(action, "choices", None) or {}).items()
}
OPTIONS = sorted({option for options in COMMANDS.values() for option in options})
IDLE = {name: lambda options: None for name in COMMANDS}


@given(st.sampled_from([*COMMANDS, ""]), st.lists(texts | numbers | st.sampled_from(OPTIONS)))
def test_any_words(command, words):
    """The parser alone: commands do nothing here."""
    with mock.patch.multiple(commands, **IDLE):
        check([command, *words])


@pytest.mark.parametrize("command", COMMANDS)
def test_two_hyphens_are_no_value(command):
    """--name=-- is an empty list to the argparse of Python 3.11."""
    assert COMMANDS[command]
    for option in COMMANDS[command]:
        assert check([command, f"{option}=--"]) == 2


# The commands ----------------------------------------------------------------------------------

GUIDANCE = {"--guidance-scale": real}
DEVICE = {"--device": texts, "--threads": whole}
SAMPLING = GUIDANCE | {
    "--num-inference-steps": counts,
    "--guidance-rescale": real,
    "--negative-prompt": texts,
    "--sampler": texts | st.sampled_from(["euler", "ddim", "dpmpp_2m"]),
    "--schedule": texts,
    "--eta": real,
    "--seed": whole,
    "--model": texts,
    "--out": paths,
}
# Each command: arguments that come first, options, arguments that come last and keep it short.
SHORT = ["--num-inference-steps", "1"]
USES = {
    "sample": (
        [],
        SAMPLING
        | DEVICE
        | {"--num-images-per-prompt": counts, "--trajectory": paths, "--attention": paths},
        ["--num-images-per-prompt", "1", *SHORT],
    ),
    "edit": (
        ["--image", "digit.png"],
        SAMPLING
        | DEVICE
        | {"--image": texts, "--mask-image": texts, "--strength": real}
        | {"--num-images-per-prompt": counts},
        ["--num-images-per-prompt", "1", *SHORT],
    ),
    "interpolate": (
        [],
        SAMPLING | DEVICE | {"--other-seed": whole, "--frames": counts},
        ["--frames", "2", *SHORT],
    ),
    "invert": (
        ["--image", "digit.png"],
        DEVICE
        | {"--image": texts, "--num-inference-steps": counts, "--method": texts, "--out": paths}
        | {"--model": texts, "--guidance-scale": real},
        ["--num-inference-steps", "2"],
    ),
    "evaluate": (
        [],
        GUIDANCE
        | DEVICE
        | {"--model": texts, "--data": texts, "--seed": whole, "--out": paths}
        | {"--per-combination": whole, "--frechet-samples": whole, "--likelihood": whole}
        | {"--pictures": paths},
        [],
    ),
    "train": (
        [],
        DEVICE
        | {"--data": texts, "--out": paths, "--seed": whole, "--steps": whole}
        | {"--text-encoder": texts, "--objective": texts, "--weighting": texts},
        [],
    ),
    "export": ([], {"--out": paths}, []),
    "info": ([], {"--model": texts, "--depth": whole}, []),
}
POSITIONAL = {"sample": (1, 3), "edit": (1, 3), "interpolate": (1, 2), "invert": (1, 2)}
POSITIONAL |= {"train": (0, 1), "export": (1, 1)}


@st.composite
def uses(draw, command: str):
    """Arguments of a command, up to three of its options among them."""
    first, options, last = USES[command]
    low, high = POSITIONAL.get(command, (0, 0))
    words = draw(st.lists(texts, min_size=low, max_size=high))
    chosen = draw(st.lists(st.sampled_from(sorted(options)), max_size=3, unique=True))
    # --name=value: argparse takes a value that begins with a hyphen only so.
    named = [f"{name}={draw(options[name])}" for name in chosen]
    if "--guidance-scale" in options and draw(st.booleans()):
        named += ["--guidance-interval", draw(real), draw(real)]
    return [command, *first, *named, *last, *(["--"] if words else []), *words]


def stop(*_, **__):
    raise ValueError("the work would begin here")


@contextmanager
def at_hand():
    """A folder to work in, with a picture; no work of more than a second."""
    with (
        tempfile.TemporaryDirectory() as folder,
        chdir(folder),
        mock.patch.object(commands, "draw_overview", lambda pipe, path: None),
        mock.patch.object(evaluation.Judge, "__init__", lambda *networks: None),
        mock.patch.object(evaluation.Judge, "features", stop),
        mock.patch.object(Run, "build", stop),
    ):
        Image.new("L", (28, 28)).save("digit.png")
        yield


@pytest.mark.parametrize("command", USES)
@fewer(5)
@given(st.data())
def test_any_argument(command, data):
    arguments = data.draw(uses(command))
    with at_hand():
        check(arguments)


# A name too long for a file, one with a NUL, one that is no UTF-8, an empty one.
UNUSABLE = ["x" * 300, "x" * 300 + "/y.png", "\x00.png", "a\x00/b.png", "\ud800.png", ""]
FILES = {"--out", "--model", "--data", "--image", "--mask-image", "--trajectory", "--attention"}


@pytest.mark.parametrize("command", USES)
def test_a_file_that_cannot_be(command):
    first, options, last = USES[command]
    words = ["3"] if command in ("sample", "edit", "interpolate", "invert") else []
    words += ["run"] if command == "export" else []
    for option in sorted(FILES & set(options)):
        for name in UNUSABLE:
            with at_hand():
                code = check([command, *first, f"{option}={name}", *last, *words])
            # An empty --out of a folder is the one we are in.
            assert code == 2 or name == ""
