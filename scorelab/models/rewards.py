"""Rewards, numbers about points: the one place in which they are asked, and held to one for each point."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Pytree
from scorelab.validation import require_real


def one_each(what: str, value: Array, points: Pytree) -> Array:
    """``value``; ValueError naming ``what`` unless it is one real number for each of the ``points`` ``(batch, ...)``."""
    expected = jax.tree.leaves(points)[0].shape[:1]
    if jnp.shape(value) != expected:
        raise ValueError(f"{what} returned shape {jnp.shape(value)}: expected {expected}, one per sample")
    require_real(what, value)
    return value


def rewards_of(where: str, reward: Callable[..., Array], x: Pytree, cond: Pytree = None, with_cond: bool = False) -> Array:
    """``reward(x)`` or, under ``with_cond``, ``reward(x, cond)``, ``(batch,)``; ValueError naming ``where`` for another shape."""
    return one_each(f"{where}.reward", reward(x, cond) if with_cond else reward(x), x)
