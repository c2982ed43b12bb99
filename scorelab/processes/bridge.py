"""Processes between any two laws: data at time 0, a base at time 1, and how the two are joined."""

from __future__ import annotations

import abc
import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from scorelab.arrays import Array, BatchTime, Key
from scorelab.processes.base import Noised, Process, Start
from scorelab.processes.charts import Chart, Identity
from scorelab.processes.predictions import HasLatent, HasVelocity
from scorelab.processes.spaces import Euclidean
from scorelab.pytrees import computed
from scorelab.validation import require_real, require_shape, require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FlowPrediction(HasVelocity):
    """What is known of such a process from its velocity alone.

    Attributes:
        y: the point, ``(batch, *event)``.
        velocity: ``u``, shaped like ``y``.
        t: scalar or ``(batch,)``.
        process: the process it belongs to (static).
    """

    y: Array
    velocity: Array
    t: Array
    process: Bridge = field(metadata={"static": True})


class Bridge(Process):
    """A process from data at ``t = 0`` to a base at ``t = 1``; a new one states ``silent``, ``between``, ``rates``, ``predict``.

    Attributes:
        base: the law at ``t = 1``, or points ``(n, *event)`` that are drawn with replacement.
        coupling: how data and base are joined (:mod:`scorelab.data`); None for independently.
        margin: training keeps this far from both ends.
    """

    margin: float = 0.0

    base: Any
    coupling: Any

    @property
    @abc.abstractmethod
    def silent(self) -> bool:
        """Whether there is no latent noise, so that points move on the path between the ends."""

    @property
    def steep(self) -> bool:
        """Whether the target of the velocity is infinite at the ends."""
        return False

    @abc.abstractmethod
    def between(self, key: Key, x: Float[Array, " batch *event"], w: Float[Array, " batch *event"], t: BatchTime) -> Noised:
        """The points at ``t`` between data ``x`` and base ``w``; ``noise`` of the result is ``(w, z)`` with the latent noise."""

    def mirrored(self, noised: Noised) -> Array:
        """The points of :meth:`between` with the negative latent noise; the same where there is none."""
        return noised.y

    @abc.abstractmethod
    def rates(self, noised: Noised) -> tuple[Array, Array | float]:
        """``v`` and the slope ``c`` of the rate :math:`dy/dt = v + c z` of the points of :meth:`between`."""

    @abc.abstractmethod
    def predict(self, y: Float[Array, " batch *event"], t: BatchTime, *, velocity: Array) -> FlowPrediction:
        """The prediction of a velocity."""

    def weights(self, noised: Noised) -> Array | float:
        """1 where the path between two ends is known, 0 where it is not, ``(batch,)``."""
        return 1.0

    def retract(self, y: Float[Array, " batch *event"]) -> Float[jax.Array, " batch *event"]:
        """The nearest points of the space."""
        return jnp.asarray(y)

    def seen(self, y: Float[Array, " batch *event"], t: Array, data_std: float, base_std: float) -> Array:
        """What a network is shown of ``y`` at ``t``, scalar or ``(batch,)``, for ends of these deviations."""
        return y

    def answer(self, y: Float[Array, " batch *event"], output: Array) -> Array:
        """What the output of a network, shaped like :meth:`seen`, says of ``y``."""
        return output

    @property
    def joined(self) -> bool:
        """Whether data and base depend on one another, so that a batch has to bring both."""
        return self.coupling is not None and not self.coupling.independent

    @property
    def paired(self) -> bool:
        """Whether the data have a base of their own, which belongs to their conditions too."""
        return self.coupling is not None and self.coupling.paired

    @property
    def deterministic_base(self) -> bool:
        """Whether the base is a point once the condition is known, where velocity and score are infinite."""
        return self.coupling is not None and self.coupling.deterministic

    def require_spread(self, where: str) -> None:
        """Raise ``ValueError`` where the base is a point for each condition, from which no density leads to the data."""
        if self.deterministic_base:
            raise ValueError(
                f"{where} under {self.coupling!r}: expected a base with noise of its own, since a point for each condition has no "
                "density that a likelihood could begin with"
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

    def encode(self, x: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """``x`` itself; ValueError for what is not real numbers."""
        require_real("encode.x", x)
        return x

    def perturb(self, key: Key, batch: Float[Array, " batch *event"], t: BatchTime) -> Noised:
        """Noise data with a base of its own for each; ValueError under a coupling, whose pairs a batch has to bring."""
        if self.joined:
            raise ValueError(
                f"perturb under {self!r}: expected pairs of data and base from its coupling, as batches of scorelab.data.Coupled "
                "have them; between(key, x, w, t) takes them"
            )
        x = jnp.asarray(batch)
        key_base, key_noise = jax.random.split(key)
        w = x if self.base is None else self.draw_base(jax.random.split(key_base, len(x)), x.shape[1:], x.dtype)
        return self.between(key_noise, x, w, t)

    def draw_base(self, keys: Key, event: tuple[int, ...], dtype: Any) -> Float[Array, " batch *event"]:
        """One point of the base for each key, ``(batch, *event)``."""
        return _drawn(self.base, keys, event, dtype)

    def prior(self) -> Start:
        """The base; ValueError for a process that has none."""
        if self.base is None:
            raise ValueError(f"{self!r} has the data at both ends: expected start=, such as starts.Fixed(points)")
        return Base(jax.tree.map(jnp.asarray, self.base))

    def checked(self, name: str, prediction: FlowPrediction, y: Float[Array, " batch *event"]) -> FlowPrediction:
        """See :class:`Process`: every part has the shape of ``y`` and becomes of its dtype."""
        if not isinstance(prediction, FlowPrediction):
            raise TypeError(f"{name} returned a {type(prediction).__name__}: expected a FlowPrediction, as its process has them")
        parts = ("y", "velocity", *(("eta",) if isinstance(prediction, HasLatent) else ()))
        for part in parts:
            require_shape(f"{name}: {part}", getattr(prediction, part), y)
        if jnp.shape(prediction.t) not in ((), y.shape[:1]):
            raise ValueError(
                f"{name}: t has shape {jnp.shape(prediction.t)} for y of shape {y.shape}: expected () or {y.shape[:1]}"
            )
        cast = {part: jnp.asarray(getattr(prediction, part)).astype(y.dtype) for part in parts}
        return dataclasses.replace(prediction, **cast, t=jnp.asarray(prediction.t, y.dtype))


def checked_ends(process: Bridge) -> None:
    """Check base and coupling of a new process, and bring points into the form of an array.

    Raises:
        TypeError: a class in the place of an object; a coupling that is none.
        ValueError: a base that is neither a law nor finite points ``(n, *event)``; a law on another space than that of the process;
            a coupling that measures distances as in another space.
    """
    where = type(process).__name__
    for name in ("base", "coupling"):
        if isinstance(getattr(process, name), type):
            raise TypeError(f"{where}.{name} = {getattr(process, name)!r}: expected an object, and not its class")
    if process.coupling is not None and not callable(getattr(process.coupling, "partners", None)):
        raise TypeError(f"{where}.coupling = {process.coupling!r}: expected a coupling of scorelab.data, or None")
    space = getattr(process, "space", Euclidean())
    if process.coupling is not None and (measured := process.coupling.measures_in) not in (None, space):
        raise ValueError(
            f"{where}.coupling = {process.coupling!r} has the distances of {measured!r} under points of {space!r}: expected "
            + ("the default cost" if space == Euclidean() else "data.Assignment(cost=spaces.SquaredDistance(space)) of this space")
            + ", or a coupling without distances"
        )
    if process.has_law and (theirs := getattr(process.base, "space", Euclidean())) != space:
        raise ValueError(f"{where}.base = {process.base!r} is a law on {theirs!r}: expected one on {space!r}")
    if process.base is None or process.has_law:
        return
    object.__setattr__(process, "base", _points(where, process.base))
    require_real(f"{where}.base", process.base)
    points = np.asarray(process.base)
    if points.ndim < 2 or not len(points) or not np.all(np.isfinite(points)):
        raise ValueError(f"{where}.base has shape {points.shape}: expected finite points (n, *event), n >= 1")


def _points(where: str, base: Any) -> Any:
    """The points of a data set or of one of its splits; other bases as they are. ValueError for stored values, such as pixels."""
    found = base.load("train") if callable(getattr(base, "load", None)) else base
    if found is base and not hasattr(found, "x"):
        return base
    if not np.issubdtype((points := np.asarray(found.x)).dtype, np.floating):
        raise ValueError(
            f"{where}.base is a data set of {points.dtype}: expected floating point points on the scale of the data, "
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
        raise ValueError(f"the base of the process has points of shape {points.shape[1:]}: expected {tuple(event)}")
    return points.astype(dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Base(Start):
    """The base of a process from data to a base, at its time 1.

    Args:
        law: as :attr:`Bridge.base`; its numbers are leaves.
    """

    law: Any

    def check(self, count: int, event: Any, process: Any) -> None:
        require_spec("starts.Base", Bridge, process=process)
        super().check(count, event, process)

    def check_arrays(self, count: int, event: Any) -> None:
        found = tuple(getattr(self.law, "event", None) or jnp.shape(self.law)[1:])
        if found != tuple(event):
            raise ValueError(f"the base of the process has points of shape {found}: expected {tuple(event)}, as sampled")

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
        if coupling is not None and coupling.noise and not model.process.has_law:
            raise ValueError(
                f"{where}.start = None under {coupling!r}: expected start=starts.Fixed(w), base rows with noise of this deviation"
            )
        if model.process.paired and (cond is not None or getattr(model, "cond", None) is not None):
            raise ValueError(
                f"{where}.start = None under {coupling!r} and a condition: expected start=starts.Fixed(rows), the base rows "
                "of these conditions, or for a likelihood a start that is their law"
            )

    def draw(self, keys: Key, ids: Int[Array, " batch"], process: Any, t: Array, event: Any) -> Float[Array, " batch *event"]:
        return _drawn(self.law, keys, event, t.dtype)

    def log_prob(self, y: Float[Array, " batch *event"], process: Any, t: Array | float) -> Float[Array, " batch"]:
        """The log-density of the base, ``(batch,)``; ValueError where it is points."""
        if not callable(getattr(self.law, "log_prob", None)):
            raise ValueError("the base of this process is points, which have no density: expected a law of densities")
        return self.law.log_prob(y)
