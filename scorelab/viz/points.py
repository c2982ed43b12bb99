"""Point clouds in the plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scorelab.viz.figures import COLOURS, FAINT, INK, new_figure

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
