"""Figures: image grids, point clouds, curves, trajectories. The only package that knows matplotlib."""

from scorelab.viz.curves import loss_curve
from scorelab.viz.figures import save, to_png_bytes
from scorelab.viz.images import image_grid, mosaic
from scorelab.viz.points import scatter
from scorelab.viz.trajectories import trajectory

__all__ = ["image_grid", "loss_curve", "mosaic", "save", "scatter", "to_png_bytes", "trajectory"]
