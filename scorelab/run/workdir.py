"""The work directory of a run: what lies where, written complete or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorelab.files import write_bytes
from scorelab.run.sources import ConfigError, shown


@dataclass(frozen=True)
class Workdir:
    """Paths of a run."""

    root: Path

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
    def checkpoints(self) -> Path:
        """One folder per kept step."""
        return self.root / "checkpoints"

    @property
    def samples(self) -> Path:
        """Samples in stored values, their conditions, and how they were drawn."""
        return self.root / "samples.npz"

    @property
    def samples_picture(self) -> Path:
        """The first samples."""
        return self.root / "samples.png"

    @property
    def trajectory_picture(self) -> Path:
        """A few samples on their way from noise to data."""
        return self.root / "trajectory.png"

    @property
    def metrics(self) -> Path:
        """The scores."""
        return self.root / "metrics.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.root / "report.html"

    def open(self, resume: bool) -> None:
        """Make the folder; ConfigError where it holds something that is not a run to resume."""
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"{shown(self.root)} is a file: expected a folder; pass another --workdir")
        leftovers = list(self.root.glob(".*.tmp")) if self.root.is_dir() else []
        if self.root.is_dir() and len(list(self.root.iterdir())) > len(leftovers):
            if not resume:
                raise ConfigError(
                    f"{shown(self.root)} is not empty: pass --resume to continue the run in it, "
                    "or --workdir for another folder"
                )
            self.require_run()
        # What a kill left of files that were being written.
        for path in leftovers:
            path.unlink(missing_ok=True)
        self.root.mkdir(parents=True, exist_ok=True)

    def require_run(self) -> None:
        """Raise ConfigError unless the folder holds a run."""
        if not self.config.is_file():
            raise ConfigError(
                f"{shown(self.root)} holds no run (no config.gin): expected the work directory of a run"
            )

    def read_json(self, path: Path) -> Any:
        """The content of one of the JSON files, None where it is missing."""
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The complete lines of a JSON-lines file, as bytes and parsed; a torn last line is left out."""
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        yield line, json.loads(line)


def cut_lines(path: Path, step: int) -> None:
    """Keep the lines of windows that end at ``step`` or before; atomic."""
    if path.is_file():
        write_bytes(path, b"".join(line for line, record in read_lines(path) if record["step"] <= step))


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line; a kill may leave it torn, which ``cut_lines`` repairs."""
    with open(path, "ab") as file:
        file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
