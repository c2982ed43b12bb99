"""Pairs of noise and data that a teacher's probability flow joins."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.grids import Explicit, Grid
from scorelab.processes.base import Process
from scorelab.sampling import check_shape, sample
from scorelab.solvers.base import Solver
from scorelab.starts import Fixed, Prior, Start
from scorelab.typing import Array, Key, Model, on_host, per_example_keys, require_spec


def teacher_pairs(
    model: Model,
    process: Process,
    *,
    solver: Solver,
    grid: Grid,
    key: Key,
    shape: tuple[int, ...],
    start: Start | None = None,
    cond: Array | None = None,
    chunk: int | None = None,
) -> dict[str, np.ndarray]:
    r"""Sample ``model`` and keep where each sample came from, :math:`z = (y_T - b_T - \alpha_T y_0)/\sigma_T`.

    :math:`y_T` is the start, so :math:`\alpha_t y_0 + b_t + \sigma_t z` runs from the start of a sample to its end; where
    :math:`\alpha_T` is 0, ``z`` is the noise of the start, and elsewhere close to it. The result is a data set:
    ``Batches(pairs, batch_size, seed)`` (:class:`scorelab.data.Batches`) goes into ``fit``.

    Args:
        model: the teacher.
        process: its process.
        solver: a deterministic solver.
        grid: the time grid.
        key: PRNG key of the start.
        shape: ``(n, *event)``.
        start: the law at the first grid time; :class:`scorelab.starts.Prior` by default.
        cond: one array of conditions ``(n, ...)``, or None.
        chunk: samples computed at once; see :func:`scorelab.sample`.

    Returns:
        Host arrays ``"noise"`` and ``"x"`` ``(n, *event)``, ``x`` in data space, and ``"cond"`` where it is given.

    Errors:
        ValueError: a stochastic solver.
    """
    require_spec(teacher_pairs, Solver, solver=solver)
    if solver.stochastic:
        raise ValueError(f"teacher_pairs.solver = {solver!r} draws noise: expected a deterministic solver, such as Heun()")
    n, event = check_shape(shape)
    start, times = (Prior() if start is None else start).on_grid(process, grid.times(process), model, cond)
    ids = np.arange(n, dtype=np.int32)
    t = jnp.asarray(times[0], jax.dtypes.canonicalize_dtype(float))
    y = start.draw(per_example_keys(key, ids), ids, process, t, event)
    out = sample(
        model, process, solver=solver, grid=Explicit(tuple(times)), key=key, shape=shape, start=Fixed(y), cond=cond, chunk=chunk
    )
    alpha, sigma, offset = (float(f(times[0])) for f in (process.alpha, process.sigma, process.offset))
    noise = (y - offset - alpha * process.encode(out.x)) / sigma
    pairs = {"noise": on_host(noise), "x": on_host(out.x)}
    return pairs if cond is None else pairs | {"cond": on_host(cond)}
