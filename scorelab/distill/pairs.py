"""Pairs of noise and data that a teacher's probability flow joins, and pairs of base and data that an interpolant joins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import numpy as np

from scorelab import walk
from scorelab.arrays import Array, Key, Pytree, on_host
from scorelab.data import Batches
from scorelab.grids import Explicit, Grid
from scorelab.inversion import invert
from scorelab.models.base import Model
from scorelab.models.function import as_pytree
from scorelab.processes.base import Start
from scorelab.processes.interpolant import StochasticInterpolant
from scorelab.sampling import sample
from scorelab.solvers.base import Solver
from scorelab.solvers.interpolant import InterpolantODE, InterpolantSDE
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


def rectified_pairs(
    model: Model,
    *,
    solver: InterpolantODE | InterpolantSDE,
    grid: Grid,
    key: Key,
    shape: tuple[int, ...] | None = None,
    x: Array | None = None,
    start: Start | None = None,
    cond: Pytree = None,
    chunk: int | None = None,
) -> dict[str, Any]:
    r"""The two ends of the paths of an interpolant: what the next one is trained on under the coupling ``data.Rectified``.

    Given ``shape``, paths run from draws of the base to the data; given data ``x``, from these to the base. The law of the end that
    a path begins with is exact, so directions in turn keep both ends of iterated fitting from drifting away.

    Under ``InterpolantODE`` training on the pairs is reflow, which makes the flow straighter (Liu et al., arXiv 2209.03003). Under
    ``InterpolantSDE(epsilon=epsilons.SchroedingerBridge())``, a linear path and a Brownian gamma it is one round of iterated
    fitting, whose limit is the Schroedinger bridge (Shi et al., arXiv 2303.16852).

    Args:
        model: a model of a stochastic interpolant.
        solver: ``InterpolantODE`` or ``InterpolantSDE``.
        grid: the time grid, from 1 to 0.
        key: PRNG key of the start and of the noise.
        shape: ``(n, *event)``; None with ``x``.
        x: data ``(n, *event)``; None with ``shape``.
        start: the law at ``t = 1``, with ``shape`` alone; the base by default.
        cond: conditions with leading axis ``n``, or None.
        chunk: samples computed at once; see :func:`scorelab.sample`.

    Returns:
        Host arrays ``"x"`` and ``"base"``, ``(n, *event)``, and ``"cond"`` where it is given; ``Batches(pairs, batch_size, seed)``
        goes into ``fit``.

    Raises:
        TypeError: another process or another solver.
        ValueError: both ``shape`` and ``x``, or none of them; a grid between other times; a start with weights or beside ``x``.
    """
    require_spec("rectified_pairs", InterpolantODE | InterpolantSDE, solver=solver)
    model = as_pytree("rectified_pairs", model)
    require_spec("rectified_pairs.model's process", StochasticInterpolant, process=model.process)
    if (shape is None) == (x is None) or (x is not None and start is not None):
        raise ValueError("rectified_pairs: expected one of shape and x, and a start with shape only")
    require_spec("rectified_pairs", Grid, grid=grid)
    times = grid.times(model.process)
    if (times[0], times[-1]) != (1, 0):
        raise ValueError(f"rectified_pairs.grid = {grid!r} has times from {times[0]:.4g} to {times[-1]:.4g}: expected 1 to 0")
    if x is not None:
        w = invert(model, x, solver=solver, grid=grid, key=key, cond=cond, chunk=chunk)
    else:
        plan = walk.plan("rectified_pairs", model, solver=solver, grid=grid, key=key, shape=shape, start=start, cond=cond, ids=None)
        if plan.start.weighs(model.process):
            raise ValueError(f"rectified_pairs.start = {plan.start!r} has weights: expected a start that is the law itself")
        begins, walks = jax.random.split(key)
        w = plan.draw(begins)
        shape = (plan.n, *plan.event)
        x = sample(model, solver=solver, grid=grid, key=walks, shape=shape, start=Fixed(w), cond=cond, chunk=chunk).x
    pairs: dict[str, Any] = {"x": on_host(cast(Array, x)), "base": on_host(w)}
    return pairs if cond is None else pairs | {"cond": jax.tree.map(on_host, cond)}


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
