"""Warnings that point at the line of the user."""

from __future__ import annotations

import sys
import warnings

# Packages whose frames are not the line of a user: this one, and what its functions may be wrapped in.
_INSIDE = ("scorelab", "contextlib", "jaxtyping", "beartype")


def warn(message: str, category: type[Warning]) -> None:
    """A warning at the first line outside the library, however deep inside it is found."""
    # The standard library learns to skip files in Python 3.12 (skip_file_prefixes).
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
