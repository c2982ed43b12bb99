r"""f-distill: one generator from a diffusion model, by any f-divergence.

.. math:: \nabla_\theta\sum_t w(t)\,D_f(p_t\|q_t) = E\Big[h(r_t)\,w\,(D_q - D_p)(y_t)\cdot\partial_\theta G(z)\Big]

With the ratio 1 it is Diff-Instruct and DMD; with a GAN term DMD2; with the GAN term alone, a diffusion GAN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, per_example
from scorelab.distill.base import Distillation, StudentBatch
from scorelab.distill.divergences import Alpha, Divergence, JensenShannon, ReverseKL, SoftenedReverseKL
from scorelab.distill.fake import KnownScore
from scorelab.distill.normalisation import Normalisation
from scorelab.distill.ratio import Discriminator, ExactRatio, UnitRatio
from scorelab.distill.teachers import as_network
from scorelab.distill.weights import DifferenceWeight, noise_weight
from scorelab.losses.base import mean_square
from scorelab.losses.denoising import denoised_error
from scorelab.models.base import Model, ask
from scorelab.models.exact import ExactModel
from scorelab.processes.linear_gaussian import GaussianPrediction
from scorelab.pytrees import partly_static
from scorelab.validation import require_number, require_spec


@partly_static("teacher", "reward", "divergence")
@dataclass(frozen=True)
class FDistill(Distillation):
    r"""Minimise an f-divergence between the noised laws of teacher and student (arXiv 2502.15681).

    The student descends :math:`\mathrm{mean}\,\mathrm{sg}(g)\,G(z)` with

    .. math:: g = h(r)\,w\,(D_q - D_p)(y_t),\qquad y_t = \alpha_tG(z) + b_t + \sigma_t\epsilon ,

    computed in at least float32, where ``h`` is that of the divergence at the estimated ratio. Without normalisation and with
    ``weight=score_weight`` this is the exact gradient of :math:`E_t D_f(p_t\|q_t)` (per element of the event).

    A learned ratio is that of the *real data* over the student, the score is that of the *teacher*: feed the teacher's samples as
    data to make them one. Under guidance the fake score and the ratio stay unguided.

    Attributes:
        divergence: the divergence; one that is a pytree has its numbers as arguments of the compiled step.
        weight: the weight of the score difference (:mod:`scorelab.distill.weights`).
        normalisation: of ratios and weights; None uses them as they are.
        score_weight: weight of this term; 0 leaves the score difference out, and with it the fake score.
        gan_weight: weight of the GAN term :math:`\phi(l(y_t))`, whose gradient passes through the discriminator to the student.
        gan_divergence: whose ``generator_loss`` it is; softened reverse KL is the non-saturating loss.
    """

    divergence: Divergence = field(default_factory=JensenShannon, kw_only=True)
    weight: DifferenceWeight = field(default=noise_weight, kw_only=True)
    normalisation: Normalisation | None = field(default_factory=Normalisation, kw_only=True)
    score_weight: float = field(default=1.0, kw_only=True)
    gan_weight: float = field(default=0.0, kw_only=True)
    gan_divergence: Divergence = field(default_factory=SoftenedReverseKL, kw_only=True)

    by_example = True

    def __post_init__(self):
        super().__post_init__()
        require_spec(self, Divergence, divergence=self.divergence, gan_divergence=self.gan_divergence)
        if isinstance(self.ratio, UnitRatio) and (self.gan_weight or (self.score_weight and not self._is_reverse)):
            raise ValueError(
                f"FDistill.ratio = UnitRatio() with divergence = {self.divergence!r}, gan_weight = {self.gan_weight}: expected an "
                "estimator such as TeacherFeatures(names=...), since without one only ReverseKL() is left"
            )
        if not (self.score_weight or self.gan_weight or self.pair_weight or self.reward is not None):
            raise ValueError("FDistill.score_weight = gan_weight = 0: expected one of them above 0, a reward or pairs")
        require_number(self, 0.0, 1e6, score_weight=self.score_weight, gan_weight=self.gan_weight)
        if self.normalisation is not None:
            require_spec(self, Normalisation, normalisation=self.normalisation)
        if not callable(self.weight):
            raise TypeError(f"FDistill.weight = {self.weight!r}: expected a function such as noise_weight, or DMDWeight()")

    @property
    def _is_reverse(self) -> bool:
        return isinstance(self.divergence, ReverseKL) or self.divergence == Alpha(0.0)

    def default_ratio(self):
        """None for reverse KL, an exact one where both laws are known, else a discriminator like the teacher's network."""
        if self._is_reverse and not self.gan_weight:
            return UnitRatio()
        # Not any model with ``log_prob``: that of an energy is no density.
        if isinstance(self.teacher, ExactModel) and isinstance(self.fake, KnownScore):
            return ExactRatio()
        return Discriminator(denoiser=as_network(self.teacher, "FDistill.ratio = None").denoiser)

    @property
    def uses_fake(self):
        """For the score difference."""
        return self.score_weight > 0

    @property
    def bin_count(self):
        """As in the normalisation."""
        return super().bin_count if self.normalisation is None else self.normalisation.bins

    def student_loss(self, drawn: StudentBatch):
        loss, means, seen, metrics = jnp.float32(0), drawn.means, {}, {}
        if self.score_weight:
            g, means, seen = jax.lax.stop_gradient(self._pull(drawn))
            # Its gradient is g over the number of elements; its value, mean(g^2) / 2, falls as the scores come together.
            target = drawn.y0.astype(g.dtype) - g
            loss = self.score_weight * 0.5 * jnp.mean((drawn.y0 - jax.lax.stop_gradient(target)) ** 2)
        if self.gan_weight:
            gan = jnp.mean(self.gan_divergence.generator_loss(drawn.logit(drawn.noised.y)))
            loss, metrics = loss + self.gan_weight * gan, {**metrics, "gan_loss": gan}
        return loss, (means, seen, metrics)

    def summary(self, seen):
        """Of ratios and weights, where there is a score difference."""
        if not self.score_weight:
            return {}
        h = seen["h"]
        return dict(ratio_mean=jnp.mean(seen["ratio"]), h_cv=jnp.std(h) / jnp.mean(h), clipped=jnp.mean(seen["clipped"]))

    @property
    def weighs(self):
        """By the normalisation."""
        return self.score_weight > 0 and self.normalisation is not None

    def weights(self, logit, index, means):
        """``h`` and which ratios were clipped; the new means of the bins."""
        if self.normalisation is None:
            return (self.divergence.h(logit), jnp.zeros(logit.shape, bool)), means
        h, means, clipped = self.normalisation(self.divergence, logit, index, means, self.bins)
        return (h, clipped), means

    def _pull(self, drawn: StudentBatch) -> tuple[Array, Array, dict[str, Array]]:
        """``g``, the new means of the bins, and the values for the statistics; all constants of the gradient."""
        y0, noised = jax.lax.stop_gradient((drawn.y0, drawn.noised))
        teacher = _wide(ask(self.teacher, noised.y, drawn.t, drawn.cond))
        fake = _wide(ask(cast(Model, drawn.fake), noised.y, drawn.t, drawn.cond))
        l = drawn.logit(noised.y)
        found = self.weights(l, drawn.index, drawn.means) if drawn.weights is None else drawn.weights
        (h, clipped), means = found
        difference = denoised_error(fake, teacher.denoised, teacher.eps)
        weight = self.weight(self.process, drawn.t, y0, teacher.denoised)
        seen = dict(
            ratio=jnp.exp(jnp.clip(l, -10, 10)), h=h, h_square=h**2, clipped=clipped, gap=mean_square(difference),
            fake_error=mean_square(denoised_error(fake, y0, noised.noise)),
            teacher_error=mean_square(denoised_error(teacher, y0, noised.noise)),
        )  # fmt: skip
        return per_example(h * weight, difference) * difference, means, seen


def _wide(prediction: GaussianPrediction) -> GaussianPrediction:
    """A prediction in at least float32, whatever the networks compute in."""
    dtype = jnp.promote_types(prediction.eps.dtype, jnp.float32)
    denoised, eps = prediction.denoised.astype(dtype), prediction.eps.astype(dtype)
    return GaussianPrediction(denoised=denoised, eps=eps, t=prediction.t, process=prediction.process)
