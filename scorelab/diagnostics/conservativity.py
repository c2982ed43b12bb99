"""Whether a model's score is a gradient, by noise level: the asymmetry of its Jacobian, and integrals along closed loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, Pytree, per_example
from scorelab.diagnostics.blocks import standard_error
from scorelab.diagnostics.levels import by_level
from scorelab.divergence import BLOCK, dot
from scorelab.losses.conservativity import Conservativity as Asymmetry
from scorelab.losses.conservativity import Squares, predicted_noise
from scorelab.models.base import Model
from scorelab.processes.base import Noised
from scorelab.randomness import folded, per_example_normal
from scorelab.validation import require_int, require_positive


@dataclass(frozen=True, kw_only=True)
class Conservativity:
    r"""What :func:`conservativity` returns: float64 arrays ``(k,)``; errors are standard errors over the points, NaN for one.

    Attributes:
        sigmas: the noise ratios.
        asymmetry: :math:`A = \sqrt{E\lVert J-J^\top\rVert_F^2/E\lVert J\rVert_F^2}` of the Jacobian :math:`J` of the score: 0 for
            a gradient, 2 where it is antisymmetric.
        asymmetry_error: of ``asymmetry``.
        mean_square: the mean of :class:`scorelab.losses.Conservativity`.
        standard_error: of ``mean_square``.
        loop: :math:`E|\oint s\cdot dl|/E\oint|s|\,|dl|`, from 0 to 1; NaN where no loops are asked for, as what follows.
        loop_error: of ``loop``.
        circulation: :math:`E|\oint s\cdot dl|`, nats: by how much a log-density would differ from itself after one turn.
        quadrature: what ``loop`` would be by the difference to half as many nodes. A ``loop`` below it is not resolved.
    """

    sigmas: np.ndarray
    asymmetry: np.ndarray
    asymmetry_error: np.ndarray
    mean_square: np.ndarray
    standard_error: np.ndarray
    loop: np.ndarray
    loop_error: np.ndarray
    circulation: np.ndarray
    quadrature: np.ndarray


def conservativity(
    model: Model,
    data: Array,
    sigmas: Array,
    *,
    probes: int = 1,
    radius: float = 0.5,
    nodes: int = 32,
    cond: Pytree = None,
    key: Key | None = None,
    batch: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Conservativity:
    r"""How far a model's score is from a gradient, at points of data noised by the model's own process.

    .. math:: A = \sqrt{\frac{E\lVert J-J^\top\rVert_F^2}{E\lVert J\rVert_F^2}},\quad J = \frac{\partial s}{\partial y},
              \qquad \frac{E\,|\oint s\cdot dl|}{E\oint|s|\,|dl|} .

    The first is local, and the same function as the regulariser :class:`scorelab.losses.Conservativity`. The second goes round
    circles about the noised points, in random planes. In two dimensions the integral is that of the curl over the disk; in
    ``d`` dimensions its mean square on small circles is :math:`(\pi r^2)^2\lVert J-J^\top\rVert_F^2/(d(d-1))`, so the ratio falls
    with ``d`` for the same ``A``, and is for comparisons within one dimension.

    Both are zero for the score of every law, and for energies. They do not say that a score is right, nor does a model that is
    right in what it samples need them to be zero: see :func:`scorelab.diagnostics.gauge_residual`.

    Args:
        model: the model.
        data: points in data space, ``(n, *event)`` with at least two elements each.
        sigmas: noise ratios :math:`\sigma/\alpha` ``(k,)``, in the units of the chart.
        probes: Rademacher probes for each point; 0 for exact norms.
        radius: of the circles, in units of :math:`\sigma_t`.
        nodes: points of a circle, an even number (trapezoidal rule, which converges geometrically where the score is smooth);
            0 for no loops, which cost ``nodes`` calls of the model for each point and level.
        cond: the model's conditions, with leading axis ``n``.
        key: PRNG key, ``jax.random.key(0)`` by default.
        batch: points evaluated at once.
        progress: called with (points done, points wanted) after each batch.

    Returns:
        Both by noise level.

    Raises:
        ValueError: as :func:`scorelab.diagnostics.by_level`; points of one element, an argument out of range.
        TypeError: a process that is not linear-Gaussian, what is no model.

    Source: both tests arXiv 2509.00336; scales and estimates are ours.
    """
    where = "conservativity"
    require_int(where, 0, probes=probes)
    require_int(where, 0, nodes=nodes)
    require_positive(where, radius=radius)
    if nodes % 2 or nodes == 2:
        raise ValueError(f"{where}.nodes = {nodes}: expected 0, or an even number of at least 4")
    data = np.asarray(data)
    if data.ndim > 1 and math.prod(data.shape[1:]) < 2:
        raise ValueError(
            f"{where}.data has shape {data.shape}: expected at least two elements in a point, one is always a gradient"
        )
    term = _Both(Asymmetry(probes=probes), Circle(radius=float(radius), nodes=nodes) if nodes else None)
    sigmas, (squares, circle) = by_level(term, model, data, sigmas, cond=cond, key=key, batch=batch, progress=progress, where=where)
    share, share_error = ratio_of_means(squares.asymmetry, squares.jacobian)
    asymmetry = np.sqrt(share)
    with np.errstate(invalid="ignore"):
        # A mean of squares is zero where all of them are.
        error = np.where(
            (share == 0) & np.isfinite(share_error), 0.0, share_error / (2 * np.where(asymmetry > 0, asymmetry, np.nan))
        )
    missing = np.full(len(sigmas), np.nan)
    loop, loop_error, circulation, quadrature = missing, missing, missing, missing
    if circle is not None:
        size = np.abs(circle.integral)
        loop, loop_error = ratio_of_means(size, circle.length)
        circulation = size.mean(axis=1)
        quadrature = ratio_of_means(np.abs(circle.integral - circle.coarse), circle.length)[0]
    return Conservativity(
        sigmas=sigmas,
        asymmetry=asymmetry,
        asymmetry_error=error,
        mean_square=squares.asymmetry.mean(axis=1),
        standard_error=standard_error(squares.asymmetry),
        loop=loop,
        loop_error=loop_error,
        circulation=circulation,
        quadrature=quadrature,
    )


class Circulation(NamedTuple):
    r"""Integrals round one circle for every point, ``(batch,)``.

    Attributes:
        integral: :math:`\oint s\cdot dl`, nats.
        coarse: the same by every second node.
        length: :math:`\oint|s|\,|dl|`.
    """

    integral: Array
    coarse: Array
    length: Array


@dataclass(frozen=True, kw_only=True)
class Circle:
    r"""Integrals of a model's score round a circle about each noised point, in a plane that its key draws.

    Attributes:
        radius: in units of :math:`\sigma_t`.
        nodes: points of the circle, an even number.
    """

    radius: float
    nodes: int

    def __call__(self, model: Model, noised: Noised) -> Circulation:
        """The integrals; ValueError without keys."""
        if noised.keys is None:
            raise ValueError("Circle for a batch whose keys are None: expected one key for each example")
        y, eps = noised.y, predicted_noise("conservativity", model, noised)
        first = _unit(per_example_normal(folded(noised.keys, 1), y))
        second = per_example_normal(folded(noised.keys, 2), y)
        second = _unit(second - per_example(dot(first, second), y) * first)
        reach = per_example(self.radius * model.process.sigma(noised.t), y)

        def at(angle):
            along = jnp.cos(angle) * second - jnp.sin(angle) * first
            said = eps(y + reach * (jnp.cos(angle) * first + jnp.sin(angle) * second))
            # With s = -eps / sigma and |dl| = radius sigma dangle the noise level cancels.
            return -self.radius * dot(said, along), self.radius * jnp.sqrt(dot(said, said))

        step = 2 * math.pi / self.nodes
        angles = step * jnp.arange(self.nodes, dtype=y.dtype)
        ahead, size = jax.lax.map(at, angles, batch_size=min(self.nodes, BLOCK))
        return Circulation(step * jnp.sum(ahead, 0), 2 * step * jnp.sum(ahead[::2], 0), step * jnp.sum(size, 0))


def _unit(value: Array) -> Array:
    return value / per_example(jnp.sqrt(dot(value, value)), value)


@dataclass(frozen=True)
class _Both:
    """Both questions at the same points."""

    asymmetry: Asymmetry
    circle: Circle | None

    def __call__(self, model: Model, noised: Noised) -> tuple[Squares, Circulation | None]:
        return self.asymmetry.squares(model, noised), None if self.circle is None else self.circle(model, noised)


def ratio_of_means(part: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``mean(part) / mean(whole)`` over the points, both ``(k, n)``, and its standard error to first order; NaN of nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = whole.mean(axis=1)
        found = part.mean(axis=1) / mean
        return found, standard_error(part - found[:, None] * whole) / mean
