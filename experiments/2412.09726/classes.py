"""Jumps of a class-conditional model with the moments of each class, and with those of all data.

    python experiments/2412.09726/classes.py

The model is exact: three Gaussians per class of the 8x8 digits, found by k-means. The numbers are root mean squares of the
distance to the samples without a jump, from the same noise.
"""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np

import scorelab as sl
from scorelab import viz
from scorelab.run.script import parse, record, script

PROCESS, GRID, SKIPS = sl.processes.Gaussian(schedule=sl.schedules.EDM()), sl.grids.Karras(18), (4, 5, 6, 7, 8)


def main() -> None:
    arguments = parse(__doc__, small=dict(n=20), n=200)
    warnings.simplefilter("ignore", sl.starts.TeleportWarning)
    digits = sl.data.load("digits")
    x = np.asarray(sl.data.Pixels(levels=17).encode(digits.x))
    clusters = [sl.densities.GaussianMixture.fit(x[digits.label == k], 3, floor=4e-4) for k in range(10)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clusters)
    label = np.arange(arguments.n) % 10

    def denoise(y, t, cond):
        return jax.vmap(lambda y, k: jax.tree.map(lambda leaf: leaf[k], stacked).denoise(PROCESS, y[None], t)[0])(y, cond)

    model = sl.models.FunctionModel(denoise, PROCESS)

    def draw(start=None, grid=GRID):
        options = dict(solver=sl.solvers.Heun(), grid=grid, key=jax.random.key(0), shape=(arguments.n, 8, 8, 1), cond=label)
        return sl.sample(model, start=start, **options).x

    def rmse(a, b):
        return float(np.sqrt(np.mean((a - b) ** 2)))

    plain = draw()
    laws = {
        "moments of the class": dict(law=sl.densities.GaussianMixture.per_class(x, digits.label), label=label),
        "moments of all digits": dict(law=sl.densities.Gaussian.from_data(x)),
    }
    found = {name: [rmse(draw(sl.starts.Teleport(skip_steps=k, **law)), plain) for k in SKIPS] for name, law in laws.items()}
    heun = rmse(plain, draw(grid=sl.grids.Karras(60)))
    print(f"Heun's own error: {heun:.4f}; steps skipped {SKIPS}")
    for name, values in found.items():
        print(f"{name:22s}", "  ".join(f"{v:.5f}" for v in values))
    series = {name: (np.array(SKIPS), np.array(values)) for name, values in found.items()}
    series["Heun's own error"] = (np.array(SKIPS), np.full(len(SKIPS), heun))
    record(
        arguments, dict(skips=SKIPS, heun=heun, **found),
        distance=viz.lines(
            series, reference=("Heun's own error",), xlabel="steps skipped of 18", ylabel="rmse to no jump", logy=True, markers=True
        ),
    )  # fmt: skip


if __name__ == "__main__":
    script(main)
