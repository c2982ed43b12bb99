"""Laws of every process: the kernel against the SDE, and the way back under the exact score."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorelab import densities, grids, models, sample, solvers, starts

from .members import PROCESSES


def named(process):
    return f"{type(process).__name__}-{process.schedule!r}"


every_process = pytest.mark.parametrize("process", PROCESSES, ids=named)

KEY = jax.random.key(7)
MEAN, COV = np.array([0.5, -0.2]), np.array([[0.6, 0.2], [0.2, 0.3]])
LAW = densities.Gaussian(MEAN, COV)
PARTS = (0.1, 0.5, 0.9)
FORMS = ("denoised", "eps", "score", "velocity")
N = 20_000


def kernel(process, t):
    """alpha, sigma and offset in float64, on the host."""
    return (float(f(np.float64(t))) for f in (process.alpha, process.sigma, process.offset))


@functools.partial(jax.jit, static_argnums=0)
def look(process, z):
    """All that is measured of a process in float32, in one program."""
    end, model = 0.6 * process.t_max, models.ExactModel(LAW, process)
    found = {"one_point": process.perturb(KEY, process.decode(jnp.full((N, 1), 0.7)), end).y[:, 0]}

    y0, t = jnp.array([[0.3, -0.4]]), 0.4 * process.t_max
    y = process.perturb(KEY, process.decode(y0), t).y
    found["kernel"] = y0, y, process.kernel_score(y, y0, t)

    # 64 points at each of three times, and 4 near clean data.
    near_clean = max(process.t_min, 1e-6)
    ts = np.repeat([*(part * process.t_max for part in PARTS), near_clean], [64, 64, 64, 4]).astype(np.float32)
    y = process.perturb(KEY, process.decode(LAW.sample(KEY, len(ts))), ts).y
    exact = model(y, ts)
    back = {form: process.predict(y, ts, **{form: getattr(exact, form)}) for form in FORMS}
    found["conversions"] = y, {form: getattr(exact, form) for form in FORMS}, {f: (b.denoised, b.eps) for f, b in back.items()}

    first = grids.Explicit((0.5 * process.t_max, 0.25 * process.t_max)).times(process)[0]
    y = starts.Prior().draw(jax.random.split(KEY, N), jnp.arange(N), process, jnp.float32(first), (2,))
    found["prior"] = y, starts.Prior().log_prob(y[:5], process, jnp.float32(first))

    ts, x0 = jnp.array([0.2, 0.4, 0.8]) * process.t_max, process.decode(z)
    found["times"] = process.perturb(KEY, x0, ts).y, jax.vmap(lambda t: process.perturb(KEY, x0, t).y)(ts)
    return found


@functools.cache
def looked(process):
    z = np.random.default_rng(7).normal(size=(3, 2)).astype(np.float32)
    return jax.tree.map(lambda a: np.asarray(a, np.float64), look(process, z))


@every_process
def test_perturb_has_the_moments_of_the_simulated_sde(process):
    # Euler-Maruyama in float64 on the host over K geometric steps has weak error of order 1/K; the tolerance is that
    # plus three standard errors of n paths.
    n, k = N, 400
    rng = np.random.default_rng(0)
    end = 0.6 * process.t_max
    begin = min(0.05 * process.t_max, 0.5)
    y0 = 0.7
    mean = lambda t: process.alpha(t) * y0 + process.offset(t)
    y = mean(begin) + process.sigma(begin) * rng.normal(size=n)
    ts = np.geomspace(begin, end, k + 1)
    rates = (process.schedule.drift_rate, process.offset, process.d_offset, process.latent_diffusion)
    rates = np.stack([np.broadcast_to(rate(ts[:-1]), k) for rate in rates], axis=1)
    for (f, offset, d_offset, diffusion), step in zip(rates, np.diff(ts), strict=True):
        y = y + (f * (y - offset) + d_offset) * step + diffusion * np.sqrt(step) * rng.normal(size=n)
    z = looked(process)["one_point"]
    std = process.sigma(end)
    tolerance = 3 * std / np.sqrt(n)
    log_range = abs(float(process.log_snr(begin) - process.log_snr(end)))
    assert abs(z.mean() - mean(end)) < tolerance
    assert abs(z.std() / std - 1) < 3 / np.sqrt(2 * n)
    assert abs(y.mean() - mean(end)) < tolerance + 4 * log_range / k * abs(y0)
    assert abs(y.std() / std - 1) < 3 / np.sqrt(2 * n) + 4 * log_range / k


@every_process
def test_kernel_score_is_the_gradient_of_the_kernel(process):
    y0, y, score = looked(process)["kernel"]
    alpha, sigma, offset = kernel(process, 0.4 * process.t_max)
    # Of -((y - alpha y_0 - b) / sigma)^2 / 2. The difference y - alpha y_0 - b keeps the rounding of y.
    rounding = 4 * 2**-23 * np.abs(y).max() / sigma**2
    np.testing.assert_allclose(score, -(y - alpha * y0 - offset) / sigma**2, rtol=1e-5, atol=rounding)


@every_process
def test_conversions_agree_with_one_another(process):
    y, exact, back = looked(process)["conversions"]
    for i, part in enumerate(PARTS):
        rows = slice(64 * i, 64 * (i + 1))
        scale, ratio = np.abs(y[rows]).max(), float(process.noise_ratio(np.float64(part * process.t_max)))
        # One form from another loses at most the ratio of the two amplitudes times float32 rounding.
        tolerance = 2e-6 * max(1.0, ratio, 1 / ratio) * max(scale, 1.0)
        for form in FORMS:
            np.testing.assert_allclose(back[form][0][rows], exact["denoised"][rows], atol=tolerance, err_msg=form)
            np.testing.assert_allclose(back[form][1][rows], exact["eps"][rows], atol=tolerance, err_msg=form)


@every_process
def test_velocity_is_the_flow_of_the_marginals(process):
    # d/dt log p_t = -div v - v . grad log p_t, with the closed-form Gaussian on the host and finite differences in time.
    t = 0.45 * process.t_max
    h = 1e-4 * t
    z = np.random.default_rng(7).normal(size=(32, 2)) @ np.linalg.cholesky(COV).T + MEAN
    alpha, sigma, offset = kernel(process, t)
    y = alpha * z + offset + sigma * np.random.default_rng(8).normal(size=z.shape)

    def log_prob(t):
        alpha, sigma, offset = kernel(process, t)
        return stats.multivariate_normal(alpha * MEAN + offset, alpha**2 * COV + sigma**2 * np.eye(2)).logpdf(y)

    with jax.enable_x64(True):
        model = models.ExactModel(densities.Gaussian(MEAN, COV), process)

        @jax.jit
        def transport(y):
            jacobian = jax.vmap(jax.jacfwd(lambda z: model(z[None], t).velocity[0]))(y)
            prediction = model(y, t)
            return jnp.trace(jacobian, axis1=1, axis2=2) + jnp.sum(prediction.velocity * prediction.score, -1)

        transported = np.asarray(transport(y))
    rate = (log_prob(t + h) - log_prob(t - h)) / (2 * h)
    np.testing.assert_allclose(rate, -transported, rtol=1e-5, atol=1e-5 * np.abs(rate).max())


SOLVERS = {"ode": solvers.DPMSolverPP(order=2), "sde": solvers.EulerMaruyama()}


def long_of_other_solver(process, kind):
    """The default run has both solvers, by turns over the processes; the long tail has the other of the two."""
    return pytest.mark.long if (PROCESSES.index(process) + (kind == "sde")) % 2 else ()


@pytest.mark.parametrize(
    ("process", "kind"),
    [pytest.param(p, kind, marks=long_of_other_solver(p, kind), id=f"{named(p)}-{kind}") for p in PROCESSES for kind in SOLVERS],
)
def test_the_way_back_returns_a_mixture(process, kind):
    weights, means, variances = np.array([0.3, 0.7]), np.array([[-1.0, 0.4], [0.8, -0.2]]), np.array([0.04, 0.09])
    law, solver = densities.GaussianMixture(weights, means, variances), SOLVERS[kind]
    n, steps = 8_000, 40 if solver.order == 2 else 300
    grid = grids.LogSNR(steps, t_max=0.995 * process.t_max if process.alpha(process.t_max) == 0 else None)
    out = sample(models.ExactModel(law, process), solver=solver, grid=grid, key=KEY, shape=(n, 2))
    mean = weights @ means
    cov = (means - mean).T @ (weights[:, None] * (means - mean)) + weights @ variances * np.eye(2)
    below = weights @ stats.norm.cdf(-means[:, 0] / np.sqrt(variances))
    # Four standard errors, plus the first-order bias of 300 Euler-Maruyama steps over about 20 nats of log-SNR.
    bias = 0.0 if solver.order == 2 else 0.05
    y = np.asarray(process.encode(out.x), np.float64)
    np.testing.assert_allclose(y.mean(0), mean, atol=4 * np.sqrt(cov.max() / n) + 0.3 * bias)
    np.testing.assert_allclose(np.cov(y.T), cov, atol=6 * cov.max() / np.sqrt(n) + bias)
    assert abs((y[:, 0] < 0).mean() - below) < 4 * 0.46 / np.sqrt(n) + bias


@every_process
def test_prior_is_the_law_at_the_first_grid_time(process):
    _, sigma, offset = kernel(process, 0.5 * process.t_max)
    y, log_prob = looked(process)["prior"]
    assert abs(y.std() / sigma - 1) < 4 / np.sqrt(2 * y.size)
    np.testing.assert_allclose(log_prob, stats.norm(offset, sigma).logpdf(y[:5]).sum(-1), rtol=1e-5)


@every_process
def test_finite_in_float32_near_clean_data(process):
    _, exact, _ = looked(process)["conversions"]
    for form in FORMS:
        assert np.all(np.isfinite(exact[form][-4:])), form


@every_process
def test_per_example_times_match_scalar_times(process):
    batch, alone = looked(process)["times"]
    for i in range(3):
        np.testing.assert_allclose(alone[i][i], batch[i], rtol=1e-6)
