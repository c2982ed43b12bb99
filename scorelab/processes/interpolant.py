r"""Stochastic interpolants: bridges between any two laws, with latent noise (Albergo, Boffi, Vanden-Eijnden, arXiv 2303.08797).

.. math:: y_t = \alpha_t x + \beta_t w + \gamma_t z,\qquad x\sim\text{data},\quad w\sim\text{base},\quad z\sim N(0, I),

with data at ``t = 0`` and the base at ``t = 1``, as everywhere in this library. Given :math:`y_t = y`,

.. math:: D = E[x\mid y],\quad W = E[w\mid y],\quad \eta = E[z\mid y],\quad \nabla\log p_t = -\eta/\gamma,

.. math:: v = \dot\alpha D + \dot\beta W,\qquad u = E[\dot y_t\mid y] = v + \dot\gamma\,\eta = v - \gamma\dot\gamma\,\nabla\log p_t,
          \qquad \partial_t p + \nabla\!\cdot(u\,p) = 0 .

The paper's time is :math:`1-t`, and its drift ``b`` is :math:`-u`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from scorelab.arrays import Array, BatchTime, Key, Time, per_example
from scorelab.processes.base import Noised, Process, Start
from scorelab.processes.charts import Chart, Identity
from scorelab.processes.gammas import Brownian, Gamma
from scorelab.processes.paths import Coefficients, Linear, Path
from scorelab.processes.predictions import HasDenoised, HasLatent, HasScore, HasVelocity
from scorelab.pytrees import computed, content
from scorelab.validation import require_number, require_real, require_shape, require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FlowPrediction(HasVelocity):
    """What is known of an interpolant from its velocity alone.

    Attributes:
        y: the point, ``(batch, *event)``.
        velocity: ``u``, shaped like ``y``.
        t: scalar or ``(batch,)``.
        process: the process it belongs to (static).
    """

    y: Array
    velocity: Array
    t: Array
    process: StochasticInterpolant = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PathPrediction(FlowPrediction, HasDenoised):
    """That of an interpolant without latent noise, whose velocity says where the point came from."""

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


def _ends(prediction: FlowPrediction, m: Array, v: Array) -> tuple[Array, Array]:
    process, t = prediction.process, prediction.t
    return process.path.ends(process.coefficients(t).like(prediction.y), m, v, t)


@dataclass(frozen=True, kw_only=True, eq=False)
class StochasticInterpolant(Process):
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
        ValueError: a path that does not lead from one end to the other under this gamma; a base that is none.
    """

    path: Path = field(default_factory=Linear)
    gamma: Gamma = field(default_factory=Brownian)
    base: Any = None
    coupling: Any = None
    margin: float = 1e-5

    def __post_init__(self):
        require_spec(self, Path, path=self.path)
        require_spec(self, Gamma, gamma=self.gamma)
        for name in ("base", "coupling"):
            if isinstance(getattr(self, name), type):
                raise TypeError(f"StochasticInterpolant.{name} = {getattr(self, name)!r}: expected an object, and not its class")
        require_number(self, 0.0, 0.1, margin=self.margin)
        self.path.check(self.gamma)
        if self.path.two_sided == (self.base is None):
            wanted = "a law, or points (n, *event)" if self.path.two_sided else "None, since the data are at both ends"
            raise ValueError(f"StochasticInterpolant.base = {self.base!r} with {self.path!r}: expected {wanted}")
        if self.coupling is not None and not callable(getattr(self.coupling, "partners", None)):
            raise TypeError(f"StochasticInterpolant.coupling = {self.coupling!r}: expected a coupling of scorelab.data, or None")
        if self.deterministic_base and not self.gamma.steep:
            raise ValueError(
                f"{self.coupling!r} with {self.gamma!r}: expected a gamma that is steep at the ends, such as gammas.Brownian(), "
                "whose noise leaves the point before the data are seen"
            )
        if self.coupling is not None and self.coupling.hole is not None and not isinstance(self.path, Linear):
            raise ValueError(
                f"{self.coupling!r} with {self.path!r}: expected paths.Linear(), on which what is known stays as it is"
            )
        if self.base is not None and not self.has_law:
            object.__setattr__(self, "base", _points(self.base))
            require_real("StochasticInterpolant.base", self.base)
            points = np.asarray(self.base)
            if points.ndim < 2 or not len(points) or not np.all(np.isfinite(points)):
                raise ValueError(f"StochasticInterpolant.base has shape {points.shape}: expected finite points (n, *event), n >= 1")
        # A law holds arrays; specs are compared by what is in them.
        object.__setattr__(self, "_content", (type(self), self.path, self.gamma, content(self.base), self.coupling, self.margin))

    def __eq__(self, other):
        return isinstance(other, StochasticInterpolant) and self._content == other._content  # pyright: ignore

    def __hash__(self):
        return hash(self._content)  # pyright: ignore

    @property
    def joined(self) -> bool:
        """Whether data and base depend on one another, so that a batch has to bring both."""
        return self.coupling is not None and not self.coupling.independent

    @property
    def deterministic_base(self) -> bool:
        """Whether the base is a point once the condition is known, where velocity and score are infinite."""
        return self.coupling is not None and self.coupling.deterministic

    def require_flow(self, where: str) -> None:
        """Raise ``ValueError`` where the base is a point, from which the flow leads to one point for each condition."""
        if self.deterministic_base:
            raise ValueError(
                f"{where} under {self.coupling!r}: expected solvers.InterpolantSDE(), since the flow from a base without noise of "
                "its own returns one point for each condition"
            )

    @property
    def has_law(self) -> bool:
        """Whether the base is a law with a density; points have none."""
        return callable(getattr(self.base, "sample", None)) and callable(getattr(self.base, "log_prob", None))

    @computed
    def t_min(self) -> float:
        """The data, where sampling ends."""
        return 0.0

    @computed
    def t_max(self) -> float:
        """The base, where sampling begins."""
        return 1.0

    @property
    def chart(self) -> Chart:
        """Points move in data space."""
        return Identity()

    @property
    def domain(self) -> tuple[float, float]:
        """From the data to the base."""
        return 0.0, 1.0

    def coefficients(self, t: Time) -> Coefficients:
        """Of path and gamma at ``t``."""
        return self.path.coefficients(t, self.gamma)

    def encode(self, x: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """``x`` itself; ValueError for what is not real numbers."""
        require_real("encode.x", x)
        return x

    def perturb(self, key: Key, batch: Float[Array, " batch *event"], t: BatchTime) -> Noised:
        """Noise data with a base of its own for each; ValueError under a coupling, whose pairs a batch has to bring."""
        if self.joined:
            raise ValueError(
                f"perturb under {self!r}: expected pairs of data and base from its coupling, as batches of scorelab.data.Coupled "
                "have them; noised(z, x, w, t) takes them"
            )
        x = jnp.asarray(batch)
        key_base, key_noise = jax.random.split(key)
        w = x if self.base is None else self.draw_base(jax.random.split(key_base, len(x)), x.shape[1:], x.dtype)
        return self.noised(jax.random.normal(key_noise, x.shape, x.dtype), x, w, t)

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

    def draw_base(self, keys: Key, event: tuple[int, ...], dtype: Any) -> Float[Array, " batch *event"]:
        """One point of the base for each key, ``(batch, *event)``."""
        return _drawn(self.base, keys, event, dtype)

    def prior(self) -> Start:
        """The base; ValueError under a path that has the data there."""
        if self.base is None:
            raise ValueError(f"{self!r} has the data at both ends: expected start=, such as starts.Fixed(points)")
        return Base(jax.tree.map(jnp.asarray, self.base))

    def predict(
        self, y: Float[Array, " batch *event"], t: BatchTime, *, velocity: Array | None = None, eta: Array | None = None,
        path_velocity: Array | None = None, score: Array | None = None,
    ) -> FlowPrediction:  # fmt: skip
        r"""The prediction from its forms: one of ``velocity`` and ``path_velocity``, and one of ``eta`` and ``score``.

        .. math:: u = v + \dot\gamma\,\eta,\qquad \eta = -\gamma\,\nabla\log p_t .

        Without latent noise there is no ``eta``. Every form is cast to the dtype of ``y``; ValueError for another shape.
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
        u = given[moving[0]] if moving == ["velocity"] else given["path_velocity"] + self._slope(t, y) * latent
        return InterpolantPrediction(y=y, velocity=u, eta=latent, t=t, process=self)

    def _slope(self, t: Array, y: Array) -> Array:
        r""":math:`\dot\gamma`, as far from the ends as training goes: with :math:`\eta\to 0` its product has a limit there."""
        t = jnp.clip(t, self.margin, 1 - self.margin) if self.gamma.steep else t
        return per_example(self.gamma.slope(t), y)

    def checked(self, name: str, prediction: FlowPrediction, y: Float[Array, " batch *event"]) -> FlowPrediction:
        """See :class:`Process`: every part has the shape of ``y`` and becomes of its dtype."""
        if not isinstance(prediction, FlowPrediction):
            raise TypeError(f"{name} returned a {type(prediction).__name__}: expected a FlowPrediction, as its process has them")
        parts = ("y", "velocity", *(("eta",) if isinstance(prediction, InterpolantPrediction) else ()))
        for part in parts:
            require_shape(f"{name}: {part}", getattr(prediction, part), y)
        if jnp.shape(prediction.t) not in ((), y.shape[:1]):
            raise ValueError(
                f"{name}: t has shape {jnp.shape(prediction.t)} for y of shape {y.shape}: expected () or {y.shape[:1]}"
            )
        cast = {part: jnp.asarray(getattr(prediction, part)).astype(y.dtype) for part in parts}
        return dataclasses.replace(prediction, **cast, t=jnp.asarray(prediction.t, y.dtype))


def _points(base: Any) -> Any:
    """The points of a data set or of one of its splits; other bases as they are. ValueError for stored values, such as pixels."""
    found = base.load("train") if callable(getattr(base, "load", None)) else base
    if found is base and not hasattr(found, "x"):
        return base
    if not np.issubdtype((points := np.asarray(found.x)).dtype, np.floating):
        raise ValueError(
            f"StochasticInterpolant.base is a data set of {points.dtype}: expected floating point points on the scale of the data, "
            "such as transform.encode(arrays.x)"
        )
    return points


def _drawn(base: Any, keys: Key, event: tuple[int, ...], dtype: Any) -> Array:
    if callable(getattr(base, "sample", None)):
        points = jax.vmap(lambda key: base.sample(key, 1)[0])(keys)
    else:
        rows = jnp.asarray(base)
        points = rows[jax.vmap(lambda key: jax.random.randint(key, (), 0, len(rows)))(keys)]
    if points.shape[1:] != tuple(event):
        raise ValueError(f"the base of a StochasticInterpolant has points of shape {points.shape[1:]}: expected {tuple(event)}")
    return points.astype(dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Base(Start):
    """The base of an interpolant, at its time 1.

    Args:
        law: as :attr:`StochasticInterpolant.base`; its numbers are leaves.
    """

    law: Any

    def check(self, count: int, event: Any, process: Any) -> None:
        require_spec("starts.Base", StochasticInterpolant, process=process)
        super().check(count, event, process)

    def check_arrays(self, count: int, event: Any) -> None:
        found = tuple(getattr(self.law, "event", None) or jnp.shape(self.law)[1:])
        if found != tuple(event):
            raise ValueError(
                f"the base of a StochasticInterpolant has points of shape {found}: expected {tuple(event)}, as sampled"
            )

    def on_grid(self, process: Any, times: np.ndarray) -> tuple[Start, np.ndarray]:
        """Itself on a grid that begins at 1; ValueError for another, where the law is not the base."""
        if times[0] != 1:
            raise ValueError(
                f"the base of {process!r} on a grid that begins at t = {times[0]:.6g}: expected t = 1, or another start"
            )
        return self, times

    def suit(self, where: str, model: Any, t: float, cond: Any = None) -> None:
        """ValueError under a condition where the base rows belong to those of the data."""
        coupling = model.process.coupling
        if coupling is not None and coupling.hole is not None:
            raise ValueError(
                f"{where}.start = None under {coupling!r}: expected start=starts.Fixed(w), what is known with noise in the hole"
            )
        if cond is not None and coupling is not None and coupling.paired:
            raise ValueError(
                f"{where}.start = None under {coupling!r} and a condition: expected start=starts.Fixed(rows), the base rows "
                "of these conditions"
            )

    def draw(self, keys: Key, ids: Int[Array, " batch"], process: Any, t: Array, event: Any) -> Float[Array, " batch *event"]:
        return _drawn(self.law, keys, event, t.dtype)

    def log_prob(self, y: Float[Array, " batch *event"], process: Any, t: Array | float) -> Float[Array, " batch"]:
        """The log-density of the base, ``(batch,)``; ValueError where it is points."""
        if not callable(getattr(self.law, "log_prob", None)):
            raise ValueError("the base of this StochasticInterpolant is points, which have no density: expected a law of densities")
        return self.law.log_prob(y)
