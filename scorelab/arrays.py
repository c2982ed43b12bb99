"""Arrays, and the shape vocabulary.

``x`` lives in data space and ``y = chart(x)`` in the latent (chart) space of a process; both have shape ``(batch, *event)``.
Times ``t`` are a scalar or ``(batch,)``. Labels and other conditions ``cond`` have a leading batch axis. Steps go from ``t`` to
``s`` (``s`` nearer to the data).

Signatures state shapes by jaxtyping, as ``Float[Array, " batch *event"]``: axes of one name are equally long. A shape begins with
a space, or linters take it for a type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jaxtyping import Float

if TYPE_CHECKING:
    Array = jax.Array | np.ndarray
else:
    # NumPy makes its scalars of arrays without axes.
    Array = jax.Array | np.ndarray | np.number
Key = jax.Array
Scalar = Float[Array, ""] | float
Pytree = Any
# Times, and functions of them element by element.
Time = Float[Array, " *times"] | float
Coefficient = Float[Array, " *times"]
BatchTime = Float[Array, ""] | Float[Array, " batch"] | float


def per_example(value: Array | float, like: Array) -> Array:
    """Give a scalar or ``(batch,)`` coefficient trailing axes so that it broadcasts against ``like``."""
    value = jnp.asarray(value)
    if value.ndim == 0:
        return value
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def float_like(x: Pytree) -> Any:
    """The type of numbers about ``x``: that of its first floating point leaf, the default one for integers."""
    kinds = [leaf.dtype for leaf in jax.tree.leaves(x) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return kinds[0] if kinds else jax.dtypes.canonicalize_dtype(float)


def on_host(array: Array | float) -> np.ndarray:
    """The values, also of an array that is spread over several processes (all of which have to ask)."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def is_traced(*trees: Pytree) -> bool:
    """True where a leaf belongs to a program that is being traced, so that its value is not known yet."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))
