"""What a process is: what noise does to a batch, what it ends in, and where a walk back begins."""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, Pytree, is_traced


class Noised(NamedTuple):
    """A noised batch; every leaf but those of ``t`` has a leading axis of examples.

    Attributes:
        y: the noised points, in the space of the process.
        y0: the clean ones, in the same space.
        noise: what was drawn, in the form of the process: for a Gaussian one the standard normal ``eps``, shaped like ``y``.
        t: times, scalar or ``(batch,)``; of several parts by name.
        cond: what a model is asked under, or None.
        keys: one per example, for what an error needs of noise of its own; None where it needs none.
        extra: what else a loss has drawn.
    """

    y: Pytree
    y0: Pytree
    noise: Pytree
    t: Any
    cond: Pytree = None
    keys: Key | None = None
    extra: Pytree = None


class Process(abc.ABC):
    """What noise does; a new kind needs ``perturb`` and ``prior``, and times ``t_min`` and ``t_max``.

    Points are pytrees of arrays with a leading axis of examples: images, tokens, or several of them together.

    Attributes:
        t_min: the smallest time that is trained and sampled.
        t_max: the largest one, where sampling begins.
        open_end: nothing of the data is left at ``t_max``, which is therefore not trained.
        has_signs: the data has signs that are not part of ``y``, and sampling must be told them.
    """

    t_min: float
    t_max: float
    open_end: bool = False
    has_signs: bool = False

    @abc.abstractmethod
    def perturb(self, key: Key, batch: Pytree, t: Array | float) -> Noised:
        """Noise a batch of data to the times ``t``, scalar or ``(batch,)``."""

    @abc.abstractmethod
    def prior(self) -> Start:
        """The law that the process ends in, at the first time of a grid."""

    def encode(self, x: Pytree) -> Pytree:
        """Data to the space of the process, ``x -> y``."""
        return x

    def decode(self, y: Pytree) -> Pytree:
        """The space of the process to data, ``y -> x``."""
        return y

    @property
    def domain(self) -> tuple[float, float]:
        """The times at which the process is defined."""
        return self.t_min, self.t_max

    @property
    def clean_time(self) -> float:
        """The time of clean data; ``-inf`` where no finite time has that."""
        return self.domain[0]

    def check_levels(self, where: str, times: np.ndarray) -> None:
        """Raise ``ValueError`` for host times in the domain at which the working precision cannot hold the noise."""
        return None

    def check_times(self, where: str, t: Array | float) -> None:
        """Raise ``ValueError`` for times outside the domain; times inside ``jit`` have no value to see."""
        if is_traced(t):
            return
        times = np.asarray(t, np.float64)
        low, high = self.domain
        # An end of the range may have been rounded to float32.
        slack = 1e-6 * abs(high) if isinstance(t, jax.Array) and math.isfinite(high) else 0.0
        wrong = ~((times >= low - slack) & (times <= high + slack)) | (times == np.inf)
        if np.any(wrong):
            raise ValueError(
                f"{where} = {float(times[wrong].flat[0]):.6g}: expected times from {low:.6g} to {high:.6g}, the domain of {self!r}"
            )

    def checked(self, name: str, prediction: Any, y: Pytree) -> Any:
        """The prediction of the model ``name`` for ``y``, in the working precision; ValueError for one that does not fit ``y``."""
        return prediction


class Start(abc.ABC):
    """The law of ``y`` at the first grid time; a pytree. A new one needs ``draw`` and ``log_prob``.

    ``event`` is the shape of one point; for points of several parts it is ``((name, shape), ...)``.

    Attributes:
        has_signs: it says which signs the samples keep (:class:`scorelab.starts.Signed`).
    """

    has_signs: ClassVar[bool] = False

    def check(self, count: int, event: Any, process: Any) -> None:
        """Raise ValueError where the start does not fit samples with the ids ``0 .. count - 1``."""
        if process.has_signs and not self.has_signs:
            raise ValueError(
                f"sample.start = {type(self).__name__} for data of both signs: expected starts.Signed(start, pattern), "
                "since the process keeps signs and does not draw them"
            )
        if self.has_signs and not process.has_signs:
            raise ValueError(f"sample.start has signs, under {process!r}: expected a process with signed=True")
        self.check_arrays(count, event)

    def check_arrays(self, count: int, event: Any) -> None:
        """Raise ValueError where an array of the start is too short or of another shape; traced values are not looked at."""
        return None

    def signs(self, ids: Array, event: Any) -> Pytree | None:
        """Signs that the samples keep from beginning to end, shaped like them, or None where all are positive."""
        return None

    def on_grid(self, process: Any, times: np.ndarray) -> tuple[Start, np.ndarray]:
        """What begins at which part of the host float64 grid: itself at all of it, unless a start skips ahead."""
        return self, times

    def suit(self, where: str, model: Any, t: float, cond: Pytree = None) -> None:
        """Warn where the start is known not to be the law of what ``model`` under ``cond`` noises to the host time ``t``."""
        return None

    @property
    def given(self) -> Array | None:
        """The points that are given, None where they are drawn."""
        return None

    def part(self, name: str) -> Start:
        """Where the part ``name`` of a joint point begins."""
        return self

    def is_prior(self, process: Any) -> bool:
        """Whether it is the prior of ``process``, noise that says nothing of the data."""
        return type(self) is type(process.prior())

    @abc.abstractmethod
    def draw(self, keys: Key, ids: Array, process: Any, t: Array, event: Any) -> Pytree:
        """One point per key, ``(batch, *event)``, at the first grid time ``t``."""

    def weighs(self, process: Any) -> bool:
        """Whether another law than that of ``draw`` is wanted: one that has ``log_weight`` says so."""
        return False

    def log_weight(self, y: Pytree, process: Any, t: Array | float, cond: Pytree = None) -> Array:
        """Log-weights of points from ``draw``, ``(batch,)``, with which they are of the law that is wanted; else zero."""
        return jnp.zeros(len(jax.tree.leaves(y)[0]), jnp.result_type(t))

    @abc.abstractmethod
    def log_prob(self, y: Pytree, process: Any, t: Array | float) -> Array:
        """The log-density of ``draw``, ``(batch,)``."""


def require_same_process(where: str, **processes: Process) -> None:
    """Raise ``ValueError`` naming the first two of ``processes`` (argument name to process) that differ.

    A model answers for its own process only: under another one its numbers look right and are wrong.
    """
    (first, process), *others = processes.items()
    for name, other in others:
        if other != process:
            one, two = (which if which == "process" else f"{which}.process" for which in (first, name))
            raise ValueError(f"{where}: {one} = {process!r} and {two} = {other!r}: expected the same process")
