r"""A model that is trained on its own samples, of which a reward keeps the better ones: what happens, beside what must happen.

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

import jax
import numpy as np
import optax

import scorelab as sl
from scorelab import metrics, viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="With curated samples alone the expected reward rises to its largest value and the variance of the reward vanishes; "
    "with a share of real data the reward rises too, stays bounded, and the loop is stable.",
    look_for="The trained loop follows the exact map: the curated cloud goes to the rarest mode, with real data all four stay.",
    minutes=dict(small=1, full=10, gpu=None),
    options=dict(seeds=2, generations=6, n=4096, steps=400),
    small=dict(seeds=2, generations=3, n=2048, steps=150),
)

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


def claims(exact: dict, numbers: dict) -> list[Claim]:
    """What the paper proves of the loop, in the trained one; spreads are over seeds."""
    column = lambda name, which: np.array([[row[which] for row in rows] for rows in numbers[name]])
    spread = lambda values: values.std(ddof=values.size > 1)
    mean, variance, half = column("curated", "mean"), column("curated", "variance"), column("half real", "mean")
    rise, left, bounded = mean[:, -1] - mean[:, 0], variance[:, -1] / variance[:, 0], half[:, -1] - half[:, 0]
    expected = [moments[-1] - moments[0] for moments, _ in (exact["curated"], exact["half real"])]
    share = exact["curated"][1][-1] / exact["curated"][1][0]
    t = mean.shape[1] - 1
    close = lambda found, known: abs(found - known) < 0.25 * abs(known)
    rising = "not reproduced" if (np.diff(mean) <= 0).any() else "reproduced" if close(rise.mean(), expected[0]) else "in shape"
    return [
        Claim(
            says="With curated samples alone the expected reward rises in every generation.", value=rise.mean(),
            spread=spread(rise), unit=f"rise of the mean reward in {t} generations", verdict=rising,
            why=f"The exact map rises by {expected[0]:.3g}; a quarter of that is allowed.",
        ),
        Claim(
            says="The variance of the reward vanishes.", value=left.mean(), spread=spread(left),
            unit=f"of the variance is left after {t} generations",
            verdict="reproduced" if left.max() < 0.1 else "in shape" if left.max() < 0.9 else "not reproduced",
            why=f"With the exact map {share:.3g} of it is left; vanished is a tenth.",
        ),
        Claim(
            says="With real data in every generation the reward rises too, and stays bounded.", value=bounded.mean(),
            spread=spread(bounded), unit=f"rise of the mean reward in {t} generations, half of the data real",
            verdict="reproduced" if close(bounded.mean(), expected[1]) and bounded.max() < rise.min() else "not reproduced",
            why=f"The exact map rises by {expected[1]:.3g}; a quarter of that is allowed, and less than without real data.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o, six = record.options, {}
    for name, (k, share) in {"pure, K = inf": (np.inf, 1.0), "pure, K = 2": (2, 1.0), "half real, K = 2": (2, 0.5)}.items():
        six[name] = [v.tolist() for v in moments(loop(WEIGHTS, STATES, k, share, 12), STATES)]
        print(f"six states, {name}: mean", np.round(six[name][0], 2), "variance", np.round(six[name][1], 3), flush=True)
    density = np.exp(np.asarray(LAW.log_prob(POINTS), np.float64))
    density /= density.sum()
    r = reward(POINTS)
    laws = {name: loop(density, r, k, share, o.generations) for name, (k, share) in LOOPS.items()}
    exact = {name: [v.tolist() for v in moments(laws[name], r)] for name in LOOPS}
    trainer = Trainer(o.steps)

    def measure(seed):
        first = trainer.fit(np.asarray(LAW.sample(jax.random.key(50 + seed), o.n), np.float32), seed)
        found = {name: retrained(trainer, name, first, laws[name], o.generations, o.n, seed) for name in LOOPS}
        return {name: dict(rows=rows, frames=np.array(frames)) for name, (rows, frames) in found.items()}

    found = record.cells(measure, {f"seed {seed}": (seed,) for seed in range(o.seeds)})
    numbers = {name: [cell[name]["rows"] for cell in found.values()] for name in LOOPS}
    for name, seeds in numbers.items():
        for which in ("mean", "variance", "distance", "floor"):
            print(f"{name}, {which}:", *(np.round([row[which] for row in rows], 3) for rows in seeds))
        print(f"exact: {np.round(exact[name], 3).tolist()}")
    t = np.arange(o.generations + 1)
    clouds = {
        name.replace(" ", "_"): viz.trajectory(found["seed 0"][name]["frames"], [f"{name}, {i}" for i in t], width=11.0)
        for name in ("curated", "half real")
    }
    document = dict(six=six, exact=exact, retrained=numbers)
    record.write(document, claims=claims(exact, numbers), curves=curves(exact, numbers), **clouds)


if __name__ == "__main__":
    FIGURE.make(main)
