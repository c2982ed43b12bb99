"""Interpolants from a config: trained, sampled and reported, with and without a coupling of data and base."""

import types
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorelab import config, data, fk, models, starts
from scorelab.errors import ConfigError
from scorelab.experiment import Diagnose, Sample, Straightness, Train, rectify
from scorelab.experiment.checks import check
from scorelab.experiment.train import coupled
from scorelab.solvers.epsilons import SchroedingerBridge
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


@pytest.mark.parametrize("ends", [dict(x=(40, 2), base=(40, 2)), dict(x=(64, 2)), dict(x=(64, 2), base=(64, 3))], ids=str)
def test_pairs_of_other_shapes_are_refused(tmp_path, ends):
    reflow = config.load("paper/2303.08797/reflow", (*REFLOW, "STEPS = 30")).experiment
    (tmp_path / "pairs").mkdir()
    np.savez(tmp_path / "pairs" / "10.npz", **{name: np.zeros(shape) for name, shape in ends.items()})
    run = types.SimpleNamespace(experiment=reflow, workdir=types.SimpleNamespace(root=tmp_path))
    with pytest.raises(ConfigError, match=r"expected finite x and base, \(64, 2\); delete it"):
        reflow.one(Train).rectify.batches(run, 10, None, 32)


@pytest.mark.parametrize(("name", "solver"), [(NAME, "Heun()"), (SPHERE, "InterpolantSDE()"), ("quickstart", "InterpolantODE()")])
def test_a_solver_of_another_process_is_refused_by_name(name, solver):
    wrong = config.load(name, ("from scorelab import solvers", f"experiment.Sample.solver = @solvers.{solver}")).experiment
    with pytest.raises(TypeError, match=rf"Sample.solver = {solver[:-2]}.process = .*: expected a "):
        check(wrong)


def test_a_coupling_of_pairs_that_nobody_makes_is_refused():
    bindings = [each for each in REFLOW if "Rectify" not in each and not each.startswith("grids")]
    with pytest.raises(ValueError, match="rectify = None under Rectified"):
        check(config.load("paper/2303.08797/reflow", (*bindings, "STEPS = 30", "experiment.Train.rectify = None")).experiment)
    with pytest.raises(ConfigError, match="expected one of 'base', 'data'"):
        config.load("paper/2303.08797/reflow", (*REFLOW, "STEPS = 30", "experiment.Rectify.exact = ('noise',)"))


FINE = "paper/2303.08797/super_resolution"
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
    assert sampling.solver.epsilon == SchroedingerBridge()


def test_noise_beside_the_base_rows_depends_on_the_number_of_the_sample():
    bindings = (*PAIRED, "data.Paired.noise = 0.5", "data.Paired.deterministic = False")
    noisy = config.load(FINE, bindings).experiment
    stage, key = noisy.one(Sample), jax.random.key(3)
    points = lambda n, key=key: np.asarray(stage.begin(noisy.data, noisy.process, stage.conditions(noisy.data, n), key).points)
    rows = noisy.data.load("test").more["base"][stage.rows(noisy.data, 128)]
    z = (points(128) - rows) / 0.5
    assert stats.kstest(z.ravel(), stats.norm.cdf).pvalue > 1e-3
    np.testing.assert_array_equal(points(12), points(128)[:12])
    assert np.abs(points(12) - points(12, jax.random.key(4))).max() > 0.1
    with pytest.raises(ValueError, match="expected the key"):
        points(12, None)
    check(noisy)


FILLED = (
    *(each for each in PAIRED if "previews" not in each), "experiment.Train.checkpoint_every = 4",
    "processes.StochasticInterpolant.coupling = @data.Inpainting()", "data.Inpainting.sides = (4, 3)",
    "experiment.DataSpec.dataset = @data.Named()", "experiment.DataSpec.cond = None", "nets.DiT.condition = None",
    "experiment.Evaluate.evaluations = ()",
)  # fmt: skip


def test_held_out_images_are_sampled_with_their_holes_filled(scorelab, tmp_path):
    status, _, error = scorelab("run", FINE, *with_sets(*FILLED), "--workdir", tmp_path / "filled")
    assert status == 0, error
    with np.load(tmp_path / "filled" / "samples.npz") as samples:
        rows, x = samples["rows"], samples["x"]
    assert (tmp_path / "filled" / "previews" / "4.npz").is_file()
    stored = config.load(FINE, FILLED).experiment.data.load("test").x
    assert x.shape == (12, 8, 8, 1)
    # In a box of four by three, and not one pixel beside it.
    for image, row in zip(x, rows, strict=True):
        where = np.argwhere(image != stored[row])
        assert len(where)
        assert np.all(np.ptp(where, axis=0) <= (3, 2, 0))


@dataclass(frozen=True, kw_only=True)
class Halves(data.Named):
    """Digits with their left or their right half in a hole, which is the condition."""

    name: str = "digits"
    dtype: str = "float32"

    def load(self, split="train"):
        arrays = super().load(split)
        hole = np.zeros(arrays.x.shape, self.dtype)
        hole[::2, :, :4], hole[1::2, :, 4:] = 1, 1
        return replace(arrays, more={"hole": hole})


def halves(cond="hole", **options):
    bindings = (*FILLED, "data.Inpainting.sides = None")
    plain = config.load(FINE, bindings).experiment
    net = replace(plain.learner.denoiser.net, condition=models.nets.Image(channels=1))
    learner = replace(plain.learner, denoiser=replace(plain.learner.denoiser, net=net))
    return replace(plain, learner=learner, data=replace(plain.data, dataset=Halves(**options), cond=cond))


@pytest.mark.parametrize("particles", [1, 4])
def test_holes_of_the_data_are_the_condition_of_the_samples(particles):
    """A model that answers with its condition: every sample is moved where its own hole is, and nowhere else."""
    experiment = halves()
    check(experiment)
    spec, found = experiment.one(Sample), experiment.data
    if particles > 1:
        spec = replace(spec, solver=fk.FeynmanKac(base=spec.solver, particles=particles, resample_final=True))
    cond, process = spec.conditions(found, 12), experiment.process
    belief = lambda y, t, cond=None: process.predict(y, t, velocity=-5.0 * cond, eta=jnp.zeros_like(y))
    model = models.FunctionModel(belief, process, returns="prediction")
    walk = spec.sampler(model, found, cond, jax.random.key(5))
    out = walk(shape=(12, 8, 8, 1), cond=cond, chunk=8, keep="all")
    rows, test = spec.rows(found, 12), found.load("test")
    known, hole = np.asarray(found.transform.encode(test.x[rows])), test.more["hole"][rows]
    np.testing.assert_array_equal(cond, hole)
    np.testing.assert_array_equal(np.where(hole == 1, 0, out.x), np.where(hole == 1, 0, known))
    began = np.asarray(out.trajectory[0])
    # Where sampling begins is one of the base points, in the hole.
    base = np.asarray(process.base)
    inside = lambda points, mask: points[:, mask == 1]
    for point, mask in zip(began, hole, strict=True):
        assert np.min(np.abs(inside(base, mask) - point[mask == 1]).max(1)) < 1e-6
    if particles == 1:
        assert np.mean((np.asarray(out.x) - began)[hole == 1]) == pytest.approx(5.0, abs=0.5)
        few = walk(shape=(5, 8, 8, 1), cond=cond[:5], chunk=8)
        np.testing.assert_allclose(few.x, out.x[:5], atol=1e-5)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: halves(dtype="uint8"), "'hole' is uint8: expected float32"),
        (lambda: halves("label"), r"DataSpec.labels = True under Inpainting"),
        (lambda: staged(start=starts.Prior()), r"Sample\.start is given under Inpainting"),
        (lambda: staged(split="other"), "expected one of train, test"),
        (lambda: with_stage(Diagnose(questions=(Straightness(),))), "expected a process without holes"),
        (lambda: config.load(FINE, (*FILLED, "data.Inpainting.sides = None")).experiment, "not there"),
    ],
)  # fmt: skip
def test_holes_that_cannot_be_filled_are_refused_before_the_training(act, message):
    with pytest.raises(ValueError, match=message):
        check(act())


def with_stage(stage):
    experiment = halves()
    return replace(experiment, stages=(*experiment.stages, stage))


def staged(**changes):
    experiment = halves()
    change = lambda stage: replace(stage, **changes) if isinstance(stage, Sample) else stage
    return replace(experiment, stages=tuple(map(change, experiment.stages)))


def test_pairs_from_the_data_lie_in_the_cells_that_the_data_are_trained_on():
    """Centres of cells are another law than places in them: ends of one level would all be one number."""
    plain = config.load(FINE, FILLED).experiment.data
    x = plain.load().x
    rng = np.random.default_rng(1)
    centres, placed = plain.points(x, rng), replace(plain, dequantise=True).points(x, rng)
    np.testing.assert_array_equal(centres, plain.transform.encode(x))
    # In units of a cell, whose width is 2 / 17.
    place = (placed - centres) * 17 / 2
    assert np.abs(place).max() <= 0.5
    # Four standard errors of the deviation of a uniform law, whose fourth moment is 9/5 of the square of the second.
    assert place.std() == pytest.approx(12**-0.5, rel=4 * np.sqrt(0.2 / place.size))
    np.testing.assert_array_equal(plain.transform.decode(placed), x)


def test_a_round_from_the_data_begins_in_the_cells(tmp_path, monkeypatch):
    """What a round gives to the walk up to the base is what the data are trained on."""
    seen = {}

    def pairs(model, *, x, **options):
        seen["x"] = x
        return {"x": x, "base": x}

    monkeypatch.setattr(rectify, "rectified_pairs", pairs)
    whole = config.load(FINE, FILLED).experiment
    made = replace(whole, data=replace(whole.data, dequantise=True))
    rounds = rectify.Rectify(every=1, n=200, exact="data")
    learner = types.SimpleNamespace(model=lambda state: None)
    run: Any = types.SimpleNamespace(experiment=types.SimpleNamespace(data=made.data, learner=learner, seed=0, keys=made.keys))
    rounds._made(run, 1, None)
    again = np.asarray(made.data.transform.decode(seen["x"]))
    assert np.abs(seen["x"] - np.asarray(made.data.transform.encode(again))).max() > 0.5 / 17
