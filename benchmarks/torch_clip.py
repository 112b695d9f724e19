"""CLIP in PyTorch (see torch_models.py)."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .torch_models import as_tokens, heads_attention


class CLIPAttention(nn.Module):
    def __init__(self, dim, heads, causal):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.k_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.q_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.out_proj(heads_attention(q, k, v, self.heads, self.causal))


class CLIPMLP(nn.Module):
    def __init__(self, dim, inner):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, inner), nn.Linear(inner, dim)

    def forward(self, x):
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h))


class CLIPEncoderLayer(nn.Module):
    def __init__(self, config, causal):
        super().__init__()
        dim = config.hidden_size
        self.self_attn = CLIPAttention(dim, config.num_attention_heads, causal)
        self.layer_norm1 = nn.LayerNorm(dim)
        self.mlp = CLIPMLP(dim, config.intermediate_size)
        self.layer_norm2 = nn.LayerNorm(dim)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


def encoder(config, causal):
    layers = [CLIPEncoderLayer(config, causal) for _ in range(config.num_hidden_layers)]
    return nn.ModuleDict({"layers": nn.Sequential(*layers)})


class CLIPTextModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim = config.hidden_size
        self.embeddings = nn.ModuleDict(
            {
                "token_embedding": nn.Embedding(config.vocab_size, dim),
                "position_embedding": nn.Embedding(config.max_position_embeddings, dim),
            }
        )
        self.encoder = encoder(config, causal=True)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, ids):
        positions = self.embeddings["position_embedding"].weight[: ids.shape[1]]
        x = self.embeddings["token_embedding"](ids) + positions
        return self.final_layer_norm(self.encoder["layers"](x))


class CLIPVisionEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim, size = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(dim))
        self.patch_embedding = nn.Conv2d(config.num_channels, dim, size, size, bias=False)
        self.position_embedding = nn.Embedding(1 + (config.image_size // size) ** 2, dim)

    def forward(self, images):
        x = as_tokens(self.patch_embedding(images))
        first = self.class_embedding.expand(len(x), 1, -1)
        return torch.cat([first, x], dim=1) + self.position_embedding.weight


class CLIPVisionModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size)
        self.encoder = encoder(config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.hidden_size)

    def forward(self, images):
        x = self.encoder["layers"](self.pre_layrnorm(self.embeddings(images)))
        return self.post_layernorm(x[:, 0])


class CLIP(nn.Module):
    def __init__(self, text, vision, projection_dim):
        super().__init__()
        self.end = text.eos_token_id
        self.text_model, self.vision_model = CLIPTextModel(text), CLIPVisionModel(vision)
        self.text_projection = nn.Linear(text.hidden_size, projection_dim, bias=False)
        self.visual_projection = nn.Linear(vision.hidden_size, projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, images):
        return F.normalize(self.visual_projection(self.vision_model(images)), dim=-1)

    def encode_text(self, ids):
        states = self.text_model(ids)
        pooled = states[torch.arange(len(ids)), (ids == self.end).int().argmax(dim=1)]
        return F.normalize(self.text_projection(pooled), dim=-1)
