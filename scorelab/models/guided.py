r"""Models pulled towards a target: a base model plus the gradient of how likely the target is.

By Bayes' rule the score under a target is :math:`\nabla\log p_t(y) + G`, :math:`G = \nabla_y\log p(\text{target}\mid y_t)`.
In the consistent pair of :class:`scorelab.processes.Prediction` this is

.. math:: D \to D + \frac{\sigma^2}{\alpha}\,G,\qquad \hat\epsilon \to \hat\epsilon - \sigma\,G .

Only the exact ``G`` gives the exact law; every class here says what it puts in its place.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Pytree, per_example
from scorelab.models.base import Model, Wraps, ask
from scorelab.models.per_sample import PER_SAMPLE, require_numbers
from scorelab.models.rewards import rewards_of
from scorelab.processes.linear_gaussian import GaussianPrediction, LinearGaussian
from scorelab.processes.predictions import HasProposal
from scorelab.pytrees import partly_static
from scorelab.validation import require_choice, require_shape, require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GuidedPrediction(GaussianPrediction, HasProposal):
    """The prediction of a guided model, which keeps what it is made of apart.

    Attributes:
        base: what the base model says, without any guidance.
        gradient: what is added to its score, by all guidance together.
    """

    base: GaussianPrediction
    gradient: Array

    @classmethod
    def of(cls, base: GaussianPrediction, gradient: Array) -> GuidedPrediction:
        """The prediction with ``gradient`` added to its score; to a guided one, beside the gradient that it has."""
        if isinstance(base, HasProposal):
            base, gradient = base.base, base.gradient + gradient
        sigma = per_example(base.process.sigma(base.t), gradient)
        denoised = base.denoised + per_example(tweedie_factor(base), gradient) * gradient
        eps = base.eps - sigma * gradient
        return cls(denoised=denoised, eps=eps, t=base.t, process=base.process, base=base, gradient=gradient)

    @classmethod
    def between(cls, base: GaussianPrediction, whole: GaussianPrediction) -> GuidedPrediction:
        """The prediction ``whole`` of a guided model that would be ``base`` without any guidance; both of one point."""
        gradient = (base.eps - whole.eps) / per_example(base.process.sigma(base.t), base.eps)
        return cls(denoised=whole.denoised, eps=whole.eps, t=whole.t, process=whole.process, base=base, gradient=gradient)


@dataclass(frozen=True, kw_only=True)
class Guided(Wraps, abc.ABC):
    """A base model and a pull; a subclass gives :meth:`pull` and is registered as a pytree.

    Attributes:
        model: the base model; a bare function is static, a pytree keeps its leaves.
    """

    model: Model

    @abc.abstractmethod
    def pull(self, y: Array, t: Array | float, cond: Pytree = None) -> tuple[GaussianPrediction, Array]:
        r"""The base model's prediction, and ``G`` in place of :math:`\nabla_y\log p(\text{target}\mid y_t)`, shaped like ``y``.

        Args:
            y: ``(batch, *event)`` in the chart.
            t: scalar or ``(batch,)``.
            cond: conditions of the base model.
        """

    def active(self) -> tuple[float, float] | None:
        """At every noise."""
        return 0.0, math.inf

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> GuidedPrediction:
        """The guided prediction for ``y`` of shape ``(batch, *event)``; where alpha is 0, its ``denoised`` is the base model's."""
        require_spec(self, LinearGaussian, process=self.process)
        base, gradient = self.pull(y, t, cond)
        require_shape(f"{type(self).__name__}: the pull", gradient, y)
        return GuidedPrediction.of(base, gradient.astype(y.dtype))


@partly_static("model", "reward", "scale")
@dataclass(frozen=True, kw_only=True)
class RewardGradient(Guided):
    r"""The gradient of a reward of the denoised point, :math:`G = w\,\nabla_y\,r(\mathrm{decode}(D(y, t)))`.

    It replaces :math:`\log E[e^{w r(x_0)}\mid y_t]` by the reward of the mean: exact where the noise is gone, and for a
    linear reward under a Gaussian law up to nothing but the decoding. One backward pass that shares the forward one.

    Attributes:
        reward: ``reward(x)`` or, under ``with_cond``, ``reward(x, cond)``: points of data space ``(batch, *event)`` to
            ``(batch,)``. A bare function is static (pass the same object again), a callable pytree keeps its leaves.
        scale: ``w``, a scalar or ``(batch,)``; a leaf.
        with_cond: whether the reward takes the conditions.

    Raises:
        ValueError: when the reward is not ``(batch,)``.
    """

    reward: Callable[..., Array]
    scale: Array | float = field(default=1.0, metadata=PER_SAMPLE)
    with_cond: bool = False

    def __post_init__(self):
        require_numbers(self, scale=self.scale)
        require_choice(self, (True, False), with_cond=self.with_cond)

    def pull(self, y, t, cond=None):
        def total(y):
            prediction = ask(self.model, y, t, cond)
            x = prediction.process.decode(prediction.denoised)
            # The sum's gradient is each example's own: examples do not see one another.
            return jnp.sum(rewards_of("RewardGradient", self.reward, x, cond, self.with_cond)), prediction

        (_, prediction), gradient = jax.value_and_grad(total, has_aux=True)(y)
        return prediction, per_example(self.scale, y).astype(y.dtype) * gradient


def with_denoised(prediction: GaussianPrediction, denoised: Array) -> GaussianPrediction:
    r"""The pair of the same point with another denoised mean ``D'``, and nothing else.

    .. math:: \hat\epsilon' = \hat\epsilon + \frac{\alpha}{\sigma}\,(D - D')

    A mean that has not moved leaves the noise as it is, bitwise.
    """
    process, t = prediction.process, prediction.t
    alpha, sigma = (per_example(f(t), denoised) for f in (process.alpha, process.sigma))
    moved = prediction.denoised - denoised
    eps = prediction.eps + jnp.where(moved == 0, 0.0, alpha / sigma * moved)
    return GaussianPrediction(denoised=denoised, eps=eps, t=t, process=process)


def tweedie_factor(prediction: GaussianPrediction) -> Array:
    r""":math:`\sigma^2/\alpha`, scalar or ``(batch,)``: times ``dD/dy`` it is the covariance of ``y_0`` given ``y_t``.

    0 at :math:`\alpha = 0`, where ``dD/dy`` vanishes and the product cannot be had from it.
    """
    alpha, sigma = prediction.process.alpha(prediction.t), prediction.process.sigma(prediction.t)
    return jnp.where(alpha > 0, sigma**2 / jnp.where(alpha > 0, alpha, 1.0), 0.0)
