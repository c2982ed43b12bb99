"""Memory that the C library keeps between the calls of a program, in the place of giving it back to the system."""

from __future__ import annotations

import ctypes
import os
import sys

# What `mallopt` of glibc knows them by.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
# The most that `mallopt` takes.
KEPT = 2**31 - 1


def keep_freed() -> bool:
    """Let glibc keep what is freed, for the next call; False where the C library is another one.

    XLA allocates the temporaries of a program anew at every call on the CPU. Blocks of 32 MB and more are mapped for it and
    unmapped again, and every page is filled with zeros when it is touched first. That was a quarter of the gradient of a U-Net of
    28 x 28 images. Where the environment has a setting (``MALLOC_ARENA_MAX``, ``MALLOC_MMAP_MAX_``, ``MALLOC_TRIM_THRESHOLD_``,
    ``GLIBC_TUNABLES``), nothing is changed.

    Of what is free at the end of the heap, all beyond 2 GB goes back to the system. What lies below a block in use stays with the
    process, however much it is, and is used again by the next that asks for memory.
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if told or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # One arena: a thread of XLA has one of its own otherwise, which never holds more than 64 MB.
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: KEPT}
    return all([library.mallopt(name, value) for name, value in settings.items()])
