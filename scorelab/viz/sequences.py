"""Sequences as lines: one small panel for each, in rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scorelab.viz.figures import COLOURS, FAINT, MUTED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sequences(
    values: np.ndarray,
    *,
    headings: Sequence[str] | None = None,
    columns: int = 5,
    reference: np.ndarray | None = None,
    width: float = 6.5,
) -> Figure:
    """A figure of sequences ``(n, length, d)`` of ``d`` numbers each, rows filled from the left, every number a line.

    All panels have one y-axis, that of ``reference`` ``(m, length, d)`` where given. ``headings`` names the columns; then each
    column has an axis of its own, as the scale of noise changes by orders of magnitude. Raises ValueError for another shape, or
    another number of headings than columns.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 3 or not values.size or columns < 1:
        raise ValueError(f"sequences got values of shape {values.shape} in {columns} columns: expected (n, length, d)")
    if headings is not None and len(headings) != columns:
        raise ValueError(f"sequences got {len(headings)} headings: expected {columns}")
    rows = -(-len(values) // columns)
    figure = new_figure(width, rows * 0.62 * width / columns + (0.25 if headings else 0.05))
    panels = figure.subplots(rows, columns, squeeze=False)
    for i, panel in enumerate(panels.ravel()):
        if i >= len(values):
            panel.set_axis_off()
            continue
        like = values[i % columns :: columns] if headings is not None else values if reference is None else np.asarray(reference)
        low, high = np.percentile(like[np.isfinite(like)], (0.5, 99.5)) if np.isfinite(like).any() else (0.0, 1.0)
        margin = 0.15 * (high - low) + 1e-6
        for j, line in enumerate(values[i].T):
            panel.plot(line, color=COLOURS[j % len(COLOURS)], linewidth=0.9)
        panel.set(
            xlim=(0, max(1, values.shape[1] - 1)),
            ylim=(low - margin, high + margin),
            xticks=[],
            yticks=[0] if low < 0 < high else [],
        )
        panel.tick_params(labelleft=False, length=2, width=0.6, color=FAINT)
        for spine in panel.spines.values():
            spine.set_color(FAINT)
    for panel, heading in zip(panels[0], headings or (), strict=False):
        panel.set_title(heading, fontsize=7, color=MUTED)
    return figure
