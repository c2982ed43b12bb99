"""A few rows of a data set, to see what a model does with little data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from scorelab.data.base import DataSet
from scorelab.data.derived import OfAnother
from scorelab.validation import require_int, require_seed


@dataclass(frozen=True, kw_only=True)
class Subset(OfAnother):
    """The first ``n`` rows of the training split in a random order; other splits are whole.

    Of one seed, a smaller subset is a part of every larger one.

    Attributes:
        source: the other data set; its training split is loaded into memory.
        n: how many rows.
        seed: of the order.
    """

    n: int
    seed: int = 0

    keeps = True

    def __post_init__(self):
        super().__post_init__()
        require_int(self, 1, n=self.n)
        require_seed(self, seed=self.seed)

    @property
    def what(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number and order of the rows, the end of the name."""
        return f"{self.n}" if self.seed == 0 else f"{self.n}-{self.seed}"

    def made(self, arrays):
        return arrays

    def load(self, split="train"):
        arrays = super().load(split)
        if split != "train":
            return arrays
        if self.n > len(arrays):
            raise ValueError(f"Subset.n = {self.n} of {self.source.name}: expected at most {len(arrays)}, the rows that are loaded")
        rows = np.random.default_rng(self.seed).permutation(len(arrays))[: self.n]
        columns = arrays.columns()
        more = {name: columns[name][rows] for name in arrays.more}
        return replace(arrays, x=arrays.x[rows], label=None if arrays.label is None else arrays.label[rows], more=more)

    def batches(self, batch_size, seed, arrays=None):
        return DataSet.batches(self, batch_size, seed, arrays)
