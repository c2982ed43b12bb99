"""Drive a solver row by row with given noise, where a test must know or choose what each step draws."""

import jax.numpy as jnp
import pytest


def walk(solver, process, model, times, y, noise):
    """All states at the grid nodes; ``noise[i]`` is what step ``i`` draws (every row of a step sees the same)."""
    rows = solver.table(process, times)
    carry, states = solver.init(process, y), [y]
    with pytest.MonkeyPatch.context() as patch:
        for module in ("exponential", "euler", "straight", "corrector"):
            patch.setattr(f"scorelab.solvers.{module}.per_example_normal", lambda keys, like: keys)
        for i, step in enumerate(rows["step"]):
            row = {name: jnp.asarray(column[i], y.dtype) for name, column in rows.items()}
            y, carry, _ = solver.step(model, noise[step], y, carry, row)
            if i + 1 == len(rows["step"]) or rows["step"][i + 1] != step:
                states.append(y)
    return jnp.stack(states)
