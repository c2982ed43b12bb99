"""Gauges leave a law alone: residuals, closed forms of wrong scores, the projection on gradients, and the flow itself."""

import jax
import numpy as np
import pytest

import scorelab as sl
from scorelab import densities, diagnostics, grids, models, processes, schedules, solvers, starts
from scorelab.diagnostics.levels import by_level
from tests.diagnostics.fields import mapped, turn
from tests.precision import double

KEY = jax.random.key(0)
VP = processes.Gaussian(schedule=schedules.VPLinear())
VE = processes.Gaussian(schedule=schedules.VE(sigma_min=0.01, sigma_max=50.0))
SIGMAS = np.array([0.3, 1.0, 5.0])
COV = np.array([[1.0, 0.3, 0.1, 0.0], [0.3, 0.5, 0.0, 0.1], [0.1, 0.0, 0.8, 0.2], [0.0, 0.1, 0.2, 0.3]])
GAUGE = turn(4, 0.4)


def mixture():
    covs = np.array([[0.2, 0.4], [0.3, 0.1], [0.3, 0.3]])
    return densities.GaussianMixture([0.5, 0.3, 0.2], [[0.0, 1.0], [1.0, -0.5], [-1.0, -0.5]], covs)


def gaussian():
    return densities.Gaussian(np.arange(4) / 4, COV)


LAWS = {
    "mixture, VP": (mixture, VP, turn(2, 0.7)),
    "mixture, VE": (mixture, VE, turn(2, 2.0)),
    "Gaussian, VP": (gaussian, VP, GAUGE),
    "Gaussian, VE": (gaussian, VE, GAUGE),
}


@pytest.mark.parametrize("name", LAWS)
@double
def test_a_turned_score_is_a_gauge_and_no_gradient(name):
    make, process, gauge = LAWS[name]
    law = make()
    model, data = mapped(law, process, np.eye(len(gauge)) + gauge), law.sample(KEY, 1000)
    found = diagnostics.gauge_residual(model, law, data, SIGMAS, batch=1000)
    np.testing.assert_allclose(found.mean_square, 0.0, atol=1e-16)
    assert np.all(found.error > 0.01)
    np.testing.assert_allclose(found.gradient + found.remainder, found.error, rtol=1e-8)
    # As many directions of a fit as potentials, of as many as there are numbers: what chance alone would find, and no more.
    share = found.potentials / data.size
    assert np.all(found.gradient < 4 * share * found.error)


@double
def test_the_exact_model_has_nothing_to_tell():
    law = mixture()
    found = diagnostics.gauge_residual(models.ExactModel(law, VP), law, law.sample(KEY, 20), SIGMAS)
    for value in (found.mean_square, found.error, found.gradient, found.remainder, found.remainder_residual):
        np.testing.assert_allclose(value, 0.0, atol=1e-16)


@double
def test_a_score_of_another_size_is_a_gradient_and_no_gauge():
    """Of c s more g = c (sigma^2 sum 1/v_i (1 - z_i^2)), whose mean square is 2 c^2 sigma^4 sum 1/v_i^2; v of the noised law."""
    law, n = gaussian(), 4000
    model = mapped(law, VE, 1.1 * np.eye(4))
    found = diagnostics.gauge_residual(model, law, law.sample(KEY, n), SIGMAS, batch=n)
    variances = np.linalg.eigvalsh(COV) + SIGMAS[:, None] ** 2
    exact = 2 * 0.1**2 * SIGMAS**4 * np.sum(1 / variances**2, axis=1) / 4
    np.testing.assert_array_less(np.abs(found.mean_square - exact), 4.5 * found.standard_error)
    # All of the error is the gradient of a quadratic potential, and nothing is left.
    np.testing.assert_allclose(found.gradient, found.error, rtol=1e-8)
    np.testing.assert_allclose(found.remainder, 0.0, atol=1e-16)
    np.testing.assert_allclose(found.remainder_residual, 0.0, atol=1e-16)
    size = 0.1**2 * SIGMAS**2 * np.sum(1 / variances, axis=1) / 4
    np.testing.assert_allclose(found.error, size, rtol=4.5 * np.sqrt(2 / (4 * n)) * 2)


@double
def test_the_residual_of_a_point_is_that_of_the_formula():
    """For r = N (y - mean) and score -P (y - mean): g = -sigma^2 (tr N - r . P (y - mean)), by hand at given points."""
    law, sigma = gaussian(), 0.8
    model = mapped(law, VE, np.eye(4) + np.arange(16).reshape(4, 4) / 20)
    data = np.asarray(law.sample(KEY, 6))
    found = diagnostics.gauge_residual(model, law, data, (sigma,), potentials=None)
    _, y = by_level(_y, model, data, (sigma,))
    y, p = y[0] - np.arange(4) / 4, np.linalg.inv(COV + sigma**2 * np.eye(4))
    field = -(np.arange(16).reshape(4, 4) / 20) @ p
    g = -(sigma**2) * (np.trace(field) - np.sum((y @ field.T) * (y @ p), axis=1))
    np.testing.assert_allclose(found.mean_square[0], np.mean(g**2) / 4, rtol=1e-8)
    np.testing.assert_allclose(found.standard_error[0], np.std(g**2 / 4, ddof=1) / np.sqrt(6), rtol=1e-8)
    assert found.potentials == 0
    assert np.isnan([found.gradient, found.remainder, found.remainder_residual]).all()


def _y(model, noised):
    return noised.y


@double
def test_the_projection_of_a_linear_error_solves_lyapunovs_equation():
    """The gradient field S z, S symmetric, nearest to N z under a covariance C has S C + C S = N C + C N^T."""
    law, sigma, n = gaussian(), 0.8, 3000
    matrix = np.arange(16).reshape(4, 4) / 20 + GAUGE
    data = np.asarray(law.sample(KEY, n))
    found = diagnostics.gauge_residual(mapped(law, VE, np.eye(4) + matrix), law, data, (sigma,), batch=n)
    cov = COV + sigma**2 * np.eye(4)
    error = sigma * matrix @ np.linalg.inv(cov)
    kron = np.kron(cov, np.eye(4)) + np.kron(np.eye(4), cov)
    right = error @ cov + cov @ error.T
    s = np.linalg.solve(kron, right.ravel()).reshape(4, 4)
    np.testing.assert_allclose(s, s.T, atol=1e-12)
    size = lambda m: np.trace(m @ cov @ m.T) / 4
    # Orthogonal: the sizes add.
    assert size(s) + size(error - s) == pytest.approx(size(error), rel=1e-10)
    # A mean of 3000 squares of normal numbers, 4.5 of its standard errors at most.
    rtol = 4.5 * np.sqrt(2 / n)
    np.testing.assert_allclose(found.error[0], size(error), rtol=rtol)
    np.testing.assert_allclose(found.gradient[0], size(s), rtol=rtol)
    np.testing.assert_allclose(found.remainder[0], size(error - s), rtol=rtol)
    # What is left is a gauge up to the fit of so many points, and the error is not.
    assert found.remainder_residual[0] < 0.01 * found.mean_square[0]


@double
def test_richer_potentials_explain_more_and_say_so():
    """The error of a mixture's score of another size: a gradient that is not quadratic."""
    law = mixture()
    model, data = mapped(law, VE, 1.1 * np.eye(2)), law.sample(KEY, 2000)
    few, many = (
        diagnostics.gauge_residual(model, law, data, (0.3, 1.0), potentials=potentials, batch=2000)
        for potentials in (diagnostics.quadratic, diagnostics.Waves(count=100))
    )
    assert (few.potentials, many.potentials) == (5, 105)
    np.testing.assert_allclose(few.error, many.error, rtol=1e-10)
    assert few.remainder[0] > 0.1 * few.error[0]
    assert np.all(many.remainder < 0.01 * many.error)
    assert np.all(many.remainder_residual < 0.05 * many.mean_square)
    assert few.remainder_residual[0] > 5 * many.remainder_residual[0]
    # The size of a potential, or its sign, is nothing to a projection.
    scaled = lambda z: -1e6 * diagnostics.quadratic(z)
    same = diagnostics.gauge_residual(model, law, data, (0.3,), potentials=scaled, batch=2000)
    np.testing.assert_allclose(same.gradient, few.gradient[:1], rtol=1e-8)


@double
def test_probes_have_the_exact_square_for_their_mean():
    law = gaussian()
    model, data = mapped(law, VE, np.eye(4) + np.arange(16).reshape(4, 4) / 20), np.asarray(law.sample(KEY, 1))
    point = np.repeat(data, 2000, axis=0)
    exact = diagnostics.gauge_residual(model, law, point, (0.8,), batch=2000)
    found = diagnostics.gauge_residual(model, law, point, (0.8,), probes=2, batch=2000)
    assert found.standard_error[0] > exact.standard_error[0]
    # The same noised points, so that the difference is of the probes alone.
    assert abs(found.mean_square[0] - exact.mean_square[0]) < 4.5 * found.standard_error[0]
    assert abs(found.remainder_residual[0] - exact.remainder_residual[0]) < 4.5 * found.standard_error[0]
    np.testing.assert_allclose(found.error, exact.error, rtol=1e-12)


def flowed(model, law, sigma_max, sigma_min, steps=400):
    """The linear map of the flow of a model of a centred Gaussian, from one noise level to another."""
    corners = starts.Fixed(np.eye(2))
    t_max, t_min = (float(VE.schedule.time(-2 * np.log(sigma))) for sigma in (sigma_max, sigma_min))
    grid = grids.LogSNR(steps, t_max=t_max, t_min=t_min, clean=False)
    return np.asarray(sl.sample(model, solver=solvers.Heun(), grid=grid, key=KEY, shape=(2, 2), start=corners).x, np.float64).T


@double
def test_the_flow_keeps_the_covariance_under_a_gauge_and_loses_it_under_a_wrong_size():
    r"""With :math:`s_\theta = -(I+J)C_t^{-1}y` the covariance has the rate :math:`\tfrac12 g^2(2I + J + J^\top) = g^2 I` at
    :math:`C_t`, whatever that is. With :math:`c\,s` the ratio of variances is :math:`((\lambda+a)/(\lambda+b))^c`."""
    variances, high, low = np.array([1.0, 0.09]), 4.0, 0.05
    law = densities.Gaussian(np.zeros(2), variances)
    begin, end = variances + high**2, variances + low**2
    turned = flowed(mapped(law, VE, np.eye(2) + turn(2)), law, high, low)
    # Heun's error is of second order in 400 steps of .011 e-folds; halving them is 4 times as much.
    np.testing.assert_allclose(turned @ np.diag(begin) @ turned.T, np.diag(end), atol=1e-4)
    assert np.abs(turned - np.diag(np.sqrt(end / begin))).max() > 0.02
    wrong = flowed(mapped(law, VE, 1.1 * np.eye(2)), law, high, low)
    np.testing.assert_allclose(wrong @ np.diag(begin) @ wrong.T, np.diag(begin * (end / begin) ** 1.1), atol=1e-4)
    assert np.abs(begin * (end / begin) ** 1.1 / end - 1).min() > 0.2


def test_a_law_in_data_space_is_taken_to_the_chart():
    process = processes.GeometricBrownianMotion(sigma=1.5, mu=0.5)
    law = densities.LogNormalMixture([0.5, 0.5], [[0.0, 1.0], [1.0, -0.5]], [0.1, 0.2])
    found = diagnostics.gauge_residual(models.ExactModel(law, process), law, law.sample(KEY, 20), (0.3, 1.0))
    np.testing.assert_allclose(found.mean_square, 0.0, atol=1e-10)
    shifted = densities.LogNormalMixture([0.5, 0.5], [[0.3, 1.0], [1.0, -0.5]], [0.1, 0.2])
    assert np.all(
        diagnostics.gauge_residual(models.ExactModel(shifted, process), law, law.sample(KEY, 20), (0.3, 1.0)).mean_square > 1e-4
    )


def test_a_model_that_is_not_finite_is_told_as_such():
    broken = models.FunctionModel(lambda y, t, cond: y * np.nan, VP, returns="eps")
    found = diagnostics.gauge_residual(broken, mixture(), np.zeros((9, 2), np.float32), (1.0,))
    assert np.isnan([found.mean_square, found.error, found.gradient, found.remainder, found.remainder_residual]).all()


def of(**options):
    given = dict(law=mixture(), data=np.zeros((9, 2), np.float32), sigmas=SIGMAS) | options
    model = given.pop("model", models.ExactModel(mixture(), VP))
    return lambda: diagnostics.gauge_residual(model, given.pop("law"), given.pop("data"), given.pop("sigmas"), **given)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (of(law=3.0), "gauge_residual.law = 3.0: expected a Density"),
        (of(data=np.zeros((9, 3), np.float32)), r"gauge_residual.data has shape \(9, 3\): expected \(n, \*\(2,\)\)"),
        (of(data=np.full((9, 2), np.nan, np.float32)), "gauge_residual.data has 18 values that are not finite"),
        (of(probes=1), "gauge_residual.probes = 1: expected 0, or 2 and more"),
        (of(data=np.zeros((4, 2), np.float32)), "gauge_residual.potentials are 5 for 4 points"),
        (of(potentials=3), "gauge_residual.potentials = 3: expected a function"),
        (of(potentials=lambda z: z[:, 0]), r"gauge_residual.potentials returned shape \(3,\)"),
        (of(potentials=lambda z: z * np.nan), "gauge_residual.potentials have .* derivatives that are not finite"),
        (of(sigmas=(-1.0,)), "gauge_residual.sigmas has the value -1"),
        (of(model=abs), "expected a model, which knows its process"),
        (lambda: diagnostics.Waves(count=0), "Waves.count = 0: expected an integer >= 1"),
        (lambda: diagnostics.Waves(frequency=-1.0), "Waves.frequency = -1.0: expected a finite number above 0"),
    ],
)
def test_errors(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()
