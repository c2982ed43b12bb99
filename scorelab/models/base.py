"""What a model is, and the one place in which it is called: what it answers is checked here, for all that asks."""

from __future__ import annotations

import abc
from typing import Any, Protocol

import jax

from scorelab.arrays import Array, Key, Pytree
from scorelab.models.parts import parts_of
from scorelab.processes.base import Process, require_same_process
from scorelab.pytrees import computed


class Model(Protocol):
    """What a network (or an exact law) believes about the clean point behind ``y`` at time ``t``; a pytree."""

    @property
    def process(self) -> Any:
        """The forward process it answers for."""
        ...

    def __call__(self, y: Pytree, t: Array | float, cond: Pytree = None) -> Any:
        """A :class:`scorelab.processes.Prediction` for ``y`` of shape ``(batch, *event)``, of the kind of the process."""
        ...


class Trainable(abc.ABC):
    """A model without its parameters, which a learner supplies; a hashable spec.

    Attributes:
        process: the forward process of the model.
    """

    process: Any

    @property
    def network(self) -> Any:
        """The :class:`scorelab.models.Denoiser` behind it, which has a scale of the data; None where there is none."""
        return None

    @abc.abstractmethod
    def init(self, key: Key, x: Pytree, cond: Pytree = None, like: Any = None) -> Pytree:
        """Fresh parameters for data shaped like ``x`` ``(batch, *event)``, or a copy of those of the model ``like``."""

    @abc.abstractmethod
    def bind(self, params: Pytree, dropout: Key | None = None) -> Model:
        """The model with these parameters, a pytree; with a key as it is called in training."""


def ask(model: Model, y: Pytree, t: Array | float, cond: Pytree = None) -> Any:
    """What ``model`` says of ``y`` at ``t``: of the shape of ``y``, in its dtype, about its own process.

    Args:
        model: a model.
        y: ``(batch, *event)`` in the space of the process.
        t: scalar or ``(batch,)``.
        cond: conditions.

    Raises:
        TypeError: the model returned something else than a prediction of its kind of process.
        ValueError: a prediction of another shape than ``y``, which would broadcast, or about another process.
    """
    prediction = model(y, t, cond)
    name = model_name(model)
    process = getattr(prediction, "process", None)
    if not isinstance(process, Process):
        found = "an array" if hasattr(prediction, "dtype") else f"a {type(prediction).__name__}"
        raise TypeError(
            f"{name} returned {found}: expected a prediction; a function that returns an array becomes a model by "
            'FunctionModel(fn, process, returns="denoised")'
        )
    require_same_process(name, process=model.process, prediction=process)
    return process.checked(name, prediction, y)


class KnowsDensity:
    """A model whose predictions are :class:`scorelab.processes.HasLogProb`: an exact law, or the energy of a network."""

    def log_prob(self: Any, y: Array, t: Array | float, cond: Pytree = None) -> Array:
        r""":math:`\log p_t(y)` in the space of the process, up to a constant of ``t``, ``(batch,)``."""
        return ask(self, y, t, cond).log_prob


class Wraps:
    """A model made of another one, whose process it has; a new one says where it changes the law, and under which condition.

    Attributes:
        model: the other one.
    """

    model: Model

    @computed
    def process(self) -> Any:
        """That of ``model``."""
        return self.model.process

    def active(self) -> tuple[float, float] | None:
        """The noise ratios ``(low, high)`` between which its law is not that of ``model``; None for none, or traced ones."""
        return None

    def asks_under(self, cond: Pytree) -> Pytree:
        """The condition under which ``model`` is asked, for one that is asked under ``cond``."""
        return cond


class ChecksCondition:
    """A model that knows which conditions it takes."""

    def check_condition(self, cond: Pytree) -> None:
        """Raise ``ValueError`` for a condition that is none; not possible for traced ones."""


def check_condition(model: Any, cond: Pytree) -> None:
    """Ask all models inside ``model`` that know which conditions they take."""
    if isinstance(model, ChecksCondition):
        model.check_condition(cond)
        return
    for part in parts_of(model, kind=ChecksCondition):
        check_condition(part, cond)


def require_model(where: str, model: Any, name: str = "model") -> None:
    """Raise ``TypeError`` unless ``model`` can be called and knows its process."""
    if not callable(model) or isinstance(model, type) or not isinstance(getattr(model, "process", None), Process):
        raise TypeError(
            f"{where}.{name} = {model!r}: expected a model, which knows its process; a function (y, t, cond) becomes one by "
            'FunctionModel(fn, process, returns="denoised"), or returns="prediction" for one that returns predictions'
        )


def model_name(model: Any) -> str:
    """The name of a model for messages: that of its class, or of the function."""
    while isinstance(model, jax.tree_util.Partial):
        model = model.func
    return getattr(model, "__name__", type(model).__name__)
