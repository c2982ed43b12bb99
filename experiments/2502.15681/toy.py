"""A mixture of three modes and a student that begins inside the middle one: which divergence finds the others, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import ndtri

import scorelab as sl

WEIGHTS, MEANS, STD = (0.3, 0.4, 0.3), (-4.0, 0.0, 4.0), 0.4
BATCH, STEPS, SMALLEST = 256, 1500, 0.1
# Nodes of equal probability: the law of the student is that of its values there.
NODES = ndtri((np.arange(512) + 0.5) / 512)[:, None].astype(np.float32)
QUANTILES = ndtri((np.arange(4000) + 0.5) / 4000)[:, None].astype(np.float32)

DIVERGENCES = dict(
    rkl=sl.distill.ReverseKL(), srkl=sl.distill.SoftenedReverseKL(), js=sl.distill.JensenShannon(),
    sqhel=sl.distill.SquaredHellinger(), fkl=sl.distill.ForwardKL(), jeffreys=sl.distill.Jeffreys(),
)  # fmt: skip


class Narrow(nn.Module):
    """``0.4 z + 2 MLP(z, sin 2z, cos 2z)``, with a last layer so small that the first student lies inside the middle mode."""

    width: int = 64

    @nn.compact
    def __call__(self, z):
        h = jnp.concatenate([z, jnp.sin(2 * z), jnp.cos(2 * z)], -1)
        for _ in range(2):
            h = nn.silu(nn.Dense(self.width)(h))
        last = nn.initializers.variance_scaling(0.05**2, "fan_in", "truncated_normal")
        return 0.4 * z + 2 * nn.Dense(z.shape[-1], kernel_init=last)(h)


@dataclass(frozen=True)
class Toy(sl.distill.Student):
    """The student: a network of the noise alone."""

    net: Narrow = field(default_factory=Narrow)

    def init(self, key, x, cond, teacher):
        return self.net.init(key, x[:1])

    def draw(self, params, key, like, cond):
        return self.net.apply(params, jax.random.normal(key, like.shape, like.dtype))

    def bind(self, params):
        return partial(self._at, params)

    def _at(self, params, z, cond=None):
        return self.net.apply(params, z)

    def law(self, params):
        """Of equal atoms at the nodes."""
        return sl.densities.Empirical(self.net.apply(params, NODES))


def teacher(sigma_max: float) -> sl.models.ExactModel:
    law = sl.densities.GaussianMixture(np.array(WEIGHTS), np.array(MEANS)[:, None], np.full((3, 1, 1), STD**2))
    process = sl.processes.Gaussian(schedule=sl.schedules.EDM(sigma_min=SMALLEST, sigma_max=sigma_max))
    return sl.models.ExactModel(law, process)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chosen(sl.distill.Divergence):
    """One of the divergences above by its number, which is traced: runs of different ones are rows of one program."""

    which: jax.Array

    def f(self, r):
        return jnp.stack([d.f(r) for d in DIVERGENCES.values()])[self.which]

    def log_h(self, l):
        return jnp.stack([d.log_h(l) for d in DIVERGENCES.values()])[self.which]

    def generator_loss(self, l):
        return jnp.stack([d.generator_loss(l) for d in DIVERGENCES.values()])[self.which]


def learner(divergence, sigma_max: float, *, learned: bool, steps: int = STEPS, **options) -> sl.distill.FDistill:
    """The set-up of the comparison: exact score and ratio of the student, or both learned."""
    who = teacher(sigma_max)
    small = lambda std: sl.models.Denoiser(net=sl.models.nets.MLP(width=64, depth=2, embed=32), process=who.process, data_std=std)
    parts = dict(fake=sl.distill.KnownScore(law=Toy().law), ratio=sl.distill.ExactRatio(), n_aux=0)
    if learned:
        times = sl.losses.UniformLogSNRTimes()
        objective = sl.losses.DenoisingScoreMatching(who.process, weighting=sl.losses.EDMWeighting(data_std=3.0), times=times)
        parts = dict(
            fake=sl.distill.LearnedScore(denoiser=small(3.0), objective=objective),
            ratio=sl.distill.Discriminator(denoiser=small(3.0)),
            fake_optimizer=optax.adam(2e-3), ratio_optimizer=optax.adam(2e-3, b1=0.5), n_aux=5, warmup=60,
        )  # fmt: skip
    decay = optax.cosine_decay_schedule(1e-3, steps, alpha=0.05)
    defaults = dict(
        times=sl.losses.UniformLogSNRTimes(), optimizer=optax.adam(decay, b1=0.0, b2=0.99),
        normalisation=sl.distill.Normalisation(decay=0.5), ema=sl.training.EMA(decay=0.99),
    )  # fmt: skip
    return sl.distill.FDistill(who, Toy(), divergence=divergence, **defaults | parts | options)


def race(names, seeds, sigma_max: float, *, learned: bool, steps: int = STEPS, **options) -> tuple[np.ndarray, dict]:
    """Every divergence from every seed, as one program.

    Returns the students with averaged parameters at 4000 quantiles of the noise, ``(names, seeds, 4000)``, and what
    ``diagnostics`` says at the end, ``(names, seeds, bins)`` each. FloatingPointError where a student is not finite.
    """
    spec = learner(Chosen(jnp.int32(0)), sigma_max, learned=learned, steps=steps, **options)
    which = jnp.asarray([list(DIVERGENCES).index(name) for name in names])
    law = spec.teacher.law

    def one(which, seed):
        mine = learner(Chosen(which), sigma_max, learned=learned, steps=steps, **options)
        key = jax.random.key(seed)

        def step(state, k):
            key_data, key_step = jax.random.split(jax.random.fold_in(key, k))
            return mine.update(state, {"x": law.sample(key_data, BATCH)}, key_step)[0], None

        state = mine.init(jax.random.fold_in(key, 2**31), {"x": jnp.zeros((BATCH, 1))})
        return jax.lax.scan(step, state, jnp.arange(steps + mine.warmup))[0]

    rows = [(w, s) for w in which for s in seeds]
    states = jax.jit(jax.vmap(one))(jnp.stack([w for w, _ in rows]), jnp.asarray([s for _, s in rows]))
    made = np.stack([np.asarray(spec.generator(jax.tree.map(lambda leaf: leaf[i], states))(QUANTILES)) for i in range(len(rows))])
    if not np.isfinite(made).all():
        raise FloatingPointError(f"a student is not finite after {steps} steps at sigma_max = {sigma_max}")
    health = [spec.diagnostics(jax.tree.map(lambda leaf: leaf[i], states)) for i in range(len(rows))]
    shape = (len(names), len(seeds))
    return made.reshape(*shape, -1), {k: np.stack([h[k] for h in health]).reshape(*shape, -1) for k in health[0]}


def judge(points: np.ndarray) -> dict[str, float]:
    """Modes found, both KL, JS (half the sum of two, in nats) and W1 of equal atoms ``points`` against the teacher."""
    points, smooth = np.sort(np.asarray(points, np.float64).ravel()), 0.1
    grid = np.linspace(-9, 9, 3601)
    bump = lambda d, s: np.exp(-0.5 * (d / s) ** 2) / (s * np.sqrt(2 * np.pi))
    density = lambda at, s: np.stack([bump(g - at, s) for g in grid])
    # Both laws smoothed alike; the floor makes a lost mode of weight .3 cost 7.6 nats of KL(p||q).
    p = density(np.array(MEANS), np.hypot(STD, smooth)) @ np.array(WEIGHTS)
    q = density(points, smooth).mean(1)
    dx = grid[1] - grid[0]
    p, q = (np.maximum(v, 1e-12) / (np.maximum(v, 1e-12).sum() * dx) for v in (p, q))
    m = (p + q) / 2
    kl = lambda a, b: float(np.sum(a * np.log(a / b)) * dx)
    mass = [float(np.mean(np.abs(points - c) < 3 * STD)) for c in MEANS]
    return dict(
        modes=sum(found > 0.2 * w for found, w in zip(mass, WEIGHTS, strict=True)), mass=mass, forward=kl(p, q), reverse=kl(q, p),
        js=(kl(p, m) + kl(q, m)) / 2, w1=float(np.sum(np.abs(np.cumsum(p - q))) * dx * dx),
    )  # fmt: skip
