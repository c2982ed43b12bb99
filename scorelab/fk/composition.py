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
where they are all noise. Hence its weights are quiet at high noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp

from scorelab.fk.checks import require_scalar
from scorelab.models.ask import ask
from scorelab.processes.base import Prediction, Process, require_same_process
from scorelab.typing import Array, Key, Model, Pytree, partly_static, per_example, require_choice, require_number

# Directions pushed through the experts at once.
DIVERGENCE_BLOCK = 16


def signal_fraction(process: Process, t: Array) -> Array:
    r""":math:`\alpha_t^2/(\alpha_t^2+\sigma_t^2)`: from nearly 0 at high noise to 1 at clean data, on every schedule."""
    return jax.nn.sigmoid(process.log_snr(t))


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
    ramp: Callable[[Process, Array], Array] = signal_fraction
    with_cond: bool = False

    def __post_init__(self):
        for name in ("reward", "ramp"):
            if not callable(getattr(self, name)):
                raise TypeError(f"Tilt.{name} = {getattr(self, name)!r}: expected a function")
        require_scalar(self, scale=self.scale)
        require_choice(self, (True, False), with_cond=self.with_cond)

    def final(self, x: Array, cond: Pytree) -> Array:
        r""":math:`\lambda\,r(x)`, ``(batch,)``."""
        r = self.reward(x, cond) if self.with_cond else self.reward(x)
        if jnp.shape(r) != x.shape[:1]:
            raise ValueError(f"Tilt.reward returned shape {jnp.shape(r)}: expected {x.shape[:1]}, one per sample")
        return self.scale * r

    def __call__(self, y: Array, t: Array, process: Process, cond: Pytree = None) -> Array:
        """``R``, ``(batch,)``."""
        return self.ramp(process, t) * self.final(process.decode(y), cond)


class WithDensity(Model, Protocol):
    """A model that knows its log-density."""

    def log_prob(self, y: Array, t: Array | float) -> Array:
        r""":math:`\log q_t(y)`, ``(batch,)``."""
        ...


class Evaluation(NamedTuple):
    r"""What a composition knows of one point: the prediction that moves it, :math:`h`, and :math:`R`."""

    prediction: Prediction
    rate: Array
    tilt: Array


@partly_static("models", "exponents", "tilt")
@dataclass(frozen=True, kw_only=True)
class Composition:
    r"""The model that moves particles along :math:`\Phi`; without weights it is guidance, and does not sample the product.

    Attributes:
        models: the experts, under one process (ValueError otherwise: here for models that know theirs, else when they are called).
        exponents: :math:`b_i`: numbers (leaves), or functions of ``t``, whose experts must then have ``log_prob(y, t)``.
        tilt: :math:`R(y, t, process, cond)` ``(batch,)``, such as a :class:`Tilt`; or None.
        anchor: ``"score"`` for :math:`a_i=b_i`, ``"flow"`` for :math:`a_i=b_i/B`.
        noise: :math:`c^2/g^2` of the solver, static: 1 for ``DDIM(eta=1)``, ``EulerMaruyama()`` and ``DPMSolverPP(eta=1)``.
    """

    models: tuple[Model, ...]
    exponents: tuple[Array | float | Callable[[Array], Array], ...]
    tilt: Any = None
    anchor: Literal["score", "flow"] = "flow"
    noise: float = 1.0

    def __post_init__(self):
        require_number(self, 0.0, math.inf, noise=self.noise)
        require_choice(self, ("score", "flow"), anchor=self.anchor)
        if self.tilt is not None and not callable(self.tilt):
            raise TypeError(f"Composition.tilt = {self.tilt!r}: expected a function (y, t, process, cond), such as a Tilt")
        for model in self.models:
            if not callable(model):
                raise TypeError(f"Composition.models has {model!r}: expected models, called with (y, t, cond)")
        for exponent in self.exponents:
            if not callable(exponent):
                require_scalar(self, exponents=exponent)
        if not self.models or len(self.models) != len(self.exponents):
            raise ValueError(
                f"Composition has {len(self.models)} models and {len(self.exponents)} exponents: expected as many, and at least one"
            )
        _require_one_process([known_process(model) for model in self.models])
        for model, exponent in zip(self.models, self.exponents, strict=True):
            if callable(exponent) and not hasattr(model, "log_prob"):
                raise ValueError(
                    f"Composition.exponents has a function of time for {type(model).__name__}: expected a number, or a model with "
                    "log_prob(y, t) such as an ExactModel, since a changing power weighs by the log-density"
                )

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> Prediction:
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
        total = sum(b)
        a = b if self.anchor == "score" else [bi / total for bi in b]

        extra = 0.0
        if self.anchor == "score":
            predictions = self._ask(y, t, cond)
        else:
            predictions, push = jax.linearize(lambda y: self._ask(y, t, cond), y)
            minus_sigma = -predictions[0].process.sigma(t)
            difference = lambda v: sum((ai - bi) * p.eps for ai, bi, p in zip(a, b, push(v), strict=True)) / minus_sigma
            extra = _trace(difference, y, keys, probes)
        scores = [p.score for p in predictions]
        process = predictions[0].process
        tilt, slope, d_tilt = self._tilt_gradient(y, t, cond)
        mean, moved = _weighted_sum(b, scores), _weighted_sum(a, scores)
        size = math.prod(y.shape[1:])
        square = _weighted_sum(b, [_dot(s, s) for s in scores])
        rate = (total - 1) * size * process.schedule.drift_rate(t)
        rate = rate + 0.5 * process.schedule.diffusion_rate(t) * (_dot(moved, mean) - square + extra)
        if self.tilt is not None:
            rate = rate + 0.5 * process.schedule.diffusion_rate(t) * _dot(moved, slope)
            rate = rate - _dot(process.latent_drift(y, t), slope) - d_tilt
        for model, exponent, slope_b in zip(self.models, self.exponents, d_b, strict=True):
            if callable(exponent):
                rate = rate - slope_b * cast(WithDensity, model).log_prob(y, t)
        return Evaluation(self._combined(predictions, y, t, slope), rate, tilt)

    def log_density(self, y: Array, t: Array, cond: Pytree = None) -> Array | None:
        r""":math:`\Phi(y, t)` ``(batch,)``; None where an expert has no ``log_prob``."""
        if not all(hasattr(model, "log_prob") for model in self.models):
            return None
        t = jnp.asarray(t, y.dtype)
        b, _ = self._exponents(t)
        known = [cast(WithDensity, model).log_prob(y, t) for model in self.models]
        return _weighted_sum(b, known) + self.log_tilt(y, t, cond)

    def log_tilt(self, y: Array, t: Array, cond: Pytree = None) -> Array:
        """``R``, zero without a tilt."""
        return jnp.zeros(len(y), y.dtype) if self.tilt is None else self._tilt(y, t, self._process(y, t, cond), cond)

    @property
    def process(self) -> Process | None:
        """That of the experts, where one of them knows it without being called."""
        return next((process for process in map(known_process, self.models) if process is not None), None)

    def _ask(self, y, t, cond) -> list[Prediction]:
        predictions = [ask(model, y, t, cond) for model in self.models]
        _require_one_process([prediction.process for prediction in predictions])
        return predictions

    def _process(self, y, t, cond) -> Process:
        # The process is static, so this call leaves nothing in the program.
        return jax.eval_shape(lambda y: self.models[0](y, t, cond), y).process

    def _exponents(self, t: Array) -> tuple[list[Array], list[Array]]:
        """Values and time derivatives."""
        constant = lambda e: (jnp.asarray(e, t.dtype), jnp.zeros_like(t))
        pairs = [jax.jvp(e, (t,), (jnp.ones_like(t),)) if callable(e) else constant(e) for e in self.exponents]
        return [value for value, _ in pairs], [slope for _, slope in pairs]

    def _tilt(self, y, t, process, cond) -> Array:
        value = self.tilt(y, t, process, cond)
        if jnp.shape(value) != y.shape[:1]:
            raise ValueError(f"Composition.tilt returned shape {jnp.shape(value)}: expected {y.shape[:1]}, one per point")
        return value

    def _tilt_gradient(self, y, t, cond) -> tuple[Array, Array, Array]:
        r""":math:`R`, :math:`\nabla R` and :math:`\partial_t R`."""
        if self.tilt is None:
            return jnp.zeros(len(y), y.dtype), jnp.zeros_like(y), jnp.zeros(len(y), y.dtype)
        process = self._process(y, t, cond)
        value, back = jax.vjp(lambda y: self._tilt(y, t, process, cond), y)
        _, d_tilt = jax.jvp(lambda t: self._tilt(y, t, process, cond), (t,), (jnp.ones_like(t),))
        return value, back(jnp.ones_like(value))[0], d_tilt

    def _combined(self, predictions: list[Prediction], y: Array, t: Array, slope: Array) -> Prediction:
        r"""The pair with the score :math:`(A + \kappa S)/(1+\kappa)`, :math:`\kappa=c^2/g^2`, formed without cancellation."""
        b, _ = self._exponents(t)
        total = sum(b)
        kappa = jnp.asarray(self.noise, y.dtype)
        factor = 1.0 if self.anchor == "score" else (1 / total + kappa) / (1 + kappa)
        c = [bi * factor for bi in b]
        process = predictions[0].process
        alpha, sigma, offset = (per_example(f(t), y) for f in (process.alpha, process.sigma, process.offset))
        pull = kappa / (1 + kappa) * slope
        centred = (y - offset) / alpha
        denoised = centred + _weighted_sum(c, [p.denoised - centred for p in predictions])
        denoised = denoised + sigma**2 / alpha * pull
        eps = _weighted_sum(c, [p.eps for p in predictions]) - sigma * pull
        return Prediction(denoised=denoised, eps=eps, t=t, process=process)


def known_process(model: Model) -> Process | None:
    """The process that a model says it is of, before it is called; None where it does not say."""
    process = getattr(model, "process", None)
    return process if isinstance(process, Process) else None


def _require_one_process(processes: list[Process | None]) -> None:
    known = {f"model {i}": process for i, process in enumerate(processes) if process is not None}
    if known:
        require_same_process("Composition", **known)


def _weighted_sum(factors: Iterable[Array], terms: Iterable[Array]) -> Array:
    return cast(Array, sum(factor * term for factor, term in zip(factors, terms, strict=True)))


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)))


def _trace(linear: Callable[[Array], Array], y: Array, keys: Key, probes: int) -> Array:
    """The trace of the Jacobian of every example, ``(batch,)``; ``linear`` applies it to directions ``(batch, *event)``."""
    if probes:
        # Held fixed in a step and drawn anew in the next: the estimate of h is unbiased.
        signs = jax.vmap(lambda k: jax.random.rademacher(k, (probes, *y.shape[1:]), y.dtype), out_axes=1)(keys)
        return jnp.mean(jax.lax.map(lambda v: _dot(v, linear(v)), signs, batch_size=min(probes, DIVERGENCE_BLOCK)), axis=0)
    size = math.prod(y.shape[1:])

    def along(i):
        # Examples do not interact: one product gives entry (i, i) of every example's Jacobian.
        unit = jnp.zeros(size, y.dtype).at[i].set(1.0).reshape(y.shape[1:])
        unit = jnp.broadcast_to(unit, y.shape)
        return _dot(unit, linear(unit))

    return jnp.sum(jax.lax.map(along, jnp.arange(size), batch_size=min(size, DIVERGENCE_BLOCK)), axis=0)
