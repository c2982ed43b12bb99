r"""f-divergences between a teacher ``p`` and a student ``q``, in the log-ratio :math:`l = \log r = \log p/q`.

.. math:: D_f(p\,\|\,q) = E_q[f(r)],\qquad
          \nabla_\theta D_f(p_t\|q_t) = -E\big[h(r)\,(\nabla\log p_t - \nabla\log q_t)\cdot\partial_\theta y_t\big],
          \qquad h(r) = f''(r)\,r^2 .

The weight ``h`` is all that distinguishes one divergence from another in training. Its shape decides two things. Where ``h`` grows
with ``r``, points that the teacher has and the student misses pull more (mode covering); where it falls, they are ignored (mode
seeking). And the more it varies, the noisier is the gradient: for :math:`p=N(m,1)`, :math:`q=N(0,1)` the docstrings give
:math:`V = \mathrm{Var}_q(h)/E_q[h]^2`. Scales of ``f`` mean nothing where ``h`` is normalised.

Source: f-distill (arXiv 2502.15681), section 3; Csiszar (1967).
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from scorelab.arrays import Array
from scorelab.validation import require_number


@dataclass(frozen=True)
class Divergence(abc.ABC):
    """An f-divergence; a new one states ``f``, ``log_h`` and ``generator_loss``.

    Attributes:
        name: a short name, for tables and figures.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def f(self, r: Array) -> Array:
        """The convex function of the ratio ``r > 0``, with ``f(1) = 0``."""

    @abc.abstractmethod
    def log_h(self, l: Array) -> Array:
        r""":math:`\log(f''(r)\,r^2)` at :math:`l=\log r`; finite for every finite ``l``."""

    @abc.abstractmethod
    def generator_loss(self, l: Array) -> Array:
        r""":math:`\phi(l) = f(r) - r f'(r)` up to a constant, so :math:`\phi'(l) = -h`.

        The loss of a generator against a discriminator with the logit ``l``: at the optimal one its gradient is that of
        the divergence.
        """

    def h(self, l: Array) -> Array:
        """The weight itself."""
        return jnp.exp(self.log_h(l))


@dataclass(frozen=True)
class ReverseKL(Divergence):
    r""":math:`f=-\log r`, :math:`h=1`: KL(q||p), of Diff-Instruct and DMD. Mode seeking, :math:`V=0`."""

    name: ClassVar[str] = "reverse KL"

    def f(self, r):
        return -jnp.log(r)

    def log_h(self, l):
        return jnp.zeros_like(l)

    def generator_loss(self, l):
        """``-l``."""
        return -l


@dataclass(frozen=True)
class SoftenedReverseKL(Divergence):
    r""":math:`f=(r+1)\log\frac{1+r}{2r}`, :math:`h=\frac1{1+r}`: the most mode seeking here, since it fades where the student
    misses the teacher. ``V`` is low: .11 at m = 1. Its loss is the non-saturating one of GANs.
    """

    name: ClassVar[str] = "softened reverse KL"

    def f(self, r):
        return (r + 1) * jnp.log(0.5 + 0.5 / r)

    def log_h(self, l):
        return jax.nn.log_sigmoid(-l)

    def generator_loss(self, l):
        """``softplus(-l)``."""
        return jax.nn.softplus(-l)


@dataclass(frozen=True)
class JensenShannon(Divergence):
    r""":math:`f=r\log r-(r+1)\log\frac{r+1}2`, :math:`h=\frac r{1+r}`: KL(p||m) + KL(q||m), twice the usual definition.

    Less mode seeking than reverse KL, not mode covering: it has local minima of both kinds. Saturates where the student is far
    from the teacher. ``V`` is low: .26 at m = 1. Its loss is the saturating one of GANs.
    """

    name: ClassVar[str] = "Jensen-Shannon"

    def f(self, r):
        return r * jnp.log(r) - (r + 1) * jnp.log((r + 1) / 2)

    def log_h(self, l):
        return jax.nn.log_sigmoid(l)

    def generator_loss(self, l):
        """``-softplus(l)``."""
        return -jax.nn.softplus(l)


@dataclass(frozen=True)
class SquaredHellinger(Divergence):
    r""":math:`f=1-\sqrt r`, :math:`h=\sqrt r/4`: between the two KL, with local minima of both kinds; :math:`V=e^{m^2/4}-1`."""

    name: ClassVar[str] = "squared Hellinger"

    def f(self, r):
        return 1 - jnp.sqrt(r)

    def log_h(self, l):
        return 0.5 * l - math.log(4)

    def generator_loss(self, l):
        """``-exp(l / 2) / 2``."""
        return -0.5 * jnp.exp(0.5 * l)


@dataclass(frozen=True)
class ForwardKL(Divergence):
    r""":math:`f=r\log r`, :math:`h=r`: KL(p||q), mode covering; high variance, :math:`V=e^{m^2}-1`."""

    name: ClassVar[str] = "forward KL"

    def f(self, r):
        return r * jnp.log(r)

    def log_h(self, l):
        return l

    def generator_loss(self, l):
        """``-exp(l)``."""
        return -jnp.exp(l)


@dataclass(frozen=True)
class Jeffreys(Divergence):
    r""":math:`f=(r-1)\log r`, :math:`h=1+r`: the sum of both KL, mode covering; :math:`V=(e^{m^2}-1)/4`."""

    name: ClassVar[str] = "Jeffreys"

    def f(self, r):
        return (r - 1) * jnp.log(r)

    def log_h(self, l):
        return jax.nn.softplus(l)

    def generator_loss(self, l):
        """``-l - exp(l)``."""
        return -l - jnp.exp(l)


@dataclass(frozen=True)
class Alpha(Divergence):
    r""":math:`f=\frac{r^a-ar-(1-a)}{a(a-1)}`, :math:`h=r^a`: from reverse KL (a = 0) to forward KL (a = 1).

    At a = 1/2 it is four times the squared Hellinger distance; the larger ``a``, the more mode covering and the
    noisier, :math:`V=e^{a^2m^2}-1`. At 0 and 1 the limits are taken, with the same ``h``.

    Attributes:
        a: the exponent, in [-4, 4].
    """

    a: float = 0.5

    name: ClassVar[str] = "alpha"

    def __post_init__(self):
        require_number(self, -4.0, 4.0, a=self.a)

    def f(self, r):
        if self.a == 0:
            return r - 1 - jnp.log(r)
        if self.a == 1:
            return r * jnp.log(r) - r + 1
        return (r**self.a - self.a * r - (1 - self.a)) / (self.a * (self.a - 1))

    def log_h(self, l):
        return self.a * l

    def generator_loss(self, l):
        """``(1 - exp(a l)) / a``, and ``-l`` at a = 0."""
        return -l if self.a == 0 else -jnp.expm1(self.a * l) / self.a


@dataclass(frozen=True)
class SkewedJensenShannon(Divergence):
    r""":math:`f = cr\log r-(cr+1-c)\log(cr+1-c)`, :math:`h=\frac{c(1-c)r}{cr+1-c}`: c KL(p||m) + (1-c) KL(q||m), m = cp + (1-c)q.

    Half of :class:`JensenShannon` at c = 1/2. With ``c`` towards 0 it covers modes like forward KL (``h`` grows up to
    r = (1-c)/c), with ``c`` towards 1 it seeks them; bounded, so ``V`` stays below that of forward KL.

    Attributes:
        c: the share of the teacher in the mixture, in (0, 1).
    """

    c: float = 0.5

    name: ClassVar[str] = "skewed Jensen-Shannon"

    def __post_init__(self):
        require_number(self, 1e-3, 1 - 1e-3, c=self.c)

    def f(self, r):
        mixed = self.c * r + 1 - self.c
        return self.c * r * jnp.log(r) - mixed * jnp.log(mixed)

    def log_h(self, l):
        return math.log(self.c * (1 - self.c)) + l - self._log_mixed(l)

    def generator_loss(self, l):
        """``-(1 - c) log(c r + 1 - c)``."""
        return -(1 - self.c) * self._log_mixed(l)

    def _log_mixed(self, l):
        return jnp.logaddexp(l + math.log(self.c), math.log1p(-self.c))


@dataclass(frozen=True)
class LeCam(Divergence):
    r""":math:`f=\frac{(r-1)^2}{r+1}`, :math:`h=\frac{8r^2}{(1+r)^3}`: bounded, and fading on both sides of r = 2.

    Neither what the student misses altogether nor what it makes up pulls; ``V`` is .30 at m = 1.
    """

    name: ClassVar[str] = "Le Cam"

    def f(self, r):
        return (r - 1) ** 2 / (r + 1)

    def log_h(self, l):
        return math.log(8) + 2 * l - 3 * jax.nn.softplus(l)

    def generator_loss(self, l):
        """``8 u - 4 u^2`` with ``u = 1 / (1 + r)``."""
        u = jax.nn.sigmoid(-l)
        return 8 * u - 4 * u**2


@dataclass(frozen=True)
class Neyman(Divergence):
    r""":math:`f=(1-r)^2/r`, :math:`h=2/r`: chi-square of q against p, more mode seeking than reverse KL; :math:`V=e^{m^2}-1`."""

    name: ClassVar[str] = "Neyman"

    def f(self, r):
        return (1 - r) ** 2 / r

    def log_h(self, l):
        return math.log(2) - l

    def generator_loss(self, l):
        """``2 exp(-l)``."""
        return 2 * jnp.exp(-l)


@dataclass(frozen=True)
class Pearson(Divergence):
    r""":math:`f=(r-1)^2`, :math:`h=2r^2`: the chi-square of p against q, the most mode covering.

    :math:`V=e^{4m^2}-1`, 54 at m = 1 and 9e6 at m = 2: of theoretical interest only.
    """

    name: ClassVar[str] = "Pearson"

    def f(self, r):
        return (r - 1) ** 2

    def log_h(self, l):
        return math.log(2) + 2 * l

    def generator_loss(self, l):
        """``-exp(2 l)``."""
        return -jnp.exp(2 * l)
