"""Images along the path, and the Tweedie means that the network sees behind them.

First figure: reverse paths of the Dale-Langevin rule, at ten times from noise to image. Below each state x is its Tweedie mean: in
the log chart E[log x_0 | x_t] = log x_t - a(t) + v(t) (1 + h), whose exponential is the geometric mean of the images behind x.
Second figure: test images noised to those times, and the mean square error of their Tweedie mean in log x, beside that of the
noised image itself and of the best linear estimate (the posterior mean of the Gaussian with the moments of each class).
"""

from __future__ import annotations

import jax
import numpy as np
from subject import DATA, draw, images, network

from scorelab import grids, solvers, viz
from scorelab.densities import Gaussian
from scorelab.experiment import DataStart, Train
from scorelab.models import ask
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="",
    claims="The multiplicative Tweedie formula gives a denoised image at every noise level on the way from noise to image.",
    look_for="The Tweedie mean is a smooth digit from the first column on and gets sharp, long before the state does. Its error is "
    "far below that of the noised image, and near that of the best linear estimate.",
    minutes=dict(small=1, full=3, gpu=None),
    options=dict(data=DATA, steps=0, n=297, seeds=3, walk=200),
    small=dict(steps=1000, n=200),
)

SHOWN = 3
# Noise ratios of the columns: those of the log chart at the paper's final level and below.
LEVELS = (0.8, 0.6, 0.4, 0.3, 0.2, 0.15, 0.11, 0.08, 0.06)


def times(process) -> np.ndarray:
    """The times of LEVELS, from noise to data."""
    return np.array([float(process.schedule.time(-2 * np.log(level))) for level in LEVELS])


@jax.jit
def tweedie(model, y, t, cond):
    """E[log x_0 | log x_t = y], ``(n, *event)``."""
    return ask(model, y, t, cond).denoised


def reverse(experiment, model, seed: int, options) -> dict:
    """States and Tweedie means of reverse paths at the grid times next to LEVELS, and what of them is pictured."""
    process, grid = experiment.process, grids.Uniform(options.walk)
    start = DataStart(kind="moments")
    out, label = draw(experiment, model, solvers.EulerMaruyama(), grid, start, options.n, seed, keep="all")
    chosen = [int(np.abs(out.times[:-1] - t).argmin()) for t in times(process)]
    states, means, average, error = [], [], [], []
    for i in chosen:
        y = np.asarray(process.chart.encode(out.trajectory[i]))
        mean = np.asarray(tweedie(model, y, np.float32(out.times[i]), label))
        states.append(out.trajectory[i][:SHOWN])
        means.append(np.exp(mean[:SHOWN]))
        each = mean.reshape(len(mean), -1).mean(1)
        average.append(each.mean())
        error.append(each.std(ddof=1) / len(each) ** 0.5)
    last = images(experiment, out.x[:SHOWN])
    pictures = [images(experiment, np.concatenate(part)) for part in (states, means)]
    picture = np.stack([part.reshape(len(chosen), SHOWN, *last.shape[1:]) for part in pictures])
    return dict(
        times=out.times[chosen], levels=process.sigma(out.times[chosen]), average=np.array(average), error=np.array(error),
        picture=picture, last=last,
    )  # fmt: skip


def forward(experiment, model, seed: int, options) -> dict:
    """Mean square errors in log x of three estimates of noised test images, over LEVELS."""
    process, data, test = experiment.process, experiment.data, experiment.data.load("test")
    rows = np.random.default_rng(seed).permutation(len(test))[: options.n]
    x, label = data.transform.encode(test.x[rows]), test.label[rows].astype(np.int32)
    train, classes = np.concatenate(list(data.encoded(process.chart))), data.load().label
    laws = {c: Gaussian.from_data(train[classes == c]) for c in np.unique(label)}
    errors = {"noised image": [], "best linear estimate": [], "Tweedie mean": []}
    for t in times(process):
        noised = process.perturb(jax.random.key(seed), x, np.float32(t))
        y, y0 = np.asarray(noised.y, np.float64), np.asarray(noised.y0, np.float64)
        linear = np.zeros_like(y)
        for c, law in laws.items():
            mine = label == c
            score = np.asarray(law.noised(process, t).score(y[mine]))
            linear[mine] = y[mine] - float(process.offset(t)) + float(process.sigma(t)) ** 2 * score
        estimates = (y - float(process.offset(t)), linear, np.asarray(tweedie(model, noised.y, np.float32(t), label)))
        for name, estimate in zip(errors, estimates, strict=True):
            errors[name].append(float(np.mean((estimate - y0) ** 2)))
    return errors


def claims(numbers: dict) -> list[Claim]:
    """What Tweedie's formula says, beside what was found."""
    seeds = list(numbers["errors"].values())
    ratios = np.array([np.divide(row["Tweedie mean"], row["best linear estimate"]) for row in seeds])
    k = int(ratios.mean(0).argmax())
    column = ratios[:, k]
    paths = numbers["paths"].values()
    mean, std = numbers["log x_0"]["mean"], numbers["log x_0"]["std"]
    offset = np.array([np.subtract(row["average"], mean) for row in paths]).mean(0) / std
    error = np.sqrt(np.mean([np.square(row["error"]) for row in paths], 0) / len(paths)) / std
    j = int(np.abs(offset).argmax())
    return [
        Claim(
            says="The Tweedie mean is the least-squares estimate of the clean image, in log x.", value=column.mean(),
            spread=column.std(ddof=len(column) > 1), unit="of the error of the best linear estimate, the largest of nine levels",
            verdict="reproduced" if column.mean() < 1 else "in shape" if ratios.mean() < 1 else "not reproduced",
            why=f"At noise level {LEVELS[k]:g}, on test images; below 1 was asked for. The mean of all is "
            f"{ratios.mean():.2f}, after {numbers['training steps']} training steps.",
        ),
        Claim(
            says="The mean of the Tweedie means along the path is that of the data, at every time.",
            value=offset[j], spread=error[j],
            unit="deviations of log x, the largest difference of the mean over images and pixels",
            verdict="reproduced" if abs(offset[j]) < 4 * error[j] else "in shape" if abs(offset[j]) < 0.05 else "not reproduced",
            why="Within four standard errors it would hold, within a twentieth of the deviation it nearly does.",
        ),
    ]  # fmt: skip


def errors_figure(numbers: dict):
    """Mean square errors against the noise level."""
    seeds = list(numbers["errors"].values())
    series = {name: (np.array(LEVELS), np.array([row[name] for row in seeds]).T) for name in seeds[0]}
    return viz.lines(
        series, title="noised test images", xlabel="noise level sigma of log x", ylabel="mean square error of log x_0",
        logx=True, logy=True, markers=True, mean=True,
    )  # fmt: skip


def paths_figure(cell: dict, levels: int):
    """States over Tweedie means, from noise to image; without noise both are the image."""
    states, means = (np.concatenate([part, cell["last"][None]]) for part in cell["picture"])
    rows = [image for i in range(SHOWN) for part in (states, means) for image in part[:, i]]
    headings = [f"t {t:.2g}\n\u03c3 {s:.2g}" for t, s in zip(cell["times"], cell["levels"], strict=True)] + ["t 0\n\u03c3 0"]
    names = [name for i in range(SHOWN) for name in (f"state {i + 1}", "Tweedie mean")]
    return viz.image_grid(np.stack(rows), levels=levels, columns=len(headings), rows=names, headings=headings, width=7)


def main(record) -> None:
    options = record.options
    experiment, model = network(record, options.data, steps=options.steps)
    back = record.cells(reverse, {f"reverse, seed {s}": (experiment, model, s, options) for s in range(options.seeds)})
    there = record.cells(forward, {f"forward, seed {s}": (experiment, model, s, options) for s in range(options.seeds)})
    mean, std = experiment.data.moments(experiment.process.chart)
    numbers = {
        "levels": LEVELS,
        "training steps": experiment.one(Train).steps,
        "log x_0": dict(mean=mean, std=std),
        "paths": {name: {k: cell[k] for k in ("times", "levels", "average", "error")} for name, cell in back.items()},
        "errors": there,
    }
    print(f"{'mean square error at noise level':34s}" + "".join(f"{level:>18g}" for level in LEVELS))
    for name in next(iter(there.values())):
        values = np.array([row[name] for row in there.values()])
        print(f"{name:34s}" + "".join(f"{plus_minus(v, 5):>18s}" for v in values.T))
    first, levels = next(iter(back.values())), experiment.data.load().levels
    record.write(numbers, claims=claims(numbers), paths=paths_figure(first, levels), errors=errors_figure(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
