"""Rewards that are Python functions: called back from the compiled walk, or between its pieces."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arguments import check_shape, check_walk
from scorelab.callbacks import remembered
from scorelab.fk.composition import known_process
from scorelab.fk.intermediate import Denoised
from scorelab.fk.potentials import Steering
from scorelab.fk.smc import FeynmanKac
from scorelab.grids import Grid
from scorelab.processes.base import Process, require_same_process
from scorelab.sampling import Samples, assemble, begin, first_bad, raise_if_bad, row_keys, working_precision
from scorelab.solvers.base import BoundModel
from scorelab.starts import Prior, Start
from scorelab.typing import Array, Key, Model, Pytree, is_traced, require_spec


@dataclass(frozen=True)
class Callback:
    """A reward from any Python function of a NumPy batch ``(n, *event) -> (n,)``: another framework, a program, a person.

    Inside :func:`scorelab.sample` it is called through ``jax.pure_callback``, once per event with all particles of a chunk. It must
    be a function of its argument alone (JAX may call it again), must not use JAX itself, and has no gradient. What it raises
    arrives as itself, but under an outer ``jit``.
    :func:`sample_between` calls it outside compiled code instead, where it may do anything.

    Attributes:
        fn: the function.
    """

    fn: Callable[[np.ndarray], np.ndarray]

    def __call__(self, x: Array) -> Array:
        """Rewards ``(n,)``, in the type of ``x``."""
        return jax.pure_callback(remembered(self.on_host), jax.ShapeDtypeStruct(x.shape[:1], x.dtype), x, vmap_method="sequential")

    def on_host(self, x: Array) -> np.ndarray:
        """The function's answer, checked."""
        if is_traced(x):
            raise TypeError("Callback.fn under a transformation of JAX: expected numbers, since it has no derivative")
        x = np.asarray(x)
        r = np.asarray(self.fn(x))
        if r.shape != x.shape[:1] or r.dtype.kind not in "iuf":
            raise ValueError(f"Callback.fn returned {r.dtype} of shape {r.shape}: expected numbers {x.shape[:1]}, one per sample")
        return r.astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Known:
    """Rewards that were found elsewhere, in the place of the function: values are leaves, so that they share a program."""

    values: Array

    def __call__(self, x: Array) -> Array:
        """The values, whatever the points."""
        return self.values


def sample_between(
    model: Model,
    process: Process,
    *,
    solver: FeynmanKac,
    grid: Grid,
    key: Key,
    shape: tuple[int, ...],
    start: Start | None = None,
    cond: Pytree = None,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """:func:`scorelab.sample` for a :class:`Callback` reward, which is called between compiled stretches of the walk.

    The noise and the result are those of ``sample``. The steps between two events run as one scan; at an event the model is called,
    the reward is asked on the host, and a second program weighs, resamples and moves.

    Args:
        model: as in ``sample``.
        process: as in ``sample``.
        solver: with a steering potential whose reward is a :class:`Callback` of the denoised mean.
        grid: as in ``sample``.
        key: as in ``sample``.
        shape: as in ``sample``; all samples are one chunk.
        start: as in ``sample``.
        cond: as in ``sample``.
        progress: called with (model calls done, model calls wanted) after every stretch and event.

    Raises:
        TypeError: another potential, reward or intermediate reward.
        ValueError: a model of another process.
        NonFiniteSample: as in ``sample``.
    """
    require_spec(sample_between, Process, process=process)
    require_spec(sample_between, FeynmanKac, solver=solver)
    require_spec(sample_between, Grid, grid=grid)
    require_spec(sample_between, Steering, potential=solver.potential)
    potential = cast(Steering, solver.potential)
    require_spec(sample_between, Callback, reward=potential.reward)
    require_spec(sample_between, Denoised, intermediate=potential.intermediate)
    if potential.with_cond:
        raise ValueError("sample_between.solver has a potential with_cond=True: expected a reward of the samples alone")
    if (known := known_process(model)) is not None:
        require_same_process("sample_between", process=process, model=known)
    n, event = check_shape(shape)
    if n % (population := solver.population(n)):
        raise ValueError(f"sample_between.shape = ({n}, ...): expected a multiple of {population}, the samples of one population")
    model, ids, times = check_walk("sample_between", model, process, grid, key, n, population, cond)
    start, times = (Prior() if start is None else start).on_grid(process, times, model, cond)
    start.check(n, event, process)
    solver.check_start(start, model, process, float(times[0]))
    reward, silent = cast(Callback, potential.reward), _with_rewards(solver, jnp.zeros(n))
    rows = working_precision(solver.table(process, times))
    rows["index"], calls = np.arange(len(rows["t"]), dtype=np.int32), len(rows["t"])
    rows["event"] = rows["event"] * rows["enter"]
    rows["last_row"] = np.zeros_like(rows["last_row"])  # the end is concluded below, with the samples' own rewards

    state = _begin(silent, start, key, ids, cond, rows["t"][0], process=process, event=event)
    records, at = [], 0
    while at < calls:
        until = at + int(np.argmax(rows["event"][at:] > 0)) if np.any(rows["event"][at:]) else calls
        if until > at:
            stretch = {name: column[at:until] for name, column in rows.items()}
            state, record = _stretch(silent, model, key, ids, cond, state, stretch, process=process)
        else:
            row = {name: column[at] for name, column in rows.items()}
            seen, x = _look(silent, model, key, ids, cond, state, row, process=process)
            known = _with_rewards(solver, reward.on_host(x))
            state, record = _advance(known, model, key, ids, cond, state, row, seen, process=process)
            until = at + 1
        records.append(record)
        at = until
        if progress is not None:
            progress(at, calls)
    x = silent.decode(process, state[0], state[1])
    known = _with_rewards(solver, reward.on_host(x))
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *records)
    part = _conclude(known, key, ids, cond, state, calls - 1, joined, process=process)
    raise_if_bad(np.asarray(part["bad"]), times)
    samples = assemble([part], n, calls, times, process)
    solver.review(samples.diagnostics)
    return samples


def _with_rewards(solver: FeynmanKac, values: Array) -> FeynmanKac:
    potential = dataclasses.replace(cast(Steering, solver.potential), reward=Known(jnp.asarray(values)), with_cond=False)
    return dataclasses.replace(solver, potential=potential)


@functools.partial(jax.jit, static_argnames=("process", "event"))
def _begin(solver, start, key, ids, cond, t, *, process, event):
    return begin(solver, start, key, ids, cond, t, process=process, event=event)[0]


@functools.partial(jax.jit, static_argnames="process")
def _stretch(solver, model, key, ids, cond, state, rows, *, process):
    def body(state, row):
        result = solver.step(BoundModel(model, cond, process), row_keys(solver, key, ids, row["index"]), state[0], state[1], row)
        return (result.y, result.carry, first_bad(state[2], result.y, row)), solver.record(result.carry)

    return jax.lax.scan(body, state, rows)


@functools.partial(jax.jit, static_argnames="process")
def _look(solver, model, key, ids, cond, state, row, *, process):
    seen = solver.look(BoundModel(model, cond, process), row_keys(solver, key, ids, row["index"]), state[0], row)
    return seen, seen.prediction.process.decode(seen.prediction.denoised)


@functools.partial(jax.jit, static_argnames="process")
def _advance(solver, model, key, ids, cond, state, row, seen, *, process):
    keys = row_keys(solver, key, ids, row["index"])
    y, carry = solver.advance(BoundModel(model, cond, process), keys, state[0], state[1], row, seen)
    return (y, carry, first_bad(state[2], y, row)), jax.tree.map(lambda leaf: leaf[None], solver.record(carry))


@functools.partial(jax.jit, static_argnames="process")
def _conclude(solver, key, ids, cond, state, index, records, *, process):
    y, carry = solver.conclude(process, row_keys(solver, key, ids, index), state[0], state[1], cond)
    return dict(x=solver.decode(process, y, carry), bad=state[2], outputs=solver.outputs(carry, records), path=None)
