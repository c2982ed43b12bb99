r"""Two-stage normalisation of the weights of f-distill, and running statistics in bins of the noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array
from scorelab.distill.divergences import Divergence
from scorelab.losses import Times
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.validation import require_choice, require_int, require_number, require_positive


@dataclass(frozen=True, kw_only=True)
class Bins:
    r"""Bins of equal width in :math:`\log\sigma/\alpha`, over what the times of training cover.

    Equal width in the noise level itself would put most of an EDM run into the first of ten bins.

    Attributes:
        count: number of bins.
        low: least value of the logarithm; what lies outside counts to the first and the last bin.
        high: its largest value.
    """

    count: int
    low: float
    high: float

    @classmethod
    def of(cls, times: Times, process: LinearGaussian, count: int) -> Bins:
        """The bins between the 1 % and the 99 % quantiles of the times."""
        with jax.ensure_compile_time_eval():
            ends = np.array([float(times.time(jnp.float32(u), process)) for u in (0.01, 0.99)])
        ends = np.clip(ends, process.t_min, process.t_max)
        low, high = sorted(float(v) for v in -0.5 * np.asarray(process.log_snr(ends)))
        return cls(count=count, low=low, high=max(high, low + 1e-6))

    def centres(self) -> np.ndarray:
        r""":math:`\sigma/\alpha` in the middle of each bin, ``(count,)``."""
        edges = np.linspace(self.low, self.high, self.count + 1)
        return np.exp((edges[1:] + edges[:-1]) / 2)

    def index(self, process: LinearGaussian, t: Array) -> Array:
        """The bin of each time, ``(batch,)`` int32."""
        place = (-0.5 * process.log_snr(t) - self.low) / (self.high - self.low)
        return jnp.clip(jnp.floor(place * self.count), 0, self.count - 1).astype(jnp.int32)

    def sums(self, index: Array, values: Array) -> Array:
        """The sum of ``values`` ``(batch,)`` in each bin, ``(count,)``."""
        return jnp.zeros(self.count, values.dtype).at[index].add(values)


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    r"""From log-ratios to the weights ``h`` of a batch.

    .. math:: r_i = \mathrm{clip}(e^{l_i}),\qquad b_k \leftarrow e\,b_k + (1-e)\,\mathrm{mean}_{i\in k}\,r_i,\qquad
              h_i = h(r_i/b_{k(i)}),\qquad h_i \leftarrow h_i / \mathrm{mean}_j h_j .

    Stage 1 uses that :math:`E_q[r]=1` at every noise level: it calibrates a biased ratio and changes nothing for the right one.
    After stage 2 the step is a self-normalised direction, not the gradient of a fixed functional. Means are over the global batch.
    Source: f-distill (arXiv 2502.15681), section 4; numbers as in NVlabs/FastGen.

    Attributes:
        ratio: stage 1.
        unit_mean: stage 2.
        bins: number of noise levels of stage 1 and of the running statistics.
        decay: ``e``; 0 uses the batch alone, which takes the ratio away where few of its examples share a bin: small batches
            want .5 and more.
        max_log: the log-ratio is clipped to ``[-max_log, max_log]``.
        clip: the range of ``r``, or None.
    """

    ratio: bool = True
    unit_mean: bool = True
    bins: int = 10
    decay: float = 0.0
    max_log: float = 10.0
    clip: tuple[float, float] | None = (0.1, 20.0)

    def __post_init__(self):
        require_choice(self, (True, False), ratio=self.ratio, unit_mean=self.unit_mean)
        require_int(self, 1, bins=self.bins)
        require_number(self, 0.0, 0.999999, decay=self.decay)
        require_positive(self, max_log=self.max_log)
        if self.clip is not None:
            object.__setattr__(self, "clip", tuple(float(c) for c in self.clip))
            if len(self.clip) != 2 or not 0 < self.clip[0] < self.clip[1] < float("inf"):
                raise ValueError(f"Normalisation.clip = {self.clip}: expected two finite numbers with 0 < low < high, or None")

    def __call__(self, divergence: Divergence, l: Array, index: Array, means: Array, bins: Bins) -> tuple[Array, Array, Array]:
        """``h`` ``(batch,)``, the new means of the bins, and which ratios were clipped."""
        kept = jnp.clip(l, -self.max_log, self.max_log)
        if self.clip is not None:
            kept = jnp.clip(kept, *(math.log(end) for end in self.clip))
        if self.ratio:
            count = bins.sums(index, jnp.ones_like(l))
            found = bins.sums(index, jnp.exp(kept)) / jnp.maximum(count, 1)
            means = jnp.where(count > 0, self.decay * means + (1 - self.decay) * found, means).astype(means.dtype)
            used = kept - jnp.log(means + 1e-6)[index]
        else:
            used = kept
        h = divergence.h(used)
        if self.unit_mean:
            h = h / (jnp.mean(h) + 1e-6)
        return h, means, kept != l
