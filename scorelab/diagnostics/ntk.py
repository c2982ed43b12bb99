"""Score estimation as regression with noisy labels: what a very wide network learns by gradient flow, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scorelab.arrays import Array
from scorelab.diagnostics.blocks import require_finite
from scorelab.validation import require_number

# Eigenvalues below this share of the largest are rounding: gradient flow does not move along them.
_ROUNDING = 1e-13


def relu_ntk(x: Array, y: Array | None = None, *, bias: float = 1.0) -> np.ndarray:
    r"""The neural tangent kernel of a network with one hidden layer of ReLUs, in the limit of infinite width.

    .. math:: f(x) = \sqrt{\tfrac{2}{m}}\sum_{j\le m} a_j\,(w_j\cdot\tilde x)_+, \; \tilde x = (x, b), \; a_j, w_j\sim N(0, I),

    with both layers trained. With :math:`\theta` the angle between :math:`\tilde x` and :math:`\tilde y`, :math:`u = \cos\theta`,

    .. math:: K(x, y) = \lVert\tilde x\rVert\,\lVert\tilde y\rVert\,
              \frac{\sin\theta + 2\,u\,(\pi - \theta)}{\pi}.

    Each output of a network with several has this kernel, and none between two.

    Args:
        x: points ``(n, *event)``.
        y: points ``(m, *event)``; ``x`` by default.
        bias: the input ``b`` that is the same for all points, 0 for none.

    Returns:
        The kernel ``(n, m)``, float64.

    Raises:
        ValueError: points of different shapes, or that are not finite; a negative bias.

    Source: arXiv 1806.07572; arXiv 1905.12173 for the closed form.
    """
    from scipy.spatial.distance import cdist  # not needed by what else is imported from here

    require_number("relu_ntk", 0.0, 1e6, bias=bias)
    one = _extended("relu_ntk.x", x, bias)
    two = one if y is None else _extended("relu_ntk.y", y, bias)
    if one.shape[1] != two.shape[1]:
        raise ValueError(
            f"relu_ntk.y has shape {np.shape(x if y is None else y)} beside x of shape {np.shape(x)}: expected points of one shape"
        )
    sizes = [np.linalg.norm(points, axis=1, keepdims=True) for points in (one, two)]
    # A point at zero without a bias has no direction, and the kernel is 0 there, whatever the angle.
    ends = [points / np.where(size > 0, size, 1.0) for points, size in zip((one, two), sizes, strict=True)]
    # By differences of unit vectors: the arc cosine of a number near 1 has half of the digits, and the kernel is not flat there.
    angle = 2 * np.arctan2(cdist(ends[0], ends[1]), cdist(ends[0], -ends[1]))
    return sizes[0] * sizes[1].T * (np.sin(angle) + 2 * np.cos(angle) * (np.pi - angle)) / np.pi


@dataclass(frozen=True, kw_only=True)
class KernelPath:
    r"""What :func:`kernel_path` returns.

    Attributes:
        times: the times of the flow ``(k,)``.
        values: :math:`f_T` at the points that were asked for, ``(k, m, *out)``.
        fitted: :math:`f_T` at the training points, ``(k, n, *out)``.
        train_mse: mean over training points and elements of :math:`(f_T(x_i) - y_i)^2`, ``(k,)``.
    """

    times: np.ndarray
    values: np.ndarray
    fitted: np.ndarray
    train_mse: np.ndarray


def kernel_path(kernel: Array, labels: Array, at: Array, times: Array) -> KernelPath:
    r"""The regression of noisy labels by gradient flow of a kernel, as a function of the time at which it is stopped.

    .. math:: f_T = K_x\,\big(I - e^{-KT/n}\big)\,K^{-1}\,y,

    the flow of :math:`\frac{1}{2n}\sum_i (f(x_i) - y_i)^2` from zero, which a very wide network follows: ``k`` steps of gradient
    descent with the rate :math:`\eta` are :math:`T = \eta k`. With ``labels`` the clean data and ``x`` the noised, this is
    denoising at one noise level: the label is :math:`f^*(x) = E[x_0\mid x]` and a noise of mean zero, which the flow learns by
    heart for :math:`T\to\infty`. The error of the score :math:`s = (\alpha f - x)/\sigma^2` is

    .. math:: \lVert\hat s - s\rVert^2 = \frac{\alpha^2}{\sigma^4}\,\lVert\hat f - f^*\rVert^2.

    Args:
        kernel: :math:`K` of the training points, ``(n, n)``, symmetric and positive semidefinite.
        labels: :math:`y`, ``(n, *out)``.
        at: :math:`K_x` of the points that are asked for and the training points, ``(m, n)``.
        times: :math:`T\ge 0`, ``(k,)``.

    Returns:
        The path, in float64. Directions whose eigenvalue is rounding beside the largest one do not move.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, a kernel that is not symmetric or not positive, negative
            times.

    Source: arXiv 2401.15604.
    """
    for name, value in dict(kernel=kernel, labels=labels, at=at, times=times).items():
        require_finite(f"kernel_path.{name}", value)
    kernel, labels, at, times = (np.asarray(value, np.float64) for value in (kernel, labels, at, times))
    n = len(kernel) if kernel.ndim else 0
    if kernel.shape != (n, n) or n == 0:
        raise ValueError(f"kernel_path.kernel has shape {kernel.shape}: expected (n, n) with n >= 1")
    if labels.shape[:1] != (n,):
        raise ValueError(f"kernel_path.labels has shape {labels.shape}: expected a leading axis of {n}, as the kernel has")
    if at.ndim != 2 or at.shape[1] != n:
        raise ValueError(f"kernel_path.at has shape {at.shape}: expected (m, {n}), as the kernel has")
    if times.ndim != 1 or len(times) == 0 or times.min() < 0:
        raise ValueError(f"kernel_path.times = {times.tolist()}: expected at least one number, none below 0")
    scale = np.abs(kernel).max()
    if not np.allclose(kernel, kernel.T, rtol=0, atol=1e-10 * scale):
        raise ValueError("kernel_path.kernel is not symmetric: expected the kernel of the training points with themselves")
    values, vectors = np.linalg.eigh((kernel + kernel.T) / 2)
    if values[0] < -1e-8 * max(values[-1], 0.0) or values[-1] < 0:
        raise ValueError(f"kernel_path.kernel has the eigenvalue {values[0]:.3g}: expected none below 0")
    moves = values > _ROUNDING * n * values[-1]
    vectors, values = vectors[:, moves], values[moves]
    targets = labels.reshape(n, -1)
    # By eigenvector: what is learned of the labels after a time, and the coefficients that say it elsewhere.
    learned = -np.expm1(-values * times[:, None] / n)
    along = vectors.T @ targets
    fitted = np.einsum("nr,kr,ro->kno", vectors, learned, along, optimize=True)
    elsewhere = np.einsum("mr,kr,ro->kmo", at @ vectors, learned / values, along, optimize=True)
    out = labels.shape[1:]
    return KernelPath(
        times=times,
        values=elsewhere.reshape(len(times), len(at), *out),
        fitted=fitted.reshape(len(times), n, *out),
        train_mse=np.mean((fitted - targets) ** 2, axis=(1, 2)),
    )


def _extended(name: str, x: Array, bias: float) -> np.ndarray:
    """Points in rows, with the bias as one more element."""
    require_finite(name, x)
    x = np.asarray(x, np.float64)
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"{name} has shape {x.shape}: expected (n, *event) with at least one point")
    flat = x.reshape(len(x), -1)
    return np.concatenate([flat, np.full((len(flat), 1), bias)], axis=1)
