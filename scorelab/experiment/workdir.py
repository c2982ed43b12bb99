"""The work directory of a run: what lies where, written complete or not at all."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorelab.errors import ConfigError, shown
from scorelab.files import naming, temporary_of, write_bytes

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Workdir:
    """Paths of a run.

    Attributes:
        root: the folder.
        name: a set of samples beside the run's own, with its own pictures, metrics and report, in ``samples/<name>``.
        out: the ``.npz`` file for samples elsewhere; their pictures lie beside it.
    """

    root: Path
    name: str | None = None
    out: Path | None = None

    def __post_init__(self):
        if self.name is not None and not NAME.fullmatch(self.name):
            raise ConfigError(f"--name {self.name!r}: expected letters, digits, '.', '_' and '-', a letter or a digit first")
        if self.out is not None and self.out.suffix != ".npz":
            raise ConfigError(f"--out {self.out}: expected a name that ends in .npz")
        if self.out is not None and self.name is not None:
            raise ConfigError(f"--out {self.out} and --name {self.name}: expected one of them")

    @property
    def place(self) -> Path:
        """The folder of the samples and of what is made of them."""
        if self.out is not None:
            return self.out.parent
        return self.root if self.name is None else self.root / "samples" / self.name

    def named(self, name: str) -> Workdir:
        """The same with another set of samples, "" for the run's own."""
        return dataclasses.replace(self, name=name or None)

    @property
    def names(self) -> list[str]:
        """The named sets of samples there are."""
        return sorted(path.parent.name for path in self.root.glob("samples/*/samples.npz"))

    @property
    def config(self) -> Path:
        """The operative config, a config file itself."""
        return self.root / "config.gin"

    @property
    def specs(self) -> Path:
        """The resolved specs as JSON."""
        return self.root / "specs.json"

    @property
    def versions(self) -> Path:
        """Versions and devices."""
        return self.root / "versions.json"

    @property
    def metrics_log(self) -> Path:
        """One line of deterministic numbers per logged window of training."""
        return self.root / "metrics.jsonl"

    @property
    def timings_log(self) -> Path:
        """One line of wall-clock numbers per logged window of training."""
        return self.root / "timings.jsonl"

    @property
    def diagnostics_log(self) -> Path:
        """One line of what the learner says of its state at the end of each window, where it says something."""
        return self.root / "diagnostics.jsonl"

    @property
    def held_out_log(self) -> Path:
        """One line for each held-out loss of a training with early stopping."""
        return self.root / "held_out.jsonl"

    @property
    def skipped_log(self) -> Path:
        """One line for each batch that training skipped, where it may."""
        return self.root / "skipped.jsonl"

    @property
    def evaluations_log(self) -> Path:
        """One line for each set of samples that was evaluated and each step it was of."""
        return self.root / "evaluations.jsonl"

    def finding(self, name: str) -> Path:
        """What a diagnostic of this name has found; its picture lies beside it."""
        return self.root / "diagnostics" / f"{name}.json"

    @property
    def window(self) -> Path:
        """The metrics of the steps since the last window that was whole, where a signal stopped the training."""
        return self.root / "window.json"

    @property
    def checkpoints(self) -> Path:
        """One folder per kept step."""
        return self.root / "checkpoints"

    @property
    def previews(self) -> Path:
        """A few samples from the same noise at some checkpoints, ``<step>.npz``."""
        return self.root / "previews"

    @property
    def shards(self) -> Path:
        """A file for each chunk of samples, where ``samples.npz`` has only their conditions and how they were drawn."""
        return self.place / "shards"

    @property
    def samples(self) -> Path:
        """Samples in stored values, their conditions, and how they were drawn."""
        return self.place / "samples.npz" if self.out is None else self.out

    @property
    def samples_picture(self) -> Path:
        """The first samples."""
        return self.place / ("samples.png" if self.out is None else f"{self.out.stem}.png")

    @property
    def trajectory_picture(self) -> Path:
        """A few samples on their way from noise to data."""
        return self.place / ("trajectory.png" if self.out is None else f"{self.out.stem}_trajectory.png")

    @property
    def metrics(self) -> Path:
        """The values of the metrics."""
        return self.place / ("metrics.json" if self.out is None else f"{self.out.stem}_metrics.json")

    @property
    def report(self) -> Path:
        """The report."""
        return self.place / ("report.html" if self.out is None else f"{self.out.stem}_report.html")

    def require_free(self, resume: bool) -> None:
        """ConfigError where the folder holds something that is not a run to resume; changes nothing."""
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"{shown(self.root)} is a file: expected a folder; pass another --workdir")
        if self.root.is_dir() and any(path.name != "lock" and not self._leftover(path) for path in self.root.iterdir()):
            if not resume:
                raise ConfigError(
                    f"{shown(self.root)} is not empty: pass --resume to continue the run in it, or --workdir for another folder"
                )
            self.require_run()

    def open(self, resume: bool) -> None:
        """Make the folder, and remove what a kill left of files of ours that were being written; errors as :meth:`require_free`."""
        self.require_free(resume)
        with naming(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, *self.root.glob("samples/*/"), *self.root.glob("previews/")):
                for path in folder.iterdir():
                    if self._leftover(path):
                        path.unlink(missing_ok=True)

    def _leftover(self, path: Path) -> bool:
        ours = ("config", "specs", "versions", "metrics_log", "timings_log", "diagnostics_log", "samples", "samples_picture")
        ours = (*ours, "window", "trajectory_picture", "metrics", "report", "evaluations_log", "skipped_log", "held_out_log")
        names = {getattr(self, attribute).name for attribute in ours} | {"lock"}
        wanted = temporary_of(path)
        return (wanted in names or (wanted is not None and path.parent == self.previews)) and path.is_file()

    def require_run(self) -> None:
        """Raise ConfigError unless the folder holds a run."""
        if not self.config.is_file():
            raise ConfigError(f"{shown(self.root)} holds no run (no config.gin): expected the work directory of a run")

    def read_json(self, path: Path) -> Any:
        """The object in one of the JSON files, None where it is missing; ConfigError where it is damaged."""
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{shown(path)} is damaged ({error}): {self._remedy(path)}") from error
        needed = {
            self.metrics: {"metrics", "seconds", "samples_sha256", "data"},
            self.versions: {"devices"},
            self.window: {"step", "first", "values"},
        }.get(path, set())
        if not isinstance(found, dict) or not needed <= found.keys():
            raise ConfigError(f"{shown(path)} is damaged (not what was written there): {self._remedy(path)}")
        return found

    def _remedy(self, path: Path) -> str:
        if path == self.metrics:
            return "delete it and run `scorelab evaluate`"
        return "delete it and pass --resume, which goes on without it"


def read_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The complete lines of a JSON-lines file, as bytes and parsed; a torn last line is left out."""
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        try:
            record = json.loads(line)
            record["step"]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{shown(path)} is damaged in the line {line[:60]!r}: repair or delete it") from error
        yield line, record


def cut_lines(path: Path, step: int) -> None:
    """Keep the lines of windows that end at ``step`` or before; atomic."""
    if path.is_file():
        write_bytes(path, b"".join(line for line, record in read_lines(path) if record["step"] <= step))


def append_line(path: Path, record: Mapping[str, Any], *, replacing: int | None = None) -> None:
    """Append one JSON line, in the place of those from step ``replacing`` on where given.

    A kill may leave an appended line torn, which ``cut_lines`` repairs.
    """
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    if replacing is not None:
        kept = b"".join(old for old, earlier in read_lines(path) if earlier["step"] < replacing)
        write_bytes(path, kept + line)
        return
    with naming(path), open(path, "ab") as file:
        file.write(line)
