r"""The divergence of a field of points, example by example: exact, or by Hutchinson's estimate; one for everything that asks.

.. math:: \nabla\!\cdot f(y) = \sum_i e_i^\top J e_i = E_v\big[v^\top J v\big],\qquad
          J = \frac{\partial f}{\partial y},\quad E[vv^\top]=I .

Examples do not see one another, so a product with the whole batch gives one number for each. The products are :math:`Jv`
(:func:`pushed`, forward mode) or :math:`J^\top v` (:func:`pulled`, reverse mode); the trace is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from scorelab.arrays import Array, Key

# Directions pushed through a model at once.
BLOCK = 16

Map = Callable[[Array], Array]


def pushed(fn: Callable[[Array], Any], y: Float[Array, " batch *event"]) -> tuple[Any, Callable[[Array], Any]]:
    """``fn(y)``, and ``v -> J v`` from one linearisation (:func:`jax.linearize`)."""
    return jax.linearize(fn, y)


def pulled(fn: Callable[[Array], Array], y: Float[Array, " batch *event"]) -> tuple[Float[Array, " batch *event"], Map]:
    """``fn(y)``, and ``v -> J^T v``: memory of one backward pass, and cheaper where ``fn`` is a gradient itself."""
    value, back = jax.vjp(fn, y)
    return value, lambda v: back(v)[0]


def signs(keys: Key | None, probes: int, like: Float[Array, " batch *event"]) -> Float[jax.Array, " {probes} batch *event"]:
    """Rademacher probes ``(probes, batch, *event)``: those of an example depend on its key alone; ValueError without keys."""
    if keys is None:
        raise ValueError("signs.keys = None: expected one key for each example, as a loss draws them")
    return jax.vmap(lambda key: jax.random.rademacher(key, (probes, *like.shape[1:]), like.dtype), out_axes=1)(keys)


def trace(
    product: Map, y: Float[Array, " batch *event"], probes: Float[Array, " probes batch *event"] | None = None
) -> Float[jax.Array, " batch"]:
    """The trace of the Jacobian behind ``product`` for every example, ``(batch,)``.

    Args:
        product: ``v -> J v`` or ``v -> J^T v``, for ``v`` shaped like ``y``.
        y: points ``(batch, *event)``.
        probes: directions ``(probes, batch, *event)`` of Hutchinson's unbiased estimate, or None for the exact trace, which takes
            one product for each element of a point.
    """
    if probes is not None:
        along = lambda v: dot(v, product(v))
        return jnp.mean(jax.lax.map(along, probes, batch_size=min(len(probes), BLOCK)), axis=0)
    size = math.prod(y.shape[1:])

    def entry(i):
        # One product gives entry (i, i) of every example's Jacobian at once.
        unit = jnp.zeros(size, y.dtype).at[i].set(1.0).reshape(y.shape[1:])
        unit = jnp.broadcast_to(unit, y.shape)
        return dot(unit, product(unit))

    return jnp.sum(jax.lax.map(entry, jnp.arange(size), batch_size=min(size, BLOCK)), axis=0)


def divergence(
    fn: Callable[[Array], Array],
    y: Float[Array, " batch *event"],
    probes: Float[Array, " probes batch *event"] | None = None,
    *,
    reverse: bool = False,
) -> tuple[Float[Array, " batch *event"], Float[jax.Array, " batch"]]:
    """``fn(y)`` and its divergence ``(batch,)``; arguments as in :func:`trace`, ``reverse`` for products with the transpose."""
    value, product = (pulled if reverse else pushed)(fn, y)
    return value, trace(product, y, probes)


def dot(a: Float[Array, " batch *event"], b: Float[Array, " batch *event"]) -> Float[jax.Array, " batch"]:
    """The inner product of every example, ``(batch,)``."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)))
