"""The annealed samplers of "Dale meets Langevin", as published, corrected, and without annealing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from scorelab.arrays import Array
from scorelab.processes.multiplicative import GeometricBrownianMotion
from scorelab.processes.predictions import HasNoise
from scorelab.pytrees import computed
from scorelab.randomness import per_example_normal
from scorelab.solvers.base import Solver
from scorelab.solvers.euler import InDataSpace, land
from scorelab.validation import require_choice, require_int, require_number, require_positive


class AnnealedRow(NamedTuple):
    r"""The numbers of one update, :math:`m = \mathrm{shift} - c_s\hat\epsilon + n z` of :math:`\log x` or relative to ``x``.

    Attributes:
        t: where the model is asked.
        step: the grid step.
        score: :math:`c_s = \delta g^2/\sqrt v`, of the predicted noise.
        shift: the part of the drift that is known.
        n: deviation of the noise.
    """

    t: Array
    step: Array
    score: Array
    shift: Array
    n: Array


@dataclass(frozen=True, kw_only=True)
class MultiplicativeAnnealed(InDataSpace, Solver):
    r"""Inner updates at each noise level with noise that is turned down, for geometric Brownian motion.

    At grid time ``t`` (number ``k``), ``inner`` times with the noise factor :math:`a = \mathrm{anneal}^k`:

    .. math:: \text{ambient}\quad& x \leftarrow x\,(1 + \delta(\sigma^2h - \mu + c\,\sigma^2) + a\sqrt\delta\,\sigma z),\\
              \text{latent}\quad& x \leftarrow x\,e^{\delta(\sigma^2h - \mu + \frac32\sigma^2) + a\sqrt\delta\,\sigma z},

    with the Hyvarinen score :math:`h`. Modes:

    - ``"exact"``: one update with full noise and :math:`\delta` the step of the grid, without annealing: Euler-Maruyama
      with ``denoise=False``.
    - ``"paper"``: the published heuristic, :math:`c = 2`. **It does not sample the data law even with the exact score**:
      :math:`a < 1` takes spread away, a total reverse time ``delta * inner * steps`` below ``t_max`` adds some, and in
      data space :math:`c = 2`, right for full noise only, shifts :math:`\log x` upwards (by about 0.1 on a mixture of
      deviation 0.57 at the published MNIST settings). Every update lasts ``delta``, whatever the grid.
    - ``"corrected"``: :math:`c = \tfrac32 + \tfrac12a^2`, which takes the upward shift away: the ambient rule then
      agrees with the latent one to first order. The latent rule is that of ``"paper"``.

    Sign changes in data space are counted in ``diagnostics["sign_flips"]``. Source: arXiv 2510.02730 and its code; the
    correction is ours.

    Attributes:
        mode: see above.
        coords: ``"latent"`` (Dale-Langevin) or ``"ambient"`` (sign-agnostic).
        delta: the reverse time of one update; None in mode ``"exact"``.
        inner: updates at each grid time; 1 in mode ``"exact"``.
        anneal: the factor of the noise from one grid time to the next, in (0, 1]; 1 in mode ``"exact"``.
        polish: noise-free updates at the last noise level, after the others; 0 in mode ``"exact"``.
    """

    mode: Literal["exact", "corrected", "paper"] = "exact"
    coords: Literal["latent", "ambient"] = "latent"
    delta: float | None = None
    inner: int = 1
    anneal: float = 1.0
    polish: int = 0

    process_type = GeometricBrownianMotion
    needs = (HasNoise,)
    stochastic = True

    def __post_init__(self):
        require_choice(self, ("exact", "corrected", "paper"), mode=self.mode)
        require_choice(self, ("latent", "ambient"), coords=self.coords)
        require_int(self, 1, inner=self.inner)
        require_int(self, 0, polish=self.polish)
        require_number(self, 0.0, 1.0, anneal=self.anneal)
        require_positive(self, anneal=self.anneal)
        if self.mode == "exact":
            for name, value in (("delta", None), ("inner", 1), ("anneal", 1.0), ("polish", 0)):
                if getattr(self, name) != value:
                    raise ValueError(
                        f"MultiplicativeAnnealed.{name} = {getattr(self, name)!r}: expected {value} in mode 'exact', "
                        "which does not anneal (use 'corrected' or 'paper')"
                    )
        elif self.delta is None:
            raise ValueError(f"MultiplicativeAnnealed.delta = None: expected a step of reverse time in mode {self.mode!r}")
        else:
            require_positive(self, delta=self.delta)

    @computed
    def order(self) -> int:
        """1 for ``"exact"``; 0 else, since a bias remains."""
        return 1 if self.mode == "exact" else 0

    @computed
    def calls_per_step(self) -> int:
        """The inner updates; those of the polish come once, after the last step."""
        return self.inner

    def table(self, process, times):
        """``inner`` rows for each grid time but the last, then those of the polish."""
        steps = len(times) - 1
        k = np.repeat(np.arange(steps), self.inner)
        factor = self.anneal ** k.astype(np.float64)
        delta = -np.diff(times)[k] if self.mode == "exact" else np.full(len(k), self.delta)
        if self.polish:
            k = np.append(k, np.full(self.polish, steps - 1))
            factor, delta = np.append(factor, np.zeros(self.polish)), np.append(delta, np.full(self.polish, self.delta))
        t = np.asarray(times, np.float64)[k]
        g2 = np.asarray(process.schedule.diffusion_rate(t))
        # In the log chart sigma^2 h - mu + 3/2 sigma^2 is g^2 grad log p - da/dt; the ambient rule adds (c - 3/2) g^2.
        ambient = 0.5 * (factor**2 if self.mode == "corrected" else np.ones_like(factor)) * g2
        shift = -np.broadcast_to(process.d_offset(t), t.shape) + (ambient if self.coords == "ambient" else 0.0)
        score = delta * g2 / np.asarray(process.sigma(t))
        return AnnealedRow(t=t, step=k, score=score, shift=delta * shift, n=factor * np.sqrt(delta * g2))

    def update(self, keys, y, prediction, carry, row: AnnealedRow):
        move = row.shift - row.score * prediction.eps + row.n * per_example_normal(keys, y)
        if self.coords == "latent":
            return y + move, carry
        factor, carry = land(prediction.process, 1 + move, carry)
        return y + factor, carry
