"""``scorelab compare``: runs beside one another on one page, with what differs between their configs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scorelab import config as configs
from scorelab import viz
from scorelab.errors import ConfigError, shown
from scorelab.experiment.base import Experiment
from scorelab.experiment.evaluate import read_metrics
from scorelab.experiment.html import figure, page, table
from scorelab.experiment.pictures import picture
from scorelab.experiment.sample import Drawn, read_samples
from scorelab.experiment.workdir import Workdir, read_lines
from scorelab.files import write_text
from scorelab.metrics import MetricValue


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A run, and what lies in its work directory."""

    name: str
    workdir: Workdir
    experiment: Experiment
    specs: Mapping[str, Any]
    samples: Mapping[str, Drawn]
    metrics: Mapping[str, Sequence[MetricValue]]
    loss: tuple[np.ndarray, np.ndarray]

    @classmethod
    def read(cls, name: str, workdir: Workdir) -> Compared:
        """ConfigError where there is no run, or it is damaged."""
        workdir.require_run()
        places = {place.name or "": place for place in (workdir, *(workdir.named(found) for found in workdir.names))}
        samples = {name: drawn for name, place in places.items() if (drawn := read_samples(place)) is not None}
        lines = [record for _, record in read_lines(workdir.metrics_log)]
        return cls(
            name=name,
            workdir=workdir,
            experiment=configs.load(str(workdir.config), carried=True, devices=False).experiment,
            specs=workdir.read_json(workdir.specs) or {},
            samples=samples,
            metrics={name: read_metrics(places[name])[0] for name in samples},
            loss=(np.array([line["step"] for line in lines], float), np.array([line["loss"] for line in lines], float)),
        )


def compare(roots: Sequence[Path], out: Path) -> Path:
    """Write ``out`` (an ``.html`` file) and a ``.csv`` of all metric values beside it; returns the page.

    Raises:
        ConfigError: fewer than two runs, a folder that is none, another ending.
    """
    if len(roots) < 2 or len(set(map(Path.resolve, roots))) < len(roots):
        raise ConfigError(f"compare {' '.join(map(str, roots))}: expected two or more work directories, each once")
    if out.suffix != ".html":
        raise ConfigError(f"--out {out}: expected a name that ends in .html")
    runs = [Compared.read(name, Workdir(root)) for name, root in zip(_names(roots), roots, strict=True)]
    sections = [_differences(runs), _values(runs), _losses(runs), _samples(runs)]
    write_text(out, page("Comparison", ", ".join(f"{run.name}: {run.experiment.data.name}" for run in runs), sections))
    write_text(out.with_suffix(".csv"), _csv(runs))
    print(f"compare   {shown(out)}, {shown(out.with_suffix('.csv'))}")
    return out


def _names(roots: Sequence[Path]) -> list[str]:
    """The last parts of the folders, as many as tell them apart."""
    parts = [root.resolve().parts for root in roots]
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(parts))
    return ["/".join(part[-length:]) for part in parts]


def flat(value: Any, name: str = "") -> dict[str, str]:
    """Specs as one line for each field: ``learner.denoiser.net.width`` -> ``64``."""
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        # A stage or a part that has a name is found by it, however many stand before it.
        parts = [(_called(item, i), item) for i, item in enumerate(value)]
    else:
        return {name: str(value).rpartition(".")[2] if name.endswith("type") else str(value)}
    return {k: v for key, part in parts for k, v in flat(part, f"{name}.{key}" if name else str(key)).items()}


def _called(item: Any, index: int) -> str:
    """How one of several parts is called: by its kind, and its name where it has one."""
    if not isinstance(item, Mapping):
        return str(index)
    kind = str(item.get("type", index)).rpartition(".")[2]
    return f"{kind}({item['name']})" if item.get("name") else kind


def _differences(runs: Sequence[Compared]) -> str:
    fields = [flat(run.specs) for run in runs]
    names = dict.fromkeys(name for found in fields for name in found)
    differ = [name for name in names if len({found.get(name) for found in fields}) > 1]
    rows = [(name, *(found.get(name, "(not there)") for found in fields)) for name in differ]
    body = table(("field", *(run.name for run in runs)), rows) if rows else "<p>Their configs are equal.</p>"
    return f"<section><h2>What differs</h2>{body}</section>"


def _by_metric(runs: Sequence[Compared]) -> dict[tuple[str, str, str], dict[str, MetricValue]]:
    """The values of every run by (set of samples, metric, extractor): others cannot be compared."""
    found: dict[tuple[str, str, str], dict[str, MetricValue]] = {}
    for run in runs:
        for name, values in run.metrics.items():
            for value in values:
                found.setdefault((name, value.name, value.extractor or ""), {})[run.name] = value
    return found


def _values(runs: Sequence[Compared]) -> str:
    groups = _by_metric(runs)
    if not groups:
        return ""
    rows, pictures = [], ""
    for (samples, name, extractor), values in groups.items():
        floors = {f"{value.floor:.4g}" for value in values.values() if value.floor is not None}
        cells = [_cell(values.get(run.name)) for run in runs]
        counts = sorted({value.n for value in values.values()})
        rows.append((name, samples or "own", *cells, " / ".join(sorted(floors)), " / ".join(map(str, counts)), extractor))
    for (samples, name, _), values in groups.items():
        floor = next((value.floor for value in values.values() if value.floor is not None), None)
        dots = {run: [value.value] for run, value in values.items()}
        chart = viz.dots(dots, xlabel=name, reference=None if floor is None else {"floor": floor})
        pictures += figure(viz.to_png_bytes(chart), f"{name}, samples {samples or 'of the run'}")
    heads = ("metric", "samples", *(run.name for run in runs), "floor", "n", "extractor")
    note = "<p>Values compare only at equal extractor and n. The floor is the same metric of held-out data.</p>"
    return f'<section><h2>Metrics</h2>{table(heads, rows)}{note}<div class="pair">{pictures}</div></section>'


def _cell(value: MetricValue | None) -> str:
    if value is None:
        return ""
    return f"{value.value:.4g}" + ("" if value.stderr is None else f" ± {value.stderr:.2g}")


def _losses(runs: Sequence[Compared]) -> str:
    series = {run.name: run.loss for run in runs if len(run.loss[0])}
    if not series:
        return ""
    chart = viz.lines(series, xlabel="step", ylabel="loss", logy=all(np.all(values > 0) for _, values in series.values()))
    return f"<section><h2>Loss</h2>{figure(viz.to_png_bytes(chart), 'Loss, mean over each logged window')}</section>"


def _samples(runs: Sequence[Compared]) -> str:
    figures = ""
    for run in runs:
        for name, drawn in run.samples.items():
            caption = f"{run.name}{f' ({name})' if name else ''}, {len(drawn.x):,} samples"
            figures += figure(viz.to_png_bytes(picture(drawn.x, run.experiment)), caption)
    return f'<section><h2>Samples</h2><div class="pair">{figures}</div></section>' if figures else ""


def _csv(runs: Sequence[Compared]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run", "samples", "metric", "value", "stderr", "floor", "n", "extractor"))
    for run in runs:
        for name, values in run.metrics.items():
            for v in values:
                writer.writerow((run.name, name, v.name, v.value, v.stderr, v.floor, v.n, v.extractor))
    return text.getvalue()
