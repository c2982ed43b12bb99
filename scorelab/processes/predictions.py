"""What a prediction can say: small capabilities, inherited by name, that solvers, losses and diagnostics ask for."""

from __future__ import annotations

from typing import Any, Protocol

from scorelab.arrays import Array, Pytree
from scorelab.processes.base import Process


class Prediction(Protocol):
    """A model's belief about ``y`` at ``t``; a pytree. What else it says are its capabilities."""

    t: Array
    process: Process


class HasDenoised:
    r"""The clean point behind ``y``, :math:`D = E[y_0\mid y_t]`, shaped like ``y``."""

    denoised: Array


class HasNoise:
    r"""The noise in ``y``, :math:`\hat\epsilon = E[\epsilon\mid y_t]`, shaped like ``y``."""

    eps: Array


class HasScore:
    r"""The score :math:`\nabla_y\log p_t(y)`, shaped like ``y``."""

    score: Array


class HasKnown:
    """A clean point of the chart of which a part is known.

    Attributes:
        known: the point, shaped like ``y``; of no meaning elsewhere.
        mask: 1 where it is known, 0 elsewhere, shaped like ``y``.
    """

    known: Array
    mask: Array


class HasLatent:
    r"""The latent noise of an interpolant, :math:`\eta = E[z\mid y_t]`, shaped like ``y``."""

    eta: Array


class HasVelocity:
    r"""The velocity :math:`dy/dt` of the probability flow, shaped like ``y``."""

    velocity: Array


class HasLogProb:
    r"""The log-density :math:`\log p_t(y)` up to a constant of ``t``, ``(batch,)``."""

    log_prob: Array


class HasLogits:
    """Unnormalised log-probabilities of the values of every element of the clean point, a pytree of ``(batch, ..., values)``."""

    logits: Pytree


class HasProposal:
    """The prediction of a guided model, which weighted particles take for a proposal.

    Attributes:
        base: the prediction without guidance, which is no proposal itself.
        gradient: what guidance adds to its score, shaped like ``y``.
    """

    base: Any
    gradient: Array


def unguided(prediction: Any) -> Any:
    """What the model itself says, before a proposal is pulled anywhere."""
    return prediction.base if isinstance(prediction, HasProposal) else prediction


def require_capabilities(where: str, prediction: Any, needs: tuple[type, ...]) -> None:
    """Raise ``TypeError`` naming the first of ``needs`` that a prediction does not have."""
    for need in needs:
        if not isinstance(prediction, need):
            raise TypeError(
                f"{where} needs {need.__name__} of a prediction, and {type(prediction).__name__} does not have it: expected a "
                f"model whose predictions are {need.__name__}"
            )
