r"""A loss with further terms that see the same noised points, :math:`L + \sum_i w_i R_i`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax.numpy as jnp

from scorelab.arrays import Array
from scorelab.losses.base import Loss, LossAround
from scorelab.models.base import Model
from scorelab.processes.base import Noised
from scorelab.validation import require_number, require_spec


class Regulariser(Protocol):
    """A term of a loss; reported instead of minimised it is a diagnostic."""

    def __call__(self, model: Model, noised: Noised) -> Array:
        """The value of each example, ``(batch,)``; what is random comes from ``noised.keys``."""
        ...


@dataclass(frozen=True)
class Regularised(LossAround):
    r"""A loss and weighted terms, :math:`L + \sum_i w_i R_i`.

    Attributes:
        loss: what draws.
        terms: pairs of a regulariser and its weight, a finite number.

    Metrics: those of the loss, and the mean of every term under its name, with a number where there is another of that name.
    """

    loss: Loss
    terms: tuple[tuple[Callable[[Model, Noised], Array], float], ...]

    def __post_init__(self):
        require_spec(self, Loss, loss=self.loss)
        if self.loss.coloured:
            raise ValueError(
                f"Regularised.loss = {self.loss!r} draws points whose noise is not that of the process: expected another loss, "
                "or ScoreAugmented with orthogonal transforms or before=True, since terms are asked at these points"
            )
        is_pair = lambda term: isinstance(term, tuple | list) and len(term) == 2
        is_term = lambda term: is_pair(term) and callable(term[0]) and not isinstance(term[0], type)
        if not isinstance(self.terms, tuple | list) or not self.terms or not all(map(is_term, self.terms)):
            raise TypeError(f"Regularised.terms = {self.terms!r}: expected pairs of a function (model, noised) and a weight")
        object.__setattr__(self, "terms", tuple(tuple(term) for term in self.terms))
        for _, weight in self.terms:
            require_number(self, -1e30, 1e30, terms=weight)

    def evaluate(self, model, noised):
        total, metrics = self.loss.evaluate(model, noised)
        for regulariser, weight in self.terms:
            value = regulariser(model, noised)
            if jnp.shape(value) != jnp.shape(total):
                raise ValueError(
                    f"{_name(regulariser)} returned shape {jnp.shape(value)}: expected {jnp.shape(total)}, one per example"
                )
            name, number = _name(regulariser), 1
            while name in metrics:
                number += 1
                name = f"{_name(regulariser)}_{number}"
            total, metrics = total + weight * value, metrics | {name: jnp.mean(value)}
        return total, metrics


def _name(regulariser: Any) -> str:
    return getattr(regulariser, "__name__", type(regulariser).__name__)
