"""Laws of every solver, measured on Gaussians whose probability flow is known in closed form."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import densities, grids, models, processes, sample, schedules, solvers, starts

from ..stepping import walk
from .members import DETERMINISTIC, SOLVERS, STOCHASTIC

KEY = jax.random.key(11)
LAW = densities.Gaussian(np.array([0.5, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]]))
VP = processes.Gaussian(schedule=schedules.VPLinear())
VE = processes.Gaussian(schedule=schedules.VE(sigma_min=0.02, sigma_max=40.0))
FLOW = processes.Gaussian(schedule=schedules.RectifiedFlow())
EDM = processes.Gaussian(schedule=schedules.EDM(sigma_min=0.02))


def flow_image(law, process, y, t, s):
    """Where the probability flow takes ``y`` from ``t`` to ``s`` for Gaussian data: a linear map along eigenvectors."""
    before, after = law.noised(process, jnp.asarray(t)), law.noised(process, jnp.asarray(s))
    whitened = (y - before.mean) @ before.basis / jnp.sqrt(before.eigenvalues)
    return after.mean + (whitened * jnp.sqrt(after.eigenvalues)) @ after.basis.T


def flow_error(solver, process, law, grid, n=16):
    times = grid.times(process)
    y = process.sigma(times[0]) * jax.random.normal(KEY, (n, 2)) + process.alpha(times[0]) * law.mean
    out = sample(
        models.ExactModel(law, process), process, solver=solver, grid=grid, key=KEY, shape=y.shape, start=starts.Fixed(y)
    )
    return float(jnp.sqrt(jnp.mean((out.x - flow_image(law, process, y, times[0], times[-1])) ** 2)))


# Orders above two are measured on VP alone: on VE the leading error terms of a Gaussian change sign in this range.
@pytest.mark.parametrize(
    ("solver", "order", "process"),
    [*((s, k, VP) for s, k in DETERMINISTIC.items()), *((s, k, VE) for s, k in DETERMINISTIC.items() if k <= 2)],
    ids=str,
)
def test_order_of_convergence(solver, order, process):
    # Slope of the error between N and 2N steps of equal log-SNR, in float64. One-sided above: on a given Gaussian the
    # leading error term of the third-order rules nearly cancels and the measured slope is higher than the theorem's.
    with jax.enable_x64(True):
        law = densities.Gaussian(np.array([0.5, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]]))
        errors = [
            flow_error(solver, process, law, grids.LogSNR(n, t_min=0.05, clean=False))
            for n in ((192, 384) if order > 2 else (128, 256))
        ]
    slope = np.log2(errors[0] / errors[1])
    assert slope > order - 0.15
    if order < 3:
        assert slope < order + 0.15
    assert errors[1] < (0.05 if order == 1 else 1e-3)  # converges to the true flow, not to something else


@pytest.mark.parametrize("solver", [solvers.DPMSolverPP(order=3), solvers.DEIS(order=3), solvers.UniPC(order=2)], ids=str)
def test_third_order_on_a_uniform_grid(solver):
    # On a uniform variance-preserving grid nothing cancels: two-sided.
    with jax.enable_x64(True):
        law = densities.Gaussian(np.array([0.5, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]]))
        errors = [flow_error(solver, VP, law, grids.Uniform(n, t_min=0.02, clean=False)) for n in (256, 512)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.15)


def test_order_is_the_declared_one():
    for solver, order in DETERMINISTIC.items():
        assert solver.order == (order - 1 if isinstance(solver, solvers.UniPC) else order)


def weak_error(solver, process, grid):
    """Error of the standard deviation of a 1-D Gaussian: exact in the limit of many samples, so computed from the map.

    For centred Gaussian data every step is linear in (y, z), so the output variance is the squared response to the
    start plus the sum of squared responses to each step's noise. Responses are read off with unit impulses.
    """
    law = densities.Gaussian(np.zeros(1), 0.25)
    times = grid.times(process)
    model = models.ExactModel(law, process)
    steps = len(times) - 1
    with jax.enable_x64(True):
        # Example 0 responds to the start, example i + 1 to the noise of step i.
        impulses = jnp.eye(steps + 1)[:, :, None]
        gains = walk(solver, process, model, times, impulses[0], impulses[1:])[-1, :, 0]
        start = float(law.noised(process, jnp.asarray(times[0])).eigenvalues.sum() + law.noised(process, times[0]).tail)
        variance = float(gains[0] ** 2 * start + jnp.sum(gains[1:] ** 2))
        exact = float(process.alpha(times[-1]) ** 2 * 0.25 + process.sigma(times[-1]) ** 2)
    return abs(np.sqrt(variance) - np.sqrt(exact))


@pytest.mark.parametrize(("solver", "order"), STOCHASTIC.items(), ids=str)
def test_weak_order_of_the_variance(solver, order):
    # From 128 steps on: below, two terms of the second-order rule's error cancel and its slope means nothing.
    errors = [weak_error(solver, VP, grids.LogSNR(n, t_max=0.8, t_min=0.05, clean=False)) for n in (128, 256)]
    assert np.log2(errors[0] / errors[1]) > order - 0.15


# Every solver on one process, and one solver of each family on the others: the rest is the schedule's own contract.
FAMILIES = [solvers.DDIM(eta=1.0), solvers.DPMSolverPP(order=2), solvers.UniPC(), solvers.Heun(), solvers.EulerMaruyama()]


def consistency_model(law, process):
    """The exact end of the flow from any point: what a solver is for that asks for a generator in the place of the denoiser."""

    def end(y, t, cond=None):
        image = flow_image(law, process, y, t, process.t_min)
        return (image - process.offset(process.t_min)) / process.alpha(process.t_min)

    return models.FunctionModel(fn=end, process=process)


@pytest.mark.parametrize(
    ("solver", "process"), [*((s, VP) for s in SOLVERS), *((s, p) for s in FAMILIES for p in (EDM, FLOW))], ids=str
)
def test_gaussian_marginals(solver, process):
    n = 6_000
    t_max = 0.99 if process is FLOW else None
    # Euler in the time of EDM and Euler-Maruyama need more steps for the same bias than the exponential rules.
    slow = isinstance(solver, solvers.EulerMaruyama | solvers.ProbabilityFlowEuler | solvers.PredictorCorrector)
    steps = 8 if isinstance(solver, solvers.Diffrax) else (300 if slow else 120)
    model = (consistency_model if isinstance(solver, solvers.Renoise) else models.ExactModel)(LAW, process)
    out = sample(model, process, solver=solver, grid=grids.LogSNR(steps, t_max=t_max), key=KEY, shape=(n, 2))
    cov = np.asarray(LAW.covariance())
    # Four standard errors, plus the first-order bias: (log-SNR range 16) / steps times a constant of order 0.2; the
    # Langevin corrector's stationary bias is snr^2 = 2.6 %.
    bias = 0.0 if solver.order >= 2 else 0.5 * 16 / steps * 0.25 + (0.03 if solver.order == 0 else 0.0)
    np.testing.assert_allclose(out.x.mean(0), LAW.mean, atol=4 * np.sqrt(0.5 / n) + bias)
    np.testing.assert_allclose(np.cov(np.asarray(out.x).T), cov, atol=4 * 0.5 * np.sqrt(2 / n) + bias)


def counted(model):
    """The model, and a list that grows by one at each call that is really executed."""
    calls = []

    def fn(y, t, cond=None):
        jax.debug.callback(lambda: calls.append(1))
        return model(y, t, cond)

    return fn, calls


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.calls_per_step is not None], ids=str)
def test_model_calls_are_the_declared_ones(solver):
    model, calls = counted(models.ExactModel(LAW, VP))
    steps = 5
    out = sample(model, VP, solver=solver, grid=grids.LogSNR(steps), key=KEY, shape=(2, 2))
    jax.effects_barrier()
    # A step to sigma = 0 needs one call whatever the solver.
    expected = solver.calls_per_step * (steps - 1) + 1
    assert len(calls) == out.diagnostics["model_calls"] == expected


@pytest.mark.parametrize("process", [VE, FLOW], ids=lambda p: type(p.schedule).__name__)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_one_step_to_clean_data_is_finite(solver, process):
    t_max = 0.99 if process is FLOW and solver.stochastic else None
    out = sample(
        models.ExactModel(LAW, process), process, solver=solver, grid=grids.Uniform(1, t_max=t_max), key=KEY, shape=(4, 2)
    )
    assert np.all(np.isfinite(out.x))


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_sample_does_not_depend_on_its_batch(solver):
    process = EDM
    model = models.ExactModel(LAW, process)
    arguments = dict(solver=solver, grid=grids.Karras(6), key=KEY)
    some = np.array([9, 2, 4])
    chunked = sample(model, process, shape=(12, 2), chunk=5, **arguments).x
    if solver.calls_per_step is not None:  # an adaptive solver has one step size for its batch
        for x, ids in (
            (sample(model, process, shape=(7, 2), chunk=5, **arguments).x, np.arange(7)),
            (sample(model, process, shape=(3, 2), chunk=5, ids=some, **arguments).x, some),
        ):
            np.testing.assert_array_equal(x, chunked[ids])
    # Another batch shape sums the model's 2 x 2 products in another order (1e-7), and multistep weights of up to 10
    # carry that on; an adaptive solver differs by its tolerance.
    rounding = 1e-5 if solver.calls_per_step is not None else 1e-3
    np.testing.assert_allclose(sample(model, process, shape=(12, 2), **arguments).x, chunked, atol=rounding)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_jit_equals_no_jit(solver):
    # A step-size controller reacts to rounding, in float32 by as much as its tolerance: float64, where the two ways
    # choose the same steps, and few of them, since each is slow without jit.
    adaptive = isinstance(solver, solvers.Diffrax)
    if adaptive:
        solver = replace(solver, rtol=1e-3, atol=1e-3)
    with jax.enable_x64(adaptive):
        law = densities.Gaussian(np.array([0.5, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]]))
        # The shapes of the test above, whose program is compiled already.
        grid, shape = (grids.LogSNR(4), (3, 2)) if adaptive else (grids.Karras(6), (12, 2))
        arguments = dict(solver=solver, grid=grid, key=KEY, shape=shape)
        jitted = sample(models.ExactModel(law, EDM), EDM, **arguments).x
        with jax.disable_jit():
            plain = sample(models.ExactModel(law, EDM), EDM, **arguments).x
    # Fusion changes rounding only; multistep coefficients amplify it by their size (below 10).
    tolerance = dict(rtol=1e-10, atol=1e-10) if adaptive else dict(rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(jitted, plain, **tolerance)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_solvers_are_hashable_specs(solver):
    assert solver in {solver: 1}


def test_ambient_and_latent_coordinates_agree_on_the_identity_chart():
    arguments = dict(grid=grids.Uniform(20), key=KEY, shape=(8, 2))
    model = models.ExactModel(LAW, VP)
    latent = sample(model, VP, solver=solvers.EulerMaruyama(), **arguments).x
    ambient = sample(model, VP, solver=solvers.EulerMaruyama(coords="ambient"), **arguments).x
    np.testing.assert_allclose(latent, ambient, rtol=1e-4, atol=1e-4)


def test_heun_without_churn_is_deterministic_given_its_start():
    y = jax.random.normal(KEY, (4, 2)) * 80
    model = models.ExactModel(LAW, EDM)
    arguments = dict(solver=solvers.Heun(), grid=grids.Karras(5), shape=(4, 2), start=starts.Fixed(y))
    np.testing.assert_array_equal(
        sample(model, EDM, key=KEY, **arguments).x, sample(model, EDM, key=jax.random.key(99), **arguments).x
    )


def test_diffrax_agrees_with_the_closed_form_flow():
    # Adaptive at 1e-6: the global error of the flow is a small multiple of the tolerance.
    with jax.enable_x64(True):
        law = densities.Gaussian(np.array([0.5, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]]))
        solver = solvers.Diffrax(rtol=1e-8, atol=1e-8)
        assert flow_error(solver, VP, law, grids.Uniform(2, t_min=0.01, clean=False)) < 1e-6


def test_fixed_step_diffrax_solvers_are_accepted():
    import diffrax

    with jax.enable_x64(True):
        law = densities.Gaussian(np.array([0.5, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]]))
        errors = [
            flow_error(solvers.Diffrax(solver=diffrax.Heun(), fixed=k), VP, law, grids.Uniform(8, t_min=0.05, clean=False))
            for k in (4, 8)
        ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: solvers.DDIM(eta=2.0), "eta"),
        (lambda: solvers.DPMSolverPP(order=4), "order"),
        (lambda: solvers.UniPC(variant="bh3"), "variant"),
        (lambda: solvers.Heun(churn=-1.0), "churn"),
        (lambda: solvers.EulerMaruyama(coords="x"), "coords"),
        (lambda: solvers.PredictorCorrector(predictor=solvers.Heun()), "one call per step"),
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
