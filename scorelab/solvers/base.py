r"""What a solver is: a host float64 table of coefficients, where to ask the model, and what to do with its answer.

``table`` turns a process and its grid times into rows, a NamedTuple of arrays with one row per *model call*; every row has ``t``
(where the model is asked) and ``step`` (which grid step it belongs to). ``query`` says at which point the model is asked,
``update`` uses the prediction. The scan over the rows therefore holds the network once, however many calls a grid step takes,
and its compile time does not depend on the number of steps.

The last row is part of the table: a step to :math:`\sigma = 0` has finite coefficients and no branch.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from types import UnionType
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, Pytree
from scorelab.models.base import Model, ask
from scorelab.processes.base import Process, Start
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.processes.predictions import HasDenoised, HasNoise, require_capabilities
from scorelab.pytrees import computed
from scorelab.randomness import per_example_normal
from scorelab.validation import require_spec

A = TypeVar("A", bound=Array)


class Row(Protocol):
    """What every row has beside the coefficients of its solver; in a table with a leading axis of rows."""

    @property
    def t(self) -> Array:
        """Where the model is asked."""
        ...

    @property
    def step(self) -> Array:
        """The grid step it belongs to, from 0."""
        ...


class Solver(abc.ABC):
    """A rule that takes ``y`` from one grid time to the next; a frozen spec.

    Attributes:
        process_type: the kind of process it walks.
        needs: what it reads of a prediction.
        order: the order of convergence (of the weak error for a stochastic solver); 0 where a bias remains.
        stochastic: whether steps draw noise.
        calls_per_step: model calls in one grid step (the last step may take fewer); None where it adapts.
        noise_level: :math:`c^2/g^2` of the SDE that the steps approach: 1 for the reverse SDE, 0 for the ODE; None for another
            process.
        along_path: whether its noise is that of a path, so that its ``keys`` are :class:`scorelab.randomness.PathKeys`.
        self_conditioned: whether it tells the model its former estimate (:class:`scorelab.solvers.SelfConditioned`).
        paints: whether it reads what is known of the clean point (:class:`scorelab.models.Known`).
    """

    process_type: ClassVar[type[Process] | UnionType] = LinearGaussian
    needs: ClassVar[tuple[type, ...]] = (HasDenoised, HasNoise)
    order: int
    stochastic: bool
    calls_per_step: int | None = 1
    noise_level: float | None = None
    along_path: bool = False
    self_conditioned: bool = False
    paints: bool = False

    @abc.abstractmethod
    def table(self, process: Any, times: np.ndarray) -> Any:
        """One row of float64 coefficients per model call, for strictly decreasing ``times``."""

    def check_start(self, start: Start, model: Model, t: float) -> None:
        """Raise ValueError where the solver cannot begin with ``start``, at the host time ``t``, under ``model``."""
        return None

    def init(self, process: Any, y: Pytree, log_weights: Array) -> Pytree:
        """The memory before the first row; every leaf has a leading axis of the batch.

        ``log_weights`` ``(batch,)`` are those of the start, for a solver that weights.
        """
        return ()

    def query(self, keys: Key, y: Pytree, carry: Pytree, row: Any) -> Pytree:
        """The point at which the model is asked; ``y`` itself unless a solver says otherwise."""
        return y

    def informed(self, model: Model, carry: Pytree) -> Model:
        """The model as it is asked in the next row: told what the memory knows, where it sees that."""
        return model

    def ask(self, model: Model, keys: Key, y: Pytree, row: Any, cond: Pytree) -> Any:
        """The prediction at the point of ``query``."""
        return ask(model, y, row.t, cond)

    def require(self, prediction: Any) -> None:
        """Raise ``TypeError`` naming what the solver reads and the prediction does not have."""
        require_capabilities(type(self).__name__, prediction, self.needs)

    @abc.abstractmethod
    def update(self, keys: Key, y: Pytree, prediction: Any, carry: Pytree, row: Any) -> tuple[Pytree, Pytree]:
        """The new ``y`` and the new memory, from the prediction at the point ``y`` of ``query``.

        ``keys`` has one key per example, fresh for this row, and others than those of ``query``.
        """

    def decode(self, process: Any, y: Pytree, carry: Pytree) -> Pytree:
        """The point of data space; other than ``process.decode(y)`` where the memory knows what ``y`` does not."""
        return process.decode(y)

    def noise(self, row: Any) -> Array | None:
        """The deviation ``n`` of a row that is a mean plus ``n`` times standard normal noise; None for another form."""
        return None

    def drawn(self, keys: Any, like: Array, row: Any) -> Array:
        """The standard normal noise that ``update`` draws in a row with a :meth:`noise`, shaped like ``like``."""
        return per_example_normal(keys, like)

    def outputs(self, carry: Pytree, records: Pytree) -> dict[str, Any]:
        """What the walk adds to the result: diagnostics with one row per sample. ``records`` as in :class:`Population`."""
        return {}


class Population(Solver):
    """A solver whose samples depend on one another, in populations that are drawn in one chunk."""

    @abc.abstractmethod
    def size(self, n: int) -> int:
        """How many samples in a row, of ``n``, are one population."""

    def finish(self, process: Any, keys: Key, y: Pytree, carry: Pytree, cond: Pytree) -> tuple[Pytree, Pytree]:
        """``y`` and the memory after the last row, with what only finished samples tell."""
        return y, carry

    def record(self, carry: Pytree) -> Pytree:
        """What is to be reported of the row that led to this memory; stacked along axis 0 for ``outputs``, which may add

        ``log_weights``, ``log_z``, and arrays with one row per population.
        """
        return ()

    def review(self, diagnostics: dict[str, Any]) -> None:
        """Warn about the finished result where it calls for it; never called under ``jit``."""
        return None


def population_size(solver: Solver, n: int) -> int:
    """How many samples in a row, of ``n``, depend on one another; 1 for independent ones."""
    return solver.size(n) if isinstance(solver, Population) else 1


def require_moved(solver: Solver, method: str, y: Pytree, moved: Pytree) -> None:
    """Raise ``ValueError`` unless what a method of a solver made of ``y`` has its shape and dtype; seen while tracing."""
    form = lambda tree: jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)} {jnp.shape(leaf)}", tree)
    if form(moved) != form(y):
        raise ValueError(
            f"{type(solver).__name__}.{method} returned {form(moved)} for {form(y)}: expected the same shape and dtype"
        )


class Around(Solver):
    """A solver around another one, of which it has what it does not change; its rows keep those of the other as ``inner``.

    Attributes:
        solver: the other one.
    """

    solver: Solver
    needs = ()

    @computed
    def order(self) -> int:
        """That of the other."""
        return self.solver.order

    @computed
    def stochastic(self) -> bool:
        """As the other."""
        return self.solver.stochastic

    @computed
    def calls_per_step(self) -> int | None:
        """Those of the other."""
        return self.solver.calls_per_step

    @computed
    def noise_level(self) -> float | None:
        """That of the other."""
        return self.solver.noise_level

    @computed
    def along_path(self) -> bool:
        """As the other."""
        return self.solver.along_path

    @computed
    def self_conditioned(self) -> bool:
        """As the other."""
        return self.solver.self_conditioned

    @computed
    def paints(self) -> bool:
        """As the other."""
        return self.solver.paints

    def informed(self, model, carry):
        """As the other."""
        return self.solver.informed(model, carry)

    def inner_table(self, process: Any, times: np.ndarray) -> Any:
        """The table of the other, after a look at the kind of process."""
        where = f"{type(self).__name__}.solver = {type(self.solver).__name__}"
        require_spec(where, self.solver.process_type, process=process)
        return self.solver.table(process, times)

    def check_start(self, start, model, t):
        """As the other."""
        self.solver.check_start(start, model, t)

    def init(self, process, y, log_weights):
        """The memory of the other."""
        return self.solver.init(process, y, log_weights)

    def require(self, prediction):
        """What the other needs, and what is needed here."""
        self.solver.require(prediction)
        super().require(prediction)

    def query(self, keys, y, carry, row):
        """As the other."""
        return self.solver.query(keys, y, carry, row.inner)

    def ask(self, model, keys, y, row, cond):
        """As the other."""
        return self.solver.ask(model, keys, y, row.inner, cond)

    def decode(self, process, y, carry):
        """As the other."""
        return self.solver.decode(process, y, carry)

    def outputs(self, carry, records):
        """Those of the other."""
        return self.solver.outputs(carry, records)


class Integrator(Solver):
    """A solver that calls the model as often as it likes between two grid times: one row is one step of the grid."""

    calls_per_step = None

    @abc.abstractmethod
    def integrate(self, model: Callable[[Array, Array | float], Any], y: Array, row: Any) -> Array:
        """``y`` at the end of the step; ``model`` is asked as ``(y, t)``."""

    def update(self, keys, y, prediction, carry, row):
        """Not asked: an integrator calls the model itself."""
        raise TypeError(f"{type(self).__name__} calls the model itself: expected a solver with one call for each of its rows")


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
    def at(cls, process: LinearGaussian, times: np.ndarray) -> Nodes[np.ndarray]:
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
        r""":math:`\kappa = d(\alpha/s)/d(\sigma/s)`, constant by the definition of ``s``; 0 for ``s = alpha``."""
        signal = self.alpha / self.scale
        return float((signal[-1] - signal[0]) / (self.ratio[-1] - self.ratio[0]))


def shift(nodes: Nodes[np.ndarray], gain: np.ndarray, source: np.ndarray | slice = slice(None, -1)) -> np.ndarray:
    """The constant that turns ``gain * (y - b_t)`` into ``gain * y``, plus the offset of the target."""
    return nodes.offset[1:] - gain * nodes.offset[source]
