"""What starts with arrays ask of them."""

from __future__ import annotations

import numpy as np

from scorelab.arrays import Array, is_traced, on_host
from scorelab.validation import require_real


def require_rows(name: str, array: Array, count: int) -> None:
    """Raise ValueError where an array has fewer than ``count`` rows."""
    rows = np.shape(array)[0] if np.ndim(array) else 0
    if rows < count:
        raise ValueError(f"{name} has {rows} rows: expected one for each sample id, so at least {count}")


def require_finite(name: str, array: Array | float) -> None:
    """Raise ValueError where an array has values that are not finite real numbers; traced values pass."""
    require_real(name, array)
    if is_traced(array):
        return
    if bad := int(np.sum(~np.isfinite(on_host(array)))):
        raise ValueError(f"{name} has {bad} values that are not finite: expected none")
