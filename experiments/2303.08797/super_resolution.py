"""Images from averages over blocks of 4 x 4: a paired bridge beside conditional diffusion, at equal cost.

The bridge begins at the averages, repeated over their blocks: a point for each condition, which a Brownian latent noise of about
the deviation of the pixels spreads (epsilon = k^2 / 2). The diffusion begins in noise (EDM, Heun's rule). Both networks are of one
architecture and are shown the averages; they are trained with as many steps and calls of the network. The bridge sees every
example with the noise and with its mirror image, so half as many of them. They are sampled with as many calls, but for one: the
first step of the bridge has a single one.

The error of the averages; the Frechet distance of the features of the stored classifier; and the spread: the distance of two
samples of one condition over that of a sample and the image itself, root mean squares. Samples of the exact law given the averages
have a spread of 1.
"""

from __future__ import annotations

import jax
import numpy as np

import scorelab as sl
from scorelab import viz
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="",
    claims="A bridge connects any two laws, where diffusion has to begin in noise: it may begin near the data.",
    look_for="At the fewest calls the bridge keeps to its averages where diffusion does not. From nine calls on diffusion is the "
    "better one. The bridge hardly changes with the number of calls: what is left is the error of its network.",
    minutes=dict(small=2.5, full=60, gpu=None),
    options=dict(data=("digits", "mnist"), seeds=3, steps=6000, n=1000, repeats=4),
    small=dict(seeds=2, steps=1200, n=297, repeats=4),
)

CONFIGS = {"bridge": "paper/2303.08797/super_resolution", "diffusion": "digits/super_resolution"}
BATCH = {"bridge": 32, "diffusion": 64}
STEPS = (3, 5, 9, 18)
SHOWN = 10
LARGE = (
    "data.Named.name = 'mnist'", "data.Pixels.levels = 256", "NET = @nets.UNet()", "nets.UNet.channels = (16, 32, 32)",
    "nets.UNet.attention = (False, False, True)", "nets.UNet.condition = %CONDITION",
)  # fmt: skip


def network(record, method, seed):
    """The experiment and its model, trained."""
    o = record.options
    cost = [f"STEPS = {o.steps}", f"experiment.Train.batch_size = {BATCH[method]}", "experiment.Train.previews = 0"]
    # The bridge has no dropped conditions either.
    own = ["losses.DenoisingScoreMatching.condition_dropout = None"] if method == "diffusion" else []
    sets = [*cost, *own, *(LARGE if o.data == "mnist" else ()), f"experiment.Experiment.seed = {seed}"]
    # The defaults of a config need no override, and are refused as one.
    sets = [each for each in sets if each not in ("experiment.Train.batch_size = 64", "experiment.Experiment.seed = 0")]
    experiment, state = record.trained(f"{method}, {o.data}, seed {seed}", CONFIGS[method], *sets)
    return experiment, experiment.learner.model(state)


def subject(experiment, n):
    """Rows of the test split, their conditions, and the images themselves as stored."""
    rows = np.random.default_rng(0).permutation(len(experiment.data.load("test")))[:n]
    return rows, experiment.data.condition_of(rows, "test"), experiment.data.load("test").x[rows]


def measure(experiment, model, method, seed, options) -> dict:
    """Errors, distances and spreads by calls of the network, and the first samples of each number of calls."""
    data = experiment.data
    rows, cond, truth = subject(experiment, options.n)
    features, n = sl.metrics.small_cnn(options.data), len(rows)
    again = np.tile(np.arange(n), options.repeats)
    coarse = data.load("test").more["coarse"][rows].astype(np.float64)
    as_numbers = lambda stored: np.asarray(data.transform.encode(stored), np.float64)
    images, found, shown = data.load().x, {}, {}
    # Two samples differ by twice their variance, of which the mean square about the mean of m has m - 1 of m parts.
    unbiased, start = options.repeats / (options.repeats - 1), None
    if method == "bridge":
        start = sl.starts.Fixed(data.load("test").more["base"][rows][again])
    for steps in STEPS:
        grid = sl.grids.Arcsine(steps) if method == "bridge" else sl.grids.Karras(steps)
        solver = experiment.one(sl.experiment.Sample).solver if method == "bridge" else sl.solvers.Heun()
        out = sl.sample(
            model, solver=solver, grid=grid, start=start, key=jax.random.key(10 + seed), cond=np.asarray(cond)[again],
            shape=(len(again), *truth.shape[1:]), chunk=500,
        )  # fmt: skip
        calls = str(int(out.diagnostics["model_calls"]))
        x = np.asarray(data.transform.decode(out.x)).reshape(options.repeats, n, *truth.shape[1:])
        numbers = as_numbers(x)
        averages = np.stack([data.dataset.of(each, data.load().levels) for each in x])
        apart = numbers - numbers.mean(0)
        found[calls] = dict(
            coarse=float(np.sqrt(np.mean((averages - coarse) ** 2))),
            frechet=sl.metrics.frechet(x[0], images, features).value,
            spread=float(np.sqrt(2 * np.mean(apart**2) * unbiased / np.mean((numbers - as_numbers(truth)) ** 2))),
        )
        shown[calls] = x[:2, :SHOWN]
    floor = sl.metrics.frechet(truth, images, features).value
    return dict(found=found, floor=floor, shown=shown)


def column(rows: list[dict], which: str) -> tuple[np.ndarray, np.ndarray]:
    """Calls of the network, and a number of each seed ``(calls, seeds)``."""
    calls = list(rows[0]["found"])
    return np.array([int(c) for c in calls]), np.array([[row["found"][c][which] for row in rows] for c in calls])


def curves_figure(numbers: dict):
    """The three numbers against the calls of the network; every dot is a seed."""
    names = {"coarse": "error of the averages", "frechet": "Frechet distance", "spread": "spread, 1 of the exact law"}
    content = []
    for which, label in names.items():
        series = {method: column(rows, which) for method, rows in numbers.items()}
        calls = column(next(iter(numbers.values())), which)[0]
        level = {"coarse": None, "frechet": numbers["bridge"][0]["floor"], "spread": 1.0}[which]
        if level is not None:
            series["the data"] = (calls, np.full(len(calls), level))
        panel = dict(xlabel="calls of the network", ylabel=label, mean=True, markers=True, logy=which != "spread")
        content.append(viz.Panel(series=series, **panel))
    return viz.panels(content, columns=3, reference=("the data",), width=9.5, height=2.8)


def samples_figure(numbers: dict, images: dict, levels: int):
    """The averages, two samples of each method at the fewest and at the most calls, and the images themselves."""
    rows, names = [images["averages"]], ["averages"]
    for method in CONFIGS:
        found = list(numbers[method][0]["found"])
        for calls in (found[1], found[-1]):
            for i, each in enumerate(np.asarray(numbers[method][0]["shown"][calls])):
                rows.append(each)
                names.append(f"{method}, {calls} calls" if not i else "again")
    rows.append(images["truth"])
    return viz.image_grid(np.concatenate(rows), levels=levels, columns=SHOWN, rows=[*names, "the image"], width=5)


def claims(numbers: dict) -> list[Claim]:
    """Spreads are over seeds, each of which trains both. Few calls are the second fewest, so that diffusion works at all."""
    of = lambda method, which: column(numbers[method], which)[1]
    spread = lambda values: values.std(ddof=values.size > 1)
    calls = column(numbers["diffusion"], "coarse")[0]
    ratio = {which: of("bridge", which) / of("diffusion", which) for which in ("coarse", "frechet")}
    few, many = ratio["frechet"][1], ratio["frechet"][-1]
    off = np.abs(of("bridge", "spread")[-1] - 1)
    kept = ratio["coarse"][1]
    return [
        Claim(
            says="A bridge that begins near the data needs fewer calls.", value=few.mean(), spread=spread(few),
            unit=f"times the Frechet distance of diffusion has the bridge, {calls[1]} calls",
            verdict="reproduced" if few.mean() + spread(few) < 1 else "not reproduced",
            why=f"{plus_minus(of('bridge', 'frechet')[1], 2)} and {plus_minus(of('diffusion', 'frechet')[1], 2)}, at "
            f"{calls[0]} calls {plus_minus(of('bridge', 'frechet')[0], 2)} and {plus_minus(of('diffusion', 'frechet')[0], 2)}; "
            f"that of the images themselves is {numbers['bridge'][0]['floor']:.2f}.",
        ),
        Claim(
            says="It keeps to its condition at few calls.", value=kept.mean(), spread=spread(kept),
            unit=f"times the error of the averages of diffusion has the bridge, {calls[1]} calls",
            verdict="reproduced" if kept.mean() + spread(kept) < 1 else "not reproduced",
            why=f"{plus_minus(of('bridge', 'coarse')[1])} and {plus_minus(of('diffusion', 'coarse')[1])} of pixels in (-1, 1), at "
            f"{calls[0]} calls {plus_minus(of('bridge', 'coarse')[0])} and {plus_minus(of('diffusion', 'coarse')[0])}.",
        ),
        Claim(
            says="With many calls the two are alike.", value=many.mean(), spread=spread(many),
            unit=f"times the Frechet distance of diffusion has the bridge, {calls[-1]} calls",
            verdict="reproduced" if 0.8 < many.mean() < 1.25 else "not reproduced",
            why=f"{plus_minus(of('bridge', 'frechet')[-1], 2)} and {plus_minus(of('diffusion', 'frechet')[-1], 2)}.",
        ),
        Claim(
            says="Samples of a bridge are as different as the law of the images given the averages has them.",
            value=of("bridge", "spread")[-1].mean(), spread=spread(of("bridge", "spread")[-1]),
            unit=f"of the distance to the image have two samples, {calls[-1]} calls",
            verdict="reproduced" if off.mean() < 0.1 else "in shape" if off.mean() < 0.25 else "not reproduced",
            why=f"1 is exact; diffusion has {plus_minus(of('diffusion', 'spread')[-1], 2)}.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o, numbers, last = record.options, {}, None
    for method in CONFIGS:
        numbers[method] = []
        for seed in range(o.seeds):
            experiment, model = network(record, method, seed)
            found = record.cell(f"{method}, {o.data}, seed {seed}", measure, experiment, model, method, seed, o)
            numbers[method].append(found)
            last = last or experiment
            for calls, values in found["found"].items():
                print(method, seed, calls, {k: round(v, 3) for k, v in values.items()})
    rows, _, truth = subject(last, o.n)
    averages = np.asarray(last.data.transform.decode(last.data.load("test").more["base"][rows][:SHOWN]))
    images = dict(averages=averages, truth=truth[:SHOWN])
    kept = {method: [dict(found=row["found"], floor=row["floor"]) for row in rows] for method, rows in numbers.items()}
    picture = samples_figure(numbers, images, last.data.load().levels)
    record.write(kept, claims=claims(numbers), curves=curves_figure(numbers), samples=picture)


if __name__ == "__main__":
    FIGURE.make(main)
