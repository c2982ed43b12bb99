"""The way from noise to data: one row per sample of images, or one panel per time of points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

from scorelab.viz.figures import DPI, MUTED, new_figure
from scorelab.viz.images import mosaic
from scorelab.viz.points import check_points, draw, window

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def trajectory(frames: np.ndarray, headings: Sequence[str], *, levels: int = 256, width: float = 9.0) -> Figure:
    """States over time: images uint8 (times, n, height, width, channels), or points (times, n, 2).

    Images are laid out with one row per sample and one column per time, under its heading; points in one
    panel per time, each with axes of its own, as their scale changes by orders of magnitude. Raises
    ValueError where ``headings`` and ``frames`` differ in length.
    """
    frames = np.asarray(frames)
    if len(frames) != len(headings) or len(frames) < 1:
        raise ValueError(f"{len(headings)} headings for {len(frames)} frames: expected equally many, at least one")
    return (_images if frames.ndim == 5 else _points)(frames, headings, levels, width)


def _images(frames: np.ndarray, headings: Sequence[str], levels: int, width: float) -> Figure:
    times, _n = frames.shape[:2]
    sheet = mosaic(rearrange(frames, "t n h w k -> (n t) h w k"), levels=levels, columns=times)
    zoom = max(1, int(width * DPI) // sheet.shape[1])
    sheet = sheet.repeat(zoom, 0).repeat(zoom, 1)
    high, wide, head = sheet.shape[0] / DPI, sheet.shape[1] / DPI, 0.28
    figure = new_figure(wide, high + head)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, high / (high + head)))
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for i, heading in enumerate(headings):
        figure.text(
            (i + 0.5) / times,
            1 - 0.5 * head / (high + head),
            heading,
            ha="center",
            va="center",
            fontsize=7,
            color=MUTED,
        )
    return figure


def _points(frames: np.ndarray, headings: Sequence[str], levels: int, width: float) -> Figure:
    side = width / len(frames)
    figure = new_figure(width, side + 0.3)
    for i, (points, heading) in enumerate(zip(frames, headings, strict=True)):
        axes = figure.add_subplot(1, len(frames), i + 1)
        draw(axes, points, window(check_points(points)), size=1.5)
        axes.set_title(heading, fontsize=7, color=MUTED)
    return figure
