"""Exponentiated gradient: closed forms, signs under the roughest treatment, the step of multiplicative diffusion, real data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scorelab.data import load
from scorelab.densities import LogNormalMixture
from scorelab.processes import GeometricBrownianMotion
from scorelab.training import exponentiated_gradient


def descend(optimizer, params, gradients):
    """Parameters after one update for each gradient of the stack, compiled."""

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.jit(lambda p, g: jax.lax.scan(step, (p, optimizer.init(p)), g))(params, gradients)


@pytest.mark.parametrize(("dtype", "max_exponent"), [("float32", 10.0), ("float32", 80.0), ("bfloat16", 10.0), ("float16", 10.0)])
def test_no_gradient_changes_a_sign(dtype, max_exponent):
    rng = np.random.default_rng(0)
    steps, n = 800, 64
    w = jnp.asarray(rng.choice([-1, 1], n) * rng.lognormal(size=n), dtype)
    # Gradients of sizes 1e-3 to 1e4, then two hundred steps of one sign each way and infinite ones.
    gradients = rng.standard_normal((steps, n)) * 10.0 ** rng.uniform(-3, 4, (steps, 1))
    gradients[200:400] = 1e4
    gradients[400:600] = -1e4
    gradients[::100] = np.inf
    _, path = descend(exponentiated_gradient(1.0, max_exponent=max_exponent), w, jnp.asarray(gradients, dtype))
    path = np.asarray(path, np.float64)
    assert (np.sign(path) == np.sign(np.asarray(w, np.float64))).all()
    # The range the docstring states, to the rounding of a step that shrinks the most, and of the type.
    low, high = max(1e-30, float(jnp.finfo(dtype).tiny)), min(1e30, float(jnp.finfo(dtype).max) / 2)
    assert 0.5 * low < np.abs(path).min() < 2 * low
    assert 0.5 * high < np.abs(path).max() < 2 * high


def test_a_weight_comes_back_from_the_floor():
    gradients = jnp.concatenate([jnp.full(200, 9.0), jnp.full(200, -9.0)])
    _, path = descend(exponentiated_gradient(1.0), jnp.array([3.0, 1e-3]), gradients[:, None] * jnp.ones(2))
    # Each step shrinks by exp(-9) with the rounding of w, so the floor is met to a thousandth.
    np.testing.assert_allclose(path[100:200], 1e-30, rtol=2e-3)
    np.testing.assert_allclose(path[-1], 1e30, rtol=1e-5)


def test_constant_gradient_is_an_exponential():
    with jax.enable_x64(True):
        w, g = jnp.array([2.0, -0.5, 1e-3, -7.0]), jnp.array([0.3, 0.3, -1.0, -0.2])
        last, _ = descend(exponentiated_gradient(0.01), {"w": w}, {"w": jnp.broadcast_to(g, (500, 4))})
        # 500 updates, each rounded to 2^-53.
        np.testing.assert_allclose(last[0]["w"], w * jnp.exp(-0.01 * 500 * g * jnp.sign(w)), rtol=500 * 2.0**-52)
        assert last[1].count == 500


def test_it_is_the_noiseless_dale_langevin_step():
    """x exp(delta (sigma^2 h - mu + 3/2 sigma^2)): mu = sigma^2 / 2 leaves delta sigma^2 (h + 1), the score of log x."""
    process, t, delta = GeometricBrownianMotion(), 0.3, 1e-2
    with jax.enable_x64(True):
        law = LogNormalMixture([0.4, 0.6], [[0.3, -0.5], [-0.4, 0.8]], [[0.2, 0.1], [0.3, 0.4]])
        x = np.exp(np.random.default_rng(0).normal(size=(200, 2)))
        variance = float(process.schedule.diffusion_rate(np.float64(t)))
        mu = float(process.d_offset(np.float64(t))) + variance / 2
        assert mu == variance / 2 == pytest.approx(0.32)
        optimizer = exponentiated_gradient(delta * variance)

        @jax.jit
        def both(x):
            noised = law.noised(process, t)
            updates, _ = optimizer.update(-noised.logs.score(jnp.log(x)), optimizer.init(x), x)
            return optax.apply_updates(x, updates), noised.hyvarinen_score(x)

        found, score = both(x)
        expected = x * np.exp(delta * (variance * np.asarray(score) - mu + 1.5 * variance))
        np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_momentum_goes_before_it():
    g, decay, rate = 0.7, 0.9, 0.05
    optimizer = optax.chain(optax.trace(decay), exponentiated_gradient(rate))
    with jax.enable_x64(True):
        last, _ = descend(optimizer, jnp.array([1.0, -1.0]), jnp.full((30, 2), g))
        # The trace after k steps is g (1 - decay^k) / (1 - decay).
        total = rate * g * sum((1 - decay**k) / (1 - decay) for k in range(1, 31))
        np.testing.assert_allclose(last[0], [np.exp(-total), -np.exp(total)], rtol=1e-12)


def test_schedules_and_injected_rates():
    rates = jnp.array([0.1, 0.2, 0.4])
    scheduled = exponentiated_gradient(lambda count: rates[count])
    last, _ = descend(scheduled, jnp.ones(1), jnp.ones((3, 1)))
    np.testing.assert_allclose(last[0], np.exp(-0.7), rtol=1e-6)
    injected = optax.inject_hyperparams(exponentiated_gradient)(learning_rate=0.7)
    last, _ = descend(injected, jnp.ones(1), jnp.ones((1, 1)))
    np.testing.assert_allclose(last[0], np.exp(-0.7), rtol=1e-6)


def test_zero_stays_and_infinity_does_no_harm():
    _, path = descend(exponentiated_gradient(1.0), jnp.array([0.0, -0.0, 1.0]), jnp.full((3, 3), -jnp.inf))
    np.testing.assert_array_equal(path[:, :2], 0)
    np.testing.assert_allclose(path[:, 2], np.exp([10, 20, 30]), rtol=1e-5)


@pytest.mark.parametrize("rate", [0.0, -1.0, np.inf, np.nan, True, "0.1", None])
def test_errors_name_the_argument(rate):
    with pytest.raises(ValueError, match=r"exponentiated_gradient\.learning_rate = .*above 0"):
        exponentiated_gradient(rate)
    with pytest.raises(ValueError, match=r"exponentiated_gradient\.max_exponent = .*above 0"):
        exponentiated_gradient(0.1, max_exponent=rate)
    optimizer = exponentiated_gradient(0.1)
    with pytest.raises(ValueError, match=r"params = None: expected the parameters"):
        optimizer.update(jnp.ones(1), optimizer.init(jnp.ones(1)))


def test_a_network_with_fixed_signs_learns_the_digits():
    """Weights multiply, biases add: one hidden layer of fixed random signs, above 94 % on digits not seen."""
    train, test = load("digits"), load("digits", "test")

    def scaled(arrays):
        return jnp.asarray(arrays.x.reshape(len(arrays), -1) / 16, jnp.float32)

    def logits(params, x):
        hidden = jax.nn.relu(x @ params["w1"] + params["b1"])
        return hidden @ params["w2"] + params["b2"]

    def loss(params, x, label):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), label).mean()

    keys = jax.random.split(jax.random.key(0))
    first = {
        "w1": 0.2 * jax.random.rademacher(keys[0], (64, 64), jnp.float32), "b1": jnp.zeros(64),
        "w2": 0.2 * jax.random.rademacher(keys[1], (64, 10), jnp.float32), "b2": jnp.zeros(10),
    }  # fmt: skip
    optimizer = optax.partition(
        {"multiply": exponentiated_gradient(1.0), "add": optax.sgd(0.1)},
        lambda params: jax.tree.map(lambda p: "multiply" if p.ndim > 1 else "add", params),
    )
    x, label = scaled(train), jnp.asarray(train.label)

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (100,), 0, len(x))
        updates, state = optimizer.update(jax.grad(loss)(params, x[rows], label[rows]), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), 2000)
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, keys))((first, optimizer.init(first)))
    for name in ("w1", "w2"):
        np.testing.assert_array_equal(jnp.sign(params[name]), jnp.sign(first[name]))
    accuracy = float((logits(params, scaled(test)).argmax(-1) == test.label).mean())
    # Observation: 0.97; one standard error of 297 test images is 0.01.
    assert accuracy > 0.94
