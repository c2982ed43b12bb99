"""How much of the score of a published network of EDM simple laws of its training images explain, at every noise level.

As `explained_variance`, for any converted checkpoint and any images, beside the numbers of the paper's authors for theirs. The
laws are fitted to the images in the scale of the network, k / 127.5 - 1. Covariances of mixtures are of rank `rank`, since a
hundred full ones of CIFAR-10 are 3.8 GB; below noise level .1 the directions left out would count, so mixtures are compared above
it only. At small size the network is the one of the digits that the package carries. On CIFAR-10 the network is called at 32,768
points, 1.3 PFLOP or nine seconds at an assumed 150 TFLOP/s, so fitting the laws takes most of the time: some minutes of a
processor. The training set as a law is 0.6 GB on the device, the mixture of a hundred 1.3 GB at rank 1024.
"""

from __future__ import annotations

import numpy as np
from explained_variance import SIGMAS, explained, figure, table
from published import Subject
from subject import laws_of

from scorelab.errors import ConfigError
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="On CIFAR-10 the Gaussian explains .735 of the score at noise level .05, .959 at .5, .984 at 1 and .9996 at 5.",
    look_for="The numbers of the authors for this network, each within its standard error, and the Gaussian ahead of the training "
    "set up to noise level 5 on CIFAR-10.",
    minutes=dict(small=0.3, full=None, gpu=None),
    options=dict(model="edm-cifar10-32x32-uncond-vp", data="cifar10", points=1024, few=10, many=100, rank=1024),
    small=dict(model="digits-edm", data="digits", points=64, many=20),
)

# Of the authors' repository (GaussianTeleportationDiffusion): noise level -> mean of ratios, by law.
LEVELS = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
PUBLISHED = {
    "edm-cifar10-32x32-uncond-vp": {
        "Gaussian": (0.383, 0.735, 0.818, 0.892, 0.959, 0.984, 0.9957, 0.99965, 0.99997, 1.0),
        "isotropic Gaussian": (0.001, 0.014, 0.047, 0.157, 0.531, 0.824, 0.952, 0.9944, 0.9992, 0.9999),
        "10 Gaussians": (0.482, 0.751, 0.828, 0.897, 0.960, 0.985, 0.9960, 0.99972, 0.99998, 1.0),
        "100 Gaussians": (0.231, 0.736, 0.836, 0.902, 0.960, 0.985, 0.9960, 0.99980, 0.99999, 1.0),
        "training set": (-0.237, 0.630, 0.786, 0.879, 0.946, 0.972, 0.9860, 0.99791, 0.99998, 1.0),
    },
    "edm-afhqv2-64x64-uncond-vp": {
        "Gaussian": (0.396, 0.735, 0.821, 0.895, 0.958, 0.983, 0.9950, 0.99948, 0.99994, 1.0),
        "10 Gaussians": (-0.149, 0.706, 0.824, 0.901, 0.959, 0.983, 0.9948, 0.99949, 0.99995, 1.0),
        "training set": (-0.682, 0.612, 0.779, 0.885, 0.956, 0.979, 0.9900, 0.99656, 0.99917, 1.0),
    },
    "edm-ffhq-64x64-uncond-vp": {
        "Gaussian": (0.310, 0.669, 0.792, 0.889, 0.963, 0.986, 0.9960, 0.99949, 0.99993, 0.99999),
        "20 Gaussians": (0.295, 0.748, 0.835, 0.904, 0.965, 0.987, 0.9962, 0.99958, 0.99995, 0.99999),
        "training set": (-0.205, 0.710, 0.835, 0.909, 0.961, 0.980, 0.9905, 0.99669, 0.99936, 0.99999),
    },
}
# The authors' points, by their scripts; where low rank counts, mixtures are not compared.
POINTS, LEAST = 1024, 0.2


def measure(who: Subject, origin: dict, options) -> dict:
    """Explained variance of the score and of the denoised mean: law -> column -> one number for each noise level."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(who.images))[: options.points])
    laws = laws_of(who.encoded(), (options.few, options.many), options.rank)
    return dict(model=origin, points=len(chosen), **explained(who.model, laws, who.encoded(chosen)))


def tolerance(error: float, points: int, value: float) -> float:
    """Three standard errors of a difference to a published value, theirs by the number of their points, and its last digit."""
    digits = max(3, len(str(value).partition(".")[2]))
    return 3 * error * (1 + points / POINTS) ** 0.5 + 0.5 * 10.0**-digits


def claims(numbers: dict) -> list[Claim]:
    """What is published beside what was found: of each law the value at noise level 1, and whether all levels agree."""
    found = []
    for law, values in numbers["published"].items():
        if law not in numbers["score"]:
            continue
        row, off, most = numbers["score"][law], [], {}
        for level, value in zip(LEVELS, values, strict=True):
            i = list(SIGMAS).index(level)
            most[level] = tolerance(row["standard_error"][i], numbers["points"], value)
            if abs(row["mean_of_ratios"][i] - value) > most[level] and not ("Gaussians" in law and level < LEAST):
                off.append(f"{row['mean_of_ratios'][i]:.4g} for {value} at {level:g}")
        found.append(
            Claim(
                says=f"{law}: {values[LEVELS.index(1.0)]} of the score at noise level 1, and the other levels as listed.",
                value=row["mean_of_ratios"][list(SIGMAS).index(1.0)], spread=row["standard_error"][list(SIGMAS).index(1.0)],
                unit="explained variance at noise level 1", verdict="not reproduced" if off else "reproduced",
                why=f"Within three standard errors of the difference: {'not ' + '; '.join(off) if off else 'all'}.",
            )
        )  # fmt: skip
    row, i = numbers["score"]["Gaussian"], list(SIGMAS).index(5.0)
    if not found:
        found.append(
            Claim(
                says="On images of CIFAR-10 the Gaussian explains .99965 at noise level 5.", value=row["mean_of_ratios"][i],
                spread=row["standard_error"][i], unit="explained variance there", verdict="not comparable",
                why=f"Nothing is published of {numbers['model']['name']}.",
            )
        )  # fmt: skip
    return found


def main(record) -> None:
    o = record.options
    who = Subject(o.model, o.data)
    if who.classes is not None:
        raise ConfigError(f"model = {o.model}: it is told classes: expected a network without, as the laws are")
    numbers = record.cell("all", measure, who, who.origin, o)
    numbers = numbers | dict(published=PUBLISHED.get(who.origin["name"], {}))
    table(numbers)
    for law, values in numbers["published"].items():
        print(f"published: {law:22s}" + "  ".join(f"{level:g}: {v}" for level, v in zip(LEVELS, values, strict=True)))
    record.write(numbers, claims=claims(numbers), laws=figure(numbers, who.images.name))


if __name__ == "__main__":
    FIGURE.make(main)
