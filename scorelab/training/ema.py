r"""Averages of the parameters along training: exponential ones, and power functions of time made afterwards.

An average spec is three functions: ``init(params)``, ``update(average, params, step)`` and
``params(average)``. Both specs here move by
:math:`\bar\theta \leftarrow \bar\theta + (1-\beta)(\theta-\bar\theta)` with a :math:`\beta` that depends on
the step only, so an average is a pytree shaped like the parameters and resumes from it exactly.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from scorelab.arrays import Array, Pytree
from scorelab.validation import require_choice, require_int, require_number, require_positive

# The width of a flat profile, the largest there is.
_FLAT = 1 / math.sqrt(12)
# How well a float32 average of many updates is known, relative; and the sum of absolute weights that brings that to 1e-4.
_ROUNDING, _LARGEST = 1e-6, 100.0


class Average(abc.ABC):
    """What a learner needs of an average; specs are hashable."""

    @abc.abstractmethod
    def init(self, params: Pytree) -> Pytree:
        """The average before the first update, in arrays of its own."""

    @abc.abstractmethod
    def update(self, average: Pytree, params: Pytree, step: Int[Array, ""] | int) -> Pytree:
        """The average after update number ``step`` (1, 2, ...) has produced ``params``."""

    @abc.abstractmethod
    def params(self, average: Pytree) -> Pytree:
        """The averaged parameters."""


def average_specs(owner: object, ema: Average | tuple[Average, ...] | None) -> tuple[Average, ...]:
    """A field ``ema`` as a tuple; TypeError for what is no average."""
    specs = () if ema is None else ema if isinstance(ema, tuple) else (ema,)
    if not all(isinstance(spec, Average) for spec in specs):
        raise TypeError(f"{type(owner).__name__}.ema = {ema!r}: expected EMA(), PowerEMA(), a tuple of them, or None")
    return specs


def moved_averages(
    specs: tuple[Average, ...],
    averages: tuple[Pytree, ...],
    params: Pytree,
    step: Int[Array, ""] | int,
    before: Pytree,
    after: Pytree,
) -> tuple[Pytree, ...]:
    """The averages after step number ``step``, which took the optimiser's state from ``before`` to ``after``.

    Averages count updates of the parameters. ``optax.MultiSteps`` makes one from several steps and counts them itself: on the
    others the averages stand still.
    """
    update = lambda number: tuple(s.update(a, params, number) for s, a in zip(specs, averages, strict=True))
    old, new = _accumulated(before), _accumulated(after)
    if not new:
        return update(step)
    # With several of them, over parts of the parameters, an update of any is one.
    old, new = (jnp.max(jnp.stack(counts)) for counts in (old, new))
    return jax.tree.map(lambda a, b: jnp.where(new > old, a, b), update(jnp.maximum(new, 1)), averages)


def _accumulated(opt_state: Pytree) -> list[Int[Array, ""]]:
    """The numbers of updates that the ``optax.MultiSteps`` inside a state have made."""
    is_one = lambda leaf: isinstance(leaf, optax.MultiStepsState)
    return [leaf.gradient_step for leaf in jax.tree.leaves(opt_state, is_leaf=is_one) if is_one(leaf)]


def _move(average: Pytree, params: Pytree, rate: Float[Array, ""] | float) -> Pytree:
    """``average + rate (params - average)`` in at least float32; anything but floating point is copied."""

    def leaf(a, p):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return p
        return a + jnp.asarray(rate, a.dtype) * (p.astype(a.dtype) - a)

    return jax.tree.map(leaf, average, params)


def _copy(params: Pytree) -> Pytree:
    # Own arrays (a donated state must not hold one buffer twice), and float32 for bfloat16 parameters: a rate
    # of 1e-3 is below half a unit in the last place of bfloat16, so the average would stand still.
    def leaf(p):
        low = jnp.issubdtype(p.dtype, jnp.floating) and jnp.finfo(p.dtype).bits < 32
        return jnp.array(p, jnp.float32 if low else p.dtype, copy=True)

    return jax.tree.map(leaf, params)


@dataclass(frozen=True, kw_only=True)
class EMA(Average):
    r"""Exponential moving average, :math:`\beta_t = \min(\mathrm{decay}, \frac{1+t}{10+t})` after ``t``
    updates.

    Attributes:
        decay: :math:`\beta` in the long run; the average spans about ``1 / (1 - decay)`` steps.
        warmup: take the minimum with :math:`(1+t)/(10+t)`, which forgets the initial parameters quickly.
            Without it :math:`\beta` is ``decay`` from the first step on.
    """

    decay: float = 0.999
    warmup: bool = True

    def __post_init__(self):
        require_choice(self, (True, False), warmup=self.warmup)
        require_number(self, 0.0, 1.0, decay=self.decay)
        if self.decay == 1:
            raise ValueError(f"EMA.decay = {self.decay!r}: expected a number below 1, or the average never moves")

    def init(self, params: Pytree) -> Pytree:
        """A copy of the parameters."""
        return _copy(params)

    def update(self, average: Pytree, params: Pytree, step: Int[Array, ""] | int) -> Pytree:
        """See the class; ``step`` counts from 1, so ``t = step - 1`` updates are in the average already."""
        rate = 1.0 - self.decay
        if self.warmup:
            rate = jnp.maximum(rate, 9.0 / (9.0 + step))
        return _move(average, params, rate)

    def params(self, average: Pytree) -> Pytree:
        """The average itself."""
        return average


class Snapshot(NamedTuple):
    """Averaged parameters at a step, on the host, with the relative width ``std`` of their profile."""

    step: int
    std: float
    params: Pytree


@dataclass(frozen=True, kw_only=True)
class PowerEMA(Average):
    r"""Averages with power-function profiles, from which any other width is made after training (EDM2).

    .. math:: \bar\theta_\gamma(t) = \frac{\gamma+1}{t^{\gamma+1}}\int_0^t \tau^\gamma\theta(\tau)\,d\tau,
              \qquad \beta_t = (1-1/t)^{\gamma+1} .

    The width is given as the relative standard deviation of the profile,
    :math:`\sigma_{rel} = \sqrt{\gamma+1}\,/\,\big((\gamma+2)\sqrt{\gamma+3}\big)`: 0.10 spans the last
    quarter of training, say, however long it was. :math:`\beta_1 = 0`, so the initial parameters have no
    weight. Karras et al. (2024), arXiv 2312.02696, section 3 and appendix C.

    Attributes:
        stds: the widths to track, each in (0, 0.288]; two are enough to synthesise others near them from
            stored snapshots.
    """

    stds: tuple[float, ...] = (0.05, 0.10)

    def __post_init__(self):
        if not isinstance(self.stds, Iterable):
            raise TypeError(f"PowerEMA.stds = {self.stds!r}: expected a tuple of widths, such as (0.05, 0.10)")
        object.__setattr__(self, "stds", tuple(self.stds))
        if not self.stds:
            raise ValueError("PowerEMA.stds = (): expected at least one width")
        for std in self.stds:
            power_exponent(std)

    def init(self, params: Pytree) -> tuple[Pytree, ...]:
        """One copy of the parameters for each width."""
        return tuple(_copy(params) for _ in self.stds)

    def update(self, average: tuple[Pytree, ...], params: Pytree, step: Int[Array, ""] | int) -> tuple[Pytree, ...]:
        """See the class; ``step`` counts from 1."""
        step = jnp.asarray(step, jnp.result_type(float))
        # 1 - (1 - 1/t)^(g+1) without cancellation; at t = 1 the logarithm is -inf and the rate exactly 1.
        log_beta = jnp.log1p(-1 / step)
        rates = [-jnp.expm1((power_exponent(std) + 1) * log_beta) for std in self.stds]
        return tuple(_move(a, params, rate) for a, rate in zip(average, rates, strict=True))

    def params(self, average: tuple[Pytree, ...]) -> Pytree:
        """The average of the first width."""
        return average[0]

    def snapshots(self, average: tuple[Pytree, ...], step: int) -> list[Snapshot]:
        """The averages as host copies, to be stored along training for :func:`synthesise`."""
        # np.array: on the CPU device_get returns views of buffers that the next training step reuses.
        host = jax.tree.map(np.array, jax.device_get(average))
        return [Snapshot(int(step), std, params) for std, params in zip(self.stds, host, strict=True)]


def power_exponent(std: float) -> float:
    r""":math:`\gamma \ge 0` of the profile with relative width ``std``.

    The largest root of :math:`\gamma^3 + 7\gamma^2 + (16-\sigma^{-2})\gamma + 12 - \sigma^{-2} = 0`.
    ``ValueError`` outside (0, 0.288]: a flat profile (:math:`\gamma=0`) has width :math:`1/\sqrt{12}`.
    """
    number = std.item() if isinstance(std, np.generic) else std
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= _FLAT:
        raise ValueError(f"relative width of a power average = {std!r}: expected a number in (0, 0.288]")
    inverse = float(number) ** -2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def profile_product(step_a: ArrayLike, std_a: ArrayLike, step_b: ArrayLike, std_b: ArrayLike) -> np.ndarray:
    r"""Inner product of two profiles, :math:`\int_0^{\min(a,b)} p_a(\tau)p_b(\tau)\,d\tau`, broadcasting;
    float64.

    .. math:: \frac{(\gamma_a+1)(\gamma_b+1)}{\gamma_a+\gamma_b+1}\,
              \frac{\min(a,b)^{\gamma_a+\gamma_b+1}}{a^{\gamma_a+1}\,b^{\gamma_b+1}} .
    """
    a, b = np.asarray(step_a, np.float64), np.asarray(step_b, np.float64)
    for name, steps in {"step_a": a, "step_b": b}.items():
        if not np.all((steps > 0) & np.isfinite(steps)):
            raise ValueError(f"profile_product.{name} = {steps.tolist()}: expected finite steps above 0")
    g_a, g_b = (np.vectorize(power_exponent, otypes=[np.float64])(std) for std in (std_a, std_b))
    low = np.minimum(a, b)
    # Ratios before powers: exponents reach 400 and steps 10^6.
    shape = (low / a) ** (g_a + 1) * (low / b) ** (g_b + 1) / low
    return (g_a + 1) * (g_b + 1) / (g_a + g_b + 1) * shape


def synthesis_weights(steps: ArrayLike, stds: ArrayLike, target_std: float, step: int) -> Float[np.ndarray, " n"]:
    r"""Weights ``w`` that minimise :math:`\int(\sum_i w_i p_i - p)^2 d\tau` subject to
    :math:`\sum_i w_i = 1`.

    The constraint is not in the paper: it makes the part of the parameters that does not move exact, which
    lowered the error of slowly drifting parameters ten-fold. Shapes: ``steps`` and ``stds`` are ``(n,)``, and
    so is the result, in float64.
    """
    return _fit(steps, stds, [target_std], step)[0][:, 0]


def synthesis_residual(steps: ArrayLike, stds: ArrayLike, target_std: float, step: int) -> float:
    r"""How far the best combination of the snapshots' profiles is from the profile wanted:
    :math:`r = \lVert\sum_i w_i p_i - p\rVert_2 / \lVert p\rVert_2`.

    It bounds the error of :func:`synthesise`. With ``s`` the standard deviation of a parameter over the steps
    up to ``step`` (Cauchy and Schwarz; what does not move has no error, since the weights sum to one),

    .. math:: |\text{error}| \le r\,\frac{\gamma+1}{\sqrt{2\gamma+1}}\,s .

    Zero (up to 1e-7) for a width and a step that are stored. Arguments as in :func:`synthesis_weights`.
    """
    return float(_fit(steps, stds, [target_std], step)[1][0])


def _fit(
    steps: ArrayLike, stds: ArrayLike, widths: ArrayLike, step: int
) -> tuple[Float[np.ndarray, " n k"], Float[np.ndarray, " k"]]:
    """Weights ``(n, k)`` and relative residuals ``(k,)`` for ``k`` widths at one step."""
    require_int("synthesis", 1, step=step)
    steps, stds = np.asarray(steps, np.float64), np.asarray(stds, np.float64)
    if steps.ndim != 1 or not len(steps) or stds.shape != steps.shape:
        raise ValueError(f"synthesis: steps has shape {steps.shape} and stds {stds.shape}: expected (n,) and (n,) with n >= 1")
    if not np.all((steps >= 1) & (steps == np.floor(steps)) & np.isfinite(steps)):
        raise ValueError(f"synthesis.steps = {steps.tolist()}: expected integers >= 1, the steps of the snapshots")
    gram = profile_product(steps[:, None], stds[:, None], steps[None], stds[None])
    targets = profile_product(steps[:, None], stds[:, None], step, np.asarray(widths)[None])
    # Lagrange conditions, scaled to a unit diagonal (the Gram matrix spans orders of magnitude in 1/step).
    # Least squares, because profiles of neighbouring snapshots are nearly parallel; a ridge of the squared rounding
    # keeps their weights from growing against each other for less than the averages are known to.
    scale = np.sqrt(np.diag(gram))
    n = len(steps)
    system, right = np.zeros((n + 1, n + 1)), np.ones((n + 1, targets.shape[1]))
    system[:n, :n] = gram / np.outer(scale, scale) + _ROUNDING**2 * np.eye(n)
    system[n, :n] = system[:n, n] = scale.max() / scale
    right[:n] = targets / scale[:, None]
    right[n] = scale.max()
    weights = np.linalg.lstsq(system, right, rcond=1e-13)[0][:n] / scale[:, None]
    own = profile_product(step, widths, step, widths)
    squares = np.sum(weights * (gram @ weights - 2 * targets), axis=0) + own
    return weights, np.sqrt(np.maximum(squares, 0.0) / own)


def synthesise(snapshots: Iterable[Snapshot], target_std: float, step: int, *, max_residual: float = 0.1) -> Pytree:
    """Parameters averaged with a width that was not tracked, from stored snapshots of widths that were.

    Least squares between profiles (Karras et al. 2024, appendix C.3), solved and summed in float64 on the
    host. What the snapshots cannot represent is refused: a width far from those tracked, or a step at which
    nothing was stored. :func:`synthesis_residual` says how good a fit is, and what error follows from it. A
    dozen snapshots spread evenly over training, of the widths 0.05 and 0.10, represent widths from 0.025 to
    0.24 at the last step, those between 0.04 and 0.15 with a residual below 0.02.

    Args:
        snapshots: from :meth:`PowerEMA.snapshots` at several steps, in any order; those after ``step`` are
            left out, and those at step 0, where nothing has been averaged.
        target_std: the relative width wanted, in (0, 0.288].
        step: the step at which the average is taken, at least 1.
        max_residual: the largest residual that is accepted.

    Raises:
        ValueError: no snapshot at or before ``step``, a width outside its range, a residual above
            ``max_residual`` (the message names what is represented), weights so large that they multiply the
            rounding of the averages (tracked widths that nearly agree), snapshots that contradict each other or
            hold parameters of different shapes.
    """
    require_int("synthesise", 1, step=step)
    require_positive("synthesise", max_residual=max_residual)
    step = int(step)
    snapshots = sorted(map(_checked, snapshots), key=lambda s: s[:2])
    used = _distinct([s for s in snapshots if 1 <= s.step <= step])
    if not used:
        found = sorted({s.step for s in snapshots})
        raise ValueError(f"snapshots are at steps {found}: expected at least one at or before step = {step}")
    steps, stds = [s.step for s in used], [s.std for s in used]
    weights = synthesis_weights(steps, stds, target_std, step)
    residual = synthesis_residual(steps, stds, target_std, step)
    if residual > max_residual:
        raise ValueError(
            f"synthesise.target_std = {target_std:g} at step = {step}: the snapshots represent this profile with a "
            f"relative error of {residual:.2g}, above max_residual = {max_residual:g}; "
            + _represented(steps, stds, target_std, step, max_residual)
        )
    if (size := np.abs(weights).sum()) > _LARGEST:
        raise ValueError(
            f"synthesise.target_std = {target_std:g} at step = {step}: this takes weights of {size:.3g} in all, which multiply "
            f"the rounding of the stored averages; expected at most {_LARGEST:g}: a width nearer to those tracked, or tracked "
            "widths further apart (such as 0.05 and 0.1)"
        )

    def combine(*leaves):
        leaves = [np.asarray(leaf) for leaf in leaves]
        if not jnp.issubdtype(leaves[0].dtype, jnp.floating):
            return leaves[-1]
        total = sum(w * leaf.astype(np.float64) for w, leaf in zip(weights, leaves, strict=True))
        return np.asarray(total).astype(leaves[0].dtype)

    return jax.tree.map(combine, *(s.params for s in used))


def _checked(s: Snapshot) -> Snapshot:
    """A snapshot with plain numbers; ValueError for a step that is none, and for parameters that are not finite."""
    step = np.asarray(s.step).item()
    require_int("Snapshot", 0, step=step)
    for path, leaf in jax.tree.leaves_with_path(s.params):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"snapshot at step {step} has values in params{jax.tree_util.keystr(path)} that are not finite")
    return Snapshot(step, float(s.std), s.params)


def _distinct(snapshots: list[Snapshot]) -> list[Snapshot]:
    """One of each step and width, of one shape; ValueError where equal ones hold different parameters."""
    kept: list[Snapshot] = []
    for s in snapshots:
        if kept and jax.tree.map(np.shape, kept[0].params) != jax.tree.map(np.shape, s.params):
            raise ValueError(
                f"snapshots at step {s.step} and {kept[0].step} hold parameters of other names or shapes: expected one training"
            )
        if not kept or kept[-1][:2] != s[:2]:
            kept.append(s)
        elif not all(map(np.array_equal, jax.tree.leaves(kept[-1].params), jax.tree.leaves(s.params))):
            raise ValueError(f"snapshots at step {s.step} of width {s.std:g} differ: expected those of one training")
    return kept


def _represented(steps: list[int], stds: list[float], target_std: float, step: int, bound: float) -> str:
    """What can be had instead: the widths at this step, and the steps at this width."""
    # From a quarter of the narrowest width to the flat profile, in steps of a few per cent.
    widths = np.geomspace(min(stds) / 4, _FLAT, 120)
    good = np.flatnonzero(_fit(steps, stds, widths, step)[1] <= bound)
    runs = np.split(good, np.flatnonzero(np.diff(good) > 1) + 1) if len(good) else []
    at_step = ", ".join(f"{widths[run[0]]:.2g} to {widths[run[-1]]:.2g}" for run in runs) or "none"
    marks = np.unique(steps)
    # Each step is a fit of its own: a dozen of them say where the width is represented.
    marks = marks[np.unique(np.linspace(0, len(marks) - 1, 12).astype(int))]
    counts = [np.searchsorted(steps, mark, side="right") for mark in marks]
    fits = [synthesis_residual(steps[:n], stds[:n], target_std, mark) for n, mark in zip(counts, marks, strict=True)]
    at_width = ", ".join(str(mark) for mark, residual in zip(marks, fits, strict=True) if residual <= bound) or "none"
    return f"expected a width represented at this step: {at_step}; or a step at which this width is, of those stored: {at_width}"
