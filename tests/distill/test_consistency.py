"""Consistency training and distillation on Gaussian data, whose consistency function is known."""

import itertools
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scorelab import grids, models, sample, solvers, starts
from scorelab.arrays import per_example
from scorelab.distill.consistency import ConsistencyDistillation, ConsistencyTraining
from scorelab.losses import LogNormalTimes
from scorelab.models.denoiser import Denoiser
from scorelab.training import ScoreLearner, fit

from .gaussian import MEAN, PROCESSES, STD, centred, consistency, data, levels, t_max, teacher

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(3)
PLAIN = dict(times=None, huber=None, weighting="uniform")


def crossed(default, *columns):
    """All combinations; those that are not named are of the long tail."""
    return [pytest.param(*case, marks=() if case in default else pytest.mark.long) for case in itertools.product(*columns)]


@pytest.mark.parametrize(("process", "order"), crossed([("log", 1), ("flow", 2)], PROCESSES, [1, 2]))
def test_the_exact_function_has_the_error_of_one_step(process, order):
    # A step of order k is wrong by h^(k+1), and the loss is the square of that.
    process = PROCESSES[process]
    with jax.enable_x64(True):
        batch = {"x": data(process, 20_000)}

        def value(steps):
            loss = ConsistencyDistillation(process, teacher=teacher(process), grid=levels(process, steps), order=order, **PLAIN)
            return float(jnp.mean(jax.jit(partial(loss, model=consistency(process)))(KEY, batch=batch)))

        slope = np.log2(value(96) / value(192))
    assert slope == pytest.approx(2 * (order + 1), abs=0.2)


def factors(process, grid, rule):
    """Slopes ``A_n`` of the minimiser ``m + A_n (x - m)`` on a grid, in units of the data, and the noise ratios, from the smallest.

    One step of the flow multiplies ``x - m`` by a number, as the flow is linear; the minimiser composes the steps.
    """
    r = np.asarray(process.noise_ratio(grid.times(process)[::-1]))
    low, high = r[:-1], r[1:]
    rate = lambda r: r / (STD**2 + r**2)  # dx/dr = (r / (s^2 + r^2)) (x - m)
    euler = 1 + (low - high) * rate(high)
    heun = 1 + (low - high) / 2 * (rate(high) + rate(low) * euler)
    return np.append(1.0, np.cumprod(euler if rule == 1 else heun)), r


def table_model(process, grid, slopes):
    """A model with one slope for each noise level."""
    times, slopes = grid.times(process)[::-1].copy(), jnp.asarray(slopes)

    def model(y, t, cond=None):
        index = jnp.argmin(jnp.abs(t[:, None] - times), axis=1)
        x, _ = centred(process, y, t)
        return process.predict(y, t, denoised=MEAN + per_example(slopes[index], y) * (x - MEAN))

    return models.FunctionModel(model, process, returns="prediction")


@pytest.mark.parametrize(("process", "rule"), crossed([("edm", 2), ("vp", 1), ("log", 2)], ["edm", "vp", "log"], [1, 2]))
def test_the_composed_steps_of_the_teacher_leave_no_loss(process, rule):
    process = PROCESSES[process]
    with jax.enable_x64(True):
        grid = levels(process, 6)
        loss = ConsistencyDistillation(process, teacher=teacher(process), grid=grid, order=rule, **PLAIN)
        slopes = factors(process, grid, rule)[0]
        wrong = slopes * np.array([1, *[1.2, 0.8] * 3])
        value = jax.jit(lambda slopes, x: loss(KEY, table_model(process, grid, slopes), {"x": x}).max())
        x = np.asarray(data(process, 2000))
        assert value(slopes, x) < 1e-24
        assert value(wrong, x) > 1e-4


@pytest.mark.parametrize("process", ["edm", pytest.param("vp", marks=pytest.mark.long), "log"])
def test_training_without_a_teacher_is_stationary_at_the_composed_euler_steps(process):
    # The mean of the lower point given the upper one is an Euler step. With the defaults: the pseudo-Huber distance has the same
    # minimiser, since the law of the target is symmetric around its mean here, and weights and times do not matter.
    process = PROCESSES[process]
    with jax.enable_x64(True):
        grid = levels(process, 6)
        loss = ConsistencyTraining(process, grid=grid, times=LogNormalTimes(mean=0.5, std=2.0))
        batch = {"x": data(process, 20_000)}

        @jax.jit
        def gradients(slopes):
            return jax.jacfwd(lambda s: loss(KEY, table_model(process, grid, s), batch))(slopes)

        def standardised(slopes):
            # The smallest level, the boundary, is never predicted for.
            g = np.asarray(gradients(slopes))[:, 1:]
            return np.abs(g.mean(0)) / (g.std(0) / np.sqrt(len(g)))

        slopes, _ = factors(process, grid, 1)
        assert standardised(slopes).max() < 4, standardised(slopes)
        assert standardised(slopes * np.array([1, *[1.2, 0.8] * 3]))[1:].min() > 8


@dataclass(frozen=True)
class Table:
    """A network with one slope and one intercept for each noise level."""

    c_noise: tuple[float, ...]

    def init(self, key, x, c_noise, cond=None):
        return jnp.zeros((len(self.c_noise), 2))

    def apply(self, params, x, c_noise, cond=None):
        own = params[jnp.argmin(jnp.abs(c_noise[:, None] - jnp.asarray(self.c_noise)), axis=1)]
        return own[:, :1] * x + own[:, 1:]


class Points:
    def __init__(self, process):
        self.process = process

    def at(self, step):
        return {"x": np.asarray(data(self.process, 1024, seed=step), np.float32)}


@pytest.mark.parametrize(("process", "rule"), [("edm", "training"), pytest.param("vp", 2, marks=pytest.mark.long), ("log", 2)])
def test_training_reaches_the_exact_coefficients(process, rule):
    process = PROCESSES[process]
    grid = grids.Karras(8, t_max=process.schedule.time(-2 * np.log(3.0)).item(), clean=False)
    options = dict(grid=grid, times=None, huber=None)
    loss = ConsistencyTraining(process, **options)
    if rule != "training":
        loss = ConsistencyDistillation(process, teacher=teacher(process), order=rule, **options)
    times = grid.times(process)[::-1]
    net = Table(tuple((-process.log_snr(times) / 8).tolist()))
    denoiser = Denoiser(net=net, process=process, predict="consistency", data_std=STD)
    learner = ScoreLearner(denoiser, loss, optax.adam(optax.cosine_decay_schedule(0.1, 400)), ema=None)
    model = learner.model(fit(learner, Points(process), steps=400, key=KEY, log_every=400))

    alpha, offset = np.asarray(process.alpha(times)), np.asarray(process.offset(times))
    ends = jax.jit(lambda points: [model(y, np.float32(times)).denoised for y in points])
    low, high = (np.asarray(end)[:, 0] for end in ends([np.float32(alpha * x + offset)[:, None] for x in (0.0, 1.0)]))
    expected, r = factors(process, grid, 2 if rule == 2 else 1)
    np.testing.assert_allclose(high - low, expected, atol=0.02)
    np.testing.assert_allclose(low, MEAN * (1 - expected), atol=0.02)
    exact = np.sqrt((STD**2 + r[0] ** 2) / (STD**2 + r**2))
    # Heun's steps have hardly an error on this grid; Euler's (and so training without a teacher) have one of first order.
    np.testing.assert_allclose(high - low, exact, atol=0.03 if rule == 2 else 0.25)


def test_the_condition_reaches_the_model_and_the_teacher():
    process, seen = PROCESSES["edm"], []

    def listening(y, t, cond=None):
        seen.append(cond)
        return consistency(process)(y, t)

    model, label = models.FunctionModel(listening, process, returns="prediction"), np.arange(4)
    loss = ConsistencyDistillation(process, teacher=model)
    batch = {"x": np.ones((4, 1), np.float32), "cond": label}
    value, metrics, conditions = jax.jit(lambda batch: (*loss.evaluate(model, loss.draw(KEY, batch)), seen))(batch)
    assert value.shape == (4,)
    assert metrics["consistency_mse"].shape == ()
    assert len(conditions) == 4
    assert all((cond == label).all() for cond in conditions)


def test_no_gradient_flows_through_the_target():
    # A model that is constant but for the smaller time would otherwise be improved by moving the target.
    process = PROCESSES["edm"]
    loss = ConsistencyTraining(process, grid=grids.Karras(1, clean=False))

    def value(shift):
        def moved(y, t, cond=None):
            return jnp.where(per_example(t, y) < 1, shift, 1.0) * jnp.ones_like(y)

        return loss(KEY, models.FunctionModel(moved, process), {"x": np.ones((4, 1), np.float32)}).mean()

    at, slope = jax.jit(jax.value_and_grad(value))(0.5)
    assert at > 0
    assert slope == 0


@pytest.mark.parametrize("process", ["edm", pytest.param("vp", marks=pytest.mark.long), "log"])
def test_renoising_a_denoiser_has_the_variance_of_its_recursion(process):
    # With the posterior mean in the place of a generator every step is linear: var_s = (alpha_s k)^2 var_t + sigma_s^2.
    process, n = PROCESSES[process], 20_000
    grid = grids.LogSNR(5, t_max=t_max(process))
    times = grid.times(process)
    alpha, sigma = np.asarray(process.alpha(times)), np.asarray(process.sigma(times))
    variance, mean = sigma[0] ** 2, 0.0
    for i in range(len(times) - 1):
        gain = alpha[i] * STD**2 / (alpha[i] ** 2 * STD**2 + sigma[i] ** 2)
        mean = alpha[i + 1] * (MEAN + gain * (mean - alpha[i] * MEAN))
        variance = (alpha[i + 1] * gain) ** 2 * variance + sigma[i + 1] ** 2
    out = sample(teacher(process), solver=solvers.Renoise(), grid=grid, key=KEY, shape=(n, 1))
    y = np.asarray(process.encode(out.x))
    assert variance < 0.9 * STD**2
    assert y.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / n))
    assert y.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / n))


def test_one_renoising_step_is_the_generator():
    process = PROCESSES["edm"]
    y = np.float32(20.0 * np.random.default_rng(3).normal(size=(8, 1)))
    grid = grids.Explicit((20.0, 0.0))
    model = consistency(process)
    out = sample(model, solver=solvers.Renoise(), grid=grid, key=KEY, shape=y.shape, start=starts.Fixed(y))
    np.testing.assert_allclose(out.x, jax.jit(lambda y: model(y, np.float32(20.0)).denoised)(y), rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda p: ConsistencyTraining(p, grid=grids.Uniform(4)), ValueError, "t_min"),
        (lambda p: ConsistencyTraining(p, grid=grids.Karras(1)), ValueError, "two or more"),
        (lambda p: ConsistencyTraining(p, huber=0.0), ValueError, "huber"),
        (lambda p: ConsistencyTraining(p, weighting="snr"), ValueError, "weighting"),
        (lambda p: ConsistencyTraining(PROCESSES["flow"], grid=grids.Uniform(4, clean=False)), ValueError, "alpha is 0"),
        (lambda p: ConsistencyDistillation(p, teacher=None), TypeError, "teacher"),
        (lambda p: ConsistencyDistillation(p, teacher=teacher(p), order=3), ValueError, "order"),
        (lambda p: ConsistencyTraining("edm"), TypeError, "process"),
        (lambda p: ConsistencyTraining(p, times="uniform"), TypeError, "times"),
        (lambda p: ConsistencyTraining(p)(KEY, None, {"x": jnp.zeros((2, 1), jnp.uint8)}), TypeError, "uint8"),
    ],
)
def test_errors_name_the_field(build, error, message):
    with pytest.raises(error, match=message):
        build(PROCESSES["edm"])
