r"""Resampling: indices of ancestors from log-weights, with :math:`E[N_i] = n W_i` offspring each.

Every scheme is a function ``(key, log_weights (N,), n=None) -> (n,) int32``. Weights that are NaN count as zero; where no weight
is above zero the result is the identity. Sources: Douc, Cappe & Moulines (2005) for the classical four, Del Moral (2004) for
killing, Gerber, Chopin & Whiteley (2019) for SSP.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from scorelab.arrays import Array, Key
from scorelab.fk.weights import normalised, usable

Resampler = Callable[..., Array]

# The ancestor where a resampler named no particle; it stays out of range when islands add their first index to it.
OUTSIDE = -(2**30)


def checked(resampler: Resampler) -> Resampler:
    """``resampler`` with a look at what it returns, while tracing: one integer per weight, and ``OUTSIDE`` for those beyond.

    Raises:
        TypeError: not integers.
        ValueError: another number of them.
    """

    def resample(key: Key, log_weights: Float[Array, " particles"]) -> Int[jax.Array, " particles"]:
        index, n = jnp.asarray(resampler(key, log_weights)), len(log_weights)
        if not jnp.issubdtype(index.dtype, jnp.integer):
            raise TypeError(f"FeynmanKac.resampler returned {index.dtype}: expected integers, the indices of ancestors")
        if index.shape != (n,):
            raise ValueError(f"FeynmanKac.resampler returned shape {index.shape}: expected ({n},), one ancestor per particle")
        # Out of range JAX takes the nearest particle, and from the end where it is negative.
        return jnp.where((index >= 0) & (index < n), index, OUTSIDE).astype(jnp.int32)

    return resample


def _resampler(scheme: Callable[[Key, Array, int], Array]) -> Resampler:
    """What all schemes share: usable weights with sum one, and the identity where there are none."""

    @functools.wraps(scheme)
    def resample(key: Key, log_weights: Float[Array, " particles"], n: int | None = None) -> Int[jax.Array, " offspring"]:
        log_weights, _ = usable(jnp.asarray(log_weights))
        if log_weights.ndim != 1:
            raise ValueError(f"{scheme.__name__}.log_weights has shape {log_weights.shape}: expected (N,)")
        n = len(log_weights) if n is None else n
        index = scheme(key, normalised(log_weights), n).astype(jnp.int32)
        dead = jnp.max(log_weights) == -jnp.inf
        return jnp.where(dead, jnp.arange(n, dtype=jnp.int32) % len(log_weights), index)

    return resample


def _inverse(weights: Float[Array, " particles"], points: Float[Array, " offspring"]) -> Int[jax.Array, " offspring"]:
    """The quantile function of the weights at ``points`` in [0, 1): never an index of weight zero."""
    total = jnp.cumsum(weights)
    below_one = jnp.nextafter(jnp.ones((), total.dtype), jnp.zeros((), total.dtype))
    return jnp.searchsorted(total / total[-1], jnp.minimum(points, below_one), side="right")


@_resampler
def systematic(key: Key, weights: Float[Array, " particles"], n: int) -> Int[jax.Array, " {n}"]:
    r"""The quantiles at :math:`(i + u)/n` with one uniform ``u``: every :math:`|N_i - nW_i| < 1`. The default."""
    return _inverse(weights, (jnp.arange(n) + jax.random.uniform(key, (), weights.dtype)) / n)


@_resampler
def stratified(key: Key, weights: Float[Array, " particles"], n: int) -> Int[jax.Array, " {n}"]:
    r"""The quantiles at :math:`(i + u_i)/n`: :math:`|N_i - nW_i| < 2`, without the dependence of one uniform."""
    return _inverse(weights, (jnp.arange(n) + jax.random.uniform(key, (n,), weights.dtype)) / n)


@_resampler
def multinomial(key: Key, weights: Float[Array, " particles"], n: int) -> Int[jax.Array, " {n}"]:
    """Independent draws: the most noise, the easiest to prove things about."""
    return _inverse(weights, jax.random.uniform(key, (n,), weights.dtype))


@_resampler
def residual(key: Key, weights: Float[Array, " particles"], n: int) -> Int[jax.Array, " {n}"]:
    r""":math:`\lfloor nW_i\rfloor` copies each, and the rest by independent draws from what is left of the weights."""
    share = n * weights
    # A weight of exactly k/n may have been rounded to just below it.
    copies = jnp.floor(share * (1 + 8 * jnp.finfo(weights.dtype).eps))
    kept = jnp.repeat(jnp.arange(len(weights)), copies.astype(jnp.int32), total_repeat_length=n)
    rest = jnp.maximum(share - copies, 0.0)
    drawn = _inverse(rest / jnp.maximum(jnp.sum(rest), jnp.finfo(weights.dtype).tiny), jax.random.uniform(key, (n,), weights.dtype))
    return jnp.where(jnp.arange(n) < jnp.sum(copies), kept, drawn)


@_resampler
def killing(key: Key, weights: Float[Array, " particles"], n: int) -> Int[jax.Array, " {n}"]:
    r"""Particle ``i`` stays with probability :math:`W_i/\max W`, else it is replaced by an independent draw.

    Survivors keep their place, so that little data moves. ValueError unless ``n`` is the number of weights.
    """
    if n != len(weights):
        raise ValueError(f"killing.n = {n}: expected the number of weights, {len(weights)}, since survivors keep their place")
    key_stay, key_draw = jax.random.split(key)
    stays = jax.random.uniform(key_stay, (n,), weights.dtype) * jnp.max(weights) < weights
    return jnp.where(stays, jnp.arange(n), _inverse(weights, jax.random.uniform(key_draw, (n,), weights.dtype)))


@_resampler
def ssp(key: Key, weights: Float[Array, " particles"], n: int) -> Int[jax.Array, " {n}"]:
    r"""Srinivasan sampling process: :math:`\lfloor nW_i\rfloor` or one more each, negatively associated.

    The fractions of :math:`nW` meet in pairs, until one of the two is 0 or 1. N sequential steps: slow on accelerators.
    """
    share = n * weights
    copies = jnp.floor(share * (1 + 8 * jnp.finfo(weights.dtype).eps))
    fractions = jnp.clip(share - copies, 0.0, 1.0)

    def meet(state, newcomer):
        (i, p), copies = state
        j, q, u = newcomer
        # Move as much as possible from one to the other; the direction is drawn so that both keep their expectation.
        up, down = jnp.minimum(q, 1 - p), jnp.minimum(p, 1 - q)
        first_rises = u * (up + down) < down
        merged = p + q
        winner, loser = jnp.where(first_rises, i, j), jnp.where(first_rises, j, i)
        full = merged >= 1
        copies = copies.at[winner].add(jnp.where(full, 1.0, 0.0))
        # Who is neither 0 nor 1 now goes on: the loser of a full pair, the winner of the others.
        return ((jnp.where(full, loser, winner), jnp.where(full, merged - 1, merged)), copies), None

    u = jax.random.uniform(key, (len(weights) - 1,), weights.dtype)
    others = (jnp.arange(1, len(weights), dtype=jnp.int32), fractions[1:], u)
    ((last, _), copies), _ = jax.lax.scan(meet, ((jnp.zeros((), jnp.int32), fractions[0]), copies), others)
    # The fractions have an integer sum up to rounding, which the last one standing makes good.
    copies = copies.at[last].add(n - jnp.sum(copies))
    return jnp.repeat(jnp.arange(len(weights)), copies.astype(jnp.int32), total_repeat_length=n)
