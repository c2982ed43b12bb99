"""Guided models against Bayes' rule in closed form: every pull, every process, and samples of the posterior of a field."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorelab import densities, grids, metrics, models, processes, sample, schedules, solvers
from tests.precision import double

pytestmark = pytest.mark.usefixtures("quick_compilation")

VP = processes.Gaussian(schedule=schedules.VPLinear())
EDM = processes.Gaussian(schedule=schedules.EDM())
FLOW = processes.Gaussian(schedule=schedules.RectifiedFlow())
LOG = processes.GeometricBrownianMotion(sigma=2.0, mu=0.7)  # the offset is not 0
TIMES = {VP: (0.05, 0.4, 0.9), EDM: (0.02, 0.5, 20.0), FLOW: (0.05, 0.5, 0.95), LOG: (0.01, 0.3, 0.9)}
KEY = jax.random.key(3)
D = 5


def prior(d=D, seed=0):
    """Mean and covariance of a correlated Gaussian."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(d, d))
    return rng.normal(size=d), a @ a.T / d + 0.05 * np.eye(d)


def measured(d=D, k=3, seed=1):
    """A measurement with noise that differs from row to row."""
    rng = np.random.default_rng(seed)
    return models.LinearMeasurement(matrix=rng.normal(size=(k, d)), values=rng.normal(size=k), std=0.1 + 0.3 * rng.random(k))


def coefficients(process, t):
    return (float(f(np.float64(t))) for f in (process.alpha, process.sigma, process.offset))


def points(n, *event, seed=3):
    return np.random.default_rng(seed).normal(size=(n, *event))


def exact_gradient(process, t, y, mean, cov, measurement):
    """The gradient of log p(m | y_t), from the joint law of (m, y_t) alone: a Gaussian of m whose mean is linear in y_t."""
    alpha, sigma, offset = coefficients(process, t)
    h, values = np.asarray(measurement.matrix), np.asarray(measurement.values)
    gain = alpha * h @ cov @ np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(len(mean)))
    expected = h @ mean + (y - alpha * mean - offset) @ gain.T
    spread = np.diag(measurement.noise(float)) + h @ cov @ h.T - alpha * gain @ cov @ h.T
    return np.linalg.solve(spread, (values - expected).T).T @ gain


def relative(found, exact):
    return float(np.max(np.abs(found - exact)) / np.max(np.abs(exact)))


# The pull of a measurement ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", TIMES, ids=repr)
@double
def test_the_tweedie_covariance_is_exact_for_gaussians(process):
    mean, cov = prior()
    measurement, model = measured(), models.ExactModel(densities.Gaussian(mean, cov), process)
    posterior = models.ExactModel(models.exact_posterior(model.law, measurement), process)
    guided = models.TweedieCovariance(model=model, measurement=measurement)
    both = jax.jit(lambda y, t: (guided.pull(y, t)[1], guided(y, t), posterior(y, t)))
    y = points(4, D)
    for t in TIMES[process]:
        gradient, found, exact = both(y, t)
        assert relative(gradient, exact_gradient(process, t, y, mean, cov, measurement)) < 1e-8
        # So the guided model is the model of the posterior.
        np.testing.assert_allclose(found.denoised, exact.denoised, atol=1e-8)
        np.testing.assert_allclose(found.eps, exact.eps, atol=1e-8)


@pytest.mark.parametrize("process", [VP, LOG], ids=repr)
@double
def test_pigdm_is_exact_for_an_isotropic_prior(process):
    mean, std = prior()[0], 0.7
    measurement, model = measured(), models.ExactModel(densities.Gaussian(mean, std**2), process)
    pull = jax.jit(lambda s, y, t: models.PiGDM(model=model, measurement=measurement, prior_std=s).pull(y, t)[1])
    y = points(4, D)
    for t in TIMES[process]:
        exact = exact_gradient(process, t, y, mean, std**2 * np.eye(D), measurement)
        assert relative(pull(std, y, t), exact) < 1e-8
        assert relative(pull(2 * std, y, t), exact) > 1e-5


@double
def test_sda_is_exact_for_a_flat_prior_and_orthonormal_rows():
    process = VP
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(D, 3)))[0].T
    measurement = models.LinearMeasurement(matrix=rows, values=np.array([0.3, -1.0, 0.4]), std=np.array([0.1, 0.2, 0.5]))
    law, t = densities.Gaussian(np.zeros(D), 1e6), TIMES[process][1]
    y = points(4, D)
    exact = exact_gradient(process, t, y, np.zeros(D), 1e6 * np.eye(D), measurement)
    found = jax.jit(models.SDA(model=models.ExactModel(law, process), measurement=measurement, gamma=1.0).pull)(y, t)[1]
    # The exact variance is that of a flat prior up to (sigma / alpha)^2 / 1e6.
    assert relative(found, exact) < 1e-4


@pytest.mark.parametrize("process", [VP, pytest.param(FLOW, marks=pytest.mark.long)], ids=repr)
@double
def test_dps_is_the_published_update_after_an_ancestral_step(process):
    mean, cov = prior()
    measurement, model = measured(), models.ExactModel(densities.Gaussian(mean, cov), process)
    grid, zeta, solver = grids.Explicit(tuple(TIMES[process][::-1])), 0.3, solvers.DDIM(eta=1.0)
    guided = models.DPS(model=model, measurement=measurement, grid=grid, zeta=zeta)
    rows = solver.table(process, grid.times(process))
    y, keys = points(4, D), jax.random.split(KEY, 4)

    @jax.jit
    def steps(row):
        def norm(y):
            return jnp.sum(jnp.linalg.norm(measurement.residual(model(y, row.t).denoised), axis=-1))

        plain, found = (solver.update(keys, y, m(y, row.t), (), row)[0] for m in (model, guided))
        return found, plain - 2 * zeta * jax.grad(norm)(y)

    for i in range(len(rows.t)):
        found, published = steps(jax.tree.map(lambda column, i=i: np.asarray(column[i], float), rows))
        np.testing.assert_allclose(found, published, rtol=1e-9, atol=1e-9)


@double
def test_a_jacobian_that_is_not_semidefinite_pulls_no_harder_than_the_noise_allows():
    # Networks have such Jacobians; R + H C H^T is singular somewhere, unless its negative directions are left out.
    matrix = np.array([[-1.0, 0.3, 0.0], [0.1, 0.5, 0.2], [0.0, -0.6, -2.0]])
    model = models.FunctionModel(lambda y, t, cond: y @ matrix.T, EDM)
    measurement = models.LinearMeasurement(matrix=np.eye(3), values=np.array([1.0, 2.0, -1.0]), std=0.1)
    y = points(6, 3)
    pull = jax.jit(models.TweedieCovariance(model=model, measurement=measurement).pull)
    for sigma in np.geomspace(0.01, 10, 30):
        prediction, gradient = pull(y, sigma)
        weights = np.linalg.solve(matrix.T, gradient.T).T
        residual = measurement.residual(prediction.denoised)
        assert np.all(np.linalg.norm(weights, axis=1) * 0.1**2 <= np.linalg.norm(residual, axis=1) * (1 + 1e-9))
        assert np.all(np.sum(weights * residual, 1) > 0)


# What all guided models share ----------------------------------------------------------------------------------------

OBSERVED = measured(d=3, k=2)


def ladder(process):
    options = dict(model=models.ExactModel(densities.Gaussian(*prior(3)), process), measurement=OBSERVED)
    return [
        models.DPS(grid=grids.Explicit(tuple(TIMES[process][::-1])), zeta=0.1, **options), models.SDA(gamma=0.3, **options),
        models.PiGDM(prior_std=0.9, **options), models.TweedieCovariance(**options),
        models.RewardGradient(model=options["model"], reward=OBSERVED.log_likelihood, scale=0.5),
    ]  # fmt: skip


@double
def test_guided_predictions_are_consistent_pairs():
    process = LOG  # it has an offset
    y, times = points(3, 3), np.array(TIMES[process])
    alpha, sigma, offset = (np.asarray(f(times))[:, None] for f in (process.alpha, process.sigma, process.offset))
    guided = ladder(process)
    call = jax.jit(lambda t: [(model(y, t), *model.pull(y, t)) for model in guided])
    alone = [call(t) for t in times]
    for i, (out, base, gradient) in enumerate(call(times)):
        np.testing.assert_allclose(alpha * out.denoised + offset + sigma * out.eps, y, rtol=1e-9)
        np.testing.assert_allclose(out.score, base.score + gradient, rtol=1e-9)
        assert float(jnp.min(jnp.max(jnp.abs(gradient), 1))) > 1e-9
        # A time for each example gives what one time gives.
        for j in range(3):
            np.testing.assert_allclose(alone[j][i][0].denoised[j], out.denoised[j], rtol=1e-9, atol=1e-12)


def test_all_noise_has_a_finite_prediction():
    y, guided = jnp.ones((2, 3)), ladder(FLOW)
    base = guided[0].model(y, 1.0)
    for out in jax.jit(lambda: [model(y, 1.0) for model in guided])():
        np.testing.assert_allclose(out.denoised, base.denoised, rtol=1e-6)
        assert np.all(np.isfinite(out.eps))


def test_other_values_and_strengths_do_not_recompile():
    traced = []

    @jax.jit
    def call(model, y):
        traced.append(model)
        return model(y, 0.5).denoised

    model = models.ExactModel(densities.Gaussian(*prior(3)), EDM)
    for value in (1.0, 2.0):
        measurement = models.LinearMeasurement(matrix=np.full((1, 3), value), values=np.array([value]), std=value)
        call(models.SDA(model=model, measurement=measurement, gamma=value), jnp.ones((2, 3)))
    assert len(traced) == 1


# Rewards ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", TIMES, ids=repr)
@double
def test_the_reward_sees_the_denoised_point_of_data_space(process):
    (mean, cov), scale = prior(), np.array([0.5, 1.0, 2.0, 3.0])
    target = np.arange(D) / D
    model = models.ExactModel(densities.Gaussian(mean, cov), process)
    guided = models.RewardGradient(model=model, reward=lambda x: -jnp.sum((x - target) ** 2, -1), scale=scale)
    pull, y = jax.jit(guided.pull), points(4, D)
    for t in TIMES[process]:
        alpha, sigma, offset = coefficients(process, t)
        gain = alpha * cov @ np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(D))
        clean = mean + (y - alpha * mean - offset) @ gain.T
        x, slope = (np.exp(clean), np.exp(clean)) if process is LOG else (clean, 1.0)
        expected = -2 * ((x - target) * slope) @ gain
        np.testing.assert_allclose(pull(y, t)[1], scale[:, None] * expected, rtol=1e-8, atol=1e-10)


def test_rewards_are_static_functions_or_pytrees_with_leaves():
    model = models.ExactModel(densities.Gaussian(np.zeros(2), 1.0), EDM)
    y, label = np.array([[0.3, 0.2], [1.0, -1.0]], np.float32), np.array([2.0, -1.0], np.float32)
    leaves = len(jax.tree.leaves(model)) + 1
    bare = models.RewardGradient(model=model, reward=lambda x, c: c * x[:, 0], with_cond=True)
    assert len(jax.tree.leaves(bare)) == leaves
    np.testing.assert_allclose(jax.jit(bare.pull)(y, 1.0, label)[1], [[1.0, 0.0], [-0.5, 0.0]], atol=1e-6)
    carried = models.RewardGradient(model=model, reward=jax.tree_util.Partial(lambda w, x: w * x[:, 0], jnp.float32(3.0)))
    assert len(jax.tree.leaves(carried)) == leaves + 1
    np.testing.assert_allclose(jax.jit(lambda m: m.pull(y, 1.0)[1])(carried), [[1.5, 0.0]] * 2, atol=1e-6)


# Measurements and posteriors ---------------------------------------------------------------------------------------------


@double
def test_modalities_stack_and_their_likelihoods_add():
    coarse, sensor = measured(d=6, k=2), models.LinearMeasurement(matrix=np.eye(6)[:1], values=np.array([0.4]), std=0.05)
    both = models.LinearMeasurement.stacked([coarse, sensor])
    y0 = points(5, 2, 3)
    together, *apart = jax.jit(lambda y0: [m.log_likelihood(y0) for m in (both, coarse, sensor)])(y0)
    np.testing.assert_allclose(together, sum(map(np.asarray, apart)), rtol=1e-12)
    law = stats.multivariate_normal(both.values, np.diag(both.noise(float)))
    np.testing.assert_allclose(together, law.logpdf(y0.reshape(5, 6) @ both.matrix.T), rtol=1e-10)


MIXTURE = [0.3, 0.7], np.array([[0.0, 1.0, 2.0], [1.0, -1.0, 0.5]]), np.array([0.3, 0.8])


@pytest.mark.parametrize("make", [lambda: densities.Gaussian(*prior(3)), lambda: densities.GaussianMixture(*MIXTURE)])
@double
def test_the_posterior_is_prior_times_likelihood(make):
    law, measurement = make(), measured(d=3, k=2)
    posterior, x = models.exact_posterior(law, measurement), 2 * points(50, 3)
    evidence = jax.jit(lambda x: law.log_prob(x) + measurement.log_likelihood(x) - posterior.log_prob(x))(x)
    np.testing.assert_allclose(evidence, evidence[0], rtol=1e-8)


def field():
    """The smooth periodic field of 32 points, block averages and sensors of one truth: law, measurement."""
    n = 32
    spectrum = 1 / (1 + (np.fft.fftfreq(n, 1 / n) / 3) ** 2) ** 2
    row = np.fft.ifft(spectrum / spectrum.mean()).real
    cov = row[(np.arange(n)[:, None] - np.arange(n)) % n]
    rng = np.random.default_rng(0)
    truth = np.linalg.cholesky(cov) @ rng.normal(size=n)
    parts = [(np.kron(np.eye(8), np.full((1, 4), 0.25)), 0.1), (np.eye(n)[[2, 9, 17, 27]], 0.05)]
    stacked = [models.LinearMeasurement(matrix=h, values=h @ truth + s * rng.normal(size=len(h)), std=s) for h, s in parts]
    return densities.Gaussian(np.zeros(n), cov), models.LinearMeasurement.stacked(stacked)


def moments(law):
    cov = np.asarray(law.covariance(), np.float64)
    return np.asarray(law.mean, np.float64), (cov + cov.T) / 2


def w2(x, mean, cov):
    x = np.asarray(x, np.float64)
    return np.sqrt(metrics.frechet_distance(x.mean(0), np.cov(x.T), mean, cov))


def test_samples_of_the_field_are_those_of_its_posterior(optimised):
    law, measurement = field()
    posterior, n = models.exact_posterior(law, measurement), 1000
    mean, cov = moments(posterior)
    model = models.TweedieCovariance(model=models.ExactModel(law, EDM), measurement=measurement)
    x = sample(model, solver=solvers.Heun(), grid=grids.Karras(30), key=KEY, shape=(n, 32)).x
    rng = np.random.default_rng(3)
    floor = [w2(rng.multivariate_normal(mean, cov, n), mean, cov) for _ in range(16)]
    # Thirty steps of Heun have an error of a few percent of the floor.
    assert w2(x, mean, cov) < 1.1 * (np.mean(floor) + 4 * np.std(floor))
    assert np.max(np.abs(np.mean(x, 0) - mean) / np.sqrt(np.diag(cov) / n)) < 4.5


def test_dps_finds_the_mean_and_not_the_variance(optimised):
    # The negative control: a small error of the mean says nothing of a posterior.
    law, measurement = field()
    posterior, n, grid = models.exact_posterior(law, measurement), 500, grids.Karras(250)
    mean, cov = moments(posterior)
    model = models.DPS(model=models.ExactModel(law, EDM), measurement=measurement, grid=grid, zeta=0.2)
    x = np.asarray(sample(model, solver=solvers.DDIM(eta=1.0), grid=grid, key=KEY, shape=(n, 32)).x)
    error, spread = np.sqrt(np.mean((x.mean(0) - mean) ** 2)), np.sqrt(np.diag(cov).mean())
    assert error < 0.4 * spread
    ratio = x.var(0, ddof=1) / np.diag(cov)
    # The relative standard error of a variance is sqrt(2 / n), 6 %.
    assert ratio.max() > 3
    assert ratio.min() < 0.7


@double
def test_guidance_of_guided_models_keeps_apart_what_it_is_made_of():
    # For data N(m, v) the denoised mean has the slope alpha v / (alpha^2 v + sigma^2), which a linear reward pulls by.
    v, t, y = 0.7, TIMES[VP][1], points(4, 1)
    model = models.ExactModel(densities.Gaussian(np.array([0.3]), v), VP)
    pulled = lambda model, scale: models.RewardGradient(model=model, reward=lambda x: x[:, 0], scale=scale)
    alpha, sigma, _ = coefficients(VP, t)
    total = alpha**2 * v + sigma**2
    cases = [
        (pulled(pulled(model, 0.4), 1.1), 1.5),
        (models.ClassifierFreeGuidance(model=pulled(model, 0.4), scale=1.0), 0.4),
        (models.ClassifierFreeGuidance(model=pulled(model, 0.4), unconditional=model, scale=3.0), 1.2),
        (models.Autoguidance(model=model, weak=pulled(model, 0.4), scale=3.0), -0.8),
        (pulled(models.ClassifierFreeGuidance(model=pulled(model, 0.4), unconditional=model, scale=3.0), 0.5), 1.7),
    ]
    for guided, scale in cases:
        found = jax.jit(lambda y, guided=guided: guided(y, t))(y)
        gradient, score = scale * alpha * v / total, -(y - 0.3 * alpha) / total
        np.testing.assert_allclose(found.gradient, gradient, rtol=1e-10)
        np.testing.assert_allclose(found.base.score, score, rtol=1e-10)
        np.testing.assert_allclose(found.score, score + gradient, rtol=1e-10)
        assert not isinstance(found.base, models.GuidedPrediction)
    assert not isinstance(models.ClassifierFreeGuidance(model=model, scale=2.0)(y, t), models.GuidedPrediction)


def rung(kind, **numbers):
    return kind(model=ladder(EDM)[0].model, measurement=OBSERVED, **numbers)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: models.LinearMeasurement(matrix=np.ones(3), values=np.ones(1), std=1.0), ValueError, r"matrix has shape \(3,\)"),
        (lambda: models.LinearMeasurement(matrix=np.ones((2, 3)), values=np.ones(3), std=1.0), ValueError, "values has shape"),
        (lambda: models.LinearMeasurement(matrix=np.ones((2, 3)), values=np.ones(2), std=np.ones(3)), ValueError, "std has shape"),
        (lambda: models.LinearMeasurement(matrix=np.ones((2, 3)), values=np.ones(2), std=0.0), ValueError, "numbers above 0"),
        (lambda: models.LinearMeasurement(matrix=np.ones((1, 3)), values=[np.nan], std=1.0), ValueError, "values has a value that"),
        (lambda: models.LinearMeasurement.stacked([]), ValueError, "at least one"),
        (lambda: models.LinearMeasurement.stacked([OBSERVED, measured(d=4)]), ValueError, r"widths \[3, 4\]"),
        (lambda: OBSERVED.log_likelihood(np.ones((2, 4))), ValueError, "3 elements in an event"),
        (lambda: models.exact_posterior(densities.Gaussian(np.zeros(4), 1.0), OBSERVED), ValueError, "law of 4 elements"),
        (lambda: models.exact_posterior(densities.eight_gaussians, OBSERVED), TypeError, "expected a Gaussian, a GaussianField"),
        (lambda: models.DPS(model=ladder(EDM)[0].model, measurement=OBSERVED, grid=10), TypeError, "DPS.grid = 10"),
        (
            lambda: models.RewardGradient(model=ladder(EDM)[0].model, reward=jnp.sum).pull(jnp.ones((2, 3)), 1.0),
            ValueError,
            r"RewardGradient.reward returned shape \(\): expected \(2,\)",
        ),
        (lambda: models.RewardGradient(model=jnp.sum, reward=jnp.sum, with_cond="yes"), ValueError, "with_cond = 'yes'"),
        (lambda: rung(models.SDA, gamma=-1.0), ValueError, "SDA.gamma = -1.0: expected a finite number of at least 0, or"),
        (lambda: rung(models.SDA, gamma=np.array([1.0, -1.0])), ValueError, "SDA.gamma = .*of at least 0"),
        (lambda: rung(models.SDA, gamma=np.nan), ValueError, "SDA.gamma = nan"),
        (lambda: rung(models.SDA, gamma="1"), ValueError, "SDA.gamma = '1'"),
        (lambda: rung(models.PiGDM, prior_std=-1.0), ValueError, "PiGDM.prior_std = -1.0: expected a finite number above 0"),
        (lambda: rung(models.PiGDM, prior_std=jnp.zeros(3)), ValueError, "PiGDM.prior_std = .*above 0"),
        (lambda: rung(models.DPS, grid=grids.Karras(3), zeta=np.inf), ValueError, "DPS.zeta = inf: expected a finite number, or"),
        (
            lambda: models.RewardGradient(model=jnp.sum, reward=jnp.sum, scale=np.ones((1, 1))),
            ValueError,
            "RewardGradient.scale = .*: expected a finite number, or one for each sample",
        ),
    ],
)  # fmt: skip
def test_what_is_refused_says_what_is_accepted(make, error, match):
    with pytest.raises(error, match=match):
        make()
