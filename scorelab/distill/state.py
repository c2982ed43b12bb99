"""What a distillation keeps from step to step, and what the loss of its student looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from scorelab.arrays import Array, Pytree
from scorelab.models.base import Model
from scorelab.processes.base import Noised


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DistillState:
    """The state of a distillation: the teacher is not in it.

    Attributes:
        step: updates made, those of the warm-up included.
        params: the student.
        fake: the fake score.
        ratio: the discriminator.
        opt_states: of the student, the fake score, the discriminator.
        averages: one for each average spec.
        means: the means of the ratio in the bins of stage 1.
        running: running statistics by noise level.
    """

    step: Array
    params: Pytree
    fake: Pytree
    ratio: Pytree
    opt_states: tuple[Pytree, Pytree, Pytree]
    averages: tuple[Pytree, ...]
    means: Array
    running: dict[str, Array]


class StudentBatch(NamedTuple):
    """What the loss of a student looks at; only ``y0`` and ``noised.y`` depend on the student with a gradient.

    Attributes:
        y0: samples of the student in the chart.
        noised: the same, noised.
        t: their times ``(batch,)``.
        index: their bins.
        cond: their conditions.
        fake: the fake score as a model; None where there is none.
        logit: the log-ratio as a function of ``y``.
        means: the means of the bins before this step.
        weights: what :meth:`Distillation.weights` found for these examples among those of the whole batch; None where they are the
            whole batch.
    """

    y0: Array
    noised: Noised
    t: Array
    index: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    cond: Pytree
    fake: Model | None
    logit: Callable[[Array], Array]
    means: Array
    weights: Any = None
