"""One device and two simulated ones train, distil and sample alike; batches that do not divide are refused."""

import jax
import numpy as np
import optax
import pytest

from scorelab import densities, grids, models, processes, sample, schedules, solvers
from scorelab.training import SkippedBatchWarning, data_mesh, fit
from scorelab.training.parallel import replicate, shard_batch
from tests.apart import on_devices
from tests.training.small import Points, host, learner


def trained(mesh=None, bad=None):
    # Plain gradient steps: Adam divides by the gradient's size and would blow up the rounding of tiny ones.
    member = learner(optimizer=optax.sgd(0.05))
    windows = []
    skips = {} if bad is None else {"skip_nonfinite": 1}
    state = fit(member, Points(bad_step=bad), steps=5, key=jax.random.key(0), log=windows.append, mesh=mesh, **skips)
    return host(state), windows[0].by_step


def training(bad=None):
    one, one_metrics = trained(data_mesh(jax.devices()[:1]), bad)
    two, two_metrics = trained(None, bad)
    for name, values in one_metrics.items():
        np.testing.assert_allclose(two_metrics[name], values, rtol=1e-6)
    for tree in ("params", "averages"):
        pair = (jax.tree.leaves(getattr(state, tree)) for state in (one, two))
        for a, b in zip(*pair, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(a).max())
    sharded = shard_batch(Points().at(0), data_mesh())["x"]
    assert [s.data.shape for s in sharded.addressable_shards] == [(16, 2), (16, 2)]
    with pytest.raises(ValueError, match=r"\['x'\] has shape \(31, 2\)"):
        fit(learner(), Points(batch_size=31), steps=1, key=jax.random.key(0))


def skipping():
    """A batch with a NaN on one of the devices is skipped on both."""
    with pytest.warns(SkippedBatchWarning, match="skipped the batch of step 3"):
        training(bad=2)


def distillation():
    from tests.distill.test_fdistill import KEY, networks
    from tests.distill.test_fdistill import Points as Batches

    learner = networks()
    meshes = [data_mesh(jax.devices()[:n]) for n in (1, 2)]
    states = [host(fit(learner, Batches(), steps=3, key=KEY, mesh=mesh)) for mesh in meshes]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        a, b = np.float64(a), np.float64(b)
        # Sums in another order.
        assert np.all(np.abs(a - b) <= 2e-5 * (1 + np.abs(a))), np.max(np.abs(a - b))


def sampling():
    process = processes.Gaussian(schedule=schedules.EDM())
    model = models.ExactModel(densities.eight_gaussians(), process)
    for solver in (solvers.Heun(), solvers.DPMSolverPP(order=2, eta=1.0)):
        arguments = dict(solver=solver, grid=grids.Karras(8), key=jax.random.key(0), shape=(9, 2))
        one, two = (sample(model, mesh=mesh, **arguments).x for mesh in (None, data_mesh()))
        np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-6)


def main():
    """Runs in the subprocess, which has two devices: their number is fixed when JAX starts, so that all laws share one process."""
    assert jax.device_count() == 2
    for law in (training, skipping, distillation, sampling):
        law()
    print("agree")


def test_one_device_equals_two():
    on_devices(2, "tests.training.test_parallel")


def test_a_mesh_needs_devices():
    with pytest.raises(ValueError, match="at least one device"):
        data_mesh([])


if __name__ == "__main__":
    main()


@pytest.mark.parametrize("place", [replicate, shard_batch])
def test_host_arrays_may_be_reused_at_once(place):
    # Aligned to 64 bytes, where JAX would share the memory with the CPU device.
    memory = np.zeros(4096 + 64, np.uint8)
    start = -memory.ctypes.data % 64
    buffer = memory[start : start + 4096].view(np.float32).reshape(512, 2)
    placed = place({"x": buffer}, data_mesh())["x"]
    buffer[:] = 1
    np.testing.assert_array_equal(placed, 0)
