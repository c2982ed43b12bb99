"""The noise that gradient ascent finds is the one in closed form, and samples do not see one another."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats

from scorelab.search.noise import optimise_noise

pytestmark = pytest.mark.usefixtures("quick_compilation")
D = 6
MATRIX = np.array(np.random.default_rng(0).normal(size=(D, D)) / 2 + np.eye(D), np.float32)
TOWARDS = np.array([1.0, -0.5, 0.3, 0.0, 0.2, 0.7], np.float32)
NOISE = np.random.default_rng(1).normal(size=(5, D)).astype(np.float32)
DESCENT = optax.sgd(0.05)


def linear(z, cond):
    return z @ MATRIX.T


def identity(z, cond):
    return z


def along(x):
    return x @ TOWARDS


def test_without_a_reward_only_the_radius_changes():
    # The reward has weight 0: it only picks the iterate that is nearest to the radius it should go to, sqrt(d - 1).
    nearest = lambda x: -jnp.abs(jnp.linalg.norm(x, axis=1) - np.sqrt(D - 1))
    out = optimise_noise(identity, nearest, NOISE, iterations=200, weight=0.0, regularisation=1.0, optimizer=DESCENT)
    # The rate of convergence is exp(-2 lr n) = 2e-9: rounding is what is left.
    np.testing.assert_allclose(np.linalg.norm(out.noise, axis=1), np.sqrt(D - 1), rtol=1e-5)
    unit = lambda z: z / np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(unit(out.noise), unit(NOISE), atol=1e-5)


def test_a_linear_reward_has_its_optimum_in_closed_form():
    weight, rho = 0.7, 0.5
    out = optimise_noise(linear, along, NOISE, iterations=600, weight=weight, regularisation=rho, optimizer=DESCENT)
    a = MATRIX.T @ TOWARDS
    length = np.linalg.norm(a)
    # w a = rho (1 - (d - 1) / |z|^2) z.
    s = (weight * length + np.sqrt((weight * length) ** 2 + 4 * rho**2 * (D - 1))) / (2 * rho)
    # A reward that is the largest to rounding (1e-7 of it) may be off in direction by the root of that.
    np.testing.assert_allclose(out.noise, np.tile(s * a / length, (5, 1)), atol=5e-3)
    np.testing.assert_allclose(out.reward, s * length, rtol=1e-5)
    np.testing.assert_allclose(out.x, out.noise @ MATRIX.T, atol=1e-4)
    np.testing.assert_allclose(out.curves.radius[-1], s / np.sqrt(D), rtol=1e-4)


def test_an_optimiser_that_looks_at_the_loss_gets_that_of_each_sample():
    # A positive loss that never falls by a factor of 2 halves the rate at every step after the first; one below zero is always
    # below half of itself, and changes nothing.
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.5, cooldown=0)
    slope, rate = MATRIX.T @ TOWARDS, 1e-3
    optimizer = optax.chain(optax.sgd(rate), plateau)
    out = optimise_noise(linear, along, NOISE, iterations=4, weight=1.0, regularisation=0.0, optimizer=optimizer)
    rewards = NOISE @ slope
    assert rewards.min() < -0.2 < 0.2 < rewards.max()
    taken = np.where(rewards < 0, 1 + 0.5 + 0.25 + 0.125, 4.0)
    np.testing.assert_allclose(out.noise - NOISE, rate * taken[:, None] * slope, rtol=2e-3, atol=1e-6)


def test_a_quadratic_reward_without_regularisation_inverts_the_generator():
    goal = np.linspace(-1, 1, D, dtype=np.float32)
    reward = lambda x: -0.5 * jnp.sum((x - goal) ** 2, axis=1)
    # The slowest direction contracts by 1 - lr s^2 with the smallest singular value s.
    values = np.linalg.svd(MATRIX, compute_uv=False)
    rate = 1 / values.max() ** 2
    steps = int(np.ceil(np.log(1e-4) / np.log1p(-rate * values.min() ** 2)))
    out = optimise_noise(linear, reward, NOISE, iterations=steps, regularisation=0.0, optimizer=optax.sgd(rate))
    np.testing.assert_allclose(out.noise, np.tile(np.linalg.solve(MATRIX, goal), (5, 1)), atol=2e-3)


def test_the_best_iterate_is_kept_and_the_first_is_the_noise():
    # The default step is far too large for this parabola, so that the reward goes up and down.
    reward = lambda x: -jnp.sum((x - 0.3) ** 2, axis=1)
    out = optimise_noise(identity, reward, NOISE, iterations=30)
    curve = np.asarray(out.curves.reward)
    np.testing.assert_allclose(curve[0], -np.sum((NOISE - 0.3) ** 2, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(out.reward, curve.max(0))
    np.testing.assert_array_equal(out.iteration, curve.argmax(0))
    np.testing.assert_allclose(-np.sum((np.asarray(out.noise) - 0.3) ** 2, axis=1), out.reward, rtol=1e-5)
    assert np.any(out.iteration < 30)
    # Clipped to .1 for each sample, Nesterov's first update is the rate times (1 + .9) times that.
    first = optimise_noise(identity, reward, NOISE, iterations=1)
    moved = np.asarray(first.noise) - NOISE
    np.testing.assert_allclose(np.linalg.norm(moved[np.asarray(first.iteration) == 1], axis=1), 5 * 1.9 * 0.1, rtol=1e-4)


def test_a_sample_does_not_see_its_batch():
    cond, noise = np.arange(5.0), np.float64(NOISE)
    reward = lambda x, c: c * along(x) - 0.1 * jnp.sum(x**2, axis=1)
    options = dict(iterations=20, with_cond=True)
    with jax.enable_x64(True):
        together = optimise_noise(linear, reward, noise, cond=cond, **options)
        alone = optimise_noise(linear, reward, noise[2:3], cond=cond[2:3], **options)
        # A product of another shape is summed in another order, and 20 large steps amplify the rounding: to some 1e-12 of the
        # largest coordinate here (1e-5 in float32). Another sample would be seen in full.
        for one, other in ((together.noise[2], alone.noise[0]), (together.curves.reward[:, 2], alone.curves.reward[:, 0])):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-9 * np.max(np.abs(other)))


@pytest.mark.parametrize("shape", [(2,), (3, 5, 1), (28, 28, 3)])
def test_how_likely_the_norm_is(shape):
    d = int(np.prod(shape))
    noise = np.random.default_rng(1).normal(size=(4, *shape)) * np.reshape([0.9, 0.99, 1.0, 1.02], (4, *[1] * len(shape)))
    noise = noise.astype(np.float32)
    curves = optimise_noise(identity, lambda x: jnp.zeros(len(x)), noise, iterations=1).curves
    square = np.sum(np.asarray(noise, np.float64).reshape(4, -1) ** 2, axis=1)
    law = stats.chi2(d)
    # The sum of 2352 squares in float32, and the incomplete gamma function near its steepest point.
    np.testing.assert_allclose(curves.p_value[0], 2 * np.minimum(law.cdf(square), law.sf(square)), rtol=5e-3, atol=1e-6)
    chi = stats.chi(d)
    relative = chi.logpdf(np.sqrt(square)) - chi.logpdf(np.sqrt(d - 1))
    np.testing.assert_allclose(curves.log_density[0], relative, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(curves.radius[0], np.sqrt(square / d), rtol=1e-5)


def test_it_beats_best_of_n_at_equal_calls_with_noise_of_a_likely_norm():
    d, calls = 16, 41
    noise = np.random.default_rng(2).normal(size=(64, d)).astype(np.float32)
    out = optimise_noise(identity, lambda x: x[:, 0], noise, iterations=calls - 1, regularisation=1.0, optimizer=optax.sgd(0.2))
    # The largest of N standard normal numbers has the mean of x N phi(x) Phi(x)^(N - 1).
    density = lambda x: x * calls * stats.norm.pdf(x) * stats.norm.cdf(x) ** (calls - 1)
    best_of_n = integrate.quad(density, -10, 10)[0]
    assert best_of_n == pytest.approx(2.17, abs=0.02)
    # The optimum is s = (1 + sqrt(1 + 4 (d - 1))) / 2 = 4.4 in the first coordinate, inside the law of the norm.
    assert np.all(out.reward > 1.5 * best_of_n)
    assert np.all(out.curves.p_value[-1] > 0.2)


def test_what_is_not_finite_is_reported_with_its_iteration():
    broken = lambda x: jnp.where(x[:, 0] > 2.5, jnp.nan, x[:, 0])
    options = dict(iterations=10, regularisation=0.0, optimizer=optax.sgd(1.0))
    start = np.array([[0.0, 1.0], [-1.0, 1.0], [0.0, 1.0]], np.float32)
    with pytest.raises(FloatingPointError, match=r"3 of 3 .* iteration 3 of 10"):
        optimise_noise(identity, broken, start, **options)
    out = optimise_noise(identity, broken, start, check_finite=False, **options)
    np.testing.assert_allclose(out.reward, 2.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(noise=NOISE[0]), ValueError, "noise is float32 of shape"),
        (dict(noise=jnp.zeros((2, 3), int)), ValueError, "noise is int32"),
        (dict(iterations=0), ValueError, "iterations = 0"),
        (dict(weight=-1.0), ValueError, "weight = -1"),
        (dict(regularisation=float("nan")), ValueError, "regularisation = nan"),
        (dict(optimizer=5.0), TypeError, "optimizer = 5.0"),
        (dict(reward=3), TypeError, "reward = 3"),
        (dict(reward=lambda x: x), ValueError, "reward returned shape"),
        (dict(cond=jnp.zeros(4)), ValueError, "cond has a leaf of shape"),
    ],
)
def test_errors(change, error, message):
    arguments = dict(generator=identity, reward=along, noise=NOISE) | change
    with pytest.raises(error, match=message):
        optimise_noise(arguments.pop("generator"), arguments.pop("reward"), arguments.pop("noise"), **arguments)
