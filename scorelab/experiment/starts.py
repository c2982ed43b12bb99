"""Starts taken from the training data when sampling begins, so that a config can name them."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from scorelab.densities import Gaussian, GaussianMixture
from scorelab.densities.moments import METHODS
from scorelab.experiment.data import DataSpec
from scorelab.starts import ClassAverage, GaussianMoments, LogNormal, NoisedPoints, Signed, Start, Teleport
from scorelab.validation import require_choice, require_int

KINDS = ("moments", "lognormal", "class_average", "points", "signed")


class FromData(abc.ABC):
    """A start whose numbers come from the training data when sampling begins."""

    @abc.abstractmethod
    def check(self, data: DataSpec, process: Any, times: np.ndarray | None = None) -> None:
        """Raise ValueError where the data, the process or the grid cannot give this start, before anything is trained."""

    @abc.abstractmethod
    def __call__(self, data: DataSpec, process: Any, label: np.ndarray | None) -> Start:
        """The start of samples with the conditions ``label``; ValueError as ``check``."""


@dataclass(frozen=True, kw_only=True)
class DataStart(FromData):
    """A start whose numbers come from the training data, in the chart of the process.

    Attributes:
        kind: ``"moments"``: the noised Gaussian with the mean and covariance of the data
            (:class:`scorelab.starts.GaussianMoments`); ``"lognormal"``: one mean and one deviation for all
            elements (:class:`scorelab.starts.LogNormal`); ``"class_average"``: the noised average of the
            sample's class (:class:`scorelab.starts.ClassAverage`); ``"points"``: noised training points in a
            random order, of the sample's class where it has one (:class:`scorelab.starts.NoisedPoints`);
            ``"signed"``: as ``"moments"``, with the signs of the training points (:class:`scorelab.starts.Signed`).
    """

    kind: Literal["moments", "lognormal", "class_average", "points", "signed"] = "moments"

    def __post_init__(self):
        require_choice(self, KINDS, kind=self.kind)

    def check(self, data: DataSpec, process: Any, times: np.ndarray | None = None) -> None:
        if process.has_signs != (self.kind == "signed"):
            wanted = "'signed'" if process.has_signs else f"one of {', '.join(map(repr, KINDS[:-1]))}"
            raise ValueError(f"DataStart.kind = {self.kind!r} under {process!r}: expected {wanted}")
        if self.kind == "class_average":
            _require_classes("DataStart.kind = 'class_average'", data)

    def __call__(self, data: DataSpec, process: Any, label: np.ndarray | None) -> Start:
        self.check(data, process)
        y = np.concatenate(list(data.encoded(process.chart)))
        if self.kind in ("moments", "signed"):
            start = GaussianMoments(Gaussian.from_data(y))
            return Signed(start, self._signs(data, label)) if self.kind == "signed" else start
        if self.kind == "points":
            return NoisedPoints(y[self._order(data, label)])
        if self.kind == "lognormal":
            return LogNormal.matched(y.mean(), y.std(), process)
        classes = data.load().label
        means = np.stack([y[classes == c].mean(0) for c in range(data.load().num_classes or 0)])
        return ClassAverage(means, label)

    def _signs(self, data: DataSpec, label: np.ndarray | None) -> np.ndarray:
        """Signs of training points in a random order, of the class of each sample where it has one."""
        return np.asarray(np.sign(data.transform.encode(data.load().x)))[self._order(data, label)]

    def _order(self, data: DataSpec, label: np.ndarray | None) -> np.ndarray:
        """Numbers of training points in a random order, of the class of each sample where it has one."""
        arrays, rng = data.load(), np.random.default_rng(0)
        if label is None or arrays.label is None:
            return rng.permutation(len(arrays.x))
        rows = {int(c): np.flatnonzero(arrays.label == c) for c in np.unique(label)}
        if missing := [c for c, found in rows.items() if not len(found)]:
            raise ValueError(f"DataStart.kind = {self.kind!r} for {data.name}: expected examples of the class {missing[0]}")
        return np.array([rng.choice(rows[int(c)]) for c in label])


@dataclass(frozen=True, kw_only=True)
class DataTeleport(FromData):
    """A jump along the probability flow of the Gaussian with the moments of the data (:class:`scorelab.starts.Teleport`).

    A model with labels gets the moments of each class.

    Attributes:
        sigma_skip: the noise ratio to jump to, or ``"auto"``.
        skip_steps: the number of grid steps to jump over, instead.
        t_from: the time at which the jump begins, None for the first grid time; with ``skip_steps = 0``, a short grid can
            begin where the jump ends.
        rank: directions kept of the covariance, None for all.
        method: how they are found (:meth:`scorelab.densities.Gaussian.from_data`).
    """

    sigma_skip: float | Literal["auto"] | None = "auto"
    skip_steps: int | None = None
    t_from: float | None = None
    rank: int | None = None
    method: Literal["eigh", "randomized", "streaming"] = "eigh"

    def __post_init__(self):
        self._jump(Gaussian(np.zeros(1), 1.0))
        require_choice(self, METHODS, method=self.method)
        if self.rank is not None:
            require_int(self, 1, rank=self.rank)
        elif self.method != "eigh":
            raise ValueError(f"DataTeleport.rank = None with method = {self.method!r}: expected a number of directions")

    def check(self, data: DataSpec, process: Any, times: np.ndarray | None = None) -> None:
        size = int(np.prod(data.load().event_shape))
        if self.rank is not None and self.rank > size:
            raise ValueError(f"DataTeleport.rank = {self.rank} for {data.name}: expected at most its dimension {size}")
        if process.has_signs:
            raise ValueError(f"DataTeleport under {process!r}: expected a process that does not keep signs")
        if data.labels:
            _require_classes("DataTeleport", data)
        if times is not None:
            self._jump(Gaussian(np.zeros(1), 1.0)).steps_over(process, times)

    def __call__(self, data: DataSpec, process: Any, label: np.ndarray | None) -> Teleport:
        self.check(data, process)
        if label is None:
            return self._jump(Gaussian.from_data(data.encoded(process.chart), rank=self.rank, method=self.method))
        y, arrays = np.concatenate(list(data.encoded(process.chart))), data.load()
        known = cast(np.ndarray, arrays.label)  # where samples have labels, the data has
        law = GaussianMixture.per_class(y, known, num_classes=arrays.num_classes, rank=self.rank, method=self.method)
        return self._jump(law, label)

    def _jump(self, law: Gaussian | GaussianMixture, label: np.ndarray | None = None) -> Teleport:
        return Teleport(law, self.sigma_skip, skip_steps=self.skip_steps, t_from=self.t_from, label=label)


def _require_classes(owner: str, data: DataSpec) -> None:
    label, classes = data.load().label, data.load().num_classes or 0
    if label is None:
        raise ValueError(f"{owner} for {data.name}: expected a data set with labels")
    if len(np.unique(label)) < classes:
        raise ValueError(f"{owner} for {data.name}: expected examples of all {classes} classes")
