"""The walk from noise to data: where it begins, one row after another, and where it ends. Everything that samples uses it.

The state is an opaque pytree of arrays with a leading axis of samples. What a sample draws depends on its id and the row, never
on the samples beside it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from scorelab.arguments import check_shape, check_walk
from scorelab.arrays import Array, Key, Pytree, is_traced, on_host
from scorelab.grids import Grid
from scorelab.lasting import once
from scorelab.models.base import Model, ask
from scorelab.models.estimates import refuse_waiting, require_waits
from scorelab.models.function import as_pytree
from scorelab.models.inpainted import Inpainted
from scorelab.models.known import Known
from scorelab.models.parts import contains
from scorelab.models.per_sample import map_per_sample
from scorelab.processes.base import Process, Start
from scorelab.processes.interpolant import StochasticInterpolant
from scorelab.pytrees import partly_static
from scorelab.randomness import PathKeys, folded, per_example_keys
from scorelab.solvers.base import Integrator, Population, Solver, population_size, require_moved
from scorelab.starts import Prior
from scorelab.validation import require_spec

# The stream of a row's key from which the place of the model's call is drawn, beside that of the update.
_QUERY = 1_000_081
# The stream of the walk's key from which paths are drawn, beside those of the rows, which are numbers of rows.
_PATH = 2_000_000_011


class State(NamedTuple):
    """Between two rows.

    Attributes:
        y: the points.
        carry: the memory of the solver.
        bad: the first step after which each sample was not finite, -1 so far, ``(batch,)``.
    """

    y: Pytree
    carry: Pytree
    bad: Array


class Visit(NamedTuple):
    """What is asked of the samples, the same at every row.

    Attributes:
        model: the model.
        key: of the walk.
        ids: of the samples, ``(batch,)``.
        cond: their conditions.
    """

    model: Model
    key: Key
    ids: Array
    cond: Pytree = None


class Plan(NamedTuple):
    """What a walk is, on the host.

    Attributes:
        model: the model, a pytree.
        n: the number of samples.
        event: the shape of one point.
        population: how many samples in a row depend on one another.
        start: where it begins, at ``times[0]``.
        times: the grid that is walked, float64.
        rows: the table of the solver, one row for each model call, in the working precision.
        ids: of the samples.
    """

    model: Model
    n: int
    event: Any
    population: int
    start: Start
    times: np.ndarray
    rows: Any
    ids: Array

    def draw(self, key: Key) -> Pytree:
        """Points of the start at the first time, from the key of each id."""
        return self.start.draw(per_example_keys(key, self.ids), self.ids, self.model.process, self.first, self.event)

    @property
    def first(self) -> np.ndarray:
        """The first time, in the working precision."""
        return self.times[0].astype(jax.dtypes.canonicalize_dtype(np.float64))

    @property
    def calls(self) -> int:
        """The number of rows."""
        return len(self.rows.step)


def plan(
    where: str,
    model: Model,
    *,
    solver: Solver,
    grid: Grid,
    key: Key,
    shape: Any,
    start: Start | None,
    cond: Pytree,
    ids: Array | None,
    particles: int | None = None,
) -> Plan:
    """Everything that is known before anything is computed, checked; ``particles`` is the size of populations in a search.

    Raises:
        TypeError: a model that does not know its process, a solver or a start that is none, no PRNG key.
        ValueError: what does not fit the others.
    """
    model = as_pytree(where, model)
    require_spec(where, Solver, solver=solver)
    require_spec(where, Grid, grid=grid)
    process = model.process
    require_spec(f"{where}.solver = {type(solver).__name__}", solver.process_type, process=process)
    if solver.self_conditioned:
        require_waits(f"{where}.solver = {type(solver).__name__}", model)
    else:
        refuse_waiting(where, model, f"{type(solver).__name__} tells it nothing; solvers.SelfConditioned(solver) does")
    check_known(where, model, solver)
    n, event = check_shape(shape)
    start = Prior() if start is None else start
    require_spec(where, Start, start=start)
    population = particles or population_size(solver, n)
    ids, times = check_walk(where, model, grid, key, n, population, cond, ids)
    start, times = start.on_grid(process, times)
    solver.check_start(start, model, float(times[0]))
    rows = _rows(solver, process, times.tobytes())
    start.check(1 if is_traced(ids) else int(np.max(on_host(ids))) + 1, event, process)
    if not is_traced(start, ids):
        start.suit(where, model, float(times[0]), cond)
        _check_outside(where, model, start, ids, population)
    return Plan(model, n, event, population, start, times, rows, ids)


def check_known(where: str, model: Model, solver: Solver | None) -> None:
    """Raise ``ValueError`` where what is known of the clean point would not be read, or where there is nothing to read."""
    if isinstance(process := model.process, StochasticInterpolant):
        holed, inside = isinstance(model, Inpainted), contains(model, Inpainted)
        asks = process.coupling is not None and process.coupling.hole is not None
        if asks != inside or holed != inside or (holed and solver is None):
            raise ValueError(
                f"{where}.model is a {type(model).__name__} under {process!r}: expected models.Inpainted(model=..., hole=...) "
                "around all other models under data.Inpainting, to be sampled, and nowhere else"
            )
    reads = solver is not None and solver.paints
    if not reads and contains(model, Known):
        raise ValueError(
            f"{where}.model has what is known of the clean point (models.Known), "
            f"which {'it' if solver is None else type(solver).__name__} does not read: expected solvers.RePaint(...), or no Known"
        )
    if reads and not isinstance(model, Known):
        raise ValueError(
            f"{where}.solver = {solver!r} with a {type(model).__name__}: expected models.Known(model=..., values=..., mask=...) "
            "around all other models"
        )


def _check_outside(where: str, model: Model, start: Start, ids: Array, population: int) -> None:
    """Raise ``ValueError`` where particles of one population have other points outside of a hole.

    What is in the hole of a particle moves to the place of another, and would be beside what is known there.
    """
    if not isinstance(model, Inpainted) or population == 1 or is_traced(model.hole):
        return
    if start.given is None:
        raise ValueError(f"{where}.start = {type(start).__name__} with models.Inpainted in populations: expected starts.Fixed(w)")
    hole, points = on_host(model.hole).astype(bool), on_host(start.given)[on_host(ids)]
    if hole.shape != points.shape:
        return  # said by the model
    known = np.where(hole, 0, points)
    rows = known.reshape(-1, population, known[0].size)
    if not np.array_equal(rows, np.broadcast_to(rows[:, :1], rows.shape)):
        raise ValueError(
            f"{where}.start differs outside of Inpainted.hole within populations of {population} samples: expected one value for "
            "each"
        )


@once
def _rows(solver: Solver, process: Process, grid: bytes) -> Any:
    """The table on float64 times, in the working precision; ValueError unless it has rows for every step, one after the other."""
    times = np.frombuffer(grid).copy()
    rows = working_precision(solver.table(process, times))
    step = np.asarray(rows.step)
    if not np.array_equal(np.unique(step), np.arange(len(times) - 1)) or np.any(np.diff(step) < 0):
        found = ", ".join(map(str, step[:8])) + (", ..." if len(step) > 8 else "")
        raise ValueError(
            f"{type(solver).__name__}.table has rows for the steps {found}: expected 0 to {len(times) - 2}, in this order"
        )
    return rows


@partly_static("solver")
@dataclass(frozen=True)
class Held:
    """A solver as an argument of compiled functions: what is a number in it (the scale of a reward) is a leaf, the rest static."""

    solver: Solver


def chunks(
    n: int, size: int, model: Model, *trees: Pytree, place: NamedSharding | None = None
) -> Iterator[tuple[int, Model, tuple[Pytree, ...]]]:
    """Where each chunk of ``size`` samples begins, the model for it, and the rows of ``trees``, on its devices.

    The last chunk is filled up by repeating the last sample, so that every chunk has one shape.
    """
    for low in range(0, n, size):
        index = np.minimum(np.arange(low, low + size), n - 1)

        def rows(leaf, index=index):
            part = leaf[index] if isinstance(leaf, np.ndarray) else jnp.asarray(leaf)[index]
            return part if place is None else jax.device_put(jnp.asarray(part), place)

        yield low, map_per_sample(lambda _, value, rows=rows: rows(value), model), jax.tree.map(rows, trees)


class Drawn(NamedTuple):
    """Where the samples begin.

    Attributes:
        y: the points.
        log_weights: those of the start, ``(batch,)``.
        signs: of the samples, where the start gives signs.
    """

    y: Pytree
    log_weights: Array
    signs: Pytree = None


@functools.partial(jax.jit, static_argnames=("process", "event"))
def drawn(start: Start, process: Process, key: Key, ids: Array, cond: Pytree, t: Array, *, event: Any) -> Drawn:
    """Where the samples with these ids begin; ``key`` is that of the walk.

    A program of its own, which other solvers, models and grids use again: drawing takes half as long to compile as a network.
    """
    y = start.draw(per_example_keys(jax.random.split(key)[0], ids), ids, process, t, event)
    log_weights = start.log_weight(y, process, t, cond)
    _check_drawn(start, y, log_weights, len(ids), event)
    return Drawn(y, log_weights, start.signs(ids, event))


def begin(solver: Solver, visit: Visit, drawn: Drawn) -> State:
    """The state before the first row."""
    carry = solver.init(visit.model.process, drawn.y, drawn.log_weights)
    return State(drawn.y, carry, jnp.full(len(visit.ids), -1, jnp.int32))


def _check_drawn(start: Start, y: Pytree, log_weights: Array, n: int, event: Any) -> None:
    """Raise ``ValueError`` unless a start has drawn ``n`` points of the event, each with a log-weight: others would broadcast."""
    several = event and isinstance(event[0], tuple)
    expected = {name: (n, *shape) for name, shape in event} if several else (n, *event)
    if (found := jax.tree.map(jnp.shape, y)) != expected:
        raise ValueError(f"{type(start).__name__}.draw returned points of shape {found}: expected {expected}")
    if jnp.shape(log_weights) != (n,):
        raise ValueError(f"{type(start).__name__}.log_weight returned shape {jnp.shape(log_weights)}: expected ({n},)")


def predict(solver: Solver, visit: Visit, state: State, row: Any, index: Array) -> tuple[Pytree, Any]:
    """The point at which the model is asked in a row, and what it says."""
    keys = row_keys(solver, visit, index)
    y = _kept(visit.model, state.y, solver.query(folded(keys, _QUERY), state.y, state.carry, row))
    prediction = solver.ask(solver.informed(visit.model, state.carry), keys, y, row, visit.cond)
    solver.require(prediction)
    return y, prediction


def update(solver: Solver, visit: Visit, state: State, y: Pytree, prediction: Any, row: Any, index: Array) -> State:
    """The state after a row, from what the model said at ``y``."""
    y, carry = solver.update(row_keys(solver, visit, index), y, prediction, state.carry, row)
    require_moved(solver, "update", state.y, y)
    y = _kept(visit.model, state.y, y)
    return State(y, carry, first_bad(state.bad, y, row.step))


def _kept(model: Model, before: Pytree, after: Pytree) -> Pytree:
    return model.kept(before, after) if isinstance(model, Inpainted) else after


def scan(
    solver: Solver,
    visit: Visit,
    state: State,
    rows: Any,
    index: Array,
    *,
    point: Callable[[State], Pytree] | None = None,
    judge: Callable[[Pytree, Any, Any, Array], Pytree] | None = None,
) -> tuple[State, tuple[Pytree, Pytree, Pytree]]:
    """The state after several rows, and of every row: ``point(state)`` after it, ``judge(y, prediction, row, index)``, the record.

    The network appears once in the program, in the body of the scan. An integrator asks the model as often as it likes, so
    nothing judges its predictions.
    """
    record = solver.record if isinstance(solver, Population) else lambda carry: ()

    def asked(y, t):
        prediction = ask(visit.model, y, t, visit.cond)
        solver.require(prediction)
        return prediction

    def body(state, at):
        row, i = at
        judged = None
        if isinstance(solver, Integrator):
            y = solver.integrate(asked, state.y, row)
            require_moved(solver, "integrate", state.y, y)
            state = State(y, state.carry, first_bad(state.bad, y, row.step))
        else:
            y, prediction = predict(solver, visit, state, row, i)
            judged = None if judge is None else judge(y, prediction, row, i)
            state = update(solver, visit, state, y, prediction, row, i)
        return state, (None if point is None else point(state), judged, record(state.carry))

    return jax.lax.scan(body, state, (rows, index))


def finish(solver: Solver, visit: Visit, state: State, index: Array | int) -> State:
    """The state when nothing moves any more; ``index`` is that of the last row."""
    if not isinstance(solver, Population):
        return state
    y, carry = solver.finish(visit.model.process, row_keys(solver, visit, index), state.y, state.carry, visit.cond)
    return state._replace(y=y, carry=carry)


def row_keys(solver: Solver, visit: Visit, index: Array | int) -> Any:
    """The keys of one row, one per sample; a solver that draws nothing gets the same at every row, which costs nothing."""
    key = jax.random.split(visit.key)[1]
    keys = per_example_keys(jax.random.fold_in(key, index) if solver.stochastic else key, visit.ids)
    return PathKeys(keys, per_example_keys(jax.random.fold_in(key, _PATH), visit.ids)) if solver.along_path else keys


def first_bad(bad: Array, y: Pytree, step: Array) -> Array:
    """The first step after which each sample was not finite, -1 so far."""
    # A mean is finite only if all its terms are: one reduction instead of a mask over the state. Divided first: it cannot overflow.
    total = lambda leaf: jnp.sum(leaf / max(1, math.prod(leaf.shape[1:])), axis=tuple(range(1, leaf.ndim)))
    finite = [jnp.isfinite(total(leaf)) for leaf in jax.tree.leaves(y) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.where((bad < 0) & ~jnp.all(jnp.stack(finite), axis=0), step, bad) if finite else bad


class NonFiniteSample(FloatingPointError):
    """Sampling met a NaN or an infinity; the message names the first step and time at which it appeared."""


def raise_if_bad(bad: np.ndarray, times: np.ndarray) -> None:
    """Raise :class:`NonFiniteSample` where a first bad step ``(n,)`` is not -1."""
    if np.any(bad >= 0):
        step = int(bad[bad >= 0].min())
        raise NonFiniteSample(
            f"{np.sum(bad >= 0)} of {len(bad)} samples are not finite; the first became so in step {step} of "
            f"{len(times) - 1} (t = {times[step]:.4g} to {times[step + 1]:.4g})"
        )


def working_precision(rows: Any) -> Any:
    """A table in the working precision (float32, or float64 when JAX runs with x64); integers as int32."""
    working = jax.dtypes.canonicalize_dtype(np.float64)
    cast = lambda column: column.astype(np.int32 if np.issubdtype(column.dtype, np.integer) else working)
    return jax.tree.map(lambda column: cast(np.asarray(column)), rows)
