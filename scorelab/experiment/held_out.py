"""The held-out losses of a run with early stopping: ``held_out.jsonl``, and the checkpoint that they choose."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

from scorelab import hosts
from scorelab.errors import ConfigError, shown
from scorelab.experiment.base import Experiment
from scorelab.experiment.console import Console
from scorelab.experiment.describe import describe
from scorelab.experiment.workdir import Workdir, append_line, read_lines
from scorelab.training import EarlyStopping, HeldOutLoss


def digest(experiment: Experiment, early: EarlyStopping, split: str) -> str:
    """What the losses are of: those with equal ones can be compared, however often they are taken."""
    plain = EarlyStopping()
    measured = dataclasses.replace(early, every=plain.every, patience=plain.patience, min_delta=plain.min_delta)
    data = experiment.data
    what = [
        describe(measured),
        describe(early.loss_of(experiment.learner)),
        split,
        data.load(split).sha256,
        describe(data.transform),
    ]
    return hashlib.sha256(json.dumps([*what, experiment.seed]).encode()).hexdigest()[:16]


def write(workdir: Workdir, record: HeldOutLoss, of: str) -> None:
    """Append a loss; JSON has no number that is not finite."""
    finite = lambda value: value if math.isfinite(value) else None
    line = {"step": record.step, "loss": finite(record.loss), "standard_error": finite(record.standard_error), "of": of}
    append_line(workdir.held_out_log, line)


def read(workdir: Workdir, of: str | None = None) -> list[HeldOutLoss]:
    """The losses of a run in their order; ConfigError for those of other points or another loss than ``of``, where it is given."""
    found = []
    for _, line in read_lines(workdir.held_out_log):
        if not {"loss", "standard_error", "of"} <= line.keys():
            raise ConfigError(f"{shown(workdir.held_out_log)} is damaged at step {line['step']}: repair or delete it")
        if of is not None and line["of"] != of:
            raise ConfigError(
                f"{shown(workdir.held_out_log)} has losses of other held-out points, draws or another loss than Train.early says: "
                "expected the same (every, patience and min_delta may change), or another --workdir"
            )
        found.append(HeldOutLoss(step=line["step"], loss=_number(line["loss"]), standard_error=_number(line["standard_error"])))
    return found


def of_first(workdir: Workdir, of: str) -> list[HeldOutLoss]:
    """:func:`read` as host 0 sees it, on every host."""
    mine = [dataclasses.astuple(record) for record in read(workdir, of)] if hosts.first() else None
    return [HeldOutLoss(step=step, loss=loss, standard_error=error) for step, loss, error in hosts.agreed(mine)]


def best_steps(early: EarlyStopping | None, records: Sequence[HeldOutLoss], steps: Sequence[int]) -> set[int]:
    """The step with the smallest loss up to each of ``steps``: a run may go on from any of these checkpoints."""
    if early is None:
        return set()
    best = (early.best([record for record in records if record.step <= step]) for step in steps)
    return {record.step for record in best if record is not None}


def best_step(workdir: Workdir, early: EarlyStopping, last: int) -> int:
    """The step with the smallest loss up to ``last``, which it is itself before the first loss is due; ConfigError without any."""
    best = early.best([record for record in read(workdir) if record.step <= last])
    if best is None and last < early.every:
        Console().line(
            f"note: no held-out loss was taken up to step {last} (Train.early has every = {early.every}): it is the best"
        )
        return last
    if best is None:
        raise ConfigError(
            f"{shown(workdir.root)} has no held-out loss up to step {last}, its last checkpoint: expected one for Train.keep = "
            f"'best', every {early.every} steps; set Train.keep = 'last' for the last state"
        )
    return best.step


def told(early: EarlyStopping, records: Sequence[HeldOutLoss]) -> str:
    """What the console says of the last loss."""
    last, best = records[-1], early.best(records)
    smallest = "" if best is None or best is last else f", best {best.loss:.4f} at {best.step}"
    return f"held-out {last.loss:.4f} at {last.step}{smallest}"


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
