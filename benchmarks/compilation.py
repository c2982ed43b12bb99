"""Compile times of samplers over that of the bare network, programs of a sweep, first calls, and the import."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

import scorelab as sl
from benchmarks.common import EDM, NETS, Row, drawn, model_of
from scorelab.sampling import _walk
from scorelab.walk import Held, Visit, working_precision
from scorelab.walk import drawn as drawn_start

STEPS = 40
GOAL = 1.6
# A script that samples; the package itself imports its parts when they are named.
USED = "scorelab as sl; sl.sample, sl.models, sl.densities, sl.solvers, sl.grids"


def _seconds(lower: Callable) -> float:
    start = time.perf_counter()
    lower().compile()
    return time.perf_counter() - start


def _sampler(model, event, batch, solver, steps) -> float:
    rows = working_precision(solver.table(EDM, sl.grids.Karras(steps).times(EDM)))
    visit = Visit(model, jax.random.key(0), jnp.arange(batch))
    begun = jax.eval_shape(lambda: drawn_start(sl.starts.Prior(), EDM, visit.key, visit.ids, None, rows.t[0], event=event))
    return _seconds(lambda: _walk.lower(Held(solver), visit, begun, rows, keep="last"))


def compiling(rounds: int, quick: bool) -> Iterator[Row]:
    """Trace and compile time of a sampler of 40 steps over that of its network; cached programs are cleared before each."""
    solvers = {"Heun": sl.solvers.Heun(), "DPM-Solver++ 2M": sl.solvers.DPMSolverPP(order=2)}
    for name in ("DiT",) if quick else NETS:
        model, event, batch, _ = model_of(name)
        y, t = jnp.zeros((batch, *event)), jnp.float32(1.0)
        net = jax.jit(lambda m, y, t: m.denoiser.network_output(m.params, y, t))
        found = {title: [] for title in ("bare", *solvers)}
        for _ in range(min(rounds, 3)):
            jax.clear_caches()
            found["bare"].append(_seconds(lambda: net.lower(model, y, t)))
            for title, solver in solvers.items():
                jax.clear_caches()
                found[title].append(_sampler(model, event, batch, solver, STEPS))
        bare = statistics.median(found["bare"])
        for title in solvers:
            ratios = sorted(a / b for a, b in zip(found[title], found["bare"], strict=True))
            yield Row(
                f"{title}, {STEPS} steps: {name}", statistics.median(ratios), ratios[0], ratios[-1], goal=GOAL,
                base=f"the network, {bare:.2f} s",
            )  # fmt: skip


def steps(rounds: int, quick: bool) -> Iterator[Row]:
    """Compile time of four times as many steps: the loop is compiled once."""
    model, event, batch, _ = model_of("MLP")
    found: dict[int, list[float]] = {40: [], 160: []}
    for _ in range(min(rounds, 3)):
        for count in found:
            jax.clear_caches()
            found[count].append(_sampler(model, event, batch, sl.solvers.Heun(), count))
    ratios = sorted(b / a for a, b in zip(*found.values(), strict=True))
    yield Row("Heun, 160 steps over 40: MLP", statistics.median(ratios), ratios[0], ratios[-1], base="40 steps")


def programs(rounds: int, quick: bool) -> Iterator[Row]:
    """Programs that a sweep over numbers compiles; each may need one for every shape of a chunk."""
    model, event, _, count = model_of("MLP")
    key = jax.random.key(0)

    def swept(runs: Callable[[], None]) -> int:
        _walk.clear_cache()
        runs()
        return _walk._cache_size()

    def scales():
        for scale in (0.5, 1.0, 2.0, 4.0):
            for n in (100, 256, 700):
                guided = sl.models.ClassifierFreeGuidance(model=model, unconditional=model, scale=scale)
                sl.sample(guided, solver=sl.solvers.Heun(), grid=sl.grids.Karras(count), key=key, shape=(n, *event), chunk=256)

    def keys():
        for seed in range(4):
            sl.sample(model, solver=sl.solvers.Heun(), grid=sl.grids.Karras(count), key=jax.random.key(seed), shape=(64, *event))

    def ends():
        for last in (1e-3, 2e-3, 4e-3):
            grid = sl.grids.Karras(count, t_min=last)
            sl.sample(model, solver=sl.solvers.Heun(), grid=grid, key=key, shape=(64, *event))

    yield Row.of("programs: 4 guidance scales x 3 sample counts", swept(scales), "programs", goal=2, base="2 shapes of a chunk")
    yield Row.of("programs: 4 keys", swept(keys), "programs", goal=1)
    yield Row.of("programs: 3 grids of equal length", swept(ends), "programs", goal=1)


def calls(rounds: int, quick: bool) -> Iterator[Row]:
    """Seconds of a first call, compiled in this process, and of the next one."""
    for name in ("DiT",) if quick else NETS:
        model, event, batch, count = model_of(name)
        jax.clear_caches()
        run = drawn(model, (batch, *event), sl.solvers.Heun(), sl.grids.Karras(count))
        for title in ("first", "second"):
            start = time.perf_counter()
            jax.block_until_ready(run())
            yield Row.of(f"{title} call: {name}", time.perf_counter() - start, "s")


def importing(rounds: int, quick: bool) -> Iterator[Row]:
    """What a sampling script imports over JAX, Flax and Optax, each in a process of its own; CPU seconds."""
    root = Path(__file__).resolve().parent.parent
    code = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"
    run = lambda what: float(
        subprocess.run([sys.executable, "-c", code.format(what)], cwd=root, capture_output=True, text=True, check=True).stdout
    )
    pairs = [(run("jax, flax, optax"), run(USED)) for _ in range(min(rounds, 5))]
    ratios = sorted(b / a for a, b in pairs)
    base = f"jax, flax and optax, {statistics.median(a for a, _ in pairs):.2f} s"
    yield Row("import of what a sampling script uses", statistics.median(ratios), ratios[0], ratios[-1], base=base)


PARTS = {"compiling": compiling, "steps": steps, "programs": programs, "calls": calls, "importing": importing}
