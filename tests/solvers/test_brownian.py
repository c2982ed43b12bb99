"""Noise along a Brownian path: what one grid draws, what several grids have in common, and what converges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import scorelab as sl
from scorelab.models import FunctionModel
from scorelab.randomness import PathKeys, per_example_keys
from scorelab.solvers.brownian import increments
from scorelab.walk import working_precision

from ..stepping import last_states

EDM = sl.processes.Gaussian(schedule=sl.schedules.EDM(sigma_min=0.01, sigma_max=20.0))
VP = sl.processes.Gaussian(schedule=sl.schedules.VPLinear())
FLOW = sl.processes.Gaussian(schedule=sl.schedules.RectifiedFlow())
GBM = sl.processes.GeometricBrownianMotion(sigma=1.0, mu=0.5)
GAUSSIAN = sl.densities.Gaussian(np.array([0.5, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]]))
MIXTURE = sl.densities.GaussianMixture(
    [0.4, 0.6], np.array([[-1.0, 0.5], [1.2, 0.0]]), np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]])
)
ANCESTRAL = sl.solvers.DDIM(eta=1.0)
PATH = sl.solvers.Brownian(solver=ANCESTRAL)
KEY = jax.random.key(7)


def weights(log_snr, exponent):
    """The steps as rows of weights of the same independent normal numbers, as a dictionary for each."""
    found = increments(np.asarray(log_snr, np.float64), exponent)
    return [dict(zip(node[:count], weight[:count], strict=True)) for node, weight, count in zip(*found, strict=True)]


@pytest.mark.parametrize("exponent", [0.25, 1.0, 10.0])
@pytest.mark.parametrize(
    ("process", "grid"),
    [
        (EDM, sl.grids.Karras(40)), (FLOW, sl.grids.Uniform(50)), (VP, sl.grids.Uniform(1000)),
        (sl.processes.Gaussian(schedule=sl.schedules.VE()), sl.grids.Uniform(100)),
    ],
    ids=["EDM", "flow from alpha = 0", "VP", "VE to -inf"],
)  # fmt: skip
def test_the_increments_of_a_grid_are_independent_and_standard_normal(process, grid, exponent):
    # They are linear in independent standard normal numbers, so that this is the whole law.
    rows = weights(process.log_snr(grid.times(process)), exponent)
    column = {node: j for j, node in enumerate(sorted({node for row in rows for node in row}))}
    matrix = np.zeros((len(rows), len(column)))
    for i, row in enumerate(rows):
        matrix[i, [column[node] for node in row]] = list(row.values())
    # Rounding of float64 times the condition of neighbouring clocks, 1000 to the step at the most.
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(rows)), atol=1e-12)


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_a_coarse_increment_is_the_sum_of_the_fine_ones(exponent):
    fine = np.linspace(-6.0, 9.0, 41)
    some = np.array([0, 1, 7, 8, 20, 40])
    clock = np.exp(exponent * fine)
    parts = weights(fine, exponent)
    for low, high, whole in zip(some[:-1], some[1:], weights(fine[some], exponent), strict=True):
        total: dict = {}
        for i in range(low, high):
            for node, weight in parts[i].items():
                total[node] = total.get(node, 0.0) + weight * np.sqrt(clock[i + 1] - clock[i])
        scale = np.sqrt(clock[high] - clock[low])
        assert all(total[node] / scale == pytest.approx(whole.get(node, 0.0), abs=1e-12) for node in total)
        assert whole.keys() <= total.keys()


@functools.partial(jax.jit, static_argnums=2)
def increments_of(rows, keys, shape):
    return jax.lax.map(lambda row: PATH.drawn(keys, jnp.zeros(shape), row), rows)


def drawn(solver, process, times, n, shape=(2,), key=KEY):
    """The increments of every step, ``(steps, n, *shape)``."""
    rows = working_precision(sl.solvers.Brownian(solver=solver).table(process, times))
    first = np.searchsorted(rows.step, np.arange(len(times) - 1))
    rows = jax.tree.map(lambda column: column[first], rows._replace(inner=None))
    keys = per_example_keys(key, np.arange(n))
    return np.asarray(increments_of(rows, PathKeys(keys, keys), (n, *shape)))


def test_what_is_drawn_has_that_law():
    n = 4_000
    z = drawn(ANCESTRAL, EDM, sl.grids.Karras(12).times(EDM), n, (3,)).reshape(12, n * 3).astype(np.float64)
    # Sixty-six correlations, twelve means and variances: five standard errors.
    np.testing.assert_allclose(np.corrcoef(z), np.eye(12), atol=5 / np.sqrt(n * 3))
    np.testing.assert_allclose(z.mean(1), 0, atol=5 / np.sqrt(n * 3))
    np.testing.assert_allclose(z.var(1), 1, atol=5 * np.sqrt(2 / (n * 3)))
    # Kolmogorov-Smirnov at 1e-3 for all rows together.
    assert min(stats.kstest(row, "norm").pvalue for row in z) > 1e-3 / 12
    # Elements of an event and samples are independent too.
    np.testing.assert_allclose(np.corrcoef(z.reshape(12, n, 3)[5].T), np.eye(3), atol=5 / np.sqrt(n))
    assert abs(np.corrcoef(z[5][:-3], z[5][3:])[0, 1]) < 5 / np.sqrt(n * 3)


STEPS = (8, 16, 32, 64, 128, 256)
KARRAS = sl.grids.Karras
IN_RANGE = functools.partial(sl.grids.LogSNR, t_max=0.8, t_min=0.05, clean=False)
UNIFORM = functools.partial(sl.grids.Uniform, t_max=0.9, t_min=0.05, clean=False)
NORMAL = sl.densities.Gaussian(np.zeros(2), 0.3)


def slope(solver, process, law, grid, own=False, n=400):
    """The exponent of N in the mean distance between the ends of the paths at N and at 2N steps, from 16 steps on."""
    times = [grid(steps).times(process) for steps in STEPS]
    start = np.random.default_rng(0).normal(size=(n, 2))
    y = np.stack([process.sigma(t[0]) * start + process.offset(t[0]) for t in times])
    noise = lambda t: np.random.default_rng(len(t)).normal(size=(len(t) - 1, n, 2)) if own else drawn(solver, process, t, n)
    with jax.enable_x64(True):
        ends = last_states(solver, process, sl.models.ExactModel(law, process), times, y, [noise(t) for t in times])
    distance = np.mean(np.abs(np.diff(ends, axis=0)), axis=(1, 2))
    return np.polyfit(np.log2(STEPS[1:-1]), np.log2(distance[1:]), 1)[0]


@pytest.mark.parametrize(
    ("solver", "process", "law", "grid", "order"),
    [
        (ANCESTRAL, EDM, GAUSSIAN, KARRAS, 1),
        (sl.solvers.DPMSolverPP(order=2, eta=1.0), EDM, MIXTURE, KARRAS, 1),
        (sl.solvers.EulerMaruyama(), VP, MIXTURE, IN_RANGE, 1),
        (sl.solvers.Milstein(), GBM, NORMAL, UNIFORM, 1),
        (sl.solvers.EulerMaruyama(coords="ambient"), GBM, NORMAL, UNIFORM, 0.5),
        pytest.param(sl.solvers.DDIM(eta=0.5), EDM, MIXTURE, KARRAS, 1, marks=pytest.mark.long),
        pytest.param(sl.solvers.DPMSolverPP(order=1, eta=0.5), EDM, GAUSSIAN, KARRAS, 1, marks=pytest.mark.long),
        pytest.param(sl.solvers.Heun(churn=4.0), EDM, MIXTURE, KARRAS, 1, marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_paths_converge_at_the_strong_order(solver, process, law, grid, order):
    # Four octaves of 400 paths; the slopes between neighbours scatter by .15, and at 16 steps are not yet those of the limit.
    assert -slope(solver, process, law, grid) == pytest.approx(order, abs=0.2)


def test_with_noise_of_its_own_for_each_row_nothing_converges():
    assert slope(sl.solvers.DPMSolverPP(order=2, eta=1.0), EDM, MIXTURE, KARRAS, own=True) == pytest.approx(0, abs=0.1)


def ends(solver, steps, n=64, **options):
    return np.asarray(
        sl.sample(sl.models.ExactModel(MIXTURE, EDM), solver=solver, grid=KARRAS(steps), key=KEY, shape=(n, 2), **options).x
    )


def test_twenty_and_forty_steps_give_the_same_sample():
    other = np.abs(ends(ANCESTRAL, 40) - ends(ANCESTRAL, 20))
    same = np.abs(ends(PATH, 40) - ends(PATH, 20))
    assert np.median(same) < 0.1 < 0.5 < np.median(other)


def test_a_path_depends_on_key_and_id_alone():
    whole, some = ends(PATH, 20, chunk=16), np.array([40, 2, 17])
    np.testing.assert_array_equal(ends(PATH, 20, n=3, ids=some, chunk=16), whole[some])
    np.testing.assert_array_equal(ends(PATH, 20, n=7, chunk=16), whole[:7])


def all_from_the_first(key, log_weights):
    return jnp.zeros(len(log_weights), jnp.int32)


class Silent(sl.solvers.DDIM):
    """A solver that asks in its own way: of the origin alone."""

    def ask(self, model, keys, y, row, cond):
        return super().ask(FunctionModel(lambda y, t, cond: jnp.zeros_like(y), model.process), keys, y, row, cond)


def test_a_solver_inside_asks_as_it_does_alone():
    run = dict(grid=sl.grids.Karras(4), key=KEY, shape=(3, 2))
    origin = FunctionModel(lambda y, t, cond: jnp.zeros_like(y), EDM)
    silent = sl.sample(sl.models.ExactModel(GAUSSIAN, EDM), solver=sl.solvers.Brownian(solver=Silent(eta=1.0)), **run)
    np.testing.assert_array_equal(silent.x, sl.sample(origin, solver=PATH, **run).x)


def test_copies_of_a_particle_get_noise_of_their_own():
    n, steps = 4_000, 6
    # Weights that differ, so that there is resampling at every time.
    potential = sl.fk.Difference(reward=lambda x: x[:, 0])
    solver = sl.fk.FeynmanKac(base=PATH, potential=potential, resampler=all_from_the_first, policy=sl.fk.Always())
    model = sl.models.ExactModel(GAUSSIAN, EDM)
    path = sl.sample(model, solver=solver, grid=KARRAS(steps), key=KEY, shape=(n, 2), keep="all").trajectory
    deviation = ANCESTRAL.table(EDM, KARRAS(steps).times(EDM)).n[:-1]
    # All come from one ancestor, so that their spread after a step is its noise; in float32, which sums in another order.
    z = np.asarray(path[1:-1] - np.mean(path[1:-1], axis=1, keepdims=True), np.float64) / deviation[:, None, None]
    z = z.reshape(steps - 1, -1)
    assert min(stats.kstest(row, "norm").pvalue for row in z) > 1e-3 / (steps - 1)
    np.testing.assert_allclose(np.corrcoef(z), np.eye(steps - 1), atol=5 / np.sqrt(2 * n))


def test_a_guided_proposal_is_weighed_by_the_noise_of_the_path():
    n = 20_000
    model = sl.models.RewardGradient(model=sl.models.ExactModel(GAUSSIAN, EDM), reward=lambda x: x[:, 0], scale=1.0)
    solver = sl.fk.FeynmanKac(base=PATH, policy=sl.fk.Never())
    out = sl.sample(model, solver=solver, grid=KARRAS(20), key=KEY, shape=(n, 2))
    w = np.exp(np.asarray(out.log_weights, np.float64))
    x = np.asarray(out.x[:, 0], np.float64)
    # The proposal has a mean above by the variance, .5; the weights take it back. Five standard errors of weighted means.
    assert x.mean() - 0.5 == pytest.approx(0.5, abs=0.1)
    error = 5 * np.sqrt(np.mean(w**2 * (x - 0.5) ** 2) / n)
    assert error < 0.1
    assert np.sum(w * x) / np.sum(w) == pytest.approx(0.5, abs=error)


def test_parts_of_a_joint_walk_have_paths_of_their_own():
    process = sl.processes.Joint(a=EDM, b=EDM)

    def fn(y, t, cond=None):
        parts = {name: EDM.predict(y[name], t[name], denoised=0 * y[name]) for name in y}
        return sl.processes.JointPrediction(parts=parts, t=t, process=process)

    model = sl.models.FunctionModel(fn, process, returns="prediction")
    arguments = dict(key=KEY, shape={"a": (200, 2), "b": (200, 2)}, grid=sl.grids.Explicit((20.0, 1.0)))
    both = sl.sample(model, solver=sl.solvers.Joint(a=PATH, b=PATH), **arguments).x
    mixed = sl.sample(model, solver=sl.solvers.Joint(a=PATH, b=ANCESTRAL), **arguments).x
    np.testing.assert_array_equal(both["a"], mixed["a"])
    assert abs(np.corrcoef(np.ravel(both["a"]), np.ravel(both["b"]))[0, 1]) < 5 / np.sqrt(400)


@pytest.mark.parametrize(
    ("solver", "says"),
    [
        (sl.solvers.DDIM(), "stochastic = False"),
        (sl.solvers.Renoise(), "order = 0"),
        (sl.solvers.PredictorCorrector(), "order = 0"),
        (sl.fk.FeynmanKac(), "FeynmanKac.base"),
        (PATH, "expected a solver of independent samples"),
    ],
)
def test_what_has_no_limit_is_refused(solver, says):
    with pytest.raises(ValueError, match=says):
        sl.solvers.Brownian(solver=solver)


def test_a_path_inside_another_solver_is_refused():
    with pytest.raises(ValueError, match=r"PredictorCorrector.predictor = Brownian"):
        sl.solvers.PredictorCorrector(predictor=PATH)


def test_times_that_are_too_close_are_refused():
    with pytest.raises(ValueError, match=r"two times of the grid at log-SNR .* further apart"):
        PATH.table(EDM, np.array([1.0, 1.0 - 1e-7, 0.5]))
