"""Batches that a run may skip: what it writes of them, and that it goes on as it would have."""

import json
from dataclasses import dataclass, field, replace

import jax
import numpy as np
import pytest

from scorelab import config, data
from scorelab.experiment import Experiment, Report, Run, Train
from scorelab.experiment.checkpoints import Checkpoints
from scorelab.experiment.train import state_like
from scorelab.experiment.workdir import Workdir
from tests.docs.blocks import named
from tests.run.conftest import TINY

SETS = (*TINY, "experiment.Train.skip_nonfinite = 2", "experiment.Train.previews = 0")
# Steps whose batches have a NaN.
BAD = (3, 4, 13)


@dataclass(frozen=True)
class Poisoned(data.DataSet):
    """A set of points, some batches of which have a NaN."""

    points: data.DataSet = field(default_factory=lambda: data.Named(name="rings", n=256))
    splits = ("train", "test")

    @property
    def name(self):
        return "poisoned"

    def load(self, split="train"):
        return self.points.load(split)

    def batches(self, batch_size, seed, arrays=None):
        return Batches(super().batches(batch_size, seed, arrays))


@dataclass(frozen=True)
class Batches:
    inner: data.Batches

    def at(self, step, *shard):
        batch = self.inner.at(step, *shard)
        if step + 1 in BAD:
            batch = {**batch, "x": np.where(np.arange(len(batch["x"]))[:, None] == 5, np.nan, batch["x"]).astype(np.float32)}
        return batch


def run(folder, steps):
    """Training up to ``steps``, and the report."""
    whole = config.load("toys/rings", SETS).experiment
    stages = (replace(whole.one(Train), steps=steps), Report())
    poisoned = Experiment(data=replace(whole.data, dataset=Poisoned()), learner=whole.learner, stages=stages, seed=whole.seed)
    workdir = Workdir(folder)
    folder.mkdir(exist_ok=True)
    for stage in stages:
        stage(Run(experiment=poisoned, workdir=workdir))
    return workdir


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.filterwarnings("ignore::scorelab.training.SkippedBatchWarning")
def test_a_run_says_what_it_skipped_and_resumes_as_it_was(tmp_path):
    whole = run(tmp_path / "whole", 20)
    assert read(whole.skipped_log) == [{"step": step, "batch": step - 1} for step in BAD]
    lines = read(whole.metrics_log)
    assert [(line["step"], line["skipped"]) for line in lines] == [(5, 2.0), (10, 0.0), (15, 1.0), (20, 0.0)]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert "not finite: 3, at the steps 3, 4, 13." in whole.report.read_text()

    stopped = run(tmp_path / "stopped", 10)
    assert read(stopped.skipped_log) == [{"step": step, "batch": step - 1} for step in BAD[:2]]
    again = run(tmp_path / "stopped", 20)
    assert again.metrics_log.read_bytes() == whole.metrics_log.read_bytes()
    assert again.skipped_log.read_bytes() == whole.skipped_log.read_bytes()
    like = state_like(config.load("toys/rings", SETS).experiment)
    states = [Checkpoints(place.checkpoints).restore(20, like) for place in (whole, again)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_config_says_how_many_and_a_run_that_goes_on_may_say_otherwise(tmp_path):
    stage = config.load("toys/rings", SETS).experiment.one(Train)
    assert stage.skip_nonfinite == 2
    assert "skip_nonfinite" in stage.may_change
    (tmp_path / "skipping.gin").write_text(named("docs/configs.md")["skipping.gin"])
    assert config.load(str(tmp_path / "skipping.gin"), TINY).experiment.one(Train).skip_nonfinite == 3
    assert config.load("toys/rings", TINY).experiment.one(Train).skip_nonfinite == 0
    with pytest.raises(ValueError, match=r"Train\.skip_nonfinite = -1: expected an integer >= 0"):
        Train(skip_nonfinite=-1)
