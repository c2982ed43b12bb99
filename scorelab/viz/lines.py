"""Lines over a number: convergence, densities, paths; one panel or several with one legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scorelab.viz.figures import COLOURS, INK, MUTED, few_log_ticks, new_figure, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes.

    Attributes:
        series: name -> (x, y), with y (m,), or (m, k) for k lines under one name (thin where they are many); NaN leaves a gap.
        title: above the axes, to the left.
        xlabel: label of the x-axis.
        ylabel: label of the y-axis.
        logy: a logarithmic y-axis.
        logx: a logarithmic x-axis; it has a tick at every x where there are at most 8 of them.
        markers: draw the points too.
        mean: where a name has several columns, their mean as the line, and each of them as dots.
        ylim: limits of y, None for those of the data.
    """

    series: Series
    title: str | None = None
    xlabel: str = ""
    ylabel: str = ""
    logx: bool = False
    logy: bool = False
    markers: bool = False
    mean: bool = False
    ylim: tuple[float, float] | None = None


def lines(series: Series, *, reference: Sequence[str] = (), width: float = 6.5, height: float | None = None, **panel) -> Figure:
    """A figure of one :class:`Panel`, whose other attributes are ``panel``."""
    return panels([Panel(series=series, **panel)], reference=reference, width=width, height=height)


def panels(
    content: Sequence[Panel],
    *,
    columns: int | None = None,
    reference: Sequence[str] = (),
    share_y: bool = False,
    widths: Sequence[float] | None = None,
    width: float = 9.0,
    height: float | None = None,
) -> Figure:
    """Panels row by row, ``columns`` (by default all) in a row, under one legend.

    A name has one colour in all panels; those in ``reference`` are dashed and dark. ``widths`` gives the relative widths of the
    columns, ``height`` that of one row in inches. Under ``share_y`` only the first column has labels of y. Raises ValueError
    without a panel, or where x and y differ in length.
    """
    if not content:
        raise ValueError("panels got no panel: expected at least one")
    columns = len(content) if columns is None else columns
    rows = -(-len(content) // columns)
    names = list(dict.fromkeys(name for panel in content for name in panel.series))
    coloured = [name for name in names if name not in reference]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(coloured)} | dict.fromkeys(reference, INK)
    height = 0.62 * width / columns + 0.3 if height is None else height
    legend_rows = -(-len(names) // 4) if len(names) > 1 else 0
    figure = new_figure(width, rows * height + 0.22 * legend_rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y, width_ratios=widths).ravel()
    handles = {}
    for i, (axes, panel) in enumerate(zip(grid, content, strict=False)):
        handles = _draw(axes, panel, colours, reference) | handles
        if share_y and i % columns:
            axes.set_ylabel("")
    for axes in grid[len(content) :]:
        axes.set_axis_off()
    if legend_rows:
        figure.legend(
            [handles[name] for name in names], names, loc="outside upper center", ncols=min(4, len(names)), fontsize=8,
            frameon=False, labelcolor=INK,
        )  # fmt: skip
    return figure


def _draw(axes: Axes, panel: Panel, colours: Mapping[str, str], reference: Sequence[str]) -> dict:
    """Draw one panel and return a handle for each name."""
    from matplotlib.lines import Line2D

    quiet(axes)
    handles = {}
    for name, (x, y) in panel.series.items():
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if x.ndim != 1 or y.ndim not in (1, 2) or len(x) != len(y):
            raise ValueError(f"series {name!r} has x {x.shape} and y {y.shape}: expected (m,) and (m,) or (m, k)")
        colour, dashes = colours[name], "--" if name in reference else "-"
        if panel.mean and y.ndim == 2:
            axes.plot(x, y, "o", color=colour, markersize=3.5, alpha=0.5, markeredgewidth=0)
            y = y.mean(1)
        linewidth, alpha = (0.6, 0.6) if y.ndim == 2 and y.shape[1] > 5 else (1.5, None)
        marker = "o" if panel.markers and name not in reference else None
        axes.plot(x, y, color=colour, linestyle=dashes, linewidth=linewidth, alpha=alpha, marker=marker, markersize=3)
        handles[name] = Line2D([], [], color=colour, linestyle=dashes, linewidth=1.5)
    if panel.logx:
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis, np.unique(np.concatenate([x for x, _ in panel.series.values()])))
    if panel.logy:
        axes.set_yscale("log")
        values = np.concatenate([np.ravel(y) for _, y in panel.series.values()])
        values = values[np.isfinite(values) & (values > 0)]
        if panel.ylim is None and values.size and values.max() < 1e3 * values.min():
            few_log_ticks(axes.yaxis, values)
    if panel.ylim is not None:
        axes.set_ylim(panel.ylim)
    axes.set_xlabel(panel.xlabel, fontsize=8, color=MUTED)
    axes.set_ylabel(panel.ylabel, fontsize=8, color=MUTED)
    if panel.title:
        axes.set_title(panel.title, fontsize=8.5, color=INK, loc="left")
    return handles


def _plain_ticks(axis, values: np.ndarray) -> None:
    """Name the values themselves where they are few, plain numbers where they are close, instead of powers of ten."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if len(values) <= 8:
        axis.set_major_locator(FixedLocator(values.tolist()))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{float(f'{value:.3g}'):g}"))
    elif values[0] > 0 and values[-1] < 1e3 * values[0]:
        few_log_ticks(axis, values)
