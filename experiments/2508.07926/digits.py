"""Few digits: score augmentation beside augmented clean data and none, by held-out loss, samples and copies.

One network for all methods, a condition of transforms included. It is trained on N images of the 8x8 digits (or of MNIST) and
sampled with nothing done to them. A quarter to a sixth of the examples are left as they are. Losses are of untransformed data,
weighted as in the training. The gap is that of held-out data less that of the training data. The Frechet distance is one to
held-out images, in the features of the stored classifier. Copies: the ratio of the distances to the nearest training image, of
samples and of held-out images.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
import optax

import scorelab as sl
from scorelab import diagnostics, losses, metrics, viz
from scorelab.models import nets
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Diffusion models overfit where data are few. Transforms of noised data mitigate it, and gain more than augmentation of "
    "clean data.",
    look_for="Without augmentation the held-out loss turns and rises, and with few images samples become copies. The two methods "
    "that are told of the same transforms, before and after the noise, are alike. The Frechet distance is best where copies are "
    "most.",
    minutes=dict(small=1.5, full=14, gpu=None),
    options=dict(data=("digits", "mnist"), seeds=3, steps=6000, sizes=[50, 200, 1000], n=500),
    small=dict(seeds=1, steps=1500, sizes=[50, 200]),
)

PROCESS = sl.processes.Gaussian(schedule=sl.schedules.EDM())
# Of the largest N; what is left of the training split is held out.
MOST = 1000
BATCH = 50


def transforms(side: int) -> tuple[losses.LinearTransform, ...]:
    return (
        losses.Rotation(),
        losses.Flip(),
        losses.Brightness(2.0),
        losses.Translation(side // 8),
        losses.Cutout(3 * side // 8),
    )


@functools.cache
def images(name: str, seed: int):
    """All images in the order of a seed, encoded and stored: the first ``MOST`` to train on, and those held out."""
    arrays = sl.data.load(name)
    rows = np.random.default_rng(seed).permutation(len(arrays))[: MOST + 800]
    scale = sl.data.Pixels(levels=arrays.levels)
    stored = arrays.x[rows[:MOST]], np.concatenate([arrays.x[rows[MOST:]], sl.data.load(name, "test").x])[:800]
    return tuple(np.asarray(scale.encode(x)) for x in stored), stored, scale


@functools.cache
def learners(name: str, steps: int) -> dict[str, sl.training.ScoreLearner]:
    """One for each method; compared by identity, so that every size and seed has the same program."""
    (train, _), _, _ = images(name, 0)
    std, all_of = float(f"{train.std():.3g}"), transforms(train.shape[1])
    weighting = losses.EDMWeighting(data_std=std)
    plain = losses.DenoisingScoreMatching(PROCESS, weighting=weighting, times=losses.LogNormalTimes(stratified=True))
    methods = {
        "none": plain,
        "clean": losses.ScoreAugmented(plain, all_of, member=None, before=True),
        "clean, told": losses.ScoreAugmented(plain, all_of, before=True),
        "score": losses.ScoreAugmented(plain, all_of),
        "score, brightness": losses.ScoreAugmented(plain, all_of[2:3]),
    }
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 100, steps, 1e-5)
    optimizer, found = optax.adam(rate), {}
    for method, loss in methods.items():
        size = loss.size if method == "score, brightness" else sum(each.size for each in all_of)
        told = nets.Composite(augmentation=nets.Augmentation(size))
        net = nets.UNet(channels=(16, 32, 32), blocks=1, attention=(False, False, True), condition=told)
        if name == "digits":
            net = nets.MLP(width=256, depth=3, condition=told)
        denoiser = sl.models.Denoiser(net=net, process=PROCESS, data_std=std)
        found[method] = sl.training.ScoreLearner(denoiser, loss, optimizer, ema=sl.training.EMA(decay=0.995))
    return found


@functools.partial(jax.jit, static_argnums=0)
def _errors(loss, model, key, x):
    return loss(key, model, {"x": x, "cond": None})


def loss_of(loss, model, x: np.ndarray) -> float:
    """The mean loss of untransformed data, each image at about 4000 / n noise levels."""
    rows = np.resize(np.arange(len(x)), 4000)
    return float(np.mean(_errors(loss, model, jax.random.key(7), x[rows])))


def measure(method: str, size: int, seed: int, options) -> dict:
    """Losses along the training, and what samples are at its end."""
    (train, held), (_, stored), scale = images(options.data, seed)
    learner, train = learners(options.data, options.steps)[method], train[:size]
    plain = learners(options.data, options.steps)["none"].loss
    batches = sl.data.Batches({"x": train}, batch_size=BATCH, seed=seed)
    state, marks, curves = None, np.unique(np.geomspace(100, options.steps, 8).round().astype(int)), []
    for step in marks:
        state = sl.training.fit(learner, batches, steps=int(step), key=jax.random.key(seed), state=state)
        model = learner.model(state)
        curves.append([loss_of(plain, model, x) for x in (train, held)])
    out = sl.sample(
        model,
        solver=sl.solvers.Heun(),
        grid=sl.grids.Karras(18),
        key=jax.random.key(100 + seed),
        shape=(options.n, *train.shape[1:]),
    )
    drawn = np.asarray(scale.decode(out.x))
    nearest = diagnostics.memorisation(np.asarray(scale.encode(drawn)), train, held)
    curves = np.array(curves).T
    return dict(
        steps=marks, train=curves[0], held_out=curves[1], loss=curves[1, -1], best=curves[1].min(),
        gap=curves[1, -1] - curves[0, -1],
        frechet=metrics.frechet(drawn, stored, metrics.small_cnn(options.data)).value,
        ratio=nearest.ratio, copied=nearest.copied, copied_floor=nearest.copied_floor, nearest=nearest.nearest,
        nearest_floor=nearest.nearest_floor, shown=drawn[:12],
    )  # fmt: skip


def floor(seed: int, options) -> float:
    """The Frechet distance of as many other images to the held-out ones."""
    (_, _), (train, held), _ = images(options.data, seed)
    return metrics.frechet(train[: options.n], held, metrics.small_cnn(options.data)).value


def figure(found: dict, sizes: list[int], floors: np.ndarray):
    """The four numbers over the number of images, a dot for each seed."""
    titles = {
        "loss": "held-out loss",
        "gap": "held-out less training loss",
        "frechet": "Frechet distance",
        "ratio": "distance to training images",
    }
    content = []
    for what, title in titles.items():
        series = {
            method: (np.array(sizes), np.array([[cell[what] for cell in by[size]] for size in sizes]))
            for method, by in found.items()
        }
        fixed = {"frechet": floors.mean(), "ratio": 1.0}.get(what)
        if fixed is not None:
            series["held-out images"] = (np.array(sizes), np.full(len(sizes), fixed))
        label = dict(xlabel="training images", logx=True, logy=what in ("frechet",), mean=True, markers=True)
        content.append(viz.Panel(series=series, title=title, **label))
    return viz.panels(content, columns=2, reference=("held-out images",), width=8.0, height=2.8)


def curves(found: dict, sizes: list[int]):
    """The held-out loss along the training, a mean over the seeds."""
    content = [
        viz.Panel(
            series={m: (by[size][0]["steps"], np.mean([cell["held_out"] for cell in by[size]], axis=0)) for m, by in found.items()},
            title=f"{size} images", xlabel="updates", ylabel="held-out loss", logx=True, logy=True, markers=True,
        )
        for size in sizes
    ]  # fmt: skip
    return viz.panels(content, width=3.2 * len(sizes), height=2.8)


def claims(found: dict, sizes: list[int]) -> list[Claim]:
    """What the paper says, at each number of images; spreads are over seeds."""
    of = lambda method, size, what: np.array([cell[what] for cell in found[method][size]])
    spread = lambda values: values.std(ddof=values.size > 1)
    listed = lambda a, b, what: ", ".join(f"N = {n}: {of(a, n, what).mean():.3g} beside {of(b, n, what).mean():.3g}" for n in sizes)
    few = sizes[0]
    rise = of("none", few, "loss") / of("none", few, "best")
    gain = of("score", few, "gap") / of("none", few, "gap")
    new = np.stack([of("score", size, "loss") / of("clean, told", size, "loss") for size in sizes])
    low, high = new.mean(1).min(), new.mean(1).max()
    return [
        Claim(
            says="Diffusion models overfit where data are few.", value=rise.mean(), spread=spread(rise),
            unit=f"held-out loss at the end over its least, without augmentation, {few} images",
            verdict="reproduced" if rise.min() > 1.1 else "not reproduced",
            why="Nearest distances of samples over those of held-out images, without and with score augmentation: "
            f"{listed('none', 'score', 'ratio')}.",
        ),
        Claim(
            says="Transforms of noised data mitigate overfitting.", value=gain.mean(), spread=spread(gain),
            unit=f"of the gap without augmentation, {few} images",
            verdict="reproduced" if gain.max() < 0.5 else "in shape" if gain.max() < 1 else "not reproduced",
            why=f"Held-out loss of score augmentation and of none: {listed('score', 'none', 'loss')}; Frechet distance: "
            f"{listed('score', 'none', 'frechet')}.",
        ),
        Claim(
            says="They gain more than augmentation of clean data.", value=new.mean(), spread=spread(new.mean(0)),
            unit="held-out loss over that of the same transforms before the noise, told to the network; mean over N",
            verdict="reproduced" if high < 0.97 else "not reproduced" if low > 0.97 else "in shape",
            why=f"By N: {', '.join(f'{value:.3f}' for value in new.mean(1))}. Frechet distance: "
            f"{listed('score', 'clean, told', 'frechet')}.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o = record.options
    sizes, names = sorted(o.sizes), list(learners(o.data, o.steps))
    wanted = {f"{m}, {n} images, seed {s}": (m, n, s, o) for n in sizes for m in names for s in range(o.seeds)}
    cells = record.cells(measure, wanted)
    floors = np.array([record.cell(f"held-out images, seed {s}", floor, s, o) for s in range(o.seeds)])
    found = {m: {n: [cells[f"{m}, {n} images, seed {s}"] for s in range(o.seeds)] for n in sizes} for m in names}
    for method, by in found.items():
        for size, of in by.items():
            told = {k: np.mean([cell[k] for cell in of]) for k in ("loss", "best", "gap", "frechet", "ratio", "copied", "nearest")}
            print(f"{method}, {size}:", "  ".join(f"{k} {v:.3g}" for k, v in told.items()))
    kept = {
        m: {f"{n}": [{k: v for k, v in cell.items() if k != "shown"} for cell in of] for n, of in by.items()}
        for m, by in found.items()
    }
    shown = {f"{m}, {n}": found[m][n][0]["shown"] for n in sizes for m in names}
    levels = images(o.data, 0)[2].levels
    record.write(
        {"frechet_floor": floors, **kept}, claims=claims(found, sizes), quality=figure(found, sizes, floors),
        losses=curves(found, sizes),
        samples=viz.image_grid(np.concatenate(list(shown.values())), levels=levels, columns=12, rows=list(shown), width=6.0),
    )  # fmt: skip


if __name__ == "__main__":
    FIGURE.make(main)
