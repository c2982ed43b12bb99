"""Laws of every density."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorelab import densities, grids, models, processes, sample, schedules, solvers

from .members import DENSITIES

PROCESS = processes.Gaussian(schedule=schedules.VPLinear())
T, EARLIER = 0.25, 0.24
ALPHA, SIGMA = float(PROCESS.alpha(np.float64(T))), float(PROCESS.sigma(np.float64(T)))
KEY = jax.random.key(3)
N, FEW = 40_000, 64
SIDE = np.linspace(-6, 6, 301)
GRID = np.stack(np.meshgrid(SIDE, SIDE), -1).reshape(-1, 2).astype(np.float32)


@jax.jit
def look(law):
    """All that is measured of a law, in one program; the law is an argument, so its leaves are all there is of it."""
    noised, wider = law.noised(PROCESS, T), law.noised(PROCESS, EARLIER)
    x, direct = law.sample(KEY, N), noised.sample(jax.random.key(1), N)
    y = PROCESS.perturb(jax.random.key(5), x, T).y
    log_prob, few = noised.log_prob(direct), direct[:FEW]
    found = dict(x=x, y=y, direct=direct, log_prob=log_prob, log_ratio=wider.log_prob(direct) - log_prob)
    found |= dict(denoised=law.denoise(PROCESS, y, T), score=noised.score(few))
    found["gradient"] = jax.grad(lambda z: jnp.sum(noised.log_prob(z)))(few)
    if law.event == (2,):
        found["on_grid"] = noised.log_prob(GRID)
    if isinstance(law, densities.Gaussian):
        found |= dict(mean=noised.mean, covariance=noised.covariance())
    return found


@functools.cache
def looked(name):
    return {what: np.asarray(values, np.float64) for what, values in look(DENSITIES[name]).items()}


@pytest.fixture(params=DENSITIES, ids=str)
def found(request):
    return looked(request.param)


def test_score_is_the_gradient_of_log_prob(found):
    np.testing.assert_allclose(found["score"], found["gradient"], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", [name for name, law in DENSITIES.items() if law.event == (2,)])
def test_noised_law_integrates_to_one(name):
    mass = np.exp(looked(name)["on_grid"]).sum() * (SIDE[1] - SIDE[0]) ** 2
    # The trapezoid rule is spectrally accurate for densities this smooth; what is left is float32 rounding.
    assert mass == pytest.approx(1.0, abs=2e-5)


def test_samples_of_the_noised_law_are_noised_samples(found):
    direct, noised = (found[name].reshape(N, -1) for name in ("direct", "y"))
    directions = np.random.default_rng(0).normal(size=(3, direct.shape[1]))
    for direction in directions:
        # Three tests a law, some forty in all: a p-value below 1e-4 by chance in 1 run of 250; seeds are fixed.
        assert stats.ks_2samp(direct @ direction, noised @ direction).pvalue > 1e-4


def test_log_prob_is_the_density_of_the_samples(found):
    # E[q/p] under p is 1 for any normalised q that p covers: here q is the law noised a little less.
    ratio = np.exp(found["log_ratio"])
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(ratio))


def test_denoise_is_the_posterior_mean(found):
    # The residual y_0 - E[y_0 | y_t] is uncorrelated with any function of y_t.
    residual, flat = (found["x"] - found["denoised"]).reshape(N, -1), found["y"].reshape(N, -1)
    for function in (np.ones_like(flat), flat, np.tanh(2 * flat), np.sin(3 * flat)):
        product = residual * function
        assert np.all(np.abs(product.mean(0)) < 4.5 * product.std(0) / np.sqrt(N))


@pytest.mark.parametrize("law", DENSITIES.values(), ids=DENSITIES)
def test_noise_levels_share_a_program(law):
    # What a program is compiled for: the structure with its static fields, shapes and dtypes.
    now, later = (jax.eval_shape(lambda t=t: law.noised(PROCESS, t)) for t in (0.2, 0.4))
    assert jax.tree.structure(now) == jax.tree.structure(later)
    assert hash(jax.tree.structure(now)) == hash(jax.tree.structure(later))
    assert jax.tree.leaves(now) == jax.tree.leaves(later)


@pytest.mark.parametrize("law", DENSITIES.values(), ids=DENSITIES)
def test_the_scale_of_a_known_law_is_known_inside_a_program(law):
    inside = []
    jax.eval_shape(lambda key: (inside.append(law.scale()), key)[1], KEY)
    assert inside == [law.scale()]


def test_a_mixture_is_sampled_inside_a_program():
    # A walk asks for the scale of the law, which is closed over here.
    model = models.ExactModel(densities.eight_gaussians(), PROCESS)
    draw = functools.partial(sample, model, solver=solvers.DDIM(), grid=grids.Uniform(3), shape=(FEW, 2))
    # Sums may be fused otherwise: a few of float32's 6e-8 on numbers of order 1.
    np.testing.assert_allclose(jax.jit(lambda key: draw(key=key).x)(KEY), draw(key=KEY).x, atol=2e-6)


@pytest.mark.parametrize(
    "name", [name if name == "gaussian_full" else pytest.param(name, marks=pytest.mark.long) for name in DENSITIES]
)
def test_laws_are_pytrees_and_do_not_recompile(name):
    law, traces = DENSITIES[name], []

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
    law, found = DENSITIES[name], looked(name)
    # Sigma = U diag(w) U^T + tau (I - U U^T), in float64.
    basis, eigenvalues = np.asarray(law.basis, np.float64), np.asarray(law.eigenvalues, np.float64)
    covariance = (basis * eigenvalues) @ basis.T + float(law.tail) * (np.eye(law.size) - basis @ basis.T)
    mean, covariance = ALPHA * np.ravel(law.mean), ALPHA**2 * covariance + SIGMA**2 * np.eye(law.size)
    np.testing.assert_allclose(found["mean"].ravel(), mean, rtol=1e-6)
    np.testing.assert_allclose(found["covariance"], covariance, rtol=1e-5, atol=1e-6)
    reference = stats.multivariate_normal(mean, covariance).logpdf(found["direct"][:16].reshape(16, -1))
    np.testing.assert_allclose(found["log_prob"][:16], reference, rtol=2e-5, atol=2e-5)


@jax.jit
def log_prob_and_score(law, other, x):
    return [(one.log_prob(x), one.score(x)) for one in (law, other)]


def test_low_rank_equals_the_full_covariance_it_stands_for():
    low = DENSITIES["gaussian_low_rank"]
    basis = np.asarray(low.basis, np.float64)
    covariance = (basis * np.asarray(low.eigenvalues)) @ basis.T + float(low.tail) * (np.eye(5) - basis @ basis.T)
    full = densities.Gaussian(np.asarray(low.mean), covariance)
    x = looked("gaussian_low_rank")["x"][:32].astype(np.float32)
    a, b = log_prob_and_score(low, full, x)
    np.testing.assert_allclose(a[0], b[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(a[1], b[1], rtol=1e-3, atol=1e-3)


def test_noised_empirical_law_is_the_explicit_mixture():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(70, 3))
    noised = densities.Empirical(data, block=32).noised(PROCESS, T)
    mixture = densities.GaussianMixture(np.ones(70), ALPHA * data, np.full(70, SIGMA**2))
    x = (ALPHA * data[:33] + SIGMA * rng.normal(size=(33, 3))).astype(np.float32)
    a, b = log_prob_and_score(noised, mixture, x)
    np.testing.assert_allclose(a[0], b[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(a[1], b[1], rtol=1e-4, atol=1e-4)


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


POINTS = np.ones((4, 2))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: densities.Empirical(POINTS * np.nan), "Empirical.data has 8 values that are not finite"),
        (lambda: densities.Empirical(jnp.asarray(POINTS) / 0), "Empirical.data has 8 values that are not finite"),
        (lambda: densities.Empirical(POINTS * 1e300), "Empirical.data has 8 values that are not finite in float32"),
        (lambda: densities.Empirical(POINTS[:0]), "n at least 1"),
        (lambda: densities.Empirical(POINTS.astype(str)), "expected real numbers"),
        (lambda: densities.IsotropicMixture(POINTS * np.inf, 1.0), "IsotropicMixture.centres"),
        (lambda: densities.IsotropicMixture(POINTS, -1.0), "IsotropicMixture.variance has the value -1"),
        (lambda: densities.IsotropicMixture(POINTS, np.nan), "IsotropicMixture.variance"),
        (lambda: densities.IsotropicMixture(POINTS, np.ones(4)), "expected one number"),
        (lambda: densities.Gaussian([np.nan, 0.0], 1.0), "Gaussian.mean"),
        (lambda: densities.Gaussian([0.0, 0.0], np.nan), "Gaussian.cov"),
        (lambda: densities.Gaussian.low_rank([np.nan, 0.0], np.eye(2), np.ones(2)), "low_rank.mean"),
        (lambda: densities.Gaussian.diagonal(jnp.zeros(2), np.array([1.0, -1.0])), "diagonal.variances has the value -1"),
        (lambda: densities.Gaussian.diagonal(jnp.zeros(2), jnp.array([1.0, np.nan])), "diagonal.variances has 1"),
        (lambda: densities.GaussianMixture(np.ones(1), [[np.inf, 0.0]], 1.0), "Gaussian.mean"),
        (lambda: densities.Rings(std=np.nan), "Rings.std"),
        (lambda: densities.Boxes([[0.0, 0.0]], [[1.0, np.inf]]), "Boxes.highs"),
        (lambda: densities.GaussianMixture.per_class(POINTS, np.array([0, 0, 7, 7])), "two or more of each of 8 classes"),
    ],
)
def test_numbers_that_no_law_has_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_traced_numbers_pass_the_checks():
    laws = jax.eval_shape(lambda m: (densities.Gaussian.diagonal(m[0], m[1]), densities.IsotropicMixture(m, m[0, 0])), POINTS)
    assert laws[0].event == laws[1].event == (2,)
