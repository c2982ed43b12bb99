"""What starts with arrays ask of them."""

from __future__ import annotations

import numpy as np

from scorelab.arrays import Array, on_host
from scorelab.validation import require_real


def require_rows(name: str, array: Array, count: int) -> None:
    """Raise ValueError where an array has fewer than ``count`` rows."""
    if len(array) < count:
        raise ValueError(f"{name} has {len(array)} rows: expected one for each sample id, so at least {count}")


def require_finite(name: str, array: Array | float) -> None:
    """Raise ValueError where an array has values that are not finite real numbers."""
    require_real(name, array)
    if bad := int(np.sum(~np.isfinite(on_host(array)))):
        raise ValueError(f"{name} has {bad} values that are not finite: expected none")
