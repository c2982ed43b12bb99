r"""Generated sets of sequences, volumes and images, each with an exact law and with numbers of one event whose law is known.

They are what the networks are trained on to a stated value: a sampler (seed, n) -> (n, \*event) float32 as in
:mod:`scorelab.data.toy`, and statistics, functions from events (n, \*event) to one number each (n,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from scorelab import densities
from scorelab.data.toy import Seed, draw

# The switching chain: the two levels, the deviation about them, and the probabilities to leave each.
LEVELS, SPREAD, LEAVES = (-1.0, 1.0), 0.2, (0.05, 0.15)
LENGTH = 32
# Blobs and spots: sides, width, margin of the centre to the border, and the amplitudes or the share of each colour.
SIDE, BLOB_WIDTH, BLOB_MARGIN, AMPLITUDES = 12, 1.5, 3.5, (0.5, 1.5)
IMAGE, SPOT_WIDTH, SPOT_MARGIN, COLOURS = (30, 21), 2.5, 5.0, (1 / 2, 1 / 3, 1 / 6)


def gaussian_process(seed: Seed, n: int) -> np.ndarray:
    """Samples of ``densities.gaussian_process()``, (n, 32, 1)."""
    return draw(densities.gaussian_process(), seed, n)


def switching(seed: Seed, n: int) -> np.ndarray:
    r"""Sequences (n, 32, 1) of a hidden Markov chain of two states: :math:`x_i = \pm 1 + 0.2\,\epsilon_i`.

    The lower state is left with probability 0.05 in each step, the upper one with 0.15, so that runs are geometric, of means 20 and
    6.7. The first state is stationary, upper with probability 1/4. The sign of :math:`x_i` is the state but for one in 3 million.
    """
    rng = _generator("switching", seed, n)
    state = np.empty((n, LENGTH), int)
    state[:, 0] = rng.uniform(size=n) < LEAVES[0] / sum(LEAVES)
    leaves = rng.uniform(size=(n, LENGTH))
    for i in range(1, LENGTH):
        state[:, i] = state[:, i - 1] ^ (leaves[:, i] < np.asarray(LEAVES)[state[:, i - 1]])
    x = np.asarray(LEVELS)[state] + SPREAD * rng.standard_normal((n, LENGTH))
    return x[..., None].astype(np.float32)


def blobs(seed: Seed, n: int) -> np.ndarray:
    r"""Volumes (n, 12, 12, 12, 1) with one blob, :math:`a\,e^{-|r-c|^2/2w^2}` with :math:`w = 1.5`.

    The amplitude is uniform on [0.5, 1.5], and the centre on the cube [3.5, 7.5]^3, in voxels from 0.
    """
    rng = _generator("blobs", seed, n)
    centre = rng.uniform(BLOB_MARGIN, SIDE - 1 - BLOB_MARGIN, (n, 3))
    amplitude = rng.uniform(*AMPLITUDES, n)
    return (bump(centre, (SIDE,) * 3, BLOB_WIDTH) * amplitude[:, None, None, None])[..., None].astype(np.float32)


def spots(seed: Seed, n: int) -> np.ndarray:
    r"""Images (n, 30, 21, 3) with one spot of one colour, :math:`e^{-|r-c|^2/2w^2}` with :math:`w = 2.5`, in one of three channels.

    The centre is uniform on [5, 24] x [5, 15], in pixels from 0; the channels have the probabilities 1/2, 1/3 and 1/6.
    """
    rng = _generator("spots", seed, n)
    centre = rng.uniform(SPOT_MARGIN, np.asarray(IMAGE) - 1 - SPOT_MARGIN, (n, 2))
    colour = np.eye(3)[rng.choice(3, size=n, p=COLOURS)]
    return (bump(centre, IMAGE, SPOT_WIDTH)[..., None] * colour[:, None, None]).astype(np.float32)


def bump(centre: np.ndarray, sides: tuple[int, ...], width: float) -> np.ndarray:
    r""":math:`e^{-|r-c|^2/2w^2}` on a grid, ``(n, *sides)``, for centres ``(n, len(sides))``."""
    value = np.ones((len(centre), *(1,) * len(sides)))
    for axis, side in enumerate(sides):
        profile = np.exp(-((np.arange(side) - centre[:, axis, None]) ** 2) / (2 * width**2))
        value = value * profile.reshape(len(centre), *(side if i == axis else 1 for i in range(len(sides))))
    return value


def centres(x: np.ndarray) -> np.ndarray:
    """The mean place of the square of events ``(n, *sides, channels)``, ``(n, len(sides))``; that of a blob is its centre."""
    # The square keeps faint noise far from the blob out of the mean.
    mass = np.sum(np.square(np.maximum(x, 0), dtype=np.float64), axis=-1)
    total = np.maximum(mass.reshape(len(x), -1).sum(1), 1e-30)
    others = lambda axis: tuple(i for i in range(1, mass.ndim) if i != axis)
    return np.stack([mass.sum(others(axis)) @ np.arange(mass.shape[axis]) / total for axis in range(1, mass.ndim)], 1)


def amplitudes(x: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """The amplitude of the blob about :func:`centres` that fits every channel best, ``(n, channels)``, and the fit itself."""
    shape = bump(centres(x), x.shape[1:-1], width)
    axes = tuple(range(1, x.ndim - 1))
    found = np.sum(x * shape[..., None], axis=axes) / np.sum(shape**2, axis=axes)[:, None]
    return found, shape[..., None] * found.reshape(len(x), *(1,) * len(axes), -1)


def residual(x: np.ndarray, width: float, channels: int | None = None) -> np.ndarray:
    """How far events are from the nearest blob, relative to it, ``(n,)``; with ``channels``, of the strongest ones alone."""
    found, fit = amplitudes(x, width)
    if channels is not None:
        weakest = np.argsort(found, axis=1)[:, : found.shape[1] - channels]
        keep = np.ones_like(found)
        np.put_along_axis(keep, weakest, 0.0, axis=1)
        fit = fit * np.expand_dims(keep, tuple(range(1, x.ndim - 1)))
    size = lambda z: np.sqrt(np.square(z).reshape(len(x), -1).sum(1))
    return size(x - fit) / np.maximum(size(fit), 1e-30)


def upper(x: np.ndarray) -> np.ndarray:
    """Where a switching sequence is in its upper state, ``(n, length)``."""
    return x[..., 0] > 0


def longest_run(x: np.ndarray) -> np.ndarray:
    """The longest stay in one state, ``(n,)``."""
    state = upper(x)
    longest = run = np.ones(len(x))
    for i in range(1, state.shape[1]):
        run = np.where(state[:, i] == state[:, i - 1], run + 1, 1)
        longest = np.maximum(longest, run)
    return longest


def mahalanobis(x: np.ndarray) -> np.ndarray:
    r""":math:`x^\top\Sigma^{-1}x/d` under ``densities.gaussian_process()``, whose law is that of :math:`\chi^2_d/d`."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    return np.sum(flat * np.linalg.solve(densities.oscillation(flat.shape[1]), flat.T).T, axis=1) / flat.shape[1]


Statistic = Callable[[np.ndarray], np.ndarray]

STATISTICS: Mapping[str, Mapping[str, Statistic]] = MappingProxyType(
    {
        "gaussian_process": {
            "value": lambda x: x[:, LENGTH // 2, 0],
            "half a period apart": lambda x: x[:, 12, 0] * x[:, 16, 0],
            "increment": lambda x: x[:, 16, 0] - x[:, 15, 0],
            "distance": mahalanobis,
        },
        "switching": {
            "switches": lambda x: np.sum(upper(x)[:, 1:] != upper(x)[:, :-1], axis=1),
            "time in the upper state": lambda x: upper(x).mean(1),
            "longest run": longest_run,
            "spread": lambda x: np.sqrt(np.mean((np.abs(x[..., 0]) - 1) ** 2, axis=1)),
        },
        "blobs": {
            "depth": lambda x: centres(x)[:, 0],
            "height": lambda x: centres(x)[:, 1],
            "width": lambda x: centres(x)[:, 2],
            "amplitude": lambda x: amplitudes(x, BLOB_WIDTH)[0][:, 0],
            "residual": lambda x: residual(x, BLOB_WIDTH),
        },
        "spots": {
            "row": lambda x: centres(x)[:, 0],
            "column": lambda x: centres(x)[:, 1],
            "colour": lambda x: np.argmax(amplitudes(x, SPOT_WIDTH)[0], axis=1),
            "amplitude": lambda x: np.max(amplitudes(x, SPOT_WIDTH)[0], axis=1),
            "residual": lambda x: residual(x, SPOT_WIDTH, channels=1),
        },
    }
)


def _generator(name: str, seed: Seed, n: int) -> np.random.Generator:
    if n < 1:
        raise ValueError(f"{name}.n = {n}: expected an integer >= 1")
    return np.random.default_rng(seed)
