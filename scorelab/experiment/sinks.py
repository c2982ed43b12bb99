"""Sinks: where the metrics of a run go beside the JSON lines of its work directory."""

from __future__ import annotations

import abc
import csv
import importlib.util
import io
import json
import math
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from scorelab.errors import ConfigError
from scorelab.experiment.base import Run
from scorelab.experiment.describe import describe
from scorelab.experiment.workdir import Workdir, read_lines
from scorelab.files import write_text
from scorelab.validation import require_choice

# What TensorBoard has in names; other characters become "_".
_NAME = re.compile(r"[^-/\w.]")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Numbers of one step.

    Attributes:
        step: the training step.
        values: numbers by name, such as ``train/loss`` and ``evaluate/KID``; None for one that is not finite.
        time: when it was, in seconds since 1970.
    """

    step: int
    values: dict[str, float | None]
    time: float

    @property
    def finite(self) -> dict[str, float]:
        """Without the values that are not finite."""
        return {name: value for name, value in self.values.items() if value is not None}


class Sink(abc.ABC):
    """Where metrics go. A new one states ``opened``, and ``package`` where it needs one.

    A sink is given all rows there are when it is opened, and each new row once. What was written there before is the sink's own
    to replace or to keep, so a run that goes on leaves neither doubles nor holes.
    """

    package: ClassVar[str | None] = None
    # Whether it sends anything away, which the config of a work directory may not ask for without trust.
    remote: ClassVar[bool] = False

    def check(self) -> None:
        """ValueError where the package is missing."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            raise ValueError(
                f"Train.sinks has {self!r} without the package {self.package}: expected it installed, "
                "pip install 'scorelab[tracking]'"
            )

    @abc.abstractmethod
    def opened(self, run: Run, rows: Sequence[Row]) -> AbstractContextManager[Callable[[Row], None]]:
        """Inside, what writes a further row; ``rows`` are those so far, by step."""


@dataclass(frozen=True, kw_only=True)
class Csv(Sink):
    """``metrics.csv``: a line for each row, a column for each name, nothing where a row has no such number."""

    @contextmanager
    def opened(self, run: Run, rows: Sequence[Row]) -> Iterator[Callable[[Row], None]]:
        """The file is written anew, and then appended to."""
        path, rows = run.workdir.root / "metrics.csv", list(rows)
        names = dict.fromkeys(name for row in rows for name in row.values)
        write_text(path, _table([("step", *names), *_cells(names, rows)]))

        def write(row: Row) -> None:
            rows.append(row)
            if names.keys() >= row.values.keys():
                with open(path, "a", encoding="utf-8", newline="") as file:
                    file.write(_table(_cells(names, [row])))
            else:
                names.update(dict.fromkeys(row.values))
                write_text(path, _table([("step", *names), *_cells(names, rows)]))

        yield write


def _cells(names: Iterable[str], rows: Iterable[Row]) -> Iterator[tuple[Any, ...]]:
    return ((row.step, *(row.values.get(name) for name in names)) for row in rows)


def _table(lines: Iterable[Sequence[Any]]) -> str:
    csv.writer(text := io.StringIO(), lineterminator="\n").writerows(lines)
    return text.getvalue()


@dataclass(frozen=True, kw_only=True)
class TensorBoard(Sink):
    """Event files in ``tensorboard/``: ``tensorboard --logdir WORKDIR`` shows them."""

    package = "tensorboardX"

    @contextmanager
    def opened(self, run: Run, rows: Sequence[Row]) -> Iterator[Callable[[Row], None]]:
        """One event file, written anew."""
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]: an extra

        folder = run.workdir.root / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            # Windows keeps a file that a TensorBoard reads.
            with suppress(PermissionError):
                old.unlink()
        # A TensorBoard that is watching drops what it has read of the old file.
        with SummaryWriter(str(folder), purge_step=0, flush_secs=10) as writer:

            def write(row: Row) -> None:
                for name, value in row.finite.items():
                    writer.add_scalar(_NAME.sub("_", name), value, row.step, walltime=row.time)

            for row in rows:
                write(row)
            yield write


@dataclass(frozen=True, kw_only=True)
class Wandb(Sink):
    """A run of Weights & Biases, the same one when the work directory goes on; ``wandb.jsonl`` has its id and what it was sent.

    Rows that are made again after a kill are equal to those before, and are not sent twice.

    Attributes:
        project: its project.
        mode: ``"online"``, or ``"offline"``, which writes a folder in ``wandb/`` each time, for a later ``wandb sync``.
    """

    project: str = "scorelab"
    mode: Literal["online", "offline"] = "online"

    package = "wandb"
    remote = True

    def __post_init__(self):
        require_choice(self, ("online", "offline"), mode=self.mode)

    @contextmanager
    def opened(self, run: Run, rows: Sequence[Row]) -> Iterator[Callable[[Row], None]]:
        """The rows that were not sent yet are sent. ConfigError where there is no account, or no connection."""
        import wandb  # pyright: ignore[reportMissingImports]: an extra

        root, path = run.workdir.root, run.workdir.root / "wandb.jsonl"
        stored = path.read_text(encoding="utf-8") if path.is_file() else ""
        # Without a last line that a kill left torn.
        name, *sent = stored[: stored.rfind("\n")].split("\n") if "\n" in stored else [uuid.uuid4().hex]
        write_text(path, "\n".join((name, *sent, "")))
        try:
            found = wandb.init(
                project=self.project, id=name, resume="allow", mode=self.mode, dir=root, name=run.name or None,
                config=describe(run.experiment), allow_val_change=True, settings=wandb.Settings(console="off", silent=True),
            )  # fmt: skip
        except wandb.Error as error:
            raise ConfigError(f"Train.sinks: Wandb(project={self.project!r}): {error}") from error
        with found as open_run, open(path, "a", encoding="utf-8") as file:
            if self.mode == "online":
                run.console.stage("wandb", str(open_run.url))
            # The step is a number like the others, since evaluations belong to one that is over. W&B's own step counts rows.
            open_run.define_metric("*", step_metric="step")

            def write(row: Row) -> None:
                if (line := json.dumps([row.step, row.values])) not in sent:
                    open_run.log({"step": row.step, **row.finite}, step=len(sent))
                    sent.append(line)
                    file.write(line + "\n")
                    file.flush()

            for row in rows:
                write(row)
            yield write


@contextmanager
def opened(run: Run, sinks: Sequence[Sink]) -> Iterator[Callable[[Row], None]]:
    """Inside, what writes a row to all of them; they begin with what the logs of the work directory have."""
    rows = _rows(run.workdir) if sinks else []
    with ExitStack() as stack:
        writers = [stack.enter_context(sink.opened(run, rows)) for sink in sinks]

        def write(row: Row) -> None:
            for writer in writers:
                writer(row)

        yield write


def trained(record: Mapping[str, Any], time: float) -> Row:
    """The row of a line of ``metrics.jsonl``."""
    values = {f"train/{name}": value for name, value in record.items() if name not in ("step", "first")}
    return Row(step=record["step"], values=values, time=time)


def held(step: int, loss: float | None, time: float) -> Row:
    """The row of a held-out loss."""
    return Row(step=step, values={"held_out/loss": loss if loss is not None and math.isfinite(loss) else None}, time=time)


def _rows(workdir: Workdir) -> list[Row]:
    times = {record["step"]: record["time"] for _, record in read_lines(workdir.timings_log)}
    # A window that a signal cut short is made whole when the run goes on.
    cut = (workdir.read_json(workdir.window) or {}).get("step")
    lines = (record for _, record in read_lines(workdir.metrics_log) if record["step"] != cut)
    rows = [trained(record, times.get(record["step"], 0.0)) for record in lines]
    losses = (record for _, record in read_lines(workdir.held_out_log))
    rows += [held(record["step"], record["loss"], times.get(record["step"], 0.0)) for record in losses]
    rows += [
        Row(step=record["step"], values=record["values"], time=record["time"]) for _, record in read_lines(workdir.evaluations_log)
    ]
    return sorted(rows, key=lambda row: row.step)
