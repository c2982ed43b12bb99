"""Making and writing figures without pyplot: no global state, no window system, nothing to close."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scorelab.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

DPI = 150
INK, MUTED, FAINT = "#1f2933", "#616e7c", "#d5dbe1"
# A colour-blind safe order (Okabe and Ito 2008), ten entries for ten classes.
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a", "#8c6d31",
    "#7f7f7f", "#1f2933",
)  # fmt: skip


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def quiet(axes: Axes) -> Axes:
    """Take away the frame lines that carry no information."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=MUTED, labelsize=8, width=0.6)
    axes.grid(color=FAINT, linewidth=0.5, alpha=0.7)
    axes.set_axisbelow(True)
    return axes


def few_log_ticks(axis: Axis, values: np.ndarray) -> None:
    """Plain numbers at 1, 2, 5 of each decade, at powers of ten only where there are more than three decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    decades = np.log10(np.max(values) / np.min(values))
    axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def to_png_bytes(figure: Figure) -> bytes:
    """The figure as PNG; equal figures give equal bytes (no date or software tag is written)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write the figure as PNG, or as PDF where the name ends so, complete or not at all, and return its path."""
    path = Path(path)
    if path.suffix.lower() != ".pdf":
        return write_bytes(path, to_png_bytes(figure))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return write_bytes(path, buffer.getvalue())
