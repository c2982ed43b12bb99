"""The exact model of a law."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Pytree, is_traced
from scorelab.densities.base import Density, Unnormalised, check_points
from scorelab.densities.gaussian import Gaussian
from scorelab.models.base import KnowsDensity
from scorelab.models.bridge import Pieces, require_mixture
from scorelab.processes.interpolant import StochasticInterpolant
from scorelab.processes.linear_gaussian import GaussianPrediction, LinearGaussian
from scorelab.processes.predictions import HasLogProb
from scorelab.processes.scale import KnowsScale
from scorelab.validation import require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ExactPrediction(GaussianPrediction, HasLogProb):
    r"""A Gaussian prediction of a known law, with its log-density :math:`\log p_t(y)` in the chart, ``(batch,)``."""

    log_prob: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExactModel(KnowsScale, KnowsDensity):
    r"""The exact denoiser and score of a law under a process: :math:`D = E[y_0\mid y_t]`, :math:`\nabla\log p_t`.

    Under a :class:`scorelab.processes.StochasticInterpolant` also its velocity and latent noise (:mod:`scorelab.models.bridge`).

    The law's parameters are leaves, so a sweep over them does not recompile.

    Args:
        law: the law of the data in the chart, or a law in data space that the chart knows
            (:class:`scorelab.densities.LogNormalMixture`). Under an interpolant a Gaussian or a mixture of them, as its base.
        process: the forward process, linear-Gaussian or a stochastic interpolant (static).
    """

    law: Density
    process: Any = field(metadata={"static": True})

    def __post_init__(self):
        require_spec(self, LinearGaussian | StochasticInterpolant, process=self.process)
        if isinstance(self.process, StochasticInterpolant) and isinstance(self.law, Unnormalised):
            require_mixture("ExactModel.law", self.law)
            if self.process.base is not None:
                require_mixture("StochasticInterpolant.base", self.process.base)
            if self.process.joined:
                raise ValueError(
                    f"ExactModel.process has the coupling {self.process.coupling!r}: expected None; a joint law that is known is "
                    "that of models.ExactBridge"
                )
        if isinstance(self.law, Unnormalised) and not isinstance(self.law, Density):
            raise TypeError(
                f"ExactModel.law = {self.law!r}: expected a law with noised versions; it is known up to a constant only"
            )

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> Any:
        """An :class:`ExactPrediction` for ``y`` ``(batch, *event)``, or an :class:`ExactInterpolantPrediction`."""
        self.process.check_times("ExactModel.t", t)
        t = jnp.asarray(t, y.dtype)
        if isinstance(self.process, StochasticInterpolant):
            law = require_mixture("ExactModel.law", self.law)
            check_points(self.law, y)
            base = law if self.process.base is None else require_mixture("StochasticInterpolant.base", self.process.base)
            return Pieces.independent(law, base).fields(self.process, y, t)
        return self._denoised(self.process, y, t)

    def _denoised(self, process: LinearGaussian, y: Array, t: Array) -> ExactPrediction:
        law = self.law.in_chart(process.chart)

        def one_time(y, t):
            noised = law.noised(process, t)
            return law.denoise(process, y, t), -process.sigma(t) * noised.score(y), noised.log_prob(y)

        if t.ndim == 0:
            denoised, eps, log_prob = one_time(y, t)
        else:
            denoised, eps, log_prob = jax.vmap(lambda y, t: jax.tree.map(lambda a: a[0], one_time(y[None], t)))(y, t)
        return ExactPrediction(denoised=denoised, eps=eps, log_prob=log_prob, t=t, process=process)

    def scale(self) -> tuple[float, float] | None:
        """Root mean square of the mean and of the deviation of the law in the chart, per element, where they are at hand."""
        return self.law.in_chart(self.process.chart).scale() if isinstance(self.process, LinearGaussian) else None

    def matched(self) -> Gaussian | None:
        """See :meth:`scorelab.densities.Density.matched`; None while the law is traced."""
        if is_traced(self.law) or not isinstance(self.process, LinearGaussian):
            return None
        with jax.ensure_compile_time_eval():
            return cast(Gaussian | None, self.law.in_chart(self.process.chart).matched())
