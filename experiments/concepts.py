"""The pictures of docs/concepts.md: one idea each, all from exact laws, in a minute.

python experiments/concepts.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import scorelab as sl
from scorelab import viz
from scorelab.run.figure import script
from scorelab.viz.figures import COLOURS, INK, MUTED, new_figure, quiet

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
PROCESS = sl.processes.Gaussian(schedule=sl.schedules.EDM(sigma_min=0.01, sigma_max=10.0))
LAW = sl.densities.pinwheel()
MODEL = sl.models.ExactModel(LAW, PROCESS)
KEY = jax.random.key(0)


def process():
    """Data becomes noise, and comes back along the flow of the score."""
    times = (0.0, 0.2, 0.6, 2.0)
    x = LAW.sample(KEY, 1500)
    noise = jax.random.normal(jax.random.key(1), x.shape)
    out = sl.sample(MODEL, solver=sl.solvers.Heun(), grid=sl.grids.Karras(60), key=jax.random.key(2), shape=(1500, 2), keep="all")
    figure = new_figure(9.0, 4.8)
    axes = figure.subplots(2, len(times), sharex="col", sharey="col")
    for column, t in enumerate(times):
        back = out.trajectory[int(np.argmin(np.abs(np.asarray(out.times) - t)))]
        limit = 2.6 + 2.5 * t
        for row, points in enumerate((x + t * noise, back)):
            panel = quiet(axes[row, column])
            panel.plot(*np.asarray(points).T, ".", color=COLOURS[row], markersize=1.2, rasterized=True)
            panel.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        axes[0, column].set_title(f"noise level {t:g}", fontsize=8.5, color=INK)
    for row, label in enumerate(("forward: noise is added", "backward: the flow of the score")):
        axes[row, 0].set_ylabel(label, fontsize=8, color=MUTED)
    return figure


def prediction():
    """One answer of a model, read as a denoised mean, as noise and as a score."""
    t, side = 0.5, np.linspace(-2.8, 2.8, 15)
    y = jnp.asarray(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2), jnp.float32)
    found = MODEL(y, t)
    arrows = {"denoised - y": found.denoised - y, "-eps": -found.eps, "score": found.score}
    points = np.asarray(LAW.sample(KEY, 1500))
    figure = new_figure(9.0, 3.3)
    for panel, (name, arrow) in zip(figure.subplots(1, 3, sharey=True), arrows.items(), strict=True):
        quiet(panel).plot(*points.T, ".", color=COLOURS[5], markersize=1, alpha=0.6, rasterized=True)
        panel.quiver(*np.asarray(y).T, *np.asarray(arrow).T, color=INK, width=0.004)
        panel.set(aspect="equal")
        panel.set_title(f"{name} at noise level {t:g}", fontsize=8.5, color=INK)
    return figure


def grids():
    """Where grids of eighteen steps spend them, and what that does to the error of one solver."""
    chosen = {"Karras": sl.grids.Karras, "LogSNR": sl.grids.LogSNR, "Uniform": sl.grids.Uniform}
    levels = {name: (np.arange(18), np.asarray(PROCESS.sigma(grid(18).times(PROCESS)))[:18]) for name, grid in chosen.items()}
    common = dict(solver=sl.solvers.DPMSolverPP(order=2), key=KEY, shape=(1000, 2))
    fine = sl.sample(MODEL, **common | dict(solver=sl.solvers.Heun(), grid=sl.grids.LogSNR(300))).x
    steps, errors = np.array([6, 12, 18, 36, 72]), {}
    for name, grid in chosen.items():
        ends = [sl.sample(MODEL, grid=grid(int(n)), **common).x for n in steps]
        errors[name] = steps, np.array([float(jnp.median(jnp.linalg.norm(x - fine, axis=1))) for x in ends])
    return viz.panels(
        [
            viz.Panel(series=levels, title="the levels of 18 steps", xlabel="step", ylabel="noise level", logy=True, markers=True),
            viz.Panel(
                series=errors, title="DPM-Solver++ 2M", xlabel="steps", ylabel="median error",
                logx=True, logy=True, markers=True,
            ),
        ]
    )  # fmt: skip


def particles():
    """Weighted particles on the line, steered towards 2.5: paths, the effective share, and the law they end in."""
    law = sl.densities.GaussianMixture([0.7, 0.3], np.array([[-1.5], [1.5]]), 0.2)
    process = sl.processes.Gaussian(schedule=sl.schedules.VPLinear())
    model, reward, n = sl.models.ExactModel(law, process), lambda x: -0.5 * (x[:, 0] - 2.5) ** 2, 2000
    solver = sl.fk.FeynmanKac(
        base=sl.solvers.DDIM(eta=1.0), potential=sl.fk.Difference(reward, 1.0), policy=sl.fk.EssBelow(0.5), record_ancestors=True
    )
    grid = sl.grids.LogSNR(80)
    out = sl.sample(model, solver=solver, grid=grid, key=KEY, shape=(n, 1), keep="all")
    ess = np.asarray(out.diagnostics["ess"]).ravel() / n
    when = np.flatnonzero(np.asarray(out.diagnostics["resampled"]).ravel())
    figure = new_figure(9.0, 3.2)
    left, middle, right = figure.subplots(1, 3)
    quiet(left).plot(np.asarray(out.trajectory)[:, :150, 0], color=COLOURS[0], linewidth=0.4, alpha=0.5)
    for k in when:
        left.axvline(k, color=COLOURS[1], linewidth=0.8, linestyle=":")
    left.set(xlabel="step", ylabel="x", title=f"150 particles, resampled {len(when)} times")
    quiet(middle).plot(ess, color=COLOURS[2])
    middle.plot(when, ess[when], "o", color=COLOURS[1], markersize=4)
    middle.set(xlabel="step", ylabel="effective share of the particles", title="before each resampling", ylim=(0, 1.02))
    x = np.linspace(-4, 4, 400)
    density = np.exp(np.asarray(law.log_prob(jnp.asarray(x[:, None], jnp.float32))))
    tilted = density * np.exp(-0.5 * (x - 2.5) ** 2)
    quiet(right).hist(
        np.asarray(out.x)[:, 0], bins=60, weights=np.asarray(jax.nn.softmax(out.log_weights)) * 60 / np.ptp(np.asarray(out.x)),
        color=COLOURS[5], label="weighted particles",
    )  # fmt: skip
    right.plot(x, density, color=MUTED, linewidth=1, label="without steering")
    right.plot(x, tilted / np.trapezoid(tilted, x), color=INK, linewidth=1.4, label="exact tilted law")
    right.set(xlabel="x", ylabel="density", title="the law they end in")
    right.legend(fontsize=7, frameon=False)
    for panel in (left, middle, right):
        panel.title.set_fontsize(8.5)
        panel.xaxis.label.set_fontsize(8)
        panel.yaxis.label.set_fontsize(8)
    return figure


def main() -> None:
    """Draw all of them."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for draw in (process, prediction, grids, particles):
        print("wrote", viz.save(draw(), IMAGES / f"concept_{draw.__name__}.png").name, flush=True)


if __name__ == "__main__":
    script(main)
