"""Predictor-corrector sampling: any one-call solver, followed by Langevin steps at each noise level."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.solvers.base import Solver, Step, computed
from scorelab.solvers.exponential import DDIM
from scorelab.typing import per_example_normal, require_int, require_positive, require_spec


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Solver):
    r"""After every predictor step, ``corrections`` unadjusted Langevin steps at the new noise level.

    .. math:: y \leftarrow y + \delta\,\nabla\log p_s(y) + \sqrt{2\delta}\,z,\qquad \delta = 2\,(\mathrm{snr}\,\sigma_s)^2 .

    Song et al. (2021, Algorithm 2) scale the step by the ratio of the batch's mean noise norm to its mean score norm;
    here that ratio is replaced by what it estimates, sigma, so that a sample does not depend on its batch. The order
    is predictor first, corrector second, as in the paper's text. The Langevin steps leave a relative variance bias of
    at most ``snr**2``, which does not vanish with more steps: the declared order is 0.

    Attributes:
        predictor: a solver with one model call per step.
        corrections: Langevin steps per noise level.
        snr: the signal-to-noise ratio that sets the step.
    """

    predictor: Solver = field(default_factory=lambda: DDIM(eta=1.0))
    corrections: int = 1
    snr: float = 0.16

    order = 0
    stochastic = True

    def __post_init__(self):
        require_spec(self, Solver, predictor=self.predictor)
        require_int(self, 0, corrections=self.corrections)
        require_positive(self, snr=self.snr)
        if self.predictor.calls_per_step != 1 or self.predictor.population(2) > 1:
            raise ValueError(
                f"PredictorCorrector.predictor = {self.predictor}: expected a solver of independent samples with one call per step"
            )

    @computed
    def calls_per_step(self) -> int:
        """One for the predictor and one per correction (none at sigma = 0)."""
        return 1 + self.corrections

    def table(self, process, times):
        """The predictor's rows, each followed by its corrections."""
        rows = self.predictor.table(process, times)
        steps = len(times) - 1
        if len(rows["step"]) != steps:
            raise ValueError(
                f"PredictorCorrector.predictor = {self.predictor}: expected one model call per step, not {len(rows['step'])} "
                f"in {steps} steps"
            )
        sigma = np.asarray(process.sigma(times))
        # Row i of the predictor, then (except at sigma = 0) corrections that reuse its columns but not its effect.
        source = np.concatenate([np.full(1 + self.corrections * (sigma[i + 1] > 0), i) for i in range(steps)])
        correct = np.concatenate([[False], source[1:] == source[:-1]])
        table = {name: column[source] for name, column in rows.items()}
        table["t"] = np.where(correct, times[1:][source], table["t"])
        delta = np.where(correct, 2 * (self.snr * sigma[1:][source]) ** 2, 0.0)
        level = np.where(correct, sigma[1:][source], 1.0)
        return table | dict(correct=correct.astype(np.float64), drift=-delta / level, spread=np.sqrt(2 * delta))

    def init(self, process, y):
        """The predictor's memory."""
        return self.predictor.init(process, y)

    def decode(self, process, y, carry):
        """As the predictor."""
        return self.predictor.decode(process, y, carry)

    def outputs(self, carry, records):
        """Those of the predictor."""
        return self.predictor.outputs(carry, records)

    def step(self, model, keys, y, carry, row):
        """Both results are formed from one model call; the row says which one counts."""
        prediction = model(y, row["t"])
        predicted = self.predictor.step(lambda *_: prediction, keys, y, carry, row)
        corrected = y + row["drift"] * prediction.eps + row["spread"] * per_example_normal(keys, y)
        is_correction = row["correct"] > 0
        choose = lambda new, old: jnp.where(is_correction, old, new)
        out = choose(predicted.y, corrected)
        return Step(out, jax.tree.map(choose, predicted.carry, carry), prediction)
