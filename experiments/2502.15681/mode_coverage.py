"""Which divergences find the modes that a student does not begin in, and up to which noise level that matters.

The set-up is that of `toy.py`: three modes at -4, 0 and 4, a student inside the middle one, noise levels log-uniform from .1 to
`sigma_max`. With the exact score and ratio of the student ("oracle"), six divergences over several `sigma_max`; with both
learned, three divergences at two of them. Beside that two ways to fail at sigma_max = .7: the weight 1/|x - D_p| of DMD instead
of 1/sigma, and networks that lag behind the student (one update of fake score and discriminator per step instead of five, at a
tenth of the rate). The running statistics are shown after a fifth of the learned runs, when most happens. KL in nats with the
laws smoothed by .1; a lost mode of weight .3 costs 7.6 nats of KL(p||q).
"""

from __future__ import annotations

import jax
import numpy as np
import optax
from toy import DIVERGENCES, MEANS, NODES, STD, WEIGHTS, Toy, judge, race

from scorelab import distill, viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="Figure 8",
    claims="From a skewed start a less mode-seeking divergence (forward KL) captures modes that a more mode-seeking one (reverse "
    "KL) misses.",
    look_for="Where the noise does not bridge the modes, reverse KL keeps the first mode and forward KL finds all three; from a "
    "largest noise of 1.5 on only softened reverse KL loses any.",
    minutes=dict(small=3, full=14, gpu=None),
    options=dict(steps=1500, levels=5, seeds=3, learned_seeds=2),
    small=dict(steps=500, levels=2, seeds=2, learned_seeds=1),
)

# The first of them are taken where fewer are asked for.
LEVELS = (0.5, 3.0, 0.7, 1.0, 1.5)
LEARNED, LEARNED_LEVELS = ("rkl", "js", "fkl"), (0.7, 3.0)
NARROW = 0.7
# As many updates before the first step as elsewhere.
SLOW = dict(n_aux=1, warmup=300, fake_optimizer=optax.adam(2e-4), ratio_optimizer=optax.adam(2e-4, b1=0.5))
LINE = np.linspace(-6, 6, 481)
NAMES = {key: divergence.name for key, divergence in DIVERGENCES.items()}


def smoothed(points: np.ndarray, width: float = 0.1) -> np.ndarray:
    """The density on the line of equal atoms, smoothed as in ``judge``."""
    return np.exp(-0.5 * ((LINE[:, None] - points) / width) ** 2).mean(1) / (width * np.sqrt(2 * np.pi))


def teacher_density(width: float = 0.1) -> np.ndarray:
    std = np.hypot(STD, width)
    return sum(w * np.exp(-0.5 * ((LINE - m) / std) ** 2) / (std * np.sqrt(2 * np.pi)) for w, m in zip(WEIGHTS, MEANS, strict=True))


def coverage(numbers: dict):
    """Four scores against sigma_max, means as lines and runs as dots."""
    levels = np.array(sorted(float(level) for level in numbers["rkl"]))

    def panel(which, title, **options):
        of = lambda rows: np.array([[row[which] for row in rows[f"{s:g}"]] for s in levels])
        series = {NAMES[name]: (levels, of(rows)) for name, rows in numbers.items()}
        return viz.Panel(series=series, title=title, xlabel="sigma_max", logx=True, mean=True, **options)

    content = [
        panel("modes", "modes found, of 3", ylim=(0.8, 3.2)),
        panel("forward", "KL(p||q), nats", logy=True),
        panel("reverse", "KL(q||p), nats"),
        panel("w1", "Wasserstein-1 distance", logy=True),
    ]
    return viz.panels(content, columns=4, width=12.0, height=2.6)


def densities(points: dict):
    """The final densities of the first seed of every divergence, for the least and the largest noise range."""
    exact = {"teacher": (LINE, teacher_density())}
    series = lambda name: {level: (LINE, smoothed(of[name])) for level, of in points.items()} | exact
    content = [viz.Panel(series=series(name), title=NAMES[name], xlabel="x", ylim=(0, 1.05)) for name in DIVERGENCES]
    return viz.panels(content, columns=3, reference=("teacher",), share_y=True, width=10.0, height=2.0)


def health(seen: dict):
    """What the running statistics say in the middle of a run: above as it should be, below with networks that lag."""
    content = []
    for group, title in (("learned and early", "five updates a step"), ("lagging and early", "networks that lag")):
        rows = {which: {k: np.asarray(v) for k, v in by.items()} for which, by in seen[group].items()}
        errors = {name: rows["fake_error"][name] / rows["teacher_error"][name] for name in LEARNED}
        panels = (
            (rows["ratio"], f"E[r]: {title}", (0, 1.5)),
            (rows["accuracy"], "accuracy of the discriminator", (0.45, 0.9)),
            (errors, "error of the fake score over that of the teacher", (0.7, 1.2)),
        )
        for values, what, ylim in panels:
            series = {NAMES[name]: (rows["noise"][name][0], values[name].T) for name in LEARNED}
            content.append(viz.Panel(series=series, title=what, xlabel="noise level", logx=True, mean=True, ylim=ylim))
    return viz.panels(content, columns=3, width=10.0, height=2.2)


def claims(numbers: dict) -> list[Claim]:
    """What the paper says of skewed starts and of the divergences that seek modes, beside what was found."""
    oracle = numbers["scores"]["oracle"]
    levels = sorted(oracle["rkl"], key=float)
    modes = lambda name, level: np.array([row["modes"] for row in oracle[name][level]], float)
    gained, kept = modes("fkl", levels[0]) - modes("rkl", levels[0]), modes("rkl", levels[-1])
    lost = 3 - modes("srkl", levels[-1])
    why = f"Exact score and ratio, {len(gained)} seeds"
    return [
        Claim(
            says="From a skewed start forward KL captures modes that reverse KL misses.", value=gained.mean(),
            spread=gained.std(ddof=gained.size > 1), unit=f"modes of three, more than reverse KL, noise up to {levels[0]}",
            verdict="reproduced" if gained.min() >= 1 else "in shape" if gained.mean() > 0 else "not reproduced",
            why=f"{why}; with noise up to {levels[-1]} reverse KL finds {kept.mean():.2g} of them itself.",
        ),
        Claim(
            says="Softened reverse KL is mode seeking (Table 1).", value=lost.mean(), spread=lost.std(ddof=lost.size > 1),
            unit=f"modes of three it loses, noise up to {levels[-1]}",
            verdict="reproduced" if lost.min() >= 1 else "not reproduced", why=f"{why}, where no other divergence loses any.",
        ),
    ]  # fmt: skip


def numbers_of(record, found: dict) -> dict:
    """The cells as the pages read them: group -> divergence -> level -> one row for each seed."""
    o, scores = record.options, {}
    for name, cell in found.items():
        group, level = name.rsplit(", ", 1)
        for divergence, rows in cell["scores"].items():
            scores.setdefault(group, {}).setdefault(divergence, {})[level] = rows
    at = lambda group: found[f"{group}, {NARROW:g}"]["health"]
    seen = {group: at(group) for group in ("learned", "lagging", "learned and early", "lagging and early")}
    net = Toy().net
    first = judge(np.asarray(net.apply(net.init(jax.random.key(0), NODES[:1]), NODES)))
    seeds = dict(oracle=list(range(o.seeds)), learned=list(range(o.learned_seeds)))
    return dict(first=first, seeds=seeds, scores=scores, health=seen)


def measure(names, seeds, sigma_max, options) -> dict:
    """A race, its values, the statistics of its networks, and the points of the first seed."""
    points, health = race(names, range(seeds), sigma_max, **options)
    scores = {name: [judge(x) for x in row] for name, row in zip(names, points, strict=True)}
    seen = {k: {name: np.round(v, 4).tolist() for name, v in zip(names, rows, strict=True)} for k, rows in health.items()}
    return dict(scores=scores, health=seen, points={name: row[0] for name, row in zip(names, points, strict=True)})


def main(record) -> None:
    o = record.options
    levels, everyone = sorted(LEVELS[: o.levels]), tuple(DIVERGENCES)
    oracle = {f"oracle, {s:g}": (everyone, o.seeds, s, dict(learned=False)) for s in levels}
    dmd = dict(learned=False, weight=distill.DMDWeight(floor=0.01))
    learned = {f"learned, {s:g}": (LEARNED, o.learned_seeds, s, dict(learned=True)) for s in LEARNED_LEVELS}
    slow = dict(learned=True, **SLOW)
    # The first fifth of the same runs: the rate falls as in the whole.
    whole = optax.cosine_decay_schedule(1e-3, o.steps, alpha=0.05)
    early = dict(steps=o.steps // 5, optimizer=optax.adam(whole, b1=0.0, b2=0.99))
    races = oracle | {f"weight of DMD, {NARROW:g}": (LEARNED, o.seeds, NARROW, dmd)} | learned
    races |= {
        f"lagging, {NARROW:g}": (LEARNED, o.learned_seeds, NARROW, slow),
        f"learned and early, {NARROW:g}": (LEARNED, o.learned_seeds, NARROW, dict(learned=True) | early),
        f"lagging and early, {NARROW:g}": (LEARNED, o.learned_seeds, NARROW, slow | early),
    }
    steps = dict(steps=o.steps)
    found = record.cells(measure, {name: (who, n, s, steps | options) for name, (who, n, s, options) in races.items()})
    numbers = numbers_of(record, found)
    print("the first student:", numbers["first"])
    for group, rows in numbers["scores"].items():
        for name, of in rows.items():
            cells = [
                "{modes} / {forward:.2f} / {reverse:.2f} / {js:.3f} / {w1:.2f}".format(**row) for r in of.values() for row in r
            ]
            print(f"{group:18s} {NAMES[name]:20s} sigma_max {', '.join(of)}: " + "   ".join(cells))
    points = {f"sigma_max = {s:g}": found[f"oracle, {s:g}"]["points"] for s in (levels[0], levels[-1])}
    figures = dict(scores=coverage(numbers["scores"]["oracle"]), densities=densities(points), health=health(numbers["health"]))
    record.write(numbers, claims=claims(numbers), **figures)


if __name__ == "__main__":
    FIGURE.make(main)
