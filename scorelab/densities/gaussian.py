r"""Gaussians with full, diagonal, isotropic or low-rank covariance, kept as an eigendecomposition.

.. math:: \Sigma = U\,\mathrm{diag}(w)\,U^\top + \tau\,(I - UU^\top), \qquad U^\top U = I_r .

Noising maps :math:`w \to \alpha^2 w + \sigma^2` and :math:`\tau \to \alpha^2\tau + \sigma^2` and leaves ``U`` alone, so
that every formula costs two products with ``U`` at any noise level.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scorelab.arrays import Array, Key, Scalar, is_traced
from scorelab.densities.base import Density, as_parameter, check_numbers, check_points, check_variances, law_pytree, require_known
from scorelab.densities.moments import elementwise, moments
from scorelab.processes.linear_gaussian import LinearGaussian

# The reach of a law of which only the moments are known.
UNKNOWN = -1.0

# Accelerators multiply float32 matrices with 8 to 10 bits unless told otherwise, and an exact law is to be exact.
_product = functools.partial(jnp.matmul, precision="highest")


@law_pytree("mean", "basis", "eigenvalues", "tail", "reach", static=("_event",))
class Gaussian(Density):
    """A Gaussian over points of any event shape.

    Args:
        mean: ``event``.
        cov: a number (isotropic), ``event`` (diagonal) or ``(d, d)`` with ``d = prod(event)``. Decomposed once on
            the host in float64; eigenvalues that rounding made negative become 0.

    Attributes:
        reach: the distance from the mean, along one direction, of rare points that lie further out than a Gaussian goes
            (see ``scorelab.densities.moments``): known where the law was made from data or from a mixture. 0 where there
            are none, negative where it is not known.

    Raises:
        ValueError: for numbers that are not finite, or when ``cov`` has another shape, is not symmetric or is not positive
            semidefinite.
    """

    def __init__(self, mean: Float[Array, " *event"], cov: Float[Array, " ..."] | float):
        require_known(self, mean=mean, cov=cov)
        check_numbers(self, mean=mean, cov=cov)
        mean = np.asarray(mean, np.float64)
        basis, eigenvalues, tail = decompose(np.asarray(cov, np.float64), mean.shape)
        self._set(mean, basis, eigenvalues, tail, mean.shape)

    @classmethod
    def from_data(
        cls,
        points: Array | Iterable[np.ndarray],
        *,
        rank: int | None = None,
        method: Literal["eigh", "randomized", "streaming"] = "eigh",
        tail: Literal["zero", "mean"] = "zero",
        seed: int = 0,
        covariance: Literal["full", "isotropic", "zero"] = "full",
    ) -> Gaussian:
        r"""The Gaussian with the mean and the unbiased covariance of points, accumulated in float64.

        Args:
            points: ``(n, *event)`` with ``n >= 2`` (one is enough for a mean alone), or an iterator over blocks of such
                rows, which is read once.
            rank: keep that many directions of largest variance; None for all.
            method: ``"eigh"`` of the ``d x d`` matrix, ``"randomized"`` SVD of the points, or ``"streaming"``, an incremental
                SVD in memory for one block and ``rank`` directions.
            tail: the variance in the directions left out, ``"zero"`` or their ``"mean"``.
            seed: of the randomized SVD.
            covariance: ``"full"``; ``"isotropic"``, :math:`\mathrm{tr}\,\Sigma/d` times the identity; ``"zero"``, the mean
                alone. The last two take none of the options above.

        Raises:
            ValueError: an option that is not one of these, too few points, or a value that is not finite.
        """
        if covariance not in ("full", "isotropic", "zero"):
            raise ValueError(f"from_data.covariance = {covariance!r}: expected 'full', 'isotropic' or 'zero'")
        if covariance == "full":
            found = moments(points, rank=rank, method=method, tail=tail, seed=seed)
            return cls._make(found.mean, found.basis, found.eigenvalues, found.tail, found.mean.shape, found.reach)
        if (rank, method, tail) != (None, "eigh", "zero"):
            raise ValueError(
                f"from_data got rank = {rank}, method = {method!r}, tail = {tail!r} with covariance = {covariance!r}: "
                "expected covariance = 'full', or none of them"
            )
        n, mean, variances, far = elementwise(points)
        if covariance == "isotropic" and n < 2:
            raise ValueError(f"from_data got {n} points with covariance = 'isotropic': expected at least 2")
        law = cls(mean, variances.mean() if covariance == "isotropic" else 0.0)
        return law._reaching(far)

    @classmethod
    def low_rank(
        cls,
        mean: Float[Array, " *event"],
        basis: Float[Array, " d r"],
        eigenvalues: Float[Array, " r"],
        tail: Scalar = 0.0,
    ) -> Self:
        """From orthonormal columns ``basis`` ``(d, r)``, variances ``(r,)`` along them and ``tail`` across them."""
        require_known("Gaussian.low_rank", mean=mean, basis=basis, eigenvalues=eigenvalues, tail=tail)
        check_numbers("Gaussian.low_rank", mean=mean)
        mean, basis = np.asarray(mean, np.float64), np.asarray(basis, np.float64)
        if basis.ndim != 2 or basis.shape[0] != mean.size or np.shape(eigenvalues) != basis.shape[1:]:
            raise ValueError(
                f"Gaussian.low_rank got basis {basis.shape} and eigenvalues {np.shape(eigenvalues)}: "
                f"expected ({mean.size}, r) and (r,)"
            )
        if not np.max(np.abs(basis.T @ basis - np.eye(basis.shape[1])), initial=0.0) <= 1e-5:
            raise ValueError("Gaussian.low_rank.basis has columns that are not orthonormal (tolerance 1e-5)")
        for name, variances in {"eigenvalues": eigenvalues, "tail": tail}.items():
            if not np.all((np.asarray(variances) >= 0) & np.isfinite(variances)):
                raise ValueError(f"Gaussian.low_rank.{name} has a value that is negative or not finite: expected variances")
        return cls._make(mean, basis, eigenvalues, tail, mean.shape)

    @classmethod
    def diagonal(cls, mean: Float[Array, " *event"], variances: Float[Array, " *event"]) -> Self:
        """From the mean and the variance of every element, both ``event``; the numbers may be traced."""
        check_numbers("Gaussian.diagonal", mean=mean)
        check_variances("Gaussian.diagonal", variances=variances)
        mean = jnp.asarray(mean)
        flat = jnp.broadcast_to(variances, mean.shape).ravel()
        return cls._make(mean, jnp.eye(mean.size, dtype=mean.dtype), flat, 0.0, mean.shape)

    @classmethod
    def _make(cls, mean, basis, eigenvalues, tail, event, reach: Array | float = UNKNOWN) -> Self:
        self = object.__new__(cls)
        self._set(mean, basis, eigenvalues, tail, event, reach)
        return self

    def _set(self, mean, basis, eigenvalues, tail, event, reach: Array | float = UNKNOWN):
        self.mean, self.basis = as_parameter(mean), as_parameter(basis)
        self.eigenvalues, self.tail = as_parameter(eigenvalues), as_parameter(tail)
        self.reach, self._event = as_parameter(reach), tuple(event)

    def _reaching(self, reach: float) -> Gaussian:
        """The same law of data whose reach is known."""
        return Gaussian._make(self.mean, self.basis, self.eigenvalues, self.tail, self.event, reach)

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one point."""
        return self._event

    @property
    def size(self) -> int:
        """The number of elements of one point."""
        return math.prod(self.event)

    def _centred(self, x: Float[Array, " batch *event"]) -> tuple[Float[jax.Array, " batch d"], Float[jax.Array, " batch r"]]:
        """``x - mean`` flattened to ``(batch, d)`` and its coordinates in the basis ``(batch, r)``."""
        flat = (check_points(self, x) - self.mean).reshape(-1, self.size)
        return flat, _product(flat, self.basis)

    def _spectral(
        self,
        flat: Float[jax.Array, " batch d"],
        inside: Float[jax.Array, " batch r"],
        gain: Float[jax.Array, " r"],
        tail_gain: Float[jax.Array, ""] | float,
    ) -> Float[jax.Array, " batch *event"]:
        """Multiply by ``gain`` along the basis and by ``tail_gain`` across it; back in the event shape."""
        out = tail_gain * flat + _product(inside * (gain - tail_gain), self.basis.T)
        return out.reshape(-1, *self.event)

    def sample(self, key: Key, n: int) -> Float[jax.Array, " {n} *event"]:
        """``n`` independent points."""
        noise = jax.random.normal(key, (n, self.size), self.mean.dtype)
        root = jnp.sqrt
        return self.mean + self._spectral(noise, _product(noise, self.basis), root(self.eigenvalues), root(self.tail))

    def log_prob(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch"]:
        """Log density; ``+-inf`` or NaN for a singular covariance."""
        flat, inside = self._centred(x)
        rest = self.size - self.eigenvalues.shape[-1]
        outside = jnp.maximum(jnp.sum(flat**2, -1) - jnp.sum(inside**2, -1), 0.0) if rest else 0.0
        square = jnp.sum(inside**2 / self.eigenvalues, -1) + (outside / self.tail if rest else 0.0)
        log_det = jnp.sum(jnp.log(self.eigenvalues), -1) + (rest * jnp.log(self.tail) if rest else 0.0)
        return -0.5 * (square + log_det + self.size * math.log(2 * math.pi))

    def score(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch *event"]:
        r""":math:`-\Sigma^{-1}(x-\mu)`."""
        flat, inside = self._centred(x)
        full = self.eigenvalues.shape[-1] == self.size
        return -self._spectral(flat, inside, 1 / self.eigenvalues, 0.0 if full else 1 / self.tail)

    def noised(self, process: LinearGaussian, t: Scalar) -> Gaussian:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return Gaussian._make(
            alpha * self.mean + process.offset(t),
            self.basis,
            alpha**2 * self.eigenvalues + sigma**2,
            alpha**2 * self.tail + sigma**2,
            self.event,
        )

    def denoise(self, process: LinearGaussian, y: Float[Array, " batch *event"], t: Scalar) -> Float[jax.Array, " batch *event"]:
        r""":math:`\mu + \alpha\Sigma(\alpha^2\Sigma+\sigma^2)^{-1}(y - b - \alpha\mu)`: no cancellation at any noise level."""
        alpha, sigma = process.alpha(t), process.sigma(t)
        noised = self.noised(process, t)
        flat, inside = noised._centred(y)
        gain, tail_gain = (jnp.multiply(alpha, ratio(w, alpha**2 * w + sigma**2)) for w in (self.eigenvalues, self.tail))
        return self.mean + self._spectral(flat, inside, gain, tail_gain)

    def scale(self):
        """See :class:`Density`; from the mean and the eigenvalues."""
        if is_traced(self):
            return None
        variance = np.sum(np.asarray(self.eigenvalues, np.float64)) + (self.size - len(self.eigenvalues)) * float(self.tail)
        return float(np.sqrt(np.mean(np.asarray(self.mean, np.float64) ** 2))), math.sqrt(variance / self.size)

    def matched(self) -> Gaussian:
        return self

    def covariance(self) -> Float[jax.Array, " d d"]:
        """The covariance as a ``(d, d)`` matrix."""
        outside = self.tail * (jnp.eye(self.size) - _product(self.basis, self.basis.T))
        return _product(self.basis * self.eigenvalues, self.basis.T) + outside

    def affine(self, scale: float, shift: float = 0.0) -> Gaussian:
        """The law of ``scale * x + shift``: from values in [0, 1] to [-1, 1] with ``affine(2.0, -1.0)``."""
        check_numbers("Gaussian.affine", scale=scale, shift=shift)
        mean, eigenvalues, tail = scale * self.mean + shift, scale**2 * self.eigenvalues, scale**2 * self.tail
        return Gaussian._make(mean, self.basis, eigenvalues, tail, self.event, abs(scale) * self.reach)

    def flow(
        self, process: LinearGaussian, y: Float[Array, " batch *event"], s: Scalar, t: Scalar
    ) -> Float[jax.Array, " batch *event"]:
        r"""The probability flow of the noised law from time ``s`` to time ``t`` in closed form.

        .. math:: y_t = \alpha_t\mu + b_t + U\,\mathrm{diag}\sqrt{\frac{\alpha_t^2 w+\sigma_t^2}{\alpha_s^2 w+\sigma_s^2}}\,U^\top
                  (y_s - \alpha_s\mu - b_s) + \text{(the same across the basis, with }\tau).

        Args:
            process: the linear-Gaussian process.
            y: ``(batch, *event)`` in the chart, at time ``s``.
            s: where the flow begins, a scalar; with no noise (:math:`\sigma_s = 0`) only a regular law has a flow.
            t: where it ends.

        Source: arXiv 2412.09726, for every :math:`(\alpha, \sigma, b)`.
        """
        begin, end = self.noised(process, s), self.noised(process, t)
        flat, inside = begin._centred(y)
        gain, tail_gain = self._gains(begin, end)
        return end.mean + self._spectral(flat, inside, gain, tail_gain)

    def flow_log_det(self, process: LinearGaussian, s: Scalar, t: Scalar) -> Float[jax.Array, ""]:
        """The log-determinant of :meth:`flow`, the same at every point."""
        gain, tail_gain = self._gains(self.noised(process, s), self.noised(process, t))
        rest = self.size - self.eigenvalues.shape[-1]
        return jnp.sum(jnp.log(gain), -1) + (rest * jnp.log(tail_gain) if rest else 0.0)

    @staticmethod
    def _gains(begin: Gaussian, end: Gaussian) -> tuple[Float[jax.Array, " r"], Float[jax.Array, ""]]:
        gain, tail_gain = (jnp.sqrt(b) / jnp.sqrt(a) for a, b in ((begin.eigenvalues, end.eigenvalues), (begin.tail, end.tail)))
        # Nothing lies across a full basis, whatever its tail says.
        return gain, jnp.zeros_like(tail_gain) if begin.eigenvalues.shape[-1] == begin.size else tail_gain


def ratio(part: Float[Array, " *shape"], whole: Float[Array, " *shape"]) -> Float[jax.Array, " *shape"]:
    """``part / whole``, 0 where both are: a direction without variance stays at its mean."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)


def decompose(cov: np.ndarray, event: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Basis ``(d, r)``, eigenvalues ``(r,)`` and tail of a covariance given as number, diagonal or matrix."""
    size = math.prod(event)
    none = np.zeros((size, 0)), np.zeros(0)
    if cov.ndim == 0:
        variances = cov
        result = (*none, cov)
    elif cov.shape == event and cov.ndim != 2:
        variances = cov.reshape(-1)
        result = (np.eye(size), variances, np.zeros(()))
    elif cov.shape == (size, size):
        if not np.allclose(cov, cov.T, rtol=1e-5, atol=1e-8 * max(np.abs(cov).max(), 1e-300)):
            raise ValueError("Gaussian.cov is not symmetric")
        variances, basis = np.linalg.eigh(0.5 * (cov + cov.T))
        if variances.min() < -1e-6 * max(variances.max(), 0.0):
            raise ValueError(f"Gaussian.cov has the eigenvalue {variances.min():.3g}: expected positive semidefinite")
        result = (basis, np.maximum(variances, 0.0), np.zeros(()))
    elif cov.shape == event:
        variances = cov.reshape(-1)
        result = (np.eye(size), variances, np.zeros(()))
    else:
        raise ValueError(f"Gaussian.cov has shape {cov.shape}: expected (), {event} or ({size}, {size})")
    if not np.all(np.isfinite(variances)) or (cov.ndim < 2 and np.min(variances) < 0):
        raise ValueError("Gaussian.cov has a variance that is negative or not finite")
    return result
