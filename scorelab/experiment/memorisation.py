"""Whether a trained model returns its training data, as a diagnostic."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scorelab import diagnostics, viz
from scorelab.experiment.data import DataSpec
from scorelab.experiment.diagnose import Diagnostic, Finding
from scorelab.experiment.holes import holed
from scorelab.grids import Grid, Karras
from scorelab.processes import StochasticInterpolant
from scorelab.sampling import sample
from scorelab.solvers import Heun, Solver
from scorelab.validation import require_int, require_spec


@dataclass(frozen=True, kw_only=True)
class Memorisation(Diagnostic):
    """How much nearer samples are to the training data than held-out data is (:func:`scorelab.diagnostics.memorisation`).

    Samples and data are compared as they are stored, on the scale of the model. Samples under a condition have those of random
    rows of the training data.

    Attributes:
        n: samples that are drawn.
        solver: the solver.
        grid: the time grid.
        split: the split with the held-out data.
    """

    name: str = "memorisation"
    n: int = 500
    solver: Solver = field(default_factory=Heun)
    grid: Grid = field(default_factory=lambda: Karras(18))
    split: str = "test"

    def __post_init__(self):
        require_int(self, 2, n=self.n)
        require_spec(self, Solver, solver=self.solver)
        require_spec(self, Grid, grid=self.grid)
        require_spec(self, str, split=self.split)

    def check(self, experiment):
        """Whether there is a held-out split, and the solver walks the process."""
        data, process = experiment.data, experiment.process
        if self.split == "train" or self.split not in data.dataset.splits:
            raise ValueError(
                f"Memorisation.split = {self.split!r} of {data.name}: expected another split than the training one, of "
                f"{', '.join(data.dataset.splits)}"
            )
        require_spec("Memorisation: the process", self.solver.process_type, process=process)
        coupling = process.coupling if isinstance(process, StochasticInterpolant) else None
        if holed(process) or (coupling is not None and coupling.paired):
            raise ValueError(f"Memorisation under {process!r}: expected a process whose samples begin at its prior")
        self.solver.table(process, self.grid.times(process))

    def __call__(self, model, data, key):
        """The shares beside those of held-out points, and both laws of the distance."""
        arrays = data.load()
        rows = np.resize(np.random.default_rng(0).permutation(len(arrays)), self.n)
        cond = None if data.condition is None else data.condition_of(rows)
        shape = (self.n, *arrays.event_shape)
        drawn = sample(model, solver=self.solver, grid=self.grid, key=key, shape=shape, cond=cond).x
        found = diagnostics.memorisation(
            _scaled(data, np.asarray(data.transform.decode(drawn))), _scaled(data, arrays.x), _scaled(data, data.load(self.split).x)
        )
        curves = {
            name: (np.sort(of), np.arange(1, len(of) + 1) / len(of))
            for name, of in (("samples", found.distances), ("held-out data", found.floor_distances))
        }
        xlabel, ylabel = "distance to the nearest training point", "share within it"
        figure = viz.lines(curves, xlabel=xlabel, ylabel=ylabel, reference=("held-out data",))
        # The share that needs no floor of another law comes first: the console has no place for all.
        told = ("nearest", "nearest_floor", "ratio", "standard_error", "copied", "copied_floor")
        return Finding(values={name: getattr(found, name) for name in told}, figure=figure)


def _scaled(data: DataSpec, x: np.ndarray) -> np.ndarray:
    return np.asarray(data.transform.encode(x))
