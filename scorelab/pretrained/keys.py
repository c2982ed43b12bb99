"""Names and shapes of tensors, compared: every difference is an error, and every one is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from scorelab.errors import WeightsError

# Differences of one kind that a message names before it counts, and the most letters of a name.
_NAMED, _LONG = 10, 200

Shapes = Mapping[str, tuple[int, ...]]


def differences(found: Shapes, expected: Shapes) -> list[str]:
    """What a set of tensors lacks, has too much, and has in another shape; empty where they are the same.

    Each kind is one text with the first ten names and the number of the rest.
    """
    other = (name for name in expected if name in found and tuple(found[name]) != tuple(expected[name]))
    kinds = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [f"{name} {tuple(found[name])} for {tuple(expected[name])}" for name in other],
    }
    return [f"{len(names):,} {kind}: {listed(names)}" for kind, names in kinds.items() if names]


def listed(names: Sequence[str]) -> str:
    """The first ten names, long ones cut, and how many there are beside."""
    more = len(names) - _NAMED
    named = (name if len(name) <= _LONG else f"{name[:_LONG]}..." for name in names[:_NAMED])
    return ", ".join(named) + (f" and {more:,} more" if more > 0 else "")


def require_real(tensors: Mapping[str, np.ndarray], name: str) -> None:
    """Raise ``WeightsError`` for tensors that are not of floating point, or have NaN or infinity; ``name`` is that of the file."""
    for key, array in tensors.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise WeightsError(f"{name}: tensor {key!r} is {array.dtype}: expected numbers of floating point")
    if wrong := [key for key, array in tensors.items() if not np.isfinite(array).all()]:
        raise WeightsError(f"{name}: numbers that are not finite in {listed(wrong)}: expected none")


def require_keys(found: Shapes, expected: Shapes, name: str) -> None:
    """Compare the tensors of a file with those that a network has.

    Raises:
        WeightsError: they differ; the message begins with ``name`` and has every difference.
    """
    if different := differences(found, expected):
        raise WeightsError(f"{name}: {'; '.join(different)}: expected {len(expected):,} tensors, those of the network")
