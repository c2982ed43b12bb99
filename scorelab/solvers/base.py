r"""What a solver is: a host float64 table of coefficients, and a step that calls the model.

``table`` turns a process and its grid times into a dict of arrays with one row per *model call*; every row has ``t``
(where the model is called) and ``step`` (which grid step it belongs to). ``step`` gets one row as arrays. The scan
over the rows therefore holds the network once, however many calls a grid step takes, and its compile time does not
depend on the number of steps.

The last row is part of the table: a step to :math:`\sigma = 0` has finite coefficients and no branch.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np

from scorelab.models.ask import ask, model_name
from scorelab.models.guided import Guided
from scorelab.processes.base import Prediction, Process
from scorelab.typing import Array, Key, Model, Pytree, require_shape

Rows = dict[str, np.ndarray]
T = TypeVar("T")
A = TypeVar("A", bound=Array)


class BoundModel(NamedTuple):
    """What a step calls: a model under its conditions and the process that is sampled, ``(y, t) -> Prediction``."""

    model: Model
    cond: Pytree
    process: Process

    def __call__(self, y: Array, t: Array | float) -> Prediction:
        """Predict for ``y`` of shape ``(batch, *event)``; see :func:`scorelab.models.ask`."""
        return ask(self.model, y, t, self.cond, process=self.process)

    def pull(self, y: Array, t: Array) -> tuple[Prediction, Array | None]:
        """The prediction, and what a guided model would add to its score, kept apart; None for another model."""
        if not isinstance(self.model, Guided):
            return self(y, t), None
        answer, gradient = self.model.pull(y, t, self.cond)

        def base(y, t, cond=None):
            return answer

        prediction = ask(base, y, t, self.cond, process=self.process)
        require_shape(f"{model_name(self.model)}: the pull", gradient, y)
        return prediction, gradient.astype(y.dtype)


class Step(NamedTuple):
    """The result of one row: the new ``y``, the solver's memory, and what the model said."""

    y: Array
    carry: Pytree
    prediction: Prediction


class Solver(abc.ABC):
    r"""A rule that takes ``y`` from one grid time to the next; a frozen spec.

    Attributes:
        order: the order of convergence (of the weak error for a stochastic solver); 0 where a bias remains.
        stochastic: whether steps draw noise.
        calls_per_step: model calls in one grid step (the last step may take fewer); None where it adapts.
        noise_level: :math:`c^2/g^2` of the SDE that the steps approach: 1 for the reverse SDE, 0 for the ODE; None for another
            process.
    """

    order: int
    stochastic: bool
    calls_per_step: int | None = 1
    noise_level: float | None = None

    @abc.abstractmethod
    def table(self, process: Process, times: np.ndarray) -> Rows:
        """One row of float64 coefficients per model call, for strictly decreasing ``times``."""

    def population(self, n: int) -> int:
        """How many samples in a row, of ``n``, depend on one another: they are drawn in one chunk. 1 for independent ones."""
        return 1

    def check_start(self, start: Any, model: Model, process: Process, t: float) -> None:
        """Raise ValueError where ``start``, at the host time ``t``, is not a law that the solver can begin with under ``model``.

        Called by :func:`scorelab.sample` before anything is computed. The weights of a solver begin with those of the start.
        """
        return None

    def init(self, process: Process, y: Array) -> Pytree:
        """The memory before the first row; every leaf has a leading axis of the batch."""
        return ()

    def weighted(self, carry: Pytree, log_weights: Array) -> Pytree:
        """The memory of ``init``, with the log-weights of the start taken up by a solver that weights."""
        return carry

    @abc.abstractmethod
    def step(
        self, model: Callable[[Array, Array | float], Prediction], keys: Key, y: Array, carry: Pytree, row: dict[str, Array]
    ) -> Step:
        """Apply one row. ``keys`` has one key per example, fresh for this row."""

    def decode(self, process: Process, y: Array, carry: Pytree) -> Array:
        """The point of data space; other than ``process.decode(y)`` where the memory knows what ``y`` does not."""
        return process.decode(y)

    def noise(self, row: dict[str, Array]) -> Array | None:
        """The deviation ``n`` of a row that is a mean plus ``n`` times standard normal noise; None for another form."""
        return None

    def outputs(self, carry: Pytree, records: Pytree) -> dict[str, Any]:
        """What the walk adds to the result (``log_weights``, ``log_z``, diagnostics).

        Arrays with one row per sample or per population, of any shape where one population is all there is. ``records`` holds
        what :meth:`record` said after every row, stacked along axis 0.
        """
        return {}

    def record(self, carry: Pytree) -> Pytree:
        """What is to be reported of the row that led to this memory."""
        return ()

    def review(self, diagnostics: dict[str, Any]) -> None:
        """Warn about the finished result where it calls for it; never called under ``jit``."""
        return None


class Nodes(NamedTuple, Generic[A]):
    """The latent kernel at the grid times, float64, with what solvers derive from it.

    Attributes:
        t: times ``(N + 1,)``.
        alpha: signal.
        sigma: noise; exactly 0 at the clean time.
        offset: the deterministic shift.
        half_log_snr: ``log(alpha/sigma)``; ``+inf`` at the clean time, ``-inf`` where alpha is 0.
        scale: the schedule's straightening scale ``s``.
        ratio: ``sigma / s``.
    """

    t: A
    alpha: A
    sigma: A
    offset: A
    half_log_snr: A
    scale: A
    ratio: A

    @classmethod
    def at(cls, process: Process, times: np.ndarray) -> Nodes[np.ndarray]:
        """Evaluate the process on the host."""
        times = np.asarray(times, np.float64)
        alpha, sigma, offset = (
            np.broadcast_to(np.asarray(f(times), np.float64), times.shape) for f in (process.alpha, process.sigma, process.offset)
        )
        half = 0.5 * np.asarray(process.log_snr(times))
        scale = np.broadcast_to(np.asarray(process.schedule.scale(times), np.float64), times.shape)
        return Nodes(times, alpha, sigma, offset, half, scale, sigma / scale)

    @property
    def slope(self) -> float:
        r""":math:`\kappa = d(\alpha/s)/d(\sigma/s)`, constant by the definition of ``s``: 0 for ``s = alpha``."""
        signal = self.alpha / self.scale
        return float((signal[-1] - signal[0]) / (self.ratio[-1] - self.ratio[0]))


def shift(nodes: Nodes[np.ndarray], gain: np.ndarray, source: np.ndarray | slice = slice(None, -1)) -> np.ndarray:
    """The constant that turns ``gain * (y - b_t)`` into ``gain * y``, plus the offset of the target."""
    return nodes.offset[1:] - gain * nodes.offset[source]
