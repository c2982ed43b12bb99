"""Populations over several devices and processes; each part runs apart, since devices are fixed when JAX starts."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COLLECTIVES = r"all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter"


def launch(part, **extra):
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.fk.test_devices", part]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment | extra, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:]
    return out


# Populations that lie on one device each, on all devices, and on two each: "few" leaves out what the other test holds.
LONG = pytest.param("all", marks=pytest.mark.long)


@pytest.mark.parametrize("which", ["few", LONG])
def test_four_devices(which):
    assert "agree" in finish(launch("devices", JAX_NUM_CPU_DEVICES="4", WHICH=which))


@pytest.mark.parametrize("which", ["few", LONG])
def test_two_processes(which):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [launch("processes", JAX_NUM_CPU_DEVICES="2", COORDINATOR=address, PROCESS=str(i), WHICH=which) for i in range(2)]
    for process in both:
        assert "agree" in finish(process)


def populations(particles=64):
    from scorelab import fk

    from .chains import BASE, SCALE, reward

    potential = fk.Difference(reward, SCALE, every=5)
    return fk.FeynmanKac(base=BASE, potential=potential, particles=particles, record_ancestors=True)


def walk(solver, n, mesh=None, **options):
    import jax

    from scorelab import sample

    from .chains import GRID, MODEL

    return sample(MODEL, solver=solver, grid=GRID, key=jax.random.key(0), shape=(n, 1), mesh=mesh, **options)


def exchanged(solver, n, mesh):
    """The collectives in the programs that ``sample`` runs on the devices of ``mesh``: in the start, and in the walk."""
    from tests.programs import sampled

    _, programs = sampled(lambda: walk(solver, n, mesh))
    drawn, walked = (re.findall(COLLECTIVES, text) for text in programs)
    return drawn, walked


def devices():
    import jax
    import numpy as np

    from scorelab.training import data_mesh

    assert jax.device_count() == 4
    mesh = data_mesh()
    # Whole populations on each device: nothing is exchanged.
    assert exchanged(populations(), 64 * 8, mesh) == ([], [])
    # One population on all of them exchanges weights and particles, which are drawn where they lie.
    drawn, walked = exchanged(populations(None), 512, mesh)
    assert walked
    assert not drawn

    # Eight populations on four devices, one on all of them, and two, each on two.
    cases = [(populations(), 64 * 8), (populations(1024), 2048), (populations(None), 2048)]
    for solver, n in cases if os.environ["WHICH"] == "all" else cases[:2]:
        one, four = walk(solver, n), walk(solver, n, mesh)
        assert int(np.sum(one.diagnostics["resampled"])) >= 3
        for name in ("ancestors", "root", "resampled", "unique_roots"):
            np.testing.assert_array_equal(one.diagnostics[name], four.diagnostics[name], err_msg=name)
        np.testing.assert_allclose(four.x, one.x, atol=1e-5)
        np.testing.assert_allclose(four.log_z, one.log_z, atol=1e-5)
    with pytest.raises(ValueError, match="on 4 devices"):
        walk(populations(), 64 * 6, mesh)
    # A mesh for independent samples works inside a jit of the caller's, as before.
    from scorelab import sample

    from .chains import BASE, GRID, MODEL

    jax.jit(lambda key: sample(MODEL, solver=BASE, grid=GRID, key=key, shape=(8, 1), mesh=mesh).x)(jax.random.key(0))
    print("agree")


def processes():
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(os.environ["COORDINATOR"], num_processes=2, process_id=int(os.environ["PROCESS"]))
    import numpy as np

    from scorelab.arrays import on_host
    from scorelab.training import data_mesh

    assert (jax.process_count(), jax.device_count(), len(jax.local_devices())) == (2, 4, 2)
    cases = [(populations(None), 512), (populations(), 64 * 8)]
    for solver, n in cases if os.environ["WHICH"] == "all" else cases[:1]:
        # One device of this process beside all four of both.
        one, four = walk(solver, n, data_mesh(jax.local_devices()[:1])), walk(solver, n, data_mesh())
        assert not four.x.is_fully_addressable
        for name in ("ancestors", "root", "resampled"):
            np.testing.assert_array_equal(on_host(four.diagnostics[name]), one.diagnostics[name], err_msg=name)
        np.testing.assert_allclose(on_host(four.x), one.x, atol=1e-5)
        np.testing.assert_allclose(on_host(four.log_z), one.log_z, atol=1e-5)
    print("agree")


if __name__ == "__main__":
    dict(devices=devices, processes=processes)[sys.argv[1]]()
