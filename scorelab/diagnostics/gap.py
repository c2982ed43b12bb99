"""How far apart the probability flow and the reverse SDE of one model end, and how far each is from data."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import jax
import numpy as np

from scorelab.arguments import check_key
from scorelab.arrays import Array, Key, Pytree
from scorelab.diagnostics.blocks import require_finite
from scorelab.grids import Grid
from scorelab.metrics import sliced_wasserstein, wasserstein
from scorelab.models.base import Model
from scorelab.models.function import as_pytree
from scorelab.processes.base import Start
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.sampling import sample
from scorelab.solvers import DPMSolverPP, Heun
from scorelab.solvers.base import Solver
from scorelab.validation import require_choice, require_int, require_spec
from scorelab.walk import check_shape

Metric = Literal["exact", "sliced"] | Callable[[np.ndarray, np.ndarray], float]
# Its directions do not depend on the key, so that values of models are compared along the same ones.
_DIRECTIONS = 256


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A distance between two laws, from sets of samples.

    Attributes:
        value: the mean over the sets.
        standard_error: of the mean.
        floor: the distance of two sets of one law, of the same size: root mean square of those of the laws that are compared where
            both are drawn, of the data otherwise. What lies at the floor may be zero.
    """

    value: float
    standard_error: float
    floor: float

    @property
    def above(self) -> float:
        r"""The distance without most of what the number of points makes, :math:`\sqrt{\max(v^2 - f^2, 0)}` of value and floor."""
        return float(np.sqrt(max(self.value**2 - self.floor**2, 0.0)))

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True, kw_only=True)
class OdeSdeGap:
    """What :func:`ode_sde_gap` returns.

    Attributes:
        gap: between samples of the flow and of the SDE.
        ode: between samples of the flow and data, None without data.
        sde: between samples of the SDE and data, None without data.
        samples: the samples that were compared, in data space: ``"ode"`` and ``"sde"``, ``(sets, n, *event)``.
    """

    gap: Distance
    ode: Distance | None
    sde: Distance | None
    samples: dict[str, np.ndarray] = field(repr=False)


def ode_sde_gap(
    model: Model,
    *,
    grid: Grid,
    key: Key,
    shape: tuple[int, ...],
    data: Array | None = None,
    cond: Pytree = None,
    start: Start | None = None,
    ode: Solver | None = None,
    sde: Solver | None = None,
    sets: int = 4,
    metric: Metric = "exact",
    chunk: int | None = None,
) -> OdeSdeGap:
    r"""The distance :math:`W_2` between samples of the probability flow and of the reverse SDE, and of each to data.

    With an exact score both end in the same law. The gap is zero for the exact scores of another law than that of the data as well:
    read it beside the distances to data. What the solvers get wrong is part of the gap, as a grid with twice the steps shows.

    Args:
        model: the model.
        grid: the times of both.
        key: PRNG key; all sets have noise of their own.
        shape: ``(n, *event)`` of one set.
        data: points in data space, at least ``sets`` times ``n`` of them, in any order that is independent of their values: the
            first rows are taken. Under conditions, points of the same conditions.
        cond: the model's conditions, with leading axis ``n``.
        start: the law at the first time; the prior of the process by default.
        ode: the solver of the flow, Heun's rule by default.
        sde: that of the reverse SDE, ``DPMSolverPP(eta=1.0)`` by default.
        sets: how many sets are drawn by each, 2 or more: errors and floors come from them.
        metric: ``"exact"`` (:func:`scorelab.metrics.wasserstein`, up to a few thousand points of few dimensions), ``"sliced"``
            (:func:`scorelab.metrics.sliced_wasserstein`), or a function of two arrays ``(n, d)``.
        chunk: as :func:`scorelab.sample`.

    Returns:
        Distances with standard errors and floors.

    Raises:
        ValueError: too few data or sets, a solver with noise for the flow, one without for the SDE, an argument out of range.
        TypeError: a process that is not linear-Gaussian, what is no model.

    Source: arXiv 2311.15996.
    """
    where = "ode_sde_gap"
    model = as_pytree(where, model)
    require_spec(where, LinearGaussian, process=model.process)
    check_key(where, key)
    ode, sde = Heun() if ode is None else ode, DPMSolverPP(eta=1.0) if sde is None else sde
    require_spec(where, Solver, ode=ode, sde=sde)
    for name, solver, noisy in (("ode", ode, False), ("sde", sde, True)):
        if solver.stochastic != noisy:
            raise ValueError(f"{where}.{name} = {solver!r}: expected a solver {'with' if noisy else 'without'} noise")
    require_int(where, 2, sets=sets)
    if not callable(metric):
        require_choice(where, ("exact", "sliced"), metric=metric)
    check_shape(shape)
    points = None if data is None else _sets_of(data, sets, shape)

    found: dict[str, list[np.ndarray]] = {"ode": [], "sde": []}
    for i in range(sets):
        for j, (name, solver) in enumerate((("ode", ode), ("sde", sde))):
            each = jax.random.fold_in(jax.random.fold_in(key, i), j)
            out = sample(model, solver=solver, grid=grid, key=each, shape=shape, start=start, cond=cond, chunk=chunk)
            found[name].append(np.asarray(out.x))
    drawn = {name: np.stack(parts) for name, parts in found.items()}

    distance = lambda a, b: _distance(metric, a.reshape(len(a), -1), b.reshape(len(b), -1))
    within = {name: _within(distance, of) for name, of in drawn.items()}
    gap = _between(distance, drawn["ode"], drawn["sde"], float(np.sqrt((within["ode"] ** 2 + within["sde"] ** 2) / 2)))
    if points is None:
        return OdeSdeGap(gap=gap, ode=None, sde=None, samples=drawn)
    floor = _within(distance, points)
    to_data = {name: _between(distance, of, points, floor) for name, of in drawn.items()}
    return OdeSdeGap(gap=gap, ode=to_data["ode"], sde=to_data["sde"], samples=drawn)


def _sets_of(data: Array, sets: int, shape: tuple[int, ...]) -> np.ndarray:
    """Disjoint sets of data, ``(sets, n, *event)``."""
    data = np.asarray(data)
    n, event = shape[0], tuple(shape[1:])
    if data.ndim < 2 or data.shape[1:] != event or len(data) < sets * n:
        raise ValueError(
            f"ode_sde_gap.data has shape {data.shape}: expected ({sets * n} or more, {', '.join(map(str, event))}), {sets} sets of "
            f"{n} points"
        )
    require_finite("ode_sde_gap.data", data)
    return data[: sets * n].reshape(sets, n, *event)


def _distance(metric: Metric, a: np.ndarray, b: np.ndarray) -> float:
    if metric == "exact":
        return wasserstein(a, b).value
    if metric == "sliced":
        return sliced_wasserstein(jax.random.key(0), a, b, projections=_DIRECTIONS).value
    value = np.asarray(metric(a, b), np.float64)
    if value.shape != () or not np.isfinite(value) or value < 0:
        raise ValueError(f"ode_sde_gap.metric returned {value!r}: expected one finite number, at least 0")
    return float(value)


def _between(distance: Callable, a: np.ndarray, b: np.ndarray, floor: float) -> Distance:
    values = np.array([distance(one, other) for one, other in zip(a, b, strict=True)])
    return Distance(value=float(values.mean()), standard_error=float(values.std(ddof=1) / np.sqrt(len(values))), floor=floor)


def _within(distance: Callable, sets: np.ndarray) -> float:
    """Root mean square of the distances of neighbouring sets."""
    squares = [distance(one, other) ** 2 for one, other in itertools.pairwise(sets)]
    return float(np.sqrt(np.mean(squares)))
