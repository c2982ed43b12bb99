"""Iterated fitting between two Gaussians: the Schroedinger bridge round by round, and what reflow converges to.

Each round the linear interpolant with a Brownian gamma is fitted to the pairs that the last one made, by the SDE with the noise of
a Brownian motion. Between Gaussians every round is linear: the fields of ``ExactBridge`` have one matrix for each time, and the
cross-covariance of the next pairs is the solution of a linear equation. The limit is known in closed form. Without noise the
rounds are those of reflow.

Beside them networks do the same from samples: rounds of ``rectified_pairs``, and entropic pairs of minibatches.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

import scorelab as sl
from scorelab import viz
from scorelab.models.bridge import entropic_cross_covariance
from scorelab.run.figure import Claim, Figure, plus_minus
from scorelab.solvers.epsilons import SchroedingerBridge

FIGURE = Figure(
    __doc__,
    answers="",
    claims="The Schroedinger bridge is an interpolant with a coupling and a latent noise of its own.",
    look_for="Rounds converge to the bridge, fast where the reference is noisy and hardly where it is not. Without noise one round "
    "makes the flow straight, and it then stays where it is: close to optimal transport, and not there.",
    minutes=dict(small=2, full=14, gpu=None),
    options=dict(rounds=6, nodes=1000, seeds=3, steps=3000, n=50_000),
    small=dict(nodes=400, seeds=2, steps=800, n=20_000),
)

# Covariances of data and base; they do not commute. Means play no part.
P, Q = np.array([[0.8, 0.3], [0.3, 0.4]]), np.array([[1.0, -0.4], [-0.4, 1.2]])
VARIANCES = (2.0, 0.5, 0.1)
# The reference variance that networks are trained for.
LEARNED = 0.5
W2 = float(np.trace(P + Q) - 2 * np.trace(entropic_cross_covariance(P, Q)))


def process(std, **options):
    gamma = sl.processes.gammas.Brownian(scale=std) if std else sl.processes.gammas.Zero()
    return sl.processes.StochasticInterpolant(gamma=gamma, base=sl.densities.Gaussian(np.zeros(2), Q), **options)


def cost(cross) -> float:
    """E|x - w|^2 of centred ends."""
    return float(np.trace(P + Q) - 2 * np.trace(cross))


def next_cross(cross, std, nodes, down=True) -> np.ndarray:
    """Cov(x, w) of the ends of the SDE of one interpolant, from the exact fields, by the classical Runge-Kutta rule in float64."""
    with jax.enable_x64(True):
        made = process(std)
        pieces = sl.models.Pieces.joined(sl.densities.Gaussian(np.zeros(2), P), made.base)
        model = sl.models.ExactBridge(dataclasses.replace(pieces, cross=jnp.asarray(cross)[None]), made)
        times = np.linspace(0.0, 1.0, 2 * nodes + 1)
        y = jnp.asarray(np.concatenate([np.zeros((1, 2)), np.eye(2)]))
        found = jax.jit(jax.vmap(lambda t: (lambda p: (p.velocity, p.score))(model(y, t))))(jnp.asarray(times))
        velocity, score = (np.asarray(f)[:, 1:] - np.asarray(f)[:, :1] for f in found)
    # Rows are what unit points are moved by: dy/dt = y A, downwards with u - eps score and upwards with u + eps score.
    rate = velocity + (-1 if down else 1) * 0.5 * std**2 * score
    order, sign = (slice(None, None, -1), -1.0) if down else (slice(None), 1.0)
    rate, h = sign * rate[order], 1.0 / nodes
    flow = np.eye(2)
    for a, b, c in zip(rate[:-2:2], rate[1:-1:2], rate[2::2], strict=True):
        k1 = flow @ a
        k2 = (flow + h / 2 * k1) @ b
        k3 = (flow + h / 2 * k2) @ b
        k4 = (flow + h * k3) @ c
        flow = flow + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    # An end is (the other end) flow + noise of its own.
    return flow.T @ Q if down else P @ flow


def closed_form(variance, options) -> dict:
    """The errors of the cross-covariance after every round from independent ends, and the costs."""
    std, cross = variance**0.5, np.zeros((2, 2))
    limit = entropic_cross_covariance(P, Q, std)
    crosses = [cross]
    for number in range(options.rounds):
        crosses.append(next_cross(crosses[-1], std, options.nodes, down=number % 2 == 0))
    fixed = float(np.abs(next_cross(limit, std, options.nodes) - limit).max())
    errors = [float(np.abs(each - limit).max()) for each in crosses]
    return dict(errors=errors, costs=[cost(each) for each in crosses], limit=cost(limit), fixed=fixed)


def trained(made, pairs, options, seed, like=None):
    """A network that has learned from pairs, beginning with the weights of another one."""
    net = sl.models.nets.MLP(width=64, depth=2, embed=32)
    field = sl.models.InterpolantField(net=net, process=made)
    loss = sl.losses.InterpolantMatching(made)
    rate = optax.cosine_decay_schedule(4e-3 if like is None else 2e-3, options.steps)
    learner = sl.training.ScoreLearner(field, loss, optax.adam(rate), ema=None)
    return learner.model(sl.training.fit(learner, pairs, steps=options.steps, key=jax.random.key(seed)))


def sampled_cross(x, w) -> list:
    x, w = (np.asarray(a, np.float64) for a in (x, w))
    return ((x - x.mean(0)).T @ (w - w.mean(0)) / len(x)).tolist()


def learned(seed, options) -> dict:
    """Rounds of networks, from samples: cross-covariances of the pairs that each of them makes; and one under entropic pairs."""
    std = LEARNED**0.5
    x = np.asarray(sl.densities.Gaussian(np.zeros(2), P).sample(jax.random.key(100 + seed), options.n))
    solver, grid = sl.solvers.InterpolantSDE(epsilon=SchroedingerBridge()), sl.grids.Arcsine(40)
    made = process(std, coupling=sl.data.Rectified())
    pairs = sl.data.Coupled(sl.data.Batches({"x": x}, batch_size=512, seed=seed), sl.data.Rectified(), made.base, seed=seed)
    rounds = []
    for number in range(3):
        model = trained(made, pairs, options, seed)
        key = jax.random.key(1000 * seed + number)
        ends = dict(shape=x.shape) if number % 2 == 0 else dict(x=x)
        ours = sl.distill.rectified_pairs(model, solver=solver, grid=grid, key=key, **ends)
        rounds.append(sampled_cross(ours["x"], ours["base"]))
        pairs = sl.data.Batches(ours, batch_size=512, seed=seed + number + 1)
    coupling = sl.data.Entropic(std=std, batch=512)
    made = process(std, coupling=coupling)
    pairs = sl.data.Coupled(sl.data.Batches({"x": x}, batch_size=512, seed=seed), coupling, made.base, seed=seed)
    model = trained(made, pairs, options, seed)
    ours = sl.distill.rectified_pairs(model, solver=solver, grid=grid, key=jax.random.key(seed), shape=x.shape)
    return dict(rounds=rounds, entropic=sampled_cross(ours["x"], ours["base"]))


def curves(closed, found):
    """Errors and costs by round; dots are networks."""
    limit = entropic_cross_covariance(P, Q, LEARNED**0.5)
    error = lambda cross: float(np.abs(np.asarray(cross) - limit).max())
    series = {
        f"sigma^2 = {name}": (np.arange(len(row["errors"])), np.array(row["errors"])) for name, row in closed.items() if name != "0"
    }
    series[f"networks, sigma^2 = {LEARNED:g}"] = (
        np.arange(1, 4), np.array([[error(cross) for cross in row["rounds"]] for row in found]).T,
    )  # fmt: skip
    rounds = np.arange(1, len(closed["0"]["costs"]))
    reflow = {
        "reflow": (rounds, np.array(closed["0"]["costs"][1:])),
        "optimal transport": (rounds, np.full(len(rounds), W2)),
    }
    content = [
        viz.Panel(series=series, title="to the bridge", xlabel="round", ylabel="largest error of Cov(x, w)", logy=True, mean=True),
        viz.Panel(series=reflow, title="without noise", xlabel="round", ylabel="E|x - w|^2"),
    ]
    return viz.panels(content, columns=2, reference=("optimal transport",), width=9.0, height=3.2)


def claims(closed, found) -> list[Claim]:
    """What the rounds say; spreads are over seeds."""
    limit = entropic_cross_covariance(P, Q, LEARNED**0.5)
    error = lambda cross: float(np.abs(np.asarray(cross) - limit).max())
    third, entropic = (np.array(v) for v in ([error(r["rounds"][-1]) for r in found], [error(r["entropic"]) for r in found]))
    fixed = max(row["fixed"] for name, row in closed.items() if name != "0")
    noisy, quiet = closed["2"]["errors"], closed["0.1"]["errors"]
    reflow = closed["0"]["costs"]
    spread = lambda values: values.std(ddof=values.size > 1)
    independent, exact = np.abs(limit).max(), closed["0.5"]["errors"][3]

    def judge(values):
        return "reproduced" if values.mean() < 0.05 else "in shape" if values.mean() < 0.2 * independent else "not reproduced"

    return [
        Claim(
            says="The bridge is what iterated fitting leaves as it is.", value=fixed, spread=0.0,
            unit="largest change of Cov(x, w)", verdict="reproduced" if fixed < 1e-9 else "not reproduced",
            why="Exact fields, integrated to ten digits.",
        ),
        Claim(
            says="Rounds converge to the bridge, the slower the less noise the reference has.", value=noisy[-1] / noisy[-2],
            spread=0.0, unit="of the error is left by the last round at sigma^2 = 2",
            verdict="reproduced" if noisy[-1] / noisy[-2] < 0.5 < quiet[-1] / quiet[-2] < 1 else "not reproduced",
            why=f"At .1 it is {quiet[-1] / quiet[-2]:.3f}.",
        ),
        Claim(
            says="Reflow makes the flow straight, and not optimal.", value=reflow[-1], spread=0.0,
            unit="E|x - w|^2 after all rounds of reflow",
            verdict="reproduced" if reflow[-1] > W2 + 1e-3 and abs(reflow[-1] - reflow[1]) < 1e-6 else "not reproduced",
            why=f"Optimal transport is {W2:.5f}. The cost is {reflow[1]:.5f} after one round and stays there: these covariances do "
            "not commute, and the velocity is no gradient.",
        ),
        Claim(
            says="Networks find the bridge by the same rounds.", value=third.mean(), spread=spread(third),
            unit="largest error of Cov(x, w) after three rounds of networks",
            verdict=judge(third),
            why=f"Independent ends have {independent:.2f}, exact fields {exact:.3f}. The limit of .05 is a twelfth of the first.",
        ),
        Claim(
            says="Networks find the bridge from entropic pairs of minibatches, without rounds.", value=entropic.mean(),
            spread=spread(entropic), unit="largest error of Cov(x, w) under entropic pairs of 512",
            verdict=judge(entropic),
            why=f"By seed {plus_minus(entropic)}; the limit of .05 as above.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o = record.options
    exact = record.cells(closed_form, {f"sigma^2 = {variance:g}": (variance, o) for variance in (*VARIANCES, 0.0)})
    closed = {f"{variance:g}": exact[f"sigma^2 = {variance:g}"] for variance in (*VARIANCES, 0.0)}
    drawn = record.cells(learned, {f"seed {seed}": (seed, o) for seed in range(o.seeds)})
    found = [drawn[f"seed {seed}"] for seed in range(o.seeds)]
    for name, row in closed.items():
        print(
            name, "errors", [f"{e:.2g}" for e in row["errors"]], "costs", np.round(row["costs"], 5), "limit", round(row["limit"], 5)
        )
    record.write(dict(closed=closed, learned=found), claims=claims(closed, found), curves=curves(closed, found))


if __name__ == "__main__":
    FIGURE.make(main)
