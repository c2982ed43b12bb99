"""Pruning gives the samples of an unpruned walk, the best of them where beliefs are right, and makes no other calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import NonFiniteSample, densities, fk, grids, models, processes, sample, schedules, search, solvers

pytestmark = pytest.mark.usefixtures("quick_compilation")
VP = processes.Gaussian(schedule=schedules.VPLinear())
EDM = processes.Gaussian(schedule=schedules.EDM())
MIXTURE = densities.GaussianMixture([0.3, 0.7], np.array([[-2.0, 0.0], [1.0, 1.0]]), 0.25)
MODELS = {process: models.ExactModel(MIXTURE, process) for process in (VP, EDM)}
KEY, N, STEPS = jax.random.key(3), 48, 10


def reward(x):
    return -jnp.sum((x - 1.5) ** 2, axis=1)


def first(x):
    return x[:, 0]


def arguments(process=VP, solver=None, **changes):
    solver = solvers.DDIM(eta=1.0) if solver is None else solver
    grid = grids.LogSNR(STEPS) if process is VP else grids.Karras(STEPS)
    return dict(solver=solver, grid=grid, key=KEY, shape=(N, 2)) | changes


@pytest.mark.parametrize(
    ("process", "solver"),
    [
        pytest.param(VP, solvers.DDIM(eta=1.0), marks=pytest.mark.long),
        (VP, solvers.DPMSolverPP(order=2, eta=1.0)),
        (EDM, solvers.Heun(churn=5.0)),
    ],
    ids=["memoryless", "multistep", "two calls a step"],
)
def test_survivors_are_the_unpruned_samples_of_their_ids(process, solver):
    model, run = MODELS[process], arguments(process, solver)
    ids = np.arange(7, 7 + N)
    out = search.prune(model, pruning=search.Pruning(reward, {2: 6, 6: 2}, particles=12), ids=ids, **run)
    whole = sample(model, ids=ids, **run)
    assert out.x.shape == (8, 2)
    np.testing.assert_array_equal((out.ids - 7) // 12, np.repeat(np.arange(4), 2))
    # Up to rounding: sums in another order, amplified by the steps.
    np.testing.assert_allclose(out.x, whole.x[out.ids - 7], atol=2e-5)
    np.testing.assert_allclose(out.rewards, -np.sum((np.asarray(out.x) - 1.5) ** 2, axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(out.dropped_at < 0) + 7, out.ids)
    assert [np.sum(out.dropped_at == step) for step in (2, 6, -1)] == [24, 16, 8]
    np.testing.assert_array_equal(np.isnan(out.beliefs).sum(1), [0, 24])
    # Nobody who was dropped was believed better than anybody of its population who was kept.
    for row, step in zip(out.beliefs, (2, 6), strict=True):
        dropped, kept = out.dropped_at == step, np.isfinite(row) & (out.dropped_at != step)
        for population in np.arange(N).reshape(4, 12):
            assert row[population][dropped[population]].max() <= row[population][kept[population]].min()


def test_where_beliefs_keep_the_order_the_best_of_all_survives_at_a_fraction_of_the_calls():
    # The probability flow of an isotropic Gaussian only scales and shifts, so that a linear reward never changes its order.
    model = models.ExactModel(densities.Gaussian(np.array([0.5, -0.5]), 0.3), VP)
    run = arguments(solver=solvers.DDIM(eta=0.0))
    out = search.prune(model, pruning=search.Pruning(first, {0: 8, 4: 1}), **run)
    whole = np.asarray(sample(model, **run).x)
    assert out.ids.tolist() == [int(np.argmax(whole[:, 0]))]
    np.testing.assert_allclose(out.x[0], search.best_of(whole, first(whole), N)[0], atol=1e-5)
    assert out.model_calls == N + 4 * 8 + 5
    assert out.unpruned_calls == STEPS * N


def test_calls_are_those_that_are_made():
    made = []

    def counted(y, t, cond):
        jax.debug.callback(lambda: made.append(len(y)))
        return VP.predict(y, t, eps=y)

    counting = models.FunctionModel(counted, VP, returns="prediction")
    seen = []
    run = arguments(solver=solvers.Heun(churn=5.0), progress=lambda done, planned: seen.append((done, planned)))
    out = search.prune(counting, pruning=search.Pruning(first, {3: 10}), **run)
    jax.effects_barrier()
    # Seven calls with all of them: two in each of three steps, one at the beginning of the fourth; the last step takes one.
    assert out.model_calls == sum(made) == 7 * N + (2 * STEPS - 1 - 7) * 10
    assert out.unpruned_calls == (2 * STEPS - 1) * N
    assert seen == [(7 * N, out.model_calls), (out.model_calls, out.model_calls)]


def test_a_learned_belief_sees_the_point_of_its_prediction():
    model, run = MODELS[VP], arguments()
    learned = fk.Learned(jax.tree_util.Partial(lambda y, t: y[:, 1] + t))
    out = search.prune(model, pruning=search.Pruning(reward, {4: 5}, intermediate=learned, scale=2.0), **run)
    walk = sample(model, keep="all", **run)
    np.testing.assert_allclose(out.beliefs[0], 2 * (np.asarray(walk.trajectory)[4, :, 1] + walk.times[4]), atol=1e-5)


def test_a_population_does_not_see_the_others_nor_its_condition_those():
    model, run = MODELS[VP], arguments()
    cond = np.repeat(np.array([-2.0, 1.0, 0.0, 3.0], np.float32), 12)
    towards = lambda x, c: -jnp.abs(x[:, 0] - c)
    options = dict(with_cond=True, intermediate=fk.Posterior(samples=3, data_std=1.0))
    out = search.prune(model, pruning=search.Pruning(towards, {5: 2}, particles=12, **options), cond=cond, **run)
    alone = search.prune(
        model, pruning=search.Pruning(towards, {5: 2}, **options), cond=cond[12:24], ids=np.arange(12, 24),
        **run | dict(shape=(12, 2)),
    )  # fmt: skip
    np.testing.assert_array_equal(out.ids[2:4], alone.ids)
    np.testing.assert_allclose(out.rewards[2:4], alone.rewards, atol=1e-4)


def test_a_belief_that_is_no_number_is_the_least_and_a_broken_candidate_is_reported():
    half = lambda x: jnp.where(x[:, 0] < 0, jnp.nan, -x[:, 0])
    model, run = MODELS[VP], arguments()
    out = search.prune(model, pruning=search.Pruning(half, {8: 12}), **run)
    believed = out.beliefs[0]
    # Points of the right mode, 70 % of 48, are more than are kept.
    assert np.isfinite(believed).sum() > 12
    assert np.all(np.isfinite(believed[out.ids]))
    broken = models.FunctionModel(lambda y, t, cond: jnp.where(t < 0.5, np.nan, 1.0) * y, VP, returns="eps")
    step = int(np.argmax(grids.LogSNR(STEPS).times(VP) < 0.5))
    with pytest.raises(NonFiniteSample, match=f"step {step} of {STEPS}"):
        search.prune(broken, pruning=search.Pruning(first, {1: 12}), **run)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(keep={}), ValueError, "keep is empty"),
        (dict(keep=5), TypeError, "keep = 5: expected {step: count}"),
        (dict(keep=(5, 3)), TypeError, "expected {step: count}"),
        (dict(keep={2: 4, 5: 4}), ValueError, "counts that fall"),
        (dict(keep={2: 4, 5: 6}), ValueError, "counts that fall"),
        (dict(keep={-1: 4}), ValueError, "keep = -1"),
        (dict(keep={2: 0}), ValueError, "keep = 0"),
        (dict(keep={2: 12}, particles=12), ValueError, "below the 12 candidates"),
        (dict(keep={2: N}), ValueError, "of which 48 are kept"),
        (dict(particles=7), ValueError, "populations of 7"),
        (dict(keep={STEPS: 4}), ValueError, "steps from 0 to 9"),
        (dict(reward=1.0), TypeError, "reward = 1.0"),
        (dict(reward=lambda x: x), ValueError, r"Pruning.reward returned shape .*, one per sample"),
        (dict(intermediate=reward), TypeError, "expected a Intermediate"),
        (dict(scale=0.0), ValueError, "scale = 0.0"),
        (dict(solver=fk.FeynmanKac()), ValueError, "independent samples"),
        (dict(solver=solvers.Diffrax()), ValueError, "fixed number of model calls"),
        (dict(ids=np.arange(3)), ValueError, "ids is int64 of shape"),
        (dict(ids=np.arange(N) - 1), ValueError, "expected integers in"),
        (dict(ids=np.arange(N) + 0.5), ValueError, r"ids is float64 of shape \(48,\): expected integers \(48,\)"),
        (dict(ids=np.arange(N) + 2**40), ValueError, "expected integers in"),
        (dict(cond=np.arange(N)), ValueError, "cond differs within populations"),
    ],
)
def test_errors(change, error, message):
    change = dict(reward=first, keep={2: 4}) | change
    run = arguments(**{name: change.pop(name) for name in ("solver", "ids", "cond") if name in change})
    with pytest.raises(error, match=message):
        search.prune(MODELS[VP], pruning=search.Pruning(**change), **run)


def test_a_prediction_for_another_process_is_refused():
    other = MODELS[EDM]
    model = models.FunctionModel(lambda y, t, cond: other(y, t), VP, returns="prediction")
    with pytest.raises(ValueError, match=r"process.*VPLinear.* and prediction.*EDM"):
        search.prune(model, pruning=search.Pruning(first, {1: 12}), **arguments())
    with pytest.raises(TypeError, match=r"prune\.model = .*: expected a model, which knows its process"):
        search.prune(model.fn, pruning=search.Pruning(first, {1: 12}), **arguments())


def test_rewards_that_are_no_numbers_are_reported():
    model = models.ExactModel(MIXTURE, VP)
    broken = lambda x: jnp.full(len(x), jnp.nan)
    with pytest.warns(fk.WeightsWarning, match=r"prune kept 12 candidates .* NaN .*, and 12 of 12 survivors"):
        search.prune(model, pruning=search.Pruning(broken, {8: 12}), **arguments())
