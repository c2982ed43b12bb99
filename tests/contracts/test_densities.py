"""Laws of every density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorelab import densities, processes, schedules

from .members import DENSITIES

PROCESS = processes.Gaussian(schedule=schedules.VPLinear())
KEY = jax.random.key(3)


@jax.jit
def log_prob(law, x):
    return law.log_prob(x)


@pytest.fixture(params=DENSITIES, ids=str)
def law(request):
    return DENSITIES[request.param]


def test_score_is_the_gradient_of_log_prob(law):
    @jax.jit
    def both(law):
        noised = law.noised(PROCESS, 0.2)
        x = noised.sample(KEY, 64)
        return noised.score(x), jax.grad(lambda z: jnp.sum(noised.log_prob(z)))(x)

    score, gradient = both(law)
    np.testing.assert_allclose(score, gradient, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", [name for name, law in DENSITIES.items() if law.event == (2,)])
def test_noised_law_integrates_to_one(name):
    law = DENSITIES[name]
    noised = law.noised(PROCESS, 0.25)
    side = np.linspace(-6, 6, 301)
    points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.float32)
    mass = np.exp(np.asarray(log_prob(noised, points), np.float64)).sum() * (side[1] - side[0]) ** 2
    # The trapezoid rule is spectrally accurate for densities this smooth; what is left is float32 rounding.
    assert mass == pytest.approx(1.0, abs=2e-5)


def test_samples_of_the_noised_law_are_noised_samples(law):
    n, t = 20_000, 0.3

    @jax.jit
    def both(law):
        return law.noised(PROCESS, t).sample(jax.random.key(1), n), PROCESS.perturb(jax.random.key(2), law.sample(KEY, n), t).y

    direct, noised = (np.asarray(y).reshape(n, -1) for y in both(law))
    directions = np.random.default_rng(0).normal(size=(3, direct.shape[1]))
    for direction in directions:
        # Three tests a law, some forty in all: a p-value below 1e-4 by chance in 1 run of 250; seeds are fixed.
        assert stats.ks_2samp(direct @ direction, noised @ direction).pvalue > 1e-4


def test_log_prob_is_the_density_of_the_samples(law):
    # E[q/p] under p is 1 for any normalised q that p covers: here q is the law noised a little more.
    @jax.jit
    def log_ratio(law):
        noised, wider = law.noised(PROCESS, 0.3), law.noised(PROCESS, 0.29)
        x = noised.sample(KEY, 20_000)
        return wider.log_prob(x) - noised.log_prob(x)

    ratio = np.exp(np.asarray(log_ratio(law), np.float64))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(ratio))


def test_denoise_is_the_posterior_mean(law):
    # The residual y_0 - E[y_0 | y_t] is uncorrelated with any function of y_t.
    n, t = 40_000, 0.2

    @jax.jit
    def pairs(law):
        x = law.sample(KEY, n)
        y = PROCESS.perturb(jax.random.key(5), x, t).y
        return x - law.denoise(PROCESS, y, t), y

    residual, y = pairs(law)
    residual = np.asarray(residual, np.float64).reshape(n, -1)
    flat = np.asarray(y, np.float64).reshape(n, -1)
    for function in (np.ones_like(flat), flat, np.tanh(2 * flat), np.sin(3 * flat)):
        product = residual * function
        assert np.all(np.abs(product.mean(0)) < 4.5 * product.std(0) / np.sqrt(n))


def test_laws_are_pytrees_and_do_not_recompile(law):
    traces = []

    @jax.jit
    def log_prob(law, x):
        traces.append(1)
        return law.log_prob(x)

    noised = law.noised(PROCESS, 0.2)
    x = noised.sample(KEY, 8)
    np.testing.assert_allclose(log_prob(noised, x), noised.log_prob(x), rtol=1e-4, atol=1e-4)
    log_prob(law.noised(PROCESS, 0.4), x)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["gaussian_full", "gaussian_diagonal", "gaussian_isotropic", "gaussian_low_rank"])
def test_gaussian_agrees_with_scipy(name):
    law = DENSITIES[name].noised(PROCESS, 0.1)
    x = np.asarray(law.sample(KEY, 16))
    reference = stats.multivariate_normal(np.ravel(law.mean), np.asarray(law.covariance(), np.float64))
    np.testing.assert_allclose(law.log_prob(x), reference.logpdf(x.reshape(16, -1)), rtol=2e-5, atol=2e-5)


def test_low_rank_equals_the_full_covariance_it_stands_for():
    low = DENSITIES["gaussian_low_rank"]
    full = densities.Gaussian(np.asarray(low.mean), np.asarray(low.covariance()))
    x = low.sample(KEY, 32)
    np.testing.assert_allclose(low.log_prob(x), full.log_prob(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(low.score(x), full.score(x), rtol=1e-3, atol=1e-3)


def test_noised_empirical_law_is_the_explicit_mixture():
    data = np.random.default_rng(0).normal(size=(70, 3))
    noised = densities.Empirical(data, block=32).noised(PROCESS, 0.3)
    alpha, sigma = float(PROCESS.alpha(0.3)), float(PROCESS.sigma(0.3))
    mixture = densities.GaussianMixture(np.ones(70), alpha * data, np.full(70, sigma**2))
    x = mixture.sample(KEY, 33)
    np.testing.assert_allclose(log_prob(noised, x), log_prob(mixture, x), rtol=1e-5, atol=1e-5)
    score = jax.jit(lambda law, x: law.score(x))
    np.testing.assert_allclose(score(noised, x), score(mixture, x), rtol=1e-4, atol=1e-4)


def test_a_set_of_points_has_no_density():
    with pytest.raises(ValueError, match="noised"):
        densities.Empirical(np.zeros((3, 2))).log_prob(jnp.zeros((1, 2)))


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="symmetric"):
        densities.Gaussian(np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="eigenvalue"):
        densities.Gaussian(np.zeros(2), np.diag([1.0, -1.0]))
    with pytest.raises(ValueError, match="shape"):
        densities.Gaussian(np.zeros(2), np.ones(3))
    with pytest.raises(ValueError, match="weights"):
        densities.GaussianMixture([1.0, -1.0], np.zeros((2, 2)), np.ones(2))
    with pytest.raises(ValueError, match=r"expected \(batch, 2\)"):
        DENSITIES["gaussian_full"].log_prob(jnp.zeros((4, 3)))
