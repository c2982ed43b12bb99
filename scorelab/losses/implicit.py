r"""Implicit score matching: the score without a noise target, by its divergence.

.. math:: E\Big[\tfrac1d\Big(\nabla\!\cdot s(y_t) + \tfrac12\lVert s(y_t)\rVert^2\Big)\Big]
          = \tfrac1{2d}E\,\lVert s - \nabla\log p_t\rVert^2 + \text{const.}
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field

import jax

from scorelab.divergence import divergence, signs
from scorelab.losses.base import Loss, example_keys, mean_square, require_floating
from scorelab.losses.times import Times, UniformTimes
from scorelab.losses.weightings import VarianceWeighting, Weighting, require_weighting, weights
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.processes.predictions import HasScore, require_capabilities
from scorelab.validation import require_choice, require_int, require_spec


@dataclass(frozen=True)
class ImplicitScoreMatching(Loss):
    r"""Hyvarinen's score matching of the noised law.

    .. math:: \lambda(t)\,\tfrac1d\big(\nabla\!\cdot s + \tfrac12\lVert s\rVert^2\big) .

    Its minimiser is that of denoising score matching; its value has no lower bound at zero, and its variance is that of the
    divergence. Source: Hyvarinen (2005); with Hutchinson's estimate sliced score matching, Song et al. (2019), arXiv 1905.07088.

    Attributes:
        process: the forward process.
        probes: 0 for the exact divergence, one product for each element of a point; else the number of Rademacher probes.
        times: the law of ``t``.
        weighting: :math:`\lambda`, a function of ``(process, t)``.
        reverse: products with the transposed Jacobian (one backward pass each) instead of forward mode.
    """

    process: LinearGaussian
    _: KW_ONLY
    probes: int = 0
    times: Times = field(default_factory=UniformTimes)
    weighting: Weighting = field(default_factory=VarianceWeighting)
    reverse: bool = False

    def __post_init__(self):
        require_spec(self, LinearGaussian, process=self.process)
        require_int(self, 0, probes=self.probes)
        require_spec(self, Times, times=self.times)
        require_choice(self, (True, False), reverse=self.reverse)
        require_weighting(self)

    def draw(self, key, batch):
        """Noised data."""
        x = batch["x"]
        require_floating(x)
        key_times, key_noise = jax.random.split(key)
        t = self.times(key_times, self.process, len(x))
        return self.process.perturb(key_noise, x, t)._replace(cond=batch.get("cond"), keys=example_keys(key, len(x)))

    def error(self, model, noised):
        def score(y):
            prediction = self.ask(model, y, noised.t, noised.cond)
            require_capabilities(type(self).__name__, prediction, (HasScore,))
            return prediction.score

        probes = signs(noised.keys, self.probes, noised.y) if self.probes else None
        value, trace = divergence(score, noised.y, probes, reverse=self.reverse)
        size = math.prod(noised.y.shape[1:])
        return weights(self, noised.t) * (trace / size + 0.5 * mean_square(value))
