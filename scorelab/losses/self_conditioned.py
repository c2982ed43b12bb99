r"""Training of a network that sees its former estimate, :math:`L(D(\cdot, b\,\bar D))` with :math:`\bar D` from a first call."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from scorelab.arrays import per_example
from scorelab.losses.base import Loss, LossAround
from scorelab.models.estimates import informed, require_waits
from scorelab.processes.base import Noised
from scorelab.processes.predictions import HasDenoised, require_capabilities
from scorelab.validation import require_number, require_spec

# The stream of a batch's key from which it is drawn who sees an estimate.
_SEES = 1_000_121


@dataclass(frozen=True)
class SelfConditioned(LossAround):
    r"""A loss of a network that sees its former estimate (Chen et al. 2022, arXiv 2208.04202, Algorithm 1).

    .. math:: L\big(D(y_t, t, b\,\mathrm{sg}[D(y_t, t, 0)])\big),\qquad b\sim\mathrm{Bernoulli}(\mathrm{share})

    for each example on its own: the first call has no gradient, and costs a third of a step. Under ``share = 0`` the network never
    sees anything.

    Attributes:
        loss: the loss of what the network says then; terms that see the same points stand inside, in a
            ``Regularised``.
        share: how many examples see an estimate.
    """

    loss: Loss
    share: float = 0.5

    def __post_init__(self):
        require_spec(self, Loss, loss=self.loss)
        require_number(self, 0.0, 1.0, share=self.share)

    def draw(self, key, batch):
        """What the loss draws, and who sees an estimate: ``extra`` is what the loss has there, and a mask ``(batch,)``."""
        noised = self.loss.draw(key, batch)
        n = len(jax.tree.leaves(noised.y)[0])
        return noised._replace(extra=(noised.extra, jax.random.bernoulli(jax.random.fold_in(key, _SEES), self.share, (n,))))

    def evaluate(self, model, noised: Noised):
        """The loss of a model that sees its own first estimate in the chosen examples, and zeros in the others."""
        require_waits("losses.SelfConditioned", model)
        extra, sees = noised.extra
        first = self.ask(informed(model, 0.0), noised.y, noised.t, noised.cond)
        require_capabilities("losses.SelfConditioned", first, (HasDenoised,))
        estimate = jax.lax.stop_gradient(first.denoised)
        estimate = jnp.where(per_example(sees, estimate), estimate, jnp.zeros_like(estimate))
        return self.loss.evaluate(informed(model, estimate), noised._replace(extra=extra))
