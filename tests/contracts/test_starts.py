"""What every start promises: its draws have its density; a new one adds a row."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import scorelab as sl
from scorelab import densities, processes, schedules, starts
from scorelab.randomness import per_example_keys

VP = processes.Gaussian(schedule=schedules.VPLinear())
LOG = processes.GeometricBrownianMotion(sigma=1.5, mu=0.5)
LAW = densities.Gaussian(np.array([0.7]), 0.3)
MIXTURE = densities.GaussianMixture([0.6, 0.4], np.array([[-1.0], [2.0]]), 0.1)
T = 0.6
STARTS = {
    "prior": (starts.Prior(), VP),
    "prior, log chart": (starts.Prior(), LOG),
    "noised mixture": (starts.Noised(MIXTURE), VP),
    "moments": (starts.GaussianMoments(LAW), LOG),
    "log-normal": (starts.LogNormal(0.3, 0.8), LOG),
    "class average": (starts.ClassAverage(np.array([[-1.0], [1.5]], np.float32)), VP),
    "teleport": (starts.Teleport(LAW, skip_steps=0, t_from=1.0), VP),
    "tempered": (starts.Tempered(exponents=(2.0,), laws=(LAW,)), VP),
}


@pytest.mark.parametrize("name", STARTS)
def test_draws_have_the_density(name):
    start, process = STARTS[name]
    ids = jnp.arange(4000)
    t = jnp.float32(T)
    draw = jax.jit(lambda keys: start.draw(keys, ids, process, t, (1,)))
    y = np.asarray(draw(per_example_keys(jax.random.key(0), ids)), np.float64)[:, 0]
    grid = np.linspace(y.min() - 6, y.max() + 6, 4001)
    density = np.exp(np.asarray(start.log_prob(jnp.asarray(grid[:, None], jnp.float32), process, t), np.float64))
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid))])
    # The trapezoidal rule on 4000 cells, and float32.
    assert mass[-1] == pytest.approx(1.0, abs=1e-4)
    assert stats.kstest(y, lambda v: np.interp(v, grid, mass)).pvalue > 1e-3


@pytest.mark.parametrize("name", STARTS)
def test_a_draw_depends_on_its_id_alone(name):
    start, process = STARTS[name]
    t = jnp.float32(T)
    some = jnp.array([7, 2])
    keys = lambda ids: per_example_keys(jax.random.key(0), ids)
    whole = start.draw(keys(jnp.arange(9)), jnp.arange(9), process, t, (1,))
    np.testing.assert_allclose(start.draw(keys(some), some, process, t, (1,)), whole[some], rtol=1e-6)


def test_the_prior_is_what_sampling_begins_with():
    model = sl.models.ExactModel(densities.Gaussian(np.zeros(1), 0.01), VP)
    run = dict(solver=sl.solvers.DDIM(), grid=sl.grids.LogSNR(3), key=jax.random.key(0), shape=(5, 1), keep="all")
    plain = sl.sample(model, **run).trajectory
    np.testing.assert_array_equal(plain, sl.sample(model, start=starts.Prior(), **run).trajectory)
    np.testing.assert_array_equal(plain, sl.sample(model, start=VP.prior(), **run).trajectory)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (0.0, np.ones(3), r"LogNormal.std = array\(\[1., 1., 1.\]\): expected one finite number above 0"),
        (0.0, math.inf, "LogNormal.std = inf"),
        (0.0, 0.0, "LogNormal.std = 0.0"),
        (np.zeros(3), 1.0, "LogNormal.mean = .*expected one finite number"),
        (math.nan, 1.0, "LogNormal.mean = nan"),
    ],
)
def test_a_log_normal_start_is_one_law_for_all_elements(mean, std, message):
    with pytest.raises(ValueError, match=message):
        starts.LogNormal(mean, std).check(3, (3,), LOG)
