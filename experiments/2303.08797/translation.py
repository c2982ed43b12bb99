"""Images of one kind become images of another that nobody paired with them, by the flow and with noise.

A bridge between two sets of images, without classes, with the quadratic latent noise; velocity and latent noise are the two heads
of one small network. The digits 0 to 4 become digits 5 to 9; with the data at hand, MNIST becomes Fashion-MNIST, or KMNIST becomes
MNIST. The images that are translated are of the test split. Samples are drawn with noise in proportion to gamma^2; kappa = 0 is the
flow.

KID and the Frechet distance between the features of the results and those of training images of the other kind, by the stored
classifier; the floors are those of as many test images. What is kept of the source: the correlation of the two over pixels about
their means, beside that of results dealt out anew.
"""

from __future__ import annotations

import jax
import numpy as np

import scorelab as sl
from scorelab import viz
from scorelab.run.figure import Claim, Figure, plus_minus
from scorelab.solvers.epsilons import Proportional

FIGURE = Figure(
    __doc__,
    answers="",
    claims="A stochastic interpolant connects any two densities exactly in finite time.",
    look_for="Rows that belong to the other kind. The flow moves a source to one result; with noise the result is nearer to the "
    "law and keeps less of its source.",
    minutes=dict(small=2, full=60, gpu=None),
    options=dict(data=("digits", "mnist_to_fashion", "kmnist_to_mnist"), seeds=3, steps=6000, n=1000, grid=60),
    small=dict(seeds=2, steps=1200, n=150, grid=40),
)

KAPPA = (0.0, 1.0, 4.0, 16.0)
SHOWN = 12
# The base and the data.
SETS = {"mnist_to_fashion": ("mnist", "fashion_mnist"), "kmnist_to_mnist": ("kmnist", "mnist")}
LARGE = (
    "data.Pixels.levels = 256", "NET = @nets.UNet()", "nets.UNet.channels = (16, 32, 32)",
    "nets.UNet.attention = (False, False, True)", "experiment.Evaluate.evaluations = ()",
    "experiment.DataSpec.dataset = @data.Named()", "data.Encoded.source = @origin/data.Named()",
)  # fmt: skip


def network(record, seed):
    """The experiment and its model, trained."""
    o = record.options
    sets = [f"STEPS = {o.steps}", "experiment.Train.previews = 0"] + ([f"experiment.Experiment.seed = {seed}"] if seed else [])
    if o.data in SETS:
        base, data = SETS[o.data]
        sets += [*LARGE, f"data.Named.name = '{data}'", f"origin/data.Named.name = '{base}'"]
    experiment, state = record.trained(f"{o.data}, seed {seed}", "paper/2303.08797/translation", *sets)
    return experiment, experiment.learner.model(state)


def sources(experiment, data, n):
    """Images of the test split of the base, as the process sees them."""
    transform = experiment.data.transform
    if data in SETS:
        test = sl.data.load(SETS[data][0], "test").x
    else:
        test = sl.data.Classes(source=sl.data.Named(name="digits"), classes=(0, 1, 2, 3, 4)).load("test").x
    return np.asarray(transform.encode(test[np.random.default_rng(0).permutation(len(test))[:n]]))


def alike(source, result) -> tuple[float, float]:
    """The correlation of sources and results over pixels about their means, and that of results dealt out anew."""
    x, y = (each.reshape(len(each), -1).astype(np.float64) for each in (source, result))
    x, y = x - x.mean(0), y - y.mean(0)
    correlation = lambda y: float(np.sum(x * y) / np.sqrt(np.sum(x**2) * np.sum(y**2)))
    return correlation(y), correlation(y[np.random.default_rng(0).permutation(len(y))])


def measure(experiment, model, seed, options) -> dict:
    """KID, Frechet distance and what is kept of the source, for every kappa; a few results."""
    data = experiment.data
    x = sources(experiment, options.data, options.n)
    features = sl.metrics.small_cnn(SETS[options.data][1] if options.data in SETS else "digits")
    train = data.load().x

    def judged(images):
        kid = sl.metrics.kid(images, train, features)
        return dict(kid=kid.value, stderr=kid.stderr, frechet=sl.metrics.frechet(images, train, features).value)

    found, shown = {}, {}
    for kappa in KAPPA:
        solver = sl.solvers.InterpolantSDE(epsilon=Proportional(kappa)) if kappa else sl.solvers.InterpolantODE()
        start, grid, key = sl.starts.Fixed(x), sl.grids.Quadratic(options.grid), jax.random.key(10 + seed)
        out = sl.sample(model, solver=solver, grid=grid, start=start, key=key, shape=x.shape, chunk=500)
        images = np.asarray(data.transform.decode(out.x))
        kept, dealt = alike(x, np.asarray(out.x))
        found[f"{kappa:g}"] = judged(images) | dict(kept=kept, dealt=dealt)
        shown[f"{kappa:g}"] = images[:SHOWN]
    test = data.load("test").x
    floor, source = judged(test[: len(x)]), judged(np.asarray(data.transform.decode(x)))
    return dict(found=found, floor=floor, source=source, shown=shown)


def curves_figure(rows: list[dict]):
    """The distances and what is kept, against kappa; every dot is a seed."""
    kappa = np.maximum(np.array(KAPPA), 0.25)
    column = lambda which: np.array([[row["found"][f"{k:g}"][which] for row in rows] for k in KAPPA])
    options = dict(xlabel="kappa (.25 is the flow)", logx=True, mean=True, markers=True)
    series = lambda which, other, values: {"results": (kappa, column(which)), other: (kappa, values)}
    level = lambda which: np.full(len(kappa), rows[0]["floor"][which])
    content = [
        viz.Panel(series=series("kid", "test images", level("kid")), ylabel="KID", **options),
        viz.Panel(series=series("frechet", "test images", level("frechet")), ylabel="Frechet distance", **options),
        viz.Panel(series=series("kept", "dealt out anew", column("dealt")), ylabel="correlation with the source", **options),
    ]
    return viz.panels(content, columns=3, reference=("test images", "dealt out anew"), width=9.5, height=2.8)


def samples_figure(row: dict, source: np.ndarray, levels: int):
    """Sources and their results below them."""
    rows = [source, *(np.asarray(row["shown"][f"{kappa:g}"]) for kappa in KAPPA)]
    names = ["source", "the flow", *(f"kappa = {kappa:g}" for kappa in KAPPA[1:])]
    return viz.image_grid(np.concatenate(rows), levels=levels, columns=SHOWN, rows=names, width=6)


def claims(rows: list[dict]) -> list[Claim]:
    """What is asked of the translation; spreads are over seeds."""
    of = lambda kappa, which: np.array([row["found"][f"{kappa:g}"][which] for row in rows])
    spread = lambda values: values.std(ddof=values.size > 1)
    floor, source = rows[0]["floor"], rows[0]["source"]
    flow = of(0, "frechet")
    best = np.min([of(kappa, "frechet") for kappa in KAPPA[1:]], 0)
    near, gain = (flow - floor["frechet"]) / (source["frechet"] - floor["frechet"]), flow / best
    lost = of(KAPPA[-1], "kept") - of(0, "kept")
    return [
        Claim(
            says="Images become images of the other kind.", value=near.mean(), spread=spread(near),
            unit="of the Frechet distance of the sources above its floor is left by the flow",
            verdict="reproduced" if near.mean() < 0.1 else "in shape" if near.mean() < 0.5 else "not reproduced",
            why=f"A tenth is the limit, and a half that of the shape. Distances are {plus_minus(flow, 2)}, of the "
            f"sources {source['frechet']:.2f}, of test images "
            f"{floor['frechet']:.2f}. KID {plus_minus(of(0, 'kid'))} with floor {floor['kid']:.3f}.",
        ),
        Claim(
            says="Noise makes samples of learned fields better than the flow does.", value=gain.mean(), spread=spread(gain),
            unit="times the Frechet distance of the best kappa has the flow",
            verdict="reproduced" if gain.mean() - spread(gain) > 1 else "in shape" if gain.mean() > 1 else "not reproduced",
            why=f"{plus_minus(best, 2)} and {plus_minus(flow, 2)}.",
        ),
        Claim(
            says="With noise a result keeps less of its source.", value=lost.mean(), spread=spread(lost),
            unit=f"is the correlation with the source above that of the flow, kappa = {KAPPA[-1]:g}",
            verdict="reproduced" if lost.mean() + spread(lost) < 0 else "not reproduced",
            why=f"{plus_minus(of(KAPPA[-1], 'kept'))} and {plus_minus(of(0, 'kept'))}; of results dealt out anew "
            f"{plus_minus(of(0, 'dealt'))}.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o, rows, source, levels = record.options, [], None, 0
    for seed in range(o.seeds):
        experiment, model = network(record, seed)
        rows.append(record.cell(f"{o.data}, seed {seed}", measure, experiment, model, seed, o))
        source = np.asarray(experiment.data.transform.decode(sources(experiment, o.data, o.n)[:SHOWN]))
        levels = experiment.data.load().levels
        for kappa, found in rows[-1]["found"].items():
            print(seed, kappa, {k: round(v, 3) for k, v in found.items()})
    kept = [{k: v for k, v in row.items() if k != "shown"} for row in rows]
    record.write(kept, claims=claims(rows), curves=curves_figure(rows), samples=samples_figure(rows[0], source, levels))


if __name__ == "__main__":
    FIGURE.make(main)
