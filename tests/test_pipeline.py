import dataclasses
import json
import math
import warnings
from functools import partial

import numpy as np
import pytest
from PIL import Image

from ldm_numpy import checkpoint, images, model_folder, pipeline
from ldm_numpy.backend import generator
from ldm_numpy.diffusion.samplers import SAMPLERS, edm_stochastic
from ldm_numpy.diffusion.schedules import SCHEDULES, karras_sigmas
from ldm_numpy.text import Tokenizer

from . import tiny

STEPS_OF_ALL = ["probability_flow", "predictor_corrector"]
PROMPTS = ["a thin 3", "a bold seven leaning left", "eight"]


@pytest.fixture(scope="module")
def pipe():
    return tiny.text_to_image()


@pytest.fixture(autouse=True)
def _a_quick_solver(monkeypatch):
    """Networks of random weights are not smooth: to its usual tolerance it takes a minute."""
    quick = partial(SAMPLERS["probability_flow"], rtol=1e-3, atol=1e-3)
    monkeypatch.setitem(SAMPLERS, "probability_flow", quick)


@pytest.fixture
def calls(monkeypatch, pipe):
    """How many times the U-Net runs, and with what condition."""
    seen, network = [], pipe.denoiser.network

    def counting(x, timestep, cond):
        seen.append(np.array(cond))
        return network(x, timestep, cond)

    monkeypatch.setattr(pipe.denoiser, "network", counting)
    return seen


def same(pictures, others) -> bool:
    return all((np.array(a) == np.array(b)).all() for a, b in zip(pictures, others, strict=True))


def close(a, b, tolerance=1e-4) -> bool:
    """To rounding: matrix products of other heights may round otherwise."""
    return a.shape == b.shape and np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


# Pictures ----------------------------------------------------------------------------------


def test_pictures(pipe):
    pictures = pipe("a bold seven leaning left", num_images_per_prompt=3)
    assert isinstance(pictures, list) and len(pictures) == 3
    for picture in pictures:
        assert isinstance(picture, Image.Image)
        assert picture.size == (28, 28) and picture.mode == "L"
        assert np.array(picture).std() > 0
    assert not same(pictures[:1], pictures[1:2])  # each from noise of its own
    assert len(pipe("seven")) == 1


def test_all_of_the_first_prompt_then_the_next(pipe):
    """Each picture's condition is its own prompt's, in the order of the list."""
    pictures = pipe(PROMPTS, num_images_per_prompt=2, seed=3)
    a, b, c = PROMPTS
    assert same(pictures, images.to_pil(pipe.decode(pipe.sample([a, a, b, b, c, c], seed=3))))
    assert not same(pictures, pipe([b, a, c], num_images_per_prompt=2, seed=3))
    assert same(pipe(tuple(PROMPTS), num_images_per_prompt=2, seed=3), pictures)


def test_states_of_prompts_in_order(pipe):
    """Repeated prompts are encoded once and put back in their places."""
    order = [2, 0, 0, 1, 2]
    states = pipe.encode_prompts([PROMPTS[i] for i in order])
    alone = pipe.text_encoder(pipe.tokenizer(PROMPTS)).data
    assert close(states, alone[order], 1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_gives_the_same_pictures_again(pipe, sampler):
    first, again, other = (pipe.sample(PROMPTS, seed=s, sampler=sampler) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not close(first, other, 0.1)
    default = pipe.sample(PROMPTS, sampler=sampler)
    np.testing.assert_array_equal(default, pipe.sample(PROMPTS, seed=0, sampler=sampler))


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s not in STEPS_OF_ALL])
def test_a_picture_does_not_depend_on_how_many_are_drawn(pipe, sampler):
    options = {"num_inference_steps": 4, "sampler": sampler, "seed": 1}
    five = pipe.sample(["seven"] * 5, **options)
    two = pipe.sample(["seven"] * 2, **options)
    assert close(two, five[:2])


@pytest.mark.parametrize("sampler", STEPS_OF_ALL)
def test_or_only_a_little(pipe, sampler):
    """Where the batch decides the steps: the same picture, but for the method's own error."""
    options = {"num_inference_steps": 40, "sampler": sampler, "seed": 1}
    five = pipe.sample(["seven"] * 5, **options)
    assert close(pipe.sample(["seven"] * 2, **options), five[:2], 0.05)


def test_schedules_and_eta_reach_the_sampler(pipe):
    for schedule, levels in SCHEDULES.items():
        seen = []
        pipe.sample(["seven"], num_inference_steps=4, schedule=schedule, sampler="euler",
                    callback=lambda step, sigma, x, seen=seen: seen.append(sigma))  # fmt: skip
        assert seen == levels(4, pipe.config.sigma_min, pipe.config.sigma_max)[1:]
    euler, none, full, ddpm = (
        pipe.sample(["seven"], num_inference_steps=4, seed=1, **options)
        for options in (
            {"sampler": "euler"}, {"sampler": "ddim"}, {"sampler": "ddim", "eta": 1.0},
            {"sampler": "ddpm"},
        )
    )  # fmt: skip
    assert close(euler, none) and not close(none, full, 0.1)
    np.testing.assert_array_equal(full, ddpm)


def test_every_step_adds_noise_of_its_own():
    noise, again, other = pipeline.StepNoise(1), pipeline.StepNoise(1), pipeline.StepNoise(2)
    first, second = (noise.standard_normal((50, 2)) for _ in range(2))
    assert first.dtype == np.float32 and first.std() == pytest.approx(1, abs=0.3)
    for step, found in enumerate((first, second), 1):  # pictures of a seed stay what they were
        wanted = generator(1, "sample", "step", step).standard_normal((50, 2), np.float32)
        np.testing.assert_array_equal(found, wanted)
    for unlike in (second, other.standard_normal((50, 2))):
        assert abs((first * unlike).mean()) < 0.5 and (first != unlike).all()
    np.testing.assert_array_equal(again.standard_normal((7, 2)), first[:7])  # rows stay
    np.testing.assert_array_equal(again.standard_normal((7, 2)), second[:7])


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ddpm"])
def test_threads_change_nothing(monkeypatch, sampler):
    monkeypatch.setattr(pipeline, "SHARD", 2)
    one, two, three = (
        tiny.text_to_image(threads).sample(PROMPTS + ["one", "two"], sampler=sampler)
        for threads in (1, 2, 3)
    )
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, three)


def test_a_cpu_works_in_shards_and_a_gpu_on_all_at_once(pipe):
    assert pipe.shards.size == (pipeline.SHARD if pipe.device == "cpu" else None)


def test_shards_fit_together(monkeypatch, pipe):
    """Seven pictures in shards of two are those of one shard."""
    whole = pipe.sample(["seven", "a thin 3"] * 3 + ["eight"])
    monkeypatch.setattr(pipeline, "SHARD", 2)
    assert close(tiny.text_to_image().sample(["seven", "a thin 3"] * 3 + ["eight"]), whole)


# Steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_callback(pipe, sampler):
    seen = []

    def callback(step, sigma, latents):
        seen.append((step, sigma, latents))

    latents = pipe.sample(PROMPTS, num_inference_steps=4, sampler=sampler, callback=callback)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    config = pipe.config
    levels = karras_sigmas(4, config.sigma_min, config.sigma_max)[1:]
    assert [s for _, s, _ in seen] == pytest.approx(levels)
    assert all(x.shape == (3, 8, 8, 4) for _, _, x in seen)
    np.testing.assert_array_equal(seen[-1][2], latents)
    counted = []
    pipe(PROMPTS[0], num_inference_steps=3, callback=lambda *step: counted.append(step))
    assert len(counted) == 3


def test_the_start_is_white_noise_of_the_highest_level(pipe):
    """Euler from sigma_max with one step returns D(x); the input must have sigma_max's size."""
    seen = []
    network, pipe.denoiser.network = pipe.denoiser.network, lambda x, t, cond: seen.append(x) or x
    try:
        pipe.sample(["seven"] * 64, num_inference_steps=1, guidance_scale=1)
    finally:
        pipe.denoiser.network = network
    scaled = seen[0].data  # c_in x: variance 1 at any level
    assert scaled.dtype == np.float32
    assert np.std(scaled) == pytest.approx(1, abs=0.02)


def test_trajectory_scales_noisy_latents_back(pipe, monkeypatch):
    latents = pipe.sample(["seven"])
    assert close(pipe.trajectory(latents, 0), pipe.decode(latents), 1e-6)
    assert close(pipe.trajectory(latents * math.sqrt(10), 3), pipe.decode(latents), 1e-5)
    monkeypatch.setattr(pipe, "config", dataclasses.replace(pipe.config, sigma_data=0.5))
    assert close(pipe.trajectory(latents * math.sqrt(37), 3), pipe.decode(latents), 1e-5)


def test_encode_and_decode_use_one_scale(pipe):
    """encode multiplies by latent_scale, decode divides by it, the paper around comes and goes."""
    pictures = tiny.digits("test").pixels(slice(0, 5))
    latents = pipe.encode(pictures)
    padded = images.pad_to(pictures, 32)
    mean, _ = pipe.autoencoder.encode(padded)
    assert close(latents, mean.data * 0.5, 1e-6)
    decoded = pipe.decode(latents)
    assert decoded.shape == (5, 28, 28, 1)
    assert close(decoded, pipe.autoencoder.decode(mean.data).data[:, 2:30, 2:30], 1e-5)


# Guidance ----------------------------------------------------------------------------------


def test_guidance_is_twice_the_rows_and_no_guidance_is_not(pipe, calls):
    pipe.sample(["seven"], num_inference_steps=3, guidance_scale=1, sampler="euler")
    assert [len(x) for x in calls] == [1] * 3
    pipe.sample(["seven"], num_inference_steps=3, guidance_scale=2, sampler="euler")
    assert [len(x) for x in calls] == [1] * 3 + [2] * 3


def test_guidance_in_an_interval_is_twice_the_rows_there(pipe, calls, monkeypatch):
    """Levels 40, 2.4 and 0.02: the interval says which of them have two halves."""
    options = {"num_inference_steps": 3, "guidance_scale": 2, "sampler": "euler"}
    for interval, rows in (((1, 41), [2, 2, 1]), ((0.01, 6), [1, 2, 2]), ((6, 39), [1, 1, 1])):
        calls.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error" if 2 in rows else "ignore")
            limited = pipe.sample(["seven"], guidance_interval=interval, **options)
        assert [len(x) for x in calls] == rows
    assert close(limited, pipe.sample(["seven"], **options | {"guidance_scale": 1}))
    with pytest.warns(UserWarning, match=r"no noise level of these 3 steps .*no effect"):
        pipe.sample(["seven"], guidance_interval=(50, 60), **options)
    config = dataclasses.replace(pipe.config, guidance_interval=[1, 41])  # as from JSON
    assert config.guidance_interval == (1, 41)
    monkeypatch.setattr(pipe, "config", config)
    calls.clear()
    pipe.sample(["seven"], **options)
    assert [len(x) for x in calls] == [2, 2, 1]


def test_guidance_goes_past_the_prompt_away_from_the_negative(pipe):
    """One Euler step from sigma_max lands on D, so D_u + w (D_c - D_u) can be seen."""

    def one_step(prompt, scale, **options):
        return pipe.sample(
            [prompt] * 2, num_inference_steps=1, sampler="euler", guidance_scale=scale, **options
        )

    towards, nothing, away = (one_step(p, 1) for p in ("seven", "", "a thin 3"))
    assert not close(towards, nothing, 0.01) and not close(away, nothing, 0.01)
    assert close(one_step("seven", 3), nothing + 3 * (towards - nothing))
    assert close(one_step("seven", 0), nothing)
    negative = one_step("seven", 3, negative_prompt="a thin 3")
    assert close(negative, away + 3 * (towards - away))
    assert close(one_step("seven", 1, negative_prompt="a thin 3"), towards, 1e-6)


def test_negative_prompts(pipe):
    """One for all, or one a prompt; each picture of a prompt has its prompt's."""
    pair = PROMPTS[:2]
    options = {"seed": 2, "num_images_per_prompt": 2}
    plain = pipe(pair, **options)
    assert same(pipe(pair, negative_prompt="", **options), plain)
    assert same(pipe(pair, negative_prompt=["", ""], **options), plain)
    one = pipe(pair, negative_prompt="eight", **options)
    assert not same(one, plain)
    assert same(pipe(pair, negative_prompt=["eight", "eight"], **options), one)
    each = pipe(pair, negative_prompt=["eight", ""], **options)
    assert same(each[:2], one[:2]) and same(each[2:], plain[2:])
    with pytest.raises(ValueError, match="1 negative prompts for 2 prompts"):
        pipe(pair, negative_prompt=["eight"])


def test_a_sampler_and_a_schedule_with_settings_of_their_own(pipe):
    options = {"seed": 2, "num_inference_steps": 4, "guidance_scale": 1.0}
    plain = pipe.sample(["seven"], sampler="edm_stochastic", **options)
    assert close(pipe.sample(["seven"], sampler=edm_stochastic, **options), plain)
    calm = pipe.sample(["seven"], sampler=partial(edm_stochastic, churn=0), **options)
    assert close(calm, pipe.sample(["seven"], sampler="heun", **options))
    assert not close(calm, plain, 0.01)
    straight = pipe.sample(["seven"], sampler="heun", schedule="linear", **options)
    rho = partial(karras_sigmas, rho=1)
    assert close(pipe.sample(["seven"], sampler="heun", schedule=rho, **options), straight)
    with pytest.raises(ValueError, match="eta is for the sampler ddim"):
        pipe.sample(["seven"], sampler=edm_stochastic, eta=0.5)


# Prompts -----------------------------------------------------------------------------------


def test_an_empty_prompt_is_unconditional(pipe):
    """It meets its own negative: guidance changes nothing."""
    guided = pipe.sample(["", "seven"], guidance_scale=5)
    plain = pipe.sample(["", "seven"], guidance_scale=1)
    assert close(guided[:1], plain[:1])
    assert not close(guided[1:], plain[1:], 0.01)
    assert pipe("")[0].size == (28, 28)


def test_a_prompt_too_long_says_what_was_cut(pipe):
    words = "a bold seven leaning left " * 3
    with pytest.warns(UserWarning, match="cut off .*leaning left") as caught:
        assert len(pipe(words, num_images_per_prompt=3)) == 3
    assert len(caught) == 1  # not once a picture


@pytest.mark.parametrize("prompt", ["ein Drache 龍 🐉", "qwzxk", "\x00\udc80", "<|endoftext|>"])
def test_any_text_is_a_prompt(pipe, prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bytes take room: some of it is cut
        latents = pipe.sample([prompt])
        assert not close(latents, pipe.sample([""]), 1e-3)
        assert pipe(prompt)[0].size == (28, 28)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number .* not 0"),
        ({"num_inference_steps": -5}, "num_inference_steps must be a whole number .* not -5"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number .* not 0"),
        ({"num_images_per_prompt": -1}, "num_images_per_prompt must be a whole number"),
        ({"sampler": "dim"}, "unknown sampler 'dim': use one of euler, heun, dpmpp_2m"),
        ({"schedule": "cos"}, "unknown schedule 'cos': use one of karras, linear, cosine"),
        ({"sampler": "ddim", "eta": 1.5}, "eta must be a finite number in 0 ... 1, not 1.5"),
        ({"sampler": "ddim", "eta": "all"}, "eta must be a finite number"),
        ({"sampler": "heun", "eta": 0.5}, "eta is for the sampler ddim, not for heun"),
        ({"schedule": "ddpm", "num_inference_steps": 2000}, "DDPM has .* levels"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be a finite number"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"seed": 1.5}, "seed must be a whole number >= 0, not 1.5"),
        ({"sampler": []}, "unknown sampler"),
        ({"guidance_scale": "2"}, "guidance_scale must be a finite number"),
        ({"guidance_interval": (2, 1)}, "guidance_interval: 0 <= low < high is needed"),
        ({"guidance_rescale": 1.5}, "guidance_rescale must be a finite number in 0 ... 1"),
        ({"guidance_rescale": None}, "guidance_rescale must be a finite number"),
        ({"guidance_interval": 3}, "guidance_interval must be"),
        ({"callback": "print"}, "callback must be a function"),
        ({"prompt": []}, "prompt must not be an empty list"),
        ({"prompt": ["seven", 7]}, "prompt must be a text"),
        (
            {"prompt": ["1", "2"], "num_images_per_prompt": 60_000},
            "120,000 pictures at a time: at most 100,000",
        ),
    ],
)
def test_bad_arguments(pipe, options, message, monkeypatch):
    monkeypatch.setattr(pipe, "encode_prompts", None)
    with pytest.raises(ValueError, match=message) as error:
        pipe(**{"prompt": "seven"} | options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        *(
            ({name: value}, f"PipelineConfig: {name} must be a whole number >= 1, not {value}")
            for name in ("image_size", "padded_size", "latent_size", "num_inference_steps")
            for value in (0, 1.5)
        ),
        *(
            ({name: value}, f"PipelineConfig: {name} must be a finite number, not {value}")
            for name in ("latent_scale", "sigma_data", "sigma_min", "sigma_max", "guidance_scale")
            for value in (None, math.inf)
        ),
        ({"latent_scale": 0.0}, "latent_scale and sigma_data must be positive"),
        ({"sigma_data": -1.0}, "latent_scale and sigma_data must be positive"),
        ({"sigma_min": 0.0}, "0 < sigma_min < sigma_max is needed"),
        ({"sigma_min": 40.0}, "0 < sigma_min < sigma_max is needed"),
        ({"image_size": 33}, "image_size is larger than padded_size"),
        ({"sampler": "dim"}, "unknown sampler 'dim': use one of euler"),
        ({"objective": "x"}, "unknown objective 'x': use one of"),
        ({"guidance_interval": (2, 1)}, "low < high"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        pipeline.PipelineConfig(**options)


# Model folders -----------------------------------------------------------------------------

NETWORKS = ("unet", "autoencoder", "text_encoder")


@pytest.fixture
def folder(tmp_path, pipe):
    networks = {name: getattr(pipe, name) for name in NETWORKS}
    weights = {name: network.state_dict() for name, network in networks.items()}
    configs = {name: dataclasses.asdict(network.config) for name, network in networks.items()}
    model_folder.save(tmp_path / "model", weights, configs, pipe.tokenizer, pipe.config)
    return tmp_path / "model"


def refuse(path, *words):
    """Loading must fail with one line that has all these words in it."""
    with pytest.raises(ValueError) as error:
        model_folder.load(path, "cpu")
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


def edit(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_a_folder_gives_back_the_pipeline(folder, pipe):
    """With weights rounded to float16, everything else as it was."""
    loaded = model_folder.load(folder, pipe.device, threads=1)
    assert loaded.config == pipe.config and loaded.tokenizer.merges == pipe.tokenizer.merges
    rounded = tiny.text_to_image()
    for name in NETWORKS:
        network = getattr(rounded, name)
        halves = {k: a.astype(np.float16) for k, a in network.state_dict().items()}
        network.load_state_dict(halves)
        assert not getattr(loaded, name).training
        assert checkpoint.load(folder / f"{name}.safetensors")[0].keys() == halves.keys()
        for array in checkpoint.load(folder / f"{name}.safetensors")[0].values():
            assert array.dtype == np.float16
    latents = loaded.sample(PROMPTS)
    assert latents.dtype == np.float32
    np.testing.assert_array_equal(latents, rounded.sample(PROMPTS))
    assert same(loaded(PROMPTS), rounded(PROMPTS))
    assert not (latents == pipe.sample(PROMPTS)).all()  # rounding can be seen: weights matter


@pytest.mark.parametrize("shipped", [model_folder.SHIPPED, model_folder.SHIPPED / "pixel"])
def test_what_is_read_is_written_again_byte_for_byte(shipped, tmp_path):
    model_folder.write_config(tmp_path, model_folder.read_config(shipped))
    Tokenizer.load(shipped / "tokenizer.json").save(tmp_path / "tokenizer.json")
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()


def test_a_run_folder_holds_its_model(folder):
    assert model_folder.find_model(folder.parent) == folder
    assert model_folder.find_model(str(folder)) == folder


def test_no_folder_or_no_model(tmp_path):
    refuse(tmp_path / "nowhere", tmp_path / "nowhere", "does not exist")
    refuse(tmp_path, tmp_path, "no config.json")
    (tmp_path / "file").write_text("")
    refuse(tmp_path / "file", tmp_path / "file")


def test_an_interrupted_export_leaves_no_model(folder, pipe, monkeypatch):
    """config.json goes first and comes last: new weights never stand under an old one."""

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(Tokenizer, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        model_folder.save(folder, {"unet": pipe.unet.state_dict()}, {}, pipe.tokenizer, pipe.config)
    refuse(folder, "no config.json")


def test_a_model_cannot_be_saved_below_a_file(tmp_path, pipe):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write the folder .*file"):
        model_folder.save(tmp_path / "file" / "model", {}, {}, pipe.tokenizer, pipe.config)


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_version(folder, version):
    edit(folder, lambda config: config.update(format_version=version))
    refuse(folder, folder / "config.json", f"format version {version!r}", "reads 1")


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '"unet"'])
def test_a_damaged_config(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refuse(folder, folder / "config.json")


@pytest.mark.parametrize("name", ["unet.safetensors", "autoencoder.safetensors", "tokenizer.json"])
def test_missing_truncated_and_altered_files(folder, name):
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    refuse(folder, path)
    path.write_bytes(content[: len(content) * 2 // 3])
    refuse(folder, path)
    path.write_bytes(b"")
    refuse(folder, path)


def test_one_altered_byte(folder):
    path = folder / "text_encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    refuse(folder, path, "was altered")


def test_weights_of_another_configuration(folder):
    edit(folder, lambda config: config["unet"].update(layers_per_block=2))
    refuse(folder, folder / "unet.safetensors", "missing")


def test_weights_of_another_network(folder):
    (folder / "unet.safetensors").write_bytes((folder / "autoencoder.safetensors").read_bytes())
    refuse(folder, folder / "unet.safetensors", "unexpected")


@pytest.mark.parametrize(
    "section, changes",
    [
        ("unet", {"colour": 3}),  # a field no one knows
        ("unet", {"block_out_channels": 8}),
        ("unet", {"block_out_channels": [7, 16]}),  # no network has that
        ("unet", {"norm_num_groups": 0}),
        ("autoencoder", {"layers_per_block": 0}),
        ("text_encoder", {"num_attention_heads": 5}),
        ("pipeline", {"sampler": "dim"}),
        ("pipeline", {"latent_scale": float("nan")}),
        ("pipeline", {"latent_scale": "large"}),
        ("pipeline", {"colour": 3}),
    ],
)
def test_a_configuration_that_makes_no_sense(folder, section, changes):
    edit(folder, lambda config: config[section].update(changes))
    refuse(folder, folder / "config.json")


@pytest.mark.parametrize("section", [*NETWORKS, "pipeline"])
def test_a_missing_section(folder, section):
    """Never replaced by defaults: a latent scale of 1 would draw fog."""
    edit(folder, lambda config: config.pop(section))
    refuse(folder, folder / "config.json", "describes no" if section in NETWORKS else "join")


def test_the_tokenizer_of_another_model(folder, pipe):
    Tokenizer(pipe.tokenizer.merges[:-3], tiny.CONTEXT_LENGTH).save(folder / "tokenizer.json")
    vocabulary = pipe.tokenizer.vocab_size
    refuse(folder, folder, f"vocabulary of {vocabulary - 3}", f"text encoder of {vocabulary}")


def test_a_tokenizer_with_another_context_length(folder, pipe):
    """Found at load, not at the first prompt."""
    Tokenizer(pipe.tokenizer.merges, tiny.CONTEXT_LENGTH + 4).save(folder / "tokenizer.json")
    refuse(folder, folder, f"length of {tiny.CONTEXT_LENGTH + 4}", f"of {tiny.CONTEXT_LENGTH}")


def test_an_unknown_device(folder):
    with pytest.raises(ValueError, match="unknown device 'tpu'"):
        model_folder.load(folder, "tpu")
