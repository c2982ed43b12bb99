"""What every member promises of its numbers: float64 in, float64 throughout, and products of known laws with every digit.

Both are read from the traced program, so that nothing compiles: a type with fewer digits anywhere inside is a leak, and a product
that leaves its precision to the device would be one of TF32 or bfloat16 on an accelerator, 1e-3 off. Closed forms are held to
1e-10 beside it.
"""

import functools
import itertools
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from scorelab import (
    densities,
    fk,
    grids,
    invert,
    likelihood_bound,
    log_likelihood,
    losses,
    models,
    processes,
    sample,
    schedules,
    solvers,
    starts,
    training,
)
from scorelab.models.base import Trainable
from scorelab.randomness import per_example_keys
from scorelab.solvers import epsilons
from tests.contracts import members, test_losses, test_starts
from tests.precision import double
from tests.programs import float_types, products, result_types

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
VP = processes.Gaussian(schedule=schedules.VPLinear())
MEAN, COV = np.array([0.5, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]])
N = 5


@functools.cache
def again(module):
    """The names of a table of members, made anew in float64."""
    with jax.enable_x64(True):
        return runpy.run_path(module.__file__)


def assert_double(fn, *args):
    """No number of ``fn(*args)`` has fewer digits than float64, and no product may lose some on an accelerator."""
    assert result_types(args) <= {"float64"}
    assert float_types(fn, *args) == {"float64"}
    assert result_types(jax.eval_shape(fn, *args)) == {"float64"}
    assert [p for p in products(fn, *args) if not p.exact] == []


def points(*event, n=N):
    return np.random.default_rng(0).normal(size=(n, *event))


def gaussian():
    return densities.Gaussian(MEAN, COV)


def time_of(process, share=0.4):
    return np.float64(process.t_min + share * (process.t_max - process.t_min))


@pytest.mark.parametrize("name", members.DENSITIES)
@double
def test_laws(name):
    law = again(members)["DENSITIES"][name]
    assert_double(lambda key: law.sample(key, N), KEY)
    x, t = points(*law.event), np.float64(0.3)
    assert_double(lambda x, t: (law.log_prob(x), law.score(x), law.denoise(VP, x, t), law.noised(VP, t).score(x)), x, t)


@pytest.mark.parametrize("name", ["gaussian_full", "mixture_full", "conditioned_field", "isotropic_mixture", "rings"])
@double
def test_laws_to_ten_digits(name):
    """Tweedie: D = (y - b + sigma^2 score) / alpha, of two ways to compute; and the score is the gradient of log p."""
    law = again(members)["DENSITIES"][name]
    y, t = points(*law.event), np.float64(0.3)
    alpha, sigma, offset = (np.float64(f(t)) for f in (VP.alpha, VP.sigma, VP.offset))

    @jax.jit
    def both(y):
        noised = law.noised(VP, t)
        slope = jax.grad(lambda y: jnp.sum(noised.log_prob(y)))(y)
        return law.denoise(VP, y, t), (y - offset + sigma**2 * noised.score(y)) / alpha, noised.score(y), slope

    denoised, tweedie, score, slope = both(y)
    # The ring's noised density is a Bessel function, whose derivative is taken through its series.
    np.testing.assert_allclose(denoised, tweedie, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(score, slope, rtol=1e-10, atol=1e-10)


@double
def test_a_gaussian_to_twelve_digits():
    x = points(2)
    np.testing.assert_allclose(gaussian().log_prob(x), stats.multivariate_normal(MEAN, COV).logpdf(x), rtol=1e-12)
    # A process with a matrix in its law: log p of the noised one.
    t = np.float64(0.3)
    alpha, sigma = float(VP.alpha(t)), float(VP.sigma(t))
    noised = stats.multivariate_normal(alpha * MEAN, alpha**2 * COV + sigma**2 * np.eye(2))
    np.testing.assert_allclose(models.ExactModel(gaussian(), VP)(x, t).log_prob, noised.logpdf(x), rtol=1e-12)


@pytest.mark.parametrize("index", range(len(members.PROCESSES)), ids=lambda i: repr(members.PROCESSES[i])[:60])
@double
def test_processes(index):
    process = again(members)["PROCESSES"][index]
    x, t = np.asarray(process.decode(points(2))), time_of(process)

    def everything(key, x, t):
        noised = process.perturb(key, x, jnp.full(N, t))
        return noised, process.drift(x, t), process.diffusion(x, t), process.decode(noised.y), process.encode(x)

    assert_double(everything, KEY, x, t)


@pytest.mark.parametrize("name", test_starts.STARTS)
@double
def test_starts_of_every_kind(name):
    start, process = again(test_starts)["STARTS"][name]
    ids, t = jnp.arange(N), np.float64(0.6)

    def drawn(key, t):
        y = start.draw(per_example_keys(key, ids), ids, process, t, (1,))
        return y, start.log_prob(y, process, t)

    assert_double(drawn, KEY, t)


def with_matrices():
    """Starts and models that multiply matrices: full and low rank, mixtures, measured points, bridges."""
    low = again(members)["DENSITIES"]["gaussian_low_rank"]
    mixture = again(members)["DENSITIES"]["mixture_full"]
    model = models.ExactModel(gaussian(), VP)
    rng = np.random.default_rng(1)
    measured = dict(model=model, measurement=models.LinearMeasurement(matrix=rng.normal(size=(1, 2)), values=np.ones(1), std=0.2))
    bridge = processes.StochasticInterpolant(base=densities.Gaussian(np.zeros(2), np.array([[1.0, 0.3], [0.3, 0.8]])))
    teleport = lambda law, **label: (starts.Teleport(law, skip_steps=0, t_from=1.0, **label), law.event)
    return {
        "teleport": teleport(gaussian()),
        "teleport of low rank": teleport(low),
        "teleport of classes": teleport(mixture, label=np.arange(N, dtype=np.int32) % 3),
        "tempered product": (starts.Tempered(exponents=(2.0, 0.5), laws=(gaussian(), densities.Gaussian(np.zeros(2), 0.4))), (2,)),
        "TweedieCovariance": models.TweedieCovariance(**measured),
        "PiGDM": models.PiGDM(**measured),
        "SDA": models.SDA(**measured),
        "DPS": models.DPS(**measured, grid=grids.LogSNR(5)),
        "interpolant": models.ExactModel(gaussian(), bridge),
        "bridge": models.ExactBridge(models.Pieces.joined(gaussian(), bridge.base, std=0.5), bridge),
    }


@pytest.mark.parametrize(
    "name",
    [
        "teleport", "teleport of low rank", "teleport of classes", "tempered product", "TweedieCovariance", "PiGDM", "SDA", "DPS",
        "interpolant", "bridge",
    ],
)  # fmt: skip
@double
def test_products_of_matrices_have_every_digit(name):
    found, t = with_matrices()[name], np.float64(0.5)
    if isinstance(found, tuple):
        (start, event), ids = found, jnp.arange(N)
        fn, args = lambda key, t: start.draw(per_example_keys(key, ids), ids, VP, t, event), (KEY, t)
    else:
        fn, args = lambda y, t: found(y, t), (points(2), t)
    assert_double(fn, *args)
    # The table would be empty of meaning where there are none. A diagonal law has none, and DPS only derivatives.
    assert products(fn, *args) or name == "DPS"


@pytest.mark.parametrize("name", test_losses.LOSSES)
@double
def test_errors_of_losses(name):
    table = again(test_losses)
    loss = table["LOSSES"][name]
    truth = np.asarray(table["TRUTH"], np.float64)
    batch = {"x": np.asarray(loss.process.decode(points(2)))}

    def judged(key, truth, x):
        noised = loss.draw(key, {"x": x})
        return noised, loss.evaluate(table["learned"](truth, loss), noised)

    assert_double(judged, KEY, truth, batch["x"])


def reward(x):
    return -jnp.sum(x**2, axis=-1)


@pytest.mark.parametrize("solver", [s for s in members.SOLVERS if not isinstance(s, solvers.Renoise)], ids=str)
@double
def test_solvers(solver):
    grid = grids.LogSNR(4, clean=solver.calls_per_step is not None)
    law = gaussian()

    def draw(key):
        out = sample(models.ExactModel(law, VP), solver=solver, grid=grid, key=key, shape=(4, 2))
        return out.x, out.log_weights, out.log_z

    assert_double(draw, KEY)


PARTICLES = {
    "difference": (fk.Difference(reward, 1.0, every=2), fk.Always(), fk.systematic),
    "max": (fk.Max(reward, 1.0, every=2), fk.EssBelow(0.5), fk.stratified),
    "sum": (fk.Sum(reward, 1.0), fk.Islands(4), fk.multinomial),
    "current": (fk.Current(reward, 1.0), fk.BirthDeath(), fk.systematic),
    "final": (fk.FinalOnly(reward, 1.0), fk.Never(), fk.systematic),
    "residual": (fk.Difference(reward, 1.0), fk.Always(), fk.residual),
    "killing": (fk.Difference(reward, 1.0), fk.Always(), fk.killing),
    "ssp": (fk.Difference(reward, 1.0), fk.Always(), fk.ssp),
}


@pytest.mark.parametrize("name", PARTICLES)
@double
def test_weighted_particles(name):
    potential, policy, resampler = PARTICLES[name]
    solver = fk.FeynmanKac(base=solvers.EulerMaruyama(), potential=potential, policy=policy, resampler=resampler, particles=4)
    law = gaussian()

    def draw(key):
        out = sample(models.ExactModel(law, VP), solver=solver, grid=grids.LogSNR(4), key=key, shape=(8, 2))
        return out.x, out.log_weights, out.log_z, fk.weighted_mean(out.x, out.log_weights)

    assert_double(draw, KEY)


@double
def test_corrected_particles():
    mixture = again(members)["DENSITIES"]["mixture_full"]
    model, other = models.ExactModel(gaussian(), VP), models.ExactModel(mixture, VP)
    for corrected in (fk.annealed(model, 1.5), fk.geometric(model, other, 1.5), fk.product([model, other], 1.0)):
        solver = fk.FeynmanKac(base=solvers.EulerMaruyama(), potential=corrected.potential, policy=fk.EssBelow(0.5))

        def draw(key, corrected=corrected, solver=solver):
            grid = grids.LogSNR(4, clean=False)
            out = sample(corrected.model, solver=solver, start=corrected.start, grid=grid, key=key, shape=(8, 2))
            return out.x, out.log_weights, out.log_z

        assert_double(draw, KEY)


@double
def test_interpolants():
    process = processes.StochasticInterpolant(base=densities.Gaussian(np.zeros(2), np.array([[1.0, 0.3], [0.3, 0.8]])))
    for solver in (solvers.InterpolantODE(), solvers.InterpolantSDE(epsilon=epsilons.Constant(0.3))):
        model = models.ExactModel(gaussian(), process)
        draw = lambda key, solver=solver, model=model: sample(model, solver=solver, grid=grids.Uniform(4), key=key, shape=(4, 2)).x
        assert_double(draw, KEY)


@double
def test_likelihoods_and_bounds():
    model, x = models.ExactModel(gaussian(), VP), points(2)
    both = lambda x: (log_likelihood(model, x).log_prob, log_likelihood(model, x, probes=1, key=KEY).log_prob)
    assert_double(both, x)
    bound = likelihood_bound(model, x, key=KEY, grid=grids.LogSNR(6))
    assert result_types(bound) == {"float64"}
    # Ten digits: the tolerance of the adaptive solver is 1e-12, and its error some times that. At t_min the law is noised.
    alpha, sigma = (float(f(np.float64(VP.t_min))) for f in (VP.alpha, VP.sigma))
    exact = stats.multivariate_normal(alpha * MEAN, alpha**2 * COV + sigma**2 * np.eye(2)).logpdf(x)
    found = log_likelihood(model, x, rtol=1e-12, atol=1e-12)
    # The prior is N(0, sigma^2), the law at t_max N(alpha m, alpha^2 C + sigma^2): their difference at the latent is known.
    alpha, sigma = (float(f(np.float64(VP.t_max))) for f in (VP.alpha, VP.sigma))
    y = np.asarray(found.latent)
    prior = stats.norm(0, sigma).logpdf(y).sum(1)
    law = stats.multivariate_normal(alpha * MEAN, alpha**2 * COV + sigma**2 * np.eye(2)).logpdf(y)
    np.testing.assert_allclose(found.log_prob, exact + prior - law, atol=1e-10, rtol=0)


def ddim(process, times, y, law=(0.3, 0.8)):
    """DDIM for data N(m, v), in NumPy: y = alpha D + sigma eps at the new time."""
    mean, variance = law
    for t, s in itertools.pairwise(times):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        eps = sigma * (y - alpha * mean) / (alpha**2 * variance + sigma**2)
        y = float(process.alpha(s)) * (y - sigma * eps) / alpha + float(process.sigma(s)) * eps
    return y


@double
def test_sampling_and_inversion_to_ten_digits():
    model, grid, y = models.ExactModel(densities.Gaussian(np.array([0.3]), 0.8), VP), grids.LogSNR(6, clean=False), points(1)
    times = grid.times(VP)
    out = sample(model, solver=solvers.DDIM(), grid=grid, key=KEY, shape=(N, 1), start=starts.Fixed(y))
    np.testing.assert_allclose(out.x, ddim(VP, times, y), rtol=1e-10, atol=1e-10)
    up = invert(model, y, solver=solvers.DDIM(), grid=grid)
    # Data are put on the last time without noise.
    np.testing.assert_allclose(up, ddim(VP, times[::-1], float(VP.alpha(times[-1])) * y), rtol=1e-10, atol=1e-10)
    assert up.dtype == out.x.dtype == np.float64


@double
def test_weights_to_ten_digits():
    solver = fk.FeynmanKac(base=solvers.DDIM(), potential=fk.FinalOnly(reward, 0.7), policy=fk.Never())
    model, y = models.ExactModel(densities.Gaussian(np.array([0.3]), 0.8), VP), points(1, n=8)
    grid = grids.LogSNR(6, clean=False)
    out = sample(model, solver=solver, grid=grid, key=KEY, shape=(8, 1), start=starts.Fixed(y))
    x = ddim(VP, grid.times(VP), y)
    log_w = -0.7 * np.sum(x**2, axis=1)
    log_z = np.log(np.mean(np.exp(log_w)))
    np.testing.assert_allclose(out.log_z, log_z, rtol=1e-10)
    relative = np.asarray(out.log_weights) - np.asarray(out.log_weights).max()
    np.testing.assert_allclose(relative, log_w - log_w.max(), rtol=1e-10, atol=1e-10)
    weights = np.exp(log_w) / np.sum(np.exp(log_w))
    np.testing.assert_allclose(fk.weighted_mean(out.x, out.log_weights), weights @ x, rtol=1e-10)


class Mean(Trainable):
    """The model that says one point whatever it sees."""

    process = VP

    def init(self, key, x, cond=None, like=None):
        return {"mean": jnp.zeros(jnp.shape(x)[1:])}

    def bind(self, params, dropout=None):
        return models.FunctionModel(lambda y, t, cond=None: jnp.broadcast_to(params["mean"], y.shape), VP)


@pytest.mark.parametrize("clip_norm", [None, 1e-2])
@double
def test_an_update_to_ten_digits(clip_norm):
    loss = losses.DenoisingScoreMatching(VP, times=losses.UniformTimes())
    averages = (training.EMA(decay=0.9, warmup=False), training.PowerEMA(stds=(0.1,)))
    learner = training.ScoreLearner(Mean(), loss, optax.sgd(0.1), ema=averages, clip_norm=clip_norm)
    batch = {"x": points(2, n=16)}
    state = learner.init(KEY, batch)
    new, metrics = learner.update(state, batch, jax.random.key(4))
    assert result_types(state) == result_types(new) == result_types(metrics) == {"float64"}
    # The error is a multiple of |m - x|^2 for each example: its weight is read from the error at m = 0.
    noised = loss.draw(jax.random.split(jax.random.key(4))[0], batch)
    errors = np.asarray(loss.error(Mean().bind(state.params), noised))
    weight = errors / np.sum(batch["x"] ** 2, axis=1)
    gradient = np.mean(2 * weight[:, None] * (0 - batch["x"]), axis=0)
    norm = np.linalg.norm(gradient)
    gradient = gradient * (1 if clip_norm is None else min(1, clip_norm / norm))
    np.testing.assert_allclose(metrics["loss"], errors.mean(), rtol=1e-10)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-10)
    np.testing.assert_allclose(new.params["mean"], -0.1 * gradient, rtol=1e-10)
    # beta = .9, and in the first step of the other the initial parameters have no weight.
    np.testing.assert_allclose(new.averages[0]["mean"], -0.1 * gradient * 0.1, rtol=1e-10)
    np.testing.assert_allclose(new.averages[1][0]["mean"], -0.1 * gradient, rtol=1e-10)
