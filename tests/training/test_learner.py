"""The score learner: what it learns, its averages, clipping and precision."""

import warnings
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scorelab.losses import DenoisingScoreMatching, Loss, Regularised
from scorelab.models.base import Trainable
from scorelab.models.denoiser import Denoiser
from scorelab.models.nets import MLP
from scorelab.processes import Gaussian, Noised
from scorelab.schedules import VPLinear
from scorelab.training import EMA, ConditionWarning, NonFiniteLoss, PowerEMA, ScoreLearner, fit, power_exponent
from tests.training.small import PROCESS, Net, Points, equal, learner

KEY = jax.random.key(0)


def error_of_the_denoiser(model, data):
    """Root mean square distance to E[y_0|y_t] of the Gaussian, relative to the size of y - E[y_0|y_t]."""
    rng = np.random.default_rng(1)
    mean, std = np.array(data.mean), np.array(data.std)
    errors, denoise = [], jax.jit(lambda y, t: model(y, t).denoised)
    for t in (0.1, 0.3, 1.0, 3.0):
        y = mean + np.sqrt(std**2 + t**2) * rng.standard_normal((512, 2))
        exact = mean + std**2 / (std**2 + t**2) * (y - mean)
        denoised = denoise(np.float32(y), np.float32(t))
        errors.append(np.mean((np.asarray(denoised) - exact) ** 2) / np.mean((y - exact) ** 2))
    return np.sqrt(np.mean(errors))


@pytest.mark.parametrize(("dtype", "steps", "tolerance"), [("float32", 800, 0.12), ("bfloat16", 400, 0.25)])
def test_it_learns_the_denoiser_of_a_gaussian(dtype, steps, tolerance):
    """Error relative to the correction y - D: 70 % untrained, 7 % measured after 800 steps in float32."""
    data = Points(batch_size=256)
    member = learner(dtype=dtype, optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, steps)))
    state = fit(member, data, steps=steps, key=KEY)
    assert state.params["params"]["Dense_0"]["kernel"].dtype == jnp.float32
    after = error_of_the_denoiser(member.model(state), data)
    assert after < tolerance, after


def test_the_model_is_the_first_average():
    y, t = np.ones((3, 2), np.float32), np.float32(0.5)
    batch = {"x": y, "cond": None}
    denoised = jax.jit(lambda model: model(y, t).denoised)
    for ema in (EMA(), PowerEMA(), (PowerEMA(), EMA()), None):
        member = learner(ema=ema, width=8)
        state = jax.jit(member.init)(KEY, batch)
        state = replace(state, params=jax.tree.map(lambda p: np.asarray(p) + np.float32(0.1), state.params))
        if ema is None:
            expected = state.params
        else:
            spec = ema[0] if isinstance(ema, tuple) else ema
            expected = spec.params(state.averages[0])
            assert not equal(expected, state.params)
        assert equal(denoised(member.model(state)), denoised(member.denoiser.bind(expected)))


@dataclass(frozen=True)
class Other(Trainable):
    """What is trained, with nothing but what a Trainable has."""

    inner: Denoiser
    process = PROCESS

    def init(self, key, x, cond=None, like=None):
        return self.inner.init(key, x, cond, like)

    def bind(self, params, dropout=None):
        return self.inner.bind(params, dropout)


def test_what_is_trained_need_not_be_a_denoiser():
    denoiser = learner(width=8)
    other = replace(denoiser, denoiser=Other(denoiser.denoiser))
    assert denoiser.network == denoiser.denoiser
    assert other.network is None
    with pytest.raises(NonFiniteLoss, match=r"at step 1 .*batch\['x'\] has 1 values that are not finite"):
        fit(other, Points(bad_step=0), steps=1, key=KEY)


def test_a_learner_and_a_loss_around_another_say_what_they_drop():
    loss = DenoisingScoreMatching(PROCESS, label_dropout=0.2, null_label=3)
    around = Regularised(loss, ((lambda model, noised: noised.t, 1.0),))
    for member in (replace(learner(), loss=loss), replace(learner(), loss=around)):
        assert (member.label_dropout, member.null_label) == (0.2, 3)
    assert (learner().label_dropout, learner().null_label) == (0.0, None)


class Scalar(Denoiser):
    """One number, whose model is the number itself."""

    def init(self, key, x, cond=None, like=None):
        return jnp.zeros(())

    def bind(self, params, dropout=None):
        return params


class Clean(Loss):
    """The mean of a function of (model, batch of clean points)."""

    process = PROCESS

    def __init__(self, function):
        self.function = function

    def draw(self, key, batch):
        return Noised(y=batch["x"], y0=batch["x"], noise=jnp.zeros_like(batch["x"]), t=jnp.zeros(len(batch["x"])))

    def error(self, model, noised):
        return self.function(model, noised.y0)


@pytest.mark.parametrize("wrap", [lambda o: o, lambda o: optax.chain(optax.identity(), o)], ids=["plain", "in a chain"])
def test_averages_count_updates_and_not_the_steps_of_which_one_is_made(wrap):
    # A gradient of 1 at every step under sgd(1): the parameter is -1, -2, ... after updates 1, 2, ...; three steps make one.
    every = 3
    optimizer = wrap(optax.MultiSteps(optax.sgd(1.0), every).gradient_transformation())
    loss = Clean(lambda model, x: jnp.ones(1) * model)
    specs = (EMA(decay=0.5, warmup=False), EMA(decay=0.9), PowerEMA(stds=(0.1,)))
    base = learner(optimizer=optimizer, ema=specs, clip_norm=None)
    member = replace(base, loss=loss, denoiser=Scalar(**vars(base.denoiser)))
    state, update = member.init(KEY, {"x": jnp.zeros((1, 1))}), jax.jit(member.update)
    seen = []
    for _ in range(4 * every + 1):
        state, _ = update(state, {"x": jnp.zeros((1, 1))}, KEY)
        seen.append([float(leaf) for leaf in jax.tree.leaves(state.averages)])
    path = -np.arange(5.0)
    decays = (lambda t: 0.5, lambda t: min(0.9, t / (9 + t)), lambda t: (1 - 1 / t) ** (power_exponent(0.1) + 1))
    for k, decay in enumerate(decays):
        expected = [0.0]
        for t in range(1, 5):
            expected.append(decay(t) * expected[-1] + (1 - decay(t)) * path[t])
        # Update number t comes with step 3 t; until the next one nothing moves.
        got = np.array(seen)[:, k]
        np.testing.assert_allclose(got, np.repeat(expected, every)[1 : len(got) + 1], rtol=1e-6)
    assert int(state.step) == 4 * every + 1


def test_an_optimiser_that_looks_at_the_loss_gets_it():
    # A loss that does not fall by a factor of 2 in one step: the rate is halved at every one after the first.
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.5, cooldown=0)
    member = learner(optimizer=optax.chain(optax.sgd(1e-4), plateau), width=8)
    batch = {"x": np.ones((16, 2), np.float32)}
    state, update = member.init(jax.random.key(0), batch), jax.jit(member.update)
    for _ in range(3):
        state, metrics = update(state, batch, jax.random.key(1))
    assert float(state.opt_state[1].scale) == 0.25
    assert float(state.opt_state[1].best_value) <= float(metrics["loss"]) * 2


def _norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


def test_clipping_scales_to_the_norm_and_reports_it_before():
    batch = {"x": Points().at(0)["x"], "cond": None}
    free = learner(optimizer=optax.sgd(1.0), clip_norm=None, width=8)
    start = jax.jit(free.init)(KEY, batch)
    moved = {}
    for clip in (None, 1e-3):
        member = replace(free, clip_norm=clip)
        state, metrics = jax.jit(member.update)(start, batch, KEY)
        moved[clip] = float(_norm(jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, start.params)))
        assert float(metrics["grad_norm"]) == pytest.approx(moved[None], rel=1e-3)
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-3)


def test_dropout_is_on_in_training_only_and_differs_between_steps():
    loss = Clean(lambda model, x: jnp.mean(model(x, 0.5).denoised ** 2, 1))
    member = replace(learner(dropout=0.5, width=8), loss=loss)
    batch = {"x": np.ones((4, 2), np.float32), "cond": None}
    state, update = jax.jit(member.init)(KEY, batch), jax.jit(member.update)
    first, second = (float(update(state, batch, key)[1]["loss"]) for key in jax.random.split(KEY))
    assert first != second
    denoised = jax.jit(lambda: member.model(state)(batch["x"], 0.5).denoised)
    assert equal(denoised(), denoised())


def test_errors_name_the_field():
    denoiser = Denoiser(net=Net(), process=PROCESS)
    loss, optimizer = DenoisingScoreMatching(PROCESS), optax.sgd(0.1)
    with pytest.raises(ValueError, match=r"ScoreLearner: loss\.process = .*VPLinear.* and denoiser\.process = .*EDM"):
        ScoreLearner(denoiser, DenoisingScoreMatching(Gaussian(schedule=VPLinear())), optimizer)
    with pytest.raises(TypeError, match=r"ScoreLearner\.loss = .*: expected a Loss"):
        ScoreLearner(denoiser, lambda key, model, batch: jnp.zeros(len(batch["x"])), optimizer)
    with pytest.raises(TypeError, match=r"ScoreLearner\.optimizer"):
        ScoreLearner(denoiser, loss, 1e-3)
    with pytest.raises(TypeError, match=r"ScoreLearner\.ema"):
        ScoreLearner(denoiser, loss, optimizer, ema=0.999)
    with pytest.raises(ValueError, match=r"ScoreLearner\.clip_norm"):
        ScoreLearner(denoiser, loss, optimizer, clip_norm=0.0)
    assert hash(ScoreLearner(denoiser, loss, optimizer)) == hash(ScoreLearner(denoiser, loss, optimizer))


def test_a_column_that_no_condition_reads_is_told():
    """A network with classes that is never shown one would be sampled under any label, and no number would say so."""
    net = MLP(num_classes=3, width=4, depth=1)
    member = ScoreLearner(Denoiser(net=net, process=PROCESS), DenoisingScoreMatching(PROCESS), optax.adam(1e-3))
    batch = {"x": np.ones((4, 2), np.float32), "label": np.zeros(4, np.int32)}
    with pytest.warns(ConditionWarning, match=r"Label\(.*the batch has 'label' and no 'cond'.*Prepared\(data, cond='label'\)"):
        jax.eval_shape(member.init, KEY, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConditionWarning)
        for quiet in ({"x": batch["x"]}, {"x": batch["x"], "cond": batch["label"]}):
            jax.eval_shape(member.init, KEY, quiet)
