"""Learned flows along geodesics: the torus, the sphere, rotations, and a torus beside a sphere.

From the uniform law of a space to a mixture of clusters on it, whose density is known. One network of three layers learns the
velocity of the geodesics; it is shown an embedding of the point, and its answer is projected to the tangent space. Samples are
drawn by Heun's rule along geodesics, 40 steps.

The distance is MMD in the embedding with a quarter of the median distance, beside that of as many exact draws and that of the base.
KL in nats of the data to the model compares the exact density of held-out draws with the likelihood of the learned flow.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

import scorelab as sl
from scorelab import viz
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Flow matching on manifolds needs no simulation and no divergence where geodesics are known, and its target is in "
    "closed form.",
    look_for="Samples lie where the data do, on all four spaces, and on the space to rounding. KL is small against the entropy "
    "that the flow has to take out of the uniform law.",
    minutes=dict(small=4, full=None, gpu=None),
    options=dict(seeds=3, steps=4000, n=5000, held=1000),
    small=dict(seeds=2, steps=800, n=1500, held=200),
)

LAWS = {
    "torus": sl.densities.on_torus,
    "sphere": sl.densities.on_sphere,
    "rotations": sl.densities.on_rotations,
    "torus and sphere": sl.densities.on_product,
}
SHOWN = 1500


def learned(law, options, seed):
    """A trained model of the velocity."""
    base = sl.densities.Uniform(law.space, law.event)
    process = sl.processes.Geodesic(space=law.space, base=base)
    field = sl.models.InterpolantField(net=sl.models.nets.MLP(width=128, depth=3, embed=32), process=process)
    loss = sl.losses.InterpolantMatching(process, heads=("u",))
    learner = sl.training.ScoreLearner(field, loss, optax.adam(optax.cosine_decay_schedule(2e-3, options.steps)), ema=None)
    x = np.asarray(law.sample(jax.random.key(100 + seed), 50_000))
    batches = sl.data.Batches({"x": x}, batch_size=512, seed=seed)
    state = sl.training.fit(learner, batches, steps=options.steps, key=jax.random.key(seed))
    return learner.model(state)


def measure(name, seed, options) -> dict:
    """Distances with their floors, the KL of the learned density, and a few points."""
    law = LAWS[name]()
    model, space = learned(law, options, seed), law.space
    shape = (options.n, *law.event)
    out = sl.sample(model, solver=sl.solvers.GeodesicODE(), grid=sl.grids.Uniform(40), key=jax.random.key(10 + seed), shape=shape)
    one, two = (law.sample(jax.random.key(key + seed), options.n) for key in (1000, 2000))
    flat = lambda points: np.asarray(space.embed(jnp.asarray(points)))
    # The clusters are small against the space, whose size the median distance has.
    width = sl.metrics.median_bandwidth(flat(one), flat(two)) / 4
    distance = lambda points: float(sl.metrics.mmd(flat(points), flat(one), width).value)
    held = law.sample(jax.random.key(3000 + seed), options.held)
    exact, ours = law.log_prob(held), sl.log_likelihood(model, held).log_prob
    gap = np.asarray(exact, np.float64) - np.asarray(ours, np.float64)
    return dict(
        mmd=distance(out.x),
        floor=distance(two),
        base=distance(model.process.base.sample(jax.random.key(4000 + seed), options.n)),
        kl=float(gap.mean()),
        kl_error=float(gap.std() / np.sqrt(len(gap))),
        information=float(np.mean(exact)) + space.log_volume(law.event),
        off=float(space.off(np.asarray(out.x, np.float64)).max()),
        shown=np.asarray(out.x[:SHOWN]),
    )


def panel_points(name, x):
    """Points of a space in the square: two angles, or longitude and height, whose areas are those of the sphere."""
    x = np.asarray(x, np.float64)
    if name == "rotations":
        # Where the rotation takes one direction.
        x = np.asarray(sl.processes.spaces.matrix(jnp.asarray(x))) @ np.array([0.8, -0.36, 0.48])
    if x.shape[1] == 2:
        return x / np.pi
    if name == "torus and sphere":
        # An angle beside a longitude shows what belongs together.
        return np.stack([x[:, 0], np.arctan2(x[:, 3], x[:, 2])], axis=1) / np.pi
    return np.stack([np.arctan2(x[:, 1], x[:, 0]) / np.pi, x[:, 2]], axis=1)


def figure_of_clouds(numbers: dict):
    """Base, samples of every seed, and data."""
    rows, headings = [], ["base", *(f"samples, seed {i}" for i in range(len(next(iter(numbers.values()))))), "data"]
    for name, cells in numbers.items():
        law = LAWS[name]()
        base = sl.densities.Uniform(law.space, law.event).sample(jax.random.key(1), SHOWN)
        points = [base, *(cell["shown"] for cell in cells), law.sample(jax.random.key(0), SHOWN)]
        rows.append([panel_points(name, each) for each in points])
    return viz.scatter_grid(rows, rows=list(numbers), headings=headings)


def claims(numbers: dict) -> list[Claim]:
    """What is asked of the four spaces; spreads are over seeds of the worst of them."""
    of = lambda what: {name: np.array([cell[what] for cell in cells]) for name, cells in numbers.items()}
    mmd, floor, base, kl, information = (of(what) for what in ("mmd", "floor", "base", "kl", "information"))
    share = {name: kl[name] / information[name] for name in kl}
    worst = max(share, key=lambda name: share[name].mean())
    gain = {name: mmd[name] / base[name] for name in mmd}
    furthest = max(gain, key=lambda name: gain[name].mean())
    off = max(cell["off"] for cells in numbers.values() for cell in cells)
    spread = lambda values: values.std(ddof=values.size > 1)
    judged = lambda value: "reproduced" if value < 0.1 else "in shape" if value < 0.3 else "not reproduced"
    listed = lambda values, digits: ", ".join(f"{name} {value.mean():.{digits}f}" for name, value in values.items())
    return [
        Claim(
            says="Flow matching carries the uniform law to the data on simple geometries.", value=gain[furthest].mean(),
            spread=spread(gain[furthest]), unit=f"of the MMD of the base is left on the worst space, the {furthest}",
            verdict=judged(gain[furthest].mean()),
            why=f"MMD: {listed(mmd, 4)}; of as many exact draws: {listed(floor, 4)}. A tenth of that of the base is asked for.",
        ),
        Claim(
            says="Its likelihood is that of the data.", value=share[worst].mean(), spread=spread(share[worst]),
            unit=f"of the information of the data is lost on the worst space, the {worst}",
            verdict=judged(share[worst].mean()),
            why=f"KL of data to model, nats: {listed(kl, 3)}; of data to the uniform law: {listed(information, 2)}. A tenth is "
            f"asked for. KL on the {worst}: {plus_minus(kl[worst])}.",
        ),
        Claim(
            says="Samples stay on the manifold.", value=off, spread=0.0, unit="largest distance of a sample from its space",
            verdict="reproduced" if off < 1e-6 else "not reproduced", why="Float32 rounding is 1e-7; a millionth is asked for.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o = record.options
    found = record.cells(measure, {f"{name}, seed {seed}": (name, seed, o) for name in LAWS for seed in range(o.seeds)})
    numbers = {name: [found[f"{name}, seed {seed}"] for seed in range(o.seeds)] for name in LAWS}
    for name, cells in numbers.items():
        for cell in cells:
            print(name, {key: round(value, 4) for key, value in cell.items() if key != "shown"})
    kept = {name: [{k: v for k, v in cell.items() if k != "shown"} for cell in cells] for name, cells in numbers.items()}
    record.write(kept, claims=claims(numbers), samples=figure_of_clouds(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
