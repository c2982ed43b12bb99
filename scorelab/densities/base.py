"""What a law is: it can be sampled, evaluated, and noised by a process in closed form."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from scorelab.arrays import Array, Key, Scalar, is_traced
from scorelab.processes.charts import Chart
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.validation import owner, require_real

T = TypeVar("T")


class Unnormalised(abc.ABC):
    """A law over points of shape ``event`` whose density is known up to a constant; a pytree whose leaves are its parameters."""

    @property
    @abc.abstractmethod
    def event(self) -> tuple[int, ...]:
        """The shape of one point."""

    @abc.abstractmethod
    def log_prob(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch"]:
        """Log density at ``x`` ``(batch, *event)``, up to a constant, shape ``(batch,)``."""

    def score(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch *event"]:
        r""":math:`\nabla_x\log p(x)`, shaped like ``x``."""
        return jax.grad(lambda z: jnp.sum(self.log_prob(z)))(x)


class Density(Unnormalised):
    """A law with a normalised density, which can be sampled and noised.

    A new law needs ``event``, ``sample``, ``log_prob`` and ``noised``.
    """

    @abc.abstractmethod
    def sample(self, key: Key, n: int) -> Float[jax.Array, " {n} *event"]:
        """``n`` independent points, ``(n, *event)``."""

    @abc.abstractmethod
    def log_prob(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch"]:
        """Log density at ``x`` ``(batch, *event)``, shape ``(batch,)``."""

    @abc.abstractmethod
    def noised(self, process: LinearGaussian, t: Scalar) -> Density:
        r"""The law of :math:`y_t = \alpha_t y_0 + b_t + \sigma_t\epsilon` in the chart, for a scalar ``t``."""

    def in_chart(self, chart: Chart) -> Density:
        """The law of ``chart(x)``. A law is one of chart points and stays itself, unless it says otherwise."""
        return self

    def matched(self) -> Density | None:
        """The Gaussian with the mean and the covariance of the law, None where they have no closed form here."""
        return None

    def scale(self) -> tuple[float, float] | None:
        """Root mean square of the mean and of the deviation, per element, on the host; None where that takes more than a look."""
        return None

    def denoise(self, process: LinearGaussian, y: Float[Array, " batch *event"], t: Scalar) -> Float[Array, " batch *event"]:
        r""":math:`E[y_0\mid y_t] = (y_t - b_t + \sigma_t^2\nabla\log p_t(y_t))/\alpha_t` (Tweedie)."""
        score = self.noised(process, t).score(y)
        return (y - process.offset(t) + process.sigma(t) ** 2 * score) / process.alpha(t)


def check_points(law: Unnormalised, x: Array) -> jax.Array:
    """Raise ``ValueError`` unless ``x`` is real ``(batch, *event)``; return it as a JAX array."""
    require_real(f"{type(law).__name__}: points", x)
    x = jnp.asarray(x)
    if x.shape[1:] != law.event or x.ndim == 0:
        raise ValueError(f"{type(law).__name__} got points of shape {x.shape}: expected (batch, {', '.join(map(str, law.event))})")
    return x


def check_numbers(law: object, **fields: ArrayLike) -> None:
    """Raise ``ValueError`` naming the first field that has a value that is not a finite real number; traced values pass.

    Host numbers are looked at in the default float type, in which the law keeps them.
    """
    for name, value in fields.items():
        if is_traced(value):
            continue
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            continue
        numbers = np.asarray(value)
        require_real(f"{owner(law)}.{name}", numbers)
        if not isinstance(value, jax.Array):
            with np.errstate(over="ignore"):
                numbers = numbers.astype(jnp.result_type(float))
        if bad := np.count_nonzero(~np.isfinite(numbers)):
            raise ValueError(f"{owner(law)}.{name} has {bad} values that are not finite in {numbers.dtype}: expected none")


def check_variances(law: object, **fields: ArrayLike) -> None:
    """:func:`check_numbers`, and nothing below zero."""
    check_numbers(law, **fields)
    for name, value in fields.items():
        if is_traced(value):
            continue
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            continue
        if (least := np.min(np.asarray(value), initial=0.0)) < 0:
            raise ValueError(f"{owner(law)}.{name} has the value {least:g}: expected variances, none below 0")


def require_known(law: object, **fields: Array | float) -> None:
    """Raise ``ValueError`` naming the first field that is traced, of a law that is made on the host."""
    for name, value in fields.items():
        if is_traced(value):
            raise ValueError(
                f"{owner(law)}.{name} is traced: expected numbers, since covariances are decomposed on the host; "
                "Gaussian.diagonal takes traced ones"
            )


def law_pytree(*leaves: str, static: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """Class decorator: a pytree rebuilt field by field, past the constructor (which validates real numbers)."""

    def register(cls: type[T]) -> type[T]:
        def flatten(law):
            return tuple(getattr(law, name) for name in leaves), tuple(getattr(law, name) for name in static)

        def unflatten(meta, data):
            law = object.__new__(cls)
            for name, value in zip((*leaves, *static), (*data, *meta), strict=True):
                setattr(law, name, value)
            return law

        jax.tree_util.register_pytree_node(cls, flatten, unflatten)
        return cls

    return register


def as_parameter(value: Array | float) -> jax.Array:
    """JAX arrays and tracers stay as they are; host numbers become arrays of the default float type."""
    return value if isinstance(value, jax.Array) else jnp.asarray(np.asarray(value), jnp.result_type(float))
