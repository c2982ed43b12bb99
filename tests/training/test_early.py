"""Early stopping: the held-out loss in closed form, its fixed draw, when it ends a training, and that a resumed one is the same."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab.data import Batches
from scorelab.losses import DenoisingScoreMatching, LogNormalTimes, SNRWeighting, X0Weighting
from scorelab.models import FunctionModel
from scorelab.training import EarlyStopping, HeldOutLoss, Learner, data_mesh, fit
from scorelab.training import early as module
from scorelab.training.loop import _as_is
from tests.training.small import PROCESS, Pair, Points, equal, host, learner

KEY = jax.random.key(0)
SCORE = learner()
HELD = {"x": np.random.default_rng(3).normal(0.7, 0.2, (50, 2)).astype(np.float32)}
# The weight of the error in the denoised data is one, and then that of the error in the noise.
PLAIN = DenoisingScoreMatching(PROCESS, weighting=X0Weighting(), times=LogNormalTimes(std=0.5))
OF_NOISE = replace(PLAIN, weighting=SNRWeighting())


class Walk(NamedTuple):
    step: jax.Array
    params: jax.Array
    average: jax.Array


@dataclass(frozen=True)
class Walker(Learner):
    """A model that says the same number whatever it is asked; its average is the number of the step times ``pace``."""

    pace: float = 0.1
    loss: DenoisingScoreMatching = PLAIN
    process = PROCESS

    def init(self, key, batch):
        return Walk(jnp.int32(0), jnp.float32(7.0), jnp.float32(0.0))

    def update(self, state, batch, key):
        step = state.step + 1
        return Walk(step, state.params, self.pace * step.astype(jnp.float32)), {"loss": jnp.float32(1.0)}

    def model(self, state):
        return FunctionModel(lambda y, t, cond=None: jnp.full_like(y, state.average), PROCESS)


@dataclass(frozen=True)
class Sleeper(Walker):
    """A model that says its input."""

    loss: DenoisingScoreMatching = OF_NOISE

    def model(self, state):
        return FunctionModel(lambda y, t, cond=None: y, PROCESS)


def losses(watch):
    return [record.loss for record in watch.records]


def test_the_loss_of_a_model_that_says_one_number_is_its_distance_from_the_points():
    # 50 points in blocks of 24: the last is filled up, and what fills it does not count.
    watch = EarlyStopping(every=1, patience=3, batch=24, draws=2).watch(HELD)
    fit(Walker(), Points(), steps=12, key=KEY, early=watch)
    expected = [((0.1 * step - HELD["x"].astype(np.float64)) ** 2).mean(axis=1) for step in range(1, len(watch.records) + 1)]
    # Float32, with a noise ratio of up to 2 beside numbers of order one.
    np.testing.assert_allclose(losses(watch), [each.mean() for each in expected], rtol=1e-5)
    errors = [each.std(ddof=1) / math.sqrt(50) for each in expected]
    np.testing.assert_allclose([record.standard_error for record in watch.records], errors, rtol=1e-4)
    # The mean of the points is 0.7: the smallest loss is at step 7, and three later ones end it.
    assert [record.step for record in watch.records] == list(range(1, 11))
    assert (watch.best.step, watch.stopped) == (7, True)
    assert float(watch.best_state.average) == pytest.approx(0.7)


def test_every_point_and_draw_has_noise_of_its_own():
    # |eps|^2 / 2 of two elements: mean 1 and variance 1; of k draws, 1 / k.
    watch = EarlyStopping(every=1, draws=4, batch=100, n=1000).watch({"x": np.zeros((1200, 2), np.float32)})
    fit(Sleeper(), Points(), steps=1, key=KEY, early=watch)
    (record,) = watch.records
    error = math.sqrt(1 / (4 * 1000))
    assert abs(record.loss - 1) < 4 * error
    # Of 1000 points, whose kurtosis is below 10: a standard deviation to 5%, at four of its own errors.
    assert record.standard_error == pytest.approx(error, rel=0.2)


def test_the_draw_is_the_same_each_time_and_another_with_another_seed():
    runs = {}
    for seed in (0, 1):
        watch = EarlyStopping(every=2, patience=3, seed=seed).watch(HELD)
        state = fit(Sleeper(), Points(), steps=50, key=jax.random.key(seed), early=watch, log_every=7)
        runs[seed] = losses(watch)
        # Nothing improves after the first.
        assert int(state.step) == 2 * (1 + 3)
        assert len(set(runs[seed])) == 1
    assert runs[0][0] != runs[1][0]


def test_one_program_evaluates_all_states():
    module._program.cache_clear()
    fit(SCORE, Points(), steps=6, key=KEY, early=EarlyStopping(every=2, batch=24).watch(HELD))
    assert module._program.cache_info().currsize == 1
    # A learner that is a pytree is an argument of the program.
    assert module._program(_as_is, data_mesh(), None, SCORE.loss)._cache_size() == 1


class Recorder:
    def __init__(self, every):
        self.every, self.states, self.windows = every, {}, []

    def __call__(self, step, state, window):
        self.states[step] = host(state)
        self.windows.append((window.first, window.last))


def test_the_training_is_the_same_and_both_states_remain():
    plain = Recorder(1)
    fit(SCORE, Points(), steps=16, key=KEY, hooks=[plain])
    watch, saver, windows = EarlyStopping(every=4, patience=2, min_delta=10.0).watch(HELD), Recorder(5), []
    last = fit(SCORE, Points(), steps=40, key=KEY, early=watch, hooks=[saver], log=windows.append, log_every=6)
    # No improvement is as large as 10, so it ends after 1 + 2 evaluations; every hook sees the last state.
    assert int(last.step) == 12
    assert equal(host(last), plain.states[12])
    assert list(saver.states) == [5, 10, 12]
    assert [w.last for w in windows] == [4, 5, 6, 8, 10, 12]
    # The smallest loss is the best, whatever min_delta is.
    assert watch.best.loss == min(losses(watch))
    assert equal(watch.best_state, plain.states[watch.best.step])


@pytest.mark.parametrize("at", [4, 7])
def test_resumed_is_bitwise_the_run_that_was_not_stopped(at):
    spec = EarlyStopping(every=2, patience=3, batch=24)
    whole, parts = spec.watch(HELD), spec.watch(HELD)
    straight = fit(Walker(), Points(), steps=40, key=KEY, early=whole)
    state = fit(Walker(), Points(), steps=at, key=KEY, early=parts)
    assert not parts.stopped
    # From the records and the state alone.
    again = spec.watch(HELD, records=parts.records)
    resumed = fit(Walker(), Points(), steps=40, key=KEY, state=state, early=again)
    assert again.records == whole.records
    assert int(resumed.step) == int(straight.step) == 12
    assert equal(host(resumed), host(straight))
    # One that has ended stays so; more patience goes on.
    assert fit(Walker(), Points(), steps=40, key=KEY, state=resumed, early=again) is resumed
    more = replace(spec, patience=5).watch(HELD, records=again.records)
    assert int(fit(Walker(), Points(), steps=40, key=KEY, state=resumed, early=more).step) == 16


def made(*values):
    return [HeldOutLoss(step=i + 1, loss=value, standard_error=0.1) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "min_delta", "waited", "best"),
    [
        ((), 0.0, 0, None),
        ((3.0,), 0.0, 0, 1),
        ((3.0, 2.0, 2.0, 2.5), 0.0, 2, 2),
        ((3.0, 2.95, 2.89, 2.85), 0.1, 1, 4),
        ((math.nan, math.inf), 0.0, 2, None),
        ((math.nan, 3.0, math.nan), 0.0, 1, 2),
    ],
)
def test_what_is_an_improvement_and_what_is_the_best(values, min_delta, waited, best):
    spec, records = EarlyStopping(min_delta=min_delta), made(*values)
    assert spec.waited(records) == waited
    found = spec.best(records)
    assert (None if found is None else found.step) == best


def test_a_learner_without_a_loss_is_given_one():
    pair = Pair(SCORE.denoiser.net, SCORE.optimizer)
    with pytest.raises(ValueError, match=r"EarlyStopping\.loss = None for a Pair, which has none: expected a loss"):
        fit(pair, Points(), steps=2, key=KEY, early=EarlyStopping(every=1).watch(HELD))
    watch = EarlyStopping(every=1, loss=PLAIN).watch(HELD)
    fit(pair, Points(), steps=2, key=KEY, early=watch)
    assert len(watch.records) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"every": 0}, r"EarlyStopping\.every = 0: expected an integer >= 1"),
        ({"every": 2.5}, r"EarlyStopping\.every = 2\.5: expected an integer >= 1"),
        ({"patience": 0}, r"EarlyStopping\.patience = 0: expected an integer >= 1"),
        ({"draws": -1}, r"EarlyStopping\.draws = -1: expected an integer >= 1"),
        ({"min_delta": -0.1}, r"EarlyStopping\.min_delta = -0\.1"),
        ({"min_delta": math.nan}, r"EarlyStopping\.min_delta = nan"),
        ({"seed": -1}, r"EarlyStopping\.seed = -1"),
    ],
)
def test_a_field_that_does_not_fit_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**fields)


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ({"y": np.zeros((3, 2))}, r"has the arrays \['y'\]: expected one that is named 'x'"),
        ({"x": np.zeros((0, 2))}, "expected one leading axis of at least one point"),
        ({"x": np.float32(3)}, "expected one leading axis of at least one point"),
        ({"x": np.zeros((3, 2)), "cond": np.zeros(2)}, "expected one leading axis of at least one point"),
        ({"x": np.array([[0.0, np.nan]])}, r"held_out\['x'\] has 1 values that are not finite"),
    ],
)
def test_held_out_points_that_do_not_fit_are_refused(held_out, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping().watch(held_out)


def test_what_is_no_early_stopping_is_refused():
    with pytest.raises(TypeError, match=r"fit\.early = EarlyStopping.*: expected a Watch"):
        fit(SCORE, Points(), steps=2, key=KEY, early=EarlyStopping())
    with pytest.raises(TypeError, match=r"watch\.held_out is a Batches: expected a batch"):
        EarlyStopping().watch(Batches(HELD, batch_size=5))
    with pytest.raises(ValueError, match=r"are of the steps \[2, 1\]: expected each once, in order"):
        EarlyStopping().watch(HELD, records=made(1.0, 2.0)[::-1])
    with pytest.raises(ValueError, match="go up to step 2 and the state is at step 0: expected those up to it"):
        fit(SCORE, Points(), steps=9, key=KEY, early=EarlyStopping().watch(HELD, records=made(1.0, 2.0)))
    with pytest.raises(TypeError, match=r"EarlyStopping\.loss = 3: expected a Loss"):
        EarlyStopping(loss=3)
