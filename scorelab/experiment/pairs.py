"""Pairs of noise and a teacher's sample beside the training data, so that a config can name them."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import numpy as np

from scorelab.distill import WithPairs, teacher_pairs
from scorelab.grids import Grid
from scorelab.models.base import Model
from scorelab.solvers import Solver
from scorelab.training import Prepared
from scorelab.validation import require_int, require_seed, require_spec


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What the regression of DMD learns from: a teacher's samples, and the noise its probability flow made them of.

    They are made when the training begins, and the same ones again when it goes on.

    Attributes:
        teacher: the model that is distilled, with its guidance if it has any.
        solver: a deterministic solver.
        grid: its time grid.
        n: number of pairs; with labels the classes take turns.
        batch_size: pairs in a batch, over all devices.
        seed: of their noise and of their order.
        chunk: pairs made at once, None for as many as fit.
    """

    # Its arrays have no equality; what a config describes of it is compared by the run.
    teacher: Model = field(compare=False)
    solver: Solver
    grid: Grid
    n: int
    batch_size: int
    seed: int = 0
    chunk: int | None = None

    def __post_init__(self):
        require_spec(self, Solver, solver=self.solver)
        require_spec(self, Grid, grid=self.grid)
        require_int(self, 1, n=self.n, batch_size=self.batch_size)
        require_seed(self, seed=self.seed)
        if self.solver.stochastic:
            raise ValueError(f"Pairs.solver = {self.solver!r} draws noise: expected a deterministic solver, such as Heun()")
        if self.batch_size > self.n:
            raise ValueError(f"Pairs.batch_size = {self.batch_size}: expected at most the {self.n} pairs")

    def beside(self, data: Prepared, classes: int | None) -> WithPairs:
        """``data`` with the pairs in every batch; ``classes`` is the number of labels, None for a teacher without condition."""
        event = jax.eval_shape(data.prepare, data.at(0))["x"].shape[1:]
        cond = None if classes is None else np.resize(np.arange(classes, dtype=np.int32), self.n)
        made = teacher_pairs(
            self.teacher, solver=self.solver, grid=self.grid, key=jax.random.key(self.seed),
            shape=(self.n, *event), cond=cond, chunk=self.chunk,
        )  # fmt: skip
        return WithPairs(data, made, batch_size=self.batch_size, seed=self.seed)
