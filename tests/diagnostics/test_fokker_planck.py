"""The Fokker-Planck residual: zero for exact laws, the closed form of a wrong Gaussian, the same under every process."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scorelab import config, data, densities, experiment, grids, losses, models, processes, schedules
from scorelab.arrays import per_example
from scorelab.diagnostics import fokker_planck_residual
from scorelab.diagnostics.levels import by_level
from scorelab.models.exact import ExactPrediction
from tests.precision import double

VP = processes.Gaussian(schedule=schedules.VPLinear())
EDM = processes.Gaussian(schedule=schedules.EDM(sigma_max=20.0))
FLOW = processes.Gaussian(schedule=schedules.RectifiedFlow())
# dx = -x dt + sqrt(2) dw, the Ornstein-Uhlenbeck process.
OU = processes.Gaussian(schedule=schedules.VPLinear(beta_min=2.0, beta_max=2.0, t_max=5.0))
GBM = processes.GeometricBrownianMotion(sigma=1.5, mu=0.5)
PROCESSES = {"VP": VP, "VE": processes.Gaussian(schedule=schedules.VE()), "EDM": EDM, "OU": OU, "flow": FLOW, "GBM": GBM}
LOG, SCORE = losses.FokkerPlanck(), losses.FokkerPlanck(form="score")
KEPT = losses.FokkerPlanck(form="log", constant="kept")
RATIOS = np.array([0.05, 0.3, 1.0, 4.0])
MEANS, COVS = np.array([[0.6, -0.4], [-0.7, 0.2]]), np.array([[[0.2, 0.05], [0.05, 0.1]], [[0.1, 0.0], [0.0, 0.3]]])


def law(kind=densities.GaussianMixture):
    return kind([0.3, 0.7], MEANS, COVS)


def noised(process, n=6, size=2, high=1.2):
    """Points at times of their own, at noise ratios from .05 on."""
    keys = jax.random.split(jax.random.key(7), 3)
    t = jnp.asarray(process.schedule.time(-2 * jnp.log(jnp.geomspace(0.05, high, n))))
    y0, eps = jax.random.normal(keys[0], (n, size)), jax.random.normal(keys[1], (n, size))
    return process.noised(eps, y0, t)._replace(keys=jax.random.split(keys[2], n))


# Zero ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PROCESSES)
@double
def test_exact_laws_have_none(name):
    process = PROCESSES[name]
    model = models.ExactModel(law(densities.LogNormalMixture if name == "GBM" else densities.GaussianMixture), process)
    found = jax.jit(lambda points: [form.squares(model, points) for form in (LOG, KEPT, SCORE)])(noised(process))
    for squares in found:
        # Rounding of 1e-16 under second derivatives at a ratio of .05.
        np.testing.assert_allclose(np.sqrt(squares.residual), 0.0, atol=1e-11)
        assert np.max(squares.change) > 0.1


@pytest.mark.parametrize("form", [LOG, KEPT, SCORE])
@double
def test_a_model_may_have_a_number_for_each_point(form):
    """A tempered law is no noised one, so there is a residual; its power may be one number, or one for each point."""
    points = noised(VP)
    of = lambda power: form(models.Product(models=(models.ExactModel(law(), VP),), powers=(power,)), points)
    np.testing.assert_allclose(of(jnp.full(len(points.y), 1.5)), of(1.5), rtol=1e-10)
    assert np.mean(of(1.5)) > 0.1


@double
def test_zero_says_that_the_laws_belong_together_and_not_that_they_are_the_datas():
    x = law().sample(jax.random.key(0), 32)
    wrong = densities.GaussianMixture([0.5, 0.5], MEANS + 2.0, 3 * COVS)
    for which in (law(), wrong):
        found = fokker_planck_residual(models.ExactModel(which, VP), x, RATIOS)
        assert np.all(found.root_mean_square < 1e-8)
        assert np.all(found.relative < 1e-8)


# Closed form --------------------------------------------------------------------------------------------------
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slanted(models.KnowsDensity):
    """A score -a(t)(y - b) of no law, and its potential up to a constant of t that changes with t."""

    level: jax.Array
    process: Any = field(metadata={"static": True})

    def rate(self, t):
        sigma = self.process.sigma(t)
        return (1 + 0.3 * jnp.exp(-sigma)) / (self.process.alpha(t) ** 2 * self.level + sigma**2)

    def constant(self, t):
        return jnp.sin(3 * t)

    def __call__(self, y, t, cond=None):
        t = jnp.asarray(t, y.dtype)
        centred = y - per_example(self.process.offset(t), y)
        said = self.process.predict(y, t, score=-per_example(self.rate(t), y) * centred)
        log_prob = -0.5 * self.rate(t) * jnp.sum(centred**2, axis=-1) + self.constant(t)
        return ExactPrediction(denoised=said.denoised, eps=said.eps, log_prob=log_prob, t=said.t, process=self.process)


def of_slanted(model, t):
    r"""The coefficient :math:`c = a' + 2fa + g^2a^2` of the residual -c (y - b), and time per e-fold of the noise ratio."""
    process, slope = model.process, jax.vmap(jax.grad(model.rate))(t)
    f, g2 = process.schedule.drift_rate(t), process.schedule.diffusion_rate(t)
    return slope + 2 * f * model.rate(t) + g2 * model.rate(t) ** 2, 2 * process.sigma(t) ** 2 / g2


@pytest.mark.parametrize("process", [VP, OU, EDM, GBM])
@double
def test_the_closed_form_of_a_gaussian_with_a_wrong_precision(process):
    model, points = Slanted(jnp.array(0.8), process), noised(process, size=3)
    c, pace = of_slanted(model, points.t)
    square = jnp.sum((points.y - per_example(process.offset(points.t), points.y)) ** 2, axis=1)
    score, kept = jax.jit(lambda points: (SCORE(model, points), KEPT(model, points)))(points)
    np.testing.assert_allclose(score, (pace * process.sigma(points.t) * c) ** 2 * square / 3, rtol=1e-9)
    # The constant is in the residual that keeps it.
    f, g2 = process.schedule.drift_rate(points.t), process.schedule.diffusion_rate(points.t)
    off = -0.5 * c * square + jax.vmap(jax.grad(model.constant))(points.t) + 3 * (f + 0.5 * g2 * model.rate(points.t))
    np.testing.assert_allclose(kept, (pace * off) ** 2 / 3, rtol=1e-9)


@double
def test_a_second_point_has_the_variance_of_the_residual_without_its_constant():
    model, y0 = Slanted(jnp.array(0.8), VP), np.array([0.7, -1.1, 0.4])
    found = fokker_planck_residual(model, np.tile(y0, (4000, 1)), RATIOS, batch=4000)
    score = fokker_planck_residual(model, np.tile(y0, (4000, 1)), RATIOS, batch=4000, residual=SCORE)
    t = jnp.asarray(VP.schedule.time(-2 * np.log(RATIOS)))
    c, pace = of_slanted(model, t)
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    # The variance of c |y|^2 / 2 for y of N(alpha y0, sigma^2).
    expected = (0.5 * pace * c) ** 2 * (6 * sigma**4 + 4 * sigma**2 * alpha**2 * np.sum(y0**2)) / 3
    np.testing.assert_array_less(np.abs(found.mean_square - expected), 4.5 * found.standard_error)
    assert np.all(found.standard_error < 0.1 * expected)
    # The inequality of Poincare.
    assert np.all(found.mean_square < score.mean_square + 4.5 * np.hypot(found.standard_error, score.standard_error))
    assert found.mean_square[-1] < 0.6 * score.mean_square[-1]


# Any field ----------------------------------------------------------------------------------------------------
W1, W2 = np.array([[0.9, -1.4, 0.3], [0.8, 0.5, -0.7]]), np.array([[0.7, 0.2], [-0.9, 0.6], [0.4, 1.1]])


def predicted_noise(w1, z, ratio):
    """A field that is no gradient, of the coordinate z and the noise ratio."""
    return jnp.tanh((z @ w1 + 0.2) / jnp.sqrt(1 + ratio**2)) @ W2 + z * ratio / (1 + ratio**2)


def field_of(process, w1=W1):
    def fn(y, t, cond):
        z = (y - per_example(process.offset(t), y)) / per_example(process.alpha(t), y)
        return process.predict(y, t, eps=predicted_noise(w1, z, per_example(process.noise_ratio(t), y)))

    return models.FunctionModel(fn, process, returns="prediction")


def dense(z, ratio):
    """The definition in z over the noise ratio, with all derivatives written out, at one point."""
    eps = lambda z, log_ratio: predicted_noise(W1, z, jnp.exp(log_ratio))

    def potential(z):
        said = eps(z, jnp.log(ratio))
        return ratio * jnp.trace(jax.jacrev(eps)(z, jnp.log(ratio))) - jnp.sum(said**2)

    return eps(z, jnp.log(ratio)) - jax.jacfwd(eps, 1)(z, jnp.log(ratio)) + ratio * jax.jacrev(potential)(z)


@double
def test_a_field_has_the_same_value_under_every_process():
    ratio = jnp.geomspace(0.05, 1.2, 6)
    z = jax.random.normal(jax.random.key(1), (6, 2))
    expected = jnp.mean(jax.vmap(dense)(z, ratio) ** 2, axis=1)
    assert np.all(expected > 1e-4)
    for process in PROCESSES.values():
        t = jnp.asarray(process.schedule.time(-2 * jnp.log(ratio)))
        y = per_example(process.alpha(t), z) * z + per_example(process.offset(t), z)
        points = processes.Noised(y=y, y0=y, noise=y, t=t)
        np.testing.assert_allclose(jax.jit(SCORE)(field_of(process), points), expected, rtol=1e-8)


@double
def test_probes_have_no_bias():
    """The square of an average of estimates would be too large by their variance."""
    many = 4000
    few = noised(VP, n=4)
    tiled = jax.tree.map(lambda leaf: jnp.tile(leaf, (many,) + (1,) * (leaf.ndim - 1)), few._replace(keys=None))
    tiled = tiled._replace(keys=jax.random.split(jax.random.key(2), 4 * many))
    exact = models.ExactModel(law(), VP)
    cases = [
        (losses.FokkerPlanck(form="score", probes=2), field_of(VP), SCORE(field_of(VP), few)),
        (losses.FokkerPlanck(form="score", probes=3), exact, np.zeros(4)),
        (losses.FokkerPlanck(form="log", constant="kept", probes=2), exact, np.zeros(4)),
        (losses.FokkerPlanck(probes=2), exact, np.zeros(4)),
    ]
    for form, model, expected in cases:
        found = np.asarray(jax.jit(form)(model, tiled)).reshape(many, 4)
        # Four and a half standard errors, sixteen times.
        np.testing.assert_array_less(np.abs(found.mean(0) - expected), 4.5 * found.std(0) / np.sqrt(many) + 1e-12)
        # The estimates do vary.
        assert np.max(found.std(0)) > 1e-3


@double
def test_differences_in_time_are_of_second_order():
    points = noised(VP)
    exact = jax.jit(SCORE)(field_of(VP), points)
    errors = [jax.jit(losses.FokkerPlanck(form="score", difference=step))(field_of(VP), points) - exact for step in (0.1, 0.05)]
    np.testing.assert_allclose(errors[0] / errors[1], 4.0, rtol=0.05)
    # At the ends, differences are one-sided.
    ends = points._replace(t=jnp.full(6, VP.t_max))
    one_sided = jax.jit(losses.FokkerPlanck(form="score", difference=1e-4))(field_of(VP), ends)
    np.testing.assert_allclose(one_sided, jax.jit(SCORE)(field_of(VP), ends), rtol=1e-2)


def test_what_training_draws_at_the_end_of_straight_paths_is_finite():
    """Where alpha is the smallest number that float32 has below one."""
    t = np.nextafter(np.float32(1), np.float32(0))
    model = models.ExactModel(law(), FLOW)
    points = FLOW.noised(jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.array([t]))._replace(keys=jax.random.split(jax.random.key(0), 1))
    for form in (SCORE, KEPT, LOG):
        np.testing.assert_allclose(jax.jit(form)(model, points), 0.0, atol=1e-6)


# A regulariser, and a diagnostic --------------------------------------------------------------------------------
@double
def test_the_gradient_is_that_of_differences():
    points = noised(VP, n=3)
    value = jax.jit(lambda w1: jnp.mean(SCORE(field_of(VP, w1), points)))
    gradient = jax.jit(jax.grad(value))(jnp.asarray(W1))
    direction = np.array([[0.3, -1.0, 0.5], [0.2, 0.7, -0.4]])
    step = 1e-5
    numeric = (value(W1 + step * direction) - value(W1 - step * direction)) / (2 * step)
    # The error of a central difference: 1e-10, and 1e-16 over the step.
    assert float(jnp.sum(gradient * direction)) == pytest.approx(float(numeric), rel=1e-7)


def test_a_network_is_trained_by_it():
    net = models.nets.MLP(width=16, depth=1, embed=8, zero_init=False)
    denoiser = models.Denoiser(net=net, process=VP, data_std=0.8)
    loss = losses.Regularised(losses.DenoisingScoreMatching(VP, times=losses.UniformTimes()), ((SCORE, 0.5),))
    params = denoiser.init(jax.random.key(0), (2,))
    batch = {"x": law().sample(jax.random.key(1), 64)}
    optimizer = optax.adam(3e-3)

    @jax.jit
    def update(params, state, key):
        def objective(params):
            errors, metrics = loss.evaluate(denoiser.bind(params), loss.draw(key, batch))
            return jnp.mean(errors), metrics

        (_, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, metrics, gradient

    state, seen = optimizer.init(params), []
    for i in range(150):
        params, state, metrics, gradient = update(params, state, jax.random.key(i))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
        seen.append(float(metrics["FokkerPlanck"]))
    assert np.mean(seen[-20:]) < 0.3 * np.mean(seen[:5])


def test_a_network_that_says_nothing_is_the_score_of_a_gaussian():
    denoiser = models.Denoiser(net=models.nets.MLP(width=16, depth=1, embed=8), process=VP, data_std=0.8)
    model = denoiser.bind(denoiser.init(jax.random.key(0), (2,)))
    found = fokker_planck_residual(model, law().sample(jax.random.key(1), 32), RATIOS)
    # Float32.
    assert np.all(found.root_mean_square < 1e-5)


@double
def test_the_diagnostic_is_the_mean_of_the_regulariser():
    x = law().sample(jax.random.key(3), 40)
    model, key = Slanted(jnp.array(0.8), VP), jax.random.key(4)
    found = fokker_planck_residual(model, x, RATIOS, key=key, batch=16)
    _, values = by_level(LOG, model, x, RATIOS, key=key)
    np.testing.assert_allclose(found.mean_square, values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(found.standard_error, values.std(1, ddof=1) / np.sqrt(40), rtol=1e-12)
    np.testing.assert_allclose(found.root_mean_square**2, found.mean_square, rtol=1e-12)


# In an experiment ----------------------------------------------------------------------------------------------
SPEC = experiment.DataSpec(dataset=data.Named(name="rings", n=256))


def test_the_stages_say_what_the_functions_do():
    model, key = models.ExactModel(densities.Rings(), EDM), jax.random.key(0)
    asked = experiment.FokkerPlanck(n=16, levels=3, sigma_min=0.1, sigma_max=10.0)
    found = asked(model, SPEC, key)
    x = SPEC.load().x[np.linspace(0, 255, 16).round().astype(int)]
    np.testing.assert_array_equal(found.values["mean_square"], fokker_planck_residual(model, x, asked.sigmas, key=key).mean_square)
    curve = found.figure.axes[0].lines[0]
    np.testing.assert_allclose(curve.get_xdata(), asked.sigmas)
    np.testing.assert_allclose(curve.get_ydata(), found.values["root_mean_square"])
    found = experiment.Gap(n=60, sets=3, grid=grids.Karras(12))(model, SPEC, key)
    assert {"gap", "gap_error", "gap_floor", "ode", "sde", "sde_floor"} <= set(found.values)
    assert found.values["gap"] < 2 * found.values["gap_floor"]
    assert [axes.get_title() for axes in found.figure.axes] == ["flow", "SDE", "data"]


def test_what_the_stages_refuse_before_the_training():
    experiment_of = config.load("paper/2311.15996/eight_gaussians.gin").experiment
    for asked in experiment_of.one(experiment.Diagnose).questions:
        asked.check(experiment_of)
    with pytest.raises(ValueError, match=r"Gap\.n = 20000 in 4 sets: expected at most 50000 points in all"):
        experiment.Gap(n=20_000, grid=grids.Karras(12)).check(experiment_of)
    with pytest.raises(ValueError, match=r"FokkerPlanck\.sigma_max = 500\.0: expected"):
        experiment.FokkerPlanck(sigma_max=500.0).check(experiment_of)
    with pytest.raises(TypeError, match="residual = 3: expected a FokkerPlanck"):
        experiment.FokkerPlanck(residual=3)
    with pytest.raises(ValueError, match="metric = 'w2'"):
        experiment.Gap(metric="w2")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: losses.FokkerPlanck(form="vector"), "form = 'vector': expected one of None, 'log', 'score'"),
        (lambda: losses.FokkerPlanck(probes=1), "probes = 1: expected 0, or 2 and more"),
        (lambda: losses.FokkerPlanck(probes=-2), "probes = -2"),
        (lambda: losses.FokkerPlanck(difference=-0.1), "difference = -0.1: expected a number in"),
        (lambda: losses.FokkerPlanck(constant="kept"), "constant = 'kept' with form = None: expected form = 'log'"),
        (lambda: losses.FokkerPlanck(form="log")(field_of(VP), noised(VP)), "needs HasLogProb"),
        (lambda: LOG(models.ExactModel(law(), VP), noised(VP)._replace(keys=None)), "keys are None: expected one key"),
        (lambda: losses.FokkerPlanck(probes=2)(field_of(VP), noised(VP)._replace(keys=None)), "expected one key"),
        (lambda: LOG(3, noised(VP)), "expected a model"),
        (lambda: losses.FokkerPlanck(difference=0.1)(field_of(FLOW), noised(FLOW)), "difference = 0.1 under .*expected 0"),
        (
            lambda: fokker_planck_residual(field_of(VP), np.zeros((3, 2)), RATIOS, residual=3),
            "residual = 3: expected a FokkerPlanck",
        ),
        (lambda: fokker_planck_residual(field_of(VP), np.zeros((3, 2)), [0.0]), "sigmas has the value 0"),
        (lambda: fokker_planck_residual(field_of(VP), np.zeros((0, 2)), RATIOS), "expected .n, .event. with at least one point"),
    ],
)
def test_errors(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()
