"""Near names for names that are not known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

# The similarity from which a name counts as near, as in difflib.
_NEAR = 0.6


def did_you_mean(name: str, known: Iterable[str], n: int = 1) -> str:
    """``"Did you mean mnist?"`` for ``"minst"``, or ``""`` where nothing is near; letters in another case are near."""

    def similarity(other: str) -> tuple[float, float]:
        return SequenceMatcher(None, name.lower(), other.lower()).ratio(), SequenceMatcher(None, name, other).ratio()

    near = sorted((other for other in set(known) if similarity(other)[0] >= _NEAR), key=lambda other: (similarity(other), other))
    return f"Did you mean {' or '.join(near[::-1][:n])}?" if near else ""
