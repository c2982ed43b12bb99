"""One number per run, for several ways of running: every run is a dot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scorelab.viz.figures import COLOURS, INK, MUTED, few_log_ticks, new_figure, quiet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def dots(
    rows: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    reference: Mapping[str, float] | None = None,
    logx: bool = False,
    title: str | None = None,
    width: float = 6.5,
) -> Figure:
    """A row per name, a dot per value, a bar at their mean; ``reference`` values are dashed vertical lines.

    Raises ValueError where a row has no value.
    """
    empty = [name for name, values in rows.items() if not len(values)]
    if empty or not rows:
        raise ValueError(f"rows {empty or 'is empty'}: expected at least one value in every row")
    figure = new_figure(width, 0.6 + 0.24 * len(rows) + (0.3 if title else 0))
    axes = quiet(figure.add_subplot())
    for place, values in enumerate(rows.values()):
        axes.plot(values, np.full(len(values), place), "o", color=COLOURS[0], markersize=4, alpha=0.6, markeredgewidth=0)
        axes.plot([np.mean(values)], [place], "|", color=INK, markersize=11, markeredgewidth=1.6)
    for place, (name, value) in enumerate((reference or {}).items()):
        axes.axvline(value, color=COLOURS[1 + place], linewidth=1, linestyle="--", label=name)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.invert_yaxis()
    if logx:
        axes.set_xscale("log")
        few_log_ticks(axes.xaxis, np.concatenate([*map(np.ravel, rows.values()), list((reference or {}).values())]))
    axes.set_xlabel(xlabel, fontsize=8, color=MUTED)
    if reference:
        axes.legend(fontsize=7, frameon=False)
    if title:
        axes.set_title(title, fontsize=9, color=INK, loc="left")
    return figure
