"""What a network learns first: the share of its score that simple laws explain, along the checkpoints of its training.

    scorelab train paper/2412.09726/digits --workdir runs/digits_gaussian
    python experiments/2412.09726/training.py --data digits --workdir runs/digits_gaussian

The config keeps every checkpoint. The Gaussian with the data's moments is matched early; later the network goes on towards the
mixtures and the training set, and away from the Gaussian.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from subject import DATA, laws_of, some_of, subject

from scorelab import viz
from scorelab.diagnostics import explained_variance
from scorelab.experiment.checkpoints import Checkpoints
from scorelab.experiment.train import state_like
from scorelab.experiment.workdir import Workdir
from scorelab.run.script import parse, record, script

SIGMAS = (0.1, 0.2, 0.5, 1.0, 2.0)
LAWS = ("Gaussian", "{few} Gaussians", "training set")


def main() -> None:
    options = dict(data=DATA, workdir=Path, points=256, few=10, checkpoints=40)
    arguments = parse(__doc__, small=dict(points=16, checkpoints=3), **options)
    if arguments.workdir is None:
        raise SystemExit("training.py needs the checkpoints of a training: pass --workdir")
    who, y = subject(arguments)
    laws = laws_of(y, (arguments.few,))
    names = [name.format(few=arguments.few) for name in LAWS]
    x = some_of(who, arguments.points)
    like = state_like(who.config)
    found = {name: [] for name in names}
    checkpoints = Checkpoints(Workdir(arguments.workdir).checkpoints)
    steps = np.array(checkpoints.steps())
    # As many as asked for, equally spaced in the logarithm: most happens early.
    wanted = np.geomspace(steps[0], steps[-1], arguments.checkpoints)
    steps = np.unique([steps[np.argmin(np.abs(steps - w))] for w in wanted])
    for step in steps.tolist():
        model = who.config.learner.model(checkpoints.restore(step, like))
        for name, ev in explained_variance(model, {name: laws[name] for name in names}, x, SIGMAS).items():
            found[name].append(ev.mean_of_ratios)
        print(f"step {step}: " + ", ".join(f"{n} {np.round(v[-1], 4).tolist()}" for n, v in found.items()), flush=True)
    table = {name: np.array(values) for name, values in found.items()}

    for k, sigma in enumerate(SIGMAS):
        curve = table["Gaussian"][:, k]
        best = int(np.argmax(curve))
        print(f"sigma {sigma}: the Gaussian explains at most {curve[best]:.4f} (step {steps[best]}), at the end {curve[-1]:.4f}")
    content = [
        viz.Panel(
            series={name: (steps, np.maximum(table[name][:, SIGMAS.index(sigma)], -1)) for name in names},
            title=f"{arguments.data}, noise level {sigma:g}", xlabel="training step", ylabel="explained variance", logx=True,
        )
        for sigma in (0.2, 0.5, 1.0)
    ]  # fmt: skip
    record(
        arguments,
        {arguments.data: dict(sigmas=SIGMAS, steps=steps, **table)},
        curves=viz.panels(content, width=11.0),
    )  # fmt: skip


if __name__ == "__main__":
    script(main)
