"""Drive a solver row by row with given noise, where a test must know or choose what each step draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def scan(solver, process, model, rows, y, noise):
    """The state after every row; ``noise[i]`` is what row ``i`` draws, and a row that is not ``live`` changes nothing."""

    def one_row(state, scanned):
        row, drawn = scanned
        y, carry, _ = solver.step(model, drawn, *state, row)
        state = jax.tree.map(lambda new, old: jnp.where(row["live"] > 0, new, old), (y, carry), state)
        return state, state[0]

    with pytest.MonkeyPatch.context() as patch:
        for module in ("exponential", "euler", "straight", "corrector", "multiplicative"):
            patch.setattr(f"scorelab.solvers.{module}.per_example_normal", lambda keys, like: keys)
        return jax.lax.scan(one_row, (y, solver.init(process, y)), (rows, noise))[1]


def walk(solver, process, model, times, y, noise):
    """All states at the grid nodes; ``noise[i]`` is what step ``i`` draws (every row of a step sees the same)."""
    table = solver.table(process, times)
    columns = table | {"live": np.ones(len(table["step"]))}
    # A table may be one of several that are walked at once.
    rows = {name: column.astype(y.dtype) for name, column in columns.items()}
    states = scan(solver, process, model, rows, y, jnp.asarray(noise)[table["step"]])
    ends = np.append(np.flatnonzero(np.diff(table["step"])), len(table["step"]) - 1)
    return jnp.concatenate([y[None], states[ends]])


def last_states(solver, process, model, times, y, noise):
    """Where walks along several grids end, all in one program: ``times[k]``, ``y[k]`` and ``noise[k]`` are those of walk ``k``.

    A shorter table is filled up with copies of its last row that change nothing.
    """
    tables = [solver.table(process, grid) for grid in times]
    most = max(len(table["step"]) for table in tables)
    filled = [np.minimum(np.arange(most), len(table["step"]) - 1) for table in tables]
    rows = {name: np.stack([np.asarray(t[name], y.dtype)[i] for t, i in zip(tables, filled, strict=True)]) for name in tables[0]}
    rows["live"] = np.stack([np.arange(most) < len(table["step"]) for table in tables]).astype(y.dtype)
    drawn = np.stack([z[table["step"][i]] for z, table, i in zip(noise, tables, filled, strict=True)]).astype(y.dtype)
    walks = jax.vmap(lambda rows, y, drawn: scan(solver, process, model, rows, y, drawn)[-1])
    return np.asarray(jax.jit(walks)(rows, y, drawn))
