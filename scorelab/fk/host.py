"""Rewards that are Python functions: called back from the compiled walk, or between its pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from scorelab import walk
from scorelab.arrays import Array, Key, Pytree, float_like, is_traced
from scorelab.callbacks import remembered
from scorelab.fk.intermediate import Denoised, scaled
from scorelab.fk.potentials import Steering
from scorelab.fk.smc import FeynmanKac
from scorelab.grids import Grid
from scorelab.models.base import Model
from scorelab.processes.base import Start
from scorelab.processes.predictions import unguided
from scorelab.sampling import Samples, assemble
from scorelab.validation import require_spec


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
        """Rewards ``(n,)``, in the floating point type of ``x``."""
        return jax.pure_callback(
            remembered(self.on_host, self.fn), jax.ShapeDtypeStruct(x.shape[:1], float_like(x)), x, vmap_method="sequential"
        )

    def on_host(self, x: Array) -> np.ndarray:
        """The function's answer, checked."""
        if is_traced(x):
            raise TypeError("Callback.fn under a transformation of JAX: expected numbers, since it has no derivative")
        x = np.asarray(x)
        r = np.asarray(self.fn(x))
        if r.shape != x.shape[:1] or r.dtype.kind not in "iuf":
            raise ValueError(f"Callback.fn returned {r.dtype} of shape {r.shape}: expected numbers {x.shape[:1]}, one per sample")
        return r.astype(float_like(x))


@dataclass(frozen=True)
class _Elsewhere:
    """In the place of a reward that is asked on the host."""

    def __call__(self, x: Array) -> Array:
        return jnp.zeros(len(x), float_like(x))


def sample_between(
    model: Model,
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
        solver: with a steering potential whose reward is a :class:`Callback` of the denoised mean.
        grid: as in ``sample``.
        key: as in ``sample``.
        shape: as in ``sample``; all samples are one chunk.
        start: as in ``sample``.
        cond: as in ``sample``.
        progress: called with (model calls done, model calls wanted) after every stretch and event.

    Raises:
        TypeError: another potential, reward or intermediate reward.
        ValueError: as in ``sample``.
        NonFiniteSample: as in ``sample``.
    """
    require_spec(sample_between, FeynmanKac, solver=solver)
    require_spec(sample_between, Steering, potential=solver.potential)
    potential = cast(Steering, solver.potential)
    require_spec(sample_between, Callback, reward=potential.reward)
    require_spec(sample_between, Denoised, intermediate=potential.intermediate)
    reward, scale = cast(Callback, potential.reward), potential.scale
    if potential.with_cond:
        raise ValueError("sample_between.solver has a potential with_cond=True: expected a reward of the samples alone")
    plan = walk.plan("sample_between", model, solver=solver, grid=grid, key=key, shape=shape, start=start, cond=cond, ids=None)
    if plan.n % plan.population:
        raise ValueError(
            f"sample_between.shape = ({plan.n}, ...): expected a multiple of {plan.population}, the samples of one population"
        )
    silent = dataclasses.replace(solver, potential=dataclasses.replace(potential, reward=_Elsewhere()))
    rows, index = plan.rows, np.arange(plan.calls, dtype=np.int32)
    events = (rows.potential.event > 0) & (rows.enter > 0)
    visit = walk.Visit(plan.model, key, plan.ids, cond)

    begun = walk.drawn(plan.start, plan.model.process, key, plan.ids, cond, plan.first, event=plan.event)
    state = _begin(silent, visit, begun)
    records, at = [], 0
    while at < plan.calls:
        until = at + int(np.argmax(events[at:])) if np.any(events[at:]) else plan.calls
        if until > at:
            state, record = _stretch(silent, visit, state, *_part((rows, index), slice(at, until)))
        else:
            row = _part((rows, index), at)
            y, seen, x = _look(silent, visit, state, *row)
            seen = seen._replace(notes=scaled(jnp.asarray(scale, seen.notes.dtype), reward.on_host(x)))
            state, record = _move(silent, visit, state, y, seen, *row)
            until = at + 1
        records.append(record)
        at = until
        if progress is not None:
            progress(at, plan.calls)
    x = silent.decode(model.process, state.y, state.carry)
    known = jnp.asarray(reward.on_host(x))
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *records)
    part = _finish(silent, visit, state, index[-1], joined, known, begun.log_weights)
    walk.raise_if_bad(np.asarray(part["bad"]), plan.times)
    samples = assemble([part], plan, model.process)
    solver.review(samples.diagnostics)
    return samples


def _part(rows: Any, which: Any) -> Any:
    return jax.tree.map(lambda column: column[which], rows)


@jax.jit
def _begin(solver, visit, drawn):
    return walk.begin(solver, visit, drawn)


@jax.jit
def _stretch(solver, visit, state, rows, index):
    state, (_, _, records) = walk.scan(solver, visit, state, rows, index)
    return state, records


@jax.jit
def _look(solver, visit, state, row, index):
    y, seen = walk.predict(solver, visit, state, row, index)
    prediction = unguided(seen.prediction)
    return y, seen, prediction.process.decode(prediction.denoised)


@jax.jit
def _move(solver, visit, state, y, seen, row, index):
    state = walk.update(solver, visit, state, y, seen, row, index)
    return state, jax.tree.map(lambda leaf: leaf[None], solver.record(state.carry))


@jax.jit
def _finish(solver, visit, state, index, records, known, log_weights):
    # The samples' own rewards are known: the last factor is asked of nobody.
    potential = dataclasses.replace(solver.potential, reward=lambda x: known)
    state = walk.finish(dataclasses.replace(solver, potential=potential), visit, state, index)
    x = solver.decode(visit.model.process, state.y, state.carry)
    outputs = dict(log_weights=log_weights) | solver.outputs(state.carry, records)
    return dict(x=x, bad=state.bad, outputs=outputs, path=None, zero=jnp.zeros((), log_weights.dtype))
