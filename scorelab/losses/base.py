"""What a loss is: a draw, which knows no model, and an error, which draws nothing."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Key, Pytree
from scorelab.losses.conditions import ConditionDropout
from scorelab.models.base import Model, ask, require_model
from scorelab.models.nets.conditions import Condition
from scorelab.processes.base import Noised, Process, require_same_process
from scorelab.pytrees import computed

Batch = dict[str, Pytree]


class Loss(abc.ABC):
    """What a learner minimises, the mean of :meth:`error` over the batch; a new one states ``draw`` and ``error``.

    Attributes:
        process: the forward process, that of the model.
        label_dropout: the share of conditions that ``draw`` replaces by the null one.
        null_label: the null condition, None where it replaces none.
        condition_dropout: what it replaces of a condition with members, None for nothing beside labels.
        coloured: whether it draws points whose noise is not that of the process, at which a term about a law has no meaning.
    """

    process: Any
    label_dropout: float = 0.0
    null_label: int | None = None
    condition_dropout: ConditionDropout | None = None
    coloured: bool = False

    @property
    def unconditional(self) -> float:
        """The share of examples that train the model without any condition."""
        return self.label_dropout if self.condition_dropout is None else self.condition_dropout.unconditional

    @abc.abstractmethod
    def draw(self, key: Key, batch: Batch) -> Noised:
        """All that is random: times, noise, dropped conditions.

        ``batch`` is ``{"x": data with a leading axis of examples, "cond": pytree or None}``.
        """

    @abc.abstractmethod
    def error(self, model: Model, noised: Noised) -> Array:
        """The error of each example, ``(batch,)``; a function of its arguments alone."""

    def evaluate(self, model: Model, noised: Noised) -> tuple[Array, dict[str, Any]]:
        """:meth:`error`, and scalar metrics by name that come with it."""
        return self.error(model, noised), {}

    def check_condition(self, condition: Condition | None) -> None:  # noqa: B027
        """Raise ``ValueError`` where a network with this condition is not one that it trains."""

    def ask(self, model: Model, y: Pytree, t: Array, cond: Pytree = None) -> Any:
        """What ``model`` says of ``y``; ValueError for a model of another process, whose numbers would look right."""
        where = type(self).__name__
        require_model(where, model)
        require_same_process(where, process=self.process, model=model.process)
        return ask(model, y, t, cond)

    def __call__(self, key: Key, model: Model, batch: Batch) -> Array:
        """The errors ``(batch,)`` of a fresh draw."""
        return self.error(model, self.draw(key, batch))


class LossAround(Loss):
    """A loss around another one, of whose process and conditions it is; a new one states ``evaluate``.

    Attributes:
        loss: the other one.
    """

    loss: Loss

    @computed
    def process(self) -> Process:
        """That of the other."""
        return self.loss.process

    @computed
    def label_dropout(self) -> float:
        """That of the other."""
        return self.loss.label_dropout

    @computed
    def null_label(self) -> int | None:
        """That of the other."""
        return self.loss.null_label

    @computed
    def condition_dropout(self) -> ConditionDropout | None:
        """That of the other."""
        return self.loss.condition_dropout

    @computed
    def coloured(self) -> bool:
        """As the other."""
        return self.loss.coloured

    def check_condition(self, condition: Condition | None) -> None:
        """As the other."""
        self.loss.check_condition(condition)

    def draw(self, key: Key, batch: Batch) -> Noised:
        """As the other."""
        return self.loss.draw(key, batch)

    def error(self, model: Model, noised: Noised) -> Array:
        """The errors of :meth:`evaluate`."""
        return self.evaluate(model, noised)[0]


class PredictionLoss(Loss):
    """A loss that asks the model once, at the noised point; a new one states ``draw`` and ``judge``."""

    @abc.abstractmethod
    def judge(self, prediction: Any, noised: Noised) -> tuple[Array, dict[str, Any]]:
        """The error of each example ``(batch,)``, and scalar metrics, of a prediction at ``noised.y``."""

    def evaluate(self, model: Model, noised: Noised) -> tuple[Array, dict[str, Any]]:
        """:meth:`judge` of what the model says."""
        return self.judge(self.ask(model, noised.y, noised.t, noised.cond), noised)

    def error(self, model: Model, noised: Noised) -> Array:
        """The errors of :meth:`judge`."""
        return self.evaluate(model, noised)[0]


def example_keys(key: Key, n: int) -> Key:
    """One key per example for what an error needs of noise of its own; they cost nothing where it needs none."""
    return jax.random.split(jax.random.fold_in(key, 3), n)


def require_floating(x: Array) -> None:
    """Raise ``TypeError`` for raw integer data, ``ValueError`` for none."""
    if jnp.ndim(x) < 2 or not jnp.size(x):
        raise ValueError(f'batch["x"] has shape {jnp.shape(x)}: expected (batch, *event) with at least one example')
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f'batch["x"] has dtype {x.dtype}: expected floating point, scaled by the prepare of the data')


def mean_square(error: Array) -> Array:
    """Mean over the event of the square, ``(batch,)``."""
    error = error.astype(jnp.promote_types(error.dtype, jnp.float32))
    return jnp.mean(jnp.square(error).reshape(error.shape[0], -1), axis=1)
