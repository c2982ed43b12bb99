"""Drive a solver row by row with given noise, where a test must know or choose what each step draws."""

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.models import ask
from scorelab.solvers import Integrator


def scan(solver, process, model, rows, live, y, noise):
    """The state after every row; ``noise[i]`` is what row ``i`` draws, and a row that is not ``live`` changes nothing."""

    def one_row(state, scanned):
        row, counts, drawn = scanned
        if isinstance(solver, Integrator):
            moved = solver.integrate(lambda y, t: ask(model, y, t), state[0], row), state[1]
        else:
            asked = solver.query(drawn, *state, row)
            prediction = solver.ask(model, drawn, asked, row, None)
            moved = solver.update(drawn, asked, prediction, state[1], row)
        state = jax.tree.map(lambda new, old: jnp.where(counts, new, old), moved, state)
        return state, state[0]

    start = y, solver.init(process, y, jnp.zeros(len(y), y.dtype))
    return jax.lax.scan(one_row, start, (rows, live, noise))[1]


def walk(solver, process, model, times, y, noise):
    """All states at the grid nodes; ``noise[i]`` is what step ``i`` draws (every row of a step sees the same)."""
    table = solver.table(process, times)
    rows = jax.tree.map(lambda column: np.asarray(column, y.dtype), table)
    states = scan(solver, process, model, rows, np.ones(len(table.step), bool), y, jnp.asarray(noise)[table.step])
    ends = np.append(np.flatnonzero(np.diff(table.step)), len(table.step) - 1)
    return jnp.concatenate([y[None], states[ends]])


def last_states(solver, process, model, times, y, noise):
    """Where walks along several grids end, all in one program: ``times[k]``, ``y[k]`` and ``noise[k]`` are those of walk ``k``.

    A shorter table is filled up with copies of its last row that change nothing.
    """
    tables = [solver.table(process, grid) for grid in times]
    most = max(len(table.step) for table in tables)
    filled = [np.minimum(np.arange(most), len(table.step) - 1) for table in tables]
    full = [jax.tree.map(lambda c, i=i: np.asarray(c, y.dtype)[i], table) for table, i in zip(tables, filled, strict=True)]
    rows = jax.tree.map(lambda *columns: np.stack(columns), *full)
    live = np.stack([np.arange(most) < len(table.step) for table in tables])
    drawn = np.stack([z[table.step[i]] for z, table, i in zip(noise, tables, filled, strict=True)]).astype(y.dtype)
    walks = jax.vmap(lambda rows, live, y, drawn: scan(solver, process, model, rows, live, y, drawn)[-1])
    return np.asarray(jax.jit(walks)(rows, live, y, drawn))
