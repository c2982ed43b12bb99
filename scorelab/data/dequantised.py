"""Batches of integer data with a place in its cell for every value, drawn anew at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scorelab.arrays import Array
from scorelab.validation import require_seed


@dataclass(frozen=True, eq=False)
class Dequantised:
    """Batches with ``places``, uniform on [0, 1) and shaped like ``x``: what a density on whole cells is learned from.

    :class:`scorelab.training.Prepare` puts the values there, by the ``at`` of its transform. The places of a row are a
    function of (seed, step), whatever the number of hosts is.

    Attributes:
        batches: anything with ``at(step)`` whose ``x`` are levels.
        seed: of the places.

    Raises:
        TypeError: (``at``) batches whose ``x`` are not uint8.
    """

    batches: Any
    seed: int = 0

    def __post_init__(self):
        if not callable(getattr(self.batches, "at", None)):
            raise TypeError(f"Dequantised.batches = {self.batches!r}: expected an object with at(step)")
        require_seed(self, seed=self.seed)

    def at(self, step: int, *shard: int) -> dict[str, Array]:
        """The batch of ``step``, with ``places``."""
        batch = self.batches.at(step, *shard)
        if batch["x"].dtype != np.uint8:
            raise TypeError(f"Dequantised.batches has x of {batch['x'].dtype}: expected uint8 levels")
        rng, shape = np.random.default_rng((self.seed, int(step))), np.shape(batch["x"])
        host, hosts = shard or (0, 1)
        # Drawn for all hosts, so that a row has its places whatever their number is.
        places = rng.random((hosts * shape[0], *shape[1:]), np.float32)
        return {**batch, "places": places[host * shape[0] : (host + 1) * shape[0]]}
