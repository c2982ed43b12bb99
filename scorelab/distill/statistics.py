"""Running statistics of a distillation by noise level: what shows early that it goes wrong."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, on_host
from scorelab.distill.normalisation import Bins

# Weight of the past: the statistics span some hundred steps.
DECAY = 0.99
_NAMES = {
    "student": ("ratio", "h", "h_square", "clipped", "gap", "fake_error", "teacher_error"),
    "real": ("right",),
    "fake": ("right",),
}


class RunningStatistics:
    r"""Sums in bins of the noise level, decayed, as a dict of ``(bins,)`` arrays in the state.

    Read, with the mean over the student's samples:

    - ``ratio``: :math:`E_q[r]`, 1 at every noise level for the right ratio, and the cheapest check of a discriminator. Where the
      student never goes it cannot be seen: alike below 1 at small noise, it is the share of the teacher that the student reaches;
    - ``h_cv``: the deviation of ``h`` over its mean, which is how much noise the divergence adds;
    - ``clipped``: the share of clipped ratios;
    - ``accuracy``: the share of points the discriminator judges rightly, real and fake in equal parts. One half, with a ratio of 1,
      is what the end looks like, and a discriminator that has learned nothing;
    - ``gap``: the root mean square of :math:`D_q - D_p`;
    - ``fake_error``, ``teacher_error``: root mean square of :math:`D - y_0` on the student's samples. The fake score follows the
      student where its error is the smaller one; to be read early, since at the end there is little left to follow.
    """

    @staticmethod
    def empty(count: int) -> dict[str, Array]:
        """Before the first step."""
        names = [f"{group}_{name}" for group, inner in _NAMES.items() for name in ("count", *inner)]
        return {name: jnp.zeros(count, jnp.float32) for name in names}

    @staticmethod
    def add(running: dict[str, Array], bins: Bins, index: Array, group: str, values: Mapping[str, Array]) -> dict[str, Array]:
        """With the values ``(n,)`` of one step, in the bins ``index``; a name that is not given is unknown from then on."""
        known = {"count": jnp.ones(index.shape, jnp.float32), **values}
        new = dict(running)
        for name in ("count", *_NAMES[group]):
            value = known.get(name, jnp.full(index.shape, jnp.nan)).astype(jnp.float32)
            new[f"{group}_{name}"] = DECAY * running[f"{group}_{name}"] + bins.sums(index, value)
        return new

    @staticmethod
    def read(running: dict[str, Array], bins: Bins) -> dict[str, np.ndarray]:
        """See the class; and ``noise``, the noise ratio of each bin, and ``count``. NaN where nothing was seen."""
        sums = {name: np.asarray(on_host(value), np.float64) for name, value in running.items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = {n: v / sums[f"{n.split('_')[0]}_count"] for n, v in sums.items()}
            variance = mean["student_h_square"] - mean["student_h"] ** 2
            return dict(
                noise=bins.centres(),
                count=sums["student_count"],
                ratio=mean["student_ratio"],
                h_cv=np.sqrt(np.maximum(variance, 0)) / mean["student_h"],
                clipped=mean["student_clipped"],
                accuracy=(mean["real_right"] + mean["fake_right"]) / 2,
                gap=np.sqrt(mean["student_gap"]),
                fake_error=np.sqrt(mean["student_fake_error"]),
                teacher_error=np.sqrt(mean["student_teacher_error"]),
            )
