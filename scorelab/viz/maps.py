"""Numbers over two coordinates: tables as coloured cells, scalar fields on grids, and vector fields in a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scorelab.viz.figures import INK, MUTED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heatmaps(
    tables: Mapping[str, np.ndarray],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    xlabel: str,
    ylabel: str,
    colour: str,
    limits: tuple[float, float],
    across: int = 3,
    width: float = 9.0,
) -> Figure:
    """Tables of numbers (len(rows), len(columns)) by title, ``across`` in a row, under one scale of colours.

    Every cell has its number. Those outside ``limits`` have the colour of the nearer end. Raises ValueError for no table, and for a
    table of another shape.
    """
    if not tables:
        raise ValueError("heatmaps got no table: expected at least one")
    across = min(across, len(tables))
    down = -(-len(tables) // across)
    figure = new_figure(width, down * (0.5 + 0.2 * len(rows)) + 0.3)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    images = []
    for i, (axes, (title, table)) in enumerate(zip(grid, tables.items(), strict=False)):
        table = np.asarray(table, np.float64)
        if table.shape != (len(rows), len(columns)):
            raise ValueError(f"heatmaps: table {title!r} has shape {table.shape}: expected ({len(rows)}, {len(columns)})")
        images.append(axes.imshow(table, vmin=limits[0], vmax=limits[1], cmap="viridis", aspect="auto"))
        middle = np.mean(limits)
        for (y, x), value in np.ndenumerate(table):
            text = f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=5.5, color="white" if value < middle else INK)
        axes.set_xticks(range(len(columns)), columns, fontsize=7, color=MUTED)
        axes.set_yticks(range(len(rows)), rows, fontsize=7, color=MUTED)
        axes.tick_params(length=0)
        axes.set_title(title, fontsize=8.5, color=INK, loc="left")
        if i % across == 0:
            axes.set_ylabel(ylabel, fontsize=8, color=MUTED)
        if i >= len(tables) - across:
            axes.set_xlabel(xlabel, fontsize=8, color=MUTED)
    for axes in grid[len(tables) :]:
        axes.set_axis_off()
    bar = figure.colorbar(images[0], ax=list(grid), shrink=0.7, pad=0.01)
    bar.set_label(colour, fontsize=8, color=MUTED)
    bar.ax.tick_params(labelsize=7, colors=MUTED)
    return figure


def grids(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    *,
    points: np.ndarray | None = None,
    diverging: Sequence[str] = (),
    width: float = 9.0,
) -> Figure:
    """Scalar fields on grids, by row and title, under one scale of colours for each row.

    Args:
        rows: row -> title -> values ``(height, width)``, which may be coarser than one another. Every row has its own titles.
        points: places ``(k, 2)``, row and column, on the finest grid, marked in every panel.
        diverging: names of rows whose colours are symmetric about 0; those of the others begin at 0.
        width: of the figure, in inches.

    Raises ValueError for no field, and for an array that is no grid of finite numbers.
    """
    if not rows or not all(rows.values()):
        raise ValueError("grids got no field: expected at least one in every row")
    tables = {row: {title: np.asarray(field, np.float64) for title, field in columns.items()} for row, columns in rows.items()}
    for row, columns in tables.items():
        for title, field in columns.items():
            if field.ndim != 2 or not field.size or not np.isfinite(field).all():
                raise ValueError(f"grids: {title!r} of {row!r} has shape {field.shape}: expected (height, width), all finite")
    across = max(map(len, tables.values()))
    high, wide = np.max([field.shape for columns in tables.values() for field in columns.values()], axis=0)
    side = width / (across + 0.5)
    figure = new_figure(width, len(tables) * (side * high / wide + 0.3))
    panes = figure.subplots(len(tables), across, squeeze=False)
    for axes, (row, columns) in zip(panes, tables.items(), strict=True):
        top = max(float(np.abs(field).max()) for field in columns.values()) or 1.0
        low, colours = (-top, "RdBu_r") if row in diverging else (0.0, "viridis")
        extent, images = (-0.5, wide - 0.5, high - 0.5, -0.5), []
        for pane, (title, field) in zip(axes, columns.items(), strict=False):
            images.append(pane.imshow(field, vmin=low, vmax=top, cmap=colours, extent=extent, interpolation="nearest"))
            if points is not None:
                pane.plot(points[:, 1], points[:, 0], "o", color=INK, markersize=2.5, markerfacecolor="white", markeredgewidth=0.7)
            pane.set_title(title, fontsize=8, color=INK)
            pane.set_xticks([])
            pane.set_yticks([])
        for pane in axes[len(columns) :]:
            pane.set_axis_off()
        axes[0].set_ylabel(row, fontsize=8, color=MUTED)
        bar = figure.colorbar(images[0], ax=list(axes), shrink=0.85, pad=0.01)
        bar.ax.tick_params(labelsize=6, colors=MUTED)
    return figure


def fields(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    *,
    axis: np.ndarray,
    xlabel: str,
    ylabel: str,
    colour: str,
    points: np.ndarray | None = None,
    arrows: int = 12,
    width: float = 9.0,
) -> Figure:
    """Vector fields over a square of the plane, by row and column: length as colour, direction as arrows.

    A row has one scale of colours, that of its first field.

    Args:
        rows: row -> column -> vectors ``(m, m, 2)``, first index along y, last one ``(x, y)``.
        axis: the coordinates ``(m,)`` along both axes.
        xlabel: label of the x-axis.
        ylabel: label of the y-axis.
        colour: what the length of a vector is.
        points: points of the plane ``(k, 2)`` that are marked in every panel.
        arrows: about so many along each axis.
        width: of the figure, in inches.

    Raises ValueError for a field of another shape.
    """
    for row, columns in rows.items():
        for name, field in columns.items():
            if np.shape(field) != (len(axis), len(axis), 2):
                raise ValueError(f"fields: {name!r} of {row!r} has shape {np.shape(field)}: expected ({len(axis)}, {len(axis)}, 2)")
    names = list(next(iter(rows.values())))
    side = width / (len(names) + 0.6)
    figure = new_figure(width, len(rows) * side + 0.3)
    grid = figure.subplots(len(rows), len(names), squeeze=False)
    step = max(len(axis) // arrows, 1)
    low, high = float(axis[0]), float(axis[-1])
    for i, (row, columns) in enumerate(rows.items()):
        images, top = [], float(np.linalg.norm(columns[names[0]], axis=-1).max())
        for j, name in enumerate(names):
            axes, field = grid[i, j], np.asarray(columns[name], np.float64)
            length = np.linalg.norm(field, axis=-1)
            # The centres of the outer cells are the ends of the axis.
            half = (high - low) / (len(axis) - 1) / 2
            extent = (low - half, high + half, low - half, high + half)
            shade = dict(vmin=0, vmax=top, cmap="viridis", interpolation="nearest")
            images.append(axes.imshow(length, origin="lower", extent=extent, **shade))
            thin = (slice(step // 2, None, step),) * 2
            unit = field[thin] / np.maximum(length[thin], 1e-12)[..., None]
            at = axis[thin[0]]
            axes.quiver(at, at, unit[..., 0], unit[..., 1], color="white", scale=1.3 * len(at), width=0.006, pivot="mid")
            if points is not None:
                axes.plot(points[:, 0], points[:, 1], "o", color="#d55e00", markersize=2.5, markeredgewidth=0)
            axes.set_xlim(low, high)
            axes.set_ylim(low, high)
            axes.tick_params(colors=MUTED, labelsize=6, width=0.5, labelleft=j == 0, labelbottom=i == len(rows) - 1)
            if i == 0:
                axes.set_title(name, fontsize=8.5, color=INK)
        grid[i, 0].set_ylabel(f"{row}\n{ylabel}", fontsize=7.5, color=MUTED)
        bar = figure.colorbar(images[0], ax=list(grid[i]), shrink=0.8, pad=0.01)
        bar.ax.tick_params(labelsize=6, colors=MUTED)
        bar.set_label(colour, fontsize=7, color=MUTED)
    for axes in grid[-1]:
        axes.set_xlabel(xlabel, fontsize=7.5, color=MUTED)
    return figure
