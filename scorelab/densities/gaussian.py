r"""Gaussians with full, diagonal, isotropic or low-rank covariance, kept as an eigendecomposition.

.. math:: \Sigma = U\,\mathrm{diag}(w)\,U^\top + \tau\,(I - UU^\top), \qquad U^\top U = I_r .

Noising maps :math:`w \to \alpha^2 w + \sigma^2` and :math:`\tau \to \alpha^2\tau + \sigma^2` and leaves ``U`` alone, so
that every formula costs two products with ``U`` at any noise level.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.densities.base import Density, as_parameter, check_points, law_pytree
from scorelab.typing import Array, Key


@law_pytree("mean", "basis", "eigenvalues", "tail", static=("event",))
class Gaussian(Density):
    """A Gaussian over points of any event shape.

    Args:
        mean: ``event``.
        cov: a number (isotropic), ``event`` (diagonal) or ``(d, d)`` with ``d = prod(event)``. Decomposed once on
            the host in float64; eigenvalues that rounding made negative become 0.

    Raises:
        ValueError: when ``cov`` has another shape, is not symmetric or is not positive semidefinite.
    """

    event: tuple[int, ...] = ()

    def __init__(self, mean: Array, cov: Array | float):
        mean = np.asarray(mean, np.float64)
        basis, eigenvalues, tail = decompose(np.asarray(cov, np.float64), mean.shape)
        self._set(mean, basis, eigenvalues, tail, mean.shape)

    @classmethod
    def from_data(cls, points: Array) -> Gaussian:
        """The Gaussian with the mean and the covariance (unbiased, float64) of points ``(n, *event)``, ``n >= 2``."""
        points = np.asarray(points, np.float64)
        if points.ndim < 2 or len(points) < 2:
            raise ValueError(f"Gaussian.from_data got points of shape {points.shape}: expected (n, *event) with n >= 2")
        flat = points.reshape(len(points), -1)
        return cls(points.mean(0), np.atleast_2d(np.cov(flat, rowvar=False)).reshape(flat.shape[1], -1))

    @classmethod
    def low_rank(cls, mean: Array, basis: Array, eigenvalues: Array, tail: Array | float = 0.0) -> Gaussian:
        """From orthonormal columns ``basis`` ``(d, r)``, variances ``(r,)`` along them and ``tail`` across them."""
        mean, basis = np.asarray(mean, np.float64), np.asarray(basis, np.float64)
        if basis.ndim != 2 or basis.shape[0] != mean.size or np.shape(eigenvalues) != basis.shape[1:]:
            raise ValueError(
                f"Gaussian.low_rank got basis {basis.shape} and eigenvalues {np.shape(eigenvalues)}: "
                f"expected ({mean.size}, r) and (r,)"
            )
        if np.max(np.abs(basis.T @ basis - np.eye(basis.shape[1])), initial=0.0) > 1e-5:
            raise ValueError("Gaussian.low_rank.basis has columns that are not orthonormal (tolerance 1e-5)")
        return cls._make(mean, basis, eigenvalues, tail, mean.shape)

    @classmethod
    def _make(cls, mean, basis, eigenvalues, tail, event) -> Gaussian:
        self = object.__new__(cls)
        self._set(mean, basis, eigenvalues, tail, event)
        return self

    def _set(self, mean, basis, eigenvalues, tail, event):
        self.mean, self.basis = as_parameter(mean), as_parameter(basis)
        self.eigenvalues, self.tail = as_parameter(eigenvalues), as_parameter(tail)
        self.event = tuple(event)

    @property
    def size(self) -> int:
        """The number of elements of one point."""
        return math.prod(self.event)

    def _centred(self, x: Array) -> tuple[Array, Array]:
        """``x - mean`` flattened to ``(batch, d)`` and its coordinates in the basis ``(batch, r)``."""
        flat = (check_points(self, x) - self.mean).reshape(-1, self.size)
        return flat, flat @ self.basis

    def _spectral(self, flat: Array, inside: Array, gain: Array, tail_gain: Array) -> Array:
        """Multiply by ``gain`` along the basis and by ``tail_gain`` across it; back in the event shape."""
        out = tail_gain * flat + (inside * (gain - tail_gain)) @ self.basis.T
        return out.reshape(-1, *self.event)

    def sample(self, key: Key, n: int) -> Array:
        """``n`` independent points."""
        noise = jax.random.normal(key, (n, self.size), self.mean.dtype)
        root = jnp.sqrt
        return self.mean + self._spectral(noise, noise @ self.basis, root(self.eigenvalues), root(self.tail))

    def log_prob(self, x: Array) -> Array:
        """Log density; ``+-inf`` or NaN for a singular covariance."""
        flat, inside = self._centred(x)
        rest = self.size - self.eigenvalues.shape[-1]
        outside = jnp.maximum(jnp.sum(flat**2, -1) - jnp.sum(inside**2, -1), 0.0) if rest else 0.0
        square = jnp.sum(inside**2 / self.eigenvalues, -1) + (outside / self.tail if rest else 0.0)
        log_det = jnp.sum(jnp.log(self.eigenvalues), -1) + (rest * jnp.log(self.tail) if rest else 0.0)
        return -0.5 * (square + log_det + self.size * math.log(2 * math.pi))

    def score(self, x: Array) -> Array:
        r""":math:`-\Sigma^{-1}(x-\mu)`."""
        flat, inside = self._centred(x)
        full = self.eigenvalues.shape[-1] == self.size
        return -self._spectral(flat, inside, 1 / self.eigenvalues, 0.0 if full else 1 / self.tail)

    def noised(self, process, t) -> Gaussian:
        """See the module."""
        alpha, sigma = process.alpha(t), process.sigma(t)
        return Gaussian._make(
            alpha * self.mean + process.offset(t),
            self.basis,
            alpha**2 * self.eigenvalues + sigma**2,
            alpha**2 * self.tail + sigma**2,
            self.event,
        )

    def denoise(self, process, y, t) -> Array:
        r""":math:`\mu + \alpha\Sigma(\alpha^2\Sigma+\sigma^2)^{-1}(y - b - \alpha\mu)`: no cancellation at any noise level."""
        alpha, sigma = process.alpha(t), process.sigma(t)
        noised = self.noised(process, t)
        flat, inside = noised._centred(y)
        gain = alpha * self.eigenvalues / (alpha**2 * self.eigenvalues + sigma**2)
        return self.mean + self._spectral(flat, inside, gain, alpha * self.tail / (alpha**2 * self.tail + sigma**2))

    def covariance(self) -> Array:
        """The covariance as a ``(d, d)`` matrix."""
        outside = self.tail * (jnp.eye(self.size) - self.basis @ self.basis.T)
        return (self.basis * self.eigenvalues) @ self.basis.T + outside


def decompose(cov: np.ndarray, event: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Basis ``(d, r)``, eigenvalues ``(r,)`` and tail of a covariance given as number, diagonal or matrix."""
    size = math.prod(event)
    none = np.zeros((size, 0)), np.zeros(0)
    if cov.ndim == 0:
        variances = cov
        result = (*none, cov)
    elif cov.shape == event and cov.ndim != 2:
        variances = cov.reshape(-1)
        result = (np.eye(size), variances, np.float64(0.0))
    elif cov.shape == (size, size):
        if not np.allclose(cov, cov.T, rtol=1e-5, atol=1e-8 * max(np.abs(cov).max(), 1e-300)):
            raise ValueError("Gaussian.cov is not symmetric")
        variances, basis = np.linalg.eigh(0.5 * (cov + cov.T))
        if variances.min() < -1e-6 * max(variances.max(), 0.0):
            raise ValueError(f"Gaussian.cov has the eigenvalue {variances.min():.3g}: expected positive semidefinite")
        result = (basis, np.maximum(variances, 0.0), np.float64(0.0))
    elif cov.shape == event:
        variances = cov.reshape(-1)
        result = (np.eye(size), variances, np.float64(0.0))
    else:
        raise ValueError(f"Gaussian.cov has shape {cov.shape}: expected (), {event} or ({size}, {size})")
    if not np.all(np.isfinite(variances)) or (cov.ndim < 2 and np.min(variances) < 0):
        raise ValueError("Gaussian.cov has a variance that is negative or not finite")
    return result
