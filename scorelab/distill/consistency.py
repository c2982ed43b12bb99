r"""Consistency models: a network that gives the end of the probability flow from any point on it, in one call.

It is trained to give the same at both ends of short pieces of the flow. Nothing ties it to the data but the boundary condition
:math:`F(y, t_{\min}) = (y - b)/\alpha`, which the network keeps by its form: ``Denoiser(predict="consistency")``.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, Pytree
from scorelab.distill.nodes import euler_step, gather
from scorelab.grids import Grid, Karras, just_below
from scorelab.losses import Batch, LogNormalTimes, Times
from scorelab.losses.base import Loss, example_keys, mean_square, require_floating
from scorelab.models.base import Model, ask, require_model
from scorelab.processes.base import Noised, require_same_process
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.pytrees import partly_static
from scorelab.solvers.base import Nodes
from scorelab.solvers.straight import straight_velocity
from scorelab.validation import require_choice, require_positive, require_spec


@dataclass(frozen=True)
class ConsistencyTraining(Loss):
    r"""Consistency without a teacher: the same noise on the same data at neighbouring noise levels (CT, iCT).

    .. math:: w_n\, d\big(F(y_{n+1}, t_{n+1}),\ \mathrm{sg}\,F(y_n, t_n)\big),\qquad y_i = \alpha_i y_0 + b_i + \sigma_i\epsilon ,

    with ``F`` the denoised member of the model's prediction, the same parameters on both sides and no gradient through the target.
    On a grid the minimiser is the composition of Euler steps of the exact flow, as the mean of :math:`y_n` given :math:`y_{n+1}` is
    one, so its error falls as the grid is refined. The defaults are those of improved consistency training (Song & Dhariwal
    2023, arXiv 2310.14189) on a grid that does not change; the losses are those of arXiv 2303.01469.

    Attributes:
        process: the forward process; points and errors are those of its chart.
        grid: the noise levels, from ``process.t_min`` up; a last time of clean data is left out.
        times: the law of a time; the pair is the two levels around it. None draws all pairs alike.
        huber: ``c`` of the pseudo-Huber distance :math:`\sqrt{e^2 + c^2} - c`, with :math:`e^2` the mean square over the event (in
            iCT's units, :math:`c = 0.00054\sqrt d`); None for :math:`e^2` itself. A small ``c`` asks for a median of the target and
            not its mean. In images the two are close; in few dimensions training without a teacher then loses mass between modes,
            and ``c`` of a tenth of the data's deviation, or None, is the better choice.
        weighting: ``"inverse_step"``, :math:`w_n = 1/(r_{n+1} - r_n)` with :math:`r = \sigma/\alpha`, or ``"uniform"``.

    Metrics: ``consistency_mse``, the mean of :math:`e^2`.

    Raises:
        TypeError: ``batch["x"]`` is not floating point.
        ValueError: a grid that does not end at ``process.t_min``, or begins where alpha is 0.
    """

    process: LinearGaussian
    _: KW_ONLY
    grid: Grid = field(default_factory=partial(Karras, 40, clean=False))
    times: Times | None = field(default_factory=partial(LogNormalTimes, mean=-1.1, std=2.0))
    huber: float | None = 0.00054
    weighting: Literal["inverse_step", "uniform"] = "inverse_step"

    def __post_init__(self):
        require_spec(self, LinearGaussian, process=self.process)
        require_spec(self, Grid, grid=self.grid)
        if self.times is not None:
            require_spec(self, Times, times=self.times)
        if self.huber is not None:
            require_positive(self, huber=self.huber)
        require_choice(self, ("inverse_step", "uniform"), weighting=self.weighting)
        nodes = self.levels
        if len(nodes.t) < 2 or nodes.t[0] != self.process.t_min:
            raise ValueError(
                f"{type(self).__name__}.grid = {self.grid!r} has the times {nodes.t[::-1]} before clean data: expected two or more "
                f"that end at t_min = {self.process.t_min} of the process, such as Karras(40, clean=False)"
            )
        if nodes.alpha[-1] == 0:
            raise ValueError(
                f"{type(self).__name__}.grid = {self.grid!r} begins at t = {nodes.t[-1]} where alpha is 0: expected a later "
                f"beginning (such as t_max={just_below(nodes.t[-1]):g})"
            )

    @property
    def levels(self) -> Nodes[np.ndarray]:
        """The noise levels from the smallest up, float64 on the host."""
        times = self.grid.times(self.process)
        clean = float(self.process.sigma(times[-1])) == 0
        return Nodes.at(self.process, times[::-1][1:] if clean else times[::-1])

    def draw(self, key: Key, batch: Batch) -> Noised:
        """Data noised to the upper level of a pair; ``extra`` is the number of the lower one."""
        x, levels = batch["x"], self.levels
        require_floating(x)
        key_pair, key_noise = jax.random.split(key)
        n = self._pair(key_pair, levels, len(x))
        noised = self.process.perturb(key_noise, x, gather(levels, n + 1, x).t)
        return noised._replace(cond=batch.get("cond"), keys=example_keys(key, len(x)), extra=n)

    def error(self, model: Model, noised: Noised) -> Array:
        return self.evaluate(model, noised)[0]

    def evaluate(self, model: Model, noised: Noised) -> tuple[Array, dict[str, Array]]:
        """The errors, and the metrics of the class."""
        levels, n, cond = self.levels, noised.extra, noised.cond
        near, far = gather(levels, n, noised.y), gather(levels, n + 1, noised.y)
        target = self.ask(model, self.neighbour(noised, far, near, cond), near.t, cond).denoised
        online = self.ask(model, noised.y, far.t, cond).denoised
        square = mean_square(online - jax.lax.stop_gradient(target))
        # sqrt(e^2 + c^2) - c without its cancellation: e is far below c between neighbours.
        distance = square if self.huber is None else square / (jnp.sqrt(square + self.huber**2) + self.huber)
        if self.weighting == "inverse_step":
            distance = distance * jnp.asarray(1 / np.diff(np.exp(-levels.half_log_snr)), noised.y.dtype)[n]
        return distance, {"consistency_mse": jnp.mean(square)}

    def neighbour(self, noised: Noised, far: Nodes[Array], near: Nodes[Array], cond: Pytree) -> Array:
        """The point at the lower level of the pair that belongs to ``noised`` at the upper one."""
        return near.alpha * noised.y0 + near.offset + near.sigma * noised.noise

    def _pair(self, key: Key, levels: Nodes[np.ndarray], count: int) -> Array:
        """Numbers ``n`` of the lower levels, ``(count,)``."""
        last = len(levels.t) - 2
        if self.times is None:
            return jax.random.randint(key, (count,), 0, last + 1)
        t = self.times(key, self.process, count)
        return jnp.clip(jnp.searchsorted(jnp.asarray(levels.t, t.dtype), t) - 1, 0, last)


@partly_static("teacher")
@dataclass(frozen=True)
class ConsistencyDistillation(ConsistencyTraining):
    r"""Consistency along a teacher's probability flow (CD): :class:`ConsistencyTraining`, with :math:`y_n` one step of the flow.

    The step goes from :math:`y_{n+1}` in the coordinate that straightens the flow (:mod:`scorelab.solvers.straight`). The
    step's error is of order ``order + 1`` in the step, and that of the composed minimiser of order ``order``. Song et al. (2023),
    arXiv 2303.01469, Algorithm 2, with the stopped network in the place of its average.

    Attributes:
        teacher: the model whose flow is followed; a pytree's arrays are arguments of the compiled step.
        order: 2 for Heun's step (two calls of the teacher), 1 for Euler's (one).
    """

    _: KW_ONLY
    teacher: Model
    order: Literal[1, 2] = 2

    def __post_init__(self):
        super().__post_init__()
        require_choice(self, (1, 2), order=self.order)
        require_model(type(self).__name__, self.teacher, "teacher")
        require_same_process(type(self).__name__, process=self.process, teacher=self.teacher.process)

    def neighbour(self, noised, far, near, cond):
        """The teacher's step."""
        first = ask(self.teacher, noised.y, far.t, cond)
        y = euler_step(first, near)
        if self.order == 1:
            return y
        second = ask(self.teacher, y, near.t, cond)
        slope = self.levels.slope
        change = straight_velocity(second, slope) - straight_velocity(first, slope)
        return y + 0.5 * near.scale * (near.ratio - far.ratio) * change
