"""Sampling: one walk over the solver's table, the same for every model, process and solver."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from scorelab import devices, walk
from scorelab.arguments import elements
from scorelab.arrays import Array, Key, Pytree, is_traced, on_host
from scorelab.callbacks import own_errors
from scorelab.grids import Grid
from scorelab.models.base import Model
from scorelab.processes.base import Process, Start
from scorelab.solvers.base import Population, Solver
from scorelab.validation import require_int

# Elements of data sampled at once by default; a U-Net keeps some hundred times as many activations.
CHUNK_ELEMENTS = 2**19


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Samples:
    """What :func:`sample` returns.

    Attributes:
        x: samples in data space, ``(n, *event)``.
        log_weights: unnormalised log-weights ``(n,)``; those of the start for a solver that does not weight, mostly zero.
        log_z: log of the normalising constant, of each population where there are several; zero for a solver that does not
            estimate it.
        diagnostics: ``first_bad_step`` ``(n,)`` (-1 where all steps were finite), ``model_calls``, and the solver's own
            (``sign_flips`` ``(n,)`` where multiplicative noise is simulated in data space; those of
            :class:`scorelab.fk.FeynmanKac`).
        trajectory: data-space states ``(steps + 1, n, *event)``, the start included, or None.
        times: the grid that was walked, ``(steps + 1,)``.
        process: the process they were drawn under.
    """

    x: Pytree
    log_weights: Array
    log_z: Array
    diagnostics: dict[str, Any]
    trajectory: Pytree
    times: np.ndarray
    process: Any = field(metadata={"static": True})


@own_errors()
def sample(
    model: Model,
    *,
    solver: Solver,
    grid: Grid,
    key: Key,
    shape: Any,
    start: Start | None = None,
    cond: Pytree = None,
    keep: Literal["last", "all"] = "last",
    ids: Array | None = None,
    chunk: int | None = None,
    mesh: devices.Spread = None,
    progress: Callable[[int, int], None] | None = None,
    check_finite: bool = True,
) -> Samples:
    r"""Draw samples by walking a solver along a grid, from noise to data.

    The noise of sample ``i`` at step ``k`` comes from ``fold_in(fold_in(key, k), ids[i])``, so a sample depends on the
    key and its id, not on the batch, the chunks or the devices: bitwise under one explicit ``chunk`` size, up to
    rounding otherwise (the compiler sums matrix products of another shape in another order). The compiled program is
    keyed by the specs and the shapes: new parameters, guidance scales, times, conditions and
    sample counts (of one chunk shape) reuse it.

    Args:
        model: a model, which knows its process.
        solver: the solver.
        grid: the time grid.
        key: PRNG key.
        shape: ``(n, *event)``; for points of several parts a pytree of shapes, all with the same ``n``.
        start: the law at the first grid time; the prior of the process by default.
        cond: conditions with leading axis ``n``, or None.
        keep: ``"all"`` also returns the trajectory; ``"last"`` uses memory that does not grow with the steps.
        ids: the samples' ids ``(n,)``, integers in [0, 2**31); ``arange(n)`` by default.
        chunk: samples computed at once, whatever ``n`` is (a smaller ``n`` is filled up); by default ``n`` or as
            many as make half a million elements.
        mesh: devices to spread each chunk over (its first axis), for instance from ``scorelab.training.data_mesh``. Parameters that
            are split over that axis come together on the devices first; those split over another one of the same mesh stay
            split. None computes where the arrays of the model lie, on one device unless they lie on several. ``"auto"`` takes
            devices of this process: on an accelerator all that get rows, on a CPU (:func:`scorelab.use_all_cores`) as many as
            get 1.5e8 floating point operations per model call each. That is an image for a U-Net, eight for a small transformer of
            28 x 28 images, and 300 points for an MLP. Populations stay whole on a device. For a model with parameters that are
            split over another axis than the first of their mesh, ``"auto"`` is that mesh. Inside a ``jit`` of the caller it is
            None.
        progress: called with (samples done, samples wanted) after each chunk.
        check_finite: raise :class:`NonFiniteSample` when a state is not finite (not possible under an outer ``jit``).

    Returns:
        The samples.

    Raises:
        NonFiniteSample: a state became NaN or infinite; the message names the step.
        ValueError: an argument that does not fit the others, such as a model of another process, a model whose prediction has
            another shape than the samples, or a start without signs for data of both signs.
    """
    if keep not in ("last", "all"):
        raise ValueError(f"sample.keep = {keep!r}: expected 'last' or 'all'")
    devices.require_mesh("sample", mesh)
    if progress is not None and not callable(progress):
        raise TypeError(f"sample.progress = {progress!r}: expected a function of (samples done, samples wanted), or None")
    plan = walk.plan("sample", model, solver=solver, grid=grid, key=key, shape=shape, start=start, cond=cond, ids=ids)
    n, step_ends = plan.n, np.append(np.flatnonzero(np.diff(plan.rows.step)), plan.calls - 1)
    plan, key, size, mesh = laid_out("sample", plan, solver, key, cond, chunk, mesh, keep)

    parts = []
    for low, visit in visits(plan, key, cond, size, mesh):
        part = walked(plan, solver, visit, mesh, keep)
        part["path"] = jax.tree.map(lambda leaf: leaf[np.append(0, 1 + step_ends)], part["path"])
        parts.append(part)
        done = min(low + size, n)
        if check_finite and not is_traced(part["bad"]):
            walk.raise_if_bad(on_host(part["bad"])[: done - low], plan.times)
        if progress is not None:
            progress(done, n)
    samples = assemble(parts, plan, model.process)
    if isinstance(solver, Population) and not is_traced(samples.x):
        solver.review(samples.diagnostics)
    return samples


def laid_out(
    where: str, plan: walk.Plan, solver: Solver, key: Key, cond: Pytree, chunk: int | None, mesh: devices.Spread, keep: str = "last"
) -> tuple[walk.Plan, Key, int, Mesh | None]:
    """A plan and the key on the devices that its chunks are computed on, the samples of a chunk, and the mesh.

    Raises:
        ValueError: as :func:`chunk_size`.
    """

    def work(size: int) -> float:
        _, visit = next(visits(plan, key, cond, size, None))
        begun = jax.eval_shape(lambda visit: walk.drawn(*_begins(plan, visit), event=plan.event), visit)
        return devices.operations(_walk, walk.Held(solver), visit, begun, plan.rows, keep=keep)

    mesh, size = spread(
        mesh, plan.model, lambda mesh: chunk_size(where, plan.n, plan.event, chunk, mesh, plan.population), work,
        traced=is_traced(plan.model, plan.start, plan.ids, key, cond), unit=plan.population,
        share=plan.n if plan.population > 1 else None,
    )  # fmt: skip
    model, start, key = placed(plan.model, plan.start, key, mesh)
    return plan._replace(model=model, start=start), key, size, mesh


def spread(
    mesh: devices.Spread, model: Model, size: Callable[[Mesh | None], int], work: Callable[[int], float], *, traced: bool,
    unit: int = 1, share: int | None = None,
) -> tuple[Mesh | None, int]:  # fmt: skip
    """The mesh that was asked for, or that of ``"auto"``, and how many samples are computed at once on it.

    Args:
        mesh: as the caller was asked for.
        model: the model.
        size: samples of a chunk under a mesh.
        work: floating point operations of a model call with so many samples.
        traced: whether the caller's own program says where it is computed.
        unit: samples that stay together on one device.
        share: samples of which every device gets the same number of units; None where chunks may be filled up.
    """
    if isinstance(mesh, str):
        mesh = None if traced else auto_mesh(model, size(None), work, unit, share)
    return mesh, size(mesh)


def auto_mesh(model: Model, size: int, work: Callable[[int], float], unit: int = 1, share: int | None = None) -> Mesh | None:
    """The mesh of ``"auto"``, None where one device is as fast."""
    # What is split may fit on no device as a whole.
    if (split := devices.mesh_of_split(model)) is not None:
        return split
    return devices.sampling_mesh(size, lambda: work(size), unit=unit, share=share)


def placed(model: Model, start: Start | None, key: Key, mesh: Mesh | None) -> tuple[Model, Start | None, Key]:
    """The model, the start and the key on the devices of ``mesh``."""
    if mesh is None or is_traced(model, start):
        return model, start, key
    # Weights that lie on other devices, such as those of a training on all of them, could not meet rows that lie here.
    return devices.whole_along_rows(model, mesh), devices.everywhere(start, mesh), devices.everywhere(key, mesh)


def visits(plan: walk.Plan, key: Key, cond: Pytree, size: int, mesh: Mesh | None) -> Iterator[tuple[int, walk.Visit]]:
    """Of each chunk of ``size`` samples the number of its first one, and what is asked of them, on the devices of ``mesh``."""
    place = None if mesh is None else devices.by_rows(mesh)
    for low, model, (ids, part) in walk.chunks(plan.n, size, plan.model, plan.ids, cond, place=place):
        yield low, walk.Visit(model, key, ids, part)


def walked(plan: walk.Plan, solver: Solver, visit: walk.Visit, mesh: Mesh | None, keep: str = "last") -> dict[str, Any]:
    """The samples of one chunk, and what the solver says of them."""
    with _spanning(plan, mesh):
        begun = walk.drawn(*_begins(plan, visit), event=plan.event)
        return _walk(walk.Held(solver), visit, begun, plan.rows, keep=keep)


def program(plan: walk.Plan, solver: Solver, visit: walk.Visit, mesh: Mesh | None) -> tuple[str, Pytree, list[Any]]:
    """The programs of :func:`walked` as text, before they are compiled, the shapes of the samples, and the programs of JAX."""
    with _spanning(plan, mesh):
        begun = walk.drawn.trace(*_begins(plan, visit), event=plan.event)
        walking = _walk.trace(walk.Held(solver), visit, begun.out_info, plan.rows, keep="last")
        text = begun.lower().as_text() + walking.lower().as_text()
    return text, walking.out_info["x"], [begun.jaxpr, walking.jaxpr]


def _spanning(plan: walk.Plan, mesh: Mesh | None) -> AbstractContextManager:
    """The mesh is known while tracing: populations that span it agree on their weights by it."""
    return nullcontext() if mesh is None or plan.population == 1 else jax.set_mesh(mesh)


def _begins(plan: walk.Plan, visit: walk.Visit) -> tuple[Any, ...]:
    """The arguments of :func:`scorelab.walk.drawn` for a chunk."""
    return plan.start, plan.model.process, visit.key, visit.ids, visit.cond, plan.first


@functools.partial(jax.jit, static_argnames="keep")
def _walk(held, visit, drawn, rows, *, keep):
    """The compiled walk of one chunk."""
    solver, process, calls = held.solver, visit.model.process, len(rows.step)
    state, log_weights = walk.begin(solver, visit, drawn), drawn.log_weights

    def point(state):
        x = solver.decode(process, state.y, state.carry)
        return x if drawn.signs is None else jax.tree.map(lambda x, sign: x * sign.astype(x.dtype), x, drawn.signs)

    began = point(state)
    state, (path, _, records) = walk.scan(solver, visit, state, rows, jnp.arange(calls), point=point if keep == "all" else None)
    state = walk.finish(solver, visit, state, calls - 1)
    out = dict(
        x=point(state), bad=state.bad, outputs=dict(log_weights=log_weights) | solver.outputs(state.carry, records), path=None,
        zero=jnp.zeros((), log_weights.dtype),
    )  # fmt: skip
    if path is not None:
        out["path"] = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), began, path)
    return out


def assemble(parts: list[dict[str, Any]], plan: walk.Plan, process: Process) -> Samples:
    """The result, from what the walks of the chunks returned."""
    size, n = len(parts[0]["bad"]), plan.n

    def join(pieces: list[Any], axis: int = 0) -> Any:
        if len(pieces) == 1 and size == n:
            return pieces[0]

        def leaves(*pieces):
            joined = jnp.concatenate(pieces, axis=axis)
            # Rows of populations are fewer than those of samples, in proportion.
            return jax.lax.slice_in_dim(joined, 0, n * pieces[0].shape[axis] // size, axis=axis)

        return jax.tree.map(leaves, *pieces)

    outputs = {name: join([part["outputs"][name] for part in parts]) for name in parts[0]["outputs"]}
    x = join([part["x"] for part in parts])
    log_weights = outputs.pop("log_weights")
    return Samples(
        x=x,
        log_weights=log_weights,
        log_z=outputs.pop("log_z", parts[0]["zero"]),
        diagnostics=dict(first_bad_step=join([part["bad"] for part in parts]), model_calls=plan.calls, **outputs),
        trajectory=join([part["path"] for part in parts], axis=1),
        times=plan.times.copy(),
        process=process,
    )


def chunk_size(where: str, n: int, event: Any, chunk: int | None, mesh: Mesh | None, population: int) -> int:
    """How many samples are computed at once: ``chunk`` or the default, rounded up to whole populations on every device.

    Raises:
        ValueError: populations that do not fit into ``n`` samples, chunks or devices.
    """
    if chunk is not None:
        require_int(where, 1, chunk=chunk)
    if n % population:
        raise ValueError(f"{where}.shape = ({n}, ...): expected a multiple of {population}, the samples of one population")
    if chunk is not None and population > 1 and (chunk % population or chunk > n):
        raise ValueError(f"{where}.chunk = {chunk}: expected a multiple of {population}, the samples of one population, up to {n}")
    devices = 1 if mesh is None else mesh.shape[mesh.axis_names[0]]
    # Whole populations on each device where there are enough of them, and else one population spread over the devices.
    unit = population * devices if n >= population * devices else math.lcm(population, devices)
    if population > 1 and n % unit:
        raise ValueError(
            f"{where}.shape = ({n}, ...) in populations of {population} on {devices} devices: expected a multiple of {unit}, so "
            "that nothing has to be filled up"
        )
    size = min(n, max(1, CHUNK_ELEMENTS // elements(event))) if chunk is None else chunk
    return -(-size // unit) * unit
