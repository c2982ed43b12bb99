"""What the fields of the specs of this package may be, beyond :mod:`scorelab.validation`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, is_traced
from scorelab.validation import owner, require_number


def require_scalar(spec: object, **fields: Array | float) -> None:
    """Raise unless every field is one finite number, which may be a leaf: TypeError for what is none, else ValueError.

    An array of numbers is refused: one for each particle would be as many targets in one population.
    """
    for name, value in fields.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        dtype = getattr(value, "dtype", None)
        real = dtype is not None and (jnp.issubdtype(dtype, np.floating) or jnp.issubdtype(dtype, np.integer))
        if not number and not (real and jnp.shape(value) == ()):
            raise TypeError(f"{owner(spec)}.{name} = {value!r}: expected a number")
        if not is_traced(value) and not np.isfinite(value):
            raise ValueError(f"{owner(spec)}.{name} = {value!r}: expected a finite number")


def require_window(spec: object, window: Any) -> tuple[float, float]:
    """The ``window`` as a pair of floats; ValueError unless it is ``(low, high)`` with ``0 <= low <= high <= 1``."""
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise ValueError(f"{owner(spec)}.window = {window!r}: expected (low, high), fractions of the steps in [0, 1]")
    low, high = window
    require_number(owner(spec), 0.0, 1.0, window=low)
    require_number(owner(spec), low, 1.0, window=high)
    return float(low), float(high)


def same(a: Any, b: Any) -> bool:
    """Whether two pytrees are equal, specs and numbers; numbers that are traced count as equal."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x is y or is_traced(x, y) or np.array_equal(x, y) for x, y in pairs)
