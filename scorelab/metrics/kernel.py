"""Unbiased kernel discrepancies: KID with the cubic kernel, MMD with Gaussian kernels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from scorelab.metrics.features import Features
from scorelab.metrics.value import MetricValue, extractor_id, point_pair
from scorelab.validation import require_int, require_seed

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Rows of a kernel matrix held at once: 1024 x 10,000 float64 is 80 MB.
_BLOCK = 1024


def _mean(kernel: Kernel, x: np.ndarray, y: np.ndarray) -> float:
    blocks = range(0, len(x), _BLOCK)
    return sum(float(kernel(x[i : i + _BLOCK], y).sum()) for i in blocks) / (len(x) * len(y))


def _mean_off_diagonal(kernel: Kernel, x: np.ndarray) -> float:
    total = 0.0
    for i in range(0, len(x), _BLOCK):
        gram = kernel(x[i : i + _BLOCK], x)
        total += float(gram.sum() - np.trace(gram, offset=i))
    return total / (len(x) * (len(x) - 1))


def mmd2_unbiased(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> float:
    r"""Unbiased estimate of :math:`\mathrm{MMD}^2 = E\,k(x,x') + E\,k(y,y') - 2E\,k(x,y)`; it may be negative.

    x: ``(n, d)``, y: ``(m, d)``, n and m at least 2; ``kernel(a, b)`` is ``(len(a), len(b))``.
    Source: Gretton et al., "A kernel two-sample test", JMLR 2012, equation 3.
    """
    x, y = point_pair(x, y, None)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        value = _mean_off_diagonal(kernel, x) + _mean_off_diagonal(kernel, y) - 2 * _mean(kernel, x, y)
    if not math.isfinite(value):
        raise ValueError(f"kernel has the mean {value} over the pairs of x and y: expected finite values")
    return value


def cubic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """k(a, b) = (a . b / d + 1)^3 for rows of width d: (n, d), (m, d) -> (n, m)."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a_i - b_j|^2 of all rows, (n, m), not negative, and 0 for equal rows.

    What is below the rounding of |a|^2 + |b|^2 is 0: equal rows would have any of its values, by the processor.
    """
    norms = (a * a).sum(1)[:, None] + (b * b).sum(1)
    squared = norms - 2 * a @ b.T
    return np.where(squared > (a.shape[1] + 2) * np.finfo(np.float64).eps * norms, squared, 0.0)


def gaussian(bandwidths: tuple[float, ...]) -> Kernel:
    """k(a, b) = mean over h of exp(-|a - b|^2 / (2 h^2))."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squared = squared_distances(a, b)
        # Divided twice: the square of a small width is zero. What is too large to represent has the kernel 0.
        with np.errstate(over="ignore"):
            return np.asarray(sum(np.exp(squared / h / (-2 * h)) for h in bandwidths) / len(bandwidths))

    return kernel


def kid(x: np.ndarray, y: np.ndarray, features: Features, *, subsets: int = 10, seed: int = 0) -> MetricValue:
    r"""Kernel inception distance: unbiased :math:`\mathrm{MMD}^2` of the features under the cubic kernel, with its error.

    ``value`` uses every pair of the n and m samples. For ``stderr`` both sets are shuffled by ``seed`` and cut
    into ``subsets`` disjoint blocks; it is the standard error of the mean of the blocks' estimates. The full
    estimate averages that mean over all ways to cut, so its variance is no larger (Hoeffding 1948):
    ``stderr`` errs on the safe side. It is None for ``subsets=1``.

    Raises:
        ValueError: ``subsets`` below 1, or blocks of fewer than two samples.

    Source: Binkowski et al., "Demystifying MMD GANs", 2018, arXiv 1801.01401, section 4.
    """
    require_seed(kid, seed=seed)
    require_int("kid", 1, subsets=subsets)
    a, b = point_pair(x, y, features, power=12)  # the square of the cube of a product
    if min(len(a), len(b)) < 2 * subsets:
        raise ValueError(
            f"subsets={subsets}: expected 1 to {min(len(a), len(b)) // 2}, two samples a block of {len(a)} and {len(b)}"
        )
    stderr = None
    if subsets > 1:
        rng = np.random.default_rng(seed)
        cuts = [np.array_split(z[rng.permutation(len(z))], subsets) for z in (a, b)]
        parts = [mmd2_unbiased(p, q, cubic) for p, q in zip(*cuts, strict=True)]
        stderr = float(np.std(parts, ddof=1) / math.sqrt(subsets))
    value = mmd2_unbiased(a, b, cubic)
    return MetricValue(name="KID", value=value, stderr=stderr, extractor=extractor_id(features), n=len(a), reference_n=len(b))


def median_bandwidth(x: np.ndarray, y: np.ndarray, most: int = 2000) -> float:
    """Median distance between points of the pooled sample, of at most ``most`` evenly picked from it.

    Source: Gretton et al. 2012, section 8.
    """
    require_int("median_bandwidth", 2, most=most)
    pooled = np.concatenate(point_pair(x, y, None, least=1, power=2))
    pooled = pooled[:: -(-len(pooled) // most)]
    distances = np.sqrt(squared_distances(pooled, pooled)[np.triu_indices(len(pooled), 1)])
    bandwidth = float(np.median(distances))
    if not bandwidth > 0:
        raise ValueError("bandwidth=None: the median distance is zero; give a positive bandwidth")
    return bandwidth


def mmd(
    x: np.ndarray,
    y: np.ndarray,
    bandwidth: float | tuple[float, ...] | None = None,
    *,
    features: Features | None = None,
) -> MetricValue:
    """Unbiased squared MMD under a Gaussian kernel, or under the mean of several.

    :math:`k(a, b) = e^{-|a-b|^2/(2h^2)}` with :math:`h` the ``bandwidth``; None takes the median distance of the pooled
    points, which makes the value depend on both sets: fix it in a comparison. Rows of x ``(n, d)`` and y ``(m, d)``
    are compared as they are unless ``features`` are given. The name carries the bandwidth.
    Source: Gretton et al. 2012, equation 3.
    """
    a, b = point_pair(x, y, features, power=2)
    # Only differences matter, and |a|^2 + |b|^2 - 2 a.b loses digits where the points are far from the
    # origin.
    a, b = a - b.mean(0), b - b.mean(0)
    if bandwidth is None:
        bandwidth = median_bandwidth(a, b)
    widths = tuple(float(h) for h in np.atleast_1d(bandwidth))
    if not widths or not all(math.isfinite(h) and h > 0 for h in widths):
        raise ValueError(f"bandwidth={bandwidth!r}: expected a positive number, a tuple of them, or None")
    shown = ",".join(f"{h:.4g}" for h in widths)
    value = mmd2_unbiased(a, b, gaussian(widths))
    return MetricValue(name=f"MMD2(h={shown})", value=value, extractor=extractor_id(features), n=len(a), reference_n=len(b))
