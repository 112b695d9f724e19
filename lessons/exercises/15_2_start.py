"""Exercise 15.2: where image to image starts.

A schedule has n steps, from sigmas[0] down to sigmas[n] = 0. Of strength s the last floor(n s) of
them are taken, so the first n - floor(n s) are left out. The start is the picture's latent with
noise of the level that the first step taken begins at: the noise is scaled and added, the latent
stays as it is. (With n steps the list has n + 1 levels.)
"""


def start(latent, noise, sigmas, strength):
    """latent, noise (N, h, w, C); sigmas a list of n + 1 levels; strength in 0 ... 1.

    Returns (first, x): how many steps are left out, and the noised latent (N, h, w, C).
    """
    # About 3 lines.
    raise NotImplementedError
