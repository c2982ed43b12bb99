"""Early stopping of score estimation: the risk over the time of training, for a kernel, for a network, and for images.

Kernel and network: two Gaussians on a line at one noise level. A network of one hidden layer, in the parameterisation of its neural
tangent kernel, is trained on all points by gradient descent, beside the flow of the kernel in closed form. The time of the network
is the number of steps times the rate.

Digits: a model of 100 digits by a config with early stopping, trained beyond its stop; its held-out loss, and how near samples of
the best and of the last state are to the digits that were trained on.
"""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from problem import drawn, path_of
from scipy.spatial.distance import cdist

import scorelab as sl
from scorelab import viz
from scorelab.experiment import held_out, trained_state
from scorelab.experiment.workdir import Workdir
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="A wide network that is trained by gradient descent estimates the score as kernel regression with noisy labels does, "
    "and has to be stopped early.",
    look_for="The risk falls and rises again, ever later for more points, and the network follows its kernel. The held-out loss of "
    "100 digits turns early; samples of the last state are copies of training digits.",
    minutes=dict(small=3, full=None, gpu=None),
    options=dict(seeds=10, width=16384, n=200, end=1000.0, held=2000, steps=20000),
    small=dict(seeds=5, width=2048, end=300.0, steps=4000),
)

SIZES = (50, 200, 800)
TIMES = np.concatenate([np.geomspace(1e-2, 1e5, 141), [1e12]])
# Below 2 / (largest eigenvalue of K / n), which is about 2 E|(x, 1)|^2 = 5.
STEP = 0.25
SHOWN = 297
# That of the config.
STOP = sl.training.EarlyStopping(patience=5)


def kernel(n: int, seed: int, held: int) -> dict:
    """The path of the kernel."""
    return path_of(n, seed, held, TIMES)


def network(n: int, seeds: int, held: int, width: int, end: float) -> dict:
    """Gradient descent of a network on the draws of all seeds at once: risks at some of its times, beside those of the kernel."""
    steps = np.unique(np.geomspace(1, end / STEP, 31).round().astype(int))
    extend = lambda x: jnp.concatenate([jnp.asarray(x), jnp.ones((*x.shape[:-1], 1))], axis=-1)
    stacked = lambda m, offset: [np.stack(part) for part in zip(*(drawn(m, 2 * s + offset) for s in range(seeds)), strict=True)]
    train, fresh = stacked(n, 0), stacked(held, 1)

    def says(params, x):
        a, w = params
        return math.sqrt(2 / width) * jnp.maximum(x @ w.T, 0) @ a

    def run(key, x, y, x_held, exact):
        keys = jax.random.split(key)
        first = jax.random.normal(keys[0], (width,)), jax.random.normal(keys[1], (width, 2))
        # Of the change alone, which is zero at the start as the flow of the kernel is.
        start, start_held = says(first, x), says(first, x_held)
        gradient = jax.grad(lambda params: jnp.mean((says(params, x) - start - y) ** 2) / 2)
        move = lambda params: jax.tree.map(lambda p, g: p - STEP * g, params, gradient(params))

        def until(params, count):
            params = jax.lax.fori_loop(0, count, lambda i, p: move(p), params)
            return params, jnp.mean((says(params, x_held) - start_held - exact) ** 2)

        return jax.lax.scan(until, first, jnp.asarray(np.diff(steps, prepend=0)))[1]

    keys = jax.random.split(jax.random.key(100), seeds)
    half = held // 2
    given = (extend(train[0]), train[1][..., 0], extend(fresh[0])[:, half:], fresh[2][:, half:, 0])
    # One seed after another: all at once are no faster on a CPU.
    risk = jax.jit(lambda *args: jax.lax.map(lambda one: run(*one), args))(keys, *map(jnp.asarray, given))
    times = STEP * steps
    beside = np.stack([path_of(n, s, held, times)["risk"] for s in range(seeds)], axis=1)
    return dict(times=times, risk=np.asarray(risk).T, kernel=beside)


def digits(record, steps: int) -> dict:
    """The losses of a training that goes on beyond its stop, and distances of samples of two states to the training digits."""
    # Without an end: what it would have been follows from the losses.
    changes = (f"STEPS = {steps}", "training.EarlyStopping.patience = 100000", "experiment.Train.previews = 0")
    experiment, _ = record.trained("digits", "paper/2401.15604/digits", *changes)
    place = Workdir(Path(record.out) / "runs" / "digits")
    records = held_out.read(place)
    ended = next((i for i in range(len(records)) if STOP.waited(records[: i + 1]) >= STOP.patience), -1)
    train = experiment.data.load()
    flat = lambda x: np.asarray(x, float).reshape(len(x), -1)
    images = flat(experiment.data.transform.encode(train.x))
    nearest = lambda x: cdist(flat(x), images).min(axis=1)
    found = dict(
        steps=np.array([r.step for r in records]), losses=np.array([r.loss for r in records]), stop=records[ended].step,
        of_test=nearest(experiment.data.transform.encode(experiment.data.load("test").x)),
    )  # fmt: skip
    for keep in ("best", "last"):
        state, step = trained_state(experiment, place, keep=keep)
        out = sl.sample(
            experiment.learner.model(state), solver=sl.solvers.Heun(), grid=sl.grids.Karras(18), key=jax.random.key(1),
            shape=(SHOWN, *train.event_shape),
        )  # fmt: skip
        stored = experiment.data.transform.decode(np.asarray(out.x[:8]))
        copied = train.x[cdist(flat(out.x[:8]), images).argmin(axis=1)]
        found |= {keep: nearest(out.x), f"{keep}_step": step, f"{keep}_shown": np.asarray(stored), f"{keep}_copied": copied}
    return found


def claims(paths: dict, net: dict, images: dict, o) -> list[Claim]:
    """The paper's statements, and ours about held-out loss and memorisation."""
    spread = lambda values: float(values.std(ddof=1))
    ratio = np.array([path["risk"][-1] / path["risk"].min() for path in paths[SIZES[-1]]])
    best = [np.mean([TIMES[np.argmin(path["risk"])] for path in paths[n]]) for n in SIZES]
    # Where the risk of the network is smallest.
    apart = net["risk"].min(axis=0) / net["kernel"].min(axis=0)
    off = abs(apart.mean() - 1)
    distance = np.sqrt(np.mean((net["risk"] / net["kernel"] - 1) ** 2, axis=0))
    # A copy is a sample that is nearer to a training digit than any but one in a hundred of the test digits is.
    near = np.quantile(images["of_test"], 0.01)
    low, high = images["losses"].min(), images["losses"][-1]
    copies = {keep: float(np.mean(images[keep] < near)) for keep in ("best", "last")}
    return [
        Claim(
            says="Gradient descent has to be stopped early.", value=ratio.mean(), spread=spread(ratio),
            unit=f"times the risk at the best time is that at the end, n = {SIZES[-1]}",
            verdict="reproduced" if ratio.mean() > 10 else "not reproduced",
            why=f"The best times for {SIZES} points are {', '.join(f'{t:.1f}' for t in best)}. Ten times is asked for.",
        ),
        Claim(
            says="A wide network learns the score as its neural tangent kernel does.", value=apart.mean(), spread=spread(apart),
            unit=f"times the smallest risk of the kernel is that of a network of width {o.width}, n = {o.n}",
            verdict="reproduced" if off < 0.1 else "in shape" if off < 0.5 else "not reproduced",
            why=f"Root mean square relative distance of the two risks over the time: {distance.mean():.3f}. A tenth is allowed for "
            "the smallest.",
        ),
        Claim(
            says="Beyond the stop a network learns its data by heart (our question).", value=copies["last"], spread=0.0,
            unit="of the samples of the last state are copies of training digits",
            verdict="reproduced" if copies["last"] > 2 * copies["best"] + 0.05 else "not reproduced",
            why=f"{copies['best']:.2f} of those of the best state; a copy is nearer than all but 1% of the test digits. Held-out "
            f"loss {low:.3f} at step {images['best_step']}, {high:.3f} at step {images['last_step']}.",
        ),
    ]  # fmt: skip


def panels_of(paths: dict, net: dict, images: dict, o):
    """Risk over time, the held-out loss of the digits, and distances to the training digits."""
    late = slice(0, -1)
    risks = {f"kernel, n = {n}": (TIMES[late], np.mean([p["risk"][late] for p in each], axis=0)) for n, each in paths.items()}
    risks[f"network, n = {o.n}"] = (net["times"], net["risk"].mean(axis=1))
    losses = images["losses"]
    upright = lambda step: (np.full(2, step), np.array([losses.min(), losses.max()]))
    marks = {"best": upright(images["best_step"]), "stop": upright(images["stop"])}
    edges = np.linspace(0, np.ceil(max(images["of_test"].max(), images["best"].max())), 41)
    middle = (edges[1:] + edges[:-1]) / 2
    shares = {
        name: (middle, np.histogram(images[key], edges)[0] / len(images[key]))
        for name, key in (("samples, best state", "best"), ("samples, last state", "last"), ("test digits", "of_test"))
    }
    return viz.panels(
        [
            viz.Panel(series=risks, title="Two Gaussians", xlabel="time of the flow", ylabel="excess risk", logx=True, logy=True),
            viz.Panel(
                series={"held out": (images["steps"], losses), **marks}, title="100 digits, best step and then the stop",
                xlabel="step", ylabel="held-out denoising loss", logx=True, logy=True,
            ),
            viz.Panel(series=shares, title="100 digits", xlabel="distance to the nearest training digit", ylabel="share"),
        ],
        reference=("best", "stop"),
        width=11.0,
    )  # fmt: skip


def main(record) -> None:
    o = record.options
    found = record.cells(kernel, {f"n {n}, seed {seed}": (n, seed, o.held) for n in SIZES for seed in range(o.seeds)})
    paths = {n: [found[f"n {n}, seed {seed}"] for seed in range(o.seeds)] for n in SIZES}
    net = record.cell("network", network, o.n, o.seeds, o.held, o.width, o.end)
    images = digits(record, o.steps)
    rows = {f"{keep} {what}": images.pop(f"{keep}_{what}") for keep in ("best", "last") for what in ("shown", "copied")}
    numbers = dict(
        times=TIMES, risk={f"n {n}": np.stack([p["risk"] for p in each]) for n, each in paths.items()}, network=net, digits=images
    )
    names = ("best state", "nearest digit", "last state", "nearest digit")
    pictures = viz.image_grid(np.concatenate(list(rows.values())), levels=17, columns=8, rows=names)
    record.write(numbers, claims=claims(paths, net, images, o), risk=panels_of(paths, net, images, o), samples=pictures)


if __name__ == "__main__":
    FIGURE.make(main)
