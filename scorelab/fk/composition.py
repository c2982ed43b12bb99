r"""Products of powers of learned laws, and the one rate by which a simulated ensemble has to be weighted to follow them.

With experts :math:`q_i` under one forward process, :math:`l_i=\log q_{i,t}`, :math:`s_i=\nabla l_i`, the target path is

.. math:: \Phi_t = \sum_i b_i(t)\,l_i + R(y,t),\qquad B=\sum_i b_i,\quad S=\sum_i b_i s_i+\nabla R .

In generation time :math:`\tau=T-t`, with :math:`f` and :math:`g` of the forward SDE, particles move by

.. math:: dy = \big[-f + \tfrac{g^2}{2}A + \tfrac{c^2}{2}S\big]d\tau + c\,dw,\qquad A=\sum_i a_i s_i

for any noise :math:`c` and any *anchor* :math:`a_i`, and follow :math:`e^\Phi` when weighted at the rate

.. math:: h = (B-1)\nabla\!\cdot f + \tfrac{g^2}{2}\Big[A\cdot S - \sum_i b_i|s_i|^2 + \nabla\!\cdot\!\sum_i(a_i-b_i)s_i\Big]
          - f\cdot\nabla R - \partial_t R - \sum_i \dot b_i\,l_i ,

which does not contain :math:`c`. Derivation: demand that :math:`e^\Phi` solves the Fokker-Planck equation of the ensemble with the
source :math:`h\rho`, and put in that of every expert; the Laplacians of :math:`R` cancel. The anchor :math:`a_i=b_i` needs no
divergence and is the weighting of arXiv 2503.02819; :math:`a_i=b_i/B` is the flow of the experts themselves, which moves nothing
where they are all noise. Hence its weights are quiet at high noise. Stochastic interpolants have another rate
(:mod:`scorelab.fk.flows`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Key, Pytree, per_example
from scorelab.divergence import dot, pushed, signs, trace
from scorelab.fk.checks import require_scalar
from scorelab.models.base import KnowsDensity, Model, ask, model_name, require_model
from scorelab.models.product import multiplied, weighted_sum
from scorelab.models.rewards import one_each, rewards_of
from scorelab.processes.base import require_same_process
from scorelab.processes.interpolant import StochasticInterpolant
from scorelab.processes.linear_gaussian import GaussianPrediction, LinearGaussian
from scorelab.processes.predictions import HasLogProb, HasProposal, require_capabilities
from scorelab.pytrees import partly_static
from scorelab.solvers.base import Solver
from scorelab.validation import require_choice, require_number


def signal_fraction(process: LinearGaussian | StochasticInterpolant, t: Array) -> Array:
    r""":math:`\alpha_t^2/(\alpha_t^2+\sigma_t^2)`: from nearly 0 at high noise to 1 at clean data; ``1 - t`` of an interpolant."""
    return 1 - t if isinstance(process, StochasticInterpolant) else jax.nn.sigmoid(process.log_snr(t))


@partly_static("reward", "scale")
@dataclass(frozen=True, kw_only=True)
class Tilt:
    r""":math:`R(y,t) = \lambda\,u(t)\,r(x)` with :math:`x` the point of data space at ``y`` itself (no prediction).

    Attributes:
        reward: ``r``, from ``x`` ``(batch, *event)`` to ``(batch,)``, differentiable; a function or a callable pytree.
        scale: :math:`\lambda`; a leaf.
        ramp: ``u``, a function of (process, t), differentiable: 0 at the noisiest time, so that the start needs no weights, and 1
            at the end.
        with_cond: call ``reward(x, cond)``.
    """

    reward: Callable[..., Array]
    scale: Array | float = 1.0
    ramp: Callable[[Any, Array], Array] = signal_fraction
    with_cond: bool = False

    def __post_init__(self):
        for name in ("reward", "ramp"):
            if not callable(getattr(self, name)):
                raise TypeError(f"Tilt.{name} = {getattr(self, name)!r}: expected a function")
        require_scalar(self, scale=self.scale)
        require_choice(self, (True, False), with_cond=self.with_cond)

    def final(self, x: Array, cond: Pytree) -> Array:
        r""":math:`\lambda\,r(x)`, ``(batch,)``."""
        return self.scale * rewards_of("Tilt", self.reward, x, cond, self.with_cond)

    def __call__(self, y: Array, t: Array, process: Any, cond: Pytree = None) -> Array:
        """``R``, ``(batch,)``."""
        return self.ramp(process, t) * self.final(process.decode(y), cond)


class Evaluation(NamedTuple):
    r"""What a composition knows of one point.

    Attributes:
        prediction: what moves it.
        rate: :math:`h`.
        tilt: :math:`R`.
        change: the part of :math:`h` that is :math:`dR/d\tau` along the anchor.
    """

    prediction: Any
    rate: Array
    tilt: Array
    change: Array


@partly_static("models", "exponents", "tilt")
@dataclass(frozen=True, kw_only=True)
class Composition:
    r"""The model that moves particles along :math:`\Phi`; without weights it is guidance, and does not sample the product.

    Attributes:
        models: the experts, under one process (ValueError otherwise).
        exponents: :math:`b_i`: numbers (leaves), or functions of ``t``, whose experts must then know their density.
        tilt: :math:`R(y, t, process, cond)` ``(batch,)``, such as a :class:`Tilt`; or None.
        anchor: ``"score"`` for :math:`a_i=b_i`, ``"flow"`` for :math:`a_i=b_i/B`.
        noise: :math:`c^2/g^2` of the solver, static: 1 for ``DDIM(eta=1)``, ``EulerMaruyama()`` and ``DPMSolverPP(eta=1)``.
    """

    models: tuple[Model, ...]
    exponents: tuple[Array | float | Callable[[Array | float], Array], ...]
    tilt: Any = None
    anchor: Literal["score", "flow"] = "flow"
    noise: float = 1.0

    def __post_init__(self):
        require_number(self, 0.0, math.inf, noise=self.noise)
        require_choice(self, ("score", "flow"), anchor=self.anchor)
        if self.tilt is not None and not callable(self.tilt):
            raise TypeError(f"Composition.tilt = {self.tilt!r}: expected a function (y, t, process, cond), such as a Tilt")
        for model in self.models:
            require_model("Composition", model, "models")
        for exponent in self.exponents:
            if not callable(exponent):
                require_scalar(self, exponents=exponent)
        if not self.models or len(self.models) != len(self.exponents):
            raise ValueError(
                f"Composition has {len(self.models)} models and {len(self.exponents)} exponents: expected as many, and at least one"
            )
        self._check_processes()
        for model, exponent in zip(self.models, self.exponents, strict=True):
            if callable(exponent) and not isinstance(model, KnowsDensity):
                raise ValueError(
                    f"Composition.exponents has a function of time for {type(model).__name__}: expected a number, or a model that "
                    "knows its density (log_prob) such as an ExactModel, since a changing power weighs by the log-density"
                )

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> Any:
        """The prediction whose score moves the particles under a solver with the noise ``noise``."""
        t = jnp.asarray(t, y.dtype)
        return self._combined(self._ask(y, t, cond), y, t, self._tilt_gradient(y, t, cond)[1])

    def evaluate(self, y: Array, t: Array, cond: Pytree, keys: Key, probes: int | None) -> Evaluation:
        r"""The prediction and the rate, with one pass through every expert.

        Args:
            y: ``(batch, *event)``.
            t: a scalar.
            cond: conditions with leading axis ``batch``.
            keys: one per example, for the probes.
            probes: Rademacher probes of Hutchinson's estimate of the divergence, 0 for the exact one, None for the exact one in
                up to 16 dimensions and 8 probes above.
        """
        t = jnp.asarray(t, y.dtype)
        probes = (0 if math.prod(y.shape[1:]) <= 16 else 8) if probes is None else probes
        b, d_b = self._exponents(t)
        a = self._anchors(b)
        if self.anchor == "score":
            predictions, extra = self._ask(y, t, cond), jnp.zeros(len(y), y.dtype)
        else:
            predictions, push = pushed(lambda y: self._ask(y, t, cond), y)
            difference = lambda v: self._spread([ai - bi for ai, bi in zip(a, b, strict=True)], push(v), t)
            # Probes are held fixed in a step and drawn anew in the next: the estimate of h is unbiased.
            extra = trace(difference, y, signs(keys, probes, y) if probes else None)
        tilt, slope, d_tilt = self._tilt_gradient(y, t, cond)
        rate, drift = self._rate(y, t, a, b, predictions, extra)
        change = dot(drift, slope) - d_tilt
        if self.tilt is not None:
            rate = rate + change
        for prediction, exponent, slope_b in zip(predictions, self.exponents, d_b, strict=True):
            if callable(exponent):
                require_capabilities("Composition.exponents with a function of time", prediction, (HasLogProb,))
                rate = rate - slope_b * cast(HasLogProb, prediction).log_prob
        return Evaluation(self._combined(predictions, y, t, slope), rate, tilt, change)

    def log_density(self, y: Array, t: Array, cond: Pytree = None) -> Array | None:
        r""":math:`\Phi(y, t)` ``(batch,)``; None where an expert has no ``log_prob``."""
        if not self.knows_density:
            return None
        t = jnp.asarray(t, y.dtype)
        b, _ = self._exponents(t)
        known = [cast(KnowsDensity, model).log_prob(y, t, cond) for model in self.models]
        return weighted_sum(b, known) + self.log_tilt(y, t, cond)

    def log_tilt(self, y: Array, t: Array, cond: Pytree = None) -> Array:
        """``R``, zero without a tilt."""
        return jnp.zeros(len(y), y.dtype) if self.tilt is None else self._tilt(y, t, cond)

    @property
    def process(self) -> Any:
        """That of the experts."""
        return self.models[0].process

    def check_base(self, base: Solver) -> None:
        """Raise ``ValueError`` unless the steps of a solver make the noise that the drift is for."""
        if base.noise_level is None or abs(base.noise_level - self.noise) > 1e-9:
            raise ValueError(
                f"FeynmanKac.base = {base!r} makes the noise {base.noise_level} (c^2/g^2) and Composition.noise = {self.noise}: "
                "expected the same of both, since the drift depends on it: another noise=..., or a base such as DDIM(eta=1.0), "
                "DPMSolverPP(eta=1.0) or EulerMaruyama()"
            )

    @property
    def knows_density(self) -> bool:
        """Whether all experts do."""
        return all(isinstance(model, KnowsDensity) for model in self.models)

    def _check_processes(self) -> None:
        require_same_process("Composition", **{f"model {i}": model.process for i, model in enumerate(self.models)})

    def _ask(self, y, t, cond) -> list[Any]:
        predictions = [ask(model, y, t, cond) for model in self.models]
        for model, prediction in zip(self.models, predictions, strict=True):
            if isinstance(prediction, HasProposal):
                raise ValueError(
                    f"Composition.models: {model_name(model)} gives guided predictions, whose score is that of no noised law: "
                    "expected the model without guidance, and its reward as a tilt (fk.tilted, tilt=fk.Tilt(reward)) or, where it "
                    "has no gradient, as a potential beside the corrector (fk.SumPotential)"
                )
        return predictions

    def _exponents(self, t: Array) -> tuple[list[Array], list[Array]]:
        """Values and time derivatives."""
        constant = lambda e: (jnp.asarray(e, t.dtype), jnp.zeros_like(t))
        pairs = [jax.jvp(e, (t,), (jnp.ones_like(t),)) if callable(e) else constant(e) for e in self.exponents]
        return [value for value, _ in pairs], [slope for _, slope in pairs]

    def _anchors(self, b: list[Array]) -> list[Array]:
        """:math:`a_i`."""
        total = sum(b)
        return b if self.anchor == "score" else [bi / total for bi in b]

    def _spread(self, factors: list[Array], tangents: list[Any], t: Array) -> Array:
        r""":math:`J v` of :math:`\sum_i(a_i-b_i)s_i`, from that of every prediction."""
        return sum(factor * p.eps for factor, p in zip(factors, tangents, strict=True)) / -self.process.sigma(t)

    def _rate(self, y, t, a: list[Array], b: list[Array], predictions: list[Any], extra: Array) -> tuple[Array, Array]:
        r"""The rate without a tilt, and the anchor's drift in generation time.

        With :math:`a_i=k b_i` its bracket is formed from differences of scores, which at low noise are small beside the scores:

        .. math:: A\cdot S-\sum_i b_i|s_i|^2=(kB-1)\sum_i b_i|s_i|^2-k\sum_{i<j}b_ib_j|s_i-s_j|^2 .
        """
        process, scores = self.process, [p.score for p in predictions]
        half, excess = 0.5 * process.schedule.diffusion_rate(t), sum(b) - 1
        pairs = itertools.combinations(zip(b, predictions, strict=True), 2)
        apart = sum((bi * bj * self._apart(p, q, t) for (bi, p), (bj, q) in pairs), jnp.zeros(len(y), y.dtype))
        if self.anchor == "score":
            bracket = excess * weighted_sum(b, [dot(s, s) for s in scores]) - apart
        else:
            bracket = -apart / sum(b)
        rate = excess * math.prod(y.shape[1:]) * process.schedule.drift_rate(t) + half * (bracket + extra)
        return rate, half * weighted_sum(a, scores) - process.latent_drift(y, t)

    def _apart(self, p: Any, q: Any, t: Array) -> Array:
        """The squared distance of two scores, ``(batch,)``: from the noise where that is small, and else from the data."""
        alpha, sigma = (per_example(f(t), p.eps) for f in (self.process.alpha, self.process.sigma))
        gap = jnp.where(sigma < alpha, q.eps - p.eps, (p.denoised - q.denoised) * (alpha / sigma)) / sigma
        return dot(gap, gap)

    def _tilt(self, y, t, cond) -> Array:
        return one_each("Composition.tilt", self.tilt(y, t, self.process, cond), y)

    def _tilt_gradient(self, y, t, cond) -> tuple[Array, Array, Array]:
        r""":math:`R`, :math:`\nabla R` and :math:`\partial_t R`."""
        if self.tilt is None:
            return jnp.zeros(len(y), y.dtype), jnp.zeros_like(y), jnp.zeros(len(y), y.dtype)
        value, back = jax.vjp(lambda y: self._tilt(y, t, cond), y)
        _, d_tilt = jax.jvp(lambda t: self._tilt(y, t, cond), (t,), (jnp.ones_like(t),))
        return value, back(jnp.ones_like(value))[0], d_tilt

    def _combined(self, predictions: list[Any], y: Array, t: Array, slope: Array) -> Any:
        r"""The pair with the score :math:`(A + \kappa S)/(1+\kappa)`, :math:`\kappa=c^2/g^2`, formed without cancellation."""
        b, _ = self._exponents(t)
        total = sum(b)
        kappa = jnp.asarray(self.noise, y.dtype)
        factor = 1.0 if self.anchor == "score" else (1 / total + kappa) / (1 + kappa)
        c = [bi * factor for bi in b]
        process = self.process
        alpha, sigma = (per_example(f(t), y) for f in (process.alpha, process.sigma))
        pull = kappa / (1 + kappa) * slope
        pair = multiplied(predictions, c, y)
        denoised, eps = pair.denoised + sigma**2 / alpha * pull, pair.eps - sigma * pull
        return GaussianPrediction(denoised=denoised, eps=eps, t=t, process=process)
