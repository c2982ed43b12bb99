r"""Gaussian fields on periodic grids, and their posteriors, by fast Fourier transforms.

A stationary field has the covariance :math:`\Sigma = F^*\,\mathrm{diag}(\lambda)\,F` with the unitary transform ``F`` over the
grid. The eigenvalue of a mode is its variance, with :math:`\lambda_k=\lambda_{-k}`, and the variance at a point is their mean.
A function of the covariance is a filter, which costs :math:`O(N\log N)`. Filters act on real fields and give real fields, so
that no mode has a factor of its own.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from scorelab.arrays import Array, Key, Scalar, is_traced
from scorelab.densities.base import Density, as_parameter, check_numbers, check_points, law_pytree
from scorelab.densities.gaussian import Gaussian, ratio
from scorelab.densities.spectra import Spectrum
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.validation import require_int

# The most elements of which a dense Gaussian is made on the way: its matrix has 128 MiB in float64.
DENSE = 4096


def filtered(x: Float[Array, " *batch_event"], gain: Float[Array, " *event"]) -> Float[jax.Array, " *batch_event"]:
    """``x`` ``(..., *grid, channels)`` with every mode times ``gain`` ``(*grid, channels)``, which is real and even."""
    grid = gain.shape[:-1]
    axes = tuple(range(-1 - len(grid), -1))
    half = gain[..., : grid[-1] // 2 + 1, :]
    return jnp.fft.irfftn(jnp.fft.rfftn(x, axes=axes) * half, s=grid, axes=axes)


@law_pytree("mean", "spectrum", static=("_event",))
class GaussianField(Density):
    """A stationary Gaussian field on a periodic grid of any rank; channels are independent.

    Log-density, scores, denoised points and samples are exact and cost a few fast Fourier transforms at any noise level. It is the
    :class:`Gaussian` with the same mean and covariance, without the ``d x d`` matrix.

    Args:
        shape: ``(*grid, channels)``, a point.
        spectrum: a :class:`scorelab.densities.Spectrum`, or the eigenvalues of the covariance, which broadcast to ``shape`` and are
            in the order of ``numpy.fft``: even in every mode, none below 0.
        mean: broadcasts to ``shape``; it need not be constant.
        variance: of a point of the grid under a :class:`Spectrum`, a number or ``(channels,)``; eigenvalues are taken times it.

    Raises:
        ValueError: a shape without a grid axis and channels, numbers that are not finite, eigenvalues below 0 or not even.
    """

    def __init__(self, shape: tuple[int, ...], spectrum: Spectrum | ArrayLike, *, mean: ArrayLike = 0.0, variance: ArrayLike = 1.0):
        shape = tuple(shape) if np.iterable(shape) else shape
        if not isinstance(shape, tuple) or len(shape) < 2:
            raise ValueError(
                f"GaussianField.shape = {shape!r}: expected (*grid, channels) with at least one grid axis, such as (16, 1)"
            )
        for side in shape:
            require_int(self, 1, shape=side)
        given = spectrum(shape[:-1])[..., None] if isinstance(spectrum, Spectrum) else spectrum
        spread = self._numbers("spectrum", given, shape) * self._numbers("variance", variance, shape[-1:])
        if spread.min() < 0:
            raise ValueError(f"GaussianField.spectrum times variance has the value {spread.min():g}: expected none below 0")
        grid = tuple(range(len(shape) - 1))
        opposite = np.roll(np.flip(spread, grid), 1, grid)
        if not np.allclose(spread, opposite, rtol=1e-6, atol=0):
            raise ValueError("GaussianField.spectrum differs between the modes k and -k: expected that of a real field, even in k")
        self._set(self._numbers("mean", mean, shape), (spread + opposite) / 2, shape)

    def _numbers(self, name: str, value: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
        """A field of the constructor in float64, broadcast to ``shape``."""
        if is_traced(value):
            raise ValueError(f"GaussianField.{name} is traced: expected numbers, since a field is checked on the host")
        check_numbers(self, **{name: value})
        value = np.asarray(value, np.float64)
        if value.ndim > len(shape) or any(n not in (1, m) for n, m in zip(value.shape[::-1], shape[::-1], strict=False)):
            raise ValueError(f"GaussianField.{name} has shape {value.shape}: expected one that broadcasts to {shape}")
        return np.broadcast_to(value, shape)

    def _set(self, mean, spectrum, event):
        self.mean, self.spectrum, self._event = as_parameter(mean), as_parameter(spectrum), tuple(event)
        return self

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one point, ``(*grid, channels)``."""
        return self._event

    @property
    def size(self) -> int:
        """The number of elements of one point."""
        return math.prod(self._event)

    @property
    def variance(self) -> Float[jax.Array, " channels"]:
        """The variance at every point of the grid, ``(channels,)``."""
        return jnp.mean(self.spectrum, axis=tuple(range(len(self._event) - 1)))

    def sample(self, key: Key, n: int) -> Float[jax.Array, " {n} *event"]:
        """``n`` independent fields."""
        require_int("GaussianField.sample", 0, n=n)
        return self.mean + filtered(jax.random.normal(key, (n, *self.event), self.mean.dtype), jnp.sqrt(self.spectrum))

    def log_prob(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch"]:
        """Log density; ``+-inf`` or NaN where a mode has no variance."""
        white = filtered(check_points(self, x) - self.mean, 1 / jnp.sqrt(self.spectrum))
        square = jnp.sum(white**2, axis=tuple(range(1, white.ndim)))
        return -0.5 * (square + jnp.sum(jnp.log(self.spectrum)) + self.size * math.log(2 * math.pi))

    def score(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch *event"]:
        r""":math:`-\Sigma^{-1}(x-\mu)`."""
        return -filtered(check_points(self, x) - self.mean, 1 / self.spectrum)

    def noised(self, process: LinearGaussian, t: Scalar) -> GaussianField:
        alpha, sigma = process.alpha(t), process.sigma(t)
        mean, spectrum = alpha * self.mean + process.offset(t), alpha**2 * self.spectrum + sigma**2
        return object.__new__(GaussianField)._set(mean, spectrum, self.event)

    def denoise(self, process: LinearGaussian, y: Float[Array, " batch *event"], t: Scalar) -> Float[jax.Array, " batch *event"]:
        r""":math:`\mu + \alpha\Sigma(\alpha^2\Sigma+\sigma^2)^{-1}(y - b - \alpha\mu)`: no cancellation at any noise level."""
        alpha, sigma = process.alpha(t), process.sigma(t)
        gain = alpha * ratio(self.spectrum, alpha**2 * self.spectrum + sigma**2)
        return self.mean + filtered(check_points(self, y) - process.offset(t) - alpha * self.mean, gain)

    def covariance(self) -> Float[jax.Array, " d d"]:
        """The covariance as a dense ``(d, d)`` matrix."""
        unit = jnp.eye(self.size, dtype=self.mean.dtype).reshape(self.size, *self.event)
        return filtered(unit, self.spectrum).reshape(self.size, self.size)

    def scale(self):
        """See :class:`Density`; from the mean and the eigenvalues."""
        return _scale(self.mean, self.spectrum)

    def matched(self) -> Gaussian | None:
        """The dense Gaussian of the same law; None above 4096 elements, whose matrix nobody asked for."""
        return None if self.size > DENSE else _dense(self)

    def given(self, matrix: ArrayLike, values: ArrayLike, noise: ArrayLike) -> ConditionedField:
        r"""The law given ``k`` linear functionals, :math:`m = Hx + \eta` with independent noise; on the host in float64.

        Args:
            matrix: ``H``, ``(k, d)`` on flattened points.
            values: ``m``, ``(k,)``.
            noise: variances of the noise, ``(k,)``, above 0.

        Raises:
            ValueError: shapes that do not fit, traced numbers, noise that is not above 0.
        """
        if is_traced((self, matrix, values, noise)):
            raise ValueError("GaussianField.given got traced numbers: expected known ones, since they are decomposed on the host")
        matrix, values, noise = (np.asarray(a, np.float64) for a in (matrix, values, noise))
        k = len(values)
        if matrix.shape != (k, self.size) or noise.shape != (k,) or not np.all(noise > 0):
            raise ValueError(
                f"GaussianField.given got a matrix {matrix.shape}, values {values.shape} and noise {noise.shape}: expected "
                f"(k, {self.size}), (k,) and (k,), with noise above 0"
            )
        mean, spectrum = np.asarray(self.mean, np.float64), np.asarray(self.spectrum, np.float64)
        grid = tuple(range(1, len(self.event)))
        rows = matrix.reshape(k, *self.event)
        spread = np.fft.ifftn(np.fft.fftn(rows, axes=grid) * spectrum, axes=grid).real.reshape(k, -1)
        root = np.linalg.cholesky(np.diag(noise) + _symmetric(matrix @ spread.T))
        whitener = np.linalg.inv(root)
        explained, residual = whitener @ spread, whitener @ (values - matrix @ mean.ravel())
        prior = np.broadcast_to(spectrum.mean(tuple(range(len(self.event) - 1))), self.event).ravel()
        square = residual @ residual + 2 * np.sum(np.log(np.diag(root))) + k * math.log(2 * math.pi)
        return object.__new__(ConditionedField)._set(
            law=self,
            rows=rows,
            values=values,
            noise=np.diag(noise),
            whitener=whitener,
            mean=mean + (residual @ explained).reshape(self.event),
            variance=np.maximum(prior - np.sum(explained**2, 0), 0.0).reshape(self.event),
            log_evidence=-0.5 * square,
        )


_PARTS = ("law", "rows", "values", "noise", "whitener", "mean", "variance", "log_evidence")


@law_pytree(*_PARTS)
class ConditionedField(Density):
    r"""A Gaussian field given ``k`` noisy linear functionals, without a matrix of the size of the field.

    Made by :meth:`GaussianField.given`. With :math:`S = R + H\Sigma H^\top`,

    .. math:: \mu' = \mu + \Sigma H^\top S^{-1}(m-H\mu),\qquad \Sigma' = \Sigma - \Sigma H^\top S^{-1} H\Sigma .

    Noised, it is the noised field times a Gaussian likelihood of other functionals, :math:`p(y_t)\,p(m\mid y_t)/p(m)`. So
    log-density, score and denoised points stay exact. All of it costs ``k`` filters and a ``k x k`` decomposition, and no
    covariances are subtracted.

    Attributes:
        mean: ``event``.
        variance: at every element, ``event``.
        log_evidence: :math:`\log N(m; H\mu, S)`, in nats.
    """

    def __init__(self, *args, **kwargs):
        raise TypeError("ConditionedField is made by GaussianField.given or models.exact_posterior")

    def _set(self, *, law: GaussianField, **numbers) -> ConditionedField:
        self.law: GaussianField = law
        self.rows, self.values, self.noise, self.whitener, self.mean, self.variance, self.log_evidence = (
            as_parameter(numbers[name]) for name in _PARTS[1:]
        )
        return self

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one point, ``(*grid, channels)``."""
        return self.law.event

    @property
    def size(self) -> int:
        """The number of elements of one point."""
        return self.law.size

    def sample(self, key: Key, n: int) -> Float[jax.Array, " {n} *event"]:
        r"""``n`` independent fields: a draw of the law, moved by what its own measurement says of the error (Matheron's rule).

        .. math:: x = u + \Sigma H^\top S^{-1}(m + \eta - Hu) .
        """
        require_int("ConditionedField.sample", 0, n=n)
        key_field, key_noise = jax.random.split(key)
        u = self.law.sample(key_field, n)
        eta = _product(jax.random.normal(key_noise, (n, len(self.values)), u.dtype), jnp.linalg.cholesky(self.noise).T)
        white = _product(self._residual(u) + eta, self.whitener.T)
        return u + filtered(self._adjoint(_product(white, self.whitener)), self.law.spectrum)

    def log_prob(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch"]:
        x = check_points(self, x)
        root = jnp.linalg.cholesky(self.noise)
        white = jax.scipy.linalg.solve_triangular(root, self._residual(x).T, lower=True)
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(root))) + len(root) * math.log(2 * math.pi)
        return self.law.log_prob(x) - 0.5 * (jnp.sum(white**2, 0) + log_det) - self.log_evidence

    def score(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch *event"]:
        r""":math:`\nabla\log p(x) + H^\top R^{-1}(m - Hx)`."""
        x = check_points(self, x)
        return self.law.score(x) + self._adjoint(_solve(self.noise, self._residual(x)))

    def noised(self, process: LinearGaussian, t: Scalar) -> ConditionedField:
        r"""See the class: :math:`H_t = \alpha H\Sigma A^{-1}`, :math:`R_t = R + \sigma^2H\Sigma A^{-1}H^\top`, with
        :math:`A = \alpha^2\Sigma+\sigma^2`; ``S`` stays.
        """
        alpha, sigma, offset = process.alpha(t), process.sigma(t), process.offset(t)
        rows = filtered(self.rows, alpha * ratio(self.law.spectrum, alpha**2 * self.law.spectrum + sigma**2))
        shift = _inner(rows, offset + alpha * self.law.mean) - _inner(self.rows, self.law.mean)
        return object.__new__(ConditionedField)._set(
            law=self.law.noised(process, t),
            rows=rows,
            values=self.values + shift,
            noise=self._unknown(alpha, sigma)[0],
            whitener=self.whitener,
            mean=alpha * self.mean + offset,
            variance=alpha**2 * self.variance + sigma**2,
            log_evidence=self.log_evidence,
        )

    def denoise(self, process: LinearGaussian, y: Float[Array, " batch *event"], t: Scalar) -> Float[jax.Array, " batch *event"]:
        r""":math:`D + C_tH^\top(R + HC_tH^\top)^{-1}(m - HD)` with the law's own ``D`` and :math:`C_t = \sigma^2\Sigma A^{-1}`."""
        denoised = self.law.denoise(process, y, t)
        noise, left = self._unknown(process.alpha(t), process.sigma(t))
        return denoised + filtered(self._adjoint(_solve(noise, self._residual(denoised))), left)

    def covariance(self) -> Float[jax.Array, " d d"]:
        """The covariance as a dense ``(d, d)`` matrix."""
        explained = _product(self.whitener, filtered(self.rows, self.law.spectrum).reshape(len(self.values), -1))
        return self.law.covariance() - _product(explained.T, explained)

    def scale(self):
        """See :class:`Density`; from the mean and the variance."""
        return _scale(self.mean, self.variance)

    def matched(self) -> Gaussian | None:
        """The dense Gaussian of the same law; None above 4096 elements."""
        return None if self.size > DENSE else _dense(self)

    def _residual(self, x):
        """``m - H x``, ``(batch, k)``."""
        return self.values - _product(x.reshape(len(x), -1), self.rows.reshape(len(self.values), -1).T)

    def _adjoint(self, weights):
        """``H^T w`` for ``w`` ``(batch, k)``."""
        return _product(weights, self.rows.reshape(len(self.values), -1)).reshape(len(weights), *self.event)

    def _unknown(self, alpha, sigma):
        """``R + H C_t H^T``, ``(k, k)``, and the eigenvalues of ``C_t``."""
        left = sigma**2 * ratio(self.law.spectrum, alpha**2 * self.law.spectrum + sigma**2)
        flat = self.rows.reshape(len(self.values), -1)
        return self.noise + _symmetric(_product(flat, filtered(self.rows, left).reshape(flat.shape).T)), left


def _product(a, b):
    # Accelerators multiply float32 matrices with 8 to 10 bits unless told otherwise.
    return jnp.matmul(a, b, precision="highest")


def _inner(rows, x):
    return _product(rows.reshape(len(rows), -1), x.ravel())


def _symmetric(a):
    return (a + a.T) / 2


def _solve(noise, residual):
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(noise), True), residual.T).T


def _scale(mean, variance) -> tuple[float, float] | None:
    if is_traced((mean, variance)):
        return None
    mean, variance = (np.asarray(a, np.float64) for a in (mean, variance))
    return float(np.sqrt(np.mean(mean**2))), float(np.sqrt(np.mean(variance)))


def _dense(law: GaussianField | ConditionedField) -> Gaussian:
    covariance = np.asarray(law.covariance(), np.float64)
    return Gaussian(np.asarray(law.mean, np.float64), _symmetric(covariance))
