"""The jump of an interpolant from a Gaussian base: the flow of Gaussians in closed form, against its differential equation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import sqrtm

from scorelab import data, densities, grids, models, processes, sample, solvers, starts
from scorelab.processes import gammas, paths
from scorelab.randomness import per_example_keys

# Jumps to low noise are what is compared here.
pytestmark = [
    pytest.mark.usefixtures("quick_compilation"), pytest.mark.filterwarnings("ignore:Teleport jumps to the noise ratio"),
]  # fmt: skip

MEAN, P = np.array([0.5, -1.0]), np.array([[0.8, 0.3], [0.3, 0.4]])
BASE_MEAN, Q = np.array([-1.0, 1.0]), np.array([[1.0, -0.4], [-0.4, 1.2]])
KEY = jax.random.key(2)
# Isotropic; with the directions of P; with others.
BASES = {"isotropic": 1.3, "commuting": 0.3 * P @ P + 0.6 * np.eye(2), "turned": Q}


def process(cov, gamma=None, path=None):
    base = densities.Gaussian(BASE_MEAN, cov)
    return processes.StochasticInterpolant(path=path or paths.Linear(), gamma=gamma or gammas.Brownian(), base=base)


def law():
    return densities.Gaussian(MEAN, P)


def flowed(under, y, t):
    """The flow of the exact model from t = 1, by an integrator at 1e-10, in float64."""
    model = models.ExactModel(law(), under)
    velocity = jax.jit(lambda y, t: model(y, t).velocity)
    rate = lambda t, flat: np.asarray(velocity(jnp.asarray(flat.reshape(y.shape)), t)).ravel()
    return solve_ivp(rate, (1.0, t), y.ravel(), method="DOP853", rtol=1e-10, atol=1e-11).y[:, -1].reshape(y.shape)


@pytest.mark.parametrize("cov", BASES)
@pytest.mark.parametrize("form", [(paths.Linear(), gammas.Brownian()), (paths.Trigonometric(), gammas.Quadratic())], ids=repr)
def test_the_jump_is_the_flow(cov, form):
    with jax.enable_x64(True):
        under, t = process(BASES[cov], path=form[0], gamma=form[1]), 0.3
        start, times = starts.Teleport(law(), skip_steps=1).on_grid(under, np.array([1.0, t, 0.0]))
        assert times[0] == t
        ids = jnp.arange(5)
        keys = per_example_keys(KEY, ids)
        begun, landed = (of.draw(keys, ids, under, jnp.asarray(at), (2,)) for of, at in ((starts.Prior(), 1.0), (start, t)))
        np.testing.assert_allclose(landed, flowed(under, np.asarray(begun), t), atol=1e-6)
        # The law where it lands is that of the interpolant.
        exact = models.ExactModel(law(), under).log_prob(landed, t)
        np.testing.assert_allclose(start.log_prob(landed, under, jnp.asarray(t)), exact, atol=1e-6)


@pytest.mark.parametrize(("gamma", "error"), [(gammas.Zero(), 0.0348), (gammas.Brownian(), 0.0159)])
def test_roots_are_not_the_flow_of_covariances_that_do_not_commute(gamma, error):
    """Why the map is integrated: the product of roots, from data to base, is off by hundredths, though its law is right."""
    with jax.enable_x64(True):
        under = process(Q, gamma=gamma)
        start, _ = starts.Teleport(law(), skip_steps=1).on_grid(under, np.array([1.0, 1e-9, 0.0]))
        back = np.linalg.inv(np.asarray(start.matrix))
    np.testing.assert_allclose(back @ P @ back.T, Q, atol=1e-7)
    roots = sqrtm(Q) @ np.linalg.inv(sqrtm(P))
    np.testing.assert_allclose(roots @ P @ roots.T, Q, atol=1e-12)
    # Three digits of an independent computation.
    assert np.abs(back - roots).max() == pytest.approx(error, abs=5e-5)


MODES = densities.GaussianMixture([0.4, 0.6], np.array([[-1.0], [1.0]]), 0.09)


@pytest.mark.parametrize(("ratio", "least", "most"), [(3.0, 1e-4, 1e-2), (10.0, 1e-7, 3e-4)])
def test_the_error_of_a_jump_falls_with_the_noise_it_lands_in(ratio, least, most):
    """Of a bimodal law, against its flow: in deviations of the noised law, of order (std / noise)^3 as the skewness is."""
    with jax.enable_x64(True):
        under = processes.StochasticInterpolant(gamma=gammas.Zero(), base=densities.Gaussian(np.array([0.3]), 1.0))
        matched, model = MODES.matched(), models.ExactModel(MODES, under)
        spread = float(matched.covariance()[0, 0]) ** 0.5
        # The noise ratio t / (1 - t).
        t = ratio * spread / (1 + ratio * spread)
        start, _ = starts.Teleport(matched, skip_steps=1).on_grid(under, np.array([1.0, t, 0.0]))
        ids = jnp.arange(400)
        keys = per_example_keys(KEY, ids)
        landed = np.asarray(start.draw(keys, ids, under, jnp.asarray(t), (1,)))
        begun = np.asarray(starts.Prior().draw(keys, ids, under, jnp.asarray(1.0), (1,)))
        velocity = jax.jit(lambda y, t: model(y, t).velocity)
        rate = lambda t, flat: np.asarray(velocity(jnp.asarray(flat[:, None]), t))[:, 0]
        exact = solve_ivp(rate, (1.0, t), begun[:, 0], rtol=1e-9, atol=1e-10).y[:, -1]
    error = np.sqrt(np.mean((landed[:, 0] - exact) ** 2)) / np.hypot((1 - t) * spread, t)
    assert least < error < most


def test_auto_jumps_to_three_deviations_of_the_data_and_the_walk_goes_on_from_there():
    under = processes.StochasticInterpolant(base=densities.Gaussian(np.zeros(1), 1.0))
    model, law, grid = models.ExactModel(MODES, under), MODES.matched(), grids.Uniform(200)
    options = dict(solver=solvers.InterpolantODE(), grid=grid, key=KEY, shape=(64, 1))
    out, plain = sample(model, start=starts.Teleport(law), **options), sample(model, **options)
    c = under.coefficients(np.float64(out.times[0]))
    ratio, spread = np.hypot(c.beta, c.gamma) / c.alpha, float(law.covariance()[0, 0]) ** 0.5
    # The last grid time at or above it: a step of 1/200 changes the ratio by a fiftieth there.
    assert 3 * spread <= ratio < 3 * spread * 1.03
    assert len(out.times) < len(plain.times) - 30
    # The jump is wrong by less than a hundredth of a deviation where it lands, and the flow doubles that at most but at the divide.
    gap = np.abs(np.asarray(out.x) - np.asarray(plain.x))[:, 0]
    assert np.quantile(gap, 0.9) < 0.03


def test_every_class_jumps_along_its_own_law():
    under = process(1.3)
    classes = densities.GaussianMixture.of([0.5, 0.5], [law(), densities.Gaussian(-MEAN, P)])
    label, ids, times = np.array([0, 1, 1, 0], np.int32), jnp.arange(4), np.array([1.0, 0.8, 0.0])
    keys, t = per_example_keys(KEY, ids), jnp.float32(0.8)
    draw = lambda start: np.asarray(start.on_grid(under, times)[0].draw(keys, ids, under, t, (2,)))
    both = draw(starts.Teleport(classes, skip_steps=1, label=label))
    for k, mean in enumerate((MEAN, -MEAN)):
        alone = draw(starts.Teleport(densities.Gaussian(mean, P), skip_steps=1))
        np.testing.assert_allclose(both[label == k], alone[label == k], rtol=1e-5, atol=1e-5)


TIMES = np.array([1.0, 0.8, 0.0])
UNDER = process(1.3)


@pytest.mark.parametrize(
    ("under", "options", "match"),
    [
        (dataclasses.replace(UNDER, base=MODES), {}, "interpolant from GaussianMixture: expected a Gaussian base"),
        (dataclasses.replace(UNDER, base=np.zeros((3, 2))), {}, "interpolant from ndarray: expected a Gaussian base"),
        (processes.StochasticInterpolant(path=paths.Mirror()), {}, "interpolant from the data: expected a Gaussian base"),
        (dataclasses.replace(UNDER, coupling=data.Paired()), {}, r"coupling Paired.*: expected data and base that are independent"),
        (process(0.0), {}, "a base with the variance 0: expected variances above 0"),
        (process(Q), dict(law=MODES), "not isotropic.law = .*: expected a Gaussian"),
        (UNDER, dict(skip_steps=None, sigma_skip=-1.0), "Teleport.sigma_skip = -1.0"),
        (UNDER, dict(skip_steps=2), "Teleport.skip_steps = 2 on a grid of 2 steps"),
        (UNDER, dict(t_from=1.5), "Teleport.t_from = 1.5: expected 1.0"),
    ],
)
def test_what_has_no_jump_is_refused_by_name(under, options, match):
    with pytest.raises((TypeError, ValueError), match=match):
        starts.Teleport(**(dict(law=law(), skip_steps=1) | options)).on_grid(under, TIMES)
