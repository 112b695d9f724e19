"""Gaussian mixtures: data whose density, score and best denoiser are known at every noise level.

Add noise to a mixture and it stays a mixture, with each covariance S_k grown to S_k + sigma^2 I. So
every formula of diffusion can be checked against this file before any network exists.
"""

import math

import numpy as np

from .. import ops
from ..backend import array_module, to_host
from ..function import raw
from .denoiser import per_sample


class GaussianMixture:
    """p(x0) = sum_k w_k N(x0; m_k, S_k) in d dimensions; x = x0 + sigma n.

    Args:
        weights: (K,), not negative; scaled to sum to 1
        means: (K, d)
        covariances: (K, d, d), symmetric, no negative eigenvalue (zero is a point)

    Its methods take x (N, d), sigma a number or (N,), and `cond`: None, or weights (K,) or (N, K)
    that replace the mixture's own (a 1 at one component and 0 elsewhere asks for that component).
    dtype and device follow x.

    With the eigenvectors U_k and eigenvalues l_k of S_k, and x seen along them as
    a_k = U_k^T (x - m_k), every noised component is a product of one-dimensional Gaussians of
    variances v_k = l_k + sigma^2: the formulas below have no matrix to invert.
    Raises ValueError for shapes that do not fit, or a weight or covariance that cannot be one.
    """

    def __init__(self, weights, means, covariances):
        self.means = np.asarray(means, dtype=np.float64)
        self.covariances = np.asarray(covariances, dtype=np.float64)
        shape = self.means.shape
        if len(shape) != 2 or self.covariances.shape != (*shape, shape[1]):
            raise ValueError(
                f"means {self.means.shape} and covariances {self.covariances.shape} "
                "do not fit (K, d) and (K, d, d)"
            )
        if not (np.isfinite(self.means).all() and np.isfinite(self.covariances).all()):
            raise ValueError("means and covariances must be finite")
        self.weights = _normalised(np.asarray(weights), len(self.means))
        if self.weights.ndim != 1:
            raise ValueError(f"a mixture has one weight a component, got {self.weights.shape}")
        if not np.allclose(self.covariances, self.covariances.swapaxes(1, 2)):
            raise ValueError("covariances must be symmetric")
        self.variances, self.axes = np.linalg.eigh(self.covariances)  # (K, d), (K, d, d)
        if self.variances.min() < -1e-10 * np.abs(self.variances).max():
            raise ValueError(f"covariances have a negative eigenvalue, {self.variances.min():g}")
        self.variances = np.maximum(self.variances, 0)

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n samples of the clean mixture, (n, d) float64: m_k + U_k sqrt(l_k) z."""
        k = rng.choice(len(self.weights), size=n, p=self.weights)
        z = rng.standard_normal((n, self.means.shape[1], 1))
        spread = self.axes * np.sqrt(self.variances)[:, None, :]  # (K, d, d)
        return self.means[k] + (spread[k] @ z)[:, :, 0]  # (n, d)

    def denoiser(self, x, sigma, cond=None):
        """D(x; sigma, cond) = E[x0 | x] = sum_k r_k (m_k + U_k l_k / v_k a_k), exactly.

        Each component shrinks x towards its mean, along each axis by the share of the variance that
        is data; r_k, the probability that x came from component k, mixes them.
        Differentiable in x. Returns (N, d), a Tensor if x is one.
        """
        a, variances, v, means, axes, log_joint = self._components(x, sigma, cond)
        r = ops.softmax(log_joint, axis=0)  # (K, N)
        estimates = (a * (variances / v)) @ axes.swapaxes(1, 2) + means  # (K, N, d)
        return (estimates * r.reshape(*r.shape, 1)).sum(axis=0)  # (N, d)

    def score(self, x, sigma, cond=None):
        """grad_x log p(x; sigma, cond) = -sum_k r_k U_k a_k / v_k, exactly; (N, d).

        Straight from the density, not by way of the denoiser: the two can be compared.
        """
        a, _, v, _, axes, log_joint = self._components(x, sigma, cond)
        r = ops.softmax(log_joint, axis=0)  # (K, N)
        pulls = (a / v) @ axes.swapaxes(1, 2)  # (K, N, d)
        return -(pulls * r.reshape(*r.shape, 1)).sum(axis=0)  # (N, d)

    def log_density(self, x, sigma, cond=None):
        """log p(x; sigma, cond) = log sum_k w_k N(x; m_k, S_k + sigma^2 I), for an array x.

        Returns (N,).
        """
        *_, log_joint = self._components(x, sigma, cond)
        xp = array_module(x)
        top = log_joint.max(axis=0)  # (N,): the largest term leaves the sum, so exp cannot overflow
        return top + xp.log(xp.exp(log_joint - top).sum(axis=0))

    def _components(self, x, sigma, cond):
        """What the formulas share: a, l, v, m, U and log(w_k N(x; m_k, S_k + sigma^2 I)).

        Their shapes are (K, N, d), (K, 1, d), (K, N, d), (K, 1, d), (K, d, d) and (K, N).
        """
        data = raw(x)
        components, d = self.means.shape
        if data.ndim != 2 or data.shape[1] != d:
            raise ValueError(f"x has shape {data.shape}, the mixture wants (N, {d})")
        weights = self.weights if cond is None else _normalised(cond, components)
        weights = weights.reshape(-1, components).T  # (K, 1) or (K, N)
        tiny = np.finfo(np.float64).tiny
        log_weights = np.where(weights > 0, np.log(np.maximum(weights, tiny)), -np.inf)
        parameters = self.means[:, None], self.variances[:, None], self.axes, log_weights
        xp = array_module(data)
        means, variances, axes, log_weights = (xp.asarray(p, dtype=data.dtype) for p in parameters)
        v = variances + per_sample(sigma, data) ** 2  # (K, 1, d) + (N, 1) -> (K, N, d)
        a = (x.reshape(1, -1, d) - means) @ axes  # (K, N, d)
        constant = -0.5 * xp.log(2 * math.pi * v).sum(axis=2)  # (K, N)
        log_joint = (a**2 / v).sum(axis=2) * -0.5 + (constant + log_weights)
        return a, variances, v, means, axes, log_joint


def _normalised(weights, components: int) -> np.ndarray:
    """Weights (K,) or (N, K) as a host array whose rows sum to 1; ValueError if they cannot."""
    weights = np.asarray(to_host(weights), dtype=np.float64)
    if weights.ndim not in (1, 2) or weights.shape[-1] != components:
        raise ValueError(f"weights have shape {weights.shape}, with {components} components")
    total = weights.sum(axis=-1, keepdims=True)
    if not (np.all(weights >= 0) and np.all(total > 0) and np.all(np.isfinite(total))):
        raise ValueError("weights must not be negative, and not all zero")
    return weights / total
