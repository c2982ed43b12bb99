"""The learning rate of an optimiser, read off the functions it is made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

_DEPTH = 16


def learning_rate(optimizer: Any) -> Callable[[int], float] | None:
    """The rate of update number ``n``, counted from 1: minus the factor by which an optax transformation ends.

    It stands in the closure of ``optax.scale`` or ``optax.scale_by_schedule``, one of which nearly all optimisers of optax have.
    None where there is none of them or several, where the rate is below zero, where the factor follows the loss, and where updates
    are counted otherwise than steps are, as inside ``optax.MultiSteps``.
    """
    factors = list(_factors(getattr(optimizer, "update", None), _DEPTH))
    if len(factors) != 1 or factors[0] is None:
        return None
    factor = factors[0]
    # A schedule is asked for the number of updates that were made before.
    schedule = jax.jit(factor if callable(factor) else lambda _: factor)
    rate = lambda n: -float(schedule(np.int32(n - 1)))
    # A factor that does not descend is one of several, of which the others are not seen here.
    return rate if rate(1) >= 0 else None


def _factors(part: Any, depth: int) -> Iterator[Any]:
    """The factors in a function and in what it closes over: numbers, schedules, None for one that is not known here."""
    if isinstance(part, tuple | list):
        for inner in part:
            yield from _factors(inner, depth)
    elif depth and inspect.isfunction(part) and part.__closure__:
        inside = dict(inspect.getclosurevars(part).nonlocals)
        match part.__qualname__.partition(".")[0]:
            case "scale":
                yield inside.get("step_size")
            case "scale_by_schedule":
                yield inside.get("step_size_fn")
            case "reduce_on_plateau":
                yield None
            case _:
                for inner in inside.values():
                    yield from _factors(inner, depth - 1)
