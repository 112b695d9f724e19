"""Solutions of lesson 15 that are not functions of the library."""

import math

import numpy as np


def start(latent, noise, sigmas, strength):
    steps = len(sigmas) - 1
    first = steps - math.floor(steps * strength)
    return first, latent + sigmas[first] * noise


def turn(D, x, clean, known, sigma, low, noise, more):
    x = np.where(known, clean + sigma * noise, x)
    lower = x + (low - sigma) * (x - D(x, sigma)) / sigma
    return lower, lower + math.sqrt(sigma**2 - low**2) * more
