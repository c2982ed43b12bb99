"""Orders of multistep rules on ranges that begin where the denoised mean varies, from their tables in NumPy."""

import functools

import jax
import numpy as np
import pytest
from scipy import integrate

from scorelab import grids, processes, schedules, solvers
from scorelab.solvers import Nodes

EDM = processes.Gaussian(schedule=schedules.EDM())
VP = processes.Gaussian(schedule=schedules.VPLinear())
FLOW = processes.Gaussian(schedule=schedules.RectifiedFlow())

# Where the walk begins and ends, and grids in between: nothing cancels on a mixture.
RANGES = {
    "EDM from 4": (EDM, lambda n: grids.Karras(n, t_max=4.0, t_min=0.05, clean=False)),
    "EDM from 1": (EDM, lambda n: grids.Karras(n, t_max=1.0, t_min=0.05, clean=False)),
    "VP from 0.5": (VP, lambda n: grids.LogSNR(n, t_max=0.5, t_min=0.02, clean=False)),
    "flow from 0.8": (FLOW, lambda n: grids.Uniform(n, t_max=0.8, t_min=0.02, clean=False)),
}
WEIGHTS, MEANS, VARIANCES = np.array([0.3, 0.7]), np.array([-1.0, 0.8]), np.array([0.25, 0.1])


def denoised(y, alpha, sigma):
    """The posterior mean of a mixture of two Gaussians on the line."""
    total = alpha**2 * VARIANCES + sigma**2
    gap = y[:, None] - alpha * MEANS
    share = WEIGHTS / np.sqrt(total) * np.exp(-0.5 * gap**2 / total)
    return np.sum(share * (MEANS + alpha * VARIANCES / total * gap), 1) / share.sum(1)


@functools.cache
def flow(name):
    """Starting points and where the probability flow takes them, by an eighth-order rule with tolerance 1e-12."""
    process, grid = RANGES[name]
    nodes = Nodes.at(process, grid(2).times(process))
    y = np.linspace(-2.2, 2.4, 9) * np.sqrt(nodes.sigma[0] ** 2 + 0.8 * nodes.alpha[0] ** 2)
    # Over the noise ratio r, z = y / alpha follows dz/dr = (z - D) / r under every schedule.
    ratio = nodes.sigma / nodes.alpha
    velocity = lambda r, z: (z - denoised(z, 1.0, r)) / r
    z = integrate.solve_ivp(velocity, ratio[[0, -1]], y / nodes.alpha[0], method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    return y, nodes.alpha[-1] * z


def error(solver, name, steps):
    """Root mean square distance to the flow, of a walk along the rows of the table."""
    process, grid = RANGES[name]
    y, exact = flow(name)
    times = grid(steps).times(process)
    rows, nodes = solver.table(process, times), Nodes.at(process, times)
    unipc, past, base = isinstance(solver, solvers.UniPC), [], y
    for i in range(steps):
        mean = denoised(y, nodes.alpha[i], nodes.sigma[i])
        velocity = (y - nodes.alpha[i] * mean) / nodes.sigma[i] + nodes.slope * mean
        values = [velocity if isinstance(solver, solvers.DEIS) else mean, *past]
        combine = lambda weights, values=values: sum(w * v for w, v in zip(weights, values, strict=False))
        if unipc:
            y = base = rows.y_c[i] * y + rows.base_c[i] * base + rows.o_c[i] + combine(rows.b_c[i])
        y = rows.a[i] * y + rows.o[i] + combine(rows.b[i])
        past = values[: solver.order]
    return np.sqrt(np.mean((y - exact) ** 2))


THIRD = [
    solvers.DPMSolverPP(order=3), solvers.DEIS(order=3), solvers.DEIS(order=4),
    solvers.UniPC(predictor_order=2), solvers.UniPC(predictor_order=3),
]  # fmt: skip


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("solver", THIRD, ids=repr)
def test_third_order_wherever_the_walk_begins(solver, name):
    # Measured slopes: 2.87 to 3.1; the two rules of fourth order from pure noise lie above on their way to 3.
    errors = [error(solver, name, n) for n in (64, 128)]
    assert np.log2(errors[0] / errors[1]) > 2.8
    assert errors[0] < 6e-4


@pytest.mark.parametrize("solver", [s for s in THIRD if not isinstance(s, solvers.UniPC)], ids=repr)
def test_the_published_start_is_second_order(solver):
    published = type(solver)(order=solver.order, start="published")
    errors = [error(published, "EDM from 1", n) for n in (12, 64, 128)]
    assert np.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.1)
    assert error(solver, "EDM from 1", 12) < 0.5 * errors[0]  # fewer steps gain as well


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_the_correction_is_in_the_rows_after_the_start_alone(order, steps):
    times = grids.Karras(steps).times(EDM)
    for rule in (solvers.DPMSolverPP, solvers.DEIS)[order > 3 :]:
        corrected, published = (rule(order=order, start=start).table(EDM, times) for start in ("corrected", "published"))
        assert all(np.all(np.isfinite(column)) for column in jax.tree.leaves(corrected))
        same = np.all(corrected.b == published.b, axis=1)
        # A step to sigma = 0 by the denoised mean has nothing to correct.
        last = steps - 1 if rule is solvers.DPMSolverPP else steps
        np.testing.assert_array_equal(np.flatnonzero(~same), np.arange(1, min(max(order - 1, 1), last)))


def test_a_constant_denoised_mean_is_exact_with_the_correction():
    # The weights of a row act on equal values alike: the corrections sum to zero.
    for solver in THIRD[:3]:
        times = grids.Karras(8, t_max=4.0, t_min=0.1, clean=False).times(EDM)
        published = type(solver)(order=solver.order, start="published")
        np.testing.assert_allclose(solver.table(EDM, times).b.sum(1), published.table(EDM, times).b.sum(1), rtol=1e-12, atol=1e-14)


def test_the_start_is_one_of_two():
    for rule in (solvers.DPMSolverPP, solvers.DEIS):
        with pytest.raises(ValueError, match=f"{rule.__name__}.start = 'low': expected one of 'corrected', 'published'"):
            rule(start="low")
