"""The divergence of a field with a known Jacobian, in every form, and derivatives of what uses it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scorelab as sl
from scorelab import densities, divergence, models, processes, schedules

KEY = jax.random.key(0)
MATRIX = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(5, 2, 3)).astype(np.float32)


def field(y):
    """``sin(A y)``: its Jacobian has the diagonal ``cos(A y) diag(A)``."""
    flat = y.reshape(len(y), -1) @ MATRIX.T
    return jnp.sin(flat).reshape(y.shape)


EXACT = np.sum(np.cos(Y.reshape(5, -1) @ MATRIX.T) * np.diag(MATRIX), axis=1)


@pytest.mark.parametrize("reverse", [False, True])
def test_it_is_the_trace_of_the_jacobian(reverse):
    value, found = divergence.divergence(field, Y, reverse=reverse)
    np.testing.assert_allclose(value, field(Y), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, EXACT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_hutchinsons_estimate_is_unbiased(reverse):
    keys = jax.random.split(KEY, 5)
    probes = divergence.signs(keys, 4096, Y)
    each = jax.jit(jax.vmap(lambda v: divergence.divergence(field, Y, v[None], reverse=reverse)[1]))(probes)
    error = np.asarray(each).std(0) / np.sqrt(4096)
    np.testing.assert_array_less(np.abs(np.asarray(each).mean(0) - EXACT), 4.5 * error)


def test_probes_are_those_of_the_example():
    keys = jax.random.split(KEY, 5)
    np.testing.assert_array_equal(divergence.signs(keys[2:4], 3, Y[2:4]), divergence.signs(keys, 3, Y)[:, 2:4])
    with pytest.raises(ValueError, match="keys = None"):
        divergence.signs(None, 3, Y)


def test_more_elements_than_one_block():
    wide = np.random.default_rng(2).normal(size=(3, 37)).astype(np.float32)
    np.testing.assert_allclose(divergence.divergence(lambda y: y**3, wide)[1], np.sum(3 * wide**2, axis=1), rtol=1e-5)


EDM = processes.Gaussian(schedule=schedules.EDM(sigma_max=20.0))
X = np.random.default_rng(3).normal(size=(4, 2)).astype(np.float32)


def of_variance(variance, x):
    law = densities.Gaussian.diagonal(jnp.zeros(2), jnp.full(2, variance))
    return jnp.sum(sl.log_likelihood(models.ExactModel(law, EDM), x, rtol=1e-6, atol=1e-6).log_prob)


def test_the_likelihood_has_derivatives_of_both_modes():
    """Of N(0, v I): d/dx = -x / v, and d/dv = sum(x^2 / 2 v^2 - 1 / 2 v)."""
    variance = 0.7
    by_x = jax.grad(of_variance, argnums=1)(variance, jnp.asarray(X))
    # The flow ends at the prior of sigma 20, in the place of the noised law: an error of v / 400 of each.
    np.testing.assert_allclose(by_x, -X / variance, rtol=5e-3, atol=5e-3)
    by_v = jax.grad(of_variance)(variance, jnp.asarray(X))
    exact = np.sum(X**2 / (2 * variance**2) - 1 / (2 * variance))
    np.testing.assert_allclose(by_v, exact, rtol=1e-2, atol=2e-2)
    _, forward = jax.jvp(lambda v: of_variance(v, jnp.asarray(X)), (variance,), (1.0,))
    np.testing.assert_allclose(forward, by_v, rtol=1e-4, atol=1e-4)


def test_the_likelihood_of_a_network_can_be_trained_on():
    net = models.Denoiser(net=models.nets.MLP(width=8, depth=1, embed=8), process=EDM)
    params = net.init(KEY, (2,))
    loss = lambda params: jnp.mean(sl.log_likelihood(net.bind(params), X, rtol=1e-3, atol=1e-3, max_steps=64).log_prob)
    gradient = jax.grad(loss)(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    # Zero at initialisation is the output's layer alone: the direction of ascent goes up.
    norm = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient))
    assert norm > 0
    step = jax.tree.map(lambda p, g: p + 1e-3 / np.sqrt(norm) * g, params, gradient)
    assert float(loss(step) - loss(params)) == pytest.approx(1e-3 * np.sqrt(norm), rel=0.1)
