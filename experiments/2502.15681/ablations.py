"""What the normalisation of the weights and the features of the discriminator do to students of digits by forward KL.

Every student is a run of `configs/paper/2502.15681/digits.gin` with forward KL and one change. The normalisation has two stages:
the ratio is divided by its mean at each noise level, the weights by their mean over the batch; each is left out, then both. The
discriminator reads the first, the third or both of these layers of the teacher, or is a network of its own. The noise of a loss
is the standard deviation of its logarithm from window to window in the second half of a training, so that the trend and the scale
drop out. `steps` is the length of a training, 0 for that of the config; `window` the steps of which the mean loss is taken.
"""

from __future__ import annotations

import numpy as np
from students import Students, difference, table, values, without_images

from scorelab import viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="Figure 4 (b), Figure 7",
    claims="The two-stage normalisation makes the training loss of forward KL less noisy; on CIFAR-10 the features that the "
    "discriminator reads (of the teacher, of the fake score) change the course of FID.",
    look_for="The loss is smoothest with the ratio normalised, after which the second stage has nothing left to do for forward "
    "KL; the students hardly differ.",
    minutes=dict(small=4, full=34, gpu=None),
    options=dict(seeds=3, steps=0, window=10),
    small=dict(seeds=2, steps=50, window=5),
)

BASE = "DIVERGENCE = @distill.ForwardKL()"
NORMALISED = "distill.FDistill.normalisation = @distill.Normalisation()"
SETTINGS = {
    "both stages, layers 1 and 3": (),
    "ratio alone": (NORMALISED, "distill.Normalisation.unit_mean = False"),
    "mean of the weights alone": (NORMALISED, "distill.Normalisation.ratio = False"),
    "no normalisation": (NORMALISED, "distill.Normalisation.unit_mean = False", "distill.Normalisation.ratio = False"),
    "layer 1": ("FEATURES = ('layer1',)",),
    "layer 3": ("FEATURES = ('layer3',)",),
    "a network of its own": (
        "distill.FDistill.ratio = @distill.Discriminator()", "distill.Discriminator.denoiser = @distill.denoiser_of()",
        "distill.denoiser_of.model = %TEACHER",
    ),
}  # fmt: skip
FULL, NONE, OWN = "both stages, layers 1 and 3", "no normalisation", "a network of its own"


def noise(losses: dict) -> float:
    """The deviation of the logarithm of the loss from one window to the next, over the second half."""
    half = np.log(losses["loss"])[len(losses["loss"]) // 2 :]
    return float(np.diff(half).std() / np.sqrt(2))


def claims(numbers: dict) -> list[Claim]:
    """What Figures 4 and 7 are about, beside what was found."""
    rows = numbers["students"]
    own, teacher = values(rows[OWN], "frechet"), values(rows[FULL], "frechet")
    d = own - teacher
    return [
        difference("The normalisation makes the training loss of forward KL less noisy.", values(rows[NONE], "noise"),
            values(rows[FULL], "noise"), "deviation of the log loss from window to window, without less with"),
        Claim(says="The features that the discriminator reads change FID over the training.", value=d.mean(),
            spread=d.std(ddof=d.size > 1), unit="Frechet distance, a network of its own less features of the teacher",
            verdict="not comparable", why="The curves of Figure 7 are of features of the fake score, which nothing here reads."),
    ]  # fmt: skip


def losses(numbers: dict):
    """The loss of the student by normalisation: one line for each seed, in units of its mean."""
    series = {}
    for name in list(SETTINGS)[:4]:
        rows = list(numbers["students"][name].values())
        y = np.array([row["losses"]["loss"] for row in rows]).T
        series[name] = (np.array(rows[0]["losses"]["step"]), y / y.mean(0))
    content = [viz.Panel(series={k: v}, title=k, xlabel="step", ylabel="loss over its mean") for k, v in series.items()]
    return viz.panels(content, columns=4, share_y=True, width=11.0, height=2.4)


def dots(numbers: dict, which: str, xlabel: str):
    """One metric of every setting, a dot for each seed."""
    reference = {"teacher": values(numbers["teacher"], which).mean()} if which in numbers["floor"] else None
    return viz.dots({k: values(rows, which) for k, rows in numbers["students"].items()}, xlabel=xlabel, reference=reference)


def main(record) -> None:
    who, o = Students(record), record.options

    def measure(name, seed):
        run = f"{list(SETTINGS).index(name)}_{seed}"
        row = who.student(run, seed, BASE, *SETTINGS[name], f"experiment.Train.log_every = {o.window}")
        return dict(row, noise=noise(row["losses"]))

    known = who.floor_and_teacher()
    found = record.cells(measure, {f"{name} {seed}": (name, seed) for seed in range(o.seeds) for name in SETTINGS})
    students = {name: {str(seed): without_images(found[f"{name} {seed}"]) for seed in range(o.seeds)} for name in SETTINGS}
    numbers = dict(who.said, floor=known["floor"], teacher=known["teacher"], students=students)
    table({"floor": {"": known["floor"]}, "teacher": known["teacher"], **students})
    print("noise of the loss: " + ", ".join(f"{name} {values(rows, 'noise').mean():.3f}" for name, rows in students.items()))
    figures = dict(
        losses=losses(numbers),
        frechet=dots(numbers, "frechet", "Frechet distance"),
        noise=dots(numbers, "noise", "deviation of the log loss"),
    )
    record.write(numbers, claims=claims(numbers), **figures)


if __name__ == "__main__":
    FIGURE.make(main)
