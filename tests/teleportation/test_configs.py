"""Teleportation as a config names it: moments of the training data, per class where the model has labels."""

import dataclasses

import numpy as np
import pytest

from scorelab import config as configs
from scorelab import data, densities, grids, processes, starts
from scorelab.data import Named
from scorelab.experiment import DataSpec, Sample, Train
from scorelab.experiment.checks import check
from scorelab.experiment.starts import DataTeleport

from .targets import EDM

DIGITS = DataSpec(dataset=Named(name="digits"), transform=data.Pixels(levels=17))
TIMES = grids.Karras(18).times(EDM)


def in_chart(spec=DIGITS):
    return spec.transform.encode(spec.load().x)


def test_moments_of_all_data():
    start = DataTeleport(skip_steps=4)(DIGITS, EDM, None)
    flat = in_chart().reshape(-1, 64)
    np.testing.assert_allclose(start.law.mean.reshape(-1), flat.mean(0), atol=1e-6)
    np.testing.assert_allclose(start.law.covariance(), np.cov(flat.T), atol=2e-6)
    assert start.on_grid(EDM, TIMES)[1][0] == TIMES[4]


def test_moments_of_each_class_for_a_model_with_labels():
    spec = dataclasses.replace(DIGITS, labels=True)
    label = np.arange(20, dtype=np.int32) % 10
    start = DataTeleport(sigma_skip=9.0)(spec, EDM, label)
    np.testing.assert_array_equal(start.label, label)
    seven = in_chart()[spec.load().label == 7]
    np.testing.assert_allclose(start.law.components.mean[7], seven.mean(0), atol=1e-6)
    np.testing.assert_allclose(np.asarray(start.law.weights), np.bincount(spec.load().label) / len(spec.load()), rtol=1e-5)


def test_moments_of_the_logarithm_under_the_log_chart():
    process = processes.GeometricBrownianMotion(sigma=4.0)
    spec = DataSpec(dataset=Named(name="digits"), transform=data.Positive(levels=17))
    start = DataTeleport(rank=10)(spec, process, None)
    logs = np.log(in_chart(spec)).reshape(-1, 64)
    np.testing.assert_allclose(start.law.eigenvalues, np.linalg.eigvalsh(np.cov(logs.T))[::-1][:10], rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(sigma_skip=-1.0), "sigma_skip = -1.0"),
        (dict(sigma_skip=None), "exactly one"),
        (dict(rank=0), "DataTeleport.rank = 0"),
        (dict(method="svd", rank=3), "DataTeleport.method = 'svd'"),
        (dict(method="streaming"), "expected a number of directions"),
    ],
)
def test_bad_options_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        DataTeleport(**options)


def test_what_does_not_fit_is_found_before_training():
    with pytest.raises(ValueError, match="rank = 65 for digits: expected at most its dimension 64"):
        DataTeleport(rank=65).check(DIGITS, EDM)
    with pytest.raises(ValueError, match="a data set with labels"):
        DataTeleport().check(DataSpec(dataset=Named(name="rings", n=100), labels=True), EDM)
    with pytest.raises(ValueError, match="does not keep signs"):
        DataTeleport().check(DIGITS, processes.GeometricBrownianMotion(signed=True))
    sets = ["experiment.Sample.start = @experiment.DataTeleport()", "experiment.DataTeleport.skip_steps = 18"]
    with pytest.raises(ValueError, match="skip_steps = 18 on a grid of 18 steps"):
        check(configs.load("paper/2412.09726/digits.gin", sets).experiment)


def test_a_start_that_skips_is_checked_too():
    experiment = configs.load("paper/2412.09726/digits.gin", []).experiment
    start = starts.Teleport(densities.Gaussian(np.zeros((8, 8, 1)), 1.0), skip_steps=18)
    sampling = dataclasses.replace(experiment.one(Sample), start=start)
    with pytest.raises(ValueError, match="skip_steps = 18"):
        check(dataclasses.replace(experiment, stages=(experiment.one(Train), sampling)))
