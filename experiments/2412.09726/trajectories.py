"""Sampling trajectories of a trained network beside the closed form of the Gaussian, from the same noise.

Four measurements along the probability flow: the error of the Gaussian's closed form; how much of a trajectory lies outside the
plane of its two ends; when features emerge (noise level at which half of a principal component of the denoised image is there,
against sqrt(3 lambda)); and how much of a perturbation along a principal component arrives at the end, against
sqrt(lambda / (lambda + sigma^2)). And pictures of the denoised images of both, by noise level.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from subject import DATA, subject

from scorelab import densities, diagnostics, grids, sample, solvers, viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="The Gaussian's closed form predicts the first part of a trajectory; trajectories are nearly planar; directions of "
    "large variance appear first, at the noise level sqrt(3 lambda); a perturbation is damped by "
    "sqrt(lambda / (lambda + sigma^2)).",
    look_for="An error of the closed form below .01 down to noise level 5; features in the order of their variances; of the first "
    "images, the same outlines in both rows at high noise.",
    minutes=dict(small=0.3, full=0.4, gpu=None),
    options=dict(data=DATA, workdir=Path, n=200, seeds=3),
    small=dict(n=40, seeds=2),
)

STEPS, SHOWN, FEATURES = 40, 5, 30
# Perturbations: principal components (counted from 1), and the noise levels at which they are added.
COMPONENTS, LEVELS = (1, 3, 10, 30), (20.0, 5.0, 2.0, 1.0, 0.5, 0.2)


def walked(who, law, n: int, seed: int):
    """Samples with their whole way."""
    return sample(
        who.model, solver=solvers.Heun(), grid=grids.Karras(STEPS), key=jax.random.key(3 + seed), shape=(n, *law.event),
        keep="all", chunk=min(n, 100),
    )  # fmt: skip


def measure(who, law, n: int, seed: int) -> dict:
    """Errors, planarity and emergence of the trajectories of one seed."""
    process, out = who.config.process, walked(who, law, n, seed)
    denoised = diagnostics.denoised_along(who.model, out, batch=100)
    emergence = diagnostics.feature_emergence(denoised, out.times, law, process, features=FEATURES)
    known = np.isfinite(emergence.sigma_half)
    ranks = [np.argsort(np.argsort(v[known])) for v in (emergence.sigma_half, emergence.predicted)]
    return dict(
        sigmas=np.asarray(process.noise_ratio(out.times[:-1])), error=diagnostics.trajectory_error(out, law),
        in_plane=diagnostics.planarity(out.trajectory).mean(axis=1), sigma_half=emergence.sigma_half, predicted=emergence.predicted,
        spearman=float(np.corrcoef(*ranks)[0, 1]),
        slope=float(np.polyfit(np.log(emergence.predicted[known]), np.log(emergence.sigma_half[known]), 1)[0]),
    )  # fmt: skip


def perturbed(who, law, y: np.ndarray) -> dict:
    """How much of a perturbation arrives, along the direction it was added in: component -> noise level."""
    y0 = y[:: max(len(y) // 40, 1)][:40]
    gains, predicted = np.zeros((2, len(COMPONENTS), len(LEVELS)))
    for j, sigma in enumerate(LEVELS):
        noise = sigma * jax.random.normal(jax.random.key(j), y0.shape)
        for i, k in enumerate(COMPONENTS):
            direction = np.asarray(law.basis[:, k - 1]).reshape(law.event)
            moved = diagnostics.perturbation_sensitivity(
                who.model, jnp.asarray(y0) + noise, direction, t=sigma, size=0.1 * sigma, solver=solvers.Heun(),
                grid=grids.Karras(12, t_max=sigma), key=jax.random.key(0),
            )  # fmt: skip
            gains[i, j] = np.mean(np.sum(np.asarray(moved) * direction, axis=tuple(range(1, moved.ndim))))
            variance = float(law.eigenvalues[k - 1])
            predicted[i, j] = np.sqrt(variance / (variance + sigma**2))
    return dict(components=COMPONENTS, levels=LEVELS, gains=gains, predicted=predicted)


def pictured(who, law):
    """Denoised images of the network and of the Gaussian by noise level, in pairs of rows."""
    process, out = who.config.process, walked(who, law, SHOWN, 0)
    denoised = diagnostics.denoised_along(who.model, out)
    chosen = np.linspace(0, len(out.times) - 2, 8).round().astype(int)
    start, columns = process.encode(out.trajectory[0]), []
    for i in chosen:
        t = float(out.times[i])
        gauss = law.denoise(process, law.flow(process, start, out.times[0], t), t)
        both = jnp.stack([jnp.asarray(denoised[i]), gauss], axis=1).reshape(-1, *law.event)
        columns.append(np.asarray(who.transform.decode(process.decode(both))))
    sigmas = np.asarray(process.noise_ratio(out.times[chosen]))
    return viz.image_grid(
        np.stack(columns, axis=1).reshape(-1, *law.event), levels=who.data().levels, columns=len(chosen),
        rows=["network", "Gaussian"] * SHOWN, headings=[f"{s:.3g}" for s in sigmas], width=6,
        title="what is denoised, by noise level",
    )  # fmt: skip


def nearest(seed: dict, sigma: float) -> int:
    """The number of the time with the noise level nearest to ``sigma``."""
    return int(np.argmin(np.abs(np.log(np.array(seed["sigmas"]) / sigma))))


def claims(numbers: dict) -> list[Claim]:
    """What the paper says of trajectories, beside what was found."""
    seeds = list(numbers["seeds"].values())
    at = nearest(seeds[0], 5.0)
    error = np.array([seed["error"][at] for seed in seeds])
    outside = np.array([1 - np.min(seed["in_plane"]) for seed in seeds])
    order = np.array([seed["spearman"] for seed in seeds])
    found = numbers["perturbations"]
    gain = found["gains"][0][0] / found["predicted"][0][0]
    spread = f"{numbers['n']} samples, spread over {len(seeds)} sampling seed{'s' * (len(seeds) > 1)} of one network"
    return [
        Claim(
            says="The first part of a trajectory is that of the Gaussian.", value=error.mean(), spread=error.std(),
            unit=f"relative squared error at noise level {seeds[0]['sigmas'][at]:.2g}",
            verdict="reproduced" if error.max() < 0.01 else "not reproduced", why=f"A hundredth would be the bound. {spread}.",
        ),
        Claim(
            says="A trajectory lies nearly in the plane of its ends.", value=outside.mean(), spread=outside.std(),
            unit="of the squared norm outside the plane, at the worst time",
            verdict="reproduced" if outside.max() < 0.05 else "not reproduced", why=f"A twentieth would be the bound. {spread}.",
        ),
        Claim(
            says="Features appear in the order of their variances.", value=order.mean(), spread=order.std(),
            unit=f"rank correlation over {FEATURES} principal components",
            verdict="reproduced" if order.min() > 0.9 else "in shape" if order.min() > 0.7 else "not reproduced",
            why=f"Below .9 it counts as in shape. {spread}.",
        ),
        Claim(
            says="A perturbation along a component is damped by sqrt(lambda / (lambda + sigma^2)).", value=gain, spread=0,
            unit="times the predicted gain, first component, added at noise level 20",
            verdict="reproduced" if abs(gain - 1) < 0.1 else "in shape" if 0.5 < gain < 2 else "not reproduced",
            why="A tenth off counts as reproduced, a factor of two as in shape: the network pulls back to its samples.",
        ),
    ]  # fmt: skip


def figure(numbers: dict, data: str):
    """The four measurements; a line is one sampling seed."""
    seeds, found = list(numbers["seeds"].values()), numbers["perturbations"]
    sigmas = np.array(seeds[0]["sigmas"])
    error = np.array([seed["error"] for seed in seeds]).T[1 : len(sigmas)]
    outside = 1 - np.array([seed["in_plane"] for seed in seeds]).T[1 : len(sigmas)]
    half = np.array([np.array(seed["sigma_half"], float) for seed in seeds]).T
    predicted = np.array(seeds[0]["predicted"])
    content = [
        viz.Panel(series={"error of the Gaussian": (sigmas[1:], error)}, title=f"{data}: trajectory",
            xlabel="noise level", ylabel="relative squared error", logx=True, logy=True),
        viz.Panel(series={"outside the plane of the ends": (sigmas[1:], outside)}, title="planarity",
            xlabel="noise level", ylabel="share of the squared norm", logx=True, logy=True),
        viz.Panel(series={"features": (predicted, half), "sqrt(3 lambda)": (predicted, predicted)},
            title="half of a feature is there", xlabel="predicted noise level", ylabel="noise level", logx=True, logy=True,
            markers=True),
        viz.Panel(series={
            **{f"component {k}": (np.array(LEVELS), np.array(v)) for k, v in zip(COMPONENTS, found["gains"], strict=True)},
            "closed form": (np.array(LEVELS), np.array(found["predicted"]).T),
        }, title="a perturbation at the end", xlabel="noise level at which it is added", ylabel="gain", logx=True, markers=True),
    ]  # fmt: skip
    return viz.panels(content, columns=2, reference=("sqrt(3 lambda)", "closed form"))


def main(record) -> None:
    o = record.options
    who, y = subject(o)
    law = densities.Gaussian.from_data(y)
    seeds = record.cells(measure, {f"seed {seed}": (who, law, o.n, seed) for seed in range(o.seeds)})
    numbers = dict(model=who.origin, n=o.n, seeds=seeds, perturbations=record.cell("perturbations", perturbed, who, law, y))
    first = seeds["seed 0"]
    print(f"{o.data}: relative squared error of the Gaussian's trajectory")
    for at in (40, 20, 10, 5, 2, 1, 0.5, 0.2, 0.05):
        i = nearest(first, at)
        print(f"  sigma {first['sigmas'][i]:8.3g}: {first['error'][i]:.2e}; in the plane of the ends: {first['in_plane'][i]:.4f}")
    record.write(numbers, claims=claims(numbers), curves=figure(numbers, o.data), denoised=pictured(who, law))


if __name__ == "__main__":
    FIGURE.make(main)
