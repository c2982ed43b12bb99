"""One-step digits by the six divergences of the paper, with the GAN term and without it.

Every student is a run of `configs/paper/2502.15681/digits.gin` with another divergence, seed and weight of the GAN term (0 or
that of the config). Without the term reverse KL needs no discriminator, and has none. `steps` is the length of a training, 0 for
that of the config. Images are judged as in `one_step`.
"""

from __future__ import annotations

import numpy as np
from students import DIVERGENCES, NAMES, Students, difference, table, values, without_images

from scorelab import viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="Table 2, Table 10",
    claims="On CIFAR-10 FID is 2.21 (softened reverse KL), 2.13 (reverse KL), 2.05 (Jeffreys), 2.00 (Jensen-Shannon), 1.99 "
    "(squared Hellinger) and 1.92 (forward KL); the teacher has 1.79. Without the GAN term it is 4.07 (reverse KL) to 3.76 "
    "(forward KL).",
    look_for="The six divergences are closer to one another than to the teacher; the GAN term lowers the distance of each.",
    minutes=dict(small=4, full=58, gpu=None),
    options=dict(seeds=3, steps=0),
    small=dict(seeds=1, steps=100),
)

TERMS = dict(gan="with the GAN term", plain="without")
METRICS = dict(frechet="Frechet distance", recall="recall", precision="precision")


def sets(divergence: str, term: str) -> list[str]:
    """The fields of the config."""
    found = [f"DIVERGENCE = @distill.{DIVERGENCES[divergence]}()"]
    if term == "plain":
        found.append("distill.FDistill.gan_weight = 0.0")
        found += ["distill.FDistill.ratio = @distill.UnitRatio()"] * (divergence == "rkl")
    return found


def claims(numbers: dict) -> list[Claim]:
    """What the paper's tables say of the order of the divergences and of the GAN term."""
    fid = {term: {name: values(rows, "frechet") for name, rows in of.items()} for term, of in numbers["students"].items()}
    others = np.mean([v for name, v in fid["gan"].items() if name != "srkl"], 0)
    gain = {name: fid["plain"][name] - fid["gan"][name] for name in NAMES}
    return [
        difference("Forward KL has a lower FID than reverse KL (1.92 and 2.13).", fid["gan"]["rkl"], fid["gan"]["fkl"],
            "Frechet distance, reverse less forward KL"),
        difference("Softened reverse KL has the highest FID of the six (2.21; the mean of the others is 2.02).", fid["gan"]["srkl"],
            others, "Frechet distance, softened reverse KL less the mean of the others"),
        difference("Without the GAN term forward KL has a lower FID than reverse KL too (3.76 and 4.07).", fid["plain"]["rkl"],
            fid["plain"]["fkl"], "Frechet distance, reverse less forward KL"),
        difference("The GAN term halves FID (reverse KL 4.07 to 2.13, forward KL 3.76 to 1.92).", np.mean(list(gain.values()), 0),
            np.zeros(len(others)), "Frechet distance, without the term less with it, mean of the six"),
    ]  # fmt: skip


def dots(numbers: dict, which: str, xlabel: str):
    """One metric of all students, a dot for each seed, beside that of the teacher and of test images."""
    rows = {f"{NAMES[name]}, {TERMS[term]}": values(numbers["students"][term][name], which) for name in NAMES for term in TERMS}
    reference = {"teacher": values(numbers["teacher"], which).mean(), "test images": numbers["floor"][which]}
    return viz.dots(rows, xlabel=xlabel, reference=reference)


def main(record) -> None:
    who, o = Students(record), record.options

    def measure(name, term, seed):
        return who.student(f"{name}_{term}_{seed}", seed, *sets(name, term))

    known = who.floor_and_teacher()
    order = [(name, term, seed) for seed in range(o.seeds) for term in TERMS for name in NAMES]
    found = record.cells(measure, {f"{name} {term} {seed}": (name, term, seed) for name, term, seed in order})
    students = {
        term: {name: {str(s): without_images(found[f"{name} {term} {s}"]) for s in range(o.seeds)} for name in NAMES}
        for term in TERMS
    }
    numbers = dict(who.said, floor=known["floor"], teacher=known["teacher"], students=students)
    lines = {f"{name}, {TERMS[term]}": students[term][name] for term in TERMS for name in NAMES}
    table({"floor": {"": known["floor"]}, "teacher": known["teacher"], **lines})
    pictures = {"teacher": known["images"]} | {NAMES[name]: found[f"{name} gan 0"]["images"] for name in NAMES}
    figures = {which: dots(numbers, which, xlabel) for which, xlabel in METRICS.items()}
    record.write(numbers, claims=claims(numbers), samples=who.picture(pictures), **figures)


if __name__ == "__main__":
    FIGURE.make(main)
