"""What the networks are: sizes, shapes, starting points, refusals. Values: test_references."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from ldm_numpy.backend import to_host
from ldm_numpy.models import (
    CLIP,
    AutoencoderConfig,
    AutoencoderKL,
    Classifier,
    ClassifierConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    UNet,
    UNetConfig,
    autoencoder,
    classifier,
    clip,
    unet,
)
from ldm_numpy.tensor import Tensor, no_grad

from . import tiny

TEXT = dataclasses.replace(clip.MNIST_TEXT, vocab_size=50, eos_token_id=49)


def images(rng, side: int, n: int = 2) -> np.ndarray:
    return rng.uniform(-1, 1, (n, side, side, 1)).astype(np.float32)


def randomise(model, scale: float = 0.1):
    """Every parameter moved by noise: nothing stays zero."""
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        noise = scale * rng.standard_normal(parameter.shape)
        parameter.data[...] = parameter.data + noise
    return model


def test_stable_diffusion_is_built_without_filling_memory():
    """A billion parameters are four gigabytes; untouched zeros are none."""
    script = """
import resource, sys
from ldm_numpy.models import AutoencoderKL, CLIPTextModel, UNet, autoencoder, clip, unet
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
networks = [UNet(unet.SD15), AutoencoderKL(autoencoder.SD15), CLIPTextModel(clip.SD15_TEXT)]
unit = 1 if sys.platform == "darwin" else 1024
print(sum(n.count_parameters() for n in networks), (peak() - before) * unit // 2**20)
"""
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    count, megabytes = map(int, printed.split())
    assert count == 859_520_964 + 83_653_863 + 123_060_480
    assert megabytes < 200


def test_mnist_shapes(rng):
    """The whole path of the MNIST configuration, in float32."""
    auto = AutoencoderKL(autoencoder.MNIST, seed=0)
    with no_grad():
        mean, logvar = auto.encode(images(rng, 32))
        assert mean.shape == logvar.shape == (2, 8, 8, 4)
        decoded = auto.decode(mean)
        assert decoded.shape == (2, 32, 32, 1)

        pair = CLIP(TEXT, clip.MNIST_VISION, clip.MNIST_PROJECTION_DIM, seed=0)
        ids = np.array([[3, 4, 49, 49], [5, 49, 49, 49]])
        states = pair.text_model(ids)
        assert states.shape == (2, 4, TEXT.hidden_size)
        text, image = pair.encode_text(ids), pair.encode_image(images(rng, 28, n=3))
        assert text.shape == (2, 64) and image.shape == (3, 64)

        net = UNet(unet.MNIST, seed=0)
        y = net(mean, np.ones(2, np.float32), states)
        assert y.shape == (2, 8, 8, 4)
    for tensor in (mean, logvar, decoded, states, text, image, y):
        assert tensor.dtype == np.float32 and not tensor.requires_grad
    assert unet.MNIST.cross_attention_dim == clip.MNIST_TEXT.hidden_size


def test_a_new_unet_answers_zero(rng):
    """Its last layer starts at zero, and the residual branches inside too."""
    net = UNet(unet.MNIST, seed=0)
    x = rng.standard_normal((1, 8, 8, 4)).astype(np.float32)
    states = rng.standard_normal((1, 4, 64)).astype(np.float32)
    assert not net(x, np.ones(1, np.float32), states).data.any()
    zero = [name for name, array in net.state_dict().items() if not array.any()]
    weights = [name for name in zero if name.endswith("weight")]
    branches = ("conv2.weight", "proj_out.weight", "conv_out.weight")
    assert weights and all(name.endswith(branches) for name in weights)
    assert len(weights) == sum(name.endswith(branches) for name in net.state_dict())


def test_unet_sees_time_and_text(rng):
    net = randomise(UNet(unet.MNIST, seed=0))
    x = rng.standard_normal((1, 8, 8, 4)).astype(np.float32)
    states = rng.standard_normal((2, 4, 64)).astype(np.float32)
    with no_grad():
        y = net(x, np.ones(1, np.float32), states[:1]).data
        later = net(x, np.full(1, 1.5, np.float32), states[:1]).data
        other = net(x, np.ones(1, np.float32), states[1:]).data
    for changed in (later, other):
        assert np.linalg.norm(changed - y) > 1e-3 * np.linalg.norm(y)


def test_samples_of_a_batch_do_not_mix(rng):
    """Each image alone gives what it gives in a batch."""
    net = randomise(UNet(unet.MNIST, seed=0)).astype(np.float64)
    x, time = rng.standard_normal((3, 4, 8, 4)), rng.standard_normal(3)
    states = rng.standard_normal((3, 5, 64))
    with no_grad():
        together = net(x, time, states).data
        alone = [net(x[i : i + 1], time[i : i + 1], states[i : i + 1]).data for i in range(3)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-10, atol=1e-12)


def test_recorder_gets_every_attention_layer(rng):
    net = randomise(UNet(unet.MNIST, seed=0))
    x = rng.standard_normal((2, 8, 4, 4)).astype(np.float32)
    states = rng.standard_normal((2, 5, 64)).astype(np.float32)
    time, seen = np.ones(2, np.float32), {}
    with no_grad():
        plain = net(x, time, states)
        recorded = net(x, time, states, recorder=seen.__setitem__)
    np.testing.assert_array_equal(plain.data, recorded.data)

    paths = {name.rsplit(".", 2)[0] for name in net.state_dict() if name.endswith("to_q.weight")}
    assert set(seen) == paths
    heads = unet.MNIST.attention_head_dim
    path = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert seen[f"{path}.attn1"].shape == (2, heads, 32, 32)
    assert seen[f"{path}.attn2"].shape == (2, heads, 32, 5)
    assert seen["mid_block.attentions.0.transformer_blocks.0.attn2"].shape == (2, heads, 8, 5)
    for weights in seen.values():
        np.testing.assert_allclose(to_host(weights).sum(-1), 1, rtol=1e-5)


def test_attention_head_dim_counts_heads():
    """Stable Diffusion's 8 are eight heads, at 320 channels as at 1280."""
    blocks = UNet(unet.SD15)
    for level in (blocks.down_blocks[0], blocks.down_blocks[2]):
        assert level.attentions[0].transformer_blocks[0].attn2.heads == 8


def test_levels_without_attention():
    config = dataclasses.replace(unet.MNIST, attention_levels=(False, True))
    names = UNet(config).state_dict()
    assert not any(name.startswith("down_blocks.0.attentions") for name in names)
    assert not any(name.startswith("up_blocks.1.attentions") for name in names)
    assert any(name.startswith("up_blocks.0.attentions") for name in names)


def test_log_variance_is_clipped():
    auto = AutoencoderKL(autoencoder.MNIST, seed=0)
    auto.quant_conv.bias.data[...] = [1e4] * 4 + [-1e4, 1e4, -1e4, 1e4]
    _, logvar = auto.encode(np.zeros((1, 8, 8, 1), np.float32))
    np.testing.assert_array_equal(logvar.data[0, 0, 0], [-30, 20, -30, 20])


def test_text_model_is_causal(rng):
    model = CLIPTextModel(TEXT, seed=0)
    a, b = np.array([[1, 2, 3, 4]]), np.array([[1, 2, 3, 9]])
    with no_grad():
        first, second = model(a).data, model(b).data
    np.testing.assert_array_equal(first[:, :3], second[:, :3])
    assert abs(first[:, 3] - second[:, 3]).max() > 1e-3


def test_text_is_pooled_at_its_first_end():
    model = CLIPTextModel(TEXT, seed=0)
    ids = np.array([[1, 49, 49, 49], [1, 2, 3, 49]])
    with no_grad():
        states = model(ids)
        pooled = model.pool(states, ids).data
    np.testing.assert_array_equal(pooled, [states.data[0, 1], states.data[1, 3]])
    other = CLIPTextModel(dataclasses.replace(TEXT, eos_token_id=7), seed=0)
    at_end = other.pool(states, np.array([[1, 7, 30, 7], [40, 2, 3, 7]])).data
    np.testing.assert_array_equal(at_end, [states.data[0, 1], states.data[1, 3]])
    with pytest.raises(ValueError, match="no end token 49"):
        model.pool(states, np.array([[1, 2], [1, 49]]))


def test_clip_vectors_have_length_one(rng):
    pair = CLIP(TEXT, clip.MNIST_VISION, clip.MNIST_PROJECTION_DIM, seed=0)
    np.testing.assert_allclose(pair.logit_scale.item(), np.log(1 / 0.07), rtol=1e-6)
    with no_grad():
        vectors = pair.encode_image(images(rng, 28, n=3)).data
    np.testing.assert_allclose((vectors**2).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("config", [classifier.PERCEPTUAL, classifier.READER])
def test_classifiers(config, rng):
    model = Classifier(config, seed=0)
    batch = images(rng, 28, n=3)
    with no_grad():
        maps = model.features(batch)
        assert [m.shape for m in maps] == [
            (3, 14 // 2**i, 14 // 2**i, c) for i, c in enumerate(config.block_out_channels)
        ]
        embedded = model.embed(batch)
        assert embedded.shape == (3, config.embedding_dim)
        assert model(batch).shape == (3, 10)
        np.testing.assert_array_equal(model.head(embedded).data, model(batch).data)


def test_a_classifiers_block_by_hand(rng):
    """silu(norm(conv(x))) of one pixel: a group's two channels become -1 and 1, but for eps."""
    block = classifier.ConvBlock(1, 2, 1)
    block.conv.weight.data[1, 1, 0] = 1, 3
    block.norm.weight.data[:] = 1
    y = block(np.full((1, 1, 1, 1), 50, np.float32)).data.ravel()
    np.testing.assert_allclose(y, [-1 / (1 + math.e), 1 / (1 + 1 / math.e)], rtol=1e-5)


def test_an_empty_batch(rng):
    """No pictures in, none out, and the gradients of nothing are zero."""
    reader, net = Classifier(classifier.READER, seed=0), UNet(unet.MNIST, seed=0)
    latents, states = np.zeros((0, 8, 8, 4), np.float32), np.zeros((0, 4, 64), np.float32)
    runs = {
        (0, 10): (reader, lambda: reader(images(rng, 28, n=0))),
        (0, 8, 8, 4): (net, lambda: net(latents, np.ones(0, np.float32), states)),
    }
    for shape, (network, run) in runs.items():
        y = run()
        assert y.shape == shape
        y.sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in network.parameters())


def test_the_reader_is_another_network():
    reader, perceptual = Classifier(classifier.READER), Classifier(classifier.PERCEPTUAL)
    shapes = [{n: a.shape for n, a in m.state_dict().items()} for m in (reader, perceptual)]
    shared = {n for n in shapes[0].keys() & shapes[1].keys() if shapes[0][n] == shapes[1][n]}
    assert classifier.READER.residual and not classifier.PERCEPTUAL.residual
    assert len(shared) < len(shapes[0]) // 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UNetConfig(block_out_channels=(64, 90)), "attention_levels needs one bool"),
        (lambda: UNetConfig(block_out_channels=()), "attention_levels needs one bool"),
        (lambda: UNetConfig(norm_num_groups=48), "320 channels cannot form 48 groups"),
        (lambda: UNetConfig(attention_head_dim=7), "cannot form 7 heads"),
        (lambda: UNetConfig(layers_per_block=0), "at least one layer"),
        (
            lambda: UNetConfig(
                block_out_channels=(9,),
                attention_levels=(True,),
                norm_num_groups=3,
                attention_head_dim=3,
            ),
            "must be even",
        ),
        (lambda: AutoencoderConfig(block_out_channels=()), "at least one level"),
        (lambda: AutoencoderConfig(norm_num_groups=48), "128 channels cannot form 48 groups"),
        (lambda: AutoencoderConfig(patch_size=0), "start at 1"),
        (lambda: CLIPTextConfig(num_attention_heads=5), "cannot form 5 heads"),
        (lambda: CLIPTextConfig(num_hidden_layers=0), "at least 1 is needed"),
        (lambda: CLIPTextConfig(vocab_size=100), "outside a vocabulary of 100"),
        (lambda: CLIPVisionConfig(num_attention_heads=0), "cannot form 0 heads"),
        (lambda: CLIPVisionConfig(patch_size=15), "do not tile an image of 224"),
        (lambda: ClassifierConfig(block_out_channels=()), "at least one level"),
        (lambda: ClassifierConfig(norm_num_groups=5), "32 channels cannot form 5 groups"),
        (lambda: ClassifierConfig(image_size=30), "cannot be halved as often"),
        (lambda: ClassifierConfig(pool=5), "pool 5 does not divide .* 7 pixels wide"),
    ],
)
def test_impossible_configurations(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def _unet(x_shape=(1, 8, 8, 4), time_shape=(1,), text_shape=(1, 3, 64)):
    arrays = [np.zeros(shape, np.float32) for shape in (x_shape, time_shape, text_shape)]
    return UNet(unet.MNIST)(*arrays)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: _unet(x_shape=(1, 8, 7, 4)), "multiples of 2"),
        (lambda: UNet(unet.UNetConfig())(np.zeros((1, 8, 12, 4)), 1.0, None), "multiples of 8"),
        (lambda: _unet(x_shape=(1, 8, 8, 3)), r"expected \(N, H, W, 4\)"),
        (lambda: _unet(time_shape=(2,)), r"timestep of shape \(2,\); expected \(1,\)"),
        (lambda: _unet(text_shape=(1, 3, 63)), r"expected \(1, T, 64\)"),
        (lambda: _unet(text_shape=(2, 3, 64)), r"expected \(1, T, 64\)"),
        (
            lambda: AutoencoderKL(autoencoder.MNIST).encode(np.zeros((1, 32, 32, 3), np.float32)),
            r"images of shape \(1, 32, 32, 3\); expected \(N, H, W, 1\)",
        ),
        (
            lambda: AutoencoderKL(autoencoder.MNIST).decode(np.zeros((8, 8, 4), np.float32)),
            r"latents of shape \(8, 8, 4\); expected \(N, H, W, 4\)",
        ),
        (lambda: CLIPTextModel(TEXT)(np.zeros((1, 17), int)), "T from 1 to 16"),
        (lambda: CLIPTextModel(TEXT)(np.zeros((1, 0), int)), "T from 1 to 16"),
        (lambda: CLIPTextModel(TEXT)(np.zeros(4, int)), "T from 1 to 16"),
        (lambda: CLIPTextModel(TEXT)(np.array([[3, 50]])), "ids must lie in 0 ... 49"),
        (lambda: CLIPTextModel(TEXT)(np.array([[-1, 3]])), "ids must lie in 0 ... 49"),
        (
            lambda: CLIPVisionModel(clip.MNIST_VISION)(np.zeros((1, 32, 32, 1), np.float32)),
            r"expected \(N, 28, 28, 1\)",
        ),
        (
            lambda: Classifier(classifier.READER)(np.zeros((1, 32, 32, 1), np.float32)),
            r"expected \(N, 28, 28, 1\)",
        ),
    ],
)
def test_inputs_that_do_not_fit(run, message):
    with pytest.raises(ValueError, match=message):
        run()


@pytest.mark.parametrize("config", [unet.MNIST, autoencoder.MNIST, classifier.READER])
def test_configurations_survive_json(config):
    """JSON knows lists only; a configuration read back equals the one written."""
    fields = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    }
    assert type(config)(**fields) == config


@pytest.mark.parametrize("exponents", [(5000, 4), ("a", 4), (-1,), (1.5,)])
def test_fourier_exponents_that_are_none(exponents):
    with pytest.raises(ValueError, match="fourier_exponents must be whole numbers"):
        UNetConfig(fourier_exponents=exponents)


BUILD = {
    AutoencoderKL: lambda seed: AutoencoderKL(autoencoder.MNIST, seed),
    CLIPTextModel: lambda seed: CLIPTextModel(TEXT, seed),
    CLIPVisionModel: lambda seed: CLIPVisionModel(clip.MNIST_VISION, seed),
    CLIP: lambda seed: CLIP(TEXT, clip.MNIST_VISION, clip.MNIST_PROJECTION_DIM, seed),
    UNet: lambda seed: UNet(unet.MNIST, seed),
    Classifier: lambda seed: Classifier(classifier.READER, seed),
    classifier.NoisyClassifier: lambda seed: classifier.NoisyClassifier(classifier.NOISY, seed),
}


@pytest.mark.parametrize("build", BUILD.values(), ids=[kind.__name__ for kind in BUILD])
def test_a_seed_decides_on_the_weights_and_without_it_they_are_zero(build):
    empty, one, again, other = (build(seed).state_dict() for seed in (None, 1, 1, 2))
    drawn = {name for name, array in one.items() if name.endswith("weight") and array.std() > 0}
    assert len(drawn) > 5
    for name, array in one.items():
        assert not empty[name].any()
        np.testing.assert_array_equal(array, again[name])
        assert name not in drawn or (array != other[name]).any()


def test_an_image_begins_with_the_class_token(rng):
    """And goes on with its patches, row by row; a position is added to each."""
    embeddings = tiny.randomise(CLIPVisionModel(clip.MNIST_VISION, seed=0)).embeddings
    pictures = images(rng, 28, n=3)
    with no_grad():
        tokens = embeddings(pictures).data
        patches = embeddings.patch_embedding(pictures).data.reshape(3, 16, 64)
    positions = embeddings.position_embedding.weight.data
    first = embeddings.class_embedding.data + positions[0]
    np.testing.assert_allclose(tokens[:, 0], np.tile(first, (3, 1)), rtol=1e-6)
    np.testing.assert_allclose(tokens[:, 1:], patches + positions[1:], rtol=1e-5, atol=1e-6)


def test_clip_starts_as_openais_does():
    """Deviations of Radford et al.'s `initialize_parameters`: a deep stack's sum stays small."""
    dim, layers = 64, 8
    config = dataclasses.replace(clip.MNIST_TEXT, num_hidden_layers=layers)
    image = dataclasses.replace(clip.MNIST_VISION, num_hidden_layers=layers)
    pair = CLIP(config, image, 48, seed=0)
    inner, outer = dim**-0.5 * (2 * layers) ** -0.5, dim**-0.5
    wanted = {
        "q_proj": inner, "k_proj": inner, "v_proj": inner, "out_proj": outer,
        "fc1": (2 * dim) ** -0.5, "fc2": inner, "token_embedding": 0.02, "patch_embedding": 0.02,
        "position_embedding": 0.02, "text_projection": outer, "visual_projection": outer,
    }  # fmt: skip
    spreads = {}
    for name, parameter in pair.named_parameters():
        layer, _, kind = name.rpartition(".")
        layer = layer.rpartition(".")[2]
        if kind == "weight" and parameter.ndim > 1:
            spreads.setdefault(layer, []).append(parameter.data)
        elif kind == "bias":
            assert not parameter.data.any()
        elif kind == "class_embedding":
            assert parameter.data.std() == pytest.approx(outer, rel=0.25)
    assert spreads.keys() == wanted.keys()
    for layer, weights in spreads.items():
        together = np.concatenate([w.ravel() for w in weights])
        assert together.std() == pytest.approx(wanted[layer], rel=0.04), layer


@pytest.mark.parametrize("config", [autoencoder.SD15, autoencoder.MNIST])
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_a_latent_pixel_stands_for_a_square(config, patch_size):
    config = dataclasses.replace(config, patch_size=patch_size)
    halvings = len(config.block_out_channels) - 1
    assert config.downsampling == patch_size * 2**halvings
    assert autoencoder.PixelSpaceConfig(patch_size=patch_size).downsampling == patch_size


def test_the_noisy_classifier_is_told_the_level(rng, monkeypatch):
    """Its network sees latents of variance 1, and a channel of ln(sigma) / 4."""
    network = classifier.NoisyClassifier(classifier.NOISY, seed=0)
    monkeypatch.setattr(classifier.Classifier, "forward", lambda self, x: x)
    x = rng.standard_normal((2, 8, 8, 4))
    seen = network(Tensor(x), np.array([2.0, 0.5])).data
    np.testing.assert_allclose(seen[0, ..., :4], x[0] / 5**0.5)
    np.testing.assert_allclose(seen[1, ..., :4], x[1] / 1.25**0.5)
    np.testing.assert_allclose(seen[..., 4], np.log([2, 0.5])[:, None, None] / 4 + np.zeros((8, 8)))
