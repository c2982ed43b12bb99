r"""Time grids: host float64 arrays from noise to data, built once.

A grid of ``steps`` steps has ``steps + 1`` decreasing times. By default the last one is the time of clean data, so
the last step lands on :math:`\sigma = 0`; with ``clean=False`` it is ``t_min``. ``t_max`` and ``t_min`` default to
the process's own range. Where clean data is not at a usable end of the spacing (noise levels spaced by ratio, or
``VE``, whose clean time is ``-inf``), the first ``steps`` times run from ``t_max`` to ``t_min`` and the clean time is
appended, as EDM and k-diffusion do.
"""

from __future__ import annotations

import abc
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from scorelab.arrays import Array
from scorelab.processes.base import Process
from scorelab.processes.joint import Joint
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.schedules.base import Schedule
from scorelab.validation import require_choice, require_int, require_number, require_positive, require_spec


class Grid(abc.ABC):
    """The base of all grids."""

    @abc.abstractmethod
    def times(self, process: Process) -> np.ndarray:
        """Strictly decreasing float64 times, ``(steps + 1,)``."""


@dataclass(frozen=True)
class Spaced(Grid):
    """A grid equally spaced in some coordinate of time; a new one states ``coordinate`` and ``inverse``.

    Attributes:
        process_type: the kind of process whose times have that coordinate.
    """

    process_type: ClassVar[type[Process]] = Process

    steps: int
    _: KW_ONLY
    t_max: float | None = None
    t_min: float | None = None
    clean: bool = True

    def __post_init__(self):
        require_int(self, 1, steps=self.steps)
        require_choice(self, (True, False), clean=self.clean)
        for name in ("t_max", "t_min"):
            if getattr(self, name) is not None:
                require_number(self, -math.inf, math.inf, **{name: getattr(self, name)})

    @abc.abstractmethod
    def coordinate(self, process: Any, t: float) -> Array | float:
        """The coordinate in which the times are equally spaced."""

    @abc.abstractmethod
    def inverse(self, process: Any, values: np.ndarray) -> np.ndarray:
        """Times from coordinates."""

    def times(self, process: Process) -> np.ndarray:
        require_spec(self, self.process_type, process=process)
        start = process.t_max if self.t_max is None else self.t_max
        end = process.t_min if self.t_min is None else self.t_min
        process.check_times(f"{type(self).__name__}.t_max", start)
        zero = process.clean_time
        if not zero <= end < start:
            raise ValueError(f"{self} has t_max = {start}, t_min = {end}: expected {zero} <= t_min < t_max")
        first = self._finite(process, "t_max", start)
        if not self.clean:
            ends, steps, tail = (start, end), self.steps, []
        elif math.isfinite(zero) and math.isfinite(self.coordinate(process, zero)) and not self.reaches_t_min:
            ends, steps, tail = (start, zero), self.steps, []
        else:
            ends, steps, tail = (start, end), self.steps - 1, [zero]
        if tail and end <= zero:
            raise ValueError(
                f"{self} has t_min = {end}: expected more than {zero}, the time of clean data, which is appended to this grid"
            )
        if steps == 0:
            return check_times(self, process, np.array([start, *tail]))
        last = self._finite(process, "t_min", ends[1])
        inner = self.inverse(process, np.linspace(first, last, steps + 1))
        inner[0], inner[-1] = ends  # the ends exactly, whatever the inverse rounds to
        return check_times(self, process, np.concatenate([inner, tail]))

    @property
    def reaches_t_min(self) -> bool:
        """True where the spacing is defined by both noise levels and the clean time is always appended."""
        return False

    def _finite(self, process: Process, name: str, t: float) -> float:
        with np.errstate(divide="ignore"):
            value = float(self.coordinate(process, np.float64(t)))
        if not math.isfinite(value):
            # Only a time that this grid can begin at: outside the unit interval Arcsine has none.
            named = name == "t_max" and t > 0 and math.isfinite(self.coordinate(process, np.float64(just_below(t))))
            inside = f" (such as t_max={just_below(t):g})" if named else ""
            raise ValueError(
                f"{type(self).__name__}.{name} = {t} has an infinite noise level under {process!r}: "
                f"pass a {name} inside the open range{inside}, or use a Uniform grid"
            )
        return value


@dataclass(frozen=True)
class Uniform(Spaced):
    """Equal steps in the process's own time."""

    def coordinate(self, process, t):
        """``t``."""
        return t

    def inverse(self, process, values):
        """``t``."""
        return values.copy()


@dataclass(frozen=True)
class Quadratic(Spaced):
    r"""Equal steps in :math:`\sqrt t`: denser towards the data."""

    def coordinate(self, process, t):
        r""":math:`\sqrt t`."""
        return np.sqrt(t) if t >= 0 else -np.inf

    def inverse(self, process, values):
        """The square."""
        return values**2


@dataclass(frozen=True)
class Arcsine(Spaced):
    r"""Equal steps in :math:`\arcsin\sqrt t` on the unit interval: dense at both ends, for interpolants between two narrow laws.

    The times are quantiles of :class:`scorelab.losses.ArcsineTimes`.
    """

    def coordinate(self, process, t):
        r""":math:`\arcsin\sqrt t`; infinite outside the unit interval, where it is none."""
        return np.arcsin(np.sqrt(t)) if 0 <= t <= 1 else np.inf

    def inverse(self, process, values):
        """The squared sine."""
        return np.sin(values) ** 2


@dataclass(frozen=True)
class LogSNR(Spaced):
    r"""Equal steps in :math:`\log(\alpha^2/\sigma^2)` from ``t_max`` to ``t_min``, then the clean time."""

    process_type = LinearGaussian

    @property
    def reaches_t_min(self) -> bool:
        return True

    def coordinate(self, process, t):
        """The log-SNR."""
        return process.log_snr(t)

    def inverse(self, process, values):
        """The schedule's inverse."""
        return np.asarray(process.schedule.time(values))


@dataclass(frozen=True)
class Karras(Spaced):
    r"""Equal steps in :math:`(\sigma/\alpha)^{1/\rho}` from ``t_max`` to ``t_min``, then clean (Karras et al. 2022, eq. 5)."""

    rho: float = 7.0

    process_type = LinearGaussian

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, rho=self.rho)

    @property
    def reaches_t_min(self) -> bool:
        return True

    def coordinate(self, process, t):
        r""":math:`(\sigma/\alpha)^{1/\rho}`."""
        return np.exp(-process.log_snr(t) / (2 * self.rho))

    def inverse(self, process, values):
        """The schedule's inverse."""
        return np.asarray(process.schedule.time(-2 * self.rho * np.log(values)))


@dataclass(frozen=True)
class Shifted(Grid):
    r"""Another grid with every log-SNR lower by :math:`2\log a`: more of its steps are spent where there is much noise.

    On rectified flow that is :math:`t \leftarrow a t/(1+(a-1)t)`, the shift of resolution of Esser et al. (2024), arXiv 2403.03206,
    eq. 23 (``shift`` of flow-matching schedulers; a dynamic one with :math:`\mu` is :math:`a = e^\mu`). On any other process it is
    the same change of noise, :math:`\sigma/\alpha \leftarrow a\,\sigma/\alpha`. Clean data and pure noise stay where they are.

    Attributes:
        grid: the grid that is shifted. Where it begins at a finite noise level, it has to begin lower than the process by the
            factor ``a``. With ``a < 1`` its last noise level has to lie above that at ``t_min`` by ``1 / a``.
        shift: ``a``, above 0; 1 for none. Below 1 the first noise level falls as well, unless it is infinite.
    """

    grid: Grid
    shift: float = 3.0

    def __post_init__(self):
        require_spec(self, Grid, grid=self.grid)
        require_positive(self, shift=self.shift)

    def times(self, process: Any) -> np.ndarray:
        require_spec(self, LinearGaussian, process=process)
        times = self.grid.times(process)
        with np.errstate(divide="ignore"):
            log_snr = np.asarray(process.log_snr(times), np.float64)
            moved = np.asarray(process.schedule.time(log_snr - 2 * math.log(self.shift)), np.float64)
            # Where the log-SNR is infinite nothing moves; elsewhere a shift of 1 leaves the digits of the grid.
            moved = np.where(np.isfinite(log_snr) & (self.shift != 1), moved, times)
            if moved[0] > process.t_max * (1 + 1e-9):
                first = float(process.schedule.time(process.log_snr(process.t_max) + 2 * math.log(self.shift)))
                raise ValueError(
                    f"Shifted.shift = {self.shift:g} moves the first time of {self.grid!r} to {moved[0]:.6g}, beyond t_max = "
                    f"{process.t_max:g} of {process!r}: expected a grid that begins at {first:.6g} or below (its t_max)"
                )
            most = float(process.log_snr(process.t_min))
            if self.shift < 1 and np.max(log_snr[np.isfinite(log_snr)], initial=-np.inf) - 2 * math.log(self.shift) > most + 1e-9:
                lowest = moved[np.isfinite(log_snr)][-1]
                last = float(process.schedule.time(most + 2 * math.log(self.shift)))
                raise ValueError(
                    f"Shifted.shift = {self.shift:g} moves the last noisy time of {self.grid!r} to {lowest:.6g}, below t_min = "
                    f"{process.t_min:g} of {process!r}: expected a grid whose last noisy time is {last:.6g} or above (its t_min)"
                )
        return check_times(self, process, moved)


@dataclass(frozen=True)
class Explicit(Grid):
    """The times as given, as a tuple.

    Attributes:
        values: strictly decreasing times.
        clean: go on to the time of clean data after them.
    """

    values: tuple[float, ...]
    clean: bool = False

    def __post_init__(self):
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        require_choice(self, (True, False), clean=self.clean)
        if len(self.values) + self.clean < 2 or not all(a > b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ValueError(f"Explicit.values = {self.values}: expected two or more strictly decreasing times")

    def times(self, process):
        return check_times(self, process, np.array([*self.values, *([process.clean_time] if self.clean else [])], np.float64))


def just_below(t: float) -> float:
    """A round time a hundredth below ``t > 0``, of which messages say that a grid may begin there."""
    return float(f"{0.99 * t:.3g}")


def check_times(grid: Grid, process: Process, times: np.ndarray) -> np.ndarray:
    """The times of a grid as float64, after a look at whether they can be walked.

    Raises:
        ValueError: fewer than two times, times that do not decrease, that lie outside the domain of the process or the table of
            its schedule, or at which it has no noise level that float32 can hold.
    """
    times = np.asarray(times, np.float64)
    name = f"{type(grid).__name__}.times"
    if times.ndim != 1 or len(times) < 2 or not np.all(times[:-1] > times[1:]):
        raise ValueError(f"{name} = {times}: expected two or more strictly decreasing times")
    for part in [part for _, part in process.parts] if isinstance(process, Joint) else [process]:
        if isinstance(schedule := getattr(part, "schedule", None), Schedule):
            schedule.check_grid(name, times)
    process.check_times(name, times)
    process.check_levels(name, times)
    working = times.astype(jax.dtypes.canonicalize_dtype(np.float64))
    if np.any(same := working[:-1] == working[1:]):
        t = times[:-1][same][0]
        raise ValueError(f"{name} has two times at {t:.9g} that are one number in {working.dtype}: expected times further apart")
    return times
