r"""Products of powers of stochastic interpolants, and the rate that weighs them.

With experts :math:`p_i`, :math:`l_i = \log p_{i,t}`, :math:`s_i=\nabla l_i`, velocities :math:`u_i`, and
:math:`\Phi = \sum_i b_i l_i + R` as in :mod:`scorelab.fk.composition`, particles move in generation time :math:`\tau = 1-t` by

.. math:: dy = (c + \epsilon\nabla\Phi)\,d\tau + \sqrt{2\epsilon}\,dw,\qquad c = \sum_i a_i c_i,\quad c_i = -u_i

for any :math:`\epsilon\ge 0` and any anchor :math:`a_i`, and follow :math:`e^\Phi` when weighted at the rate

.. math:: h = \sum_i (a_i-b_i)\nabla\!\cdot c_i + \sum_i b_i (c-c_i)\cdot s_i
          + \partial_\tau R + c\cdot\nabla R + \sum_i\partial_\tau b_i\,l_i .

It contains neither :math:`\epsilon` nor any :math:`\gamma`, so every expert may have a path, a latent noise and a base of its own.
The anchor :math:`a_i=b_i` needs no divergence; :math:`a_i=b_i/B` is a mean of the experts' own flows.

The score of a network is its latent noise over :math:`\gamma`, and not known at the two ends. There the rate is not asked: the
first and the last step take it from their other end alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, per_example
from scorelab.divergence import dot
from scorelab.fk.composition import Composition
from scorelab.models.base import model_name
from scorelab.models.product import weighted_sum
from scorelab.processes.interpolant import FlowPrediction, StochasticInterpolant
from scorelab.processes.predictions import HasLatent, HasScore, HasVelocity, require_capabilities
from scorelab.pytrees import partly_static
from scorelab.solvers.interpolant import InterpolantODE, InterpolantSDE
from scorelab.validation import require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ComposedFlow(FlowPrediction, HasLatent, HasScore):
    r"""What moves particles: the anchor for the velocity, and the score of the target.

    Attributes:
        eta: :math:`-\gamma\nabla\Phi` with the :math:`\gamma` of the first expert, 0 where that is 0.
        score: :math:`\nabla\Phi`.
    """

    eta: Array
    score: Array
    process: StochasticInterpolant = field(metadata={"static": True})


@partly_static("models", "exponents", "tilt")
@dataclass(frozen=True, kw_only=True)
class FlowComposition(Composition):
    r"""A composition of interpolants; particles are walked under the process of the first expert.

    Attributes:
        anchor: ``"score"`` for :math:`a_i=b_i`, ``"flow"`` for :math:`a_i=b_i/B`.
        noise: 1; how much noise there is says the ``epsilon`` of the solver.
        alone: one expert with the exponent one, whose weights are those of the tilt: without noise it needs no score.
    """

    alone: bool = False

    def check_base(self, base):
        """Raise ``TypeError`` for a solver that asks the model elsewhere than at the particles of a grid time."""
        require_spec("FeynmanKac under a composition of interpolants", InterpolantODE | InterpolantSDE, base=base)

    def _check_processes(self):
        for i, model in enumerate(self.models):
            require_spec(f"Composition.models[{i}]", StochasticInterpolant, process=model.process)
        if self.noise != 1:
            raise ValueError(
                f"Composition.noise = {self.noise} under {self.process!r}: expected none, since the epsilon of "
                "solvers.InterpolantSDE says how much there is"
            )
        if self.alone and (len(self.models) != 1 or callable(self.exponents[0]) or self.exponents[0] != 1):
            raise ValueError(f"Composition.alone with the exponents {self.exponents!r}: expected one expert with the exponent 1")

    def _ask(self, y, t, cond):
        predictions = super()._ask(y, t, cond)
        for model, prediction in zip(self.models, predictions, strict=True):
            needs = (HasVelocity,) if self.alone else (HasVelocity, HasScore)
            require_capabilities(f"Composition.models: {model_name(model)}", prediction, needs)
        return predictions

    def _spread(self, factors, tangents, t):
        return -weighted_sum(factors, [p.velocity for p in tangents])

    def _rate(self, y, t, a, b, predictions, extra):
        anchor = -weighted_sum(a, [p.velocity for p in predictions])
        if self.alone:
            return extra, anchor
        return extra + weighted_sum(b, [dot(anchor + p.velocity, p.score) for p in predictions]), anchor

    def _combined(self, predictions, y, t, slope) -> FlowPrediction:
        b, _ = self._exponents(t)
        velocity = weighted_sum(self._anchors(b), [p.velocity for p in predictions])
        if not isinstance(predictions[0], HasScore):
            return FlowPrediction(y=y, velocity=velocity, t=t, process=self.process)
        score = weighted_sum(b, [p.score for p in predictions]) + slope
        gamma = per_example(self.process.gamma.gamma(t), y)
        eta = jnp.where(gamma > 0, -gamma * score, 0.0)
        return ComposedFlow(y=y, velocity=velocity, eta=eta, score=score, t=t, process=self.process)
