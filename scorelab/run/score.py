"""The evaluation stage: from ``samples.npz`` to ``metrics.json``."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from typing import Any

import numpy as np

from scorelab.files import write_json
from scorelab.metrics import Score
from scorelab.run.console import Console
from scorelab.run.describe import describe
from scorelab.run.draw import read_samples
from scorelab.run.experiment import Experiment
from scorelab.run.sources import ConfigError, shown
from scorelab.run.workdir import Workdir


def read_scores(workdir: Workdir) -> tuple[list[Score], dict[str, Any]]:
    """The scores of a set of samples and the record of what was scored; none and {} where nothing was."""
    found = workdir.read_json(workdir.metrics)
    if found is None:
        return [], {}
    try:
        return [Score(**item) for item in found["scores"]], found
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{shown(workdir.metrics)} is damaged ({error}): delete it and run `scorelab evaluate`") from error


def samples_hash(x: np.ndarray) -> str:
    """SHA-256 of samples in stored values."""
    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()


def score(experiment: Experiment, workdir: Workdir, console: Console) -> list[Score]:
    """Score the samples of the work directory, unless these very samples were scored this way already."""
    drawn = read_samples(workdir)
    if drawn is None:
        raise ConfigError(f"{shown(workdir.samples)}: no such samples; run `scorelab sample` first")
    if experiment.evaluation is None:
        console.stage("evaluate", "nothing to do, Experiment.evaluation is None")
        return []
    how: dict[str, Any] = {
        "samples_sha256": samples_hash(drawn.x),
        "step": drawn.record["step"],
        "data": {"name": experiment.data.name, "train_sha256": experiment.data.load().sha256},
        "evaluation": describe(experiment.evaluation),
    }
    scores, before = read_scores(workdir)
    if before and all(before.get(key) == value for key, value in how.items()):
        console.stage("evaluate", "nothing to do, these samples are scored already")
        return scores
    began = time.monotonic()
    scores = experiment.evaluation(drawn.x, experiment.data, experiment.keys()[2])
    seconds = time.monotonic() - began
    write_json(workdir.metrics, {**how, "seconds": seconds, "scores": [dataclasses.asdict(s) for s in scores]})
    console.stage("evaluate", f"{len(scores)} scores in {seconds:.1f} s")
    for item in scores:
        console.line(f"          {item}")
    return scores
