"""Writes the reference data beside it: what diffusers and transformers compute.

Run once, in an environment of its own, with PyTorch, diffusers and transformers:

    python tests/reference/make_references.py

`versions.json` names the versions that made the committed files:

- `names.json.gz`: names and shapes of every weight of Stable Diffusion 1.5's three networks;
- `unet.npz`, `autoencoder.npz`, `clip.npz`: inputs, outputs and gradients, in float64, of tiny
  networks of the same classes. Their weights come from `weights.py`; images are channels first, as
  theirs are. Parameters' gradients are summed up by `weights.projections`, a row each, in the order
  of `gradient_names`.
"""

import gzip
import json
import platform
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel
from weights import noise, projections, random_weights

FOLDER = Path(__file__).parent

STABLE_DIFFUSION_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # eight heads: the name is an old mistake of diffusers
}
STABLE_DIFFUSION_AUTOENCODER = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
STABLE_DIFFUSION_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
}

TINY_UNET = {
    "in_channels": 3,
    "out_channels": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 12, 16),
    "layers_per_block": 2,
    "cross_attention_dim": 10,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
TINY_AUTOENCODER = {
    "in_channels": 2,
    "out_channels": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 12, 16),
    "layers_per_block": 2,
    "latent_channels": 3,
    "norm_num_groups": 4,
}
TINY_CLIP = {
    "text_config": {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 7,
        "bos_token_id": 38,
        "eos_token_id": 39,
        "pad_token_id": 39,
    },
    "vision_config": {
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 12,
        "patch_size": 4,
        "num_channels": 1,
    },
    "projection_dim": 10,
}
TOKEN_IDS = [
    [38, 5, 17, 2, 39, 39, 39],
    [38, 0, 39, 39, 39, 39, 39],
    [38, 11, 36, 7, 20, 30, 39],
]


def with_random_weights(network: str, model: torch.nn.Module) -> torch.nn.Module:
    """The model in float64, every parameter drawn from `weights.py`."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    weights = random_weights(network, shapes)
    model.double().eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model


def leaf(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(noise(name, shape)).requires_grad_()


def inner_product(prefix: str, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of every output times a random cotangent: its gradient tests all of the Jacobian."""
    return sum(
        (value * torch.from_numpy(noise(f"{prefix} {name}", tuple(value.shape)))).sum()
        for name, value in outputs.items()
    )


def record(
    model: torch.nn.Module,
    prefix: str,
    inputs: dict[str, torch.Tensor],
    outputs: dict[str, torch.Tensor],
) -> dict[str, np.ndarray]:
    """Inputs, outputs, the inputs' gradients whole and the parameters' gradients as projections."""
    model.zero_grad()
    inner_product(prefix, outputs).backward()
    arrays = {}
    for name, value in inputs.items():
        arrays[f"{prefix}/inputs/{name}"] = value.detach().numpy()
        if value.requires_grad:
            arrays[f"{prefix}/input_gradients/{name}"] = value.grad.numpy()
    for name, value in outputs.items():
        arrays[f"{prefix}/outputs/{name}"] = value.detach().numpy()
    for name, value in model.named_parameters():
        if value.grad is not None:
            arrays[f"{prefix}/gradients/{name}"] = projections(name, value.grad.numpy())
    return arrays


def pack(file: str, arrays: dict[str, np.ndarray]) -> None:
    """One array a prefix of projections, or the zip's directory would outweigh the numbers."""
    packed = {name: value for name, value in arrays.items() if "/gradients/" not in name}
    for prefix in dict.fromkeys(name.split("/")[0] for name in arrays if "/gradients/" in name):
        start = f"{prefix}/gradients/"
        rows = {name[len(start) :]: arrays[name] for name in arrays if name.startswith(start)}
        packed[f"{prefix}/gradient_names"] = np.array(list(rows))
        packed[f"{prefix}/gradients"] = np.stack(list(rows.values()))
    np.savez_compressed(FOLDER / file, **packed)


def write_names() -> None:
    with torch.device("meta"):  # shapes without memory
        models = {
            "unet": UNet2DConditionModel(**STABLE_DIFFUSION_UNET),
            "autoencoder": AutoencoderKL(**STABLE_DIFFUSION_AUTOENCODER),
            "text": CLIPTextModel(CLIPTextConfig(**STABLE_DIFFUSION_TEXT)),
        }
    shapes = {
        network: {name: list(value.shape) for name, value in model.state_dict().items()}
        for network, model in models.items()
    }
    with open(FOLDER / "names.json.gz", "wb") as file:
        file.write(gzip.compress(json.dumps(shapes, indent=0).encode(), mtime=0))


class DoubleTimesteps(torch.nn.Module):
    """diffusers' time embedding in float64. Theirs is float32, in which an eps of 1e-5 in the place
    of 1e-6 would go unnoticed; what theirs gives is kept too, as `sample_as_is`."""

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        half = TINY_UNET["block_out_channels"][0] // 2
        angles = timestep[:, None] * 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


def write_unet() -> None:
    model = with_random_weights("unet", UNet2DConditionModel(**TINY_UNET))
    x = leaf("x", (2, 3, 8, 12))
    timestep = torch.tensor([3.0, 41.5], dtype=torch.float64)
    states = leaf("encoder_hidden_states", (2, 5, 10))
    inputs = {"x": x, "timestep": timestep, "encoder_hidden_states": states}
    as_is = model(x, timestep, states).sample.detach().numpy()
    model.time_proj = DoubleTimesteps()
    arrays = record(model, "unet", inputs, {"sample": model(x, timestep, states).sample})
    times = torch.tensor([0.0, 1.0, 500.0, 999.0])
    embedding = get_timestep_embedding(times, 10, flip_sin_to_cos=True, downscale_freq_shift=0)
    pack("unet.npz", arrays | {"sample_as_is": as_is, "time_embedding": embedding.numpy()})


def write_autoencoder() -> None:
    model = with_random_weights("autoencoder", AutoencoderKL(**TINY_AUTOENCODER))
    images = leaf("images", (2, 2, 10, 14))  # 14 -> 7 -> 3: padding right and bottom shows
    posterior = model.encode(images).latent_dist
    outputs = {"mean": posterior.mean, "logvar": posterior.logvar}
    arrays = record(model, "encode", {"images": images}, outputs)
    latents = leaf("latents", (2, 3, 2, 3))
    outputs = {"images": model.decode(latents).sample}
    pack("autoencoder.npz", arrays | record(model, "decode", {"latents": latents}, outputs))


def write_clip() -> None:
    model = with_random_weights("clip", CLIPModel(CLIPConfig(**TINY_CLIP)))
    ids = torch.tensor(TOKEN_IDS)
    images = leaf("images", (2, 1, 12, 12))
    states = model.text_model(ids).last_hidden_state
    arrays = record(model, "text", {"ids": ids}, {"last_hidden_state": states})
    pooled = model.vision_model(images).pooler_output
    arrays |= record(model, "vision", {"images": images}, {"pooler_output": pooled})
    images = leaf("images", (2, 1, 12, 12))
    both = model(input_ids=ids, pixel_values=images)
    outputs = {name: both[name] for name in ("image_embeds", "text_embeds", "logits_per_image")}
    pack("clip.npz", arrays | record(model, "clip", {"ids": ids, "images": images}, outputs))


if __name__ == "__main__":
    write_names()
    write_unet()
    write_autoencoder()
    write_clip()
    libraries = {module.__name__: module.__version__ for module in (torch, diffusers, transformers)}
    versions = {"python": platform.python_version(), "numpy": np.__version__} | libraries
    (FOLDER / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
