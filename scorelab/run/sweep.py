"""``scorelab sweep``: one config under every combination of values and seeds, resumable, with one table."""

from __future__ import annotations

import ast
import csv
import io
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scorelab import viz
from scorelab.config.sources import config_name, find_config
from scorelab.errors import ConfigError, shown
from scorelab.experiment.evaluate import read_metrics
from scorelab.experiment.workdir import Workdir
from scorelab.files import write_bytes, write_json, write_text

SEED = "experiment.Experiment.seed"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination.

    Attributes:
        values: by the field that was varied, as text.
        seed: of the experiment.
        folder: its work directory.
    """

    values: dict[str, str]
    seed: int
    folder: Path

    @property
    def bindings(self) -> list[str]:
        """What is set, as ``--set`` takes it."""
        return [*(f"{field} = {value}" for field, value in self.values.items()), f"{SEED} = {self.seed}"]


def sweep(
    config: str,
    grid: Sequence[str],
    *,
    seeds: int = 1,
    overrides: Sequence[str] = (),
    out: Path,
    jobs: int = 1,
    cluster: dict[str, Any] | None = None,
) -> Path:
    """Run every combination that is not done, and write the tables; returns the folder.

    Args:
        config: a config file, or the name of a shipped one.
        grid: ``"field = [value, ...]"`` for every field that is varied.
        seeds: experiments of each combination, with the seeds 0, 1, ...
        overrides: bindings of all of them.
        out: the folder; a work directory for each combination, and the tables.
        jobs: runs at the same time on this machine.
        cluster: parameters of ``submitit`` (``{"slurm_partition": "gpu", "timeout_min": 60}``) to run there, or None for here.

    Raises:
        ConfigError: a field without values, an unknown config, a folder of another sweep, or combinations that failed (named, after
            all others ran).
    """
    find_config(config)
    cells = combinations(grid, seeds, out)
    what = dict(config=config, grid=list(grid), overrides=list(overrides))
    _require_same(out, what)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "sweep.json", what)
    open_cells = [cell for cell in cells if not _done(cell)]
    print(f"sweep     {len(cells)} runs, {len(cells) - len(open_cells)} of them done, in {shown(out)}", flush=True)
    commands = [_command(config, overrides, cell) for cell in open_cells]
    failed = []
    ends = _on_cluster(commands, out, cluster) if cluster is not None else _here(commands, jobs)
    for count, (cell, status) in enumerate(zip(open_cells, ends, strict=True), 1):
        ended = "" if status == 0 else f" FAILED, exit {status}"
        print(f"sweep     {count}/{len(open_cells)}  {cell.folder.name}{ended}", flush=True)
        if status == 0:
            write_json(cell.folder / "sweep.json", dict(bindings=cell.bindings))
        else:
            failed.append(cell)
        write_tables(out, cells)
    write_tables(out, cells)
    if failed:
        raise ConfigError(
            f"{len(failed)} of {len(cells)} runs failed, see {', '.join(shown(_log(cell.folder)) for cell in failed)}"
        )
    return out


def folder_of(config: str) -> Path:
    """Where a sweep is written unless it is said."""
    return Path("runs", "sweeps", config_name(find_config(config)))


def parameters(lines: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` for submitit: numbers where they are, else text."""
    found: dict[str, Any] = {}
    for line in lines:
        name, equals, text = (part.strip() for part in line.partition("="))
        if not name.isidentifier() or not equals:
            raise ConfigError(f"--cluster {line!r}: expected NAME=VALUE, such as slurm_partition=gpu")
        found[name] = int(text) if text.isdigit() else text
    return found


def combinations(grid: Sequence[str], seeds: int, out: Path) -> list[Cell]:
    """The cells of a sweep, in the order of the grid; ConfigError for a line that is no field with values."""
    fields: dict[str, list[str]] = {}
    for line in grid:
        field, equals, text = (part.strip() for part in line.partition("="))
        values = _values(text) if equals else []
        if not field or not values or field in fields:
            raise ConfigError(f"--grid {line!r}: expected 'field = [value, ...]', each field once")
        fields[field] = values
    cells = []
    for values in itertools.product(*fields.values()):
        for seed in range(seeds):
            chosen = dict(zip(fields, values, strict=True))
            short = [f"{field.rpartition('.')[2]}-{re.sub(r'[^A-Za-z0-9.+-]+', '_', v).strip('_')}" for field, v in chosen.items()]
            cells.append(Cell(values=chosen, seed=seed, folder=out / "_".join([*short, f"seed-{seed}"])))
    names = [cell.folder.name for cell in cells]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--grid has two combinations that are called {twice}: expected values that differ in letters and digits")
    return cells


def _values(text: str) -> list[str]:
    """The values of a list as text; references and macros of gin are values too."""
    if not (text.startswith("[") and text.endswith("]")):
        return []
    parts, depth, start = [], 0, 1
    for i, letter in enumerate(text[1:], 1):
        depth += letter in "([{"
        if depth == 0 and letter in ",]":
            parts.append(text[start:i].strip())
            start = i + 1
        depth -= letter in ")]}" and depth > 0
    values = [part for part in parts if part]
    for value in values:
        if value[0] not in "@%":
            try:
                ast.literal_eval(value)
            except (ValueError, SyntaxError) as error:
                raise ConfigError(
                    f"--grid has the value {value}: expected '{value}' (text), a number, True, None, @name() or %NAME"
                ) from error
    return values


def _command(config: str, overrides: Sequence[str], cell: Cell) -> list[str]:
    sets = [part for binding in (*overrides, *cell.bindings) for part in ("--set", binding)]
    resume = ["--resume"] if (cell.folder / "config.gin").is_file() else []
    return [sys.executable, "-m", "scorelab.run.cli", "run", config, *sets, "--workdir", str(cell.folder), *resume]


def _run(command: Sequence[str]) -> int:
    """Run one experiment with its output in a log beside its folder; the exit status."""
    folder = Path(command[command.index("--workdir") + 1])
    with open(_log(folder), "ab") as output:
        return subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode


def _log(folder: Path) -> Path:
    """Beside the work directory, which has to be empty for a new run."""
    return folder.parent / f"{folder.name}.log"


def _here(commands: Sequence[Sequence[str]], jobs: int) -> Iterator[int]:
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(_run, commands)


def _on_cluster(commands: Sequence[Sequence[str]], out: Path, parameters: dict[str, Any]) -> Iterator[int]:
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("--cluster needs submitit: pip install 'scorelab[cluster]'") from error
    parameters = dict(parameters)
    executor = submitit.AutoExecutor(folder=out / "jobs", cluster=parameters.pop("cluster", None))
    executor.update_parameters(**parameters)
    yield from (job.result() for job in executor.map_array(_run, commands))


def _require_same(out: Path, what: dict[str, Any]) -> None:
    """ConfigError where the folder holds another sweep, or no sweep at all; a grid may grow."""
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / "sweep.json").is_file():
        raise ConfigError(f"{shown(out)} is not empty and holds no sweep: pass another --out")
    before = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    for key in ("config", "overrides"):
        if before.get(key) != what[key]:
            raise ConfigError(f"{shown(out)} holds a sweep with {key} = {before.get(key)!r}: expected it, or another --out")


def _done(cell: Cell) -> bool:
    mark = cell.folder / "sweep.json"
    return mark.is_file() and json.loads(mark.read_text(encoding="utf-8")).get("bindings") == cell.bindings


# The tables --------------------------------------------------------------------------------------------------------------
def rows_of(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row for every metric value of every set of samples of every run."""
    rows = []
    for cell in cells:
        workdir = Workdir(cell.folder)
        for place in (workdir, *(workdir.named(name) for name in workdir.names)):
            for value in read_metrics(place)[0]:
                rows.append(
                    {**cell.values, "seed": cell.seed, "samples": place.name or "", "metric": value.name, "value": value.value,
                     "floor": value.floor, "n": value.n, "run": cell.folder.name}
                )  # fmt: skip
    return rows


def write_tables(out: Path, cells: Sequence[Cell]) -> None:
    """``runs.csv``, one row for every value; ``sweep.md``, means over seeds with their deviations; a picture of every metric."""
    rows = rows_of(cells)
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "runs.csv", text.getvalue())
    fields = list(cells[0].values)
    groups: dict[tuple, dict[str, list[float]]] = {}
    for row in rows:
        key = (*(row[field] for field in fields), row["samples"])
        groups.setdefault(key, {}).setdefault(row["metric"], []).append(row["value"])
    names = list(dict.fromkeys(row["metric"] for row in rows))
    heads = [*(field.rpartition(".")[2] for field in fields), "samples", "seeds", *names]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for key, values in groups.items():
        count = max(len(found) for found in values.values())
        cells_of = [_mean(values.get(name, [])) for name in names]
        lines.append("| " + " | ".join([*map(str, key[:-1]), key[-1] or "own", str(count), *cells_of]) + " |")
    write_text(out / "sweep.md", "\n".join(lines) + "\n")
    for name in names:
        labels = [", ".join([*key[:-1], *key[-1:]]).strip(", ") or "all" for key in groups]
        found = {label: values[name] for label, values in zip(labels, groups.values(), strict=True) if name in values}
        floors = [row["floor"] for row in rows if row["metric"] == name and row["floor"] is not None]
        floor = {"floor": float(np.mean(floors))} if floors else None
        figure = viz.dots(found, xlabel=name, reference=floor, title=", ".join(heads[: len(fields)]))
        write_bytes(out / f"{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_').lower()}.png", viz.to_png_bytes(figure))


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{math.fsum(values) / len(values):.4g}{spread}"
