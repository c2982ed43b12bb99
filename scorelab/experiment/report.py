"""``report.html``: one file that opens offline, with what a reader asks about a run."""

from __future__ import annotations

import hashlib
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scorelab import viz
from scorelab.errors import shown
from scorelab.experiment import held_out, previews
from scorelab.experiment.base import Experiment, Run, Stage
from scorelab.experiment.describe import describe, spelled
from scorelab.experiment.diagnose import Diagnose, Diagnostic, read_finding
from scorelab.experiment.evaluate import read_metrics, samples_hash
from scorelab.experiment.html import facts, figure, page, table
from scorelab.experiment.pictures import PICTURED, conditioned, picture
from scorelab.experiment.sample import Drawn, Sample, read_samples
from scorelab.experiment.train import Train, state_like
from scorelab.experiment.workdir import Workdir, read_lines
from scorelab.files import write_text
from scorelab.metrics import MetricValue


@dataclass(frozen=True, kw_only=True)
class Report(Stage):
    """Write ``report.html``, of all sets of samples and all diagnostics of the run."""

    def check(self, experiment, like):
        """Whether everything it reports is done before it."""
        for stage in experiment.stages:
            if not isinstance(stage, Report):
                experiment.require_order(self, stage)

    def __call__(self, run: Run) -> None:
        """Write it anew, with the sets that the stages draw first, and then others that lie in the work directory."""
        names = dict.fromkeys((*(stage.name for stage in run.experiment.all(Sample)), *run.workdir.names))
        write_report(run, [run.workdir.named(name) for name in names], run.workdir.named(""))


def write_report(run: Run, places: Sequence[Workdir], into: Workdir) -> None:
    """Write the report of a run ``into`` its place, with the sets of samples in ``places``; what is missing is left out."""
    experiment, workdir = run.experiment, run.workdir
    sets = [_Set.read(place) for place in places]
    times = list(_training_time(workdir))
    for found in sets:
        times += found.times()
    sections = [
        facts("Set-up", _setup(experiment, sets)),
        facts("What this describes", _subject(run, sets)),
        *(part for found in sets for part in (_pictures(experiment, found), _metrics(found), _trajectory(found))),
        _previews(experiment, workdir),
        _training(experiment, workdir),
        _learner_diagnostics(workdir),
        *(_finding(workdir, question) for stage in experiment.all(Diagnose) for question in stage.questions),
        facts("Times", times),
        facts("Versions", _versions(workdir)),
        f"<section><h2>Config</h2><details><summary>config.gin</summary><pre>{html.escape(run.text)}</pre></details></section>",
    ]
    lead = _summary(experiment, sets[0] if sets else None)
    write_text(into.report, page(f"{run.name}: {experiment.data.name}", lead, sections))
    run.console.stage("report", shown(into.report))


@dataclass(frozen=True, kw_only=True)
class _Set:
    """A set of samples, and what was made of it."""

    place: Workdir
    drawn: Drawn | None
    digest: str | None
    values: list[MetricValue]
    evaluated: Mapping[str, Any]

    @classmethod
    def read(cls, place: Workdir) -> _Set:
        drawn, (values, evaluated) = read_samples(place), read_metrics(place)
        digest = None if drawn is None else samples_hash(drawn.x)
        if evaluated.get("samples_sha256") != digest:
            # Of samples that are no longer there.
            values, evaluated = [], {}
        return cls(place=place, drawn=drawn, digest=digest, values=values, evaluated=evaluated)

    @property
    def of(self) -> str:
        """How headings tell it from others."""
        return "" if self.place.name is None else f" ({self.place.name})"

    @property
    def where(self) -> Path:
        """The file or folder of the samples."""
        return self.place.samples if self.drawn is None or isinstance(self.drawn.x, np.ndarray) else self.place.shards

    def times(self) -> Iterable[tuple[str, str]]:
        """Of drawing and of evaluating."""
        if self.drawn is not None:
            seconds = self.drawn.record["seconds"]
            yield f"sampling{self.of}", f"{seconds:.1f} s for {len(self.drawn.x):,} samples, compilation included"
        if self.evaluated:
            yield f"evaluation{self.of}", f"{self.evaluated['seconds']:.1f} s"


def _summary(experiment: Experiment, found: _Set | None) -> str:
    network, train = experiment.learner.network, experiment.one(Train)
    noise = "schedule" if hasattr(experiment.process, "schedule") else "process"
    parts = [
        f"{type(network.net).__name__} network" if network is not None else type(experiment.learner).__name__,
        f"{type(getattr(experiment.process, 'schedule', experiment.process)).__name__} {noise}",
        f"{train.steps:,} steps of {train.batch_size}",
    ]
    if found is not None and found.drawn is not None:
        # Of the samples, which may be older than the sampler of the config.
        sampling = found.drawn.record["sampling"]
        solver, grid = (str(sampling[part]["type"]).rpartition(".")[2] for part in ("solver", "grid"))
        parts += [f"sampled with {solver} on a {grid} grid", f"{found.drawn.record['model_calls']} model calls a sample"]
    return ", ".join(parts) + "."


def _setup(experiment: Experiment, sets: Sequence[_Set]) -> Iterable[tuple[str, str]]:
    """What was learned from what by what, and how it was sampled."""
    data, learner, train = experiment.data, experiment.learner, experiment.one(Train)
    arrays = data.load()
    event = " x ".join(map(str, arrays.event_shape))
    yield "data", f"{data.name}, {len(arrays):,} of {event}, {spelled(describe(data.transform))}, sha256 {arrays.sha256}"
    if data.cond is not None:
        columns = arrays.columns()
        named = [f"{name} {' x '.join(map(str, columns[name].shape[1:])) or '1'}" for name in data.prepare.taken]
        yield "condition", ", ".join(named)
    yield (
        "labels",
        "the condition" if data.labels or "label" in data.prepare.taken else "not used" if arrays.label is not None else "none",
    )
    yield "process", spelled(describe(experiment.process))
    if (network := learner.network) is not None:
        size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(getattr(state_like(experiment), "params", ())))
        yield "network", f"{spelled(describe(network.net))}, {size:,} parameters"
        yield "parameterisation", f"{network.predict}, data_std {network.data_std:g}"
    yield "learner", type(learner).__name__
    for name, part in describe(learner).items():
        # What it is made of, but for networks and optimisers, which are not told in a line.
        if isinstance(part, Mapping) and str(part.get("type", "")).startswith("scorelab.") and not _has_network(part):
            yield "EMA" if name == "ema" else name, spelled(part)
    if getattr(learner, "ema", ()) is None:
        yield "EMA", "none"
    yield "training", f"{train.steps:,} steps of {train.batch_size}, seed {experiment.seed}"
    for found in sets:
        if found.drawn is not None:
            record = found.drawn.record
            how = record["sampling"]
            parts = [spelled(how["solver"]), f"grid {spelled(how['grid'])}"]
            parts += [f"{part} {spelled(how[part])}" for part in ("start", "correction", "inpainting") if how.get(part) is not None]
            parts.append("no guidance" if how["guidance"] is None else f"guidance {spelled(how['guidance'])}")
            parts += [f"classes {spelled(how['classes'])}"] if how["classes"] else []
            yield f"sampler{found.of}", ", ".join((*parts, f"seed {record['seed']}", f"{record['model_calls']} model calls each"))


def _has_network(part: Any) -> bool:
    """Whether a described spec has a network or arrays in it."""
    if isinstance(part, list):
        return any(map(_has_network, part))
    return isinstance(part, Mapping) and bool({"net", "array"} & part.keys() or any(map(_has_network, part.values())))


def _subject(run: Run, sets: Sequence[_Set]) -> Iterable[tuple[str, str]]:
    """Which config, which state and which samples the page is about."""
    yield "config", f"{shown(run.workdir.config)}, sha256 {hashlib.sha256(run.text.encode()).hexdigest()}"
    specs = [describe(stage) for stage in run.experiment.all(Sample)]
    for found in sets:
        if found.drawn is None:
            continue
        record, count = found.drawn.record, len(found.drawn.x)
        yield (
            f"samples{found.of}",
            f"{shown(found.where)}, {count:,} of step {record['step']}, seed {record['seed']}, sha256 {found.digest}",
        )
        if record["sampling"] not in specs:
            yield "note", "drawn with another sampler than the one in the config; this page shows the one they were drawn with"
        if found.evaluated:
            data = found.evaluated["data"]
            yield f"evaluated{found.of}", f"against {data['name']}, train sha256 {data['train_sha256']}"
        if (weights := record.get("weights")) is not None:
            yield (
                f"weights{found.of}",
                f"{weights['populations']} populations, {weights['dead_populations']} without any weight, "
                f"{weights['bad_weights']} weights that were no numbers",
            )


def _pictures(experiment: Experiment, found: _Set) -> str:
    if (drawn := found.drawn) is None:
        return ""
    train = experiment.data.load()
    real = train.x[: len(drawn.x)]
    if drawn.rows is not None:
        real = experiment.data.load(drawn.record["split"]).x[drawn.rows]
    if drawn.label is not None and train.label is not None:
        real = train.x[_matching(train.label, drawn.label[:PICTURED])]
    figures = figure(viz.to_png_bytes(picture(drawn.x, experiment)), f"Samples, {len(drawn.x):,} drawn")
    caption = "Training data" if drawn.rows is None else f"The points of the {drawn.record['split']} split with these conditions"
    figures += figure(viz.to_png_bytes(picture(real, experiment)), caption)
    if (beside := conditioned(drawn.x, drawn.cond, real, experiment)) is not None:
        figures += figure(viz.to_png_bytes(beside), "Conditions, samples, and the points that the conditions are of")
    return f'<section><h2>Samples and data{html.escape(found.of)}</h2><div class="pair">{figures}</div></section>'


def _matching(labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rows of the data with the wanted labels in order, a new one each time."""
    rows = {int(label): np.flatnonzero(labels == label) for label in np.unique(wanted)}
    seen = dict.fromkeys(rows, 0)
    chosen = []
    for label in map(int, wanted):
        chosen.append(rows[label][seen[label] % len(rows[label])])
        seen[label] += 1
    return np.asarray(chosen)


def _metrics(found: _Set) -> str:
    if not found.values:
        return ""
    heads = ("metric", "value", "floor", "value / floor", "n", "extractor")
    return (
        f"<section><h2>Metrics{html.escape(found.of)}</h2>{table(heads, map(_cells, found.values))}"
        "<p>The floor is the same metric with held-out data in the place of the samples, at equal n. "
        "Values compare only at equal extractor and n.</p></section>"
    )


def _cells(value: MetricValue) -> tuple[str, ...]:
    error = "" if value.stderr is None else f" ± {value.stderr:.2g}"
    ratio = "" if not value.floor or value.floor < 0 or value.value < 0 else f"{value.value / value.floor:.2f}"
    size = f"{value.n:,}" if value.reference_n in (None, value.n) else f"{value.n:,} / {value.reference_n:,}"
    floor = "" if value.floor is None else f"{value.floor:.4g}"
    return value.name, f"{value.value:.4g}{error}", floor, ratio, size, value.extractor or ""


def _trajectory(found: _Set) -> str:
    if not found.place.trajectory_picture.is_file():
        return ""
    image = figure(found.place.trajectory_picture.read_bytes(), "From noise to data; contrast or scale follow the noise")
    return f'<section><h2>Denoising trajectory{html.escape(found.of)}</h2><div class="wide">{image}</div></section>'


def _previews(experiment: Experiment, workdir: Workdir) -> str:
    drawn = experiment.all(Sample)
    image = previews.picture(workdir, experiment, previews.described(experiment, drawn[0])) if drawn else None
    if image is None:
        return ""
    caption = "A few samples at checkpoints of the training, from the same noise each time"
    return f"<section><h2>On the way</h2>{figure(viz.to_png_bytes(image), caption)}</section>"


def _training(experiment: Experiment, workdir: Workdir) -> str:
    lines = [record for _, record in read_lines(workdir.metrics_log)]
    if not lines:
        return ""

    def series(name: str) -> tuple[list[int], list[float]]:
        found = {line["step"]: line[name] for line in lines if line.get(name) is not None}
        return list(found), list(found.values())

    loss = viz.loss_curve(*series("loss"))
    image, others = figure(viz.to_png_bytes(loss), "Loss, mean over each logged window"), ""
    if len((norms := series("grad_norm"))[0]):
        curve = viz.loss_curve(*norms, label="norm of the gradient", width=4.5)
        others += figure(viz.to_png_bytes(curve), "Norm of the gradient before clipping, mean over each logged window")
    if len((rates := series("learning_rate"))[0]):
        rate = {"rate": (np.array(rates[0]), np.array(rates[1]))}
        curve = viz.lines(rate, xlabel="step", ylabel="learning rate", width=4.5, height=1.9)
        others += figure(viz.to_png_bytes(curve), "Learning rate of the last step of each window")
    steps = [record["step"] for _, record in read_lines(workdir.skipped_log)]
    skipped = ""
    if steps:
        shown_steps = ", ".join(map(str, steps[:20])) + (", ..." if len(steps) > 20 else "")
        skipped = f"<p>Batches skipped, since their loss or gradient was not finite: {len(steps)}, at the steps {shown_steps}.</p>"
    curve, chosen = _held_out(experiment, workdir, series("loss"))
    return f'<section><h2>Training</h2>{image}{curve}<div class="pair">{others}</div>{skipped}{chosen}</section>'


def _held_out(experiment: Experiment, workdir: Workdir, loss: tuple[list[int], list[float]]) -> tuple[str, str]:
    """The held-out loss beside that of training, and which checkpoint it chooses; nothing without early stopping."""
    stage, records = experiment.one(Train), held_out.read(workdir)
    if stage.early is None or not records:
        return "", ""
    best = stage.early.best(records)
    held = np.array([record.loss for record in records])
    series = {
        "training": (np.array(loss[0]), np.array(loss[1], float)),
        "held out": (np.array([record.step for record in records]), held),
    }
    if best is not None:
        series["best"] = (np.full(2, best.step), np.array([np.nanmin(held), np.nanmax(held)]))
    drawn = viz.lines(series, reference=("best",), xlabel="step", ylabel="loss", markers=True)
    image = figure(viz.to_png_bytes(drawn), "Loss of the model that is sampled at held-out points; the dashed line is the best")
    ended = (
        f"The training stopped early at step {records[-1].step}. " if stage.early.waited(records) >= stage.early.patience else ""
    )
    chosen = "" if best is None else f"The smallest held-out loss is {best.loss:.4g}, at step {best.step}. "
    return image, f"<p>{ended}{chosen}Stages after the training take the {stage.keep} checkpoint.</p>"


def _learner_diagnostics(workdir: Workdir) -> str:
    """What a learner said of its state, against the noise level, at the start, the middle and the end of training."""
    lines = [record for _, record in read_lines(workdir.diagnostics_log)]
    if not lines or "noise" not in lines[-1]:
        return ""
    chosen = {f"step {line['step']}": line for line in (lines[0], lines[len(lines) // 2], lines[-1])}
    number = lambda values: np.array([np.nan if v is None else v for v in values], float)
    names = [name for name in lines[-1] if name not in ("step", "noise", "count") and np.isfinite(number(lines[-1][name])).any()]
    noise = number(lines[-1]["noise"])
    content = [
        viz.Panel(
            series={k: (noise, number(line[name])) for k, line in chosen.items()}, title=name, xlabel="noise ratio", logx=True
        )
        for name in names
    ]
    image = figure(viz.to_png_bytes(viz.panels(content, columns=min(4, len(content)))), "By noise level, running means")
    return f"<section><h2>What the learner says of itself</h2>{image}</section>"


def _finding(workdir: Workdir, question: Diagnostic) -> str:
    """The picture and the single numbers of a diagnostic; nothing where the question was another one."""
    found = read_finding(workdir, question.name)
    if found is None or found["diagnostic"] != describe(question):
        return ""
    stored, title = workdir.finding(question.name).with_suffix(".png"), f"Diagnostic: {question.name}, step {found['step']}"
    image = figure(stored.read_bytes(), question.name) if stored.is_file() else ""
    numbers = {name: value for name, value in found["values"].items() if not isinstance(value, list)}
    rows = facts("", ((name, "not finite" if value is None else f"{value:.4g}") for name, value in numbers.items()))
    return f"<section><h2>{html.escape(title)}</h2>{image}</section>{rows.replace('<h2></h2>', '')}"


def _training_time(workdir: Workdir) -> Iterable[tuple[str, str]]:
    windows = [record for _, record in read_lines(workdir.timings_log)]
    if windows:
        total = sum(window["seconds"] for window in windows)
        # The first window holds the compilation.
        later = windows[1:] or windows
        rate = sum(w["step"] - w["first"] + 1 for w in later) / max(sum(w["seconds"] for w in later), 1e-9)
        yield "training", f"{total:.1f} s, {rate:.3g} steps/s"


def _versions(workdir: Workdir) -> Iterable[tuple[str, str]]:
    found: dict[str, Any] = workdir.read_json(workdir.versions) or {}
    if found:
        devices = found["devices"]
        yield "device", f"{devices['count']} × {devices['kind']} ({devices['platform']})"
        yield "python", f"{found['python']} on {found['platform']}"
        yield from found["packages"].items()
