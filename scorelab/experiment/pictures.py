"""Pictures of samples, and of samples side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from einops import rearrange

from scorelab import viz
from scorelab.arrays import Pytree
from scorelab.experiment.base import Experiment

# Frames of a trajectory of images and of points, points in each, and images and at most points of the sample picture.
FRAMES, POINT_FRAMES, POINTS, PICTURED, DRAWN = 10, 5, 2000, 100, 10_000
# Images below one another, and the pixels of those beside one another.
ROWS, ACROSS = 12, 1350
# Sequences of the sample picture, volumes in it, slices of a volume beside one another, and the sequences below one another.
SEQUENCES, VOLUMES, SLICES, SEQUENCE_ROWS = 20, 30, 6, 6


def picture(x: Any, experiment: Experiment):
    """The figure of a set in stored values: the first images, or the first points in the chart of the process.

    Volumes are shown as slices beside one another, sequences as lines. Points that are not in the plane become a histogram of all
    their coordinates beside that of the training data.
    """
    data = experiment.data.load()
    if as_images(experiment):
        volumes = len(data.event_shape) == 4
        images, levels = images_of(x[: VOLUMES if volumes else PICTURED], experiment)
        return viz.image_grid(images, levels=levels, columns=3 if volumes else 10)
    points, reference = in_chart(x[:DRAWN], experiment), in_chart(data.x, experiment)
    if data.event_shape == (2,):
        return viz.scatter(points, reference=reference)
    if len(data.event_shape) == 2:
        return viz.sequences(points[:SEQUENCES], reference=reference)
    return viz.histogram({"samples": points, "data": reference})


def as_images(experiment: Experiment) -> bool:
    """Whether events are shown as pixels: stored images, and floating point images and volumes of one or three channels."""
    data = experiment.data.load()
    return data.levels is not None or (len(data.event_shape) in (3, 4) and data.event_shape[-1] in (1, 3))


def frames(experiment: Experiment) -> int:
    """How many times a trajectory shows: fewer of what is wide."""
    return FRAMES if as_images(experiment) and len(experiment.data.load().event_shape) == 3 else POINT_FRAMES


def pictured(experiment: Experiment, shown: int) -> int:
    """How many events a trajectory shows: the ``shown`` ones, or of points, which are a cloud, as many as make one."""
    return POINTS if len(experiment.data.load().event_shape) == 1 else shown


def images_of(x: np.ndarray, experiment: Experiment) -> tuple[np.ndarray, int]:
    """Events ``(*any, *event)`` in stored values as images uint8 ``(*any, height, width, channels)``, and their levels.

    Numbers are shown between the least and the largest of the training data; a volume as some of its slices beside one another.
    """
    data = experiment.data.load()
    if data.levels is not None:
        return x, data.levels
    if len(data.event_shape) == 4:
        chosen = np.linspace(0, data.event_shape[0] - 1, min(SLICES, data.event_shape[0])).round().astype(int)
        x = rearrange(np.take(x, chosen, axis=-4), "... d h w c -> ... h (d w) c")
    seen = data.x[:1000]
    low, high = float(seen.min()), float(seen.max())
    with np.errstate(invalid="ignore"):
        scaled = np.nan_to_num((x - low) / max(high - low, 1e-12))
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8), 256


def conditioned(x: Any, cond: Pytree, real: np.ndarray, experiment: Experiment):
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
    if as_images(experiment):
        decode = experiment.data.transform.decode
        return beside(np.stack([np.asarray(decode(_in_range(state, states[-1]))) for state in states]), headings, experiment)
    return beside(np.stack([np.asarray(jax.jit(experiment.process.chart.encode)(state)) for state in states]), headings, experiment)


def beside(states: np.ndarray, headings: Sequence[str], experiment: Experiment, width: float = 9.0):
    """The figure of events that are shown as images, in stored values, or of others in the chart, ``(times, n, *event)``.

    It is ``width`` inches wide.
    """
    event = experiment.data.load().event_shape
    if as_images(experiment):
        images, levels = images_of(states[:, :ROWS], experiment)
        # Every pixel of small images, every second or third of larger ones.
        every = -(-len(images) * images.shape[3] // ACROSS)
        return viz.trajectory(images[:, :, ::every, ::every], headings, levels=levels, width=width)
    if event == (2,):
        return viz.trajectory(states, headings, width=width)
    if len(event) == 2:
        rows = rearrange(states[:, :SEQUENCE_ROWS], "t n length d -> (n t) length d")
        return viz.sequences(rows, headings=headings, columns=len(states), width=width)
    return viz.histogram(dict(zip(headings, states, strict=True)), columns=len(states), width=width)


def _in_range(frame: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Noise shown at the brightness and contrast of the data: it would be all black and white otherwise."""
    shrink = min(1.0, float(last.std()) / max(float(frame.std()), 1e-12))
    return last.mean() + (frame - frame.mean()) * shrink if shrink < 1 else frame
