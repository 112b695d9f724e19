"""Exercise 13.2: from noise to a sample, by Euler's steps, with guidance in an interval.

At each level sigma, with the next level s:

    D = D_u + w (D_c - D_u) where low < sigma <= high, D_c elsewhere
    x <- x + (s - sigma) (x - D) / sigma

D_c = denoiser(x, sigma, cond), D_u = denoiser(x, sigma, uncond).
"""


def sample(denoiser, x, sigmas, cond, uncond, w, low, high):
    """x (N, D): noise of level sigmas[0]; sigmas: falling levels, the last is 0. Returns (N, D)."""
    # About 7 lines.
    raise NotImplementedError
