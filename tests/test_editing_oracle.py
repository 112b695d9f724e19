"""Editing in a model whose every distribution is known: pixels that are white Gaussian data.

The autoencoder is none, and the denoiser that of N(M, S^2) for every pixel by itself, so what an
edit should come to can be written down.
"""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from ldm_numpy import images
from ldm_numpy.diffusion.guidance import EVERYWHERE
from ldm_numpy.editing import (
    classifier_guided,
    image_to_image,
    inpaint,
    interpolate,
    invert,
    reconstruct,
)
from ldm_numpy.models.autoencoder import PixelSpace, PixelSpaceConfig
from ldm_numpy.models.classifier import NoisyClassifier
from ldm_numpy.tensor import Tensor

from . import tiny

M, S = 0.1, 0.3
FINE = {"guidance_scale": 1.0, "sampler": "heun", "num_inference_steps": 100}


@pytest.fixture
def pipe():
    """Latents are the pixels, 28 x 28 x 1; `pipe.asked` are the arguments D was called with."""
    pipe = tiny.pixel_model()
    pipe.autoencoder = PixelSpace(PixelSpaceConfig(patch_size=1))
    pipe.config = dataclasses.replace(pipe.config, latent_size=28, latent_scale=1.0)
    pipe.unet.config = dataclasses.replace(pipe.unet.config, in_channels=1)
    pipe.asked = []

    def D(x, sigma, cond=None):
        pipe.asked.append((x, sigma, cond))
        return x + (M - x) * np.float32(sigma**2 / (S**2 + sigma**2))

    pipe.denoiser = D
    return pipe


def flow(x, sigma, sigma_next):
    """The ODE solved: distances from the mean shrink as the spread does."""
    return M + (x - M) * np.sqrt((S**2 + sigma_next**2) / (S**2 + sigma**2))


def grey(value: int) -> Image.Image:
    return Image.new("L", (28, 28), value)


def pixels(pictures) -> np.ndarray:
    return images.from_pil(pictures)


@pytest.mark.parametrize("strength", [0.4, 0.7])
def test_an_edited_picture_keeps_its_share_of_what_it_was(pipe, strength):
    """Noised to sigma and restored, a pixel a is M + (a - M + sigma n) S / sqrt(S^2 + sigma^2),
    whatever the level is: its mean keeps a share of a, and its spread is that of the noise."""
    given = [grey(80), grey(150)] * 30
    plan = pipe.plan([""] * 60, **FINE)
    sigma = plan.sigmas[100 - int(100 * strength)]
    drawn = pixels(image_to_image(pipe, "", given, strength=strength, **FINE))
    clean = pixels(given)
    wanted = flow(clean + sigma * plan.noise(), sigma, 0.0)
    assert np.abs(drawn - wanted.clip(-1, 1)).max() < 0.03
    share = S / np.sqrt(S**2 + sigma**2)
    apart = drawn[1::2].mean() - drawn[::2].mean()
    assert apart == pytest.approx(share * (clean[1] - clean[0]).mean(), abs=0.01)


def test_edits_are_guided_more_unless_told(pipe, monkeypatch):
    asked, plan = [], pipe.plan

    def spy(prompts, **options):
        asked.append(options["guidance_scale"])
        return plan(prompts, **options)

    monkeypatch.setattr(pipe, "plan", spy)
    image_to_image(pipe, "3", grey(9))
    image_to_image(pipe, "3", grey(9), guidance_scale=2.0)
    assert asked == [5.0, 2.0]


@pytest.mark.parametrize(("steps", "least"), [(3, "0.333333"), (1, "1")])
def test_a_strength_without_a_step_is_refused(pipe, steps, least):
    with pytest.raises(ValueError, match=f"leaves none to take: at least {least}"):
        image_to_image(pipe, "3", grey(9), strength=0.3, num_inference_steps=steps)


@pytest.mark.parametrize(
    ("steps", "strength", "taken"), [(10, 0.3, 3), (100, 0.29, 29), (7, 0.5, 3)]
)
def test_strength_is_rounded_down_but_not_by_accident(pipe, steps, strength, taken):
    """0.29 * 100 is 28.999... in floating point."""
    image_to_image(pipe, "3", grey(9), strength=strength, num_inference_steps=steps,
                   sampler="euler", guidance_scale=1.0)  # fmt: skip
    assert len(pipe.asked) == taken


def test_an_edit_below_the_guided_levels_says_so(pipe):
    options = {"guidance_interval": (0.3, 5.0), "guidance_scale": 3.0, "num_inference_steps": 20}
    with pytest.warns(UserWarning, match="guidance has no effect"):
        image_to_image(pipe, "3", grey(9), strength=0.2, **options)
    image_to_image(pipe, "3", grey(9), strength=0.8, **options)


# Inpainting --------------------------------------------------------------------------------

HOLE = np.zeros((28, 28), np.uint8)
HOLE[14:] = 255
UNTOUCHED = slice(0, 13)  # rows; row 13 lies beside the hole


def test_the_known_part_is_the_picture_with_fresh_noise_of_each_level(pipe):
    """x = a + sigma n in the known rows, whenever D is asked; n is another in every turn."""
    given = [grey(128)] * 40
    inpaint(pipe, "", given, Image.fromarray(HOLE), resamplings=3, **FINE | {"sampler": "euler"})
    noises = [(x[:, UNTOUCHED] - pixels(given)[:, UNTOUCHED]) / s for x, s, _ in pipe.asked]
    assert len(noises) == 300
    assert all(n.std() == pytest.approx(1, abs=0.03) and abs(n.mean()) < 0.03 for n in noises)
    flat = np.stack([n.ravel() for n in noises[:: len(noises) // 30]] + [noises[1].ravel()])
    correlation = np.corrcoef(flat) - np.eye(len(flat))
    assert np.abs(correlation).max() < 0.05


@pytest.mark.parametrize("resamplings", [1, 4])
def test_what_is_drawn_has_the_spread_of_its_level_at_every_turn(pipe, resamplings):
    """Noised back up it must be as after the step before: the data's variance plus sigma^2."""
    given = [grey(128)] * 40
    options = FINE | {"sampler": "ddpm", "resamplings": resamplings}
    drawn = inpaint(pipe, "", given, Image.fromarray(HOLE), **options)
    for x, sigma, _ in pipe.asked:
        wanted = np.sqrt((S**2 if sigma < 20 else 0) + sigma**2)
        assert x[:, 14:].std() == pytest.approx(wanted, rel=0.06)  # 100 steps are finite
    found = pixels(drawn)[:, 14:]
    assert found.mean() == pytest.approx(M, abs=0.01) and found.std() == pytest.approx(S, rel=0.06)


def test_turns_are_not_taken_for_nothing(pipe):
    """The second turn starts from what the first has drawn, with noise of its own, not from what
    the first started from."""
    inpaint(pipe, "", [grey(128)] * 10, Image.fromarray(HOLE), resamplings=2,
            **FINE | {"sampler": "euler"})  # fmt: skip
    for (first, sigma, _), (second, same, _) in list(zip(pipe.asked, pipe.asked[1:]))[::20]:
        assert sigma == same and not np.array_equal(first[:, 14:], second[:, 14:])
        noise = (second[:, 14:] - first[:, 14:]) / sigma
        assert noise.std() > 0.2  # RePaint's jump back


def test_five_resamplings_by_default(pipe):
    inpaint(pipe, "", grey(128), Image.fromarray(HOLE), num_inference_steps=4, sampler="euler",
            guidance_scale=1.0)  # fmt: skip
    assert len(pipe.asked) == 4 * 5


# Between two -------------------------------------------------------------------------------


def test_frames_start_on_the_arc_and_texts_lie_on_the_line(pipe):
    interpolate(pipe, "a thin 3", "a bold eight", seed=1, other_seed=2, frames=5,
                num_inference_steps=2, sampler="euler", guidance_scale=1.0)  # fmt: skip
    starts = [(x / sigma, cond) for x, sigma, cond in pipe.asked[::2]]
    # In the middle of a line they would have 0.7.
    assert all(n.std() == pytest.approx(1, abs=0.06) for n, _ in starts)
    ends = pipe.encode_prompts(["a thin 3", "a bold eight"])
    for (_, cond), part in zip(starts, (0, 0.25, 0.5, 0.75, 1)):
        np.testing.assert_allclose(cond[0], (1 - part) * ends[0] + part * ends[1], atol=1e-6)
    x, y = (starts[i][0] for i in (0, -1))
    middle = (x + y) / np.linalg.norm(x + y) * 28
    np.testing.assert_allclose(starts[2][0], middle, rtol=0.1, atol=0.1)


def test_the_ends_are_the_pictures_of_the_prompts_with_guidance():
    pipe = tiny.text_to_image()
    options = {"guidance_scale": 3.0, "guidance_interval": EVERYWHERE, "num_inference_steps": 4}
    frames = interpolate(pipe, "a thin 3", "a bold eight", frames=3, negative_prompt="7", **options)
    for frame, prompt in ((frames[0], "a thin 3"), (frames[-1], "a bold eight")):
        (alone,) = pipe(prompt, negative_prompt="7", **options)
        assert np.abs(np.asarray(frame, int) - np.asarray(alone, int)).max() <= 1


# There and back ----------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "calls"), [("euler", 39), ("heun", 78)])
def test_inversion_follows_the_ode_between_the_same_levels(pipe, method, calls):
    """Up from the least level to the highest, and down the same way."""
    given = [grey(60), grey(200)]
    options = {"num_inference_steps": 40, "method": method}
    noise = invert(pipe, "", given, **options)
    assert len(pipe.asked) == calls
    levels = pipe.plan([""], num_inference_steps=40).sigmas
    asked = [sigma for _, sigma, _ in pipe.asked]
    assert (min(asked), asked[0]) == (levels[-2], levels[-2]) and max(asked) <= levels[0]
    wanted = flow(pixels(given), levels[-2], levels[0])
    tolerance = 0.02 if method == "heun" else 0.5
    np.testing.assert_allclose(noise, wanted, rtol=tolerance)
    pipe.asked.clear()
    back = reconstruct(pipe, "", noise, **options)
    asked = [sigma for _, sigma, _ in pipe.asked]
    assert asked[0] == levels[0] and len(asked) == calls
    np.testing.assert_allclose(back, flow(noise, levels[0], levels[-2]), atol=tolerance)


def test_as_many_prompts_as_latents(pipe):
    with pytest.raises(ValueError, match="3 prompts for the latents of 2 pictures"):
        reconstruct(pipe, ["1", "2", "3"], np.zeros((2, 28, 28, 1), np.float32))


# A classifier ------------------------------------------------------------------------------


def test_a_classifier_acts_in_its_interval_on_a_model_without_guidance(pipe):
    asked = []

    class Sees:
        config = tiny.NOISY

        def log_probability(self, x, sigma, classes):
            asked.append(float(sigma))
            return (x * 0).reshape(len(classes), -1).sum(axis=1)

    levels = pipe.plan(["", ""], num_inference_steps=20).sigmas
    classifier_guided(pipe, Sees(), [1, 2], sampler="euler", num_inference_steps=20,
                      guidance_interval=(0.5, 4.0))  # fmt: skip
    assert asked == [sigma for sigma in levels if 0.5 < sigma <= 4.0]
    assert pipe.asked[0][0].std() == pytest.approx(levels[0], rel=0.1)
    assert all(len(x) == 2 for x, _, _ in pipe.asked)  # guidance would take twice the rows
    with pytest.raises(ValueError, match="classifier_scale must be a finite number"):
        classifier_guided(pipe, Sees(), [1], classifier_scale="2")
    with pytest.raises(ValueError, match="classifier_scale, not guidance_scale"):
        classifier_guided(pipe, Sees(), [1], guidance_scale=2.0)
    wrong = [[[1], [2, 3]], [], 3, [1.5], [-1], [99], None, [True, False], np.array(3)]
    for classes in wrong:
        with pytest.raises(ValueError, match=r"classes must be a list of whole numbers 0 \.\.\."):
            classifier_guided(pipe, Sees(), classes)


def test_the_classifier_sees_scaled_noise_and_its_level(rng):
    classifier = tiny.randomise(NoisyClassifier(tiny.NOISY))
    x, sigma = rng.standard_normal((3, 8, 8, 4)), np.array([0.1, 1.0, 7.0])
    seen = np.empty((3, 8, 8, 5))
    seen[..., :4] = x / np.sqrt(1 + sigma**2)[:, None, None, None]
    seen[..., 4] = np.log(sigma)[:, None, None] / 4
    wanted = super(NoisyClassifier, classifier).forward(Tensor(seen)).data
    np.testing.assert_allclose(classifier(x, sigma).data, wanted, atol=1e-12)


def test_log_probabilities_of_large_logits(rng):
    classifier = tiny.randomise(NoisyClassifier(tiny.NOISY)).astype(np.float32)
    classifier.head.weight.data *= 1e4
    x = rng.standard_normal((4, 8, 8, 4)).astype(np.float32)
    found = classifier.log_probability(Tensor(x), 0.5, np.array([0, 1, 2, 3])).data
    assert np.isfinite(found).all() and found.min() < -100


