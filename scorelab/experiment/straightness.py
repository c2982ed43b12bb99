"""How straight the flow of a trained model is, as a diagnostic."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scorelab.distill import straightness
from scorelab.experiment.diagnose import Diagnostic, Finding
from scorelab.grids import Grid, Uniform
from scorelab.processes import LinearGaussian, StochasticInterpolant
from scorelab.solvers import InterpolantODE
from scorelab.validation import require_int, require_spec


@dataclass(frozen=True, kw_only=True)
class Straightness(Diagnostic):
    """How far the flow of the model is from straight lines (:func:`scorelab.distill.straightness`).

    Attributes:
        n: points of the start.
        grid: the times.
    """

    name: str = "straightness"
    n: int = 1000
    grid: Grid = field(default_factory=lambda: Uniform(64))

    def __post_init__(self):
        require_int(self, 1, n=self.n)
        require_spec(self, Grid, grid=self.grid)

    def check(self, experiment):
        """Whether the process has a flow that begins where the start is known."""
        process = experiment.process
        require_spec("Straightness: the process", LinearGaussian | StochasticInterpolant, process=process)
        if isinstance(process, StochasticInterpolant):
            InterpolantODE(rule="euler").table(process, self.grid.times(process))
            if process.coupling is not None and process.coupling.paired and experiment.data.condition is not None:
                raise ValueError(f"Straightness under {process.coupling!r} and a condition: expected another coupling")

    def __call__(self, model, data, key):
        """The value; under a condition, for those of random rows of the data."""
        arrays = data.load()
        rows = np.resize(np.random.default_rng(0).permutation(len(arrays)), self.n)
        cond = None if data.condition is None else data.condition_of(rows)
        found = straightness(model, grid=self.grid, key=key, shape=(self.n, *arrays.event_shape), cond=cond)
        return Finding(values={"straightness": float(found)})
