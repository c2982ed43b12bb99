"""Sampling from noised class averages, beside starts that do not know the class.

A network that is not told the class draws ten classes from the noised average (of the logarithms) of each class, from one
log-normal law for all pixels, and from the Gaussian with the moments of all training images. The stored classifier says whether a
sample is of the class of its average, and the Vendi score of its features how many different images there are, beside as many test
images. The same with the sampler that was published for class averages, and with a network that is told the class. First figure:
samples of the network that is not told, from class averages, one row per class with the average before it.
"""

from __future__ import annotations

import numpy as np
from subject import DATA, draw, images, judge, network

from scorelab import grids, metrics, solvers, viz
from scorelab.experiment import DataStart
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Sampling may begin from class averages that are pushed through the forward process, in the place of noise.",
    look_for="Rows of many classes: at the noise of the paper the average decides few classes. A network that is told "
    "the class draws it from every start.",
    minutes=dict(small=3, full=8, gpu=None),
    options=dict(data=DATA, steps=0, n=290, seeds=3, walk=200),
    small=dict(steps=1000, n=200, seeds=2),
)

STARTS = {"class average": "class_average", "log-normal": "lognormal", "moments": "moments"}
# As published for KMNIST from class averages: name, coords, delta, inner, anneal.
ANNEALED = solvers.MultiplicativeAnnealed(mode="paper", coords="ambient", delta=3.35982e-4, inner=2, anneal=0.995)
PLAIN, PUBLISHED = "Dale-Langevin", "published annealed"
NETWORKS = {"not told the class": True, "told the class": False}
COLUMNS = 9


def scores(data: str, x: np.ndarray, label: np.ndarray) -> dict:
    """Accuracy, and Vendi scores over all images and within the classes (their mean); features have mean 0 over training images."""
    features = judge(data)
    within = [metrics.vendi(x[label == c], features=features).value for c in np.unique(label)]
    accuracy = float(np.mean(features.logits(x).argmax(1) == label))
    return dict(accuracy=accuracy, vendi=metrics.vendi(x, features=features).value, vendi_within=float(np.mean(within)))


def measure(experiment, model, start: str, rule: str, seed: int, options) -> dict:
    """The scores of what is drawn, and the first images of each class."""
    solver, grid = (solvers.EulerMaruyama(), grids.Uniform(options.walk)) if rule == PLAIN else (ANNEALED, grids.Uniform(1000))
    out, label = draw(experiment, model, solver, grid, DataStart(kind=STARTS[start]), options.n, seed)
    x = images(experiment, out.x)
    return scores(options.data, x, label) | dict(images=np.stack([x[label == c][:COLUMNS] for c in np.unique(label)]))


def reference(experiment, options) -> dict:
    """The scores of as many test images of each class."""
    test = experiment.data.load("test")
    rows = [np.flatnonzero(test.label == c)[: options.n // (test.num_classes or 1)] for c in range(test.num_classes or 1)]
    chosen = np.concatenate(rows)
    return scores(options.data, test.x[chosen], test.label[chosen])


def claims(numbers: dict) -> list[Claim]:
    """What the paper does, beside what was found."""
    test = numbers["test images"]

    def of(start: str, field: str, network: str = "not told the class", rule: str = PLAIN) -> np.ndarray:
        return np.array(numbers[f"{network}, {start}, {rule}"][field])

    def deviation(values: np.ndarray) -> float:
        return values.std(ddof=values.size > 1)

    right, chance = of("class average", "accuracy"), of("log-normal", "accuracy")
    share, within = of("class average", "vendi") / test["vendi"], of("class average", "vendi_within") / test["vendi_within"]
    others = np.stack([of(start, "vendi") for start in ("log-normal", "moments")]).mean(1) / test["vendi"]
    annealed = of("class average", "accuracy", rule=PUBLISHED), of("class average", "vendi_within", rule=PUBLISHED)
    return [
        Claim(
            says="A sample that begins at a class average is of that class.", value=right.mean(), spread=deviation(right),
            unit="share of samples of the class of their average, network not told the class",
            verdict="reproduced" if right.mean() > 0.9 else "in shape" if right.mean() > chance.mean() + 0.2 else "not reproduced",
            why=f"Nine in ten were asked for; chance {chance.mean():.2f}, the published annealed sampler {annealed[0].mean():.2f}.",
        ),
        Claim(
            says="Class averages are a start that loses no diversity.", value=share.mean(), spread=deviation(share),
            unit="of the Vendi score of test images, network not told the class",
            verdict="reproduced" if share.mean() > 0.9 else "in shape" if share.mean() > 0.75 else "not reproduced",
            why=f"From log-normal noise {others[0]:.2f}, from the moments {others[1]:.2f}. Within a class {within.mean():.2f}, and "
            f"{annealed[1].mean() / test['vendi_within']:.2f} by the published annealed sampler.",
        ),
    ]  # fmt: skip


def grid_figure(averages: np.ndarray, samples: np.ndarray, levels: int):
    """The average of each class, then its samples, ``(classes, COLUMNS, ...)``."""
    rows = np.concatenate([averages[:, None], samples], 1)
    headings, names = ["average", *[""] * COLUMNS], [f"class {c}" for c in range(len(rows))]
    return viz.image_grid(
        rows.reshape(-1, *rows.shape[2:]), levels=levels, columns=COLUMNS + 1, rows=names, headings=headings, width=6
    )


def averages_of(experiment) -> np.ndarray:
    """The average of the logarithms of each class, as images."""
    data, chart = experiment.data, experiment.process.chart
    y, label = np.concatenate(list(data.encoded(chart))), data.load().label
    return images(experiment, chart.decode(np.stack([y[label == c].mean(0) for c in np.unique(label)]).astype(np.float32)))


def main(record) -> None:
    options, found = record.options, {}
    for told, unconditional in NETWORKS.items():
        experiment, model = network(record, options.data, steps=options.steps, unconditional=unconditional)
        names = [(start, PLAIN) for start in STARTS] + ([("class average", PUBLISHED)] if unconditional else [])
        found |= record.cells(
            measure,
            {
                f"{told}, {start}, {rule}, seed {s}": (experiment, model, start, rule, s, options)
                for start, rule in names for s in range(options.seeds)
            },
        )  # fmt: skip
    numbers: dict = {"test images": record.cell("test images", reference, experiment, options)}
    for name in dict.fromkeys(name.rpartition(", ")[0] for name in found):
        cells = [found[f"{name}, seed {s}"] for s in range(options.seeds)]
        numbers[name] = {field: [cell[field] for cell in cells] for field in numbers["test images"]}
    print(f"{'':56s}" + "".join(f"{field:>18s}" for field in numbers["test images"]))
    for name, row in numbers.items():
        print(f"{name:56s}" + "".join(f"{plus_minus(np.atleast_1d(values)):>18s}" for values in row.values()))
    first = found[f"not told the class, class average, {PLAIN}, seed 0"]["images"]
    drawn = {name: row for name, row in numbers.items() if name != "test images"}
    record.write(
        numbers, claims=claims(numbers),
        samples=grid_figure(averages_of(experiment), first, experiment.data.load().levels),
        accuracy=viz.dots(
            {name: row["accuracy"] for name, row in drawn.items()}, reference={"test images": numbers["test images"]["accuracy"]},
            xlabel="class accuracy of the samples",
        ),
        diversity=viz.dots(
            {name: row["vendi"] for name, row in drawn.items()}, reference={"test images": numbers["test images"]["vendi"]},
            xlabel=f"Vendi score, n = {options.n}",
        ),
    )  # fmt: skip


if __name__ == "__main__":
    FIGURE.make(main)
