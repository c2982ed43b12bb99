"""Interpolants from a config: trained, sampled and reported, with and without a coupling of data and base."""

import numpy as np
import pytest

from scorelab import config, data
from scorelab.experiment.checks import check
from scorelab.experiment.train import coupled
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
