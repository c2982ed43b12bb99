"""Geometric Brownian motion against its closed forms: kernel, scores, Fokker-Planck equation, flow, likelihood."""

from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorelab import densities, grids, likelihood, models, processes, sample, schedules, solvers, starts

from .targets import PAPER, PROCESSES, correlated, draw_logs, draw_noised_logs, three_modes

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


# For laws in which nothing depends on the process but its clock and its offset: the one with all of them.
LONG = pytest.mark.long
one_process = pytest.mark.parametrize(
    "process", [pytest.param(name, marks=() if name == "time-varying" else LONG) for name in PROCESSES], indirect=True
)


def test_coefficients_are_the_integrals_of_the_sde():
    # a(t) and v(t) of linear coefficients in closed form.
    process, t = PROCESSES["time-varying"], np.linspace(0.0, 1.5, 7)
    v = ((0.3 + 0.9 * t) ** 3 - 0.3**3) / (3 * 0.9)
    np.testing.assert_allclose(process.sigma(t) ** 2, v, rtol=1e-13)
    np.testing.assert_allclose(process.offset(t), 0.5 * t - 0.7 * t**2 - v / 2, atol=1e-14)
    np.testing.assert_allclose(process.d_offset(t), 0.5 - 1.4 * t - (0.3 + 0.9 * t) ** 2 / 2, atol=1e-14)
    np.testing.assert_array_equal(PAPER.offset(t), 0.0)
    assert PAPER.sigma(1.0) == pytest.approx(0.8)


def test_log_moments_of_the_forward_sample(process):
    n, t, x0 = 100_000, 0.7, 1.3
    logs = np.log(jax.jit(lambda x: process.decode(process.perturb(KEY, x, t).y))(np.full((n, 1), x0)))
    v = float(process.sigma(t)) ** 2
    assert abs(logs.mean() - np.log(x0) - process.offset(t)) < 4 * np.sqrt(v / n)
    assert abs(logs.var() - v) < 4 * v * np.sqrt(2 / n)


@pytest.mark.parametrize(
    ("name", "mu"), [("paper", lambda t: 0.32), ("growing", lambda t: 0.7), ("time-varying", lambda t: 0.5 - 1.4 * t)]
)
def test_the_ambient_sde_has_drift_mu_x_and_noise_sigma_x(name, mu):
    process, x = PROCESSES[name], np.array([[0.3, 2.0]])
    parts = jax.jit(lambda x, t: [part(x, t) for part in (process.drift, process.diffusion, process.div_diffusion)])
    for t in (0.1, 0.9):
        drift, diffusion, divergence = map(np.asarray, parts(x, t))
        np.testing.assert_allclose(drift, mu(t) * x, rtol=1e-12)
        np.testing.assert_allclose(diffusion**2, process.schedule.diffusion_rate(t) * x**2, rtol=1e-12)
        np.testing.assert_allclose(divergence, 2 * process.schedule.diffusion_rate(t) * x, rtol=1e-12)


def test_the_ito_sde_simulated_in_data_space_has_the_law_of_the_kernel(process):
    # Milstein's rule on dX = mu X dt + sigma X dW: strong order 1, so the bias is of order 1/steps.
    n, steps, end, x0 = 40_000, 200, 0.9, 1.4
    rng, dt = np.random.default_rng(1), end / steps
    x = np.full((n, 1), x0)
    coefficients = jax.jit(lambda x, t: (process.drift(x, t), process.diffusion(x, t)))
    for k in range(steps):
        z, (a, b) = rng.standard_normal(x.shape), map(np.asarray, coefficients(x, k * dt))
        x = x + a * dt + b * np.sqrt(dt) * z + 0.5 * b**2 / x * dt * (z**2 - 1)
    logs, std = np.log(x), process.sigma(end)
    assert abs(logs.mean() - np.log(x0) - process.offset(end)) < 4 * std / np.sqrt(n) + 1 / steps
    assert abs(logs.std() / std - 1) < 4 / np.sqrt(2 * n) + 1 / steps


@one_process
def test_the_hyvarinen_score_is_x_times_the_stein_score(process):
    for law in (three_modes(), correlated(3)):
        x = np.exp(draw_noised_logs(law, process, 0.4, 32))

        @jax.jit
        def scores(x, law=law):
            noised = law.noised(process, 0.4)
            stein = jax.grad(lambda x: jnp.sum(noised.log_prob(x)))(x)
            prediction = models.ExactModel(law, process)(process.encode(x), 0.4)
            hyvarinen = noised.hyvarinen_score(x), prediction.hyvarinen_score, noised.logs.score(jnp.log(x)) - 1
            return stein, hyvarinen, (noised.score(x), prediction.stein_score), prediction.x

        stein, hyvarinen, steins, same = jax.device_get(scores(x))
        for got in hyvarinen:
            np.testing.assert_allclose(got, x * stein, rtol=1e-12, atol=1e-12)
        for got in steins:
            np.testing.assert_allclose(got, stein, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(same, x, rtol=1e-12)


@one_process
def test_a_network_that_gives_the_stein_score_is_a_model(process):
    law, t = correlated(), 0.5

    def stein(y, t, cond):
        return law.noised(process, t).score(jnp.exp(y))

    both = models.FunctionModel(stein, process, returns="stein"), models.ExactModel(law, process)
    got, exact = jax.jit(lambda y: [model(y, t) for model in both])(draw_noised_logs(law, process, t, 16))
    np.testing.assert_allclose(got.eps, exact.eps, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(got.denoised, exact.denoised, rtol=1e-10, atol=1e-12)


@one_process
def test_the_kernel_score(process):
    # x o grad log p(x_t | x_0) = -1 - eps / sqrt(v), with the log-normal density differentiated by JAX.
    t = 0.6
    x0 = np.array([[0.7, 1.9]])

    @jax.jit
    def scores():
        noised, v = process.perturb(KEY, x0, t), process.sigma(t) ** 2
        x = process.decode(noised.y)
        log_density = lambda x: jnp.sum(-0.5 * (jnp.log(x / x0) - process.offset(t)) ** 2 / v - jnp.log(x))
        return -1 - noised.noise / np.sqrt(v), x * jax.grad(log_density)(x), process.kernel_score(noised.y, noised.y0, t) - 1

    expected, differentiated, stated = scores()
    np.testing.assert_allclose(differentiated, expected, rtol=1e-12)
    np.testing.assert_allclose(stated, expected, rtol=1e-12)


def test_posterior_means_by_quadrature(process):
    # E[target | x_t] is the Hyvarinen score and E[log x_0 | x_t] the log-Tweedie mean; trapezoid rule in log x_0,
    # spectrally accurate.
    law, t = three_modes(), 0.3
    y0 = np.linspace(-4.0, 4.0, 8001)[:, None]
    weights, means, stds = (0.3, 0.45, 0.25), (-0.6, 0.1, 0.9), (0.12, 0.18, 0.10)
    log_prior = np.log(stats.norm.pdf(y0, means, stds) @ weights)
    sigma, offset = float(process.sigma(t)), float(process.offset(t))
    predict = jax.jit(lambda y: [getattr(models.ExactModel(law, process)(y, t), name) for name in ("hyvarinen_score", "denoised")])
    points = (-0.8, 0.05, 0.7)
    for y, score, denoised in zip(points, *map(np.ravel, predict(np.array(points)[:, None])), strict=True):
        log_weight = log_prior - 0.5 * ((y - y0[:, 0] - offset) / sigma) ** 2
        weight = np.exp(log_weight - log_weight.max())
        weight /= weight.sum()
        eps = (y - y0[:, 0] - offset) / sigma
        assert score == pytest.approx(weight @ (-1 - eps / sigma), abs=1e-10)
        assert denoised == pytest.approx(weight @ y0[:, 0], abs=1e-10)
        assert denoised == pytest.approx(y - offset + sigma**2 * (1 + score), abs=1e-10)


@one_process
def test_fokker_planck_and_continuity_equations(process):
    """d/dt p = -d(mu x p) + 1/2 d^2(sigma^2 x^2 p) = -d(v p), with the drift and the flow that the process states."""
    law, t = three_modes(), 0.5
    density = lambda x, t: jnp.exp(law.noised(process, t).log_prob(x.reshape(1, 1))[0])
    at = lambda f, x, t: f(x.reshape(1, 1), t)[0, 0]
    flux = lambda x, t: at(process.drift, x, t) * density(x, t)
    spread = lambda x, t: at(process.diffusion, x, t) ** 2 * density(x, t)

    def current(x, t):
        score = law.noised(process, t).score(x.reshape(1, 1))
        return process.flow_drift(x.reshape(1, 1), t, score)[0, 0] * density(x, t)

    @jax.jit
    @jax.vmap
    def sides(x):
        rate = jax.grad(density, argnums=1)(x, jnp.asarray(t))
        fokker_planck = -jax.grad(flux)(x, t) + 0.5 * jax.grad(jax.grad(spread))(x, t)
        return rate, fokker_planck, -jax.grad(current)(x, t)

    rate, fokker_planck, continuity = map(np.asarray, sides(np.array([0.4, 0.9, 1.6, 3.0])))
    scale = np.maximum(1.0, np.abs(rate))
    np.testing.assert_allclose(fokker_planck / scale, rate / scale, rtol=0, atol=1e-12)
    np.testing.assert_allclose(continuity / scale, rate / scale, rtol=0, atol=1e-12)


def test_general_growth_is_a_shift_of_the_logarithm():
    plain, growing = processes.GeometricBrownianMotion(sigma=0.6), processes.GeometricBrownianMotion(sigma=0.6, mu=0.7)
    law, y = correlated(), np.array([[0.2, -0.4], [1.0, 0.3]])
    at = jax.jit(lambda y, shifted, t: (models.ExactModel(law, plain)(y, t), models.ExactModel(law, growing)(shifted, t)))
    for t in (0.2, 0.9):
        a, b = at(y, y + growing.offset(t), t)
        np.testing.assert_allclose(a.hyvarinen_score, b.hyvarinen_score, rtol=1e-10)
        np.testing.assert_allclose(a.denoised, b.denoised, rtol=1e-10)


def solve(field, y, t0, t1, rtol=1e-9):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: field(y, t)), diffrax.Dopri8(), t0, t1, None, y,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol), max_steps=20_000,
    ).ys[0]  # fmt: skip


@one_process
def test_the_flow_in_data_space_is_the_flow_of_the_logarithm_and_returns(process):
    law = correlated()
    model = models.ExactModel(law, process)
    y = draw_noised_logs(law, process, 1.0, 8)
    latent = jax.jit(lambda y, t0, t1: solve(lambda y, t: model(y, t).velocity, y, t0, t1))
    ambient = lambda x, t: process.flow_drift(x, t, law.noised(process, t).score(x))
    down = latent(y, 1.0, 0.01)
    np.testing.assert_allclose(np.log(jax.jit(lambda x: solve(ambient, x, 1.0, 0.01))(np.exp(y))), down, atol=1e-7)
    np.testing.assert_allclose(latent(down, 0.01, 1.0), y, atol=1e-7)


@one_process
def test_the_flow_of_one_log_normal_is_known(process):
    # y_s = m + a(s) + U sqrt((L + v_s) / (L + v_t)) U^T (y_t - m - a(t)).
    cov = np.array([[0.3, 0.1], [0.1, 0.2]])
    law = densities.LogNormalMixture([1.0], np.array([[0.4, -0.2]]), cov[None])
    values, vectors = np.linalg.eigh(cov)
    y, t, s = draw_noised_logs(law, process, 1.0, 6), 1.0, 0.05
    gain = np.sqrt((values + process.sigma(s) ** 2) / (values + process.sigma(t) ** 2))
    mean = np.array([0.4, -0.2])
    exact = mean + process.offset(s) + ((y - mean - process.offset(t)) @ vectors * gain) @ vectors.T
    out = sample(
        models.ExactModel(law, process), solver=solvers.Diffrax(solver=diffrax.Dopri8(), rtol=1e-10, atol=1e-10),
        grid=grids.Explicit((t, s)), key=KEY, shape=y.shape, start=starts.Fixed(y),
    )  # fmt: skip
    np.testing.assert_allclose(np.log(out.x), exact, atol=1e-8)


@one_process
def test_the_likelihood_in_data_space_has_the_jacobian_of_the_logarithm(process):
    law = correlated()
    x = np.exp(draw_logs(law, 16))
    result = likelihood.log_likelihood(
        models.ExactModel(law, process), x, start=starts.Noised(law), t_min=1e-3, rtol=1e-9, atol=1e-9
    )
    exact = jax.jit(lambda x: law.noised(process, 1e-3).log_prob(x))(x)
    np.testing.assert_allclose(result.log_prob, exact, atol=1e-6)


def test_a_log_normal_law_has_a_density_on_positive_points_only():
    law = correlated(2)
    side = np.exp(np.linspace(-5.0, 5.0, 401))
    x = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    cell = np.prod(x, axis=1) * (10.0 / 400) ** 2  # dx = x dlog x
    log_prob = np.asarray(jax.jit(law.log_prob)(np.concatenate([x, [[1.0, 0.0], [-1.0, 2.0]]])))
    assert np.exp(log_prob[:-2]) @ cell == pytest.approx(1.0, abs=1e-6)
    assert np.all(log_prob[-2:] == -np.inf)
    with pytest.raises(ValueError, match="log chart"):
        law.noised(processes.Gaussian(schedule=schedules.EDM()), 1.0)


@pytest.mark.parametrize("signed", [False, True])
def test_data_outside_the_domain_is_counted_and_the_remedy_named(signed):
    process = processes.GeometricBrownianMotion(signed=signed)
    x = np.array([[0.5, 0.0], [np.nan, -2.0]])
    count, remedy = ("2 of the 4", "leave out") if signed else ("3 of the 4", "Positive")
    for encode in (process.encode, lambda x: process.perturb(KEY, x, 0.5)):
        with pytest.raises(ValueError, match=count) as caught:
            encode(x)
        assert remedy in str(caught.value)
    with pytest.raises(ValueError, match="1 of the 2"):
        likelihood.log_likelihood(models.ExactModel(correlated(), PAPER), jnp.array([[1.0, 0.0]]))


class Unhashable(dict):
    """A function of time that cannot key a compilation."""

    def __call__(self, t):
        return 1.0 + t


def test_a_process_with_one_coefficient_changed():
    changed = replace(PROCESSES["growing"], sigma=0.9)
    assert changed == processes.GeometricBrownianMotion(sigma=0.9, mu=0.7)
    assert replace(changed, mu=None, t_max=2.0) == processes.GeometricBrownianMotion(sigma=0.9, t_max=2.0)
    assert hash(replace(changed, sigma=0.6)) == hash(PROCESSES["growing"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sigma=-0.8), "GeometricBrownianMotion.sigma = -0.8"),
        (dict(sigma="0.8"), "GeometricBrownianMotion.sigma"),
        (dict(sigma=schedules.Ramp(0.5, -0.5)), "GeometricBrownianMotion.sigma = Ramp"),
        (dict(sigma=Unhashable()), "hashable"),
        (dict(sigma=0.0), "GeometricBrownianMotion.sigma"),
        (dict(mu="x"), "GeometricBrownianMotion.mu"),
        (dict(t_min=2.0), "GeometricBrownianMotion.t_min"),
        (dict(signed=1.5), "signed"),
    ],
)
def test_bad_coefficients_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        processes.GeometricBrownianMotion(**arguments)
