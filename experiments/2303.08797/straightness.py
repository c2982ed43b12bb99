"""Couplings and straight flows: independent pairs, minibatch optimal transport, and pairs that a flow has made (reflow).

A ring of eight Gaussians from N(0, I) on straight paths without latent noise. One network learns the velocity under each
coupling, with equal sizes and steps. Straightness is the variance of the velocity along a path of the flow, over the dimension. KL
in nats of the data to samples, both smoothed by .1, on a grid of cells, by the number of Euler steps.
"""

from __future__ import annotations

import jax
import numpy as np
import optax
from epsilon import data, divergence

import scorelab as sl
from scorelab import viz
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="",
    claims="A coupling may be chosen freely, and one that is near to optimal transport makes flows that need few steps.",
    look_for="The larger the batch that is joined, the straighter the flow; one round of reflow is straighter still. At one step "
    "they win by an order of magnitude and more. At 64 steps independent pairs are as good: a sharper map is harder to learn.",
    minutes=dict(small=3, full=8, gpu=None),
    options=dict(seeds=3, steps=4000, n=30_000, pairs=60_000),
    small=dict(seeds=2, steps=1000, n=20_000, pairs=30_000),
)

COUPLINGS = {
    "independent": None,
    "assignment of 32": sl.data.Assignment(batch=32),
    "assignment of 64": sl.data.Assignment(batch=64),
    "assignment of 256": sl.data.Assignment(batch=256),
}
REFLOW, BATCH = "reflow", 256
CALLS = (1, 2, 4, 8, 16, 64)


def flow(coupling):
    base = sl.densities.Gaussian(np.zeros(2), 1.0)
    return sl.processes.StochasticInterpolant(gamma=sl.processes.gammas.Zero(), base=base, coupling=coupling)


def judged(process, batches, options, seed) -> tuple:
    """A trained model, and what is measured of it."""
    net = sl.models.nets.MLP(width=128, depth=3, embed=32)
    field = sl.models.InterpolantField(net=net, process=process, data_std=2.15)
    loss = sl.losses.InterpolantMatching(process, heads=("u",))
    rate = optax.cosine_decay_schedule(2e-3, options.steps)
    learner = sl.training.ScoreLearner(field, loss, optax.adam(rate), ema=None)
    model = learner.model(sl.training.fit(learner, batches, steps=options.steps, key=jax.random.key(seed)))

    error = jax.jit(lambda key, model, batch: loss(key, model, batch).mean())
    keys = jax.random.split(jax.random.key(50 + seed), 40)
    # The squared error over all elements, on batches that were not trained on.
    floor = 2 * np.mean([float(error(key, model, batches.at(options.steps + i))) for i, key in enumerate(keys)])
    key = jax.random.key(10 + seed)
    straight = float(sl.distill.straightness(model, grid=sl.grids.Uniform(64), key=key, shape=(4000, 2)))
    solver, kl, shown = sl.solvers.InterpolantODE(rule="euler"), {}, {}
    for calls in CALLS:
        x = np.asarray(sl.sample(model, solver=solver, grid=sl.grids.Uniform(calls), key=key, shape=(options.n, 2)).x)
        kl[f"{calls}"] = divergence(x)
        if calls in (1, 4, 64):
            shown[f"{calls}"] = x[:1500]
    return model, dict(loss=float(floor), straightness=straight, kl=kl, shown=shown)


def measure(name, seed, options) -> dict:
    """Of one coupling; with independent pairs, of one round of reflow too."""
    x = np.asarray(data().sample(jax.random.key(100 + seed), 100_000))
    batches, coupling = sl.data.Batches({"x": x}, batch_size=BATCH, seed=seed), COUPLINGS[name]
    process = flow(coupling)
    if coupling is not None:
        return {name: judged(process, sl.data.Coupled(batches, coupling, process.base, seed=seed), options, seed)[1]}
    model, found = judged(process, batches, options, seed)
    pairs = sl.distill.rectified_pairs(
        model, solver=sl.solvers.InterpolantODE(rule="euler"), grid=sl.grids.Uniform(64), key=jax.random.key(200 + seed),
        shape=(options.pairs, 2),
    )  # fmt: skip
    again = sl.data.Batches(pairs, batch_size=BATCH, seed=seed)
    floor = divergence(data().sample(jax.random.key(5 + seed), options.n))
    return {name: found | dict(floor=floor), REFLOW: judged(flow(sl.data.Rectified()), again, options, seed)[1]}


def curves(numbers):
    """KL against the calls; every dot is a seed."""
    floor = np.mean([row["floor"] for row in numbers["independent"]])
    series = {name: (np.array(CALLS), np.array([list(row["kl"].values()) for row in rows]).T) for name, rows in numbers.items()}
    series["as many exact samples"] = (np.array(CALLS), np.full(len(CALLS), floor))
    return viz.lines(
        series, xlabel="Euler steps", ylabel="KL of data to samples, nats", logx=True, logy=True, mean=True,
        reference=("as many exact samples",),
    )  # fmt: skip


def samples(numbers):
    """Samples of the first seed."""
    kinds = ("independent", "assignment of 256", REFLOW)
    rows = [[np.asarray(numbers[name][0]["shown"][calls]) for calls in ("1", "4", "64")] for name in kinds]
    return viz.scatter_grid(rows, rows=list(kinds), headings=["1 step", "4 steps", "64 steps"])


def claims(numbers) -> list[Claim]:
    """Spreads are over seeds."""
    of = lambda name, what: np.array([row[what] for row in numbers[name]])
    kl = lambda name, calls: np.array([row["kl"][f"{calls}"] for row in numbers[name]])
    spread = lambda values: values.std(ddof=values.size > 1)
    best = "assignment of 256"
    straighter = of("independent", "straightness") / of(best, "straightness")
    gain = kl("independent", 1) / kl(best, 1)
    order = [of(name, "straightness").mean() for name in (*COUPLINGS, REFLOW)]
    late = kl(best, 64) / kl("independent", 64)
    return [
        Claim(
            says="Minibatch optimal transport makes flows straight.", value=straighter.mean(), spread=spread(straighter),
            unit="times the S of an assignment of 256 have independent pairs",
            verdict="reproduced" if straighter.mean() > 50 else "in shape" if straighter.mean() > 10 else "not reproduced",
            why="Tenfold would be in shape, and fifty is the limit. "
            f"S is {plus_minus(of('independent', 'straightness'))} and {of(best, 'straightness').mean():.4f}.",
        ),
        Claim(
            says="One Euler step is then nearly enough.", value=gain.mean(), spread=spread(gain),
            unit="times the KL of one step with an assignment of 256 have independent pairs",
            verdict="reproduced" if gain.mean() > 20 else "in shape" if gain.mean() > 5 else "not reproduced",
            why=f"Fivefold would be in shape, and twenty is the limit. KL is "
            f"{plus_minus(kl('independent', 1))} and {plus_minus(kl(best, 1))} nats.",
        ),
        Claim(
            says="More rows that are joined at once, and then pairs of a flow, make it straighter.", value=order[-1], spread=0.0,
            unit="S after one round of reflow", verdict="reproduced" if np.all(np.diff(order) < 0) else "not reproduced",
            why="S is " + ", ".join(f"{s:.2g}" for s in order) + " in the order of the couplings.",
        ),
        Claim(
            says="With many steps the coupling does not matter.", value=late.mean(), spread=spread(late),
            unit="times the KL of independent pairs at 64 steps has an assignment of 256",
            verdict="reproduced" if 0.5 < late.mean() < 2 else "not reproduced",
            why=f"KL is {plus_minus(kl('independent', 64))} and {plus_minus(kl(best, 64))} nats; exact samples have "
            f"{of('independent', 'floor').mean():.3f}.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o = record.options
    found = record.cells(measure, {f"{name}, seed {seed}": (name, seed, o) for name in COUPLINGS for seed in range(o.seeds)})
    parts = [{k: v for name in COUPLINGS for k, v in found[f"{name}, seed {seed}"].items()} for seed in range(o.seeds)]
    numbers = {name: [part[name] for part in parts] for name in (*COUPLINGS, REFLOW)}
    for name, rows in numbers.items():
        for row in rows:
            print(f"{name:18} loss {row['loss']:.3f}, S {row['straightness']:.4f}", {k: round(v, 3) for k, v in row["kl"].items()})
    kept = {name: [{k: v for k, v in row.items() if k != "shown"} for row in rows] for name, rows in numbers.items()}
    record.write(kept, claims=claims(numbers), curves=curves(numbers), samples=samples(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
