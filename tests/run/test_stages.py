"""Experiments as stages: several sets of samples, evaluations and diagnostics of one model, from a config and from Python."""

import json
from dataclasses import dataclass, replace

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
    for heading in ("Samples and data<", "Samples and data (euler)", "Diagnostic: explained_variance"):
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
    assert "Diagnostic: widths" in (tmp_path / "run" / "report.html").read_text()


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
        (lambda: Finding(values=dict(a="text")), r"Finding.values\['a'\] = 'text': expected numbers"),
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
    import jax

    return jax.random.key_data(key)


def test_a_config_reads_to_what_python_builds():
    loaded = config.load("toys/rings", ["experiment.Sample.n = 7", "solvers.Heun.churn = 1.0"]).experiment
    assert loaded.one(Sample) == replace(Sample(), n=7, solver=solvers.Heun(churn=1.0), grid=grids.Karras(18))
