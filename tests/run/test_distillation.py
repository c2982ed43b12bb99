"""A distillation from its config, killed and resumed: three optimisers, bins, averages and logs, byte for byte."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from scorelab import (
    config,
    data,
    densities,
    distill,
    experiment,
    grids,
    models,
    pretrained,
    processes,
    schedules,
    solvers,
)
from scorelab.errors import ConfigError
from scorelab.experiment import Pairs, check, pairs
from scorelab.pretrained.kept import read
from scorelab.run.cli import main

SETS = (
    "STEPS = 12", "experiment.Train.batch_size = 8", "experiment.Train.checkpoint_every = 4",
    "experiment.Train.log_every = 2", "experiment.Sample.n = 20", "experiment.ImageEvaluation.n = 20",
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


def test_a_run_leaves_samples_metrics_and_diagnostics(whole):
    lines = [json.loads(line) for line in (whole / "diagnostics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert len(lines[-1]["noise"]) == len(lines[-1]["ratio"]) == 10
    assert {"ratio", "h_cv", "clipped", "accuracy", "gap", "fake_error", "teacher_error"} <= set(lines[-1])
    with np.load(whole / "samples.npz") as file:
        assert file["x"].shape == (20, 8, 8, 1)
        assert json.loads(str(file["record"]))["model_calls"] == 1
    assert "What the learner says of itself" in (whole / "report.html").read_text()
    # The teacher is named by the hash of its parameters, and not stored again.
    specs = json.loads((whole / "specs.json").read_text())
    assert "sha256" in json.dumps(specs["learner"]["teacher"])


@pytest.mark.long
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
    file = pretrained.keep(whole, tmp_path / "student.npz")
    experiment, model, record = read(file)
    assert record["step"] == 12
    assert experiment.data.name == "digits"
    again = pretrained.model(str(whole))
    for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (tmp_path / "other.npz").write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="not a model written by"):
        read(tmp_path / "other.npz")


def test_a_missing_teacher_is_named():
    with pytest.raises(ConfigError, match=r"pretrained\.model\.name = 'nowhere\.npz': no such model, file or folder; expected "):
        config.load(NAME, ["TEACHER_FILE = 'nowhere.npz'"])


DMD = "paper/2502.15681/digits_dmd"


def test_pairs_are_beside_the_data_and_on_the_flow_of_the_teacher():
    process = processes.Gaussian(schedule=schedules.EDM(sigma_max=20.0))
    deviation = np.linspace(0.2, 0.9, 64).reshape(8, 8, 1)
    teacher = models.ExactModel(densities.Gaussian.diagonal(np.zeros((8, 8, 1)), deviation**2), process)
    walk = dict(solver=solvers.Heun(), grid=grids.Karras(160))
    spec = experiment.DataSpec(
        dataset=data.Named(name="digits"), transform=data.Pixels(levels=17), labels=True,
        pairs=Pairs(teacher=teacher, n=50, batch_size=25, seed=3, chunk=20, **walk),
    )  # fmt: skip
    batches = spec.batches(16, 0)
    assert isinstance(batches, distill.WithPairs)
    batch = batches.at(2)
    alone = spec.examples(16, 0).at(2)
    assert set(batch) == {*alone, "pair_noise", "pair_x", "pair_cond"}
    for name, values in alone.items():
        np.testing.assert_array_equal(batch[name], values)
    # The flow of a Gaussian scales each element by the ratio of the deviations at its ends; Heun's error is .7 % with 40 steps.
    law = np.sqrt(deviation**2 / (deviation**2 + 20.0**2))
    np.testing.assert_allclose(batch["pair_x"], 20.0 * batch["pair_noise"] * law, rtol=1e-3, atol=1e-5)
    # The seed decides the pairs, how many are made at once does not.
    drawn = lambda **change: replace(spec, pairs=replace(spec.pairs, **change)).batches(16, 0).at(2)["pair_noise"]
    np.testing.assert_array_equal(drawn(chunk=None), batch["pair_noise"])
    assert np.all(np.sort(drawn(seed=4), axis=0) != np.sort(batch["pair_noise"], axis=0))
    # Two epochs of the pairs: each class as often as any other.
    seen = np.concatenate([batches.at(step)["pair_cond"] for step in range(4)])
    np.testing.assert_array_equal(np.bincount(seen, minlength=10), 10)


@pytest.mark.long
def test_a_run_with_pairs_reads_them_in_training_alone(tmp_path, monkeypatch):
    small = (
        "experiment.Pairs.n = 16",
        "experiment.Pairs.batch_size = 8",
        "pairs/grids.Karras.steps = 2",
        "distill.FDistill.ema = None",
    )
    short = tuple(binding for binding in SETS if not binding.startswith("distill."))
    bindings = [part for binding in (*short, *small) for part in ("--set", binding)]
    root = str(tmp_path / "run")
    assert main(["train", DMD, *bindings, "--workdir", root]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["pair_loss"] > 0 for line in lines)
    monkeypatch.setattr(pairs, "teacher_pairs", lambda *_, **__: pytest.fail("pairs were made for samples"))
    assert main(["sample", root]) == 0
    # A training that is over makes none either.
    assert main(["train", DMD, *bindings, "--workdir", root, "--resume"]) == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("pairs/solvers.Heun.churn = 10.0", r"Pairs\.solver = Heun\(.*draws noise: expected a deterministic solver"),
        ("experiment.Pairs.batch_size = 3000", r"Pairs\.batch_size = 3000: expected at most the 2000 pairs"),
        ("experiment.DataSpec.pairs = None", r"FDistill\.pair_weight = 0\.25 without DataSpec\.pairs: expected Pairs"),
        ("experiment.DataSpec.pairs = 3", r"DataSpec\.pairs = 3"),
    ],
)
def test_errors_of_pairs_name_the_field(change, match):
    with pytest.raises((ConfigError, ValueError, TypeError), match=match):
        check(config.load(DMD, [change]).experiment)
