r"""Score identity distillation: the Fisher divergence, data-free, with gradients through both score networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import jax
import jax.numpy as jnp

from scorelab.arrays import per_example
from scorelab.distill.base import Distillation, StudentBatch
from scorelab.distill.ratio import UnitRatio
from scorelab.distill.weights import DifferenceWeight, DMDWeight
from scorelab.losses.base import mean_square
from scorelab.losses.denoising import denoised_error
from scorelab.models.base import Model, ask
from scorelab.pytrees import partly_static
from scorelab.validation import require_number


@partly_static("teacher", "reward")
@dataclass(frozen=True)
class SiD(Distillation):
    r"""Minimise :math:`w\,\langle D_p-D_q,\ (D_p-y_0) - a\,(D_p-D_q)\rangle` at the student's noised samples (arXiv 2404.04057).

    With the right fake score it is :math:`(1-a)\,E\|D_p-D_q\|^2`, so its **value** says nothing about progress at ``a >= 1``. The
    gradient passes through the inputs of teacher and fake score. Between centred Gaussians a step is a descent for ``a <= 1``;
    ``a = 1.2``, which the authors found best, points the wrong way there only where the student is far too wide.

    Attributes:
        a: the share of the second term.
        weight: as in :class:`FDistill`; a constant of the gradient.
    """

    a: float = field(default=1.2, kw_only=True)
    weight: DifferenceWeight = field(default_factory=DMDWeight, kw_only=True)

    by_example = True

    def __post_init__(self):
        super().__post_init__()
        require_number(self, -10.0, 10.0, a=self.a)
        if not isinstance(self.ratio, UnitRatio):
            raise ValueError(f"SiD.ratio = {self.ratio!r}: expected None, since its loss looks at no ratio")
        if not callable(self.weight):
            raise TypeError(f"SiD.weight = {self.weight!r}: expected a function such as noise_weight, or DMDWeight()")

    def student_loss(self, drawn: StudentBatch):
        y, t = drawn.noised.y, drawn.t
        teacher, fake = (ask(model, y, t, drawn.cond) for model in (self.teacher, cast(Model, drawn.fake)))
        gap = denoised_error(teacher, fake.denoised, fake.eps)
        error = denoised_error(teacher, drawn.y0, drawn.noised.noise)
        weight = self.weight(self.process, t, *jax.lax.stop_gradient((drawn.y0, teacher.denoised)))
        loss = jnp.mean(per_example(weight, gap) * gap * (error - self.a * gap))
        seen = dict(
            gap=mean_square(gap), teacher_error=mean_square(error),
            fake_error=mean_square(denoised_error(fake, drawn.y0, drawn.noised.noise)),
        )  # fmt: skip
        return loss, (drawn.means, jax.lax.stop_gradient(seen), {})
