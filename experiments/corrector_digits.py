"""Feynman-Kac correctors with a learned model: guidance of the 8x8 digits, two classes at once, and two exact laws in the plane.

    scorelab train paper/2503.02819/digits --workdir runs/digits_classes
    python experiments/kept_models.py --workdir runs/digits_classes --name digits_classes
    python experiments/corrector_digits.py --out experiments/results

One particle is plain guidance: a weight that is alone in its population says nothing. All numbers are a mean over three sampling
seeds of one network, with their standard deviation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from kept_models import kept
from recording import parse, record, script

import scorelab as sl
from scorelab import fk, metrics, viz

SCALES, PARTICLES, SEEDS, PER_CLASS = (1.0, 1.5, 2.0, 3.0, 4.0), (1, 4, 16, 64), 3, 64
# Down to a noise of .02, a sixth of a grey level: below it two predictions of one network differ by its own errors only, and the
# weights, which divide by the noise, would add those up.
GRID = sl.grids.Karras(41, t_max=80.0, t_min=0.02)
PAIRS = ((3, 8), (1, 7), (4, 9), (0, 6))


class Judge:
    """The classifier's view of images, and the training images of every class."""

    def __init__(self, data):
        train, self.transform = data.load(), data.transform
        self.features = metrics.small_cnn("digits")
        self.known, self.label = self.features(train.x), train.label

    def images(self, x):
        """Stored values."""
        return np.asarray(self.transform.decode(x))

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

    def floor(self) -> dict[str, float]:
        """The scores of training images in the place of samples, against the others."""
        order = np.random.default_rng(0).permutation(len(self.label))
        chosen = np.concatenate([order[self.label[order] == k][:PER_CLASS] for k in range(10)])
        rest = np.setdiff1d(order, chosen)
        other = object.__new__(Judge)
        other.features, other.known, other.label = self.features, self.known[rest], self.label[rest]
        images = sl.data.load("digits").x[chosen]
        return {name: float(value) for name, value in other(images, self.label[chosen]).items()}


def summary(rows: list[dict]) -> dict:
    """Mean and standard deviation over the seeds."""
    return {k: [float(np.mean([r[k] for r in rows])), float(np.std([r[k] for r in rows], ddof=1))] for k in rows[0]}


def health(out, groups: int, particles: int) -> dict[str, float]:
    """Effective sizes and ancestors as shares of a population."""
    found = out.diagnostics
    return dict(
        min_ess=np.mean(np.asarray(found["ess"]).reshape(groups, -1).min(1)) / particles,
        roots=np.mean(np.asarray(found["unique_roots"])) / particles,
    )  # fmt: skip


def walk(corrected, process, particles, count, seed, cond=None, event=(8, 8, 1)):
    """Equally weighted samples: each population is resampled at its end."""
    solver = fk.FeynmanKac(
        base=sl.solvers.DPMSolverPP(order=2, eta=1.0), potential=corrected.potential, particles=particles, resample_final=True
    )
    options = dict(start=corrected.start, key=jax.random.key(seed), shape=(count, *event), cond=cond, chunk=count)
    return sl.sample(corrected.model, solver=solver, grid=GRID, **options)


def guidance(model, process, judge):
    """Every scale and number of particles."""
    label, rows, shown = np.repeat(np.arange(10), PER_CLASS), {}, {}
    for particles in PARTICLES:
        for scale in SCALES:
            if scale == 1.0 and particles > 1:
                continue  # no weights: the same samples
            corrected, found = fk.geometric(model, model, scale), []
            for seed in range(SEEDS):
                out = walk(corrected, process, particles, len(label), seed, cond=label)
                images = judge.images(out.x)
                found.append(judge(images, label) | health(out, len(label) // particles, particles))
                if seed == 0:
                    shown[particles, scale] = images
            rows.setdefault(f"{particles}", {})[f"{scale:g}"] = summary(found)
            print(f"particles {particles:3d} scale {scale:3g}", line(rows[f"{particles}"][f"{scale:g}"]), flush=True)
    return rows, shown


def apart(model, process, judge):
    """One sample from each of as many populations as there are images: what the weights do, without what copies do."""
    label, rows = np.repeat(np.arange(10), PER_CLASS), {}
    for particles in (1, 4, 16):
        for scale in (2.0,):
            corrected, found = fk.geometric(model, model, scale), []
            for seed in range(SEEDS):
                count = len(label) * particles
                out = walk(corrected, process, particles, count, seed, cond=np.repeat(label, particles))
                # Which copy is as good as any: the samples of a population are exchangeable but for their order.
                place = np.random.default_rng(seed).integers(particles, size=len(label)) + particles * np.arange(len(label))
                found.append(judge(judge.images(out.x[place]), label) | health(out, len(label), particles))
            rows.setdefault(f"{particles}", {})[f"{scale:g}"] = summary(found)
            print(f"one of {particles:3d} scale {scale:3g}", line(rows[f"{particles}"][f"{scale:g}"]), flush=True)
    return rows


def line(row):
    return "  ".join(f"{k} {m:.3f} ± {s:.3f}" for k, (m, s) in row.items())


def pairs(model, process, judge):
    r""":math:`\sqrt{q_a q_b}`: images that two classes both allow, which the classifier must be torn between."""
    rows, shown, n = {}, {}, 256
    for a, b in PAIRS:
        experts = [sl.models.Conditioned(model=model, cond=jnp.asarray(k, jnp.int32)) for k in (a, b)]
        corrected = fk.weighted(experts, [0.5, 0.5], anchor="score")
        for particles in (1, 64):
            found = []
            for seed in range(SEEDS):
                out = walk(corrected, process, particles, n, seed)
                images = judge.images(out.x)
                p = judge.features.class_probabilities(images)
                found.append(
                    dict(either=np.mean(p[:, a] + p[:, b]), torn=np.mean(np.minimum(p[:, a], p[:, b])), share=np.mean(p[:, a]))
                    | health(out, n // particles, particles)
                )
                if seed == 0:
                    shown[a, b, particles] = images
            rows.setdefault(f"{a} and {b}", {})[f"{particles}"] = summary(found)
            print(f"{a} and {b}, particles {particles:3d}", line(rows[f"{a} and {b}"][f"{particles}"]), flush=True)
    return rows, shown


def plane():
    """The product of two mixtures of four Gaussians, against the masses of its sixteen Gaussians."""
    process = sl.processes.Gaussian(schedule=sl.schedules.EDM())
    rng, rows = np.random.default_rng(1), {}
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
    for anchor in ("score", "flow"):
        corrected = fk.product(models, anchor=anchor)
        for name, particles in (("alone", 1), ("64 particles", 64), ("4096 particles", 4096)):
            found = []
            for seed in range(SEEDS):
                out = walk(corrected, process, particles, 4096, seed, event=(2,))
                x = np.asarray(out.x, np.float64)
                z = np.exp(np.asarray(out.log_z, np.float64) - log_z)
                found.append(
                    dict(mean=np.abs(x.mean(0) - mean).max(), second=np.abs((x**2).mean(0) - second).max(), z=np.mean(z))
                    | health(out, 4096 // particles, particles)
                )
            rows[f"{anchor} anchor, {name}"] = summary(found)
            print(f"{anchor} anchor, {name:15s}", line(rows[f"{anchor} anchor, {name}"]), flush=True)
    return rows


def guidance_figure(rows, floor):
    """Scores against the scale, a line for every number of particles."""
    content = []
    for score, title in (("frechet", "Frechet distance within classes"), ("accuracy", "accuracy"), ("vendi", "Vendi (q = 2)")):
        start, series = rows["1"]["1"], {}
        for particles in PARTICLES:
            mine = {"1": start} | rows[f"{particles}"]
            name = "guidance alone" if particles == 1 else f"{particles} particles"
            series[name] = (np.array(SCALES), np.array([mine[f"{s:g}"][score][0] for s in SCALES]))
        series["training images"] = (np.array(SCALES), np.full(len(SCALES), floor[score]))
        content.append(viz.Panel(series=series, title=title, xlabel="guidance scale", markers=True))
    return viz.panels(content, reference=("training images",), width=9.5, height=2.8)


def main() -> None:
    arguments = parse(__doc__, "corrector_digits")
    experiment, model, made = kept("digits_classes")
    judge = Judge(experiment.data)
    floor = judge.floor()
    print("training images", floor)
    exact = plane()
    guided, shown = guidance(model, experiment.process, judge)
    single = apart(model, experiment.process, judge)
    both, torn = pairs(model, experiment.process, judge)
    rows = [shown[p, s][k * PER_CLASS : k * PER_CLASS + 16] for k in (3, 8) for p, s in ((1, 1.0), (1, 4.0), (64, 4.0))]
    record(
        arguments, "corrector_digits",
        dict(
            model={k: made[k] for k in ("step", "data_sha256")}, floor=floor, plane=exact, guidance=guided, apart=single, pairs=both
        ),
        guidance=guidance_figure(guided, floor),
        samples=viz.image_grid(np.concatenate(rows), levels=17, columns=16, width=6.0),
        pairs=viz.image_grid(
            np.concatenate([torn[a, b, p][:16] for a, b in PAIRS for p in (1, 64)]), levels=17, columns=16, width=6.0
        ),
    )  # fmt: skip


if __name__ == "__main__":
    script(main)
