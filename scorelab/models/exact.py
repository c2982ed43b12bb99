"""Models without a network: exact laws, and any function of (y, t) a user brings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp

from scorelab.densities.base import Density
from scorelab.models.denoiser import require_signal
from scorelab.processes.base import Prediction, Process
from scorelab.typing import Array, Pytree, require_choice, require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExactModel:
    r"""The exact denoiser and score of a law under a process: :math:`D = E[y_0\mid y_t]`, :math:`\nabla\log p_t`.

    The law's parameters are leaves, so a sweep over them does not recompile.

    Args:
        law: the law of the data in the chart, or a law in data space that the chart knows
            (:class:`scorelab.densities.LogNormalMixture`).
        process: the forward process (static).
    """

    law: Density
    process: Process = field(metadata={"static": True})

    def __post_init__(self):
        require_spec(self, Process, process=self.process)

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> Prediction:
        """Predict for ``y`` of shape ``(batch, *event)``; ``cond`` is ignored."""
        self.process.check_times("ExactModel.t", t)
        t = jnp.asarray(t, y.dtype)
        law = self.law.in_chart(self.process.chart)

        def one_time(y, t):
            noised = law.noised(self.process, t)
            return law.denoise(self.process, y, t), -self.process.sigma(t) * noised.score(y)

        if t.ndim == 0:
            denoised, eps = one_time(y, t)
        else:
            denoised, eps = jax.vmap(lambda y, t: jax.tree.map(lambda a: a[0], one_time(y[None], t)))(y, t)
        return Prediction(denoised=denoised, eps=eps, t=t, process=self.process)

    def scale(self) -> tuple[float, float] | None:
        """Root mean square of the mean and of the deviation of the law in the chart, per element, where they are at hand."""
        return self.law.in_chart(self.process.chart).scale()

    def log_prob(self, y: Array, t: Array | float) -> Array:
        r""":math:`\log p_t(y)` in the chart at one time ``t``, ``(batch,)``."""
        self.process.check_times("ExactModel.log_prob.t", t)
        return self.law.in_chart(self.process.chart).noised(self.process, jnp.asarray(t, y.dtype)).log_prob(y)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FunctionModel:
    """A model from any JAX function ``fn(y, t, cond)`` that returns one form of the prediction.

    Args:
        fn: the function (static: pass the same object again, not a new lambda, or the sampler recompiles).
        process: the forward process (static).
        returns: what ``fn`` returns: ``"denoised"``, ``"eps"``, ``"score"`` (of the chart), ``"velocity"`` or ``"stein"``
            (the score in data space). ``"eps"`` and the scores are refused under a process with :math:`\alpha = 0` at its
            ``t_max``.
    """

    fn: Callable[[Array, Array | float, Pytree], Array] = field(metadata={"static": True})
    process: Process = field(metadata={"static": True})
    returns: Literal["denoised", "eps", "score", "velocity", "stein"] = field(default="denoised", metadata={"static": True})

    def __post_init__(self):
        require_spec(self, Process, process=self.process)
        if not callable(self.fn):
            raise TypeError(f"FunctionModel.fn = {self.fn!r}: expected a function of (y, t, cond)")
        require_choice(self, ("denoised", "eps", "score", "velocity", "stein"), returns=self.returns)
        if self.returns in ("eps", "score", "stein"):
            require_signal(f"FunctionModel.returns = {self.returns!r}", self.process)

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> Prediction:
        """Predict for ``y`` of shape ``(batch, *event)``."""
        return self.process.predict(y, t, **{self.returns: self.fn(y, t, cond)})
