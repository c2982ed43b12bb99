"""Exact fields of data and base that are joined: plans between components, optimal transport, the Schroedinger bridge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import densities, grids, models, processes, sample, solvers
from scorelab.models.bridge import entropic_cross_covariance
from scorelab.processes import gammas
from scorelab.solvers import epsilons

from . import laws

KEY = jax.random.key(2)
Y = np.array([[0.3, -0.7]])
P, Q = np.array([[0.8, 0.3], [0.3, 0.4]]), np.array([[1.0, -0.4], [-0.4, 1.2]])
M, N = np.array([0.5, -1.0]), np.array([-1.0, 1.0])
PLAN = np.array([[0.3, 0.1, 0.0], [0.2, 0.2, 0.2]])


def bridge(std=0.0, scale=0.5):
    """In the precision of the moment."""
    base = densities.Gaussian(N, Q)
    process = processes.StochasticInterpolant(gamma=gammas.Brownian(scale=scale), base=base)
    return models.ExactBridge(models.Pieces.joined(densities.Gaussian(M, P), base, std=std), process)


def planned():
    process = processes.StochasticInterpolant(gamma=gammas.Brownian(scale=0.5), base=laws.base())
    return models.ExactBridge(models.Pieces.joined(laws.data(), laws.base(), plan=PLAN), process)


def test_numbers_of_an_independent_computation():
    """Ten digits of log p, D, W, the score and u, in float64."""
    with jax.enable_x64(True):
        found, late = (planned()(jnp.asarray(Y), t) for t in (0.25, 0.9))
        single = bridge()(jnp.asarray(Y), 0.25)
    close = lambda a, b: np.testing.assert_allclose(np.ravel(a), b, rtol=1e-9, atol=6e-11)
    close(found.log_prob, -2.8424252668)
    close(found.denoised, (0.9410124687, -0.8320076074))
    close(found.base, (-1.256722479, -0.3037883499))
    close(found.score, (1.953679611, 0.0010070823))
    close(found.velocity, (-2.319839924, 0.5281563148))
    close(late.log_prob, -4.0187800836)
    close(late.score, (-1.429491157, -0.8695556946))
    close(late.velocity, (-1.209779774, -1.052899635))
    close(single.log_prob, -1.5261316733)
    close(single.score, (-0.2853691237, 0.4339732091))
    close(single.velocity, (-1.35260268, 1.749438081))


def test_cross_covariances_are_those_of_transport():
    # In one dimension, of variances 1 and .3: Sinkhorn's iteration to eleven digits, by reference variance.
    for variance, value in ((2.0, 0.1401754), (0.5, 0.3520797)):
        found = entropic_cross_covariance(np.eye(1), 0.3 * np.eye(1), variance**0.5)
        np.testing.assert_allclose(found, [[value]], atol=5e-8)
    want = [[0.61025497, 0.02651889], [0.09281611, 0.39810387]]
    np.testing.assert_allclose(entropic_cross_covariance(P, Q, 0.5**0.5), want, atol=5e-9)
    # Optimal transport: S = P T with the symmetric map T that takes N(0, P) to N(0, Q).
    transport = np.linalg.solve(P, entropic_cross_covariance(P, Q))
    np.testing.assert_allclose(transport, [[1.30265313, -0.73061857], [-0.73061857, 2.0421719]], atol=5e-9)
    np.testing.assert_allclose(transport @ P @ transport, Q, atol=1e-12)


def test_the_velocity_carries_the_density():
    with jax.enable_x64(True):
        for model in (planned(), bridge(std=0.7)):
            y = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)))
            one = lambda f, model=model: lambda y, t: getattr(model(y[None], t), f)[0]
            for t in (0.1, 0.6):
                rate = jax.vmap(jax.grad(one("log_prob"), argnums=1), (0, None))(y, t)
                flow = jnp.trace(jax.vmap(jax.jacfwd(one("velocity")), (0, None))(y, t), axis1=1, axis2=2)
                found = model(y, t)
                np.testing.assert_allclose(rate + flow + jnp.sum(found.velocity * found.score, -1), 0.0, atol=1e-10)


def test_the_bridge_is_a_fixed_point_of_its_sde():
    r"""At :math:`\epsilon = \sigma^2/2` the SDE joins its ends as the plan does, so that iterated fitting stops."""
    std, n = 0.5**0.5, 20_000
    model = bridge(std=std, scale=std)
    solver = solvers.InterpolantSDE(epsilon=epsilons.Constant(std**2 / 2))
    out = sample(model, solver=solver, grid=grids.Arcsine(100), key=KEY, shape=(n, 2), keep="all")
    x, w = np.asarray(out.x, np.float64), np.asarray(out.trajectory[0], np.float64)
    found = (x - x.mean(0)).T @ (w - w.mean(0)) / n
    # Four standard errors of a product of two normal numbers, and the bias of two steps of the flow at the ends.
    np.testing.assert_allclose(found, entropic_cross_covariance(P, Q, std), atol=4 * np.sqrt(2 * 0.8 * 1.2 / n) + 5e-3)
    np.testing.assert_allclose(np.cov(x.T), P, atol=4 * np.sqrt(2 / n) * 0.8 + 5e-3)


def test_independent_pieces_are_those_of_the_exact_model():
    process = processes.StochasticInterpolant(base=laws.base())
    pieces = models.Pieces.joined(laws.data(), laws.base(), plan=np.outer(laws.WEIGHTS, laws.BASE_WEIGHTS))
    loose = models.ExactBridge(models.Pieces.independent(laws.data(), laws.base()), process)
    y = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2)), jnp.float32)
    exact = models.ExactModel(laws.data(), process)(y, 0.4)
    np.testing.assert_array_equal(loose(y, 0.4).velocity, exact.velocity)
    # Joined inside the pairs, the law in between is another one.
    assert np.abs(models.ExactBridge(pieces, process)(y, 0.4).log_prob - exact.log_prob).max() > 0.01


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: models.Pieces.joined(laws.data(), laws.base()), "expected weights of 2 x 3 pairs"),
        (lambda: models.Pieces.joined(laws.data(), laws.base(), plan=PLAN + 0.1), "whose sums are"),
        (lambda: models.Pieces.joined(densities.Gaussian(M, P), densities.Rings()), "base"),
        (lambda: models.Pieces.joined(densities.Gaussian(M, P), densities.Gaussian(N, Q), std=-1.0), "std"),
        (lambda: models.Pieces.joined(densities.Gaussian(M, 0.0), densities.Gaussian(N, Q)), "above 0"),
        (lambda: models.ExactBridge(bridge().pieces, laws.process("linear, Brownian")), "as the base of the process has"),
        (lambda: planned()(jnp.zeros((2, 3)), 0.5), "events of 2 elements"),
        (lambda: planned()(jnp.zeros((2, 2)), 1.5), "expected times from 0 to 1"),
    ],
)
def test_errors(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()
