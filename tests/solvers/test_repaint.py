"""RePaint: the law of its chain on Gaussians in closed form, and how far it is from the conditional law."""

import jax
import numpy as np
import pytest

import scorelab as sl
from scorelab.models import Known, LinearMeasurement, exact_posterior

EDM = sl.processes.Gaussian(schedule=sl.schedules.EDM(sigma_max=20.0))
VP = sl.processes.Gaussian(schedule=sl.schedules.VPLinear())
KEY = jax.random.key(3)
MEAN = np.array([0.4, -0.2, 0.1])
COV = np.array([[0.6, 0.35, 0.1], [0.35, 0.5, 0.2], [0.1, 0.2, 0.4]])
LAW = sl.densities.Gaussian(MEAN, COV)
VALUES, MASK = np.array([1.3, 0.0, -0.7]), np.array([1, 0, 1])


def conditional(law):
    """The exact law given what is known, measured with a noise of 1e-4."""
    rows = np.eye(3)[MASK == 1]
    return exact_posterior(law, LinearMeasurement(matrix=rows, values=rows @ VALUES, std=1e-4))


def chain(process, times, repeats, length):
    """Mean and covariance at the end of the chain on a Gaussian, step by step in float64: written from the paper."""
    alpha, sigma = (np.broadcast_to(np.asarray(f(times), np.float64), times.shape) for f in (process.alpha, process.sigma))
    mean, cov = np.zeros(3), sigma[0] ** 2 * np.eye(3)
    keep = np.diag(1.0 - MASK)

    def down(mean, cov, t, s):
        """Ancestral sampling with the exact denoiser, then the known part, noised afresh."""
        gain = alpha[t] * COV @ np.linalg.inv(alpha[t] ** 2 * COV + sigma[t] ** 2 * np.eye(3))
        ratio = (alpha[t] * sigma[s]) ** 2 / (alpha[s] * sigma[t]) ** 2
        noise = sigma[s] ** 2 * (1 - ratio)
        a, b = alpha[s] / alpha[t] * ratio, alpha[s] * (1 - ratio)
        step = a * np.eye(3) + b * gain
        mean, cov = step @ mean + b * (MEAN - alpha[t] * gain @ MEAN), step @ cov @ step.T + noise * np.eye(3)
        return keep @ mean + MASK * alpha[s] * VALUES, keep @ cov @ keep + sigma[s] ** 2 * np.diag(MASK)

    steps = len(times) - 1
    for first in range(0, steps - 1, length):
        last = min(first + length, steps - 1)
        for again in range(repeats):
            for i in range(first, last):
                mean, cov = down(mean, cov, i, i + 1)
            if again < repeats - 1:
                lift = alpha[first] / alpha[last]
                mean, cov = lift * mean, lift**2 * cov + (sigma[first] ** 2 - (lift * sigma[last]) ** 2) * np.eye(3)
    return down(mean, cov, steps - 1, steps)


@pytest.mark.parametrize(("process", "repeats", "length"), [(EDM, 1, 1), (EDM, 3, 1), (VP, 2, 4)])
def test_the_law_of_the_chain_is_the_closed_form(process, repeats, length):
    n, grid = 20_000, sl.grids.LogSNR(12)
    model = Known(model=sl.models.ExactModel(LAW, process), values=VALUES, mask=MASK)
    solver = sl.solvers.RePaint(repeats=repeats, length=length)
    out = sl.sample(model, solver=solver, grid=grid, key=KEY, shape=(n, 3))
    mean, cov = chain(process, grid.times(process), repeats, length)
    x = np.asarray(out.x, np.float64)
    np.testing.assert_array_equal(x[:, MASK == 1], np.broadcast_to(VALUES[MASK == 1].astype(np.float32), (n, 2)))
    # Four standard errors.
    assert x[:, 1].mean() == pytest.approx(mean[1], abs=4 * np.sqrt(cov[1, 1] / n))
    assert x[:, 1].var() == pytest.approx(cov[1, 1], rel=4 * np.sqrt(2 / n))
    assert out.diagnostics["model_calls"] == repeats * 11 + 1


def test_the_error_of_replacement_falls_with_the_repeats():
    # Exactly, in float64 and without sampling, on a grid on which ancestral sampling loses 1 % of the variance by itself.
    truth, rest = float(conditional(LAW).mean[1]), COV[np.ix_([0, 2], [0, 2])]
    spread = COV[1, 1] - COV[1, [0, 2]] @ np.linalg.solve(rest, COV[[0, 2], 1])
    found = [chain(EDM, sl.grids.Karras(1000).times(EDM), repeats, 1) for repeats in (1, 4, 16)]
    mean = np.abs([m[1] - truth for m, _ in found])
    variance = np.abs([c[1, 1] / spread - 1 for _, c in found])
    # Without repeats more than a quarter of what the known part tells is missed, and the spread is a fifth too large.
    assert mean[0] > abs(truth - MEAN[1]) / 4
    assert variance[0] > 0.2
    assert np.all(mean[:-1] > 3 * mean[1:])
    assert np.all(variance[:-1] > 3 * variance[1:])


def test_stretches_are_walked_again_in_their_order():
    times = sl.grids.Karras(8).times(EDM)
    rows = sl.solvers.RePaint(repeats=2, length=3).table(EDM, times)
    walked = [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 6, 7]
    np.testing.assert_array_equal(rows.t, times[walked])
    np.testing.assert_array_equal(rows.step, np.maximum.accumulate(walked))
    # A jump goes back to where the next row begins, with the noise of the process.
    back = np.flatnonzero(np.diff(walked) < 1)
    np.testing.assert_array_equal(np.flatnonzero(rows.n), back)
    ends = times[np.array(walked)[back] + 1]
    np.testing.assert_allclose(rows.n[back], np.sqrt(times[np.array(walked)[back + 1]] ** 2 - ends**2))


def test_values_of_their_own_for_each_sample_and_other_images_compile_nothing():
    n, arguments = 12, dict(solver=sl.solvers.RePaint(repeats=2), grid=sl.grids.Karras(6), key=KEY)
    model = sl.models.ExactModel(LAW, EDM)
    each = np.random.default_rng(0).normal(size=(n, 3))
    whole = sl.sample(Known(model=model, values=each, mask=MASK), shape=(n, 3), chunk=5, **arguments).x
    np.testing.assert_array_equal(whole[:, MASK == 1], each[:, MASK == 1].astype(np.float32))
    compiled = sl.sampling._walk._cache_size()
    for row in (0, 7):
        # One value for all is that value for each: the chunks have one size, so the bits are the same.
        alone = Known(model=model, values=np.tile(each[row], (5, 1)), mask=MASK)
        one = sl.sample(alone, shape=(5, 3), ids=np.full(5, row), **arguments).x
        np.testing.assert_array_equal(one[0], whole[row])
    assert sl.sampling._walk._cache_size() == compiled


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(values=VALUES, mask=[0.5, 1, 0]), "Known.mask has the values"),
        (dict(values=np.ones((4, 2, 3)), mask=MASK), r"Known.values has shape \(4, 2, 3\)"),
        (dict(values=[np.nan, np.nan, 0.0], mask=MASK), "not finite where the mask is 1"),
    ],
)
def test_what_is_known_is_checked(fields, says):
    with pytest.raises(ValueError, match=says):
        Known(model=sl.models.ExactModel(LAW, EDM), **fields)


def test_unknown_pixels_need_no_number():
    known = Known(model=sl.models.ExactModel(LAW, EDM), values=[1.0, np.nan, 0.0], mask=MASK)
    assert np.all(np.isfinite(sl.sample(known, solver=sl.solvers.RePaint(), grid=sl.grids.Karras(5), key=KEY, shape=(3, 3)).x))


@pytest.mark.parametrize("solver", [sl.solvers.Heun(), sl.solvers.Brownian(solver=sl.solvers.DDIM(eta=1.0)), sl.solvers.RePaint()])
def test_solvers_that_cannot_be_walked_again_are_refused(solver):
    with pytest.raises(ValueError, match=r"RePaint.solver"):
        sl.solvers.RePaint(solver=solver)


def test_a_memory_a_model_without_known_values_and_a_wrong_number_of_rows_are_refused():
    model = Known(model=sl.models.ExactModel(LAW, EDM), values=np.ones((4, 3)), mask=MASK)
    arguments = dict(grid=sl.grids.Karras(5), key=KEY)
    with pytest.raises(ValueError, match="without memory"):
        sl.sample(model, solver=sl.solvers.RePaint(solver=sl.solvers.DPMSolverPP()), shape=(4, 3), **arguments)
    with pytest.raises(ValueError, match=r"expected models\.Known"):
        sl.sample(model.model, solver=sl.solvers.RePaint(), shape=(4, 3), **arguments)
    with pytest.raises(ValueError, match=r"Known.values has a leaf of shape \(4, 3\)"):
        sl.sample(model, solver=sl.solvers.RePaint(), shape=(5, 3), **arguments)


def test_what_is_known_is_read_or_refused():
    """A solver that does not look at it would sample without it, in silence."""
    law = sl.densities.Gaussian(np.zeros(2), 1.0)
    process = sl.processes.Gaussian(schedule=sl.schedules.EDM())
    plain = sl.models.ExactModel(law, process)
    known = sl.models.Known(model=plain, values=np.array([1.5, 0.0]), mask=np.array([1, 0]))
    walk = dict(grid=sl.grids.Karras(4), key=jax.random.key(0), shape=(4, 2))
    deep = sl.models.ClassifierFreeGuidance(model=known, scale=2.0)
    for model in (known, deep):
        for solver in (sl.solvers.Heun(), sl.fk.FeynmanKac(base=sl.solvers.DDIM(eta=1.0))):
            with pytest.raises(ValueError, match=r"models\.Known\), which \w+ does not read"):
                sl.sample(model, solver=solver, **walk)
        with pytest.raises(ValueError, match=r"log_likelihood\.model has what is known"):
            sl.log_likelihood(model, np.zeros((2, 2), np.float32))
        with pytest.raises(ValueError, match=r"invert\.model has what is known"):
            sl.invert(model, np.zeros((2, 2), np.float32), solver=sl.solvers.Heun(), grid=sl.grids.Karras(4))
    for model in (plain, deep):
        with pytest.raises(ValueError, match=r"expected models\.Known\(model="):
            sl.sample(model, solver=sl.solvers.RePaint(repeats=2), **walk)
    assert np.all(np.isfinite(sl.sample(known, solver=sl.solvers.RePaint(repeats=2), **walk).x))


def test_guidance_stays_apart_beside_what_is_known():
    guided = sl.models.RewardGradient(model=sl.models.ExactModel(LAW, EDM), reward=lambda x: x[:, 2])
    model, y = Known(model=guided, values=VALUES, mask=MASK), np.ones((4, 3), np.float32)
    said, plain = model(y, 1.0), guided(y, 1.0)
    np.testing.assert_array_equal(said.gradient, plain.gradient)
    np.testing.assert_array_equal(said.base.denoised, plain.base.denoised)
    # RePaint itself has no density to weigh by, and takes a guided model as it is.
    repaint = sl.solvers.RePaint(repeats=2)
    arguments = dict(grid=sl.grids.Karras(6), key=jax.random.key(0), shape=(32, 3))
    x = sl.sample(model, solver=repaint, **arguments).x
    np.testing.assert_allclose(x[:, MASK == 1], np.broadcast_to(VALUES[MASK == 1], x[:, MASK == 1].shape), atol=1e-6)
    with pytest.raises(ValueError, match=r"FeynmanKac\.base = RePaint.* with a guided model: expected a solver whose step"):
        sl.sample(model, solver=sl.fk.FeynmanKac(base=repaint), **arguments)
