"""What a run says: a progress bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from scorelab.shards import duration

# Seconds between two plain progress lines.
_QUIET = 10.0
# What happens before the first step is done.
_FIRST = "compiling ..."


class Tick(Protocol):
    """What a stage calls as it goes on."""

    def __call__(self, done: int, note: str = "") -> None:
        """``done`` of the total is done; ``note`` is shown beside it."""
        ...


class Console:
    """Messages on standard output; none with ``quiet``, as on all hosts but the first."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.terminal = not quiet and sys.stdout.isatty()

    def line(self, text: str = "") -> None:
        """One line."""
        if not self.quiet:
            print(text, flush=True)

    def stage(self, name: str, detail: str) -> None:
        """The headline of a stage."""
        self.line(f"{name:<9} {detail}")

    @contextmanager
    def progress(self, name: str, total: int, done: int = 0) -> Iterator[Tick]:
        """Progress of one stage from ``done`` to ``total``."""
        with (_nothing if self.quiet else _bar if self.terminal else _lines)(name, total, done) as tick:
            yield tick


@contextmanager
def _nothing(name: str, total: int, done: int) -> Iterator[Tick]:
    yield lambda done, note="": None


@contextmanager
def _bar(name: str, total: int, done: int) -> Iterator[Tick]:
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(), progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with progress.Progress(*columns, transient=True) as bar:
        task = bar.add_task(f"{name:<9}", total=total, completed=done, note=_FIRST)
        yield lambda done, note="": bar.update(task, completed=done, note=note)


@contextmanager
def _lines(name: str, total: int, done: int) -> Iterator[Tick]:
    print(f"{name:<9} {done}/{total}  {_FIRST}", flush=True)
    began = last = time.monotonic()
    first = done

    def tick(done: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _QUIET and done < total:
            return
        last = now
        rate = (done - first) / max(now - began, 1e-9)
        left = f"{duration((total - done) / rate)} left" if rate and done < total else ""
        parts = [f"{name:<9} {done}/{total}", note, f"{rate:.3g}/s", left]
        print("  ".join(part for part in parts if part), flush=True)

    yield tick
