"""Text-to-image latent diffusion on NumPy, every gradient derived by hand.

    import ldm_numpy
    pipe = ldm_numpy.load()
    images = pipe("a bold seven leaning left", num_images_per_prompt=4, seed=0)
"""

from .model_folder import load
from .pipeline import TextToImage

__version__ = "0.1.0"
__all__ = ["TextToImage", "load"]
