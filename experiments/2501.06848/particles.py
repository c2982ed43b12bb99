r"""Steering of trained, unconditional models towards a class: what more particles buy, for every potential and beside best-of-N.

The target is :math:`p(x)\,e^{\lambda r(x)}`, ``r`` the log-probability of the class under the stored classifier. A population
of K particles gives **one** image, drawn by the final weights (for best-of-N the argmax), so that every image of one column
has cost the same number of network calls, K times the steps, with a backward pass to each where the proposal follows a
gradient. Best-of-N and final-only are read off one run without steering. The constant is the smallest of a ladder under which
the tilted law, by the weights of that run, is of the class in 95 % of the images; its effective sample size says how rare the
target is. On the digits rewards without a gradient follow, with the constant that leaves a tenth of the samples in effect,
against the mean of their tilted laws. Numbers are over the seeds; the classifier that rewards is also the one that judges.
``populations`` and ``most`` (particles of one population) are those of the plan in ``bench.py`` where they are 0.
"""

from __future__ import annotations

import numpy as np
from bench import LADDER, PLAIN, Bench

from scorelab import viz
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="Figure 2 and Table 5, with digits in the place of prompts and toxic text",
    claims="Prompt fidelity grows with the number of particles (GenEval of SDv2.1: .50, .553, .63, .645 and .652 with 1, "
    "2, 4, 8 and "
    "16), and a few particles find a rare attribute far more often than best-of-N does.",
    look_for="Difference is far above best-of-N at 4 and 8 particles and no better from 32 on; the gradient alone is worth "
    "more than 4 of them.",
    minutes=dict(small=2, full=10, gpu=None),
    options=dict(data=("digits", "mnist"), seeds=3, populations=0, most=0),
    small=dict(seeds=2, populations=16, most=4),
)

WANTED = 0.95


def unsteered(bench: Bench, seed: int) -> dict:
    """Samples without steering, which best-of-N and importance sampling read."""
    return dict(x=bench.unsteered(seed))


def from_base(bench: Bench, x: np.ndarray, scale: float, seed: int) -> dict:
    """Numbers of best-of-N and importance sampling, and images of the first class."""
    found = bench.from_base(x, scale, seed)
    images = {f"{name}, {k}": x for (name, k), x in found.pop("images").items()}
    return dict(numbers=found, images=images)


def steered(bench: Bench, seed: int, name: str, k: int, scale: float) -> dict:
    """Numbers of one potential with ``k`` particles, and images of the first class."""
    numbers, images = bench.steered(seed, name, k, scale)
    return dict(numbers=numbers, images=images)


def plain(bench: Bench, name: str, base: list) -> dict:
    """A reward without a gradient."""
    return bench.plain_reward(name, base)


def measure(record, bench: Bench) -> tuple[dict, dict]:
    """The numbers, and images of the first class and seed."""
    plan, seeds = bench.plan, range(record.options.seeds)
    found = record.cells(unsteered, {f"unsteered, seed {s}": (bench, s) for s in seeds})
    base = [one["x"] for one in found.values()]
    pilot = record.cell("pilot", Bench.pilot, bench, base[0])
    reached = {s: np.mean([found["rate"] for found in pilot[str(s)].values()]) for s in LADDER}
    scale = next((s for s in LADDER if reached[s] >= WANTED), LADDER[-1])
    print(f"lambda = {scale}")
    floors = {str(c): bench.floor(c) for c in plan.classes}
    numbers, images = dict(scale=scale, pilot=pilot, floors=floors, seeds={}), {}
    for seed in seeds:
        read = record.cell(f"best of N, seed {seed}", from_base, bench, base[seed], scale, seed)
        asked = [(name, k) for name, counts in plan.counts.items() if name != "base" for k in counts]
        cells = {f"{name}, {k}, seed {seed}": (bench, seed, name, k, scale) for name, k in asked}
        one, shown = read["numbers"], dict(read["images"])
        for (name, k), cell in zip(asked, record.cells(steered, cells).values(), strict=True):
            one.setdefault(name, {})[str(k)] = cell["numbers"]
            shown[f"{name}, {k}"] = cell["images"]
        images = images or shown
        numbers["seeds"][str(seed)] = one
    if plan.rewards:
        numbers["plain_rewards"] = record.cells(plain, {name: (bench, name, base) for name in PLAIN})
    return numbers, images


def curve(numbers: dict, name: str, which: str) -> tuple[np.ndarray, np.ndarray]:
    """The counts of particles, and ``which``, the mean over the classes, as ``(m, seeds)``."""
    seeds = numbers["seeds"].values()
    keys = sorted(next(iter(seeds))[name], key=int)
    values = [[np.mean([row[which] for row in found[name][k].values()]) for found in seeds] for k in keys]
    return np.array([int(k) for k in keys]), np.array(values)


def claims(numbers: dict) -> list[Claim]:
    """More particles, best-of-N at equal calls, and the gradient."""
    k, rates = curve(numbers, "Difference", "rate")
    first = curve(numbers, "best of N", "rate")[1][0]
    all_rates = np.vstack([first, rates])
    gain = rates[-1] - first
    # Two means of as many images apart by rounding or one image in a hundred are equal.
    rises = bool(np.all(np.diff(all_rates.mean(1)) > -0.01))
    at = int(np.argmin(np.abs(k - 4)))
    ways = dict(zip(*curve(numbers, "best of N", "rate"), strict=True))
    lead = rates[at] - ways[k[at]]
    spread = lambda v: np.std(v, ddof=len(v) > 1)
    found = [
        Claim(
            says="GenEval grows with every doubling of the particles, from .50 to .652 with 16.", value=gain.mean(),
            spread=spread(gain), unit=f"more of the images are of the class with {k[-1]} particles than without steering",
            verdict="reproduced" if rises and gain.mean() > 3 * spread(gain) else "not reproduced",
            why="Reproduced where no number of particles is worse than the one before by more than .01, and the gain is "
            "three spreads.",
        ),
        Claim(
            says="With 4 particles 22.0 % of the texts are toxic, with best of 4 it is 2.0 %.", value=lead.mean(),
            spread=spread(lead), unit=f"more of the images are of the class than with best of {k[at]}",
            verdict="reproduced" if lead.mean() > max(0.1, 2 * spread(lead)) else "not reproduced",
            why="Another attribute, one in ten instead of one in three hundred: a tenth of all images counts as far above.",
        ),
    ]  # fmt: skip
    name, few = "Difference + gradient", max((i for i in range(len(k)) if k[i] <= 8), default=0)
    counts, guided = curve(numbers, name, "rate")
    if counts[0] == 1:
        lead = rates[few] - guided[0]
        found.append(Claim(
            says="8 particles (27.0 %) find more toxic texts than guidance by the gradient (18.0 %).", value=lead.mean(),
            spread=spread(lead), unit=f"more of the images are of the class with {k[few]} particles than with the gradient alone",
            verdict="reproduced" if lead.mean() > spread(lead) else "not reproduced",
            why="More than one spread above counts; the gradient costs one walk with a backward pass, 8 particles cost "
            "eight walks.",
        ))  # fmt: skip
    return found


def figures(bench: Bench, numbers: dict, images: dict) -> dict:
    """Curves over the particles, images of the first class, and rewards without a gradient."""
    counts = [k for k in bench.plan.counts["Difference"] if k > 1]
    few, largest = min(counts, key=lambda k: abs(k - 4)), max(counts)
    wanted = [("base", 1)] + [(name, few) for name in ("best of N", "Difference", "Difference + gradient", "Max")]
    wanted += [("best of N", largest), ("Difference", largest)] if largest > few else []
    chosen = {key: images[key] for key in (f"{name}, {k}" for name, k in wanted) if key in images}
    drawn = dict(
        particles=particle_panels(numbers),
        samples=viz.image_grid(
            bench.decode(np.concatenate(list(chosen.values()))), levels=bench.who.data().levels,
            columns=len(next(iter(chosen.values()))), rows=["unsteered" if key == "base, 1" else key for key in chosen],
        ),
    )  # fmt: skip
    if "plain_rewards" in numbers:
        drawn["plain"] = plain_panels(numbers["plain_rewards"])
    return drawn


def particle_panels(numbers: dict):
    """What more particles buy: the mean, and a dot for each seed."""

    def panel(which, title, **options):
        series = {name: curve(numbers, name, which) for name in next(iter(numbers["seeds"].values()))}
        return viz.Panel(series=series, title=title, xlabel="particles", logx=True, markers=True, mean=True, **options)

    return viz.panels([panel("rate", "classified as wanted"), panel("frechet", "Frechet distance to the class", logy=True)])


def plain_panels(rewards: dict):
    """The mean of each reward without a gradient against the number of particles."""
    content = []
    for name, found in rewards.items():
        k = np.array([int(key) for key in found["counts"]])
        ways = next(iter(found["counts"].values()))
        series = {way: (k, np.array([row[way] for row in found["counts"].values()])) for way in ways}
        series["tilted law"] = (k, np.full(len(k), found["tilted"]))
        title = f"{name} (unsteered: {found['base']:.3g})"
        content.append(viz.Panel(series=series, title=title, xlabel="particles", logx=True, markers=True, mean=True))
    return viz.panels(content, reference=("tilted law",))


def rows(numbers: dict, name: str) -> list[dict]:
    return [row for found in numbers["seeds"].values() for counts in found[name].values() for row in counts.values()]


def main(record) -> None:
    o = record.options
    bench = Bench(o.data, o.populations, o.most)
    numbers, images = measure(record, bench)
    plan = dict(steps=bench.plan.steps, populations=bench.plan.populations, classes=bench.plan.classes)
    numbers = dict(model=bench.who.origin, **plan, **numbers)
    for which in ("rate", "reward", "frechet", "vendi", "ess", "roots"):
        for name in next(iter(numbers["seeds"].values())):
            if which in rows(numbers, name)[0]:
                k, values = curve(numbers, name, which)
                cells = (f"{n}: {plus_minus(v)}" for n, v in zip(k, values, strict=True))
                print(f"{which}, {name}: " + ", ".join(cells))
    record.write(numbers, claims=claims(numbers), **figures(bench, numbers, images))


if __name__ == "__main__":
    FIGURE.make(main)
