"""The diagnostics of a trained model: numbers in ``diagnostics/<name>.json``, and a picture beside them."""

from __future__ import annotations

import abc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from scorelab import diagnostics, viz
from scorelab.arrays import Key
from scorelab.densities import Gaussian
from scorelab.distill import ConsistencyTraining, Distillation
from scorelab.errors import ConfigError, shown
from scorelab.experiment.base import Experiment, Run, Stage
from scorelab.experiment.data import DataSpec
from scorelab.experiment.describe import describe
from scorelab.experiment.train import Train, trained_state
from scorelab.experiment.workdir import NAME, Workdir
from scorelab.files import write_bytes, write_json
from scorelab.models.base import Model
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.validation import require_int, require_positive, require_spec


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a diagnostic says.

    Attributes:
        values: numbers and arrays by name.
        figure: a Matplotlib figure of them, or None.
    """

    values: Mapping[str, Any]
    figure: Any = None

    def __post_init__(self):
        require_spec(self, Mapping, values=self.values)
        for name, value in self.values.items():
            if not isinstance(name, str) or np.asarray(value).dtype.kind not in "biuf":
                raise TypeError(f"Finding.values[{name!r}] = {value!r}: expected real numbers by name")


@dataclass(frozen=True, kw_only=True)
class Diagnostic(abc.ABC):
    """A question to a trained model. A new one states its ``name`` and needs ``__call__``; ``check`` where it can refuse something.

    Attributes:
        name: of its files, and of its section in the report.
    """

    name: str

    def check(self, experiment: Experiment) -> None:
        """Raise ValueError where the question has no answer, before anything is trained."""
        return None

    @abc.abstractmethod
    def __call__(self, model: Model, data: DataSpec, key: Key) -> Finding:
        """The answer."""


@dataclass(frozen=True, kw_only=True)
class Diagnose(Stage):
    """Ask the trained model.

    Attributes:
        questions: the diagnostics.
    """

    questions: tuple[Diagnostic, ...] = ()

    def __post_init__(self):
        given = self.questions
        object.__setattr__(self, "questions", tuple(given) if isinstance(given, tuple | list) else (given,))
        for each in self.questions:
            require_spec(self, Diagnostic, questions=each)
        names = [each.name for each in self.questions]
        for name in names:
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise ValueError(f"Diagnose.questions has one named {name!r}: expected a name of letters, digits, '.', '_' and '-'")
            if names.count(name) > 1:
                raise ValueError(f"Diagnose.questions has {name!r} twice: expected another name for each")

    def check(self, experiment, like):
        """What the diagnostics refuse."""
        experiment.require_order(self, experiment.one(Train))
        others = {each.name for stage in experiment.all(Diagnose) if stage is not self for each in stage.questions}
        for each in self.questions:
            if each.name in others:
                raise ValueError(f"Diagnose.questions has {each.name!r} in two stages: expected another name for each")
            each.check(experiment)

    def __call__(self, run: Run) -> None:
        """Ask each, unless it was asked of this very state."""
        state, step = trained_state(run.experiment, run.workdir) if self.questions else (None, 0)
        for each in self.questions:
            data = run.experiment.data.load().sha256
            how = {"step": step, "seed": run.experiment.seed, "diagnostic": describe(each), "train_sha256": data}
            found = read_finding(run.workdir, each.name)
            if found is not None and all(found.get(key) == value for key, value in how.items()):
                run.console.stage("diagnose", f"nothing to do, {each.name} of step {step} is there")
                continue
            began = time.monotonic()
            # Averages are of the model that is sampled; the name makes the numbers of one independent of the others.
            key = Diagnose(name=each.name).key(run.experiment.keys()[2])
            finding = each(run.experiment.learner.model(state), run.experiment.data, key)
            if not isinstance(finding, Finding):
                raise TypeError(f"{type(each).__name__} returned {type(finding).__name__}: expected a Finding")
            _write(run.workdir, each.name, how, finding)
            run.console.stage("diagnose", f"{each.name} in {time.monotonic() - began:.1f} s{_in_short(finding)}")


def read_finding(workdir: Workdir, name: str) -> dict[str, Any] | None:
    """What was found under this name, and how; None where nothing was."""
    found = workdir.read_json(workdir.finding(name))
    if found is not None and not {"values", "step", "diagnostic"} <= found.keys():
        raise ConfigError(f"{shown(workdir.finding(name))} is damaged: delete it")
    return found


def _write(workdir: Workdir, name: str, how: dict[str, Any], finding: Finding) -> None:
    path = workdir.finding(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The picture first: numbers without it would be taken for whole.
    picture = path.with_suffix(".png")
    if finding.figure is None:
        picture.unlink(missing_ok=True)
    else:
        write_bytes(picture, viz.to_png_bytes(finding.figure))
    write_json(path, {**how, "values": {name: _plain(value) for name, value in finding.values.items()}})


def _plain(value: Any) -> Any:
    """Numbers as JSON has them, which knows neither NaN nor infinity."""
    array = np.asarray(value)
    if array.ndim:
        return [_plain(part) for part in array]
    number = array.item()
    return number if isinstance(number, bool | int) or np.isfinite(number) else None


def _in_short(finding: Finding) -> str:
    single = {name: np.asarray(value) for name, value in finding.values.items() if np.ndim(value) == 0}
    return "".join(f", {name} {value.item():.4g}" for name, value in list(single.items())[:3])


def rows(data: DataSpec, n: int) -> np.ndarray:
    """The numbers of up to ``n`` rows of the training data, spread over data sorted by class."""
    count = len(data.load())
    return np.unique(np.linspace(0, count - 1, min(n, count)).round().astype(int))


def points(data: DataSpec, n: int) -> tuple[np.ndarray, Any]:
    """Up to ``n`` points of the training data as the model sees them, those of :func:`rows`, and their conditions."""
    chosen = rows(data, n)
    return np.asarray(data.transform.encode(data.load().x[chosen])), data.condition_of(chosen)


def require_denoiser(diagnostic: Diagnostic, experiment: Experiment) -> None:
    """ValueError for an experiment whose network ends paths: what it says of noised data is no mean, and so no score."""
    learner = experiment.learner
    if isinstance(learner, Distillation) or isinstance(getattr(learner, "loss", None), ConsistencyTraining):
        what = f"{type(diagnostic).__name__} of a student of {type(learner).__name__}"
        raise ValueError(f"{what}: expected a learner of a denoised mean, since what a student says is no score")


@dataclass(frozen=True, kw_only=True)
class ByNoiseLevel(Diagnostic):
    """A question that is asked at noised data, noise level by noise level; a new one states its ``name`` and ``__call__``.

    Attributes:
        n: points of the training data that are asked about.
        sigma_min: the smallest noise ratio, in units of the chart.
        sigma_max: the largest one.
        levels: how many, equally spaced in the logarithm.
    """

    n: int = 256
    sigma_min: float = 0.02
    sigma_max: float = 20.0
    levels: int = 10

    def __post_init__(self):
        require_int(self, 1, n=self.n)
        require_int(self, 2, levels=self.levels)
        require_positive(self, sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        if self.sigma_min >= self.sigma_max:
            what = f"{type(self).__name__}.sigma_min = {self.sigma_min}"
            raise ValueError(f"{what}: expected less than sigma_max = {self.sigma_max}")

    @property
    def sigmas(self) -> np.ndarray:
        """The noise ratios."""
        return np.geomspace(self.sigma_min, self.sigma_max, self.levels)

    def check(self, experiment):
        """Whether the process has these noise ratios."""
        process = experiment.process
        require_denoiser(self, experiment)
        require_spec(f"{type(self).__name__}: the process", LinearGaussian, process=process)
        low, high = (float(process.noise_ratio(t)) for t in (process.t_min, process.t_max))
        for name, value in (("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)):
            if not low <= value <= high:
                what = f"{type(self).__name__}.{name} = {value}"
                raise ValueError(f"{what}: expected {low:.4g} to {high:.4g}, those of {process!r}")


@dataclass(frozen=True, kw_only=True)
class ExplainedVariance(ByNoiseLevel):
    """The share of the model's score that the Gaussian with the moments of the data explains, over noise ratios."""

    name: str = "explained_variance"

    def __call__(self, model, data, key):
        """By noise ratio, as a mean of ratios (the published definition) and a ratio of means."""
        law = Gaussian.from_data(data.encoded(model.process.chart))
        x, cond = points(data, self.n)
        by_law = diagnostics.explained_variance(model, {"law": law}, x, self.sigmas, cond=cond, key=key)
        found = cast(Mapping, by_law)["law"]
        curves = {"mean of ratios": (self.sigmas, found.mean_of_ratios), "ratio of means": (self.sigmas, found.ratio_of_means)}
        figure = viz.lines(curves, xlabel="noise ratio", ylabel="explained variance", logx=True)
        values = dict(
            sigmas=self.sigmas, mean_of_ratios=found.mean_of_ratios, standard_error=found.standard_error,
            ratio_of_means=found.ratio_of_means,
        )  # fmt: skip
        return Finding(values=values, figure=figure)
