r"""Stochastic interpolants: bridges between any two laws, with latent noise (Albergo, Boffi, Vanden-Eijnden, arXiv 2303.08797).

.. math:: y_t = \alpha_t x + \beta_t w + \gamma_t z,\qquad x\sim\text{data},\quad w\sim\text{base},\quad z\sim N(0, I),

with data at ``t = 0`` and the base at ``t = 1``, as everywhere in this library. Given :math:`y_t = y`,

.. math:: D = E[x\mid y],\quad W = E[w\mid y],\quad \eta = E[z\mid y],\quad \nabla\log p_t = -\eta/\gamma,

.. math:: v = \dot\alpha D + \dot\beta W,\qquad u = E[\dot y_t\mid y] = v + \dot\gamma\,\eta = v - \gamma\dot\gamma\,\nabla\log p_t,
          \qquad \partial_t p + \nabla\!\cdot(u\,p) = 0 .

The paper's time is :math:`1-t`, and its drift ``b`` is :math:`-u`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from scorelab.arrays import Array, BatchTime, Time, per_example
from scorelab.processes.base import Noised
from scorelab.processes.bridge import Bridge, FlowPrediction, checked_ends
from scorelab.processes.gammas import Brownian, Gamma
from scorelab.processes.paths import Coefficients, Linear, Path
from scorelab.processes.predictions import HasDenoised, HasLatent, HasScore
from scorelab.pytrees import computed, content
from scorelab.validation import require_number, require_shape, require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PathPrediction(FlowPrediction, HasDenoised):
    """That of an interpolant without latent noise, whose velocity says where the point came from."""

    process: StochasticInterpolant = field(metadata={"static": True})

    @computed
    def denoised(self) -> Float[Array, " batch *event"]:
        """``D``, from ``y`` and ``u``."""
        return _ends(self, self.y, self.velocity)[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class InterpolantPrediction(FlowPrediction, HasLatent, HasScore, HasDenoised):
    r"""That of an interpolant with latent noise: the velocity, and the mean of the noise.

    Attributes:
        eta: :math:`\eta = E[z\mid y_t]`, shaped like ``y``.
    """

    eta: Array
    process: StochasticInterpolant = field(metadata={"static": True})

    @computed
    def score(self) -> Float[Array, " batch *event"]:
        r""":math:`\nabla\log p_t = -\eta/\gamma_t`; not a number where :math:`\gamma_t` is 0, at the ends."""
        return -self.eta / per_example(self.process.gamma.gamma(self.t), self.eta)

    @computed
    def denoised(self) -> Float[Array, " batch *event"]:
        """``D``, from ``y``, ``u`` and ``eta``."""
        gamma = per_example(self.process.gamma.gamma(self.t), self.y)
        slope = self.process._slope(jnp.asarray(self.t, self.y.dtype), self.y)
        return _ends(self, self.y - gamma * self.eta, self.velocity - slope * self.eta)[0]


def _ends(prediction: PathPrediction | InterpolantPrediction, m: Array, v: Array) -> tuple[Array, Array]:
    process, t = prediction.process, prediction.t
    return process.path.ends(process.coefficients(t).like(prediction.y), m, v, t)


@dataclass(frozen=True, kw_only=True, eq=False)
class StochasticInterpolant(Bridge):
    r"""A bridge from any data to any base, through noise of a chosen size.

    Attributes:
        path: :math:`\alpha` and :math:`\beta` (:mod:`scorelab.processes.paths`).
        gamma: the latent noise (:mod:`scorelab.processes.gammas`).
        base: the law at ``t = 1``: a law of :mod:`scorelab.densities`, or points ``(n, *event)`` that are drawn with replacement,
            also as a data set of floating point points or its training split. None under a path with the data at both ends. Bases
            of equal numbers are equal.
        coupling: how data and base are joined (:mod:`scorelab.data`); None, as ``Independent()``, for independently.
        margin: training keeps this far from both ends, where the target of a steep gamma is infinite.

    Raises:
        ValueError: a path that does not lead from one end to the other under this gamma; a base that is none, or a law on a
            manifold (:class:`scorelab.processes.Geodesic` takes those); a coupling with the distances of a manifold.
    """

    path: Path = field(default_factory=Linear)
    gamma: Gamma = field(default_factory=Brownian)
    base: Any = None
    coupling: Any = None
    margin: float = 1e-5

    def __post_init__(self):
        require_spec(self, Path, path=self.path)
        require_spec(self, Gamma, gamma=self.gamma)
        require_number(self, 0.0, 0.1, margin=self.margin)
        self.path.check(self.gamma)
        if self.path.two_sided == (self.base is None):
            wanted = "a law, or points (n, *event)" if self.path.two_sided else "None, since the data are at both ends"
            raise ValueError(f"StochasticInterpolant.base = {self.base!r} with {self.path!r}: expected {wanted}")
        if not self.path.two_sided and self.joined:
            raise ValueError(
                f"StochasticInterpolant.coupling = {self.coupling!r} with {self.path!r}: expected None, with the data at both ends"
            )
        checked_ends(self)
        if self.deterministic_base and not self.gamma.steep:
            raise ValueError(
                f"{self.coupling!r} with {self.gamma!r}: expected a gamma that is steep at the ends, such as gammas.Brownian(), "
                "whose noise leaves the point before the data are seen"
            )
        if self.coupling is not None and self.coupling.hole is not None and not isinstance(self.path, Linear):
            raise ValueError(
                f"{self.coupling!r} with {self.path!r}: expected paths.Linear(), on which what is known stays as it is"
            )
        # A law holds arrays; specs are compared by what is in them.
        object.__setattr__(self, "_content", (type(self), self.path, self.gamma, content(self.base), self.coupling, self.margin))

    def __eq__(self, other):
        return isinstance(other, StochasticInterpolant) and self._content == other._content  # pyright: ignore

    def __hash__(self):
        return hash(self._content)  # pyright: ignore

    @property
    def silent(self) -> bool:
        """Whether gamma is zero at all times."""
        return self.gamma.silent

    @property
    def steep(self) -> bool:
        """As gamma."""
        return self.gamma.steep

    def shares_base(self, other: StochasticInterpolant) -> bool:
        """Whether the other begins at an equal base."""
        return self.base is other.base or self._content[3] == other._content[3]  # pyright: ignore

    def require_flow(self, where: str) -> None:
        """Raise ``ValueError`` where the base is a point, from which the flow leads to one point for each condition."""
        if self.deterministic_base:
            raise ValueError(
                f"{where} under {self.coupling!r}: expected solvers.InterpolantSDE(), since the flow from a base without noise of "
                "its own returns one point for each condition"
            )

    def coefficients(self, t: Time) -> Coefficients:
        """Of path and gamma at ``t``."""
        return self.path.coefficients(t, self.gamma)

    def between(self, key, x, w, t):
        """:meth:`noised` with fresh latent noise."""
        return self.noised(jax.random.normal(key, x.shape, x.dtype), x, w, t)

    def noised(
        self, z: Float[Array, " batch *event"], x: Float[Array, " batch *event"], w: Float[Array, " batch *event"], t: BatchTime
    ) -> Noised:
        """:meth:`perturb` with given noise ``z``, data ``x`` and base ``w``; ``noise`` of the result is ``(w, z)``."""
        require_shape("noised.z", z, x)
        require_shape("noised.w", w, x)
        self.check_times("noised.t", t)
        t = jnp.asarray(t, x.dtype)
        c = self.coefficients(t).like(x)
        return Noised(y=c.alpha * x + c.beta * w + c.gamma * z, y0=x, noise=(w, z), t=t)

    def mirrored(self, noised):
        w, z = noised.noise
        return self.noised(-z, noised.y0, w, noised.t).y

    def rates(self, noised):
        r""":math:`v = \dot\alpha x + \dot\beta w` and :math:`\dot\gamma`."""
        (w, _), x = noised.noise, noised.y0
        c = self.coefficients(per_example(noised.t, x)).like(x)
        return c.d_alpha * x + c.d_beta * w, c.slope

    def seen(self, y, t, data_std, base_std):
        r""":math:`y/\sqrt{\alpha^2 s^2+\beta^2 s_w^2+\gamma^2}`."""
        c = self.coefficients(t)
        scale = 1 / jnp.sqrt((c.alpha * data_std) ** 2 + (c.beta * base_std) ** 2 + c.gamma**2)
        return per_example(scale, y) * y

    def predict(
        self, y: Float[Array, " batch *event"], t: BatchTime, *, velocity: Array | None = None, eta: Array | None = None,
        path_velocity: Array | None = None, score: Array | None = None,
    ) -> FlowPrediction:  # fmt: skip
        r"""The prediction from its forms: one of ``velocity`` and ``path_velocity``, and one of ``eta`` and ``score``.

        .. math:: u = v + \dot\gamma\,\eta = v - \gamma\dot\gamma\,\nabla\log p_t,\qquad \eta = -\gamma\,\nabla\log p_t .

        From a score the velocity is finite at the ends too. Without latent noise there is no ``eta``. Every form is cast to the
        dtype of ``y``; ValueError for another shape.
        """
        forms = dict(velocity=velocity, path_velocity=path_velocity, eta=eta, score=score)
        given = {name: value for name, value in forms.items() if value is not None}
        moving, noisy = ([name for name in given if name in pair] for pair in (("velocity", "path_velocity"), ("eta", "score")))
        if len(moving) != 1 or len(noisy) > 1 or (moving == ["path_velocity"] and not noisy and not self.gamma.silent):
            raise ValueError(
                f"predict was given {sorted(given) or 'nothing'}: expected velocity, or path_velocity with eta or score"
            )
        self.check_times("predict.t", t)
        for name, value in given.items():
            require_shape(f"predict.{name}", value, y)
            given[name] = jnp.asarray(value).astype(y.dtype)
        t = jnp.asarray(t, y.dtype)
        if self.gamma.silent:
            return PathPrediction(y=y, velocity=given[moving[0]], t=t, process=self)
        c = self.coefficients(t).like(y)
        latent = given.get("eta", -c.gamma * given["score"] if "score" in given else None)
        if latent is None:
            return FlowPrediction(y=y, velocity=given[moving[0]], t=t, process=self)
        if moving == ["velocity"]:
            u = given["velocity"]
        else:
            u = given["path_velocity"] + (-c.rate * given["score"] if "score" in given else self._slope(t, y) * latent)
        return InterpolantPrediction(y=y, velocity=u, eta=latent, t=t, process=self)

    def _slope(self, t: Array, y: Array) -> Array:
        r""":math:`\dot\gamma`, as far from the ends as training goes: with :math:`\eta\to 0` its product has a limit there."""
        t = jnp.clip(t, self.margin, 1 - self.margin) if self.gamma.steep else t
        return per_example(self.gamma.slope(t), y)
