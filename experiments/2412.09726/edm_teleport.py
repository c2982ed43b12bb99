"""What a jump over the first steps costs a published network of EDM: FID of 50,000 images against the steps skipped.

Heun's method on the grid of EDM, 18 steps for CIFAR-10 and 40 for FFHQ and AFHQv2 (`steps=40 most=20 every=2`). The jump uses
mean and covariance of the training images in the scale of the network, k / 127.5 - 1; a network with classes jumps with those of
each class. Samples of a seed begin with the same noise whatever is skipped, and lie in shards beside the result, so that what was
stopped goes on.

The features are those of the Inception network that papers use. The reference is a file of statistics (`reference`, such as
cifar10-32x32.npz of EDM), or else the same features of all training images. At small size the network is the one of the digits
that the package carries, with the features of its classifier. By its operations alone, a point of CIFAR-10 takes 71 PFLOP without
a jump, 8 minutes at an assumed 150 TFLOP/s, and one of FFHQ 320 PFLOP, 36 minutes; neither was measured. XLA plans 12 MB an image
of CIFAR-10 for its intermediate values on a processor, so a chunk of 500 images is an estimated 6 GB. The program is compiled
once for each number of steps. FFHQ has a covariance of 12,288 numbers squared, whose decomposition takes 1.2 GB and some minutes
of a processor.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import jax
import numpy as np
from published import Subject, estimate, memory

from scorelab import grids, metrics, pretrained, sample_to, solvers, starts, viz
from scorelab.densities import Gaussian, GaussianMixture
from scorelab.errors import ConfigError
from scorelab.run.figure import Claim, Figure, plus_minus
from scorelab.training import data_mesh

FIGURE = Figure(
    __doc__,
    answers="",
    claims="The first 15 to 30 % of the steps can be skipped while the quality of the samples is kept: FID 1.93 on CIFAR-10.",
    look_for="FID within .05 of that without a jump up to 6 of 18 steps, and a steep rise from 8 on.",
    minutes=dict(small=0.3, full=None, gpu=None),
    options=dict(
        model="edm-cifar10-32x32-uncond-vp", data="cifar10", features=("inception", "small_cnn", "pixels"), reference=Path,
        inception="pt_inception-2015-12-05-6726825d", steps=18, most=12, every=1, n=50000, seeds=1, chunk=500,
    ),
    small=dict(model="digits-edm", data="digits", features="small_cnn", n=200, chunk=200, every=2),
)  # fmt: skip

# FID by steps skipped: of an independent reproduction on 50,000 images with Heun's method in 18 steps; where there is one number
# only, that of arXiv 2206.00364 without a jump (the smallest of three sets of seeds). What a jump does to FFHQ and AFHQv2 is not
# published as numbers.
PUBLISHED = {
    "edm-cifar10-32x32-uncond-vp": {
        0: 1.959, 1: 1.957, 2: 1.950, 3: 1.942, 4: 1.934, 5: 1.935, 6: 1.965, 7: 2.127, 8: 3.160, 10: 23.532, 12: 108.217,
    },
    "edm-cifar10-32x32-cond-vp": {0: 1.79},
    "edm-ffhq-64x64-uncond-vp": {0: 2.39},
    "edm-afhqv2-64x64-uncond-vp": {0: 1.96},
}  # fmt: skip
# As those were measured.
CONDITIONS = dict(n=50000, steps={32: 18, 64: 40})
# What another set of seeds changes, as EDM says.
SEEDS_CHANGE = 0.02
# Numbers of all covariances of classes together that a GPU can be expected to hold.
MOST = 2**31


class Trial:
    """A network, the jump, and what its samples are held against."""

    def __init__(self, options, folder: Path):
        skips = range(0, options.most + 1, options.every)
        if options.most >= options.steps:
            raise ConfigError(f"most = {options.most} of {options.steps} steps: expected less, since a step has to be left")
        if options.n < 2:
            raise ConfigError(f"n = {options.n}: expected at least 2 samples, of which there is a covariance")
        self.skips, self.options, self.folder = tuple(skips), options, folder
        self.who = Subject(options.model, options.data)
        self.features = self._features()
        self.reference = self._reference()
        y, size = self.who.encoded(), int(np.prod(self.who.event))
        if (classes := self.who.classes) is None:
            self.law = Gaussian.from_data(y)
        elif classes * size**2 > MOST:
            raise ConfigError(f"model = {options.model}: {classes} covariances of {size} numbers: expected fewer classes")
        else:
            self.law = GaussianMixture.per_class(y, self.who.images.label, num_classes=classes)
        self.landings = np.asarray(self.who.model.process.noise_ratio(self.grid.times(self.who.model.process)))[list(self.skips)]

    @property
    def grid(self):
        return grids.Karras(self.options.steps)

    def _features(self) -> metrics.Features:
        o = self.options
        if o.features == "pixels":
            return metrics.pixels(levels=self.who.images.levels)
        return metrics.small_cnn(o.data) if o.features == "small_cnn" else pretrained.InceptionFeatures(weights=o.inception)

    def _reference(self) -> metrics.Moments:
        if self.options.reference is None:
            return metrics.feature_moments(self.who.images.x, self.features)
        try:
            return metrics.read_moments(self.options.reference, features=self.features, images=self.who.images.x)
        except ValueError as error:
            raise ConfigError(f"reference = {self.options.reference.name}: {error}") from error

    def start(self, skip: int) -> starts.Teleport:
        """The jump over so many steps."""
        return starts.Teleport(self.law, skip_steps=skip, label=self.who.labels(self.options.n))

    def drawn(self, seed: int, skip: int):
        """The samples, drawn as far as they are not on disk."""
        o = self.options
        folder = self.folder / self.who.origin["weights"][:8] / f"skip{skip}-seed{seed}"
        return sample_to(
            folder, self.who.model, solver=solvers.Heun(), grid=self.grid, start=self.start(skip),
            key=jax.random.key(seed), shape=(o.n, *self.who.event), cond=self.who.labels(o.n), chunk=min(o.n, o.chunk),
            mesh=data_mesh() if jax.device_count() > 1 else None, transform=self.who.transform, progress=print,
        )  # fmt: skip


def measure(trial: Trial, known: dict, seed: int, skip: int) -> dict:
    """FID, calls, seconds and memory of one seed and jump."""
    shards = trial.drawn(seed, skip)
    mean, cov = metrics.feature_moments(shards, trial.features)[1:]
    calls = shards.diagnostics["model_calls"]
    return dict(
        fid=metrics.frechet_distance(mean, cov, trial.reference.mean, trial.reference.cov), calls=calls, seconds=shards.seconds(),
        first=np.asarray(shards[:10]), peak_bytes=memory(), **estimate(trial.who.flops(), calls, trial.options.n),
    )  # fmt: skip


def curve(numbers: dict, which: str) -> np.ndarray:
    """``which`` as ``(skips, seeds)``."""
    return np.array([[numbers["seeds"][seed][str(k)][which] for seed in numbers["seeds"]] for k in numbers["skips"]])


def why_not(numbers: dict) -> str:
    """Why the numbers cannot be held against published ones, "" where they can."""
    side = numbers["event"][0]
    if not numbers["published"]:
        return f"Nothing is published of {numbers['model']['name']}."
    if not numbers["features"].startswith("inception(tf1"):
        return f"Its features are {numbers['features']}, where the published ones are of Inception."
    if (numbers["n"], numbers["steps"]) != (CONDITIONS["n"], CONDITIONS["steps"].get(side)):
        return f"{numbers['n']} samples in {numbers['steps']} steps, where the published ones are {CONDITIONS['n']} in 18 or 40."
    return ""


def claims(numbers: dict) -> list[Claim]:
    """What is published beside what was found."""
    fid, skips, why = curve(numbers, "fid"), numbers["skips"], why_not(numbers)
    # One set of seeds alone does not say how much the next would change.
    spread = fid.std(axis=1, ddof=fid.shape[1] > 1)
    found = []
    for skip, value in numbers["published"].items():
        if int(skip) not in skips:
            continue
        i = skips.index(int(skip))
        # Theirs and ours are each off by what seeds change; on the steep part of the curve by a share of their size.
        most = max(3 * 2**0.5 * SEEDS_CHANGE, 0.05 * value)
        agrees = abs(fid[i].mean() - value) <= most
        found.append(
            Claim(
                says=f"FID {value} with {skip} of {numbers['steps']} steps skipped.", value=fid[i].mean(), spread=spread[i],
                unit=f"FID of {numbers['n']} samples", why=why or f"Within {most:.2g} counts as the same.",
                verdict="not comparable" if why else "reproduced" if agrees else "not reproduced",
            )
        )  # fmt: skip
    kept = [i for i, k in enumerate(skips) if 0.15 * numbers["steps"] <= k <= 0.3 * numbers["steps"]]
    if kept:
        gap = max(fid[kept].mean(axis=1)) - fid[0].mean()
        found.append(
            Claim(
                says="The quality is kept when 15 to 30 % of the steps are skipped.", value=gap, spread=spread[[0, *kept]].max(),
                unit=f"FID above that without a jump, the worst of {', '.join(str(skips[i]) for i in kept)} steps skipped",
                verdict="not comparable" if why else "reproduced" if gap <= 3 * 2**0.5 * SEEDS_CHANGE else "not reproduced",
                why=why or f"Three times what a set of seeds changes, {SEEDS_CHANGE}, of a difference. A gain is not claimed.",
            )
        )  # fmt: skip
    return found


def figure(numbers: dict):
    """FID against the steps skipped, beside what is published."""
    series = {"here": (np.array(numbers["skips"]), curve(numbers, "fid"))}
    if numbers["published"]:
        steps = np.array([int(k) for k in numbers["published"]])
        series["published"] = (steps, np.array(list(numbers["published"].values())))
    return viz.lines(
        series, reference=("published",), title=numbers["model"]["name"], xlabel=f"steps skipped of {numbers['steps']}",
        ylabel="FID", logy=True, markers=True, mean=True,
    )  # fmt: skip


def main(record) -> None:
    o = record.options
    warnings.simplefilter("ignore", starts.TeleportWarning)
    trial = Trial(o, record.out / "samples")
    who = trial.who
    # Of other weights, images or features a cell is another one.
    known = who.origin | dict(features=trial.features.id)
    cells = {f"{seed} {skip}": (trial, known, seed, skip) for seed in range(o.seeds) for skip in trial.skips}
    found = record.cells(measure, cells)
    seeds = {
        str(seed): {str(k): {name: v for name, v in found[f"{seed} {k}"].items() if name != "first"} for k in trial.skips}
        for seed in range(o.seeds)
    }
    numbers = dict(
        model=who.origin, event=who.event, n=o.n, steps=o.steps, features=trial.features.id,
        reference=f"training images of {who.images.name}" if o.reference is None else o.reference.name,
        skips=list(trial.skips), landings=trial.landings, largest_deviation=deviation(trial.law),
        published={str(k): v for k, v in PUBLISHED.get(who.origin["name"], {}).items()}, seeds=seeds,
    )  # fmt: skip
    for i, k in enumerate(trial.skips):
        said = numbers["published"].get(str(k))
        row = seeds["0"][str(k)]
        print(
            f"skip {k:2d} (to {trial.landings[i]:7.3g}, {row['calls']} calls)  FID {plus_minus(curve(numbers, 'fid')[i])}"
            + (f", published {said}" if said else "")
            + f"; {row['pflop']:.3g} PFLOP: {row['minutes_assumed']:.2g} min assumed, {row['seconds'] / 60:.2g} min taken"
        )
    images = np.concatenate([found[f"0 {k}"]["first"] for k in trial.skips])
    rows = [f"{k} skipped" for k in trial.skips]
    picture = viz.image_grid(images, levels=who.images.levels, columns=min(10, o.n), rows=rows)
    record.write(numbers, claims=claims(numbers), fid=figure(numbers), samples=picture)


def deviation(law: Gaussian | GaussianMixture) -> float:
    """The largest deviation of the images along any direction, of a class where there are classes."""
    gaussian = law.components if isinstance(law, GaussianMixture) else law
    return float(np.sqrt(np.max(np.asarray(gaussian.eigenvalues))))


if __name__ == "__main__":
    FIGURE.make(main)
