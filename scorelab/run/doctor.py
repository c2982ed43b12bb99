"""``scorelab doctor``: what this machine computes with, which data it has, and a test against exact laws."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from scorelab import densities, grids, metrics, models, processes, schedules, solvers, starts
from scorelab.config import versions
from scorelab.data import DataCorrupt, DataNotFound, load
from scorelab.data.files import CACHE_DIR_VARIABLE, DATA_DIR_VARIABLE, cache_dir
from scorelab.data.registry import SETS
from scorelab.devices import cores
from scorelab.errors import ConfigError
from scorelab.likelihood import log_likelihood
from scorelab.sampling import sample

# Points of the test, in the plane.
POINTS = 20_000


def doctor() -> None:
    """Print what there is, and compare a sampler and a likelihood with laws in closed form; ConfigError where they differ."""
    for title, lines in (("versions", _versions()), ("devices", _devices()), ("data", _data())):
        print(title)
        for name, value in lines:
            print(f"  {name:<20} {value}", flush=True)
    print("self-test")
    failed = []
    for name, found, bound, what in _self_test():
        good = found <= bound
        print(f"  {name:<20} {found:.3g}, expected at most {bound:.3g} ({what}){'' if good else '  FAILED'}", flush=True)
        failed += [] if good else [name]
    if failed:
        raise ConfigError(
            f"doctor: {', '.join(failed)} failed: expected what laws in closed form say; do not trust the numbers of this set-up"
        )


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield from versions()["packages"].items()


def _devices() -> Iterator[tuple[str, str]]:
    devices = jax.devices()
    yield "devices", f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    yield "processes", f"{jax.process_count()}, this is number {jax.process_index()}"
    yield "CPU cores", f"{cores()} of {os.cpu_count()} may be used"
    products = getattr(jax.config, "jax_default_matmul_precision", None)
    yield "precision", f"{jnp.result_type(float)}, matrix products {products or 'as the device does'}"
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR"):
        yield name, os.environ.get(name, "(not set)")


def _data() -> Iterator[tuple[str, str]]:
    yield DATA_DIR_VARIABLE, os.environ.get(DATA_DIR_VARIABLE, "(not set)")
    yield CACHE_DIR_VARIABLE, f"{os.environ.get(CACHE_DIR_VARIABLE, '(not set)')}; downloads go to {cache_dir()}"
    for name, member in SETS.items():
        if member.generated:
            continue
        found = []
        for split in member.splits:
            try:
                arrays = load(name, split, download=False)
                found.append(f"{split} {len(arrays):,}, sha256 {arrays.sha256[:12]}")
            except DataNotFound:
                found.append(f"{split} not here")
            except DataCorrupt as error:
                found.append(f"{split} DAMAGED: {str(error).splitlines()[0]}")
        yield name, "; ".join(found)


def _self_test() -> Iterator[tuple[str, float, float, str]]:
    """Name, what was found, what it may be, and why."""
    began = time.monotonic()
    process = processes.Gaussian(schedule=schedules.EDM())
    law = densities.eight_gaussians()
    model, key = models.ExactModel(law, process), jax.random.key(0)
    out = sample(model, solver=solvers.Heun(), grid=grids.Karras(20), key=key, shape=(POINTS, 2))
    one, two = (np.asarray(law.sample(jax.random.key(seed), POINTS)) for seed in (1, 2))
    distance = lambda points: metrics.sliced_wasserstein(jax.random.key(3), np.asarray(points), one, projections=64).value
    yield "samples", distance(out.x), 2.5 * distance(two), "2.5 times the distance of two exact sets of as many points"
    gaussian = densities.Gaussian(np.array([0.3, -0.2]), np.array([[0.5, 0.1], [0.1, 0.4]]))
    points = np.asarray(gaussian.sample(jax.random.key(4), 64))
    # From the law at the end of the flow, which the prior is not: nothing is left but the tolerance of the ODE solver.
    found = log_likelihood(models.ExactModel(gaussian, process), points, start=starts.GaussianMoments(gaussian)).log_prob
    exact = gaussian.noised(process, process.t_min).log_prob(points)
    yield "log-likelihood", float(np.abs(np.asarray(found) - np.asarray(exact)).max()), 2e-3, "nats"
    first = sample(model, solver=solvers.DDIM(eta=1.0), grid=grids.Karras(4), key=key, shape=(8, 2), chunk=8).x
    again = sample(model, solver=solvers.DDIM(eta=1.0), grid=grids.Karras(4), key=key, shape=(16, 2), chunk=8).x[:8]
    yield (
        "reproducible",
        float(np.abs(np.asarray(first) - np.asarray(again)).max()),
        0.0,
        "a sample depends on its key and its number",
    )
    yield "seconds", time.monotonic() - began, 60.0, "with compilation"
