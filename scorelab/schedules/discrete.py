"""Tabulated schedules: the noise levels of a discrete chain of steps, joined between them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Coefficient, Time
from scorelab.schedules.base import GaussianSchedule, floating, namespace
from scorelab.validation import require_choice, require_int, require_number

# The largest beta of the cosine recipe.
_CAP = 0.999


@dataclass(frozen=True, kw_only=True)
class Discrete(GaussianSchedule):
    r"""The levels of a discrete chain: :math:`\alpha_i^2 = \bar\alpha_i`, :math:`\sigma_i^2 = 1-\bar\alpha_i` at :math:`t = i`.

    Time is the index, from 0 to N - 1. Between two levels :math:`\lambda = \log(\alpha^2/\sigma^2)` is linear in ``t``, and goes on
    beyond both ends with the slope there; a grid stays inside. Clean data are at ``t = -inf``, as under
    :class:`scorelab.schedules.VE`: every grid ends with a denoising step. The slope of the log-SNR is constant between two levels,
    so adaptive solvers meet a kink at each.

    A recipe gives the betas of :math:`\bar\alpha_i = \prod_{j\le i}(1-\beta_j)`:

    - ``"linear"``: :math:`\beta_j = b_0 + \tfrac{j}{N-1}(b_1-b_0)` (Ho et al. 2020, arXiv 2006.11239);
    - ``"scaled_linear"``: :math:`\sqrt{\beta_j} = \sqrt{b_0} + \tfrac{j}{N-1}(\sqrt{b_1}-\sqrt{b_0})` (Stable Diffusion);
    - ``"squaredcos_cap_v2"``: :math:`\beta_j = \min(1 - f(\tfrac{j+1}{N})/f(\tfrac jN),\,0.999)` with
      :math:`f(u) = \cos^2(\tfrac{\pi}{2}\tfrac{u+0.008}{1.008})` (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17).

    Attributes:
        alphas_cumprod: the name of a recipe, ``"linear"``, ``"scaled_linear"`` or ``"squaredcos_cap_v2"``; or the numbers
            :math:`\bar\alpha_i` themselves, three or more, decreasing, in (0, 1), as any array or sequence.
        beta_start: :math:`b_0` of the linear recipes, 1e-4 unless given.
        beta_end: :math:`b_1` of the linear recipes, 0.02 unless given.
        steps: N of a recipe, 1000 unless given; the number of numbers otherwise.
        zero_terminal: move the levels so that the last one is pure noise,
            :math:`\alpha_i \leftarrow (\alpha_i-\alpha_{N-1})\,\alpha_0/(\alpha_0-\alpha_{N-1})` (Lin et al. 2024, arXiv
            2305.08891, algorithm 1). Between the last two levels :math:`\alpha/\sigma` is linear then, and nothing lies beyond.
    """

    alphas_cumprod: str | tuple[float, ...] = "linear"
    beta_start: float | None = None
    beta_end: float | None = None
    steps: int | None = None
    zero_terminal: bool = False

    def __post_init__(self):
        require_choice(self, (True, False), zero_terminal=self.zero_terminal)
        numbers = not isinstance(self.alphas_cumprod, str)
        if numbers:
            object.__setattr__(self, "alphas_cumprod", _levels(self.alphas_cumprod))
        else:
            require_choice(self, tuple(_RECIPES), alphas_cumprod=self.alphas_cumprod)
        steps = len(self.alphas_cumprod) if numbers else 1000 if self.steps is None else self.steps
        if numbers and self.steps not in (None, steps):
            raise ValueError(f"Discrete.steps = {self.steps!r} with {steps} numbers in alphas_cumprod: expected None")
        object.__setattr__(self, "steps", steps)
        require_int(self, 3, steps=self.steps)
        linear = self.alphas_cumprod in ("linear", "scaled_linear")
        for name, usual in (("beta_start", 1e-4), ("beta_end", 0.02)):
            value = getattr(self, name)
            if linear:
                object.__setattr__(self, name, usual if value is None else value)
                require_number(self, 1e-12, 1 - 1e-12, **{name: getattr(self, name)})
            elif value is not None:
                raise ValueError(f"Discrete.{name} = {value!r}: expected None, since only the linear recipes have it")
        _table(self)

    def __repr__(self):
        """With the first and the last of many numbers."""
        named, values = {name: repr(getattr(self, name)) for name in self.__dataclass_fields__}, self.alphas_cumprod
        if isinstance(values, tuple) and len(values) > 8:
            named["alphas_cumprod"] = f"({values[0]!r}, {values[1]!r}, ..., {values[-1]!r})"
        return f"Discrete({', '.join(f'{name}={value}' for name, value in named.items())})"

    @property
    def t_min(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]: read only, as a frozen field
        """Zero, the first level."""
        return 0.0

    @property
    def t_max(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """N - 1, the last level."""
        return float(_table(self).last)

    @property
    def t_end(self):
        """None, since the noise grows on; the last level where that is pure noise."""
        return self.t_max if self.zero_terminal else math.inf

    def check_grid(self, where: str, times: np.ndarray) -> None:
        """ValueError for times outside the table, up to the rounding of an inverse, that are not the clean one."""
        slack = 1e-9 * self.t_max
        wrong = (times > self.t_max + slack) | ((times < -slack) & (times != self.clean_time))
        if np.any(wrong):
            raise ValueError(
                f"{where} has t = {times[wrong][0]:.6g} under {self!r}: expected indices of its {self.steps} levels, which count "
                f"from 0 to {self.t_max:g}, and besides only the time of clean data, {self.clean_time:g}"
            )

    def levels(self) -> np.ndarray:
        r""":math:`\bar\alpha_i`, ``(N,)`` float64."""
        return _table(self).alpha ** 2

    def log_snr(self, t: Time) -> Coefficient:
        place = _Place.of(self, t)
        inner = place.log_snr - place.growth
        if not self.zero_terminal:
            return inner
        xp = namespace(t)
        with np.errstate(divide="ignore", invalid="ignore"):
            return xp.where(place.ends, place.log_snr + 2 * xp.log(place.left), inner)

    def time(self, log_snr: Time) -> Coefficient:
        xp, table, value = namespace(log_snr), _table(self), floating(log_snr)
        known, slope = (xp.asarray(column, value.dtype) for column in (table.log_snr, table.slope))
        index = xp.clip(xp.searchsorted(-known, -value, side="right") - 1, 0, table.last - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            inner = index + (value - known[index]) / slope[index]
            if not self.zero_terminal:
                return inner
            return xp.where(index == table.last - 1, index + 1 - xp.exp((value - known[index]) / 2), inner)

    def alpha(self, t: Time) -> Coefficient:
        return _Place.of(self, t).moved(self.zero_terminal)[0]

    def sigma(self, t: Time) -> Coefficient:
        """See the class; from the level below, since the exponential of a log-SNR of 10 has lost a digit."""
        return _Place.of(self, t).moved(self.zero_terminal)[1]

    def log_alpha(self, t: Time) -> Coefficient:
        with np.errstate(divide="ignore"):
            return namespace(t).log(self.alpha(t))

    def scale(self, t: Time) -> Coefficient:
        """``alpha``; where the last level has none, ``alpha + sigma``, in which the path is straight as well."""
        return self.alpha(t) + self.sigma(t) if self.zero_terminal else self.alpha(t)


class _Table(NamedTuple):
    """What is known at the levels ``(N,)``, and of the log-SNR between them ``(N - 1,)``; the last slope of pure noise is 0."""

    alpha: np.ndarray
    sigma: np.ndarray
    log_snr: np.ndarray
    slope: np.ndarray

    @property
    def last(self) -> int:
        """The index of the last level."""
        return len(self.alpha) - 1


class _Place(NamedTuple):
    """Where times lie in a table.

    Attributes:
        alpha: of the level below (of the first or last but one beyond the ends).
        sigma: the same.
        log_snr: the same.
        growth: by how much the log-SNR is lower than there.
        left: the share of the way to the next level that is left.
        ends: True between the last two levels.
    """

    alpha: Any
    sigma: Any
    log_snr: Any
    growth: Any
    left: Any
    ends: Any

    @classmethod
    def of(cls, schedule: Discrete, t: Time) -> _Place:
        xp, table, t = namespace(t), _table(schedule), floating(t)
        index = xp.clip(xp.floor(t), 0, table.last - 1).astype(np.int32)
        take = lambda column: (jnp.asarray(column, t.dtype) if isinstance(t, jax.Array) else column)[index]
        ends = index == table.last - 1
        further = t - index
        growth = -take(table.slope) * (xp.where(ends, 0.0, further) if schedule.zero_terminal else further)
        return cls(take(table.alpha), take(table.sigma), take(table.log_snr), growth, 1 - further, ends)

    def moved(self, zero_terminal: bool) -> tuple[Any, Any]:
        r"""Signal and noise, :math:`\alpha_i(1+c)` and :math:`\sigma_i(1+c')`: a small ``c`` costs no digit in float32."""
        xp = namespace(self.alpha)
        with np.errstate(invalid="ignore", over="ignore"):
            # alpha^2 + sigma^2 is one again; between the last two levels the ratio goes to zero linearly.
            log_root = xp.log1p(self.sigma**2 * xp.expm1(self.growth)) / 2
            signal, noise = xp.expm1(-log_root), xp.expm1(self.growth / 2 - log_root)
            if zero_terminal:
                log_root = xp.log1p(self.alpha**2 * (self.left**2 - 1)) / 2
                signal = xp.where(self.ends, self.left * xp.exp(-log_root) - 1, signal)
                noise = xp.where(self.ends, xp.expm1(-log_root), noise)
        return self.alpha + self.alpha * signal, self.sigma + self.sigma * noise


def _linear(start: float, end: float, steps: int) -> np.ndarray:
    return np.linspace(start, end, steps)


def _scaled(start: float, end: float, steps: int) -> np.ndarray:
    return np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2


def _cosine(start: None, end: None, steps: int) -> np.ndarray:
    bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - bar[1:] / bar[:-1], _CAP)


# The betas of each recipe; the keys are the accepted names.
_RECIPES = {"linear": _linear, "scaled_linear": _scaled, "squaredcos_cap_v2": _cosine}


def _levels(values: Any) -> tuple[float, ...]:
    """Given numbers as floats; ValueError for what are none, or not decreasing in (0, 1)."""
    try:
        found = np.asarray(values)
        found = np.zeros(0) if np.iscomplexobj(found) else found.astype(np.float64)
    except (TypeError, ValueError):  # what is no array of numbers, or has no values inside jit
        found = np.zeros(0)
    if found.ndim != 1 or len(found) < 3 or not np.all((found > 0) & (found < 1)) or not np.all(np.diff(found) < 0):
        raise ValueError(
            f"Discrete.alphas_cumprod = {values!r:.200}: expected one of {', '.join(map(repr, _RECIPES))}, or three or more "
            "decreasing numbers in (0, 1), such as tuple(scheduler.alphas_cumprod.tolist())"
        )
    return tuple(found.tolist())


@functools.lru_cache(maxsize=64)
def _table(schedule: Discrete) -> _Table:
    """The levels of a schedule in float64; equal schedules share them."""
    kind = schedule.alphas_cumprod
    if isinstance(kind, str):
        betas = _RECIPES[kind](schedule.beta_start, schedule.beta_end, schedule.steps)  # pyright: ignore[reportArgumentType]
        # In logarithms: 1 - product would lose the digits of small betas.
        log_bar = np.cumsum(np.log1p(-betas))
    else:
        log_bar = np.log(np.array(kind))
    alpha, sigma = np.exp(log_bar / 2), np.sqrt(-np.expm1(log_bar))
    if schedule.zero_terminal:
        # 1 - alpha is what is moved without cancellation: sigma^2 = (1 - alpha)(1 + alpha).
        first, last = alpha[0], alpha[-1]
        moved = (alpha - last) * (first / (first - last))
        below = sigma**2 / (1 + alpha) + last * (first - alpha) / (first - last)
        alpha, sigma = moved, np.sqrt(below * (1 + moved))
    with np.errstate(divide="ignore"):
        log_snr = 2 * (np.log(alpha) - np.log(sigma))
    slope = np.diff(log_snr)
    if schedule.zero_terminal:
        slope[-1] = 0.0  # not used: the ratio is linear there
    if not np.all(np.diff(alpha) < 0) or not np.all(slope[: len(slope) - schedule.zero_terminal] < 0):
        raise ValueError(f"{schedule!r} has levels that do not decrease: expected beta_end of at least beta_start")
    return _Table(alpha, sigma, log_snr, slope)
