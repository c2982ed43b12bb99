"""Feynman-Kac correctors with a learned model: guidance of the 8x8 digits, two classes at once, and two exact laws in the plane.

The network is that of `paper/2503.02819/digits`, which the package carries as `digits-edm-classes`. One particle is plain guidance:
a weight that is alone in its population says nothing. All numbers are a mean over sampling seeds of one network, with their
standard deviation. The Frechet distance is that within classes, in the features of the classifier that the package carries.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

import scorelab as sl
from scorelab import fk, metrics, viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Correctors improve classifier-free guidance of a trained image model (EDM2 on ImageNet, by CLIP and ImageReward), from "
    "two particles on.",
    look_for="On the digits the corrected Frechet distance is above that of guidance alone, and more so with more particles: the "
    "weights are mostly the network's own error. Of two classes at once, only 4 and 9 gain images of either.",
    minutes=dict(small=4, full=None, gpu=None),
    options=dict(seeds=3, per_class=64, most=64),
    small=dict(seeds=1, per_class=16, most=4),
)

SCALES, PARTICLES, PAIRS = (1.0, 1.5, 2.0, 3.0, 4.0), (1, 4, 16, 64), ((3, 8), (1, 7), (4, 9), (0, 6))
# Down to a noise of .02, a sixth of a grey level: below it two predictions of one network differ by its own errors only, and the
# weights, which divide by the noise, would add those up.
GRID = sl.grids.Karras(41, t_max=80.0, t_min=0.02)


class Judge:
    """The classifier's view of images, beside known images of every class."""

    def __init__(self, images, label):
        self.features = metrics.small_cnn("digits")
        self.known, self.label = self.features(images), label

    def __call__(self, images, label) -> dict[str, float]:
        """Scores of images whose classes are known: means over the classes."""
        z, probabilities = self.features(images), self.features.class_probabilities(images)
        frechet, vendi = [], []
        for k in range(10):
            known, mine = self.known[self.label == k], z[label == k]
            as_they_are = metrics.Coordinates(id=self.features.id)
            frechet.append(metrics.frechet(mine, known, as_they_are).value)
            vendi.append(metrics.vendi(mine, centre=self.known.mean(0), q=2).value)
        own = probabilities[np.arange(len(label)), label]
        return dict(
            frechet=np.mean(frechet), accuracy=np.mean(probabilities.argmax(1) == label), confidence=np.mean(own),
            vendi=np.mean(vendi), distinct=len(np.unique(images.reshape(len(images), -1), axis=0)) / len(images),
        )  # fmt: skip


@functools.cache
def digits():
    """The shipped network of the digits."""
    return sl.pretrained.load("digits-edm-classes")


@functools.cache
def judge() -> Judge:
    return Judge(digits().data().x, digits().data().label)


def decoded(x) -> np.ndarray:
    return np.asarray(digits().transform.decode(x))


def floor(options) -> dict[str, float]:
    """The scores of training images in the place of samples, against the others."""
    train = digits().data()
    order = np.random.default_rng(0).permutation(len(train))
    chosen = np.concatenate([order[train.label[order] == k][: options.per_class] for k in range(10)])
    rest = np.setdiff1d(order, chosen)
    return Judge(train.x[rest], train.label[rest])(train.x[chosen], train.label[chosen])


def summary(rows: list[dict]) -> dict:
    """Mean and standard deviation over the seeds."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: [float(np.mean(values)), float(np.std(values, ddof=len(values) > 1))] for name, values in columns.items()}


def health(out, groups: int, particles: int) -> dict[str, float]:
    """Effective sizes and ancestors as shares of a population."""
    found = out.diagnostics
    return dict(
        min_ess=np.mean(np.asarray(found["ess"]).reshape(groups, -1).min(1)) / particles,
        roots=np.mean(np.asarray(found["unique_roots"])) / particles,
    )  # fmt: skip


def walk(corrected, particles, count, seed, cond=None, event=(8, 8, 1)):
    """Equally weighted samples: each population is resampled at its end."""
    solver = fk.FeynmanKac(
        base=sl.solvers.DPMSolverPP(order=2, eta=1.0), potential=corrected.potential, particles=particles, resample_final=True
    )
    options = dict(start=corrected.start, key=jax.random.key(seed), shape=(count, *event), cond=cond, chunk=count)
    return sl.sample(corrected.model, solver=solver, grid=GRID, **options)


def guidance(options, particles: int, scale: float) -> dict:
    """Guidance with weights, and the images of the first seed."""
    label, found, shown = np.repeat(np.arange(10), options.per_class), [], None
    corrected = fk.geometric(digits().model, digits().model, scale)
    for seed in range(options.seeds):
        out = walk(corrected, particles, len(label), seed, cond=label)
        images = decoded(out.x)
        shown = images if shown is None else shown
        found.append(judge()(images, label) | health(out, len(label) // particles, particles))
    return told(found) | dict(images=shown)


def apart(options, particles: int) -> dict:
    """One sample from each of as many populations as there are images: what the weights do, without what copies do."""
    label, found = np.repeat(np.arange(10), options.per_class), []
    corrected = fk.geometric(digits().model, digits().model, 2.0)
    for seed in range(options.seeds):
        out = walk(corrected, particles, len(label) * particles, seed, cond=np.repeat(label, particles))
        # Which copy is as good as any: the samples of a population are exchangeable but for their order.
        place = np.random.default_rng(seed).integers(particles, size=len(label))
        images = decoded(out.x[place + particles * np.arange(len(label))])
        found.append(judge()(images, label) | health(out, len(label), particles))
    return told(found)


def pair(options, a: int, b: int, particles: int) -> dict:
    r""":math:`\sqrt{q_a q_b}`: images that two classes both allow, which the classifier must be torn between."""
    n, found, shown = 4 * options.per_class, [], None
    experts = [sl.models.Conditioned(model=digits().model, cond=jnp.asarray(k, jnp.int32)) for k in (a, b)]
    corrected = fk.weighted(experts, [0.5, 0.5], anchor="score")
    for seed in range(options.seeds):
        out = walk(corrected, particles, n, seed)
        images = decoded(out.x)
        shown = images if shown is None else shown
        p = judge().features.class_probabilities(images)
        torn = np.mean(np.minimum(p[:, a], p[:, b]))
        seen = dict(either=np.mean(p[:, a] + p[:, b]), torn=torn, share=np.mean(p[:, a]))
        found.append(seen | health(out, n // particles, particles))
    return told(found) | dict(images=shown)


def plane(options, anchor: str, particles: int, n: int) -> dict:
    """The product of two mixtures of four Gaussians, against the masses of its sixteen Gaussians."""
    process = sl.processes.Gaussian(schedule=sl.schedules.EDM())
    rng, found = np.random.default_rng(1), []
    laws = [sl.densities.GaussianMixture(np.ones(4), rng.uniform(-2, 2, (4, 2)), np.full(4, s**2)) for s in (0.5, 0.8)]
    models = [sl.models.ExactModel(law, process) for law in laws]
    noise = float(process.sigma(0.02)) ** 2
    means, v = [np.asarray(law.components.mean, np.float64) for law in laws], [0.25 + noise, 0.64 + noise]
    gap = ((means[0][:, None] - means[1]) ** 2).sum(-1).ravel()
    mass = np.exp(-0.5 * gap / sum(v))
    centres = ((means[0][:, None] * v[1] + means[1] * v[0]) / sum(v)).reshape(-1, 2)
    mean = mass @ centres / mass.sum()
    second = mass @ (centres**2) / mass.sum() + v[0] * v[1] / sum(v)
    log_z = np.log(mass.sum() / 16 / (2 * np.pi * sum(v)))
    corrected = fk.product(models, anchor=anchor)
    for seed in range(options.seeds):
        out = walk(corrected, particles, n, seed, event=(2,))
        x, z = np.asarray(out.x, np.float64), np.exp(np.asarray(out.log_z, np.float64) - log_z)
        errors = np.abs(x.mean(0) - mean).max(), np.abs((x**2).mean(0) - second).max()
        found.append(dict(mean=errors[0], second=errors[1], z=np.mean(z)) | health(out, n // particles, particles))
    return told(found)


def told(found: list[dict]) -> dict:
    """The numbers of every seed as their means and deviations, which are printed."""
    numbers = summary(found)
    print("  ".join(f"{k} {m:.3f} ± {s:.3f}" for k, (m, s) in numbers.items()), flush=True)
    return dict(numbers=numbers)


def claims(numbers: dict) -> list[Claim]:
    """Whether weights make guidance better, and two classes at once more alike to both."""
    guided, both = numbers["guidance"], numbers["pairs"]
    few = min((name for name in guided if name != "1"), key=int)
    pairs = [(np.array(row["frechet"]), np.array(guided["1"][scale]["frechet"])) for scale, row in guided[few].items()]
    best, spread = min((a[0] / b[0], a[0] / b[0] * np.hypot(a[1] / a[0], b[1] / b[0])) for a, b in pairs)
    torn = np.array([[row["torn"][0] for row in rows.values()] for rows in both.values()])
    gains = torn[:, 1] - torn[:, 0]
    return [
        Claim(
            says="Weights improve classifier-free guidance of a trained network, from few particles on.", value=best, spread=spread,
            unit=f"of the Frechet distance of guidance alone, with {few} particles, at the best of {len(pairs)} scales",
            verdict="reproduced" if best + 2 * spread < 1 else "not reproduced",
            why="A small network of ten classes in the place of EDM2: its weights are mostly its own error (2503.02819/learned).",
        ),
        Claim(
            says="Weights bring samples of two conditions at once nearer to what both allow.", value=gains.mean(),
            spread=gains.std(ddof=1),
            unit="more of the smaller of the two class probabilities, mean over four pairs of digits",
            verdict="in shape" if gains.mean() > gains.std(ddof=1) else "not reproduced",
            why="Digits in the place of molecules; in shape where the gain exceeds two standard errors over the pairs.",
        ),
    ]  # fmt: skip


def guidance_figure(rows, floor):
    """Scores against the scale, a line for every number of particles."""
    content = []
    for score, title in (("frechet", "Frechet distance within classes"), ("accuracy", "accuracy"), ("vendi", "Vendi (q = 2)")):
        start, series = rows["1"]["1"], {}
        for particles in map(int, rows):
            mine = {"1": start} | rows[f"{particles}"]
            name = "guidance alone" if particles == 1 else f"{particles} particles"
            series[name] = (np.array(SCALES), np.array([mine[f"{s:g}"][score][0] for s in SCALES]))
        series["training images"] = (np.array(SCALES), np.full(len(SCALES), floor[score]))
        content.append(viz.Panel(series=series, title=title, xlabel="guidance scale", markers=True))
    return viz.panels(content, reference=("training images",), width=9.5, height=2.8)


def main(record) -> None:
    o = record.options
    counts = [n for n in PARTICLES if n <= o.most]
    most = counts[-1]
    test = record.cell("training images", floor, o)
    exact = {
        f"{anchor} anchor, {'alone' if n == 1 else f'{n} particles'}": (o, anchor, n, most**2)
        for anchor in ("score", "flow")
        for n in dict.fromkeys((1, most, most**2))
    }
    exact = record.cells(plane, exact)
    # At scale 1 there are no weights: the same samples with any number of particles.
    wanted = [(n, scale) for n in counts for scale in SCALES if n == 1 or scale > 1]
    made = record.cells(guidance, {f"scale {s:g}, {n} particles": (o, n, s) for n, s in wanted})
    single = record.cells(apart, {f"one of each of populations of {n}": (o, n) for n in counts[:3]})
    pairs = record.cells(pair, {f"{a} and {b}, {n} particles": (o, a, b, n) for a, b in PAIRS for n in (1, most)})

    guided: dict = {}
    for n, s in wanted:
        guided.setdefault(f"{n}", {})[f"{s:g}"] = made[f"scale {s:g}, {n} particles"]["numbers"]
    numbers = dict(
        model=digits().origin, floor=test, plane={name: cell["numbers"] for name, cell in exact.items()}, guidance=guided,
        apart={f"{n}": {"2": cell["numbers"]} for n, cell in zip(counts, single.values(), strict=False)},
        pairs={f"{a} and {b}": {f"{n}": pairs[f"{a} and {b}, {n} particles"]["numbers"] for n in (1, most)} for a, b in PAIRS},
    )  # fmt: skip
    n, label = min(16, o.per_class), np.repeat(np.arange(10), o.per_class)
    ways = {"no guidance": (1, 1.0), "scale 4": (1, 4.0), f"scale 4,\n{most} particles": (most, 4.0)}
    rows = {
        f"{k}: {way}": made[f"scale {s:g}, {p} particles"]["images"][label == k][:n] for k in (3, 8) for way, (p, s) in ways.items()
    }
    both = {
        f"{a} and {b}" + (f",\n{p} particles" if p > 1 else ""): pairs[f"{a} and {b}, {p} particles"]["images"][:n]
        for a, b in PAIRS
        for p in (1, most)
    }
    grid = lambda of: viz.image_grid(np.concatenate(list(of.values())), levels=17, columns=n, rows=list(of), width=7.0)
    record.write(numbers, claims=claims(numbers), guidance=guidance_figure(guided, test), samples=grid(rows), pairs=grid(both))


if __name__ == "__main__":
    FIGURE.make(main)
