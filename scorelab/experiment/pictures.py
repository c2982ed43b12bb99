"""Pictures of samples, and of samples side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from scorelab import viz
from scorelab.arrays import Pytree
from scorelab.experiment.base import Experiment

# Frames of a trajectory of images and of points, points in each, and images of the sample picture.
FRAMES, POINT_FRAMES, POINTS, PICTURED = 10, 5, 2000, 100
# Images below one another, and the pixels of those beside one another.
ROWS, ACROSS = 12, 1350


def picture(x: np.ndarray, experiment: Experiment):
    """The figure of a set in stored values: the first images, or the points in the chart of the process.

    Points that are not in the plane become a histogram of all their coordinates beside that of the training data.
    """
    data = experiment.data.load()
    if data.levels is not None:
        return viz.image_grid(x[:PICTURED], levels=data.levels, columns=10)
    points, reference = in_chart(x, experiment), in_chart(data.x, experiment)
    if data.event_shape == (2,):
        return viz.scatter(points, reference=reference)
    return viz.histogram({"samples": points, "data": reference})


def conditioned(x: np.ndarray, cond: Pytree, real: np.ndarray, experiment: Experiment):
    """The figure of conditions beside samples and the points they are of, one row each; None where there is nothing to show.

    Image conditions are columns before the sample, at its size; labels and vectors name the rows. Only images are shown like this.
    """
    data = experiment.data.load()
    if cond is None or data.levels is None:
        return None
    named = cond if isinstance(cond, Mapping) else {str(experiment.data.condition): cond}
    members = {name: value[:ROWS] for name, value in named.items()}
    x, real = x[:ROWS], real[:ROWS]
    images = {name: value for name, value in members.items() if value.ndim == 4 and value.shape[-1] == x.shape[-1]}
    # What is not given is shown as the lowest level.
    shown = {name: experiment.data.transform.decode(np.nan_to_num(value, nan=-np.inf)) for name, value in images.items()}
    columns = [_to_size(np.asarray(value), x.shape[1:3]) for value in shown.values()]
    words = {name: value for name, value in members.items() if name not in images and value.ndim < 3}
    cells = np.stack([*columns, x, real], axis=1)
    return viz.image_grid(
        cells.reshape(-1, *x.shape[1:]), levels=data.levels, columns=cells.shape[1], headings=[*images, "sample", "true"],
        rows=["\n".join(f"{name} {_spelled(value[i])}" for name, value in words.items()) for i in range(len(x))] if words else None,
        width=0.9 * cells.shape[1],
    )  # fmt: skip


def _to_size(images: np.ndarray, size: Sequence[int]) -> np.ndarray:
    for axis, length in enumerate(size, 1):
        images = images.repeat(max(1, length // images.shape[axis]), axis)
    return images


def _spelled(value: np.ndarray) -> str:
    numbers = np.ravel(value)
    if np.issubdtype(numbers.dtype, np.floating) and np.isnan(numbers).all():
        return "not given"
    return ", ".join(f"{number:.3g}" for number in numbers[:4]) + (", ..." if len(numbers) > 4 else "")


def in_chart(x: np.ndarray, experiment: Experiment) -> np.ndarray:
    """Where points are shown: logarithms fill a picture that heavy tails would leave empty."""
    # Compiled, the chart does not refuse a sample that has underflowed to 0: a picture is no reason to lose a run.
    return np.asarray(jax.jit(experiment.process.chart.encode)(experiment.data.transform.encode(x)))


def trajectory(states: np.ndarray, headings: Sequence[str], experiment: Experiment):
    """The figure of what the process sees at some times, ``(times, n, *event)``, the last one clean."""
    if experiment.data.load().levels is not None:
        decode = experiment.data.transform.decode
        return beside(np.stack([np.asarray(decode(_in_range(state, states[-1]))) for state in states]), headings, experiment)
    return beside(np.stack([np.asarray(jax.jit(experiment.process.chart.encode)(state)) for state in states]), headings, experiment)


def beside(states: np.ndarray, headings: Sequence[str], experiment: Experiment, width: float = 9.0):
    """The figure of images in stored values, or of points in the chart, ``(times, n, *event)``, ``width`` inches wide."""
    data = experiment.data.load()
    if data.levels is not None:
        # Every pixel of small images, every second or third of larger ones.
        every = -(-len(states) * states.shape[3] // ACROSS)
        return viz.trajectory(states[:, :ROWS, ::every, ::every], headings, levels=data.levels, width=width)
    if data.event_shape == (2,):
        return viz.trajectory(states, headings, width=width)
    return viz.histogram(dict(zip(headings, states, strict=True)), columns=len(states), width=width)


def _in_range(frame: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Noise shown at the brightness and contrast of the data: it would be all black and white otherwise."""
    shrink = min(1.0, float(last.std()) / max(float(frame.std()), 1e-12))
    return last.mean() + (frame - frame.mean()) * shrink if shrink < 1 else frame
