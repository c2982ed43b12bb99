"""Models without a network: exact laws, and any function of (y, t) a user brings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from scorelab.densities.base import Density
from scorelab.models.denoiser import require_signal
from scorelab.processes.base import Process
from scorelab.processes.linear_gaussian import GaussianPrediction, LinearGaussian
from scorelab.processes.predictions import HasLogProb
from scorelab.processes.scale import KnowsScale
from scorelab.typing import Array, Pytree, require_choice, require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ExactPrediction(GaussianPrediction, HasLogProb):
    r"""A Gaussian prediction of a known law, with its log-density :math:`\log p_t(y)` in the chart, ``(batch,)``."""

    log_prob: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExactModel(KnowsScale):
    r"""The exact denoiser and score of a law under a process: :math:`D = E[y_0\mid y_t]`, :math:`\nabla\log p_t`.

    The law's parameters are leaves, so a sweep over them does not recompile.

    Args:
        law: the law of the data in the chart, or a law in data space that the chart knows
            (:class:`scorelab.densities.LogNormalMixture`).
        process: the forward process (static).
    """

    law: Density
    process: LinearGaussian = field(metadata={"static": True})

    def __post_init__(self):
        require_spec(self, LinearGaussian, process=self.process)

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> ExactPrediction:
        """Predict for ``y`` of shape ``(batch, *event)``; ``cond`` is ignored."""
        self.process.check_times("ExactModel.t", t)
        t = jnp.asarray(t, y.dtype)
        law = self.law.in_chart(self.process.chart)

        def one_time(y, t):
            noised = law.noised(self.process, t)
            return law.denoise(self.process, y, t), -self.process.sigma(t) * noised.score(y), noised.log_prob(y)

        if t.ndim == 0:
            denoised, eps, log_prob = one_time(y, t)
        else:
            denoised, eps, log_prob = jax.vmap(lambda y, t: jax.tree.map(lambda a: a[0], one_time(y[None], t)))(y, t)
        return ExactPrediction(denoised=denoised, eps=eps, log_prob=log_prob, t=t, process=self.process)

    def log_prob(self, y: Array, t: Array | float) -> Array:
        r""":math:`\log p_t(y)` in the chart, ``(batch,)``."""
        return self(y, t).log_prob

    def scale(self) -> tuple[float, float] | None:
        """Root mean square of the mean and of the deviation of the law in the chart, per element, where they are at hand."""
        return self.law.in_chart(self.process.chart).scale()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FunctionModel:
    """A model from any JAX function ``fn(y, t, cond)`` that returns one form of the prediction, or the prediction itself.

    Args:
        fn: the function (static: pass the same object again, not a new lambda, or the sampler recompiles).
        process: the forward process (static).
        returns: what ``fn`` returns: ``"denoised"``, ``"eps"``, ``"score"`` (of the chart), ``"velocity"`` or ``"stein"``
            (the score in data space), for a linear-Gaussian process; or ``"prediction"``, of any process. ``"eps"`` and the
            scores are refused under a process with :math:`\alpha = 0` at its ``t_max``.
    """

    fn: Callable[[Array, Array | float, Pytree], Any] = field(metadata={"static": True})
    process: Process = field(metadata={"static": True})
    returns: Literal["denoised", "eps", "score", "velocity", "stein", "prediction"] = field(
        default="denoised", metadata={"static": True}
    )

    def __post_init__(self):
        require_spec(self, Process, process=self.process)
        if not callable(self.fn):
            raise TypeError(f"FunctionModel.fn = {self.fn!r}: expected a function of (y, t, cond)")
        require_choice(self, ("denoised", "eps", "score", "velocity", "stein", "prediction"), returns=self.returns)
        if self.returns != "prediction":
            require_spec(self, LinearGaussian, process=self.process)
        if self.returns in ("eps", "score", "stein"):
            require_signal(f"FunctionModel.returns = {self.returns!r}", self.process)

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> Any:
        """Predict for ``y`` of shape ``(batch, *event)``."""
        value = self.fn(y, t, cond)
        return value if self.returns == "prediction" else self.process.predict(y, t, **{self.returns: value})
