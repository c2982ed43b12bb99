"""What ends a run early: a signal, the disk, an output that nobody reads."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

# How a message ends: what to do next.
CONTINUE, AGAIN = "the same command with --resume continues", "run the same command again"


class RunFailed(OSError):
    """A failure of the system around a run, told in one line with the path and how to go on; exit status 1."""


class Stopped(KeyboardInterrupt):
    """SIGTERM or Ctrl-C ended the run. ``status`` is the exit status: 0 for SIGTERM, which asks for no more than that; else 130.

    A KeyboardInterrupt, since libraries let that pass.
    """

    def __init__(self, number: int, where: str, then: str = CONTINUE):
        name = "SIGTERM" if number == signal.SIGTERM else "interrupted"
        super().__init__(f"{name}: {where}; {then}")
        self.number, self.status = number, 0 if number == signal.SIGTERM else 130


class Signals:
    """SIGTERM and Ctrl-C while the block runs: an exception at once, or when asked for inside :meth:`waiting`.

    A second signal never waits. Outside the main thread, where Python sets no handlers, they stay as they are.
    """

    def __init__(self, then: str = CONTINUE) -> None:
        self.received: int | None = None
        self._then = then
        self._waits, self._before = False, {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *details) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first, self.received = self.received is None, number
        if not (self._waits and first):
            raise Stopped(number, "stopped between two checkpoints" if self._waits else "stopped", self._then)

    @contextmanager
    def waiting(self) -> Iterator[Callable[[], bool]]:
        """Inside, a first signal only makes the function given true, so that the work can end where it is whole."""
        self._waits = True
        try:
            yield lambda: self.received is not None
        finally:
            self._waits = False


@contextmanager
def one_line_failures(root: Path, then: str = CONTINUE) -> Iterator[None]:
    """Errors of the operating system as :class:`RunFailed`, with the path and how to go on."""
    try:
        yield
    except RunFailed:
        raise
    except BrokenPipeError as error:
        # Python would complain once more when it flushes the output at its end.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise RunFailed(f"standard output was closed while {root} was written; {then}") from error
    except OSError as error:
        what = error.filename if error.filename is not None else f"{root} or standard output"
        raise RunFailed(f"{what}: {error.strerror or error}; {then}") from error
