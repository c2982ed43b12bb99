"""Log-normal laws on positive data, closed under geometric Brownian motion."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float
from numpy.typing import ArrayLike

from scorelab.arrays import Array, Key, Scalar
from scorelab.densities.base import Density, law_pytree
from scorelab.densities.field import ConditionedField, GaussianField
from scorelab.densities.gaussian import Gaussian
from scorelab.densities.mixture import GaussianMixture, Mixture
from scorelab.processes.charts import Chart, Log
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.validation import require_spec


@law_pytree("logs")
class LogNormalMixture(Density):
    r"""Positive points whose logarithm is a Gaussian mixture, :math:`\log x \sim \sum_k w_k N(\mu_k, \Sigma_k)`.

    .. math:: \log p(x) = \log p_{\log}(\log x) - \sum_i\log x_i .

    Under geometric Brownian motion component :math:`(w_k, \mu_k, \Sigma_k)` becomes
    :math:`(w_k,\ \mu_k + a(t),\ \Sigma_k + v(t) I)`.

    Args:
        weights: ``(K,)``, positive; normalised here.
        means: ``(K, *event)``, of ``log x``.
        covs: ``(K,)``, ``(K, *event)`` or ``(K, d, d)``, of ``log x``.

    Attributes:
        logs: the law of ``log x``, a :class:`GaussianMixture` or what :meth:`of` was given.
    """

    def __init__(self, weights: ArrayLike, means: ArrayLike, covs: ArrayLike):
        self.logs: Mixture | Gaussian | GaussianField | ConditionedField = GaussianMixture(weights, means, covs)

    @classmethod
    def of(cls, logs: Mixture | Gaussian | GaussianField | ConditionedField) -> LogNormalMixture:
        """From the law of ``log x``: any Gaussian law or mixture, such as a :class:`GaussianField` for a log-Gaussian field."""
        require_spec("LogNormalMixture.of", Mixture | Gaussian | GaussianField | ConditionedField, logs=logs)
        self = object.__new__(cls)
        self.logs = logs
        return self

    @property
    def event(self):
        """The shape of one point."""
        return self.logs.event

    @property
    def weights(self) -> Float[jax.Array, " components"]:
        """The mixture weights, ``(K,)``; one of a law that is no mixture."""
        return self.logs.weights if isinstance(self.logs, Mixture) else jnp.ones(1)

    def sample(self, key: Key, n: int) -> Float[jax.Array, " {n} *event"]:
        """``n`` independent positive points."""
        return jnp.exp(self.logs.sample(key, n))

    def log_prob(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch"]:
        """Log density in data space; ``-inf`` where a coordinate is not positive."""
        x = jnp.asarray(x)
        inside = jnp.all(x > 0, axis=tuple(range(1, x.ndim)))
        logs = jnp.log(jnp.where(x > 0, x, 1.0))
        log_det = jnp.sum(logs, axis=tuple(range(1, x.ndim)))
        return jnp.where(inside, self.logs.log_prob(logs) - log_det, -jnp.inf)

    def score(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch *event"]:
        r"""The Stein score :math:`\nabla_x\log p(x) = (\nabla_y\log p_{\log}(\log x) - 1)/x`; NaN unless ``x > 0``."""
        return self.hyvarinen_score(x) / x

    def hyvarinen_score(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch *event"]:
        r""":math:`x\circ\nabla_x\log p(x) = \nabla_y\log p_{\log}(\log x) - 1`; NaN unless ``x > 0``."""
        return self.logs.score(jnp.log(x)) - 1

    def in_chart(self, chart: Chart) -> Mixture | Gaussian | GaussianField | ConditionedField:
        """The law of ``log x``; ValueError for a chart in which it has no closed form."""
        if not isinstance(chart, Log):
            raise ValueError(f"LogNormalMixture under {chart!r}: expected the log chart of GeometricBrownianMotion")
        return self.logs

    def noised(self, process: LinearGaussian, t: Scalar) -> LogNormalMixture:
        """See the class; ValueError where the process does not have the log chart."""
        return self.of(self.in_chart(process.chart).noised(process, t))

    def denoise(self, process: LinearGaussian, y: Float[Array, " batch *event"], t: Scalar) -> Float[jax.Array, " batch *event"]:
        r""":math:`E[\log x_0\mid y_t]`, a point of the chart (its exponential is the geometric mean, not the mean)."""
        return self.in_chart(process.chart).denoise(process, y, t)
