"""Rounds of a training in which an interpolant learns from pairs that it has made itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np

from scorelab import hosts
from scorelab.arrays import Pytree
from scorelab.data import Batches, Rectified
from scorelab.data.memory import require_memory
from scorelab.distill import rectified_pairs
from scorelab.errors import ConfigError, shown
from scorelab.experiment.base import Experiment, Run
from scorelab.experiment.checkpoints import host_state
from scorelab.files import DamagedFile, read_npz, write_npz
from scorelab.grids import Arcsine, Grid
from scorelab.processes import StochasticInterpolant
from scorelab.solvers import InterpolantODE, InterpolantSDE
from scorelab.training import Prepare
from scorelab.validation import require_choice, require_int, require_spec

# The stream of a training's key from which pairs are drawn, beside those of the steps.
_PAIRS = 2**32 - 2
# The most bytes of the pairs of a round.
_BYTES = 1 << 36


@dataclass(frozen=True, kw_only=True)
class Rectify:
    """Rounds of reflow or of iterated Markovian fitting: every so many steps the model makes the pairs that it learns from next.

    Until the first round the batches are those of ``data.Rectified.first``. Pairs lie in ``pairs/<step>.npz`` of the work
    directory, so a run that is stopped goes on with the same ones. Conditions are those of random rows of the data.

    Attributes:
        every: the steps of a round, a multiple of ``Train.checkpoint_every``; ``Train.steps`` says how many rounds there are.
        n: pairs of a round.
        solver: ``InterpolantODE()`` for reflow, ``InterpolantSDE(epsilon=epsilons.SchroedingerBridge())`` for the bridge.
        grid: its time grid.
        exact: the ends that paths begin at, a round each, in turns. The law of that end is exact.
        chunk: pairs made at once, None for as many as fit.
    """

    every: int
    n: int = 50_000
    solver: InterpolantODE | InterpolantSDE = field(default_factory=InterpolantODE)
    grid: Grid = field(default_factory=lambda: Arcsine(60))
    exact: tuple[Literal["base", "data"], ...] = ("base", "data")
    chunk: int | None = None

    def __post_init__(self):
        require_int(self, 1, every=self.every, n=self.n)
        require_spec(self, InterpolantODE | InterpolantSDE, solver=self.solver)
        require_spec(self, Grid, grid=self.grid)
        object.__setattr__(self, "exact", (self.exact,) if isinstance(self.exact, str) else tuple(self.exact))
        if not self.exact:
            raise ValueError("Rectify.exact = (): expected 'base' or 'data' for each round")
        for end in self.exact:
            require_choice(self, ("base", "data"), exact=end)
        if self.chunk is not None:
            require_int(self, 1, chunk=self.chunk)

    def check(self, experiment: Experiment, steps: int, batch_size: int, checkpoint_every: int) -> None:
        """Raise ValueError or TypeError where the process has no such pairs, or the rounds do not fit the steps."""
        process = experiment.process
        require_spec("Train.rectify: the process", StochasticInterpolant, process=process)
        if not isinstance(process.coupling, Rectified):
            raise ValueError(f"Train.rectify under the coupling {process.coupling!r}: expected data.Rectified() of the process")
        if self.every >= steps:
            raise ValueError(f"Rectify.every = {self.every}: expected less than Train.steps = {steps}")
        if self.every % checkpoint_every:
            raise ValueError(f"Rectify.every = {self.every}: expected a multiple of Train.checkpoint_every = {checkpoint_every}")
        if self.n < batch_size:
            raise ValueError(f"Rectify.n = {self.n}: expected at least Train.batch_size = {batch_size}")
        require_memory(f"Rectify.n = {self.n}", 8.0 * self.n * np.prod(experiment.data.load().event_shape))
        times = self.grid.times(process)
        if times[0] != 1 or times[-1] != 0:
            raise ValueError(f"Rectify.grid = {self.grid!r} has times from {times[0]:.4g} to {times[-1]:.4g}: expected 1 to 0")
        for grid in (times, times[::-1]):
            self.solver.table(process, grid)

    def until(self, step: int, steps: int) -> int:
        """The last step of the round of ``step``."""
        return min((step // self.every + 1) * self.every, steps)

    def batches(self, run: Run, step: int, state: Pytree, batch_size: int) -> _Pairs | None:
        """The batches of the round that the step after ``step`` belongs to; None before the first.

        ``state`` is that after ``step``. ConfigError where pairs of an earlier step are not there.
        """
        if (number := step // self.every) == 0:
            return None
        began, experiment = number * self.every, run.experiment
        path = run.workdir.root / "pairs" / f"{began}.npz"
        if hosts.agreed(not path.is_file()):
            if step != began:
                raise ConfigError(
                    f"{shown(path)}: no such pairs, which the training at step {step} learns from: delete the checkpoints after "
                    f"step {began}"
                )
            state = host_state(state)
            if hosts.first():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_npz(path, self._made(run, number, state))
        hosts.exchange(None)
        try:
            pairs = read_npz(path, limit=_BYTES)
        except (DamagedFile, OSError) as error:
            raise ConfigError(f"{error}; delete {shown(path)} and the checkpoints after step {began}") from error
        shape = (self.n, *experiment.data.load().event_shape)
        ends = [pairs.get(name, np.zeros(0)) for name in ("x", "base")]
        if not all(end.shape == shape and np.all(np.isfinite(end)) for end in ends):
            found = {name: rows.shape for name, rows in pairs.items()}
            raise ConfigError(
                f"{shown(path)} has arrays of the shapes {found}: expected finite x and base, {shape}; delete it and the "
                f"checkpoints after step {began}"
            )
        cost = np.mean(np.sum((pairs["x"] - pairs["base"]).reshape(len(pairs["x"]), -1) ** 2, axis=1, dtype=np.float64))
        run.console.stage("pairs", f"round {number}: {len(pairs['x'])} pairs, mean square distance {cost:.4g}")
        return _Pairs(Batches(pairs, batch_size=batch_size, seed=experiment.seed + number), experiment.data.prepare)

    def _made(self, run: Run, number: int, state: Pytree) -> dict[str, np.ndarray]:
        data, learner = run.experiment.data, run.experiment.learner
        arrays, rng = data.load(), np.random.default_rng((run.experiment.seed, number))
        rows = np.resize(rng.permutation(len(arrays)), self.n)
        exact = self.exact[(number - 1) % len(self.exact)]
        ends: dict[str, Any] = dict(shape=(self.n, *arrays.event_shape))
        if exact == "data":
            ends = dict(x=data.points(arrays.x[rows], rng))
        cond = None if data.condition is None else data.condition_of(rows)
        key = jax.random.fold_in(jax.random.fold_in(run.experiment.keys()[0], _PAIRS), number)
        pairs = rectified_pairs(
            learner.model(state), solver=self.solver, grid=self.grid, key=key, cond=cond, chunk=self.chunk, **ends
        )  # fmt: skip
        columns = {name: value for name, value in arrays.columns().items() if name in data.prepare.taken}
        return {"x": pairs["x"], "base": pairs["base"]} | {name: value[rows] for name, value in columns.items()}


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Batches of pairs on the scale of the process, with conditions as the data have them."""

    batches: Batches
    inner: Prepare

    @property
    def prepare(self) -> _PreparePairs:
        return _PreparePairs(self.inner)

    def at(self, step: int, *shard: int) -> Mapping[str, Any]:
        return self.batches.at(step, *shard)


@dataclass(frozen=True)
class _PreparePairs:
    inner: Prepare

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Pytree]:
        return {"x": batch["x"], "base": batch["base"], "cond": self.inner.condition(batch)}
