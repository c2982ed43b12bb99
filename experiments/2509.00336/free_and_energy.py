"""Free networks and energies: whether the field that a network learns is a gradient, and whether that matters.

Equal networks of as many parameters, trained alike: one that predicts a field, the same with a weighted asymmetry of its Jacobian
in the loss, and one whose scalar output is differentiated (an energy). Data are a mixture in the plane whose score is known, the
8x8 digits, and MNIST. By noise ratio there are the asymmetry A of the Jacobian and the loops about noised points that were not
trained on. Beside them stand the denoising loss there, and the sliced W2 of samples of the flow to such points, with the floor of
as many data.

On the mixture, the error of the score is projected on the gradients of 105 potentials: what is left is a gauge or not resolved.
"""

from __future__ import annotations

import functools
import time

import jax
import numpy as np
import optax

import scorelab as sl
from scorelab import viz
from scorelab.models.energy import Energy
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Trained diffusion networks violate both the integral and the differential constraints of a true score function, and "
    "generate well all the same.",
    look_for="A free network has an asymmetry of a few hundredths and more, largest where the noise is low; an energy has none. "
    "Samples are as good on the mixture and the digits. The denoising loss of an energy is equal in the plane and lower on images.",
    minutes=dict(small=4, full=None, gpu=None),
    options=dict(seeds=5, sets=["mixture", "digits", "mnist"], steps=4000, n=2000),
    small=dict(sets=["mixture", "digits"], steps=800, n=1000),
)

KINDS = ("free", "free, regularised", "energy")
WEIGHT = 3.0
# Noise ratios, width, batch, and steps as a part of the option.
SETS = {
    "mixture": dict(sigmas=(0.1, 0.3, 1.0, 3.0), width=64, depth=2, batch=256, share=2.0),
    "digits": dict(sigmas=(0.1, 0.3, 1.0, 3.0), width=128, depth=3, batch=128, share=1.0),
    "mnist": dict(sigmas=(0.1, 0.3, 1.0, 3.0), width=128, depth=3, batch=128, share=0.5),
}
PROCESS = sl.processes.Gaussian(schedule=sl.schedules.EDM(sigma_min=0.02, sigma_max=40.0))


def law():
    covs = np.array([[[0.3, 0.1], [0.1, 0.1]], [[0.1, 0.0], [0.0, 0.4]], [[0.05, 0.0], [0.0, 0.05]]])
    return sl.densities.GaussianMixture([0.5, 0.3, 0.2], [[-1.0, 0.0], [1.2, 0.5], [0.0, -1.5]], covs)


@functools.cache
def data(name):
    """Points to train on and held-out ones."""
    if name == "mixture":
        return tuple(np.asarray(law().sample(jax.random.key(key), n)) for key, n in ((1, 50_000), (2, 10_000)))
    pixels = sl.data.Pixels(levels=17 if name == "digits" else 256)
    spec = sl.experiment.DataSpec(dataset=sl.data.Named(name=name), transform=pixels, labels=False)
    return tuple(np.asarray(spec.transform.encode(spec.load(split).x), np.float32) for split in ("train", "test"))


@functools.cache
def learner(name, kind, steps):
    """What is trained; one object, so that seeds share a program."""
    given, std = SETS[name], float(data(name)[0].std())
    net = sl.models.nets.MLP(width=given["width"], depth=given["depth"], embed=32)
    denoiser = (Energy if kind == "energy" else sl.models.Denoiser)(net=net, process=PROCESS, data_std=std)
    loss = sl.losses.DenoisingScoreMatching(PROCESS)
    if kind == "free, regularised":
        loss = sl.losses.Regularised(loss, ((sl.losses.Conservativity(), WEIGHT),))
    rate = optax.cosine_decay_schedule(2e-3, steps)
    return sl.training.ScoreLearner(denoiser, loss, optax.adam(rate), ema=None)


def measure(name, kind, seed, options) -> dict:
    """One network, trained and asked."""
    given, (train, held) = SETS[name], data(name)
    steps = int(options.steps * given["share"])
    one = learner(name, kind, steps)
    began = time.monotonic()
    batches = sl.data.Batches({"x": train}, batch_size=given["batch"], seed=seed)
    state = sl.training.fit(one, batches, steps=steps, key=jax.random.key(seed))
    model, seconds = one.model(state), time.monotonic() - began
    held = held[: options.n]
    points, sigmas, key = held[:300], given["sigmas"], jax.random.key(10)
    loss = sl.losses.DenoisingScoreMatching(PROCESS)
    error = jax.jit(lambda key, model, x: loss(key, model, {"x": x}).mean())
    # The same noise for all networks.
    value = np.mean([float(error(jax.random.key(20 + i), model, held)) for i in range(16)])
    found = sl.diagnostics.conservativity(model, points, sigmas, probes=0 if name == "mixture" else 8, key=key)
    x = sl.sample(
        model, solver=sl.solvers.Heun(), grid=sl.grids.Karras(40), key=jax.random.key(30 + seed),
        shape=(len(held), *held.shape[1:]), chunk=len(held),
    ).x  # fmt: skip
    flat = lambda x: np.asarray(x).reshape(len(x), -1)
    distance = lambda x: float(sl.metrics.sliced_wasserstein(jax.random.key(0), flat(x), flat(held)).value)
    out = dict(
        loss=float(value), asymmetry=found.asymmetry, loop=found.loop, circulation=found.circulation, quadrature=found.quadrature,
        w2=distance(x), floor=distance(train[-len(held) :]), seconds=seconds,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(model)), shown=np.asarray(x)[:8],
    )  # fmt: skip
    if name == "mixture":
        waves = sl.diagnostics.Waves(count=100)
        split = sl.diagnostics.gauge_residual(model, law(), held, sigmas, potentials=waves, key=key)
        share = sl.diagnostics.explained_variance(model, law(), held, sigmas, key=key)
        out |= dict(error=np.sqrt(1 - share.ratio_of_means), remainder=split.remainder / split.error)
    return out


def curves(numbers):
    """Asymmetry and loops by noise ratio; every dot is a seed."""
    panels = []
    for name, kinds in numbers.items():
        sigmas = np.array(SETS[name]["sigmas"])
        series = lambda what: {kind: (sigmas, np.array([cell[what] for cell in cells]).T) for kind, cells in kinds.items()}
        panel = functools.partial(viz.Panel, xlabel="noise ratio", logx=True, logy=True, mean=True)
        panels += [
            panel(series=series("asymmetry"), title=name, ylabel="asymmetry A"),
            panel(series=series("loop"), title=name, ylabel="normalised loop"),
        ]
    return viz.panels(panels, columns=2, width=8.0, height=2.5)


def claims(numbers) -> list[Claim]:
    """Spreads are over seeds."""
    of = lambda name, kind, what: np.array([what(cell) for cell in numbers[name][kind]])
    spread = lambda values: float(values.std(ddof=values.size > 1))
    out = []
    for name in numbers:
        most = {kind: of(name, kind, lambda cell: np.max(cell["asymmetry"])) for kind in KINDS}
        loops = {kind: of(name, kind, lambda cell: np.max(cell["loop"])) for kind in KINDS}
        out.append(
            Claim(
                says=f"Networks violate the constraints of a score: {name}.",
                value=most["free"].mean(), spread=spread(most["free"]), unit="A of the free network at the worst noise ratio",
                verdict="reproduced" if most["free"].min() > max(0.01, 100 * most["energy"].max()) else "not reproduced",
                why=f"Loop {loops['free'].mean():.2g}; with the regulariser A is {plus_minus(most['free, regularised'])}, of an "
                f"energy {most['energy'].max():.0e} (loop {loops['energy'].max():.0e}).",
            )
        )  # fmt: skip
        loss = {kind: of(name, kind, lambda cell: cell["loss"]) for kind in KINDS}
        w2 = {kind: of(name, kind, lambda cell: cell["w2"]) for kind in KINDS}
        floor, ratio = of(name, "free", lambda cell: cell["floor"]), loss["energy"] / loss["free"]
        ahead, half = w2["free"].mean() - w2["energy"].mean(), 0.5 * w2["energy"].mean()
        out.append(
            Claim(
                says=f"They generate well all the same: {name}.", value=w2["free"].mean(), spread=spread(w2["free"]),
                unit="sliced W2 of the free network's samples",
                verdict="reproduced" if ahead < spread(w2["energy"]) else "in shape" if ahead < half else "not reproduced",
                why=f"Energy {plus_minus(w2['energy'])}, regularised {plus_minus(w2['free, regularised'])}, data "
                f"{floor.mean():.3f}. The energy's denoising loss is {plus_minus(ratio)} of the free one's.",
            )
        )  # fmt: skip
    return out


def main(record) -> None:
    o = record.options
    wanted = {f"{name}, {kind}, seed {seed}": (name, kind, seed, o) for name in o.sets for kind in KINDS for seed in range(o.seeds)}
    found = record.cells(measure, wanted)
    numbers = {
        name: {kind: [found[f"{name}, {kind}, seed {seed}"] for seed in range(o.seeds)] for kind in KINDS} for name in o.sets
    }
    for name, kinds in numbers.items():
        for kind, cells in kinds.items():
            print(f"{name}, {kind}, {cells[0]['parameters']} parameters, {np.mean([cell['seconds'] for cell in cells]):.0f} s")
            for what in ("loss", "w2", "floor"):
                print(f"   {what} {plus_minus([cell[what] for cell in cells], 4)}")
            for what in ("asymmetry", "loop", "quadrature", "error", "remainder"):
                if what in cells[0]:
                    values = np.array([cell[what] for cell in cells])
                    print(f"   {what}", ", ".join(f"{m:.2g} ± {s:.1g}" for m, s in zip(values.mean(0), values.std(0), strict=True)))
    kept = {
        name: {kind: [{k: v for k, v in cell.items() if k != "shown"} for cell in cells] for kind, cells in kinds.items()}
        for name, kinds in numbers.items()
    }
    figures = dict(curves=curves(numbers))
    for name in set(numbers) - {"mixture"}:
        x = np.concatenate([numbers[name][kind][0]["shown"] for kind in KINDS])
        stored = np.uint8(np.clip(127.5 * x + 127.5, 0, 255).round())
        figures[f"samples_{name}"] = viz.image_grid(stored, columns=8, rows=list(KINDS), width=6.0)
    record.write(kept, claims=claims(numbers), **figures)


if __name__ == "__main__":
    FIGURE.make(main)
