r"""Intermediate rewards: what is believed, half way, of the reward at the end.

Any choice leaves the target of steering as it is; a better one has less variance. The best is the twist
:math:`\frac1\lambda\log E[e^{\lambda r(x_0)}\mid y_t]`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Key, Pytree, float_like, per_example
from scorelab.densities import Gaussian
from scorelab.fk.learned import LearnedReward
from scorelab.fk.weights import log_mean_exp
from scorelab.models.measurement import LinearMeasurement, product
from scorelab.models.rewards import one_each, rewards_of
from scorelab.processes.base import require_same_process
from scorelab.processes.predictions import HasDenoised, require_capabilities
from scorelab.pytrees import partly_static
from scorelab.randomness import folded, per_example_normal
from scorelab.validation import require_choice, require_int, require_positive, require_spec


def scaled(scale: Array, rewards: Array) -> Array:
    r""":math:`\lambda r`, whose derivative in :math:`\lambda` is zero, and not NaN, where ``r`` is infinite."""
    finite = jnp.isfinite(rewards)
    return jnp.where(finite, scale * jnp.where(finite, rewards, 0.0), jax.lax.stop_gradient(scale * rewards))


class Intermediate(abc.ABC):
    """How a reward is believed at a noisy point; a new one states ``value``."""

    @abc.abstractmethod
    def value(self, reward, scale: Array, keys: Key, y: Array, prediction: Any) -> Array:
        r""":math:`\lambda` times the intermediate reward, ``(batch,)``.

        ``reward`` takes points of data space ``(batch, *event)``; ``keys`` has one key per particle.
        """


class Believes:
    r"""What steering and searches share: a reward, and how it is believed on the way.

    Attributes:
        reward: from points of data space ``(batch, *event)`` to ``(batch,)``.
        scale: :math:`\lambda`.
        intermediate: how the reward is believed at a noisy point.
        with_cond: call ``reward(x, cond)``.
    """

    reward: Callable[..., Array]
    scale: Any
    intermediate: Intermediate
    with_cond: bool

    def __post_init__(self):
        if not callable(self.reward):
            raise TypeError(f"{type(self).__name__}.reward = {self.reward!r}: expected a function of points of data space")
        require_spec(self, Intermediate, intermediate=self.intermediate)
        require_choice(self, (True, False), with_cond=self.with_cond)

    def rewards(self, x: Pytree, cond: Pytree) -> Array:
        """``reward`` of points of data space, ``(batch,)``."""
        return jnp.asarray(rewards_of(type(self).__name__, self.reward, x, cond, self.with_cond), float_like(x))

    def believed(self, y: Pytree, prediction: Any, keys: Key, cond: Pytree) -> Array:
        """The intermediate rewards ``(batch,)``, times ``scale``, of a prediction made at ``y``."""
        working = float_like(prediction.t)
        scale = jnp.asarray(self.scale, working)
        value = self.intermediate.value(lambda x: self.rewards(x, cond), scale, keys, y, prediction)
        return one_each(f"{type(self.intermediate).__name__}.value", value, y).astype(working)


@dataclass(frozen=True)
class Denoised(Intermediate):
    r""":math:`\lambda\,r(D)`, the reward of the denoised mean: no call of the network that the sampler does not make anyway."""

    def value(self, reward, scale, keys, y, prediction):
        require_capabilities("Denoised", prediction, (HasDenoised,))
        return scaled(scale, reward(prediction.process.decode(prediction.denoised)))


@dataclass(frozen=True, kw_only=True)
class Posterior(Intermediate):
    r"""The reward over points drawn from a Gaussian stand-in for :math:`p(x_0\mid y_t)`.

    .. math:: x^m = D + \frac{s\,\sigma_t}{\sqrt{\alpha_t^2s^2+\sigma_t^2}}\,z^m,\qquad
              \log\frac1M\sum_m e^{\lambda r(x^m)}\quad\text{or}\quad \lambda\log\frac1M\sum_m e^{r(x^m)} .

    Attributes:
        samples: ``M``.
        data_std: ``s``, the deviation of the data per element in the chart; the variance is the one of N(., s^2 I).
        temper_inside: the first form, which goes to the best choice as M grows; the second is that of the published text
            code.
    """

    samples: int = 4
    data_std: float = 0.5
    temper_inside: bool = True

    def __post_init__(self):
        require_int(self, 1, samples=self.samples)
        require_positive(self, data_std=self.data_std)

    def value(self, reward, scale, keys, y, prediction):
        require_capabilities("Posterior", prediction, (HasDenoised,))
        process, t = prediction.process, prediction.t
        alpha, sigma = process.alpha(t), process.sigma(t)
        spread = per_example(self.data_std * sigma / jnp.sqrt((alpha * self.data_std) ** 2 + sigma**2), y)

        def one(m):
            return reward(process.decode(prediction.denoised + spread * per_example_normal(folded(keys, m), y)))

        rewards = jax.lax.map(one, jnp.arange(self.samples))
        if self.temper_inside:
            return log_mean_exp(scaled(scale, rewards), axis=0)
        return scaled(scale, log_mean_exp(rewards, axis=0))


@partly_static("measurement", "law")
@dataclass(frozen=True, kw_only=True)
class Blurred(Intermediate):
    r"""The likelihood of a linear measurement with what is still unknown of the clean point added to its noise.

    .. math:: \lambda\log N\big(m;\ HD,\ R + HC_tH^\top\big),\qquad C_t = \Sigma\sigma_t^2(\alpha_t^2\Sigma+\sigma_t^2)^{-1} ,

    in the place of the reward, which is :meth:`scorelab.models.LinearMeasurement.log_likelihood`. The likelihood of the denoised
    mean alone is far too sure of itself at high noise: with small ``R`` its weights leave one particle. For a Gaussian prior and
    :math:`\lambda=1` it is :math:`\log p(m\mid y_t)`, the best choice there is.

    Attributes:
        measurement: what was measured.
        law: a Gaussian with the moments of the prior in the chart.
    """

    measurement: LinearMeasurement
    law: Gaussian

    def value(self, reward, scale, keys, y, prediction):
        require_capabilities("Blurred", prediction, (HasDenoised,))
        alpha, sigma = prediction.process.alpha(prediction.t), prediction.process.sigma(prediction.t)
        left = lambda variance: variance * sigma**2 / (alpha**2 * variance + sigma**2)
        matrix = self.measurement.matrix.astype(y.dtype)
        along = product(matrix, self.law.basis.astype(y.dtype))
        outside = product(matrix, matrix.T) - product(along, along.T)
        unknown = product(along * left(self.law.eigenvalues), along.T) + left(self.law.tail) * outside
        residual = self.measurement.residual(prediction.denoised)
        root = jnp.linalg.cholesky(unknown + jnp.diag(self.measurement.noise(y.dtype)))
        whitened = jax.scipy.linalg.solve_triangular(root, residual.T, lower=True)
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(root))) + len(root) * math.log(2 * math.pi)
        return -0.5 * scale * (jnp.sum(whitened**2, axis=0) + log_det)


@partly_static("model")
@dataclass(frozen=True)
class Learned(Intermediate):
    r"""A learned reward :math:`\lambda\,r_\phi(y_t, t)` of noisy points of the chart.

    Attributes:
        model: what :meth:`scorelab.fk.RewardLearner.model` returns, ValueError where it is of another process; or any function, or
            callable pytree, ``(y, t) -> (batch,)``, which says nothing of its process.
    """

    model: LearnedReward | Callable[[Array, Array], Array]

    def value(self, reward, scale, keys, y, prediction):
        if isinstance(self.model, LearnedReward):
            require_same_process("Learned", sampled=prediction.process, learned=self.model.process)
        return scaled(scale, self.model(y, prediction.t))
