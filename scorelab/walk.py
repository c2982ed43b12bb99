"""The walk from noise to data: where it begins, one row after another, and where it ends. Everything that samples uses it.

The state is an opaque pytree of arrays with a leading axis of samples. What a sample draws depends on its id and the row, never
on the samples beside it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.models.base import Model, ask
from scorelab.processes.base import Start
from scorelab.processes.predictions import require_capabilities
from scorelab.solvers.base import Integrator, Population, Solver
from scorelab.typing import Array, Key, Pytree, per_example_keys

# The stream of a row's key from which the place of the model's call is drawn, beside that of the update.
_QUERY = 1_000_081


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


def begin(solver: Solver, start: Start, visit: Visit, t: Array, event: Any) -> tuple[State, Array]:
    """The state before the first row, and the log-weights of the start."""
    process = visit.model.process
    y = start.draw(per_example_keys(jax.random.split(visit.key)[0], visit.ids), visit.ids, process, t, event)
    log_weights = start.log_weight(y, process, t, visit.cond)
    return State(y, solver.init(process, y, log_weights), jnp.full(len(visit.ids), -1, jnp.int32)), log_weights


def look(solver: Solver, visit: Visit, state: State, row: Any, index: Array) -> tuple[Pytree, Any]:
    """The point at which the model is asked in a row, and what it says."""
    keys = row_keys(solver, visit, index)
    y = solver.query(jax.vmap(lambda key: jax.random.fold_in(key, _QUERY))(keys), state.y, state.carry, row)
    prediction = solver.ask(visit.model, keys, y, row, visit.cond)
    require_capabilities(type(solver).__name__, prediction, solver.needs)
    return y, prediction


def move(solver: Solver, visit: Visit, state: State, y: Pytree, prediction: Any, row: Any, index: Array) -> State:
    """The state after a row, from what the model said at ``y``."""
    y, carry = solver.update(row_keys(solver, visit, index), y, prediction, state.carry, row)
    return State(y, carry, first_bad(state.bad, y, row.step))


def step(solver: Solver, visit: Visit, state: State, row: Any, index: Array) -> State:
    """The state after a row."""
    if isinstance(solver, Integrator):
        y = solver.integrate(lambda y, t: ask(visit.model, y, t, visit.cond), state.y, row)
        return State(y, state.carry, first_bad(state.bad, y, row.step))
    return move(solver, visit, state, *look(solver, visit, state, row, index), row, index)


def advance(solver: Solver, visit: Visit, state: State, rows: Any, index: Array, point: Any = None) -> tuple[State, Any]:
    """The state after several rows, and what was seen after each: ``point(state)``, and the records of a population.

    The network appears once in the program, in the body of the scan.
    """
    record = solver.record if isinstance(solver, Population) else lambda carry: ()

    def body(state, at):
        state = step(solver, visit, state, *at)
        return state, (None if point is None else point(state), record(state.carry))

    return jax.lax.scan(body, state, (rows, index))


def conclude(solver: Solver, visit: Visit, state: State, index: Array) -> State:
    """The state when nothing moves any more; ``index`` is that of the last row."""
    if not isinstance(solver, Population):
        return state
    y, carry = solver.conclude(visit.model.process, row_keys(solver, visit, index), state.y, state.carry, visit.cond)
    return state._replace(y=y, carry=carry)


def row_keys(solver: Solver, visit: Visit, index: Array) -> Key:
    """The keys of one row, one per sample; a solver that draws nothing gets the same at every row, which costs nothing."""
    key = jax.random.split(visit.key)[1]
    return per_example_keys(jax.random.fold_in(key, index) if solver.stochastic else key, visit.ids)


def first_bad(bad: Array, y: Pytree, step: Array) -> Array:
    """The first step after which each sample was not finite, -1 so far."""
    # A sum is finite only if all its terms are: one reduction instead of a mask over the state.
    total = lambda leaf: jnp.sum(leaf, axis=tuple(range(1, leaf.ndim)))
    finite = [jnp.isfinite(total(leaf)) for leaf in jax.tree.leaves(y) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.where((bad < 0) & ~jnp.all(jnp.stack(finite), axis=0), step, bad) if finite else bad


def working_precision(rows: Any) -> Any:
    """A table in the working precision (float32, or float64 when JAX runs with x64); integers as int32."""
    working = jax.dtypes.canonicalize_dtype(np.float64)
    cast = lambda column: column.astype(np.int32 if np.issubdtype(column.dtype, np.integer) else working)
    return jax.tree.map(lambda column: cast(np.asarray(column)), rows)
