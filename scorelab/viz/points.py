"""Point clouds in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scorelab.viz.figures import COLOURS, FAINT, INK, MUTED, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def check_points(points: np.ndarray) -> np.ndarray:
    """Points (n, 2); raises ValueError for another shape."""
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points have shape {points.shape}: expected (n, 2)")
    return points


def window(points: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Square axis limits that hold nearly all points, with a margin; far outliers are left outside."""
    low, high = np.percentile(points, 0.2, axis=0), np.percentile(points, 99.8, axis=0)
    centre, half = (low + high) / 2, 0.6 * float(np.max(high - low)) + 1e-6
    (left, bottom), (right, top) = (centre - half).tolist(), (centre + half).tolist()
    return (left, right), (bottom, top)


def draw(axes: Axes, points: np.ndarray, limits, colour: str = COLOURS[0], size: float | None = None) -> None:
    """Draw a cloud into existing axes."""
    size = min(6.0, max(0.6, 4000 / max(len(points), 1))) if size is None else size
    axes.scatter(points[:, 0], points[:, 1], s=size, c=colour, alpha=0.55, linewidths=0, rasterized=True)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def scatter(points: np.ndarray, *, reference: np.ndarray | None = None, title: str | None = None, width: float = 5.0) -> Figure:
    """A figure of points (n, 2); the axes are those of ``reference`` (m, 2) where given."""
    points = check_points(points)
    limits = window(points if reference is None else check_points(reference))
    figure = new_figure(width, width + (0.3 if title else 0))
    axes = figure.add_subplot()
    draw(axes, points, limits)
    if title:
        axes.set_title(title, fontsize=9, color=INK, loc="left")
    return figure


def scatter_grid(
    points: Sequence[Sequence[np.ndarray]],
    *,
    rows: Sequence[str],
    headings: Sequence[str],
    reference: np.ndarray | None = None,
    width: float = 9.0,
) -> Figure:
    """A figure of rows of clouds (n, 2) on the same axes, those of ``reference`` (m, 2), which lies under each of them in grey.

    ``rows`` names each row, to its left, and ``headings`` each column, above it. Raises ValueError where their number is another.
    """
    from matplotlib.ticker import MaxNLocator

    columns = max((len(row) for row in points), default=0)
    for name, labels, count in (("rows", rows, len(points)), ("headings", headings, columns)):
        if len(labels) != count or not count:
            raise ValueError(f"scatter_grid got {len(labels)} {name}: expected {count}, and at least one")
    clouds = [[check_points(cloud) for cloud in row] for row in points]
    under = None if reference is None else check_points(reference)
    limits = window(np.concatenate([cloud for row in clouds for cloud in row]) if under is None else under)
    side = width / columns
    figure = new_figure(width, side * len(rows) + 0.3)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for i, row in enumerate(clouds):
        for j, axes in enumerate(panels[i]):
            if j >= len(row):
                axes.set_axis_off()
                continue
            if under is not None:
                draw(axes, under, limits, colour=FAINT, size=2.0)
            draw(axes, row[j], limits, size=1.0)
            # Numbers at the outer edges only: all panels have the same axes.
            axes.tick_params(colors=MUTED, labelsize=7, width=0.6, length=2)
            for axis, outer in ((axes.xaxis, i == len(rows) - 1), (axes.yaxis, j == 0)):
                axis.set_major_locator(MaxNLocator(4, integer=True))
                if not outer:
                    axis.set_tick_params(labelleft=False, labelbottom=False)
    for axes, label in zip(panels[0], headings, strict=True):
        axes.set_title(label, fontsize=8.5, color=INK)
    for axes, label in zip(panels[:, 0], rows, strict=True):
        axes.set_ylabel(label, fontsize=8.5, color=INK)
    return figure
