"""Overfitting one batch: a network whose gradients are right can learn eight examples by heart.

Noise and noise levels are fixed, captions distinct. Each loss must fall below 5% of its start; a
wrong gradient anywhere on the way, or a condition that does not arrive, stops it far above.
"""

import dataclasses

import numpy as np
import pytest

from ldm_numpy import images, ops
from ldm_numpy.backend import generator
from ldm_numpy.data import captions
from ldm_numpy.diffusion.denoiser import Denoiser, denoising_loss
from ldm_numpy.models.autoencoder import AutoencoderKL
from ldm_numpy.models.classifier import Classifier
from ldm_numpy.models.clip import CLIP, CLIPTextModel
from ldm_numpy.models.unet import UNet
from ldm_numpy.optim import AdamW

from . import tiny

N = 8
WIDE = {"block_out_channels": (16, 32), "norm_num_groups": 4}


def overfit(loss, networks, steps, lr) -> float:
    """The last loss as a share of the first."""
    optimizer = AdamW([p for network in networks for p in network.parameters()])
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        value = loss()
        losses.append(float(value.data))
        value.backward()
        optimizer.clip_gradient(1.0)
        optimizer.step(lr * min(1, (step + 1) / 10) * (1 - step / steps))
    return losses[-1] / losses[0]


@pytest.fixture(scope="module")
def batch():
    """Eight digits in [-1, 1] with eight distinct full captions, as ids."""
    digits = tiny.digits("train")
    texts = [
        captions.caption(*attributes)
        for attributes in zip(digits.labels, digits.weights, digits.slants)
    ]
    first = np.array([texts.index(text) for text in dict.fromkeys(texts)][:N])
    return digits.pixels(first), tiny.tokenizer()([texts[i] for i in first])


def test_classifier():
    pixels, labels = tiny.digits("train").pixels(slice(0, 16)), tiny.digits("train").labels[:16]
    assert len(set(labels)) > 5
    network = Classifier(tiny.CLASSIFIER, seed=0)

    def loss():
        return ops.softmax_cross_entropy(network(pixels), labels)

    assert overfit(loss, [network], 80, 0.02) < 0.05


def test_autoencoder(batch):
    pixels = images.pad_to(batch[0], 32)
    network = AutoencoderKL(dataclasses.replace(tiny.AUTOENCODER, **WIDE), seed=0)
    noise = generator(0, "noise").standard_normal((N, 8, 8, 4), np.float32)

    def loss():
        mean, logvar = network.encode(pixels)
        return ops.mse_loss(network.decode(mean + (logvar * 0.5).exp() * noise), pixels)

    assert overfit(loss, [network], 110, 0.01) < 0.05


def test_clip(batch):
    pixels, ids = batch
    network = CLIP(tiny.text_config(), tiny.VISION, tiny.PROJECTION_DIM, seed=0)
    positives = np.eye(N, dtype=bool)

    def loss():
        return ops.contrastive_loss(
            network.encode_image(pixels), network.encode_text(ids), network.logit_scale, positives
        )

    assert overfit(loss, [network], 100, 0.01) < 0.05


def unet_share(pixels, ids, levels, text_encoder, steps) -> float:
    """Overfit latents of digits shrunk to 8x8, at noise levels that are "high", or "all" there are.

    High levels: one noise for all hides the digits, and only the captions tell them apart.
    All levels: each digit has a level and noise of its own.
    """
    latents = ops.average_pool(images.pad_to(pixels, 32), 4)  # (N, 8, 8, 1)
    latents = (latents - latents.mean()) / latents.std()
    rng = generator(0, "noise")
    if levels == "high":
        sigma = np.full(N, 100, np.float32)
        noise = np.repeat(rng.standard_normal((1, 8, 8, 1), np.float32), N, axis=0)
    else:
        sigma = np.geomspace(0.1, 10, N).astype(np.float32)
        noise = rng.standard_normal(latents.shape, np.float32)
    config = dataclasses.replace(tiny.UNET, in_channels=1, out_channels=1, **WIDE)
    network, text = UNet(config, seed=0), CLIPTextModel(tiny.text_config(), seed=0)
    denoiser, states = Denoiser(network, 1.0), text(ids).data

    def loss():
        cond = states if text_encoder == "frozen" else text(ids)
        return denoising_loss(denoiser, latents, sigma, noise, cond)

    networks = [network] if text_encoder == "frozen" else [network, text]
    return overfit(loss, networks, steps, 0.01)


@pytest.mark.parametrize("text_encoder", ["frozen", "joint"])
def test_unet_learns_from_captions(batch, text_encoder):
    assert unet_share(*batch, "high", text_encoder, 80) < 0.05


def test_unet_at_all_levels(batch):
    assert unet_share(*batch, "all", "joint", 60) < 0.05


def test_unet_cannot_learn_what_equal_captions_hide(batch):
    """What makes the test of captions one: without them half of the loss remains."""
    pixels, ids = batch
    assert unet_share(pixels, np.repeat(ids[:1], N, axis=0), "high", "frozen", 80) > 0.3
