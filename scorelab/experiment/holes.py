"""Rows of the data with holes, as an interpolant under ``data.Inpainting`` is sampled from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from scorelab.arrays import Key
from scorelab.data import Inpainting
from scorelab.experiment.data import DataSpec
from scorelab.processes import StochasticInterpolant
from scorelab.randomness import per_example_keys
from scorelab.starts import Fixed


def holed(process: Any) -> bool:
    """Whether the process fills holes."""
    return isinstance(process, StochasticInterpolant) and isinstance(process.coupling, Inpainting)


def check_data(data: DataSpec, process: StochasticInterpolant) -> None:
    """Raise ValueError where the data cannot say where the holes are, or the network would be told otherwise than in training."""
    coupling: Any = process.coupling
    if data.labels:
        raise ValueError(
            f"DataSpec.labels = True under {coupling!r}: expected cond = ('label',), since samples have the labels of their rows"
        )
    stored = data.load().more.get(coupling.hole)
    if coupling.hole in data.prepare.taken and stored is not None and stored.dtype != np.float32:
        raise ValueError(
            f"DataSpec.cond = {data.cond!r} under {coupling!r}: {coupling.hole!r} is {stored.dtype}: expected float32, since "
            "pixels as a condition are scaled"
        )


def filling(data: DataSpec, process: StochasticInterpolant, split: str, rows: np.ndarray, key: Key) -> tuple[np.ndarray, Fixed]:
    """The holes of rows of a split, ``(n, *event)``, and these rows with draws of the base in them, where sampling begins.

    The hole is a function of the row, the draw one of the key and the number of the sample. ValueError where data have no holes.
    """
    coupling: Any = process.coupling
    arrays = data.load(split)
    if coupling.sides is not None:
        holes = coupling.holes(np.random.default_rng(0), arrays.x.shape)
    elif (holes := arrays.more.get(coupling.hole)) is None or holes.shape != arrays.x.shape:
        found = "not there" if holes is None else f"of shape {holes.shape}"
        raise ValueError(f"{coupling!r}: the array {coupling.hole!r} of {split!r} is {found}: expected {arrays.x.shape}, that of x")
    # Of a row, too, are the places in the cells, so that particles of one row know the same.
    rng = np.random.default_rng(1)
    x = data.points(arrays.x, rng)[rows] if data.dequantise else data.points(arrays.x[rows], rng)
    w = np.asarray(process.draw_base(per_example_keys(key, np.arange(len(rows))), x.shape[1:], x.dtype))
    return holes[rows], Fixed(np.where(holes[rows] == 0, x, w))
