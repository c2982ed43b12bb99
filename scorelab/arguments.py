"""What every walk asks of its arguments, before anything is computed: sampling, pruning, pairs, likelihoods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, Pytree, is_traced, on_host
from scorelab.grids import Grid, check_times
from scorelab.lasting import once
from scorelab.models.base import Model, check_condition
from scorelab.models.per_sample import per_sample_values
from scorelab.processes.base import Process
from scorelab.validation import require_real, require_spec


def check_walk(
    where: str, model: Model, grid: Grid, key: Key, n: int, population: int, cond: Pytree, ids: Any = None
) -> tuple[Array, np.ndarray]:
    """What every walk asks of its arguments: the ids as int32, and the host times of the grid.

    Raises:
        TypeError: no PRNG key.
        ValueError: times outside the domain of the process, ids or labels out of range, conditions or per-sample numbers of the
            model without one row for each of the ``n`` samples, or with several values in one population.
    """
    require_spec(where, Grid, grid=grid)
    check_key(where, key)
    check_conditions(where, model, cond, n, population)
    return check_ids(where, ids, n), _times(grid, model.process)


@once
def _times(grid: Grid, process: Process) -> np.ndarray:
    return check_times(grid, process, grid.times(process))


def check_conditions(where: str, model: Model, cond: Pytree, n: int, population: int = 1) -> None:
    """Raise ValueError unless conditions and per-sample numbers have one row for each sample, and the model knows the former."""
    # First whether it is one, since a member under a wrong name has no number of rows that would be right.
    check_condition(model, cond)
    check_leading(cond, n, population, where=where)
    for name, value in per_sample_values(model).items():
        check_leading(value, n, population, name, where)


def check_shape(shape: Any) -> tuple[int, Any]:
    """The number of samples and the shape of one point; ValueError for what is not a shape.

    For points of several parts, ``{name: (n, *event)}``, the shape of one is ``((name, event), ...)``, which is hashable.
    """
    if not isinstance(shape, Mapping):
        return _check_part(shape, 2)
    parts = [(name, *_check_part(part, 1)) for name, part in shape.items()]
    if len({n for _, n, _ in parts}) != 1:
        raise ValueError(f"sample.shape = {dict(shape)!r}: expected parts with the same number of samples, at least one")
    return parts[0][1], tuple((name, event) for name, _, event in parts)


def _check_part(shape: Any, axes: int) -> tuple[int, tuple[int, ...]]:
    shape = tuple(shape) if np.iterable(shape) else (shape,)
    whole = all(isinstance(s, int | np.integer) and not isinstance(s, bool) and s > 0 for s in shape)
    if len(shape) < axes or not whole:
        raise ValueError(f"sample.shape = {shape!r}: expected (n, *event) with positive integers")
    return int(shape[0]), tuple(int(s) for s in shape[1:])


def elements(event: Any) -> int:
    """How many numbers one point has, from the shape of :func:`check_shape`."""
    parts = [shape for _, shape in event] if event and isinstance(event[0], tuple) else [event]
    return sum(math.prod(shape) for shape in parts)


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
    for path, leaf in jax.tree_util.tree_leaves_with_path(cond):
        at = f"{where}.{name}" + "".join(f'["{key.key}"]' for key in path if isinstance(key, jax.tree_util.DictKey))
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if getattr(dtype, "kind", "") in "OSUMm":
            raise ValueError(f"{at} has a leaf of dtype {dtype}: expected arrays of numbers")
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] != n:
            one = ""
            if any(isinstance(key, jax.tree_util.SequenceKey) for key in path):
                one = ", in one array: a list is several leaves"
            elif np.ndim(leaf) == 0:
                one = f", such as np.full({n}, {'value' if is_traced(leaf) else np.asarray(leaf).item()})"
            raise ValueError(
                f"{at} has a leaf of shape {np.shape(leaf)}: expected a leading axis of {n}, one row for each sample{one}"
            )
        if population > 1 and n % population == 0 and not is_traced(leaf):
            # A particle that is copied takes its past along, and would meet another condition.
            rows = on_host(leaf).reshape(n // population, population, -1)
            if not np.array_equal(rows, np.broadcast_to(rows[:, :1], rows.shape), equal_nan=rows.dtype.kind == "f"):
                raise ValueError(f"{at} differs within populations of {population} samples: expected one value for each")


def check_data(where: str, x: Array) -> Array:
    """Data ``(n, *event)`` in the working precision; ValueError for none, for what is not real, and for rows not finite."""
    require_real(f"{where}.x", x)
    x = jnp.asarray(x, jnp.result_type(float))
    if x.ndim < 2 or not x.size:
        raise ValueError(f"{where}.x has shape {x.shape}: expected (n, *event) with at least one row")
    if not is_traced(x):
        require_rows(np.isfinite(on_host(x)), f"{where}.x has rows that are not finite: {{rows}} of {{n}}", ValueError)
    return x


def require_rows(good: np.ndarray, message: str, error: type[Exception]) -> None:
    """Raise ``error`` with the numbers of the rows that are not ``good``, the first ten of them."""
    bad = np.flatnonzero(~good.reshape(len(good), -1).all(axis=1))
    if len(bad):
        rows = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise error(message.format(rows=rows, n=len(good)))
