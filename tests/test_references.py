"""Our networks against diffusers' and transformers', through committed data (tests/reference)."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from ldm_numpy import ops
from ldm_numpy.models import (
    CLIP,
    AutoencoderConfig,
    AutoencoderKL,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    UNet,
    UNetConfig,
    autoencoder,
    clip,
    unet,
)
from ldm_numpy.models.unet import timestep_embedding
from ldm_numpy.nn import Module, from_torch_layout, to_torch_layout
from ldm_numpy.tensor import Tensor, gradients

from .reference.weights import noise, projections, random_weights

FOLDER = Path(__file__).parent / "reference"
TOLERANCE = 1e-10  # float64 on both sides

# The configurations of make_references.py.
TINY_UNET = UNetConfig(
    in_channels=3,
    out_channels=2,
    block_out_channels=(8, 12, 16),
    attention_levels=(True, True, False),
    layers_per_block=2,
    attention_head_dim=2,
    cross_attention_dim=10,
    norm_num_groups=4,
)
TINY_AUTOENCODER = AutoencoderConfig(
    in_channels=2,
    out_channels=2,
    block_out_channels=(8, 12, 16),
    layers_per_block=2,
    latent_channels=3,
    norm_num_groups=4,
)
TINY_TEXT = CLIPTextConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=7,
    eos_token_id=39,
)
TINY_VISION = CLIPVisionConfig(
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=12,
    patch_size=4,
    num_channels=1,
)


def distance(ours, theirs) -> float:
    """|ours - theirs| / |theirs|, arrays of one shape."""
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def channels_first(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x


def channels_last(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def with_reference_weights(network: str, model: Module) -> Module:
    """`model` in float64 with the weights that make_references.py drew."""
    model.astype(np.float64)
    shapes = {name: a.shape for name, a in to_torch_layout(model, model.state_dict()).items()}
    model.load_state_dict(from_torch_layout(model, random_weights(network, shapes)))
    return model


def compare(model: Module, file: str, prefix: str, run, within: str = "") -> None:
    """Outputs, input gradients and parameter gradients of `run` against the file's.

    run(**inputs) returns a dict of outputs; the loss is the sum of their products with the
    cotangents that make_references.py used. `within`: path of `model` in theirs, if it is a part.
    """
    reference = np.load(FOLDER / file, allow_pickle=False)
    inputs, leaves = {}, {}
    for name in reference.files:
        if name.startswith(f"{prefix}/inputs/"):
            short = name.split("/")[2]
            inputs[short] = np.ascontiguousarray(channels_last(reference[name]))
            if f"{prefix}/input_gradients/{short}" in reference.files:
                inputs[short] = leaves[short] = Tensor(inputs[short], requires_grad=True)

    outputs = run(**inputs)
    loss = 0.0
    for name, y in outputs.items():
        theirs = reference[f"{prefix}/outputs/{name}"]
        assert distance(channels_first(y.data), theirs) < TOLERANCE, name
        loss = loss + (y * channels_last(noise(f"{prefix} {name}", theirs.shape))).sum()

    names, parameters = zip(*model.named_parameters(), strict=True)
    found = gradients(loss, [*leaves.values(), *parameters])
    for name, gx in zip(leaves, found, strict=False):
        theirs = reference[f"{prefix}/input_gradients/{name}"]
        assert distance(channels_first(gx), theirs) < TOLERANCE, name

    ours = to_torch_layout(model, dict(zip(names, found[len(leaves) :], strict=True)))
    rows = dict(zip(reference[f"{prefix}/gradient_names"], reference[f"{prefix}/gradients"]))
    largest = max(row[0] for row in rows.values())
    checked = 0
    for name, gradient in ours.items():
        theirs = rows.get(within + name)
        if theirs is None:  # the other half of the autoencoder
            assert not gradient.any(), name
            continue
        checked += 1
        error = np.abs(projections(within + name, gradient) - theirs).max()
        # Gradients that are zero but for rounding (a key's bias) have no size of their own.
        assert error < TOLERANCE * max(theirs[0], 1e-4 * largest), name
    assert checked == len(rows)


def test_unet_matches_diffusers():
    model = with_reference_weights("unet", UNet(TINY_UNET))

    def run(x, timestep, encoder_hidden_states):
        return {"sample": model(x, timestep, encoder_hidden_states)}

    compare(model, "unet.npz", "unet", run)

    reference = np.load(FOLDER / "unet.npz", allow_pickle=False)
    names = ("x", "timestep", "encoder_hidden_states")
    y = model(*[channels_last(reference[f"unet/inputs/{name}"]) for name in names])
    # diffusers by itself computes the time embedding in float32
    assert distance(channels_first(y.data), reference["sample_as_is"]) < 1e-5


def test_autoencoder_matches_diffusers():
    model = with_reference_weights("autoencoder", AutoencoderKL(TINY_AUTOENCODER))

    def encode(images):
        return dict(zip(("mean", "logvar"), model.encode(images), strict=True))

    def decode(latents):
        return {"images": model.decode(latents)}

    compare(model, "autoencoder.npz", "encode", encode)
    compare(model, "autoencoder.npz", "decode", decode)


def test_clip_matches_transformers():
    model = with_reference_weights("clip", CLIP(TINY_TEXT, TINY_VISION, projection_dim=10))

    def run(ids, images):
        image_embeds, text_embeds = model.encode_image(images), model.encode_text(ids)
        logits = image_embeds @ text_embeds.transpose() * model.logit_scale.exp()
        return {
            "image_embeds": image_embeds,
            "text_embeds": text_embeds,
            "logits_per_image": logits,
        }

    compare(model, "clip.npz", "clip", run)

    def text(ids):
        return {"last_hidden_state": model.text_model(ids)}

    def vision(images):
        return {"pooler_output": model.vision_model(images)}

    compare(model.text_model, "clip.npz", "text", text, within="text_model.")
    compare(model.vision_model, "clip.npz", "vision", vision, within="vision_model.")


def test_time_embedding_matches_diffusers():
    reference = np.load(FOLDER / "unet.npz", allow_pickle=False)["time_embedding"]
    ours = timestep_embedding(np.array([0.0, 1.0, 500.0, 999.0]), 10)
    assert distance(ours, reference) < 1e-4  # theirs is float32, with angles up to 999
    np.testing.assert_array_equal(ours[0], [1] * 5 + [0] * 5)  # cosines first


@pytest.mark.parametrize(
    ("network", "model", "count"),
    [
        ("unet", lambda: UNet(unet.SD15), 859_520_964),
        ("autoencoder", lambda: AutoencoderKL(autoencoder.SD15), 83_653_863),
        ("text", lambda: CLIPTextModel(clip.SD15_TEXT), 123_060_480),
    ],
)
def test_stable_diffusion_names_and_shapes(network, model, count):
    """Names and shapes of all weights, in PyTorch's layout; nothing touches the memory."""
    expected = json.loads(gzip.decompress((FOLDER / "names.json.gz").read_bytes()))[network]
    model = model()
    assert model.count_parameters() == count
    shapes = {
        name: [p.shape[axis] for axis in p.torch_axes or range(p.ndim)]
        for name, p in model.named_parameters()
    }
    assert shapes == expected


def test_vision_model_stands_alone():
    """A CLIPVisionModel by itself is the one inside CLIP."""
    pair = with_reference_weights("clip", CLIP(TINY_TEXT, TINY_VISION, projection_dim=10))
    alone = CLIPVisionModel(TINY_VISION).astype(np.float64)
    alone.load_state_dict(pair.vision_model.state_dict())
    images = noise("images", (2, 12, 12, 1))
    np.testing.assert_array_equal(alone(images).data, pair.vision_model(images).data)


def test_old_checkpoints_load():
    """Names that earlier versions of diffusers and transformers wrote."""
    model = with_reference_weights("clip", CLIP(TINY_TEXT, TINY_VISION, projection_dim=10))
    text = model.text_model
    state = to_torch_layout(text, text.state_dict())
    published = {f"text_model.{name}": array for name, array in state.items()}
    published["text_model.embeddings.position_ids"] = np.arange(7)[None]
    loaded = CLIPTextModel(TINY_TEXT).astype(np.float64)
    loaded.load_state_dict(from_torch_layout(loaded, published))
    ids = np.array([[38, 3, 39]])
    np.testing.assert_array_equal(loaded(ids).data, text(ids).data)

    auto = with_reference_weights("autoencoder", AutoencoderKL(TINY_AUTOENCODER))
    state = to_torch_layout(auto, auto.state_dict())
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, array in state.items():
        for ours, theirs in old.items():
            name = name.replace(f"attentions.0.{ours}.", f"attentions.0.{theirs}.")
        renamed[name] = array
    assert set(renamed) != set(state)
    fresh = AutoencoderKL(TINY_AUTOENCODER).astype(np.float64)
    fresh.load_state_dict(from_torch_layout(fresh, renamed))
    for name, array in auto.state_dict().items():
        np.testing.assert_array_equal(fresh.state_dict()[name], array)


def test_traps_would_show(monkeypatch):
    """The reference notices what shapes cannot: the exact against the quick GELU, for one."""
    model = with_reference_weights("unet", UNet(TINY_UNET))
    reference = np.load(FOLDER / "unet.npz", allow_pickle=False)
    x = channels_last(reference["unet/inputs/x"])
    states = reference["unet/inputs/encoder_hidden_states"]
    def quick_geglu(h):
        half = h.shape[-1] // 2
        return h[..., :half] * ops.quick_gelu(h[..., half:])

    monkeypatch.setattr(ops, "geglu", quick_geglu)
    y = model(x, reference["unet/inputs/timestep"], states)
    assert distance(channels_first(y.data), reference["unet/outputs/sample"]) > 1e-4
