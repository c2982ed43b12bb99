"""Bits per dimension as a diagnostic of a run: from a config to the report, and what is refused before the training."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import scorelab as sl
from scorelab import config, data, experiment, training
from scorelab.experiment import BitsPerDim, Diagnose
from tests.run.conftest import with_sets

TINY = (
    "STEPS = 2", "WARMUP = 1", "experiment.Train.batch_size = 16", "nets.MLP.width = 8", "nets.MLP.depth = 1",
    "places/nets.MLP.width = 8", "places/nets.MLP.depth = 1", "experiment.BitsPerDim.n = 4",
    "learned/experiment.BitsPerDim.steps = 2", "learned/experiment.BitsPerDim.draws = 2", "experiment.Sample.n = 4",
    "experiment.Evaluate.evaluations = ()", "grids.LogSNR.steps = 3",
)  # fmt: skip


def gaussian_bits(n, variance):
    """Of rows of the test digits under N(0, variance): the mean of the logarithm of the density over a cell, ``(n,)``."""
    spec = config.load("recipes/bits_per_dim.gin", TINY).experiment.data
    arrays, width = spec.load("test"), 2 / spec.transform.levels
    rows = np.unique(np.linspace(0, len(arrays) - 1, n).round().astype(int))
    centres = width * (np.asarray(arrays.x[rows], np.float64) + 0.5) - 1
    nats = -0.5 * ((centres**2 + width**2 / 12) / variance + np.log(2 * np.pi * variance)) + np.log(width)
    return -nats.reshape(n, -1).mean(1) / np.log(2)


def test_the_recipe_counts_bits_of_held_out_images(tmp_path, scorelab):
    status, _, err = scorelab("run", "recipes/bits_per_dim.gin", *with_sets(*TINY), "--workdir", tmp_path / "run")
    assert status == 0, err
    page = (tmp_path / "run" / "report.html").read_text()
    for name in ("bits_uniform", "bits_learned"):
        found = json.loads((tmp_path / "run" / "diagnostics" / f"{name}.json").read_text())["values"]
        assert found["n"] == len(found["bits"]) == 4
        np.testing.assert_allclose(found["bits_per_dim"], np.mean(found["bits"]), rtol=1e-5)
        np.testing.assert_allclose(found["standard_error"], np.std(found["bits"], ddof=1) / 2, rtol=1e-4)
        # A new network says v = 0, which is the flow of N(0, 1). Two steps, of thousands that gain two bits, gain less than .05.
        assert abs(found["bits_per_dim"] - gaussian_bits(4, 1.0).mean()) < 0.05
        assert found["uniform_code"] == pytest.approx(np.log2(17))
        assert f"Diagnostic: {name}, step 2" in page
        assert f"{found['bits_per_dim']:.4g}" in page
        assert f"{found['standard_error']:.4g}" in page


def test_places_are_a_function_of_the_step():
    x = np.random.default_rng(0).integers(0, 17, (64, 8, 8, 1)).astype(np.uint8)
    batches = data.Dequantised(data.Batches({"x": x}, batch_size=16), seed=3)
    batch = batches.at(5)
    np.testing.assert_array_equal(batch["places"], batches.at(5)["places"])
    assert not np.array_equal(batch["places"], batches.at(6)["places"])
    assert abs(batch["places"].mean() - 0.5) < 4 / np.sqrt(12 * batch["places"].size)
    prepared = training.Prepared(batches, transform=data.Pixels(levels=17))
    y = prepared.prepare(batch)
    assert set(y) == {"x", "cond"}
    np.testing.assert_array_equal(data.Pixels(levels=17).decode(y["x"]), batch["x"])
    v = (np.asarray(y["x"]) + 1) * 17 / 2 - batch["x"]
    np.testing.assert_allclose(v, batch["places"], atol=1e-4)
    with pytest.raises(ValueError, match="expected 0 to levels - 1 = 9"):
        training.Prepared(batches, transform=data.Pixels(levels=10))
    with pytest.raises(TypeError, match="expected one with cells"):
        training.Prepare(transform=None)(batch)
    with pytest.raises(TypeError, match=r"Dequantised\.batches has x of float32: expected uint8 levels"):
        data.Dequantised(data.Batches({"x": x.astype(np.float32)}, batch_size=4)).at(0)


def changed(**data_fields):
    found = config.load("recipes/bits_per_dim.gin", TINY).experiment
    return replace(found, data=replace(found.data, **data_fields)) if data_fields else found


def asked(questions, **data_fields):
    found = changed(**data_fields)
    stages = tuple(replace(stage, questions=questions) if isinstance(stage, Diagnose) else stage for stage in found.stages)
    experiment.check(replace(found, stages=stages))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: asked(BitsPerDim(), dequantise=False), r"BitsPerDim with DataSpec.dequantise = False: expected True"),
        (lambda: asked(BitsPerDim(split="held")), "BitsPerDim.split = 'held' of digits: expected one of"),
        (lambda: asked(BitsPerDim(n=10_000)), "BitsPerDim.n = 10000: expected at most 297"),
        (lambda: BitsPerDim(draws=2, probes=1), "BitsPerDim.draws = 2 with probes = 1"),
        (lambda: BitsPerDim(paths=2), "paths = 2 without a grid"),
        (lambda: BitsPerDim(places=3), "LogitLogistic.net = 3: expected a network"),
        (lambda: BitsPerDim(grid=3), "BitsPerDim.grid = 3: expected a Grid"),
        (lambda: changed(transform=data.Identity()), r"dequantise = True with Identity\(\): expected a scale with levels"),
        (lambda: changed(dequantise=1), "DataSpec.dequantise = 1: expected one of True, False"),
    ],
)
def test_what_cannot_be_counted_is_refused_before_the_training(wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        wrong()


def test_the_bound_of_the_sde_in_a_config():
    n, variance = 16, 0.5
    question = BitsPerDim(n=n, grid=sl.grids.LogSNR(100), epsilon=sl.solvers.epsilons.Reverse(0.5), probes=1)
    found = changed()
    asked(question)
    law = sl.densities.Gaussian(np.zeros((8, 8, 1)), variance)
    finding = question(sl.models.ExactModel(law, found.process), found.data, jax.random.key(0))
    # The score is exact here, and the noise of t_min below 2e-4.
    more = np.asarray(finding.values["bits"]) - gaussian_bits(n, variance)
    error = more.std() / np.sqrt(n)
    assert 4 * error < 0.01
    assert abs(more.mean()) < 4 * error


def test_pairs_under_a_condition_have_no_bits():
    """The base rows of a condition follow another law than all of them, and those of a deterministic base none with a density."""
    found = changed(labels=True)
    base = sl.densities.Gaussian(np.zeros((8, 8, 1)), 1.0)
    for coupling, message in (
        (data.Paired(), r"BitsPerDim under Paired\(.*and the condition 'label': expected data without a condition"),
        (data.Paired(deterministic=True), r"BitsPerDim under Paired\(.*a base with noise of its own"),
    ):
        process = sl.processes.StochasticInterpolant(base=base, coupling=coupling)
        with pytest.raises(ValueError, match=message):
            BitsPerDim().check(SimpleNamespace(data=found.data, process=process))
