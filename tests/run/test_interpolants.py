"""Interpolants from a config: trained, sampled and reported, with and without a coupling of data and base."""

from dataclasses import replace

import numpy as np
import pytest

from scorelab import config, data, starts
from scorelab.errors import ConfigError
from scorelab.experiment import Sample
from scorelab.experiment.checks import check
from scorelab.experiment.train import coupled
from scorelab.solvers.epsilons import Bridge
from tests.run.conftest import with_sets

NAME = "paper/2303.08797/rings"
TINY = (
    "nets.MLP.width = 16", "nets.MLP.depth = 1", "data.Named.n = 256", "experiment.Train.batch_size = 32", "STEPS = 20",
    "WARMUP = 2",
    "experiment.Train.previews = 0", "grids.Arcsine.steps = 4", "experiment.Sample.n = 64",
    "experiment.PointEvaluation.projections = 16",
)  # fmt: skip


ASSIGNED = ("processes.StochasticInterpolant.coupling = @data.Assignment()", "data.Assignment.batch = 64")


@pytest.mark.parametrize("coupling", [(), ASSIGNED])
def test_a_bridge_is_trained_sampled_and_reported(scorelab, tmp_path, coupling):
    status, _, error = scorelab("run", NAME, *with_sets(*TINY, *coupling), "--workdir", tmp_path / "bridge")
    assert status == 0, error
    page = (tmp_path / "bridge" / "report.html").read_text()
    assert "StochasticInterpolant" in page
    assert "InterpolantSDE" in page
    with np.load(tmp_path / "bridge" / "samples.npz") as samples:
        assert samples["x"].shape == (64, 2)
        assert np.all(np.isfinite(samples["x"]))


def experiment(*bindings):
    return config.load(NAME, (*TINY, *bindings)).experiment


def test_batches_have_the_base_that_the_coupling_found():
    plain = experiment()
    batches = plain.data.batches(32, plain.seed)
    assert coupled(plain, batches) is batches
    joined = experiment("processes.StochasticInterpolant.coupling = @data.Assignment()")
    found = coupled(joined, joined.data.batches(32, joined.seed)).at(3)
    np.testing.assert_array_equal(found["x"], batches.at(3)["x"])
    x, w = found["x"], found["base"]
    np.testing.assert_array_equal(data.Assignment().partners(None, x, w), np.arange(32))


def test_a_coupling_that_does_not_fit_is_refused_before_the_training():
    wrong = experiment("processes.StochasticInterpolant.coupling = @data.Assignment()", "data.Assignment.batch = 40")
    with pytest.raises(ValueError, match="multiple"):
        check(wrong)
    paired = experiment("processes.StochasticInterpolant.coupling = @data.Paired()")
    with pytest.raises(ValueError, match="named 'base'"):
        check(paired)


SPHERE = "paper/2302.03660/sphere"
SMALL = tuple(each.replace("Arcsine", "Uniform") for each in TINY)


def test_unit_vectors_are_trained_sampled_and_reported(scorelab, tmp_path):
    cost = ("processes.Geodesic.coupling = @data.Assignment()", "data.Assignment.cost = @spaces.SquaredDistance()",
            "spaces.SquaredDistance.space = %SPACE")  # fmt: skip
    status, _, error = scorelab("run", SPHERE, *with_sets(*SMALL, *cost), "--workdir", tmp_path / "sphere")
    assert status == 0, error
    assert "Geodesic" in (tmp_path / "sphere" / "report.html").read_text()
    with np.load(tmp_path / "sphere" / "samples.npz") as samples:
        np.testing.assert_allclose(np.linalg.norm(samples["x"], axis=1), 1, atol=1e-6)


def test_points_off_the_space_are_refused_before_the_training():
    wrong = config.load(SPHERE, (*SMALL, "data.Named.name = 'rings'")).experiment
    with pytest.raises(ValueError, match=r"DataSpec.dataset = .* of 256 rows off Sphere\(\)"):
        check(wrong)


REFLOW = (
    "nets.MLP.width = 16", "nets.MLP.depth = 1", "data.Named.n = 256", "experiment.Train.batch_size = 32", "WARMUP = 2",
    "optax.warmup_cosine_decay_schedule.decay_steps = 30", "experiment.Train.previews = 0", "grids.Uniform.steps = 3",
    "experiment.Sample.n = 32", "experiment.PointEvaluation.projections = 16", "experiment.Rectify.every = 10",
    "experiment.Rectify.n = 64", "experiment.Train.checkpoint_every = 10", "experiment.Straightness.n = 16",
)  # fmt: skip


def test_rounds_of_reflow_go_on_where_they_were_stopped(scorelab, tmp_path):
    """Pairs of two rounds, the first from the base and the second from the data; stopped between, the samples are the same."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for steps, place, more in ((30, whole, ()), (20, parts, ()), (30, parts, ("--resume",))):
        status, _, error = scorelab(
            "run", "paper/2303.08797/reflow", *with_sets(*REFLOW, f"STEPS = {steps}"), "--workdir", place, *more
        )
        assert status == 0, error
    with np.load(whole / "samples.npz") as one, np.load(parts / "samples.npz") as other:
        np.testing.assert_array_equal(one["x"], other["x"])
    experiment = config.load("paper/2303.08797/reflow", (*REFLOW, "STEPS = 30")).experiment
    x = experiment.data.load().x
    known = lambda found: np.array([np.any(np.all(row == x, axis=1)) for row in found])
    with np.load(whole / "pairs" / "10.npz") as first, np.load(whole / "pairs" / "20.npz") as second:
        assert not np.any(known(first["x"]))
        assert np.all(known(second["x"]))
        # Ends of one path are joined: nearer than any other two.
        for pairs in (first, second):
            distance = lambda w, pairs=pairs: np.mean(np.sum((pairs["x"] - w) ** 2, 1))
            assert distance(pairs["base"]) < 0.7 * distance(np.roll(pairs["base"], 1, axis=0))
    assert "straightness" in (whole / "report.html").read_text()


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("processes.StochasticInterpolant.coupling = None", r"expected data\.Rectified"),
        ("experiment.Rectify.every = 15", "a multiple of Train.checkpoint_every"),
        ("experiment.Rectify.every = 30", "less than Train.steps"),
        ("experiment.Rectify.n = 16", "at least Train.batch_size"),
        ("experiment.Rectify.solver = @solvers.InterpolantSDE()", "gamma that is not zero"),
    ],
)
def test_rounds_that_cannot_be_are_refused_before_the_training(binding, message):
    with pytest.raises((TypeError, ValueError), match=message):
        check(config.load("paper/2303.08797/reflow", (*REFLOW, "STEPS = 30", binding)).experiment)


def test_a_coupling_of_pairs_that_nobody_makes_is_refused():
    bindings = [each for each in REFLOW if "Rectify" not in each and not each.startswith("grids")]
    with pytest.raises(ValueError, match="rectify = None under Rectified"):
        check(config.load("paper/2303.08797/reflow", (*bindings, "STEPS = 30", "experiment.Train.rectify = None")).experiment)
    with pytest.raises(ConfigError, match="expected one of 'base', 'data'"):
        config.load("paper/2303.08797/reflow", (*REFLOW, "STEPS = 30", "experiment.Rectify.exact = ('noise',)"))


PAIRED = (
    "STEPS = 4", "WARMUP = 2", "nets.DiT.width = 8", "nets.DiT.depth = 1", "experiment.Train.batch_size = 16",
    "experiment.Train.previews = 0", "experiment.Train.log_every = 2", "grids.Arcsine.steps = 3", "experiment.Sample.n = 12",
)  # fmt: skip


def test_a_paired_bridge_begins_at_the_base_of_its_conditions(scorelab, tmp_path):
    """Of the same rows of the test split: their averages are the conditions, and samples are where the base is at first."""
    name = "paper/2303.08797/super_resolution"
    status, _, error = scorelab("run", name, *with_sets(*PAIRED), "--workdir", tmp_path / "fine")
    assert status == 0, error
    with np.load(tmp_path / "fine" / "samples.npz") as samples:
        rows, cond, x = samples["rows"], samples["cond_"], samples["x"]
    assert x.shape == (12, 8, 8, 1)
    paired = config.load(name, PAIRED).experiment
    stage = paired.one(Sample)
    start = stage.begin(paired.data, paired.process, cond)
    np.testing.assert_array_equal(start.points, paired.data.load("test").more["base"][rows])
    # The averages of the base are the condition itself.
    np.testing.assert_array_equal(np.asarray(start.points)[:, ::4, ::4], cond)


def test_a_start_of_its_own_is_kept():
    plain = config.load("paper/2303.08797/super_resolution", PAIRED).experiment
    own = starts.Fixed(np.zeros((12, 8, 8, 1), np.float32))
    stage = replace(plain.one(Sample), start=own)
    assert stage.begin(plain.data, plain.process, stage.conditions(plain.data, 12)) is own
    # Without a coupling samples begin at the base, wherever that is.
    free = experiment()
    assert free.one(Sample).begin(free.data, free.process, None) is None


def test_configs_of_interpolants_say_the_scale_of_their_data_and_what_their_base_is():
    for name, base_std in ((NAME, 3.0), ("paper/2303.08797/reflow", 1.0)):
        found = config.load(name, ("data.Named.n = 2000",)).experiment
        field = found.learner.denoiser
        assert field.data_std == pytest.approx(np.std(found.data.load().x), rel=1e-3)
        assert field.base_std == base_std
    bridge = config.load("paper/2303.08797/super_resolution").experiment
    process, sampling = bridge.learner.denoiser.process, bridge.one(Sample)
    # The first step is then no step of the flow, which would give every sample of a condition the same one.
    assert process.deterministic_base
    assert sampling.solver.epsilon == Bridge()
