"""The parts of one's own in CONTRIBUTING.md run from their configs, and obey the laws that the page says they do."""

import dataclasses
import importlib
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scorelab as sl
from scorelab.experiment import DataSpec
from scorelab.run.cli import main

from ..contracts import test_solvers as laws
from ..contracts import test_starts as start_laws
from ..fk import chains
from ..fk import test_steering as steering_laws
from ..run.conftest import with_sets
from .blocks import named

CONTRIBUTED = named("CONTRIBUTING.md")


@pytest.fixture(scope="module")
def contributed(tmp_path_factory):
    """The files of CONTRIBUTING.md in a folder of their own, on the path: (folder, import function)."""
    folder = tmp_path_factory.mktemp("mine")
    for name, text in CONTRIBUTED.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder, importlib.import_module
    for name in CONTRIBUTED:
        sys.modules.pop(name.removesuffix(".py"), None)


# A process --------------------------------------------------------------------------------------------------
def test_the_charts_derivatives_are_those_of_its_inverse(contributed):
    chart = contributed[1]("logit_process").Logit()
    x = np.linspace(0.02, 0.98, 41, dtype=np.float32)

    @jax.jit
    def both(x):
        y = chart.encode(x)
        by_hand = chart.decode(y), chart.d_decode(x), chart.dd_decode(x)
        return by_hand, (x, jax.vmap(jax.grad(chart.decode))(y), jax.vmap(jax.grad(jax.grad(chart.decode)))(y))

    (value, first, second), expected = both(x)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(first, expected[1], rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(second, expected[2], rtol=2e-4, atol=1e-6)


def test_the_ambient_sde_is_itos_formula(contributed):
    process = contributed[1]("logit_process").LogitGaussian(schedule=sl.schedules.VPLinear())
    x, t = np.linspace(0.1, 0.9, 9, dtype=np.float32)[:, None], 0.3

    @jax.jit
    def both(x):
        y, g2 = process.encode(x), process.latent_diffusion(t) ** 2
        first, second = jax.grad(process.decode), jax.grad(jax.grad(process.decode))
        phi1, phi2 = (jax.vmap(f)(y[:, 0])[:, None] for f in (first, second))
        drift = phi1 * process.latent_drift(y, t) + 0.5 * phi2 * g2
        squared = jax.vmap(jax.grad(lambda x: process.diffusion(x.reshape(1, 1), t)[0, 0] ** 2))(x[:, 0])
        found = process.drift(x, t), process.diffusion(x, t) ** 2, process.div_diffusion(x, t)
        return found, (drift, phi1**2 * g2, squared[:, None])

    found, expected = both(x)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-4, atol=1e-5)


def test_the_way_back_in_data_space_needs_the_divergence(contributed):
    module = contributed[1]("logit_process")

    class Classic(module.LogitGaussian):
        def div_diffusion(self, x, t):
            return jnp.zeros_like(x)

    mean, std, n, steps = 0.4, 0.6, 20_000, 250
    law = sl.densities.Gaussian(np.array([mean]), std**2)

    def moments(kind):
        process = kind(schedule=sl.schedules.VPLinear(beta_max=12.0))
        out = sl.sample(
            sl.models.ExactModel(law, process),
            solver=sl.solvers.EulerMaruyama(coords="ambient"),
            grid=sl.grids.Uniform(steps),
            key=jax.random.key(0),
            shape=(n, 1),
        )
        logits = np.asarray(process.encode(out.x), np.float64)
        return logits.mean(), logits.std()

    # Three standard errors, plus a bias of order 1/steps for a relaxation time of order one.
    error = np.array([3 * std / np.sqrt(n), 3 * std / np.sqrt(2 * n)]) + 1 / steps
    assert np.all(np.abs(np.array(moments(module.LogitGaussian)) - [mean, std]) < error)
    assert np.all(np.abs(np.array(moments(Classic)) - [mean, std]) > 10 * error)


# A solver ---------------------------------------------------------------------------------------------------
@pytest.fixture
def midpoint(contributed):
    return contributed[1]("midpoint").ExponentialMidpoint()


def test_the_solver_has_the_order_it_declares(midpoint):
    for process in (laws.VP, laws.VE):
        laws.test_order_of_convergence(midpoint, midpoint.order, process)


def test_the_solver_obeys_the_other_laws(midpoint):
    laws.test_model_calls_are_the_declared_ones(midpoint)
    laws.test_gaussian_marginals(midpoint, laws.FLOW)
    for process in (laws.VE, laws.FLOW):
        laws.test_one_step_to_clean_data_is_finite(midpoint, process)
    laws.test_solvers_are_hashable_specs(midpoint)


# A loss -----------------------------------------------------------------------------------------------------
def standardised_gradients(loss, process, law, shifts):
    """The loss's gradient with respect to a constant added to the exact denoiser, in standard errors, at some constants."""
    exact = sl.models.ExactModel(law, process)

    @jax.jit
    def gradients(shift):
        key_data, key_loss = jax.random.split(jax.random.key(5))
        x = law.sample(key_data, 20_000)

        def losses(shift):
            model = sl.models.FunctionModel(lambda y, t, cond: exact(y, t).denoised + shift, process)
            return loss(key_loss, model, {"x": x})

        return jax.jvp(losses, (shift,), (jnp.ones_like(shift),))[1]

    g = np.stack([np.asarray(gradients(np.float32(shift)), np.float64) for shift in shifts])
    return np.abs(g.mean(1)) / (g.std(1, ddof=1) / np.sqrt(g.shape[1]))


def test_the_loss_is_stationary_where_its_docstring_says(contributed):
    process = sl.processes.Gaussian(schedule=sl.schedules.EDM())
    # Noise levels about the scale of the data, where the posteriors of the skewed law are skewed.
    times = sl.losses.UniformLogSNRTimes(log_snr_min=-3.0, log_snr_max=3.0)
    huber = contributed[1]("pseudo_huber").PseudoHuber(process, width=0.3, times=times)
    squares = sl.losses.DenoisingScoreMatching(process, times=times)
    gaussian = sl.densities.Gaussian(np.array([0.4]), 0.5)
    skewed = sl.densities.GaussianMixture([0.85, 0.15], np.array([[0.0], [2.0]]), np.array([0.02, 0.02]))
    at_the_mean, beside_it = standardised_gradients(huber, process, gaussian, (0.0, 0.2))
    assert at_the_mean < 4
    assert beside_it > 8
    assert standardised_gradients(squares, process, skewed, (0.0,)) < 4
    assert standardised_gradients(huber, process, skewed, (0.0,)) > 8


# A config ---------------------------------------------------------------------------------------------------
def test_the_config_runs_the_three_of_them_without_touching_the_library(contributed, monkeypatch):
    folder, _ = contributed
    monkeypatch.chdir(folder)
    tiny = with_sets(
        "nets.MLP.width = 8",
        "nets.MLP.depth = 1",
        "experiment.Sample.n = 8",
        "experiment.Evaluate.evaluations = ()",
        "grids.Karras.steps = 3",
        "STEPS = 3",
        "WARMUP = 1",
    )
    assert main(["run", "mine.gin", *tiny, "--workdir", "run"]) == 0
    specs = (folder / "run" / "specs.json").read_text()
    for name in ("logit_process.LogitGaussian", "midpoint.ExponentialMidpoint", "pseudo_huber.PseudoHuber"):
        assert name in specs
    assert (folder / "run" / "report.html").is_file()


def test_the_configs_data_std_is_that_of_the_logits(contributed):
    stated = float(re.search(r"DATA_STD = ([\d.]+)", CONTRIBUTED["mine.gin"]).group(1))
    images = sl.data.Pixels(levels=17, low=0.0, high=1.0).encode(sl.data.load("digits").x)
    logits = contributed[1]("logit_process").Logit().encode(images)
    assert float(jnp.std(logits)) == pytest.approx(stated, abs=0.005)


# The other parts ----------------------------------------------------------------------------------------------
TINY_POINTS = ("experiment.Train.batch_size = 32", "experiment.Sample.n = 32", "grids.Karras.steps = 3", "STEPS = 2", "WARMUP = 1")
SMALL_NET, SMALL_DATA = ("nets.MLP.width = 8", "nets.MLP.depth = 1"), ("data.Named.n = 256",)
CONFIGS = {
    "radial.gin": (*TINY_POINTS, *SMALL_DATA, "radial.Radial.depth = 1"),
    "widened.gin": (*TINY_POINTS, *SMALL_NET, *SMALL_DATA),
    "steered.gin": (*TINY_POINTS, *SMALL_NET),
    "spiral.gin": (*TINY_POINTS, *SMALL_NET, "spiral.Spiral.n = 256"),
    "mean_square.gin": (TINY_POINTS[0], *TINY_POINTS[3:], *SMALL_NET, *SMALL_DATA),
    "mean_distance.gin": (*TINY_POINTS, *SMALL_NET, *SMALL_DATA),
    "table.gin": (*TINY_POINTS, *SMALL_NET, *SMALL_DATA),
}
WRITTEN = {"mean_square.gin": "diagnostics/mean_square.png", "mean_distance.gin": "metrics.json", "table.gin": "samples.csv"}


def test_every_config_of_the_page_is_run():
    assert {name for name in CONTRIBUTED if name.endswith(".gin")} == {"mine.gin", *CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_part_runs_from_its_config(contributed, name, monkeypatch):
    folder, _ = contributed
    monkeypatch.chdir(folder)
    work = folder / f"run_{name.removesuffix('.gin')}"
    command = ["run", name, *with_sets(*CONFIGS[name]), "--workdir", str(work)]
    assert main(command) == 0
    specs, asked = (work / "specs.json").read_text(), re.findall(r"@([a-z_]+\.\w+)\(\)", CONTRIBUTED[name])
    own = [part for part in asked if f"{part.split('.')[0]}.py" in CONTRIBUTED]
    assert own
    assert all(f'"{part}"' in specs for part in own)
    assert (work / "report.html").is_file()
    assert (work / WRITTEN.get(name, "samples.npz")).is_file()
    if name == "table.gin":
        x = np.load(work / "samples.npz")["x"]
        np.testing.assert_allclose(np.loadtxt(work / "samples.csv", delimiter=","), x, atol=0.5e-4 + 1e-6)
    if name == "mean_distance.gin":
        values = json.loads((work / "metrics.json").read_text())["metrics"]
        (mine,) = [value for value in values if value["name"] == "mean distance"]
        assert (mine["n"], mine["reference_n"]) == (32, 256)


def test_the_network_turns_with_its_input(contributed):
    net = contributed[1]("radial").Radial(width=16, depth=2)
    x, c_noise = jax.random.normal(jax.random.key(0), (64, 2)), jnp.linspace(-1.0, 1.0, 64)
    params = net.init(jax.random.key(1), x, c_noise, None)
    # Its last layer begins at zero, where everything turns with everything.
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(2), p.shape), params)
    turn = jnp.array([[jnp.cos(0.7), jnp.sin(0.7)], [-jnp.sin(0.7), jnp.cos(0.7)]])
    y = net.apply(params, x, c_noise, None)
    assert float(jnp.std(y)) > 0.01
    np.testing.assert_allclose(net.apply(params, x @ turn, c_noise, None), y @ turn, rtol=1e-4, atol=1e-5)


def test_the_start_obeys_the_laws_of_starts(contributed, monkeypatch):
    monkeypatch.setitem(start_laws.STARTS, "widened", (contributed[1]("widened").Widened(1.3), start_laws.VP))
    start_laws.test_draws_have_the_density("widened")
    start_laws.test_a_draw_depends_on_its_id_alone("widened")
    with pytest.raises(ValueError, match=r"Widened\.factor = -1\.0: expected a finite number above 0"):
        contributed[1]("widened").Widened(-1.0).check(1, (1,), start_laws.VP)


def test_the_potential_and_the_policy_keep_the_constant(contributed):
    policy = contributed[1]("perplexity").PerplexityBelow(0.6)
    out = steering_laws.run(contributed[1]("damped").Damped(chains.reward, chains.SCALE), policy=policy)
    steering_laws.assert_tilted(out)
    # And it is the policy that resamples: equal weights have the perplexity of all particles, one weight that of one.
    assert int(np.sum(out.diagnostics["resampled"])) > 0
    assert not bool(policy.wants(jnp.zeros(8), 0))
    assert bool(policy.wants(jnp.where(jnp.arange(8) == 3, 0.0, -50.0), 0))


def test_the_data_set_lies_on_its_curve(contributed):
    spiral = contributed[1]("spiral").Spiral(n=500, noise=0.0)
    x = spiral.load().x.astype(np.float64)
    radius, angle = np.hypot(*x.T), np.arctan2(x[:, 1], x[:, 0])
    # The angle of a point is 2 pi times its distance from the centre, up to whole turns.
    turns = (2 * np.pi * radius - angle) / (2 * np.pi)
    np.testing.assert_allclose(turns, turns.round(), atol=1e-5)
    assert radius.max() < 3
    assert not np.array_equal(spiral.load("test").x, spiral.draw(500, 1).x)


def test_the_diagnostic_says_the_posterior_variance(contributed):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Normal(sl.data.DataSet):
        name: str = "normal"

        def load(self, split="train"):
            x = np.random.default_rng(0).normal(0.0, 2.0, (20_000, 1)).astype(np.float32)
            return sl.data.Arrays(x=x, name=self.name, split=split)

    process = sl.processes.Gaussian(schedule=sl.schedules.EDM())
    model = sl.models.ExactModel(sl.densities.Gaussian(np.zeros(1), 4.0), process)
    question = contributed[1]("mean_square").MeanSquare(n=20_000)
    found = question(model, DataSpec(dataset=Normal()), jax.random.key(0)).values
    # N(0, s^2) under noise r has the posterior variance s^2 r^2 / (s^2 + r^2); squares of a normal have a relative deviation
    # of sqrt(2).
    exact = 4.0 * found["ratios"] ** 2 / (4.0 + found["ratios"] ** 2)
    np.testing.assert_allclose(found["errors"], exact, rtol=4 * np.sqrt(2 / 20_000))


def test_the_evaluation_finds_a_shift(contributed):
    evaluation, data = contributed[1]("mean_distance").MeanDistance(), DataSpec(dataset=sl.data.Named(name="rings", n=400))
    train, test = data.load().x, data.load("test").x
    (value,) = evaluation(train + np.array([3.0, 4.0], np.float32), data, jax.random.key(0))
    assert value.value == pytest.approx(5.0, abs=1e-5)
    assert value.floor == pytest.approx(np.linalg.norm(test.mean(0, dtype=float) - train.mean(0, dtype=float)), rel=1e-6)
    with pytest.raises(ValueError, match=r"MeanDistance\.n = 500: expected at most 400"):
        dataclasses.replace(evaluation, n=500).check(data, 1000)
