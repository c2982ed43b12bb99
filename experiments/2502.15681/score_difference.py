"""Where teacher and fake score disagree, and how forward KL weighs the samples there.

A student of the digits by forward KL draws samples, which are noised as in its training. They are sorted by the difference of the
two scores, the root mean square of the difference of their denoised points; the curves are means over groups of neighbours in
that order, each in units of its mean. The difference depends on the noise level too, so the rank correlation is also taken within
each of ten bins of the noise level and averaged. `steps` is the length of the training, 0 for that of the config; `n` the
samples.
"""

from __future__ import annotations

import jax
import numpy as np
from scipy.stats import spearmanr
from students import Students

from scorelab import viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="Figure 5 (a)",
    claims="Over 6400 samples of a student of CIFAR-10 by forward KL the weight is small where the score difference is large, so "
    "that uncertain scores count less.",
    look_for="Whether the weight falls to the right, where the score difference rises: after a short training it does not.",
    minutes=dict(small=2, full=5, gpu=None),
    options=dict(seeds=3, steps=0, n=6400),
    small=dict(seeds=2, steps=100, n=3200),
)

BATCH, GROUPS = 640, 64


def sorted_means(gap: np.ndarray, h: np.ndarray) -> dict:
    """Means over groups of neighbours in the order of the difference, in units of the mean of all."""
    order = np.argsort(gap)
    means = lambda v: (v[order].reshape(GROUPS, -1).mean(1) / v.mean()).tolist()
    return dict(difference=means(gap), weight=means(h))


def claims(numbers: dict) -> list[Claim]:
    """The sign of the correlations; the spread is over seeds."""
    within, over = (np.array([row[name] for row in numbers["seeds"].values()]) for name in ("within", "all"))
    return [
        Claim(
            says="The weight of forward KL is smaller where the score difference is larger.", value=within.mean(),
            spread=within.std(ddof=within.size > 1), unit="rank correlation of weight and difference at the same noise level",
            verdict="reproduced" if within.max() < -0.1 else "in shape" if within.max() < 0 else "not reproduced",
            why=f"Less than -.1 is asked for; over all noise levels together it is {over.mean():.2f}.",
        )
    ]  # fmt: skip


def figure(numbers: dict):
    """Weight and difference against the place in the order, one line for each seed."""
    rows, x = list(numbers["seeds"].values()), (np.arange(GROUPS) + 0.5) / GROUPS
    names = dict(difference="score difference", weight="weight h")
    series = {text: (x, np.array([row["sorted"][key] for row in rows]).T) for key, text in names.items()}
    return viz.lines(series, xlabel="place of the sample in the order of the difference", ylabel="in units of the mean", logy=True)


def main(record) -> None:
    who, o = Students(record), record.options

    def measure(seed):
        experiment, state = who.train(f"fkl_{seed}", seed, "DIVERGENCE = @distill.ForwardKL()")
        learner = experiment.learner
        like = np.zeros((BATCH, *who.train_set.event_shape), np.float32)
        batch = dict(x=like, cond=np.arange(BATCH, dtype=np.int32) % 10)
        look = jax.jit(lambda key: learner.objective(state.params, state, batch, key)[1][1:3])
        found = [look(jax.random.key(1000 * seed + i)) for i in range(o.n // BATCH)]
        gap, h = (np.concatenate([np.asarray(seen[name], np.float64) for seen, _ in found]) for name in ("gap", "h"))
        level = np.concatenate([np.asarray(index) for _, index in found])
        gap = np.sqrt(gap)
        inside = [spearmanr(gap[level == k], h[level == k])[0] for k in np.unique(level) if np.sum(level == k) > 20]
        return {"within": float(np.mean(inside)), "all": float(spearmanr(gap, h)[0]), "sorted": sorted_means(gap, h)}

    found = record.cells(measure, {f"seed {seed}": (seed,) for seed in range(o.seeds)})
    numbers = dict(who.said, samples=o.n, seeds=found)
    for name, row in found.items():
        print(f"{name}: rank correlation {row['within']:.3f} within noise levels, {row['all']:.3f} over all")
    record.write(numbers, claims=claims(numbers), sorted=figure(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
