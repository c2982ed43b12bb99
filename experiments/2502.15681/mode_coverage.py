r"""Which divergences find the modes that a student does not begin in, and up to which noise level that matters.

    python experiments/2502.15681/mode_coverage.py

The set-up is that of `toy.py`: three modes at -4, 0 and 4, a student inside the middle one, noise levels log-uniform from
.1 to `sigma_max`. With the exact score and ratio of the student ("oracle"), six divergences over five `sigma_max`; with both
learned, three divergences at two of them. Beside that two ways to fail at sigma_max = .7: the weight 1/|x - D_p| of DMD instead of
1/sigma, and networks that lag behind the student (one update of fake score and discriminator per step instead of five, at a tenth
of the rate). The running statistics are shown after a fifth of the learned runs, when most happens. KL in nats with the laws
smoothed by .1; a lost mode of weight .3 costs 7.6 nats of KL(p||q).
"""

from __future__ import annotations

import time

import jax
import numpy as np
import optax
from toy import DIVERGENCES, MEANS, NODES, STD, WEIGHTS, Toy, judge, race

from scorelab import distill, viz
from scorelab.run.script import parse, record, script

LEVELS, SEEDS = (0.5, 0.7, 1.0, 1.5, 3.0), (0, 1, 2)
LEARNED, LEARNED_LEVELS, LEARNED_SEEDS = ("rkl", "js", "fkl"), (0.7, 3.0), (0, 1)
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


class Runs:
    """Races that were run, their numbers, and the last students."""

    def __init__(self):
        self.began, self.numbers, self.points, self.health = time.process_time(), {}, {}, {}

    def add(self, group: str, sigma_max: float, names, seeds, **options) -> None:
        points, health = race(names, seeds, sigma_max, **options)
        for i, name in enumerate(names):
            rows = [judge(x) for x in points[i]]
            self.numbers.setdefault(group, {}).setdefault(name, {})[f"{sigma_max:g}"] = rows
            cells = ["{modes} / {forward:.2f} / {reverse:.2f} / {js:.3f} / {w1:.2f}".format(**row) for row in rows]
            print(f"{group}, sigma_max {sigma_max:g}, {name:8s} " + "   ".join(cells), flush=True)
        self.points[group, sigma_max] = dict(zip(names, points, strict=True))
        self.health[group, sigma_max] = {k: dict(zip(names, v, strict=True)) for k, v in health.items()}
        print(f"{time.process_time() - self.began:.0f} s", flush=True)

    def told(self, group: str, sigma_max: float) -> dict:
        """The health of a race as lists: what was seen -> divergence -> (seeds, bins)."""
        return {k: {name: np.round(v, 4).tolist() for name, v in rows.items()} for k, rows in self.health[group, sigma_max].items()}


def coverage(numbers: dict):
    """Four scores against sigma_max, means as lines and runs as dots."""
    levels = np.array(LEVELS)

    def panel(which, title, **options):
        of = lambda rows: np.array([[row[which] for row in rows[f"{s:g}"]] for s in LEVELS])
        series = {NAMES[name]: (levels, of(rows)) for name, rows in numbers.items()}
        return viz.Panel(series=series, title=title, xlabel="sigma_max", logx=True, mean=True, **options)

    content = [
        panel("modes", "modes found, of 3", ylim=(0.8, 3.2)),
        panel("forward", "KL(p||q), nats", logy=True),
        panel("reverse", "KL(q||p), nats"),
        panel("w1", "Wasserstein-1 distance", logy=True),
    ]
    return viz.panels(content, columns=4, width=12.0, height=2.6)


def densities(runs: Runs):
    """The final densities of the first seed of every divergence, for a narrow and a wide range of noise levels."""
    at = {f"sigma_max = {s:g}": runs.points["oracle", s] for s in (NARROW, LEVELS[-1])}
    exact = {"teacher": (LINE, teacher_density())}
    series = lambda name: {label: (LINE, smoothed(points[name][0])) for label, points in at.items()} | exact
    content = [viz.Panel(series=series(name), title=NAMES[name], xlabel="x", ylim=(0, 1.05)) for name in DIVERGENCES]
    return viz.panels(content, columns=3, reference=("teacher",), share_y=True, width=10.0, height=2.0)


def health(seen: dict):
    """What the running statistics say in the middle of a run: above as it should be, below with networks that lag."""
    content = []
    for group, title in (("learned, early", "five updates a step"), ("lagging, early", "networks that lag")):
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


def main() -> None:
    arguments = parse(__doc__, small=dict(steps=20), steps=1500)
    runs, steps = Runs(), dict(steps=arguments.steps)
    net = Toy().net
    first = judge(np.asarray(net.apply(net.init(jax.random.key(0), NODES[:1]), NODES)))
    print("the first student:", first, flush=True)
    for sigma_max in LEVELS:
        runs.add("oracle", sigma_max, tuple(DIVERGENCES), SEEDS, learned=False, **steps)
    runs.add("weight of DMD", NARROW, LEARNED, SEEDS, learned=False, weight=distill.DMDWeight(floor=0.01), **steps)
    for sigma_max in LEARNED_LEVELS:
        runs.add("learned", sigma_max, LEARNED, LEARNED_SEEDS, learned=True, **steps)
    runs.add("lagging", NARROW, LEARNED, LEARNED_SEEDS, learned=True, **SLOW, **steps)
    # The first fifth of the same runs: the rate falls as in the whole.
    whole = optax.cosine_decay_schedule(1e-3, arguments.steps, alpha=0.05)
    early = dict(steps=arguments.steps // 5, optimizer=optax.adam(whole, b1=0.0, b2=0.99))
    runs.add("learned, early", NARROW, LEARNED, LEARNED_SEEDS, learned=True, **early)
    runs.add("lagging, early", NARROW, LEARNED, LEARNED_SEEDS, learned=True, **SLOW, **early)
    seen = {group: runs.told(group, NARROW) for group, s in runs.health if s == NARROW and group.startswith(("lea", "lag"))}
    found = dict(first=first, seeds=dict(oracle=SEEDS, learned=LEARNED_SEEDS), scores=runs.numbers, health=seen)
    figures = dict(scores=coverage(runs.numbers["oracle"]), densities=densities(runs), health=health(seen))
    record(arguments, found, **figures)


if __name__ == "__main__":
    script(main)
