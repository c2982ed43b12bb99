"""Near names for names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], n: int = 1) -> str:
    """``"Did you mean mnist?"`` for ``"minst"``, or ``""`` where nothing is near."""
    known = list(known)
    lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), lower, n=n, cutoff=0.6)
    return f"Did you mean {' or '.join(lower[k] for k in near)}?" if near else ""
