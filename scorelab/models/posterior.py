r"""The posterior-guidance ladder: approximations of :math:`\nabla_y\log p(m\mid y_t)` for linear measurements.

With :math:`D = E[y_0\mid y_t]`, :math:`J = dD/dy`, the residual :math:`e = m - HD` and the noise ``R``, every rung is

.. math:: G = J^\top H^\top w ,

and differs in ``w``. If :math:`y_0` given :math:`y_t` is :math:`N(D, C)` with ``C`` constant, as under a Gaussian law, then
:math:`w = (R + HCH^\top)^{-1}e` is exact. For :math:`y_t = \alpha y_0 + b + \sigma\epsilon` of every process,
:math:`C = (\sigma^2/\alpha)\,J`. All rungs cost one backward pass through the model, the last ``k`` more.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array
from scorelab.grids import Grid
from scorelab.models.base import ask
from scorelab.models.guided import Guided, tweedie_factor
from scorelab.models.measurement import LinearMeasurement, product
from scorelab.models.per_sample import PER_SAMPLE, require_numbers
from scorelab.processes.linear_gaussian import GaussianPrediction
from scorelab.pytrees import partly_static
from scorelab.validation import require_spec


@dataclass(frozen=True, kw_only=True)
class MeasurementGuided(Guided):
    """A model pulled towards a measurement; a subclass gives the weights of the residual.

    Attributes:
        model: the prior.
        measurement: what was measured, the same for every sample; :meth:`LinearMeasurement.stacked` joins modalities.
    """

    measurement: LinearMeasurement

    @abc.abstractmethod
    def weigh(self, residual: Array, prior: GaussianPrediction, transpose: Callable[[Array], Array]) -> Array:
        """``w`` for the residuals ``(batch, k)``, of the same shape; ``transpose`` takes weights to ``J^T H^T w``."""

    def pull(self, y, t, cond=None):
        """See :class:`Guided`; the backward passes share one forward pass."""

        def denoise(y):
            prediction = ask(self.model, y, t, cond)
            return prediction.denoised, prediction

        denoised, vjp, prior = jax.vjp(denoise, y, has_aux=True)

        def transpose(weights):
            return vjp(self.measurement.adjoint(weights, y))[0]

        return prior, transpose(self.weigh(self.measurement.residual(denoised), prior, transpose))


@partly_static("model", "measurement", "zeta")
@dataclass(frozen=True, kw_only=True)
class DPS(MeasurementGuided):
    r"""Diffusion posterior sampling: a step of ``zeta`` against the gradient of :math:`|e|`, not a posterior.

    Published as an update after each ancestral step, :math:`y_s \leftarrow y_s - \zeta\,\nabla_y|e|^2/|e|`, whatever the step's
    length and the noise of the measurement. An ancestral step adds :math:`\delta\,G` for a pull ``G``, so that

    .. math:: G = \frac{2\zeta}{\delta\,|e|}\,J^\top H^\top e,\qquad
              \delta = \frac{\alpha_s}{\alpha_t}\sigma_t^2 - \frac{\alpha_t}{\alpha_s}\sigma_s^2 ,

    is the same update under ``DDIM(eta=1.0)`` on ``grid``. ``G`` grows with the number of steps and does not know ``R``: it is
    the gradient of no log-likelihood, and the spread of its samples means nothing. With the Gaussian likelihood of a
    point estimate instead, :math:`w = R^{-1}e`, it is :class:`SDA` with ``gamma=0``.

    Attributes:
        model: the prior.
        measurement: what was measured; its ``std`` is not used.
        grid: the grid that is sampled on (static); a time between its times counts as the nearest one.
        zeta: step size, a scalar or ``(batch,)``; a leaf.

    Source: Chung et al., "Diffusion posterior sampling for general noisy inverse problems", 2022, arXiv 2209.14687, algorithm 1.
    """

    grid: Grid
    zeta: Array | float = field(default=1.0, metadata=PER_SAMPLE)

    def __post_init__(self):
        require_spec(self, Grid, grid=self.grid)
        require_numbers(self, zeta=self.zeta)

    def weigh(self, residual, prior, transpose):
        process, times = prior.process, np.asarray(self.grid.times(prior.process), np.float64)
        alpha, sigma = (np.broadcast_to(np.asarray(f(times), np.float64), times.shape) for f in (process.alpha, process.sigma))
        with np.errstate(divide="ignore"):
            gaps = alpha[1:] / alpha[:-1] * sigma[:-1] ** 2 - alpha[:-1] / alpha[1:] * sigma[1:] ** 2
        nearest = jnp.argmin(jnp.abs(jnp.asarray(times[:-1], residual.dtype) - prior.t[..., None]), -1)
        strength = 2 * self.zeta / jnp.asarray(gaps, residual.dtype)[nearest]
        norm = jnp.linalg.norm(residual, axis=-1, keepdims=True)
        return strength[..., None] * residual / jnp.where(norm > 0, norm, 1.0)


@partly_static("model", "measurement", "gamma")
@dataclass(frozen=True, kw_only=True)
class SDA(MeasurementGuided):
    r"""Score-based data assimilation, :math:`w = (R + \gamma(\sigma/\alpha)^2 I)^{-1}e`.

    It takes :math:`HCH^\top` for a multiple of the identity that grows without bound with the noise: right at low noise for
    rows of ``H`` of norm :math:`\sqrt\gamma`, far too large at high noise.

    Attributes:
        model: the prior.
        measurement: what was measured.
        gamma: the multiple, at least 0, a scalar or ``(batch,)``; a leaf.

    Source: Rozet and Louppe, "Score-based data assimilation", 2023, arXiv 2306.10574, equation 14.
    """

    gamma: Array | float = field(default=1.0, metadata=PER_SAMPLE)

    def __post_init__(self):
        require_numbers(self, minimum=0.0, gamma=self.gamma)

    def weigh(self, residual, prior, transpose):
        ratio = prior.process.noise_ratio(prior.t)
        return residual / (self.measurement.noise(residual.dtype) + (self.gamma * ratio**2)[..., None])


@partly_static("model", "measurement", "prior_std")
@dataclass(frozen=True, kw_only=True)
class PiGDM(MeasurementGuided):
    r"""Pseudoinverse-guided diffusion, :math:`w = (R + r^2 HH^\top)^{-1}e` with the variance of an uncorrelated prior.

    .. math:: r^2 = \frac{s^2\sigma^2}{\alpha^2 s^2 + \sigma^2} .

    Exact for the prior :math:`N(\mu, s^2 I)`; for any other it ignores correlations, and the noise is mostly overstated.

    Attributes:
        model: the prior.
        measurement: what was measured.
        prior_std: ``s``, in the units of the chart, above 0, a scalar or ``(batch,)``; a leaf.

    Source: Song et al., "Pseudoinverse-guided diffusion models for inverse problems", ICLR 2023.
    """

    prior_std: Array | float = field(default=1.0, metadata=PER_SAMPLE)

    def __post_init__(self):
        require_numbers(self, above=0.0, prior_std=self.prior_std)

    def weigh(self, residual, prior, transpose):
        alpha, sigma = prior.process.alpha(prior.t), prior.process.sigma(prior.t)
        variance = (self.prior_std * sigma) ** 2 / ((alpha * self.prior_std) ** 2 + sigma**2)
        matrix = self.measurement.matrix.astype(residual.dtype)
        return _solve(variance[..., None, None] * product(matrix, matrix.T), self.measurement.noise(residual.dtype), residual)


@partly_static("model", "measurement")
@dataclass(frozen=True, kw_only=True)
class TweedieCovariance(MeasurementGuided):
    r"""The model's own posterior covariance, :math:`w = (R + HCH^\top)^{-1}e` with :math:`C = (\sigma^2/\alpha)\,dD/dy`.

    Exact for every Gaussian prior and every process; for others it neglects that ``C`` depends on ``y``, and that
    :math:`y_0` given :math:`y_t` is not Gaussian. It costs ``k + 1`` backward passes and a ``k x k`` eigendecomposition for
    each sample. The Jacobian of a network is neither symmetric nor semidefinite: :math:`HCH^\top` is symmetrised, and its
    negative directions, in units of the noise, are taken as 0. Without that the sum is singular at some noise level.

    Attributes:
        model: the prior.
        measurement: what was measured.
    """

    def weigh(self, residual, prior, transpose):
        batch, k = residual.shape
        rows = jnp.broadcast_to(jnp.eye(k, dtype=residual.dtype)[:, None], (k, batch, k))
        columns = jax.vmap(transpose)(rows).reshape(k, batch, -1)
        inside = product(columns, self.measurement.matrix.astype(residual.dtype).T).swapaxes(0, 1)
        spread = tweedie_factor(prior)[..., None, None] * (inside + inside.swapaxes(1, 2)) / 2
        return _solve(spread, self.measurement.noise(residual.dtype), residual)


def _solve(spread: Array, noise: Array, residual: Array) -> Array:
    """``(R + spread)^{-1} e`` for ``spread`` ``(k, k)`` or ``(batch, k, k)``, of which negative directions count as 0."""
    # In units of the noise every eigenvalue of the sum is at least 1.
    root = jnp.sqrt(noise)
    values, vectors = jnp.linalg.eigh(spread / (root[:, None] * root))
    along = jnp.einsum("...ij,...i->...j", vectors, residual / root, precision="highest") / (1 + jnp.maximum(values, 0.0))
    return jnp.einsum("...ij,...j->...i", vectors, along, precision="highest") / root
