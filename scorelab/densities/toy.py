"""Toy laws with exact density, score and noised versions: points in the plane, and positive data for multiplicative noise."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import i0e, log_ndtr
from jaxtyping import Float
from numpy.typing import ArrayLike

from scorelab.arrays import Array, Key, Scalar
from scorelab.densities.base import Density, as_parameter, check_numbers, check_points, law_pytree
from scorelab.densities.field import GaussianField
from scorelab.densities.gaussian import Gaussian
from scorelab.densities.lognormal import LogNormalMixture
from scorelab.densities.mixture import GaussianMixture, Mixture
from scorelab.densities.spectra import PowerLaw
from scorelab.processes.linear_gaussian import LinearGaussian


def eight_gaussians(radius: float = 2.0, std: float = 0.1) -> GaussianMixture:
    """Eight equal Gaussians of standard deviation ``std`` on a circle of the given radius."""
    angles = np.arange(8) * (math.pi / 4)
    return GaussianMixture(np.ones(8), radius * np.stack([np.cos(angles), np.sin(angles)], 1), np.full(8, std**2))


def gaussian_process(length: int = 32, period: float = 8.0, decay: float = 8.0) -> Gaussian:
    r"""A stationary Gaussian process at the places :math:`0, 1, ..`, of events ``(length, 1)``, with :func:`oscillation`."""
    return Gaussian(np.zeros((length, 1)), oscillation(length, period, decay))


def oscillation(length: int, period: float = 8.0, decay: float = 8.0) -> np.ndarray:
    r"""The covariance :math:`e^{-|i-j|/\mathrm{decay}}\cos(2\pi|i-j|/\mathrm{period})` of a damped oscillation, a matrix."""
    apart = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
    return np.exp(-apart / decay) * np.cos(2 * math.pi * apart / period)


def swiss_roll(turns: float = 1.5, radius: float = 2.0, std: float = 0.08, components: int = 128) -> GaussianMixture:
    """A spiral of Gaussians, equally spaced along its arc: exact as the mixture it is defined to be."""
    fine = np.linspace(0.25, 1.0, 4096)
    points = radius * fine[:, None] * np.stack([np.cos(2 * math.pi * turns * fine), np.sin(2 * math.pi * turns * fine)], 1)
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    where = np.linspace(0.0, arc[-1], components)
    means = np.stack([np.interp(where, arc, points[:, axis]) for axis in (0, 1)], 1)
    return GaussianMixture(np.ones(components), means, np.full(components, std**2))


def pinwheel(arms: int = 5, components: int = 8, rate: float = 0.25, tangential: float = 0.1) -> GaussianMixture:
    """Bent arms, each a chain of Gaussians that turn and widen with the radius; exact as that mixture."""
    means, covs = [], []
    for arm in range(arms):
        for radius in np.linspace(0.5, 2.2, components):
            angle = 2 * math.pi * arm / arms + rate * math.exp(0.6 * radius)
            axis = np.array([math.cos(angle), math.sin(angle)])
            # Along the arm: the derivative of radius * axis(radius), so that neighbours overlap along the curve.
            along = axis + radius * rate * 0.6 * math.exp(0.6 * radius) * np.array([-axis[1], axis[0]])
            along *= 1.7 / (components - 1) / 2
            across = tangential * radius / 2 * np.array([-along[1], along[0]]) / np.linalg.norm(along)
            means.append(radius * axis)
            covs.append(np.outer(along, along) + np.outer(across, across))
    return GaussianMixture(np.ones(len(means)), np.array(means), np.array(covs))


@law_pytree("radii", "log_weights", "variance", "centre")
class Rings(Density):
    r"""Circles about ``centre`` blurred by Gaussian noise: :math:`x = c + r_k(\cos\theta,\sin\theta) + \sqrt v\,n`.

    .. math:: p(x) = \sum_k w_k\,\frac{1}{2\pi v}\,e^{-(|x-c|-r_k)^2/2v}\;e^{-z}I_0(z),\qquad z = |x-c|\,r_k/v .

    Args:
        radii: ``(K,)``.
        std: the standard deviation of the blur.
        weights: ``(K,)``; by default proportional to the radius, which makes the density along each circle equal.
    """

    def __init__(self, radii: ArrayLike = (0.7, 1.4, 2.1), std: float = 0.08, weights: ArrayLike | None = None):
        check_numbers(self, radii=radii, std=std, weights=1.0 if weights is None else weights)
        radii = np.asarray(radii, np.float64)
        weights = radii if weights is None else np.asarray(weights, np.float64)
        if radii.ndim != 1 or not np.all(radii > 0) or weights.shape != radii.shape or not np.all(weights > 0):
            raise ValueError(f"Rings.radii = {radii!r}, weights = {weights!r}: expected equally many positive numbers")
        self._set(radii, np.log(weights / weights.sum()), std**2, np.zeros(2))

    def _set(self, radii, log_weights, variance, centre):
        self.radii, self.log_weights = as_parameter(radii), as_parameter(log_weights)
        self.variance, self.centre = as_parameter(variance), as_parameter(centre)
        return self

    @property
    def event(self):
        """``(2,)``."""
        return (2,)

    def sample(self, key: Key, n: int) -> Float[jax.Array, " {n} *event"]:
        """``n`` independent points."""
        key_ring, key_angle, key_noise = jax.random.split(key, 3)
        radius = self.radii[jax.random.categorical(key_ring, self.log_weights, shape=(n,))]
        angle = jax.random.uniform(key_angle, (n,), self.radii.dtype, 0.0, 2 * math.pi)
        circle = radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)
        return self.centre + circle + jnp.sqrt(self.variance) * jax.random.normal(key_noise, (n, 2), circle.dtype)

    def log_prob(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch"]:
        x = check_points(self, x) - self.centre
        # The tiny offset keeps the gradient of the norm finite at the centre.
        norm = jnp.sqrt(jnp.sum(x**2, -1) + jnp.finfo(x.dtype).tiny)[:, None]
        log_bessel = jnp.log(i0e(norm * self.radii / self.variance))
        terms = self.log_weights - (norm - self.radii) ** 2 / (2 * self.variance) + log_bessel
        return jax.nn.logsumexp(terms, axis=-1) - jnp.log(2 * math.pi * self.variance)

    def noised(self, process: LinearGaussian, t: Scalar) -> Rings:
        r"""Radii :math:`\alpha r_k`, variance :math:`\alpha^2 v+\sigma^2`."""
        alpha = process.alpha(t)
        return object.__new__(Rings)._set(
            jnp.asarray(alpha * self.radii),
            self.log_weights,
            jnp.asarray(alpha**2 * self.variance + process.sigma(t) ** 2),
            jnp.asarray(alpha * self.centre + process.offset(t)),
        )


@law_pytree("lows", "highs", "std")
class Boxes(Density):
    r"""Uniform laws on axis-aligned boxes, blurred by Gaussian noise of variance ``v`` (0 until noised).

    .. math:: p(x) = \sum_k w_k\prod_i\frac{\Phi((x_i-l_{ki})/\sqrt v)-\Phi((x_i-h_{ki})/\sqrt v)}{h_{ki}-l_{ki}} .

    Args:
        lows: ``(K, d)`` lower corners.
        highs: ``(K, d)`` upper corners.
    """

    def __init__(self, lows: ArrayLike, highs: ArrayLike):
        check_numbers(self, lows=lows, highs=highs)
        lows, highs = np.asarray(lows, np.float64), np.asarray(highs, np.float64)
        if lows.ndim != 2 or lows.shape != highs.shape or not np.all(lows < highs):
            raise ValueError(f"Boxes got lows {lows.shape}, highs {highs.shape}: expected (K, d) with lows < highs")
        self._set(lows, highs, 0.0)

    def _set(self, lows, highs, std):
        self.lows, self.highs, self.std = as_parameter(lows), as_parameter(highs), as_parameter(std)
        return self

    @property
    def event(self):
        """The shape of one point."""
        return self.lows.shape[1:]

    @property
    def _log_volume(self) -> Float[jax.Array, " boxes"]:
        return jnp.sum(jnp.log(self.highs - self.lows), -1)

    def sample(self, key: Key, n: int) -> Float[jax.Array, " {n} *event"]:
        """``n`` independent points."""
        key_box, key_in, key_noise = jax.random.split(key, 3)
        which = jax.random.randint(key_box, (n,), 0, len(self.lows))
        inside = jax.random.uniform(key_in, (n, *self.event), self.lows.dtype)
        x = self.lows[which] + inside * (self.highs - self.lows)[which]
        return x + self.std * jax.random.normal(key_noise, x.shape, x.dtype)

    def log_prob(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch"]:
        """Log density; ``-inf`` outside the boxes while ``v`` is 0."""
        x = check_points(self, x)[:, None, :]
        above, below = x - self.lows, x - self.highs
        sharp = jnp.where(jnp.all((above >= 0) & (below <= 0), -1), 0.0, -jnp.inf)
        scale = jnp.where(self.std > 0, self.std, 1.0)
        blurred = jnp.sum(log_ndtr_difference(above / scale, below / scale), -1)
        terms = jnp.where(self.std > 0, blurred, sharp) - self._log_volume
        return jax.nn.logsumexp(terms, axis=-1) - math.log(len(self.lows))

    def noised(self, process: LinearGaussian, t: Scalar) -> Boxes:
        """Scaled and shifted boxes under more blur."""
        alpha, offset = process.alpha(t), process.offset(t)
        return object.__new__(Boxes)._set(
            jnp.asarray(alpha * self.lows + offset),
            jnp.asarray(alpha * self.highs + offset),
            jnp.asarray(jnp.sqrt((alpha * self.std) ** 2 + process.sigma(t) ** 2)),
        )


def log_ndtr_difference(upper: Float[Array, " *shape"], lower: Float[Array, " *shape"]) -> Float[jax.Array, " *shape"]:
    r""":math:`\log(\Phi(u)-\Phi(l))` for ``u > l``, reflected into the lower tail where both differ from 0."""
    flip = lower > 0
    u, l = jnp.where(flip, -lower, upper), jnp.where(flip, -upper, lower)
    log_u, log_l = log_ndtr(u), log_ndtr(l)
    return log_u + jnp.log(-jnp.expm1(jnp.minimum(log_l - log_u, -jnp.finfo(log_u.dtype).tiny)))


def checkerboard(cells: int = 4, extent: float = 2.0) -> Boxes:
    """Every other cell of a ``cells`` x ``cells`` board over ``[-extent, extent]^2``, uniformly filled."""
    side = 2 * extent / cells
    corners = np.array([(i, j) for i in range(cells) for j in range(cells) if (i + j) % 2 == 0])
    lows = -extent + side * corners
    return Boxes(lows, lows + side)


def concentrations() -> LogNormalMixture:
    """Two concentrations (or gross returns) that move together, with calm times and crises: positive, with heavy tails.

    In 85 of 100 draws both logs are normal about 0 with deviation 0.3 and correlation 0.6; in the others they are about
    0.8 and 0.4 with deviation 0.9 and correlation 0.9. The numbers are made up.
    """
    calm, crisis = (std**2 * np.array([[1.0, corr], [corr, 1.0]]) for std, corr in ((0.3, 0.6), (0.9, 0.9)))
    return LogNormalMixture([0.85, 0.15], [[0.0, 0.0], [0.8, 0.4]], np.stack([calm, crisis]))


def synaptic_weights(excitatory: int = 12, inhibitory: int = 4) -> tuple[Float[np.ndarray, " d"], LogNormalMixture]:
    r"""The synapses of one neuron: fixed signs (Dale's law) and correlated log-normal strengths, :math:`w = s \circ e^{y}`.

    Every log strength has deviation 0.94; its mean is -0.70 for excitatory synapses and 0.30 for inhibitory ones, which
    are therefore ``e`` times stronger. Logs correlate by 0.4 within a population and 0.2 between the two.

    Returns:
        ``(signs, law)``: the signs ``(d,)``, 1 for the excitatory synapses, which come first, and -1 for the others, and
        the law of the strengths :math:`|w|`, with ``d = excitatory + inhibitory``.

    Raises:
        ValueError: a number of synapses below 1.

    Source: mean and deviation of the excitatory logs (of millivolts) as Song et al. (2005), "Highly nonrandom features of
    synaptic connectivity in local cortical circuits", measured them; the other numbers are made up.
    """
    if not (excitatory >= 1 and inhibitory >= 1):
        raise ValueError(f"synaptic_weights got excitatory = {excitatory}, inhibitory = {inhibitory}: expected at least 1 of each")
    signs = np.repeat([1.0, -1.0], [excitatory, inhibitory])
    corr = np.where(np.equal.outer(signs, signs), 0.4, 0.2) + 0.6 * np.eye(len(signs))
    return signs, LogNormalMixture([1.0], np.where(signs > 0, -0.7, 0.3)[None], 0.94**2 * corr[None])


def regimes(side: int = 16) -> Mixture:
    r"""Two regimes of a scalar on a periodic square, ``(side, side, 1)``: a stand-in for weather with a posterior in closed form.

    Both have deviation 0.8 about waves of period four along the first axis, which averages over blocks of four cannot see. The
    first (share 0.6) has the mean :math:`0.7\cos(\pi i/2)` and a smooth spectrum; the second the negative mean and more small
    scales. The numbers are made up.

    Raises:
        ValueError: a side that is not a multiple of four.
    """
    if not isinstance(side, int) or side < 4 or side % 4:
        raise ValueError(f"regimes.side = {side!r}: expected a multiple of 4")
    wave = 0.7 * np.cos(np.pi / 2 * np.arange(side))[:, None, None]
    smooth, rough = (PowerLaw(exponent=p, knee=2.0) for p in (5.0, 3.5))
    fields = [GaussianField((side, side, 1), s, mean=m, variance=0.64) for s, m in ((smooth, wave), (rough, -wave))]
    return Mixture([0.6, 0.4], fields)
