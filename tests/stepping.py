"""Drive a solver row by row with given noise, where a test must know or choose what each step draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def walk(solver, process, model, times, y, noise):
    """All states at the grid nodes; ``noise[i]`` is what step ``i`` draws (every row of a step sees the same)."""
    table = solver.table(process, times)
    rows = {name: jnp.asarray(column, y.dtype) for name, column in table.items()}
    ends = np.append(np.flatnonzero(np.diff(table["step"])), len(table["step"]) - 1)

    def one_row(state, scanned):
        y, carry = state
        row, drawn = scanned
        y, carry, _ = solver.step(model, drawn, y, carry, row)
        return (y, carry), y

    with pytest.MonkeyPatch.context() as patch:
        for module in ("exponential", "euler", "straight", "corrector", "multiplicative"):
            patch.setattr(f"scorelab.solvers.{module}.per_example_normal", lambda keys, like: keys)
        _, states = jax.lax.scan(one_row, (y, solver.init(process, y)), (rows, jnp.asarray(noise)[table["step"]]))
    return jnp.concatenate([y[None], states[ends]])
