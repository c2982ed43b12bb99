"""Experiments as stages: several sets of samples, evaluations and diagnostics of one model, from a config and from Python."""

import json
from dataclasses import dataclass, replace

import jax
import numpy as np
import optax
import pytest

from scorelab import config, data, experiment, grids, losses, models, processes, schedules, solvers, training
from scorelab.errors import ConfigError
from scorelab.experiment import (
    Diagnose,
    Diagnostic,
    Evaluate,
    ExplainedVariance,
    Finding,
    PointEvaluation,
    Report,
    Run,
    Sample,
    Train,
)
from scorelab.experiment.describe import describe
from scorelab.experiment.sample import draw
from scorelab.experiment.workdir import Workdir
from tests.run.conftest import TINY, with_sets

TWO_SETS = """from __gin__ import dynamic_registration

from scorelab import experiment
from scorelab import solvers

include 'toys/eight_gaussians.gin'

experiment.Experiment.stages = (
    @experiment.Train(), @experiment.Sample(), @euler/experiment.Sample(), @experiment.Evaluate(), @euler/experiment.Evaluate(),
    @experiment.Diagnose(), @experiment.Report())
euler/experiment.Sample:
    name = 'euler'
    solver = @solvers.ProbabilityFlowEuler()
euler/experiment.Evaluate:
    name = 'euler'
    samples = 'euler'
experiment.Diagnose.questions = (@experiment.ExplainedVariance(),)
experiment.ExplainedVariance:
    n = 32
    levels = 3
"""


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory):
    """A finished run with two sets of samples."""
    from scorelab.run.cli import main

    folder = tmp_path_factory.mktemp("stages")
    (folder / "two.gin").write_text(TWO_SETS)
    root = folder / "run"
    assert main(["run", str(folder / "two.gin"), *with_sets(*TINY), "--workdir", str(root)]) == 0
    return folder / "two.gin", root


def drawn(path):
    with np.load(path / "samples.npz") as stored:
        return stored["x"], json.loads(str(stored["record"]))


def test_each_set_has_its_place_its_sampler_and_its_metrics(two_sets):
    _, root = two_sets
    (plain, how), (euler, other) = drawn(root), drawn(root / "samples" / "euler")
    assert how["sampling"]["solver"]["type"].endswith("Heun")
    assert other["sampling"]["solver"]["type"].endswith("ProbabilityFlowEuler")
    # Another name, other noise: sets are independent of one another.
    assert plain.shape == euler.shape == (64, 2)
    assert not np.any(np.isclose(plain, euler).all(1))
    for place in (root, root / "samples" / "euler"):
        assert {path.name for path in place.glob("*.png")} == {"samples.png", "trajectory.png"}
        assert json.loads((place / "metrics.json").read_text())["samples_sha256"]
    page = (root / "report.html").read_text()
    for heading in ("Samples and data<", "Samples and data (euler)", "Diagnostic: explained_variance, step 20"):
        assert heading in page


def test_a_diagnostic_writes_numbers_and_a_picture(two_sets):
    _, root = two_sets
    found = json.loads((root / "diagnostics" / "explained_variance.json").read_text())
    assert found["step"] == 20
    assert len(found["values"]["sigmas"]) == len(found["values"]["ratio_of_means"]) == 3
    assert (root / "diagnostics" / "explained_variance.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_is_done_does_nothing(two_sets, scorelab):
    path, root = two_sets
    before = {
        file: file.stat().st_mtime_ns for file in root.rglob("*") if file.suffix in (".npz", ".json") and "lock" not in file.name
    }
    status, out, _ = scorelab("run", path, *with_sets(*TINY), "--workdir", root, "--resume")
    assert status == 0
    assert out.count("nothing to do") == 6
    after = {file: file.stat().st_mtime_ns for file in before}
    same = [file for file in before if file.name not in ("specs.json", "versions.json")]
    assert [after[file] for file in same] == [before[file] for file in same]


def test_a_run_may_go_on_with_other_stages_but_not_with_another_training(two_sets, scorelab, tmp_path):
    _, root = two_sets
    status, _, err = scorelab(
        "run", two_sets[0], *with_sets(*TINY, "experiment.Train.batch_size = 16"), "--workdir", root, "--resume"
    )
    assert status == 2
    assert "was run with another config: Train.batch_size differ" in err
    status, *_ = scorelab("run", two_sets[0], *with_sets(*TINY, "euler/experiment.Sample.n = 32"), "--workdir", root, "--resume")
    assert status == 0
    assert len(drawn(root / "samples" / "euler")[0]) == 32
    assert len(drawn(root)[0]) == 64


def test_the_command_takes_the_stage_of_the_name(two_sets, scorelab):
    _, root = two_sets
    status, _, err = scorelab("sample", root, "--name", "euler", "--n", "16")
    # These are evaluated already, so they are not replaced.
    assert status == 2
    assert "pass --name or --out for others" in err
    status, *_ = scorelab("sample", root, "--name", "third", "--n", "16")
    assert status == 0
    assert drawn(root / "samples" / "third")[1]["sampling"]["solver"]["type"].endswith("Heun")
    status, *_ = scorelab("evaluate", root, "--name", "third", "--n", "16")
    assert status == 0
    assert "Samples and data (third)" in (root / "samples" / "third" / "report.html").read_text()


# From Python -------------------------------------------------------------------------------------------------------------
EDM = processes.Gaussian(schedule=schedules.EDM())


def small(stages, **changes):
    learner = training.ScoreLearner(
        models.Denoiser(net=models.nets.MLP(width=8, depth=1), process=EDM, data_std=0.5),
        losses.DenoisingScoreMatching(EDM),
        optax.adam(1e-3),
    )
    spec = experiment.DataSpec(dataset=data.Named(name="rings", n=64))
    return experiment.Experiment(**(dict(data=spec, learner=learner, stages=stages) | changes))


@dataclass(frozen=True, kw_only=True)
class Widths(Diagnostic):
    """The deviation of the denoised mean at three noise levels."""

    name: str = "widths"

    def __call__(self, model, data, key):
        x = np.asarray(data.transform.encode(data.load().x[:8]))
        values = [float(np.std(model(x, np.float32(t)).denoised)) for t in (0.1, 1.0, 10.0)]
        return Finding(values=dict(widths=values, worst=np.nan))


def test_stages_are_called_in_their_order(tmp_path):
    stages = (
        Train(steps=2, batch_size=8),
        Sample(n=8, grid=grids.Karras(2)),
        Evaluate(evaluations=PointEvaluation(projections=4)),
        Diagnose(questions=Widths()),
        Report(),
    )
    made = small(stages)
    experiment.check(made)
    run = Run(experiment=made, workdir=Workdir(tmp_path / "run"))
    run.workdir.open(resume=False)
    for stage in made.stages:
        stage(run)
    found = json.loads((tmp_path / "run" / "diagnostics" / "widths.json").read_text())
    assert len(found["values"]["widths"]) == 3
    assert found["values"]["worst"] is None  # JSON has no NaN
    assert "Diagnostic: widths, step 2" in (tmp_path / "run" / "report.html").read_text()


class Loose(Diagnostic):
    """Returns what is no finding."""

    def __call__(self, model, data, key):
        return {"a": 1.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(()).one(Train), r"Experiment.stages = \[\]: expected a Train"),
        (lambda: small((Train(), Train())), "Experiment.stages has Train twice with the name ''"),
        (lambda: Train(name="second"), "Train.name = 'second': expected one of ''"),
        (lambda: experiment.check(small((Train(batch_size=8), Evaluate(samples="no")))), "expected a Sample with the name 'no'"),
        (
            lambda: experiment.check(small((Train(batch_size=8), Sample(n=10), Evaluate(evaluations=PointEvaluation(n=20))))),
            "PointEvaluation.n = 20: expected at most the number of samples, Sample.n = 10",
        ),
        (lambda: Sample(name="../up"), r"Sample.name = '../up': expected a name"),
        (lambda: Diagnose(questions=(Widths(), Widths())), "Diagnose.questions has 'widths' twice"),
        (lambda: Diagnose(questions=Widths(name="a/b")), "named 'a/b'"),
        (lambda: Diagnose(questions=3), "Diagnose.questions = 3: expected a Diagnostic"),
        (lambda: Finding(values=dict(a="text")), r"Finding.values\['a'\] = 'text': expected real numbers"),
        (lambda: Evaluate(evaluations=(3,)), "Evaluate.evaluations = 3: expected a Evaluation"),
        (
            lambda: experiment.check(small((Train(batch_size=8), Diagnose(questions=ExplainedVariance(sigma_max=100.0))))),
            "ExplainedVariance.sigma_max = 100.0: expected 0.002 to 80",
        ),
        (lambda: ExplainedVariance(sigma_min=3.0, sigma_max=2.0), "sigma_min = 3.0: expected less than sigma_max = 2.0"),
        (
            lambda: experiment.check(small((Train(batch_size=8), Evaluate(), Sample()))),
            "Evaluate stands before Sample: expected it later",
        ),
        (lambda: experiment.check(small((Sample(), Train(batch_size=8)))), "Sample stands before Train: expected it later"),
        (
            lambda: experiment.check(small((Train(batch_size=8), Report(), Sample()))),
            "Report stands before Sample: expected it later",
        ),
        (
            lambda: experiment.check(small((Train(batch_size=8), Sample(), Evaluate(), Evaluate(name="again")))),
            "Evaluate.samples = '' of two stages, whose metrics would replace one another",
        ),
        (
            lambda: experiment.check(
                small((Train(batch_size=8), Diagnose(questions=Widths()), Diagnose(name="more", questions=Widths())))
            ),
            "Diagnose.questions has 'widths' in two stages",
        ),
        (lambda: Sample(name=5), "Sample.name = 5: expected a str"),
        (lambda: Sample(classes=3), "Sample.classes = 3: expected a tuple or list"),
        (lambda: Evaluate(samples=None), "Evaluate.samples = None: expected a str"),
        (lambda: Finding(values=[1, 2]), r"Finding.values = \[1, 2\]: expected a Mapping"),
        (lambda: Finding(values={"a": 1j}), r"Finding.values\['a'\] = 1j: expected real numbers"),
    ],
)
def test_stages_that_do_not_fit_are_refused(make, message):
    with pytest.raises((ValueError, TypeError, ConfigError), match=message):
        make()


def test_what_is_no_finding_is_named(tmp_path):
    made = small((Train(steps=1, batch_size=8), Diagnose(questions=Loose(name="loose"))))
    run = Run(experiment=made, workdir=Workdir(tmp_path / "run"))
    run.workdir.open(resume=False)
    made.stages[0](run)
    with pytest.raises(TypeError, match="Loose returned dict: expected a Finding"):
        made.stages[1](run)
    assert not (tmp_path / "run" / "diagnostics").exists()


def test_the_noise_of_a_set_depends_on_its_name():
    key = small((Train(),)).keys()[1]
    same = Sample().key(key)
    assert np.array_equal(np.asarray(jax_bits(same)), np.asarray(jax_bits(key)))
    named = [Sample(name=name).key(key) for name in ("a", "b", "a")]
    bits = [np.asarray(jax_bits(one)).tolist() for one in named]
    assert bits[0] == bits[2] != bits[1]


def jax_bits(key):
    return jax.random.key_data(key)


def test_a_config_reads_to_what_python_builds():
    loaded = config.load("toys/rings", ["experiment.Sample.n = 7", "solvers.Heun.churn = 1.0"]).experiment
    assert loaded.one(Sample) == replace(Sample(), n=7, solver=solvers.Heun(churn=1.0), grid=grids.Karras(18))


# What changes between a run and its continuation ---------------------------------------------------------------------------
FROM_FILE = """from __gin__ import dynamic_registration

from scorelab import data
from scorelab import experiment

include 'toys/eight_gaussians.gin'

experiment.Experiment.stages = (@experiment.Train(), @experiment.Sample(), @experiment.Evaluate())
experiment.DataSpec.dataset = @data.ArrayFile()
data.ArrayFile:
    train = 'train.npz'
    test = 'test.npz'
experiment.Evaluate.evaluations = (@mine.Means(),)
DATA_STD = 1.0
"""
MEANS = """import numpy as np
from scorelab.experiment import Evaluation
from scorelab.metrics import MetricValue


class Means(Evaluation):
    def check(self, data, samples):
        data.load("test")

    def __call__(self, samples, data, key):
        return [MetricValue(name="mean of the test split", value=float(data.load("test").x.mean()), n=len(samples))]
"""
FEW = [binding for binding in TINY if not binding.startswith(("data.Named", "experiment.PointEvaluation"))]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A config on files in the working folder, with an evaluation of its own beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    rng = np.random.default_rng(0)
    np.savez("train.npz", x=rng.normal(size=(256, 2)))
    np.savez("test.npz", x=rng.normal(size=(64, 2)) + 1.0)
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MEANS)
    text = FROM_FILE.replace("from scorelab import data\n", f"import {name}\nfrom scorelab import data\n").replace(
        "@mine.", f"@{name}."
    )
    (tmp_path / "own.gin").write_text(text)
    return tmp_path


def test_a_run_does_not_go_on_with_other_data(files, scorelab):
    run = ["run", "own.gin", *with_sets(*FEW), "--workdir", "out"]
    assert scorelab(*run)[0] == 0
    before = json.loads((files / "out" / "metrics.json").read_text())["metrics"][0]["value"]
    assert before == pytest.approx(np.load("test.npz")["x"].mean(), rel=1e-5)
    # Another test split: what was evaluated against the old one is evaluated again.
    np.savez("test.npz", x=np.full((64, 2), 3.0))
    assert scorelab(*run, "--resume")[0] == 0
    assert json.loads((files / "out" / "metrics.json").read_text())["metrics"][0]["value"] == 3.0
    np.savez("train.npz", x=-np.load("train.npz")["x"][::-1])
    status, _, err = scorelab(*run, "--resume")
    assert status == 2
    assert "was run on other data: train had sha256" in err


def test_functions_with_other_numbers_are_described_apart():
    class Rewards:
        def __init__(self, weight):
            self.weight = weight

        def __repr__(self):
            return f"Rewards({self.weight})"

        def reward(self, x):
            return self.weight * x

    def scaled(x, weight=1.0):
        return weight * x

    def other(x, weight=2.0):
        return weight * x

    assert describe(Rewards(1).reward) == describe(Rewards(1).reward) != describe(Rewards(5).reward)
    other.__qualname__ = scaled.__qualname__
    assert describe(scaled) != describe(other)
    closed = lambda weight: jax.jit(lambda x: weight * x)
    assert describe(closed(1.0)) == describe(closed(1.0)) != describe(closed(2.0))


def test_signs_of_a_start_are_those_of_the_class():
    process = processes.GeometricBrownianMotion(signed=True)
    spec = experiment.DataSpec(dataset=Sorted(), labels=True)
    start = experiment.DataStart(kind="signed")
    label = np.array([0, 1] * 5)
    signs = np.asarray(start(spec, process, label).signs(np.arange(10), (2,)))
    np.testing.assert_array_equal(signs, np.where(label == 0, -1.0, 1.0)[:, None] * np.ones((1, 2)))
    # Without labels every row has its turn, in another order than that of the file.
    signs = np.asarray(start(replace(spec, labels=False), process, None).signs(np.arange(100), (2,)))
    assert 20 < np.sum(signs[:50, 0] < 0) < 30 or np.sum(signs[:, 0] < 0) == 50
    assert 5 < np.sum(signs[:30, 0] < 0) < 25


@dataclass(frozen=True)
class Sorted(data.DataSet):
    """Negative points first."""

    name: str = "sorted"

    def load(self, split="train"):
        x = np.abs(np.random.default_rng(0).normal(size=(100, 2))).astype(np.float32) + 0.1
        label = (np.arange(100) >= 50).astype(np.int32)
        return data.Arrays(x=np.where(label[:, None] == 0, -x, x), label=label, name="sorted", split=split, num_classes=2)


def test_fewer_samples_than_the_config_says_have_their_pictures(tmp_path):
    made = small(
        (Train(steps=1, batch_size=8), Sample(n=40, grid=grids.Karras(2), start=experiment.DataStart(kind="class_average"))),
        data=experiment.DataSpec(dataset=data.Named(name="digits"), transform=data.Pixels(levels=17), labels=True),
    )
    learner = replace(made.learner, denoiser=replace(made.learner.denoiser, net=models.nets.MLP(width=8, depth=1, num_classes=10)))
    made = replace(made, learner=learner)
    run = Run(experiment=made, workdir=Workdir(tmp_path / "run"))
    run.workdir.open(resume=False)
    made.stages[0](run)
    draw(run, made.stages[1], run.workdir.named("few"), n=10)
    assert {path.name for path in (tmp_path / "run" / "samples" / "few").iterdir()} == {
        "samples.npz",
        "samples.png",
        "trajectory.png",
    }
