"""The evaluation stage: from samples to ``metrics.json``."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from scorelab import metrics
from scorelab.arrays import Key
from scorelab.data import Derived
from scorelab.errors import ConfigError, shown
from scorelab.experiment.base import Run, Stage
from scorelab.experiment.data import DataSpec
from scorelab.experiment.describe import describe
from scorelab.experiment.sample import Drawn, Sample, read_samples
from scorelab.experiment.sinks import opened
from scorelab.experiment.train import Train
from scorelab.experiment.workdir import Workdir, read_lines
from scorelab.files import write_bytes, write_json
from scorelab.metrics import Coordinates, Features, MetricValue, NetworkFeatures
from scorelab.metrics.features import extracted
from scorelab.shards import Shards
from scorelab.validation import SEEDS, require_int, require_seed, require_spec


@dataclass(frozen=True, kw_only=True)
class Evaluation(abc.ABC):
    """How samples are evaluated; a new one states ``check`` and ``__call__``.

    Attributes:
        n: number of samples compared; None for as many as there are.
    """

    n: int | None = None

    def __post_init__(self):
        if self.n is not None:
            require_int(self, 2, n=self.n)

    @abc.abstractmethod
    def check(self, data: DataSpec, samples: int) -> None:
        """Raise ValueError where this number of samples of this data set cannot be evaluated."""

    @abc.abstractmethod
    def __call__(self, samples: Any, data: DataSpec, key: Key) -> list[MetricValue]:
        """The metrics of ``samples`` in stored values, an array or :class:`scorelab.Shards`: rows are read as ``samples[:n]``."""

    def of(self, drawn: Drawn, data: DataSpec, key: Key) -> list[MetricValue]:
        """The metrics of samples together with their conditions; one that compares with these states this too."""
        return self(drawn.x, data, key)


@dataclass(frozen=True, kw_only=True)
class ImageEvaluation(Evaluation):
    """Frechet, KID, precision, recall, density, coverage and Vendi of images, each with its train/test floor.

    Attributes:
        features: the extractor, such as ``metrics.small_cnn("mnist")`` or ``metrics.pixels()``.
        n: number of samples, train and test images compared; None for as many as the smallest set has.
    """

    features: Features

    def __post_init__(self):
        super().__post_init__()
        require_spec(self, Features, features=self.features)

    def check(self, data, samples):
        if "test" not in data.dataset.splits:
            raise ValueError(f"ImageEvaluation for {data.name}, which has no test split: expected no such evaluation")
        sizes = {"Sample.n": samples, "the train split": len(data.load()), "the test split": len(data.load("test"))}
        smallest = min(sizes, key=lambda name: sizes[name])
        if sizes[smallest] < (2 if self.n is None else self.n):
            raise ValueError(f"ImageEvaluation.n = {self.n}: expected 2 to {sizes[smallest]}, the number of images of {smallest}")
        _check_features("ImageEvaluation", self.features, data)

    def __call__(self, samples, data, key):
        """The metrics of ``samples`` (stored values) against ``data``."""
        return metrics.report(samples, data.load("train"), data.load("test"), self.features, n=self.n, key=key)


def _check_features(owner: str, features: Features, data: DataSpec) -> None:
    """Raise ``ValueError`` for features that are not of images as the data are."""
    arrays = data.load()
    if features.dataset not in (None, *data.dataset.known_as):
        raise ValueError(f"{owner}.features = {features.id}: expected features of {data.name}, not of {features.dataset}")
    if arrays.levels is None or features.levels not in (None, arrays.levels):
        raise ValueError(f"{owner}.features = {features!r}: expected levels = {arrays.levels}, as {data.name} has")
    if features.shape not in (None, arrays.event_shape):
        raise ValueError(
            f"{owner}.features = {features.id}: expected features of images {arrays.event_shape}, not {features.shape}"
        )
    if isinstance(features, NetworkFeatures) and arrays.event_shape[2:] != (features.channels,):
        raise ValueError(
            f"{owner}.features = {features.id}: expected images of {features.channels} channels, not {arrays.event_shape}"
        )


@dataclass(frozen=True, kw_only=True)
class ReferenceEvaluation(Evaluation):
    """The Frechet distance of images to published statistics, as papers state it, and the Inception score.

    The floor is the same of test images, where there are as many. The score is there where the features know class probabilities.

    Attributes:
        features: the extractor that the statistics are of, such as ``pretrained.InceptionFeatures(mode="tf1")`` for those of EDM.
        reference: the file of the statistics (:func:`scorelab.metrics.read_moments`).
        n: number of samples compared, drawn among them; None for all. Papers take 50,000.
    """

    features: Features
    reference: str

    def __post_init__(self):
        super().__post_init__()
        require_spec(self, Features, features=self.features)
        require_spec(self, str | Path, reference=self.reference)

    def check(self, data, samples):
        # The Inception score is a mean over ten parts.
        least = 10 if hasattr(self.features, "class_probabilities") else 2
        if not least <= (samples if self.n is None else self.n) <= samples:
            raise ValueError(f"ReferenceEvaluation.n = {self.n}: expected {least} to {samples}, Sample.n")
        _check_features("ReferenceEvaluation", self.features, data)
        self._moments(features=self.features, images=data.load().x)

    def _moments(self, **of: Any) -> metrics.Moments:
        try:
            return metrics.read_moments(self.reference, **of)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"ReferenceEvaluation.reference = {str(self.reference)!r}: expected a file of statistics: {error}"
            ) from error

    def __call__(self, samples, data, key):
        """The metrics of ``samples``, stored values."""
        moments, (first, second) = self._moments(), jax.random.split(key)
        n = len(samples) if self.n is None else self.n
        if n > len(samples):
            raise ValueError(f"ReferenceEvaluation.n = {n}: expected at most the number of samples, {len(samples)}")
        known = Coordinates(id=self.features.id)

        def compared(key, x):
            rows = np.sort(np.asarray(jax.random.permutation(key, len(x))[:n]))
            found = [metrics.frechet(extracted(self.features, x, rows), moments, known)]
            if hasattr(self.features, "class_probabilities"):
                found.append(metrics.effective_classes(_Rows(x, rows), cast(Any, self.features)))
            return found

        found = compared(first, samples)
        test = data.load("test").x if "test" in data.dataset.splits else ()
        if len(test) < n:
            return found
        return [value.with_floor(floor) for value, floor in zip(found, compared(second, test), strict=True)]


class _Rows:
    """Some rows of samples that need not be in memory."""

    def __init__(self, x: Any, rows: np.ndarray):
        self._x, self._rows = x, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, which: Any) -> np.ndarray:
        return np.asarray(self._x[self._rows[which]])


@dataclass(frozen=True, kw_only=True)
class PointEvaluation(Evaluation):
    """Sliced Wasserstein distance and MMD of points, flattened, to fresh exact draws; the floor is another exact draw.

    Events of several axes are compared as vectors.

    Attributes:
        n: number of points compared; None for all samples.
        projections: directions of the sliced Wasserstein distance.
        seed: seed of the exact draws; the next one gives the floor.
    """

    projections: int = 256
    seed: int = 1000

    def __post_init__(self):
        super().__post_init__()
        require_int(self, 2, projections=self.projections)
        require_seed(self, seed=self.seed)
        if self.seed == SEEDS - 1:
            raise ValueError(f"PointEvaluation.seed = {self.seed}: expected at most {SEEDS - 2}, as the floor takes the next one")

    def check(self, data, samples):
        if not data.dataset.generated:
            raise ValueError(f"PointEvaluation for {data.name}: expected a generated set, of which new points can be drawn")
        if self.n is not None and self.n > samples:
            raise ValueError(f"PointEvaluation.n = {self.n}: expected at most the number of samples, Sample.n = {samples}")

    def __call__(self, samples, data, key):
        """The metrics of ``samples`` ``(n, *event)`` against the law ``data`` is drawn from."""
        n = len(samples) if self.n is None else self.n
        if n > len(samples):
            raise ValueError(f"PointEvaluation.n = {n}: expected at most the number of samples, {len(samples)}")
        exact, other = (data.dataset.draw(n, self.seed + i).x for i in range(2))
        compared = self._compare(key, exact, metrics.median_bandwidth(exact.reshape(n, -1), other.reshape(n, -1)))
        return [s.with_floor(f) for s, f in zip(compared(np.asarray(samples[:n])), compared(other), strict=True)]

    def _compare(self, key: Key, exact: np.ndarray, width: float) -> Callable[[np.ndarray], list[MetricValue]]:
        """The function from points to their metrics against exact draws."""
        flat = exact.reshape(len(exact), -1)

        def compared(points: np.ndarray) -> list[MetricValue]:
            points = points.reshape(flat.shape)
            return [
                metrics.sliced_wasserstein(key, points, flat, projections=self.projections),
                metrics.mmd(points, flat, width),
            ]

        return compared


@dataclass(frozen=True, kw_only=True)
class StatisticEvaluation(Evaluation):
    r"""How far the laws of the data set's own statistics are off, :math:`W_1` in the units of each.

    A statistic is a number of one event, such as where a blob lies (``DataSet.statistics``). Its law among the samples is compared
    with that among fresh exact draws, twenty times as many. The floor is that of ``n`` other exact draws.

    Attributes:
        n: number of samples compared; None for all samples.
        seed: seed of the exact draws; the next one gives the floor.
    """

    seed: int = 1000

    def __post_init__(self):
        super().__post_init__()
        require_int(self, 0, seed=self.seed)
        if self.seed > SEEDS - 2:
            raise ValueError(
                f"StatisticEvaluation.seed = {self.seed}: expected at most {SEEDS - 2}, as the floor takes the next one"
            )

    def check(self, data, samples):
        if not (data.dataset.generated and data.dataset.statistics):
            raise ValueError(f"StatisticEvaluation for {data.name}: expected a generated set with statistics of its own")
        if self.n is not None and self.n > samples:
            raise ValueError(f"StatisticEvaluation.n = {self.n}: expected at most the number of samples, Sample.n = {samples}")

    def __call__(self, samples, data, key):
        """The distance of each statistic of ``samples``, in stored values."""
        n = len(samples) if self.n is None else self.n
        if n > len(samples):
            raise ValueError(f"StatisticEvaluation.n = {n}: expected at most the number of samples, {len(samples)}")
        exact, other = data.dataset.draw(20 * n, self.seed).x, data.dataset.draw(n, self.seed + 1).x

        def compared(name: str, points: np.ndarray) -> MetricValue:
            column = lambda x: np.asarray(data.dataset.statistics[name](x), np.float64)[:, None]
            value = float(metrics.wasserstein_1d(column(points), column(exact), p=1)[0])
            return MetricValue(name=f"W1 of {name}", value=value, n=n, reference_n=len(exact))

        points = np.asarray(samples[:n])
        return [compared(name, points).with_floor(compared(name, other)) for name in data.dataset.statistics]


@dataclass(frozen=True, kw_only=True)
class ConditionError(Evaluation):
    r"""Whether samples have the condition they were drawn with, for data whose condition is a function of the points.

    .. math:: \Big(\frac1{nd}\sum_i\lVert c(x_i) - c_i\rVert^2\Big)^{1/2}

    The function :math:`c` is that of a :class:`scorelab.data.Derived` set. The floor is the same of held-out points with their own
    conditions: what storing leaves. Beside it stands the same number with the conditions dealt out among the samples anew: the
    error of samples that know nothing of theirs.
    """

    def check(self, data, samples):
        if not isinstance(data.dataset, Derived):
            raise ValueError(
                f"ConditionError for {data.name}: expected a data.Derived set, whose condition follows from the points"
            )
        if data.dataset.array not in data.prepare.taken:
            raise ValueError(f"ConditionError for DataSpec.cond = {data.cond!r}: expected {data.dataset.array!r} among them")
        if self.n is not None and self.n > samples:
            raise ValueError(f"ConditionError.n = {self.n}: expected at most the number of samples, Sample.n = {samples}")

    def __call__(self, samples, data, key):
        raise ConfigError("ConditionError asks for the conditions of samples: expected samples drawn by the Sample stage")

    def of(self, drawn, data, key):
        """The two numbers."""
        dataset = cast(Derived, data.dataset)
        levels = data.load().levels
        if drawn.rows is None:
            raise ConfigError("ConditionError: the samples have no conditions of the data: run `scorelab sample` again")
        n = len(drawn.x) if self.n is None else self.n
        arrays = data.load(drawn.record["split"])
        given = arrays.more[dataset.array][drawn.rows[:n]].astype(np.float64)
        error = lambda of, asked: float(np.sqrt(np.nanmean((dataset.of(of, levels).astype(np.float64) - asked) ** 2)))
        dealt = given[np.asarray(jax.random.permutation(key, n))]
        name = f"error of {dataset.array}"
        return [
            MetricValue(name=name, value=error(drawn.x[:n], given), n=n, floor=error(arrays.x[drawn.rows[:n]], given)),
            MetricValue(name=f"{name}, dealt out anew", value=error(drawn.x[:n], dealt), n=n),
        ]


@dataclass(frozen=True, kw_only=True)
class FieldEvaluation(PointEvaluation):
    """That of points, and the error of the radially averaged power spectrum against the same draws.

    The spectra are those of deviations from the mean of the draws; see :func:`scorelab.metrics.spectral_error`.
    """

    def check(self, data, samples):
        super().check(data, samples)
        if len(event := data.load().event_shape) < 2:
            raise ValueError(f"FieldEvaluation for {data.name} of points {event}: expected fields (*grid, channels)")

    def _compare(self, key, exact, width):
        points, mean = super()._compare(key, exact, width), exact.mean(0)
        reference = metrics.power_spectrum(exact - mean).power

        def compared(fields: np.ndarray) -> list[MetricValue]:
            return [*points(fields), metrics.spectral_error(fields - mean, reference)]

        return compared


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Evaluate a set of samples.

    Attributes:
        evaluations: how; () for not at all.
        samples: the name of the ``Sample`` stage that draws them.
    """

    evaluations: tuple[Evaluation, ...] = ()
    samples: str = ""

    def __post_init__(self):
        given = self.evaluations
        object.__setattr__(self, "evaluations", tuple(given) if isinstance(given, tuple | list) else (given,))
        for each in self.evaluations:
            require_spec(self, Evaluation, evaluations=each)
        require_spec(self, str, samples=self.samples)

    def check(self, experiment, like):
        """Whether the samples are drawn, and can be evaluated."""
        drawn = experiment.one(Sample, self.samples)
        experiment.require_order(self, drawn)
        if any(other.samples == self.samples for other in experiment.all(Evaluate) if other is not self):
            raise ValueError(
                f"Evaluate.samples = {self.samples!r} of two stages, whose metrics would replace one another: expected one with "
                "both evaluations"
            )
        for each in self.evaluations:
            each.check(experiment.data, drawn.n)

    def __call__(self, run: Run) -> None:
        """Evaluate them, unless these very samples were evaluated this way already."""
        evaluate(run, self, run.workdir.named(self.samples))


def read_metrics(workdir: Workdir) -> tuple[list[MetricValue], dict[str, Any]]:
    """The metrics of a set of samples and the record of what was evaluated; none and {} where nothing was."""
    found = workdir.read_json(workdir.metrics)
    if found is None:
        return [], {}
    try:
        return [MetricValue(**item) for item in found["metrics"]], found
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{shown(workdir.metrics)} is damaged ({error}): delete it and run `scorelab evaluate`") from error


def samples_hash(x: np.ndarray | Shards) -> str:
    """SHA-256 of samples in stored values, the same for an array and for shards, of which one is read at a time."""
    digest = hashlib.sha256()
    for part in x.batches(x.chunk) if isinstance(x, Shards) else (x,):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def evaluate(run: Run, spec: Evaluate, workdir: Workdir, n: int | None = None) -> list[MetricValue]:
    """Evaluate the samples of ``workdir``, ``n`` of them, unless these very samples were evaluated this way already."""
    experiment, console = run.experiment, run.console
    drawn = read_samples(workdir)
    if drawn is None:
        begun = f": those in {shown(workdir.shards)} are not whole" if workdir.shards.is_dir() else ""
        raise ConfigError(f"{shown(workdir.samples)}: no such samples{begun}; run `scorelab sample` first")
    evaluations = spec.evaluations if n is None else tuple(dataclasses.replace(each, n=n) for each in spec.evaluations)
    if not evaluations:
        console.stage("evaluate", "nothing to do, Evaluate.evaluations is ()")
        return []
    splits = experiment.data.dataset.splits
    how: dict[str, Any] = {
        "samples_sha256": samples_hash(drawn.x),
        "step": drawn.record["step"],
        "data": {"name": experiment.data.name, **{f"{s}_sha256": experiment.data.load(s).sha256 for s in splits}},
        "evaluations": describe(evaluations),
    }
    sinks = experiment.one(Train).sinks
    for sink in sinks:
        sink.check()
    values, before = read_metrics(workdir)
    if before and all(before.get(key) == value for key, value in how.items()):
        console.stage("evaluate", "nothing to do, these samples are evaluated already")
        with opened(run, sinks):
            pass
        return values
    began = time.monotonic()
    values = [value for each in evaluations for value in each.of(drawn, experiment.data, spec.key(experiment.keys()[2]))]
    seconds = time.monotonic() - began
    # First the log, which is written anew where this is stopped before the other.
    _log(workdir, drawn.record["step"], values)
    write_json(workdir.metrics, {**how, "seconds": seconds, "metrics": [dataclasses.asdict(value) for value in values]})
    with opened(run, sinks):
        pass
    console.stage("evaluate", f"{len(values)} metrics in {seconds:.1f} s")
    for value in values:
        console.line(f"          {value}")
    return values


def _log(workdir: Workdir, step: int, values: Sequence[MetricValue]) -> None:
    """Enter the values of a set of samples into the log, in the place of those of this set and step."""
    prefix = "evaluate/" if workdir.name is None else f"evaluate/{workdir.name}/"
    named = {prefix + value.label: value.value for value in values}
    named |= {f"{prefix}{value.label} floor": value.floor for value in values if value.floor is not None}
    finite = {name: value if math.isfinite(value) else None for name, value in named.items()}
    record = {"step": step, "samples": workdir.name or "", "time": time.time(), "values": finite}
    kept = [
        line
        for line, earlier in read_lines(workdir.evaluations_log)
        if (earlier["step"], earlier["samples"]) != (step, record["samples"])
    ]
    write_bytes(workdir.evaluations_log, b"".join((*kept, json.dumps(record).encode(), b"\n")))
