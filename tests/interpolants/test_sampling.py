"""Solvers of interpolants: orders by exact recursions, marginals of mixtures, and where they begin and end."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import data, densities, fk, grids, invert, log_likelihood, metrics, models, processes, schedules, solvers, starts
from scorelab.processes import gammas
from scorelab.sampling import _walk as compiled
from scorelab.sampling import sample
from scorelab.solvers import epsilons

from . import laws

KEY = jax.random.key(3)
_GAUSSIAN = processes.Gaussian(schedule=schedules.VPLinear())
# One Gaussian to another in one dimension, where every step is linear in the point and in the noise.
DATA, BASE = (-1.0, 0.3), (0.3, 1.0)
SOLVERS = {
    solvers.InterpolantODE(): 2,
    solvers.InterpolantODE(rule="euler"): 1,
    solvers.InterpolantSDE(epsilon=epsilons.Proportional(4.0)): 2,
    solvers.InterpolantSDE(epsilon=epsilons.Proportional(4.0), rule="heun"): 2,
    solvers.InterpolantSDE(epsilon=epsilons.Proportional(4.0), rule="euler"): 1,
    solvers.InterpolantSDE(epsilon=epsilons.Constant(1.0)): 2,
}
STEPS = (64, 128, 256)


@functools.cache
def ends(solver):
    """The mean and the variance at the end, exactly: the affine map of the walk and its response to the noise of every row."""
    with jax.enable_x64(True):
        process = processes.StochasticInterpolant(base=densities.Gaussian(np.array([BASE[0]]), BASE[1]))
        model = models.ExactModel(densities.Gaussian(np.array([DATA[0]]), DATA[1]), process)
        times = [grids.Uniform(n).times(process) for n in STEPS]
        found = []
        for grid in times:
            rows = len(solver.table(process, grid).step)
            unit = np.eye(rows)
            # Example 0 has neither point nor noise, 1 a unit point, and example k + 2 the noise of row k before and after.
            y = np.concatenate([[0.0, 1.0], np.zeros(rows)])[:, None]
            noise = np.concatenate([np.zeros((2, rows)), unit]).T[:, :, None]
            found.append(_walk(solver, process, model, grid, y, noise)[:, 0])
    return [_moments(values) for values in found]


def _walk(solver, process, model, grid, y, noise):
    """The end; every row of the table draws its own noise, and each row of ours draws once (before or after)."""
    table = solver.table(process, grid)
    rows = jax.tree.map(lambda column: np.asarray(column, y.dtype), table)

    def one(state, scanned):
        row, drawn = scanned
        asked = solver.query(drawn, *state, row)
        prediction = solver.ask(model, drawn, asked, row, None)
        return solver.update(drawn, asked, prediction, state[1], row), None

    start = jnp.asarray(y), solver.init(process, jnp.asarray(y), jnp.zeros(len(y)))
    return np.asarray(jax.jit(lambda start: jax.lax.scan(one, start, (rows, jnp.asarray(noise)))[0][0])(start))


def _moments(values):
    shift, response = values[0], values[1:] - values[0]
    mean = shift + response[0] * BASE[0]
    return mean, response[0] ** 2 * BASE[1] + np.sum(response[1:] ** 2)


def test_a_sweep_over_the_noise_compiles_one_program():
    """And is no sweep over nothing: of the flow and of twice the noise the ends differ."""
    model = models.ExactModel(
        densities.Gaussian(np.array([-1.0]), 0.3), processes.StochasticInterpolant(base=densities.Gaussian(np.zeros(1), 1.0))
    )
    options = dict(grid=grids.Uniform(4), key=KEY, shape=(8, 1))
    for choices in (
        [epsilons.Proportional(k) for k in (0.0, 4.0, 8.0)],
        [epsilons.Constant(k) for k in (0.0, 0.5, 1.0)],
        [epsilons.Capped(k, limit) for k, limit in ((0.0, 1.0), (4.0, 0.5), (8.0, 2.0))],
    ):
        compiled.clear_cache()
        found = [sample(model, solver=solvers.InterpolantSDE(epsilon=epsilon), **options).x for epsilon in choices]
        assert compiled._cache_size() == 1
        assert np.abs(found[0] - found[1]).min() > 1e-3
        assert np.abs(found[1] - found[2]).min() > 1e-3
    walked = [
        invert(model, found[0], solver=solvers.InterpolantSDE(epsilon=e), grid=grids.Uniform(4), key=KEY) for e in choices[1:]
    ]
    assert np.abs(walked[0] - walked[1]).max() > 1e-3


@pytest.mark.parametrize(("solver", "order"), SOLVERS.items(), ids=str)
def test_order_of_mean_and_variance(solver, order):
    assert solver.order == order
    mean, variance = np.abs(np.subtract(ends(solver), DATA)).T
    slopes = np.log2(variance[:-1] / variance[1:])
    # One-sided above: a leading term that nearly cancels converges faster.
    assert slopes[-1] > order - 0.15, variance
    assert variance[-1] < (0.02 if order == 1 else 1e-3)
    # Straight lines between the means are followed by every rule; noise of half a step moves them at its order.
    assert mean[-1] < (0.02 if order == 1 else 1e-3)


def _flowed(std, gamma, times, solver, y=1.0, base=1.0):
    """Where the flow of ``N(0, std^2)`` takes a point of ``N(0, base^2)``, by the solver."""
    with jax.enable_x64(True):
        process = processes.StochasticInterpolant(gamma=gamma, base=densities.Gaussian(np.zeros(1), base**2))
        model = models.ExactModel(densities.Gaussian(np.zeros(1), std**2), process)
        noise = np.zeros((len(solver.table(process, times).step), 1, 1))
        return float(_walk(solver, process, model, times, np.array([[y]]), noise)[0, 0])


@pytest.mark.parametrize("rule", ["euler", "heun"])
def test_coefficients_are_stepped_by_their_increments(rule):
    # The recursion of the definition, with D, W and eta of two centred normal laws: each is its covariance with the point over C.
    std, gamma = 0.05, gammas.Quadratic()
    times = grids.Quadratic(8).times(processes.StochasticInterpolant(base=densities.Gaussian(np.zeros(1), 1.0)))

    def parts(y, t):
        c = (1 - t) ** 2 * std**2 + t**2 + gamma.squared(t)
        return np.array([(1 - t) * std**2, t, gamma.gamma(t)]) * y / c

    coefficients, y = lambda t: np.array([1 - t, t, gamma.gamma(t)]), 1.0
    for t, s in itertools.pairwise(times):
        step = coefficients(s) - coefficients(t)
        first = step @ parts(y, t)
        y += first if rule == "euler" or s == 0 else (first + step @ parts(y + first, s)) / 2
    solver = solvers.InterpolantODE(rule=rule, form="coefficients")
    assert _flowed(std, gamma, times, solver) == pytest.approx(y, rel=1e-12)


def test_coefficients_have_their_order_under_a_gamma_with_a_finite_slope():
    for rule, order in (("euler", 1), ("heun", 2)):
        solver = solvers.InterpolantODE(rule=rule, form="coefficients")
        wrong = [abs(_flowed(0.55, gammas.Quadratic(), np.linspace(1.0, 0.0, n + 1), solver) - 0.55) for n in (64, 128, 256)]
        assert np.log2(wrong[1] / wrong[2]) == pytest.approx(order, abs=0.15)


def test_coefficients_suit_narrow_data_and_velocities_smooth_data():
    # The measured ends of the two forms at 16 Euler steps of a uniform grid, under a Brownian gamma.
    times, end = np.linspace(1.0, 0.0, 17), {}
    for std in (0.05, 0.55):
        for form in ("velocity", "coefficients"):
            solver = solvers.InterpolantODE(rule="euler", form=form)
            end[std, form] = abs(_flowed(std, gammas.Brownian(), times, solver) / std - 1)
    assert end[0.05, "coefficients"] < end[0.05, "velocity"] / 2
    assert end[0.55, "velocity"] < end[0.55, "coefficients"] / 10


@pytest.mark.parametrize("gamma", [gammas.Brownian(), gammas.Quadratic(), gammas.Zero()], ids=str)
def test_an_adaptive_solver_follows_the_flow_to_its_ends(gamma):
    # One centred normal law to another: the flow scales by the quotient of their deviations.
    with jax.enable_x64(True):
        process = processes.StochasticInterpolant(gamma=gamma, base=densities.Gaussian(np.zeros(2), 1.44))
        model = models.ExactModel(densities.Gaussian(np.zeros(2), 0.09), process)
        y, solver = np.array([[1.0, -2.0], [0.3, 0.0]]), solvers.Diffrax(rtol=1e-9, atol=1e-9)
        out = sample(model, solver=solver, grid=grids.Uniform(2), key=KEY, start=starts.Fixed(y), shape=y.shape)
        np.testing.assert_allclose(out.x, y * 0.3 / 1.2, rtol=1e-6)
        there = invert(model, out.x, solver=solver, grid=grids.Uniform(2))
        np.testing.assert_allclose(there, y, rtol=1e-6, atol=1e-8)


N, SET = 8_000, 4_000
ODE, SDE = solvers.InterpolantODE(), solvers.InterpolantSDE()
CASES = [
    *((name, ODE) for name in laws.PAIRS),
    *((name, SDE) for name, (_, gamma) in laws.PAIRS.items() if not gamma.silent),
    ("linear, zero", solvers.InterpolantODE(rule="euler")),
    ("linear, quadratic", solvers.InterpolantODE(form="coefficients")),
    ("linear, Brownian", solvers.InterpolantSDE(epsilon=epsilons.Constant(1.0), rule="heun")),
    ("linear, Brownian of half", solvers.InterpolantSDE(epsilon=epsilons.Capped(16.0, limit=0.5))),
    ("linear, sine squared", solvers.InterpolantSDE(epsilon=epsilons.Proportional(8.0), rule="euler")),
]


@functools.cache
def _of_data(seed):
    return np.asarray(laws.data().sample(jax.random.key(seed), SET))


@functools.cache
def _many():
    return np.asarray(laws.data().sample(KEY, 200_000))


def _noised(process, t, seed):
    """Points of the law at ``t``, drawn from its definition."""
    rows = process.perturb(jax.random.key(seed), jnp.asarray(_of_data(seed)), jnp.full(SET, t, jnp.float32))
    return np.asarray(rows.y)


def _apart(x, y):
    return metrics.sliced_wasserstein(KEY, x, y, projections=32).value


@pytest.mark.parametrize(("name", "solver"), CASES, ids=str)
def test_points_have_the_law_of_their_time(name, solver):
    process = laws.process(name)
    model, times = models.ExactModel(laws.data(), process), grids.Arcsine(120).times(process)
    start = None if process.path.two_sided else starts.Fixed(np.concatenate([_of_data(1), _of_data(8)]))
    out = sample(model, solver=solver, grid=grids.Arcsine(120), key=KEY, shape=(N, 2), start=start, keep="all")
    for step in (60, 100, 120):
        y = np.asarray(out.trajectory[step])[:SET]
        exact = [_noised(process, times[step], seed) for seed in range(2, 7)]
        # Sets of as many exact points are as far apart as this; the error of a rule of order 1 adds 1 % of a deviation.
        floor = np.mean([_apart(a, b) for a, b in itertools.combinations(exact, 2)])
        found = np.mean([_apart(y, other) for other in exact])
        assert found < 1.5 * floor + (0.01 * y.std() if solver.order == 1 else 0.0), (step, found, floor)
    x = np.asarray(out.x, np.float64)
    mean, cov = laws.moments(laws.WEIGHTS, laws.MEANS, laws.COVS)
    # Four standard errors, and the bias of a first-order rule at 120 steps: up to 1 % of the covariance per unit of eps h.
    bias = 0.05 if solver.order == 1 else 0.01
    np.testing.assert_allclose(x.mean(0), mean, atol=4 * np.sqrt(cov.max() / N) + bias)
    np.testing.assert_allclose(np.cov(x.T), cov, atol=4 * np.sqrt(2 / N) * cov.max() + bias * cov.max())
    # Between the two components: their weights.
    side = lambda x: np.mean(np.linalg.norm(x - laws.MEANS[0], axis=1) < np.linalg.norm(x - laws.MEANS[1], axis=1))
    assert abs(side(x) - side(_many())) < 4 * 0.5 / np.sqrt(N) + bias


def test_the_mirror_returns_every_point_by_the_flow_and_another_one_by_the_sde():
    model = models.ExactModel(laws.data(), laws.process("mirror, Brownian"))
    x = np.asarray(laws.data().sample(KEY, 4_000))
    walk = functools.partial(sample, model, grid=grids.Arcsine(100), key=KEY, shape=x.shape, start=starts.Fixed(x))
    back = walk(solver=solvers.InterpolantODE(), keep="all")
    # Heun's rule at 100 steps returns them to a thousandth; halfway they have the variance of x plus gamma^2.
    np.testing.assert_allclose(back.x, x, atol=5e-3)
    middle = np.asarray(back.trajectory[50], np.float64)
    _, cov = laws.moments(laws.WEIGHTS, laws.MEANS, laws.COVS)
    np.testing.assert_allclose(np.cov(middle.T), cov + 0.25 * np.eye(2), atol=6 * np.sqrt(2 / 4_000) * cov.max())
    drawn = np.asarray(walk(solver=solvers.InterpolantSDE()).x, np.float64)
    assert np.sqrt(np.mean((drawn - x) ** 2)) > 0.3
    np.testing.assert_allclose(np.cov(drawn.T), cov, atol=6 * np.sqrt(2 / 4_000) * cov.max() + 0.03)


def test_a_row_of_one_step_and_the_last_row_are_finite_and_ids_are_the_samples_own():
    model = models.ExactModel(laws.data(), laws.process("linear, Brownian"))
    for solver in (solvers.InterpolantODE(), solvers.InterpolantSDE(epsilon=epsilons.Constant(2.0))):
        assert np.all(np.isfinite(sample(model, solver=solver, grid=grids.Uniform(1), key=KEY, shape=(4, 2)).x))
        arguments = dict(solver=solver, grid=grids.Uniform(8), key=KEY, chunk=4)
        whole = sample(model, shape=(8, 2), **arguments)
        part = sample(model, shape=(4, 2), ids=np.arange(4, 8), **arguments)
        np.testing.assert_array_equal(part.x, whole.x[4:])
        # The base depends on the id alone.
        assert whole.diagnostics["model_calls"] == 15


def test_data_to_data():
    """A base that is points: sampling begins at those points."""
    points = np.asarray(laws.base().sample(KEY, 64))
    process = processes.StochasticInterpolant(base=points)
    fields = models.ExactModel(laws.data(), laws.process("linear, Brownian"))

    def belief(y, t, cond=None):
        found = fields(y, t)
        return process.predict(y, t, velocity=found.velocity, eta=found.eta)

    model = models.FunctionModel(belief, process, returns="prediction")
    out = sample(model, solver=solvers.InterpolantSDE(), grid=grids.Arcsine(20), key=KEY, shape=(32, 2), keep="all")
    start = np.asarray(out.trajectory[0])
    assert np.all(np.any(np.all(np.abs(start[:, None] - points[None]) < 1e-6, axis=2), axis=1))
    with pytest.raises(ValueError, match="points, which have no density"):
        process.prior().log_prob(start, process, 1.0)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda m: sample(m, solver=solvers.InterpolantODE(), grid=grids.Uniform(4, t_max=0.9), key=KEY, shape=(2, 2)),
            "expected t = 1",
        ),
        (lambda m: sample(m, solver=solvers.InterpolantODE(), grid=grids.Uniform(4), key=KEY, shape=(2, 3)), "points of shape"),
        (lambda m: sample(m, solver=solvers.Heun(), grid=grids.Uniform(4), key=KEY, shape=(2, 2)), "expected a LinearGaussian"),
        (lambda m: solvers.InterpolantSDE(rule="milstein"), "rule"),
        (lambda m: solvers.InterpolantODE(form="score"), "form"),
        (
            lambda m: sample(
                models.ExactModel(laws.data(), laws.process("encoding-decoding")),
                solver=solvers.InterpolantODE(form="coefficients"), grid=grids.Uniform(4), key=KEY, shape=(2, 2),
            ),
            "expected a path that tells both ends",
        ),
        (
            lambda m: sample(
                models.FunctionModel(lambda y, t, cond=None: m.process.predict(y, t, velocity=y), m.process, returns="prediction"),
                solver=solvers.InterpolantODE(form="coefficients"), grid=grids.Uniform(4), key=KEY, shape=(2, 2),
            ),
            "needs HasLatent",
        ),
        (lambda m: solvers.InterpolantSDE(epsilon=1.0), "expected a Epsilon"),
        (lambda m: epsilons.Proportional(-1.0), "kappa"),
        (lambda m: epsilons.Constant(np.nan), "value"),
        (lambda m: epsilons.Capped(1.0, limit=0.0), "limit"),
        (
            lambda m: sample(
                models.ExactModel(laws.data(), laws.process("linear, zero")), solver=solvers.InterpolantSDE(),
                grid=grids.Uniform(4), key=KEY, shape=(2, 2),
            ),
            "expected a gamma that is not zero",
        ),
        (
            lambda m: sample(
                models.ExactModel(densities.Gaussian(np.zeros(2), 1.0), _GAUSSIAN), solver=solvers.InterpolantODE(),
                grid=grids.Uniform(4), key=KEY, shape=(2, 2),
            ),
            "expected a StochasticInterpolant",
        ),
    ],
)  # fmt: skip
def test_errors(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act(models.ExactModel(laws.data(), laws.process("linear, Brownian")))


@pytest.mark.parametrize("name", ["linear, Brownian", "linear, quadratic", "trigonometric, zero"])
def test_the_likelihood_of_the_flow_is_exact(name):
    """From the data themselves to the density of the base: the log-densities of the mixture, to the tolerance of the solver."""
    with jax.enable_x64(True):
        model = models.ExactModel(laws.data(), laws.process(name))
        x = np.array([[0.3, -0.7], [-2.0, 1.0], [1.4, -0.9]])
        found = log_likelihood(model, x, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(found.log_prob, laws.data().log_prob(x), atol=1e-7)
        # Ten digits of an independent computation.
        np.testing.assert_allclose(found.log_prob[:2], [-4.2745722862, -2.2187121598], atol=1e-7)
    points = processes.StochasticInterpolant(base=np.zeros((3, 2), np.float32))
    fields = models.FunctionModel(lambda y, t, cond=None: points.predict(y, t, velocity=y, eta=y), points, returns="prediction")
    with pytest.raises(ValueError, match="points, which have no density"):
        log_likelihood(fields, x)


def test_inversion_finds_the_base_point_and_comes_back():
    model = models.ExactModel(laws.data(), laws.process("linear, quadratic"))
    x = np.asarray(laws.data().sample(KEY, 16))
    solver, grid = solvers.InterpolantODE(), grids.Arcsine(80)
    z = invert(model, x, solver=solver, grid=grid)
    back = sample(model, solver=solver, grid=grid, key=KEY, shape=x.shape, start=starts.Fixed(np.asarray(z)))
    # Heun's rule: the square of a step of 1/80, at velocities of up to 5, twice.
    np.testing.assert_allclose(back.x, x, atol=10 / 80**2 * 5)


def test_steering_weighs_without_bias():
    r"""Under the reward a.x the constant is E exp(a.x) over the mixture, in closed form, and the samples have its tilted mean."""
    a = np.array([0.6, -0.4])
    means = laws.MEANS + laws.COVS @ a
    log_weights = np.log(laws.WEIGHTS) + laws.MEANS @ a + 0.5 * np.einsum("i,kij,j->k", a, laws.COVS, a)
    log_z = np.log(np.sum(np.exp(log_weights)))
    tilted = np.exp(log_weights - log_z) @ means
    solver = fk.FeynmanKac(
        base=solvers.InterpolantSDE(epsilon=epsilons.Proportional(8.0)),
        potential=fk.Difference(_along, intermediate=fk.Denoised()),
        particles=64,
        resample_final=True,
    )
    model = models.ExactModel(laws.data(), laws.process("linear, Brownian"))
    out = sample(model, solver=solver, grid=grids.Arcsine(32), key=KEY, shape=(64 * 64, 2))
    z = np.exp(np.asarray(out.log_z, np.float64))
    # Four standard errors over 64 populations, and the bias of the solver: a hundredth.
    assert abs(z.mean() - np.exp(log_z)) < 4 * z.std(ddof=1) / 8 + 0.01 * np.exp(log_z)
    spread = np.asarray(out.x).reshape(64, 64, 2).mean(1)
    np.testing.assert_allclose(spread.mean(0), tilted, atol=4 * spread.std(0).max() / 8 + 0.02)


def _along(x):
    return x @ jnp.array([0.6, -0.4], x.dtype)


def test_what_begins_or_ends_elsewhere_is_refused():
    """The density of the base is known at 1 alone, and the data are at 0."""
    model = models.ExactModel(laws.data(), laws.process("linear, Brownian"))
    x = np.zeros((2, 2), np.float32)
    for times in (dict(t_max=0.9), dict(t_min=0.1)):
        with pytest.raises(ValueError, match="expected 0 and 1"):
            log_likelihood(model, x, **times)
    with pytest.raises(ValueError, match=r"ends at t = 0\.5"):
        invert(model, x, solver=solvers.InterpolantODE(), grid=grids.Uniform(4, t_min=0.5, clean=False))


def test_base_rows_of_pairs_belong_to_their_conditions():
    process = processes.StochasticInterpolant(base=np.zeros((3, 2), np.float32), coupling=data.Paired())
    belief = lambda y, t, cond=None: process.predict(y, t, velocity=y, eta=y)
    model = models.FunctionModel(belief, process, returns="prediction")
    walk = functools.partial(sample, model, solver=solvers.InterpolantODE(), grid=grids.Uniform(2), key=KEY, shape=(2, 2))
    walk()
    with pytest.raises(ValueError, match=r"expected start=starts\.Fixed"):
        walk(cond=np.zeros(2, np.int32))
    walk(cond=np.zeros(2, np.int32), start=starts.Fixed(np.zeros((2, 2), np.float32)))
