"""Denoising score matching."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Key, Pytree, per_example
from scorelab.losses.base import Batch, PredictionLoss, example_keys, mean_square, require_floating
from scorelab.losses.conditions import ConditionDropout
from scorelab.losses.times import LogNormalTimes, Times
from scorelab.losses.weightings import EDMWeighting, Weighting, require_weighting, weights
from scorelab.processes.base import Noised
from scorelab.processes.linear_gaussian import GaussianPrediction, LinearGaussian
from scorelab.processes.predictions import HasDenoised, HasNoise, require_capabilities
from scorelab.validation import require_int, require_number, require_spec


@dataclass(frozen=True)
class DenoisingScoreMatching(PredictionLoss):
    r"""Weighted denoising: :math:`w(t)\,\lVert D(y_t,t)-y_0\rVert^2/d` at a random time with random noise.

    With :math:`r=\sigma/\alpha` the errors are :math:`D-y_0 = -r\,(\hat\epsilon-\epsilon)`. In float32 the
    left side loses digits where the noise is small and the right side where it is large, so each is used on
    its side of :math:`r=1`. The minimiser is :math:`D=E[y_0\mid y_t]` for every weighting and every law of
    the times with full support (Vincent 2011).

    Attributes:
        process: the forward process; errors are measured in its chart.
        weighting: ``w``, a function of ``(process, t)``.
        times: the law of ``t``.
        label_dropout: probability with which an example's label is replaced by the null one, which trains
            the unconditional model of classifier-free guidance alongside (Ho & Salimans 2022).
        null_label: the null label; needed when ``label_dropout`` is above zero. Networks of this library
            take ``num_classes`` for it, and no condition at all means the same.
        condition_dropout: the same for conditions of any kind, each member by itself and all together; the two above are its short
            form for labels.

    Metrics: ``eps_mse``, the unweighted error in the noise.

    Raises:
        TypeError: ``batch["x"]`` is not floating point (raw pixels: scale them in the ``prepare`` of the
            data).
        ValueError: conditions are dropped and the batch has no ``cond``, or labels are and it is none.
    """

    process: LinearGaussian
    _: KW_ONLY
    weighting: Weighting = field(default_factory=EDMWeighting)
    times: Times = field(default_factory=LogNormalTimes)
    label_dropout: float = 0.0
    null_label: int | None = None
    condition_dropout: ConditionDropout | None = None

    def __post_init__(self):
        require_spec(self, LinearGaussian, process=self.process)
        require_spec(self, Times, times=self.times)
        require_weighting(self)
        require_number(self, 0.0, 1.0, label_dropout=self.label_dropout)
        if self.condition_dropout is not None:
            require_spec(self, ConditionDropout, condition_dropout=self.condition_dropout)
            if self.label_dropout or self.null_label is not None:
                raise ValueError(
                    f"{type(self).__name__}.label_dropout = {self.label_dropout}, null_label = {self.null_label} beside "
                    "condition_dropout: expected 0 and None"
                )
        if self.null_label is not None:
            require_int(self, 0, null_label=self.null_label)
        elif self.label_dropout > 0:
            raise ValueError(
                f"{type(self).__name__}.null_label = None: expected the null condition (num_classes of the "
                f"network), since label_dropout = {self.label_dropout}"
            )

    def weight(self, t: Array) -> Array:
        """The weight of the error in the denoised data at ``t``."""
        return weights(self, t)

    def draw(self, key: Key, batch: Batch) -> Noised:
        """Noised data, with some conditions dropped."""
        x = batch["x"]
        require_floating(x)
        key_times, key_noise, key_labels = jax.random.split(key, 3)
        t = self.times(key_times, self.process, len(x))
        cond = self._drop(key_labels, batch.get("cond"), len(x))
        return self.noised(key_noise, batch, t)._replace(cond=cond, keys=example_keys(key, len(x)))

    def noised(self, key: Key, batch: Batch, t: Array) -> Noised:
        """The noised batch at ``t``, ``(batch,)``."""
        return self.process.perturb(key, batch["x"], t)

    def judge(self, prediction: GaussianPrediction, noised: Noised) -> tuple[Array, dict[str, Any]]:
        require_capabilities(type(self).__name__, prediction, (HasDenoised, HasNoise))
        square = mean_square(denoised_error(prediction, noised.y0, noised.noise))
        return self.weight(noised.t) * square, {"eps_mse": jnp.mean(mean_square(prediction.eps - noised.noise))}

    def _drop(self, key: Key, cond: Pytree, n: int) -> Pytree:
        if self.condition_dropout is not None:
            return self.condition_dropout(key, cond)
        if self.label_dropout == 0:
            return cond
        if cond is None:
            raise ValueError(f'batch["cond"] = None: expected one, label_dropout = {self.label_dropout}')
        dtype = getattr(cond, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
            raise ValueError(
                f'batch["cond"] is {type(cond).__name__ if dtype is None else dtype}: expected one array of integer labels, '
                f"label_dropout = {self.label_dropout}; for other conditions expected condition_dropout, a ConditionDropout"
            )
        dropped = jax.random.bernoulli(key, self.label_dropout, (n,))
        return jnp.where(per_example(dropped, cond), jnp.asarray(self.null_label, dtype), cond)


def denoised_error(prediction: GaussianPrediction, y0: Array, eps: Array) -> Array:
    r""":math:`D - y_0`, for a consistent pair ``(y0, eps)`` behind the point that was predicted for.

    It equals :math:`-r\,(\hat\epsilon-\epsilon)` with :math:`r=\sigma/\alpha`, which keeps its digits where ``r`` is small.
    """
    ratio = prediction.process.noise_ratio(prediction.t)
    # The ratio is capped in the branch that is not taken: alpha = 0 would put inf * 0 into its gradient.
    small = per_example(jnp.minimum(ratio, 1.0), eps)
    return jnp.where(per_example(ratio <= 1, eps), small * (eps - prediction.eps), prediction.denoised - y0)
