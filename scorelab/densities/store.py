"""Gaussians in files, with the hash and the range of the data they were made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scorelab.densities.gaussian import Gaussian
from scorelab.files import write_npz


def save_gaussian(path: str | Path, law: Gaussian, *, data_sha256: str, interval: tuple[float, float] = (-1.0, 1.0)) -> Path:
    """Write a Gaussian to an ``.npz`` file, complete or not at all.

    Args:
        path: the file.
        law: the Gaussian, stored in its own precision (take it from data under ``jax.enable_x64(True)`` for float64).
        data_sha256: the hash of the data it is the law of, such as ``Arrays.sha256``.
        interval: the range of values the data had: what 0 and the largest level became.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"save_gaussian.path = {str(path)!r}: expected a name that ends in .npz")
    names = ("mean", "basis", "eigenvalues", "tail", "reach")
    arrays = {name: np.asarray(getattr(law, name)) for name in names}
    return write_npz(path, arrays | dict(data_sha256=np.asarray(data_sha256), interval=np.asarray(_checked("save", interval))))


def load_gaussian(path: str | Path, *, data_sha256: str | None = None, interval: tuple[float, float] | None = None) -> Gaussian:
    r"""Read a Gaussian, as the law of the same data in another range of values where one is given.

    From :math:`[a, b]` to :math:`[c, d]` the mean goes through the affine map and the variances take the factor
    :math:`((d-c)/(b-a))^2`. That holds for values of the data, not for a law of their logarithms.

    Args:
        path: a file written by :func:`save_gaussian`.
        data_sha256: the hash the data must have had; None to accept any.
        interval: the range wanted; None for that of the file.

    Raises:
        ValueError: the file is of other data, or holds no Gaussian.
    """
    with np.load(path, allow_pickle=False) as file:
        if missing := {"mean", "basis", "eigenvalues", "tail", "reach", "data_sha256", "interval"} - set(file):
            raise ValueError(f"{path} has no {', '.join(sorted(missing))}: expected a file written by save_gaussian")
        found, (a, b) = str(file["data_sha256"]), (float(end) for end in file["interval"])
        law = Gaussian.low_rank(file["mean"], file["basis"], file["eigenvalues"], file["tail"])._reaching(file["reach"])
    if data_sha256 is not None and found != data_sha256:
        raise ValueError(f"{path} was made from the data with hash {found}: expected {data_sha256}")
    c, d = (a, b) if interval is None else _checked("load", interval)
    scale = (d - c) / (b - a)
    return law.affine(scale, c - a * scale)


def _checked(verb: str, interval: tuple[float, float]) -> tuple[float, float]:
    low, high = (float(end) for end in interval)
    if not -np.inf < low < high < np.inf:
        raise ValueError(f"{verb}_gaussian.interval = {interval}: expected two finite numbers, the lower one first")
    return low, high
