"""Samples of a trained multiplicative model, and the training images nearest to them.

Both rules of the paper draw images of every class, from the moments of the training images. Below each sample is the training image
at the least distance in pixels. Second figure: those distances, beside the distances of test images, and of training images to the
nearest other one. Copies of training images would be at distance 0.
"""

from __future__ import annotations

import numpy as np
from subject import DATA, draw, images, judge, network

from scorelab import grids, solvers, viz
from scorelab.experiment import DataStart
from scorelab.metrics.kernel import squared_distances
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="",
    claims="The sign-agnostic and the Dale-Langevin sampler generate images, which are no copies of training images.",
    look_for="Digits of every class. Their distances to the training images lie where those of test images lie.",
    minutes=dict(small=1, full=4, gpu=None),
    options=dict(data=DATA, steps=0, n=297, seeds=3, walk=200),
    small=dict(steps=1000, n=200),
)

SHOWN = 10
RULES = {"Dale-Langevin": solvers.EulerMaruyama(), "sign-agnostic": solvers.EulerMaruyama(coords="ambient")}
# The nearest training image of one test image in a hundred is nearer than this quantile of their distances.
NEAR = 0.01


def unit(experiment, x: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1], ``(n, pixels)``."""
    return x.reshape(len(x), -1) / (experiment.data.load().levels - 1)


def nearest(points: np.ndarray, among: np.ndarray, *, other: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The place of the nearest of ``among`` to each of ``points``, and its distance; of the nearest ``other`` point in a set."""
    places, distances = [], []
    for first in range(0, len(points), 512):
        square = squared_distances(points[first : first + 512], among)
        if other:
            square[np.arange(len(square)), first + np.arange(len(square))] = np.inf
        places.append(square.argmin(1))
        distances.append(np.sqrt(np.maximum(square.min(1), 0)))
    return np.concatenate(places), np.concatenate(distances)


def measure(experiment, model, rule: str, seed: int, options) -> dict:
    """Images of one sampler, their nearest training images, the distances, and the share of images of the class asked for."""
    out, label = draw(experiment, model, RULES[rule], grids.Uniform(options.walk), DataStart(kind="moments"), options.n, seed)
    x, train = images(experiment, out.x), experiment.data.load().x
    place, distance = nearest(unit(experiment, x), unit(experiment, train))
    accuracy = float(np.mean(judge(options.data).logits(x).argmax(1) == label))
    return dict(
        images=x[:SHOWN], nearest=train[place[:SHOWN]], distance=distance, accuracy=accuracy,
        signs=int(np.sum(np.asarray(out.diagnostics.get("sign_flips", np.zeros(options.n))) > 0)),
    )  # fmt: skip


def reference(experiment, options) -> dict:
    """The distances of test images, and of as many training images to the nearest other one; the accuracy on test images."""
    train, test = experiment.data.load(), experiment.data.load("test")
    points, few = unit(experiment, train.x), min(len(test), 2000)
    accuracy = float(np.mean(judge(options.data).logits(test.x[:few]).argmax(1) == test.label[:few]))
    among = nearest(points[:few], points, other=True)[1]
    return dict(test=nearest(unit(experiment, test.x[:few]), points)[1], train=among, accuracy=accuracy)


def claims(numbers: dict) -> list[Claim]:
    """What the paper says of samples, beside what was found."""
    found = []
    for rule in RULES:
        row = numbers[rule]
        accuracy, spread = np.mean(row["accuracy"]), np.std(row["accuracy"], ddof=len(row["accuracy"]) > 1)
        share = accuracy / numbers["test images"]["accuracy"]
        found.append(
            Claim(
                says=f"The {rule} sampler generates images of every class.", value=accuracy, spread=spread,
                unit="share of samples that the stored classifier puts in the class asked for",
                verdict="reproduced" if share > 0.9 else "in shape" if share > 0.5 else "not reproduced",
                why=f"Of test images it is {numbers['test images']['accuracy']:.3f}; nine tenths of that were asked for.",
            )
        )  # fmt: skip
    near = np.array([numbers[rule]["share nearer than one in a hundred test images"] for rule in RULES]).max(0)
    ratio = min(numbers[rule]["median distance over that of test images"] for rule in RULES)
    found.append(
        Claim(
            says="Samples are no copies of training images.", value=near.mean(), spread=near.std(ddof=near.size > 1),
            unit="share of samples nearer to a training image than 99 % of the test images are",
            verdict="reproduced" if near.mean() < 5 * NEAR and ratio > 0.75 else "not reproduced",
            why=f"One in a hundred is expected of new images, five were allowed; the median distance is {ratio:.2f} of theirs.",
        )
    )  # fmt: skip
    return found


def main(record) -> None:
    options = record.options
    experiment, model = network(record, options.data, steps=options.steps)
    known = record.cell("test images", reference, experiment, options)
    arguments = {f"{rule}, seed {s}": (experiment, model, rule, s, options) for rule in RULES for s in range(options.seeds)}
    found = record.cells(measure, arguments)
    limit, middle = np.quantile(known["test"], NEAR), np.median(known["test"])
    numbers = {"test images": dict(accuracy=known["accuracy"], median_distance=middle, near=limit), "pictured": SHOWN}
    rows, sets = [], {}
    for rule in RULES:
        cells = [found[f"{rule}, seed {s}"] for s in range(options.seeds)]
        distance = np.stack([cell["distance"] for cell in cells])
        numbers[rule] = {
            "accuracy": [cell["accuracy"] for cell in cells],
            "smallest distance": float(distance.min()),
            "median distance over that of test images": float(np.median(distance) / middle),
            "share nearer than one in a hundred test images": (distance < limit).mean(1),
            "samples with a changed sign": [cell["signs"] for cell in cells],
        }
        rows += [(rule, cells[0]["images"]), ("nearest training image", cells[0]["nearest"])]
        sets[rule] = distance.ravel()
        print(f"{rule}: accuracy {plus_minus(numbers[rule]['accuracy'])}, distance to the nearest training image "
              f"{plus_minus(distance)}, smallest {distance.min():.3f}")  # fmt: skip
    print(
        f"test images: accuracy {known['accuracy']:.3f}, distance {plus_minus(known['test'])}, smallest {known['test'].min():.3f}"
    )
    sets |= {"test images": known["test"], "training images, nearest other": known["train"]}
    distances = viz.histogram(sets, bins=30, width=6.5)
    distances.axes[0].set_xlabel("distance to the nearest training image, pixels in [0, 1]", fontsize=8)
    names, pictures = zip(*rows, strict=True)
    levels = experiment.data.load().levels
    samples = viz.image_grid(np.concatenate(pictures), levels=levels, columns=SHOWN, rows=names, width=6)
    record.write(numbers, claims=claims(numbers), samples=samples, distances=distances)


if __name__ == "__main__":
    FIGURE.make(main)
