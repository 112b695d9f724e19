"""Every parameter's gradient of every network, by the vector-Jacobian identity.

All parameters are random, zero-initialised ones too: behind a zero every gradient vanishes, and
0 == 0 proves nothing. For the same reason no gradient may be zero, but for those that a test lists.
"""

import numpy as np
import pytest

from ldm_numpy import ops
from ldm_numpy.gradcheck import vjp_errors
from ldm_numpy.models import (
    CLIP,
    AutoencoderConfig,
    AutoencoderKL,
    Classifier,
    ClassifierConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    UNet,
    UNetConfig,
)
from ldm_numpy.nn import Module
from ldm_numpy.tensor import concatenate, gradients

from .reference.weights import random_weights

UNET = UNetConfig(
    in_channels=3,
    out_channels=2,
    block_out_channels=(4, 6),
    attention_levels=(False, True),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=5,
    norm_num_groups=2,
)
AUTOENCODER = AutoencoderConfig(
    in_channels=1,
    out_channels=2,
    block_out_channels=(4, 6),
    layers_per_block=1,
    latent_channels=3,
    norm_num_groups=2,
    patch_size=2,
)
TEXT = CLIPTextConfig(
    vocab_size=11,
    hidden_size=6,
    intermediate_size=7,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=5,
    eos_token_id=10,
)
VISION = CLIPVisionConfig(
    hidden_size=4,
    intermediate_size=5,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=6,
    patch_size=3,
    num_channels=2,
)
IDS = np.array([[9, 3, 10, 10, 10], [9, 10, 10, 10, 10], [9, 1, 4, 7, 10]])


def randomise(model: Module) -> None:
    """Float64, and every parameter of a size that keeps activations near one."""
    model.astype(np.float64)
    shapes = {name: parameter.shape[::-1] for name, parameter in model.named_parameters()}
    for name, weights in random_weights("gradients", shapes).items():
        dict(model.named_parameters())[name].data[...] = weights.transpose()


def owner(model: Module, path: str) -> tuple[Module, str]:
    """The module that holds the parameter at `path`, and the attribute's name there."""
    *modules, attribute = path.split(".")
    for name in modules:
        model = getattr(model, name)
    return model, attribute


def check(model: Module, run, inputs: list[np.ndarray], zero: tuple[str, ...] = ()) -> None:
    """Gradients of run(*inputs) with respect to the inputs and every parameter of `model`.

    `zero`: name endings of parameters whose gradient is exactly zero, all others' is not.
    """
    randomise(model)
    parameters = dict(model.named_parameters())
    y = run(*inputs)
    gy = np.random.default_rng(0).standard_normal(y.shape)
    sizes = {
        name: np.linalg.norm(g)
        for name, g in zip(parameters, gradients(y, parameters.values(), gy), strict=True)
    }
    smallest = 1e-6 * max(sizes.values())
    for name, size in sizes.items():
        if name.endswith(zero):
            assert size < 1e-12 * max(sizes.values()), f"{name}: gradient {size} is not zero"
        else:
            assert size > smallest, f"{name}: gradient {size} is zero"

    checked = [name for name in parameters if not name.endswith(zero)]
    places = [owner(model, name) for name in checked]

    def function(*tensors):
        # The parameters' places are taken by the tensors under test.
        for (module, attribute), tensor in zip(places, tensors[len(inputs) :], strict=True):
            setattr(module, attribute, tensor)
        return run(*tensors[: len(inputs)])

    arrays = [*inputs, *(parameters[name].data for name in checked)]
    errors = vjp_errors(function, arrays, seed=1)
    labels = [*(f"input {i}" for i in range(len(inputs))), *checked]
    wrong = {name: e for name, e in zip(labels, errors, strict=True) if not e < 1e-6}
    assert not wrong


def flat(*tensors):
    """All elements of several outputs in one."""
    return concatenate([t.reshape(-1) for t in tensors])


def test_unet(rng):
    model = UNet(UNET)
    time = np.array([0.3, 2.0])

    def run(x, states):
        return model(x, time, states)

    check(model, run, [rng.standard_normal((2, 4, 6, 3)), rng.standard_normal((2, 3, 5))])


def test_a_single_token_teaches_cross_attention_nothing(rng):
    """Softmax over one token is 1 whatever queries and keys are; with two tokens they learn."""
    model = UNet(UNET)
    randomise(model)
    x = rng.standard_normal((2, 4, 4, 3))
    names = [n for n, _ in model.named_parameters() if "attn2.to_q" in n or "attn2.to_k" in n]
    parameters = [dict(model.named_parameters())[name] for name in names]
    for tokens in (1, 2):
        y = model(x, np.array([0.3, 2.0]), rng.standard_normal((2, tokens, 5)))
        found = gradients(y, parameters, rng.standard_normal(y.shape))
        assert len(found) == 8
        for name, g in zip(names, found, strict=True):
            assert g.any() == (tokens > 1), (name, tokens)


def test_autoencoder(rng):
    model = AutoencoderKL(AUTOENCODER)

    def run(images, latents):
        mean, logvar = model.encode(images)
        return flat(mean, logvar, model.decode(latents))

    inputs = [rng.standard_normal((2, 4, 8, 1)), rng.standard_normal((2, 2, 1, 3))]
    # A key's bias adds the same to all scores of a query: softmax does not see it.
    check(model, run, inputs, zero=("to_k.bias",))


def test_clip(rng):
    model = CLIP(TEXT, VISION, projection_dim=4)
    positives = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], bool)

    def run(images):
        image, text = model.encode_image(images), model.encode_text(IDS)
        loss = ops.contrastive_loss(image, text, model.logit_scale, positives)
        return flat(image, text, loss)

    check(model, run, [rng.standard_normal((3, 6, 6, 2))], zero=("k_proj.bias",))


def test_text_model(rng):
    """The states of all tokens, as the U-Net reads them."""
    model = CLIP(TEXT, VISION, projection_dim=4).text_model
    check(model, lambda: model(IDS), [], zero=("k_proj.bias",))


@pytest.mark.parametrize("residual", [False, True])
def test_classifier(residual, rng):
    config = ClassifierConfig(
        in_channels=1,
        num_classes=3,
        image_size=8,
        block_out_channels=(4, 6),
        residual=residual,
        embedding_dim=5,
        norm_num_groups=2,
    )
    model = Classifier(config)

    def run(images):
        return flat(model(images), *model.features(images))

    check(model, run, [rng.standard_normal((2, 8, 8, 1))])
