r"""Steering of trained, unconditional models towards a class: what more particles buy, for every potential and beside best-of-N.

    python experiments/2501.06848/particles.py --data digits
    python experiments/2501.06848/particles.py --data mnist

The target is :math:`p(x)\,e^{\lambda r(x)}`, ``r`` the log-probability of the class under the stored classifier. A population of K
particles gives **one** image, drawn by the final weights (for best-of-N the argmax), so that every image of one column has cost the
same number of network calls, K times the steps, with a backward pass to each where the proposal follows a gradient. Best-of-N
and final-only are read off one run without steering. The constant is the smallest of a ladder under which the tilted law, by the
weights of that run, is of the class in 95 % of the images; its effective sample size says how rare the target is. On the digits
rewards without a gradient follow, with the constant that leaves a tenth of the samples in effect, against the mean of their
tilted laws. Numbers are over the seeds; the classifier that rewards is also the one that judges.
`--populations` and `--most` (particles of one population) are those of the plan in `bench.py` where they are 0.
"""

from __future__ import annotations

import time

import numpy as np
from bench import LADDER, Bench

from scorelab import viz
from scorelab.run.script import parse, plus_minus, record, script

WANTED = 0.95


def measure(bench: Bench, seeds: int) -> tuple[dict, dict]:
    """The numbers, and images of the first class and seed."""
    plan = bench.plan
    base = [bench.unsteered(seed) for seed in range(seeds)]
    pilot = bench.pilot(base[0])
    reached = {s: np.mean([found["rate"] for found in pilot[str(s)].values()]) for s in LADDER}
    scale = next((s for s in LADDER if reached[s] >= WANTED), LADDER[-1])
    print(f"lambda = {scale}; pilot", pilot, flush=True)
    floors = {str(c): bench.floor(c) for c in plan.classes}
    numbers, images = dict(scale=scale, pilot=pilot, floors=floors, seeds={}), {}
    for seed in range(seeds):
        found = bench.from_base(base[seed], scale, seed)
        shown = found.pop("images")
        for name, counts in plan.counts.items():
            for k in counts if name != "base" else ():
                began = time.process_time()
                found.setdefault(name, {})[str(k)], shown[name, k] = bench.steered(seed, name, k, scale)
                print(f"seed {seed}: {name}, {k}: {found[name][str(k)]}, {time.process_time() - began:.0f} s", flush=True)
        images = images or shown
        numbers["seeds"][str(seed)] = found
    if plan.rewards:
        numbers["plain_rewards"] = bench.plain_rewards(base)
    return numbers, images


def curve(numbers: dict, name: str, which: str) -> tuple[np.ndarray, np.ndarray]:
    """The counts of particles, and ``which``, the mean over the classes, as ``(m, seeds)``."""
    seeds = numbers["seeds"].values()
    keys = sorted(next(iter(seeds))[name], key=int)
    values = [[np.mean([row[which] for row in found[name][k].values()]) for found in seeds] for k in keys]
    return np.array([int(k) for k in keys]), np.array(values)


def figures(bench: Bench, numbers: dict, images: dict) -> dict:
    largest = max(k for name, k in images if name == "Difference")
    few = min((k for name, k in images if name == "Difference" and k > 1), key=lambda k: abs(k - 4))
    wanted = [("base", 1), ("best of N", few), ("Difference", few), ("Difference + gradient", few), ("Max", few)]
    wanted += [("best of N", largest), ("Difference", largest)]
    chosen = [key for key in wanted if key in images]
    print("rows of the picture:", chosen)
    drawn = dict(
        particles=particle_panels(numbers),
        samples=viz.image_grid(
            bench.decode(np.concatenate([np.asarray(images[key]) for key in chosen])),
            levels=bench.who.data().levels, columns=len(images[chosen[0]]),
        ),
    )  # fmt: skip
    if "plain_rewards" in numbers:
        drawn["plain"] = plain_panels(numbers["plain_rewards"])
    return drawn


def particle_panels(numbers: dict):
    """What more particles buy, one line for each seed."""

    def panel(which, title, **options):
        series = {name: curve(numbers, name, which) for name in next(iter(numbers["seeds"].values()))}
        return viz.Panel(series=series, title=title, xlabel="particles", logx=True, markers=True, **options)

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
        content.append(viz.Panel(series=series, title=title, xlabel="particles", logx=True, markers=True))
    return viz.panels(content, reference=("tilted law",))


def rows(numbers: dict, name: str) -> list[dict]:
    return [row for found in numbers["seeds"].values() for counts in found[name].values() for row in counts.values()]


def main() -> None:
    small = dict(seeds=1, populations=8, most=4)
    arguments = parse(__doc__, small=small, data=("digits", "mnist"), seeds=3, populations=0, most=0)
    bench = Bench(arguments.data, arguments.populations, arguments.most)
    numbers, images = measure(bench, arguments.seeds)
    plan = dict(steps=bench.plan.steps, populations=bench.plan.populations, classes=bench.plan.classes)
    numbers = dict(model=bench.who.origin, **plan, **numbers)
    record(arguments, {arguments.data: numbers})
    record(arguments, {arguments.data: numbers}, **figures(bench, numbers, images))
    for which in ("rate", "reward", "frechet", "vendi", "ess", "roots"):
        for name in next(iter(numbers["seeds"].values())):
            if which in rows(numbers, name)[0]:
                k, values = curve(numbers, name, which)
                cells = (f"{n}: {plus_minus(v)}" for n, v in zip(k, values, strict=True))
                print(f"{which}, {name}: " + ", ".join(cells))


if __name__ == "__main__":
    script(main)
