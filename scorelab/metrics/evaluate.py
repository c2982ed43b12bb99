"""The metrics of one sample set at one n, each beside the same metric between train and test data."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from scorelab.data.arrays import Arrays
from scorelab.metrics.features import Coordinates, Features, extracted
from scorelab.metrics.frechet import frechet
from scorelab.metrics.kernel import kid
from scorelab.metrics.precision_recall import precision_recall
from scorelab.metrics.value import MetricValue
from scorelab.metrics.vendi import vendi
from scorelab.validation import require_int


def _compare(z: np.ndarray, reference: np.ndarray, known: Features, k: int, subsets: int) -> list[MetricValue]:
    return [
        frechet(z, reference, known),
        kid(z, reference, known, subsets=subsets),
        *precision_recall(z, reference, known, k=k).values(),
        vendi(z, features=known, q=1, centre=reference.mean(0)),
        vendi(z, features=known, q=2, centre=reference.mean(0)),
    ]


def report(
    samples: Any,
    train: Arrays,
    test: Arrays,
    features: Features,
    *,
    n: int | None = None,
    key: jax.Array,
    k: int = 3,
    subsets: int = 10,
) -> list[MetricValue]:
    """Every metric of ``samples`` against train data, each with its floor.

    In this order: Frechet, KID, precision, recall, density, coverage, Vendi at q = 1 and at q = 2.

    ``n`` images each are drawn by ``key`` without replacement from the samples, the train and the test split; the
    floor of a value is that of the same metric with the test images in the place of the samples (for Vendi, the
    value of the test images; both are centred at the mean of the train features). ``n=None`` takes the
    largest possible. ``samples`` are stored values (uint8 for images), as in ``train.x``; of those on disk
    (:class:`scorelab.Shards`) a block is read at a time.

    Raises:
        ValueError: ``n`` above the smallest of the three sets, which is named.
    """
    sizes = {"samples": len(samples), "train": len(train), "test": len(test)}
    smallest = min(sizes, key=sizes.__getitem__)
    n = sizes[smallest] if n is None else n
    require_int("report", 0, n=n)
    if not 2 <= n <= sizes[smallest]:
        raise ValueError(f"n={n}: expected 2 to {sizes[smallest]}, the number of images in {smallest}")
    keys = jax.random.split(key, 3)
    chosen, reference, held_out = (
        extracted(features, x, np.sort(np.asarray(jax.random.permutation(part, len(x))[:n])))
        for part, x in zip(keys, (samples, train.x, test.x), strict=True)
    )
    known = Coordinates(id=features.id)
    found = _compare(chosen, reference, known, k, subsets)
    floors = _compare(held_out, reference, known, k, subsets)
    return [value.with_floor(floor) for value, floor in zip(found, floors, strict=True)]
