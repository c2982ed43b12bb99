"""Every loss with a teacher trains in the ordinary learner and loop, and the teacher is no part of what is saved."""

import jax
import numpy as np
import optax
import pytest

from scorelab import grids, solvers
from scorelab.data import Batches
from scorelab.distill.consistency import ConsistencyDistillation, ConsistencyTraining
from scorelab.distill.pairs import teacher_pairs
from scorelab.distill.progressive import ProgressiveDistillation
from scorelab.distill.reflow import Reflow
from scorelab.models.denoiser import Denoiser
from scorelab.training import ScoreLearner, fit

from ..training.small import PROCESS, Net, Points, equal, host

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(1)
GRID = grids.Karras(4)
LOSSES = {
    "consistency": lambda teacher: ConsistencyTraining(PROCESS),
    "distilled": lambda teacher: ConsistencyDistillation(PROCESS, teacher=teacher),
    "progressive": lambda teacher: ProgressiveDistillation(PROCESS, teacher=teacher, grid=GRID),
    "reflow": lambda teacher: Reflow(PROCESS),
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_trains_from_its_teacher(name):
    parts = dict(net=Net(width=8), process=PROCESS, data_std=0.6)
    old = Denoiser(**parts)
    teacher = old.bind(jax.jit(old.init)(KEY, np.zeros((1, 2), np.float32)))
    data = Points(batch_size=8)
    if name == "reflow":
        pairs = teacher_pairs(teacher, solver=solvers.DDIM(), grid=GRID, key=KEY, shape=(16, 2))
        data = Batches(pairs, 8)
    predict = "consistency" if name in ("consistency", "distilled") else "edm"
    learner = ScoreLearner(Denoiser(predict=predict, **parts), LOSSES[name](teacher), optax.adam(1e-3), ema=None, initial=teacher)
    state = fit(learner, data, steps=2, key=KEY)
    assert np.isfinite(np.concatenate([np.ravel(p) for p in jax.tree.leaves(state)])).all()
    assert not equal(host(state.params), host(teacher.params))
    # The state of a learner without a teacher has the same shapes: step, parameters, the optimiser's.
    plain = ScoreLearner(Denoiser(predict=predict, **parts), ConsistencyTraining(PROCESS), learner.optimizer, ema=None)
    shapes = jax.eval_shape(plain.init, KEY, data.at(0))
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, state)


@pytest.mark.parametrize("name", [n if n == "distilled" else pytest.param(n, marks=pytest.mark.long) for n in LOSSES])
def test_each_loss_takes_a_batch_in_parts(name):
    predict = "consistency" if name in ("consistency", "distilled") else "edm"
    denoiser = Denoiser(net=Net(width=8), process=PROCESS, data_std=0.6, predict=predict)
    batch = {"x": np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)}
    batch |= {"noise": batch["x"][::-1].copy()} if name == "reflow" else {}
    params = jax.jit(denoiser.init)(KEY, batch["x"])
    given = dict(optimizer=optax.sgd(1.0), ema=None, clip_norm=None)

    def updated(accumulate):
        learner = ScoreLearner(denoiser, LOSSES[name](denoiser.bind(params)), accumulate=accumulate, **given)
        return jax.device_get(jax.jit(lambda batch: learner.update(learner.init(KEY, batch), batch, KEY))(batch))

    (whole, metrics), (cut, cut_metrics) = updated(1), updated(3)
    # Float32, of sums in another order: a step is the gradient.
    size = max(1.0, float(metrics["grad_norm"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * size), cut.params, whole.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), cut_metrics, metrics)
    assert metrics["grad_norm"] > 1e-3
