"""Euler in the process's own time: Euler-Maruyama on the reverse SDE, and Euler on the probability flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array
from scorelab.grids import just_below
from scorelab.processes.linear_gaussian import GaussianPrediction, LinearGaussian
from scorelab.randomness import per_example_normal
from scorelab.solvers.base import Nodes, Solver
from scorelab.validation import require_choice


class SignMemory(NamedTuple):
    """What the log chart forgets of a walk in data space: the signs now, and how often they changed.

    Attributes:
        sign: relative to the beginning, ``(batch, *event)``.
        flips: changes of sign so far, over all elements of an example, ``(batch,)``.
    """

    sign: Array
    flips: Array

    @classmethod
    def fresh(cls, process: LinearGaussian, y: Array) -> SignMemory | tuple[()]:
        """No change yet; nothing to remember where the chart is not mirrored."""
        if not process.chart.mirrored:
            return ()
        return cls(jnp.ones_like(y), jnp.zeros(len(y), jnp.int32))


def land(process: LinearGaussian, x: Array, memory: SignMemory | tuple[()]) -> tuple[Array, SignMemory | tuple[()]]:
    """The coordinate of a point that was positive before a step in data space, and the memory of its sign."""
    if not memory:
        return process.encode(x), memory
    flipped = x < 0
    flips = memory.flips + jnp.sum(flipped, axis=tuple(range(1, x.ndim)), dtype=jnp.int32)
    return process.encode(jnp.abs(x)), SignMemory(jnp.where(flipped, -memory.sign, memory.sign), flips)


class InDataSpace:
    """What solvers share that step in data space, or may: signs are remembered, and their changes reported."""

    coords: Literal["latent", "ambient"] = "ambient"

    def init(self, process, y, log_weights):
        """The memory of the signs, in data space."""
        return SignMemory.fresh(process, y) if self.coords == "ambient" else ()

    def decode(self, process, y, carry):
        """With the sign that the walk has given to ``x``."""
        return process.decode(y) * carry.sign if carry else process.decode(y)

    def outputs(self, carry, records):
        """``sign_flips``, ``(n,)``, where the chart is mirrored."""
        return dict(sign_flips=carry.flips) if carry else {}


class Landing(NamedTuple):
    """How a row ends in the denoised mean, where it does.

    Attributes:
        last: 1 where it does, 0 elsewhere.
        alpha: that of the last time.
        offset: that of the last time.
    """

    last: Array
    alpha: Array
    offset: Array

    @classmethod
    def at(cls, solver: Solver, nodes: Nodes[np.ndarray], denoise: bool) -> tuple[Landing, np.ndarray]:
        """The landings of all steps, and their time increments; that of a step that ends in the denoised mean is 0."""
        increments = np.diff(nodes.t)
        last = np.zeros(len(increments))
        if (nodes.sigma[-1] == 0 and denoise) or not np.isfinite(increments[-1]):
            increments[-1], last[-1] = 0.0, 1.0
        if nodes.alpha[0] == 0 and solver.stochastic:
            raise ValueError(
                f"{type(solver).__name__} needs finite SDE rates, but alpha is 0 at t = {nodes.t[0]:g}: start the grid below it "
                f"(such as t_max={just_below(nodes.t[0]):g})"
            )
        return cls(last, np.full(len(last), nodes.alpha[-1]), np.full(len(last), nodes.offset[-1])), increments

    def __call__(self, prediction: GaussianPrediction, y: Array) -> Array:
        """The denoised mean on the last row, ``y`` elsewhere."""
        return jnp.where(self.last > 0, self.alpha * prediction.denoised + self.offset, y)


class FlowRow(NamedTuple):
    r"""The numbers of :math:`y_s = y_t + b D + e\hat\epsilon + o`.

    Attributes:
        t: where the model is asked.
        step: the grid step.
        b: :math:`(s-t)\,\dot\alpha_t`.
        e: :math:`(s-t)\,\dot\sigma_t`.
        o: :math:`(s-t)\,\dot b_t`.
        end: how the row lands.
    """

    t: Array
    step: Array
    b: Array
    e: Array
    o: Array
    end: Landing


@dataclass(frozen=True, kw_only=True)
class ProbabilityFlowEuler(Solver):
    r"""Euler on the probability flow in the process's own time, :math:`y_s = y_t + (s-t)\,\dot y_t`.

    On EDM and rectified flow this is the field's Euler sampler (and equals DDIM); on other schedules DDIM has the
    smaller error. A step to sigma = 0 returns the denoised mean.
    """

    order = 1
    stochastic = False

    def table(self, process, times):
        nodes = Nodes.at(process, times)
        end, dt = Landing.at(self, nodes, denoise=True)
        rates = (np.broadcast_to(f(nodes.t[:-1]), dt.shape) for f in (process.d_alpha, process.d_sigma, process.d_offset))
        b, e, o = (dt * rate for rate in rates)
        return FlowRow(t=nodes.t[:-1], step=np.arange(len(dt)), b=b, e=e, o=o, end=end)

    def update(self, keys, y, prediction, carry, row: FlowRow):
        return row.end(prediction, y + row.b * prediction.denoised + row.e * prediction.eps + row.o), carry


class ReverseRow(NamedTuple):
    r"""The numbers of :math:`y_s = a\,y_t + e\hat\epsilon + n z + o` in the chart, and of the same step in data space.

    Attributes:
        t: where the model is asked.
        step: the grid step.
        dt: :math:`s-t`, below 0.
        root_dt: :math:`\sqrt{t-s}`.
        a: :math:`1 + (s-t) f_t`.
        e: :math:`(s-t)\,g_t^2/\sigma_t`.
        o: the offset.
        n: :math:`g_t\sqrt{t-s}`.
        end: how the row lands.
    """

    t: Array
    step: Array
    dt: Array
    root_dt: Array
    a: Array
    e: Array
    o: Array
    n: Array
    end: Landing


class ReverseSDE(InDataSpace, Solver):
    """The table that Euler-Maruyama and Milstein share."""

    stochastic = True
    noise_level = 1.0

    denoise: bool

    def table(self, process, times):
        """Rates of the SDE at the beginning of each step."""
        nodes = Nodes.at(process, times)
        end, dt = Landing.at(self, nodes, self.denoise)
        t = nodes.t[:-1]
        f, g2 = np.asarray(process.schedule.drift_rate(t)), np.asarray(process.schedule.diffusion_rate(t))
        a = 1 + dt * f
        o = nodes.offset[:-1] * (1 - a) + dt * np.broadcast_to(process.d_offset(t), dt.shape)
        e, n = dt * g2 / nodes.sigma[:-1], np.sqrt(-dt * g2)
        return ReverseRow(t=t, step=np.arange(len(dt)), dt=dt, root_dt=np.sqrt(-dt), a=a, e=e, o=o, n=n, end=end)

    def in_data_space(self, keys, y, prediction, carry, row: ReverseRow, correction: float):
        """One step of the data-space SDE, with ``correction`` times Milstein's second-order term."""
        process, t = prediction.process, row.t
        x, noise = process.decode(y), per_example_normal(keys, y)
        drift = process.reverse_drift(x, t, process.chart.ambient_score(x, prediction.score))
        out = x + row.dt * drift + row.root_dt * process.diffusion(x, t) * noise
        if correction:
            # b b' = phi'' g^2 for the diagonal diffusion b = phi' g, and div(b^2) = 2 phi'' g^2.
            out = out - row.dt * correction * 0.25 * process.div_diffusion(x, t) * (noise**2 - 1)
        # A row that ends in the denoised mean has dt = 0: x stays where it is, and so do its signs.
        out, carry = land(process, out, carry)
        return row.end(prediction, out), carry


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(ReverseSDE):
    r"""Euler-Maruyama on the reverse SDE, in the chart or in data space.

    Latent: :math:`y_s = y_t + [f(y-b) + \dot b - g^2\nabla\log p_t]\,(s-t) + g\sqrt{t-s}\,z`. Ambient: the same rule for
    :math:`x`, with the divergence of the state-dependent diffusion (:mod:`scorelab.processes.linear_gaussian`). The two agree on
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

    def noise(self, row):
        """The noise of a latent step; in data space it depends on the state."""
        return row.n * (1 - row.end.last) if self.coords == "latent" else None

    def update(self, keys, y, prediction, carry, row: ReverseRow):
        if self.coords == "ambient":
            return self.in_data_space(keys, y, prediction, carry, row, 0.0)
        out = row.a * y + row.e * prediction.eps + row.o + row.n * per_example_normal(keys, y)
        return row.end(prediction, out), carry


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

    def update(self, keys, y, prediction, carry, row: ReverseRow):
        return self.in_data_space(keys, y, prediction, carry, row, 1.0)
