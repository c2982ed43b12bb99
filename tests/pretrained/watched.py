"""What a call does beside its result: whether it runs, imports or opens something, and how much memory it takes."""

import sys
import tracemalloc
from contextlib import contextmanager

# Of the interpreter: https://docs.python.org/3/library/audit_events.html
FORBIDDEN = (
    "exec", "compile", "import", "open", "os.", "subprocess.", "socket.", "pickle.find_class", "marshal.", "ctypes.", "shutil.",
    "code.",
)  # fmt: skip
_state = dict(watching=False, seen=[])


def _look(event, arguments):
    if _state["watching"] and event.startswith(FORBIDDEN):
        _state["seen"].append((event, str(arguments)[:200]))


sys.addaudithook(_look)
# Of the names in archives, which Python imports when it is first used.
"".encode("cp437")


@contextmanager
def watched(most):
    """Nothing that runs, imports or opens inside the block, and at most so many bytes at once."""
    _state["seen"].clear()
    tracemalloc.start()
    _state["watching"] = True
    try:
        yield
    finally:
        _state["watching"] = False
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert not _state["seen"], _state["seen"]
        assert peak < most, f"{peak:,} bytes"
