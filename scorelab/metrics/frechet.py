"""Frechet distance between the Gaussians fitted to two sets of features."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scorelab.files import read_npz, write_npz
from scorelab.metrics.features import Features, blocks, in_memory
from scorelab.metrics.value import MetricValue, extractor_id, numbers, points


def _psd(cov: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, clipped at zero, and eigenvectors of a covariance; raises if it is none."""
    scale = max(np.abs(cov).max(), np.finfo(np.float64).tiny)
    if cov.ndim != 2 or cov.shape[0] != cov.shape[1] or np.abs(cov - cov.T).max() > 1e-8 * scale:
        raise ValueError(f"{name} has shape {cov.shape}: expected a symmetric matrix")
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    if values[0] < -1e-8 * scale:
        raise ValueError(f"{name} has the eigenvalue {values[0]:.3g}: expected a positive semi-definite matrix")
    return np.maximum(values, 0), vectors


def frechet_distance(mu1, cov1, mu2, cov2) -> float:
    r"""Squared 2-Wasserstein distance between two Gaussians, in float64.

    .. math:: |\mu_1-\mu_2|^2 + \mathrm{tr}(C_1+C_2) - 2\,\mathrm{tr}\big(C_1^{1/2}C_2C_1^{1/2}\big)^{1/2} .

    The last trace is the sum of the
    singular values of :math:`C_1^{1/2}C_2^{1/2}`: a product of two symmetric roots needs no matrix square root of a
    non-symmetric matrix, stays exact to rounding for singular covariances, and has no eigenvalue of squared
    condition number.

    Means are ``(d,)``, covariances ``(d, d)``, symmetric positive semi-definite, else ValueError.
    Source: Dowson and Landau, "The Frechet distance between multivariate normal distributions", 1982.
    """
    mu1, cov1, mu2, cov2 = (numbers(a, name) for name, a in {"mu1": mu1, "cov1": cov1, "mu2": mu2, "cov2": cov2}.items())
    if not mu1.size or mu1.shape != mu2.shape or cov1.shape != mu1.shape * 2 or cov2.shape != cov1.shape:
        raise ValueError(f"shapes {mu1.shape}, {cov1.shape}, {mu2.shape}, {cov2.shape}: expected (d,), (d, d), (d,), (d, d)")
    (l1, v1), (l2, v2) = _psd(cov1, "cov1"), _psd(cov2, "cov2")
    cross = (np.sqrt(l1)[:, None] * (v1.T @ v2)) * np.sqrt(l2)
    overlap = np.linalg.svd(cross, compute_uv=False).sum()
    with np.errstate(over="ignore"):
        distance = np.sum((mu1 - mu2) ** 2) + l1.sum() + l2.sum() - 2 * overlap
    if not np.isfinite(distance):
        raise ValueError("mu1, cov1, mu2, cov2 have values whose squares overflow: rescale them")
    return float(max(distance, 0.0))


class Moments(NamedTuple):
    """Of a set of features.

    Attributes:
        n: how many there are, None where it is not known.
        mean: ``(d,)``, float64.
        cov: the unbiased covariance ``(d, d)``, float64.
    """

    n: int | None
    mean: np.ndarray
    cov: np.ndarray


def feature_moments(x: Any, features: Features) -> Moments:
    r"""Number, mean and unbiased covariance of ``features(x)``, :math:`n \ge 2`.

    Samples on disk (:class:`scorelab.Shards`) are read block by block, and memory does not grow with ``n``. Blocks are joined by
    their deviations from their own means, which loses no digits:

    .. math:: S_{a\cup b} = S_a + S_b + \frac{n_a n_b}{n_a + n_b}(\mu_b-\mu_a)(\mu_b-\mu_a)^T .

    Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983, equation 1.5.
    """
    return _moments(x, features, "x")


def _moments(x: Any, features: Features, name: str) -> Moments:
    if in_memory(x):
        z = points(x, features, name, power=2)
        return Moments(len(z), z.mean(0), np.atleast_2d(np.cov(z, rowvar=False)))
    total, mean, spread = 0, np.zeros(()), np.zeros(())
    for block in blocks(x):
        z = points(block, features, name, least=1, power=2)
        centre = z.mean(0)
        deviations, step, n = z - centre, centre - mean, total + len(z)
        spread = spread + deviations.T @ deviations + np.outer(step, step) * (total * len(z) / n)
        mean, total = mean + step * (len(z) / n), n
    if total < 2:
        raise ValueError(f"{name} has {total} samples: expected at least 2")
    return Moments(total, mean, spread / (total - 1))


# The most bytes of the statistics in a file: of 4096 features.
_MOST = 8 * (4096**2 + 4096) + 1024


def read_moments(
    path: str | os.PathLike[str], *, n: int | None = None, features: Features | None = None, images: Any = None
) -> Moments:
    """Published statistics of features, an ``.npz`` file with ``mu`` ``(d,)`` and ``sigma`` ``(d, d)``, for :func:`frechet`.

    Such are the ``fid-refs`` of EDM and the files of pytorch-fid. They do not say of which features they are: those of EDM are of
    ``pretrained.InceptionFeatures(mode="tf1")``. Other arrays in the file are left unread.

    Args:
        path: the file.
        n: the number of images, which these files do not say; where the file has an ``n`` (:func:`write_moments`), that.
        features: what the statistics have to be of, as far as their number says it; None for any.
        images: some that ``features`` are asked about, to count them.

    Raises:
        ValueError: no such arrays, other shapes, numbers that are not finite, a ``sigma`` that is no covariance, another ``n``,
            or another number of features than ``features`` has.
        OSError: the file cannot be read.
    """
    if (features is None) != (images is None):
        raise ValueError(f"read_moments: {'images' if images is None else 'features'} = None: expected both or neither")
    path = Path(path)
    found = read_npz(path, limit=_MOST, only=("mu", "sigma"))
    try:
        said = read_npz(path, limit=_MOST, only=("n",))["n"]
    except ValueError:
        said = None
    mean, cov = (numbers(found[name], f"{path}: {name}") for name in ("mu", "sigma"))
    if mean.ndim != 1 or not mean.size or cov.shape != mean.shape * 2:
        raise ValueError(f"{path}: mu has shape {mean.shape} and sigma {cov.shape}: expected (d,) and (d, d)")
    _psd(cov, f"{path}: sigma")
    if said is not None:
        if said.shape != () or said.dtype.kind not in "iu" or said < 2 or n not in (None, int(said)):
            raise ValueError(f"{path}: n is {said}: expected {'an integer of at least 2' if n is None else n}")
        n = int(said)
    if features is not None:
        # As many images as are looked at together, so that nothing is compiled for them alone.
        width = features(np.asarray(images[: getattr(features, "batch_size", 64)])).shape[1]
        if len(mean) != width:
            raise ValueError(f"{path}: of {len(mean)} features: expected {width}, as {features.id} has")
    return Moments(n, mean, cov)


def write_moments(path: str | os.PathLike[str], moments: Moments) -> Path:
    """Write statistics as published ones are, ``mu`` and ``sigma``, with their ``n`` where it is known."""
    known = {} if moments.n is None else {"n": np.asarray(moments.n)}
    return write_npz(Path(path), {"mu": moments.mean, "sigma": moments.cov, **known})


def frechet(x: Any, y: Any, features: Features) -> MetricValue:
    r"""Frechet distance between the feature laws of two sample sets, named "FID-<extractor id>".

    Means and unbiased covariances of ``features(x)`` and ``features(y)``, each ``(n, d)`` with :math:`n \ge 2`
    (:func:`feature_moments`; sets on disk are not loaded). In the place of a set there may be its :class:`Moments` under the same
    features, such as published ones (:func:`read_moments`). The estimate
    is biased upwards by a term of order :math:`1/n`: compare at equal n only, and read it against the floor.
    Source: Heusel et al., "GANs trained by a two time-scale update rule", 2017, arXiv 1706.08500, equation 6.
    """
    a, b = (z if isinstance(z, Moments) else _moments(z, features, name) for name, z in (("x", x), ("y", y)))
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"x gives points of width {len(a.mean)} and y of width {len(b.mean)}: expected equal widths")
    value = frechet_distance(a.mean, a.cov, b.mean, b.cov)
    if a.n is None:
        raise ValueError("frechet.x has n = None: expected samples, or moments of a known number of them")
    return MetricValue(name="FID", value=value, extractor=extractor_id(features), n=a.n, reference_n=b.n)
