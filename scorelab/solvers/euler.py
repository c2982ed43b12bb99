"""Euler in the process's own time: Euler-Maruyama on the reverse SDE, and Euler on the probability flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from scorelab.processes.base import Process
from scorelab.solvers.base import Nodes, Rows, Solver, Step
from scorelab.typing import per_example_normal, require_choice


def time_rows(solver: Solver, process: Process, times: np.ndarray, denoise: bool) -> tuple[Nodes, Rows]:
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

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    calls_per_step: ClassVar[int] = 1

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


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(Solver):
    r"""Euler-Maruyama on the reverse SDE, in the chart or in data space.

    Latent: :math:`y_s = y_t + [f(y-b) + \dot b - g^2\nabla\log p_t]\,(s-t) + g\sqrt{t-s}\,z`. Ambient: the same rule for
    :math:`x`, with the divergence of the state-dependent diffusion (:mod:`scorelab.processes.base`). The two agree on
    the identity chart.

    Attributes:
        coords: ``"latent"`` (chart) or ``"ambient"`` (data space).
        denoise: end a step to sigma = 0 with the denoised mean instead of a noisy Euler-Maruyama step.
    """

    coords: Literal["latent", "ambient"] = "latent"
    denoise: bool = True

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    calls_per_step: ClassVar[int] = 1

    def __post_init__(self):
        require_choice(self, ("latent", "ambient"), coords=self.coords)
        require_choice(self, (True, False), denoise=self.denoise)

    def table(self, process, times):
        """See the class."""
        nodes, rows = time_rows(self, process, times, self.denoise)
        t = nodes.t[:-1]
        f, g2 = np.asarray(process.schedule.drift_rate(t)), np.asarray(process.schedule.diffusion_rate(t))
        dt = rows["dt"]
        a = 1 + dt * f
        clean = np.tile([nodes.alpha[-1], nodes.offset[-1]], (len(dt), 1))
        o = nodes.offset[:-1] * (1 - a) + dt * np.broadcast_to(process.d_offset(t), dt.shape)
        return rows | dict(a=a, e=dt * g2 / nodes.sigma[:-1], n=np.sqrt(-dt * g2), root_dt=np.sqrt(-dt), o=o, clean=clean)

    def step(self, model, keys, y, carry, row):
        """See the class."""
        prediction = model(y, row["t"])
        noise = per_example_normal(keys, y)
        if self.coords == "latent":
            out = row["a"] * y + row["e"] * prediction.eps + row["o"] + row["n"] * noise
        else:
            process = prediction.process
            x = process.decode(y)
            score = process.chart.ambient_score(x, prediction.score)
            drift = process.reverse_drift(x, row["t"], score)
            x = x + row["dt"] * drift + row["root_dt"] * process.diffusion(x, row["t"]) * noise
            out = process.encode(x)
        return Step(finish(prediction, out, row), carry, prediction)
