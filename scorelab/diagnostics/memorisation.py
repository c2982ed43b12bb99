"""Whether a generator returns its training data: distances to the nearest training point, beside those of held-out points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from scorelab.metrics import Features
from scorelab.metrics.kernel import squared_distances
from scorelab.metrics.value import points

# A sample is called a copy where its nearest training point is at most this share of the way to the next one.
COPY = 1 / 3
# Entries of a matrix of distances that are held at once.
_HELD = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    r"""What :func:`memorisation` returns, with :math:`d` the distance to the nearest training point.

    Attributes:
        distances: :math:`d` of every sample, float64 ``(n,)``.
        floor_distances: that of every held-out point, float64 ``(k,)``.
        ratio: mean of the first over that of the second: 1 for fresh points of the law of the data, 0 for training points.
        standard_error: of ``ratio``, over samples and held-out points; the training points are as they are.
        copied: the share of samples whose second nearest training point is at least three times as far away.
        copied_floor: that of held-out points.
        nearest: the share of samples nearer to a training point than to every held-out one, ties counted half.
        nearest_floor: :math:`m/(m+k)`, which is its mean for samples that know nothing of the training points, good or bad.
    """

    distances: np.ndarray
    floor_distances: np.ndarray
    ratio: float
    standard_error: float
    copied: float
    copied_floor: float
    nearest: float
    nearest_floor: float


def memorisation(samples: Any, train: Any, held_out: Any, *, features: Features | None = None) -> Memorisation:
    r"""Whether samples are nearer to the training points than points that were never seen.

    .. math:: r = \frac{E_{x}\,\min_i\lVert x - x_i\rVert}{E_{h}\,\min_i\lVert h - x_i\rVert},\qquad
              q = P\big(\min_{i\le m}\lVert x - x_i\rVert < \min_{j\le k}\lVert x - h_j\rVert\big)

    Samples of another law than that of the data change :math:`r` too: blurred ones lie nearer, noisy ones farther. For them there
    is :math:`q`. Before the training, the ``m`` training points and the ``k`` held-out ones are exchangeable, so :math:`q` has the
    mean :math:`m/(m+k)` for samples of any law that do not depend on them. A copy is told by its two nearest training points
    (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize").

    Args:
        samples: ``(n, *event)``, real numbers.
        train: the points that were trained on, ``(m, *event)`` in the same units, at least two.
        held_out: others of the same law, ``(k, *event)``.
        features: the extractor in whose space distances are taken; None for the numbers themselves.

    Raises:
        ValueError: events of different shapes, fewer than two points in a set, numbers that are not finite.
    """
    x, seen, unseen = (
        points(_rows(name, value, features), features, name, power=2)
        for name, value in (("samples", samples), ("train", train), ("held_out", held_out))
    )
    for name, other in (("samples", x), ("held_out", unseen)):
        if other.shape[1] != seen.shape[1]:
            raise ValueError(f"{name} has {other.shape[1]} numbers in a point beside {seen.shape[1]} of train: expected the same")
    # One origin: |a|^2 + |b|^2 - 2 a.b loses digits where the points are far from it.
    centre = seen.mean(0)
    x, seen, unseen = x - centre, seen - centre, unseen - centre
    # A point that is stored twice is one point: its twin is no second nearest.
    distinct = np.unique(seen, axis=0)
    if len(distinct) < 2:
        raise ValueError("train has one point many times: expected two that differ")
    (first, second), (floor_first, floor_second) = _two_nearest(x, distinct), _two_nearest(unseen, distinct)
    elsewhere = _two_nearest(x, unseen)[0]
    floor = floor_first.mean()
    if floor == 0:
        raise ValueError("held_out has points of train alone: expected points that were not trained on")
    ratio = first.mean() / floor
    error = np.hypot(first.std(ddof=1) / np.sqrt(len(x)), ratio * floor_first.std(ddof=1) / np.sqrt(len(unseen))) / floor
    return Memorisation(
        distances=first,
        floor_distances=floor_first,
        ratio=float(ratio),
        standard_error=float(error),
        copied=float(np.mean(first <= COPY * second)),
        copied_floor=float(np.mean(floor_first <= COPY * floor_second)),
        nearest=float(np.mean((first < elsewhere) + 0.5 * (first == elsewhere))),
        nearest_floor=len(seen) / (len(seen) + len(unseen)),
    )


def _rows(name: str, value: Any, features: Features | None) -> np.ndarray:
    value = np.asarray(value)
    if value.ndim < 2:
        raise ValueError(f"{name} has shape {value.shape}: expected (n, *event)")
    return value if features is not None else value.reshape(len(value), math.prod(value.shape[1:]))


def _two_nearest(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances of every row of ``x`` to its nearest and second nearest row of ``y``."""
    nearest, rows = np.empty((len(x), 2)), max(1, _HELD // len(y))
    for i in range(0, len(x), rows):
        nearest[i : i + rows] = np.partition(squared_distances(x[i : i + rows], y), 1, axis=1)[:, :2]
    first, second = np.sqrt(nearest).T
    return first, second
