"""Mixtures of Gaussians as score models: fitted by denoising score matching, beside k-means, EM and a trained network.

The model is the exact score of a mixture under noise. Its weights, means and covariances are trained on the loss of the network,
from the centres of k-means and covariances that are too narrow. The best single component of full rank is known: it is the Gaussian
with the moments of the data, which k-means gives too. k-means and EM of low rank have the mean of the variances left out.
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
    look_for="One fitted component of full rank at the loss of k-means, which is the least that one can have. Ten of them below "
    "k-means and near EM on test images, and above the network.",
    minutes=dict(small=1.5, full=12, gpu=None),
    options=dict(data=DATA, workdir=Path, seeds=3, most=50, steps=1500, points=256),
    small=dict(seeds=2, most=10, steps=600, points=64),
)

SIGMAS = (0.1, 0.2, 0.5, 1.0, 2.0)
COMPONENTS = (1, 10, 50)
# As shares of the number of pixels.
SHARES = (1 / 4, 1)
# Variance added to every direction; draws of times and noise of a loss, of at most so many images; batch size, learning rate.
FLOOR, DRAWS, MOST, BATCH, RATE = 1e-4, 16, 500, 128, 5e-3


@jax.custom_vjp
def solved(cov: jax.Array, alpha: jax.Array, sigma: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    r""":math:`A^{-1}x` ``(k, batch, d)`` and :math:`\log\det A` ``(k, batch)`` of :math:`A=\alpha^2\Sigma_k+\sigma^2`.

    One eigendecomposition of each ``cov`` ``(k, d, d)`` serves all noise levels ``(batch,)``. The derivative of eigenvectors, which
    has none where two eigenvalues agree, is not needed: :math:`dA^{-1}=-A^{-1}\,dA\,A^{-1}` and
    :math:`d\log\det A=\mathrm{tr}\,A^{-1}dA`.
    """
    return _solved(cov, alpha, sigma, x)[0]


def _solved(cov, alpha, sigma, x):
    w, basis = jnp.linalg.eigh(cov)
    noised = (alpha**2)[:, None] * jnp.maximum(w, 0.0)[:, None] + (sigma**2)[:, None]
    out = (x @ basis / noised) @ basis.mT
    return (out, jnp.sum(jnp.log(noised), -1)), (basis, noised, alpha, out)


def _solved_back(kept, cotangents):
    basis, noised, alpha, out = kept
    of_out, of_log_det = cotangents
    dx = (of_out @ basis / noised) @ basis.mT
    trace = jnp.sum((of_log_det * alpha**2)[..., None] / noised, 1)
    dcov = (basis * trace[:, None]) @ basis.mT - ((alpha**2)[:, None] * dx).mT @ out
    return dcov, None, None, dx


solved.defvjp(_solved, _solved_back)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mixture:
    """The score of a mixture of Gaussians: ``log_weights`` ``(k,)``, ``means`` ``(k, d)`` and ``covs`` ``(k, d, d)``."""

    log_weights: jax.Array
    means: jax.Array
    covs: jax.Array
    process: LinearGaussian = field(metadata=dict(static=True))

    def __call__(self, y, t, cond=None):
        """Predict for ``y`` ``(batch, *event)``: the scores of the noised components, by their responsibilities."""
        alpha, sigma = (jnp.broadcast_to(f(t), len(y)) for f in (self.process.alpha, self.process.sigma))
        x = y.reshape(len(y), -1) - alpha[:, None] * self.means[:, None]
        inverse, log_det = solved(self.covs, alpha, sigma, x)
        log_joint = self.log_weights[:, None] - 0.5 * (jnp.sum(x * inverse, -1) + log_det)
        score = -jnp.sum(jax.nn.softmax(log_joint, axis=0)[..., None] * inverse, axis=0)
        return self.process.predict(y, t, score=score.reshape(y.shape))

    def law(self, event: tuple[int, ...]) -> GaussianMixture:
        """The same as an exact law."""
        means = np.asarray(self.means).reshape(-1, *event)
        return GaussianMixture(np.asarray(jax.nn.softmax(self.log_weights)), means, np.asarray(self.covs))


@dataclass(frozen=True, eq=False)
class Ansatz(Trainable):
    """The mixture as what is trained, in coordinates in which the data have mean 0 and unit covariance.

    There a component has a mean, a row of ``centres`` ``(k, d)``, and the covariance :math:`LL^T` of its ``factors``
    ``(k, d, rank)``: all numbers are of order one. The variance ``exp(log_rest)`` ``(k,)`` is added in every direction of the data.

    Attributes:
        data: the Gaussian with the moments of the data.
        start: the mixture whose weights and means are the first ones.
        rank: number of columns. At first they are half the leading axes: too narrow, and alike in all components.
    """

    process: LinearGaussian
    data: Gaussian
    start: GaussianMixture
    rank: int

    def _axes(self):
        """The axes of the data, one a column, those of largest variance first, and the deviations along them."""
        order = jnp.argsort(-self.data.eigenvalues)
        return self.data.basis[:, order], jnp.sqrt(self.data.eigenvalues[order] + FLOOR)

    def init(self, key, x, cond=None, like=None):
        """The centres of ``start``; the directions left out have their mean variance."""
        axes, scales = self._axes()
        k, d = len(self.start.log_weights), self.data.size
        centres = (self.start.components.mean - self.data.mean).reshape(k, d) @ axes / scales
        rest = jnp.mean(scales[self.rank :] ** 2) if self.rank < d else FLOOR
        return dict(
            logits=self.start.log_weights, centres=centres, factors=jnp.tile(0.5 * jnp.eye(d, self.rank), (k, 1, 1)),
            log_rest=jnp.full(k, jnp.log(rest)),
        )  # fmt: skip

    def bind(self, params, dropout=None):
        """The mixture in the coordinates of the data."""
        axes, scales = self._axes()
        means = self.data.mean.ravel() + params["centres"] * scales @ axes.T
        factors = axes * scales @ params["factors"]
        covs = factors @ factors.mT + jnp.exp(params["log_rest"])[:, None, None] * jnp.eye(len(axes))
        return Mixture(jax.nn.log_softmax(params["logits"]), means, covs, self.process)


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


def fitted(who, y: np.ndarray, start: GaussianMixture, rank: int, steps: int, seed: int) -> GaussianMixture:
    """The mixture that denoising score matching finds from the centres of ``start``, with the network's loss and batches."""
    ansatz = Ansatz(who.config.process, Gaussian.from_data(y), start, rank)
    learner = ScoreLearner(ansatz, who.config.learner.loss, optax.adam(optax.cosine_decay_schedule(RATE, steps)), ema=None)
    state = fit(learner, who.config.data.batches(BATCH, seed), steps=steps, key=jax.random.key(seed))
    return ansatz.bind(state.params).law(start.event)


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
    laws = {
        "k-means": truncated(kmeans, rank),
        "EM": truncated(expectation_maximisation(y, components, seed), rank),
        "fitted": fitted(who, y, kmeans, rank, options.steps, seed),
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
    train = row(numbers, "fitted", full, "train")
    one = train[0] / row(numbers, "k-means", full, "train")[0]
    number, rank = train[-1] / train[0], row(numbers, "fitted", low, "train")[0] / train[0]
    at = SIGMAS.index(0.2)
    better = (row(numbers, "fitted", full, "explained") - row(numbers, "training set", full, "explained"))[-1, :, at]
    most = numbers["components"][-1]
    count = train.shape[1]
    seeds = f"spread over {count} seeds of fit and draws" if count > 1 else "one seed of fit and draws"
    return [
        Claim(
            says="A mixture can be trained as a score model; the best single component is the Gaussian with the data's moments.",
            value=one.mean(), spread=one.std(), unit="times the training loss of that Gaussian",
            verdict="reproduced" if abs(one - 1).max() < 0.02 else "in shape" if abs(one - 1).max() < 0.1 else "not reproduced",
            why=f"Within .02 of 1 for every seed counts as reproduced, from covariances of a quarter of the data's; {seeds}.",
        ),
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
            why="Above 1.5 counts as reproduced. Here the directions left out have a variance of their own, so that less is lost; "
            f"{seeds}.",
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
