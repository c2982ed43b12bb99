"""Maps of the score in a plane through the space of images: of a trained network, and of simple laws.

The plane goes through the mean of the data along their first two principal directions, or through three training images. Colour is
the length of the part of the score in the plane, times the noise level, arrows are its direction. The numbers say how alike the
fields are: the mean cosine of their directions over the plane, and the squared difference relative to the network's field.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from subject import DATA, laws_of, subject

from scorelab import viz
from scorelab.models import ask
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="At high noise the field of the network is that of the Gaussian, which points to the mean; at low noise it bends "
    "towards the data, as those of mixtures and of the training set do.",
    look_for="Four columns that are alike in the first row; in the last one, a network that is nearer to the mixture than to the "
    "Gaussian.",
    minutes=dict(small=0.2, full=0.3, gpu=None),
    options=dict(plane=("principal", "images"), data=DATA, workdir=Path, points=41, few=10),
    small=dict(points=25),
)

SIGMAS = (5.0, 1.0, 0.5, 0.2)


def plane_of(y: np.ndarray, label: np.ndarray, plane: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Origin ``(d,)``, two orthonormal directions ``(2, d)``, and the data in the plane, or the three images, ``(k, 2)``."""
    flat = y.reshape(len(y), -1).astype(np.float64)
    if plane == "principal":
        origin, few = flat.mean(axis=0), flat[:: max(len(flat) // 100, 1)]
        _, basis = np.linalg.eigh(np.cov(flat.T))
        directions = basis[:, :-3:-1].T
        return origin, directions, (few - origin) @ directions.T
    images = np.stack([flat[np.flatnonzero(label == k)[0]] for k in (0, 1, 4)])
    origin = images.mean(axis=0)
    # Gram and Schmidt, on two sides of the triangle.
    directions = np.linalg.qr((images[1:] - images[0]).T)[0].T
    return origin, directions, (images - origin) @ directions.T


def measure(options) -> dict:
    """Noise level -> name -> the field in the plane, times the noise level, ``(m, m, 2)``; and where the plane is."""
    who, y = subject(options)
    process, data = who.config.process, who.data()
    laws = laws_of(y, (options.few,))
    named = {name: laws[name] for name in ("Gaussian", f"{options.few} Gaussians", "training set")}
    origin, directions, marks = plane_of(y, np.asarray(data.label), options.plane)
    axis = np.linspace(-1, 1, options.points) * 1.25 * np.abs(marks).max()
    at = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    points = jnp.asarray(origin + at @ directions, jnp.float32).reshape(-1, *y.shape[1:])

    def flat(score):
        return (np.asarray(score, np.float64).reshape(len(at), -1) @ directions.T).reshape(options.points, options.points, 2)

    fields = {}
    for sigma in SIGMAS:
        t = jnp.asarray(float(process.schedule.time(-2 * np.log(sigma))), jnp.float32)
        row = {"network": flat(-jax.jit(ask)(who.model, points, t).eps)}
        for name, law in named.items():
            row[name] = flat(sigma * law.noised(process, t).score(points))
        fields[str(sigma)] = row
    return dict(fields=fields, axis=axis, marks=marks)


def alike(fields: dict) -> dict:
    """Noise level -> law -> the mean cosine with the network's field, and the relative squared difference."""
    found = {}
    for sigma, row in fields.items():
        network = row["network"]
        for name, field in row.items():
            if name != "network":
                lengths = np.linalg.norm(network, axis=-1) * np.linalg.norm(field, axis=-1)
                cosine = np.mean(np.sum(network * field, axis=-1) / np.maximum(lengths, 1e-12))
                error = np.sum((network - field) ** 2) / np.sum(network**2)
                found.setdefault(sigma, {})[name] = dict(cosine=cosine, error=error)
    return found


def claims(numbers: dict) -> list[Claim]:
    """What the paper says of the fields, beside what was found."""
    high, low = (numbers["alike"][str(sigma)] for sigma in (5.0, 0.2))
    mixture = next(name for name in low if name.endswith(" Gaussians"))
    ratio = low[mixture]["error"] / low["Gaussian"]["error"]
    return [
        Claim(
            says="At high noise the field of the network is that of the Gaussian.", value=high["Gaussian"]["error"], spread=0,
            unit="relative squared difference over the plane at noise level 5",
            verdict="reproduced" if high["Gaussian"]["error"] < 0.01 else "not reproduced", why="A hundredth would be the bound.",
        ),
        Claim(
            says="At low noise it is nearer to that of a mixture.", value=ratio, spread=0,
            unit=f"times the squared difference to the Gaussian, {mixture} at noise level .2",
            verdict="reproduced" if ratio < 1 else "not reproduced",
            why="Points of the plane without noise are not those that the network was trained on at this level.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o = record.options
    who, _ = subject(o)
    found = record.cell(o.plane, measure, o)
    numbers = dict(model=who.origin, alike=alike(found["fields"]))
    for sigma, row in numbers["alike"].items():
        print(
            f"noise level {sigma:4s} " + "; ".join(f"{k}: cosine {v['cosine']:.3f}, error {v['error']:.4f}" for k, v in row.items())
        )
    labels = ("first direction", "second direction") if o.plane == "principal" else ("along one side", "across it")
    picture = viz.fields(
        {f"noise level {sigma}": row for sigma, row in found["fields"].items()}, axis=found["axis"], points=found["marks"],
        xlabel=labels[0], ylabel=labels[1], colour="score times noise level", width=7,
    )  # fmt: skip
    record.write(numbers, claims=claims(numbers), field=picture)


if __name__ == "__main__":
    FIGURE.make(main)
