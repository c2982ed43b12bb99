"""A question to a model at every noise level: data noised by the model's own process, and a value for each point."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arguments import check_key
from scorelab.arrays import Array, Key, Pytree
from scorelab.diagnostics.blocks import blocks, require_batch, require_finite, require_leading
from scorelab.models.base import Model
from scorelab.models.function import as_pytree
from scorelab.processes.base import Noised
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.randomness import per_example_keys, per_example_normal
from scorelab.validation import require_real, require_spec


def by_level(
    term: Callable[[Model, Noised], Pytree],
    model: Model,
    data: Array,
    sigmas: Array,
    *,
    cond: Pytree = None,
    key: Key | None = None,
    batch: int = 256,
    progress: Callable[[int, int], None] | None = None,
    where: str = "by_level",
) -> tuple[np.ndarray, Pytree]:
    r"""The values of ``term`` at points :math:`y = \alpha y_0 + b + \sigma\epsilon`, for every point of data and every noise ratio.

    Args:
        term: a hashable function ``(model, noised)``, such as a regulariser, of values ``(batch,)`` or a pytree of them. What is
            random in it comes from ``noised.keys``.
        model: a model of a linear-Gaussian process.
        data: points in data space, ``(n, *event)``.
        sigmas: noise ratios :math:`\sigma/\alpha` ``(k,)``, in the units of the chart.
        cond: the model's conditions, with leading axis ``n``.
        key: PRNG key, ``jax.random.key(0)`` by default. The random numbers of point ``i`` at a level depend on the key, ``i`` and
            the number of the level only.
        batch: points evaluated at once.
        progress: called with (points done, points wanted) after each batch.
        where: the name of the function that asks, for messages.

    Returns:
        The noise ratios in float64, and the values as float64 arrays ``(k, n)``.

    Raises:
        ValueError: no data, data or noise ratios that are not finite, noise ratios that the process does not have.
        TypeError: another kind of process, what is no model.
    """
    data = np.asarray(data)
    if data.ndim < 2 or len(data) == 0:
        raise ValueError(f"{where}.data has shape {data.shape}: expected (n, *event) with at least one point")
    require_finite(f"{where}.data", data)
    require_leading(where, cond, len(data))
    require_batch(where, batch)
    if key is not None:
        check_key(where, key)
    model = as_pytree(where, model)
    require_spec(where, LinearGaussian, process=model.process)
    sigmas, times = noise_levels(where, model.process, sigmas)
    keys = [jax.random.fold_in(jax.random.key(0) if key is None else key, k) for k in range(len(times))]

    found: list[list[Any]] = [[] for _ in times]
    done = 0
    for index, count in blocks(len(data), batch):
        y0 = model.process.encode(jnp.asarray(data[index], float))
        part = jax.tree.map(lambda c: jnp.asarray(c)[index], cond)
        for k, t in enumerate(times):
            values = _values(model, keys[k], y0, jnp.asarray(t, y0.dtype), index, part, term=term)
            for leaf in jax.tree.leaves(values):
                if jnp.shape(leaf)[:1] != (len(y0),):
                    raise ValueError(
                        f"{where}.term returned shape {jnp.shape(leaf)} for {len(y0)} points: expected a leading axis of them"
                    )
            found[k].append(jax.tree.map(lambda value: np.asarray(value, np.float64)[:count], values))
        done += count
        if progress is not None:
            progress(done, len(data))
    of_level = [jax.tree.map(lambda *parts: np.concatenate(parts), *parts) for parts in found]
    return sigmas, jax.tree.map(lambda *rows: np.stack(rows), *of_level)


@functools.partial(jax.jit, static_argnames="term")
def _values(model, key, y0, t, ids, cond, *, term):
    keys = per_example_keys(key, ids)
    noised = model.process.noised(per_example_normal(keys, y0), y0, t)
    # Apart from the keys of the noise.
    return term(model, noised._replace(cond=cond, keys=jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)))


def noise_levels(where: str, process: LinearGaussian, sigmas: Array) -> tuple[np.ndarray, np.ndarray]:
    """The noise ratios in float64 and their times; ValueError for what is none of the process."""
    require_real(f"{where}.sigmas", np.asarray(sigmas))
    sigmas = np.asarray(sigmas, np.float64)
    if sigmas.ndim != 1 or len(sigmas) == 0:
        raise ValueError(f"{where}.sigmas has shape {sigmas.shape}: expected (k,) with k >= 1")
    low, high = (float(process.noise_ratio(t)) for t in (process.t_min, process.t_max))
    outside = ~((sigmas > 0) & np.isfinite(sigmas) & (sigmas >= low * (1 - 1e-6)) & (sigmas <= high * (1 + 1e-6)))
    if np.any(outside):
        raise ValueError(
            f"{where}.sigmas has the value {sigmas[outside][0]:g}: expected noise ratios from {low:.4g} to "
            f"{high:.4g}, those of {process!r}"
        )
    # Rounding must not lead out of the times that the model knows.
    return sigmas, np.clip(process.schedule.time(-2 * np.log(sigmas)), process.t_min, process.t_max)
