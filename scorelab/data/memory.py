"""Whether an array fits into memory, asked before it is made: an allocation that fails can end the process."""

from __future__ import annotations

import os


def require_memory(what: str, bytes_needed: float) -> None:
    """Raise ``ValueError`` where ``bytes_needed`` are more than the memory of this machine; ``what`` names the field and value."""
    if bytes_needed > (memory := memory_size()):
        raise ValueError(f"{what} takes {bytes_needed:.3g} bytes: expected at most the {memory:.3g} bytes of memory there are")


def memory_size() -> float:
    """Bytes of memory of this machine; infinity where the system does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return float("inf")
