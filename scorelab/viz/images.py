"""Grids of small images, every pixel shown as a whole square of screen pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange

from scorelab.validation import require_int
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
    rows: Sequence[str] | None = None,
    headings: Sequence[str] | None = None,
    title: str | None = None,
    width: float = 5.0,
) -> Figure:
    """A figure of stored images uint8 (n, height, width, channels), which are at most ``width`` inches wide together.

    ``rows`` names each row, to its left, and ``headings`` each column, above it. Raises ValueError where their number is another.
    """
    if columns is not None:
        require_int("image_grid", 1, columns=columns)
    rows, headings = (labels if labels is None else [str(label) for label in labels] for labels in (rows, headings))
    sheet = mosaic(images, levels=levels, columns=columns)
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    for name, labels, count in (("rows", rows, -(-len(images) // columns)), ("headings", headings, columns)):
        if labels is not None and len(labels) != count:
            raise ValueError(f"image_grid got {len(labels)} {name}: expected {count}")
    zoom = max(1, int(width * DPI) // sheet.shape[1])
    sheet = sheet.repeat(zoom, 0).repeat(zoom, 1)
    # Inches; a letter of nine points is about a fifteenth of an inch wide.
    left = 0.15 + max((len(line) for label in rows for line in label.split("\n")), default=0) / 13 if rows else 0.0
    lines = max((label.count("\n") + 1 for label in headings or ()), default=0)
    head = (0.3 if title else 0.0) + (0.1 + 0.15 * lines if lines else 0.0)
    high, wide = sheet.shape[0] / DPI, sheet.shape[1] / DPI
    figure = new_figure(wide + left, high + head)
    # Placed by hand: a layout engine would resample the pixels.
    figure.set_layout_engine("none")
    axes = figure.add_axes((left / (wide + left), 0, wide / (wide + left), high / (high + head)))
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    if title:
        figure.text(0.01, 1 - 0.1 / (high + head), title, va="top", fontsize=9, color=INK)
    style: dict[str, Any] = dict(fontsize=9, color=INK)
    for i, label in enumerate(rows or ()):
        y = high * (1 - (i + 0.5) / len(rows or ())) / (high + head)
        figure.text((left - 0.08) / (wide + left), y, label, ha="right", va="center", **style)
    for i, label in enumerate(headings or ()):
        x = (left + wide * (i + 0.5) / columns) / (wide + left)
        figure.text(x, (high + 0.06) / (high + head), label, ha="center", va="bottom", **style)
    return figure
