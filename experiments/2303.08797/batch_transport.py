"""What minibatch optimal transport joins: how near it comes to optimal transport, and what it does to classes.

Data N(e_1, diag(s^2)) with s from .3 to 1, base N(0, I), so that the cost of optimal transport is known. Batches of both are
joined by the best permutation, and the mean cost is compared with it. Entropic plans between the same rows are measured by how
many partners a row has in effect, the exponential of its entropy.

Beside it two classes at -2 and 2 are joined with N(0, I) with and without their labels. No networks.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

import scorelab as sl
from scorelab import viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Data and base may be joined by any coupling, and the flow has the same ends.",
    look_for="In two dimensions a few hundred rows come near to optimal transport. In high dimension they hardly help: the gain "
    "grows like the logarithm of the batch. A plan with a relative regularisation of .05 is the independent one there.",
    minutes=dict(small=0.5, full=3, gpu=None),
    options=dict(seeds=4, rows=4096, most=1024),
    small=dict(seeds=3, rows=2048),
)

DIMENSIONS, BATCHES = (2, 8, 32, 128), (16, 64, 256, 1024)
# Those of the entropic plans; the last is that of small images.
WIDE = (2, 32, 784)
# Regularisations in units of the mean cost, as entropic solvers take them.
RELATIVE = (0.2, 0.05, 0.01)


def laws(d):
    """Deviations of the data, and the squared Wasserstein distance to the base."""
    std = np.linspace(0.3, 1.0, d)
    return std, float(1 + np.sum((std - 1) ** 2))


def rows(d, n, rng):
    std, _ = laws(d)
    return np.eye(d)[0] + std * rng.standard_normal((n, d)), rng.standard_normal((n, d))


def costs(d, seed, options) -> dict:
    """The mean cost of the assignment for every batch, and of independent rows."""
    rng, coupling = np.random.default_rng((d, seed)), sl.data.Assignment()
    x, w = rows(d, options.rows, rng)
    found = {"1": float(np.mean(np.sum((x - w) ** 2, 1)))}
    for size in (size for size in BATCHES if size <= options.most):
        squares = []
        for low in range(0, options.rows, size):
            mine, base = x[low : low + size], w[low : low + size]
            squares.append(np.sum((mine - base[coupling.partners(rng, mine, base)]) ** 2, 1))
        found[f"{size}"] = float(np.mean(np.concatenate(squares)))
    return found


def plans(d, seed, options) -> dict:
    """Of entropic plans of 256 rows: effective partners, and the cost over that of the assignment."""
    rng = np.random.default_rng((d, seed, 1))
    x, w = rows(d, 256, rng)
    square = np.sum((x[:, None] - w) ** 2, -1)
    best = np.mean(square[np.arange(256), sl.data.Assignment().partners(rng, x, w)])
    found = {}
    for relative in RELATIVE:
        log_plan = sl.data.Entropic(std=float((relative * square.mean() / 2) ** 0.5)).log_plan(x, w)
        plan = np.exp(log_plan - np.logaddexp.reduce(log_plan, axis=1, keepdims=True))
        entropy = -np.sum(plan * np.log(np.maximum(plan, 1e-300)), 1)
        found[f"{relative:g}"] = dict(
            partners=float(np.mean(np.exp(entropy))), cost=float(np.mean(np.sum(plan * square, 1)) / best)
        )
    return found


def classes(groups, seed, options) -> dict:
    """Mean and deviation of the base rows of the class at 2, and how likely they are draws of the base."""
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=20_480).astype(np.int32)
    x = np.where(label, 2.0, -2.0)[:, None] * [1.0, 0.0] + 0.4 * rng.standard_normal((len(label), 2))
    batches = sl.data.Batches({"x": x.astype(np.float32), "label": label}, batch_size=256, seed=seed)
    base = sl.densities.Gaussian(np.zeros(2), 1.0)
    coupled = sl.data.Coupled(batches, sl.data.Assignment(groups=groups), base, seed=seed)
    found = [coupled.at(step) for step in range(80)]
    w = np.concatenate([batch["base"][batch["label"] == 1, 0] for batch in found]).astype(np.float64)
    cost = np.mean([np.mean(np.sum((batch["x"] - batch["base"]) ** 2, 1)) for batch in found])
    return dict(mean=float(w.mean()), std=float(w.std()), p=float(stats.kstest(w, stats.norm.cdf).pvalue), cost=float(cost))


def curves(numbers):
    """Cost against the batch, and partners against the regularisation."""
    x = lambda rows: np.array([float(size) for size in rows[0]])
    y = lambda rows, d: np.array([[value / laws(d)[1] for value in row.values()] for row in rows]).T
    transport = {f"{d} dimensions": (x(numbers["costs"][d]), y(numbers["costs"][d], d)) for d in DIMENSIONS}
    partners = {
        f"{d} dimensions": (np.array(RELATIVE), np.array([[p["partners"] for p in row.values()] for row in numbers["plans"][d]]).T)
        for d in WIDE
    }
    content = [
        viz.Panel(
            series=transport, title="assignments", xlabel="rows (1: independent)", ylabel="cost over W2^2", logx=True,
            logy=True, mean=True,
        ),
        viz.Panel(
            series=partners, title="entropic plans of 256 rows", xlabel="regularisation over mean cost",
            ylabel="effective partners", logx=True, logy=True, mean=True,
        ),
    ]  # fmt: skip
    return viz.panels(content, columns=2, width=9.0, height=3.2)


def claims(numbers) -> list[Claim]:
    """Spreads are over seeds."""
    of = lambda d, size: np.array([row[size] for row in numbers["costs"][d]])
    last = list(numbers["costs"][2][0])[-1]
    gain = lambda d: (of(d, "1") - of(d, last)) / (of(d, "1") - laws(d)[1])
    # The decrease for every fourfold batch: constant where the gain grows like a logarithm.
    steps = -np.diff([of(128, size).mean() for size in numbers["costs"][128][0]][1:])
    partners = np.array([row["0.05"]["partners"] for row in numbers["plans"][WIDE[-1]]])
    mean = lambda which, name: np.array([row[name] for row in numbers["classes"][which]])
    blind, grouped = mean("blind", "mean"), mean("grouped", "mean")
    spread = lambda values: values.std(ddof=values.size > 1)
    p, half = mean("grouped", "p"), np.sqrt(2 / np.pi)
    return [
        Claim(
            says="In two dimensions batches are nearly joined as optimal transport joins them.", value=gain(2).mean(),
            spread=spread(gain(2)), unit=f"of the possible gain at {last} rows",
            verdict="reproduced" if gain(2).mean() > 0.95 else "not reproduced",
            why=f"Cost {of(2, last).mean():.3f}, optimal transport {laws(2)[1]:.3f}, independent {of(2, '1').mean():.3f}.",
        ),
        Claim(
            says="In high dimension they are not.", value=gain(128).mean(), spread=spread(gain(128)),
            unit=f"of the possible gain at {last} rows of 128 dimensions",
            verdict="reproduced" if gain(128).mean() < 0.4 else "not reproduced",
            why=f"Cost {of(128, last).mean():.1f}, optimal transport {laws(128)[1]:.1f}, independent {of(128, '1').mean():.1f}.",
        ),
        Claim(
            says="The gain grows like the logarithm of the batch.", value=steps.max() / steps.min(), spread=0.0,
            unit="largest over smallest gain of a batch that is four times as large, in 128 dimensions",
            verdict="reproduced" if steps.min() > 0 and steps.max() < 2 * steps.min() else "in shape" if steps.min() > 0
            else "not reproduced",
            why=f"Gains {', '.join(f'{step:.1f}' for step in steps)}.",
        ),
        Claim(
            says="A relative regularisation of .05 is the independent coupling in high dimension.", value=partners.mean(),
            spread=spread(partners), unit="effective partners of a row among 256, in 784 dimensions",
            verdict="reproduced" if partners.mean() > 128 else "in shape" if partners.mean() > 64 else "not reproduced",
            why="The independent plan has 256; half of them is the limit.",
        ),
        Claim(
            says="Transport that is blind to the class shifts its base.", value=blind.mean(), spread=spread(blind),
            unit="mean of the base rows of a class, which sampling draws around 0",
            verdict="reproduced" if abs(blind.mean() - half) < 0.02 else "in shape" if blind.mean() > 0.4 else "not reproduced",
            why=f"Joined by the sign of one number it is {half:.3f}, that of half of N(0, 1); their "
            f"deviation is {mean('blind', 'std').mean():.2f} and not 1.",
        ),
        Claim(
            says="Within the classes it does not.", value=grouped.mean(), spread=spread(grouped), unit="mean of the same base rows",
            verdict="reproduced" if abs(grouped.mean()) < 0.02 and p.min() > 1e-3 else "not reproduced",
            why=f"The least Kolmogorov-Smirnov p-value is {p.min():.2g}, the deviation {mean('grouped', 'std').mean():.2f}.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o = record.options
    seeds = range(o.seeds)
    one = record.cells(costs, {f"costs in {d}, seed {s}": (d, s, o) for d in DIMENSIONS for s in seeds})
    two = record.cells(plans, {f"plans in {d}, seed {s}": (d, s, o) for d in WIDE for s in seeds})
    ways = {"blind": None, "grouped": "label"}
    three = record.cells(classes, {f"{name}, seed {s}": (groups, s, o) for name, groups in ways.items() for s in seeds})
    numbers = dict(
        costs={d: [one[f"costs in {d}, seed {s}"] for s in seeds] for d in DIMENSIONS},
        plans={d: [two[f"plans in {d}, seed {s}"] for s in seeds] for d in WIDE},
        classes={name: [three[f"{name}, seed {s}"] for s in seeds] for name in ways},
    )
    named = {what: {f"{name}": rows for name, rows in of.items()} for what, of in numbers.items()}
    record.write(named, claims=claims(numbers), curves=curves(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
