"""How much of a trained network's score simple laws of the data explain, at every noise level.

    python experiments/teleport_explained_variance.py --data digits
    python experiments/teleport_explained_variance.py --data mnist --points 256

The laws: the mean alone, an isotropic Gaussian, the Gaussian with the data's moments, mixtures of Gaussians on k-means clusters,
and the training set itself (delta). Left, the laws; right, Gaussians of low rank, whose missing directions have no variance.
"""

from __future__ import annotations

import numpy as np
from recording import record, script
from teleport_common import parse, subject

SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 80.0)
RANKS = (8, 16, 32, 64, 128, 256, 512)
PICTURED = (8, 32, 128, 512)


def laws_of(y: np.ndarray, components: tuple[int, ...]) -> dict:
    """Name -> law of the points ``y``, from the poorest to the richest."""
    from scorelab.densities import Empirical, Gaussian, GaussianMixture

    return {
        "mean": Gaussian.from_data(y, covariance="zero"),
        "isotropic Gaussian": Gaussian.from_data(y, covariance="isotropic"),
        "Gaussian": Gaussian.from_data(y),
        # A hundred full covariances of images of more than a thousand numbers would not fit in memory.
        **{f"{k} Gaussians": GaussianMixture.fit(y, k, rank=None if y[0].size <= 1024 else 256) for k in components},
        "training set": Empirical(y),
    }


def main() -> None:
    arguments = parse(__doc__, "teleport_explained_variance", points=256, few=10, many=100)
    who = subject(arguments)

    from scorelab import viz
    from scorelab.densities import Gaussian
    from scorelab.diagnostics import explained_variance

    laws = laws_of(who.y, (arguments.few, arguments.many))
    size = int(np.prod(who.y.shape[1:]))
    whole = laws["Gaussian"]
    ranks = {r: Gaussian.low_rank(whole.mean, whole.basis[:, :r], whole.eigenvalues[:r]) for r in RANKS if r < size}
    load = who.experiment.data.load()
    chosen = np.sort(np.random.default_rng(0).permutation(len(load))[: arguments.points])
    x = np.asarray(who.experiment.data.transform.encode(load.x[chosen]))
    every = laws | {f"rank {r}": law for r, law in ranks.items()}
    numbers = {}
    for of in ("score", "denoised"):
        found = explained_variance(who.model, every, x, SIGMAS, of=of)
        numbers[of] = {
            name: {key: np.asarray(getattr(ev, key)).tolist() for key in ("mean_of_ratios", "standard_error", "ratio_of_means")}
            for name, ev in found.items()
        }
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
        arguments, "teleport_explained_variance",
        {arguments.data: dict(model=who.made, sigmas=SIGMAS, **numbers)}, label=f"teleport_explained_variance_{arguments.data}",
        laws=viz.panels(
            [panel(laws, f"{arguments.data}: laws"), panel(low, "Gaussians of low rank")], reference=("Gaussian",)
        ),
    )  # fmt: skip


if __name__ == "__main__":
    script(main)
