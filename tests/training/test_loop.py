"""Contracts of the loop: exact resume, windows, non-finite losses, one compilation, any learner."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scorelab.data import Transform
from scorelab.training import EMA, NonFiniteLoss, PowerEMA, Prepared, SkippedBatchWarning, data_mesh, fit
from scorelab.training import loop as loop_module
from scorelab.training.parallel import replicate, shard_batch
from tests.training.small import Net, Pair, Points, equal, host, learner

KEY = jax.random.key(0)


class Recorder:
    """A hook that remembers its calls."""

    def __init__(self, every, keep=False):
        self.every, self.keep, self.calls, self.states = every, keep, [], {}

    def __call__(self, step, state, window):
        assert int(state.step) == step == window.last
        self.calls.append((step, window.first, dict(window)))
        if self.keep:
            self.states[step] = host(state)


SCORE = learner(ema=(EMA(decay=0.9), PowerEMA()))
PAIR = Pair(Net(width=8), optax.sgd(0.1, momentum=0.9))


@pytest.mark.parametrize("member", [SCORE, PAIR], ids=["score", "pair"])
def test_train_save_restore_train_is_bitwise_one_run(member):
    data, saver, straight, resumed = Points(), Recorder(20, keep=True), [], []
    whole = fit(member, data, steps=50, key=KEY, hooks=[saver], log=straight.append, log_every=15)
    checkpoint = saver.states[20]
    resume = {"state": checkpoint, "hooks": [Recorder(20)], "log": resumed.append}
    again = fit(member, data, steps=50, key=KEY, log_every=15, **resume)
    assert int(whole.step) == 50
    assert equal(whole, again)
    assert jax.tree.structure(whole) == jax.tree.structure(again)
    # The same windows after the checkpoint, without gaps: ends at multiples of 15 and of 20, and at the end.
    ends = [(w.first, w.last) for w in straight]
    assert ends == [(1, 15), (16, 20), (21, 30), (31, 40), (41, 45), (46, 50)]
    assert [(w.first, w.last, dict(w)) for w in resumed] == [(w.first, w.last, dict(w)) for w in straight[2:]]
    assert [call[0] for call in saver.calls] == [20, 40, 50]
    # One program, whoever brought the state: init, host arrays or device arrays.
    fit(member, data, steps=60, key=KEY, state=again)
    _, update = loop_module.compiled(member, loop_module._as_is, data_mesh())
    assert update._cache_size() == 1
    # The caller's state was copied, not consumed.
    assert int(again.step) == 50
    assert fit(member, data, steps=50, key=KEY, state=again) is again


def test_hooks_and_windows_do_not_change_training():
    quiet = fit(SCORE, Points(), steps=25, key=KEY)
    busy = fit(SCORE, Points(), steps=25, key=KEY, hooks=[Recorder(3), Recorder(4)], log_every=2)
    assert equal(quiet, busy)
    other = fit(SCORE, Points(), steps=25, key=jax.random.key(1))
    assert not equal(quiet.params, other.params)


def test_windows_hold_every_step():
    windows = []
    fit(SCORE, Points(), steps=7, key=KEY, log=windows.append, log_every=4)
    assert [(w.first, w.last) for w in windows] == [(1, 4), (5, 7)]
    assert set(windows[0]) == {"loss", "grad_norm", "eps_mse"}
    assert windows[1].by_step["loss"].shape == (3,)
    assert windows[1]["loss"] == pytest.approx(windows[1].by_step["loss"].mean(), rel=1e-6)


@pytest.mark.parametrize("bad", [1, 9, 40])
def test_a_nan_is_reported_at_its_exact_step(bad):
    windows, saver = [], Recorder(20)
    with pytest.raises(NonFiniteLoss, match=f"step {bad} ") as caught:
        fit(SCORE, Points(bad_step=bad - 1), steps=60, key=KEY, hooks=[saver], log=windows.append, log_every=30)
    assert caught.value.step == bad
    assert isinstance(caught.value, FloatingPointError)
    # Every finite step before it has been logged, and no hook saw a state after it.
    assert sum(w.last - w.first + 1 for w in windows) == bad - 1
    assert all(np.isfinite(w.by_step["loss"]).all() for w in windows)
    assert all(step < bad for step, *_ in saver.calls)


def test_steps_are_dispatched_ahead_but_not_without_bound(monkeypatch):
    waits, real = [], jax.block_until_ready
    monkeypatch.setattr(loop_module, "STEPS_AHEAD", 5)
    monkeypatch.setattr(jax, "block_until_ready", lambda tree: waits.append(1) or real(tree))
    fetches, get = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetches.append(len(tree)) or get(tree))
    fit(SCORE, Points(), steps=20, key=KEY, log_every=10)
    assert fetches == [10, 10]
    assert len(waits) == 2 * 5


def test_batches_may_reuse_their_buffer_and_hooks_may_keep_copies():
    class Reusing(Points):
        buffer = np.zeros((32, 2), np.float32)

        def at(self, step):
            self.buffer[:] = super().at(step)["x"]
            return {"x": self.buffer}

    saver = Recorder(1, keep=True)
    a = fit(SCORE, Points(), steps=12, key=KEY)
    b = fit(SCORE, Reusing(), steps=12, key=KEY, hooks=[saver])
    assert equal(a, b)
    assert [int(saver.states[n].step) for n in range(1, 13)] == list(range(1, 13))
    assert equal(a, saver.states[12])


def test_prepare_runs_inside_the_step_and_is_shared_by_equal_specs():
    class Bytes:
        def at(self, step):
            x = np.random.default_rng(step).integers(0, 256, (16, 4), np.uint8)
            return {"x": x, "label": np.arange(16, dtype=np.uint8) % 3}

    class Half(Transform):
        def encode(self, x):
            assert x.dtype == jnp.uint8
            assert isinstance(x, jax.core.Tracer)
            return x / 127.5 - 1

        def decode(self, y): ...

    half = Half()
    data = Prepared(Bytes(), transform=half, cond="label")
    assert data.prepare == Prepared(Bytes(), transform=half, cond="label").prepare
    batch = Prepared(Bytes(), cond="label").prepare(data.at(0))
    assert batch["x"].dtype == jnp.float32
    assert batch["cond"].dtype == jnp.int32
    assert int(fit(PAIR, Prepared(Bytes(), transform=half), steps=3, key=KEY).step) == 3
    with pytest.raises(ValueError, match="expected one of"):
        Prepared(Bytes(), cond="class").prepare(data.at(0))


def test_errors_name_what_is_wrong():
    for arguments, match in [
        ({"steps": 0}, "fit.steps"),
        ({"steps": 5, "log_every": 0}, "fit.log_every"),
        ({"steps": 5, "hooks": [Recorder(0)]}, "every = 0"),
    ]:
        with pytest.raises(ValueError, match=match):
            fit(SCORE, Points(), key=KEY, **arguments)
    with pytest.raises(TypeError, match=r"fit\.learner = 3: expected a Learner"):
        fit(3, Points(), steps=1, key=KEY)
    with pytest.raises(TypeError, match=r"at\(step\)"):
        fit(SCORE, [1, 2], steps=1, key=KEY)
    with pytest.raises(ValueError, match="scalars"):
        fit(Pair(Net(width=8), PAIR.optimizer, vector_metric=True), Points(), steps=1, key=KEY)


# Batches that are skipped --------------------------------------------------------------------------------------------------


class Poisoned(Points):
    """Some batches have a NaN."""

    def __init__(self, *steps):
        super().__init__()
        self.poisoned = steps

    def at(self, step):
        self.bad_step = step if step + 1 in self.poisoned else None
        return super().at(step)


def left_out(member, data, steps, bad):
    """Every update made by hand, but for those of the bad steps, of which the number alone is counted."""
    mesh = data_mesh()
    init, update = loop_module.compiled(member, loop_module._as_is, mesh)
    batch, key = lambda step: shard_batch(data.at(step - 1), mesh), replicate(KEY, mesh)
    state = init(batch(1), key)
    for step in range(1, steps + 1):
        state = replace(state, step=state.step + 1) if step in bad else update(state, batch(step), key)[0]
    return state


MULTI = learner(
    ema=(EMA(decay=0.9), PowerEMA()), optimizer=optax.MultiSteps(optax.adam(3e-3), 3).gradient_transformation(), width=8
)
PLAIN = learner(ema=(EMA(decay=0.9), PowerEMA()), width=8)


@pytest.mark.filterwarnings("ignore::scorelab.training.SkippedBatchWarning")
@pytest.mark.parametrize("member", [PLAIN, MULTI], ids=["plain", "accumulated"])
def test_a_skipped_batch_is_an_update_that_was_not_made(member):
    bad = (1, 5, 6, 11)
    state = fit(member, Poisoned(*bad), steps=14, key=KEY, skip_nonfinite=2)
    expected = left_out(member, Poisoned(), 14, bad)
    assert equal(state, expected)
    assert int(state.step) == 14
    # The numbers of the run without: an update that is not left out is another one.
    assert not equal(state.params, left_out(member, Poisoned(), 14, bad[:3]).params)


@pytest.mark.filterwarnings("ignore::scorelab.training.SkippedBatchWarning")
def test_skipping_survives_a_checkpoint_and_changes_nothing_where_nothing_is_skipped():
    data, saver = Poisoned(4, 9), Recorder(6, keep=True)
    whole = fit(PLAIN, data, steps=12, key=KEY, hooks=[saver], skip_nonfinite=1)
    again = fit(PLAIN, data, steps=12, key=KEY, state=saver.states[6], skip_nonfinite=1)
    assert equal(whole, again)
    for member in (PLAIN, MULTI):
        assert equal(fit(member, Points(), steps=7, key=KEY), fit(member, Points(), steps=7, key=KEY, skip_nonfinite=1))


def test_what_was_skipped_is_counted_and_named():
    windows = []
    with pytest.warns(SkippedBatchWarning) as seen:
        fit(PLAIN, Poisoned(2, 3, 8), steps=9, key=KEY, log=windows.append, log_every=3, skip_nonfinite=2)
    assert [window["skipped"] for window in windows] == [2, 0, 1]
    assert [window.skipped for window in windows] == [(2, 3), (), (8,)]
    # Means are over the steps that were made.
    first = windows[0].by_step["loss"]
    assert windows[0]["loss"] == pytest.approx(first[0])
    assert not np.isfinite(first[1:]).any()
    assert [str(warning.message).partition(" (")[0] for warning in seen] == [
        f"fit skipped the batch of step {step}" for step in (2, 3, 8)
    ]
    assert "data.at(7)), where loss = nan; batch['x'] has 1 values that are not finite" in str(seen[2].message)


@pytest.mark.filterwarnings("ignore::scorelab.training.SkippedBatchWarning")
def test_too_many_in_a_row_are_refused_across_windows():
    windows = []
    with pytest.raises(NonFiniteLoss, match=r"loss = nan at step 5 .*, number 3 in a row: expected a finite") as caught:
        fit(PLAIN, Poisoned(1, 3, 4, 5), steps=9, key=KEY, log=windows.append, log_every=3, skip_nonfinite=2)
    assert (caught.value.step, caught.value.row) == (5, 3)
    assert [(w.first, w.last, w.skipped) for w in windows] == [(1, 3, (1, 3)), (4, 4, (4,))]


@pytest.mark.filterwarnings("ignore::scorelab.training.SkippedBatchWarning")
def test_skipping_works_for_every_state_and_over_all_devices():
    assert int(fit(PAIR, Poisoned(2), steps=4, key=KEY, skip_nonfinite=1, mesh=data_mesh()).step) == 4
    with pytest.raises(ValueError, match=r"fit\.skip_nonfinite = -1"):
        fit(PLAIN, Points(), steps=1, key=KEY, skip_nonfinite=-1)
