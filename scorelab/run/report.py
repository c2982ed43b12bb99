"""``report.html``: one file that opens offline, with what a reader asks about a run."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from scorelab import viz
from scorelab.files import write_text
from scorelab.metrics import Score
from scorelab.run.config import Config
from scorelab.run.console import Console
from scorelab.run.describe import describe
from scorelab.run.draw import PICTURED, Drawn, picture, read_samples
from scorelab.run.experiment import Experiment
from scorelab.run.score import read_scores, samples_hash
from scorelab.run.sources import shown
from scorelab.run.workdir import Workdir, read_lines


def write_report(config: Config, workdir: Workdir, console: Console) -> None:
    """Write the report of a finished run; sections whose files are missing are left out."""
    experiment = config.experiment
    drawn, (scores, scored) = read_samples(workdir), read_scores(workdir)
    digest = None if drawn is None else samples_hash(drawn.x)
    if scored.get("samples_sha256") != digest:
        # Of samples that are no longer there.
        scores, scored = [], {}
    sections = [
        _facts("What this describes", _subject(config, workdir, drawn, digest, scored)),
        _pictures(experiment, drawn),
        _scores(scores),
        _trajectory(workdir),
        _training(workdir),
        _diagnostics(workdir),
        _facts("Times", _times(workdir, drawn, scored.get("seconds"))),
        _facts("Versions", _versions(workdir)),
        f"<section><h2>Config</h2><details><summary>config.gin</summary><pre>{html.escape(config.text)}</pre></details></section>",
    ]
    style = (resources.files("scorelab.run") / "report.css").read_text(encoding="utf-8")
    title = html.escape(f"{config.name}: {experiment.data.name}")
    write_text(
        workdir.report,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head><body><main>"
        f"<header><h1>{title}</h1><p>{html.escape(_summary(experiment, drawn))}</p></header>"
        f"{''.join(section for section in sections if section)}</main></body></html>\n",
    )
    console.stage("report", shown(workdir.report))


def _summary(experiment: Experiment, drawn: Drawn | None) -> str:
    network = experiment.learner.network
    parts = [
        f"{type(network.net).__name__} network" if network is not None else type(experiment.learner).__name__,
        f"{type(experiment.process.schedule).__name__} schedule",
        f"{experiment.steps:,} steps of {experiment.batch_size}",
    ]
    if drawn is not None:
        # Of the samples, which may be older than the sampler of the config.
        sampling = drawn.record["sampling"]
        solver, grid = (str(sampling[part]["type"]).rpartition(".")[2] for part in ("solver", "grid"))
        parts += [f"sampled with {solver} on a {grid} grid", f"{drawn.record['model_calls']} model calls a sample"]
    return ", ".join(parts) + "."


def _subject(
    config: Config, workdir: Workdir, drawn: Drawn | None, digest: str | None, scored: Mapping[str, Any]
) -> Iterable[tuple[str, str]]:
    """Which config, which state and which samples the page is about."""
    yield "config", f"{shown(workdir.config)}, sha256 {hashlib.sha256(config.text.encode()).hexdigest()}"
    if drawn is None:
        return
    record = drawn.record
    yield "samples", f"{shown(workdir.samples)}, {len(drawn.x):,} of step {record['step']}, seed {record['seed']}, sha256 {digest}"
    if record["sampling"] != describe(config.experiment.sampling):
        yield "note", "drawn with another sampler than the one in the config; this page shows the one they were drawn with"
    if scored:
        yield "scored", f"against {scored['data']['name']}, train sha256 {scored['data']['train_sha256']}"
    if (weights := record.get("weights")) is not None:
        yield (
            "weights",
            f"{weights['populations']} populations, {weights['dead_populations']} without any weight, "
            f"{weights['bad_weights']} weights that were no numbers",
        )


def _pictures(experiment: Experiment, drawn: Drawn | None) -> str:
    if drawn is None:
        return ""
    train = experiment.data.load()
    real = train.x[: len(drawn.x)]
    if drawn.label is not None and train.label is not None:
        real = train.x[_matching(train.label, drawn.label[:PICTURED])]
    figures = _figure(viz.to_png_bytes(picture(drawn.x, experiment)), f"Samples, {len(drawn.x):,} drawn")
    figures += _figure(viz.to_png_bytes(picture(real, experiment)), "Training data")
    return f'<section><h2>Samples and data</h2><div class="pair">{figures}</div></section>'


def _matching(labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rows of the data with the wanted labels in order, a new one each time."""
    rows = {int(label): np.flatnonzero(labels == label) for label in np.unique(wanted)}
    seen = dict.fromkeys(rows, 0)
    chosen = []
    for label in map(int, wanted):
        chosen.append(rows[label][seen[label] % len(rows[label])])
        seen[label] += 1
    return np.asarray(chosen)


def _scores(scores: Sequence[Score]) -> str:
    if not scores:
        return ""
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(score)) + "</tr>" for score in scores)
    head = "".join(f"<th>{name}</th>" for name in ("score", "value", "floor", "value / floor", "n", "extractor"))
    return (
        f"<section><h2>Scores</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        "<p>The floor is the same score with held-out data in the place of the samples, at equal n. "
        "Scores compare only at equal extractor and n.</p></section>"
    )


def _cells(score: Score) -> tuple[str, ...]:
    error = "" if score.stderr is None else f" ± {score.stderr:.2g}"
    ratio = "" if not score.floor or score.floor < 0 or score.value < 0 else f"{score.value / score.floor:.2f}"
    size = f"{score.n:,}" if score.reference_n in (None, score.n) else f"{score.n:,} / {score.reference_n:,}"
    floor = "" if score.floor is None else f"{score.floor:.4g}"
    return score.name, f"{score.value:.4g}{error}", floor, ratio, size, score.extractor or ""


def _trajectory(workdir: Workdir) -> str:
    if not workdir.trajectory_picture.is_file():
        return ""
    image = _figure(workdir.trajectory_picture.read_bytes(), "From noise to data; contrast or scale follow the noise")
    return f'<section><h2>Denoising trajectory</h2><div class="wide">{image}</div></section>'


def _training(workdir: Workdir) -> str:
    lines = [record for _, record in read_lines(workdir.metrics_log)]
    if not lines:
        return ""
    curve = viz.loss_curve([line["step"] for line in lines], [line["loss"] for line in lines])
    figure = _figure(viz.to_png_bytes(curve), "Loss, mean over each logged window")
    return f"<section><h2>Training</h2>{figure}</section>"


def _diagnostics(workdir: Workdir) -> str:
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
    figure = _figure(viz.to_png_bytes(viz.panels(content, columns=min(4, len(content)))), "By noise level, running means")
    return f"<section><h2>Diagnostics</h2>{figure}</section>"


def _times(workdir: Workdir, drawn: Drawn | None, evaluation: float | None) -> Iterable[tuple[str, str]]:
    windows = [record for _, record in read_lines(workdir.timings_log)]
    if windows:
        total = sum(window["seconds"] for window in windows)
        # The first window holds the compilation.
        later = windows[1:] or windows
        rate = sum(w["step"] - w["first"] + 1 for w in later) / max(sum(w["seconds"] for w in later), 1e-9)
        yield "training", f"{total:.1f} s, {rate:.3g} steps/s"
    if drawn is not None:
        yield (
            "sampling",
            f"{drawn.record['seconds']:.1f} s for {len(drawn.x):,} samples, compilation included",
        )
    if evaluation is not None:
        yield "evaluation", f"{evaluation:.1f} s"


def _versions(workdir: Workdir) -> Iterable[tuple[str, str]]:
    found: dict[str, Any] = workdir.read_json(workdir.versions) or {}
    if found:
        devices = found["devices"]
        yield "device", f"{devices['count']} × {devices['kind']} ({devices['platform']})"
        yield "python", f"{found['python']} on {found['platform']}"
        yield from found["packages"].items()


def _facts(title: str, facts: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts)
    return f"<section><h2>{title}</h2><dl>{rows}</dl></section>" if rows else ""


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    text = html.escape(caption)
    image = f'<img src="data:image/png;base64,{data}" alt="{text}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
