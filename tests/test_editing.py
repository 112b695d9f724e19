"""Editing on a small pipeline of random networks: it draws nonsense, but keeps all promises."""

import numpy as np
import pytest
from PIL import Image

from ldm_numpy import images
from ldm_numpy.editing import (
    image_to_image,
    inpaint,
    interpolate,
    invert,
    reconstruct,
    slerp,
)

from . import tiny


@pytest.fixture(scope="module")
def pipe():
    return tiny.text_to_image()


@pytest.fixture
def levels(pipe, monkeypatch):
    """The noise levels that the denoiser is asked at."""
    asked, D = [], pipe.denoiser

    def counted(x, sigma, cond=None):
        asked.append(sigma)
        return D(x, sigma, cond)

    monkeypatch.setattr(pipe, "denoiser", counted)
    return asked


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8), "L")


def pixels(pictures) -> np.ndarray:
    return np.stack([np.asarray(p) for p in pictures])


def mask(rows=slice(14, 28), columns=slice(None)) -> Image.Image:
    hole = np.zeros((28, 28), np.uint8)
    hole[rows, columns] = 255
    return Image.fromarray(hole, "L")


PLAIN = {"guidance_scale": 1.0, "sampler": "euler", "num_inference_steps": 10}


# Image to image ----------------------------------------------------------------------------


@pytest.mark.parametrize(("strength", "steps"), [(0, 0), (0.1, 1), (0.3, 3), (0.7, 7), (1, 10)])
def test_strength_is_the_share_of_the_steps(pipe, levels, strength, steps):
    plan = pipe.plan(["seven"], **PLAIN)
    image_to_image(pipe, "seven", picture(0), strength=strength, **PLAIN)
    assert levels == plan.sigmas[10 - steps : 10]


def test_what_strength_does(pipe):
    """0: the autoencoder's picture; a little: near it; 1: far away."""
    encoded = pipe.encode(images.from_pil([picture(1)]))
    (coded,) = images.to_pil(pipe.decode(encoded))

    def draw(strength, **options):
        return pixels(image_to_image(pipe, "seven", picture(1), strength=strength, **options))[0]

    np.testing.assert_array_equal(draw(0), coded)
    options = {"sampler": "euler", "num_inference_steps": 20}
    change = [
        np.abs(draw(s, **options).astype(float) - np.asarray(coded)).mean() for s in (0.2, 1.0)
    ]
    assert 0 < change[0] < change[1]
    assert (draw(0.6, seed=1) != draw(0.6, seed=2)).any()
    np.testing.assert_array_equal(draw(0.6, seed=1), draw(0.6, seed=1))


def test_prompts_pictures_and_their_order(pipe):
    """Each for itself, whatever it is drawn beside: picture i has the noise of place i."""
    both = image_to_image(
        pipe, ["one", "two"], [picture(2), picture(3)], num_images_per_prompt=2, **PLAIN
    )
    assert len(both) == 4 and all(p.size == (28, 28) and p.mode == "L" for p in both)
    ones = image_to_image(pipe, "one", picture(2), num_images_per_prompt=2, **PLAIN)
    assert np.abs(pixels(both[:2]).astype(int) - pixels(ones)).max() <= 1
    assert len(image_to_image(pipe, ["one", "two"], picture(2), **PLAIN)) == 2
    assert len(image_to_image(pipe, "one", [picture(2), picture(3), picture(4)], **PLAIN)) == 3


# Inpainting --------------------------------------------------------------------------------


@pytest.mark.parametrize("hole", [mask(), mask(slice(5, 9), slice(3, 20)), mask().convert("1")])
def test_what_is_given_is_kept_to_the_pixel(pipe, hole):
    given, white = picture(5), np.asarray(hole.convert("L")) == 255
    (drawn,) = inpaint(pipe, "seven", given, hole, resamplings=2, **PLAIN)
    drawn = np.asarray(drawn)
    np.testing.assert_array_equal(drawn[~white], np.asarray(given)[~white])
    assert (drawn[white] != np.asarray(given)[white]).mean() > 0.5


def test_what_the_mask_covers_is_never_looked_at(pipe):
    one, other = np.asarray(picture(6)), np.array(picture(6))
    other[14:] = np.asarray(picture(7))[14:]
    drawn = [
        inpaint(pipe, "seven", Image.fromarray(p, "L"), mask(), resamplings=2, **PLAIN)[0]
        for p in (one, other)
    ]
    np.testing.assert_array_equal(*drawn)


def test_what_is_given_matters(pipe):
    """What is drawn in the hole depends on the other half, on prompt and seed."""
    draw = {
        (p, prompt, seed): pixels(
            inpaint(pipe, prompt, picture(p), mask(), resamplings=2, seed=seed, **PLAIN)
        )[0, 14:]
        for p, prompt, seed in [(6, "a", 0), (8, "a", 0), (6, "bold", 0), (6, "a", 1)]
    }
    first, *others = draw.values()
    assert all((first != other).mean() > 0.05 for other in others)


def test_all_or_nothing(pipe):
    nothing, everything = mask(slice(0)), mask(slice(None))
    (kept,) = inpaint(pipe, "seven", picture(9), nothing, resamplings=1, **PLAIN)
    np.testing.assert_array_equal(kept, picture(9))
    one, other = (
        inpaint(pipe, "seven", picture(p), everything, resamplings=1, **PLAIN)[0] for p in (9, 10)
    )
    np.testing.assert_array_equal(one, other)
    (drawn,) = pipe("seven", **PLAIN)
    assert np.abs(pixels([one]).astype(int) - pixels([drawn])).max() <= 1


def test_each_step_is_taken_as_often_as_asked(pipe, levels):
    seen = []
    inpaint(pipe, "seven", picture(9), mask(), resamplings=3,
            callback=lambda *step: seen.append(step[:2]), **PLAIN)  # fmt: skip
    sigmas = pipe.plan(["seven"], **PLAIN).sigmas
    assert levels == [sigma for sigma in sigmas[:-1] for _ in range(3)]
    assert seen == list(enumerate(sigmas[1:]))


@pytest.mark.host
def test_known_cells_have_no_covered_pixel_beside_them(pipe, monkeypatch):
    """28 pixels lie in the middle of 32, four to a cell: rows 14 ... 27 are cells 4 ... 7, and one
    covered pixel makes a whole cell unknown, and those around it."""
    decoded, decode = [], pipe.decode
    monkeypatch.setattr(pipe, "decode", lambda latents: decoded.append(latents) or decode(latents))
    for hole, unknown in (
        (mask(), (slice(3, 8), slice(None))),
        (mask(slice(5, 6), slice(6, 7)), (slice(0, 3), slice(1, 4))),  # in 32: row 7, column 8
    ):
        paper = np.where(np.asarray(hole) == 255, 0, np.asarray(picture(9))).astype(np.uint8)
        clean = pipe.encode(images.from_pil([Image.fromarray(paper, "L")]))
        inpaint(pipe, "seven", picture(9), hole, resamplings=1, **PLAIN)
        same = (decoded[-1] == clean).all(axis=-1)[0]  # (8, 8)
        assert not same[unknown].any()
        same[unknown] = True
        assert same.all()


# Between two -------------------------------------------------------------------------------


def test_interpolation_ends_where_it_should(pipe):
    frames = interpolate(
        pipe, "a thin 3", "a bold eight", seed=1, other_seed=2, frames=5, **PLAIN
    )
    assert len(frames) == 5
    for end, prompt, seed in ((0, "a thin 3", 1), (-1, "a bold eight", 2)):
        (drawn,) = pipe(prompt, seed=seed, **PLAIN)
        assert np.abs(pixels([frames[end]]).astype(int) - pixels([drawn])).max() <= 1
    steps = np.abs(np.diff(pixels(frames).astype(float), axis=0)).mean(axis=(1, 2))
    ends = np.abs(pixels(frames[-1:]).astype(float) - pixels(frames[:1])).mean()
    assert steps.max() < ends  # no frame is as far from the next as the ends are


def test_interpolation_of_one_of_the_two(pipe):
    texts = pixels(interpolate(pipe, "a thin 3", "a bold eight", frames=3, **PLAIN))
    seeds = pixels(interpolate(pipe, "a thin 3", other_seed=1, frames=3, **PLAIN))
    np.testing.assert_array_equal(texts[0], seeds[0])
    assert (texts[2] != seeds[2]).any()
    still = pixels(interpolate(pipe, "a thin 3", frames=3, sampler="ddpm"))
    np.testing.assert_array_equal(still[0], still[2])  # nothing changes, noise on the way neither


def test_slerp():
    a, b = np.array([[2.0, 0.0]]), np.array([[0.0, 2.0]])
    np.testing.assert_allclose(slerp(a, b, 0.5), [[2**0.5, 2**0.5]])
    np.testing.assert_allclose(slerp(a, b, 1 / 3), [[3**0.5, 1.0]])
    for part, end in ((0.0, a), (1.0, b)):
        np.testing.assert_allclose(slerp(a, b, part), end, atol=1e-12)
    np.testing.assert_allclose(slerp(a, a, 0.3), a)
    noise = np.random.default_rng(0).standard_normal((2, 10_000)).astype(np.float32)
    middle = slerp(*noise, 0.5)
    assert middle.std() == pytest.approx(1, abs=0.03) and middle.dtype == np.float32


@pytest.mark.parametrize("edit", [image_to_image, inpaint])
def test_each_prompt_has_its_own_negative(pipe, edit):
    """One for all, or one a prompt; each picture of a prompt has its prompt's."""
    given = (picture(3), mask()) if edit is inpaint else (picture(3),)
    options = PLAIN | {"num_images_per_prompt": 2, "guidance_scale": 3.0}

    def drawn(negative):
        prompts = ["seven", "a bold 3"]
        return pixels(edit(pipe, prompts, *given, negative_prompt=negative, **options))

    none, eight = drawn(None), drawn("eight")
    assert (none != eight).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(drawn(["eight", "eight"]), eight)
    each = drawn(["eight", ""])
    np.testing.assert_array_equal(each[:2], eight[:2])
    np.testing.assert_array_equal(each[2:], none[2:])


def test_one_prompt_for_several_pictures_has_its_one_negative(pipe):
    given, options = [picture(3), picture(4)], PLAIN | {"guidance_scale": 3.0}
    several = image_to_image(pipe, ["seven"], given, negative_prompt=["eight"], **options)
    each = image_to_image(pipe, "seven", given, negative_prompt="eight", **options)
    np.testing.assert_array_equal(pixels(several), pixels(each))


def test_a_warning_is_given_once(pipe):
    with pytest.warns(UserWarning, match="no noise level of these 5 steps") as said:
        image_to_image(pipe, "7", picture(3), strength=0.5, num_inference_steps=10,
                       guidance_interval=(20, 40), schedule="linear")  # fmt: skip
    assert len(said) == 1
    with pytest.warns(UserWarning, match="no noise level of these 10 steps") as said:
        image_to_image(pipe, "7", picture(3), strength=0.5, num_inference_steps=10,
                       guidance_interval=(50, 60))  # fmt: skip
    assert len(said) == 1


# There and back ----------------------------------------------------------------------------


def test_inversion_and_reconstruction(pipe):
    """Heun's finds back much better than Euler's (DDIM's) in as many steps, and both improve."""
    given, off = [picture(11), picture(12)], {}
    encoded = pipe.encode(images.from_pil(given))
    for method in ("heun", "euler"):
        for steps in (25, 100):
            options = {"num_inference_steps": steps, "method": method}
            noise = invert(pipe, "seven", given, **options)
            assert noise.shape == encoded.shape and noise.std() > 10
            back = reconstruct(pipe, "seven", noise, **options)
            off[method, steps] = float(np.linalg.norm(back - encoded) / np.linalg.norm(encoded))
    assert off["heun", 100] < off["heun", 25] < off["euler", 25]
    assert off["euler", 100] < off["euler", 25]
    other = reconstruct(pipe, "a bold eight", noise, **options)
    assert np.abs(other - back).max() > 0.01


# What is refused ---------------------------------------------------------------------------

ONE, LATENT = picture(0), np.zeros((1, 8, 8, 4), np.float32)
WRONG = [
    (image_to_image, (ONE,), {"strength": 1.5}, "strength must be a finite number in 0 ... 1"),
    (image_to_image, (ONE,), {"strength": -0.1}, "strength must be"),
    (image_to_image, (ONE,), {"strength": float("nan")}, "strength must be"),
    (image_to_image, (ONE,), {"strength": "all"}, "strength must be"),
    (image_to_image, (ONE.convert("RGB"),), {}, 'image has mode "RGB": convert it to "L"'),
    (image_to_image, (ONE.resize((32, 30)),), {}, "image has 32x30 pixels, the model's have 28x28"),
    (image_to_image, ("digit.png",), {}, "image must be a PIL image or a list"),
    (image_to_image, ([],), {}, "image must be a PIL image or a list"),
    (image_to_image, ([np.zeros((28, 28))],), {}, "image must be a PIL image, not ndarray"),
    (image_to_image, ([ONE] * 3,), {"prompt": ["1", "2"]}, "3 pictures for 2 prompts"),
    (image_to_image, (ONE,), {"sampler": "magic"}, "unknown sampler 'magic': use one of euler"),
    (image_to_image, (ONE,), {"schedule": "x"}, "unknown schedule 'x': use one of karras"),
    (inpaint, (ONE, mask().resize((14, 14))), {}, "mask_image has 14x14 pixels"),
    (inpaint, (ONE, mask().convert("RGBA")), {}, 'mask_image has mode "RGBA"'),
    (inpaint, (ONE, picture(1)), {}, "mask_image must be black .* no grey"),
    (inpaint, (ONE, None), {}, "mask_image must be a PIL image, not NoneType"),
    (inpaint, (ONE, mask()), {"resamplings": 0}, "resamplings must be a whole number >= 1"),
    (interpolate, (), {"frames": 1}, r"frames must be a whole number in 2 \.\.\. 10,000, not 1"),
    (interpolate, (), {"other_seed": -1}, "other_seed must be a whole number >= 0"),
    (interpolate, (), {"prompt": 7}, "prompt must be one text, not 7"),
    (interpolate, (), {"prompt": ["1", "2"]}, "prompt must be one text, not"),
    (interpolate, (), {"other_prompt": ["1"]}, "other_prompt must be one text, not"),
    (image_to_image, (ONE,), {"negative_prompt": ["1", "2"]}, "2 negative prompts for 1 prompts"),
    (image_to_image, (ONE,), {"strength": 10**400}, "strength must be a finite number"),
    (image_to_image, (np.zeros((28, 28)),), {}, "image must be a PIL .* not ndarray"),
    (image_to_image, (ONE,), {"num_images_per_prompt": 10**9}, r"in 1 \.\.\. 100,000, not 10{9}"),
    (interpolate, (), {"frames": 10**9}, "frames must be a whole number"),
    (reconstruct, (LATENT.astype(complex),), {}, "latents must be an array"),
    (reconstruct, (LATENT.astype(str),), {}, "latents must be an array"),
    (invert, (ONE,), {"method": "dpmpp_2m"}, "unknown method 'dpmpp_2m': use one of heun, euler"),
    (invert, (ONE,), {"num_inference_steps": 1}, "num_inference_steps must be a whole number >= 2"),
    (reconstruct, (LATENT,), {"num_inference_steps": 1}, "num_inference_steps must be"),
    (reconstruct, (LATENT,), {"method": "ddpm"}, "unknown method 'ddpm': use one of heun, euler"),
    (reconstruct, (LATENT * np.float32("nan"),), {}, "latents must be an array .* of finite"),
    (reconstruct, (LATENT[:, :4],), {}, r"latents must be an array \(1, 8, 8, 4\)"),
    (reconstruct, (LATENT[:0],), {}, "latents must be an array"),
    (reconstruct, (ONE,), {}, "latents must be an array .* not Image"),
    (reconstruct, (LATENT,), {"prompt": ["1", "2"]}, "2 prompts for the latents of 1 pictures"),
]


@pytest.mark.parametrize(("edit", "arguments", "options", "message"), WRONG)
def test_bad_input(pipe, edit, arguments, options, message):
    options = {"prompt": "7"} | options
    with pytest.raises(ValueError, match=message) as error:
        edit(pipe, options.pop("prompt"), *arguments, **options)
    assert "\n" not in str(error.value)
