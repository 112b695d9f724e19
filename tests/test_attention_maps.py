"""Attention maps by word, on a small pipeline and on maps known in advance."""

import numpy as np
import pytest

from ldm_numpy import images
from ldm_numpy.attention_maps import (
    attention,
    enlarged,
    figure,
    layer_maps,
    overlap,
    word_maps,
)
from ldm_numpy.backend import generator

from . import tiny

PROMPTS = ["a bold seven leaning left", "3"]


@pytest.fixture(scope="module")
def pipe():
    return tiny.text_to_image()


def test_words_are_found_among_the_tokens():
    tokenizer = tiny.tokenizer()
    text = "A bold seventeen!"
    ids = tokenizer([text])[0]
    found = tokenizer.words(text)
    assert [word for word, _ in found] == ["a", "bold", "seventeen", "!"]
    assert [tokenizer.decode(ids[span]) for _, span in found] == ["a", "bold", "seventeen", "!"]
    assert found[2][1].stop - found[2][1].start > 1  # no caption has it, so it is several tokens
    assert found[-1][1].stop == list(ids).index(tokenizer.end_token)
    assert tokenizer.words("") == []


def test_words_beyond_the_context_are_left_out():
    tokenizer = tiny.tokenizer()  # 12 tokens: start, ten words, end
    assert [word for word, _ in tokenizer.words("a " * 9 + "b c d")] == ["a"] * 9 + ["b"]


def test_maps_are_shares_of_attention(pipe):
    """Over all tokens they sum to 1 everywhere, at every level, however often enlarged."""
    plan = pipe.plan(PROMPTS)
    maps = attention(pipe, plan.noise(), 1.0, plan.cond)
    assert maps.shape == (2, tiny.CONTEXT_LENGTH, 28, 28)
    np.testing.assert_allclose(maps.sum(axis=1), 1, atol=0.02)  # what is negative was clipped
    assert maps.std(axis=(2, 3)).max() > 1e-4


def test_pictures_are_those_of_the_pipeline_and_maps_are_means_over_the_levels(pipe):
    levels = []
    options = {"seed": 3, "num_inference_steps": 3, "sampler": "euler"}
    drawn, words, maps = word_maps(
        pipe, PROMPTS, callback=lambda step, sigma, x: levels.append((sigma, x)), **options
    )
    assert np.array_equal(images.from_pil(pipe(PROMPTS, **options)), rounded(drawn))
    assert words == [["a", "bold", "seven", "leaning", "left"], ["3"]]
    assert [m.shape for m in maps] == [(5, 28, 28), (1, 28, 28)]
    plan = pipe.plan(PROMPTS, **options)
    visited = [(plan.sigmas[0], plan.noise() * plan.sigmas[0]), *levels[:-1]]
    assert levels[-1][0] == 0
    wanted = np.mean([attention(pipe, x, sigma, plan.cond) for sigma, x in visited], axis=0)
    np.testing.assert_allclose(maps[0], wanted[0, 1:6], atol=1e-6)
    np.testing.assert_allclose(maps[1], wanted[1, 1:2], atol=1e-6)


def rounded(pixels):
    return images.from_pil(images.to_pil(pixels))


def test_maps_of_every_layer(pipe):
    """Shares that add up to 1 over the tokens, at every pixel that a layer has."""
    plan = pipe.plan(["seven", "a bold 3"])
    layers = layer_maps(pipe, plan.noise(), 1.0, plan.cond)
    assert len(layers) > 1 and all(name.endswith("attn2") for name in layers)
    sides = {name: maps.shape[1] for name, maps in layers.items()}
    assert set(sides.values()) == {64, 16}
    for maps in layers.values():
        assert maps.shape[::2] == (2, tiny.CONTEXT_LENGTH)
        np.testing.assert_allclose(maps.sum(axis=2), 1, atol=1e-5)


def test_a_word_of_several_tokens_has_their_sum(pipe):
    _, words, maps = word_maps(pipe, "seventeen", sampler="euler")
    assert words == [["seventeen"]]
    plan = pipe.plan(["seventeen"], sampler="euler")
    tokens = pipe.tokenizer.words("seventeen")[0][1]
    (first, second) = plan.sigmas[:-1]
    x = plan.noise() * first
    by_token = attention(pipe, x, first, plan.cond)
    x = plan.run(x, [first, second])
    by_token = by_token + attention(pipe, x, second, plan.cond)
    np.testing.assert_allclose(maps[0][0], by_token[0, tokens].sum(axis=0) / 2, atol=1e-6)


def test_maps_are_the_same_in_any_shards(pipe, monkeypatch):
    prompts = [f"a bold {digit}" for digit in range(6)]
    _, _, whole = word_maps(pipe, prompts)
    monkeypatch.setattr(pipe.shards, "slices", lambda n: [slice(0, 2), slice(2, n)])
    _, _, cut = word_maps(pipe, prompts)
    for a, b in zip(whole, cut):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_every_layer_and_head_counts_as_much(pipe, monkeypatch):
    """Three layers of two heads, each with all attention on one token or evenly on all."""
    def unet(x, timestep, cond, recorder):
        n, tokens = len(x), tiny.CONTEXT_LENGTH
        for path, side, token in (("down_blocks.0.attn2", 8, 0), ("mid_block.attn2", 4, 1),
                                  ("up_blocks.1.attn2", 8, 1), ("down_blocks.0.attn1", 8, 2)):
            weights = np.zeros((n, 2, side * side, tokens), np.float32)
            weights[:, 0, :, token] = 1
            weights[:, 1] = 1 / tokens
            recorder(path, weights)
        return x

    monkeypatch.setattr(pipe, "unet", unet)
    plan_cond = np.zeros((2, tiny.CONTEXT_LENGTH, 16), np.float32)
    maps = attention(pipe, np.zeros((2, 8, 8, 4), np.float32), 1.0, plan_cond)
    evenly = 0.5 / tiny.CONTEXT_LENGTH
    for token, share in ((0, 1 / 6), (1, 2 / 6), (2, 0.0), (3, 0.0)):
        np.testing.assert_allclose(maps[:, token], share + evenly, atol=1e-5)


def test_what_is_enlarged_is_not_negative(pipe):
    weights = np.zeros((1, 64, 1), np.float32)
    weights[0, 20] = 1
    assert enlarged(pipe, weights, 8).min() == 0  # bicubic waves go below


def test_maps_are_enlarged_in_place(pipe):
    """The upper right of 4 x 4 cells comes out in the upper right of the picture, less its edge."""
    weights = np.zeros((1, 16, 2), np.float32)
    weights[0, 3, 1] = 1
    maps = enlarged(pipe, weights, 4)
    assert maps.shape == (1, 2, 28, 28) and not maps[0, 0].any()
    top, left = np.unravel_index(maps[0, 1].argmax(), (28, 28))
    assert top <= 2 and left >= 25


def test_overlap_by_hand():
    heat = np.zeros((2, 4, 4))
    heat[0, :2], heat[0, 2] = 1, 0.3
    heat[1, 0, 0] = 2
    heat += 5  # what all pixels share does not count
    ink = np.zeros((2, 4, 4), bool)
    ink[:, :, :2] = True
    assert overlap(heat, ink) == pytest.approx([4 / 12, 1 / 8])
    assert overlap(heat, ink, threshold=0.2)[0] == pytest.approx(6 / 14)
    heat[0, 2] = 5.45
    assert overlap(heat, ink)[0] == pytest.approx(6 / 14)  # 0.4 by default


def test_figure_has_a_row_a_prompt(pipe):
    drawn, words, maps = word_maps(pipe, PROMPTS)
    picture = figure(drawn, words, maps)
    assert picture.mode == "RGB"
    assert picture.width > 6 * 28 * 4 and picture.height > 2 * 28 * 4
    colours = np.asarray(picture).astype(int)
    assert (colours[..., 0] > colours[..., 2]).any()  # heat is red first
    assert (colours[114:126, 114:] == 255).any()  # the words
    # From a map's least value, so that one with a share everywhere is not all aglow.
    shares = [np.full((1, 28, 28), 0.3)]
    shares[0][0, 5, 5] = 0.5
    cell = np.asarray(figure(np.full((1, 28, 28, 1), -1.0), [["a"]], shares))[2:114, 116:228]
    assert (cell[4 * 20 :] == 0).all() and cell[4 * 5, 4 * 5].max() > 100


def test_heat_over_a_picture():
    image = generator(0).uniform(-1, 1, (28, 28, 1)).astype(np.float32)
    cold = images.heated(image, np.zeros((28, 28)))
    np.testing.assert_allclose(cold, np.repeat(0.4 * (image + 1) - 1, 3, axis=-1), atol=1e-6)
    red = images.heated(-np.ones((1, 1, 1)), np.full((1, 1), 1 / 3))
    np.testing.assert_allclose(red[0, 0], [0.2, -1, -1], atol=1e-6)
    hot = images.heated(image, np.full((28, 28), 0.5))
    assert (hot[..., 0] > hot[..., 1]).all() and (hot[..., 1] > hot[..., 2]).all()
    assert images.heated(np.ones((1, 1, 1)), np.ones((1, 1))).max() == pytest.approx(1)
