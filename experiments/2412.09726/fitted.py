"""Mixtures of Gaussians as score models: fitted by denoising score matching, beside k-means, EM and a trained network.

The model is the exact score of a mixture under noise. Its weights, means, orthonormal directions, variances along them and the
variance across them are trained on the loss of the network, from the k-means mixture on. All mixtures of one rank have the mean of
the variances left out across their directions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from subject import DATA, some_of, subject

from scorelab import viz
from scorelab.densities import Empirical, Gaussian, GaussianMixture
from scorelab.diagnostics import explained_variance
from scorelab.models import ExactModel
from scorelab.models.base import Trainable
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.run.figure import Claim, Figure
from scorelab.training import ScoreLearner, fit

FIGURE = Figure(
    __doc__,
    answers="",
    claims="A mixture can be trained as a score model from a k-means start, and its denoising loss falls with the number and the "
    "rank of its components (CIFAR-10, one of rank 3072: 154; of rank 128: 392; fifty of rank 1024: 126).",
    look_for="Fitted mixtures below k-means and EM in the loss of test images, and all of them above the network.",
    minutes=dict(small=1, full=8, gpu=None),
    options=dict(data=DATA, workdir=Path, seeds=3, most=50, steps=1500, points=256),
    small=dict(seeds=1, most=10, steps=300, points=64),
)

SIGMAS = (0.1, 0.2, 0.5, 1.0, 2.0)
COMPONENTS = (1, 10, 50)
# As shares of the number of pixels.
SHARES = (1 / 4, 1)
# Variance added to every direction; draws of times and noise of a loss, of at most so many images; batch size, learning rate.
FLOOR, DRAWS, MOST, BATCH, RATE = 1e-4, 16, 500, 128, 2e-3


def orthonormal(directions: jax.Array) -> jax.Array:
    """The orthonormal columns nearest to ``(k, d, r)`` columns that are nearly so: Newton's and Schulz's iteration."""
    for _ in range(6):
        directions = 1.5 * directions - 0.5 * directions @ (directions.mT @ directions)
    return directions


def retracted(updates: dict[str, jax.Array], params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The updates after which the directions are orthonormal, as the score takes them to be."""
    before = params["directions"]
    return updates | dict(directions=orthonormal(before + updates["directions"]) - before)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mixture:
    """The score of a mixture of low-rank Gaussians with free parameters, see :func:`free`; two matrix products per call."""

    params: dict[str, jax.Array]
    process: LinearGaussian = field(metadata=dict(static=True))

    def __call__(self, y, t, cond=None):
        """Predict for ``y`` ``(batch, *event)``: the posterior means of the components, by their responsibilities."""
        p, flat = self.params, y.reshape(len(y), -1)
        alpha, sigma = (jnp.broadcast_to(f(t), len(y))[:, None] for f in (self.process.alpha, self.process.sigma))
        basis, inside, across = p["directions"], jnp.exp(p["log_variances"]), jnp.exp(p["log_tail"])
        (k, d, r), matrix = basis.shape, basis.transpose(1, 0, 2).reshape(basis.shape[1], -1)
        # Noised variances along the directions (batch, k, r) and across them (batch, k).
        along, rest = alpha[..., None] ** 2 * inside + sigma[..., None] ** 2, alpha**2 * across + sigma**2
        means = alpha[..., None] * p["means"]
        c = (flat @ matrix).reshape(-1, k, r) - alpha[..., None] * jnp.einsum("kd,kdr->kr", p["means"], basis)
        squares = jnp.sum(flat**2, -1, keepdims=True) - 2 * alpha * flat @ p["means"].T + jnp.sum(means**2, -1)
        outside = jnp.maximum(squares - jnp.sum(c**2, -1), 0.0)
        log_density = -0.5 * (jnp.sum(c**2 / along + jnp.log(along), -1) + outside / rest + (d - r) * jnp.log(rest))
        gamma = jax.nn.softmax(p["logits"] + log_density, axis=-1)
        gain, gain_across = alpha[..., None] * inside / along, alpha * across / rest
        weighted = (gamma[..., None] * (gain - gain_across[..., None]) * c).reshape(len(y), -1) @ matrix.T
        own = gamma * gain_across
        denoised = (gamma - own * alpha) @ p["means"] + jnp.sum(own, -1, keepdims=True) * flat + weighted
        return self.process.predict(y, t, denoised=denoised.reshape(y.shape))


@dataclass(frozen=True)
class Ansatz(Trainable):
    """The mixture as what is trained, from the parameters of a first one."""

    process: LinearGaussian

    def init(self, key, x, cond=None, like=None):
        """A copy of the parameters of ``like``."""
        return jax.tree.map(jnp.asarray, like.params)

    def bind(self, params, dropout=None):
        """The model with these parameters."""
        return Mixture(params, self.process)


def free(law: GaussianMixture) -> dict[str, jax.Array]:
    """Free parameters of a mixture: weights by softmax, orthonormal directions, variances by exp."""
    g = law.components
    means = g.mean.reshape(len(g.mean), -1)
    return dict(
        logits=law.log_weights, means=means, directions=g.basis, log_variances=jnp.log(g.eigenvalues), log_tail=jnp.log(g.tail),
    )  # fmt: skip


def law_of(params: dict[str, jax.Array], event: tuple[int, ...]) -> GaussianMixture:
    """The mixture of free parameters."""
    basis, variances, tail = params["directions"], jnp.exp(params["log_variances"]), jnp.exp(params["log_tail"])
    components = [
        Gaussian.low_rank(np.asarray(mean).reshape(event), b, v, t)
        for mean, b, v, t in zip(params["means"], basis, variances, tail, strict=True)
    ]
    return GaussianMixture.of(np.asarray(jax.nn.softmax(params["logits"])), components)


def truncated(law: GaussianMixture, rank: int) -> GaussianMixture:
    """The mixture with the leading ``rank`` directions of each covariance and the mean of the other variances across them."""
    components = []
    for k in range(len(law.log_weights)):
        g = jax.tree.map(lambda leaf, k=k: np.asarray(leaf[k], np.float64), law.components)
        order = np.argsort(-g.eigenvalues)
        basis, variances = np.linalg.qr(g.basis[:, order])[0], g.eigenvalues[order]
        tail = variances[rank:].mean() if rank < len(variances) else FLOOR
        components.append(Gaussian.low_rank(g.mean, basis[:, :rank], variances[:rank], tail))
    return GaussianMixture.of(np.asarray(law.weights), components)


def expectation_maximisation(y: np.ndarray, components: int, seed: int) -> GaussianMixture:
    """The mixture of largest likelihood that EM finds, with full covariances."""
    from sklearn.mixture import GaussianMixture as EM  # takes more than a second

    found = EM(components, reg_covar=FLOOR, random_state=seed).fit(y.reshape(len(y), -1).astype(np.float64))
    return GaussianMixture(found.weights_, found.means_.reshape(-1, *y.shape[1:]), found.covariances_)


def fitted(who, start: GaussianMixture, steps: int, seed: int) -> GaussianMixture:
    """The mixture that denoising score matching makes of ``start``, with the network's loss and batches."""
    process = who.config.process
    optimizer = optax.chain(optax.adam(optax.cosine_decay_schedule(RATE, steps)), optax.stateless(retracted))
    learner = ScoreLearner(
        Ansatz(process), who.config.learner.loss, optimizer, ema=None, initial=Mixture(free(start), process),
    )  # fmt: skip
    state = fit(learner, who.config.data.batches(BATCH, seed), steps=steps, key=jax.random.key(seed))
    return law_of(state.params, start.event)


@functools.partial(jax.jit, static_argnames="loss")
def _mean_loss(model, keys, x, *, loss):
    return jnp.mean(jax.lax.map(lambda key: jnp.mean(loss(key, model, {"x": x, "cond": None})), keys))


def losses(who, model, seed: int) -> dict:
    """The network's loss of a model on as many training as test images, over the same draws for every model."""
    keys, n = jax.random.split(jax.random.key(seed), DRAWS), min(MOST, len(who.data("test")))
    images = {split: jnp.asarray(who.transform.encode(who.data(split).x[:n])) for split in ("train", "test")}
    return {split: float(_mean_loss(model, keys, x, loss=who.config.learner.loss)) for split, x in images.items()}


def measure(options, components: int, rank: int, seed: int) -> dict:
    """Law -> its losses and how much of the network's score it explains."""
    who, y = subject(options)
    process = who.config.process
    kmeans = GaussianMixture.fit(y, components, floor=FLOOR, seed=seed)
    start = truncated(kmeans, rank)
    laws = {
        "k-means": start,
        "EM": truncated(expectation_maximisation(y, components, seed), rank),
        "fitted": fitted(who, start, options.steps, seed),
    }
    explained = explained_variance(who.model, laws, some_of(who, options.points, seed), SIGMAS, key=jax.random.key(seed))
    return {
        name: losses(who, ExactModel(law, process), seed) | dict(explained=explained[name].mean_of_ratios)
        for name, law in laws.items()
    }


def yardsticks(options, seed: int) -> dict:
    """The same of the network and of the law of the training set."""
    who, y = subject(options)
    whole = Empirical(y)
    explained = explained_variance(who.model, whole, some_of(who, options.points, seed), SIGMAS, key=jax.random.key(seed))
    return {
        "network": losses(who, who.model, seed),
        "training set": losses(who, ExactModel(whole, who.config.process), seed) | dict(explained=explained.mean_of_ratios),
    }


def row(numbers: dict, name: str, rank: int, column: str) -> np.ndarray:
    """One number of every mixture of a rank, ``(components, seeds, ...)``; the yardsticks are alike for all components."""
    seeds = numbers["seeds"].values()
    if name in ("network", "training set"):
        return np.array([[seed[name][column] for seed in seeds]] * len(numbers["components"]), float)
    return np.array([[seed[f"{k} of rank {rank}"][name][column] for seed in seeds] for k in numbers["components"]], float)


def claims(numbers: dict) -> list[Claim]:
    """What the paper's tables say of the ansatz, beside what was found."""
    low, full = numbers["ranks"]
    train, test = (row(numbers, "fitted", full, split) for split in ("train", "test"))
    number, rank = train[-1] / train[0], row(numbers, "fitted", low, "train")[0] / train[0]
    gain = test / row(numbers, "k-means", full, "test")
    at = SIGMAS.index(0.2)
    better = (row(numbers, "fitted", full, "explained") - row(numbers, "training set", full, "explained"))[-1, :, at]
    most = numbers["components"][-1]
    count = train.shape[1]
    seeds = f"spread over {count} seeds of fit and draws" if count > 1 else "one seed of fit and draws"
    return [
        Claim(
            says="The training loss falls with the number of components: 157 for one and 126 for fifty, .80 times (CIFAR-10, rank "
            "1024).",
            value=number.mean(), spread=number.std(), unit=f"times the loss of one component, {most} of full rank",
            verdict="reproduced" if number.max() < 0.9 else "in shape" if number.max() < 1 else "not reproduced",
            why=f"Below .9 counts as reproduced; {seeds}.",
        ),
        Claim(
            says="It falls with the rank: 392 at rank 128 and 154 at 3072, 2.5 times (CIFAR-10, one component).",
            value=rank.mean(), spread=rank.std(), unit=f"times the loss of full rank, one component of rank {low} of {full}",
            verdict="reproduced" if rank.min() > 1.5 else "in shape" if rank.min() > 1 else "not reproduced",
            why="Above 1.5 counts as reproduced. Here the directions left out have their mean variance, so that less is lost; "
            f"{seeds}.",
        ),
        Claim(
            says="A mixture can be trained as a score model from a k-means start.", value=gain[-1].mean(), spread=gain[-1].std(),
            unit=f"times the test loss of k-means, {most} of full rank",
            verdict="reproduced" if gain[-1].max() < 1 else "not reproduced", why=f"Below 1 for every seed; {seeds}.",
        ),
        Claim(
            says="At small noise the network's score is better described by a mixture than by that of the training set.",
            value=better.mean(), spread=better.std(), unit=f"explained variance more at noise level .2, {most} of full rank",
            verdict="reproduced" if better.min() > 0 else "not reproduced", why=f"Above 0 for every seed; {seeds}.",
        ),
    ]  # fmt: skip


def figure(numbers: dict, data: str):
    """Losses by number of components, and explained variance by noise level."""
    low, full = numbers["ranks"]
    k = np.array(numbers["components"])

    def loss(split, rank):
        names = ("k-means", "EM", "fitted", "network")
        series = {name: (k, row(numbers, name, rank, split)) for name in names}
        return viz.Panel(series=series, title=f"{data}: {split} images, rank {rank} of {full}", xlabel="components",
            ylabel="denoising loss", logx=True, logy=True, markers=True, mean=True)  # fmt: skip

    names = ("k-means", "EM", "fitted", "training set")
    series = {name: (np.array(SIGMAS), 1 - row(numbers, name, full, "explained")[-1].T) for name in names}
    explained = viz.Panel(series=series, title=f"the network's score by {k[-1]} components of rank {full}", xlabel="noise level",
        ylabel="unexplained share", logx=True, logy=True, markers=True, mean=True)  # fmt: skip
    return viz.panels([loss("train", full), loss("test", full), loss("test", low), explained], columns=2, reference=("network",))


def main(record) -> None:
    o = record.options
    who, y = subject(o)
    components, ranks = [k for k in COMPONENTS if k <= o.most], [round(share * y[0].size) for share in SHARES]
    pairs = {f"{k} of rank {rank}": (k, rank) for k in components for rank in ranks}
    seeds = {}
    for seed in range(o.seeds):
        found = record.cells(measure, {f"{name}, seed {seed}": (o, *pair, seed) for name, pair in pairs.items()})
        seeds[str(seed)] = dict(zip(pairs, found.values(), strict=True)) | record.cell(f"others, seed {seed}", yardsticks, o, seed)
    numbers = dict(model=who.origin, sigmas=SIGMAS, components=components, ranks=ranks, seeds=seeds)
    for name, rows in seeds["0"].items():
        laws = {name: rows} if "train" in rows else rows
        print(f"{name:14s} " + "; ".join(f"{law}: {v['train']:.4f} train, {v['test']:.4f} test" for law, v in laws.items()))
    record.write(numbers, claims=claims(numbers), losses=figure(numbers, o.data))


if __name__ == "__main__":
    FIGURE.make(main)
