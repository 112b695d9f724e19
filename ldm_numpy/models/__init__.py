"""The networks, with Stable Diffusion 1.x's structure and parameter names."""

from .autoencoder import AutoencoderConfig, AutoencoderKL
from .classifier import Classifier, ClassifierConfig
from .clip import CLIP, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel
from .unet import UNet, UNetConfig

__all__ = [
    "CLIP",
    "AutoencoderConfig",
    "AutoencoderKL",
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPVisionConfig",
    "CLIPVisionModel",
    "Classifier",
    "ClassifierConfig",
    "UNet",
    "UNetConfig",
]
