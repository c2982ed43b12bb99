"""What a network learns first: the share of its score that simple laws explain, along the checkpoints of its training.

The Gaussian with the data's moments is matched early; later the network goes on towards the mixtures and the training set, and
away from the Gaussian. The networks are trained here, on `paper/2412.09726/digits` or `mnist`, of which every checkpoint is kept;
`steps` makes the trainings shorter.
"""

from __future__ import annotations

import numpy as np
from subject import laws_of

from scorelab import viz
from scorelab.densities import Density
from scorelab.diagnostics import explained_variance
from scorelab.experiment import Experiment
from scorelab.experiment.checkpoints import Checkpoints
from scorelab.experiment.train import state_like
from scorelab.experiment.workdir import Workdir
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="The Gaussian structure is learned first: on CIFAR-10 the share of the score that the Gaussian explains at noise level "
    ".5 peaks at .977 early in training and falls to .966, while that of the training set rises.",
    look_for="The curve of the Gaussian has its peak within the first part of the training, that of the training set at the end.",
    minutes=dict(small=1.2, full=8, gpu=None),
    options=dict(data=("digits", "mnist"), seeds=3, steps=int, points=256, few=10, checkpoints=40),
    small=dict(seeds=2, steps=1000, points=64, checkpoints=8),
)

SIGMAS = (0.1, 0.2, 0.5, 1.0, 2.0)
PICTURED = (0.2, 0.5, 1.0)
# The noise level of the published numbers.
AT = SIGMAS.index(0.5)


def measure(trained: Experiment, checkpoints: Checkpoints, step: int, laws: dict[str, Density], x: np.ndarray) -> dict:
    """The explained variance of the score after ``step`` updates: law -> one number for each noise level."""
    model = trained.learner.model(checkpoints.restore(step, state_like(trained)))
    return {name: ev.mean_of_ratios for name, ev in explained_variance(model, laws, x, SIGMAS).items()}


def spaced(steps: list[int], count: int) -> list[int]:
    """At most ``count`` of the steps, equally spaced in the logarithm: most happens early."""
    wanted = np.geomspace(steps[0], steps[-1], count)
    return sorted({steps[int(np.argmin(np.abs(np.array(steps) - w)))] for w in wanted})


def claims(numbers: dict) -> list[Claim]:
    """What the paper says of the order of learning, beside what was found at noise level .5."""
    steps, seeds = np.array(numbers["steps"]), numbers["seeds"].values()
    gaussian, whole = (np.array([seed[name] for seed in seeds])[:, :, AT] for name in ("Gaussian", "training set"))
    peak = gaussian.argmax(axis=1)
    drop, place = gaussian.max(axis=1) - gaussian[:, -1], steps[peak] / steps[-1]
    rise = whole[:, -1] - whole[np.arange(len(whole)), peak]
    trainings = f"{len(whole)} training{'s' * (len(whole) > 1)} of {steps[-1]} steps, the same noised points at every checkpoint"
    return [
        Claim(
            says="The Gaussian is learned first: what it explains at noise level .5 peaks early and falls, from .977 to .966 on "
            "CIFAR-10.",
            value=drop.mean(), spread=drop.std(ddof=drop.size > 1), unit="explained variance lost after the peak",
            verdict="reproduced" if drop.min() > 0.001 and place.max() < 0.5 else "not reproduced",
            why=f"The peak is at {place.mean():.2g} of the training; after the first half it would not be early. {trainings}.",
        ),
        Claim(
            says="The share that the training set explains goes on rising (MNIST, noise level .5: .927 to .970).",
            value=rise.mean(), spread=rise.std(ddof=rise.size > 1), unit="explained variance gained after the peak of the Gaussian",
            verdict="reproduced" if rise.min() > 0 else "not reproduced", why=f"{trainings}.",
        ),
    ]  # fmt: skip


def figure(numbers: dict, data: str):
    """Explained variance along training at three noise levels; a line is one training."""
    seeds = list(numbers["seeds"].values())

    def line(name, k):
        return np.array(numbers["steps"]), np.maximum(np.array([np.array(seed[name])[:, k] for seed in seeds]).T, -1)

    content = [
        viz.Panel(
            series={name: line(name, SIGMAS.index(sigma)) for name in seeds[0]},
            title=f"{data}, noise level {sigma:g}", xlabel="training step", ylabel="explained variance", logx=True,
        )
        for sigma in PICTURED
    ]  # fmt: skip
    return viz.panels(content, width=11.0)


def main(record) -> None:
    o = record.options
    found, steps = {}, []
    for seed in range(o.seeds):
        length = [] if o.steps is None else [f"STEPS = {o.steps}"]
        name = f"seed {seed}"
        trained, _ = record.trained(name, f"paper/2412.09726/{o.data}", f"experiment.Experiment.seed = {seed}", *length)
        y = np.concatenate(list(trained.data.encoded(trained.process.chart))).astype(np.float32)
        every = laws_of(y, (o.few,))
        laws = {name: every[name] for name in ("Gaussian", f"{o.few} Gaussians", "training set")}
        x = y[np.random.default_rng(0).permutation(len(y))[: o.points]]
        checkpoints = Checkpoints(Workdir(record.out / "runs" / name).checkpoints)
        steps = spaced(checkpoints.steps(), o.checkpoints)
        rows = record.cells(measure, {f"{name}, step {k}": (trained, checkpoints, k, laws, x) for k in steps})
        found[name] = {law: [row[law] for row in rows.values()] for law in laws}
    numbers = dict(sigmas=SIGMAS, steps=steps, seeds=found)
    record.write(numbers, claims=claims(numbers), curves=figure(numbers, o.data))


if __name__ == "__main__":
    FIGURE.make(main)
