"""Names and shapes of tensors, compared: every difference is an error, and every one is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scorelab.errors import WeightsError

# Differences of one kind that a message names before it counts.
_NAMED = 10

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
    """The first ten names, and how many there are beside."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def require_keys(found: Shapes, expected: Shapes, name: str) -> None:
    """Compare the tensors of a file with those that a network has.

    Raises:
        WeightsError: they differ; the message begins with ``name`` and has every difference.
    """
    if different := differences(found, expected):
        raise WeightsError(f"{name}: {'; '.join(different)}: expected {len(expected):,} tensors, those of the network")
