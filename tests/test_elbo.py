"""The lower bound of the SDE's likelihood against Gaussian recursions and mixtures."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import solve_ivp

import scorelab as sl
from scorelab import densities, grids, models, processes, schedules, starts
from scorelab.processes import gammas
from scorelab.solvers import epsilons
from tests.interpolants import laws

KEY = jax.random.key(0)
DATA, BASE = (-1.0, 0.3), (0.3, 1.0)
X = np.array([[-1.0], [-2.0]])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def bridge():
    return processes.StochasticInterpolant(base=densities.Gaussian(np.array([BASE[0]]), BASE[1]))


def exact():
    return models.ExactModel(densities.Gaussian(np.array([DATA[0]]), DATA[1]), bridge())


def wrong(score=1.0, drift=0.0):
    """The exact model with a score that is too large by a factor, and a velocity that is off by a number."""
    right = exact()

    def fn(y, t, cond=None):
        found = right(y, t)
        return right.process.predict(y, t, velocity=found.velocity + drift, eta=score * found.eta)

    return models.FunctionModel(fn, right.process, returns="prediction")


def slopes(t, score, drift):
    """What :func:`wrong` is, by Gaussian formulas: the velocity ``gain (y - mean) + shift``, the score ``-pull (y - mean)``."""
    alpha, beta, rate, variance = 1 - t, t, 0.5 - t, t * (1 - t)
    mean, cov = alpha * DATA[0] + beta * BASE[0], alpha**2 * DATA[1] + beta**2 * BASE[1] + variance
    return mean, BASE[0] - DATA[0] + drift, (-alpha * DATA[1] + beta * BASE[1] + rate) / cov, score / cov


def model_law(eps, score=1.0, drift=0.0):
    """Mean and deviation of the samples of its SDE, which is linear, by an integration of their own equations."""

    def backwards(r, state):
        m, v = state
        mean, shift, gain, pull = slopes(1 - r, score, drift)
        a = -gain - eps * pull
        return [a * (m - mean) - shift, 2 * a * v + 2 * eps]

    end = solve_ivp(backwards, (0, 1), [BASE[0], BASE[1]], rtol=1e-10, atol=1e-12).y[:, -1]
    return end[0], np.sqrt(end[1])


def bound(model, eps, x=X, steps=200, paths=256, **options):
    return sl.likelihood_bound(model, x, grid=grids.Arcsine(steps), epsilon=epsilons.Constant(eps), key=KEY, paths=paths, **options)


def model_bound(eps, score=1.0, drift=0.0):
    r"""The mean of the bound over paths at ``X``: :math:`dY = (u + \epsilon s)dt + \sqrt{2\epsilon}dW` has Gaussian moments.

    .. math:: E\log p_T(Y_T) + \int\big(\nabla\!\cdot(u - \epsilon s) - \epsilon E|s|^2\big)dt .
    """

    def forwards(t, state):
        m, v, _ = state
        mean, shift, gain, pull = slopes(t, score, drift)
        a = gain - eps * pull
        return [a * (m - mean) + shift, 2 * a * v + 2 * eps, gain + eps * pull - eps * pull**2 * (v + (m - mean) ** 2)]

    ends = [solve_ivp(forwards, (0, 1), [x, 0.0, 0.0], rtol=1e-10, atol=1e-12).y[:, -1] for x in X[:, 0]]
    return np.array([a - 0.5 * ((v + (m - BASE[0]) ** 2) / BASE[1] + np.log(2 * np.pi * BASE[1])) for m, v, a in ends])


@pytest.mark.parametrize("eps", [0.2, 0.7, 2.0])
def test_an_equality_at_the_exact_score(eps):
    found = bound(exact(), eps)
    truth = stats.norm.logpdf(X[:, 0], DATA[0], np.sqrt(DATA[1]))
    # The error of 100 steps is 3e-3 at most and of order 2.
    np.testing.assert_allclose(found.log_prob, truth, atol=1e-3)
    # On every path the same number: without the integral over dW the spread is 1 to 2 nats.
    assert np.std(found.log_weights, axis=1).max() < 0.01
    assert "SDE" in found.law
    assert "Constant" in found.law


@pytest.mark.parametrize("errors", [dict(score=1.2), dict(drift=0.3)], ids=str)
def test_wrong_heads_give_less_than_the_models_own_law(errors):
    eps = 0.7
    mean, std = model_law(eps, **errors)
    own = stats.norm.logpdf(X[:, 0], mean, std)
    # Nothing is wrong: both derivations have the law of the data then, to the tolerance of their integrations.
    np.testing.assert_allclose(model_law(eps), (DATA[0], np.sqrt(DATA[1])), atol=1e-8)
    np.testing.assert_allclose(model_bound(eps), stats.norm.logpdf(X[:, 0], DATA[0], np.sqrt(DATA[1])), atol=1e-8)
    found = bound(wrong(**errors), eps, paths=2000)
    error = np.asarray(found.standard_error)
    assert np.all(found.log_prob < own)
    # Four standard errors, beside the 1e-3 of as many steps at the exact score.
    assert np.all(abs(found.log_prob - model_bound(eps, **errors)) < 4 * error + 1e-3)
    # The weights themselves have the density as their mean.
    density = np.exp(np.asarray(found.log_weights))
    off = density.mean(1) - np.exp(own)
    assert np.all(abs(off) < 4 * density.std(1) / np.sqrt(2000) + 1e-3)


def test_the_order_in_the_steps():
    truth = stats.norm.logpdf(X[:, 0], DATA[0], np.sqrt(DATA[1]))
    found = [bound(exact(), 2.0, steps=n, paths=2000) for n in (16, 64)]
    errors = [np.abs(np.asarray(each.log_prob) - truth) for each in found]
    spread = [np.asarray(each.standard_error) for each in found]
    order = np.log(errors[0] / errors[1]) / np.log(4)
    # Four standard errors of the order itself, a seventh: what is of higher order is below them.
    sampling = np.hypot(*(each / error for each, error in zip(spread, errors, strict=True))) / np.log(4)
    assert np.all(4 * sampling < 0.15)
    assert np.all(abs(order - 2) < 4 * sampling)
    # Of order 1 and not 1/2, where the ratio is 2: at least 4, less four standard errors of two deviations over 2000 paths.
    assert np.all(spread[0] / spread[1] > 4 * (1 - 4 / np.sqrt(2000)))


MIXED = {
    "Brownian": ("linear, Brownian", epsilons.Proportional(4.0)),
    "quadratic": ("trigonometric, quadratic", epsilons.Capped(4.0, limit=0.5)),
    "constant": ("linear, quadratic", epsilons.Constant(0.5)),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixtures_at_both_ends(name):
    pair, epsilon = MIXED[name]
    model = models.ExactModel(laws.data(), laws.process(pair))
    x = np.array([[0.3, -0.7], [-2.0, 1.0], [1.5, -1.0]])
    found = sl.likelihood_bound(model, x, grid=grids.Arcsine(200), epsilon=epsilon, key=KEY, paths=64)
    truth = np.asarray(laws.data().log_prob(x))
    np.testing.assert_allclose(truth[:2], [-4.2745722862, -2.2187121598], atol=1e-9)
    # The error of the steps is of order 2, and far below the spread over paths, of order 1.
    assert np.all(abs(found.log_prob - truth) < 4 * np.asarray(found.standard_error))


GAUSSIAN = {
    "vp": (processes.Gaussian(schedule=schedules.VPLinear()), epsilons.Reverse()),
    "edm, half": (processes.Gaussian(schedule=schedules.EDM(sigma_max=20.0)), epsilons.Reverse(0.5)),
    "flow, constant": (processes.Gaussian(schedule=schedules.RectifiedFlow(t_max=0.99)), epsilons.Constant(0.5)),
    "multiplicative": (processes.GeometricBrownianMotion(schedule=schedules.GBMClock(volatility=2.0)), epsilons.Reverse()),
}


@pytest.mark.parametrize("name", GAUSSIAN)
def test_linear_gaussian_processes_in_their_charts(name):
    process, epsilon = GAUSSIAN[name]
    law = laws.data()
    x = np.array([[0.3, 0.7], [2.0, 1.0], [1.5, 0.2]])
    found = sl.likelihood_bound(
        models.ExactModel(law, process), x, grid=grids.LogSNR(250), epsilon=epsilon, key=KEY, paths=16, start=starts.Noised(law)
    )
    y = process.encode(x)
    truth = np.asarray(law.noised(process, process.t_min).log_prob(y))
    if name == "multiplicative":
        truth = truth - np.sum(np.log(x), axis=1)
    # As of the mixtures above.
    assert np.all(abs(found.log_prob - truth) < 4 * np.asarray(found.standard_error))


def test_probes_are_without_bias():
    one = np.broadcast_to(np.array([[0.3, -0.7]]), (200, 2))
    model, grid = models.ExactModel(laws.data(), laws.process("linear, Brownian")), grids.Arcsine(50)
    options = dict(grid=grid, epsilon=epsilons.Constant(0.5), key=KEY, paths=4)
    right, rough = (np.asarray(sl.likelihood_bound(model, one, probes=k, **options).log_prob) for k in (0, 1))
    assert (rough - right).std() > 1e-2
    assert abs((rough - right).mean()) < 4 * (rough - right).std() / np.sqrt(200)


def test_paths_depend_on_key_and_id_alone():
    model, options = exact(), dict(grid=grids.Arcsine(10), key=KEY, paths=3)
    whole = sl.likelihood_bound(model, X, **options).log_weights
    chunked = sl.likelihood_bound(model, X, chunk=4, **options).log_weights
    alone = sl.likelihood_bound(model, X[1:], ids=np.array([1]), **options).log_weights
    np.testing.assert_allclose(chunked, whole, rtol=1e-9)
    np.testing.assert_allclose(alone, whole[1:], rtol=1e-9)
    assert np.isnan(sl.likelihood_bound(model, X, **{**options, "paths": 1}).standard_error).all()
    assert len(np.unique(np.asarray(whole))) == 6


def test_the_gradient_is_that_of_the_data():
    law = densities.Gaussian(np.array([0.3, -0.2]), np.array([[0.5, 0.1], [0.1, 0.4]]))
    process = processes.Gaussian(schedule=schedules.VPLinear())
    model, x = models.ExactModel(law, process), np.array([[0.5, 0.1]])
    total = lambda x: sl.likelihood_bound(model, x, grid=grids.LogSNR(100), key=KEY, paths=4).log_prob[0]
    slope = jax.grad(total)(x)
    np.testing.assert_allclose(slope, law.noised(process, process.t_min).score(x), atol=0.02)


def test_the_one_call_bound_has_the_gradient_of_the_density():
    """For learning: of a Gaussian its mean over draws is the log-density up to a constant."""
    law = densities.Gaussian(np.array([0.5]), 0.2)
    process = processes.Gaussian(schedule=schedules.VPLinear(t_min=1e-3))
    model = models.ExactModel(law, process)
    # In turn, since neighbours see neighbouring times.
    y = np.tile(np.array([[0.1], [1.3]]), (40_000, 1))
    found = np.asarray(sl.elbo.denoising_bound(model, y, KEY)).reshape(-1, 2).T
    difference = found[0].mean() - found[1].mean()
    truth = float(np.subtract(*np.asarray(law.log_prob(np.array([[0.1], [1.3]])))))
    error = np.hypot(*(found.std(1) / 200))
    assert error < 0.1
    assert abs(difference - truth) < 4 * error


def test_what_has_no_bound_is_refused_by_name():
    options = dict(grid=grids.Arcsine(10), key=KEY)
    points = dataclasses.replace(bridge(), base=np.zeros((5, 1)))
    velocity = lambda y, t, cond=None: points.predict(y, t, velocity=y, eta=y)
    with pytest.raises(ValueError, match="base has no density"):
        sl.likelihood_bound(models.FunctionModel(velocity, points, returns="prediction"), X, **options)
    silent = dataclasses.replace(bridge(), gamma=gammas.Zero())
    with pytest.raises(ValueError, match="gamma that is not zero"):
        sl.likelihood_bound(models.ExactModel(densities.Gaussian(np.zeros(1), 1.0), silent), X, **options)
    plain = bridge()
    only = lambda y, t, cond=None: plain.predict(y, t, velocity=y)
    with pytest.raises(TypeError, match="likelihood_bound needs HasLatent"):
        sl.likelihood_bound(models.FunctionModel(only, plain, returns="prediction"), X, **options)
    with pytest.raises(ValueError, match=r"grid = .* goes from t = 0.1 to 1: expected 0 and 1"):
        sl.likelihood_bound(exact(), X, grid=grids.Uniform(5, t_min=0.1, clean=False), key=KEY)
    with pytest.raises(ValueError, match=r"epsilon = .* is 0 on"):
        sl.likelihood_bound(exact(), X, epsilon=epsilons.Constant(0.0), **options)
    with pytest.raises(TypeError, match=r"Reverse.process = .*: expected a LinearGaussian"):
        sl.likelihood_bound(exact(), X, epsilon=epsilons.Reverse(), **options)
    flow = models.ExactModel(densities.Gaussian(np.zeros(1), 1.0), processes.Gaussian(schedule=schedules.RectifiedFlow()))
    with pytest.raises(ValueError, match=r"noise ratio of .* is infinite"):
        sl.likelihood_bound(flow, X, grid=grids.Uniform(10), key=KEY)
    with pytest.raises(TypeError, match=r"epsilons.SchroedingerBridge\(\).process = .*: expected a StochasticInterpolant"):
        sl.likelihood_bound(flow, X, grid=grids.LogSNR(10, t_max=0.9), epsilon=epsilons.SchroedingerBridge(), key=KEY)
    with pytest.raises(TypeError, match=r"Proportional.process = .*: expected a StochasticInterpolant"):
        sl.likelihood_bound(flow, X, grid=grids.LogSNR(10, t_max=0.9), epsilon=epsilons.Proportional(), key=KEY)
    with pytest.raises(ValueError, match=r"likelihood_bound.paths = 0"):
        sl.likelihood_bound(exact(), X, paths=0, **options)
    with pytest.raises(ValueError, match="rows that are not finite: 1 of 2"):
        sl.likelihood_bound(exact(), np.array([[0.0], [np.nan]]), **options)
