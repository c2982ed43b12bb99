"""All cores of a CPU as devices, and what is spread over them; parts run apart where the number of devices matters."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import scorelab as sl
from scorelab import devices

ROOT = Path(__file__).parents[1]


def apart(part, **extra):
    """The output of a part of this file in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **extra}
    command = [sys.executable, "-m", "tests.test_devices", part]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


# The number of devices -------------------------------------------------------------------------------------------------------
def started():
    # No import starts JAX.
    for name in sl.__all__:
        getattr(sl, name)
    print(sl.use_all_cores(int(os.environ["COUNT"])), sl.use_all_cores(), sl.use_all_cores(3))
    print(jax.local_device_count(), sl.use_all_cores(), sl.use_all_cores(3))
    with pytest.raises(RuntimeError, match=r"already runs with 3 device\(s\) of the CPU: expected a call before anything"):
        sl.use_all_cores(2)


def test_the_number_is_set_before_jax_starts_and_stays():
    # The last of several calls holds; one without a number keeps it, before the start and after it.
    assert apart("started", COUNT="5") == ["5", "5", "3", "3", "3", "3"]


def told():
    print(sl.use_all_cores(), jax.local_device_count())


@pytest.mark.parametrize(
    ("extra", "number"),
    [
        (dict(JAX_NUM_CPU_DEVICES="3"), "3"),
        (dict(XLA_FLAGS="--xla_force_host_platform_device_count=4"), "4"),
        ({}, str(devices.cores())),
    ],
    ids=["JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "cores"],
)
def test_what_jax_was_told_stays(extra, number):
    assert apart("told", **extra) == [number, number]


def kept():
    import resource

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(2**26, np.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    fresh = faults()
    sl.use_all_cores()
    faults()
    print(int(faults() < 0.01 * fresh))


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or any(name.startswith(("MALLOC_", "GLIBC_")) for name in os.environ),
    reason="what the C library keeps is not set",
)
def test_what_is_freed_stays_with_the_process():
    # 64 MB are 16,384 pages, each of which would be filled with zeros anew.
    assert apart("kept") == ["1"]


@pytest.mark.parametrize("count", [0, -1, True, 2.0, "2", devices.MOST_DEVICES + 1])
def test_no_number_of_devices(count):
    with pytest.raises(ValueError, match=r"use_all_cores\.count = .*: expected an integer"):
        sl.use_all_cores(count)


def test_beside_an_accelerator_the_cpu_does_not_matter(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    running = len(jax.local_devices(backend="cpu"))
    assert sl.use_all_cores(running + 1) == running


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, float("inf")),
        # The limit of a group above holds as well.
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000", "cpu.max": "max 100000"}, 2.0),
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000", "a/cpu.max": "400000 100000"}, 2.0),
        # Seen from inside a container the path is that of the machine.
        ("0::/docker/123\n", {"cpu.max": "300000 100000"}, 3.0),
        (
            "4:memory:/x\n3:cpu,cpuacct:/a\n0::/\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "250000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, float("inf")),
        ("2:cpuset:/\n", {"cpuset/cpu.max": "100000 100000"}, float("inf")),
    ],
    ids=["version 2", "no limit", "outer", "inner", "container", "version 1", "version 1, no limit", "another controller"],
)
def test_the_quota_of_a_control_group(tmp_path, groups, files, quota):
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert devices._quota(tmp_path / "cgroup", tmp_path / "fs") == quota
    assert devices._quota(tmp_path / "nothing", tmp_path / "fs") == float("inf")


def test_cores_are_those_of_the_affinity_and_the_quota(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    for quota, cores in ((float("inf"), 6), (2.5, 2), (0.5, 1)):
        monkeypatch.setattr(devices, "_quota", lambda groups, root, quota=quota: quota)
        assert devices.cores() == cores


# How many of them are taken --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rows", "work", "options", "count"),
    [
        (16, 64, {}, 8),  # all, by enough work
        (16, 3.5, {}, 3),  # as many as have enough of it
        (16, 1.9, {}, 1),
        (3, 64, {}, 3),  # a row each
        (16, 5, {}, 4),  # of five devices one would have four rows all the same
        (12, 64, dict(share=12), 6),  # an equal share of a batch
        (7, 64, dict(share=7), 7),
        (13, 64, dict(share=13), 1),
        (64, 64, dict(unit=16, share=64), 4),  # whole populations
        (64, 64, dict(unit=16, share=48), 3),
        (64, 64, dict(unit=64, share=64), 1),  # one population stays on one device
    ],
)
def test_the_choice_of_devices(monkeypatch, rows, work, options, count):
    class Cpu:
        platform = "cpu"

    monkeypatch.setattr(jax, "local_devices", lambda: [Cpu()] * 8)
    assert devices._worthwhile(rows, lambda: work, **options) == count


def test_on_accelerators_nothing_is_counted(monkeypatch):
    class Gpu:
        platform = "gpu"

    def work():
        raise AssertionError("counted")

    monkeypatch.setattr(jax, "local_devices", lambda: [Gpu()] * 4)
    assert [devices._worthwhile(rows, work) for rows in (100, 3, 1)] == [4, 3, 1]


def test_operations_are_those_of_one_step():
    @jax.jit
    def run(a, x):
        return jax.lax.scan(lambda x, _: (a @ x, None), x, length=7)[0]

    shapes = jax.numpy.ones((32, 64)), jax.numpy.ones((64, 64))
    # A product of an m x k by a k x n matrix has 2 m k n.
    assert devices.operations(jax.jit(jax.numpy.matmul), *shapes) == pytest.approx(2 * 32 * 64 * 64, rel=0.01)
    assert devices.operations(run, shapes[1], shapes[1]) == pytest.approx(2 * 64**3, rel=0.01)


@pytest.mark.parametrize("mesh", ["all", True, 2, ("data",)])
def test_no_mesh(mesh):
    model = sl.models.ExactModel(sl.densities.eight_gaussians(), sl.processes.Gaussian(schedule=sl.schedules.EDM()))
    with pytest.raises(TypeError, match=r"sample\.mesh = .*: expected a Mesh, 'auto' or None"):
        sl.sample(model, solver=sl.solvers.Heun(), grid=sl.grids.Karras(4), key=jax.random.key(0), shape=(8, 2), mesh=mesh)
    with pytest.raises(TypeError, match=r"invert\.mesh = "):
        sl.invert(model, jax.numpy.ones((8, 2)), solver=sl.solvers.Heun(), grid=sl.grids.Karras(4), mesh=mesh)
    with pytest.raises(TypeError, match=r"log_likelihood\.mesh = "):
        sl.log_likelihood(model, jax.numpy.ones((8, 2)), mesh=mesh)


def test_a_mesh_of_explicit_axes_is_refused():
    model = sl.models.ExactModel(sl.densities.eight_gaussians(), sl.processes.Gaussian(schedule=sl.schedules.EDM()))
    mesh = jax.make_mesh((1,), ("data",))
    with pytest.raises(
        ValueError, match=r"sample\.mesh has axes of the type .*: expected AxisType\.Auto, which training\.data_mesh"
    ):
        sl.sample(model, solver=sl.solvers.Heun(), grid=sl.grids.Karras(4), key=jax.random.key(0), shape=(8, 2), mesh=mesh)


# On four devices -------------------------------------------------------------------------------------------------------------
def four():
    """One device and several give the same, up to the order of sums; a float32 sum of some hundred terms is off by 1e-6."""
    import jax.numpy as jnp
    import numpy as np
    import optax

    sl.use_all_cores(4)
    assert jax.local_device_count() == 4
    process = sl.processes.Gaussian(schedule=sl.schedules.EDM())
    spec = sl.models.Denoiser(net=sl.models.nets.MLP(width=128, depth=2), process=process, data_std=0.5)
    loss = sl.losses.DenoisingScoreMatching(process)
    learner = sl.training.ScoreLearner(spec, loss, optax.sgd(1e-2))
    used = lambda tree: {leaf.sharding.num_devices for leaf in jax.tree.leaves(tree)}

    class Data:
        def at(self, step):
            return {"x": np.random.default_rng(step).normal(0, 0.5, (batch, 2)).astype(np.float32)}

    fitted = {}
    for batch, count in ((64, 1), (4500, 4), (4501, 1)):
        alone = sl.training.data_mesh(jax.devices()[:1])
        arguments = dict(steps=3, key=jax.random.key(1))
        fitted[batch] = sl.training.fit(learner, Data(), mesh="auto", **arguments)
        assert used(fitted[batch]) == {count}, (batch, used(fitted[batch]))
        expected = sl.training.fit(learner, Data(), mesh=alone, **arguments)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), fitted[batch].params, expected.params)

    # An update of a product of 8.4e8 operations: every device updates all numbers of the state, which has to be worth it.
    class Product:
        def __init__(self, numbers):
            self.numbers = numbers

        def init(self, key, batch):
            return jnp.zeros(self.numbers)

        def update(self, state, batch, key):
            return state, batch["x"] @ batch["x"].T

    points = {"x": np.zeros((1280, 256), np.float32)}
    for numbers, count in ((1000, 4), (120_000, 2), (200_000, 1)):
        assert sl.devices.training_mesh(Product(numbers), points, jax.random.key(0)).size == count, numbers

    heun = dict(solver=sl.solvers.Heun(), grid=sl.grids.Karras(4), key=jax.random.key(2))
    # Weights of a training lie on its devices, which need not be those of the samples.
    for batch, n, count in ((64, 7500, 3), (4500, 9000, 4), (64, 64, 1)):
        model = learner.model(fitted[batch])
        host = jax.device_get(model)
        ids = np.arange(n)[::-1]
        spread, alone = sl.sample(model, shape=(n, 2), mesh="auto", ids=ids, **heun), sl.sample(host, shape=(n, 2), ids=ids, **heun)
        assert used(spread.x) == {count}, (batch, n, used(spread.x))
        np.testing.assert_allclose(spread.x, alone.x, atol=1e-4)
        back = sl.invert(model, alone.x, solver=sl.solvers.Heun(), grid=sl.grids.Karras(4), mesh="auto")
        assert used(back) == {count}
        expected = sl.invert(host, alone.x, solver=sl.solvers.Heun(), grid=sl.grids.Karras(4))
        np.testing.assert_allclose(back, expected, rtol=1e-4, atol=1e-3)
    # Rows that fill up the devices count nowhere, in the steps of an adaptive solver neither: they would be others.
    points = np.random.default_rng(0).normal(0, 0.5, (10, 2)).astype(np.float32)
    sl.devices.LEAST_WORK, least = 1.0, sl.devices.LEAST_WORK
    for probes in (0, 2):
        given = dict(rtol=1e-2, atol=1e-2, probes=probes, key=jax.random.key(4))
        expected = sl.log_likelihood(host, points, **given)
        for mesh in (sl.training.data_mesh(), "auto"):
            found = sl.log_likelihood(host, points, mesh=mesh, **given)
            assert found.log_prob.shape == (10,)
            assert used(found.log_prob) == {4}
            assert int(found.steps) == int(expected.steps)
            np.testing.assert_allclose(found.log_prob, expected.log_prob, atol=1e-4)
            np.testing.assert_allclose(found.latent, expected.latent, rtol=1e-5, atol=1e-3)
    sl.devices.LEAST_WORK = least
    # An explicit chunk counts, not the number of samples.
    assert used(sl.sample(model, shape=(5000, 2), chunk=50, mesh="auto", **heun).x) == {1}
    # Inside a program of the caller, that program says where.
    inside = jax.jit(lambda key: sl.sample(host, shape=(5000, 2), mesh="auto", **heun | dict(key=key)).x)
    assert used(inside(jax.random.key(2))) == {1}

    # Populations stay whole: six of them lie on three devices, and a single one on one.
    base = sl.solvers.EulerMaruyama(denoise=False)
    for particles, count in ((1500, 3), (None, 1)):
        solver = sl.fk.FeynmanKac(base=base, potential=sl.fk.Difference(lambda x: -jnp.sum(x**2, -1), 1.0), particles=particles)
        arguments = dict(solver=solver, grid=sl.grids.Karras(4, clean=False), key=jax.random.key(3), shape=(9000, 2))
        spread = sl.sample(host, mesh="auto", **arguments)
        assert used(spread.x) == {count}, (batch, n, used(spread.x))
        np.testing.assert_allclose(spread.log_z, sl.sample(host, **arguments).log_z, atol=1e-4)
    print("agree")


def test_four_devices():
    assert apart("four") == ["agree"]


if __name__ == "__main__":
    globals()[sys.argv[1]]()
