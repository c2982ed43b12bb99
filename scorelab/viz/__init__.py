"""Figures: image grids, point clouds, sequences, histograms, curves, trajectories. The only package that knows matplotlib."""

from scorelab.viz.curves import loss_curve
from scorelab.viz.dots import dots
from scorelab.viz.figures import save, to_png_bytes
from scorelab.viz.histograms import histogram
from scorelab.viz.images import image_grid, mosaic
from scorelab.viz.lines import Panel, lines, panels
from scorelab.viz.maps import fields, grids, heatmaps
from scorelab.viz.points import scatter, scatter_grid
from scorelab.viz.sequences import sequences
from scorelab.viz.trajectories import trajectory

__all__ = [
    "Panel",
    "dots",
    "fields",
    "grids",
    "heatmaps",
    "histogram",
    "image_grid",
    "lines",
    "loss_curve",
    "mosaic",
    "panels",
    "save",
    "scatter",
    "scatter_grid",
    "sequences",
    "to_png_bytes",
    "trajectory",
]
