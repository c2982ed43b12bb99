"""Curves over training steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scorelab.viz.figures import COLOURS, MUTED, few_log_ticks, new_figure, quiet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_curve(steps: Sequence[int], values: Sequence[float], *, label: str = "loss", width: float = 6.5) -> Figure:
    """A training curve over steps, logarithmic in the value where all values are positive.

    Values that are not finite leave a gap. The heavy line is a centred running mean over a twentieth of the
    points. Raises ValueError where ``steps`` and ``values`` differ in length.
    """
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"steps {x.shape} and values {y.shape}: expected two sequences of equal length")
    figure = new_figure(width, width * 0.42)
    axes = quiet(figure.add_subplot())
    finite = np.isfinite(y)
    single = "o" if finite.sum() < 3 else None
    axes.plot(x, np.where(finite, y, np.nan), color=COLOURS[0], linewidth=0.7, alpha=0.45, marker=single)
    if finite.sum() >= 20:
        axes.plot(x[finite], _running_mean(y[finite], max(3, finite.sum() // 20)), color=COLOURS[0], linewidth=1.6)
    if finite.any() and (y[finite] > 0).all():
        axes.set_yscale("log")
        few_log_ticks(axes.yaxis, y[finite])
    axes.set_xlabel("step", fontsize=8, color=MUTED)
    axes.set_ylabel(label, fontsize=8, color=MUTED)
    return figure


def _running_mean(values: np.ndarray, size: int) -> np.ndarray:
    """Centred mean over ``size`` neighbours, fewer at the ends; the same length as ``values``."""
    kernel = np.ones(size)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")
