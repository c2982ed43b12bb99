r"""Base samplers and potentials of steering at equal network calls, beside best-of-N and guidance by the gradient.

The unconditional model of the 8x8 digits is steered to the threes and to the eights, towards :math:`p(x)\,e^{2r(x)}` with
``r`` the log-probability of the class under the stored classifier. K particles give one image, drawn by the final weights, so
that every image of one column took K times 20 calls of the network: 20 steps of a sampler with one call, 10 of Heun's, which
makes two in all but the last. Guidance follows the gradient of the reward at the denoised mean with the constant of Bayes'
rule, with one particle and no weights; its calls have a backward pass each. Numbers are means over the two classes, spreads
those of the seeds. The classifier that rewards is also the one that judges.
"""

from __future__ import annotations

import jax
import numpy as np
from bench import STRENGTH, Bench

from scorelab import fk, models, search, solvers, viz
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Steering works with any sampler of the base model and with several potentials, which trade reward for diversity.",
    look_for="Under every sampler difference and sum are far above best-of-N; max is hardly above it.",
    minutes=dict(small=1.5, full=6, gpu=None),
    options=dict(samplers=["DDIM", "Euler-Maruyama", "DPM-Solver++", "Heun"], seeds=3, populations=64, most=16),
    small=dict(samplers=["DDIM", "Euler-Maruyama", "DPM-Solver++"], seeds=2, populations=24, most=4),
)

SCALE, COUNTS, POTENTIALS = 2.0, (4, 16), ("Difference", "Max", "Sum")
# The solver, and its steps for 20 calls of the network.
SAMPLERS = {
    "DDIM": (solvers.DDIM(eta=1.0), 20),
    "Euler-Maruyama": (solvers.EulerMaruyama(), 20),
    "DPM-Solver++": (solvers.DPMSolverPP(order=2, eta=1.0), 20),
    "Heun": (solvers.Heun(churn=40.0), 10),
}
COLUMNS = {"rate": "classified as wanted", "reward": "log-probability", "frechet": "Frechet distance", "vendi": "Vendi score"}


def averaged(bench: Bench, x) -> dict:
    """What is found of images, block after block of every class, averaged over the classes."""
    parts = zip(np.split(np.asarray(x), len(bench.plan.classes)), bench.plan.classes, strict=True)
    found = [bench.judge(part, c) for part, c in parts]
    return {which: float(np.mean([one[which] for one in found])) for which in COLUMNS}


def unsteered(bench: Bench, sampler: str, counts: tuple[int, ...], seed: int) -> dict:
    """Best-of-N on the same draws, by the number of draws."""
    (base, steps), n = SAMPLERS[sampler], bench.plan.populations
    x = np.asarray(bench.draw(seed, 1, max(counts) * n * len(bench.plan.classes), base=base, steps=steps).x)
    blocks, found = np.split(x, len(bench.plan.classes)), {}
    for k in counts:
        best = []
        for block, c in zip(blocks, bench.plan.classes, strict=True):
            some = block[: n * k]
            best.append(search.best_of(some, fk.rewards.ClassLogProb(dataset=bench.name, label=c)(some), k))
        found[str(k)] = averaged(bench, np.concatenate(best))
    return found


def steered(bench: Bench, sampler: str, way: str, k: int, seed: int) -> dict:
    """One image of each population, drawn by the final weights; ``"guidance"`` has no weights."""
    (base, steps), plan, reward = SAMPLERS[sampler], bench.plan, fk.rewards.ClassLogProb(dataset=bench.name)
    cond, key = np.repeat(np.asarray(plan.classes, np.int32), plan.populations * k), jax.random.key(seed)
    groups = plan.populations * len(plan.classes)
    if way == "guidance":
        model = models.RewardGradient(model=bench.pulled, reward=reward, scale=STRENGTH * SCALE, with_cond=True)
        return averaged(bench, bench.draw(seed, k, groups, None, model, cond, base=base, steps=steps).x)
    potential = getattr(fk, way)(reward, SCALE, every=max(1, steps // 10), with_cond=True)
    out = bench.draw(seed, k, groups, potential, None, cond, base=base, steps=steps)
    return averaged(bench, out.x[fk.one_of_each(key, out.log_weights, k)])


def measure(record, bench: Bench) -> dict:
    """sampler -> way -> particles -> column -> one number for each seed."""
    o, numbers = record.options, {}
    counts = tuple(k for k in COUNTS if k <= o.most)
    for sampler in o.samplers:
        ways = numbers[sampler] = {}
        for seed in range(o.seeds):
            plain = record.cell(f"{sampler}: best of N, seed {seed}", unsteered, bench, sampler, (1, *counts), seed)
            asked = [("guidance", 1), *((way, k) for way in POTENTIALS for k in counts)]
            cells = {f"{sampler}: {way}, {k}, seed {seed}": (bench, sampler, way, k, seed) for way, k in asked}
            rows = [("best of N", k, row) for k, row in plain.items()]
            rows += [(way, str(k), row) for (way, k), row in zip(asked, record.cells(steered, cells).values(), strict=True)]
            for way, k, row in rows:
                for which, value in row.items():
                    ways.setdefault(way, {}).setdefault(k, {}).setdefault(which, []).append(value)
    return numbers


def claims(numbers: dict) -> list[Claim]:
    """Whether steering beats best-of-N under every sampler, and which potential does."""
    found, k = numbers["samplers"], "4"
    rate = lambda sampler, way: np.array(found[sampler][way][k]["rate"])
    spread = lambda v: np.std(v, ddof=len(v) > 1)
    leads = {sampler: rate(sampler, "Difference") - rate(sampler, "best of N") for sampler in found}
    least = min(leads, key=lambda sampler: leads[sampler].mean())
    behind = np.mean([rate(sampler, "Max") - rate(sampler, "Difference") for sampler in found], axis=0)
    kept = {sampler: np.array(found[sampler]["Difference"][k]["vendi"]) / numbers["floor"]["vendi"] for sampler in found}
    lowest = min(kept, key=lambda sampler: kept[sampler].mean())
    return [
        Claim(
            says="Steering is a wrapper around any sampler of the base "
            "model.", value=leads[least].mean(), spread=spread(leads[least]),
            unit=f"more of the images are of the class than with best of 4, under {least}, where it is least",
            verdict="reproduced" if all(v.mean() > max(0.05, 2 * spread(v)) for v in leads.values()) else "not reproduced",
            why=f"Reproduced where 4 particles lead by .05 and two spreads under all of {len(found)} samplers.",
        ),
        Claim(
            says="Max is a potential to prefer for images (the published script has "
            "it).", value=behind.mean(), spread=spread(behind),
            unit="more of the images are of the class than with difference, 4 particles, mean over the samplers",
            verdict="reproduced" if behind.mean() > 0 else "not reproduced",
            why="One image drawn by weights that have the exact last factor; the published script takes the best of the particles.",
        ),
        Claim(
            says="Steering does not collapse the samples as fine-tuning "
            "may.", value=kept[lowest].mean(), spread=spread(kept[lowest]),
            unit=f"of the Vendi score of as many training images, one image of each population of 4, under {lowest}",
            verdict="reproduced" if kept[lowest].mean() > 0.8 else "not reproduced",
            why="Four fifths of the variety of the data count as kept, under every sampler.",
        ),
    ]  # fmt: skip


def figure(numbers: dict):
    """A column for each sampler, a row for each number, against the particles; a dot for each seed."""
    content = []
    for which in ("rate", "frechet", "vendi"):
        for sampler, ways in numbers["samplers"].items():
            # One particle of any potential is an unsteered sample.
            first = {"1": ways["best of N"]["1"]}
            ways = {way: first | rows if way in POTENTIALS else rows for way, rows in ways.items()}
            series = {
                way: (np.array([int(k) for k in rows]), np.array([row[which] for row in rows.values()]))
                for way, rows in ways.items()
            }
            if which in numbers["floor"]:
                ends = np.array([1, max(int(k) for k in ways["best of N"])])
                series["training images"] = (ends, np.full(2, numbers["floor"][which]))
            content.append(viz.Panel(series=series, title=sampler, xlabel="particles", ylabel=COLUMNS[which], logx=True,
                                     logy=which == "frechet", markers=True, mean=True))  # fmt: skip
    return viz.panels(content, columns=len(numbers["samplers"]), reference=("training images",), width=10.0, height=2.4)


def main(record) -> None:
    o = record.options
    bench = Bench("digits", o.populations, o.most)
    found = measure(record, bench)
    floors = [bench.floor(c) for c in bench.plan.classes]
    floor = {which: float(np.mean([one[which] for one in floors])) for which in ("frechet", "vendi")}
    numbers = dict(model=bench.who.origin, populations=o.populations, floor=floor, samplers=found)
    print(f"{'sampler':16s}{'way':12s}{'K':>3s}" + "".join(f"{title:>24s}" for title in COLUMNS.values()))
    for sampler, ways in found.items():
        for way, rows in ways.items():
            for k, row in rows.items():
                print(f"{sampler:16s}{way:12s}{k:>3s}" + "".join(f"{plus_minus(row[which], 2):>24s}" for which in COLUMNS))
    print("training images", floor)
    record.write(numbers, claims=claims(numbers), table=figure(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
