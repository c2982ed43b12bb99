r"""Averages of the parameters along training: exponential ones, and power functions of time made afterwards.

An average spec is three functions: ``init(params)``, ``update(average, params, step)`` and
``params(average)``. Both specs here move by
:math:`\bar\theta \leftarrow \bar\theta + (1-\beta)(\theta-\bar\theta)` with a :math:`\beta` that depends on
the step only, so an average is a pytree shaped like the parameters and resumes from it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.typing import Array, Pytree, require_number


class Average(Protocol):
    """What a learner needs of an average; specs are hashable."""

    def init(self, params: Pytree) -> Pytree:
        """The average before the first update, in arrays of its own."""
        ...

    def update(self, average: Pytree, params: Pytree, step: Array) -> Pytree:
        """The average after update number ``step`` (1, 2, ...) has produced ``params``."""
        ...

    def params(self, average: Pytree) -> Pytree:
        """The averaged parameters."""
        ...


def average_specs(owner: object, ema: Average | tuple[Average, ...] | None) -> tuple[Average, ...]:
    """A field ``ema`` as a tuple; TypeError for what is no average."""
    specs = () if ema is None else ema if isinstance(ema, tuple) else (ema,)
    for spec in specs:
        if not all(callable(getattr(spec, name, None)) for name in ("init", "update", "params")):
            raise TypeError(f"{type(owner).__name__}.ema = {ema!r}: expected EMA(), PowerEMA(), a tuple of them, or None")
    return specs


def _move(average: Pytree, params: Pytree, rate: Array) -> Pytree:
    """``average + rate (params - average)`` in at least float32; anything but floating point is copied."""

    def leaf(a, p):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return p
        return a + (rate * (p.astype(a.dtype) - a)).astype(a.dtype)

    return jax.tree.map(leaf, average, params)


def _copy(params: Pytree) -> Pytree:
    # Own arrays (a donated state must not hold one buffer twice), and float32 for bfloat16 parameters: a rate
    # of 1e-3 is below half a unit in the last place of bfloat16, so the average would stand still.
    def leaf(p):
        low = jnp.issubdtype(p.dtype, jnp.floating) and jnp.finfo(p.dtype).bits < 32
        return jnp.array(p, jnp.float32 if low else p.dtype, copy=True)

    return jax.tree.map(leaf, params)


@dataclass(frozen=True, kw_only=True)
class EMA:
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
        require_number(self, 0.0, 1.0, decay=self.decay)

    def init(self, params: Pytree) -> Pytree:
        """A copy of the parameters."""
        return _copy(params)

    def update(self, average: Pytree, params: Pytree, step: Array) -> Pytree:
        """See the class; ``step`` counts from 1, so ``t = step - 1`` updates are in the average already."""
        rate = 1.0 - self.decay
        if self.warmup:
            rate = jnp.maximum(rate, 9.0 / (9.0 + step))
        return _move(average, params, jnp.float32(rate))

    def params(self, average: Pytree) -> Pytree:
        """The average itself."""
        return average


class Snapshot(NamedTuple):
    """Averaged parameters at a step, on the host, with the relative width ``std`` of their profile."""

    step: int
    std: float
    params: Pytree


@dataclass(frozen=True, kw_only=True)
class PowerEMA:
    r"""Averages with power-function profiles, from which any other width is made after training (EDM2).

    .. math:: \bar\theta_\gamma(t) = \frac{\gamma+1}{t^{\gamma+1}}\int_0^t \tau^\gamma\theta(\tau)\,d\tau,
              \qquad \beta_t = (1-1/t)^{\gamma+1} .

    The width is given as the relative standard deviation of the profile,
    :math:`\sigma_{rel} = \sqrt{\gamma+1}\,/\,\big((\gamma+2)\sqrt{\gamma+3}\big)`: 0.10 spans the last
    quarter of training, say, however long it was. :math:`\beta_1 = 0`, so the initial parameters have no
    weight. Karras et al. (2024), arXiv 2312.02696, section 3 and appendix C.

    Attributes:
        stds: the widths to track, each in (0, 0.288]; two are enough to synthesise others from stored
            snapshots.
    """

    stds: tuple[float, ...] = (0.05, 0.10)

    def __post_init__(self):
        object.__setattr__(self, "stds", tuple(self.stds))
        if not self.stds:
            raise ValueError("PowerEMA.stds = (): expected at least one width")
        for std in self.stds:
            power_exponent(std)

    def init(self, params: Pytree) -> tuple[Pytree, ...]:
        """One copy of the parameters for each width."""
        return tuple(_copy(params) for _ in self.stds)

    def update(self, average: tuple[Pytree, ...], params: Pytree, step: Array) -> tuple[Pytree, ...]:
        """See the class; ``step`` counts from 1."""
        step = jnp.asarray(step, jnp.float32)
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
    if not isinstance(std, int | float) or not 0 < std <= 1 / math.sqrt(12):
        raise ValueError(f"relative width of a power average = {std!r}: expected a number in (0, 0.288]")
    inverse = float(std) ** -2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def profile_product(step_a: Array, std_a: Array, step_b: Array, std_b: Array) -> np.ndarray:
    r"""Inner product of two profiles, :math:`\int_0^{\min(a,b)} p_a(\tau)p_b(\tau)\,d\tau`, broadcasting;
    float64.

    .. math:: \frac{(\gamma_a+1)(\gamma_b+1)}{\gamma_a+\gamma_b+1}\,
              \frac{\min(a,b)^{\gamma_a+\gamma_b+1}}{a^{\gamma_a+1}\,b^{\gamma_b+1}} .
    """
    a, b = np.asarray(step_a, np.float64), np.asarray(step_b, np.float64)
    g_a, g_b = (np.vectorize(power_exponent, otypes=[np.float64])(std) for std in (std_a, std_b))
    low = np.minimum(a, b)
    # Ratios before powers: exponents reach 400 and steps 10^6.
    shape = (low / a) ** (g_a + 1) * (low / b) ** (g_b + 1) / low
    return (g_a + 1) * (g_b + 1) / (g_a + g_b + 1) * shape


def synthesis_weights(steps: Array, stds: Array, target_std: float, step: int) -> np.ndarray:
    r"""Weights ``w`` that minimise :math:`\int(\sum_i w_i p_i - p)^2 d\tau` subject to
    :math:`\sum_i w_i = 1`.

    The constraint is not in the paper: it makes the part of the parameters that does not move exact, which
    lowered the error of slowly drifting parameters ten-fold. Shapes: ``steps`` and ``stds`` are ``(n,)``, and
    so is the result, in float64.
    """
    steps, stds = np.asarray(steps, np.float64), np.asarray(stds, np.float64)
    gram = profile_product(steps[:, None], stds[:, None], steps[None], stds[None])
    target = profile_product(steps, stds, step, target_std)
    # Lagrange conditions, scaled to a unit diagonal (the Gram matrix spans orders of magnitude in 1/step).
    # Least squares, because profiles of neighbouring snapshots are nearly parallel.
    scale = np.sqrt(np.diag(gram))
    n = len(steps)
    system, right = np.zeros((n + 1, n + 1)), np.ones(n + 1)
    system[:n, :n] = gram / np.outer(scale, scale)
    system[n, :n] = system[:n, n] = scale.max() / scale
    right[:n] = target / scale
    right[n] = scale.max()
    return np.linalg.lstsq(system, right, rcond=1e-13)[0][:n] / scale


def synthesise(snapshots: Iterable[Snapshot], target_std: float, step: int) -> Pytree:
    """Parameters averaged with a width that was not tracked, from stored snapshots of widths that were.

    Least squares between profiles (Karras et al. 2024, appendix C.3), solved and summed in float64 on the
    host. The error falls as the number of snapshots grows; a dozen spread evenly over training, two widths
    each, are plenty.

    Args:
        snapshots: from :meth:`PowerEMA.snapshots` at several steps; those after ``step`` are left out.
        target_std: the relative width wanted, in (0, 0.288].
        step: the step at which the average is taken.

    Errors:
        ValueError: no snapshot at or before ``step``, or a width outside its range.
    """
    snapshots = list(snapshots)
    used = [s for s in snapshots if s.step <= step]
    if not used:
        found = sorted({s.step for s in snapshots})
        raise ValueError(f"snapshots are at steps {found}: expected at least one at or before step = {step}")
    weights = synthesis_weights([s.step for s in used], [s.std for s in used], target_std, step)

    def combine(*leaves):
        leaves = [np.asarray(leaf) for leaf in leaves]
        if not jnp.issubdtype(leaves[0].dtype, jnp.floating):
            return leaves[-1]
        total = sum(w * leaf.astype(np.float64) for w, leaf in zip(weights, leaves, strict=True))
        return np.asarray(total).astype(leaves[0].dtype)

    return jax.tree.map(combine, *(s.params for s in used))
