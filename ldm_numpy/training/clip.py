"""Stage 2: CLIP, which learns to tell the caption of an image from those of others."""

import dataclasses
import math
from pathlib import Path

import numpy as np

from .. import images, ops
from ..backend import generator, to_device, to_host
from ..data import captions, mnist
from ..models.clip import CLIP, CLIPTextConfig, CLIPVisionConfig
from ..parallel import Shards
from ..text import Tokenizer
from .dataset import Digits, shifted
from .loop import Stage, StageConfig

VOCABULARY = 640  # tokens at most: 512 for the bytes, merges enough for every caption's words
MAX_SCALE = math.log(100)  # of the temperature (Radford et al. 2021, section 2.5)


def train_tokenizer(train: Digits, seed: int, context_length: int) -> Tokenizer:
    """The merges, learned from a caption of every training image."""
    texts = train.captions(slice(None), seed, "tokenizer")
    return Tokenizer.train(texts, VOCABULARY, context_length)


class CLIPStage(Stage):
    """The symmetric contrastive loss over a batch; identical captions are all right answers.

    An answer of zero, all similarities equal, has loss ln(batch size). Repeated captions, among
    which the right answer is spread, keep the best possible loss above zero.
    """

    name = "clip"
    report = ("loss",)

    def __init__(
        self,
        text: CLIPTextConfig,
        vision: CLIPVisionConfig,
        projection_dim: int,
        config: StageConfig,
        tokenizer: Tokenizer,
        train: Digits,
        test: Digits,
        seed: int,
        device: str = "cpu",
    ):
        self.config, self.seed, self.device, self.tokenizer = config, seed, device, tokenizer
        self.train, self.test = train.captioned(), test
        text = dataclasses.replace(
            text,
            vocab_size=tokenizer.vocab_size,
            eos_token_id=tokenizer.end_token,
            max_position_embeddings=tokenizer.context_length,
        )
        self.network = CLIP(text, vision, projection_dim, seed=seed).to(device)
        self.networks = {"clip": self.network}
        self.baselines = {"loss": round(math.log(config.batch_size), 4)}

    def describe(self) -> dict:
        return super().describe() | {"network": clip_section(self.network)}

    def gradients(self, step: int, shards: Shards, parameters) -> list:
        index = mnist.batch_indices(len(self.train), self.config.batch_size, self.seed, step)
        texts = self.train.captions(index, self.seed, self.name, step)
        _, which = np.unique(texts, return_inverse=True)
        positives = which[:, None] == which[None, :]  # (N, N)
        ids = self.tokenizer(texts)  # (N, T)
        moved = shifted(self.train.pixels(index), generator(self.seed, self.name, step, "shift"))
        pixels = to_device(moved, self.device)

        def towers(rows):
            return [self.network.encode_image(pixels[rows]), self.network.encode_text(ids[rows])]

        def loss(image_features, text_features):
            scale = self.network.logit_scale
            on_device = to_device(positives, self.device)
            return ops.contrastive_loss(image_features, text_features, scale, on_device)

        scale = self.network.logit_scale
        own = [p for p in parameters if p is not scale]
        return [shards.coupled_backward(towers, loss, len(index), own, [scale])]

    def after_step(self) -> None:
        scale = self.network.logit_scale.data
        scale[...] = scale.clip(0, MAX_SCALE)

    def draw(self, path: Path, shards: Shards) -> None:
        """Test digits under the full caption that CLIP finds the most fitting."""
        texts = [captions.caption(*combination) for combination in captions.full_prompts()]
        pixels = self.test.pixels(slice(0, 24))
        seen = shards.forward(self.network.encode_image, to_device(pixels, self.device))
        said = shards.forward(self.network.encode_text, self.tokenizer(texts))
        best = to_host((seen @ said.T).argmax(1))
        labels = [texts[i] for i in best]
        images.save_png(images.grid(pixels, 8, scale=4, labels=labels), path)


def clip_section(network: CLIP) -> dict:
    """The configuration of the pair, as kept in files."""
    return {
        "text": dataclasses.asdict(network.text_model.config),
        "vision": dataclasses.asdict(network.vision_model.config),
        "projection_dim": network.text_projection.weight.shape[1],
    }
