"""Bits per dimension of held-out images: three diffusions and an interpolant, and how the place in a cell is drawn.

Models of digits (8x8, 17 levels) learn from images with uniform places in their cells. The interpolant leads from the Gaussian with
the moments of the data, with quadratic latent noise. Bits are upper bounds in expectation, by the density of the flow: with uniform
places, with places whose law was learned under each model, and with importance weights over several. Last is the bound of the SDE
with uniform places, of epsilon = g^2/2, and of gamma^2 for the interpolant.

Beside them are laws without a network, fitted to the same images: the histogram of every pixel, a Gaussian, and a mixture of
Gaussians. The known law is a mixture in the plane with 8 levels, whose cells have a mass known by the error function. Its model is
exact, so that only the places are in question. MNIST is counted by Hutchinson's estimate, so with one place for each image.
"""

from __future__ import annotations

import jax
import numpy as np
import optax
from scipy import stats

import scorelab as sl
from scorelab import dequantisation, viz
from scorelab.run.figure import Claim, Figure
from scorelab.solvers.epsilons import Proportional, Reverse

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Interpolants have a likelihood by their flow, and a lower bound of it for every SDE that they are sampled with.",
    look_for="Learned places cost less than uniform ones, weights less again, and no bound of the known law is below its bits. "
    "The bound of an SDE needs more bits than the flow of the same networks. A network is worth its cost below the mixture's bits.",
    minutes=dict(small=4, full=None, gpu=None),
    options=dict(data=["digits", "mnist"], n=256, draws=16, steps=8000, width=256, places=1000),
    small=dict(data=["digits"], n=96, draws=8, steps=4000, width=128, places=400),
)

MODELS = ("VP", "EDM", "RF", "interpolant")
WAYS = ("uniform", "uniform, weighted", "learned", "learned, weighted", "SDE, uniform")
TOLERANCE = 1e-3
KNOWN = sl.data.Pixels(levels=8)
WEIGHTS = np.array([0.3, 0.7])
MEANS, STDS = np.array([[-0.6, 0.1], [0.3, 0.5]]), np.array([[0.1, 0.2], [0.15, 0.08]])


def scale(data):
    return sl.data.Pixels(levels=sl.data.load(data).levels)


def images(data, n=None):
    """Training images and held-out ones, uint8."""
    train, test = (sl.data.load(data, split).x for split in ("train", "test"))
    rows = np.linspace(0, len(test) - 1, min(n or len(test), len(test))).round().astype(int)
    return train, test[np.unique(rows)]


def gaussian(data):
    """The Gaussian with the moments of images at uniform places."""
    train, _ = images(data)
    y = np.asarray(scale(data).dequantise(jax.random.key(0), train[:20_000]), np.float64)
    return sl.densities.Gaussian.from_data(y)


def process_of(name, data):
    if name == "interpolant":
        return sl.processes.StochasticInterpolant(gamma=sl.processes.gammas.Quadratic(), base=gaussian(data))
    schedules = dict(VP=sl.schedules.VPLinear(), EDM=sl.schedules.EDM(), RF=sl.schedules.RectifiedFlow())
    return sl.processes.Gaussian(schedule=schedules[name])


def network(data, options):
    if data == "digits":
        return sl.models.nets.MLP(width=options.width, depth=3)
    return sl.models.nets.UNet(channels=(32, 64, 64), blocks=1, attention=(False, False, True), heads=2, loop_safe=True)


def trained(name, data, options):
    """A model, from images at uniform places."""
    process, net = process_of(name, data), network(data, options)
    train, _ = images(data)
    std = float(np.std(np.asarray(scale(data).encode(train[:5000]))))
    if name == "interpolant":
        denoiser = sl.models.InterpolantField(net=net, process=process, data_std=std, base_std=std)
        loss = sl.losses.InterpolantMatching(process)
    else:
        predict = dict(VP="v", EDM="edm", RF="flow")[name]
        weighting = dict(VP=sl.losses.VWeighting(), EDM=sl.losses.EDMWeighting(data_std=std), RF=sl.losses.FlowWeighting())[name]
        times = sl.losses.LogNormalTimes() if name == "EDM" else sl.losses.UniformTimes()
        denoiser = sl.models.Denoiser(net=net, process=process, predict=predict, data_std=std)
        loss = sl.losses.DenoisingScoreMatching(process, weighting=weighting, times=times)
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-3, options.steps))
    learner = sl.training.ScoreLearner(denoiser, loss, optimiser, ema=sl.training.EMA(decay=0.999))
    batches = sl.data.Dequantised(sl.data.Batches({"x": train}, batch_size=128))
    state = sl.training.fit(
        learner, sl.training.Prepared(batches, transform=scale(data)), steps=options.steps, key=jax.random.key(0)
    )
    return learner.model(state)


def summary(found, draws) -> dict:
    """Of the bits with so many draws."""
    return spread(found.bits_of(draws))


def spread(bits) -> dict:
    """Mean and standard error over images, bits per dimension."""
    bits = np.asarray(bits, np.float64)
    return dict(mean=float(bits.mean()), error=float(bits.std(ddof=1) / np.sqrt(len(bits))))


def counted(model, x, transform, options, *, weighted, grid, epsilon, learn, tolerance=TOLERANCE, **start) -> dict:
    """The bits of held-out ``x`` in every way; ``learn`` are the images that the law of places is learned on."""
    key, common = jax.random.key(1), dict(rtol=tolerance, atol=tolerance, **start)
    # Images of MNIST have too many pixels for an MLP.
    net = sl.models.nets.MLP(width=128, depth=2) if weighted else sl.models.nets.UNet(channels=(16, 32), blocks=1)
    law = dequantisation.LogitLogistic(net=net)
    places, _ = dequantisation.fit(law, model, learn, transform, key=jax.random.key(2), steps=options.places)
    how = dict(draws=options.draws) if weighted else dict(probes=4)
    rows, flow = {}, np.zeros(len(x))
    for name, q in (("uniform", None), ("learned", places)):
        found = sl.bits_per_dim(model, x, transform, key=key, places=q, **how, **common)
        # The first draw of the flow is that of the SDE.
        flow = flow if q is not None else found.log_weights[:, 0]
        rows[name] = summary(found, 1)
        if weighted:
            rows[f"{name}, weighted"] = summary(found, options.draws)
    probes = dict(probes=0 if weighted else 4)
    found = sl.bits_per_dim(model, x, transform, key=key, grid=grid, epsilon=epsilon, **probes, **start)
    rows["SDE, uniform"] = summary(found, 1)
    rows["SDE minus flow"] = spread((flow - found.log_weights[:, 0]) / (x[0].size * np.log(2)))
    return rows


def measure(name, data, options) -> dict:
    """The bits of held-out images under one model."""
    model, (train, test) = trained(name, data, options), images(data, options.n)
    interpolant = name == "interpolant"
    grid = sl.grids.Arcsine(100) if interpolant else sl.grids.LogSNR(100, t_max=0.999 if name == "RF" else None)
    epsilon = Proportional(1.0) if interpolant else Reverse()
    return counted(model, test, scale(data), options, weighted=data == "digits", grid=grid, epsilon=epsilon, learn=train)


def known(options) -> dict:
    """The bits of a law in the plane: exact, and in every way under its exact model."""
    law = sl.densities.GaussianMixture(WEIGHTS, MEANS, STDS**2)
    process = sl.processes.Gaussian(schedule=sl.schedules.EDM(sigma_min=0.01, sigma_max=20.0))
    draw = lambda seed, n: np.asarray(KNOWN.decode(law.sample(jax.random.key(seed), n)))
    test, learn = draw(3, 8 * options.n), draw(4, 4000)
    rows = counted(
        sl.models.ExactModel(law, process), test, KNOWN, options, weighted=True, grid=sl.grids.LogSNR(100), epsilon=Reverse(),
        learn=learn, start=sl.starts.Noised(law), tolerance=1e-5,
    )  # fmt: skip
    ends = [-1 + 2 / 8 * (test[:, None].astype(float) + side) for side in (0, 1)]
    below, above = (stats.norm.cdf((e - MEANS) / np.hypot(STDS, 0.01)) for e in ends)
    bits = -np.log2(np.prod(above - below, axis=2) @ WEIGHTS) / 2
    return rows | dict(exact=spread(bits))


def plain(data, options) -> dict:
    """Laws without a network, fitted to the training images: bits of the same held-out images."""
    (train, test), transform = images(data, options.n), scale(data)
    size = test[0].size
    counts = np.ones((transform.levels, size))
    for level in range(transform.levels):
        counts[level] += (train.reshape(-1, size) == level).sum(0)
    code = -np.log2(counts / counts.sum(0))
    bits = code[test.reshape(-1, size), np.arange(size)].mean(1)
    rows = {"histogram of every pixel": dict(exact=spread(bits))}
    y = np.asarray(transform.dequantise(jax.random.key(0), train[:20_000]), np.float64)
    laws = {"Gaussian": sl.densities.Gaussian.from_data(y), "20 Gaussians": sl.densities.GaussianMixture.fit(y, 20, floor=1e-3)}
    draws = 16 * options.draws
    for name, law in laws.items():
        at = jax.jit(lambda key, law=law: law.log_prob(transform.dequantise(key, test)))
        log_prob = np.stack([np.asarray(at(key), np.float64) for key in jax.random.split(jax.random.key(5), draws)])
        single = np.asarray(transform.bits_per_dim(log_prob, test.shape[1:])).mean(0)
        most = np.logaddexp.reduce(log_prob, axis=0) - np.log(draws)
        rows[name] = {
            "uniform": spread(single),
            "uniform, weighted": spread(np.asarray(transform.bits_per_dim(most, test.shape[1:]))),
        }
    return rows


def picture(rows: dict):
    """Bits of every model in every way; what has one number alone is a line."""
    bits = {f"{name}: {way}": [row[way]["mean"]] for name, row in rows.items() for way in WAYS if way in row}
    return viz.dots(
        bits, xlabel="bits per dimension", reference={n: row["exact"]["mean"] for n, row in rows.items() if "exact" in row}
    )


def pictures(numbers: dict) -> dict:
    """The known law, and one picture for each data set."""
    law = numbers["known law"]
    rows = {"exact model": {way: law[way] for way in WAYS}, "the bits of the law": {"exact": law["exact"]}}
    return {"known_law": picture(rows)} | {name: picture(found) for name, found in numbers.items() if name != "known law"}


def claims(numbers: dict) -> list[Claim]:
    """Spreads are over models, or standard errors over images."""
    law, digits = numbers["known law"], numbers.get("digits")
    above = {way: law[way]["mean"] - law["exact"]["mean"] for way in WAYS}
    # One draw for each point stands for the SDE, and its error is that of the mean.
    closed = above["learned, weighted"] < 0.25 * above["uniform"] and min(above.values()) > -0.003
    listed = lambda values: ", ".join(f"{name} {value:.3f}" for name, value in values.items())
    more = law["SDE minus flow"]
    same = abs(more["mean"]) < 4 * more["error"] + 0.005
    found = [
        Claim(
            says="No bound is below the bits of a known law, and learned places and weights close the gap.",
            value=above["learned, weighted"],
            spread=0.0,
            unit="bits per dimension above the exact ones",
            verdict="reproduced" if closed else "not reproduced",
            why=f"Exact {law['exact']['mean']:.3f}; above it {listed(above)}. The limit is a quarter of the gap of uniform places.",
        ),
        Claim(
            says="With the exact score the bound of the SDE is the likelihood of the flow.",
            value=more["mean"],
            spread=more["error"],
            unit="bits per dimension more than the flow at the same places",
            verdict="reproduced" if same else "not reproduced",
            why="Four standard errors and .005 for the 100 steps are allowed.",
        ),
    ]
    if digits is None:
        return found
    mean = lambda way: np.array([digits[name][way]["mean"] for name in MODELS])
    uniform, weighted, learned, both, _ = (mean(way) for way in WAYS)
    falls = (uniform > learned) & (learned > both) & (uniform > weighted)
    gain, more = uniform - both, mean("SDE minus flow")
    density = min(digits[name]["uniform, weighted"]["mean"] for name in ("Gaussian", "20 Gaussians"))
    table = digits["histogram of every pixel"]["exact"]["mean"]
    best = min(density, table)
    return [
        *found,
        Claim(
            says="Learned places and weights count fewer bits of images, under every model.",
            value=gain.mean(),
            spread=gain.std(ddof=1),
            unit="bits per dimension fewer than with uniform places",
            verdict="reproduced" if falls.all() else "in shape" if np.all(gain > 0) else "not reproduced",
            why=f"In this order under {falls.sum()} of {len(falls)} models, which stay as they were trained, on uniform places.",
        ),
        Claim(
            says="The SDE of learned fields has a lower bound of its likelihood.",
            value=more.mean(),
            spread=more.std(ddof=1),
            unit="bits per dimension more than the flow at the same places",
            verdict="not comparable",
            why=f"A bound of another law than that of the flow: {listed(dict(zip(MODELS, more, strict=True)))}.",
        ),
        Claim(
            says="Networks need fewer bits than laws without one.",
            value=best - both.min(),
            spread=0.0,
            unit="bits per dimension, the best network below the best law without one",
            verdict="reproduced" if both.min() < best else "in shape" if both.min() < density else "not reproduced",
            why=f"{listed(dict(zip(MODELS, both, strict=True)))}; the best density without a network {density:.3f}, the histogram "
            f"{table:.3f}. Many pixels are never other than 0: a table of levels has them for nothing, "
            "and a density on whole cells pays for their edges.",
        ),
    ]


def main(record) -> None:
    o = record.options
    numbers = {"known law": record.cell("known law", known, o)}
    for data in o.data:
        try:
            sl.data.load(data)
        except sl.data.DataNotFound as error:
            print(f"{data} is left out: {error}")
            continue
        numbers[data] = record.cell(f"{data}, plain", plain, data, o)
        numbers[data] |= {
            n.split(", ")[1]: v for n, v in record.cells(measure, {f"{data}, {n}": (n, data, o) for n in MODELS}).items()
        }
    for name, rows in numbers.items():
        for row, ways in ({name: rows} if name == "known law" else rows).items():
            print(f"{row:>26}", {way: f"{v['mean']:.3f} +- {v['error']:.3f}" for way, v in ways.items()})
    record.write(numbers, claims=claims(numbers), **pictures(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
