"""The dimension of a Swiss roll from trained networks, free fields beside energies.

A surface of two dimensions in three, and the same turned into five. One small network for each seed learns it by denoising score
matching, all seeds in one program. The local dimension is asked at held-out points. Network, budget and noise are those of the
free field for the energy too, whose score is a gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

import scorelab as sl
from scorelab import viz
from scorelab.diagnostics import intrinsic_dimension
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Estimators of intrinsic dimension work on trained models of a Swiss roll in 3 and 5 dimensions, and gain from fields "
    "that are conservative.",
    look_for="The share of points with two dimensions is highest between the noise that the network has not learned and the noise "
    "that sees both sides of the roll. The flow is worst, since it passes through larger noise.",
    minutes=dict(small=4, full=30, gpu=None),
    options=dict(seeds=5, steps=10_000, points=200),
    small=dict(seeds=3, steps=1500, points=40),
)

KINDS = {"free": sl.models.Denoiser, "energy": sl.models.Energy}
SIZES = (3, 5)
METHODS = ("symmetric", "svd", "flow", "slope")
SIGMAS = np.array([0.02, 0.05, 0.1, 0.2])
BATCH, STD = 256, 1.0
PROCESS = sl.processes.Gaussian(schedule=sl.schedules.EDM())


def roll(key, n, size):
    """Points of the roll, ``(n, size)``: about unit deviation in three dimensions, with turns 0.6 apart, and then turned."""
    one, two = jax.random.split(key)
    # Equal areas: the arc is about the square of the angle.
    angle = jnp.sqrt(jax.random.uniform(one, (n,), minval=(1.5 * jnp.pi) ** 2, maxval=(4.5 * jnp.pi) ** 2))
    height = jax.random.uniform(two, (n,), minval=-1.7, maxval=1.7)
    x = jnp.stack([angle * jnp.cos(angle) / 10.5, height, angle * jnp.sin(angle) / 10.5], axis=1)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(size, 3)))[0]
    return x @ basis.T


def learned(kind, size, options):
    """One model for each seed."""
    net = sl.models.nets.MLP(width=64, depth=3, embed=32)
    denoiser = KINDS[kind](net=net, process=PROCESS, data_std=STD)
    loss = sl.losses.DenoisingScoreMatching(
        PROCESS, times=sl.losses.LogNormalTimes(mean=-1.5, std=1.2), weighting=sl.losses.EDMWeighting(data_std=STD)
    )
    rate = optax.cosine_decay_schedule(3e-3, options.steps)
    optimiser = optax.adam(rate)

    def one(key):
        start, key = jax.random.split(key)
        params = denoiser.init(start, (size,))

        def step(carry, i):
            params, state, average = carry
            data_key, loss_key = jax.random.split(jax.random.fold_in(key, i))
            batch = {"x": roll(data_key, BATCH, size)}
            value, slope = jax.value_and_grad(lambda p: jnp.mean(loss(loss_key, denoiser.bind(p), batch)))(params)
            change, state = optimiser.update(slope, state, params)
            params = optax.apply_updates(params, change)
            # Forgets the first half of the training.
            decay = 1 - 10 / options.steps
            average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
            return (params, state, average), value

        (_, _, average), values = jax.lax.scan(step, (params, optimiser.init(params), params), jnp.arange(options.steps))
        return average, jnp.mean(values[-options.steps // 5 :])

    params, losses = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), options.seeds))
    seeds = range(options.seeds)
    return [denoiser.bind(jax.tree.map(lambda p, s=s: p[s], params)) for s in seeds], np.asarray(losses, np.float64)


def measure(kind, size, options) -> dict:
    """The share of points with two dimensions, ``(seeds, levels)`` for each method, and the mean dimension."""
    models, losses = learned(kind, size, options)
    x = np.asarray(roll(jax.random.key(100), options.points, size))
    share, mean = {}, {}
    for method in METHODS:
        found = [intrinsic_dimension(model, x, SIGMAS, method=method).dimension for model in models]
        share[method] = np.array([np.mean(np.round(each) == 2, axis=1) for each in found])
        mean[method] = np.array([each.mean(axis=1) for each in found])
    return dict(loss=losses, share=share, mean=mean)


def figure_of(found):
    """Shares over the noise ratio; every dot is a seed."""
    content = [
        viz.Panel(
            series={method: (SIGMAS, np.asarray(found[f"{kind} in {size}"]["share"][method]).T) for method in METHODS},
            title=f"{kind} network, {size} dimensions", xlabel="noise ratio", ylabel="share of points with k = 2", logx=True,
            mean=True, ylim=(-0.03, 1.03),
        )
        for size in SIZES
        for kind in KINDS
    ]  # fmt: skip
    return viz.panels(content, columns=2, width=9.0, height=2.9)


def claims(found) -> list[Claim]:
    """Spreads are over seeds; each method at the noise ratio where it is best on average."""
    best = lambda name, method: (rows := np.asarray(found[name]["share"][method]))[:, rows.mean(0).argmax()]
    spread = lambda values: values.std(ddof=values.size > 1)
    told = lambda name: ", ".join(f"{method} {plus_minus(best(name, method), 2)}" for method in METHODS)
    made = []
    for size in SIZES:
        free = best(f"free in {size}", "symmetric")
        made.append(
            Claim(
                says=f"Trained free networks know that a Swiss roll in {size} dimensions has two.", value=free.mean(),
                spread=spread(free), unit="of the points are right by the symmetric Jacobian",
                verdict="reproduced" if free.mean() > 0.95 else "in shape" if free.mean() > 0.7 else "not reproduced",
                why=f"A twentieth may be wrong. At the best noise ratio of each: {told(f'free in {size}')}.",
            )
        )  # fmt: skip
    methods = ("svd", "slope")
    gain = np.mean([best(f"energy in {s}", m) - best(f"free in {s}", m) for s in SIZES for m in methods], axis=0)
    made.append(
        Claim(
            says="Conservative fields help the singular values of the score and the slope.", value=gain.mean(), spread=spread(gain),
            unit="is the share of points that an energy gains over a free field",
            verdict="reproduced" if gain.mean() > 2 * spread(gain) / np.sqrt(gain.size) else "not reproduced",
            why=f"Mean of both methods and sizes. In 3: {told('energy in 3')}; in 5: {told('energy in 5')}. Losses: free "
            f"{plus_minus(found['free in 3']['loss'])}, energy {plus_minus(found['energy in 3']['loss'])} in 3.",
        )
    )  # fmt: skip
    return made


def main(record) -> None:
    o = record.options
    found = record.cells(measure, {f"{kind} in {size}": (kind, size, o) for size in SIZES for kind in KINDS})
    record.write(dict(sigmas=SIGMAS) | found, claims=claims(found), shares=figure_of(found))


if __name__ == "__main__":
    FIGURE.make(main)
