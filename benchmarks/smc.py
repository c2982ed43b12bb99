"""What weighted particles cost, and the same filter in two other libraries.

    python benchmarks/smc.py                    # K particles with resampling at every step over K plain samples
    python benchmarks/smc.py --part gradient    # reward gradients inside the scan over the same calls from Python
    python benchmarks/smc.py --part peers       # a linear-Gaussian filter, beside particles and blackjax (not dependencies)

What is compared runs interleaved in one process, round by round; a ratio is the median over rounds, in wall and in CPU time. In
the last part every library estimates the same constant, whose exact value a Kalman filter gives, from its own random numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import EDM, NETS, interleaved, model_of, ratios

import scorelab as sl

PARTICLES, STEPS, SPREAD = 10_000, 100, 1.0


def brightness(x):
    """A cheap reward: the mean of a point."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def overhead(rounds):
    """Resampling at every step, rewards at every step."""
    base = sl.solvers.DDIM(eta=1.0)
    potential = sl.fk.Difference(brightness, 5.0)
    for net in NETS:
        model, event, batch, steps = model_of(net)
        batch = max(batch, 16)
        solvers = {
            "plain": base,
            "one population": sl.fk.FeynmanKac(base=base, potential=potential, policy=sl.fk.Always()),
            "populations of 4": sl.fk.FeynmanKac(base=base, potential=potential, policy=sl.fk.Always(), particles=4),
        }
        arguments = dict(grid=sl.grids.Karras(steps), key=jax.random.key(0), shape=(batch, *event), chunk=batch)
        runs = {
            name: lambda solver=solver, model=model, arguments=arguments: jax.block_until_ready(
                sl.sample(model, solver=solver, **arguments).x
            )
            for name, solver in solvers.items()
        }
        wall, cpu = interleaved(runs, rounds)
        print(f"{net}, {batch} samples of {event}, {steps} steps: plain {1e3 * statistics.median(wall['plain']):.1f} ms")
        for name in list(solvers)[1:]:
            w, c = ratios(wall, cpu, name, "plain", 1, 1)
            print(f"  {name}: {w:.3f} of plain (wall), {c:.3f} (CPU)")


def gradient(rounds):
    """Guidance through the U-Net in the scan, and the same number of the same calls from Python with plain convolutions."""
    model, event, batch, steps = model_of("UNet")
    safe = dataclasses.replace(model.denoiser, net=model.denoiser.net.clone(loop_safe=True)).bind(model.params)
    guided = sl.models.RewardGradient(model=safe, reward=brightness, scale=5.0)
    arguments = dict(solver=sl.solvers.DDIM(eta=1.0), grid=sl.grids.Karras(steps), key=jax.random.key(0), shape=(batch, *event))

    @jax.jit
    def pull(model, y, t):
        return sl.models.RewardGradient(model=model, reward=brightness, scale=5.0).pull(y, t)

    times = jnp.asarray(sl.grids.Karras(steps).times(EDM)[:-1], jnp.float32)
    y = jax.random.normal(jax.random.key(1), (batch, *event))

    def from_python():
        for t in times:
            jax.block_until_ready(pull(model, t * y, t))

    runs = {"Python": from_python, "scan": lambda: jax.block_until_ready(sl.sample(guided, **arguments).x)}
    wall, cpu = interleaved(runs, rounds)
    w, c = ratios(wall, cpu, "scan", "Python", 1, 1)
    print(f"U-Net, {batch} images, {steps} steps: {1e3 * statistics.median(wall['Python']):.0f} ms of gradients from Python")
    print(f"  in the scan, sampler and all: {w:.3f} of it (wall), {c:.3f} (CPU)")


class Observation(NamedTuple):
    value: np.ndarray


@dataclasses.dataclass(frozen=True)
class Observed(sl.fk.Potential):
    """Noisy observations of the state at every node."""

    values: tuple[float, ...]

    def table(self, process, times):
        return Observation(np.append(self.values, 0.0))

    def note(self, prediction, keys, y, row, cond):
        return -0.5 * ((y[:, 0] - row.potential.value) / SPREAD) ** 2 - np.log(SPREAD * np.sqrt(2 * np.pi))

    def weigh(self, memory, notes, row, populations):
        return notes, memory


def filtering():
    """The chain ``x' = a x + o + n z`` of Euler-Maruyama on a Gaussian, its observations and the exact log-likelihood."""
    process = sl.processes.Gaussian(schedule=sl.schedules.VPLinear())
    grid = sl.grids.Uniform(STEPS, t_min=1e-3, clean=False)
    base = sl.solvers.EulerMaruyama(denoise=False)
    model = sl.models.ExactModel(sl.densities.Gaussian(np.array([0.5]), 1.0), process)
    table = base.table(process, grid.times(process))
    rows = []
    for t, a, e, o, n in zip(table.t, table.a, table.e, table.o, table.n, strict=True):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        total = alpha**2 + sigma**2
        rows.append((a + e * sigma / total, o - 0.5 * e * sigma * alpha / total, n))
    first = float(process.sigma(grid.times(process)[0]))
    rng = np.random.default_rng(0)
    x, seen = first * rng.normal(), []
    for a, o, n in rows:
        seen.append(float(x + SPREAD * rng.normal()))
        x = a * x + o + n * rng.normal()
    mean, var, log_z = 0.0, first**2, 0.0
    for value, (a, o, n) in zip(seen, rows, strict=True):
        total = var + SPREAD**2
        log_z -= 0.5 * ((value - mean) ** 2 / total + np.log(2 * np.pi * total))
        mean, var = mean + var / total * (value - mean), var * SPREAD**2 / total
        mean, var = a * mean + o, a**2 * var + n**2
    return process, grid, base, model, np.array(rows), first, np.array(seen), log_z


def ours(process, grid, base, model, seen):
    solver = sl.fk.FeynmanKac(base=base, potential=Observed(tuple(seen)), policy=sl.fk.Always())
    return lambda i: float(sl.sample(model, solver=solver, grid=grid, key=jax.random.key(i), shape=(PARTICLES, 1)).log_z)


def of_particles(rows, first, seen):
    import particles

    class Chain(particles.FeynmanKac):
        def M0(self, N):
            return first * np.random.normal(size=N)  # noqa: NPY002 (the library seeds NumPy's global state)

        def M(self, t, xp):
            a, o, n = rows[t - 1]
            return a * xp + o + n * np.random.normal(size=len(xp))  # noqa: NPY002

        def logG(self, t, xp, x):
            return -0.5 * ((x - seen[t]) / SPREAD) ** 2 - np.log(SPREAD * np.sqrt(2 * np.pi))

    def run(i):
        np.random.seed(i)  # noqa: NPY002
        filter_ = particles.SMC(fk=Chain(len(seen)), N=PARTICLES, resampling="systematic", ESSrmin=1.0)
        filter_.run()
        return float(filter_.logLt)

    return run


def of_blackjax(rows, first, seen):
    from blackjax.smc import base, resampling

    table = jnp.asarray(np.column_stack([rows, np.append(seen[1:], 0.0)]), jnp.float32)

    def log_g(x, value):
        return -0.5 * ((x - value) / SPREAD) ** 2 - jnp.log(SPREAD * jnp.sqrt(2 * jnp.pi))

    @jax.jit
    def filter_(key):
        key, first_key = jax.random.split(key)
        x = first * jax.random.normal(first_key, (PARTICLES,))
        log_w = log_g(x, seen[0])
        state = base.SMCState(x, jax.nn.softmax(log_w), ())
        log_z = jax.nn.logsumexp(log_w) - jnp.log(PARTICLES)

        def body(carry, row):
            state, key, log_z = carry
            key, step_key = jax.random.split(key)
            a, o, n, value = row
            update = lambda keys, x, _: (a * x + o + n * jax.vmap(jax.random.normal)(keys), ())
            state, info = base.step(step_key, state, update, jax.vmap(lambda x: log_g(x, value)), resampling.systematic)
            return (state, key, log_z + info.log_likelihood_increment), None

        return jax.lax.scan(body, (state, key, log_z), table[:-1])[0][2]

    return lambda i: float(filter_(jax.random.key(i)))


def peers(rounds):
    process, grid, base, model, rows, first, seen, exact = filtering()
    runs = {"scorelab": ours(process, grid, base, model, seen)}
    for name, build in dict(particles=of_particles, blackjax=of_blackjax).items():
        try:
            runs[name] = build(rows, first, seen)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    for run in runs.values():
        run(0)
    found, seconds = {name: [] for name in runs}, {name: [] for name in runs}
    for i in range(1, rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            found[name].append(run(i))
            seconds[name].append(time.perf_counter() - begin)
    print(f"{PARTICLES} particles, {STEPS} steps, resampling at every one; exact log-likelihood {exact:.4f}")
    for name in runs:
        values = np.array(found[name])
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["scorelab"], strict=True))
        print(
            f"  {name}: {values.mean():.4f} +- {values.std(ddof=1):.4f} (one run), {1e3 * statistics.median(seconds[name]):.1f} "
            f"ms, {ratio:.2f} times scorelab"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("overhead", "gradient", "peers"), default="overhead")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    dict(overhead=overhead, gradient=gradient, peers=peers)[arguments.part](arguments.rounds)


if __name__ == "__main__":
    main()
