"""What the scripts of this folder share: bridges of two networks, their training, and the errors of their fields."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.ndimage import gaussian_filter

import scorelab as sl

# Times at which fields are held against the exact ones: arcsine, so dense at both ends.
TIMES = np.sin(np.pi / 2 * (np.arange(100) + 0.5) / 100) ** 2


def trained(process, x, heads, *, steps, seed, data_std, base_std, batch=512, rate=2e-3, net=None):
    """A model of one network for each head, trained on the points ``x``."""
    net = sl.models.nets.MLP(width=64, depth=3, embed=32) if net is None else net
    second = net if len(heads) == 2 else None
    field = sl.models.InterpolantField(
        net=net, eta_net=second, process=process, heads=heads, data_std=data_std, base_std=base_std
    )  # fmt: skip
    loss = sl.losses.InterpolantMatching(process, heads=heads)
    learner = sl.training.ScoreLearner(field, loss, optax.adam(optax.cosine_decay_schedule(rate, steps)), ema=None)
    batches = sl.data.Batches({"x": np.asarray(x, np.float32)}, batch_size=batch, seed=seed)
    return learner.model(sl.training.fit(learner, batches, steps=steps, key=jax.random.key(seed)))


def errors(model, data, seed, n=2000, exact=None) -> dict:
    r"""Mean squares of the errors of velocity and score at ``TIMES``, and the mean of their product, over the exact bridge.

    ``velocity``, ``score`` and ``both`` are the integrals over uniform times; ``at`` has the three at every time, ``(times, 3)``.
    """
    process = model.process
    exact = sl.models.ExactModel(data, process) if exact is None else exact

    @jax.jit
    def at(t, key):
        noised = process.perturb(key, data.sample(jax.random.fold_in(key, 1), n), t)
        ours, truth = model(noised.y, t), exact(noised.y, t)
        du, ds = ours.velocity - truth.velocity, ours.score - truth.score
        return jnp.stack([jnp.mean(jnp.sum(a * b, -1)) for a, b in ((du, du), (ds, ds), (du, ds))])

    keys = jax.random.split(jax.random.key(1000 + seed), len(TIMES))
    found = np.array([at(jnp.float32(t), key) for t, key in zip(TIMES, keys, strict=True)])
    velocity, score, both = np.pi * np.sqrt(TIMES * (1 - TIMES)) @ found / len(TIMES)
    return dict(velocity=float(velocity), score=float(score), both=float(both), at=found)


def bound(found: dict, epsilon: float) -> float:
    r""":math:`\int E\|\delta u-\epsilon\,\delta s\|^2/(4\epsilon)\,dt`, above the KL of the data to the samples of the SDE."""
    return found["velocity"] / (4 * epsilon) + epsilon * found["score"] / 4 - found["both"] / 2


def best(found: dict) -> np.ndarray:
    r"""The :math:`\epsilon_t` with the least bound, :math:`\sqrt{E\|\delta u\|^2/E\|\delta s\|^2}` at ``TIMES``."""
    velocity, score, _ = np.asarray(found["at"]).T
    return np.sqrt(velocity / score)


def density(x, half, cells, smoothed) -> np.ndarray:
    """The density of points in the plane on the cells of a square, smoothed: ``(cells, cells)``."""
    width = 2 * half / cells
    counts, *_ = np.histogram2d(*np.asarray(x, np.float64).T, bins=cells, range=[[-half, half]] * 2)
    return gaussian_filter(counts / len(x) / width**2, smoothed / width, mode="constant")


def kl_on_cells(p, q, half) -> float:
    """KL of one density on cells to another, in nats."""
    width = 2 * half / len(p)
    return float(np.sum(p * (np.log(p + 1e-300) - np.log(np.maximum(q, 1e-9)))) * width**2)
