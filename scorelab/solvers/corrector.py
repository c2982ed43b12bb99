"""Predictor-corrector sampling: any one-call solver, followed by Langevin steps at each noise level."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array
from scorelab.processes.base import Process
from scorelab.processes.interpolant import StochasticInterpolant
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.processes.predictions import HasLatent, HasNoise, require_capabilities
from scorelab.pytrees import computed
from scorelab.randomness import per_example_normal
from scorelab.solvers.base import Population, Solver
from scorelab.solvers.exponential import DDIM
from scorelab.validation import require_int, require_positive, require_spec


class CorrectedRow(NamedTuple):
    r"""A row of the predictor, or a correction :math:`y \leftarrow y + e\,\hat\epsilon + n z`; of an interpolant with ``eta``.

    Attributes:
        t: where the model is asked.
        step: the grid step.
        predictor: the row of the predictor.
        correct: 1 for a correction, 0 for a step of the predictor.
        e: :math:`-\delta/\sigma_s`; of an interpolant :math:`-\delta/\gamma_s`.
        n: :math:`\sqrt{2\delta}`.
    """

    t: Array
    step: Array
    predictor: Any
    correct: Array
    e: Array
    n: Array


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Solver):
    r"""After every predictor step, ``corrections`` unadjusted Langevin steps at the new noise level.

    .. math:: y \leftarrow y + \delta\,\nabla\log p_s(y) + \sqrt{2\delta}\,z,\qquad \delta = 2\,(\mathrm{snr}\,\sigma_s)^2 .

    Song et al. (2021, Algorithm 2) scale the step by the ratio of the batch's mean noise norm to its mean score norm;
    here that ratio is replaced by what it estimates, sigma, so that a sample does not depend on its batch. Under an interpolant
    gamma, the size of its latent noise, has the place of sigma, and no correction follows a step to where it is 0. The order
    is predictor first, corrector second, as in the paper's text. The Langevin steps leave a relative variance bias of
    at most ``snr**2``, which does not vanish with more steps: the declared order is 0.

    Attributes:
        predictor: a solver with one model call per step; of interpolants ``InterpolantODE(rule="euler")`` or
            ``InterpolantSDE(rule="euler")``.
        corrections: Langevin steps per noise level.
        snr: the signal-to-noise ratio that sets the step.
    """

    predictor: Solver = field(default_factory=lambda: DDIM(eta=1.0))
    corrections: int = 1
    snr: float = 0.16

    process_type = Process
    needs = ()
    order = 0
    stochastic = True

    def __post_init__(self):
        require_spec(self, Solver, predictor=self.predictor)
        require_int(self, 0, corrections=self.corrections)
        require_positive(self, snr=self.snr)
        if self.predictor.calls_per_step != 1 or isinstance(self.predictor, Population) or self.predictor.along_path:
            raise ValueError(
                f"PredictorCorrector.predictor = {self.predictor}: expected a solver of independent samples with one call per "
                "step, and noise of its own for each row"
            )
        if self.predictor.self_conditioned:
            raise ValueError(
                f"PredictorCorrector.predictor = {self.predictor}: expected SelfConditioned(PredictorCorrector(...)), which tells "
                "the corrections as well"
            )

    @computed
    def calls_per_step(self) -> int:
        """One for the predictor and one per correction (none at sigma = 0)."""
        return 1 + self.corrections

    def table(self, process, times):
        """The predictor's rows, each followed by its corrections."""
        where = f"PredictorCorrector.predictor = {type(self.predictor).__name__}"
        require_spec(where, self.predictor.process_type, process=process)
        require_spec("PredictorCorrector", LinearGaussian | StochasticInterpolant, process=process)
        rows = self.predictor.table(process, times)
        steps = len(times) - 1
        if (bridges := isinstance(process, StochasticInterpolant)) and process.gamma.silent:
            raise ValueError(f"PredictorCorrector under {process!r}: expected a gamma that is not zero, or the predictor alone")
        if len(rows.step) != steps:
            raise ValueError(
                f"PredictorCorrector.predictor = {self.predictor}: expected one model call per step, not {len(rows.step)} in "
                f"{steps} steps"
            )
        sigma = np.asarray(process.gamma.gamma(times) if bridges else process.sigma(times))
        # Row i of the predictor, then (except at sigma = 0) corrections that reuse its numbers but not its effect.
        source = np.concatenate([np.full(1 + self.corrections * (sigma[i + 1] > 0), i) for i in range(steps)])
        correct = np.concatenate([[False], source[1:] == source[:-1]])
        delta = np.where(correct, 2 * (self.snr * sigma[1:][source]) ** 2, 0.0)
        level = np.where(correct, sigma[1:][source], 1.0)
        return CorrectedRow(
            t=np.where(correct, times[1:][source], rows.t[source]), step=rows.step[source],
            predictor=jax.tree.map(lambda column: column[source], rows),
            correct=correct.astype(np.int32), e=-delta / level, n=np.sqrt(2 * delta),
        )  # fmt: skip

    def require(self, prediction):
        """What the predictor needs, and the noise of the point."""
        self.predictor.require(prediction)
        need = HasLatent if isinstance(prediction.process, StochasticInterpolant) else HasNoise
        require_capabilities(type(self).__name__, prediction, (need,))

    def init(self, process, y, log_weights):
        """The predictor's memory."""
        return self.predictor.init(process, y, log_weights)

    def decode(self, process, y, carry):
        """As the predictor."""
        return self.predictor.decode(process, y, carry)

    def outputs(self, carry, records):
        """Those of the predictor."""
        return self.predictor.outputs(carry, records)

    def query(self, keys, y, carry, row: CorrectedRow):
        """As the predictor; a correction asks where it is."""
        return jnp.where(row.correct > 0, y, self.predictor.query(keys, y, carry, row.predictor))

    def update(self, keys, y, prediction, carry, row: CorrectedRow):
        """Both results are formed from one prediction; the row says which one counts."""
        predicted, moved = self.predictor.update(keys, y, prediction, carry, row.predictor)
        noise = prediction.eta if isinstance(prediction.process, StochasticInterpolant) else prediction.eps
        corrected = y + row.e * noise + row.n * per_example_normal(keys, y)
        choose = lambda new, old: jnp.where(row.correct > 0, old, new)
        return choose(predicted, corrected), jax.tree.map(choose, moved, carry)
