"""A distillation from its config, killed and resumed: three optimisers, bins, averages and logs, byte for byte."""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from scorelab.run import config, kept
from scorelab.run.cli import main
from scorelab.run.sources import ConfigError

SETS = (
    "STEPS = 12", "experiment.Experiment.batch_size = 8", "experiment.Experiment.checkpoint_every = 4",
    "experiment.Experiment.log_every = 2", "experiment.SamplingSpec.n = 20", "experiment.ImageEvaluation.n = 20",
    "distill.FDistill.gan_weight = 1e-3", "distill.TeacherFeatures.width = 8",
)  # fmt: skip
NAME = "paper/2502.15681/digits"


def arguments(root, *extra):
    return ["run", NAME, *(part for binding in SETS for part in ("--set", binding)), "--workdir", str(root), *extra]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("distillation") / "run"
    assert main(arguments(root)) == 0
    return root


def test_a_run_leaves_samples_scores_and_diagnostics(whole):
    lines = [json.loads(line) for line in (whole / "diagnostics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert len(lines[-1]["noise"]) == len(lines[-1]["ratio"]) == 10
    assert {"ratio", "h_cv", "clipped", "accuracy", "gap", "fake_error", "teacher_error"} <= set(lines[-1])
    with np.load(whole / "samples.npz") as file:
        assert file["x"].shape == (20, 8, 8, 1)
        assert json.loads(str(file["record"]))["model_calls"] == 1
    assert "Diagnostics" in (whole / "report.html").read_text()
    # The teacher is named by the hash of its parameters, and not stored again.
    specs = json.loads((whole / "specs.json").read_text())
    assert "sha256" in json.dumps(specs["learner"]["teacher"])


@pytest.mark.slow
def test_killed_and_resumed_is_the_run_that_was_not(whole, tmp_path):
    root = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-m", "scorelab.run.cli", *arguments(root)])
    try:
        until = time.monotonic() + 300
        while not (root / "checkpoints" / "4").is_dir() and child.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert main(arguments(root, "--resume")) == 0
    for name in ("metrics.jsonl", "diagnostics.jsonl"):
        assert (root / name).read_bytes() == (whole / name).read_bytes()
    with np.load(root / "samples.npz") as ours, np.load(whole / "samples.npz") as theirs:
        np.testing.assert_array_equal(ours["x"], theirs["x"])


def test_a_kept_model_is_what_was_trained(whole, tmp_path):
    file = kept.keep(whole, tmp_path / "student.npz")
    experiment, model, record = kept.read(file)
    assert record["step"] == 12
    assert experiment.data.name == "digits"
    again = kept.model(str(whole))
    for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (tmp_path / "other.npz").write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="not a model written by"):
        kept.read(tmp_path / "other.npz")


def test_a_missing_teacher_is_named():
    with pytest.raises(ConfigError, match=r"kept\.model\.path = 'nowhere\.npz': no such file or folder; expected a model kept by"):
        config.load(NAME, ["TEACHER_FILE = 'nowhere.npz'"])
