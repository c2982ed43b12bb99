"""Optimal-transport distances: exact and sliced Wasserstein on the host, Sinkhorn divergence through ott-jax."""

from __future__ import annotations

import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.metrics.features import Features
from scorelab.metrics.kernel import squared_distances
from scorelab.metrics.value import MetricValue, extractor_id, numbers, point_pair
from scorelab.validation import require_int, require_number, require_positive

# Rows of a cost matrix held at once.
_BLOCK = 1024
# Points of an exact assignment, whose time grows with their cube: a minute or so.
_ASSIGNED = 8192


def wasserstein_1d(x: np.ndarray, y: np.ndarray, p: float = 2.0) -> np.ndarray:
    r""":math:`W_p^p` of one-dimensional empirical laws, exactly, for each column: ``(n, k)`` and ``(m, k)`` give ``(k,)``.

    :math:`\int_0^1 |F_x^{-1}(q) - F_y^{-1}(q)|^p\,dq`: both quantile functions are constant between
    the points :math:`i/n` and :math:`j/m`, so it is a finite sum; :math:`n = m` gives the mean over sorted pairs.
    Source: Peyre and Cuturi, "Computational optimal transport", 2019, arXiv 1803.00567, section 2.6.
    """
    require_number("wasserstein_1d", 1, sys.float_info.max, p=p)
    gap, width = _gaps(numbers(x, "x"), numbers(y, "y"))
    with np.errstate(over="ignore"):
        value = width @ gap**p
    if not np.isfinite(value).all():
        raise ValueError(f"wasserstein_1d: x and y differ by {gap.max():.3g}, whose power p = {p} overflows: rescale them")
    return value


def _gaps(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|F_x^-1 - F_y^-1| between its jumps (pieces, k), and the lengths of the pieces (pieces,)."""
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim < 1 or x.shape[1:] != y.shape[1:] or not (len(x) and len(y)):
        raise ValueError(f"x has shape {x.shape} and y {y.shape}: expected (n, k) and (m, k) with n and m at least 1")
    n, m = len(x), len(y)
    # The cut points in units of 1 / (n m) are integers, so which sample a piece belongs to is never a
    # matter of rounding.
    cuts = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    left, width = cuts[:-1], np.diff(cuts) / (n * m)
    return np.abs(np.sort(x, 0)[left // m] - np.sort(y, 0)[left // n]), width


def wasserstein(x: np.ndarray, y: np.ndarray, *, p: float = 2.0, features: Features | None = None) -> MetricValue:
    r""":math:`W_p` of two empirical laws with equally many points, exactly, by the best assignment.

    .. math:: W_p = \Big(\min_\pi\frac1n\sum_i\lVert x_i - y_{\pi(i)}\rVert^p\Big)^{1/p} .

    x, y: ``(n, d)``. Between two sets of one law it is far from zero, of the order :math:`n^{-1/d}` for :math:`d > 2p`: compare it
    with such a floor. Time grows as :math:`n^3`: two seconds for 2000 points.

    Raises:
        ValueError: other numbers of points in x and y, or more than 8192.

    Source: Peyre and Cuturi, "Computational optimal transport", 2019, arXiv 1803.00567, proposition 2.1.
    """
    if not 1 <= p < math.inf:
        raise ValueError(f"p={p}: expected a finite number of at least 1")
    a, b = point_pair(x, y, features, least=1, power=2)
    if len(a) != len(b) or len(a) > _ASSIGNED:
        raise ValueError(
            f"wasserstein: x has {len(a)} points and y {len(b)}: expected equally many, at most {_ASSIGNED}; sliced_wasserstein "
            "takes others"
        )
    # The costs have the rounding of squared norms, the pairs that are chosen have not.
    paired = a - b[_assigned(a, b, p)] if a.shape[1] > 1 else np.sort(a, 0) - np.sort(b, 0)
    gap = np.linalg.norm(paired, axis=1)
    unit = float(gap.max()) or 1.0
    value = unit * float(np.mean((gap / unit) ** p)) ** (1 / p)
    return MetricValue(name=f"W{p:g}", value=value, extractor=extractor_id(features), n=len(a), reference_n=len(b))


def _assigned(a: np.ndarray, b: np.ndarray, p: float) -> np.ndarray:
    """The row of b for every row of a."""
    # SciPy is a dependency of JAX, and takes its time to import.
    from scipy.optimize import linear_sum_assignment

    squares = squared_distances(a, b)
    return linear_sum_assignment((squares / (float(squares.max()) or 1.0)) ** (p / 2))[1]


def sliced_wasserstein(
    key: jax.Array,
    x: np.ndarray,
    y: np.ndarray,
    *,
    projections: int = 256,
    p: float = 2.0,
    features: Features | None = None,
) -> MetricValue:
    r""":math:`\big(E_u\,W_p^p(u\cdot x, u\cdot y)\big)^{1/p}` over directions :math:`u` uniform on the sphere.

    x: ``(n, d)``, y: ``(m, d)``, n and m may differ. ``stderr`` is that of the average over directions, carried
    through the root; the sampling error of x and y comes on top. For :math:`y = x + v` the expectation at :math:`p = 2` is
    :math:`|v|/\sqrt d`.
    Source: Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures", 2015.
    """
    require_int("sliced_wasserstein", 0, projections=projections)
    if projections < 2:
        raise ValueError(f"projections={projections}: expected at least 2")
    if not 1 <= p < math.inf:
        raise ValueError(f"p={p}: expected a finite number of at least 1")
    a, b = point_pair(x, y, features, least=1)
    directions = np.asarray(jax.random.normal(key, (a.shape[1], projections)), np.float64)
    directions /= np.linalg.norm(directions, axis=0)
    gap, width = _gaps(a @ directions, b @ directions)
    # In units of the largest gap, whose power is 1: others may vanish, but none overflows.
    unit = float(gap.max()) or 1.0
    powers = width @ (gap / unit) ** p
    mean = float(powers.mean())
    value = unit * mean ** (1 / p)
    spread = float(powers.std(ddof=1)) / math.sqrt(projections)
    stderr = spread * value / (p * mean) if mean > 0 else 0.0
    name = f"SW{p:g}"
    return MetricValue(name=name, value=value, stderr=stderr, extractor=extractor_id(features), n=len(a), reference_n=len(b))


@functools.partial(jax.jit, static_argnames="max_iterations")
def _potentials(a: jax.Array, b: jax.Array, epsilon, threshold, max_iterations: int) -> tuple[jax.Array, jax.Array]:
    """The potentials of (a, b), (a, a) and (b, b), and whether all three converged."""
    # ott takes seconds to import and only this function needs it; jitted, it compiles once a shape, not at
    # every call.
    from ott.geometry import pointcloud
    from ott.tools.sinkhorn_divergence import sinkhorn_divergence

    _, out = sinkhorn_divergence(
        pointcloud.PointCloud, a, b, epsilon=epsilon,
        solve_kwargs={"threshold": threshold, "max_iterations": max_iterations},
    )  # fmt: skip
    return out.potentials, jnp.stack([jnp.asarray(c) for c in out.converged]).all()


def _mass(p: np.ndarray, q: np.ndarray, a: np.ndarray, b: np.ndarray, epsilon: float) -> float:
    """The mean over pairs of exp((p_i + q_j - |a_i - b_j|^2) / epsilon): 1 where one potential is optimal for the other."""
    rows = range(0, len(a), _BLOCK)
    blocks = (np.exp((p[i : i + _BLOCK, None] + q - squared_distances(a[i : i + _BLOCK], b)) / epsilon).sum() for i in rows)
    return float(sum(blocks)) / (len(a) * len(b))


def sinkhorn(
    x: np.ndarray,
    y: np.ndarray,
    epsilon: float,
    *,
    features: Features | None = None,
    threshold: float = 1e-3,
    max_iterations: int = 5000,
) -> MetricValue:
    r"""Sinkhorn divergence :math:`OT_\epsilon(x,y) - \frac{OT_\epsilon(x,x) + OT_\epsilon(y,y)}2`, of the cost :math:`|a-b|^2`.

    Not negative, and zero for equal sets to within 1e-6 ``epsilon``, however far the potentials have converged.

    :math:`OT_\epsilon` is the transport cost plus ``epsilon`` times the Kullback-Leibler divergence of the plan to the
    product law, so ``epsilon`` has the unit of a squared distance; towards 0 the value goes to :math:`W_2^2`. Both
    clouds are moved by the mean of y first, which changes nothing but rounding. The potentials are found
    in float32 (float64 if jax has it enabled), memory ``n m``. The value is the dual one, in float64: any
    potentials bound :math:`OT_\epsilon(x,y)` from below, and the better ones of :math:`(f,g)` and :math:`(p,q)` are taken, where
    the latter are those of the two self terms. With them the divergence is :math:`\epsilon/2` times the squared kernel
    distance of two measures, so that the better of the two is not negative.

    Raises:
        ValueError: ``epsilon`` not positive.
        RuntimeError: the marginal error is above ``threshold`` after ``max_iterations``.

    Source: Feydy et al., "Interpolating between optimal transport and MMD", 2019, arXiv 1810.08278,
    equation 3 and the proof of theorem 1.
    """
    require_positive("sinkhorn", epsilon=epsilon, threshold=threshold)
    require_int("sinkhorn", 1, max_iterations=max_iterations)
    a, b = point_pair(x, y, features, least=1, power=2, dtype=jnp.result_type(float))
    centre = b.mean(0)
    a, b = a - centre, b - centre
    found, converged = _potentials(jnp.asarray(a), jnp.asarray(b), epsilon, threshold, max_iterations)
    if not converged:
        raise RuntimeError(
            f"sinkhorn(epsilon={epsilon:g}) did not reach threshold={threshold:g} in "
            f"max_iterations={max_iterations}: raise epsilon or max_iterations"
        )
    # ott's plans are exp((f + g - c) / e), ours relative to the product law, so that weights 1 / n enter the potentials.
    (f, g), (p, p2), (q, q2) = ([np.asarray(u, np.float64) for u in pair] for pair in found)
    own_x, own_y = epsilon * math.log(len(a)), epsilon * math.log(len(b))
    f, g, p, q = f + own_x, g + own_y, (p + p2) / 2 + own_x, (q + q2) / 2 + own_y
    self_x, self_y = _mass(p, p, a, a, epsilon), _mass(q, q, b, b, epsilon)
    found_value = f.mean() - p.mean() + g.mean() - q.mean() - epsilon * (_mass(f, g, a, b, epsilon) - (self_x + self_y) / 2)
    kernel_value = epsilon / 2 * (self_x + self_y - 2 * _mass(p, q, a, b, epsilon))
    # The square is below zero by rounding only, 1e-15 epsilon.
    value = max(found_value, kernel_value, 0.0)
    name = f"Sinkhorn(epsilon={epsilon:g})"
    return MetricValue(name=name, value=float(value), extractor=extractor_id(features), n=len(a), reference_n=len(b))
