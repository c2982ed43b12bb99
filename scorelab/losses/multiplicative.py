r"""Losses of multiplicative diffusion, in the Hyvarinen score :math:`h = x\circ\nabla_x\log p_t(x)`.

In the log chart :math:`h = \nabla_y\log p_t(y) - 1 = -1 - \hat\epsilon/\sqrt v`, and the kernel has
:math:`x_t\circ\nabla\log p(x_t\mid x_0) = -1 - \epsilon/\sqrt v`. So an error in :math:`h` is an error in the noise over
:math:`\sqrt v`, and what follows is score matching in ``y`` with other names and weights:

.. math:: \text{M-DSM}\ \tfrac12\lambda\,\lVert h_\theta + 1 + \epsilon/\sqrt v\rVert^2
          = \tfrac{\lambda}{2v}\lVert\hat\epsilon-\epsilon\rVert^2 .

Norms are means over the elements, as in every loss of the library. Source: arXiv 2510.02730; Hyvarinen (2007).
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field

import jax
import jax.numpy as jnp

from scorelab.arrays import Array
from scorelab.densities.base import Density
from scorelab.divergence import divergence, signs
from scorelab.losses.base import Loss, example_keys, mean_square, require_floating
from scorelab.losses.denoising import DenoisingScoreMatching
from scorelab.losses.times import Times, UniformTimes
from scorelab.losses.weightings import VarianceWeighting, Weighting, require_weighting, weights
from scorelab.models.exact import ExactModel
from scorelab.processes.base import Noised
from scorelab.processes.multiplicative import GeometricBrownianMotion
from scorelab.validation import require_int, require_spec


@dataclass(frozen=True)
class MultiplicativeDenoisingScoreMatching(DenoisingScoreMatching):
    r"""M-DSM, :math:`\tfrac12\lambda(t)\,\lVert x_t\circ s_\theta(x_t,t) + 1 + \epsilon/\sqrt{v(t)}\rVert^2/d`.

    It is :class:`DenoisingScoreMatching` with :math:`w = \lambda/(2v^2)`: its minimiser is the Hyvarinen score
    :math:`x\circ\nabla\log p_t`, and it equals M-ESM up to a constant of the data.

    Attributes:
        process: a :class:`scorelab.processes.GeometricBrownianMotion`.
        weighting: :math:`\lambda`, a function of ``(process, t)``; a weight of the error in ``h``.
        times: the law of ``t``.
        label_dropout: see :class:`DenoisingScoreMatching`.
        null_label: see :class:`DenoisingScoreMatching`.
    """

    _: KW_ONLY
    weighting: Weighting = field(default_factory=VarianceWeighting)
    times: Times = field(default_factory=UniformTimes)

    def __post_init__(self):
        require_spec(self, GeometricBrownianMotion, process=self.process)
        super().__post_init__()

    def weight(self, t: Array) -> Array:
        r""":math:`\lambda/(2v^2)`."""
        v = self.process.sigma(t) ** 2
        return 0.5 * weights(self, t) / v / v  # v**2 may leave float32 where the quotient does not


@dataclass(frozen=True, eq=False)
class MultiplicativeExplicitScoreMatching(Loss):
    r"""M-ESM, :math:`\tfrac12\lambda(t)\,\lVert x_t\circ s_\theta(x_t,t) - x_t\circ\nabla\log p_t(x_t)\rVert^2/d`.

    It needs the law of the data, so it is for analyses: its value is M-DSM's less a constant. Two of these losses
    are equal only if they are one object (a law has arrays).

    Attributes:
        process: a :class:`scorelab.processes.GeometricBrownianMotion`.
        law: the law of the data, a :class:`scorelab.densities.LogNormalMixture`, or that of their logarithm.
        weighting: :math:`\lambda`.
        times: the law of ``t``.
    """

    process: GeometricBrownianMotion
    law: Density
    _: KW_ONLY
    weighting: Weighting = field(default_factory=VarianceWeighting)
    times: Times = field(default_factory=UniformTimes)

    def __post_init__(self):
        require_spec(self, GeometricBrownianMotion, process=self.process)
        require_spec(self, Density, law=self.law)
        require_spec(self, Times, times=self.times)
        require_weighting(self)

    def draw(self, key, batch):
        """The noise that M-DSM draws from the same key."""
        x = batch["x"]
        require_floating(x)
        key_times, key_noise, _ = jax.random.split(key, 3)
        t = self.times(key_times, self.process, len(x))
        return self.process.perturb(key_noise, x, t)._replace(cond=batch.get("cond"), keys=example_keys(key, len(x)))

    def error(self, model, noised):
        error = self.ask(model, noised.y, noised.t, noised.cond).eps - ExactModel(self.law, self.process)(noised.y, noised.t).eps
        return 0.5 * weights(self, noised.t) / self.process.sigma(noised.t) ** 2 * mean_square(error)


@dataclass(frozen=True)
class NonNegativeScoreMatching(Loss):
    r"""Hyvarinen's score matching for non-negative data, without noise targets.

    .. math:: J = E\Big[\tfrac1d\sum_i 2x_i\psi_i + x_i^2\,\partial_i\psi_i + \tfrac12x_i^2\psi_i^2\Big]
                = E\Big[\tfrac1d\sum_i h_i + x_i\,\partial_ih_i + \tfrac12h_i^2\Big],

    with the model's score :math:`\psi` and :math:`h = x\circ\psi`; equal to M-ESM with :math:`\lambda = 1` up to
    :math:`E\lVert h^*\rVert^2/2d`. In the log chart :math:`x_i\partial_{x_i} = \partial_{y_i}`, so the derivative is the
    divergence of the model in ``y``.

    Attributes:
        process: a :class:`scorelab.processes.GeometricBrownianMotion`.
        probes: 0 for the exact divergence, one forward-mode product per element, else the number of Rademacher probes of
            Hutchinson's unbiased estimate.
        times: the law of ``t`` at which the data are noised; None for the data themselves, shown to the model with
            ``t_min`` (the case of Hyvarinen 2007).
    """

    process: GeometricBrownianMotion
    _: KW_ONLY
    probes: int = 0
    times: Times | None = None

    def __post_init__(self):
        require_spec(self, GeometricBrownianMotion, process=self.process)
        require_int(self, 0, probes=self.probes)
        if self.times is not None:
            require_spec(self, Times, times=self.times)
        elif self.process.t_min <= 0:
            raise ValueError(
                f"NonNegativeScoreMatching.process has t_min = {self.process.t_min}: expected a time above 0 to show the model"
            )

    def draw(self, key, batch):
        """Noised data, or the data themselves."""
        x = batch["x"]
        require_floating(x)
        key_times, key_noise, _ = jax.random.split(key, 3)
        if self.times is None:
            y = self.process.encode(x)
            noised = Noised(y=y, y0=y, noise=jnp.zeros_like(y), t=jnp.full(len(x), self.process.t_min, x.dtype))
        else:
            noised = self.process.perturb(key_noise, x, self.times(key_times, self.process, len(x)))
        return noised._replace(cond=batch.get("cond"), keys=example_keys(key, len(x)))

    def error(self, model, noised):
        """See the class; it has no lower bound at zero."""
        y, size = noised.y, math.prod(noised.y.shape[1:])
        hyvarinen = lambda y: self.ask(model, y, noised.t, noised.cond).score - 1
        h, trace = divergence(hyvarinen, y, signs(noised.keys, self.probes, y) if self.probes else None)
        return jnp.mean(h.reshape(len(y), -1), axis=1) + trace / size + 0.5 * mean_square(h)
