"""Sampling trajectories of a trained network beside the closed form of the Gaussian, from the same noise.

    python experiments/2412.09726/trajectories.py --data digits
    python experiments/2412.09726/trajectories.py --data mnist --n 100

Four measurements along the probability flow: the error of the Gaussian's closed form; how much of a trajectory lies in the plane
of its two ends; when features emerge (noise level at which half of a principal component of the denoised image is there, against
sqrt(3 lambda)); and how much of a perturbation along a principal component arrives at the end, against sqrt(lambda / (lambda +
sigma^2)). And pictures of the denoised images of both, by noise level: network above, Gaussian below.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from subject import DATA, subject

from scorelab import densities, diagnostics, grids, sample, solvers, viz
from scorelab.run.script import parse, record, script

STEPS, SHOWN, FEATURES = 40, 6, 30
# Perturbations: principal components (counted from 1), and the noise levels at which they are added.
COMPONENTS, LEVELS = (1, 3, 10, 30), (20.0, 5.0, 2.0, 1.0, 0.5, 0.2)


def main() -> None:
    arguments = parse(__doc__, small=dict(n=50), data=DATA, workdir=Path, n=200)
    who, y = subject(arguments)
    process, law = who.config.process, densities.Gaussian.from_data(y)
    event, levels = law.event, who.data().levels
    out = sample(
        who.model, solver=solvers.Heun(), grid=grids.Karras(STEPS), key=jax.random.key(3), shape=(arguments.n, *event),
        keep="all", chunk=min(arguments.n, 100),
    )  # fmt: skip
    sigmas = np.asarray(process.noise_ratio(out.times[:-1]))
    error = diagnostics.trajectory_error(out, law)
    flat = diagnostics.planarity(out.trajectory)
    denoised = diagnostics.denoised_along(who.model, out, batch=100)
    emergence = diagnostics.feature_emergence(denoised, out.times, law, process, features=FEATURES)

    # How much of a perturbation arrives, along the direction it was added in.
    y0 = y[:: max(len(y) // 40, 1)][:40]
    gains, predicted = np.zeros((2, len(COMPONENTS), len(LEVELS)))
    for j, sigma in enumerate(LEVELS):
        noise = sigma * jax.random.normal(jax.random.key(j), y0.shape)
        for i, k in enumerate(COMPONENTS):
            direction = np.asarray(law.basis[:, k - 1]).reshape(event)
            moved = diagnostics.perturbation_sensitivity(
                who.model, jnp.asarray(y0) + noise, direction, t=sigma, size=0.1 * sigma, solver=solvers.Heun(),
                grid=grids.Karras(12, t_max=sigma), key=jax.random.key(0),
            )  # fmt: skip
            gains[i, j] = np.mean(np.sum(np.asarray(moved) * direction, axis=tuple(range(1, moved.ndim))))
            variance = float(law.eigenvalues[k - 1])
            predicted[i, j] = np.sqrt(variance / (variance + sigma**2))

    known = np.isfinite(emergence.sigma_half)
    ranks = [np.argsort(np.argsort(v[known])) for v in (emergence.sigma_half, emergence.predicted)]
    spearman = float(np.corrcoef(*ranks)[0, 1])
    slope = float(np.polyfit(np.log(emergence.predicted[known]), np.log(emergence.sigma_half[known]), 1)[0])
    print(f"{arguments.data}: relative squared error of the Gaussian's trajectory")
    for at in (40, 20, 10, 5, 2, 1, 0.5, 0.2, 0.05):
        i = int(np.argmin(np.abs(np.log(sigmas / at))))
        print(f"  sigma {sigmas[i]:8.3g}: {error[i]:.2e}; in the plane of the ends: {flat[i].mean():.4f}")
    print(f"emergence: rank correlation {spearman:.3f}, slope {slope:.3f} over {known.sum()} features")
    print("gain of a perturbation, network (closed form):")
    for i, k in enumerate(COMPONENTS):
        cells = (f"{s:g}: {g:.3f} ({p:.3f})" for s, g, p in zip(LEVELS, gains[i], predicted[i], strict=True))
        print(f"  component {k}: " + ", ".join(cells))

    # The first samples: network above, Gaussian below.
    chosen = np.linspace(0, len(sigmas) - 1, 8).round().astype(int)
    start = process.encode(out.trajectory[0][:SHOWN])
    frames = []
    for i in chosen:
        t = float(out.times[i])
        gauss = law.denoise(process, law.flow(process, start, out.times[0], t), t)
        both = jnp.stack([jnp.asarray(denoised[i][:SHOWN]), gauss], axis=1).reshape(-1, *event)
        frames.append(np.asarray(who.transform.decode(process.decode(both))))
    half = (emergence.predicted[known], emergence.sigma_half[known])
    line = np.array([half[0].min(), half[0].max()])
    content = [
        viz.Panel(series={"error of the Gaussian": (sigmas[1:], error[1 : len(sigmas)])}, title=f"{arguments.data}: trajectory",
            xlabel="noise level", ylabel="relative squared error", logx=True, logy=True),
        viz.Panel(series={"outside the plane of the ends": (sigmas[1:], 1 - flat[1 : len(sigmas)].mean(axis=1))}, title="planarity",
            xlabel="noise level", ylabel="share of the squared norm", logx=True, logy=True),
        viz.Panel(series={"features": half, "sqrt(3 lambda)": (line, line)}, title="half of a feature is there",
            xlabel="predicted noise level", ylabel="noise level", logx=True, logy=True, markers=True),
        viz.Panel(series={
            **{f"component {k}": (np.array(LEVELS), gains[i]) for i, k in enumerate(COMPONENTS)},
            "closed form": (np.array(LEVELS), predicted.T),
        }, title="a perturbation at the end", xlabel="noise level at which it is added", ylabel="gain", logx=True, markers=True),
    ]  # fmt: skip
    record(
        arguments,
        {arguments.data: dict(
            model=who.origin, sigmas=sigmas, error=error, in_plane=flat.mean(axis=1),
            sigma_half=emergence.sigma_half, predicted=emergence.predicted, spearman=spearman, slope=slope,
            components=COMPONENTS, levels=LEVELS, gains=gains, predicted_gains=predicted,
        )},
        curves=viz.panels(content, columns=2, reference=("sqrt(3 lambda)", "closed form")),
        denoised=viz.trajectory(np.stack(frames), [f"{sigmas[i]:.3g}" for i in chosen], levels=levels),
    )  # fmt: skip


if __name__ == "__main__":
    script(main)
