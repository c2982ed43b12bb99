r"""Train the models that the package carries, each by its config, and write their cards.

    python experiments/train_models.py --names digits-vp digits-flow
    python experiments/train_models.py --part card

Trained runs lie in ``--workdir``; those that are complete there are used again. A card is measured by the evaluation of the config,
on samples of ``--seeds`` seeds from 0 on. With ``--part card`` nothing is trained: only the cards are made anew, and what they say
of the training stays.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from scorelab import pretrained
from scorelab.experiment import Sample
from scorelab.experiment.workdir import Workdir, read_lines
from scorelab.pretrained import cards
from scorelab.pretrained.kept import MODELS
from scorelab.run.figure import script
from scorelab.run.pipeline import from_config

LICENCES = {
    "digits": "Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI), CC BY 4.0",
    "mnist": "MNIST (copyright LeCun and Cortes), CC BY-SA 3.0",
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a card says and nothing measures."""

    config: str
    what: str
    good_for: str
    not_for: str


KNOWN = {
    "digits-edm": Model(
        config="paper/2412.09726/digits",
        what="An unconditional model of the 8x8 digits under variance-exploding noise, preconditioned as by EDM.",
        good_for="tests and examples that need a trained score and no download; teleportation, steering, likelihoods",
        not_for="samples of chosen classes; its 1500 training images are few, and it knows many of them",
    ),
    "digits-edm-classes": Model(
        config="paper/2503.02819/digits",
        what="A class-conditional EDM model of the 8x8 digits that also knows no condition (label 10).",
        good_for="guidance, its correction by weighted particles, and as the teacher of distillations",
        not_for="conclusions about generalisation from 1500 training images",
    ),
    "digits-vp": Model(
        config="digits/vp",
        what="The network and budget of digits-edm under variance-preserving noise, predicting v.",
        good_for="comparing processes with digits-edm and digits-flow, which differ in the noise and its training alone",
        not_for="samples of chosen classes, or the best ones: digits-edm and digits-flow come nearer to the data",
    ),
    "digits-flow": Model(
        config="digits/rectified_flow",
        what="The network and budget of digits-edm on the straight paths of rectified flow.",
        good_for="comparing processes with digits-edm and digits-vp; velocities, reflow, straightness",
        not_for="samples of chosen classes; its 1500 training images are few, and it knows many of them",
    ),
    "digits-multiplicative": Model(
        config="paper/2510.02730/digits",
        what="A class-conditional model of the 8x8 digits under multiplicative noise, in the log chart of 1 + image.",
        good_for="the samplers of multiplicative diffusion, and anything that takes a process with a chart",
        not_for="sampling from noise alone: it begins at the moments of the training data, since little noise is added",
    ),
    "digits-one-step": Model(
        config="paper/2502.15681/digits",
        what="A student of digits-edm-classes that draws an 8x8 digit of a class in one network call.",
        good_for="many samples quickly; rewards through the sampler, such as ReNO",
        not_for="other grids and solvers: it knows the largest noise level alone and has no score elsewhere",
    ),
    "mnist-edm": Model(
        config="paper/2412.09726/mnist",
        what="An unconditional EDM model of MNIST, a small U-Net.",
        good_for="teleportation, steering and diagnostics of learned scores on images of a real size",
        not_for="samples of chosen classes, or comparisons with published numbers: it is small and shortly trained",
    ),
    "mnist-edm-classes": Model(
        config="paper/2502.15681/mnist_teacher",
        what="A class-conditional EDM model of MNIST, a transformer on patches of 7x7 pixels.",
        good_for="a fast teacher of distillations; samples of chosen classes",
        not_for="classifier-free guidance, since it never learned what no condition means; fine strokes across patches",
    ),
    "mnist-one-step": Model(
        config="paper/2502.15681/mnist",
        what="A student of mnist-edm-classes that draws a digit of a class in one network call.",
        good_for="many samples quickly; rewards through the sampler, such as ReNO",
        not_for="other grids and solvers: it knows the largest noise level alone and has no score elsewhere",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=KNOWN, default=list(KNOWN), help="all by default")
    parser.add_argument("--part", choices=("all", "card"), default="all", help="%(default)s by default")
    parser.add_argument("--seeds", type=int, default=5, help="%(default)s by default")
    parser.add_argument("--n", type=int, help="samples that are drawn and compared, those of the config by default")
    parser.add_argument("--workdir", type=Path, default=Path("runs/pretrained"), help="%(default)s by default")
    arguments = parser.parse_args()
    for name in arguments.names:
        file = MODELS / f"{name}.npz"
        if arguments.part == "all":
            workdir = train(KNOWN[name].config, arguments.workdir / name)
            pretrained.keep(workdir.root, file)
            trained = duration(workdir)
        else:
            before = pretrained.load(name).card
            trained = "not recorded" if before is None else before.trained
        cards.write(file, measured(name, trained, range(arguments.seeds), arguments.n))
        print(f"{name}: {pretrained.card(name)}", flush=True)


def train(config: str, root: Path) -> Workdir:
    """The work directory of a config that is trained, as far as that is not done there."""
    return from_config(config, (), root, resume=root.exists(), whole=False)


def duration(workdir: Workdir) -> str:
    """How long the training took by the clock of the run, and where."""
    seconds = sum(line["seconds"] for _, line in read_lines(workdir.timings_log))
    cores = len(os.sched_getaffinity(0))
    took = f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.0f} min"
    kind = workdir.read_json(workdir.versions)["devices"]["kind"]
    return f"{took} on {cores} core{'s' * (cores > 1)} of a shared CPU" if kind == "cpu" else f"{took} on one {kind}"


def measured(name: str, trained: str, seeds: range, n: int | None) -> cards.Card:
    """The card of a model: its facts, the words above, and the metrics of samples of every seed."""
    who, says = pretrained.load(name), KNOWN[name]
    drawn = [who.sample(n or who.config.one(Sample).n, seed=seed) for seed in seeds]
    found = [who.evaluate(each.x, n=n) for each in drawn]
    metrics = [
        cards.Measured(name=each.label, values=tuple(values[i].value for values in found), floor=each.floor)
        for i, each in enumerate(found[0])
    ]
    return cards.Card(
        **who.facts(), **vars(says), licence=LICENCES[who.record["data"]], trained=trained, seeds=tuple(seeds),
        calls=drawn[0].record["model_calls"], drawn=len(drawn[0].x), n=found[0][0].n, metrics=tuple(metrics),
    )  # fmt: skip


if __name__ == "__main__":
    script(main)
