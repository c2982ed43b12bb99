"""The intrinsic dimension of the data, as the score of a trained model has it, as a diagnostic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scorelab import diagnostics, viz
from scorelab.diagnostics.intrinsic_dimension import Method, as_estimator
from scorelab.experiment.diagnose import ByNoiseLevel, Finding, points, rows
from scorelab.viz import Panel

# Classes that get a line each, and dimensions that get a place each in the histogram.
_CLASSES, _PLACES = 10, 30


@dataclass(frozen=True, kw_only=True)
class IntrinsicDimension(ByNoiseLevel):
    """The dimension of the data around their points, by class where they have one.

    See :func:`scorelab.diagnostics.intrinsic_dimension`.

    Attributes:
        method: ``"symmetric"``, ``"svd"``, ``"flow"``, ``"slope"``, or an estimator of ``scorelab.diagnostics``.
        batch: points evaluated at once; None for as many as fit.
    """

    name: str = "intrinsic_dimension"
    n: int = 100
    sigma_min: float = 0.05
    sigma_max: float = 1.0
    levels: int = 6
    method: Method | diagnostics.DimensionEstimator = "symmetric"
    batch: int | None = None

    def __post_init__(self):
        super().__post_init__()
        as_estimator(self, self.method)

    def check(self, experiment):
        """Whether the process has these noise ratios, and the estimator an answer there."""
        super().check(experiment)
        as_estimator(self, self.method).check(experiment.process, self.sigmas)

    def __call__(self, model, data, key):
        """Mean dimension and share of clear points by noise ratio; all points at the level where most of them are clear."""
        x, cond = points(data, self.n)
        found = diagnostics.intrinsic_dimension(
            model, x, self.sigmas, method=self.method, cond=cond, key=key, batch=self.batch
        )  # fmt: skip
        groups = _groups(data.load().label, rows(data, self.n))
        clear = found.clear.mean(axis=1)
        # Where the noise hides all directions, or none, the gap is clear and says nothing.
        inside = (found.mean > 0.5) & (found.mean < math.prod(x.shape[1:]) - 0.5)
        shown = int(np.argmax(np.where(inside | ~inside.any(), clear, -1.0)))
        by_class = np.stack([found.dimension[:, group].mean(axis=1) for group in groups.values()])
        values = dict(
            dimension_mean=found.mean[shown], at_noise_ratio=found.sigmas[shown], clear_share=clear[shown],
            sigmas=found.sigmas, mean=found.mean, standard_error=found.standard_error, clear=clear,
            dimension=found.dimension[shown], by_class=by_class,
        )  # fmt: skip
        return Finding(values=values, figure=_figure(found, groups, shown))


def _groups(label: np.ndarray | None, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Which of the chosen rows belong to which class; all together where there are no classes, or very many."""
    of = None if label is None else label[chosen]
    if of is None or len(np.unique(of)) > _CLASSES:
        return {"all points": np.ones(len(chosen), bool)}
    return {f"class {each}": of == each for each in np.unique(of)}


def _figure(found: diagnostics.IntrinsicDimension, groups: dict[str, np.ndarray], shown: int):
    """Over the noise ratio, and as a histogram at one of them."""
    curves = {name: (found.sigmas, found.dimension[:, group].mean(axis=1)) for name, group in groups.items()}
    content = [Panel(series=curves, title="mean over points", xlabel="noise ratio", ylabel="dimension", logx=True, markers=True)]
    at = found.dimension[shown]
    if np.isfinite(at).any():
        low, high = np.floor(np.nanmin(at) + 0.5), np.floor(np.nanmax(at) + 0.5)
        width = max(1, int(np.ceil((high - low + 1) / _PLACES)))
        # Half numbers, so that a whole one lies in the middle of its place.
        edges = np.arange(low - 0.5, high + 0.5 + width, width)
        middle = (edges[:-1] + edges[1:]) / 2
        share = {name: (middle, np.histogram(at[group], edges)[0] / group.sum()) for name, group in groups.items()}
        title = f"at noise ratio {found.sigmas[shown]:.3g}"
        content.append(Panel(series=share, title=title, xlabel="dimension", ylabel="share of the points", markers=True))
    return viz.panels(content)
