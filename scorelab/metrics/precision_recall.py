"""Fidelity and coverage by nearest neighbours: improved precision and recall, density and coverage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scorelab.metrics.features import Features
from scorelab.metrics.kernel import squared_distances
from scorelab.metrics.value import MetricValue, extractor_id, point_pair
from scorelab.validation import require_int

# Rows of a distance matrix held at once.
_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Four shares of one comparison; precision, recall and coverage lie in [0, 1], density may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    n: int
    reference_n: int
    extractor: str | None

    def values(self) -> tuple[MetricValue, MetricValue, MetricValue, MetricValue]:
        """The four numbers as metric values, in the order of the fields."""

        def metric(name: str, value: float) -> MetricValue:
            return MetricValue(
                name=f"{name}(k={self.k})", value=value, extractor=self.extractor, n=self.n, reference_n=self.reference_n
            )

        return (
            metric("precision", self.precision),
            metric("recall", self.recall),
            metric("density", self.density),
            metric("coverage", self.coverage),
        )

    def __str__(self) -> str:
        return "\n".join(str(value) for value in self.values())


def _squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of every row to its k-th nearest other row."""
    radii = []
    for i in range(0, len(x), _BLOCK):
        squared = squared_distances(x[i : i + _BLOCK], x)
        # A row is no neighbour of its own; rounding could otherwise rank it behind an exact duplicate.
        squared[np.arange(len(squared)), np.arange(i, i + len(squared))] = -1.0
        radii.append(np.partition(squared, k, axis=1)[:, k])
    return np.concatenate(radii)


def precision_recall(
    samples: np.ndarray, reference: np.ndarray, features: Features | None = None, *, k: int = 3
) -> PrecisionRecall:
    r"""Shares of samples near the data and of data near the samples, by k-th neighbour distances.

    With :math:`B_k(z)` the ball at :math:`z` reaching its k-th nearest neighbour in its own set, :math:`x` the ``n`` samples and
    :math:`y` the ``m`` reference points: precision is the share of :math:`x` in the union of :math:`B_k(y)`, recall that of
    :math:`y` in the union of :math:`B_k(x)`, coverage that of :math:`y` with some :math:`x` in :math:`B_k(y)`, and density the
    number of pairs with :math:`x` in :math:`B_k(y)`, over :math:`kn`.

    For equal laws without ties density has expectation 1 (a sample is as likely as each of the :math:`m-1` others
    to be among the k nearest of a reference point: :math:`k/m`) and coverage

    .. math:: 1 - \frac{(m-1)\cdots(m-k)}{(n+m-1)\cdots(n+m-k)} .

    Raises:
        ValueError: ``k`` below 1, or not below both ``n`` and ``m``.

    Sources: Kynkaanniemi et al. 2019,
    arXiv 1904.06991, equations 1 and 2; Naeem et al. 2020, arXiv 2002.09797, section 3.
    """
    require_int("precision_recall", 1, k=k)
    x, y = point_pair(samples, reference, features, power=2)
    if k >= min(len(x), len(y)):
        raise ValueError(f"k={k}: expected 1 to {min(len(x), len(y)) - 1}, below both numbers of points")
    # One origin for both sets: |a|^2 + |b|^2 - 2 a.b loses digits where the points are far from it.
    centre = y.mean(0)
    x, y = x - centre, y - centre
    radii_x, radii_y = _squared_radii(x, k), _squared_radii(y, k)
    near_y = np.zeros(len(x), np.int64)
    recalled, covered = np.zeros(len(y), bool), np.zeros(len(y), bool)
    for i in range(0, len(x), _BLOCK):
        rows = slice(i, i + _BLOCK)
        squared = squared_distances(x[rows], y)
        inside = squared <= radii_y
        near_y[rows] = inside.sum(1)
        covered |= inside.any(0)
        recalled |= (squared <= radii_x[rows, None]).any(0)
    return PrecisionRecall(
        precision=float((near_y > 0).mean()),
        recall=float(recalled.mean()),
        density=float(near_y.mean() / k),
        coverage=float(covered.mean()),
        k=k,
        n=len(x),
        reference_n=len(y),
        extractor=extractor_id(features),
    )
