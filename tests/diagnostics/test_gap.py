"""The gap between flow and SDE: closed forms of the Gaussian case, the bound by the residual, and samples."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from scorelab import densities, grids, metrics, models, processes, schedules, solvers
from scorelab.arrays import per_example
from scorelab.diagnostics import gaussian_gap, ode_sde_gap
from scorelab.losses import FokkerPlanck
from tests.precision import double

# dx = -x dt + sqrt(2) dw to T = 5. The table below is of dx = -x dt + dw and data of variance .1: deviations times sqrt(1/2).
OU = processes.Gaussian(schedule=schedules.VPLinear(beta_min=2.0, beta_max=2.0, t_max=5.0))
UNIT, DATA = np.sqrt(0.5), 0.2
GRID = grids.Uniform(40)


def variance(t):
    return DATA * jnp.exp(-2 * t) + 1 - jnp.exp(-2 * t)


def wrong_by(delta):
    """The precision of the exact score, times 1 + delta exp(-t)."""
    return lambda t: (1 + delta * jnp.exp(-t)) / variance(t)


# delta: the integral of the squared residual under the law of the data, W2 of SDE to ODE, of the SDE to data, of the ODE to data.
TABLE = {
    0.05: (0.117, 0.0117, 0.0128, 0.0244),
    0.1: (0.516, 0.0226, 0.0243, 0.0470),
    0.2: (2.49, 0.0424, 0.0445, 0.0869),
    -0.1: (0.333, 0.0255, 0.0297, 0.0552),
}


@pytest.mark.parametrize("delta", TABLE)
def test_the_table_of_gaussians(delta):
    found = gaussian_gap(OU, wrong_by(delta), grid=GRID, variance=DATA, start=float(variance(5.0)))
    # Half a unit of the last digit, and what the steps behind the table leave: 1e-5 (one digit) where there is no gap.
    for value, stated in zip((found.gap, found.sde, found.ode), TABLE[delta][1:], strict=True):
        assert value * UNIT == pytest.approx(stated, abs=6.5e-5)


@double
def test_the_integral_of_the_regulariser_is_that_of_the_squared_residual():
    """In units of time the residual of the score is the root of d R over 2 sigma^3 / g^2."""
    t = np.linspace(1e-6, 5, 20_001)
    for delta, (stated, *_) in TABLE.items():
        a = wrong_by(delta)
        model = models.FunctionModel(lambda y, t, cond, a=a: -per_example(a(t), y) * y, OU, returns="score")
        times = jnp.asarray(t)
        # One point with the mean square of the law.
        y = jnp.sqrt(variance(times))[:, None]
        points = processes.Noised(y=y, y0=y, noise=y, t=times)
        square = np.asarray(jax.jit(FokkerPlanck(form="score"))(model, points))
        pace = 2 * np.asarray(OU.sigma(t)) ** 3 / np.asarray(OU.schedule.diffusion_rate(t))
        # Deviations times sqrt(1/2) are scores times sqrt(2); one unit of the last digit.
        assert 2 * np.trapezoid(square / pace**2, t) == pytest.approx(stated, abs=10.0 ** (np.floor(np.log10(stated)) - 2))


@pytest.mark.parametrize("delta", [0.05, 0.3, -0.2])
def test_variances_and_gap_are_those_of_small_steps(delta):
    """Beside quadrature: Runge-Kutta steps of the two equations, and of the signed error between the laws, which is the gap."""
    found = gaussian_gap(OU, wrong_by(delta), grid=GRID, variance=DATA)
    n = 6000
    half_times = np.linspace(5.0, 0.0, 2 * n + 1)
    with jax.enable_x64(True):
        a = np.asarray(wrong_by(delta)(jnp.asarray(half_times)))
        slope = np.asarray(jax.vmap(jax.grad(wrong_by(delta)))(jnp.asarray(half_times)))
    c, h = slope - 2 * a + 2 * a**2, 5.0 / n

    def right(i, state):
        ode, sde, error, gap = state
        return np.array(
            [
                (2 - 2 * a[i]) * ode,
                (2 - 4 * a[i]) * sde + 2,
                (-1 - 1 / sde) * error - c[i] * np.sqrt(sde),
                # The distance between points that begin together: pushed apart by the error, and moved on by the flow.
                (1 - a[i]) * gap - error,
            ]
        )

    start = float(OU.sigma(5.0)) ** 2
    state = np.array([start, start, (a[0] - 1 / start) * np.sqrt(start), 0.0])
    for k in range(n):
        i = 2 * k
        one = right(i, state)
        two = right(i + 1, state + h / 2 * one)
        three = right(i + 1, state + h / 2 * two)
        state = state + h / 6 * (one + 2 * two + 2 * three + right(i + 2, state + h * three))
    assert found.ode_variance == pytest.approx(state[0], rel=1e-9)
    assert found.sde_variance == pytest.approx(state[1], rel=1e-9)
    # The theorem before anything is dropped from it: an identity here, since all signs are one.
    assert found.gap == pytest.approx(abs(state[3]), abs=1e-9)
    assert found.gap <= found.bound <= 2 * found.gap + 1e-5


def test_the_bound_is_zero_with_the_residual_and_above_the_gap_for_every_precision():
    exact = gaussian_gap(OU, wrong_by(0.0), grid=GRID, variance=DATA, start=float(variance(5.0)))
    # The start is rounded to float32.
    assert max(exact.gap, exact.bound, exact.ode, exact.sde, exact.residual) < 1e-6
    for process in (OU, processes.Gaussian(schedule=schedules.EDM()), processes.Gaussian(schedule=schedules.RectifiedFlow())):
        for rate in (0.5, 1.0, 1.5):
            a = lambda t, rate=rate, process=process: (
                (1 + 0.4 * jnp.exp(-(process.sigma(t) ** 2))) * rate / (process.alpha(t) ** 2 + process.sigma(t) ** 2)
            )
            found = gaussian_gap(process, a, grid=grids.Quadratic(200, t_max=0.99 * process.t_max))
            assert 0 < found.gap <= found.bound


def test_the_score_of_another_gaussian_has_no_gap_and_wrong_samples():
    other = lambda t: 1 / (2 * DATA * jnp.exp(-2 * t) + 1 - jnp.exp(-2 * t))
    found = gaussian_gap(OU, other, grid=GRID, variance=DATA)
    # The prior is not quite the law at T = 5, whose variance is off by exp(-10).
    assert found.residual < 1e-20
    assert found.gap < 2e-5
    assert found.ode_variance == pytest.approx(2 * DATA, rel=1e-4)
    assert found.sde == pytest.approx(np.sqrt(2 * DATA) - np.sqrt(DATA), rel=1e-4)


# The bound of the page, for a law that is not Gaussian --------------------------------------------------------------
def test_the_bound_holds_for_a_law_that_is_not_gaussian():
    """A mixture with a disturbed score under dz = dw over w in [0, 9]: its SDE by its equation on a grid, its flow by quantiles."""
    z = np.linspace(-18, 18, 1801)
    h, last, steps = z[1] - z[0], 9.0, 3000
    times = last * np.linspace(0, 1, steps + 1) ** 2
    means, spread = np.array([[-1.0], [1.0]]), 0.1

    def density(w):
        return np.exp(-((z - means) ** 2) / (2 * (spread + w))).sum(0) / np.sqrt(8 * np.pi * (spread + w))

    def score(w):
        powers = -((z - means) ** 2) / (2 * (spread + w))
        weights = np.exp(powers - powers.max(0))
        exact = -((z - means) * weights).sum(0) / (weights.sum(0) * (spread + w))
        return exact + 0.3 * np.exp(-w) * np.sin(2 * z) * np.exp(-((z / 4) ** 2))

    p = density(last)
    levels = (np.arange(2000) + 0.5) / 2000
    points = np.interp(levels, np.cumsum(p) * h, z)
    # At the first time both laws are the exact one, whose score is disturbed by exp(-9).
    apart, error = 0.0, None
    for k in range(steps, 0, -1):
        w, s = times[k], score(times[k])
        dw = times[k] - times[k - 1]
        residual = (score(w + 1e-5) - score(w - 1e-5)) / 2e-5 - np.gradient(0.5 * (np.gradient(s, h) + s**2), h)
        size = np.sqrt(np.sum(p * residual**2) * h)
        if error is None:
            error = np.sqrt(np.sum(p * (np.gradient(np.log(p), h) - s) ** 2) * h)
        # Largest slope of the velocity backwards, s / 2, where the laws are.
        growth = 0.5 * np.max(np.gradient(s, h)[np.abs(z) < 12])
        apart = apart * np.exp(growth * dw) + 0.5 * error * dw
        error += size * dw
        # Backwards: dp = -(s p)' + p'' / 2, implicitly, and points along s / 2.
        flux = np.zeros((3, len(z)))
        up, down = s[1:] / (2 * h) - 0.5 / h**2, -s[:-1] / (2 * h) - 0.5 / h**2
        flux[0, 1:], flux[1], flux[2, :-1] = dw * up, 1 + dw / h**2, dw * down
        p = linalg.solve_banded((1, 1), flux, p)
        points = points + dw * 0.5 * np.interp(points, z, s)
    assert np.sum(p) * h == pytest.approx(1.0, abs=1e-3)
    gap = np.sqrt(np.mean((np.interp(levels, np.cumsum(p) * h / (np.sum(p) * h), z) - points) ** 2))
    assert 0.01 < gap < apart


# Samples -------------------------------------------------------------------------------------------------------
def gaussian_model(a):
    return models.FunctionModel(lambda y, t, cond: -per_example(a(t), y) * y, OU, returns="score")


def test_samples_have_the_gap_of_the_closed_form():
    # To a little noise: a last step to clean data ends in the denoised mean, which has no share of the noise of an SDE.
    a, end = wrong_by(1.0), float(OU.sigma(OU.t_min)) ** 2 + float(OU.alpha(OU.t_min)) ** 2 * DATA
    closed = gaussian_gap(OU, a, grid=grids.Uniform(40, clean=False), variance=DATA)
    x = densities.Gaussian(np.zeros(1), end).sample(jax.random.key(1), 8000)
    grid = grids.LogSNR(100, clean=False)
    found = ode_sde_gap(gaussian_model(a), grid=grid, key=jax.random.key(0), shape=(2000, 1), data=x)
    for distance, stated in ((found.gap, closed.gap), (found.ode, closed.ode), (found.sde, closed.sde)):
        # Four standard errors, a hundredth for steps, and what the floor adds.
        assert abs(distance.value - stated) < 4 * distance.standard_error + 0.01 * stated + distance.floor**2 / (2 * stated)
        assert distance.value > 3 * distance.floor
    assert found.samples["ode"].shape == (4, 2000, 1)


def test_an_exact_score_is_at_the_floor_and_the_wrong_law_too():
    law = densities.GaussianMixture([0.5, 0.5], np.array([[1.0, 0.0], [-1.0, 0.3]]), np.array([0.1, 0.2]))
    wrong = densities.GaussianMixture([0.5, 0.5], np.array([[1.0, 0.0], [-1.0, 0.3]]), np.array([0.4, 0.5]))
    x = law.sample(jax.random.key(1), 4 * 500)
    options = dict(grid=grids.LogSNR(24), key=jax.random.key(0), shape=(500, 2), data=x)
    found = {name: ode_sde_gap(models.ExactModel(which, OU), **options) for name, which in (("right", law), ("wrong", wrong))}
    for one in found.values():
        # Distances of sets vary by a fifth.
        assert one.gap.value < one.gap.floor + 5 * one.gap.standard_error
    assert found["right"].ode.value < found["right"].ode.floor + 5 * found["right"].ode.standard_error
    assert found["wrong"].ode.above > 0.3
    assert found["wrong"].sde.above > 0.3


def test_a_metric_of_ones_own():
    law = densities.Gaussian(np.zeros(2), 0.5)
    options = dict(grid=grids.LogSNR(8), key=jax.random.key(0), shape=(50, 2), sets=3)
    means = ode_sde_gap(models.ExactModel(law, OU), **options, metric=lambda a, b: abs(a.mean() - b.mean()))
    x = means.samples
    expected = [abs(a.mean() - b.mean()) for a, b in zip(x["ode"], x["sde"], strict=True)]
    assert means.gap.value == pytest.approx(np.mean(expected), rel=1e-5)
    assert means.gap.standard_error == pytest.approx(np.std(expected, ddof=1) / np.sqrt(3), rel=1e-5)
    within = [abs(a.mean() - b.mean()) for parts in x.values() for a, b in itertools.pairwise(parts)]
    assert means.gap.floor == pytest.approx(np.sqrt(np.mean(np.square(within))), rel=1e-5)
    assert means.gap.above == pytest.approx(np.sqrt(max(means.gap.value**2 - means.gap.floor**2, 0)))
    assert means.ode is None
    sliced = ode_sde_gap(models.ExactModel(law, OU), **options, metric="sliced")
    assert 0 < sliced.gap.value < 1
    # Sets have noise of their own, and so have the two solvers.
    assert len({float(part[0, 0]) for parts in x.values() for part in parts}) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(data=np.zeros((100, 2))), "data has shape .100, 2.: expected .200 or more, 2., 4 sets of 50 points"),
        (dict(data=np.full((200, 2), np.nan)), "values that are not finite"),
        (dict(shape=5, data=np.zeros((200, 2))), "shape"),
        (dict(sets=1), "sets = 1: expected an integer >= 2"),
        (dict(metric="w2"), "metric = 'w2': expected one of 'exact', 'sliced'"),
        (dict(ode=solvers.DPMSolverPP(eta=1.0)), "ode = .*expected a solver without noise"),
        (dict(sde=solvers.Heun()), "sde = .*expected a solver with noise"),
        (dict(metric=lambda a, b: np.nan), "expected one finite number"),
        (dict(metric=lambda a, b: -1.0), "expected one finite number, at least 0"),
        (dict(grid=3), "grid = 3: expected a Grid"),
    ],
)
def test_errors_of_the_gap(change, message):
    options = dict(grid=grids.LogSNR(8), key=jax.random.key(0), shape=(50, 2)) | change
    with pytest.raises((TypeError, ValueError), match=message):
        ode_sde_gap(models.ExactModel(densities.Gaussian(np.zeros(2), 0.5), OU), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(precision=lambda t: 1.0), "returned shape"),
        (dict(precision=lambda t: jnp.log(t - 1)), "values or slopes that are not finite"),
        (dict(variance=-0.1), "variance = -0.1: expected a finite number above 0"),
        (dict(start=0.0), "start = 0.0"),
        (dict(process=3), "process = 3: expected a LinearGaussian"),
        (dict(nodes=3), "nodes = 3: expected an integer >= 4"),
        (dict(grid=grids.Uniform(1), precision=wrong_by(0.1)), "has 1 steps on which 12 nodes are too few"),
        (dict(precision=2.0), "precision = 2.0: expected a function"),
        (dict(process=processes.Gaussian(schedule=schedules.VE()), grid=grids.LogSNR(8)), "expected clean=False"),
    ],
)
def test_errors_of_the_closed_form(change, message):
    options = dict(process=OU, precision=lambda t: 1.0 + t, grid=GRID) | change
    with pytest.raises((TypeError, ValueError), match=message):
        gaussian_gap(options.pop("process"), options.pop("precision"), **options)


# The exact distance ----------------------------------------------------------------------------------------------
def test_the_exact_distance_is_that_of_sorted_points_on_a_line_and_of_a_shift():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 1)), 2 * rng.standard_normal((200, 1)) + 1
    for p in (1.0, 2.0, 3.0):
        assert metrics.wasserstein(x, y, p=p).value ** p == pytest.approx(metrics.wasserstein_1d(x, y, p)[0], rel=1e-12)
    z, v = rng.standard_normal((100, 3)), np.array([0.3, -0.4, 1.2])
    assert metrics.wasserstein(z, z[rng.permutation(100)] + v).value == pytest.approx(1.3, rel=1e-12)
    assert metrics.wasserstein(z, z).value == 0.0
    # In the plane, beside the line: no point of a square is better left to a crossing.
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert metrics.wasserstein(corners, corners[::-1] * [1.0, 3.0]).value == pytest.approx(np.sqrt(2.0))
    with pytest.raises(ValueError, match="x has 100 points and y 99: expected equally many"):
        metrics.wasserstein(z, z[:99])
