"""Reflow on Gaussian data: the pairs, the minimiser and the straightness are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import grids, models, sample, solvers, starts
from scorelab.arrays import per_example
from scorelab.data import Batches
from scorelab.distill.pairs import teacher_pairs
from scorelab.distill.reflow import Reflow, straightness
from scorelab.losses import LogNormalTimes
from scorelab.randomness import per_example_keys
from scorelab.solvers import Nodes

from .gaussian import MEAN, PROCESSES, STD, t_max, teacher

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(7)


def joined(process, correlation, gain=1.0):
    """The exact denoiser for pairs ``x = MEAN + STD u`` and ``z`` with ``E[u z]`` the correlation, off by a factor ``gain``."""

    def denoised(y, t, cond):
        alpha, sigma, offset = (per_example(f(t), y) for f in (process.alpha, process.sigma, process.offset))
        a, rest = alpha * STD, y - offset - alpha * MEAN
        variance = a**2 + sigma**2 + 2 * correlation * a * sigma
        return MEAN + gain * STD * (a + correlation * sigma) / variance * rest

    return models.FunctionModel(denoised, process)


@pytest.mark.parametrize(
    "process", [pytest.param("edm", marks=pytest.mark.long), pytest.param("vp", marks=pytest.mark.long), "flow", "log"]
)
def test_pairs_are_joined_by_the_flow(process):
    process = PROCESSES[process]
    with jax.enable_x64(True):
        grid = grids.Uniform(400) if process is PROCESSES["flow"] else grids.LogSNR(400, t_max=t_max(process), t_min=1e-4)
        arguments = dict(solver=solvers.Heun(), grid=grid, key=KEY)
        pairs = teacher_pairs(teacher(process), shape=(64, 1), **arguments)
        assert all(isinstance(value, np.ndarray) for value in pairs.values())
        t = grid.times(process)[0]
        alpha, sigma, offset = (float(f(t)) for f in (process.alpha, process.sigma, process.offset))
        y0 = np.log(pairs["x"]) if process is PROCESSES["log"] else pairs["x"]
        start = alpha * y0 + offset + sigma * pairs["noise"]
        image = MEAN + STD * (start - offset - alpha * MEAN) / np.sqrt((alpha * STD) ** 2 + sigma**2)
        # Heun's error: 1.6e-3 times (x - MEAN) on the grid of EDM, in steps of 0.03 in log r, and less on the others.
        np.testing.assert_allclose(y0, image, atol=5e-3)
        # The starts are those of the prior, and only the key says which.
        assert np.std((start - offset) / sigma) == pytest.approx(1, abs=4 / np.sqrt(2 * 64))
        again = teacher_pairs(teacher(process), shape=(64, 1), chunk=40, **arguments)
        np.testing.assert_allclose(again["x"], pairs["x"], rtol=1e-9)
        other = teacher_pairs(teacher(process), shape=(64, 1), **(arguments | dict(key=jax.random.key(8))))
        assert not np.allclose(other["noise"], pairs["noise"])


def test_pairs_keep_their_conditions_and_are_a_data_set():
    process, label = PROCESSES["flow"], np.arange(6)

    model = models.FunctionModel(lambda y, t, cond: jnp.broadcast_to(cond[:, None].astype(y.dtype), y.shape), process)
    # A process of pure noise at t = 1 and a model that knows the end: the start is the noise itself.
    pairs = teacher_pairs(model, solver=solvers.DDIM(), grid=grids.Uniform(2), key=KEY, shape=(6, 1), cond=label)
    noise = starts.Prior().draw(per_example_keys(KEY, jnp.arange(6)), jnp.arange(6), process, jnp.ones(()), (1,))
    np.testing.assert_array_equal(pairs["noise"], noise)
    np.testing.assert_array_equal(pairs["cond"], label)
    np.testing.assert_allclose(pairs["x"][:, 0], label, atol=1e-5)
    batch = Batches(pairs, 3, seed=1).at(5)
    shapes = {"noise": (3, 1), "start": (3, 1), "x": (3, 1), "cond": (3,)}
    assert {name: value.shape for name, value in batch.items()} == shapes
    np.testing.assert_array_equal(pairs["start"], noise)
    np.testing.assert_allclose(batch["x"][:, 0], batch["cond"], atol=1e-5)


@pytest.mark.parametrize("process", ["edm", "vp", pytest.param("flow", marks=pytest.mark.long), "log"])
def test_the_denoiser_of_the_pairs_is_stationary(process):
    process, n, correlation = PROCESSES[process], 20_000, 0.6
    u, other = np.random.default_rng(1).normal(size=(2, n, 1))
    with jax.enable_x64(True):
        x = process.decode(MEAN + STD * u)
        batch = {"x": x, "noise": correlation * u + np.sqrt(1 - correlation**2) * other}
        loss = Reflow(process, times=LogNormalTimes(mean=0.0, std=1.0))

        @jax.jit
        def slopes(correlation, gain, batch):
            def losses(gain):
                return loss(KEY, joined(process, correlation, gain), batch)

            return jax.jvp(losses, (gain,), (jnp.ones_like(gain),))[1]

        def standardised(correlation, gain):
            g = np.asarray(slopes(correlation, gain, batch))
            return abs(g.mean()) / (g.std() / np.sqrt(n))

        assert standardised(correlation, 1.0) < 4
        assert standardised(correlation, 1.2) > 8
        assert standardised(0.0, 1.0) > 8  # the denoiser of the process, which is that of independent pairs


def test_on_rectified_flow_the_loss_is_the_published_one():
    process = PROCESSES["flow"]
    with jax.enable_x64(True):
        x, noise = np.random.default_rng(2).normal(size=(2, 64, 3))
        loss, seen = Reflow(process), []

        def velocity(y, t, cond):
            seen.append((y, t))
            return jnp.sin(y)

        model = models.FunctionModel(velocity, process, returns="velocity")
        value, (y, t) = jax.jit(lambda x, noise: (loss(KEY, model, {"x": x, "noise": noise}), seen[0]))(x, noise)
        y, t = np.asarray(y), np.asarray(t)[:, None]
        np.testing.assert_allclose(y, (1 - t) * x + t * noise, atol=1e-12)
        # Time runs from data to noise here: the velocity is noise - x.
        np.testing.assert_allclose(value, np.mean((np.sin(y) - (noise - x)) ** 2, axis=1), rtol=1e-8)


@pytest.mark.parametrize("process", ["flow", pytest.param("vp", marks=pytest.mark.long), "edm"])
def test_straightness_of_the_flow_of_a_gaussian(process):
    # Along the flow z = mean + deviation(r) u: the variance of the slope of the deviation, for u = -1 and 1.
    process = PROCESSES[process]
    with jax.enable_x64(True):
        grid = grids.Uniform(4000)
        nodes = Nodes.at(process, grid.times(process))
        deviation = np.sqrt((nodes.alpha * STD) ** 2 + nodes.sigma**2)
        middle = nodes.alpha[0] * MEAN + nodes.offset[0]
        start = starts.Fixed(np.array([[middle - deviation[0]], [middle + deviation[0]]]))
        value = straightness(teacher(process), grid=grid, key=KEY, shape=(2, 1), start=start)
        steps = np.diff(nodes.ratio)
        slopes = np.diff(deviation / nodes.scale) / steps
        share = steps / steps.sum()
        expected = np.sum(share * (slopes - np.sum(share * slopes)) ** 2)
        assert expected > 1e-3
        assert float(value) == pytest.approx(expected, rel=2e-2)  # Euler's error


def test_reflow_of_a_linear_map_is_straight_and_one_step_is_exact():
    # The pairs x = MEAN + STD z never cross: their denoiser has no loss, and its flow is straight.
    process = PROCESSES["flow"]
    with jax.enable_x64(True):
        z = np.random.default_rng(7).normal(size=(64, 1))
        model, pairs = joined(process, 1.0), {"x": MEAN + STD * z, "noise": z}
        assert jax.jit(lambda pairs: Reflow(process)(KEY, model, pairs).max())(pairs) < 1e-20
        assert straightness(model, grid=grids.Uniform(20), key=KEY, shape=(64, 1)) < 1e-20
        assert straightness(teacher(process), grid=grids.Uniform(20), key=KEY, shape=(64, 1)) > 1e-2
        one = sample(model, solver=solvers.DDIM(), grid=grids.Uniform(1), key=KEY, shape=z.shape, start=starts.Fixed(z))
        np.testing.assert_allclose(one.x, pairs["x"], atol=1e-12)


def test_straightness_of_a_function_with_conditions():
    process, label = PROCESSES["edm"], jnp.arange(3)

    # The posterior mean of one atom: every flow is a line.
    model = models.FunctionModel(lambda y, t, cond: cond[:, None] * jnp.ones_like(y), process)
    assert straightness(model, grid=grids.Karras(8), key=KEY, shape=(3, 1), cond=label) < 1e-10


def test_errors_name_the_field():
    process = PROCESSES["flow"]
    batch = {"x": jnp.zeros((2, 1))}
    with pytest.raises(ValueError, match="is missing"):
        Reflow(process)(KEY, teacher(process), batch)
    with pytest.raises(ValueError, match="has shape"):
        Reflow(process)(KEY, teacher(process), batch | {"noise": jnp.zeros((2, 2))})
    with pytest.raises(ValueError, match="deterministic"):
        teacher_pairs(teacher(process), solver=solvers.EulerMaruyama(), grid=grids.Uniform(2, t_max=0.9), key=KEY, shape=(2, 1))
