"""Grids of small images, every pixel shown as a whole square of screen pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

from scorelab.viz.figures import DPI, INK, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = 255


def as_uint8(images: np.ndarray, levels: int = 256) -> np.ndarray:
    """Stored images (n, height, width, 1 or 3) with values 0 .. levels - 1 as RGB uint8 (n, height, width,
    3).

    Raises ValueError for another dtype, shape or range.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images are {images.dtype} {images.shape}: expected uint8 (n, height, width, 1 or 3)")
    if images.size and int(images.max()) >= levels:
        raise ValueError(f"images have the value {images.max()}: expected 0 to levels - 1 = {levels - 1}")
    scaled = np.rint(images.astype(np.float32) * (255 / (levels - 1))).astype(np.uint8)
    return np.broadcast_to(scaled, (*scaled.shape[:-1], 3))


def mosaic(images: np.ndarray, *, levels: int = 256, columns: int | None = None, zoom: int = 1, gap: int = 1) -> np.ndarray:
    """Images (n, height, width, channels) side by side as one RGB image uint8, rows filled from the left.

    ``columns=None`` makes it about square; ``zoom`` repeats every pixel; ``gap`` is the white space between
    images in stored pixels. Raises ValueError where there is no image.
    """
    rgb = as_uint8(images, levels)
    n, height, width, _ = rgb.shape
    if n < 1:
        raise ValueError("images has length 0: expected at least one image")
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    rows = -(-n // columns)
    cells = np.full((rows * columns, height + gap, width + gap, 3), PAPER, np.uint8)
    cells[:n, :height, :width] = rgb
    sheet = rearrange(cells, "(r c) h w k -> (r h) (c w) k", r=rows)[: rows * (height + gap) - gap, : columns * (width + gap) - gap]
    return sheet.repeat(zoom, 0).repeat(zoom, 1)


def image_grid(
    images: np.ndarray,
    *,
    levels: int = 256,
    columns: int | None = None,
    title: str | None = None,
    width: float = 5.0,
) -> Figure:
    """A figure of stored images uint8 (n, height, width, channels), at most ``width`` inches wide."""
    sheet = mosaic(images, levels=levels, columns=columns)
    zoom = max(1, int(width * DPI) // sheet.shape[1])
    sheet = sheet.repeat(zoom, 0).repeat(zoom, 1)
    head = 0.3 if title else 0.0
    high, wide = sheet.shape[0] / DPI, sheet.shape[1] / DPI
    figure = new_figure(wide, high + head)
    # Placed by hand: a layout engine would resample the pixels.
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, high / (high + head)))
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    if title:
        figure.text(0.01, 1 - 0.1 / (high + head), title, va="top", fontsize=9, color=INK)
    return figure


def image_rows(rows: Mapping[str, tuple[np.ndarray, int]], *, cell: int = 56, label: float = 2.0) -> Figure:
    """A figure with one row of stored images and its name for each entry: images of several sizes, shown at one.

    Args:
        rows: uint8 images ``(n, height, width, channels)`` and the number of their levels, by name.
        cell: the height of a row in screen pixels; images are repeated as often as fits.
        label: the width of the names, in inches.

    Raises:
        ValueError: no row, or images higher than ``cell``.
    """
    heights = {name: images.shape[1] for name, (images, _) in rows.items()}
    if not rows or max(heights.values()) > cell:
        raise ValueError(f"rows have the heights {heights}: expected at least one row, and at most cell = {cell}")
    sheets = {}
    for name, (images, levels) in rows.items():
        zoom = cell // images.shape[1]
        sheets[name] = np.concatenate([
            np.pad(one, ((0, 4), (0, 4), (0, 0)), constant_values=PAPER)
            for one in as_uint8(images, levels).repeat(zoom, 1).repeat(zoom, 2)
        ], axis=1)  # fmt: skip
    high, wide = sum(sheet.shape[0] for sheet in sheets.values()) / DPI, max(sheet.shape[1] for sheet in sheets.values()) / DPI
    figure = new_figure(label + wide, high)
    figure.set_layout_engine("none")
    top = high
    for name, sheet in sheets.items():
        height, width = (side / DPI for side in sheet.shape[:2])
        top -= height
        axes = figure.add_axes((label / (label + wide), top / high, width / (label + wide), height / high))
        axes.imshow(sheet, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        figure.text(0.01, (top + height / 2) / high, name, va="center", fontsize=8, color=INK)
    return figure
