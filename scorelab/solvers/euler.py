"""Euler in the process's own time: Euler-Maruyama on the reverse SDE, and Euler on the probability flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from scorelab.processes.base import Process
from scorelab.solvers.base import Nodes, Rows, Solver, Step
from scorelab.typing import Array, per_example_normal, require_choice


class SignMemory(NamedTuple):
    """What the log chart forgets of a walk in data space: the signs now, and how often they changed.

    Attributes:
        sign: relative to the beginning, ``(batch, *event)``.
        flips: changes of sign so far, over all elements of an example, ``(batch,)``.
    """

    sign: Array
    flips: Array

    @classmethod
    def fresh(cls, process: Process, y: Array) -> SignMemory | tuple[()]:
        """No change yet; nothing to remember where the chart is not mirrored."""
        if not process.chart.mirrored:
            return ()
        return cls(jnp.ones_like(y), jnp.zeros(len(y), jnp.int32))


def land(process: Process, x: Array, memory: SignMemory | tuple[()]) -> tuple[Array, SignMemory | tuple[()]]:
    """The coordinate of a point that was positive before a step in data space, and the memory of its sign."""
    if not memory:
        return process.encode(x), memory
    flipped = x < 0
    flips = memory.flips + jnp.sum(flipped, axis=tuple(range(1, x.ndim)), dtype=jnp.int32)
    return process.encode(jnp.abs(x)), SignMemory(jnp.where(flipped, -memory.sign, memory.sign), flips)


class InDataSpace:
    """What solvers share that step in data space: signs are remembered, and their changes reported."""

    def init(self, process, y):
        """The memory of the signs."""
        return SignMemory.fresh(process, y)

    def decode(self, process, y, carry):
        """With the sign that the walk has given to ``x``."""
        return process.decode(y) * carry.sign if carry else process.decode(y)

    def outputs(self, carry, records):
        """``sign_flips``, ``(n,)``, where the chart is mirrored."""
        return dict(sign_flips=carry.flips) if carry else {}


def time_rows(solver: Solver, process: Process, times: np.ndarray, denoise: bool) -> tuple[Nodes[np.ndarray], Rows]:
    """Rows with the time increments; the row of a step that ends in the denoised mean has increment 0 and ``last`` 1."""
    nodes = Nodes.at(process, times)
    increments = np.diff(nodes.t)
    last = np.zeros(len(increments))
    if (nodes.sigma[-1] == 0 and denoise) or not np.isfinite(increments[-1]):
        increments[-1], last[-1] = 0.0, 1.0
    rows = dict(t=nodes.t[:-1], step=np.arange(len(last)), dt=increments, last=last)
    if nodes.alpha[0] == 0 and solver.stochastic:
        raise ValueError(
            f"{type(solver).__name__} needs finite SDE rates, but alpha is 0 at t = {nodes.t[0]} under {process.schedule}: "
            "start the grid below it (such as t_max=0.99)"
        )
    return nodes, rows


def finish(prediction, y, row):
    """The denoised mean on the row marked ``last``, ``y`` elsewhere."""
    alpha_clean, offset_clean = row["clean"]
    return jnp.where(row["last"] > 0, alpha_clean * prediction.denoised + offset_clean, y)


@dataclass(frozen=True, kw_only=True)
class ProbabilityFlowEuler(Solver):
    r"""Euler on the probability flow in the process's own time, :math:`y_s = y_t + (s-t)\,\dot y_t`.

    On EDM and rectified flow this is the field's Euler sampler (and equals DDIM); on other schedules DDIM has the
    smaller error. A step to sigma = 0 returns the denoised mean.
    """

    order = 1
    stochastic = False

    def table(self, process, times):
        """See the class."""
        nodes, rows = time_rows(self, process, times, denoise=True)
        d_alpha, d_sigma, d_offset = (
            np.broadcast_to(f(nodes.t[:-1]), (len(rows["dt"]),)) for f in (process.d_alpha, process.d_sigma, process.d_offset)
        )
        clean = np.tile([nodes.alpha[-1], nodes.offset[-1]], (len(rows["dt"]), 1))
        return rows | dict(b=rows["dt"] * d_alpha, e=rows["dt"] * d_sigma, o=rows["dt"] * d_offset, clean=clean)

    def step(self, model, keys, y, carry, row):
        """See the class."""
        prediction = model(y, row["t"])
        out = y + row["b"] * prediction.denoised + row["e"] * prediction.eps + row["o"]
        return Step(finish(prediction, out, row), carry, prediction)


class ReverseSDE(InDataSpace, Solver):
    """The table that Euler-Maruyama and Milstein share."""

    stochastic = True
    noise_level = 1.0

    denoise: bool

    def table(self, process, times):
        """Rates of the SDE at the beginning of each step."""
        nodes, rows = time_rows(self, process, times, self.denoise)
        t = nodes.t[:-1]
        f, g2 = np.asarray(process.schedule.drift_rate(t)), np.asarray(process.schedule.diffusion_rate(t))
        dt = rows["dt"]
        a = 1 + dt * f
        clean = np.tile([nodes.alpha[-1], nodes.offset[-1]], (len(dt), 1))
        o = nodes.offset[:-1] * (1 - a) + dt * np.broadcast_to(process.d_offset(t), dt.shape)
        return rows | dict(a=a, e=dt * g2 / nodes.sigma[:-1], n=np.sqrt(-dt * g2), root_dt=np.sqrt(-dt), o=o, clean=clean)

    def step_in_data_space(self, model, keys, y, carry, row, correction: float) -> Step:
        """One step of the data-space SDE, with ``correction`` times Milstein's second-order term."""
        prediction = model(y, row["t"])
        process, t = prediction.process, row["t"]
        x, noise = process.decode(y), per_example_normal(keys, y)
        drift = process.reverse_drift(x, t, process.chart.ambient_score(x, prediction.score))
        out = x + row["dt"] * drift + row["root_dt"] * process.diffusion(x, t) * noise
        if correction:
            # b b' = phi'' g^2 for the diagonal diffusion b = phi' g, and div(b^2) = 2 phi'' g^2.
            out = out - row["dt"] * correction * 0.25 * process.div_diffusion(x, t) * (noise**2 - 1)
        # A row that ends in the denoised mean has dt = 0: x stays where it is, and so do its signs.
        out, carry = land(process, out, carry)
        return Step(finish(prediction, out, row), carry, prediction)


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(ReverseSDE):
    r"""Euler-Maruyama on the reverse SDE, in the chart or in data space.

    Latent: :math:`y_s = y_t + [f(y-b) + \dot b - g^2\nabla\log p_t]\,(s-t) + g\sqrt{t-s}\,z`. Ambient: the same rule for
    :math:`x`, with the divergence of the state-dependent diffusion (:mod:`scorelab.processes.base`). The two agree on
    the identity chart. Under geometric Brownian motion, with the Hyvarinen score :math:`h` and :math:`\delta=t-s`, they
    are the two samplers of "Dale meets Langevin" (arXiv 2510.02730),

    .. math:: \text{latent (Dale-Langevin)}\quad& x \leftarrow x\,e^{\delta(\sigma^2h-\mu+\frac32\sigma^2)+\sqrt\delta\sigma z},\\
              \text{ambient (sign-agnostic)}\quad& x \leftarrow x\,(1+\delta(\sigma^2h-\mu+2\sigma^2)+\sqrt\delta\sigma z).

    The second may change signs when steps are large; ``diagnostics["sign_flips"]`` counts them for each sample. Weak
    order 1 both; strong order 1 latent (the noise of the log chart is additive) and 1/2 ambient.

    Attributes:
        coords: ``"latent"`` (chart) or ``"ambient"`` (data space).
        denoise: end a step to sigma = 0 with the denoised mean instead of a noisy Euler-Maruyama step.
    """

    coords: Literal["latent", "ambient"] = "latent"
    denoise: bool = True

    order = 1

    def __post_init__(self):
        require_choice(self, ("latent", "ambient"), coords=self.coords)
        require_choice(self, (True, False), denoise=self.denoise)

    def init(self, process, y):
        """The memory of the signs in data space."""
        return super().init(process, y) if self.coords == "ambient" else ()

    def noise(self, row):
        """The noise of a latent step; in data space it depends on the state."""
        return row["n"] * (1 - row["last"]) if self.coords == "latent" else None

    def step(self, model, keys, y, carry, row):
        """See the class."""
        if self.coords == "ambient":
            return self.step_in_data_space(model, keys, y, carry, row, 0.0)
        prediction = model(y, row["t"])
        out = row["a"] * y + row["e"] * prediction.eps + row["o"] + row["n"] * per_example_normal(keys, y)
        return Step(finish(prediction, out, row), carry, prediction)


@dataclass(frozen=True, kw_only=True)
class Milstein(ReverseSDE):
    r"""Milstein's rule on the reverse SDE in data space: strong order 1 where the noise depends on the state.

    .. math:: x_s = x_{\text{Euler-Maruyama}} + \tfrac12 b\,b'\,\delta\,(z^2-1),\qquad b = \phi' g,\quad b\,b' = \phi'' g^2 ,

    elementwise, with :math:`\delta = t - s`. On the identity chart it is Euler-Maruyama; under geometric Brownian motion
    it adds :math:`\tfrac12\delta\sigma^2(z^2-1)` to the factor of the sign-agnostic step.

    Attributes:
        denoise: end a step to sigma = 0 with the denoised mean instead of a noisy step.
    """

    denoise: bool = True

    order = 1

    def __post_init__(self):
        require_choice(self, (True, False), denoise=self.denoise)

    def step(self, model, keys, y, carry, row):
        """See the class."""
        return self.step_in_data_space(model, keys, y, carry, row, 1.0)
