"""What a start is: the law of ``y`` at the first grid time. A start is a pytree; its parameters are leaves."""

from __future__ import annotations

import abc
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from scorelab.processes.base import Process
from scorelab.typing import Array, Key, Model, Pytree, on_host, require_real


class Start(abc.ABC):
    """The law of ``y`` at the first grid time; a new one needs ``draw`` and ``log_prob``.

    Attributes:
        has_signs: it says which signs the samples keep (:class:`Signed`).
    """

    has_signs: ClassVar[bool] = False

    def check(self, count: int, event: tuple[int, ...], process: Process) -> None:
        """Raise ValueError where the start does not fit samples with the ids ``0 .. count - 1``; called outside ``jit``."""
        if process.chart.signed and not self.has_signs:
            raise ValueError(
                f"sample.start = {type(self).__name__} for data of both signs: expected starts.Signed(start, pattern), "
                "since the process keeps signs and does not draw them"
            )
        if self.has_signs and not process.chart.signed:
            raise ValueError(f"sample.start has signs, under {process!r}: expected a process with signed=True")
        self.check_arrays(count, event)

    def check_arrays(self, count: int, event: tuple[int, ...]) -> None:
        """Raise ValueError where an array of the start is too short or of another shape."""
        return None

    def signs(self, ids: Array, event: tuple[int, ...]) -> Array | None:
        """Signs that the samples keep from beginning to end, ``(batch, *event)``, or None where all are positive."""
        return None

    def on_grid(
        self, process: Process, times: np.ndarray, model: Model | None = None, cond: Pytree = None
    ) -> tuple[Start, np.ndarray]:
        """What begins at which part of the host float64 grid: itself at all of it, unless a start skips ahead.

        ``model`` and ``cond`` are what is about to be sampled, where that is known: a start may warn that it does not suit.
        """
        return self, times

    def suit(self, where: str, process: Process, t: float, model: Model) -> None:
        """Warn where the start is known not to be the law of what ``model`` noises to the host time ``t``."""
        return None

    @abc.abstractmethod
    def draw(self, keys: Key, ids: Array, process: Process, t: Array, event: tuple[int, ...]) -> Array:
        """One point of the chart per key, ``(batch, *event)``, at the first grid time ``t``."""

    def log_weight(self, y: Array, process: Process, t: Array, cond: Pytree = None) -> Array:
        """Log-weights of points from ``draw`` where another law is wanted, ``(batch,)``; zero where it is the law itself."""
        return jnp.zeros(len(y), y.dtype)

    @abc.abstractmethod
    def log_prob(self, y: Array, process: Process, t: Array) -> Array:
        """The log-density of ``draw``, ``(batch,)``."""


def require_rows(name: str, array: Array, count: int) -> None:
    """Raise ValueError where an array has fewer than ``count`` rows."""
    if len(array) < count:
        raise ValueError(f"{name} has {len(array)} rows: expected one for each sample id, so at least {count}")


def require_finite(name: str, array: Array | float) -> None:
    """Raise ValueError where an array has values that are not finite real numbers."""
    require_real(name, array)
    if bad := int(np.sum(~np.isfinite(on_host(array)))):
        raise ValueError(f"{name} has {bad} values that are not finite: expected none")
