"""What transforms after the noise ask of a network, exactly: minimisers of score augmentation and of augmented clean data.

The law is a mixture of ten Gaussians, one for each class of the 8x8 digits, so all posterior means are in closed form (float64).
Under noise of deviation sigma the minimiser of score augmentation is E[T x_0 | T x_t]. Beside it stand T D(x_t), with D the
denoised mean of the data as they are, and E[T x_0 | T x_0 + sigma eps], which a network learns that is told how clean data were
transformed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import scorelab as sl
from scorelab import losses, viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="The score of transformed noised data follows from that of the data; a transform after the noise is a task that "
    "augmentation of clean data does not set.",
    look_for="Left: for invertible transforms nothing is left but rounding; those that lose pixels have another target. Right: but "
    "for the brightness, the minimiser is that of clean augmentation of which the network is told.",
    minutes=dict(small=0.1, full=None, gpu=None),
)

SIGMAS = np.geomspace(0.05, 5.0, 9)
TRANSFORMS = {
    "rotation": losses.Rotation(),
    "flip": losses.Flip(),
    "brightness": losses.Brightness(2.0),
    "translation": losses.Translation(1),
    "cutout": losses.Cutout(3),
}
EVENT, N = (8, 8, 1), 200
# Relative differences below this are rounding of linear algebra in 64 dimensions.
ROUNDING = 1e-9


def law() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares, means and covariances of the classes, as arrays; the deviation of a half grey level keeps them regular."""
    arrays = sl.data.load("digits")
    x = np.asarray(sl.data.Pixels(levels=17).encode(arrays.x), np.float64).reshape(len(arrays), -1)
    of = [x[arrays.label == k] for k in range(10)]
    covariances = [np.cov(part.T) + (1 / 17) ** 2 * np.eye(64) for part in of]
    return np.array([len(part) for part in of]) / len(x), np.stack([part.mean(0) for part in of]), np.stack(covariances)


def posterior(parts, T, y, noise) -> np.ndarray:
    """``E[T x_0 | y]`` for ``y = T x_0 + n``, with ``n`` of the covariance ``noise``, which may be singular with ``T``."""
    logs, means = [], []
    for share, mean, covariance in zip(*parts, strict=True):
        signal = T @ covariance @ T.T
        values, vectors = np.linalg.eigh(signal + noise)
        seen = values > 1e-10 * values[-1]
        along = (y - T @ mean) @ vectors[:, seen]
        means.append(T @ mean + (along / values[seen]) @ vectors[:, seen].T @ signal)
        logs.append(np.log(share) - 0.5 * np.sum(along**2 / values[seen], axis=1) - 0.5 * np.sum(np.log(values[seen])))
    weights = np.exp(np.stack(logs) - np.max(logs, axis=0))
    return np.einsum("kn,kni->ni", weights / weights.sum(0), np.stack(means))


def matrix(transform) -> np.ndarray:
    """One drawn transform as a matrix."""
    w = transform.draw(jax.random.key(0), 1, EVENT)
    columns = transform(jnp.eye(64).reshape(64, *EVENT), jnp.broadcast_to(w, (64, transform.size)))
    return np.asarray(columns, np.float64).reshape(64, 64).T


def measure(name: str) -> dict:
    """Relative root mean square differences over noise levels, at the same points."""
    parts, T = law(), matrix(TRANSFORMS[name])
    rng, out = np.random.default_rng(0), dict(given_all=[], clean=[])
    which = rng.choice(10, N, p=parts[0])
    x0 = np.stack([rng.multivariate_normal(parts[1][k], parts[2][k]) for k in which])
    for sigma in SIGMAS:
        xt = x0 + sigma * rng.normal(size=x0.shape)
        after = posterior(parts, T, xt @ T.T, sigma**2 * T @ T.T)
        before = posterior(parts, T, xt @ T.T, sigma**2 * np.eye(64))
        known = posterior(parts, np.eye(64), xt, sigma**2 * np.eye(64)) @ T.T
        size = np.sqrt(np.mean(known**2))
        out["given_all"].append(np.sqrt(np.mean((after - known) ** 2)) / size)
        out["clean"].append(np.sqrt(np.mean((after - before) ** 2)) / size)
    return {key: np.array(value) for key, value in out.items()}


def figure(found: dict):
    """Both differences over the noise level."""
    floor = lambda values: np.maximum(values, 1e-16)
    titles = {"given_all": r"from $T\,D(x_t)$", "clean": "from clean augmentation that is told"}
    content = [
        viz.Panel(
            series={name: (SIGMAS, floor(of[which])) for name, of in found.items()}, title=title, xlabel="noise level",
            ylabel="relative difference of the minimiser", logx=True, logy=True, markers=True,
        )
        for which, title in titles.items()
    ]  # fmt: skip
    return viz.panels(content, width=9.0, height=3.0)


def claims(found: dict) -> list[Claim]:
    """The two statements, and where they end."""
    worst = lambda names, which: max((float(found[name][which].max()) for name in names), default=0.0)
    invertible = [name for name, of in TRANSFORMS.items() if of.invertible]
    losing = [name for name in TRANSFORMS if name not in invertible]
    other = [name for name, of in found.items() if of["clean"].max() > ROUNDING]
    same = [name for name in TRANSFORMS if name not in other]
    return [
        Claim(
            says="The denoised mean of transformed data is the transformed denoised mean.", value=worst(invertible, "given_all"),
            spread=0.0, unit="largest relative difference, invertible transforms",
            verdict="reproduced" if worst(invertible, "given_all") < ROUNDING else "not reproduced",
            why=f"Rounding alone. For {' and '.join(losing)}, which lose pixels, it is another target: up to "
            f"{worst(losing, 'given_all'):.2g} of its size.",
        ),
        Claim(
            says="Transforms of noised data set a task that clean augmentation does not.", value=worst(other, "clean"), spread=0.0,
            unit=f"largest relative difference from clean augmentation that is told: {' and '.join(other)}",
            verdict="in shape" if other else "not reproduced",
            why=f"There is none for {', '.join(same)} ({worst(same, 'clean'):.0e}), which leave white noise white where they leave "
            "any pixels. So a change of brightness is all that is new.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    found = record.cells(measure, {name: (name,) for name in TRANSFORMS})
    numbers = {name: {"orthogonal": TRANSFORMS[name].orthogonal, **of} for name, of in found.items()}
    record.write({"sigmas": SIGMAS, **numbers}, claims=claims(found), differences=figure(found))


if __name__ == "__main__":
    FIGURE.make(main)
