"""Feynman-Kac correctors with a learned model: guidance of the 8x8 digits, two classes at once, and two exact laws in the plane.

    python experiments/2503.02819/digits.py

The network is that of `paper/2503.02819/digits`, which the package carries as `digits-edm-classes`.

One particle is plain guidance: a weight that is alone in its population says nothing. All numbers are a mean over three sampling
seeds of one network, with their standard deviation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import scorelab as sl
from scorelab import fk, metrics, viz
from scorelab.run.script import parse, record, script

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


def floor(train, per_class: int) -> dict[str, float]:
    """The scores of training images in the place of samples, against the others."""
    order = np.random.default_rng(0).permutation(len(train))
    chosen = np.concatenate([order[train.label[order] == k][:per_class] for k in range(10)])
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


class Trial:
    """A model and how much is measured: ``seeds``, images of each class, at most ``most`` particles."""

    def __init__(self, who: sl.pretrained.Loaded, seeds: int, per_class: int, most: int):
        self.model, self.decode = who.model, lambda x: np.asarray(who.transform.decode(x))
        self.judge = Judge(who.data().x, who.data().label)
        self.seeds, self.per_class, self.particles = range(seeds), per_class, [n for n in PARTICLES if n <= most]
        self.label = np.repeat(np.arange(10), per_class)

    def guidance(self):
        """Every scale and number of particles."""
        rows, shown = {}, {}
        for particles in self.particles:
            for scale in SCALES:
                if scale == 1.0 and particles > 1:
                    continue  # no weights: the same samples
                corrected, found = fk.geometric(self.model, self.model, scale), []
                for seed in self.seeds:
                    out = walk(corrected, particles, len(self.label), seed, cond=self.label)
                    images = self.decode(out.x)
                    found.append(self.judge(images, self.label) | health(out, len(self.label) // particles, particles))
                    if seed == 0:
                        shown[particles, scale] = images
                add(rows, f"{particles}", f"{scale:g}", found)
        return rows, shown

    def apart(self):
        """One sample from each of as many populations as there are images: what the weights do, without what copies do."""
        rows, scale = {}, 2.0
        for particles in self.particles[:3]:
            corrected, found = fk.geometric(self.model, self.model, scale), []
            for seed in self.seeds:
                out = walk(corrected, particles, len(self.label) * particles, seed, cond=np.repeat(self.label, particles))
                # Which copy is as good as any: the samples of a population are exchangeable but for their order.
                place = np.random.default_rng(seed).integers(particles, size=len(self.label))
                images = self.decode(out.x[place + particles * np.arange(len(self.label))])
                found.append(self.judge(images, self.label) | health(out, len(self.label), particles))
            add(rows, f"{particles}", f"{scale:g}", found)
        return rows

    def pairs(self):
        r""":math:`\sqrt{q_a q_b}`: images that two classes both allow, which the classifier must be torn between."""
        rows, shown, n = {}, {}, 4 * self.per_class
        for a, b in PAIRS:
            experts = [sl.models.Conditioned(model=self.model, cond=jnp.asarray(k, jnp.int32)) for k in (a, b)]
            corrected = fk.weighted(experts, [0.5, 0.5], anchor="score")
            for particles in (1, self.particles[-1]):
                found = []
                for seed in self.seeds:
                    out = walk(corrected, particles, n, seed)
                    images = self.decode(out.x)
                    p = self.judge.features.class_probabilities(images)
                    torn = np.mean(np.minimum(p[:, a], p[:, b]))
                    seen = dict(either=np.mean(p[:, a] + p[:, b]), torn=torn, share=np.mean(p[:, a]))
                    found.append(seen | health(out, n // particles, particles))
                    if seed == 0:
                        shown[a, b, particles] = images
                add(rows, f"{a} and {b}", f"{particles}", found)
        return rows, shown

    def plane(self):
        """The product of two mixtures of four Gaussians, against the masses of its sixteen Gaussians."""
        process = sl.processes.Gaussian(schedule=sl.schedules.EDM())
        rng, rows, n = np.random.default_rng(1), {}, self.particles[-1] ** 2
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
            for particles in (1, self.particles[-1], n):
                found = []
                for seed in self.seeds:
                    out = walk(corrected, particles, n, seed, event=(2,))
                    x, z = np.asarray(out.x, np.float64), np.exp(np.asarray(out.log_z, np.float64) - log_z)
                    errors = np.abs(x.mean(0) - mean).max(), np.abs((x**2).mean(0) - second).max()
                    found.append(dict(mean=errors[0], second=errors[1], z=np.mean(z)) | health(out, n // particles, particles))
                add(rows, f"{anchor} anchor", f"{particles}", found)
        return rows


def add(rows: dict, row: str, column: str, found: list[dict]) -> None:
    """Put the numbers of every seed into a table, and print their means."""
    cells = rows.setdefault(row, {})[column] = summary(found)
    print(f"{row:14s} {column:5s}", "  ".join(f"{k} {m:.3f} ± {s:.3f}" for k, (m, s) in cells.items()), flush=True)


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


def main() -> None:
    small = dict(seeds=1, per_class=4, most=4)
    arguments = parse(__doc__, small=small, seeds=3, per_class=64, most=64)
    who = sl.pretrained.load("digits-edm-classes")
    trial = Trial(who, arguments.seeds, arguments.per_class, arguments.most)
    test = floor(who.data(), arguments.per_class)
    print("training images", test)
    exact, (guided, shown), single, (both, torn) = trial.plane(), trial.guidance(), trial.apart(), trial.pairs()
    n, most = min(16, arguments.per_class), trial.particles[-1]
    rows = [shown[p, s][trial.label == k][:n] for k in (3, 8) for p, s in ((1, 1.0), (1, 4.0), (most, 4.0))]
    pairs = [torn[a, b, p][:n] for a, b in PAIRS for p in (1, most)]
    record(
        arguments, dict(model=who.origin, floor=test, plane=exact, guidance=guided, apart=single, pairs=both),
        guidance=guidance_figure(guided, test),
        samples=viz.image_grid(np.concatenate(rows), levels=17, columns=n, width=6.0),
        pairs=viz.image_grid(np.concatenate(pairs), levels=17, columns=n, width=6.0),
    )  # fmt: skip


if __name__ == "__main__":
    script(main)
