"""Starts taken from the training data when sampling begins, so that a config can name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from scorelab.densities import Gaussian
from scorelab.processes import Process
from scorelab.starts import ClassAverage, GaussianMoments, LogNormal, Signed, Start
from scorelab.typing import require_choice

if TYPE_CHECKING:
    from scorelab.run.experiment import DataSpec

KINDS = ("moments", "lognormal", "class_average", "signed")


@dataclass(frozen=True, kw_only=True)
class DataStart:
    """A start whose numbers come from the training data, in the chart of the process.

    Attributes:
        kind: ``"moments"``: the noised Gaussian with the mean and covariance of the data
            (:class:`scorelab.starts.GaussianMoments`); ``"lognormal"``: one mean and one deviation for all
            elements (:class:`scorelab.starts.LogNormal`); ``"class_average"``: the noised average of the
            sample's class (:class:`scorelab.starts.ClassAverage`); ``"signed"``: as ``"moments"``, with the
            signs of the training points (:class:`scorelab.starts.Signed`).
    """

    kind: Literal["moments", "lognormal", "class_average", "signed"] = "moments"

    def __post_init__(self):
        require_choice(self, KINDS, kind=self.kind)

    def check(self, data: DataSpec, process: Process) -> None:
        """Raise ValueError where the data cannot give this start, before anything is trained."""
        if process.chart.signed != (self.kind == "signed"):
            wanted = "'signed'" if process.chart.signed else f"one of {', '.join(map(repr, KINDS[:-1]))}"
            raise ValueError(f"DataStart.kind = {self.kind!r} under {process!r}: expected {wanted}")
        if self.kind == "class_average":
            label, classes = data.load().label, data.load().num_classes
            if label is None:
                raise ValueError(f"DataStart.kind = 'class_average' for {data.name}: expected a data set with labels")
            if len(np.unique(label)) < classes:
                raise ValueError(f"DataStart.kind = 'class_average' for {data.name}: expected examples of all {classes} classes")

    def __call__(self, data: DataSpec, process: Process, label: np.ndarray | None) -> Start:
        """The start of samples with the conditions ``label``; ValueError as ``check``."""
        self.check(data, process)
        y = np.concatenate(list(data.encoded(process.chart)))
        if self.kind in ("moments", "signed"):
            start = GaussianMoments(Gaussian.from_data(y))
            return Signed(start, np.sign(data.transform.encode(data.load().x))) if self.kind == "signed" else start
        if self.kind == "lognormal":
            return LogNormal.matched(y.mean(), y.std(), process)
        classes = data.load().label
        means = np.stack([y[classes == c].mean(0) for c in range(data.load().num_classes)])
        return ClassAverage(means, label)
