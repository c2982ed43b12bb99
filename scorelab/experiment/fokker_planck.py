"""The Fokker-Planck residual of a trained model, and the gap between its flow and its SDE, as diagnostics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from scorelab import diagnostics, viz
from scorelab.experiment.diagnose import ByNoiseLevel, Diagnostic, Finding, points, require_denoiser
from scorelab.grids import Grid, LogSNR
from scorelab.losses import FokkerPlanck as Residual
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.validation import require_choice, require_int, require_spec


@dataclass(frozen=True, kw_only=True)
class FokkerPlanck(ByNoiseLevel):
    """How far the scores of all noise levels are from those of one law (:func:`scorelab.diagnostics.fokker_planck_residual`).

    Attributes:
        residual: the form, and how its derivatives are taken; with many elements in a point, probes.
    """

    name: str = "fokker_planck"
    residual: Residual = field(default_factory=Residual)

    def __post_init__(self):
        super().__post_init__()
        require_spec(self, Residual, residual=self.residual)

    def __call__(self, model, data, key):
        """The root mean square by noise ratio, and relative to the change of the score with the noise."""
        x, cond = points(data, self.n)
        found = diagnostics.fokker_planck_residual(model, x, self.sigmas, residual=self.residual, cond=cond, key=key)
        curves = {
            "root mean square": (self.sigmas, found.root_mean_square),
            "relative to the change": (self.sigmas, found.relative),
        }
        figure = viz.lines(
            curves, xlabel="noise ratio", ylabel="Fokker-Planck residual", logx=True, logy=bool(np.any(found.mean_square > 0))
        )
        values = dict(
            largest_residual=found.root_mean_square.max(), sigmas=self.sigmas,
            root_mean_square=found.root_mean_square, mean_square=found.mean_square,
            standard_error=found.standard_error, relative=found.relative,
        )  # fmt: skip
        return Finding(values=values, figure=figure)


@dataclass(frozen=True, kw_only=True)
class Gap(Diagnostic):
    """The distance between samples of the flow and of the SDE, and of each to data (:func:`scorelab.diagnostics.ode_sde_gap`).

    Under a condition it is that of random rows of the data, the same ones for all sets of samples. Sets of data have conditions of
    their own, so distances to data hold the difference of their shares as well.

    Attributes:
        n: samples of a set.
        sets: sets of samples; the training data have at least ``sets`` times ``n`` points.
        grid: the times.
        metric: ``"exact"``, or ``"sliced"`` for many samples or dimensions.
    """

    name: str = "gap"
    n: int = 1000
    sets: int = 4
    grid: Grid = field(default_factory=lambda: LogSNR(64))
    metric: Literal["exact", "sliced"] = "exact"

    def __post_init__(self):
        require_int(self, 1, n=self.n)
        require_int(self, 2, sets=self.sets)
        require_spec(self, Grid, grid=self.grid)
        require_choice(self, ("exact", "sliced"), metric=self.metric)

    def check(self, experiment):
        """Whether the process has a flow and an SDE of one chart, and the data have as many points as are compared."""
        process = experiment.process
        require_denoiser(self, experiment)
        require_spec("Gap: the process", LinearGaussian, process=process)
        self.grid.times(process)
        if process.has_signs:
            raise ValueError(f"Gap under {process!r}: expected a process of positive data, since samples here begin without signs")
        if self.n * self.sets > (there := len(experiment.data.load())):
            raise ValueError(f"Gap.n = {self.n} in {self.sets} sets: expected at most {there} points in all, those of the data")

    def __call__(self, model, data, key):
        """The three distances with errors and floors, and a picture of samples in the plane."""
        arrays = data.load()
        rows = np.random.default_rng(0).permutation(len(arrays))[: self.n * self.sets]
        x = np.asarray(data.transform.encode(arrays.x[rows]))
        cond = None if data.condition is None else data.condition_of(rows[: self.n])
        shape = (self.n, *arrays.event_shape)
        found = diagnostics.ode_sde_gap(
            model, grid=self.grid, key=key, shape=shape, data=x, cond=cond, sets=self.sets, metric=self.metric
        )
        values = {}
        for name in ("gap", "ode", "sde"):
            distance: diagnostics.Distance = getattr(found, name)
            values |= {
                f"{name}_above_floor": distance.above, name: distance.value, f"{name}_error": distance.standard_error,
                f"{name}_floor": distance.floor,
            }  # fmt: skip
        figure = None
        if arrays.event_shape == (2,):
            shown = {"flow": found.samples["ode"][0], "SDE": found.samples["sde"][0], "data": x[: self.n]}
            figure = viz.scatter_grid([list(shown.values())], rows=[data.name], headings=list(shown))
        return Finding(values=values, figure=figure)
