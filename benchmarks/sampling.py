"""Sampling over the bare network: every family of solvers, guidance, kept trajectories, shards, and the dispatch of a small call.

The limit is the network called as often in one jitted ``lax.scan``.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

import scorelab as sl
from benchmarks.common import EDM, NETS, Row, bare_calls, denoiser, drawn, in_turns, interleaved, model_of, perturbed

SOLVERS = {
    "Euler": sl.solvers.ProbabilityFlowEuler(),
    "DDIM": sl.solvers.DDIM(),
    "ancestral": sl.solvers.DDIM(eta=1.0),
    "Heun": sl.solvers.Heun(),
    "Heun, churn": sl.solvers.Heun(churn=8.0),
    "DPM-Solver++ 2M": sl.solvers.DPMSolverPP(order=2),
    "DPM-Solver++ 2M SDE": sl.solvers.DPMSolverPP(order=2, eta=1.0),
    "DPM-Solver++ 3M": sl.solvers.DPMSolverPP(order=3),
    "DEIS 3": sl.solvers.DEIS(order=3),
    "UniPC 3": sl.solvers.UniPC(predictor_order=3),
    "Euler-Maruyama": sl.solvers.EulerMaruyama(),
    "re-noising": sl.solvers.Renoise(),
    "predictor-corrector": sl.solvers.PredictorCorrector(),
    "a path": sl.solvers.Brownian(solver=sl.solvers.DPMSolverPP(order=2, eta=1.0)),
}
# A few of them for a look.
QUICK = ("Heun", "DPM-Solver++ 2M", "Euler-Maruyama")
GOAL = 1.02


def _calls(solver, process, grid) -> int:
    return len(solver.table(process, grid.times(process)).t)


def overhead(rounds: int, quick: bool) -> Iterator[Row]:
    """``sample`` over as many bare calls of its network, per call."""
    for name in NETS:
        model, event, usual, steps = model_of(name)
        for batch in (usual,) if quick else (1, usual):
            # Calls of microseconds are dispatch: the goal is one of batches that a network works on.
            goal, grid, limit = GOAL if batch >= 16 else None, sl.grids.Karras(steps), f"{name}, batch {batch}"
            functions, calls = {limit: bare_calls(model, event, batch, 2 * steps)}, {limit: 2 * steps}
            for title, solver in SOLVERS.items():
                if not quick or title in QUICK:
                    functions[title] = drawn(model, (batch, *event), solver, grid)
                    calls[title] = _calls(solver, EDM, grid)
            yield from in_turns(functions, rounds, base=limit, calls=calls, goal=goal, case=f"{{}}: {limit}")


def kinds(rounds: int, quick: bool) -> Iterator[Row]:
    """Other kinds of processes: multiplicative noise, and interpolants with two heads."""
    for name in ("DiT",) if quick else NETS:
        net, event, batch, steps = NETS[name]
        y = np.zeros((1, *event), np.float32)
        limit = f"{name}, batch {batch}"
        process = sl.processes.GeometricBrownianMotion(sigma=0.8)
        spec = sl.models.Denoiser(net=net, process=process)
        model = spec.bind(perturbed(spec.init(jax.random.key(0), y + 1), 0.05))
        grid, solver = sl.grids.Karras(steps), sl.solvers.Heun()
        functions, calls = {limit: bare_calls(model, event, batch, 2 * steps)}, {limit: 2 * steps}
        for title, each in {
            "multiplicative": solver,
            "multiplicative, Milstein": sl.solvers.Milstein(),
            "multiplicative, annealed": sl.solvers.MultiplicativeAnnealed(),
        }.items():
            functions[title] = drawn(model, (batch, *event), each, grid)
            calls[title] = _calls(each, process, grid)
        yield from in_turns(functions, rounds, base=limit, calls=calls, goal=GOAL, case=f"{{}}: {limit}")
        yield from _interpolants(name, rounds)


def _interpolants(name: str, rounds: int) -> Iterator[Row]:
    net, event, batch, steps = NETS[name]
    base = sl.densities.Gaussian(np.zeros(event), 1.0)
    process = sl.processes.StochasticInterpolant(base=base)
    field = sl.models.InterpolantField(net=net, process=process)
    model = field.bind(perturbed(field.init(jax.random.key(0), np.zeros((1, *event), np.float32)), 0.05))
    # One network has both heads, side by side in the last axis: the limit has points as wide.
    wide = (*event[:-1], 2 * event[-1])
    limit, grid = f"{name} with two heads, batch {batch}", sl.grids.Arcsine(steps)
    functions, calls = {limit: bare_calls(denoiser(net, wide), wide, batch, 2 * steps)}, {limit: 2 * steps}
    for title, solver in {
        "interpolant ODE": sl.solvers.InterpolantODE(),
        "interpolant SDE": sl.solvers.InterpolantSDE(),
        "interpolant Euler-Maruyama": sl.solvers.InterpolantSDE(rule="euler"),
    }.items():
        functions[title] = drawn(model, (batch, *event), solver, grid)
        calls[title] = _calls(solver, process, grid)
    yield from in_turns(functions, rounds, base=limit, calls=calls, goal=GOAL, case=f"{{}}: {limit}")


def around(rounds: int, quick: bool) -> Iterator[Row]:
    """Solvers around another one: in-painting by RePaint, and a network that is told its former estimate."""
    for name in ("DiT",) if quick else NETS:
        net, event, batch, steps = NETS[name]
        model, limit = denoiser(net, event), f"{name}, batch {batch}"
        spec = sl.models.Denoiser(net=net, process=EDM, data_std=0.5, self_condition=True)
        told = spec.bind(perturbed(spec.init(jax.random.key(0), np.zeros((1, *event), np.float32)), 0.05))
        mask = np.zeros(event, np.float32)
        mask[: event[0] // 2] = 1
        known = sl.models.Known(model=model, values=np.zeros(event, np.float32), mask=mask)
        grid, painted = sl.grids.Karras(steps), sl.solvers.RePaint(repeats=2)
        functions = {
            limit: bare_calls(model, event, batch, 2 * steps),
            "RePaint": drawn(known, (batch, *event), painted, grid),
            # The estimate makes the input of the network wider, so that its limit is another one.
            "self-conditioned": drawn(told, (batch, *event), sl.solvers.SelfConditioned(sl.solvers.Heun()), grid),
        }
        calls = {limit: 2 * steps, "RePaint": _calls(painted, EDM, grid), "self-conditioned": _calls(sl.solvers.Heun(), EDM, grid)}
        for row in in_turns(functions, rounds, base=limit, calls=calls, case=f"{{}}: {limit}"):
            yield dataclasses.replace(row, goal=GOAL if row.case.startswith("RePaint") else None)


def options(rounds: int, quick: bool) -> Iterator[Row]:
    """Guidance over twice as many bare calls or over sampling twice as many, and a kept trajectory over a plain call."""
    solver = sl.solvers.Heun()
    for name in ("DiT",) if quick else NETS:
        net = NETS[name].net
        model, event, batch, steps = model_of(name)
        grid, limit = sl.grids.Karras(steps), f"{name}, batch {batch}"
        calls = _calls(solver, EDM, grid)
        guided = sl.models.Autoguidance(model=model, weak=model, scale=2.0)
        functions = {limit: bare_calls(model, event, batch, 2 * calls), "guidance": drawn(guided, (batch, *event), solver, grid)}
        counts = {limit: 2 * calls, "guidance": 2 * calls}
        yield from in_turns(functions, rounds, base=limit, calls=counts, goal=GOAL, case=f"{{}} by a second model: {limit}")
        labelled = denoiser(net.clone(num_classes=10), event, labels=True)
        label = np.arange(batch, dtype=np.int32) % 10
        guided = sl.models.ClassifierFreeGuidance(model=labelled, scale=2.0)
        functions = {
            "two samplings": drawn(labelled, (2 * batch, *event), solver, grid, cond=np.tile(label, 2), chunk=2 * batch),
            "classifier-free guidance": drawn(guided, (batch, *event), solver, grid, cond=label),
        }
        yield from in_turns(functions, rounds, base="two samplings", case=f"{{}} over sampling twice as many: {limit}")
        functions = {
            "plain": drawn(model, (batch, *event), solver, grid),
            'keep="all"': drawn(model, (batch, *event), solver, grid, keep="all"),
        }
        yield from in_turns(functions, rounds, base="plain", goal=GOAL, case=f"{{}}: {limit}")


def dispatch(rounds: int, quick: bool) -> Iterator[Row]:
    """A call so small that Python decides its time, in milliseconds."""
    law = sl.densities.Gaussian(np.zeros(2), 1.0)
    call = drawn(sl.models.ExactModel(law, EDM), (4, 2), sl.solvers.DDIM(), sl.grids.Karras(2))
    many = lambda: [call() for _ in range(20)]
    nothing = jax.jit(lambda x: x + 1)
    x = jax.numpy.zeros(4)
    empty = lambda: [nothing(x) for _ in range(20)]
    wall, _ = interleaved({"sample": many, "a jitted function": empty}, max(rounds, 5))
    for name, seconds in wall.items():
        low, value, high = 1e3 * np.quantile(np.array(seconds) / 20, [0.25, 0.5, 0.75])
        yield Row(f"a call of {name}", value, low, high, "ms", base="4 points, 2 steps")


def shards(rounds: int, quick: bool) -> Iterator[Row]:
    """``sample_to`` over ``sample`` of as many samples, without what either does once; and what ``sample_to`` does once."""
    model, event, batch, steps = model_of("MLP" if quick else "DiT")
    few, many = 1, 2 if quick else 16
    arguments = dict(solver=sl.solvers.Heun(), grid=sl.grids.Karras(steps), key=jax.random.key(3), chunk=batch)
    took: dict[str, list[float]] = {"sample": [], "sample_to": [], "once": []}

    def seconds(draw) -> float:
        began = time.perf_counter()
        draw()
        return time.perf_counter() - began

    def to_disk(chunks: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            return seconds(lambda: sl.sample_to(folder, model, shape=(chunks * batch, *event), **arguments))

    def in_memory(chunks: int) -> float:
        return seconds(lambda: np.asarray(sl.sample(model, shape=(chunks * batch, *event), **arguments).x))

    in_memory(few), to_disk(few)
    for _ in range(max(rounds // 2, 1 if quick else 3)):
        each = in_memory(few), in_memory(many), to_disk(few), to_disk(many)
        took["sample"].append((each[1] - each[0]) / (many - few))
        took["sample_to"].append((each[3] - each[2]) / (many - few))
        took["once"].append(each[2] - took["sample_to"][-1])
    low, value, high = np.quantile(np.array(took["sample_to"]) / np.array(took["sample"]), [0.25, 0.5, 0.75])
    base = f"sample, {1e3 * float(np.median(took['sample'])):.3g} ms a chunk of {batch}"
    yield Row("a chunk of sample_to over one of sample", value, low, high, goal=1.05, base=base)
    low, value, high = np.quantile(took["once"], [0.25, 0.5, 0.75])
    yield Row("what sample_to does once", value, low, high, "s", base="the description, the lock, the disk")


PARTS = {
    "overhead": overhead, "kinds": kinds, "around": around, "options": options, "shards": shards, "dispatch": dispatch,
}  # fmt: skip
