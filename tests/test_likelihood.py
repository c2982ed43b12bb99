"""Log-likelihoods against closed forms."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import scorelab as sl
from scorelab import data, densities, dequantisation, grids, likelihood, models, processes, schedules, starts

KEY = jax.random.key(0)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def mixture():
    return densities.GaussianMixture([0.4, 0.6], np.array([[-1.0, 0.3], [0.8, -0.5]]), np.array([0.09, 0.2]))


def points(n):
    """Points near the mixture; its likelihoods are exact anywhere."""
    return np.random.default_rng(0).normal(size=(n, 2)) * [0.9, 0.6] + [0.1, -0.2]


def moments(law):
    weights, means = np.asarray(law.weights), np.asarray(law.components.mean)
    mean = weights @ means
    spread = np.einsum("k,ki,kj->ij", weights, means - mean, means - mean)
    return densities.Gaussian(mean, spread + np.eye(2) * float(weights @ np.asarray(law.components.tail)))


@pytest.mark.parametrize(
    "schedule", [pytest.param(schedules.VPLinear(), marks=pytest.mark.long), schedules.EDM(sigma_max=200.0)], ids=repr
)
def test_equals_the_closed_form_on_a_mixture(float64, schedule):
    process, law = processes.Gaussian(schedule=schedule), mixture()
    x = points(32)
    # The flow ends at the Gaussian with the mixture's moments; what is left at t_max is its third cumulant, of
    # relative size (data scale / sigma)^3 below 1e-6. The flow starts at t_min, so the target is the law there.
    result = likelihood.log_likelihood(
        models.ExactModel(law, process), x, start=starts.GaussianMoments(moments(law)), rtol=1e-8, atol=1e-8
    )
    exact = jax.jit(lambda x: law.noised(process, process.t_min).log_prob(x))(x)
    np.testing.assert_allclose(result.log_prob, exact, atol=1e-5)
    assert result.probes == 0


def test_hutchinson_is_unbiased(float64):
    process, law = processes.Gaussian(schedule=schedules.VPLinear()), mixture()
    model = models.ExactModel(law, process)
    x = np.broadcast_to(points(1), (400, 2))
    exact = jax.jit(lambda x: law.noised(process, process.t_min).log_prob(x))(x[:1])[0]
    # From the law itself at t_max, so that nothing is left but the probes (and the solver's 1e-5).
    estimate = likelihood.log_likelihood(model, x, probes=2, key=KEY, start=starts.Noised(law))
    assert estimate.probes == 2
    error = np.asarray(estimate.log_prob) - float(exact)
    assert error.std() > 1e-3
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(x))


def test_the_divergence_is_exact_in_image_shapes(float64):
    process = processes.Gaussian(schedule=schedules.VPCosine())
    variance = np.linspace(0.1, 0.4, 20).reshape(5, 4, 1)
    law = densities.Gaussian(np.zeros((5, 4, 1)), variance)
    x = np.sqrt(variance) * np.random.default_rng(0).normal(size=(3, 5, 4, 1))
    result = likelihood.log_likelihood(models.ExactModel(law, process), x, start=starts.GaussianMoments(law), rtol=1e-8, atol=1e-8)
    at_end = process.alpha(process.t_min) ** 2 * variance + process.sigma(process.t_min) ** 2
    exact = np.sum(stats.norm.logpdf(x, scale=np.sqrt(at_end)), axis=(1, 2, 3))
    np.testing.assert_allclose(result.log_prob, exact, atol=1e-5)


def test_bits_of_a_known_density():
    # Levels drawn uniformly from 16; the model is a broad Gaussian of known density, so bits/dim has a closed form.
    process = processes.Gaussian(schedule=schedules.VPLinear(t_min=1e-5))
    law = densities.Gaussian(np.zeros((2, 2, 1)), 0.5)
    levels = np.random.default_rng(0).integers(0, 16, (64, 2, 2, 1)).astype(np.uint8)
    transform = data.Pixels(levels=16)
    y = np.asarray(transform.dequantise(KEY, levels))
    result = likelihood.log_likelihood(models.ExactModel(law, process), y, start=starts.GaussianMoments(law))
    bits = transform.bits_per_dim(result.log_prob, (2, 2, 1))
    nats = np.sum(stats.norm.logpdf(y.astype(np.float64), scale=np.sqrt(0.5)), axis=(1, 2, 3))
    expected = -(nats + 4 * np.log(2 / 16)) / (4 * np.log(2))
    # Tolerance of the solver (1e-5) and of sigma(t_min)^2 = 1e-6 relative to the variance.
    np.testing.assert_allclose(bits, expected, atol=3e-4)
    np.testing.assert_allclose(result.log_prob, nats, atol=1e-3)


def test_errors():
    process = processes.Gaussian(schedule=schedules.VPLinear())
    model = models.ExactModel(densities.Gaussian(np.zeros(2), 0.3), process)
    with pytest.raises(ValueError, match="key"):
        likelihood.log_likelihood(model, jnp.zeros((1, 2)), probes=1)
    with pytest.raises(RuntimeError, match="max_steps"):
        likelihood.log_likelihood(model, jnp.zeros((1, 2)), max_steps=2)


def paired(deterministic=False):
    """With the fields of the joint law of a base and data of its own, for no condition and for every one."""
    base = densities.Gaussian(np.zeros(2), 1.0)
    process = processes.StochasticInterpolant(base=base, coupling=data.Paired(deterministic=deterministic))
    return models.FunctionModel(lambda y, t, cond=None: process.predict(y, t, velocity=y, eta=y), process, returns="prediction")


BOUND = dict(grid=grids.Arcsine(4), key=KEY)


@pytest.mark.parametrize(
    ("ask", "where"),
    [
        (lambda model, **options: likelihood.log_likelihood(model, points(3), **options), "log_likelihood"),
        (lambda model, **options: sl.likelihood_bound(model, points(3), **BOUND, **options), "likelihood_bound"),
        (
            lambda model, **options: sl.bits_per_dim(model, np.zeros((3, 2), np.uint8), data.Pixels(levels=4), key=KEY, **options),
            "log_likelihood",
        ),
        (
            lambda model, **options: sl.bits_per_dim(
                model, np.zeros((3, 2), np.uint8), data.Pixels(levels=4), **BOUND, **options
            ),
            "likelihood_bound",
        ),
        (
            lambda model, **options: dequantisation.fit(
                dequantisation.LogitLogistic(net=models.nets.MLP(width=4, depth=1)), model, np.zeros((3, 2), np.uint8),
                data.Pixels(levels=4), key=KEY, batch_size=3, **options
            ),
            "likelihood_bound",
        ),
    ],
    ids=["flow", "bound", "bits", "bits of the bound", "noise"],
)  # fmt: skip
def test_pairs_have_no_likelihood_by_the_law_of_all_base_rows(ask, where):
    """The base of a condition is another law than that of all, and of a deterministic one no law with a density."""
    with pytest.raises(ValueError, match=rf"{where}.start = None under Paired\(.*and a condition: .* a start that is their law"):
        ask(paired(), cond=np.arange(3))
    with pytest.raises(ValueError, match=rf"{where} under Paired\(.*deterministic=True.*\): expected a base with noise of its own"):
        ask(paired(deterministic=True))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows(processes.Start):
    """The base rows of a condition, whose law is known."""

    law: densities.Gaussian

    def draw(self, keys, ids, process, t, event):
        return jax.vmap(lambda key: self.law.sample(key, 1)[0])(keys)

    def log_prob(self, y, process, t):
        return self.law.log_prob(y)


def test_pairs_have_one_under_the_law_of_the_rows_of_a_condition():
    """Of data N(1, .5^2) beside the base N(c, 1): the likelihood of the Gaussian, which a start at all rows would not give."""
    law, mean = densities.Gaussian(np.array([1.0]), 0.25), 2.0
    known = models.ExactModel(law, processes.StochasticInterpolant(base=densities.Gaussian(np.array([mean]), 1.0)))
    wide = processes.StochasticInterpolant(base=densities.Gaussian(np.zeros(1), 5.0), coupling=data.Paired())

    def fn(y, t, cond=None):
        found = known(y, t)
        return wide.predict(y, t, velocity=found.velocity, eta=found.eta)

    x = np.array([[0.4], [1.3]])
    start = Rows(densities.Gaussian(np.array([mean]), 1.0))
    model = models.FunctionModel(fn, wide, returns="prediction")
    found = likelihood.log_likelihood(model, x, cond=np.full(2, 2), start=start)
    # The solver's tolerance is 1e-5 in each step.
    np.testing.assert_allclose(found.log_prob, law.log_prob(x), atol=1e-3)


def test_the_gradient_of_the_likelihood_is_the_score():
    law, t = densities.Gaussian(np.array([0.3, -0.2]), np.array([[0.5, 0.1], [0.1, 0.4]])), 0.01
    process = processes.Gaussian(schedule=schedules.EDM(sigma_min=t, sigma_max=20.0))
    x = np.array([[0.5, 0.1]], np.float32)
    direction = np.array([[0.6, 0.8]], np.float32)
    model, start = models.ExactModel(law, process), starts.Noised(law)
    total = lambda x: jnp.sum(likelihood.log_likelihood(model, x, start=start).log_prob)
    slope = jax.jvp(total, (jnp.asarray(x),), (jnp.asarray(direction),))[1]
    covariance = np.array([[0.5, 0.1], [0.1, 0.4]]) + t**2 * np.eye(2)
    score = -np.linalg.solve(covariance, (x[0] - [0.3, -0.2]))
    np.testing.assert_allclose(slope, score @ direction[0], atol=1e-3)  # the solver's tolerance is 1e-5 on values of 1 to 20


def test_derivatives_by_the_start_and_the_end_of_the_flow():
    r"""Of a Gaussian, :math:`y_T = x\sqrt{(v+T^2)/(v+t^2)}`, seen under a start of another deviation."""
    v, t0, end, s = 0.5, 0.01, 5.0, 4.0
    process = processes.Gaussian(schedule=schedules.EDM(sigma_min=t0, sigma_max=20.0))
    model, x = models.ExactModel(densities.Gaussian(np.zeros(2), v), process), np.array([[0.9, -1.4]], np.float32)

    def log_prob(s, end):
        return likelihood.log_likelihood(model, x, start=starts.LogNormal(0.0, s), t_max=end).log_prob[0]

    by_s, by_end = jax.grad(log_prob, (0, 1))(s, end)
    square = float(np.sum(x**2)) * (v + end**2) / (v + t0**2)
    # The solver's tolerance is 1e-5 on a path of length 7.
    np.testing.assert_allclose(by_s, square / s**3 - 2 / s, atol=1e-3)
    np.testing.assert_allclose(by_end, (2 - square / s**2) * end / (v + end**2), atol=1e-3)


def test_a_model_that_is_no_pytree_is_taken():
    class Bare:
        process = processes.Gaussian(schedule=schedules.EDM(sigma_min=0.01, sigma_max=20.0))

        def __call__(self, y, t, cond=None):
            return self.process.predict(y, t, denoised=y / (1 + t**2))

    bare, law = Bare(), densities.Gaussian(np.zeros(2), 1.0)
    x = np.zeros((3, 2), np.float32)
    exact = likelihood.log_likelihood(models.ExactModel(law, bare.process), x).log_prob
    np.testing.assert_allclose(likelihood.log_likelihood(bare, x).log_prob, exact, atol=1e-4)


def test_a_scale_for_every_row_has_as_many():
    process = processes.Gaussian(schedule=schedules.EDM())
    inner = models.ExactModel(densities.Gaussian(np.zeros(2), 1.0), process)
    model = models.ClassifierFreeGuidance(model=inner, scale=np.ones(3))
    with pytest.raises(ValueError, match=r"log_likelihood.ClassifierFreeGuidance.scale has a leaf of shape \(3,\)"):
        likelihood.log_likelihood(model, np.zeros((4, 2)))
