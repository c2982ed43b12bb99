r"""Weights on the log scale: how many particles they are worth, what they average, what cannot be used."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Real

from scorelab.arrays import Array, Key, is_traced


def log_mean_exp(log_weights: Float[Array, " ..."], axis: int = -1) -> Float[jax.Array, " ..."]:
    r""":math:`\log\frac1N\sum_i e^{\ell_i}`, without overflow; ``-inf`` where all are."""
    return jax.nn.logsumexp(log_weights, axis=axis) - math.log(log_weights.shape[axis])


def ess(log_weights: Float[Array, " ..."], axis: int = -1) -> Float[jax.Array, " ..."]:
    r"""The effective sample size :math:`(\sum_i w_i)^2/\sum_i w_i^2`, from 1 to N; 0 where no weight is finite.

    Source: Kong, Liu & Wong (1994).
    """
    top = jnp.max(log_weights, axis=axis, keepdims=True)
    # Relative to the largest: the quotient of two sums of which each has a one.
    w = jnp.exp(log_weights - jnp.where(jnp.isfinite(top), top, 0.0))
    total, square = jnp.sum(w, axis=axis), jnp.sum(w**2, axis=axis)
    return jnp.where(square > 0, total**2 / jnp.where(square > 0, square, 1.0), 0.0)


def normalised(log_weights: Float[Array, " *shape"], axis: int = -1) -> Float[jax.Array, " *shape"]:
    """Weights with sum one; equal ones where none is finite."""
    dead = jnp.max(log_weights, axis=axis, keepdims=True) == -jnp.inf
    return jax.nn.softmax(jnp.where(dead, 0.0, log_weights), axis=axis)


def weighted_mean(values: Real[Array, " particles *value"], log_weights: Float[Array, " particles"]) -> Float[jax.Array, " *value"]:
    r""":math:`\sum_i W_i v_i`, for ``values`` ``(n, ...)`` and ``log_weights`` ``(n,)``; NaN where no weight is above zero.

    Averages are better taken so than after resampling, which only adds noise.

    Raises:
        ValueError: other shapes.
    """
    values, log_weights = jnp.asarray(values), jnp.asarray(log_weights)
    if log_weights.ndim != 1 or values.shape[:1] != log_weights.shape:
        raise ValueError(
            f"weighted_mean.log_weights has shape {log_weights.shape} for values of shape {values.shape}: expected one per value"
        )
    mean = jnp.tensordot(normalised(log_weights), values, axes=1, precision="highest")
    return jnp.where(jnp.max(log_weights) > -jnp.inf, mean, jnp.nan)


def one_of_each(key: Key, log_weights: Float[Array, " ..."], particles: int) -> Int[jax.Array, " populations"]:
    """The index of one particle of every population, drawn by the weights: independent samples, ``(populations,)``.

    Raises:
        ValueError: ``particles`` does not divide the weights; a population in which no weight is above zero (not seen under
            ``jit``, where one of all its particles is drawn).
    """
    log_weights = jnp.asarray(log_weights)
    if particles < 1 or log_weights.size % particles:
        raise ValueError(f"one_of_each.particles = {particles}: expected a divisor of the {log_weights.size} weights")
    log_weights = log_weights.reshape(-1, particles)
    if not is_traced(log_weights):
        dead = np.flatnonzero(~(np.max(np.asarray(log_weights), axis=1) > -np.inf))
        if len(dead):
            raise ValueError(f"one_of_each.log_weights of population {dead[0]} are all zero weights: expected one above zero")
    picked = jax.random.categorical(key, jnp.log(normalised(log_weights)), axis=-1)
    return picked + particles * jnp.arange(len(log_weights))


class Usable(NamedTuple):
    """Log-weights without NaN, and how many there were."""

    log_weights: Array
    bad: Array


def usable(log_weights: Float[Array, " *populations particles"]) -> Usable:
    """NaN (and ``+inf``, a division of densities gone wrong) become ``-inf``, and are counted along the last axis."""
    bad = jnp.isnan(log_weights) | (log_weights == jnp.inf)
    return Usable(jnp.where(bad, -jnp.inf, log_weights), jnp.sum(bad, axis=-1, dtype=jnp.int32))
