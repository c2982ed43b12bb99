"""Laws of every solver, measured on Gaussians whose probability flow is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import densities, fk, grids, models, processes, sample, schedules, solvers, starts

from ..stepping import last_states, walk
from .members import DETERMINISTIC, SOLVERS, STOCHASTIC

KEY = jax.random.key(11)
MEAN, COV = np.array([0.5, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]])
LAW = densities.Gaussian(MEAN, COV)
VP = processes.Gaussian(schedule=schedules.VPLinear())
VE = processes.Gaussian(schedule=schedules.VE(sigma_min=0.02, sigma_max=40.0))
FLOW = processes.Gaussian(schedule=schedules.RectifiedFlow())
EDM = processes.Gaussian(schedule=schedules.EDM(sigma_min=0.02))


def flow_image(process, y, t, s):
    """Where the probability flow takes ``y`` from ``t`` to ``s`` for these Gaussian data: a linear map along eigenvectors."""
    eigenvalues, basis = np.linalg.eigh(COV)
    before, after = (process.alpha(r) ** 2 * eigenvalues + process.sigma(r) ** 2 for r in (t, s))
    whitened = (y - process.alpha(t) * MEAN - process.offset(t)) @ basis / before**0.5
    return process.alpha(s) * MEAN + process.offset(s) + (whitened * after**0.5) @ basis.T


def starting_points(process, t, n=12):
    z = np.random.default_rng(11).normal(size=(n, 2))
    return process.sigma(t) * z + process.alpha(t) * MEAN + process.offset(t)


def root_mean_square(error):
    return float(np.sqrt(np.mean(np.square(error))))


# The last of several walks in one program: short enough to be repeated without jit.
SHORT = grids.LogSNR(4, t_max=0.8, t_min=0.05, clean=False)


def linear_model(process, law):
    """In the precision of the moment."""
    return models.ExactModel(densities.Gaussian(*law), process)


@functools.cache
def flow_walks(solver, process):
    """Walks along grids of equal log-SNR, uniform ones and a short one, in float64: times, starts, ends."""
    steps = (192, 384) if DETERMINISTIC.get(solver, solver.order) > 2 else (128, 256)
    log_snr = [grids.LogSNR(n, t_min=0.05, clean=False) for n in steps]
    uniform = [grids.Uniform(n, t_min=0.02, clean=False) for n in (256, 512)]
    times = [grid.times(process) for grid in (*log_snr, *uniform, SHORT)]
    y = np.stack([starting_points(process, t[0]) for t in times])
    noise = [np.zeros(len(t) - 1) for t in times]
    with jax.enable_x64(True):
        return times, y, last_states(solver, process, linear_model(process, (MEAN, COV)), times, y, noise)


def convergence(solver, process):
    """Errors on two grids of equal log-SNR, and on two uniform ones."""
    walks = zip(*flow_walks(solver, process), strict=True)
    errors = [root_mean_square(end - flow_image(process, y, t[0], t[-1])) for t, y, end in walks]
    return errors[:2], errors[2:4]


# Orders above two are measured on VP alone: on VE the leading error terms of a Gaussian change sign in this range.
@pytest.mark.parametrize(
    ("solver", "order", "process"),
    [
        *((s, k, VP) for s, k in DETERMINISTIC.items()),
        *(pytest.param(s, k, VE, marks=() if s in (solvers.DDIM(), solvers.Heun()) else pytest.mark.long)
          for s, k in DETERMINISTIC.items() if k <= 2),
    ],
    ids=str,
)  # fmt: skip
def test_order_of_convergence(solver, order, process):
    # Slope of the error between N and 2N steps of equal log-SNR, in float64. One-sided above: on a given Gaussian the
    # leading error term of the third-order rules nearly cancels and the measured slope is higher than the theorem's.
    errors, _ = convergence(solver, process)
    slope = np.log2(errors[0] / errors[1])
    assert slope > order - 0.15
    if order < 3:
        assert slope < order + 0.15
    assert errors[1] < (0.05 if order == 1 else 1e-3)  # converges to the true flow, not to something else


@pytest.mark.parametrize("solver", [solvers.DPMSolverPP(order=3), solvers.DEIS(order=3), solvers.UniPC(predictor_order=2)], ids=str)
def test_third_order_on_a_uniform_grid(solver):
    # On a uniform variance-preserving grid nothing cancels: two-sided.
    _, errors = convergence(solver, VP)
    assert np.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.15)


def test_order_is_the_declared_one():
    for solver, order in DETERMINISTIC.items():
        assert solver.order == order


VARIANCE = 0.25


def responses(solver, process, times):
    """The response of the end of a walk to the start and to the noise of each step, in float64: unit impulses, ends.

    For centred Gaussian data every step is linear in (y, z). Example 0 responds to the start, example i + 1 to the noise of
    step i.
    """
    impulses = np.eye(max(len(t) for t in times))[:, :, None]
    starts, noise = np.stack([impulses[0]] * len(times)), [impulses[1:]] * len(times)
    with jax.enable_x64(True):
        return impulses, last_states(solver, process, linear_model(process, (np.zeros(1), VARIANCE)), times, starts, noise)


def deviation_errors(process, times, ends):
    """Errors of the standard deviation of a 1-D Gaussian: exact in the limit of many samples, so computed from the map.

    The output variance is the squared response to the start plus the sum of squared responses to each step's noise.
    """
    start, exact = (np.array([process.alpha(t[i]) ** 2 * VARIANCE + process.sigma(t[i]) ** 2 for t in times]) for i in (0, -1))
    found = ends[:, 0, 0] ** 2 * start + np.sum(ends[:, 1:, 0] ** 2, axis=1)
    return np.abs(np.sqrt(found) - np.sqrt(exact))


def weak_error(solver, process, grid):
    times = [grid.times(process)]
    return deviation_errors(process, times, responses(solver, process, times)[1])[0]


@functools.cache
def noisy_walks(solver):
    times = [grid.times(VP) for grid in (*(grids.LogSNR(n, t_max=0.8, t_min=0.05, clean=False) for n in (128, 256)), SHORT)]
    return times, *responses(solver, VP, times)


@pytest.mark.parametrize(("solver", "order"), STOCHASTIC.items(), ids=str)
def test_weak_order_of_the_variance(solver, order):
    # From 128 steps on: below, two terms of the second-order rule's error cancel and its slope means nothing.
    times, _, ends = noisy_walks(solver)
    errors = deviation_errors(VP, times, ends)
    assert np.log2(errors[0] / errors[1]) > order - 0.15


@pytest.mark.parametrize("solver", [*DETERMINISTIC, *STOCHASTIC], ids=str)
def test_jit_equals_no_jit(solver):
    if solver in STOCHASTIC:
        times, impulses, ends = noisy_walks(solver)
        law, y, noise = (np.zeros(1), VARIANCE), impulses[0], impulses[1 : len(times[-1])]
    else:
        times, y, ends = flow_walks(solver, VP)
        law, y, noise = (MEAN, COV), y[-1], np.zeros(len(times[-1]) - 1)
    with jax.enable_x64(True), jax.disable_jit():
        plain = walk(solver, VP, linear_model(VP, law), times[-1], y, noise)[-1]
    # Fusion changes rounding only, 2e-16; multistep coefficients amplify it by their size (below 10) in each of four steps.
    np.testing.assert_allclose(ends[-1], plain, rtol=1e-11, atol=1e-12)


def consistency_model(process):
    """The exact end of the flow from any point: what a solver is for that asks for a generator in the place of the denoiser."""

    def end(y, t, cond=None):
        image = flow_image(process, y, t, process.t_min)
        return (image - process.offset(process.t_min)) / process.alpha(process.t_min)

    return models.FunctionModel(end, process)


# Every solver on one process, and one solver of each family on the others: the rest is the schedule's own contract.
FAMILIES = [solvers.DDIM(eta=1.0), solvers.DPMSolverPP(order=2), solvers.UniPC(), solvers.Heun(), solvers.EulerMaruyama()]
ON_EDM, ON_FLOW = (solvers.UniPC(), solvers.Heun(), solvers.DDIM(eta=1.0)), (solvers.DPMSolverPP(order=2), solvers.EulerMaruyama())


def usual_process(solver):
    """The process on which the default run takes this solver; the long tail has the others."""
    return EDM if solver in ON_EDM else FLOW if solver in ON_FLOW else VP


@pytest.mark.parametrize(
    ("solver", "process"),
    [
        pytest.param(s, p, marks=() if p is usual_process(s) else pytest.mark.long)
        for s, p in [*((s, VP) for s in SOLVERS), *((s, p) for s in FAMILIES for p in (EDM, FLOW))]
    ],
    ids=str,
)
def test_gaussian_marginals(solver, process):
    n, adaptive = 6_000, solver.calls_per_step is None
    t_max = 0.99 if process is FLOW else None
    # Euler in the time of EDM and Euler-Maruyama need more steps for the same bias than the exponential rules.
    slow = isinstance(solver, solvers.EulerMaruyama | solvers.ProbabilityFlowEuler | solvers.PredictorCorrector)
    steps = 8 if adaptive else (300 if slow else 120)
    model = consistency_model(process) if isinstance(solver, solvers.Renoise) else models.ExactModel(LAW, process)
    arguments = dict(solver=solver, grid=grids.LogSNR(steps, t_max=t_max), key=KEY, chunk=n if adaptive else 500)
    drawn = np.asarray(sample(model, shape=(n, 2), **arguments).x)
    x = drawn.astype(np.float64)
    # Four standard errors, plus the first-order bias: (log-SNR range 16) / steps times a constant of order 0.2; the
    # Langevin corrector's stationary bias is snr^2 = 2.6 %.
    bias = 0.0 if solver.order >= 2 else 0.5 * 16 / steps * 0.25 + (0.03 if solver.order == 0 else 0.0)
    np.testing.assert_allclose(x.mean(0), MEAN, atol=4 * np.sqrt(0.5 / n) + bias)
    np.testing.assert_allclose(np.cov(x.T), COV, atol=4 * 0.5 * np.sqrt(2 / n) + bias)
    if not adaptive:  # an adaptive solver has one step size for its batch
        # A sample depends on its key and id alone, bitwise in chunks of one size: not on the samples around it.
        some = np.array([1009, 2, 4])
        np.testing.assert_array_equal(sample(model, shape=(3, 2), ids=some, **arguments).x, drawn[some])
        np.testing.assert_array_equal(sample(model, shape=(7, 2), **arguments).x, drawn[:7])


def counted(model):
    """The model, and a list that grows by one at each call that is really executed."""
    calls = []

    def fn(y, t, cond=None):
        jax.debug.callback(lambda: calls.append(1))
        return model(y, t, cond)

    return models.FunctionModel(fn, model.process, returns="prediction"), calls


# A step-size controller reacts to rounding by as much as its tolerance, which is rough here: few steps, since each is slow
# without jit.
ADAPTIVE = solvers.Diffrax(rtol=1e-3, atol=1e-3)


def drawn(solver, n=12, **options):
    """A batch in float64."""
    shape, grid = ((3, 2), grids.LogSNR(4)) if solver.calls_per_step is None else ((n, 2), grids.Karras(6))
    with jax.enable_x64(True):
        model = linear_model(EDM, (MEAN, COV))
        return np.asarray(sample(model, solver=solver, grid=grid, key=KEY, shape=shape, **options).x)


@functools.cache
def without_jit(solver):
    """The batch as one chunk, operation by operation, and the number of calls of the model: executed, and as the solver says."""
    calls = []
    with jax.enable_x64(True), jax.disable_jit():
        model = linear_model(EDM, (MEAN, COV))

        def count(y, t, cond=None):
            calls.append(t)
            return model(y, t, cond)

        counting = models.FunctionModel(count, EDM, returns="prediction")
        out = sample(counting, solver=solver, grid=grids.Karras(6), key=KEY, shape=(12, 2))
    return np.asarray(out.x), len(calls), out.diagnostics["model_calls"]


STEPWISE = [s for s in SOLVERS if s.calls_per_step is not None]


@pytest.mark.parametrize("solver", STEPWISE, ids=str)
def test_model_calls_are_the_declared_ones(solver):
    _, calls, said = without_jit(solver)
    # A step to sigma = 0 needs one call whatever the solver.
    assert calls == said == solver.calls_per_step * (6 - 1) + 1


# The solvers whose steps are not walked above, and one with noise for the keys; the long tail has all.
SAMPLED = [s for s in STEPWISE if s not in DETERMINISTIC and s not in STOCHASTIC] + [solvers.DDIM(eta=1.0)]


@pytest.mark.parametrize("solver", [s if s in SAMPLED else pytest.param(s, marks=pytest.mark.long) for s in STEPWISE], ids=str)
def test_neither_the_batch_nor_jit_changes_a_sample(solver):
    # One chunk of all without jit sums in another order than chunks of five with it, which changes the rounding alone: 2e-16
    # of values of up to 80 at the first step, times multistep weights of up to 10 in a few steps.
    np.testing.assert_allclose(drawn(solver, chunk=5), without_jit(solver)[0], rtol=0, atol=1e-12)


@pytest.mark.long  # in the default run every chunk agrees with the closed form, by far more closely
def test_an_adaptive_solver_depends_on_its_batch_by_its_tolerance():
    # Another batch has other step sizes. The default tolerance, 1e-5 a step, grows to 1e-3 in all at the most.
    np.testing.assert_allclose(drawn(solvers.Diffrax(), chunk=2), drawn(solvers.Diffrax()), atol=1e-3)


@pytest.mark.long
def test_an_adaptive_solver_takes_the_same_steps_without_jit():
    with jax.enable_x64(True), jax.disable_jit():
        model, arguments = linear_model(EDM, (MEAN, COV)), dict(solver=ADAPTIVE, grid=grids.LogSNR(4), key=KEY, shape=(3, 2))
        plain = sample(model, **arguments).x
    # Rounding, as above, through the controller.
    np.testing.assert_allclose(drawn(ADAPTIVE), plain, rtol=1e-10, atol=1e-10)


# Each solver has one of the two processes by turns; the long tail has the other.
@pytest.mark.parametrize(
    ("solver", "process"),
    [
        pytest.param(s, p, marks=() if (i + j) % 2 == 0 else pytest.mark.long)
        for i, s in enumerate(SOLVERS)
        for j, p in enumerate((VE, FLOW))
    ],
    ids=str,
)
def test_one_step_to_clean_data_is_finite(solver, process):
    t_max = 0.99 if process is FLOW and solver.stochastic else None
    # Operation by operation, the programs of which the solvers share.
    with jax.disable_jit(solver.calls_per_step is not None):
        out = sample(models.ExactModel(LAW, process), solver=solver, grid=grids.Uniform(1, t_max=t_max), key=KEY, shape=(4, 2))
    assert np.all(np.isfinite(out.x))


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_solvers_are_hashable_specs(solver):
    assert solver in {solver: 1}


def test_ambient_and_latent_coordinates_agree_on_the_identity_chart():
    latent, ambient = (noisy_walks(solvers.EulerMaruyama(coords=coords))[2] for coords in ("latent", "ambient"))
    # The same steps written in another way: rounding of 256 of them.
    np.testing.assert_allclose(latent, ambient, rtol=1e-10, atol=1e-12)


def test_heun_without_churn_is_deterministic_given_its_start():
    y = 80 * np.random.default_rng(11).normal(size=(4, 2)).astype(np.float32)
    model = models.ExactModel(LAW, EDM)
    arguments = dict(solver=solvers.Heun(), grid=grids.Karras(5), shape=(4, 2), start=starts.Fixed(y))
    np.testing.assert_array_equal(sample(model, key=KEY, **arguments).x, sample(model, key=jax.random.key(99), **arguments).x)


def test_diffrax_agrees_with_the_closed_form_flow():
    grid = grids.Uniform(2, t_min=0.01, clean=False)
    times = grid.times(VP)
    y = starting_points(VP, times[0])
    with jax.enable_x64(True):
        solver, start = solvers.Diffrax(rtol=1e-8, atol=1e-8), starts.Fixed(y)
        model = linear_model(VP, (MEAN, COV))
        x = sample(model, solver=solver, grid=grid, key=KEY, shape=y.shape, start=start, chunk=5).x
    # Adaptive at 1e-8: the global error of the flow is a small multiple of the tolerance, in every chunk.
    assert root_mean_square(np.asarray(x) - flow_image(VP, y, times[0], times[-1])) < 1e-6


def test_fixed_step_diffrax_solvers_are_accepted():
    import diffrax

    solver, times = solvers.Diffrax(solver=diffrax.Heun(), fixed=4), [np.linspace(1.0, 0.05, n + 1) for n in (8, 16)]
    y = np.stack([starting_points(VP, 1.0)] * 2)
    with jax.enable_x64(True):
        ends = last_states(solver, VP, linear_model(VP, (MEAN, COV)), times, y, [np.zeros(len(t) - 1) for t in times])
    errors = [root_mean_square(end - flow_image(VP, y[0], 1.0, 0.05)) for end in ends]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)


class Changed(solvers.DDIM):
    """A solver with another table, or another point after a row."""

    def __init__(self, step=None, moved=None):
        object.__setattr__(self, "step", step)
        object.__setattr__(self, "moved", moved)
        object.__setattr__(self, "eta", 1.0)

    def __hash__(self):
        return id(self)

    def table(self, process, times):
        rows = super().table(process, times)
        return rows if self.step is None else self.step(rows)

    def update(self, keys, y, prediction, carry, row):
        return (y if self.moved is None else self.moved(y)), carry


class Flattened(solvers.Diffrax):
    def integrate(self, model, y, row):
        return y[:, :1]


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (
            Changed(step=lambda rows: jax.tree.map(lambda column: column[:-1], rows)),
            "Changed.table has .* 0, 1, 2: expected 0 to 3",
        ),
        (
            Changed(step=lambda rows: rows._replace(step=0 * rows.step)),
            "Changed.table has .* steps 0, 0, 0, 0: expected 0",
        ),
        (Changed(step=lambda rows: rows._replace(step=rows.step[::-1])), "Changed.table has rows for the steps 3, 2, 1, 0"),
        (Changed(moved=lambda y: y[:, :1]), r"Changed.update returned float32 \(4, 1\) for float32 \(4, 2\): expected the same"),
        (Changed(moved=lambda y: y.astype(jnp.bfloat16)), r"Changed.update returned bfloat16 \(4, 2\)"),
        (Changed(moved=lambda y: (y, y)), r"Changed.update returned \('float32"),
        (fk.FeynmanKac(base=Changed(moved=lambda y: y[:, :1]), policy=fk.Never()), r"Changed.update returned float32 \(4, 1\)"),
        (Flattened(), r"Flattened.integrate returned float32 \(4, 1\)"),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_what_a_solver_gives_is_held_to_the_grid_and_to_the_points(solver, message):
    with pytest.raises(ValueError, match=message):
        sample(models.ExactModel(LAW, EDM), solver=solver, grid=grids.Karras(4), key=KEY, shape=(4, 2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: solvers.DDIM(eta=2.0), "eta"),
        (lambda: solvers.DPMSolverPP(order=4), "order"),
        (lambda: solvers.UniPC(variant="bh3"), "variant"),
        (lambda: solvers.Heun(churn=-1.0), "churn"),
        (lambda: solvers.EulerMaruyama(coords="x"), "coords"),
        (lambda: solvers.PredictorCorrector(predictor=solvers.Heun()), "one call per step"),
        (lambda: solvers.PredictorCorrector(predictor=fk.FeynmanKac()), "independent samples"),
        (lambda: grids.Uniform(0), "steps"),
        (lambda: grids.Explicit((0.1, 0.2)), "decreasing"),
        (lambda: grids.Karras(5).times(FLOW), "t_max"),
        (lambda: grids.Karras(5, t_min=0.0).times(EDM), "t_min"),
        (lambda: grids.Uniform(5, t_max=0.001, t_min=0.5).times(VP), "t_min"),
        (lambda: solvers.UniPC(variant="bh1").table(VP, grids.Uniform(4).times(VP)), "bh1"),
        (lambda: solvers.EulerMaruyama().table(FLOW, grids.Uniform(4).times(FLOW)), "alpha is 0"),
    ],
)
def test_errors_name_the_field(build, message):
    with pytest.raises(ValueError, match=message):
        build()
