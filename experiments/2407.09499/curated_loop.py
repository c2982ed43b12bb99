r"""A model that is trained on its own samples, of which a reward keeps the better ones: what happens, beside what must happen.

    python experiments/2407.09499/curated_loop.py

Of every K draws of the law :math:`p_t` one is kept, with probabilities softmax(r) (Bradley and Terry for K = 2); the next law is
that of what was kept, or half of it with half of the real data. In the limit of exact learning the map is known,

.. math:: p_{t+1}(x) = K\,p_t(x)\,E\Big[\frac{e^{r(x)}}{e^{r(x)} + \sum_{j<K} e^{r(y_j)}}\Big],\qquad
          K = 2:\ p_t(x)\,E_y[2\,\mathrm{sig}(r(x) - r(y))],\qquad K\to\infty:\ \frac{p_t\,e^{r}}{E[e^{r}]} .

First on six states, exactly. Then a small denoiser on four modes in the plane is retrained on its own curated samples, generation
after generation (each begins at the parameters of the one before), beside the same map iterated on a grid. The distance is sliced
W2 to as many draws from the grid; its floor is that of two such draws. "No curation" shows what retraining alone does.
Source: Ferbach et al., arXiv 2407.09499.
"""

from __future__ import annotations

import time

import jax
import numpy as np
import optax

import scorelab as sl
from scorelab import metrics, viz
from scorelab.run.script import parse, record, script

STATES, WEIGHTS = np.array([-1.0, 0.0, 0.5, 1.0, 1.5, 2.0]), np.array([0.1, 0.3, 0.25, 0.2, 0.05, 0.1])
MEANS = np.array([[-2.0, 0.0], [0.0, 2.0], [0.0, -2.0], [2.0, 0.0]])
LAW = sl.densities.GaussianMixture([0.4, 0.25, 0.25, 0.1], MEANS, 0.09)
SIDE = np.linspace(-3.6, 3.6, 97)
POINTS = np.stack(np.meshgrid(SIDE, SIDE, indexing="ij"), -1).reshape(-1, 2)
PROCESS = sl.processes.Gaussian(schedule=sl.schedules.EDM())
# name -> (candidates, share of curated samples in the next generation)
LOOPS = {"curated": (2, 1.0), "half real": (2, 0.5), "no curation": (1, 1.0)}


def reward(x: np.ndarray) -> np.ndarray:
    """Near the rarest mode is best, ``(n,)``."""
    return -0.25 * np.sum((np.asarray(x, np.float64) - MEANS[3]) ** 2, axis=1)


def curate(p: np.ndarray, r: np.ndarray, k: float) -> np.ndarray:
    r"""The law of what is kept of ``k`` draws from weights ``p`` ``(n,)`` with rewards ``r`` ``(n,)``; ``k`` may be infinite.

    A sum over pairs for two. For more, :math:`\frac1{a+S} = \int_0^\infty e^{-s(a+S)}ds` makes the mean over the other draws the
    power of one transform, :math:`\int_0^\infty e^{-s e^{r(x)}}\,E[e^{-s e^{r}}]^{K-1} ds`: a quadrature on the log scale.
    """
    if not (k == np.inf or (k == int(k) and k >= 1)):
        raise ValueError(f"curate.k = {k!r}: expected an integer >= 1, or infinity")
    if k == 1:
        return p
    if k == np.inf:
        kept = p * np.exp(r - r.max())
    elif k == 2:
        kept = p * np.array([np.sum(p * _sigmoid(r[i : i + 1] - r)) for i in range(len(r))])
    else:
        a = np.exp(r - r.max())
        log_s = np.linspace(-40.0, 40.0 - np.log(a[p > 0].min()), 4001)
        s = np.exp(log_s)
        others = np.sum(p[:, None] * np.exp(-np.outer(a, s)), axis=0) ** (k - 1)
        kept = p * a * np.trapezoid(np.exp(-np.outer(a, s)) * others * s, log_s, axis=1)
    return kept / kept.sum()


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * z))


def keep_one(rng: np.random.Generator, x: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Of candidates ``(n, k, ...)`` one in each row, with probabilities softmax(r) of the rewards ``(n, k)``."""
    # The largest of independent Gumbel numbers on top of r is drawn by softmax(r).
    return x[np.arange(len(x)), np.argmax(r + rng.gumbel(size=r.shape), axis=1)]


def loop(p: np.ndarray, r: np.ndarray, k: float, share: float, generations: int) -> np.ndarray:
    """The laws ``(generations + 1, n)`` of the loop that starts from the real ``p`` and keeps ``1 - share`` of it."""
    laws = [p]
    for _ in range(generations):
        laws.append((1 - share) * p + share * curate(laws[-1], r, k))
    return np.array(laws)


def moments(laws: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the reward under every law."""
    mean = laws @ r
    return mean, np.sum(laws * (r - mean[:, None]) ** 2, axis=1)


class Trainer:
    """Denoisers of the same form, each trained from the one before."""

    def __init__(self, steps: int):
        self.steps = steps
        self.denoiser = sl.models.Denoiser(net=sl.models.nets.MLP(width=128, depth=3), process=PROCESS, data_std=1.5)
        self.loss = sl.losses.DenoisingScoreMatching(PROCESS)
        self.optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    def fit(self, x, seed: int, before=None):
        # The first one has everything to learn; later ones begin where the last one ended.
        model, batches = before, sl.data.Batches({"x": x}, batch_size=512)
        for part in range(3 if before is None else 1):
            learner = sl.training.ScoreLearner(
                self.denoiser, self.loss, self.optimizer, ema=sl.training.EMA(decay=0.99), initial=model
            )
            model = learner.model(sl.training.fit(learner, batches, steps=self.steps, key=jax.random.key(100 * seed + part)))
        return model

    def draw(self, model, n: int, seed: int) -> np.ndarray:
        return np.asarray(
            sl.sample(model, solver=sl.solvers.Heun(), grid=sl.grids.Karras(18), key=jax.random.key(seed), shape=(n, 2)).x
        )


def from_grid(rng: np.random.Generator, p: np.ndarray, n: int) -> np.ndarray:
    """Draws from the density on the grid: a cell, and a point in it."""
    step = SIDE[1] - SIDE[0]
    return POINTS[rng.choice(len(p), n, p=p)] + rng.uniform(-step / 2, step / 2, size=(n, 2))


def retrained(trainer: Trainer, name: str, first, laws: np.ndarray, generations: int, n: int, seed: int):
    """Reward and distance of every generation of one loop, and its points."""
    k, share = LOOPS[name]
    rng, model, rows, frames = np.random.default_rng(seed), first, [], []
    real = np.asarray(LAW.sample(jax.random.key(seed), n))
    for generation in range(generations + 1):
        x = trainer.draw(model, n * k, 1000 * seed + generation)
        r = reward(x)
        exact = [from_grid(rng, laws[generation], n) for _ in range(2)]
        distance = lambda a, b: metrics.sliced_wasserstein(jax.random.key(0), a, b).value
        rows.append(dict(mean=float(r.mean()), variance=float(r.var()), distance=distance(x[:n], exact[0]), floor=distance(*exact)))
        frames.append(x[:2000])
        if generation == generations:
            return rows, frames
        kept = keep_one(rng, x.reshape(n, k, 2), r.reshape(n, k))
        kept = np.where(rng.uniform(size=(n, 1)) < share, kept, real)
        model = trainer.fit(kept.astype(np.float32), 1000 * seed + generation, model)


def curves(exact: dict, numbers: dict):
    """Reward and distance by generation, one line for each seed, beside the map iterated."""
    t = np.arange(len(exact["curated"][0]))
    column = lambda name, which: (t, np.array([[row[which] for row in rows] for rows in numbers[name]]).T)
    known = lambda i: {"exact": (t, np.array([moments[i] for moments in exact.values()]).T)}
    panel = lambda which, title, more, **options: viz.Panel(
        series={name: column(name, which) for name in LOOPS} | more, title=title, xlabel="generation", markers=True, **options
    )
    content = [
        panel("mean", "mean reward", known(0)),
        panel("variance", "variance of the reward", known(1), logy=True),
        panel("distance", "sliced W2 to the exact law", {"floor": column("no curation", "floor")}),
    ]
    return viz.panels(content, reference=("exact",), width=11.0)


def main() -> None:
    arguments = parse(__doc__, small=dict(seeds=1, generations=1, n=1024, steps=50), seeds=2, generations=6, n=4096, steps=400)
    six = {}
    for name, (k, share) in {"pure, K = inf": (np.inf, 1.0), "pure, K = 2": (2, 1.0), "half real, K = 2": (2, 0.5)}.items():
        six[name] = [v.tolist() for v in moments(loop(WEIGHTS, STATES, k, share, 12), STATES)]
        print(f"six states, {name}: mean", np.round(six[name][0], 2), "variance", np.round(six[name][1], 3), flush=True)
    density = np.exp(np.asarray(LAW.log_prob(POINTS), np.float64))
    density /= density.sum()
    r, generations = reward(POINTS), arguments.generations
    laws = {name: loop(density, r, k, share, generations) for name, (k, share) in LOOPS.items()}
    exact = {name: [v.tolist() for v in moments(laws[name], r)] for name in LOOPS}

    began, trainer = time.process_time(), Trainer(arguments.steps)
    numbers, frames = {name: [] for name in LOOPS}, {}
    for seed in range(arguments.seeds):
        first = trainer.fit(np.asarray(LAW.sample(jax.random.key(50 + seed), arguments.n), np.float32), seed)
        for name in LOOPS:
            rows, shown = retrained(trainer, name, first, laws[name], generations, arguments.n, seed)
            numbers[name].append(rows)
            frames.setdefault(name, shown)
            for which in ("mean", "variance", "distance", "floor"):
                print(f"seed {seed}, {name}, {which}:", np.round([row[which] for row in rows], 3))
            print(f"exact: {np.round(exact[name], 3).tolist()}, {time.process_time() - began:.0f} s", flush=True)

    t = np.arange(generations + 1)
    clouds = {
        name.replace(" ", "_"): viz.trajectory(np.array(frames[name]), [f"generation {i}" for i in t], width=11.0)
        for name in ("curated", "half real")
    }
    found = dict(six=six, exact=exact, retrained=numbers)
    record(arguments, found, curves=curves(exact, numbers), **clouds)


if __name__ == "__main__":
    script(main)
