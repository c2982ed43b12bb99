r"""Pruning on a trained model of digits: how early a reward is known, and what that saves against best-of-N and steering.

    python experiments/2501.06848/pruning.py

The reward is the log-probability of a class (3, 8) under the stored classifier. First, the rank correlation of three beliefs with
the reward at the end of the walk, against the noise: the reward of the denoised mean, the mean over four posterior draws, and a
learned reward of noisy points (regression on noised samples of the model itself); on the probability flow and on a stochastic walk.
Then the reward of one image per population against the calls of the network it took. Best-of-N and pruning walk the flow, of the
same candidates, so that what pruning loses is exact; "learned then denoised" is pruned by the learned reward above a noise of 5.
Steering draws its image by the weights, or takes the best of its particles. The classifier that rewards is also the one that
judges. The cost of training the learned reward is not among the calls.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench import Bench

from scorelab import data, fk, grids, models, sample, search, solvers, training, viz
from scorelab.pytrees import partly_static
from scorelab.run.script import parse, plus_minus, record, script

CLASSES, STEPS, LARGEST, SCALE = (3, 8), 20, 64, 2.0
GRID = grids.Karras(STEPS)
FLOW, SDE = solvers.DPMSolverPP(order=2, eta=0.0), solvers.DPMSolverPP(order=2, eta=1.0)
# When which share is kept: where the correlation of the belief is above a half or so.
LATE, EARLY = {7: 2, 9: 4, 11: 8}, {1: 2, 4: 4, 8: 8, 11: 16}
CANDIDATES, COUNTS = (16, 32, 64), (1, 2, 4, 8, 16, 32, 64)


@partly_static("early", "late")
@dataclass(frozen=True)
class Switch(fk.Intermediate):
    """One belief above a noise level, another one below it."""

    early: fk.Intermediate
    late: fk.Intermediate
    sigma: float

    def value(self, reward, scale, keys, y, prediction):
        ask = lambda belief: lambda: belief.value(reward, scale, keys, y, prediction)
        return jax.lax.cond(prediction.process.sigma(prediction.t) > self.sigma, ask(self.early), ask(self.late))


class Trial:
    """One model, and the numbers of every way to spend calls on a class."""

    def __init__(self, steps: int, populations: int):
        self.bench, self.populations = Bench("digits", populations), populations
        self.model, self.process = self.bench.model, self.bench.who.config.process
        self.reward = {c: fk.rewards.ClassLogProb(dataset="digits", label=c) for c in CLASSES}
        # The class as a condition: both classes share the programs.
        self.labelled = fk.rewards.ClassLogProb(dataset="digits")
        pool = data.Batches({"x": np.asarray(self.walk(FLOW, 4096, seed=77).x)}, batch_size=256)
        net = models.Denoiser(net=models.nets.MLP(width=128, depth=3), process=self.process, data_std=0.7)
        optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
        self.learned = {}
        for c, reward in self.reward.items():
            learner = fk.RewardLearner(net, reward, optimizer)
            state = training.fit(learner, pool, steps=steps, key=jax.random.key(c))
            self.learned[c] = fk.Learned(learner.model(state))

    def walk(self, solver, n, seed, **options):
        shape = (n, *self.bench.event)
        return sample(self.model, solver=solver, grid=GRID, key=jax.random.key(seed), shape=shape, chunk=n, **options)

    def correlations(self, solver, seed: int) -> dict:
        """Of every class and belief: the rank correlation with the final reward, ``(steps,)``."""
        n = 16 * self.populations
        out = self.walk(solver, n, seed, keep="all")
        keys, found = jax.random.split(jax.random.key(seed), n), {}
        ranks = lambda v: np.argsort(np.argsort(np.asarray(v)))
        for c, reward in self.reward.items():
            beliefs = {"denoised": fk.Denoised(), "posterior": fk.Posterior(samples=4, data_std=0.7), "learned": self.learned[c]}
            look = jax.jit(
                lambda y, t, beliefs=beliefs, reward=reward: {
                    name: belief.value(reward, 1.0, keys, y, self.model(y, t)) for name, belief in beliefs.items()
                }
            )
            final, rows = ranks(reward(out.x)), []
            for y, t in zip(out.trajectory[:-1], out.times[:-1], strict=True):
                rows.append({name: np.corrcoef(ranks(v), final)[0, 1] for name, v in look(y, jnp.float32(t)).items()})
            found[str(c)] = {name: [float(row[name]) for row in rows] for name in rows[0]}
        return found

    def pruned(self, c: int, seed: int, candidates: int, belief, shares: dict[int, int]):
        keep = {step: candidates // share for step, share in shares.items()}
        pruning = search.Pruning(self.labelled, keep, particles=candidates, intermediate=belief, with_cond=True)
        n = candidates * self.populations
        out = search.prune(
            self.model, pruning=pruning, solver=FLOW, grid=GRID, key=jax.random.key(seed),
            shape=(n, *self.bench.event), cond=np.full(n, c, np.int32),
        )  # fmt: skip
        left = candidates // max(shares.values())
        return search.best_of(out.x, out.rewards, left), out.model_calls / self.populations

    def steered(self, c: int, seed: int, particles: int):
        potential = fk.Difference(self.labelled, SCALE, every=2, with_cond=True)
        solver = fk.FeynmanKac(base=SDE, potential=potential, policy=fk.EssBelow(0.75), particles=particles)
        n = particles * self.populations
        out = self.walk(solver, n, seed, cond=np.full(n, c, np.int32))
        drawn = fk.one_of_each(jax.random.key(seed), out.log_weights, particles)
        return out.x[drawn], search.best_of(out.x, self.reward[c](out.x), particles)

    def numbers(self, c: int, seed: int) -> tuple[dict, dict]:
        """name -> rows with calls, reward, rate, Frechet distance and variety; and some images."""
        x = self.walk(FLOW, LARGEST * self.populations, seed).x
        r = np.asarray(self.reward[c](x))
        best = lambda n: search.best_of(x[: n * self.populations], r[: n * self.populations], n)
        found, shown = {}, {}

        def add(name, images, calls, **more):
            found.setdefault(name, []).append(dict(calls=calls, **self.bench.judge(images, c), **more))
            shown[name] = np.asarray(images[:12])

        for n in COUNTS:
            add("best of N", best(n), n * STEPS)
        ways = {
            "pruned, denoised": (fk.Denoised(), LATE),
            "pruned, learned then denoised": (Switch(self.learned[c], fk.Denoised(), 5.0), EARLY),
        }
        for name, (belief, shares) in ways.items():
            for m in CANDIDATES:
                images, calls = self.pruned(c, seed, m, belief, shares)
                every = float(np.mean(r[: m * self.populations].reshape(-1, m).max(1)))
                add(name, images, calls, candidates=m, unpruned=every, equal_calls=expected_best(r, calls / STEPS))
        for k in (4, 8, 16, 32):
            drawn, top = self.steered(c, seed, k)
            add("steered, drawn", drawn, k * STEPS)
            add("steered, best", top, k * STEPS)
        return found, shown


def expected_best(r: np.ndarray, n: float) -> float:
    """The expected largest of ``n`` of the rewards; between integers, along a straight line."""
    r, low = np.sort(r), int(n)
    # The largest of n with replacement is the i-th smallest or less with the probability (i / len)^n.
    steps = lambda m: np.diff((np.arange(len(r) + 1) / len(r)) ** m)
    return float((1 - n + low) * (steps(low) @ r) + (n - low) * (steps(low + 1) @ r))


def curves(numbers: dict, name: str, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Calls ``(m,)`` and ``which`` ``(m, seeds)``, the mean over the classes."""
    rows = [[found[name] for found in by_class.values()] for by_class in numbers.values()]
    calls = np.array([row["calls"] for row in rows[0][0]])
    return calls, np.array([np.mean([[row[which] for row in part] for part in seed], axis=0) for seed in rows]).T


def main() -> None:
    arguments = parse(__doc__, small=dict(seeds=1, steps=50, populations=4), seeds=3, steps=800, populations=64)
    began = time.process_time()
    trial = Trial(arguments.steps, arguments.populations)
    print(f"trained, {time.process_time() - began:.0f} s", flush=True)
    correlations = {name: trial.correlations(solver, 1) for name, solver in {"flow": FLOW, "stochastic": SDE}.items()}
    numbers, images = {}, {}
    for seed in range(arguments.seeds):
        for c in CLASSES:
            numbers.setdefault(str(seed), {})[str(c)], shown = trial.numbers(c, 100 + seed)
            images = images or shown
            print(f"seed {seed}, class {c}, {time.process_time() - began:.0f} s", flush=True)
    for name in numbers["0"]["3"]:
        for which in ("reward", "rate", "frechet", "vendi"):
            calls, values = curves(numbers, name, which)
            cells = (f"{k:.0f}: {plus_minus(v)}" for k, v in zip(calls, values, strict=True))
            print(f"{which}, {name}: " + ", ".join(cells))
        if name.startswith("pruned"):
            print("   of all candidates:", curves(numbers, name, "unpruned")[1].mean(1).round(3), end=" ")
            print("best of N at equal calls:", curves(numbers, name, "equal_calls")[1].mean(1).round(3))
    times = GRID.times(trial.process)[:-1]
    mean = lambda walk, name: np.mean([found[name] for found in correlations[walk].values()], axis=0)
    correlation = viz.panels(
        [
            viz.Panel(
                series={name: (times, mean(walk, name)) for name in ("denoised", "posterior", "learned")},
                title=title, xlabel="noise level", ylabel="rank correlation", logx=True, ylim=(-0.1, 1.02),
            )
            for walk, title in (("flow", "probability flow"), ("stochastic", "stochastic walk"))
        ],
        share_y=True,
    )  # fmt: skip
    spent = viz.panels(
        [
            viz.Panel(
                series={name: curves(numbers, name, which) for name in numbers["0"]["3"]},
                title=title, xlabel="calls for an image", logx=True, markers=True, ylim=ylim,
            )
            for which, title, ylim in (
                ("reward", "log-probability of the class", (-6, 0.2)),
                ("rate", "classified as wanted", (0, 1.05)),
            )
        ]
    )  # fmt: skip
    plan = dict(steps=STEPS, populations=trial.populations, late=LATE, early=EARLY, sigma=times)
    found = dict(model=trial.bench.who.origin, **plan, correlations=correlations, seeds=numbers)
    record(arguments, found, correlation=correlation, calls=spent)


if __name__ == "__main__":
    script(main)
