r"""When a Feynman-Kac corrector helps a learned model: guidance of class-conditional Gaussians whose corrected law is known.

One Gaussian for each class of the 8x8 digits, in two and sixteen principal components and in all 64 pixels. Guidance with the
scale b is meant to sample :math:`q_\varnothing^{1-b}q_c^b\propto q_c\,p(c\mid x)^{b-1}`, which rejection from :math:`q_c` samples
without error. The models are the exact one, the exact one with a random smooth error of a stated size, and the network of
`paper/2503.02819/digits` trained on draws of the law. Numbers are means over sampling seeds, with their standard deviation.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

import scorelab as sl
from scorelab import config, fk, metrics, viz
from scorelab.processes.linear_gaussian import GaussianPrediction
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Correctors improve classifier-free guidance of a trained image model (EDM2), from two particles on.",
    look_for="With exact scores the corrector helps in two dimensions, where the classes overlap, and changes little elsewhere. "
    "With a network it helps there too, and harms where the mean log-weight is above half of (b - 1) log(1 / class share).",
    minutes=dict(small=4, full=62, gpu=None),
    options=dict(per_class=128, seeds=3, steps=4000, also=["scales", "particles", "policies", "formula", "stopped", "images"]),
    small=dict(per_class=32, seeds=2, steps=200, also=[]),
)

DIMENSIONS, SIZES, PARTICLES = (2, 16, 64), (0.0, 0.25, 0.5, 1.0, 2.0), 16
PROCESS = sl.processes.Gaussian(schedule=sl.schedules.EDM())
TIMES = sl.grids.Karras(40, t_max=80.0, t_min=0.02, clean=False).times(PROCESS)
KNOTS = np.geomspace(0.02, 80.0, 16)
# Variance added in every direction, so that each class has a density.
FLOOR = 1e-3
# Proposals for a point of the target: in two dimensions the classes overlap.
PROPOSALS = {2: 200, 16: 16, 64: 16}
NEVER = fk.Never()


# The laws.


@functools.cache
def digits():
    """The shipped network of the digits."""
    return sl.pretrained.load("digits-edm-classes")


@functools.cache
def law_of(d: int) -> sl.densities.GaussianMixture:
    """One Gaussian for each digit, on the ``d`` leading principal components, scaled to the deviation of a pixel."""
    x, label = digits().encoded().reshape(-1, 64).astype(np.float64), np.asarray(digits().data().label)
    z = x
    if d < 64:
        centred = x - x.mean(0)
        z = centred @ np.linalg.svd(centred, full_matrices=False)[2][:d].T
        z = z * (x.std() / z.std())
    parts = [z[label == k] for k in range(10)]
    gaussians = [sl.densities.Gaussian(part.mean(0), np.cov(part.T) + FLOOR * np.eye(d)) for part in parts]
    return sl.densities.GaussianMixture.of(np.ones(10), gaussians)


def draw(d: int, per_class: int, seed: int) -> np.ndarray:
    """Points of every class, ``(10, per_class, d)``."""
    components, keys = law_of(d).components, jax.random.split(jax.random.key(seed), 10)
    return np.stack([np.asarray(jax.tree.map(lambda a, k=k: a[k], components).sample(keys[k], per_class)) for k in range(10)])


def certainty(d: int, x: np.ndarray) -> np.ndarray:
    r""":math:`p(c\mid x)` of points of every class, ``(10, n)``."""
    r = np.asarray(jax.jit(law_of(d).responsibilities)(x.reshape(-1, d)), np.float64).reshape(10, 10, -1)
    return np.stack([r[k, k] for k in range(10)])


@functools.cache
def target(d: int, beta: float, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Points of :math:`q_c\,p(c\mid x)^{\beta-1}` for every class, by rejection, and :math:`\log Z` ``(10,)``."""
    x = draw(d, PROPOSALS[d] * per_class, 10_000)
    p = certainty(d, x) ** (beta - 1)
    keep = np.random.default_rng(0).uniform(size=p.shape) < p
    return np.stack([x[k][keep[k]][:per_class] for k in range(10)]), np.log(p.mean(1)) + (beta - 1) * np.log(10)


# The models.


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Waves:
    r"""A random smooth field :math:`\sqrt{2/M}\sum_m a_m\cos(\omega_m\cdot z+\eta_m\log\sigma+\phi_m)` of unit size per element.

    ``z`` is the point over the deviation of noised data, so two independent points are about two lengths of the field apart.
    """

    direction: jax.Array
    frequency: jax.Array
    drift: jax.Array
    phase: jax.Array

    @classmethod
    def random(cls, d: int, seed: int, gradient: bool = False) -> Waves:
        rng, waves = np.random.default_rng(seed), 256
        frequency = rng.normal(size=(waves, d)) / np.sqrt(d)
        a = frequency if gradient else rng.normal(size=(waves, d))
        a = a * np.sqrt(d) / np.linalg.norm(a, axis=1, keepdims=True)
        parts = (a, frequency, rng.normal(size=waves) / 2, rng.uniform(0, 2 * np.pi, waves))
        return cls(*(jnp.asarray(part, jnp.float32) for part in parts))

    def __call__(self, y, sigma):
        z = y / jnp.sqrt(sigma**2 + 0.5)
        angle = z @ self.frequency.T + self.drift * jnp.log(sigma) + self.phase
        return jnp.cos(angle) @ self.direction * np.sqrt(2 / len(self.phase))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Classes:
    r"""The exact model of the classes, with errors of the denoised mean that are ``size`` times those of a trained network.

    The error without a condition is :math:`s_0 F_1`, that with one :math:`s_c(\rho F_1+\sqrt{1-\rho^2}F_2)`.
    """

    law: sl.densities.GaussianMixture
    fields: tuple[Waves, Waves]
    table: jax.Array
    size: jax.Array
    process: sl.processes.Gaussian = field(default=PROCESS, metadata={"static": True})

    def __call__(self, y, t, cond=None):
        t = jnp.asarray(t, y.dtype)
        means = jax.vmap(lambda g: g.denoise(self.process, y, t))(self.law.components)
        if cond is None:
            shares = self.law.noised(self.process, t).responsibilities(y)
        else:
            shares = jax.nn.one_hot(cond, 10, axis=0)
        free, bound, common = (jnp.interp(jnp.log(t), jnp.log(KNOTS), row) for row in self.table)
        error = free * self.fields[0](y, t)
        if cond is not None:
            mixed = common * self.fields[0](y, t) + jnp.sqrt(1 - common**2) * self.fields[1](y, t)
            error = bound * mixed
        denoised = jnp.einsum("kn,knd->nd", shares, means) + self.size * error
        return GaussianPrediction(denoised=denoised, eps=(y - denoised) / t, t=t, process=self.process)


def classes(d: int, table=None, size=0.0, *, common=None, gradient=False, seed=0) -> Classes:
    """Without a table the exact model; ``common`` is the correlation of the two errors in the place of that of networks."""
    table = np.zeros((3, len(KNOTS))) if table is None else np.array([table["free"], table["bound"], table["common"]])
    if common is not None:
        table[2] = common
    waves = (Waves.random(d, 2 * seed, gradient), Waves.random(d, 2 * seed + 1, gradient))
    return Classes(law_of(d), waves, jnp.asarray(table, jnp.float32), jnp.asarray(size, jnp.float32))


@functools.cache
def learner():
    """The learner of the digits' config."""
    return config.load("paper/2503.02819/digits").experiment.learner


def train(options, x: np.ndarray, label: np.ndarray, seed: int) -> dict:
    """The parameters of the network of the digits, trained on points."""
    batches = sl.data.Batches(dict(x=x.astype(np.float32), label=label.astype(np.int32)), 128, seed=seed)
    data = sl.training.Prepared(batches, cond="label")
    state = sl.training.fit(learner(), data, steps=options.steps, key=jax.random.key(seed), log_every=options.steps)
    return dict(params=learner().model(state).params)


def train_on_law(options, d: int, points: int, seed: int) -> dict:
    """As the digits: trained on so many draws of the law."""
    x = draw(d, points // 10, 20_000)
    return train(options, x.reshape(-1, d), np.repeat(np.arange(10), points // 10), seed)


def network(kept: dict):
    """The model of kept parameters."""
    return learner().denoiser.bind(jax.tree.map(jnp.asarray, kept["params"]))


@jax.jit
def gaps(model, ys, times, label):
    """Denoised means with and without the condition along walks, ``(2, times, n, d)``."""

    def one(_, at):
        y, t = at
        pair = model(y, t, label).denoised, model(y, t).denoised
        return None, jnp.stack([p.reshape(len(y), -1) for p in pair])

    return jnp.moveaxis(jax.lax.scan(one, None, (ys, times))[1], 1, 0)


def errors(d: int, kept: dict[str, dict], per_class: int) -> dict:
    """Errors of networks on noised points, per element and noise level, against the law and against another seed."""
    x, label = draw(d, per_class, 30_000).reshape(-1, d), np.repeat(np.arange(10), per_class)
    noise = np.random.default_rng(1).normal(size=x.shape)
    ys = jnp.asarray(x + KNOTS[:, None, None] * noise, jnp.float32)
    ask = lambda model: np.asarray(gaps(model, ys, jnp.asarray(KNOTS, jnp.float32), label), np.float64)
    truth, found = ask(classes(d)), {name: ask(network(params)) for name, params in kept.items()}
    rms = lambda e: np.sqrt((e**2).mean((1, 2)))
    rows = dict(sigma=KNOTS, true_gap=rms(truth[0] - truth[1]))
    for name, means in found.items():
        bound, free = means - truth
        correlation = (bound * free).mean((1, 2)) / (rms(bound) * rms(free))
        rows[name] = dict(free=rms(free), bound=rms(bound), common=correlation, gap=rms(bound - free))
    first, second = list(found)[:2]
    difference = (found[first] - found[second]) / np.sqrt(2)
    rows["between seeds"] = dict(free=rms(difference[1]), bound=rms(difference[0]), gap=rms(difference[0] - difference[1]))
    return rows


# Walks.


def walk(model, beta, particles, seed, label, event, *, policy=None, noise=1.0, stop=0.0, below="alone", times=TIMES):
    """Equally weighted samples and what the particles say.

    Down to the noise ``stop`` particles are weighed; below it guidance goes on without weights (``"guided"``), or the conditional
    model alone (``"alone"``).
    """
    corrected, n = fk.geometric(model, model, beta, noise=noise), len(label)
    base, last = sl.solvers.DPMSolverPP(order=2, eta=noise), noise > 0
    policy = (fk.EssBelow(0.5) if last else NEVER) if policy is None else policy
    solver = fk.FeynmanKac(base=base, potential=corrected.potential, particles=particles, policy=policy, resample_final=last)
    high, low = times[times >= stop], times[times < stop]
    options = dict(shape=(n, *event), cond=label, chunk=n)
    grid = sl.grids.Explicit(tuple(high), clean=not len(low))
    out = sl.sample(corrected.model, solver=solver, grid=grid, key=jax.random.key(seed), start=corrected.start, **options)
    if not len(low):
        return out, out.x
    rest = corrected.model if below == "guided" else model
    grid, start = sl.grids.Explicit((high[-1], *low), clean=True), sl.starts.Fixed(out.x)
    return out, sl.sample(rest, solver=base, grid=grid, key=jax.random.key(seed + 1000), start=start, **options).x


def sliced(x: np.ndarray, y: np.ndarray) -> float:
    """Sliced W2 of the classes, mean over them: ``x`` (10, n, d), ``y`` (10, m, d) with n dividing m."""
    u = np.random.default_rng(0).normal(size=(x.shape[-1], 64))
    u /= np.linalg.norm(u, axis=0)
    a, b = np.sort(x @ u, axis=1), np.sort(y @ u, axis=1)
    middle = ((np.arange(x.shape[1]) + 0.5) / x.shape[1] * y.shape[1]).astype(int)
    return float(np.sqrt(((a - b[:, middle]) ** 2).mean((1, 2))).mean())


def distances(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Of samples of every class from points of the target."""
    moments = lambda z: (z.mean(1), np.stack([np.cov(part.T) for part in z]))
    (m, c), (m_, c_) = moments(x), moments(y)
    apart = np.linalg.norm(c - c_, axis=(1, 2)) / np.linalg.norm(c_, axis=(1, 2))
    return dict(sw2=sliced(x, y), mean=np.linalg.norm(m - m_, axis=1).mean(), cov=apart.mean())


def quality(options, model, d: int, beta: float, particles: int, **settings) -> dict:
    """Distances of samples from the target, and the health of the particles: mean and deviation over the seeds."""
    n, rows = max(options.per_class, particles), []
    label = np.repeat(np.arange(10), n)
    exact, log_z = target(d, beta, 4 * n)
    for seed in range(options.seeds):
        out, x = walk(model, beta, particles, seed, label, (d,), **settings)
        x = np.asarray(x, np.float64).reshape(10, n, d)
        if settings.get("noise", 1.0) == 0:
            w = np.asarray(fk.normalised(out.log_weights.reshape(10, n)), np.float64)
            x = np.stack([x[k][np.random.default_rng(seed).choice(n, n, p=w[k] / w[k].sum())] for k in range(10)])
        found, z = out.diagnostics, np.asarray(out.log_z, np.float64).reshape(10, -1)
        rows.append(distances(x, exact) | dict(
            dlogz=np.abs(np.log(np.exp(z - z.max()).mean(1)) + z.max() - log_z).mean(), log_z=z.mean(),
            min_ess=np.asarray(found["ess"]).reshape(z.size, -1).min(1).mean() / particles,
            roots=np.asarray(found["unique_roots"]).mean() / particles,
        ))  # fmt: skip
    return summary(rows)


def floor(options, d: int, beta: float) -> dict:
    """The distances of exact draws."""
    exact, log_z = target(d, beta, 4 * options.per_class)
    rows = []
    for seed in range(options.seeds):
        x = draw(d, PROPOSALS[d] * options.per_class, 40_000 + seed)
        keep = np.random.default_rng(seed).uniform(size=x.shape[:2]) < certainty(d, x) ** (beta - 1)
        rows.append(distances(np.stack([x[k][keep[k]][: options.per_class] for k in range(10)]), exact))
    p = certainty(d, draw(d, 16 * options.per_class, 10_000))
    return summary(rows) | dict(certainty=p.mean(), log_z=log_z.mean(), bound=(beta - 1) * np.log(10))


def summary(rows: list[dict]) -> dict:
    """Mean and standard deviation."""
    return {
        name: [float(f([row[name] for row in rows])) for f in (np.mean, lambda v: np.std(v, ddof=len(v) > 1))] for name in rows[0]
    }


# Weights.


def weights(walker, judges: dict, beta: float, label, event) -> tuple[dict, dict, np.ndarray]:
    """Log-weights of one set of walks by several models, cumulated from high noise to low: what they are and how they differ.

    Variances are within classes. ``shared`` is the mean weight by the inner product of two models' gaps, to which independent
    errors add nothing on average. The gaps ``(times, n, d)`` and the walks come along.
    """
    corrected = fk.geometric(walker, walker, beta)
    solver = fk.FeynmanKac(potential=corrected.potential, policy=NEVER, particles=len(label) // 10)
    options = dict(shape=(len(label), *event), start=corrected.start, cond=label, chunk=len(label), keep="all")
    out = sl.sample(corrected.model, solver=solver, grid=sl.grids.Explicit(tuple(TIMES)), key=jax.random.key(0), **options)
    s, step, ts = TIMES[:, None], -np.diff(TIMES)[:, None], jnp.asarray(TIMES, jnp.float32)
    pairs = {name: np.asarray(gaps(judge, out.trajectory, ts, label), np.float64) for name, judge in judges.items()}
    found = {name: bound - free for name, (bound, free) in pairs.items()}

    def total(gap, other):
        rate = beta * (beta - 1) * (gap * other).sum(-1) / s**3
        return np.cumsum(0.5 * step * (rate[1:] + rate[:-1]), axis=0)

    def within(a):
        parts = a.reshape(len(a), 10, -1)
        return parts - parts.mean(-1, keepdims=True)

    sums, rows = {name: total(gap, gap) for name, gap in found.items()}, dict(sigma=TIMES[1:])
    for name, log_w in sums.items():
        size = np.asarray(fk.ess(jnp.asarray(log_w.reshape(len(step), 10, -1), jnp.float32))).mean(1)
        moments = dict(mean=log_w.mean(1), var=(within(log_w) ** 2).mean((1, 2)))
        rows[name] = moments | dict(ess=size * 10 / len(label), gap=np.sqrt((found[name][1:] ** 2).mean((1, 2))))
    for a, b in ((a, b) for i, a in enumerate(found) for b in list(found)[i + 1 :]):
        x, y = within(sums[a]), within(sums[b])
        both = dict(cov=(x * y).mean((1, 2)), half_difference=((x - y) ** 2).mean((1, 2)) / 2)
        rows[f"{a}, {b}"] = both | dict(shared=total(found[a], found[b]).mean(1))
    return rows, found, np.asarray(out.trajectory, np.float64).reshape(len(TIMES), len(label), -1)


def weights_of_networks(options, d: int, kept: dict) -> dict:
    """The walks of a network, weighed by the law, by itself, by another seed and by one that saw many draws."""
    judges = {"exact": classes(d)} | {name: network(params) for name, params in kept.items()}
    label = np.repeat(np.arange(10), options.per_class)
    return weights(judges["a"], judges, 2.0, label, (d,))[0]


def weights_of_digits(options, other: dict) -> dict:
    """The same for the digits, where there is no exact model."""
    judges = {"a": digits().model, "b": network(other)}
    return weights(judges["a"], judges, 2.0, np.repeat(np.arange(10), options.per_class), (8, 8, 1))[0]


def weights_of_errors(options, d: int, table: dict, size: float, common) -> dict:
    """What a random error does to the log-weights, and the formula for it: mean excess and variance within classes.

    With the gap error of the size delta in every element, u = log sigma and the gap G of the denoised means,
    mean = b (b-1) int d delta^2 / sigma^2 du, and the variance is
    b^2 (b-1)^2 int int [4 G G' delta delta' k + 2 d (delta delta' k)^2] / (sigma sigma')^2 du du',
    with k the correlation of the field along a walk, less the same between two walks.
    """
    beta, n = 2.0, options.per_class // 2
    wrong, exact = (classes(d, table, s, common=common, seed=1) for s in (size, 0.0))
    rows, found, y = weights(wrong, dict(exact=exact, wrong=wrong), beta, np.repeat(np.arange(10), n), (d,))
    u = np.log(TIMES)
    free, bound, rho = (np.interp(u, np.log(KNOTS), row) for row in np.asarray(wrong.table, np.float64))
    amplitude = size * np.stack([bound * rho - free, bound * np.sqrt(1 - rho**2)], axis=1)
    delta = amplitude @ amplitude.T
    ends = np.abs(np.gradient(u))
    ends[[0, -1]] /= 2
    mean = beta * (beta - 1) * d * np.sum(ends * np.diag(delta) / TIMES**2)
    variance = []
    for k in range(10):
        part = slice(k * n, k * n + min(n, 48))
        z = y[:, part] / np.sqrt(TIMES[:, None, None] ** 2 + 0.5)
        flat, g = z.reshape(-1, d), found["exact"][:, part].reshape(-1, d)
        square = (flat**2).sum(1)
        apart = np.maximum(square[:, None] + square - 2 * flat @ flat.T, 0).reshape(len(u), -1, len(u), z.shape[1])
        late = ((u[:, None] - u) ** 2)[:, None, :, None]
        kernel = np.exp(-apart / (2 * d) - late / 8) * delta[:, None, :, None]
        cov = 4 * (g @ g.T).reshape(kernel.shape) * kernel + 2 * d * kernel**2
        c = ends / TIMES**2
        per_pair = np.einsum("iajb,i,j->ab", cov, c, c)
        m = z.shape[1]
        variance.append((np.trace(per_pair) / m - (per_pair.sum() - np.trace(per_pair)) / (m * (m - 1))) * (beta * (beta - 1)) ** 2)
    last = rows["exact, wrong"]
    return dict(
        mean=rows["wrong"]["mean"][-1] - rows["exact"]["mean"][-1], mean_formula=mean,
        var=2 * last["half_difference"][-1], var_formula=np.mean(variance), exact_var=rows["exact"]["var"][-1],
        exact_mean=rows["exact"]["mean"][-1], cov=last["cov"][-1], ess=rows["wrong"]["ess"][-1], exact_ess=rows["exact"]["ess"][-1],
    )  # fmt: skip


# Images: the Frechet distance of the digits' table.


@functools.cache
def classifier():
    return metrics.small_cnn("digits")


def frechet(x, label, known, known_label) -> float:
    """Within classes, in the classifier's features, as in ``digits.py``."""
    see = lambda z: classifier()(np.asarray(digits().transform.decode(np.asarray(z, np.float32).reshape(-1, 8, 8, 1))))
    a, b, plain = see(x), see(known), metrics.Coordinates(id=classifier().id)
    return float(np.mean([metrics.frechet(a[label == k], b[known_label == k], plain).value for k in range(10)]))


def images(options, model, event: tuple, beta: float, particles: int, apart: bool, **settings) -> dict:
    """64 images of a class, as populations or one from each of as many populations."""
    per_class, rows = 64, []
    label = np.repeat(np.arange(10), per_class)
    if len(event) == 3:
        known, known_label = digits().encoded(), np.asarray(digits().data().label)
    else:
        known, known_label = draw(64, 150, 50_000).reshape(-1, 64), np.repeat(np.arange(10), 150)
    for seed in range(options.seeds):
        out, x = walk(model, beta, particles, seed, np.repeat(label, particles) if apart else label, event, **settings)
        x = np.asarray(x)
        if apart:
            x = x[np.random.default_rng(seed).integers(particles, size=len(label)) + particles * np.arange(len(label))]
        roots = np.asarray(out.diagnostics["unique_roots"]).mean() / particles
        row = dict(frechet=frechet(x, label, known, known_label), roots=roots, log_z=np.mean(np.asarray(out.log_z)))
        rows.append(
            row if len(event) == 3 else row | distances(np.asarray(x, np.float64).reshape(10, -1, 64), draw(64, 256, 70_000))
        )
    return summary(rows)


def image_floor(options) -> dict:
    """Draws of the law in the place of samples."""
    label, known = np.repeat(np.arange(10), 64), draw(64, 150, 50_000).reshape(-1, 64)
    drawn = [draw(64, 64, 60_000 + seed).reshape(-1, 64) for seed in range(options.seeds)]
    return summary([dict(frechet=frechet(x, label, known, np.repeat(np.arange(10), 150))) for x in drawn])


# Cells.


def synthetic(options, d, beta, particles, table=None, size=0.0, common=None, gradient=False, settings=None) -> dict:
    """The exact model with an error: every sampling seed has the same field."""
    model = classes(d, table, size, common=common, gradient=gradient, seed=1)
    return quality(options, model, d, beta, particles, **(settings or {}))


def learned(options, kept: dict, d: int, beta: float, particles: int, settings=None) -> dict:
    """A network trained on draws of the law."""
    return quality(options, network(kept), d, beta, particles, **(settings or {}))


def pictures(options, who, beta: float, particles: int, apart: bool, stop: float) -> dict:
    """The exact model, a network trained on its draws (its parameters), or the shipped network on the digits themselves."""
    models = dict(exact=lambda: (classes(64), (64,)), digits=lambda: (digits().model, (8, 8, 1)))
    model, event = models[who]() if isinstance(who, str) else (network(who), (64,))
    return images(options, model, event, beta, particles, apart, stop=stop)


def level(row: dict, name: str, share: float, beta: float = 2.0) -> float:
    """The smallest noise down to which the mean log-weight stays below a share of (b - 1) log 10, the bound of an exact one."""
    above = np.asarray(row[name]["mean"]) > share * (beta - 1) * np.log(10)
    return float(np.asarray(row["sigma"])[max(np.argmax(above) - 1, 0)]) if above.any() else 0.0


def main(record) -> None:
    o, both = record.options, (1, PARTICLES)
    points = {"a": (1500, 0), "b": (1500, 1), "many": (100_000, 0)}
    kept = record.cells(train_on_law, {f"network {d} {name}": (o, d, *how) for d in DIMENSIONS for name, how in points.items()})
    nets = {d: {name: kept[f"network {d} {name}"] for name in points} for d in DIMENSIONS}
    experiment, state = record.trained("seed 1", "paper/2503.02819/digits", "experiment.Experiment.seed = 1", f"STEPS = {o.steps}")
    other = dict(params=experiment.learner.model(state).params)

    others = (1.5, 3.0) if "scales" in o.also else ()
    floors = record.cells(floor, {f"floor {d} {b:g}": (o, d, b) for d in DIMENSIONS for b in sorted((2.0, *others))})
    sizes = record.cells(errors, {f"errors {d}": (d, nets[d], o.per_class) for d in DIMENSIONS})
    tables = {d: {name: np.asarray(sizes[f"errors {d}"]["a"][name]) for name in ("free", "bound", "common")} for d in DIMENSIONS}
    found = record.cells(weights_of_networks, {f"weights {d}": (o, d, nets[d]) for d in DIMENSIONS})
    found |= record.cells(weights_of_digits, {"weights digits": (o, other)})

    kinds = {f"size {size:g}": (size, None, False) for size in SIZES}
    kinds |= {"independent": (1.0, 0.0, False), "common": (1.0, 1.0, False), "gradient": (1.0, None, True)}
    cells = {
        f"error {d} {kind} K={k}": (o, d, 2.0, k, tables[d], *how) for d in DIMENSIONS for kind, how in kinds.items() for k in both
    }
    cells |= {f"error {d} size 0 b={b:g} K={k}": (o, d, b, k) for d in DIMENSIONS for b in others for k in both}
    if "particles" in o.also:
        cells |= {f"error 16 size {size:g} K={k}": (o, 16, 2.0, k, tables[16], size) for size in (0.0, 1.0) for k in (4, 64, 256)}
    made = record.cells(synthetic, cells)
    policies = {"never": dict(policy=NEVER), "every step": dict(policy=fk.Always()), "no noise": dict(noise=0.0)}
    cells = {f"error 16 size {size:g} {name}": (o, 16, 2.0, PARTICLES, tables[16], size, None, False, settings)
             for name, settings in policies.items() for size in (0.0, 1.0)}  # fmt: skip
    made |= record.cells(synthetic, cells if "policies" in o.also else {})
    predicted = {f"formula {d} size {size:g}": (o, d, tables[d], size, None) for d in DIMENSIONS for size in (0.5, 1.0)}
    predicted |= {f"formula {d} independent": (o, d, tables[d], 1.0, 0.0) for d in DIMENSIONS}
    predicted = record.cells(weights_of_errors, predicted if "formula" in o.also else {})

    places = (*DIMENSIONS, "digits")
    stops, late = ({d: level(found[f"weights {d}"], "a", share) for d in places} for share in (0.5, 1.0))
    scales = {d: [b for b in sorted((2.0, *others)) if b < 3 or d < 64] for d in DIMENSIONS}
    cells = {f"network {d} a b={b:g} K={k}": (o, nets[d]["a"], d, b, k) for d in DIMENSIONS for b in scales[d] for k in both}
    for d in (16, 64) if "stopped" in o.also else ():
        ways = ((" guided", stops[d], "guided"), (" late", late[d], "alone")) if d == 16 else ()
        for name, stop, below in (("", stops[d], "alone"), *ways):
            cells[f"network {d} a stopped{name}"] = (o, nets[d]["a"], d, 2.0, PARTICLES, dict(stop=stop, below=below))
    made |= record.cells(learned, cells)

    # Of the digits themselves `digits.py` has the rest.
    net, k = nets[64]["a"], PARTICLES
    cells = {
        f"images {name} b={b:g}": (o, who, b, 1, False, 0.0)
        for name, who in (("exact", "exact"), ("network", net))
        for b in (1.0, 1.5, 2.0)
    }
    cells |= {
        "images exact apart": (o, "exact", 2.0, k, True, 0.0),
        "images digits stopped": (o, "digits", 2.0, k, False, stops["digits"]),
        "images network stopped": (o, net, 2.0, k, False, stops[64]),
        "images exact": (o, "exact", 2.0, k, False, 0.0),
        "images network": (o, net, 2.0, k, False, 0.0),
    }
    seen = {}
    if "images" in o.also:
        seen = record.cells(pictures, cells) | {"images floor": record.cell("images floor", image_floor, o)}

    ratio = lambda label: made[f"{label} K={PARTICLES}"]["sw2"][0] / made[f"{label} K=1"]["sw2"][0]
    numbers = dict(
        floors=floors, errors=sizes, weights=found, formula=predicted, distances=made, images=seen,
        stops={str(d): dict(half=stops[d], whole=late[d]) for d in places},
    )  # fmt: skip
    record.write(numbers, claims=claims(made), weights=weight_figure(found), errors=error_figure(made, ratio))


def claims(made: dict) -> list[Claim]:
    """What the paper says of correctors of guidance, beside what was found."""
    found = []
    for says, label, what, why in (
        ("Weights correct classifier-free guidance.", "error {} size 0", "exact laws",
         "The classes overlap in two dimensions only."),
        ("Correctors improve the guidance of a trained network.", "network {} a b=2", "trained networks",
         "The weights hold the square of the network's own error, which grows with the dimension and at low noise."),
    ):  # fmt: skip
        rows = [[made[f"{label.format(d)} K={k}"]["sw2"] for k in (1, PARTICLES)] for d in DIMENSIONS]
        gains = [(plain[0] - weighed[0]) / (2 * np.hypot(plain[1], weighed[1]) + 1e-9) for plain, weighed in rows]
        one_seed = not np.any(np.array(rows)[..., 1])
        better, worse = sum(g > 1 for g in gains), sum(g < -1 for g in gains)
        found.append(
            Claim(
                says=says, value=better, spread=0,
                unit=f"of three {what} nearer to the target with {PARTICLES} particles, {worse} farther (sliced W2)",
                verdict="not comparable" if one_seed else
                "reproduced" if better == len(rows) else "in shape" if better > worse else "not reproduced",
                why="One seed has no spread to compare with." if one_seed else
                f"{why} 2, 16 and 64 dimensions, scale 2; nearer and farther are by more than two deviations over the seeds.",
            )
        )  # fmt: skip
    return found


def weight_figure(found: dict):
    """Mean log-weights from high noise down, beside the bound."""
    content = []
    for d in (*DIMENSIONS, "digits"):
        rows = found[f"weights {d}"]
        sigma = np.asarray(rows["sigma"])
        names = {"exact": "exact", "a": "the network's own", "a, b": "inner product of two networks"}
        series = {
            name: (sigma, np.asarray(rows[key]["shared" if "," in key else "mean"])) for key, name in names.items() if key in rows
        }
        series["bound"] = (sigma, np.full(len(sigma), np.log(10)))
        title = "digits" if d == "digits" else f"{d} dimensions"
        content.append(
            viz.Panel(
                series=series,
                title=title,
                xlabel="noise level",
                ylabel="mean log-weight so far",
                logx=True,
                logy=True,
                ylim=(0.03, 60),
            )
        )
    return viz.panels(content, reference=("bound",), columns=4, share_y=True, width=11.0, height=2.8)


def error_figure(made: dict, ratio):
    """Corrected over guided distance, against the size of the error and against the log-weights."""
    by_size = {f"{d} dimensions": (np.array(SIZES), np.array([ratio(f"error {d} size {s:g}") for s in SIZES])) for d in DIMENSIONS}
    by_weight = {}
    for d in DIMENSIONS:
        labels = [f"error {d} size {s:g}" for s in SIZES] + [f"error {d} {kind}" for kind in ("independent", "common", "gradient")]
        labels += [f"network {d} a b=2"]
        dots = sorted((made[f"{label} K={PARTICLES}"]["log_z"][0] / np.log(10), ratio(label)) for label in labels)
        by_weight[f"{d} dimensions"] = tuple(np.array(dots).T)
    one = lambda series: {
        "no gain": (np.array([min(x.min() for x, _ in series.values()), max(x.max() for x, _ in series.values())]), np.ones(2))
    }
    axes = dict(ylabel="distance, corrected / guided", markers=True)
    content = [
        viz.Panel(series=by_size | one(by_size), xlabel="size of the error (1: that of the network)", **axes),
        viz.Panel(series=by_weight | one(by_weight), xlabel="estimated log Z / its bound", logx=True, **axes),
    ]
    return viz.panels(content, reference=("no gain",), width=9.0)


if __name__ == "__main__":
    FIGURE.make(main)
