"""Progressive distillation: a student whose one step is two steps of its teacher, and so on with the student as the teacher."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, Pytree, per_example
from scorelab.distill.nodes import euler_step, gather
from scorelab.grids import Explicit, Grid
from scorelab.losses import Batch, TruncatedSNR, Weighting
from scorelab.losses.base import Loss, example_keys, mean_square, require_floating
from scorelab.losses.denoising import denoised_error
from scorelab.losses.weightings import require_weighting, weights
from scorelab.models.base import Model, ask, require_model
from scorelab.processes.base import Noised, require_same_process
from scorelab.processes.linear_gaussian import GaussianPrediction, LinearGaussian
from scorelab.pytrees import partly_static
from scorelab.solvers.base import Nodes
from scorelab.validation import require_spec


@partly_static("teacher")
@dataclass(frozen=True)
class ProgressiveDistillation(Loss):
    r"""Two DDIM steps of a teacher, :math:`t\to t'\to t''`, as the target of one step of the student (Salimans & Ho 2022).

    The student matches :math:`(\tilde y_0, \tilde\epsilon)`, the pair whose single DDIM step ends where the two steps end,

    .. math:: \tilde y_0 = \frac{(z''-b'') - (\sigma''/\sigma)(z-b)}{\alpha'' - (\sigma''/\sigma)\alpha},

    with the weighted error :math:`w(t)\lVert D - \tilde y_0\rVert^2/d` at the even times of the teacher's grid, all alike. What it
    learns is DDIM on :attr:`student_grid`. Rounds are chained with :meth:`halve`, here to a model of one step::

        loss = ProgressiveDistillation(process, teacher=teacher, grid=Uniform(16))
        while True:
            learner = ScoreLearner(denoiser, loss, optimizer, initial=loss.teacher)
            student, grid = learner.model(fit(learner, data, steps=steps, key=key)), loss.student_grid
            if len(grid.values) == 2:
                break
            loss = loss.halve(student)

    Source: arXiv 2202.00512, Algorithm 2. An ``"eps"`` network has no finite answer where alpha is 0, and few steps begin there:
    the paper uses ``"x0"`` and ``"v"``.

    Attributes:
        process: the forward process; errors are measured in its chart.
        teacher: the model whose steps are matched; a pytree's arrays are arguments of the compiled step.
        grid: the teacher's grid, of an even number of steps.
        weighting: ``w``, a function of ``(process, t)``.

    Metrics: ``eps_mse``, the unweighted error in the noise.

    Raises:
        TypeError: ``batch["x"]`` is not floating point.
        ValueError: a grid of an odd number of steps.
    """

    process: LinearGaussian
    _: KW_ONLY
    teacher: Model
    grid: Grid
    weighting: Weighting = field(default_factory=TruncatedSNR)

    def __post_init__(self):
        require_spec(self, LinearGaussian, process=self.process)
        require_spec(self, Grid, grid=self.grid)
        require_weighting(self)
        require_model("ProgressiveDistillation", self.teacher, "teacher")
        require_same_process("ProgressiveDistillation", process=self.process, teacher=self.teacher.process)
        steps = len(self.grid.times(self.process)) - 1
        if steps % 2:
            raise ValueError(f"ProgressiveDistillation.grid = {self.grid!r} has {steps} steps: expected an even number")

    @property
    def student_grid(self) -> Explicit:
        """Every second time of the teacher's grid, on which the student is sampled with DDIM."""
        return Explicit(tuple(self.grid.times(self.process)[::2]))

    def halve(self, student: Model) -> ProgressiveDistillation:
        """The loss of the next round: ``student`` is the teacher, on the student's grid."""
        return replace(self, teacher=student, grid=self.student_grid)

    def draw(self, key: Key, batch: Batch) -> Noised:
        """Data noised to an even time of the teacher's grid; ``extra`` is half its number."""
        x = batch["x"]
        require_floating(x)
        key_step, key_noise = jax.random.split(key)
        times = self.grid.times(self.process)
        step = jax.random.randint(key_step, (len(x),), 0, len(times) // 2)
        noised = self.process.perturb(key_noise, x, jnp.asarray(times, x.dtype)[2 * step])
        return noised._replace(cond=batch.get("cond"), keys=example_keys(key, len(x)), extra=step)

    def error(self, model: Model, noised: Noised) -> Array:
        return self.evaluate(model, noised)[0]

    def evaluate(self, model: Model, noised: Noised) -> tuple[Array, dict[str, Array]]:
        """The errors, and the metrics of the class."""
        target = jax.lax.stop_gradient(self.target(noised.y, noised.extra, noised.cond))
        prediction = self.ask(model, noised.y, noised.t, noised.cond)
        square = mean_square(denoised_error(prediction, target.denoised, target.eps))
        return weights(self, noised.t) * square, {"eps_mse": jnp.mean(mean_square(prediction.eps - target.eps))}

    def target(self, y: Array, step: Array, cond: Pytree = None) -> GaussianPrediction:
        r"""The teacher's two steps from ``y`` at the time number ``2 step`` ``(batch,)``, as one prediction.

        Both members are means of those of the two steps, with weights that sum to one: with :math:`r=\sigma/\alpha` the steps are
        straight in :math:`r` with the slope :math:`\hat\epsilon`, and in :math:`1/r` with the slope ``D``. Nothing is subtracted,
        so short steps lose no digits.
        """
        nodes = Nodes.at(self.process, self.grid.times(self.process))
        start, middle = gather(nodes, 2 * step, y), gather(nodes, 2 * step + 1, y)
        one = ask(self.teacher, y, start.t, cond)
        two = ask(self.teacher, euler_step(one, middle), middle.t, cond)
        first_d, first_eps = (per_example(jnp.asarray(w, y.dtype)[step], y) for w in _first_weights(nodes))
        return GaussianPrediction(
            denoised=first_d * one.denoised + (1 - first_d) * two.denoised,
            eps=first_eps * one.eps + (1 - first_eps) * two.eps,
            t=start.t,
            process=self.process,
        )


def _first_weights(nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the first of two steps in the denoised mean and in the noise, ``(steps / 2,)``; finite at both ends of a grid."""
    (a0, a1, a2), (s0, s1, s2) = ((column[:-2:2], column[1::2], column[2::2]) for column in (nodes.alpha, nodes.sigma))
    share = (a1 * s0 - a0 * s1) / (a2 * s0 - a0 * s2)
    return share * s2 / s1, share * a2 / a1
