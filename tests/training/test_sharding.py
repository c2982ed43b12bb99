"""One device, four and eight train, distil and sample alike, however the state lies on them; the collectives are those that it needs.

Devices are fixed when JAX starts: the laws run in one process with eight of them, which the first test starts.
"""

import collections
import os
import pathlib
import re
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from scorelab import densities, fk, grids, models, sample, solvers, training
from scorelab.experiment.checkpoints import Checkpoints
from scorelab.models.nets import MLP, DiT, UNet
from scorelab.training import Sharding, data_mesh, fit, parallel
from scorelab.training import memory as memory_module
from scorelab.training.loop import _as_is, compiled
from tests.training.small import PROCESS, Points, equal, host, learner

KEY = jax.random.key(0)
# Every array of a tiny network is split that can be.
SPLIT = Sharding(fully_sharded=True, smallest=1)
COLLECTIVES = re.compile(r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
OPTIMIZER = optax.sgd(0.05, momentum=0.9)


def member(**changes):
    # Momentum and no Adam, which divides by the gradient's size and would blow up the rounding of tiny ones.
    base = learner(optimizer=OPTIMIZER)
    denoiser = replace(base.denoiser, net=MLP(width=16, depth=1, embed=16))
    return replace(base, denoiser=denoiser, **changes)


def trained(sharding, devices, steps=4, state=None, **changes):
    windows = []
    mesh = sharding.mesh(jax.devices()[:devices])
    state = fit(member(**changes), Points(), steps=steps, key=KEY, state=state, mesh=mesh, sharding=sharding, log=windows.append)
    return state, windows[-1].by_step


def agree(one, other, rtol=1e-5):
    """Sums of a few hundred float32 numbers in another order, over a few steps: some units in the last place, 6e-8 each."""
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        a, b = np.float64(a), np.float64(b)
        np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol * np.abs(a).max())


def collectives(sharding, devices, **changes):
    """Those of the compiled step, counted by name."""
    mesh = sharding.mesh(jax.devices()[:devices])
    _, update = compiled(member(**changes), _as_is, mesh, sharding=sharding)
    state = sharding.place(jax.eval_shape(member().init, KEY, Points().at(0)), mesh)
    batch = jax.ShapeDtypeStruct((32, 2), np.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
    lowered = update.lower(state, {"x": batch}, parallel.replicate(KEY, mesh))
    return collections.Counter(COLLECTIVES.findall(lowered.compile().as_text()))


def share(tree):
    """The part of the bytes of a tree that one device has."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / sum(leaf.nbytes for leaf in leaves)


def training_agrees():
    one, one_metrics = trained(Sharding(), 1)
    for sharding, devices in ((Sharding(), 8), (SPLIT, 4), (SPLIT, 8), (replace(SPLIT, model=2, activations="batch"), 8)):
        many, metrics = trained(sharding, devices)
        agree(one, many)
        agree(one_metrics, metrics)
        assert all(leaf.sharding.is_equivalent_to(wanted, leaf.ndim) for leaf, wanted in zip(
            jax.tree.leaves(many), jax.tree.leaves(sharding.of(many, sharding.mesh(jax.devices()[:devices]))), strict=True
        ))  # fmt: skip
        if sharding == SPLIT:
            # Optimiser and averages as the parameters: a device has its part of all, but for biases of two numbers.
            for tree in (many.params, many.opt_state, many.averages):
                assert 1 / devices <= share(tree) < 1 / devices + 0.01
    # A batch in parts, of the same draws; two parts, on one device and on four.
    for sharding, devices in ((Sharding(), 1), (SPLIT, 4)):
        parts, metrics = trained(sharding, devices, accumulate=2)
        agree(one, parts)
        agree(one_metrics, metrics)


def what_is_exchanged():
    # Gradients, loss and metrics in one message.
    assert collectives(Sharding(), 8) == {"all-reduce": 1}
    # Every split parameter comes together once, and nothing else is gathered or moved.
    mesh = SPLIT.mesh(jax.devices()[:4])
    params = jax.eval_shape(member().init, KEY, Points().at(0)).params
    split = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(SPLIT.of(params, mesh)))
    found = collectives(SPLIT, 4)
    assert found["all-gather"] == split
    assert set(found) <= {"all-gather", "all-reduce", "reduce-scatter"}
    # In parts no more: they are gathered where they are used, in the loop.
    assert collectives(SPLIT, 4, accumulate=2)["all-gather"] == split


def resumed(folder):
    """Bitwise under the same layout; the same numbers under another one."""
    whole, _ = trained(SPLIT, 8)
    half, _ = trained(SPLIT, 8, steps=2)
    Checkpoints(folder).save(2, half)
    stored = Checkpoints(folder).restore(2, half)
    assert equal(stored, host(half))
    assert equal(trained(SPLIT, 8, state=stored)[0], whole)
    # From the devices of one layout to those of another, not over the host.
    for sharding, devices in ((Sharding(), 1), (replace(SPLIT, model=2), 8)):
        moved = sharding.place(half, sharding.mesh(jax.devices()[:devices]))
        assert equal(moved, half)
        agree(whole, trained(sharding, devices, state=half)[0])


def distillation():
    from tests.distill.test_fdistill import KEY as DISTILL_KEY
    from tests.distill.test_fdistill import Points as Batches
    from tests.distill.test_fdistill import networks

    # Student, fake score, discriminator, and a teacher whose arrays are arguments.
    distil = networks()
    ones, many = (
        fit(distil, Batches(), steps=2, key=DISTILL_KEY, mesh=sharding.mesh(jax.devices()[:devices]), sharding=sharding)
        for sharding, devices in ((Sharding(), 1), (SPLIT, 4))
    )
    # Adam blows up the rounding of small gradients: the tolerance of the same comparison under data parallelism.
    for a, b in zip(*map(jax.tree.leaves, (ones, many)), strict=True):
        a, b = np.float64(a), np.float64(b)
        assert np.all(np.abs(a - b) <= 2e-5 * (1 + np.abs(a))), np.max(np.abs(a - b))
    assert share((many.params, many.fake, many.opt_states)) < 0.3


def sampling():
    state, _ = trained(SPLIT, 4)
    sharding = replace(SPLIT, model=2)
    mesh = sharding.mesh()
    drawn = dict(grid=grids.Karras(6), key=KEY, shape=(16, 2))
    potential = fk.Difference(lambda x: -jnp.sum(x**2, axis=-1), 1.0)
    steered = fk.FeynmanKac(base=solvers.DDIM(eta=1.0), potential=potential, particles=4)
    for solver in (solvers.Heun(), steered):
        one = sample(member().model(host(state)), solver=solver, **drawn)
        for model, devices in (
            (member().model(state), data_mesh(jax.devices()[:4])),
            (member().model(sharding.place(state, mesh)), mesh),
        ):
            many = sample(model, solver=solver, mesh=devices, **drawn)
            agree(one.x, many.x)
            agree(one.log_z, many.log_z)


def main():
    import tempfile

    assert jax.device_count() == 8
    training_agrees()
    what_is_exchanged()
    with tempfile.TemporaryDirectory() as folder:
        resumed(pathlib.Path(folder))
    sampling()
    distillation()
    print("agree")


def test_one_device_equals_four_and_eight():
    root = pathlib.Path(__file__).parents[2]
    environment = {
        **os.environ,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "tests.training.test_sharding"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "agree" in done.stdout


if __name__ == "__main__":
    main()
