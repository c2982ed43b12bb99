"""Vendi score: the effective number of different items in a set, of any order q."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from scorelab.metrics.features import Features
from scorelab.metrics.value import MetricValue, extractor_id, numbers, points


def _check(q: float, weights, n: int) -> np.ndarray:
    if not q >= 0:
        raise ValueError(f"q={q!r}: expected a number from 0 to infinity")
    if weights is None:
        return np.full(n, 1 / n)
    w = numbers(weights, "weights")
    if w.shape != (n,) or w.min() < 0 or not math.isclose(w.sum(), 1, rel_tol=1e-6):
        raise ValueError(f"weights of shape {w.shape} with sum {w.sum():.6g}: expected {n} non-negative numbers with sum 1")
    return w / w.sum()


def hill_number(eigenvalues: np.ndarray, q: float) -> float:
    r""":math:`(\sum_i l_i^q)^{1/(1-q)}` of non-negative numbers with sum 1, with the limits at :math:`q = 0, 1, \infty`.

    At :math:`q = 1` it is :math:`e^{-\sum_i l_i\log l_i}`, at infinity :math:`1/\max_i l_i`, at 0 how many exceed ``n eps max(l)``,
    the rounding error of an eigenvalue of an n by n matrix. Small negative values are rounding: they are cut and the
    rest is scaled to sum 1. Between 1 and n.

    Raises:
        ValueError: ``q`` below 0, values that are not finite, below -1e-6 or with another sum than 1 (to 1e-5).
    """
    l = numbers(eigenvalues, "eigenvalues")
    if not q >= 0:
        raise ValueError(f"q={q!r}: expected a number from 0 to infinity")
    if l.ndim != 1 or not math.isclose(l.sum(), 1, rel_tol=1e-5) or l.min() < -1e-6:
        raise ValueError(f"eigenvalues has shape {l.shape} and sum {l.sum():.6g}: expected non-negative numbers with sum 1")
    l = np.maximum(l, 0)
    l = l[l > len(l) * np.finfo(np.float64).eps * l.max()]
    l = l / l.sum()
    if q == 0:
        return float(len(l))
    if q == 1:
        return float(np.exp(-np.sum(l * np.log(l))))
    if math.isinf(q):
        return float(1 / l.max())
    if abs(q - 1) < 0.5:
        # sum l^q = 1 + sum l ((l^(q-1)) - 1): near q = 1 the difference from 1 is what is divided by 1 - q.
        return float(np.exp(np.log1p(np.sum(l * np.expm1((q - 1) * np.log(l)))) / (1 - q)))
    # The largest is taken out so that a large q cannot underflow every term.
    log_sum = q * math.log(l.max()) + math.log(np.sum((l / l.max()) ** q))
    return float(math.exp(log_sum / (1 - q)))


def vendi_from_kernel(kernel: np.ndarray, q: float = 1.0, weights: np.ndarray | None = None) -> float:
    r"""Vendi score :math:`VS_q` of a positive semi-definite similarity matrix :math:`K`, ``(n, n)``, with ones on the diagonal.

    Hill number of order :math:`q` of the eigenvalues of :math:`A = P^{1/2}KP^{1/2}` with the diagonal :math:`P` of ``weights``, by
    default :math:`1/n`: n for n unlike items, 1 for equal ones. Small :math:`q` counts the rare items, large :math:`q` the common
    ones. Order 2 needs no eigenvalues: :math:`1/\lVert A\rVert_F^2`.

    Raises:
        ValueError: another diagonal, an asymmetric or indefinite matrix (seen at order 2 from an entry above 1 only).

    Sources: Friedman and Dieng, "The Vendi score",
    arXiv 2210.02410; for q, Pasarkar and Dieng, arXiv 2310.12952.
    """
    k = numbers(kernel, "kernel")
    if k.ndim != 2 or k.shape[0] != k.shape[1] or len(k) < 1:
        raise ValueError(f"kernel has shape {k.shape}: expected (n, n)")
    if np.abs(np.diag(k) - 1).max() > 1e-6 or np.abs(k - k.T).max() > 1e-6:
        raise ValueError(
            f"kernel has a diagonal from {np.diag(k).min():.6g} to {np.diag(k).max():.6g} and asymmetry "
            f"{np.abs(k - k.T).max():.2g}: expected ones on the diagonal and a symmetric matrix"
        )
    if np.abs(k).max() > 1 + 1e-6:
        raise ValueError(
            f"kernel has an entry of size {np.abs(k).max():.6g}: expected at most 1, as positive semi-definite matrices have"
        )
    root = np.sqrt(_check(q, weights, len(k)))
    weighted = root[:, None] * k * root
    if q == 2:
        return float(np.trace(weighted) ** 2 / np.sum(weighted**2))
    eigenvalues = np.linalg.eigvalsh(weighted)
    if eigenvalues[0] < -1e-6:
        raise ValueError(f"kernel has the eigenvalue {eigenvalues[0]:.3g}: expected a positive semi-definite matrix")
    return hill_number(eigenvalues, q)


def vendi_from_points(z: np.ndarray, q: float = 1.0, weights: np.ndarray | None = None) -> float:
    r"""Vendi score of the cosine similarity of the rows of ``z``, ``(n, d)``: rows are scaled to length one, :math:`K = zz^\top`.

    For :math:`d < n` the eigenvalues are taken of :math:`z^\top Pz`, ``(d, d)``, instead of the ``(n, n)`` matrix: the non-zero
    ones are the same. A zero row has no direction: ValueError.
    """
    z = points(z, None, "z", least=1)
    size = np.abs(z).max(axis=1, initial=0)
    if size.min() == 0:
        raise ValueError(f"z has {np.count_nonzero(size == 0)} zero rows: expected none, cosine similarity needs a length")
    z = z / size[:, None]  # first, since squares of very large or small numbers cannot be represented
    z = z / np.linalg.norm(z, axis=1)[:, None] * np.sqrt(_check(q, weights, len(z)))[:, None]
    gram = z.T @ z if z.shape[1] < z.shape[0] else z @ z.T
    if q == 2:
        return float(np.trace(gram) ** 2 / np.sum(gram**2))
    return hill_number(np.linalg.eigvalsh(gram), q)


def vendi(
    x: np.ndarray,
    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    *,
    features: Features | None = None,
    q: float = 1.0,
    weights: np.ndarray | None = None,
    centre: np.ndarray | None = None,
) -> MetricValue:
    """Vendi score of samples, by cosine similarity of their features or by ``kernel(z, z)``, ``(n, n)``.

    Here ``z`` is ``features(x)``, or ``x`` itself, ``(n, d)``, minus ``centre``, ``(d,)``, if one is given: features share a large
    mean
    that makes every cosine nearly one, and taking the mean of the reference data out shows the differences.
    The value grows with n (at order 1 slowly to its limit): compare at equal n, kernel and centre, and give
    order 2 beside order 1. ``weights``, ``(n,)`` with sum 1, stand for repeated items. Errors and sources:
    :func:`vendi_from_kernel`, :func:`vendi_from_points`.
    """
    z = points(x, features, "x", least=1)
    if centre is not None:
        centre = numbers(centre, "centre")
        if centre.shape != z.shape[1:]:
            raise ValueError(f"centre has shape {centre.shape}: expected {z.shape[1:]}, the width of a point")
        z = z - centre
    if kernel is None:
        value = vendi_from_points(z, q, weights)
    else:
        value = vendi_from_kernel(kernel(z, z), q, weights)
    name = f"Vendi(q={q:g}{'' if centre is None else ', centred'})"
    return MetricValue(name=name, value=value, extractor=extractor_id(features), n=len(z))
