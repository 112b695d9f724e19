"""Exercise 15.4: inversion by Euler's steps.

The probability-flow ODE, followed upwards from the least level to the highest. A step from sigma to
the next level sigma' > sigma:

    x' = x + (sigma' - sigma) (x - D(x, sigma)) / sigma

The levels come as a sampler has them: falling, with a 0 at the end, where there is no slope to
follow. So the way begins at the least level above 0, and x is taken to be there: no noise is added.
"""


def invert(D, x, sigmas):
    """D(x, sigma) gives the denoised x; x (N, d) a clean latent; sigmas fall, the last is 0.

    Returns x at the level sigmas[0], (N, d).
    """
    # About 4 lines: turn the list around without the 0, then step from each level to the next.
    raise NotImplementedError
