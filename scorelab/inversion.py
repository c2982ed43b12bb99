"""Inversion: the latent that the probability flow takes to a given sample, or a draw of the base that an SDE joins with it."""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from scorelab import devices, walk
from scorelab.arguments import check_conditions, check_data, check_key
from scorelab.arrays import Array, Key, Pytree, is_traced, on_host
from scorelab.grids import Grid, check_times
from scorelab.models.base import Model
from scorelab.models.estimates import refuse_waiting
from scorelab.models.function import as_pytree
from scorelab.processes.bridge import Bridge
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.sampling import placed, spread
from scorelab.solvers.base import Population, Solver
from scorelab.validation import require_int, require_spec


def invert(
    model: Model,
    x: Array,
    *,
    solver: Solver,
    grid: Grid,
    key: Key | None = None,
    cond: Pytree = None,
    chunk: int | None = None,
    mesh: devices.Spread = None,
    check_finite: bool = True,
) -> Array:
    r"""Walk the probability flow from data to noise: the ``z`` for which ``sample(..., start=Fixed(z))`` returns ``x``.

    The grid is walked from its last time with noise up to its first, where :math:`z = y_T`. Data are put on that last time without
    noise, :math:`y = \alpha x + b`, so a round trip returns ``x`` up to the error of the solver on the grid, twice, and to the size
    of the noise there. An interpolant is walked from the data themselves to the base. Source: Song et al. (2021),
    arXiv 2010.02502, section 4.3, for DDIM.

    Under :class:`scorelab.solvers.InterpolantSDE` an interpolant is walked by its SDE forwards in time,
    :math:`dy = (u + \epsilon\,\nabla\log p)\,dt + \sqrt{2\epsilon}\,dw`. The result is then a draw of the base for each row of
    ``x``, and no latent: of exact fields and data of their law, the end has the law of the base.

    Args:
        model: a model of a linear-Gaussian process, of a stochastic interpolant or of a geodesic process.
        x: data, ``(n, *event)``.
        solver: a deterministic solver, or ``InterpolantSDE`` under an interpolant.
        grid: the time grid, as it is sampled on.
        key: PRNG key of a solver that draws noise; None for the others.
        cond: conditions with leading axis ``n``.
        chunk: samples computed at once; all by default.
        mesh: devices to spread each chunk over, as in :func:`scorelab.sample`.
        check_finite: raise where the flow became NaN or infinite (not possible under an outer ``jit``).

    Returns:
        Points of the chart at the first grid time, ``(n, *event)``.

    Raises:
        TypeError: no key for a solver that draws noise.
        ValueError: a stochastic solver of another process; no data, or data that are not real numbers; what does not fit the model.
        NonFiniteSample: as in :func:`scorelab.sample`.
    """
    model = as_pytree("invert", model)
    process = model.process
    require_spec("invert.model's process", LinearGaussian | Bridge, process=process)
    require_spec("invert", Solver, solver=solver)
    walk.check_known("invert", model, None)
    require_spec("invert", Grid, grid=grid)
    bridge = isinstance(process, Bridge)
    if (solver.stochastic and not bridge) or isinstance(solver, Population):
        raise ValueError(f"invert.solver = {solver!r}: expected a deterministic solver, such as Heun(), since noise has no inverse")
    if solver.self_conditioned:
        raise ValueError(
            f"invert.solver = {solver!r}: expected one that tells the model nothing, since upwards there is no former estimate"
        )
    refuse_waiting("invert", model, "upwards there is no former estimate")
    require_spec(f"invert.solver = {type(solver).__name__}", solver.process_type, process=process)
    if solver.stochastic or key is not None:
        check_key("invert", cast(Key, key))
    x = check_data("invert", x)
    check_conditions("invert", model, cond, len(x))
    times = check_times(grid, process, grid.times(process))
    if isinstance(process, Bridge):
        # Compiled, the walk sees no values: rows off a manifold are refused here.
        process.encode(x)
    if bridge and times[-1] != 0:
        raise ValueError(f"invert.grid = {grid!r} ends at t = {times[-1]:.6g}: expected 0 under {process!r}, where the data are")
    noisy = times[::-1] if bridge else times[np.asarray(process.sigma(times)) > 0][::-1]
    if len(noisy) < 2:
        raise ValueError(f"invert.grid = {grid!r} has {len(noisy)} times with noise: expected two or more")
    with np.errstate(all="ignore"):  # seen below
        rows = walk.working_precision(solver.table(process, noisy))
    if not all(np.all(np.isfinite(column)) for column in jax.tree.leaves(rows)):
        alpha = "" if isinstance(process, Bridge) else f", where alpha is {float(process.alpha(noisy[-1])):.3g}"
        raise ValueError(
            f"invert.solver = {solver!r} has no finite steps on {grid!r} up to t = {noisy[-1]:.4g}{alpha}: expected a grid that "
            "begins below it, or DDIM or Heun"
        )
    if chunk is not None:
        require_int("invert", 1, chunk=chunk)
    devices.require_mesh("invert", mesh)
    n = len(x)
    size = n if chunk is None else min(chunk, n)
    parts, held, trees = [], walk.Held(solver), (x, np.arange(n, dtype=np.int32), cond)
    noise: Key = jax.random.key(0) if key is None else key

    def work(size: int) -> float:
        _, model_of, (x_of, ids_of, cond_of) = next(walk.chunks(n, size, model, *trees))
        return devices.operations(_up, held, walk.Visit(model_of, noise, ids_of, cond_of), x_of, rows)

    filled = lambda mesh: size if mesh is None else devices.filled(size, mesh)
    mesh, size = spread(mesh, model, filled, work, traced=is_traced(model, noise, trees))
    model, _, noise = placed(model, None, noise, mesh)
    place = None if mesh is None else devices.by_rows(mesh)
    for low, part_model, (part_x, part_ids, part_cond) in walk.chunks(n, size, model, *trees, place=place):
        part = _up(held, walk.Visit(part_model, noise, part_ids, part_cond), part_x, rows)
        parts.append(jax.tree.map(lambda leaf: leaf[: n - low], part))
    z, bad = (jnp.concatenate(column) for column in zip(*parts, strict=True))
    if check_finite and not is_traced(bad):
        walk.raise_if_bad(on_host(bad), noisy)
    return z


@jax.jit
def _up(held, visit, x, rows):
    solver, process = held.solver, visit.model.process
    y0 = process.encode(x)
    y = y0 if isinstance(process, Bridge) else process.noised(jnp.zeros_like(y0), y0, rows.t[0]).y
    carry = solver.init(process, y, jnp.zeros(len(x), y.dtype))
    state = walk.State(y, carry, jnp.full(len(x), -1, jnp.int32))
    state, _ = walk.scan(solver, visit, state, rows, jnp.arange(len(rows.step)))
    return state.y, state.bad
