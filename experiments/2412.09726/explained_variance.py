"""How much of a trained network's score simple laws of the data explain, at every noise level.

    python experiments/2412.09726/explained_variance.py --data digits
    python experiments/2412.09726/explained_variance.py --data mnist --points 256

`--workdir` takes the model of a trained work directory, in the place of the one that the package carries.
The laws: the mean alone, an isotropic Gaussian, the Gaussian with the data's moments, mixtures of Gaussians on k-means clusters,
and the training set itself (delta). Left, the laws; right, Gaussians of low rank, whose missing directions have no variance.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from subject import DATA, laws_of, some_of, subject

from scorelab import viz
from scorelab.densities import Gaussian
from scorelab.diagnostics import explained_variance
from scorelab.run.script import parse, record, script

SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 80.0)
RANKS = (8, 16, 32, 64, 128, 256, 512)
PICTURED = (8, 32, 128, 512)


def main() -> None:
    options = dict(data=DATA, workdir=Path, points=256, few=10, many=100)
    arguments = parse(__doc__, small=dict(points=16, many=20), **options)
    who, y = subject(arguments)
    laws = laws_of(y, (arguments.few, arguments.many))
    size = int(np.prod(y.shape[1:]))
    whole = laws["Gaussian"]
    ranks = {r: Gaussian.low_rank(whole.mean, whole.basis[:, :r], whole.eigenvalues[:r]) for r in RANKS if r < size}
    x = some_of(who, arguments.points)
    every = laws | {f"rank {r}": law for r, law in ranks.items()}
    numbers = {}
    for of in ("score", "denoised"):
        found = explained_variance(who.model, every, x, SIGMAS, of=of)
        columns = ("mean_of_ratios", "standard_error", "ratio_of_means")
        numbers[of] = {name: {column: getattr(ev, column) for column in columns} for name, ev in found.items()}
    print(f"{arguments.data}: explained variance of the score, mean of ratios\n{'sigma':20s}" + "".join(f"{s:9g}" for s in SIGMAS))
    for name, row in numbers["score"].items():
        print(f"{name:20s}" + "".join(f"{v:9.4f}" if v > -99 else "     <-99" for v in row["mean_of_ratios"]))

    def panel(names, title):
        # The unexplained share, so that both ends of the range can be read.
        series = {name: (np.array(SIGMAS), 1 - np.array(numbers["score"][name]["mean_of_ratios"])) for name in names}
        return viz.Panel(series=series, title=title, xlabel="noise level", ylabel="unexplained share of the score",
            logx=True, logy=True, markers=True, ylim=(1e-6, 30))  # fmt: skip

    low = [*(f"rank {r}" for r in ranks if r in PICTURED), "Gaussian"]
    record(
        arguments,
        {arguments.data: dict(model=who.origin, sigmas=SIGMAS, **numbers)},
        laws=viz.panels(
            [panel(laws, f"{arguments.data}: laws"), panel(low, "Gaussians of low rank")], reference=("Gaussian",)
        ),
    )  # fmt: skip


if __name__ == "__main__":
    script(main)
