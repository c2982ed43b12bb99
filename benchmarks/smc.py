"""Weighted particles over plain samples, reward gradients over guided calls, and the same filter in other libraries.

In the peers every library estimates the same constant, whose exact value a Kalman filter gives, from its own random numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import scorelab as sl
from benchmarks.common import EDM, NETS, Row, drawn, in_turns, model_of

PARTICLES, STEPS, SPREAD = 10_000, 100, 1.0


def brightness(x):
    """A cheap reward: the mean of a point."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def overhead(rounds: int, quick: bool) -> Iterator[Row]:
    """Resampling and rewards at every step, over plain sampling of as many."""
    base = sl.solvers.DDIM(eta=1.0)
    potential = sl.fk.Difference(brightness, 5.0)
    for name in ("DiT",) if quick else NETS:
        model, event, batch, steps = model_of(name)
        limit = f"plain, {name}, {batch} samples"
        solvers = {
            limit: base,
            "one population": sl.fk.FeynmanKac(base=base, potential=potential, policy=sl.fk.Always()),
            "populations of 4": sl.fk.FeynmanKac(base=base, potential=potential, policy=sl.fk.Always(), particles=4),
        }
        grid = sl.grids.Karras(steps)
        functions = {title: drawn(model, (batch, *event), solver, grid, chunk=batch) for title, solver in solvers.items()}
        yield from in_turns(functions, rounds, base=limit, goal=1.02, case=f"{{}}: {name}, batch {batch}")


def gradient(rounds: int, quick: bool) -> Iterator[Row]:
    """Steering along reward gradients, over sampling that is guided by the same gradients; and both over calls from Python."""
    model, event, batch, steps = model_of("UNet")
    batch, grid = 8, sl.grids.Karras(steps)
    safe = dataclasses.replace(model.denoiser, net=model.denoiser.net.clone(loop_safe=True)).bind(model.params)
    guided = sl.models.RewardGradient(model=safe, reward=brightness, scale=5.0)
    base = sl.solvers.DDIM(eta=1.0)
    weighed = sl.fk.FeynmanKac(base=base, potential=sl.fk.Difference(brightness, 5.0), policy=sl.fk.Always())

    @jax.jit
    def pull(model, y, t):
        return sl.models.RewardGradient(model=model, reward=brightness, scale=5.0).pull(y, t)

    times = jnp.asarray(grid.times(EDM)[:-1], jnp.float32)
    y = jax.random.normal(jax.random.key(1), (batch, *event))

    def from_python():
        for t in times:
            last = pull(model, t * y, t)
        return last

    functions = {
        "guided": drawn(guided, (batch, *event), base, grid),
        "steered along the gradient": drawn(guided, (batch, *event), weighed, grid),
        "calls from Python, plain convolutions": from_python,
    }
    goals = {"steered along the gradient": 1.05}
    for row in in_turns(functions, rounds, base="guided", case="{}: UNet, batch 8"):
        yield dataclasses.replace(row, goal=goals.get(row.case.split(":")[0]))


PARTS: dict[str, Callable] = {"overhead": overhead, "gradient": gradient}


class Observation(NamedTuple):
    """What is seen at a row."""

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
    """The filter here: seed -> estimate."""
    solver = sl.fk.FeynmanKac(base=base, potential=Observed(tuple(seen)), policy=sl.fk.Always())
    return lambda i: float(sl.sample(model, solver=solver, grid=grid, key=jax.random.key(i), shape=(PARTICLES, 1)).log_z)


def of_particles(rows, first, seen):
    """The filter of particles."""
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
    """The filter of blackjax."""
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


def filters(rounds: int, quick: bool) -> Iterator[Row]:
    """scorelab over others on a linear-Gaussian filter, each with a seed of its own in every round.

    Raises:
        RuntimeError: an estimate that is not the constant.
    """
    process, grid, base, model, rows, first, seen, exact = filtering()
    runs, seeds = {"scorelab": ours(process, grid, base, model, seen)}, {}
    for name, build in dict(particles=of_particles, blackjax=of_blackjax).items():
        try:
            runs[name] = build(rows, first, seen)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    found = {name: [] for name in runs}

    def next_seed(name):
        seeds[name] = seeds.get(name, 0) + 1
        found[name].append(runs[name](seeds[name]))

    calls = {name: lambda name=name: next_seed(name) for name in runs}
    for other in [name for name in runs if name != "scorelab"]:
        for row in in_turns({other: calls[other], "scorelab": calls["scorelab"]}, rounds, base=other):
            yield dataclasses.replace(row, case=f"filter of {PARTICLES} particles over {other}", goal=1.0)
    for name, values in found.items():
        values = np.array(values)
        error, spread = values.mean() - exact, values.std(ddof=1)
        if abs(error) > 5 * spread / np.sqrt(len(values)) + spread**2:
            raise RuntimeError(f"{name} estimates {values.mean():.4f} +- {spread:.4f} a run: expected {exact:.4f}")
