"""Bits per dimension of held-out data, as a diagnostic of a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np

from scorelab import dequantisation
from scorelab.data import Cells
from scorelab.experiment.diagnose import Diagnostic, Finding
from scorelab.grids import Grid
from scorelab.processes import LinearGaussian, StochasticInterpolant
from scorelab.solvers.epsilons import Epsilon
from scorelab.validation import require_int, require_spec


@dataclass(frozen=True, kw_only=True)
class BitsPerDim(Diagnostic):
    """Bits per dimension of integer data, an upper bound with its standard error over rows (:func:`scorelab.bits_per_dim`).

    Attributes:
        n: rows, spread evenly over the split; None for all.
        split: of the data set.
        draws: of the dequantisation noise of each row; more than one with the exact divergence of the flow only.
        probes: Hutchinson probes; 0 for the exact divergence.
        grid: of the SDE whose likelihood is bounded; None for the flow.
        epsilon: its noise.
        paths: its paths for each row.
        places: a network of :class:`scorelab.dequantisation.LogitLogistic`, which learns the law of the dequantisation
            noise on the training data; None for the uniform one.
        steps: of that learning.
        chunk: rows at once.
    """

    name: str = "bits_per_dim"
    n: int | None = 256
    split: str = "test"
    draws: int = 1
    probes: int = 0
    grid: Grid | None = None
    epsilon: Epsilon | None = None
    paths: int = 1
    places: Any = None
    steps: int = 500
    chunk: int = 256

    def __post_init__(self):
        require_int(self, 1, draws=self.draws, paths=self.paths, steps=self.steps, chunk=self.chunk)
        require_int(self, 0, probes=self.probes)
        if self.n is not None:
            require_int(self, 2, n=self.n)
        if self.grid is not None:
            require_spec(self, Grid, grid=self.grid)
        if self.epsilon is not None:
            require_spec(self, Epsilon, epsilon=self.epsilon)
        if self.places is not None:
            dequantisation.LogitLogistic(net=self.places)
        if self.draws > 1 and (self.probes or self.grid is not None):
            raise ValueError(
                f"BitsPerDim.draws = {self.draws} with probes = {self.probes} and grid = {self.grid!r}: expected probes = 0 and no "
                "grid, since the weights need the likelihood itself"
            )
        if self.grid is None and (self.epsilon is not None or self.paths > 1):
            raise ValueError(f"BitsPerDim.epsilon = {self.epsilon!r} and paths = {self.paths} without a grid: expected grid=")

    def check(self, experiment):
        """Whether the data are levels, were trained on as cells, and the model has a likelihood."""
        data, process = experiment.data, experiment.process
        if self.split not in data.dataset.splits:
            raise ValueError(f"BitsPerDim.split = {self.split!r} of {data.name}: expected one of {list(data.dataset.splits)}")
        if not isinstance(data.transform, Cells):
            raise ValueError(f"BitsPerDim for {data.name} under {data.transform!r}: expected data with levels, as Pixels has them")
        if not data.dequantise:
            raise ValueError(
                "BitsPerDim with DataSpec.dequantise = False: expected True, since a model of the centres of cells has no density "
                "between them"
            )
        require_spec(self, LinearGaussian | StochasticInterpolant, process=process)
        if isinstance(process, StochasticInterpolant) and not process.has_law:
            raise ValueError(f"BitsPerDim under {process!r}, whose base has no density: expected a law as the base")
        if isinstance(process, StochasticInterpolant):
            process.require_spread("BitsPerDim")
            if process.paired and data.condition is not None:
                raise ValueError(
                    f"BitsPerDim under {process.coupling!r} and the condition {data.condition!r}: expected data without a "
                    "condition, since the base rows that belong to one have a law of their own, which is not known"
                )
        if self.n is not None and self.n > len(data.load(self.split)):
            raise ValueError(f"BitsPerDim.n = {self.n}: expected at most {len(data.load(self.split))}, the rows of {self.split}")

    def __call__(self, model, data, key):
        arrays, train, transform = data.load(self.split), data.load(), cast(Cells, data.transform)
        size = len(arrays) if self.n is None else self.n
        rows = np.unique(np.linspace(0, len(arrays) - 1, size).round().astype(int))
        key_places, key_bits = jax.random.split(key)
        places = None
        if self.places is not None:
            law, cond = dequantisation.LogitLogistic(net=self.places), data.condition_of(np.arange(len(train)))
            batch = min(64, len(train))
            places, _ = dequantisation.fit(
                law, model, train.x, transform, key=key_places, steps=self.steps, batch_size=batch, cond=cond
            )
        found = dequantisation.bits_per_dim(
            model, arrays.x[rows], transform, key=key_bits, places=places, draws=self.draws, grid=self.grid,
            epsilon=self.epsilon, paths=self.paths, probes=self.probes, cond=data.condition_of(rows, self.split), chunk=self.chunk,
        )  # fmt: skip
        # What a code without a model takes.
        plain = np.log2(transform.levels)
        values = dict(
            bits_per_dim=found.mean, standard_error=found.standard_error, n=len(rows), draws=self.draws, uniform_code=plain
        )
        return Finding(values=values | dict(bits=found.bits))
