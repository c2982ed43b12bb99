"""Samples of simple laws and of a trained network, from the same noise.

Each law is sampled by the probability flow, as the network is. The distance of a sample of a law to that of the network from the
same noise is one number; where the path follows the law down to a noise level and the network from there on, it is a curve.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from subject import DATA, laws_of, rmse, subject

from scorelab import grids, models, sample, solvers, starts, viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Samples of the Gaussian and of mixtures are nearer to those of the network than samples of the training set's law: "
    "mean squares .0130, .0118 and .0473 on CIFAR-10.",
    look_for="The same outlines in every column of the pictures; distances that vanish where the path is switched at high noise.",
    minutes=dict(small=0.6, full=1.5, gpu=None),
    options=dict(data=DATA, workdir=Path, n=200, seeds=3, few=10, many=100),
    small=dict(n=60, seeds=2),
)

STEPS, SHOWN = 18, 10
# Steps along the law, before the network takes over.
SWITCHES = (0, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18)


def names_of(options) -> list[str]:
    """The laws whose samples are looked at."""
    return ["Gaussian", f"{options.few} Gaussians", f"{options.many} Gaussians", "training set"]


def walked(model, times: np.ndarray, seed: int, n: int, event, points=None) -> np.ndarray:
    """The end of Heun's walk over ``times``, from noise or from given points."""
    start = None if points is None else starts.Fixed(points)
    return np.asarray(sample(
        model, solver=solvers.Heun(), grid=grids.Explicit(tuple(times.tolist())), start=start, key=jax.random.key(seed),
        shape=(n, *event), chunk=min(n, 100),
    ).x)  # fmt: skip


def measure(options, seed: int) -> dict:
    """Law -> rmse to the network's samples, by number of steps along the law; and the first samples."""
    who, y = subject(options)
    process, n, event = who.config.process, options.n, y.shape[1:]
    laws = laws_of(y, (options.few, options.many))
    times = grids.Karras(STEPS).times(process)
    network = walked(who.model, times, seed, n, event)
    found, shown = {}, [network[:SHOWN]]
    for name in names_of(options):
        law, distances = models.ExactModel(laws[name], process), []
        out = sample(
            law, solver=solvers.Heun(), grid=grids.Karras(STEPS), key=jax.random.key(seed), shape=(n, *event), keep="all",
            chunk=min(n, 100),
        )  # fmt: skip
        for k in SWITCHES:
            x = out.x if k == STEPS else walked(who.model, times[k:], seed, n, event, np.asarray(out.trajectory[k]))
            distances.append(rmse(x, network))
        found[name] = distances
        shown.append(np.asarray(out.x)[:SHOWN])
    other = walked(who.model, times, 1000 + seed, n, event)
    found["other noise"] = rmse(other, network)
    return dict(distance=found, shown=np.asarray(who.transform.decode(np.concatenate(shown))))


def claims(numbers: dict) -> list[Claim]:
    """What the paper says of the samples of laws, beside what was found."""
    seeds = list(numbers["seeds"].values())
    names = [name for name in seeds[0] if name != "other noise"]
    ends = np.array([[seed[name][-1] for name in names] for seed in seeds])
    other = np.array([seed["other noise"] for seed in seeds])
    ratio = (ends[:, -1] / ends[:, 0]) ** 2
    mixture = (ends[:, 1] / ends[:, 0]) ** 2
    share = ends[:, 0] / other
    size = f"{numbers['n']} samples, spread over {len(seeds)} sampling seeds of one network"
    return [
        Claim(
            says="The samples of the training set's law are further from the network's than those of the Gaussian: 3.6 times in "
            "mean square on CIFAR-10.", value=ratio.mean(), spread=ratio.std(), unit="times the mean square of the Gaussian",
            verdict="reproduced" if ratio.min() > 2 else "in shape" if ratio.min() > 1 else "not reproduced",
            why=f"Above 2 counts as reproduced; a small training set is nearer to what the network has learned. {size}.",
        ),
        Claim(
            says="Those of a mixture of ten are slightly nearer than those of the Gaussian: .91 times in mean square on CIFAR-10.",
            value=mixture.mean(), spread=mixture.std(), unit="times the mean square of the Gaussian",
            verdict="reproduced" if mixture.max() < 1 else "not reproduced", why=f"Below 1 for every seed. {size}.",
        ),
        Claim(
            says="From the same noise the Gaussian has the outlines of the network's samples.", value=share.mean(),
            spread=share.std(), unit="times the distance of samples from other noise",
            verdict="reproduced" if share.max() < 0.5 else "not reproduced",
            why=f"Half the distance of unrelated samples would be the bound. {size}.",
        ),
    ]  # fmt: skip


def figure(numbers: dict):
    """Distances against the noise level at which the network takes over; a dot is one seed."""
    seeds, levels = list(numbers["seeds"].values()), np.array(numbers["levels"])
    # The largest level is that of the network alone; the last switch is at no noise, which has no place on the axis.
    inner = slice(1, len(levels) - 1)
    series = {
        name: (levels[inner], np.array([seed[name][inner] for seed in seeds]).T) for name in seeds[0] if name != "other noise"
    }
    series["other noise"] = (levels[[1, -2]], np.full(2, np.mean([seed["other noise"] for seed in seeds])))
    return viz.lines(
        series, reference=("other noise",), xlabel="noise level at which the network takes over", logx=True, logy=True,
        markers=True, ylabel="rmse per pixel to the network's samples", mean=True,
    )  # fmt: skip


def main(record) -> None:
    o = record.options
    who, _ = subject(o)
    cells = record.cells(measure, {f"seed {seed}": (o, seed) for seed in range(o.seeds)})
    times = grids.Karras(STEPS).times(who.config.process)
    levels = np.asarray(who.config.process.noise_ratio(times))[list(SWITCHES)]
    numbers = dict(
        model=who.origin, n=o.n, switches=SWITCHES, levels=levels, seeds={name: cell["distance"] for name, cell in cells.items()},
    )  # fmt: skip
    for name, values in numbers["seeds"]["seed 0"].items():
        print(f"{name:14s}", np.round(values, 4).tolist())
    images = viz.image_grid(
        cells["seed 0"]["shown"], levels=who.data().levels, columns=SHOWN, rows=["network", *names_of(o)],
    )  # fmt: skip
    record.write(numbers, claims=claims(numbers), samples=images, switched=figure(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
