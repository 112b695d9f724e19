"""What is measured: specifications as plain data, and the networks and inputs both sides share.

Nothing here needs PyTorch. A specification is a dictionary (it travels to the worker processes as
JSON) with a `kind`, the `batch`, and what that kind wants to know; the same specification, in any
process, gives the same weights and the same inputs.
"""

import dataclasses

import numpy as np

from ldm_numpy import training
from ldm_numpy.backend import cpu_count, generator
from ldm_numpy.diffusion.denoiser import edm_sigmas
from ldm_numpy.model_folder import SHIPPED
from ldm_numpy.models import autoencoder, clip, unet
from ldm_numpy.text import Tokenizer
from ldm_numpy.training.autoencoder import images_side

SIDE = images_side(autoencoder.MNIST)  # of the images the autoencoder sees
LATENT = SIDE // autoencoder.MNIST.downsampling
TOKENS = training.CONTEXT_LENGTH
STAGES = {"unet": training.UNET, "autoencoder": training.AUTOENCODER, "clip": training.CLIP}
PROMPT = "a bold seven leaning left"
LEARNING_RATE = 1e-3
CHAIN = 500  # operations, to see what Python costs each
NORM_GROUPS, HEADS = 16, 4  # of the ops by themselves

# Everything that is timed in turns. Shards of a convolution or norm by itself are sized as a
# network of that resolution would have them: smaller where the images are larger.
STEPS = {name: {"kind": name, "batch": 128} for name in STAGES}
SAMPLING = {
    "sample-64": {"kind": "sample", "batch": 64, "steps": 20},
    "sample-1": {"kind": "sample", "batch": 1, "steps": 20},
}
OPS = {
    f"{kind}-{channels}@{side}": {
        "kind": kind, "batch": batch, "channels": channels, "side": side, "shard": shard
    }
    for kind in ("conv", "norm")
    for channels, side, batch, shard in (
        (32, 16, 128, 32), (64, 8, 128, 32), (128, 4, 128, 32), (64, 28, 64, 8), (128, 14, 64, 16)
    )
} | {
    f"attention-{tokens}": {
        "kind": "attention", "batch": batch, "tokens": tokens, "channels": 64, "shard": batch // 4
    }
    for tokens, batch in ((64, 128), (256, 32), (1024, 8))
}  # fmt: skip
TIMED = STEPS | SAMPLING | OPS


def scaling(quick: bool = False) -> dict[str, dict[int, dict]]:
    """Sweeps of one quantity: {sweep: {value: specification}}."""
    batches = (8, 32, 128) if quick else (8, 16, 32, 64, 128, 256, 512)
    sides = (8, 16) if quick else (8, 16, 32)
    widths = (32, 64) if quick else (32, 64, 128, 256)
    tokens = (64, 256) if quick else (64, 128, 256, 512, 1024)
    small = {"kind": "unet", "batch": 16, "shard": 8}
    attention = {"kind": "attention", "batch": 8, "channels": 64, "shard": 2}
    threads = dict.fromkeys((1, cpu_count()))  # one entry where there is one processor
    return {
        "batch": {n: {"kind": "unet", "batch": n} for n in batches},
        "threads": {t: STEPS["unet"] | {"threads": t} for t in threads},
        "image side": {s: small | {"side": s} for s in sides},
        "channels": {c: small | {"channels": c} for c in widths},
        "tokens": {t: attention | {"tokens": t} for t in tokens},
    }


def shard_size(spec: dict) -> int:
    """Images a shard: the stage's own number, unless the specification has one."""
    return spec.get("shard") or STAGES[spec["kind"]].shard_size


class Job:
    """A workload on one side. `run()` is timed, `check()` returns named arrays (PyTorch's layout
    for weights and their gradients, channels last for images) to be compared with the other's."""

    def start(self) -> None:
        """What comes before the first run."""

    def end(self) -> None:
        """What comes after the last."""


# Networks ----------------------------------------------------------------------------------


def tokenizer() -> Tokenizer:
    return Tokenizer.load(SHIPPED / "tokenizer.json")


def text_config() -> clip.CLIPTextConfig:
    """The text encoder's configuration, as training sets it for the shipped tokenizer."""
    words = tokenizer()
    return dataclasses.replace(
        clip.MNIST_TEXT,
        vocab_size=words.vocab_size,
        eos_token_id=words.end_token,
        max_position_embeddings=words.context_length,
    )


def unet_config(spec: dict) -> unet.UNetConfig:
    """The MNIST configuration; "channels" rescales it, keeping the proportions of its levels."""
    config = dataclasses.replace(unet.MNIST, cross_attention_dim=clip.MNIST_TEXT.hidden_size)
    first = spec.get("channels", config.block_out_channels[0])
    widths = [first * c // config.block_out_channels[0] for c in config.block_out_channels]
    return dataclasses.replace(config, block_out_channels=tuple(widths))


def network(kind: str, spec: dict):
    """One of our networks, every parameter random."""
    if kind == "unet":
        model = unet.UNet(unet_config(spec), seed=0)
    elif kind == "autoencoder":
        model = autoencoder.AutoencoderKL(autoencoder.MNIST, seed=0)
    elif kind == "text":
        model = clip.CLIPTextModel(text_config(), seed=0)
    else:
        vision, projection = clip.MNIST_VISION, clip.MNIST_PROJECTION_DIM
        model = clip.CLIP(text_config(), vision, projection, seed=0)
    randomise(model)
    return model


def randomise(model) -> None:
    """Move what starts at 0 or 1 away from there: behind a layer of zeros every gradient is zero,
    and to agree on that proves nothing."""
    for name, p in model.named_parameters():
        if p.init in ("zeros", "ones"):
            fan_in = int(np.prod(p.shape[:-1])) if p.ndim > 1 else 100
            noise = generator(1, name).standard_normal(p.shape, np.float32)
            p.data += noise / np.float32(np.sqrt(fan_in))


def start_noise(n: int) -> np.ndarray:
    """The noise a pipeline's sampling with seed 0 starts from."""
    shape = (n, LATENT, LATENT, unet.MNIST.in_channels)
    return generator(0, "sample", "start").standard_normal(shape, np.float32)


# Inputs ------------------------------------------------------------------------------------


def inputs(spec: dict) -> dict[str, np.ndarray]:
    """The arrays of a workload, channels last; the same in every process."""
    n, side = spec["batch"], spec.get("side", LATENT)

    def normal(name, *shape):
        return generator(0, spec["kind"], name).standard_normal(shape, np.float32)

    match spec["kind"]:
        case "unet":
            latent = (n, side, side, unet.MNIST.in_channels)
            stage = STAGES["unet"]
            return {
                "clean": normal("clean", *latent),
                "noise": normal("noise", *latent),
                "sigma": edm_sigmas(normal("level", n), stage.P_mean, stage.P_std),
                "cond": normal("cond", n, TOKENS, clip.MNIST_TEXT.hidden_size),
            }
        case "autoencoder":
            latent = (n, LATENT, LATENT, autoencoder.MNIST.latent_channels)
            pixels = normal("pixels", n, SIDE, SIDE, autoencoder.MNIST.in_channels)
            return {"pixels": np.tanh(pixels), "noise": normal("noise", *latent)}
        case "clip":
            config, size = text_config(), clip.MNIST_VISION.image_size
            which = np.arange(n) % max(1, n // 2)  # every caption twice
            ids = generator(0, "ids").integers(0, config.eos_token_id, (n, TOKENS))[which]
            ids[:, -4:] = config.eos_token_id
            return {
                "pixels": np.tanh(normal("pixels", n, size, size, clip.MNIST_VISION.num_channels)),
                "ids": ids,
                "positives": which[:, None] == which[None, :],
            }
        case "conv":
            c = spec["channels"]
            return {
                "x": normal("x", n, side, side, c),
                "w": normal("w", 3, 3, c, c) / np.float32(np.sqrt(9 * c)),
                "b": normal("b", c),
                "gy": normal("gy", n, side, side, c),
            }
        case "norm":
            c = spec["channels"]
            return {
                "x": normal("x", n, side, side, c),
                "gamma": 1 + normal("gamma", c) / 10,
                "beta": normal("beta", c),
                "gy": normal("gy", n, side, side, c),
            }
        case "attention":
            return {
                k: normal(k, n, spec["tokens"], spec["channels"]) for k in ("q", "k", "v", "gy")
            }
    raise ValueError(f"no inputs for {spec['kind']!r}")
