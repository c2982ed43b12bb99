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
FROM_MODES, FROM_NORMAL = (processes.StochasticInterpolant(base=law) for law in (MIXTURE, densities.Gaussian(np.array([0.4]), 0.8)))
STARTS = {
    "prior": (starts.Prior(), VP),
    "prior, log chart": (starts.Prior(), LOG),
    "noised mixture": (starts.Noised(MIXTURE), VP),
    "moments": (starts.GaussianMoments(LAW), LOG),
    "log-normal": (starts.LogNormal(0.3, 0.8), LOG),
    "class average": (starts.ClassAverage(np.array([[-1.0], [1.5]], np.float32)), VP),
    "teleport": (starts.Teleport(LAW, skip_steps=0, t_from=1.0), VP),
    "tempered": (starts.Tempered(exponents=(2.0,), laws=(LAW,)), VP),
    "tempered base": (sl.fk.annealed(sl.models.ExactModel(LAW, FROM_MODES), 2.0).start, FROM_MODES),
    "teleport of an interpolant": (starts.Teleport(LAW, skip_steps=0, t_from=1.0), FROM_NORMAL),
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


def test_noised_points_have_the_law_of_the_process_given_each():
    points, ids, t = np.array([[-1.0], [2.0]]), jnp.arange(4000) % 2, jnp.float32(T)
    for process in (VP, LOG):
        y = starts.NoisedPoints(points).draw(per_example_keys(jax.random.key(0), jnp.arange(4000)), ids, process, t, (1,))
        z = (y - process.alpha(T) * points[ids] - process.offset(T)) / process.sigma(T)
        assert stats.kstest(np.asarray(z, np.float64)[:, 0], "norm").pvalue > 1e-3
    with pytest.raises(ValueError, match=r"NoisedPoints.log_prob"):
        starts.NoisedPoints(points).log_prob(y, VP, T)


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


MODEL = sl.models.ExactModel(densities.Gaussian(np.zeros(2), 1.0), VP)
RUN = dict(solver=sl.solvers.DDIM(), grid=sl.grids.LogSNR(3), key=jax.random.key(0), shape=(8, 2))
CLASSES = densities.GaussianMixture([0.5, 0.5], np.zeros((2, 2)), 0.1)


@pytest.mark.parametrize(
    ("begin", "array", "message"),
    [
        (starts.Fixed, np.ones((4, 2)), "Fixed.points has 4 rows: .* at least 8"),
        (starts.Fixed, np.ones((8, 3)), r"Fixed.points has shape \(8, 3\)"),
        (starts.Fixed, np.ones(()), "Fixed.points has 0 rows"),
        (starts.NoisedPoints, np.ones((4, 2)), "NoisedPoints.points has 4 rows: .* at least 8"),
        (starts.ClassAverage, np.ones((3, 3)), r"ClassAverage.means has shape \(3, 3\)"),
        (lambda label: starts.ClassAverage(np.ones((3, 2)), label), np.zeros(4, int), "ClassAverage.label has 4 rows"),
        (lambda label: starts.Teleport(CLASSES, skip_steps=1, label=label), np.zeros(4, int), r"Teleport.label is int32 \(4,\)"),
        (lambda label: starts.Teleport(CLASSES, skip_steps=1, label=label), np.zeros(8), "Teleport.label is float32"),
        (lambda std: starts.LogNormal(0.0, std), np.ones(2), "LogNormal.std"),
    ],
)  # fmt: skip
def test_a_start_that_is_traced_is_held_to_its_shapes(begin, array, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda array: sl.sample(MODEL, start=begin(array), **RUN).x, array)


def test_what_a_traced_start_does_not_have_is_not_a_number():
    """Ids past the points, and labels that are no class: a clamped index would give those of another sample."""
    t, ids = jnp.float32(T), jnp.array([0, 1, 2, 9])
    label = jnp.array([0, 2, -1, 1])
    keys = per_example_keys(jax.random.key(0), ids)

    @jax.jit
    def draws(points, label):
        jump = starts.Teleport(CLASSES, skip_steps=0, t_from=1.0, label=label)
        found = starts.Fixed(points), starts.ClassAverage(jnp.zeros((2, 2)), label), jump
        return [start.draw(keys, ids, VP, t, (2,)) for start in found]

    fixed, average, jumped = draws(jnp.ones((3, 2)), label)
    np.testing.assert_array_equal(np.isnan(fixed).all(1), [False, False, False, True])
    for drawn in (average, jumped):
        np.testing.assert_array_equal(np.isnan(drawn).all(1), [False, True, True, True])


class Odd(starts.Prior):
    """A start whose points, or whose weights, have another shape than was asked for."""

    def __init__(self, points, weights):
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "weights", weights)

    def draw(self, keys, ids, process, t, event):
        return jax.tree.map(jnp.zeros, self.points, is_leaf=lambda leaf: isinstance(leaf, tuple) and isinstance(leaf[0], int))

    def log_weight(self, y, process, t, cond=None):
        return jnp.zeros(self.weights)


jax.tree_util.register_pytree_node(Odd, lambda odd: ((), (odd.points, odd.weights)), lambda aux, _: Odd(*aux))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (Odd((1, 2), (8,)), r"Odd.draw returned points of shape \(1, 2\): expected \(8, 2\)"),
        (Odd((8, 3), (8,)), r"Odd.draw returned points of shape \(8, 3\): expected \(8, 2\)"),
        (Odd(((8, 2), (8, 2)), (8,)), r"Odd.draw returned points of shape \(\(8, 2\), \(8, 2\)\)"),
        (Odd((8, 2), (8, 1)), r"Odd.log_weight returned shape \(8, 1\): expected \(8,\)"),
        (Odd((8, 2), ()), r"Odd.log_weight returned shape \(\): expected \(8,\)"),
    ],
)
def test_what_a_start_draws_is_held_to_the_shape_that_was_asked_for(start, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda key: sl.sample(MODEL, start=start, **RUN | dict(key=key)).x, RUN["key"])
