"""Pairs of noise and data that a teacher's probability flow joins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scorelab import walk
from scorelab.arrays import Array, Key, Pytree, on_host
from scorelab.data import Batches
from scorelab.grids import Explicit, Grid
from scorelab.models.base import Model
from scorelab.processes.base import Start
from scorelab.sampling import sample
from scorelab.solvers.base import Solver
from scorelab.starts import Fixed
from scorelab.validation import require_spec


def teacher_pairs(
    model: Model,
    *,
    solver: Solver,
    grid: Grid,
    key: Key,
    shape: tuple[int, ...],
    start: Start | None = None,
    cond: Array | None = None,
    chunk: int | None = None,
) -> dict[str, np.ndarray]:
    r"""Sample ``model`` and keep where each sample came from, :math:`z = (y_T - b_T - \alpha_T y_0)/\sigma_T`.

    :math:`y_T` is the start, so :math:`\alpha_t y_0 + b_t + \sigma_t z` runs from the start of a sample to its end; where
    :math:`\alpha_T` is 0, ``z`` is the noise of the start, and elsewhere close to it. The result is a data set:
    ``Batches(pairs, batch_size, seed)`` (:class:`scorelab.data.Batches`) goes into ``fit``.

    Args:
        model: the teacher.
        solver: a deterministic solver.
        grid: the time grid.
        key: PRNG key of the start.
        shape: ``(n, *event)``.
        start: the law at the first grid time; :class:`scorelab.starts.Prior` by default.
        cond: one array of conditions ``(n, ...)``, or None.
        chunk: samples computed at once; see :func:`scorelab.sample`.

    Returns:
        Host arrays ``(n, *event)``: ``"noise"``; ``"start"``, :math:`(y_T-b_T)/\sigma_T`, from which a one-step student begins;
        ``"x"``, in data space; and ``"cond"`` where it is given.

    Raises:
        ValueError: a stochastic solver.
    """
    require_spec(teacher_pairs, Solver, solver=solver)
    if solver.stochastic:
        raise ValueError(f"teacher_pairs.solver = {solver!r} draws noise: expected a deterministic solver, such as Heun()")
    plan = walk.plan("teacher_pairs", model, solver=solver, grid=grid, key=key, shape=shape, start=start, cond=cond, ids=None)
    process, times = plan.model.process, plan.times
    if plan.start.weighs(process):
        raise ValueError(f"teacher_pairs.start = {plan.start!r} has weights: expected a start that is the law itself")
    y = plan.draw(key)
    out = sample(model, solver=solver, grid=Explicit(tuple(times)), key=key, shape=shape, start=Fixed(y), cond=cond, chunk=chunk)
    alpha, sigma, offset = (float(f(times[0])) for f in (process.alpha, process.sigma, process.offset))
    noise = (y - offset - alpha * process.encode(out.x)) / sigma
    pairs = {"noise": on_host(noise), "start": on_host((y - offset) / sigma), "x": on_host(out.x)}
    return pairs if cond is None else pairs | {"cond": on_host(cond)}


@dataclass(frozen=True, eq=False)
class WithPairs:
    """Batches with a teacher's pairs beside the data, for the regression of DMD (``pair_weight`` of a distillation).

    Attributes:
        data: anything ``fit`` takes, with its ``prepare`` if it has one.
        pairs: what :func:`teacher_pairs` returns, in the scale of prepared data.
        batch_size: pairs in a batch.
        seed: of their order.
    """

    data: Any
    pairs: Mapping[str, np.ndarray]
    batch_size: int
    seed: int = 0
    _batches: Batches = field(init=False, repr=False)

    def __post_init__(self):
        if missing := {"start", "x"} - set(self.pairs):
            raise ValueError(f"WithPairs.pairs has no {sorted(missing)}: expected the result of teacher_pairs")
        named = {"start": "pair_noise", "x": "pair_x", "cond": "pair_cond"}
        arrays = {named[name]: value for name, value in self.pairs.items() if name in named}
        object.__setattr__(self, "_batches", Batches(arrays, batch_size=self.batch_size, seed=self.seed))

    @property
    def prepare(self) -> _PrepareData:
        """That of the data; pairs are left as they are."""
        return _PrepareData(getattr(self.data, "prepare", None))

    def at(self, step: int, *shard: int) -> dict[str, Array]:
        """The batch of ``step``."""
        return {**self.data.at(step, *shard), **self._batches.at(step, *shard)}


@dataclass(frozen=True)
class _PrepareData:
    inner: Callable[[dict], dict] | None

    def __call__(self, batch: dict[str, Pytree]) -> dict[str, Pytree]:
        pairs = {name: value for name, value in batch.items() if name.startswith("pair_")}
        rest = {name: value for name, value in batch.items() if name not in pairs}
        return {**(rest if self.inner is None else self.inner(rest)), **pairs}
