"""Which word drew what: maps of cross-attention, one a word of the prompt.

Every cross-attention layer spreads each pixel's attention over the tokens. Seen from a token, that
is a picture: how much each pixel looks at it. Summed over heads, layers and noise levels, and over
the tokens of a word, it shows where the word acts.
Tang et al. 2022, "What the DAAM: Interpreting Stable Diffusion using cross attention", section 3.
"""

import math

import numpy as np
from PIL import Image

from . import images
from .backend import blas_threads, to_host
from .diffusion.denoiser import Denoiser
from .pipeline import TextToImage, texts_of

LAYER = ".attn2"  # how the names of cross-attention layers end


def word_maps(pipe: TextToImage, prompts: str | list[str], *, callback=None, **options):
    """Draw prompts and look inside: (images (N, 28, 28, 1), words, maps).

    words: a list of words for each prompt; maps: an array (words, 28, 28) for each, not negative,
    in units of attention: the mean over heads, layers and noise levels of the share of a pixel's
    attention that the word has. A word beyond the model's context has no map.

    `options` are those of `TextToImage.sample`. At each level that the sampler steps from, the
    U-Net is asked once more, with the prompt alone, and its attention is noted down.
    """
    prompts = texts_of("prompt", prompts)
    plan = pipe.plan(prompts, callback=callback, **options)
    x = plan.noise() * plan.sigmas[0]
    visited = [(plan.sigmas[0], x)]

    def remember(step, sigma, latents):
        if sigma > 0:
            visited.append((sigma, latents))
        if callback is not None:
            callback(step, sigma, latents)

    plan.callback = remember
    drawn = pipe.decode(plan.run(x, plan.sigmas))
    slices = pipe.shards.slices(len(prompts))

    def look(rows):
        return sum(attention(pipe, x[rows], sigma, plan.cond[rows]) for sigma, x in visited)

    with blas_threads(1):
        by_token = np.concatenate(list(pipe.shards.map(look, slices))) / len(visited)
    words, maps = [], []
    for prompt, of_tokens in zip(prompts, by_token):
        spans = pipe.tokenizer.words(prompt)
        words.append([word for word, _ in spans])
        maps.append(np.array([of_tokens[span].sum(axis=0) for _, span in spans]))
    return drawn, words, maps


def layer_maps(pipe: TextToImage, x, sigma: float, cond) -> dict[str, np.ndarray]:
    """How much each pixel looks at each token, at one noise level, in every cross-attention layer:
    the layer's name, and (N, H W, T), the mean over its heads. x (N, h, w, C) at the level sigma,
    as a callback is given it; cond from `TextToImage.encode_prompts`."""
    layers = {}

    def note(path, weights):  # (N, heads, H W, T)
        if path.endswith(LAYER):
            layers[path] = to_host(weights.mean(axis=1))  # (N, H W, T)

    def network(x, timestep, cond):
        return pipe.unet(x, timestep, cond, recorder=note)

    Denoiser(network, pipe.config.sigma_data, pipe.config.objective)(x, sigma, cond)
    return layers


def attention(pipe: TextToImage, x, sigma: float, cond) -> np.ndarray:
    """The mean of `layer_maps` over the layers, brought to the picture's size: (N, T, 28, 28)."""
    layers = layer_maps(pipe, x, sigma, cond)
    by_side: dict[int, np.ndarray] = {}
    for weights in layers.values():
        side = math.isqrt(weights.shape[1])
        by_side[side] = by_side.get(side, 0) + weights
    total = sum(enlarged(pipe, weights, side) for side, weights in by_side.items())
    return total / len(layers)


def enlarged(pipe: TextToImage, weights: np.ndarray, side: int) -> np.ndarray:
    """Maps (N, side side, T) of the network's pixels as pictures (N, T, 28, 28), bicubically."""
    n, _, tokens = weights.shape
    size = (pipe.config.padded_size,) * 2
    maps = weights.transpose(0, 2, 1).reshape(n * tokens, side, side)
    large = [Image.fromarray(m).resize(size, Image.Resampling.BICUBIC) for m in maps]
    padded = np.stack([np.asarray(m) for m in large])[..., None]  # (N T, 32, 32, 1)
    pictures = images.crop_to(padded, pipe.config.image_size)
    return pictures.reshape(n, tokens, *pictures.shape[1:3]).clip(0)


def overlap(heat: np.ndarray, ink: np.ndarray, threshold: float = 0.4) -> np.ndarray:
    """Intersection over union (N,) of ink (N, H, W), true or false, and of where a map (N, H, W)
    exceeds `threshold`, counted from its least value (0) to its largest (1), as the authors of
    Tang et al. 2022 do in their code (in eq. 5, from 0)."""
    least, most = (f(axis=(1, 2), keepdims=True) for f in (heat.min, heat.max))
    hot = heat - least > threshold * (most - least)
    union = (hot | ink).sum(axis=(1, 2))
    return (hot & ink).sum(axis=(1, 2)) / np.maximum(union, 1)


def figure(drawn: np.ndarray, words: list[list[str]], maps: list[np.ndarray]) -> Image.Image:
    """A row a prompt: the picture, then under each word the picture in that word's heat.

    Heat runs from the least to the largest value of a word's own map.
    """
    columns = 1 + max(len(row) for row in words)
    cells, labels = [], []
    for picture, row, heats in zip(drawn, words, maps):
        cells.append(np.repeat(picture, 3, axis=-1))
        labels.append("")
        for word, heat in zip(row, heats):
            spread = heat - heat.min()
            cells.append(images.heated(picture, spread / max(float(spread.max()), 1e-12)))
            labels.append(word)
        empty = columns - 1 - len(row)
        cells += [np.full((*picture.shape[:2], 3), -1, np.float32)] * empty
        labels += [""] * empty
    return images.grid(np.stack(cells), columns, scale=4, labels=labels)
