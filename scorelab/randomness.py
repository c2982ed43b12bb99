"""Random numbers example by example: what an example draws depends on its key alone, never on the batch around it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from scorelab.arrays import Array, Key
from scorelab.validation import require_shape


def per_example_keys(key: Key, ids: Int[Array, " batch"]) -> Key:
    """One key per sample id: what a sample draws depends on its id, never on the batch around it."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)


class PathKeys(NamedTuple):
    """What a solver gets in the place of the keys of a row when its noise is that of a path.

    Attributes:
        row: one key per sample, fresh for this row, as other solvers get.
        path: one key per sample, the same at every row.
    """

    row: Key
    path: Key


def of_row(keys: Key | PathKeys) -> Key:
    """The keys that are fresh for a row."""
    return keys.row if isinstance(keys, PathKeys) else keys


def folded(keys: Any, stream: Int[Array, ""] | int) -> Any:
    """Of every key another one, for a stream of its own; of those of a path too."""
    return jax.tree.map(lambda keys: jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, stream), keys)


def per_example_normal(keys: Key, like: Float[Array, " _ *event"]) -> Float[jax.Array, " batch *event"]:
    """Standard normal noise shaped like the rows of ``like``, row ``i`` drawn from ``keys[i]``.

    Floating point numbers in the place of keys are that noise itself: who steps a solver by hand may say what is drawn.
    """
    if jnp.issubdtype(keys.dtype, jnp.floating):
        require_shape("noise in the place of keys", keys, like)
        return keys.astype(like.dtype)
    # The same numbers as in the shape of the event, which on a CPU compile three times as long and draw a quarter slower.
    flat = jax.vmap(lambda k: jax.random.normal(k, (math.prod(like.shape[1:]),), like.dtype))(keys)
    return flat.reshape(len(flat), *like.shape[1:])
