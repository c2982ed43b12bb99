"""Progressive distillation from an exact teacher: its target is the composition of two DDIM steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import grids, models, sample, solvers, starts
from scorelab.distill.nodes import euler_step, gather
from scorelab.distill.progressive import ProgressiveDistillation
from scorelab.processes import Gaussian
from scorelab.schedules import VE
from scorelab.solvers import Nodes

from .gaussian import PROCESSES, data, teacher

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(5)
ALL = PROCESSES | {"ve": Gaussian(schedule=VE(sigma_min=0.02, sigma_max=20.0))}


def student(loss):
    """The model that answers with the target: it looks its time up in the grid."""
    times = loss.grid.times(loss.process)[::2]
    times = np.where(np.isfinite(times), times, -1e9)

    def model(y, t, cond=None):
        t = jnp.broadcast_to(t, y.shape[:1])
        return loss.target(y, jnp.argmin(jnp.abs(times - t[:, None]), axis=1), cond)

    return models.FunctionModel(model, loss.process, returns="prediction")


@pytest.mark.parametrize("process", [pytest.param(name, marks=pytest.mark.long if name in ("edm", "ve") else ()) for name in ALL])
def test_one_step_of_the_target_is_two_steps_of_the_teacher(process):
    process = ALL[process]
    with jax.enable_x64(True):
        loss = ProgressiveDistillation(process, teacher=teacher(process), grid=grids.Uniform(6))
        # Rectified flow begins at alpha = 0, all grids end at sigma = 0.
        start = starts.Fixed(np.random.default_rng(5).normal(size=(16, 1)) * float(process.sigma(process.t_max)))
        arguments = dict(solver=solvers.DDIM(), key=KEY, shape=(16, 1), start=start)
        two = sample(loss.teacher, grid=loss.grid, **arguments).x
        one = sample(student(loss), grid=loss.student_grid, **arguments).x
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-12)
        both = jax.jit(lambda x: [loss(KEY, model, {"x": x}) for model in (student(loss), loss.teacher)])
        own, other = both(data(process, 64))
        assert np.max(own) < 1e-24
        assert np.mean(other) > 1e-6


@pytest.mark.parametrize("process", PROCESSES)
def test_the_target_is_the_published_one(process):
    process = PROCESSES[process]
    with jax.enable_x64(True):
        loss = ProgressiveDistillation(process, teacher=teacher(process), grid=grids.Uniform(8))

        @jax.jit
        def both(y):
            step = jnp.arange(4)
            nodes = Nodes.at(process, loss.grid.times(process))
            start, middle, end = (gather(nodes, 2 * step + i, y) for i in range(3))
            half = euler_step(loss.teacher(y, start.t), middle)
            z = euler_step(loss.teacher(half, middle.t), end)
            ratio = end.sigma / start.sigma
            expected = (z - end.offset - ratio * (y - start.offset)) / (end.alpha - ratio * start.alpha)
            target = loss.target(y, step)
            again = start.alpha * target.denoised + start.offset + start.sigma * target.eps
            return target.denoised, expected, again

        y = np.random.default_rng(5).normal(size=(4, 1))
        denoised, expected, again = both(y)
        np.testing.assert_allclose(denoised, expected, rtol=1e-10)
        # And it is a consistent pair.
        np.testing.assert_allclose(again, y, atol=1e-10)


def test_rounds_are_chained_down_to_one_step():
    process = PROCESSES["vp"]
    with jax.enable_x64(True):
        loss = ProgressiveDistillation(process, teacher=teacher(process), grid=grids.Uniform(8))
        first = loss
        while len(loss.student_grid.values) > 2:
            loss = loss.halve(student(loss))
        assert loss.student_grid.values == (process.t_max, 0.0)
        arguments = dict(solver=solvers.DDIM(), key=KEY, shape=(8, 1))
        one = sample(student(loss), grid=loss.student_grid, **arguments).x
        eight = sample(first.teacher, grid=first.grid, **arguments).x
        np.testing.assert_allclose(one, eight, rtol=1e-11)
        with pytest.raises(ValueError, match="even"):
            loss.halve(student(loss))


def test_the_condition_reaches_the_model_and_the_teacher():
    process, seen = PROCESSES["edm"], []

    def listening(y, t, cond=None):
        seen.append(cond)
        return teacher(process)(y, t)

    model, label = models.FunctionModel(listening, process, returns="prediction"), np.arange(4)
    loss = ProgressiveDistillation(process, teacher=model, grid=grids.Karras(4))
    batch = {"x": np.ones((4, 1), np.float32), "cond": label}
    value, metrics, conditions = jax.jit(lambda batch: (*loss.evaluate(model, loss.draw(KEY, batch)), seen))(batch)
    assert value.shape == (4,)
    assert metrics["eps_mse"].shape == ()
    assert len(conditions) == 3
    assert all((cond == label).all() for cond in conditions)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (dict(grid=grids.Uniform(3)), ValueError, "even"),
        (dict(grid=4), TypeError, "grid"),
        (dict(teacher=None), TypeError, "teacher"),
        (dict(weighting="snr"), TypeError, "weighting"),
    ],
)
def test_errors_name_the_field(fields, error, message):
    with pytest.raises(error, match=message):
        ProgressiveDistillation(
            PROCESSES["edm"], **(dict(teacher=models.ExactModel(None, PROCESSES["edm"]), grid=grids.Uniform(4)) | fields)
        )
