"""Classes that a network has to be told, since it was never trained without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from scorelab.arrays import Array
from scorelab.models.nets.conditions import Label


@dataclass(frozen=True)
class Given(Label):
    """A class, which has to be given."""

    @property
    def accepted(self):
        return f"integer labels 0 to {self.num_classes - 1} of shape () or (batch,)"

    def check_values(self, where, value):
        if value.min() < 0 or value.max() >= self.num_classes:
            raise ValueError(f"{where} has labels {value.min()} to {value.max()}: expected {self.accepted}")

    def told(self, net: Any, cond: Array | None, batch: int) -> jax.Array:
        """The labels of a module ``net``, ``(batch,)`` or ``(1,)``; ValueError where none are given and it is not initialised."""
        if cond is None:
            if not net.is_initializing():
                raise ValueError(f"cond = None for {type(net).__name__} with classes: expected {self.accepted}")
            cond = jnp.zeros(1, jnp.int32)
        return jnp.asarray(self.rows("cond", cond, batch))
