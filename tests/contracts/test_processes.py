"""Laws of every process: the kernel against the SDE, and the way back under the exact score."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import densities, grids, models, sample, solvers, starts

from .members import PROCESSES

pytestmark = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{type(p).__name__}-{p.schedule!r}")

KEY = jax.random.key(7)


def test_perturb_has_the_moments_of_the_simulated_sde(process):
    # Euler-Maruyama in float64 on the host over K geometric steps has weak error of order 1/K; the tolerance is that
    # plus three standard errors of n paths.
    n, k = 20_000, 400
    rng = np.random.default_rng(0)
    end = 0.6 * process.t_max
    begin = min(0.05 * process.t_max, 0.5)
    y0 = 0.7
    mean = lambda t: process.alpha(t) * y0 + process.offset(t)
    y = mean(begin) + process.sigma(begin) * rng.normal(size=n)
    ts = np.geomspace(begin, end, k + 1)
    for t, s in itertools.pairwise(ts):
        f, offset, d_offset = process.schedule.drift_rate(t), process.offset(t), process.d_offset(t)
        drift, diffusion = f * (y - offset) + d_offset, process.latent_diffusion(t)
        y = y + drift * (s - t) + diffusion * np.sqrt(s - t) * rng.normal(size=n)
    z = process.perturb(KEY, process.decode(jnp.full((n, 1), y0)), end).y[:, 0]
    std = process.sigma(end)
    tolerance = 3 * std / np.sqrt(n)
    log_range = abs(float(process.log_snr(begin) - process.log_snr(end)))
    assert abs(z.mean() - mean(end)) < tolerance
    assert abs(z.std() / std - 1) < 3 / np.sqrt(2 * n)
    assert abs(y.mean() - mean(end)) < tolerance + 4 * log_range / k * abs(y0)
    assert abs(y.std() / std - 1) < 3 / np.sqrt(2 * n) + 4 * log_range / k


def test_kernel_score_is_the_gradient_of_the_kernel(process):
    y0, t = jnp.array([[0.3, -0.4]]), 0.4 * process.t_max
    y = process.perturb(KEY, process.decode(y0), t).y
    alpha, sigma, offset = process.alpha(t), process.sigma(t), process.offset(t)
    log_kernel = lambda y: jnp.sum(-0.5 * ((y - alpha * y0 - offset) / sigma) ** 2)
    np.testing.assert_allclose(process.kernel_score(y, y0, t), jax.grad(log_kernel)(y), rtol=1e-5)


def test_conversions_agree_with_one_another(process):
    law = densities.Gaussian(np.array([0.5, -0.2]), np.array([[0.6, 0.2], [0.2, 0.3]]))
    model = models.ExactModel(law, process)
    for t in (0.1 * process.t_max, 0.5 * process.t_max, 0.9 * process.t_max):
        y = process.perturb(KEY, process.decode(law.sample(KEY, 64)), t).y
        exact = model(y, t)
        scale = float(jnp.max(jnp.abs(y)))
        for form in ("denoised", "eps", "score", "velocity"):
            back = process.predict(y, t, **{form: getattr(exact, form)})
            # One form from another loses at most the ratio of the two amplitudes times float32 rounding.
            loss = max(1.0, float(process.noise_ratio(t)), 1 / float(process.noise_ratio(t)))
            np.testing.assert_allclose(back.denoised, exact.denoised, atol=2e-6 * loss * max(scale, 1.0))
            np.testing.assert_allclose(back.eps, exact.eps, atol=2e-6 * loss * max(scale, 1.0))


def test_velocity_is_the_flow_of_the_marginals(process):
    # d/dt log p_t = -div v - v . grad log p_t, with finite differences in time and the closed-form Gaussian.
    with jax.enable_x64(True):
        law = densities.Gaussian(np.array([0.5, -0.2]), np.array([[0.6, 0.2], [0.2, 0.3]]))
        model = models.ExactModel(law, process)
        t = 0.45 * process.t_max
        h = 1e-4 * t
        y = process.perturb(KEY, process.decode(law.sample(KEY, 32)), t).y

        @jax.jit
        def sides(y):
            rate = (law.noised(process, t + h).log_prob(y) - law.noised(process, t - h).log_prob(y)) / (2 * h)
            jacobian = jax.vmap(jax.jacfwd(lambda z: model(z[None], t).velocity[0]))(y)
            prediction = model(y, t)
            return rate, jnp.trace(jacobian, axis1=1, axis2=2) + jnp.sum(prediction.velocity * prediction.score, -1)

        rate, transport = sides(y)
        np.testing.assert_allclose(rate, -transport, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(rate))))


@pytest.mark.parametrize("solver", [solvers.DPMSolverPP(order=2), solvers.EulerMaruyama()], ids=["ode", "sde"])
def test_the_way_back_returns_a_mixture(process, solver):
    law = densities.GaussianMixture([0.3, 0.7], np.array([[-1.0, 0.4], [0.8, -0.2]]), np.array([0.04, 0.09]))
    n, steps = 8_000, 40 if solver.order == 2 else 300
    grid = grids.LogSNR(steps, t_max=min(process.t_max, 0.995) if process.alpha(process.t_max) == 0 else None)
    out = sample(models.ExactModel(law, process), process, solver=solver, grid=grid, key=KEY, shape=(n, 2))
    exact = law.sample(jax.random.key(1), 200_000)
    mean, cov = np.asarray(exact.mean(0)), np.cov(np.asarray(exact).T)
    # Four standard errors, plus the first-order bias of 300 Euler-Maruyama steps over about 20 nats of log-SNR.
    bias = 0.0 if solver.order == 2 else 0.05
    y = process.encode(out.x)
    np.testing.assert_allclose(y.mean(0), mean, atol=4 * np.sqrt(cov.max() / n) + 0.3 * bias)
    np.testing.assert_allclose(np.cov(np.asarray(y).T), cov, atol=6 * cov.max() / np.sqrt(n) + bias)
    assert abs(float((y[:, 0] < 0).mean()) - float((exact[:, 0] < 0).mean())) < 4 * 0.46 / np.sqrt(n) + bias


def test_prior_is_the_law_at_the_first_grid_time(process):
    grid = grids.Explicit((0.5 * process.t_max, 0.25 * process.t_max))
    keys = jax.random.split(KEY, 20_000)
    t = jnp.float32(grid.times(process)[0])
    y = starts.Prior().draw(keys, jnp.arange(20_000), process, t, (2,))
    assert abs(float(y.std() / process.sigma(float(t))) - 1) < 4 / np.sqrt(2 * y.size)
    expected = densities.Gaussian(np.full(2, float(process.offset(float(t)))), float(process.sigma(float(t))) ** 2).log_prob(y[:5])
    np.testing.assert_allclose(starts.Prior().log_prob(y[:5], process, t), expected, rtol=1e-5)


def test_finite_in_float32_near_clean_data(process):
    law = densities.Gaussian(np.zeros(2), 0.3)
    t = jnp.full(4, max(process.t_min, 1e-6))
    y = process.perturb(KEY, process.decode(law.sample(KEY, 4)), t).y
    prediction = models.ExactModel(law, process)(y, t)
    for value in (prediction.denoised, prediction.eps, prediction.score, prediction.velocity):
        assert jnp.all(jnp.isfinite(value))


def test_per_example_times_match_scalar_times(process):
    law = densities.Gaussian(np.array([0.1, 0.2]), 0.3)
    ts = jnp.array([0.2, 0.4, 0.8]) * process.t_max
    x0 = process.decode(law.sample(KEY, 3))
    batch = process.perturb(KEY, x0, ts)
    for i, t in enumerate(ts):
        np.testing.assert_allclose(process.perturb(KEY, x0, t).y[i], batch.y[i], rtol=1e-6)
