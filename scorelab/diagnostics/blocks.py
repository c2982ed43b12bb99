"""Many points in blocks of one size, so that memory is bounded and one program is compiled."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from scorelab.arrays import Array, Pytree
from scorelab.validation import require_real


def blocks(n: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Row numbers in blocks of ``min(n, size)``, the last filled up with its last row, and how many of each count."""
    size = min(n, size)
    for low in range(0, n, size):
        yield np.minimum(np.arange(low, low + size), n - 1), min(size, n - low)


def standard_error(values: np.ndarray) -> np.ndarray:
    """Of the means over the points of ``values (k, n)``, ``(k,)``; NaN for a single point."""
    n = values.shape[1]
    return values.std(axis=1, ddof=1) / np.sqrt(n) if n > 1 else np.full(len(values), np.nan)


def require_batch(function: str, batch: int) -> None:
    """Raise ``ValueError`` unless ``batch`` is a positive integer."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"{function}.batch = {batch!r}: expected a positive integer")


def require_finite(name: str, value: Array) -> None:
    """Raise ``ValueError`` for values that are not real or not finite; ``name`` is ``function.argument``."""
    value = np.asarray(value)
    require_real(name, value)
    if bad := np.count_nonzero(~np.isfinite(value)):
        raise ValueError(f"{name} has {bad} values that are not finite: expected none")


def require_leading(function: str, cond: Pytree, n: int) -> None:
    """Raise ``ValueError`` where a condition does not have one row per point."""
    for leaf in jax.tree.leaves(cond):
        if np.shape(leaf)[:1] != (n,):
            raise ValueError(f"{function}.cond has a leaf of shape {np.shape(leaf)}: expected a leading axis of {n}")
