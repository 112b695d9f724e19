from collections import Counter

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from ldm_numpy.data import captions, mnist


@pytest.fixture(scope="module")
def test_set():
    images, labels = mnist.load("test")
    return images, labels, *captions.attributes(images)


def stroke(width: float, lean: float = 0.0, side: int = 28) -> np.ndarray:
    """A straight stroke down the page, (1, side, side) uint8; lean is columns right a row up."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    inside = (np.abs(x + lean * y) <= width / 2) & (np.abs(y) <= side / 3)
    return np.where(inside, 255, 0).astype(np.uint8)[None]


def test_slant_of_a_sheared_stroke():
    assert captions.slant(stroke(4))[0] == pytest.approx(0, abs=1e-12)
    for lean in (-0.5, -0.25, 0.25, 0.5):
        assert captions.slant(stroke(4, lean))[0] == pytest.approx(lean, abs=0.03)


def test_slant_is_the_regression_slope():
    images = mnist.load("test")[0][:20]
    for image, measured in zip(images, captions.slant(images)):
        y, x = np.mgrid[:28, :28]
        covariance = np.cov(x.ravel(), y.ravel(), aweights=image.ravel() / 255, ddof=0)
        assert measured == pytest.approx(-covariance[0, 1] / covariance[1, 1], abs=1e-10)


def test_slant_ignores_place_and_brightness():
    image = stroke(3, 0.3)
    moved = np.roll(image, (2, -3), axis=(1, 2))
    assert captions.slant(moved) == pytest.approx(captions.slant(image), abs=1e-12)
    assert captions.slant(image // 3) == pytest.approx(captions.slant(image), abs=1e-12)
    assert captions.slant(image[:, :, ::-1]) == pytest.approx(-captions.slant(image), abs=1e-12)


def test_stroke_width_is_the_definition():
    images = mnist.load("test")[0][:200]
    for image, measured in zip(images, captions.stroke_width(images)):
        ink = np.pad(image / 255 > 0.5, 1)
        assert measured == 4 * distance_transform_edt(ink)[ink].mean()


def test_stroke_width_grows_with_the_stroke():
    widths = [captions.stroke_width(stroke(w))[0] for w in (2, 4, 6, 8)]
    assert np.all(np.diff(widths) > 0.5)
    # Rows deep inside a band of w pixels: distances 1 .. w/2 .. 1, mean (w/2 + 1) / 2.
    band = np.zeros((1, 28, 200), np.uint8)
    band[:, 10:16] = 255
    assert captions.stroke_width(band)[0] == pytest.approx(4 * 2, abs=0.2)


def test_blank_and_full_pages_are_measured():
    pages = np.stack([np.zeros((28, 28)), np.full((28, 28), 255)]).astype(np.uint8)
    row = np.zeros((1, 28, 28), np.uint8)
    row[:, 5] = 255
    pages = np.concatenate([pages, row])
    np.testing.assert_array_equal(captions.slant(pages), 0)
    widths = captions.stroke_width(pages)
    assert widths[0] == 0 and widths[1] > 10 and widths[2] == 4
    weights, slants = captions.attributes(pages)
    assert weights.tolist() == [0, 2, 0] and slants.tolist() == [1, 1, 1]
    assert captions.stroke_width(pages[:0]).shape == captions.slant(pages[:0]).shape == (0,)


def test_floats_measure_as_bytes_do(test_set):
    images = test_set[0][:500]
    floats = mnist.to_float(images)
    np.testing.assert_allclose(captions.slant(floats), captions.slant(images), atol=1e-5)
    np.testing.assert_array_equal(captions.stroke_width(floats), captions.stroke_width(images))
    beyond = np.where(floats > 0.5, floats * 1.5, floats)  # a network's output may overshoot
    clipped = np.clip(beyond, -1, 1)
    np.testing.assert_allclose(captions.slant(beyond), captions.slant(clipped), atol=1e-12)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((28, 28), np.uint8), r"must be \(N, H, W\)"),
        (np.zeros((2, 28, 28, 3), np.float32), r"must be \(N, H, W\)"),
        (np.zeros((2, 28, 28), np.int64), "must be uint8 or floats"),
        (np.full((2, 28, 28), np.nan), "NaN"),
    ],
)
def test_images_that_cannot_be_measured(images, message):
    for measure in (captions.slant, captions.stroke_width):
        with pytest.raises(ValueError, match=message):
            measure(images)


def test_thirds_are_those_of_the_training_set():
    """Of every fifth image (not of every fourth: the even ones are thinner than the odd)."""
    weights, slants = captions.attributes(mnist.load("train")[0][::5])
    for classes in (weights, slants):
        np.testing.assert_allclose(np.bincount(classes) / 12_000, 1 / 3, atol=0.01)


def test_attributes_are_thirds_of_the_measures(test_set):
    images, _, weights, slants = test_set
    low, high = captions.WEIGHT_THIRDS
    widths = captions.stroke_width(images[:300])
    np.testing.assert_array_equal(weights[:300], (widths >= low) * 1 + (widths >= high))
    low, high = captions.SLANT_THIRDS
    leans = captions.slant(images[:300])
    np.testing.assert_array_equal(slants[:300], (leans >= low) * 1 + (leans >= high))


def test_held_out_combinations_are_balanced():
    held_out = captions.HELD_OUT
    assert len(set(held_out)) == 9
    assert len({digit for digit, _, _ in held_out}) == 9  # no digit twice
    assert len({(weight, slant) for _, weight, slant in held_out}) == 9  # every pair once
    assert all(len({combo[0] for combo in held_out if combo[k] == v}) == 3
               for k in (1, 2) for v in range(3))  # fmt: skip
    remaining = set(captions.full_prompts()) - set(held_out)
    for digit in range(10):  # every digit still meets every weight and every slant
        assert {w for d, w, _ in remaining if d == digit} == {0, 1, 2}
        assert {s for d, _, s in remaining if d == digit} == {0, 1, 2}


def test_held_out_combinations_are_common_in_the_test_set(test_set):
    _, labels, weights, slants = test_set
    counts = Counter(zip(labels.tolist(), weights.tolist(), slants.tolist()))
    assert [counts[combo] for combo in captions.HELD_OUT] == [
        128, 151, 143, 151, 126, 159, 69, 136, 149,
    ]  # fmt: skip


def test_allowed_excludes_exactly_the_held_out(test_set):
    _, labels, weights, slants = test_set
    mask = captions.allowed(labels, weights, slants)
    expected = [
        combo not in captions.HELD_OUT
        for combo in zip(labels.tolist(), weights.tolist(), slants.tolist())
    ]
    assert mask.dtype == bool and mask.tolist() == expected
    assert (~mask).sum() == 1212


@pytest.mark.parametrize(
    "arguments, options, text",
    [
        ((7, 2, 0), {}, "a bold seven leaning left"),
        ((7, 1, 1), {"numeral": True}, "a medium 7 upright"),
        ((8, 0, 2), {}, "a thin eight leaning right"),
        ((3, 0, None), {"numeral": True}, "a thin 3"),
        ((7, None, None), {"article": False}, "seven"),
        ((7,), {}, "a seven"),
        ((8,), {}, "an eight"),
        ((8,), {"numeral": True}, "an 8"),
        ((1,), {}, "a one"),
        ((8, None, 1), {"upright_first": True}, "an upright eight"),
        ((3, None, 1), {"upright_first": True}, "an upright three"),
        ((8, None, 1), {}, "an eight upright"),
        ((8, 2, 1), {"upright_first": True}, "a bold upright eight"),
        ((8, None, 0), {"upright_first": True}, "an eight leaning left"),
        ((0, 2, 2), {"numeral": True, "article": False}, "bold 0 leaning right"),
    ],
)
def test_caption(arguments, options, text):
    assert captions.caption(*arguments, **options) == text


def test_caption_refuses_what_it_has_no_word_for():
    for arguments, name in [((10,), "digit"), ((-1,), "digit"), ((1, 3), "weight"),
                            ((1, 0, -1), "slant")]:  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} must be 0 to"):
            captions.caption(*arguments)


def test_sampled_captions_say_nothing_false(test_set):
    """A quarter leaves the weight out, as many the slant; half have a numeral, a fifth no article;
    of the upright digits half are so before they are named."""
    _, *attributes = (values[:2000] for values in test_set)
    texts = captions.sample_captions(*attributes, np.random.default_rng(0))
    dropped = np.zeros(3)
    for text, *truth in zip(texts, *attributes):
        said = captions.parse(text)
        dropped += [value is None for value in said]
        assert all(value in (None, true) for value, true in zip(said, truth))
        assert said[0] is not None
    np.testing.assert_allclose(dropped / 2000, [0, 0.25, 0.25], atol=0.03)
    words = Counter(word for text in texts for word in text.split())
    assert set(words) == {
        *captions.DIGITS, *map(str, range(10)), *captions.WEIGHTS,
        "leaning", "left", "right", "upright", "a", "an",
    }  # fmt: skip
    numerals = sum(words[str(digit)] for digit in range(10)) / 2000
    articles = (words["a"] + words["an"]) / 2000
    assert numerals == pytest.approx(0.5, abs=0.03)
    assert articles == pytest.approx(0.8, abs=0.03)
    upright = [text.endswith("upright") for text in texts if "upright" in text]
    assert np.mean(upright) == pytest.approx(0.5, abs=0.09)  # four standard deviations


def test_sampled_captions_are_reproducible_row_by_row():
    digits, weights, slants = np.arange(10), np.arange(10) % 3, np.arange(10) // 4
    draw = lambda d, w, s: captions.sample_captions(d, w, s, np.random.default_rng(5))  # noqa: E731
    texts = draw(digits, weights, slants)
    assert texts == draw(digits, weights, slants)
    assert texts[:4] == draw(digits[:4], weights[:4], slants[:4])
    # Row 9 draws the same numbers whatever the rows before it say.
    assert texts[9] == draw(np.full(10, 9), np.full(10, 0), np.full(10, 2))[9]


def test_attributes_of_other_numbers_of_images_are_refused():
    rng = np.random.default_rng(0)
    for attributes in ([[1, 2], [0], [0, 0]], [[1, 2], [0, 0], [0, 0, 0]]):
        with pytest.raises(ValueError):
            captions.sample_captions(*map(np.array, attributes), rng)


def test_parse_reads_every_caption():
    for digit, weight, slant in captions.full_prompts():
        for numeral in (False, True):
            for first in (False, True):
                text = captions.caption(digit, weight, slant, numeral, upright_first=first)
                assert captions.parse(text) == (digit, weight, slant)
    assert captions.parse("") == (None, None, None)
    assert captions.parse("A BOLD Seven, left-leaning!") == (7, 2, 0)
    assert captions.parse("17 bold cats") == (None, 2, None)  # seventeen is no digit
    assert captions.parse("77") == (None, None, None)  # nor is seventy-seven
    assert captions.parse("a 3 of 28") == (3, None, None)
    assert captions.parse("a seven or an eight, upright, leaning left") == (None, None, None)
    assert captions.parse("7 seven") == (7, None, None)


def test_full_prompts():
    prompts = captions.full_prompts()
    assert len(prompts) == len(set(prompts)) == 90
    assert set(captions.HELD_OUT) < set(prompts)
