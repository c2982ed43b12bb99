"""Histograms of sets of numbers, with or without the normal law of the same moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scorelab.viz.figures import COLOURS, INK, MUTED, new_figure, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def histogram(
    samples: Mapping[str, np.ndarray],
    *,
    normal: bool = False,
    log: bool = False,
    columns: int | None = None,
    bins: int = 60,
    width: float = 6.5,
) -> Figure:
    """Densities of named sets of numbers, in one panel and in equal bins, or each in a panel of its own.

    The bins span nearly all numbers; far outliers are left outside, and count in the height of no bin but in the whole.

    Args:
        samples: arrays of any shape by name; all their elements are counted, but for those that are not finite.
        normal: add the normal density with the mean and the deviation of each set.
        log: logarithmic densities, on which a normal law is a parabola.
        columns: panels in a row, one for each set; None for one panel with all sets.
        bins: number of bins.
        width: of the figure, in inches.

    Raises:
        ValueError: no set, a set without two different finite numbers, or ``columns`` or ``bins`` below 1.
    """
    if not samples:
        raise ValueError("samples has no sets: expected at least one")
    for name, count in (("bins", bins), ("columns", 1 if columns is None else columns)):
        if count < 1:
            raise ValueError(f"{name} = {count}: expected at least 1")
    sets = {name: _finite(name, values) for name, values in samples.items()}
    panels = [sets] if columns is None else [{name: values} for name, values in sets.items()]
    across = min(columns or 1, len(panels))
    down = -(-len(panels) // across)
    figure = new_figure(width, down * width / across * (0.5 if across == 1 else 0.75))
    for i, panel in enumerate(panels):
        axes = quiet(figure.add_subplot(down, across, i + 1))
        _draw(axes, panel, bins, normal, log, colour=i)
        if columns is not None:
            axes.set_title(next(iter(panel)), fontsize=8, color=INK, loc="left")
        elif len(panel) > 1:
            axes.legend(fontsize=8, frameon=False, labelcolor=INK)
        axes.set_ylabel("density", fontsize=8, color=MUTED)
    return figure


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64).ravel()
    values = values[np.isfinite(values)]
    if not len(values) or values.min() == values.max():
        raise ValueError(f"samples[{name!r}] has {len(np.unique(values))} different finite numbers: expected at least 2")
    return values


def _draw(axes: Axes, sets: Mapping[str, np.ndarray], bins: int, normal: bool, log: bool, colour: int) -> None:
    # Where the bulk is: the widest of the sets, each without its outer thousandths. The ends are numbers of a set, so no
    # panel is empty.
    low = min(np.percentile(values, 0.1, method="lower") for values in sets.values())
    high = max(np.percentile(values, 99.9, method="higher") for values in sets.values())
    edges = np.linspace(low, high, bins + 1) if high > low else np.linspace(low - 0.5, low + 0.5, bins + 1)
    least = np.inf
    for i, (name, values) in enumerate(sets.items(), start=colour):
        shade = COLOURS[i % len(COLOURS)]
        # Not density=True, which would divide by the numbers inside the edges.
        heights = np.histogram(values, edges)[0] / (len(values) * np.diff(edges))
        axes.stairs(heights, edges, fill=True, color=shade, alpha=0.35, linewidth=0)
        axes.stairs(heights, edges, color=shade, linewidth=1.0, label=name)
        least = min(least, heights[heights > 0].min())
        if normal:
            at, mean, std = np.linspace(edges[0], edges[-1], 400), values.mean(), values.std()
            density = np.exp(-0.5 * ((at - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
            axes.plot(at, density, color=shade if len(sets) > 1 else INK, linewidth=1.2, linestyle="--")
    if log:
        axes.set_yscale("log")
        axes.set_ylim(bottom=least / 2)
    axes.set_xlim(edges[0], edges[-1])
