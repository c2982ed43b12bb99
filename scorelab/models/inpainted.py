r"""An interpolant that fills a hole: what is outside of it stays as it is, whatever the solver does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Pytree, is_traced
from scorelab.models.base import Model, Wraps, ask
from scorelab.models.per_sample import PER_SAMPLE
from scorelab.processes.interpolant import FlowPrediction, StochasticInterpolant
from scorelab.processes.predictions import HasLatent
from scorelab.validation import require_real, require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Inpainted(Wraps):
    r"""An interpolant under ``data.Inpainting``, with the hole of every sample: velocity and latent noise are 0 outside of it.

    It stands around all other models. Sampling begins at ``starts.Fixed(np.where(hole, noise, known))``, with draws of the base for
    ``noise``; a walk moves what is in the hole, also by the noise of an SDE. Other holes are leaves, and do not recompile.

    Attributes:
        model: the interpolant.
        hole: 1 or True inside, ``(n, *event)``, for each sample.

    Raises:
        TypeError: another process.
        ValueError: a hole of other numbers or of another shape.
    """

    model: Model
    hole: Array = field(metadata=PER_SAMPLE)

    def __post_init__(self):
        if isinstance(self.hole, list | tuple):
            object.__setattr__(self, "hole", np.asarray(self.hole))
        if isinstance(self.hole, str | bool | float | int):
            raise TypeError(f"Inpainted.hole = {self.hole!r}: expected an array of 0 and 1, (n, *event)")
        if isinstance(self.model, type):
            raise TypeError(f"Inpainted.model = {self.model!r}: expected a model, and not its class")
        if type(self.hole) is object or is_traced(self.hole) or not isinstance(self.hole, np.ndarray | jax.Array):
            return
        require_spec(self, StochasticInterpolant, process=self.process)
        require_real("Inpainted.hole", self.hole)
        hole = np.asarray(self.hole)
        if hole.ndim < 2 or not np.all((hole == 0) | (hole == 1)):
            raise ValueError(f"Inpainted.hole is {hole.dtype} of shape {hole.shape}: expected 0 and 1, (n, *event)")

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> FlowPrediction:
        """Predict for ``y`` of shape ``(batch, *event)``."""
        self._check(y)
        said: Any = ask(self.model, y, t, cond)
        inside = jnp.asarray(self.hole, bool)
        heads = dict(velocity=said.velocity) | (dict(eta=said.eta) if isinstance(said, HasLatent) else {})
        return self.process.predict(y, t, **{name: jnp.where(inside, head, 0.0) for name, head in heads.items()})

    def kept(self, before: Array, after: Array) -> Array:
        """``after`` inside the hole, and ``before`` outside of it."""
        self._check(before)
        return jnp.where(jnp.asarray(self.hole, bool), after, before)

    def _check(self, y: Array) -> None:
        if jnp.shape(self.hole) != jnp.shape(y):
            raise ValueError(
                f"Inpainted.hole has shape {jnp.shape(self.hole)} for points of shape {jnp.shape(y)}: expected the same"
            )
