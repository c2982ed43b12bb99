"""Time per model call of ``sample()`` over the bare network call, for three networks and three solvers.

    python benchmarks/sampling.py                  # overhead, compile time, recompilations
    python benchmarks/sampling.py --against diffrax
    python benchmarks/sampling.py --against peers  # diffusers and k-diffusion on the same weights (extra "peers")

The limit is the network called n times in one jitted ``lax.scan``. Everything that is compared runs interleaved in one
process, round by round, and the ratios are medians over rounds; CPU seconds of the process stand beside wall seconds,
since other programs may share the machine. ``--out FILE`` writes the numbers as JSON.
"""

import argparse
import json
import os
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from common import EDM, NETS, interleaved, model_of, ratios

import scorelab as sl
from scorelab.sampling import _walk
from scorelab.walk import Held, Visit, working_precision

SOLVERS = {
    "Heun": sl.solvers.Heun(),
    "DPM-Solver++ 2M": sl.solvers.DPMSolverPP(order=2),
    "Euler-Maruyama": sl.solvers.EulerMaruyama(),
}


def bare_calls(model, event, batch, calls):
    """The network ``calls`` times in one jitted scan, fed with its own output so that nothing can be skipped."""

    @jax.jit
    def run(model, y, ts):
        def body(y, t):
            output = model.denoiser.network_output(model.params, y, t)
            return 0.5 * y + 0.1 * output, None

        return jax.lax.scan(body, y, ts)[0]

    ts = jnp.asarray(np.geomspace(80, 0.01, calls), jnp.float32)
    y = jax.random.normal(jax.random.key(2), (batch, *event))
    return lambda: jax.block_until_ready(run(model, y, ts))


def sampler(model, event, batch, steps, solver):
    grid = sl.grids.Karras(steps)
    arguments = dict(solver=solver, grid=grid, key=jax.random.key(3), shape=(batch, *event))
    return lambda: jax.block_until_ready(sl.sample(model, **arguments).x)


def diffrax_sampler(model, event, batch, steps, kind):
    import diffrax

    times = EDM_times(steps)[:-1]

    @jax.jit
    def run(model, y):
        term = diffrax.ODETerm(lambda t, y, args: model(y, t).velocity)
        solution = diffrax.diffeqsolve(
            term, kind(), t0=times[0], t1=times[-1], dt0=None, y0=y, max_steps=len(times),
            stepsize_controller=diffrax.StepTo(ts=times), adjoint=diffrax.ForwardMode(), throw=False,
        )  # fmt: skip
        return solution.ys[0]

    y = 80 * jax.random.normal(jax.random.key(2), (batch, *event))
    return lambda: jax.block_until_ready(run(model, y))


def EDM_times(steps):
    return jnp.asarray(sl.grids.Karras(steps).times(EDM), jnp.float32)


def overhead(rounds):
    results = []
    for net in NETS:
        model, event, batch, steps = model_of(net)
        functions, calls = {"limit": bare_calls(model, event, batch, 2 * steps)}, {"limit": 2 * steps}
        for name, solver in SOLVERS.items():
            functions[name] = sampler(model, event, batch, steps, solver)
            calls[name] = len(solver.table(EDM, sl.grids.Karras(steps).times(EDM)).t)
        wall, cpu = interleaved(functions, rounds)
        per_call = statistics.median(wall["limit"]) / calls["limit"] * 1e3
        for name in SOLVERS:
            w, c = ratios(wall, cpu, name, "limit", calls[name], calls["limit"])
            results.append(dict(net=net, batch=batch, solver=name, calls=calls[name], wall=w, cpu=c, limit_ms=per_call))
            print(f"{net:5} batch {batch:4}  {name:16} {calls[name]:3} calls  wall {w:.2f}  cpu {c:.2f}  (call {per_call:.2f} ms)")
    return results


def compile_seconds(fn, *args, **kwargs):
    start = time.perf_counter()
    jax.jit(fn, **kwargs).lower(*args).compile()
    return time.perf_counter() - start


def compilation():
    """Trace and compile time of a Heun sampler over the bare network's, and what a sweep compiles."""
    results = []
    for net in NETS:
        model, event, batch, _ = model_of(net)
        y, t = jnp.zeros((batch, *event)), jnp.float32(1.0)
        for steps in (10, 40, 160):
            jax.clear_caches()
            bare = compile_seconds(lambda m, y, t: m.denoiser.network_output(m.params, y, t), model, y, t)
            rows = working_precision(sl.solvers.Heun().table(EDM, sl.grids.Karras(steps).times(EDM)))
            start = time.perf_counter()
            visit = Visit(model, jax.random.key(0), jnp.arange(batch))
            _walk.lower(Held(sl.solvers.Heun()), visit, sl.starts.Prior(), rows.t[0], rows, event=event, keep="last").compile()
            heun = time.perf_counter() - start
            results.append(dict(net=net, steps=steps, bare_s=bare, heun_s=heun, ratio=heun / bare))
            print(f"{net:5} Heun {steps:3} steps: {heun:.2f} s to compile, bare network {bare:.2f} s, ratio {heun / bare:.2f}")
    model, event, _, steps = model_of("MLP")
    _walk.clear_cache()
    for scale in (0.5, 1.0, 2.0, 4.0):
        for n in (100, 256, 700):
            guided = sl.models.ClassifierFreeGuidance(model=model, unconditional=model, scale=scale)
            sl.sample(
                guided, solver=sl.solvers.Heun(), grid=sl.grids.Karras(steps), key=jax.random.key(0),
                shape=(n, *event), chunk=256,
            )  # fmt: skip
    # One chunk shape for n >= 256 and one for the smaller count.
    print(f"programs compiled for 4 guidance scales x 3 sample counts: {_walk._cache_size()} (2 chunk shapes)")
    return [*results, dict(programs=_walk._cache_size())]


def against_diffrax(rounds):
    import diffrax

    results = []
    for net in NETS:
        model, event, batch, steps = model_of(net)
        pairs = {
            "Euler": (sl.solvers.ProbabilityFlowEuler(), diffrax.Euler, steps, steps - 1),
            "Heun": (sl.solvers.Heun(), diffrax.Heun, 2 * steps - 1, 2 * (steps - 1)),
        }
        for name, (ours, theirs, calls, their_calls) in pairs.items():
            functions = {
                "scorelab": sampler(model, event, batch, steps, ours),
                "diffrax": diffrax_sampler(model, event, batch, steps, theirs),
            }
            wall, cpu = interleaved(functions, rounds)
            w, c = ratios(wall, cpu, "scorelab", "diffrax", calls, their_calls)
            results.append(dict(net=net, solver=name, wall=w, cpu=c))
            print(f"{net:5} {name:5}: scorelab / diffrax per call: wall {w:.2f}, cpu {c:.2f}")
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--against", choices=("diffrax", "peers"))
    parser.add_argument("--out")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}, {jax.devices()[0]}")
    if options.against == "diffrax":
        results = dict(diffrax=against_diffrax(options.rounds))
    elif options.against == "peers":
        from peers import against_peers

        results = dict(peers=against_peers(options.rounds))
    else:
        results = dict(overhead=overhead(options.rounds), compilation=compilation())
    if options.out:
        with open(options.out, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
