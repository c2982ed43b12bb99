"""Memory of samplers against their steps, particles and chunks, as XLA plans it, and of a long sampling, as it is counted."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

import scorelab as sl
from benchmarks.common import EDM, Row, model_of
from benchmarks.smc import brightness
from scorelab.sampling import _walk
from scorelab.walk import Held, Visit, drawn, working_precision

try:
    import resource
except ImportError:  # Windows
    resource = None


def planned(model, event, batch, solver, steps, keep="last") -> float:
    """MiB of temporaries of a call."""
    rows = working_precision(solver.table(EDM, sl.grids.Karras(steps).times(EDM)))
    visit = Visit(model, jax.random.key(0), jnp.arange(batch))
    begun = drawn.lower(sl.starts.Prior(), EDM, visit.key, visit.ids, None, rows.t[0], event=event).out_info
    compiled = _walk.lower(Held(solver), visit, begun, rows, keep=keep).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def plan(rounds: int, quick: bool) -> Iterator[Row]:
    """Ten times the steps takes as much; a sample takes what its network takes."""
    model, event, batch, _ = model_of("DiT")
    heun, base = sl.solvers.Heun(), sl.solvers.DDIM(eta=1.0)
    few, many = (planned(model, event, batch, heun, steps) for steps in (10, 100))
    yield Row.of("100 steps over 10: DiT, Heun", many / few, "times", goal=1.02, base=f"10 steps, {few:.1f} MiB")
    potential = sl.fk.Difference(brightness, 5.0)
    for particles in (16, 64):
        plain = planned(model, event, particles, base, 10)
        weighed = planned(model, event, particles, sl.fk.FeynmanKac(base=base, potential=potential, policy=sl.fk.Always()), 10)
        yield Row.of(f"{particles} particles over as many samples: DiT", weighed / plain, "times", base=f"samples, {plain:.1f} MiB")
    for chunk in (16, 64):
        yield Row.of(f"a chunk of {chunk}: DiT, Heun", planned(model, event, chunk, heun, 10), "MiB")
    kept = planned(model, event, batch, heun, 100, keep="all")
    states = 200 * batch * 28 * 28 * 4 / 2**20
    yield Row.of('keep="all", 100 steps: DiT, Heun', kept, "MiB", base=f"the states of all rows, {states:.1f} MiB")


def long(rounds: int, quick: bool) -> Iterator[Row]:
    """Peak memory of the process in a long sampling and in a Frechet distance of it, over that of a short one before."""
    if resource is None:
        raise ModuleNotFoundError("no module resource: the system does not count the peak memory of a process")
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform != "darwin" else 2**20)
    event, chunk = (32, 32, 3), 256
    law = sl.densities.Gaussian(np.zeros(event), 0.25)
    arguments = dict(solver=sl.solvers.DDIM(), grid=sl.grids.Karras(2), key=jax.random.key(0), chunk=chunk)
    pixels, few, many = sl.data.Pixels(), 5, 24 if quick else 120
    # What a sampler that kept them all would add.
    kept = (many - few) * chunk * math.prod(event) * 4 / 2**20

    class Means(sl.metrics.Features):
        id = "means"

        def __call__(self, images):
            return np.asarray(images, np.float32).mean((1, 2))

    def drawn(chunks, folder):
        return sl.sample_to(folder, sl.models.ExactModel(law, EDM), shape=(chunks * chunk, *event), transform=pixels, **arguments)

    with tempfile.TemporaryDirectory() as folder:
        first = sl.metrics.feature_moments(drawn(few, f"{folder}/few"), Means())
        before = peak()
        shards = drawn(many, f"{folder}/many")
        # A tenth of what all samples would take, beyond what the allocator keeps.
        goal, base = 0.1 * kept + 20, f"float32 samples, {kept:.0f} MiB"
        yield Row.of(f"{many} chunks over {few}: peak", peak() - before, "MiB", goal=goal, base=base)
        last = sl.metrics.feature_moments(shards, Means())
        yield Row.of("and their Frechet moments", peak() - before, "MiB", goal=goal, base=f"{first.n} and {last.n} samples")


PARTS = {"plan": plan, "long": long}
