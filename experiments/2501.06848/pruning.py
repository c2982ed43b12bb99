r"""Pruning on a trained model of digits: how early a reward is known, and what that saves against best-of-N and steering.

The reward is the log-probability of a class (3, 8) under the stored classifier. First, the rank correlation of three beliefs
with the reward at the end of the walk, against the noise: the reward of the denoised mean, the mean over four posterior
draws, and a learned reward of noisy points (regression on noised samples of the model itself); on the probability flow and on
a stochastic walk. Then the reward of one image per population against the calls of the network it took. Best-of-N and pruning
walk the flow, of the same candidates, so that what pruning loses is exact; "learned then denoised" is pruned by the learned
reward above a noise of 5. Steering draws its image by the weights, or takes the best of its particles. The classifier that
rewards is also the one that judges. The cost of training the learned reward is not among the calls.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench import Bench

from scorelab import data, fk, grids, models, sample, search, solvers, training, viz
from scorelab.pytrees import partly_static
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Steering keeps promising particles and ends poor ones on the way, and so gets more reward out of a budget than "
    "best-of-N; "
    "the reward of the denoised mean says which they are.",
    look_for="Pruned walks reach a reward at half of the calls of best-of-N, steered ones at a quarter.",
    minutes=dict(small=1.5, full=6, gpu=None),
    options=dict(seeds=3, steps=800, populations=64),
    small=dict(seeds=2, steps=200, populations=8),
)

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
        self.steps = steps

    @functools.cached_property
    def learned(self) -> dict[int, fk.Learned]:
        """A learned reward of noisy points for every class."""
        pool = data.Batches({"x": np.asarray(self.walk(FLOW, 4096, seed=77).x)}, batch_size=256)
        net = models.Denoiser(net=models.nets.MLP(width=128, depth=3), process=self.process, data_std=0.7)
        optimizer, found = optax.adam(optax.cosine_decay_schedule(2e-3, self.steps)), {}
        for c, reward in self.reward.items():
            learner = fk.RewardLearner(net, reward, optimizer)
            state = training.fit(learner, pool, steps=self.steps, key=jax.random.key(c))
            found[c] = fk.Learned(learner.model(state))
        return found

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
        """The best image of every population that was pruned, and its calls."""
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
        """An image of every population drawn by the weights, and its best one."""
        potential = fk.Difference(self.labelled, SCALE, every=2, with_cond=True)
        solver = fk.FeynmanKac(base=SDE, potential=potential, policy=fk.EssBelow(0.75), particles=particles)
        n = particles * self.populations
        out = self.walk(solver, n, seed, cond=np.full(n, c, np.int32))
        drawn = fk.one_of_each(jax.random.key(seed), out.log_weights, particles)
        return out.x[drawn], search.best_of(out.x, self.reward[c](out.x), particles)

    def numbers(self, c: int, seed: int) -> dict:
        """name -> rows with calls, reward, rate, Frechet distance and variety."""
        x = self.walk(FLOW, LARGEST * self.populations, seed).x
        r = np.asarray(self.reward[c](x))
        best = lambda n: search.best_of(x[: n * self.populations], r[: n * self.populations], n)
        found = {}

        def add(name, images, calls, **more):
            found.setdefault(name, []).append(dict(calls=calls, **self.bench.judge(images, c), **more))

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
        return found


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


def claims(numbers: dict) -> list[Claim]:
    """What pruning and steering gain over best-of-N, and when the reward is known."""
    seeds = numbers["seeds"]
    own, equal = (curves(seeds, "pruned, denoised", which)[1][0] for which in ("reward", "equal_calls"))
    spread = lambda v: np.std(v, ddof=len(v) > 1)
    calls, steered = curves(seeds, "steered, best", "reward")
    plain = dict(zip(*curves(seeds, "best of N", "reward"), strict=True))
    lead = steered[1] - plain[calls[1]]
    levels = np.asarray(numbers["sigma"])
    early = int(np.argmin(np.abs(levels - 20.0)))
    known = {
        walk: np.array([found["denoised"][early] for found in numbers["correlations"][walk].values()])
        for walk in ("flow", "stochastic")
    }
    return [
        Claim(
            says="At equal calls, steering has more reward than best-of-N (both take the best of their particles).",
            value=lead.mean(), spread=spread(lead), unit=f"nats of log-probability more, at {calls[1]:.0f} calls for an image",
            verdict="reproduced" if lead.mean() > 2 * spread(lead) else "not reproduced",
            why="Reproduced where the lead is more than two standard deviations over the seeds.",
        ),
        Claim(
            says="Poor particles are ended on the way; here without copies of the good ones.",
            value=(own - equal).mean(), spread=spread(own - equal),
            unit=f"nats of log-probability more, at {curves(seeds, 'pruned, denoised', 'reward')[0][0]:.0f} calls for an image",
            verdict="reproduced" if (own - equal).mean() > 2 * spread(own - equal) else "not reproduced",
            why="Reproduced where the lead is more than two standard deviations; the paper has no pruning.",
        ),
        Claim(
            says="The reward of the denoised mean is an intermediate reward at every step, the first ones too.",
            value=known["stochastic"].mean(), spread=spread(known["stochastic"]),
            unit=f"rank correlation with the reward at the end, at noise {levels[early]:.3g} (flow: {known['flow'].mean():.2g})",
            verdict="reproduced" if known["stochastic"].mean() > 0.5 else "not reproduced",
            why="Above a half would count; a stochastic walk decides late, and the mean is blurred early. Spread over two classes.",
        ),
    ]  # fmt: skip


def correlation(numbers: dict):
    """Rank correlation of the beliefs with the reward at the end."""
    mean = lambda walk, name: np.mean([found[name] for found in numbers["correlations"][walk].values()], axis=0)
    content = [
        viz.Panel(
            series={name: (np.asarray(numbers["sigma"]), mean(walk, name)) for name in ("denoised", "posterior", "learned")},
            title=title, xlabel="noise level", ylabel="rank correlation", logx=True, ylim=(-0.1, 1.02),
        )
        for walk, title in (("flow", "probability flow"), ("stochastic", "stochastic walk"))
    ]  # fmt: skip
    return viz.panels(content, share_y=True)


def spent(numbers: dict):
    """Reward and classification against the calls for an image; a dot for each seed."""
    seeds = numbers["seeds"]
    names = next(iter(next(iter(seeds.values())).values()))
    wanted = (("reward", "log-probability of the class", (-6, 0.2)), ("rate", "classified as wanted", (0, 1.05)))
    content = [
        viz.Panel(
            series={name: curves(seeds, name, which) for name in names},
            title=title, xlabel="calls for an image", logx=True, markers=True, mean=True, ylim=ylim,
        )
        for which, title, ylim in wanted
    ]  # fmt: skip
    return viz.panels(content)


def main(record) -> None:
    o = record.options
    trial = Trial(o.steps, o.populations)
    walks = {"flow": FLOW, "stochastic": SDE}
    found = record.cells(Trial.correlations, {f"correlations, {name}": (trial, solver, 1) for name, solver in walks.items()})
    cells = {f"seed {seed}, class {c}": (trial, c, 100 + seed) for seed in range(o.seeds) for c in CLASSES}
    found |= record.cells(Trial.numbers, cells)
    numbers = dict(
        model=trial.bench.who.origin, steps=STEPS, populations=trial.populations,
        late={str(k): v for k, v in LATE.items()}, early={str(k): v for k, v in EARLY.items()},
        sigma=GRID.times(trial.process)[:-1],
        correlations={name: found[f"correlations, {name}"] for name in walks},
        seeds={str(s): {str(c): found[f"seed {s}, class {c}"] for c in CLASSES} for s in range(o.seeds)},
    )  # fmt: skip
    for name in numbers["seeds"]["0"]["3"]:
        for which in ("reward", "rate", "frechet", "vendi"):
            calls, values = curves(numbers["seeds"], name, which)
            print(f"{which}, {name}: " + ", ".join(f"{k:.0f}: {plus_minus(v)}" for k, v in zip(calls, values, strict=True)))
    record.write(numbers, claims=claims(numbers), correlation=correlation(numbers), calls=spent(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
