r"""The Fokker-Planck residual: how far a model's scores of all noise levels are from those of one law that is noised.

In the coordinate :math:`z = (y - b_t)/\alpha_t` over the noise ratio :math:`\rho = \sigma_t/\alpha_t` the density of every
linear-Gaussian process solves one heat equation. With :math:`u = \log p` and :math:`\hat\epsilon = -\rho\nabla_z u`,

.. math:: \partial_{\log\rho}u = \rho^2\big(\Delta u + \lVert\nabla u\rVert^2\big),\qquad
          \hat\epsilon - \partial_{\log\rho}\hat\epsilon
          = -\rho\nabla\big(\rho\,\nabla\!\cdot\hat\epsilon - \lVert\hat\epsilon\rVert^2\big) .

In ``y`` over ``t`` the left sides are :math:`k\,(\partial_t + \mu\cdot\nabla_y)` with the drift
:math:`\mu = f_t(y-b_t)+\dot b_t` and :math:`k = 2\sigma_t^2/g_t^2`, and :math:`\rho\nabla_z = \sigma_t\nabla_y`. Where
:math:`s = \nabla u`, this is the Fokker-Planck equation
:math:`\partial_t u = \tfrac12 g^2(\Delta u + \lVert\nabla u\rVert^2) - \nabla\!\cdot\mu - \mu\cdot\nabla u`, or its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Pytree, per_example
from scorelab.divergence import BLOCK, divergence, dot, pushed, signs, trace
from scorelab.models.base import Model, ask, require_model
from scorelab.processes.base import Noised
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.processes.predictions import HasLogProb, HasNoise, require_capabilities
from scorelab.randomness import folded, per_example_normal
from scorelab.validation import require_choice, require_int, require_number, require_spec


class Residual(NamedTuple):
    """Estimates of the residual at every point, and of one side of the equation.

    Attributes:
        off: the residual, one estimate for each probe ``(probes, batch, *axes)``, or a single exact one.
        change: the change along the drift, ``(batch, *axes)``; ``axes`` are those of the event, or none in logarithmic form.
    """

    off: Array
    change: Array


class Squares(NamedTuple):
    """Squares over the dimension, ``(batch,)``.

    Attributes:
        residual: of the residual; without bias, so that those of probes may be below zero.
        change: of the change along the drift.
    """

    residual: Array
    change: Array


@dataclass(frozen=True, kw_only=True)
class FokkerPlanck:
    r"""The square of the Fokker-Planck residual of a model at noised points, ``(batch,)``: a regulariser, and a diagnostic.

    With ``d`` elements of a point and :math:`\partial = k\,(\partial_t + \mu\cdot\nabla)` (see the module),

    .. math:: R^{\mathrm{score}} &= \tfrac1d\,\big\lVert\hat\epsilon - \partial\hat\epsilon
              + \sigma\nabla(\sigma\nabla\!\cdot\hat\epsilon - \lVert\hat\epsilon\rVert^2)\big\rVert^2, \\
              R^{\log} &= \tfrac1d\,\big(\partial u + k f_t d + \sigma\nabla\!\cdot\hat\epsilon
              - \lVert\hat\epsilon\rVert^2\big)^2 .

    Both are per e-fold of the noise ratio, the first in the units of a mean square of :math:`\hat\epsilon - \epsilon`. So values at
    different noise levels compare, and a model that is written for another process has the same. The mean of the second (with
    ``constant="free"``) is at most that of the first, by the inequality of Poincare.

    Zero says that the model's laws at all noise levels belong together, so that the probability flow and the reverse SDE that begin
    in them have the same marginals. It does not say that these are the data's: the exact scores of another law have it too.

    The change along the drift holds for fields that are no gradients too, as the equation in ``z``; the form
    :math:`\nabla(\mu\cdot s)` of other works differs from it by :math:`(J^\top - J)\mu` there, and depends on the process.

    Attributes:
        form: ``"log"``, of models whose predictions have a log-density (exact laws, energies), which takes one derivative less;
            ``"score"``; None for the first where there is a log-density.
        constant: of the logarithmic form. ``"free"``: a log-density is known up to a constant of ``t`` only, so
            :math:`\tfrac12(R - R')^2` with a second point of the same clean one and time takes the place of :math:`R^2`.
            ``"kept"``: the residual itself, half as expensive, for normalised laws, and for energies of your own with a constant to
            learn: it becomes the same at all times. Of others, such as ``models.Energy``, the change of the constant is in it.
        probes: 0 for the exact divergence, one product for each element of a point; else the number, 2 or more, of Rademacher
            probes. Pairs of different ones give the square without bias, so single values may be below zero.
        difference: 0 for the exact change along the drift, in forward mode; else the step in :math:`\log\rho` of a central
            difference, whose error is of second order (one-sided, and of first order, at the ends of the process). It takes two
            more calls of the model in the place of the derivative. Rounding is divided by the step: in float32 the residual of an
            exact law was .005 of its change at a step of 1e-3, and .06 at 1e-4. Take .01 and more there.

    Raises:
        TypeError: a process that is not linear-Gaussian, a model without what the form needs.
        ValueError: probes or a second point for a batch without keys, differences under a process with alpha = 0 at its end.

    Source: the residual as a regulariser, Deveney et al. (2023), arXiv 2311.15996, for energies; its score form, Lai et al. (2022),
    arXiv 2210.04296. Scale, pairs of points and pairs of probes are ours.
    """

    form: Literal["log", "score"] | None = None
    constant: Literal["free", "kept"] = "free"
    probes: int = 0
    difference: float = 0.0

    def __post_init__(self):
        require_choice(self, (None, "log", "score"), form=self.form)
        require_choice(self, ("free", "kept"), constant=self.constant)
        require_int(self, 0, probes=self.probes)
        require_number(self, 0.0, 1.0, difference=self.difference)
        if self.probes == 1:
            raise ValueError("FokkerPlanck.probes = 1: expected 0, or 2 and more, since the square of one estimate is biased")
        if self.constant == "kept" and self.form != "log":
            raise ValueError(f"FokkerPlanck.constant = 'kept' with form = {self.form!r}: expected form = 'log', which has one")

    def __call__(self, model: Model, noised: Noised) -> Array:
        """The value of each example, ``(batch,)``."""
        return self.squares(model, noised).residual

    def squares(self, model: Model, noised: Noised) -> Squares:
        """The value of each example, and what it is compared with where it is reported relative to something."""
        where = type(self).__name__
        require_model(where, model)
        require_spec(where, LinearGaussian, process=model.process)
        size = math.prod(noised.y.shape[1:])
        if not self._logarithmic(model, noised):
            probes = signs(noised.keys, self.probes, noised.y) if self.probes else None
            found = self._of_score(model, noised.y, noised.t, noised.cond, probes)
        elif self.constant == "kept":
            probes = signs(noised.keys, self.probes, noised.y) if self.probes else None
            found = self._of_log_prob(model, noised.y, noised.t, noised.cond, probes)
        else:
            found = self._of_pairs(model, noised)
        return Squares(_square(found.off) / size, _square(found.change[None]) / size)

    def _logarithmic(self, model: Model, noised: Noised) -> bool:
        prediction = jax.eval_shape(lambda y, t: ask(model, y, t, noised.cond), noised.y, noised.t)
        needs = (HasNoise, HasLogProb) if self.form == "log" else (HasNoise,)
        require_capabilities(type(self).__name__, prediction, needs)
        return self.form == "log" or (self.form is None and isinstance(prediction, HasLogProb))

    def _of_score(self, model: Model, y: Array, t: Array, cond: Pytree, probes: Array | None) -> Residual:
        """Of the score, in units of the noise."""
        process = model.process
        sigma = process.sigma(t)
        eps = lambda y, t: ask(model, y, t, cond).eps
        value, change = self._along_drift(eps, process, y, t)
        of_z = value - change

        def square(y):
            said = eps(y, t)
            return jnp.sum(sigma * dot(said, said))

        if probes is None:

            def potential(y):
                said, spread = divergence(lambda y: eps(y, t), y)
                return jnp.sum(sigma**2 * spread - sigma * dot(said, said))

            return Residual((of_z + jax.grad(potential)(y))[None], of_z)

        def of_probe(probe):
            product = lambda y: jax.jvp(lambda y: eps(y, t), (y,), (probe,))[1]
            return jax.grad(lambda y: jnp.sum(sigma**2 * dot(probe, product(y))))(y)

        spreads = jax.lax.map(of_probe, probes, batch_size=min(len(probes), BLOCK))
        return Residual(of_z - jax.grad(square)(y) + spreads, of_z)

    def _of_log_prob(self, model: Model, y: Array, t: Array, cond: Pytree, probes: Array | None) -> Residual:
        """Of the log-density, per e-fold of the noise ratio."""
        process, size = model.process, math.prod(y.shape[1:])
        sigma = process.sigma(t)
        _, change = self._along_drift(lambda y, t: ask(model, y, t, cond).log_prob, process, y, t)
        # The volume of z grows against that of y.
        of_z = change + _pace(process, t) * process.schedule.drift_rate(t) * size
        said, product = pushed(lambda y: ask(model, y, t, cond).eps, y)
        if probes is None:
            traces = trace(product, y)[None]
        else:
            traces = jax.lax.map(lambda v: dot(v, product(v)), probes, batch_size=min(len(probes), BLOCK))
        return Residual(of_z + sigma * traces - dot(said, said), of_z)

    def _of_pairs(self, model: Model, noised: Noised) -> Residual:
        """Half the difference of two points in the place of each: what is the same at both, such as a constant of t, is gone."""
        if noised.keys is None:
            raise ValueError(
                "FokkerPlanck.constant = 'free' for a batch whose keys are None: expected one key for each example, as a loss "
                "draws them, or constant = 'kept', which needs no second point"
            )
        other = model.process.noised(per_example_normal(folded(noised.keys, 1), noised.y), noised.y0, noised.t).y
        # One probe for both points: what it gets wrong at both alike is gone too.
        probes = signs(noised.keys, self.probes, noised.y) if self.probes else None
        # Apart, since a model may have a number for each example, and not as one batch of twice the size.
        found = jax.vmap(lambda y: self._of_log_prob(model, y, noised.t, noised.cond, probes))(jnp.stack([noised.y, other]))
        half = lambda value: (value[0] - value[1]) / math.sqrt(2)
        return Residual(half(found.off), half(found.change))

    def _along_drift(self, fn: Callable[[Array, Array], Array], process: LinearGaussian, y: Array, t: Array) -> tuple[Array, Array]:
        r""":math:`F` and :math:`k(\partial_t + \mu\cdot\nabla)F`, its derivative by :math:`\log\rho` at a fixed :math:`z`."""
        if not self.difference:
            pace = _pace(process, t)
            return jax.jvp(fn, (y, t), (per_example(pace, y) * process.latent_drift(y, t), pace))
        if process.open_end:
            raise ValueError(
                f"FokkerPlanck.difference = {self.difference} under {process!r}, near whose end times are one number: expected 0"
            )
        z = (y - per_example(process.offset(t), y)) / per_example(process.alpha(t), y)

        def at(step):
            # Times at which the model is not known are not asked about.
            there = jnp.clip(process.schedule.time(process.log_snr(t) - 2 * step), process.t_min, process.t_max).astype(y.dtype)
            moved = per_example(process.alpha(there), y) * z + per_example(process.offset(there), y)
            return fn(moved, there), -0.5 * process.log_snr(there)

        (ahead, far), (behind, near) = at(self.difference), at(-self.difference)
        return fn(y, t), (ahead - behind) / per_example(far - near, ahead)


def _pace(process: LinearGaussian, t: Array) -> Array:
    r""":math:`k = 2\sigma^2/g^2`, time per e-fold of the noise ratio."""
    return cast(Any, 2 * process.sigma(t) ** 2 / process.schedule.diffusion_rate(t))


def _square(estimates: Array) -> Array:
    """The square of what independent estimates ``(m, batch, *axes)`` estimate, summed over the axes; of a single one its own."""
    m = len(estimates)
    norm = lambda value: jnp.sum(jnp.square(value).reshape(*value.shape[:1], -1), axis=1)
    if m == 1:
        return norm(estimates[0])
    # The mean over pairs of different ones.
    each = jnp.sum(jax.vmap(norm)(estimates), axis=0)
    return (norm(jnp.sum(estimates, axis=0)) - each) / (m * (m - 1))
