"""The memory of a run of weighted particles: what it is, how weights are added to it, how it is gathered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from scorelab.arrays import Array, Pytree
from scorelab.fk.policies import ResampleResult
from scorelab.fk.weights import usable


class WeightsWarning(UserWarning):
    """Log-weights or rewards that were NaN or ``+inf``, or a population in which no weight was above zero."""


class ParticleState(NamedTuple):
    """The memory of a run. The first four have a leading axis of particles, and are gathered together.

    Attributes:
        base: the memory of the base solver.
        memory: that of the potential.
        root: the place in its population at which the ancestor of each particle began.
        log_w: log-weights.
        log_z: what has left the weights of each population.
        bad: log-weights that were not numbers, of each population.
        end: of the end of the walk, with the last factor: effective sample size, limited increments, and the last ancestors.
        latest: the report of the last row.
    """

    base: Pytree
    memory: Pytree
    root: Array
    log_w: Array
    log_z: Array
    bad: Array
    end: tuple[Array, Array, Array]
    latest: Mapping[str, Array]


def add(log_w: Array, increment: Array, groups: int, clip: float | None) -> tuple[Array, Array, Array]:
    """New log-weights ``(groups, particles)``, how many were not numbers, and how many increments ``clip`` has limited."""
    increment = increment.reshape(groups, -1)
    clipped = jnp.zeros(groups, jnp.int32)
    if clip is not None:
        finite = jnp.isfinite(increment)
        count = jnp.maximum(jnp.sum(finite, axis=1, keepdims=True), 1)
        mean = jnp.sum(jnp.where(finite, increment, 0.0), axis=1, keepdims=True) / count
        limited = jnp.clip(increment, mean - clip, mean + clip)
        clipped = jnp.sum(finite & (limited != increment), axis=1, dtype=jnp.int32)
        increment = jnp.where(finite, limited, increment)
    log_w, bad = usable(log_w.reshape(groups, -1) + increment)
    return log_w, bad, clipped


def gather(moved: ResampleResult, everything: Pytree, groups: int) -> Pytree:
    """One gather for all that belongs to a particle."""
    particles = moved.index.shape[1]

    def one(leaf):
        # Numbers that all particles share, such as the time of a prediction, stay.
        if jnp.ndim(leaf) == 0:
            return leaf
        split = rearrange(leaf, "(g p) ... -> g p ...", g=groups, p=particles)
        return jax.vmap(lambda values, index: values[index])(split, moved.index).reshape(leaf.shape)

    def all_of_them():
        return jax.tree.map(one, everything)

    if groups > 1:
        # Looking whether any population moved would make them wait for one another.
        return all_of_them()
    return jax.lax.cond(jnp.any(moved.resampled), all_of_them, lambda: everything)
