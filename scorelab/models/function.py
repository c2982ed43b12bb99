"""Models from any function of (y, t, cond) that a user brings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from scorelab.arrays import Array, Pytree
from scorelab.models.base import Model, model_name, require_model
from scorelab.models.denoiser import require_signal
from scorelab.processes.base import Process
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.pytrees import is_model_pytree
from scorelab.validation import require_choice, require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FunctionModel:
    r"""A model from any JAX function ``fn(y, t, cond)`` that returns one form of the prediction, or the prediction itself.

    Args:
        fn: the function (static: pass the same object again, not a new lambda, or the sampler recompiles).
        process: the forward process (static).
        returns: what ``fn`` returns: ``"denoised"``, ``"eps"``, ``"score"`` (of the chart), ``"velocity"`` or ``"stein"``
            (the score in data space), for a linear-Gaussian process; or ``"prediction"``, of any process. ``"eps"`` and the
            scores are refused under a process with :math:`\alpha = 0` at its ``t_max``.
    """

    fn: Callable[[Array, Array | float, Pytree], Any] = field(metadata={"static": True})
    process: Any = field(metadata={"static": True})
    returns: Literal["denoised", "eps", "score", "velocity", "stein", "prediction"] = field(
        default="denoised", metadata={"static": True}
    )

    def __post_init__(self):
        require_spec(self, Process, process=self.process)
        if not callable(self.fn):
            raise TypeError(f"FunctionModel.fn = {self.fn!r}: expected a function of (y, t, cond)")
        require_choice(self, ("denoised", "eps", "score", "velocity", "stein", "prediction"), returns=self.returns)
        if self.returns != "prediction" and not isinstance(self.process, LinearGaussian):
            raise TypeError(
                f"FunctionModel.returns = {self.returns!r} under {self.process!r}: expected 'prediction' there, of a function that "
                "returns process.predict(y, t, ...), since other forms are of a LinearGaussian"
            )
        if self.returns in ("eps", "score", "stein"):
            require_signal(f"FunctionModel.returns = {self.returns!r}", self.process)

    @property
    def __name__(self) -> str:
        """That of the function, by which messages name the model."""
        return model_name(self.fn)

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> Any:
        """Predict for ``y`` of shape ``(batch, *event)``."""
        value = self.fn(y, t, cond)
        return value if self.returns == "prediction" else self.process.predict(y, t, **{self.returns: value})


@dataclass(frozen=True, eq=False)
class _AsItWas:
    """A model that is no pytree, with what its attributes were: programs hold those, so another one needs another program."""

    model: Model
    _seen: Any = field(init=False, repr=False)

    def __post_init__(self):
        # Keys that cannot be sorted make no pytree.
        opaque = lambda value: isinstance(value, dict) and not all(isinstance(key, str) for key in value)
        object.__setattr__(self, "_seen", jax.tree.flatten(getattr(self.model, "__dict__", {}), is_leaf=opaque))

    def __eq__(self, other):
        if not isinstance(other, _AsItWas) or not (self.model is other.model or self.model == other.model):
            return False
        (mine, structure), (theirs, another) = self._seen, other._seen
        plain = lambda a, b: type(a) is type(b) and isinstance(a, int | float | complex | str | bytes) and a == b
        return structure == another and all(a is b or plain(a, b) for a, b in zip(mine, theirs, strict=True))

    def __hash__(self):
        return hash(self.model)

    @property
    def __name__(self) -> str:
        return model_name(self.model)

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> Any:
        return self.model(y, t, cond)


def as_pytree(where: str, model: Model) -> Model:
    """A model as an argument of compiled functions; one that is no pytree is static: pass the same object again.

    Where an attribute of such a model is another number, string or array than before, programs are compiled anew. Arrays and
    other objects are compared by identity: what is changed inside of them, or in a closure, is not seen.

    Raises:
        TypeError: what does not know its process.
    """
    require_model(where, model)
    return model if is_model_pytree(model) else FunctionModel(_AsItWas(model), model.process, returns="prediction")
