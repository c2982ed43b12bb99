r"""A clean point of which a part is known: what an inpainting solver needs beside the prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Pytree, is_traced
from scorelab.models.base import Model, Wraps, ask
from scorelab.processes.linear_gaussian import GaussianPrediction, LinearGaussian
from scorelab.processes.predictions import HasKnown, HasProposal, unguided
from scorelab.validation import require_real, require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class KnownPrediction(GaussianPrediction, HasKnown):
    """The prediction of a model, beside what is known of the clean point.

    Attributes:
        known: the clean point, ``(batch, *event)``; of no meaning where ``mask`` is 0.
        mask: 1 where it is known, 0 elsewhere, ``(batch, *event)``.
    """

    known: Array
    mask: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GuidedKnownPrediction(KnownPrediction, HasProposal):
    """That of a guided model, which weighted particles weigh as they do without what is known.

    Attributes:
        base: what the model says without guidance, beside what is known.
        gradient: what guidance adds to its score.
    """

    base: KnownPrediction
    gradient: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Known(Wraps):
    """A model beside a clean point of which a part is known; for :class:`scorelab.solvers.RePaint`. It predicts as ``model`` does.

    Other values and other masks are leaves, and do not recompile. Of a guided model weighted particles see the guidance.

    Attributes:
        model: the prior.
        values: the clean point, in the chart of the process (data space, unless noise is multiplicative): ``(*event)`` for all
            samples, or ``(n, *event)``, one for each. Finite where it is known.
        mask: 1 or True where ``values`` is known and 0 or False elsewhere, ``(*event)``.

    Raises:
        ValueError: a mask of other numbers, shapes that do not fit one another, values that are not finite where they are known.
    """

    model: Model
    values: Array = field(metadata={"per_sample": "mask"})
    mask: Array

    def __post_init__(self):
        for name in ("values", "mask"):
            if isinstance(value := getattr(self, name), list | tuple | bool | int | float):
                object.__setattr__(self, name, np.asarray(value))
        if type(self.values) is object or type(self.mask) is object or is_traced(self.values, self.mask):
            return
        for name in ("values", "mask"):
            require_real(f"Known.{name}", getattr(self, name))
        values, mask = np.asarray(self.values), np.asarray(self.mask)
        if not np.all((mask == 0) | (mask == 1)):
            raise ValueError(f"Known.mask has the values {np.unique(mask)[:8]}: expected 0 and 1")
        if values.shape[values.ndim - mask.ndim :] != mask.shape or values.ndim > mask.ndim + 1:
            raise ValueError(
                f"Known.values has shape {values.shape}: expected {mask.shape}, that of the mask, or (n, *{mask.shape})"
            )
        if not np.all(np.isfinite(np.where(mask == 1, values, 0.0))):
            raise ValueError("Known.values has values that are not finite where the mask is 1: expected none")

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> KnownPrediction:
        """Predict for ``y`` of shape ``(batch, *event)``."""
        require_spec(self, LinearGaussian, process=self.process)
        if jnp.shape(self.mask) != y.shape[1:]:
            raise ValueError(f"Known.mask has shape {jnp.shape(self.mask)} for points of shape {y.shape}: expected {y.shape[1:]}")
        said = ask(self.model, y, t, cond)
        # One row for each sample: what belongs to a particle moves with it.
        mask = jnp.broadcast_to(jnp.asarray(self.mask, y.dtype), y.shape)
        known = jnp.broadcast_to(jnp.where(jnp.asarray(self.mask, bool), self.values, 0.0).astype(y.dtype), y.shape)
        beside: Any = lambda said: dict(
            denoised=said.denoised, eps=said.eps, t=said.t, process=said.process, known=known, mask=mask
        )
        if not isinstance(said, HasProposal):
            return KnownPrediction(**beside(said))
        return GuidedKnownPrediction(**beside(said), base=KnownPrediction(**beside(unguided(said))), gradient=said.gradient)
