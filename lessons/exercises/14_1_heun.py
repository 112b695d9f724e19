"""Exercise 14.1: Heun's method.

The probability-flow ODE has the slope f(x, sigma) = (x - D(x, sigma)) / sigma. A step from sigma to
the next level sigma':

    trial = x + (sigma' - sigma) f(x, sigma)
    x'    = x + (sigma' - sigma) (f(x, sigma) + f(trial, sigma')) / 2

At sigma' = 0 there is no slope: there x' = trial.
"""


def heun(D, x, sigmas):
    """D(x, sigma) gives the denoised x; x (N, d) at level sigmas[0]; sigmas fall, the last is 0.

    Returns x at the last level, (N, d).
    """
    # About 8 lines: a loop over pairs of neighbours, zip(sigmas, sigmas[1:]).
    raise NotImplementedError
