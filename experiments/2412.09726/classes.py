"""Jumps of a class-conditional model with the moments of each class, and with those of all data.

The model is exact: three Gaussians per class of the 8x8 digits, found by k-means. The numbers are root mean squares of the
distance to the samples without a jump, from the same noise.
"""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from subject import rmse

import scorelab as sl
from scorelab import viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="The paper's jumps are those of unconditional models; with classes the Gaussian argument holds for the moments of each "
    "class, not for those of all data.",
    look_for="Jumps with the moments of the class stay below Heun's own error, those with the moments of all digits above it.",
    minutes=dict(small=0.6, full=0.8, gpu=None),
    options=dict(n=200, seeds=3),
    small=dict(n=50, seeds=2),
)

PROCESS, STEPS, SKIPS = sl.processes.Gaussian(schedule=sl.schedules.EDM()), 18, (4, 5, 6, 7, 8)


def model_of(x: np.ndarray, label: np.ndarray):
    """The exact model of three Gaussians per class, whose condition is the class."""
    clusters = [sl.densities.GaussianMixture.fit(x[label == k], 3, floor=4e-4) for k in range(10)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clusters)

    def denoise(y, t, cond):
        return jax.vmap(lambda y, k: jax.tree.map(lambda leaf: leaf[k], stacked).denoise(PROCESS, y[None], t)[0])(y, cond)

    return sl.models.FunctionModel(denoise, PROCESS)


def measure(model, laws: dict, n: int, seed: int) -> dict:
    """Distances to the samples without a jump, by law and number of steps skipped, and Heun's own error, of one seed."""
    label = np.arange(n) % 10

    def draw(steps=STEPS, start=None):
        return sl.sample(
            model, solver=sl.solvers.Heun(), grid=sl.grids.Karras(steps), start=start, key=jax.random.key(seed),
            shape=(n, 8, 8, 1), cond=label,
        ).x  # fmt: skip

    plain = draw()
    jumps = {
        name: [rmse(draw(start=sl.starts.Teleport(law, skip_steps=k, label=label if by_class else None)), plain) for k in SKIPS]
        for name, (law, by_class) in laws.items()
    }
    return dict(heun=rmse(plain, draw(60)), **jumps)


def claims(numbers: dict) -> list[Claim]:
    """Whether jumps with the moments of the class, or of all data, stay below the error of the solver."""
    seeds, k = numbers["seeds"].values(), SKIPS.index(5)
    size = f"{numbers['n']} samples of an exact model, spread over {len(seeds)} sampling seed{'s' * (len(seeds) > 1)}"
    found = []
    for name, says, holds in (
        ("moments of the class", "With the moments of each class 15 to 30 % of the steps can be skipped.", lambda r: r.max() < 1),
        ("moments of all digits", "With the moments of all data the classes are moved.", lambda r: r.min() > 1),
    ):
        ratio = np.array([seed[name][k] / seed["heun"] for seed in seeds])
        found.append(Claim(
            says=says, value=ratio.mean(), spread=ratio.std(), unit="times the error of Heun's method, 5 of 18 steps skipped",
            verdict="reproduced" if holds(ratio) else "not reproduced", why=f"The bound is the error of the solver. {size}.",
        ))  # fmt: skip
    return found


def figure(numbers: dict):
    """Distances against the steps skipped."""
    seeds, skips = list(numbers["seeds"].values()), np.array(SKIPS)
    series = {name: (skips, np.array([seed[name] for seed in seeds]).T) for name in seeds[0] if name != "heun"}
    series["Heun's own error"] = (skips, np.full(len(skips), np.mean([seed["heun"] for seed in seeds])))
    return viz.lines(
        series, reference=("Heun's own error",), xlabel=f"steps skipped of {STEPS}", ylabel="rmse per pixel to no jump", logy=True,
        markers=True, mean=True,
    )  # fmt: skip


def main(record) -> None:
    o = record.options
    warnings.simplefilter("ignore", sl.starts.TeleportWarning)
    digits = sl.data.load("digits")
    x = np.asarray(sl.data.Pixels(levels=17).encode(digits.x))
    laws = {
        "moments of the class": (sl.densities.GaussianMixture.per_class(x, digits.label), True),
        "moments of all digits": (sl.densities.Gaussian.from_data(x), False),
    }
    model = model_of(x, digits.label)
    seeds = record.cells(measure, {f"seed {seed}": (model, laws, o.n, seed) for seed in range(o.seeds)})
    numbers = dict(n=o.n, skips=SKIPS, seeds=seeds)
    for name in ("heun", *laws):
        print(f"{name:22s}", np.round(np.mean([seed[name] for seed in seeds.values()], axis=0), 5).tolist())
    record.write(numbers, claims=claims(numbers), distance=figure(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
