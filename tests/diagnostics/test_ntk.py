"""The kernel of a wide network against the network itself, and the flow of kernel regression against its equation and its ends."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import diagnostics, processes, schedules
from scorelab.densities import GaussianMixture
from tests.precision import double

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3))
Y = RNG.normal(size=(4, 3))


@double
@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_the_kernel_is_that_of_a_wide_network(bias):
    # One gradient at each point, of m = 40,000 units: a mean over units, whose errors are measured over ten networks.
    width, networks = 40_000, 10
    extend = lambda x: jnp.concatenate([jnp.asarray(x), jnp.full((len(x), 1), bias)], axis=1)

    def network(params, x):
        a, w = params
        return math.sqrt(2 / width) * jnp.maximum(x @ w.T, 0) @ a

    @jax.jit
    def empirical(key):
        keys = jax.random.split(key)
        params = jax.random.normal(keys[0], (width,)), jax.random.normal(keys[1], (width, 4))
        one, two = (jax.jacrev(network)(params, extend(x)) for x in (X, Y))
        return sum(jnp.tensordot(a.reshape(len(X), -1), b.reshape(len(Y), -1), (1, 1)) for a, b in zip(one, two, strict=True))

    found = np.stack([empirical(jax.random.key(seed)) for seed in range(networks)])
    error = found.std(axis=0, ddof=1) / math.sqrt(networks)
    # Student's t with 9 degrees of freedom: 24 numbers are all within 6 errors with probability 0.995.
    assert np.all(np.abs(found.mean(axis=0) - diagnostics.relu_ntk(X, Y, bias=bias)) < 6 * error)
    # The errors are small beside the kernel, so that this says something.
    assert np.abs(found.mean(axis=0) - diagnostics.relu_ntk(X, Y, bias=bias)).max() < 0.02 * np.abs(found).max()


def test_the_kernel_of_a_point_with_itself_and_with_its_opposite():
    # Without a bias: angle 0 gives 2 |x|^2, angle pi nothing, a right angle |x| |y| / pi.
    kernel = diagnostics.relu_ntk(X, bias=0.0)
    np.testing.assert_allclose(np.diag(kernel), 2 * np.sum(X**2, axis=1), rtol=1e-12)
    np.testing.assert_allclose(np.diag(diagnostics.relu_ntk(X, -X, bias=0.0)), 0, atol=1e-12)
    (right,) = diagnostics.relu_ntk(np.array([[2.0, 0.0]]), np.array([[0.0, 3.0]]), bias=0.0)
    np.testing.assert_allclose(right, 6 / np.pi, rtol=1e-12)
    np.testing.assert_allclose(kernel, kernel.T, rtol=0, atol=1e-12)
    assert np.linalg.eigvalsh(diagnostics.relu_ntk(RNG.normal(size=(40, 3)))).min() > 0
    images = X.reshape(6, 3, 1)
    np.testing.assert_array_equal(diagnostics.relu_ntk(images), diagnostics.relu_ntk(X))
    np.testing.assert_array_equal(diagnostics.relu_ntk(np.zeros((1, 2)), bias=0.0), 0)


def problem(n=30, out=2):
    x, at = RNG.normal(size=(n, 3)), RNG.normal(size=(7, 3))
    return diagnostics.relu_ntk(x), RNG.normal(size=(n, out)), diagnostics.relu_ntk(at, x)


def test_the_ends_of_the_flow():
    kernel, labels, at = problem()
    path = diagnostics.kernel_path(kernel, labels, at, [0.0, 1e-6, 1e13])
    np.testing.assert_array_equal(path.values[0], 0)
    np.testing.assert_allclose(path.train_mse[0], np.mean(labels**2), rtol=1e-12)
    # The first order in T: its next is by |K| T / n smaller, which is 1e-5 here.
    np.testing.assert_allclose(path.values[1], 1e-6 * at @ labels / len(labels), rtol=1e-3, atol=1e-12)
    # Interpolation: the kernel has a condition number of 1e4.
    np.testing.assert_allclose(path.fitted[2], labels, atol=1e-9)
    np.testing.assert_allclose(path.values[2], at @ np.linalg.solve(kernel, labels), atol=1e-8)
    assert path.train_mse[2] < 1e-18


def test_the_flow_is_the_limit_of_gradient_descent():
    # A direction shrinks as (1 - rate * value / n)^k, of which the flow is the limit; the error is of first order in the rate.
    kernel, labels, at = problem()
    n, time = len(labels), 5.0
    flow = diagnostics.kernel_path(kernel, labels, at, [time]).values[0]
    errors = []
    for steps in (2000, 4000):
        residual, coefficients = labels.copy(), np.zeros_like(labels)
        for _ in range(steps):
            coefficients += time / steps / n * residual
            residual = labels - kernel @ coefficients
        errors.append(np.abs(at @ coefficients - flow).max())
    assert errors[0] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)


def test_equal_points_share_their_labels():
    # A singular kernel: what is learned there is the mean of the two labels.
    x = np.array([[1.0], [1.0], [-2.0]])
    kernel = diagnostics.relu_ntk(x)
    path = diagnostics.kernel_path(kernel, np.array([1.0, 3.0, 5.0]), kernel, [1e12])
    np.testing.assert_allclose(path.values[0], [2, 2, 5], atol=1e-9)
    np.testing.assert_allclose(path.train_mse[0], 2 / 3, rtol=1e-9)


@double
def test_the_error_of_the_denoised_mean_is_that_of_the_score():
    process = processes.Gaussian(schedule=schedules.VPLinear())
    law = GaussianMixture([0.4, 0.6], [[-1.0], [0.8]], 0.09)
    t, key = 0.5, jax.random.key(0)
    a, s = float(process.alpha(t)), float(process.sigma(t))
    x0 = law.sample(key, 200)
    noised = process.noised(jax.random.normal(jax.random.key(1), x0.shape), x0, t)
    train, at, clean = np.asarray(noised.y[:50]), np.asarray(noised.y[50:]), np.asarray(x0[:50])
    kernel = diagnostics.relu_ntk(train)
    f = diagnostics.kernel_path(kernel, clean, diagnostics.relu_ntk(at, train), [3.0]).values[0]
    exact = np.asarray(law.denoise(process, at, t))
    score = np.asarray(process.predict(jnp.asarray(at), t, denoised=jnp.asarray(f)).score)
    true = np.asarray(law.noised(process, t).score(jnp.asarray(at)))
    # Tweedie's formula.
    np.testing.assert_allclose(true, (a * exact - at) / s**2, atol=1e-8)
    np.testing.assert_allclose((score - true) ** 2, a**2 / s**4 * (f - exact) ** 2, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k, y, a, t: (k[:3], y, a, t), r"kernel_path\.kernel has shape \(3, 30\): expected \(n, n\)"),
        (lambda k, y, a, t: (k, y[:3], a, t), r"kernel_path\.labels has shape \(3, 2\): expected a leading axis of 30"),
        (lambda k, y, a, t: (k, y, a[:, :3], t), r"kernel_path\.at has shape \(7, 3\): expected \(m, 30\)"),
        (lambda k, y, a, t: (k, y, a, [-1.0]), r"kernel_path\.times = \[-1\.0\]: expected at least one number, none below 0"),
        (lambda k, y, a, t: (k, y, a, []), r"kernel_path\.times = \[\]"),
        (lambda k, y, a, t: (k, y * np.nan, a, t), r"kernel_path\.labels has 60 values that are not finite"),
        (lambda k, y, a, t: (np.triu(k), y, a, t), "kernel is not symmetric"),
        (lambda k, y, a, t: (-k, y, a, t), "expected none below 0"),
    ],
)
def test_a_path_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.kernel_path(*change(*problem(), [1.0]))


def test_points_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"relu_ntk\.y has shape \(4, 2\) beside x of shape \(6, 3\)"):
        diagnostics.relu_ntk(X, Y[:, :2])
    with pytest.raises(ValueError, match=r"relu_ntk\.x has shape \(3,\): expected \(n, \*event\)"):
        diagnostics.relu_ntk(X[0])
    with pytest.raises(ValueError, match=r"relu_ntk\.bias = -1"):
        diagnostics.relu_ntk(X, bias=-1.0)
    with pytest.raises(ValueError, match=r"relu_ntk\.x has 1 values that are not finite"):
        diagnostics.relu_ntk(np.array([[np.inf, 0.0]]))
