"""The command line: what it writes, and that every mistake is one line and exit code 2."""

import io
import json
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ldm_numpy import backend, commands, evaluation, images, model_folder
from ldm_numpy.__main__ import main
from ldm_numpy.commands import describe, draw_overview, same_settings, save_rows
from ldm_numpy.data import mnist
from ldm_numpy.models.clip import MNIST_TEXT, CLIPTextModel

from . import tiny


def test_sample_writes_a_grid_of_the_prompts(tmp_path, capsys):
    out = tmp_path / "new" / "samples.png"
    code = main(
        ["sample", "a thin 3", "seven", "--out", str(out), "--num-images-per-prompt", "3"]
        + ["--num-inference-steps", "4", "--device", "cpu"]
    )
    assert code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("device: cpu") and str(out) in printed
    with Image.open(out) as picture:
        assert picture.mode == "L"
        assert picture.width > 3 * 28 and picture.height > 2 * 28
        assert np.asarray(picture).std() > 10


def blanks(count: int) -> list[Image.Image]:
    """Pictures that differ."""
    return [Image.new("L", (28, 28), i) for i in range(count)]


def test_rows_are_labelled_with_their_prompts(tmp_path, capsys):
    options = SimpleNamespace(prompt=["", "seven"], num_images_per_prompt=3)
    out = tmp_path / "s.png"
    assert save_rows(blanks(6), options, out) == (["(anything)", "seven"], 3)
    assert capsys.readouterr().out == f"wrote {out}\n"
    wanted = images.grid(images.from_pil(blanks(6)), 3, row_labels=["(anything)", "seven"])
    assert same_picture(out, wanted)


def same_picture(path, wanted: Image.Image) -> bool:
    with Image.open(path) as picture:
        return np.array_equal(np.asarray(picture), np.asarray(wanted))


def test_the_overview_has_a_row_a_style_and_a_column_a_digit(tmp_path):
    asked = []

    def pipe(prompts, **options):
        asked.append((prompts, options))
        return blanks(len(prompts))

    draw_overview(pipe, tmp_path / "o.png", seed=5)
    ((prompts, options),) = asked
    assert len(prompts) == 90 and options == {"seed": 5}
    assert prompts[:2] == ["a thin zero leaning left", "a thin one leaning left"]
    assert (prompts[19], prompts[89]) == ("a thin nine upright", "a bold nine leaning right")
    weights, slants = ("thin", "medium", "bold"), ("leaning left", "upright", "leaning right")
    labels = [f"a {weight} ... {slant}" for weight in weights for slant in slants]
    wanted = images.grid(images.from_pil(blanks(90)), 10, scale=2, row_labels=labels)
    assert same_picture(tmp_path / "o.png", wanted)


def test_trajectory_writes_a_strip_and_an_animation(tmp_path, capsys):
    strip = tmp_path / "strip.png"
    arguments = ["sample", "an upright eight", "--out", str(tmp_path / "s.png")]
    arguments += ["--num-images-per-prompt", "2", "--num-inference-steps", "5"]
    assert main([*arguments, "--trajectory", str(strip), "--device", "cpu"]) == 0
    assert f"wrote {strip} and {strip.with_suffix('.gif')}\n" in capsys.readouterr().out
    with Image.open(strip) as picture:
        assert picture.width > 5 * 28
    with Image.open(strip.with_suffix(".gif")) as animation:
        assert animation.n_frames == 5


def test_attention_writes_a_map_a_word(tmp_path, capsys):
    maps = tmp_path / "maps.png"
    arguments = ["sample", "a thin 3", "seven", "--num-images-per-prompt", "2", "--seed", "4"]
    arguments += ["--num-inference-steps", "3", "--out", str(tmp_path / "s.png")]
    assert main([*arguments, "--attention", str(maps), "--device", "cpu"]) == 0
    assert f"wrote {maps}" in capsys.readouterr().out
    with Image.open(maps) as figure, Image.open(tmp_path / "s.png") as samples:
        assert figure.mode == "RGB" and figure.width > 4 * 112 and figure.height > 2 * 112
        # The second row begins with the first sample of the second prompt.
        top = 2 + (figure.height - 2) // 2
        cell = np.asarray(figure.convert("L"))[top::4, 2::4][:28, :28]
        wanted = np.asarray(samples)[2 + 114 :: 4, samples.width - 2 * 114 :: 4][:28, :28]
        assert np.abs(cell.astype(int) - wanted).max() <= 1 and wanted.max() > 200


@pytest.fixture
def seven(tmp_path):
    """A test digit and the mask of its lower half, as files: one grey, one of mode "1"."""
    Image.fromarray(mnist.load("test")[0][0]).save(tmp_path / "seven.png")
    hole = np.zeros((28, 28), bool)
    hole[14:] = True
    Image.fromarray(hole).save(tmp_path / "hole.png")
    return tmp_path / "seven.png"


def test_edit_changes_a_picture(seven, tmp_path, capsys):
    out = tmp_path / "new" / "edited.png"
    arguments = ["edit", "a bold seven leaning left", "a 7", "--image", str(seven)]
    arguments += ["--num-images-per-prompt", "3", "--num-inference-steps", "6", "--device", "cpu"]
    assert main([*arguments, "--out", str(out)]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    first = out.read_bytes()
    assert main([*arguments, "--strength", "0.6", "--out", str(out)]) == 0
    assert out.read_bytes() == first  # the default
    assert main([*arguments, "--strength", "1", "--out", str(out)]) == 0
    assert out.read_bytes() != first


def test_edit_fills_a_hole_and_keeps_the_rest(seven, tmp_path):
    out = tmp_path / "filled.png"
    arguments = ["edit", "a seven", "--image", str(seven), "--num-images-per-prompt", "2"]
    arguments += ["--mask-image", str(tmp_path / "hole.png"), "--num-inference-steps", "5"]
    assert main([*arguments, "--out", str(out), "--device", "cpu"]) == 0
    with Image.open(seven) as given, Image.open(out) as grid:
        cells = np.asarray(grid)[2::4, -(2 * 114) :: 4]  # each pixel is a square of 4, then 2 paper
        given = np.asarray(given)
        assert np.array_equal(cells[:14, :28], given[:14])
        assert not np.array_equal(cells[14:28, :28], given[14:])


def test_invert_finds_back(seven, tmp_path, capsys):
    """The picture beside what its noise gives back: the same, but for what the autoencoder loses;
    by Heun's steps more exactly than by Euler's; and another digit where other words lead down."""
    out = tmp_path / "new" / "inverted.png"
    arguments = ["--image", str(seven), "--out", str(out), "--device", "cpu"]
    errors, backs = {}, {}
    for method in ("heun", "euler"):
        assert main(["invert", "a seven", *arguments, "--method", method]) == 0
        said = capsys.readouterr().out
        assert f"wrote {out}" in said
        errors[method] = float(said.split("relative error of the latent: ")[1].split()[0])
        with Image.open(out) as grid, Image.open(seven) as given:
            cells = np.asarray(grid)[2::4, -(2 * 114) :: 4][:28].astype(int)
            first, backs[method] = cells[:, :28], cells[:, -28:]
            assert np.array_equal(first, np.asarray(given))
    assert errors["heun"] < 0.02 < errors["euler"] < 0.3
    assert np.abs(backs["heun"] - first).mean() < 5
    arguments += ["--guidance-scale", "1.5", "--num-inference-steps", "10"]
    assert main(["invert", "a seven", "a bold zero", *arguments]) == 0
    assert "relative error" not in capsys.readouterr().out


@pytest.mark.parametrize("back", ["a bold zero", ""])
def test_what_an_inversion_gives_back_is_labelled_with_its_prompt(
    back, seven, tmp_path, monkeypatch
):
    monkeypatch.setattr(model_folder, "load", lambda *_: tiny.text_to_image())
    out = tmp_path / "i.png"
    arguments = ["--image", str(seven), "--out", str(out), "--num-inference-steps", "2"]
    assert main(["invert", "a seven", back, *arguments, "--device", "cpu"]) == 0
    with Image.open(out) as grid:
        cells = np.asarray(grid)[2::4, -(2 * 114) :: 4][:28]
    pictures = [Image.fromarray(cells[:, x].copy()) for x in (slice(28), slice(-28, None))]
    wanted = images.grid(images.from_pil(pictures), 2, row_labels=[back or "(anything)"])
    assert same_picture(out, wanted)


def test_an_inversion_is_not_guided_unless_told(seven, tmp_path, monkeypatch):
    monkeypatch.setattr(model_folder, "load", lambda *_: tiny.text_to_image())
    out = tmp_path / "i.png"
    arguments = ["invert", "3", "8", "--image", str(seven), "--out", str(out), "--device", "cpu"]
    drawn = []
    for options in ([], ["--guidance-scale", "1"], ["--guidance-scale", "2"]):
        assert main([*arguments, "--num-inference-steps", "3", *options]) == 0
        drawn.append(out.read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]


def test_interpolate_writes_a_strip_and_an_animation(tmp_path, capsys):
    out = tmp_path / "walk.png"
    arguments = ["interpolate", "a thin three", "a bold eight", "--other-seed", "3"]
    arguments += ["--frames", "5", "--num-inference-steps", "4", "--out", str(out)]
    arguments += ["--device", "cpu"]
    assert main(arguments) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as strip, Image.open(out.with_suffix(".gif")) as animation:
        assert strip.width > 5 * 28 * 2 and strip.height < 3 * 28
        assert animation.n_frames == 8  # there and back


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image", "nowhere.png"], ["nowhere.png", "does not exist"]),
        (["--image", "TEXT"], ["cannot be read as a picture"]),
        (["--image", "LARGE"], ["image has 32x28 pixels", "28x28"]),
        (["--image", "COLOUR"], ['mode "RGB"', 'convert("L")']),
        (["--image", "SEVEN", "--strength", "1.5"], ["strength", "0 ... 1", "1.5"]),
        (["--image", "SEVEN", "--strength", "-0.1"], ["strength", "-0.1"]),
        (["--image", "SEVEN", "--strength", "nan"], ["strength", "nan"]),
        (["--image", "SEVEN", "--mask-image", "nowhere.png"], ["nowhere.png", "does not exist"]),
        (["--image", "SEVEN", "--mask-image", "LARGE"], ["mask_image has 32x28 pixels"]),
        (["--image", "SEVEN", "--mask-image", "COLOUR"], ["mask_image", 'mode "RGB"']),
        (["--image", "SEVEN", "--mask-image", "SEVEN"], ["mask_image", "no grey"]),
        (["--image", "SEVEN", "--mask-image", "HOLE", "--strength", "0.5"], ["--strength"]),
        (["--image", "SEVEN", "--sampler", "magic"], ["unknown sampler 'magic'", "heun"]),
        (["--image", "SEVEN", "--schedule", "magic"], ["unknown schedule 'magic'", "karras"]),
        (["--image", "SEVEN", "--out", "edited.jpg"], ["edited.jpg", ".png"]),
    ],
)
def test_edit_refuses(arguments, words, seven, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (32, 28)).save(tmp_path / "large.png")
    Image.new("RGB", (28, 28)).save(tmp_path / "colour.png")
    files = {"SEVEN": "seven.png", "HOLE": "hole.png", "TEXT": "text.png", "LARGE": "large.png",
             "COLOUR": "colour.png"}  # fmt: skip
    arguments = [files.get(a, a) for a in arguments]
    assert main(["edit", "a seven", *arguments, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for word in words:
        assert word in error


def test_sample_is_reproducible_and_seeds_differ(tmp_path):
    def draw(name, seed):
        out = tmp_path / name
        base = ["sample", "a bold 2", "--num-images-per-prompt", "1", "--num-inference-steps", "3"]
        assert main([*base, "--out", str(out), "--seed", str(seed), "--device", "cpu"]) == 0
        return out.read_bytes()

    first = draw("a.png", 1)
    assert first == draw("b.png", 1)
    assert first != draw("c.png", 2)


def test_python_runs_the_package():
    result = subprocess.run(
        [sys.executable, "-m", "ldm_numpy", "sample", "x", "--device", "tpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "unknown device 'tpu'" in result.stderr


def test_info_prints_every_network_by_depth(capsys):
    assert main(["info", "--depth", "1"]) == 0
    shallow = capsys.readouterr().out
    assert main(["info", "--depth", "3"]) == 0
    deep = capsys.readouterr().out
    for name in ("unet", "autoencoder", "clip", "text_encoder", "reader"):
        assert f"{name} (" in shallow
    assert "down_blocks (" in shallow and "resnets" not in shallow
    assert "resnets (" in deep and len(deep) > 3 * len(shallow)


def test_info_counts_parameters_and_shows_shapes(capsys):
    model = CLIPTextModel(MNIST_TEXT)
    describe("text", model, 2)
    lines = capsys.readouterr().out.splitlines()
    assert f"{model.count_parameters():,}" in lines[0]
    table = next(line for line in lines if "token_embedding" in line)
    assert f"weight {MNIST_TEXT.vocab_size}x{MNIST_TEXT.hidden_size}" in table


def test_an_over_long_prompt_is_cut_with_a_warning(tmp_path, capsys):
    out = tmp_path / "s.png"
    prompt = "a bold seven " * 20
    arguments = ["sample", prompt, "--out", str(out), "--num-images-per-prompt", "1"]
    assert main([*arguments, "--num-inference-steps", "2", "--device", "cpu"]) == 0
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and "seven" in warning


def below_a_file(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    return str(blocker / "inside")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "3", "--device", "tpu"], ["unknown device 'tpu'", "auto"]),
        (["sample", "3", "--num-inference-steps", "0"], ["num_inference_steps", "0"]),
        (["sample", "3", "--num-inference-steps", "-4"], ["num_inference_steps", "-4"]),
        (["sample", "3", "--num-images-per-prompt", "0"], ["num_images_per_prompt", "0"]),
        (["sample", "3", "--model", "FILE"], ["FILE", "is a file"]),
        (["sample", "3", "--guidance-scale", "nan"], ["guidance_scale", "nan"]),
        (["sample", "3", "--guidance-interval", "2", "1"], ["guidance_interval", "low < high"]),
        (["sample", "3", "--sampler", "magic"], ["magic", "dpmpp_2m"]),
        (["sample", "3", "--seed", "-1"], ["seed", "-1"]),
        (["sample", "3", "--threads", "0"], ["threads", "0"]),
        (["sample", "3", "--model", "no/such/model"], ["no/such/model", "does not exist"]),
        (["evaluate", "--model", "no/such/model"], ["no/such/model", "does not exist"]),
        (["evaluate", "--per-combination", "0"], ["per_combination"]),
        (["info", "--depth", "-1"], ["depth", "-1"]),
        (["export", "no/such/run", "--out", "OUT"], ["no/such/run"]),
        (["train", "--steps", "5"], ["--steps", "single stage"]),
        (["train", "unet", "--steps", "0"], ["steps", "0"]),
        (["train", "--seed", "-3"], ["seed", "-3"]),
        (["train", "--data", "no/such/data"], ["no/such/data", "does not exist"]),
        (["train", "unet"], ["perceptual", "train it first"]),
        (["sample", "3", "--out", "s.jpg"], ["s.jpg", ".png"]),
        (["sample", "3", "--out", "s.png", "--trajectory", "s.png"], ["different files"]),
        (["sample", "3", "--out", "s.png", "--attention", "./s.png"], ["different files"]),
        (["sample", "3", "--attention", "s.jpg"], ["s.jpg", ".png"]),
        (["sample", "3", "--schedule", "magic"], ["unknown schedule 'magic'", "karras"]),
        (["sample", "3", "--eta", "0.5"], ["eta", "ddim"]),
        (["sample", "3", "--guidance-rescale", "2"], ["guidance_rescale", "0 ... 1"]),
        (["interpolate", "3", "8", "--frames", "1"], ["frames", "1"]),
        (["interpolate", "3", "8", "--other-seed", "-1"], ["other_seed", "-1"]),
        (["interpolate", "3", "8", "--out", "w.gif"], ["w.gif", ".png"]),
        (["train", "unet", "--objective", "magic"], ["unknown objective 'magic'", "epsilon"]),
        (["train", "unet", "--weighting", "magic"], ["unknown weighting 'magic'", "min_snr"]),
        (["train", "pixel"], ["reader", "train it first"]),
        (["train", "noisy", "--objective", "v"], ["--objective", "not for noisy"]),
        (["train", "clip", "--text-encoder", "joint"], ["--text-encoder", "not for clip"]),
        (["sample", "3", "--attention", ""], [".png"]),
        (["evaluate", "--likelihood", "1"], ["likelihood", "1"]),
        (["evaluate", "--out", ""], [".json"]),
        (["evaluate", "--pictures", ""], [".png"]),
        (["sample", "3", "--num-inference-steps", "1000000000"], ["1 ... 10,000"]),
        (["sample", "3", "--num-images-per-prompt", "2000000000"], ["1 ... 100,000"]),
        (["sample", "3", "--guidance-scale", "1e20"], ["guidance_scale", "-10000 ... 10000"]),
        (["edit", "3", "--image", "DIGIT", "--resamplings", "3"], ["--mask-image"]),
        (["evaluate", "--likelihood", "200"], ["model of pixels"]),
        (["evaluate", "--likelihood", "-1"], ["likelihood", "-1"]),
        (["sample", "3", "--sampler", ""], ["unknown sampler ''"]),
        (["invert", "3", "--image", "nowhere.png"], ["nowhere.png", "does not exist"]),
        (["invert", "3", "--image", "DIGIT", "--method", "ddpm"], ["method 'ddpm'", "heun"]),
        (["invert", "3", "--image", "DIGIT", "--num-inference-steps", "1"], ["steps", ">= 2"]),
        (["invert", "3", "--image", "DIGIT", "--out", "i.gif"], ["i.gif", ".png"]),
        (["sample", "3", "--out", "x" * 300 + ".png"], ["xxx"]),
        (["evaluate", "--guidance-scale", "nan"], ["guidance_scale", "nan"]),
        (["evaluate", "--guidance-scale", "1e20"], ["guidance_scale", "-10000 ... 10000"]),
        (["evaluate", "--guidance-interval", "nan", "1"], ["guidance_interval", "nan"]),
        (["evaluate", "--frechet-samples", "90000"], ["frechet_samples", "10000"]),
        (["train", "clip", "--out", "BELOW"], ["cannot write", "BELOW"]),
        (["sample", "3", "--out", "BELOW/samples.png"], ["cannot write", "BELOW"]),
        (["sample", "3", "--trajectory", "BELOW/s.png"], ["cannot write", "BELOW"]),
        (["export", "no/such/run", "--out", "BELOW"], ["cannot write", "BELOW"]),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    below = below_a_file(tmp_path)
    Image.new("L", (28, 28)).save(tmp_path / "digit.png")
    places = {"BELOW": below, "OUT": str(tmp_path / "out"), "FILE": str(tmp_path / "file")}
    places["DIGIT"] = "digit.png"
    for mark, place in places.items():
        arguments = [a.replace(mark, place) for a in arguments]
        words = [w.replace(mark, place) for w in words]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for word in words:
        assert word in error


def test_a_gpu_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(backend, "_cupy", lambda: None)
    assert main(["sample", "3", "--device", "gpu"]) == 2
    error = capsys.readouterr().err
    assert "CuPy is not installed" in error and "requirements-gpu.txt" in error


def test_a_gpu_that_cannot_be_used_is_named_where_any_device_will_do(monkeypatch, capsys):
    monkeypatch.setattr(commands, "choose_device", lambda device: "cpu")
    monkeypatch.setattr(commands, "cupy_is_installed", lambda: True)
    monkeypatch.setattr(commands, "gpu_problem", lambda: "no driver")
    for device, said in (("auto", "cpu, 3 threads (no driver)"), ("cpu", "cpu, 3 threads")):
        assert commands.announce(SimpleNamespace(device=device, threads=3)) == "cpu"
        assert capsys.readouterr().out == f"device: {said}\n"


def test_the_device_is_said_before_the_work_even_into_a_pipe(monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out))  # keeps lines back
    commands.announce(SimpleNamespace(device="cpu", threads=2))
    assert out.getvalue() == b"device: cpu, 2 threads\n"


def test_a_lack_of_memory_is_one_line(monkeypatch, capsys):
    for error, said in ((MemoryError(), "out of memory: ask for fewer"), (OSError("full"), "full")):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(commands, "info", fail)
        assert main(["info"]) == 2
        assert capsys.readouterr().err.startswith(f"error: {said}")


def test_unknown_commands_and_options_exit_with_2(capsys):
    wrong = (["paint"], [], ["train", "everything"], ["sample"], ["sample", "3", "--seed", "x"],
             ["edit", "3"], ["invert", "3"], ["export", "run"])  # fmt: skip
    for arguments in wrong:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and "--help" in error


@pytest.mark.parametrize("command", ["sample", "edit", "interpolate"])
def test_help_names_the_choices(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--sampler SAMPLER euler, heun, dpmpp_2m" in said
    assert "--schedule SCHEDULE of noise levels: karras, linear, cosine" in said


# Training, its work taken as done --------------------------------------------------------------

MEASURED = json.loads((model_folder.SHIPPED / "metrics.json").read_text())


@pytest.fixture
def done(monkeypatch):
    """What `Run` and `evaluate` are asked for; models draw blanks."""
    asked = {}

    class Run:
        def __init__(self, folder, *arguments, **options):
            self.folder, asked["run"] = folder, (arguments, options)

        def fit(self, what, resume):
            asked["fit"] = what, resume
            for name in ("model", "pixel"):
                (self.folder / name).mkdir()

    def evaluate(*arguments, **options):
        asked["evaluate"] = arguments
        return MEASURED

    monkeypatch.setattr(commands, "Run", Run)
    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    monkeypatch.setattr(model_folder, "load", lambda *_: lambda prompts: blanks(len(prompts)))
    return asked


@pytest.mark.parametrize(
    ("what", "model", "pictures"),
    [("all", "model", "samples.png"), ("unet", "model", "samples.png"),
     ("pixel", "pixel", "pixel_samples.png")],
)  # fmt: skip
def test_training_a_model_ends_with_its_pictures_and_quality(
    what, model, pictures, done, tmp_path, capsys
):
    folder = tmp_path / "run"
    arguments = ["train", what, "--out", str(folder), "--data", "digits", "--threads", "2"]
    assert main([*arguments, "--device", "cpu", "--seed", "3", "--resume"]) == 0
    usual = {"text_encoder": "frozen", "objective": "edm", "weighting": "target"}
    assert done["run"] == (("digits", 3, "cpu", 2, {}), usual)
    assert done["fit"] == (what, True)
    assert done["evaluate"] == (folder / model, "digits", "cpu", 2)
    assert json.loads((folder / model / "metrics.json").read_text()) == MEASURED
    with Image.open(folder / pictures) as grid:
        assert grid.width > 10 * 56 and grid.height > 9 * 56
    said = capsys.readouterr().out
    assert "\n".join(evaluation.verdict(MEASURED)) in said
    assert said.endswith(f"model: {folder / model}   pictures: {folder / pictures}\n")


def test_evaluate_draws_its_grid_as_it_measured(done, tmp_path, monkeypatch, capsys):
    asked = []

    def pipe(prompts, **options):
        asked.append(options)
        return blanks(len(prompts))

    monkeypatch.setattr(model_folder, "load", lambda *_: pipe)
    out = tmp_path / "grid.png"
    arguments = ["evaluate", "--pictures", str(out), "--seed", "7", "--guidance-scale", "3"]
    assert main([*arguments, "--guidance-interval", "0", "9", "--device", "cpu"]) == 0
    assert asked == [{"seed": 7, "guidance_scale": 3.0, "guidance_interval": [0.0, 9.0]}]
    assert done["evaluate"][6:9] == (3.0, [0.0, 9.0], 7)
    assert out.is_file() and capsys.readouterr().out.endswith(f"wrote {out}\n")


def test_training_a_part_says_where_it_is(done, tmp_path, capsys):
    assert main(["train", "noisy", "--out", str(tmp_path), "--steps", "5", "--device", "cpu"]) == 0
    assert done["run"][0][-1] == {"noisy": 5} and done["fit"] == ("noisy", False)
    said = f"noisy is trained; its checkpoint, log and pictures are in {tmp_path}\n"
    assert capsys.readouterr().out.endswith(said)
    assert "evaluate" not in done


@pytest.mark.parametrize("changes", [{}, {"guidance_scale": 1.0}, None])
def test_export_takes_numbers_along_that_were_measured_as_it_draws(
    changes, tmp_path, monkeypatch, capsys
):
    def write(run, out):
        model_folder.write_config(out, model_folder.read_config(model_folder.SHIPPED))

    monkeypatch.setattr(commands, "write_model", write)
    (tmp_path / "run" / "model").mkdir(parents=True)
    if changes is not None:
        measured = json.dumps(MEASURED | changes)
        (tmp_path / "run" / "model" / "metrics.json").write_text(measured)
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert (out / "metrics.json").is_file() == (changes == {})
    if changes == {}:
        assert json.loads((out / "metrics.json").read_text()) == MEASURED


def test_evaluate_measures_and_writes_its_numbers(tmp_path, capsys):
    out = tmp_path / "metrics.json"
    pictures, labels = mnist.load("test")
    header = struct.pack(">IIII", 0x803, 500, 28, 28)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(header + pictures[:500].tobytes())
    header = struct.pack(">II", 0x801, 500)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(header + labels[:500].tobytes())
    arguments = ["evaluate", "--per-combination", "1", "--frechet-samples", "64"]
    arguments += ["--data", str(tmp_path)]
    assert main([*arguments, "--out", str(out), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    metrics = json.loads(out.read_text())
    assert metrics["autoencoder_digit"] > 0.98 and metrics["sample_digit"] > 0.9
    assert "digit as asked" in printed and "held-out" in printed
    assert printed.endswith(f"wrote {out}\n")


def test_interrupting_exits_with_130(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_folder, "load", interrupted)
    assert main(["sample", "3", "--device", "cpu", "--out", str(tmp_path / "s.png")]) == 130
    error = capsys.readouterr().err
    assert "interrupted" in error and "--resume" not in error


@pytest.mark.parametrize(
    ("content", "words"), [("[" * 100_000, "nested too deeply"), ("[1]", "must hold a JSON object")]
)
def test_metrics_that_are_none_are_refused_before_anything_is_written(
    content, words, tmp_path, capsys
):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "metrics.json").write_text(content)
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert not any((tmp_path / "out").glob("*"))


def test_exported_metrics_belong_to_the_exported_settings():
    settings = {
        "guidance_scale": 1.7,
        "guidance_interval": [0.3, 5.0],
        "sampler": "dpmpp_2m",
        "num_inference_steps": 20,
    }
    assert same_settings(settings | {"sample_all": 0.9}, settings | {"latent_scale": 1.0})
    other = {"guidance_scale": 2.0, "guidance_interval": [0.3, 6.0], "sampler": "heun",
             "num_inference_steps": 10}  # fmt: skip
    for name, value in other.items():
        assert not same_settings(settings | {name: value}, settings)
    assert not same_settings({}, settings)
