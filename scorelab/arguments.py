"""What every walk asks of its arguments, before anything is computed: sampling, pruning, pairs, likelihoods."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.grids import Grid, check_times
from scorelab.models.guidance import check_labels
from scorelab.models.per_sample import per_sample_values
from scorelab.processes.base import Process
from scorelab.typing import Array, Key, Model, Pytree, is_model_pytree, is_traced, on_host, require_spec


def check_walk(
    where: str, model: Model, process: Process, grid: Grid, key: Key, n: int, population: int, cond: Pytree, ids: Any = None
) -> tuple[Model, Array, np.ndarray]:
    """What every walk asks of its arguments: the model as a pytree, the ids as int32, and the host times of the grid.

    Raises:
        TypeError: no PRNG key.
        ValueError: times outside the domain of the process, ids or labels out of range, conditions or per-sample numbers of the
            model without one row for each of the ``n`` samples, or with several values in one population.
    """
    require_spec(where, Process, process=process)
    require_spec(where, Grid, grid=grid)
    check_key(where, key)
    check_leading(cond, n, population, where=where)
    for name, value in per_sample_values(model).items():
        check_leading(value, n, population, name, where)
    check_labels(model, cond)
    model = model if is_model_pytree(model) else jax.tree_util.Partial(model)
    return model, check_ids(where, ids, n), check_times(grid, process, grid.times(process))


def check_shape(shape) -> tuple[int, tuple[int, ...]]:
    """The number of samples and the shape of one; ValueError for what is not a shape."""
    shape = tuple(shape) if np.iterable(shape) else (shape,)
    whole = all(isinstance(s, int | np.integer) and not isinstance(s, bool) and s > 0 for s in shape)
    if len(shape) < 2 or not whole:
        raise ValueError(f"sample.shape = {shape!r}: expected (n, *event) with positive integers")
    return int(shape[0]), tuple(int(s) for s in shape[1:])


def check_key(where: str, key: Key) -> None:
    """Raise TypeError unless ``key`` is one PRNG key."""
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = not typed and getattr(key, "dtype", None) == np.uint32 and np.shape(key) == (2,)
    if not raw and not (typed and key.shape == ()):
        found = f"{key.dtype} of shape {key.shape}" if hasattr(key, "dtype") else repr(key)
        raise TypeError(f"{where}.key is {found}: expected one PRNG key, such as jax.random.key(0)")


def check_ids(where: str, ids: Array | None, n: int) -> Array:
    """The samples' ids as int32 ``(n,)``; ValueError for what is not one integer in [0, 2**31) for each sample."""
    if ids is None:
        return np.arange(n, dtype=np.int32)
    found = ids if isinstance(ids, jax.Array) else np.asarray(ids)
    if found.shape != (n,) or not jnp.issubdtype(found.dtype, jnp.integer):
        raise ValueError(f"{where}.ids is {found.dtype} of shape {found.shape}: expected integers ({n},), one for each sample")
    if not is_traced(found):
        low, high = int(np.min(on_host(found))), int(np.max(on_host(found)))
        if low < 0 or high >= 2**31:
            raise ValueError(f"{where}.ids has values {low} to {high}: expected integers in [0, {2**31 - 1}]")
    return found.astype(np.int32)


def check_leading(cond: Pytree, n: int, population: int, name: str = "cond", where: str = "sample") -> None:
    """Raise ValueError unless the conditions have one row for each sample, and one value in each population."""
    for leaf in jax.tree.leaves(cond):
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] != n:
            raise ValueError(f"{where}.{name} has a leaf of shape {np.shape(leaf)}: expected a leading axis of {n}")
        if population > 1 and n % population == 0 and not is_traced(leaf):
            # A particle that is copied takes its past along, and would meet another condition.
            rows = on_host(leaf).reshape(n // population, population, -1)
            if not np.array_equal(rows, np.broadcast_to(rows[:, :1], rows.shape), equal_nan=rows.dtype.kind == "f"):
                raise ValueError(f"{where}.{name} differs within populations of {population} samples: expected one value for each")
