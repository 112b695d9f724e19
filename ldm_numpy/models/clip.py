"""CLIP: a text and an image encoder that meet in one space (Radford et al. 2021, "Learning
transferable visual models from natural language supervision").

Both are transformers of the same layers. The U-Net reads the text encoder's token states; the two
projections, trained with the contrastive loss, give the score of an image and a caption.
"""

import math
from dataclasses import dataclass

import numpy as np

from .. import ops
from ..backend import array_module, to_host
from ..nn import Conv2d, Embedding, LayerNorm, Linear, Module, ModuleList, Parameter, normal
from ..tensor import Tensor, concatenate


def _check_transformer(name: str, hidden_size: int, heads: int, layers: int) -> None:
    if layers < 1:
        raise ValueError(f"{name}: num_hidden_layers is {layers}, at least 1 is needed")
    if heads < 1 or hidden_size % heads:
        raise ValueError(f"{name}: a hidden_size of {hidden_size} cannot form {heads} heads")


@dataclass(frozen=True)
class CLIPTextConfig:
    """Fields as in transformers, defaults as in the text encoder of Stable Diffusion 1.x.

    `eos_token_id` marks the end of a text; the first one's state stands for the whole.
    Raises ValueError for combinations that no network can have.
    """

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    eos_token_id: int = 49407

    def __post_init__(self):
        _check_transformer(
            "CLIPTextConfig", self.hidden_size, self.num_attention_heads, self.num_hidden_layers
        )
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(
                f"CLIPTextConfig: eos_token_id {self.eos_token_id} is outside a vocabulary of "
                f"{self.vocab_size}"
            )


@dataclass(frozen=True)
class CLIPVisionConfig:
    """Fields as in transformers, defaults as in the image encoder of CLIP ViT-L/14.

    Raises ValueError for combinations that no network can have.
    """

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3

    def __post_init__(self):
        _check_transformer(
            "CLIPVisionConfig", self.hidden_size, self.num_attention_heads, self.num_hidden_layers
        )
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"CLIPVisionConfig: patches of {self.patch_size} pixels do not tile an image of "
                f"{self.image_size}"
            )


SD15_TEXT = CLIPTextConfig()
# The tokenizer's vocabulary decides vocab_size and eos_token_id (dataclasses.replace).
MNIST_TEXT = CLIPTextConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=16,
    eos_token_id=511,
)
MNIST_VISION = CLIPVisionConfig(
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=28,
    patch_size=7,
    num_channels=1,
)
MNIST_PROJECTION_DIM = 64


class CLIPAttention(Module):
    """Self-attention; `causal` lets a token see itself and those before it.  (N, T, D)."""

    def __init__(self, dim: int, heads: int, layers: int, causal: bool):
        inner = normal(dim**-0.5 * (2 * layers) ** -0.5)
        self.k_proj = Linear(dim, dim, init=inner)
        self.v_proj = Linear(dim, dim, init=inner)
        self.q_proj = Linear(dim, dim, init=inner)
        self.out_proj = Linear(dim, dim, init=normal(dim**-0.5))
        self.heads = heads
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # (N, T, D) each
        return self.out_proj(ops.attention(q, k, v, heads=self.heads, causal=self.causal))


class CLIPMLP(Module):
    """Two linear layers with quick GELU between.  (N, T, D)."""

    def __init__(self, dim: int, inner: int, layers: int):
        self.fc1 = Linear(dim, inner, init=normal((2 * dim) ** -0.5))
        self.fc2 = Linear(inner, dim, init=normal(dim**-0.5 * (2 * layers) ** -0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(ops.quick_gelu(self.fc1(x)))  # (N, T, inner) between


class CLIPEncoderLayer(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).  (N, T, D)."""

    def __init__(self, config: CLIPTextConfig | CLIPVisionConfig, causal: bool):
        dim, layers = config.hidden_size, config.num_hidden_layers
        self.self_attn = CLIPAttention(dim, config.num_attention_heads, layers, causal)
        self.layer_norm1 = LayerNorm(dim)
        self.mlp = CLIPMLP(dim, config.intermediate_size, layers)
        self.layer_norm2 = LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(Module):
    """The layers one after the other.  (N, T, D)."""

    def __init__(self, config: CLIPTextConfig | CLIPVisionConfig, causal: bool):
        self.layers = ModuleList(
            CLIPEncoderLayer(config, causal) for _ in range(config.num_hidden_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class CLIPTextEmbeddings(Module):
    """Token vector + position vector.  ids (N, T) -> (N, T, D)."""

    def __init__(self, config: CLIPTextConfig):
        dim = config.hidden_size
        self.token_embedding = Embedding(config.vocab_size, dim, init=normal(0.02))
        self.position_embedding = Embedding(config.max_position_embeddings, dim, init=normal(0.02))

    def forward(self, ids) -> Tensor:
        positions = self.position_embedding.weight[: ids.shape[1]]  # (T, D)
        return self.token_embedding(ids) + positions


class CLIPTextModel(Module):
    """The text encoder. It is causal, and padding is not masked: training saw it too.

    `seed` initialises the parameters; without it they are zeros, to be loaded.
    """

    def __init__(self, config: CLIPTextConfig, seed: int | None = None):
        self.config = config
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPEncoder(config, causal=True)
        self.final_layer_norm = LayerNorm(config.hidden_size)
        if seed is not None:
            self.initialise(seed)

    def forward(self, ids) -> Tensor:
        """Token states (N, T, D) of integer ids (N, T), which are checked on the host.

        Raises ValueError for ids outside the vocabulary and for texts too long.
        """
        ids = to_host(ids)
        config = self.config
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= config.max_position_embeddings:
            raise ValueError(
                f"CLIPTextModel: ids of shape {ids.shape}; expected (N, T) with T from 1 to "
                f"{config.max_position_embeddings}"
            )
        if ids.size and not 0 <= ids.min() <= ids.max() < config.vocab_size:
            raise ValueError(f"CLIPTextModel: ids must lie in 0 ... {config.vocab_size - 1}")
        xp = array_module(self.embeddings.token_embedding.weight.data)
        x = self.embeddings(xp.asarray(ids))  # (N, T, D)
        return self.final_layer_norm(self.encoder(x))

    def pool(self, states: Tensor, ids) -> Tensor:
        """The state of each text's first end token, which alone has seen all of it.

        states (N, T, D), ids (N, T) -> (N, D). Raises ValueError for a text without an end.
        """
        is_end = to_host(ids) == self.config.eos_token_id  # (N, T)
        if not is_end.any(axis=1).all():
            raise ValueError(f"CLIPTextModel: no end token {self.config.eos_token_id} in a text")
        xp = array_module(states.data)
        return states[xp.arange(len(states)), xp.asarray(is_end.argmax(axis=1))]


class CLIPVisionEmbeddings(Module):
    """A learned class token, then the patches; plus positions.  (N, H, W, C) -> (N, 1 + T, D)."""

    def __init__(self, config: CLIPVisionConfig):
        dim, size = config.hidden_size, config.patch_size
        self.class_embedding = Parameter((dim,), normal(dim**-0.5))
        self.patch_embedding = Conv2d(
            config.num_channels, dim, size, stride=size, bias=False, init=normal(0.02)
        )
        patches = (config.image_size // size) ** 2
        self.position_embedding = Embedding(1 + patches, dim, init=normal(0.02))

    def forward(self, images) -> Tensor:
        x = self.patch_embedding(images)  # (N, H / p, W / p, D)
        n, height, width, dim = x.shape
        x = x.reshape(n, height * width, dim)  # (N, T, D)
        zeros = array_module(x.data).zeros((n, 1, dim), x.dtype)
        first = zeros + self.class_embedding  # (N, 1, D)
        return concatenate([first, x], axis=1) + self.position_embedding.weight  # (N, 1 + T, D)


class CLIPVisionModel(Module):
    """The image encoder, a vision transformer (Dosovitskiy et al. 2021).

    `seed` initialises the parameters; without it they are zeros, to be loaded.
    """

    def __init__(self, config: CLIPVisionConfig, seed: int | None = None):
        self.config = config
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = LayerNorm(config.hidden_size)  # sic: CLIP's checkpoints spell it so
        self.encoder = CLIPEncoder(config, causal=False)
        self.post_layernorm = LayerNorm(config.hidden_size)
        if seed is not None:
            self.initialise(seed)

    def forward(self, images) -> Tensor:
        """The class token's last state (N, D) of images (N, H, W, C) in [-1, 1].

        Raises ValueError for images of another size.
        """
        size, channels = self.config.image_size, self.config.num_channels
        if images.ndim != 4 or images.shape[1:] != (size, size, channels):
            raise ValueError(
                f"CLIPVisionModel: images of shape {images.shape}; expected "
                f"(N, {size}, {size}, {channels})"
            )
        x = self.encoder(self.pre_layrnorm(self.embeddings(images)))  # (N, 1 + T, D)
        return self.post_layernorm(x[:, 0])  # (N, D)


class CLIP(Module):
    """The pair, with the projections into the common space and the learned temperature.

    `seed` initialises the parameters; without it they are zeros, to be loaded.
    """

    def __init__(
        self,
        text_config: CLIPTextConfig,
        vision_config: CLIPVisionConfig,
        projection_dim: int,
        seed: int | None = None,
    ):
        text_dim, vision_dim = text_config.hidden_size, vision_config.hidden_size
        self.text_model = CLIPTextModel(text_config)
        self.vision_model = CLIPVisionModel(vision_config)
        self.text_projection = Linear(
            text_dim, projection_dim, bias=False, init=normal(text_dim**-0.5)
        )
        self.visual_projection = Linear(
            vision_dim, projection_dim, bias=False, init=normal(vision_dim**-0.5)
        )
        start = math.log(1 / 0.07)  # similarities are multiplied by exp(logit_scale)
        self.logit_scale = Parameter((), lambda rng, shape: np.full(shape, start, np.float32))
        if seed is not None:
            self.initialise(seed)

    def encode_image(self, images) -> Tensor:
        """Unit vectors (N, P) of images (N, H, W, C)."""
        return _unit(self.visual_projection(self.vision_model(images)))

    def encode_text(self, ids) -> Tensor:
        """Unit vectors (N, P) of token ids (N, T)."""
        pooled = self.text_model.pool(self.text_model(ids), ids)  # (N, D)
        return _unit(self.text_projection(pooled))


def _unit(x: Tensor) -> Tensor:
    """x / |x| along the last axis."""
    return x / (x * x).sum(axis=-1, keepdims=True) ** 0.5
