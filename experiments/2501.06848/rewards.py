r"""Histograms of rewards: unsteered, best of N, and steered with 2, 4, 8 and 16 particles, beside the tilted law.

Two rewards of 8x8 digits: the log-probability of the threes under the stored classifier, at :math:`\lambda=2`, and the
thickness of the strokes, which has no gradient, at the constant that leaves a tenth of the unsteered samples in effect. Of K
particles one image is drawn by the final weights ("steered"), as the tilted law has it, or the one of the largest reward is
taken ("steered, best"), as the published code does and as best-of-N does with K draws. Unsteered samples with the weights
:math:`e^{\lambda r}` are the tilted law. Every image took K times 20 calls of the network.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from bench import PLAIN, Bench, scale_of

from scorelab import fk, search, viz
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="Figure 4, with digits in the place of prompts",
    claims="The rewards of the particles move up with their number: ImageReward of SDv2.1 is .37 without steering and .91 with 4.",
    look_for="Steered histograms move to the tilted law with the number of particles, ahead of best-of-N for a rare class.",
    minutes=dict(small=0.6, full=2, gpu=None),
    options=dict(seeds=3, populations=256, most=16),
    small=dict(seeds=2, populations=96, most=4),
)

CLASS, COUNTS, BINS = 3, (2, 4, 8, 16), 20
TITLES = {"class": "log-probability of a three", "thickness": "thickness of the strokes"}
WAYS = ("unsteered", "best of N", "steered", "steered, best")


def reward_of(name: str):
    """The reward of that name."""
    return fk.rewards.ClassLogProb(dataset="digits", label=CLASS) if name == "class" else PLAIN[name]


def unsteered(bench: Bench, n: int, seed: int) -> dict:
    """Both rewards of ``n`` samples without steering."""
    x = bench.draw(seed, 1, n).x
    return {name: np.asarray(reward_of(name)(x)) for name in TITLES}


def steered(bench: Bench, name: str, scale: float, k: int, seed: int) -> dict:
    """The rewards of one image of each population, drawn by the weights, and of its best one."""
    reward = reward_of(name)
    out = bench.draw(seed, k, bench.plan.populations, fk.Difference(reward, scale, every=2))
    r = np.asarray(reward(out.x))
    drawn = r[fk.one_of_each(jax.random.key(seed), out.log_weights, k)]
    return {"steered": drawn, "steered, best": np.asarray(search.best_of(r, r, k))}


def counted(r: np.ndarray, edges: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The share in every bin; what lies outside counts in the first or the last one."""
    inside = np.clip(r, edges[0], np.nextafter(edges[-1], edges[0]))
    weights = np.full(len(r), 1 / len(r)) if weights is None else weights
    return np.histogram(inside, edges, weights=weights)[0]


def measure(record, bench: Bench) -> dict:
    """Of every reward: constant, bins, the tilted law, and of every number of particles mean by seed and histogram of each way."""
    o = record.options
    counts = tuple(k for k in COUNTS if k <= o.most)
    cells = {f"unsteered, seed {s}": (bench, max(counts) * o.populations, s) for s in range(o.seeds)}
    plain = list(record.cells(unsteered, cells).values())
    numbers = {}
    for name in TITLES:
        base = np.concatenate([one[name] for one in plain])
        scale = 2.0 if name == "class" else scale_of(base)
        # Nearly all of them; the log-probability ends at zero.
        low, high = np.percentile(base, 1.0), 0.0 if name == "class" else float(base.max())
        edges, weights = np.linspace(low, high, BINS + 1), np.asarray(fk.normalised(jnp.asarray(scale * base)))
        found = dict(
            scale=scale, edges=edges, tilted=dict(mean=float(weights @ base), histogram=counted(base, edges, weights)), counts={}
        )
        for k in counts:
            cells = {f"{name}, {k} particles, seed {s}": (bench, name, scale, k, s) for s in range(o.seeds)}
            rows = {way: [] for way in WAYS}
            for one, row in zip(plain, record.cells(steered, cells).values(), strict=True):
                r = one[name][: k * o.populations]
                for way, values in (("unsteered", r), ("best of N", r.reshape(-1, k).max(1)), *row.items()):
                    rows[way].append(values)
            found["counts"][str(k)] = {
                way: dict(means=[float(np.mean(v)) for v in values], histogram=counted(np.concatenate(values), edges))
                for way, values in rows.items()
            }
        numbers[name] = found
    return numbers


def claims(numbers: dict) -> list[Claim]:
    """Rewards grow with the particles, and what that is beside best-of-N."""
    found, spread = [], lambda v: np.std(v, ddof=len(v) > 1)
    for name, row in numbers.items():
        means = {k: np.array(ways["steered"]["means"]) for k, ways in row["counts"].items()}
        first = np.array(row["counts"]["4"]["unsteered"]["means"])
        gain, ladder = means["4"] - first, [first.mean(), *(v.mean() for v in means.values())]
        found.append(Claim(
            says="With 4 particles the reward rises (ImageReward: from .37 to .91), and with their number.", value=gain.mean(),
            spread=spread(gain), unit=f"more of the reward {name}: {ladder[0]:.3g} unsteered, then "
            + ", ".join(f"{v:.3g}" for v in ladder[1:]) + f" with {', '.join(means)} particles, tilted law "
            f"{row['tilted']['mean']:.3g}",
            verdict="reproduced" if gain.mean() > 3 * spread(gain) and np.all(np.diff(ladder) > 0) else "not reproduced",
            why="Reproduced where the gain is three spreads and every number of particles has more than the one before.",
        ))  # fmt: skip
    for name, row in numbers.items():
        best, plain = (np.array(row["counts"]["4"][way]["means"]) for way in ("steered, best", "best of N"))
        lead = best - plain
        found.append(Claim(
            says="At 4 particles steering has more reward than best-of-N.", value=lead.mean(), spread=spread(lead),
            unit=f"more of the reward {name}, both the best of 4",
            verdict="reproduced" if lead.mean() > 2 * spread(lead) else "not reproduced",
            why="Reproduced where the lead is two spreads. Copies of one ancestor are like one another: their best is "
            "little above their mean.",
        ))  # fmt: skip
    return found


def figure(numbers: dict):
    """A row for each reward, a column for each number of particles."""
    content = []
    for name, row in numbers.items():
        edges = np.asarray(row["edges"])
        # Steps: each bin is drawn from its left to its right end.
        x, steps = np.repeat(edges, 2)[1:-1], lambda shares: np.maximum(np.repeat(np.asarray(shares), 2), 1e-4)
        for k, ways in row["counts"].items():
            series = {way: (x, steps(ways[way]["histogram"])) for way in WAYS} | {
                "tilted law": (x, steps(row["tilted"]["histogram"]))
            }
            content.append(viz.Panel(series=series, title=f"{k} particles", xlabel=TITLES[name], ylabel="share of the images",
                                     logy=name == "class", ylim=(1e-3, 1.2) if name == "class" else None))  # fmt: skip
    columns = len(next(iter(numbers.values()))["counts"])
    return viz.panels(content, columns=columns, reference=("tilted law",), width=max(7.0, 3.0 * columns), height=2.6)


def main(record) -> None:
    o = record.options
    bench = Bench("digits", o.populations, o.most)
    found = measure(record, bench)
    for name, row in found.items():
        print(f"{name}: lambda = {row['scale']:.3g}, tilted law {row['tilted']['mean']:.3f}")
        for k, ways in row["counts"].items():
            print(f"{k:>4s}  " + "  ".join(f"{way} {plus_minus(ways[way]['means'])}" for way in WAYS))
    numbers = dict(model=bench.who.origin, populations=o.populations, rewards=found)
    record.write(numbers, claims=claims(found), histograms=figure(found))


if __name__ == "__main__":
    FIGURE.make(main)
