"""Solvers of several parts at once, and a part that is held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from scorelab.arrays import Array
from scorelab.processes import joint
from scorelab.processes.base import Process
from scorelab.pytrees import computed
from scorelab.randomness import folded, of_row
from scorelab.solvers.base import Integrator, Population, Solver, require_moved
from scorelab.validation import require_spec


class JointRow(NamedTuple):
    """A row of every part.

    Attributes:
        t: where each part is in time, by name.
        step: the grid step.
        parts: the rows, by name.
    """

    t: dict[str, Array]
    step: Array
    parts: dict[str, Any]


@dataclass(frozen=True, init=False, repr=False)
class Joint(Solver):
    """A solver for every part, such as ``Joint(image=DDIM(), label=...)``: one network call for all parts in every row.

    Args:
        **parts: solvers with as many model calls on the grid as one another.

    Raises:
        ValueError: a part with dependent samples, or one that calls the model as often as it likes.
    """

    parts: tuple[tuple[str, Solver], ...]

    process_type = joint.Joint
    needs = (joint.JointPrediction,)

    def __init__(self, **parts: Solver):
        for name, part in parts.items():
            require_spec("solvers.Joint", Solver, **{name: part})
            if isinstance(part, Population | Integrator) or part.self_conditioned:
                raise ValueError(
                    f"solvers.Joint.{name} = {part!r}: expected a solver of independent samples with one call in each row"
                )
        object.__setattr__(self, "parts", tuple(sorted(parts.items())))

    def __repr__(self):
        return f"Joint({', '.join(f'{name}={part!r}' for name, part in self.parts)})"

    @computed
    def order(self) -> int:
        """The lowest of the parts."""
        return min(part.order for _, part in self.parts)

    @computed
    def stochastic(self) -> bool:
        """Where one is."""
        return any(part.stochastic for _, part in self.parts)

    @computed
    def along_path(self) -> bool:
        """Where the noise of one is that of a path."""
        return any(part.along_path for _, part in self.parts)

    @computed
    def calls_per_step(self) -> int | None:
        """That of the first."""
        return self.parts[0][1].calls_per_step

    def table(self, process, times):
        """The rows of the parts side by side."""
        if [name for name, _ in self.parts] != list(process.names):
            raise ValueError(f"solvers.Joint has the parts {[n for n, _ in self.parts]}: expected {list(process.names)}")
        for name, part in self.parts:
            require_spec(f"solvers.Joint.{name} = {type(part).__name__}", part.process_type, process=process[name])
            own, end = process[name], process.t_max
            # Where the walk begins before the end of a part, its prior is another law; before its clean time, it stays noisy.
            if not isinstance(part, Hold) and (own.t_max, own.clean_time) != (end, process.clean_time):
                raise ValueError(
                    f"solvers.Joint.{name} walks {own!r} with times from {own.clean_time:g} to {own.t_max:g}: expected "
                    f"those that all parts have, {process.clean_time:g} to {end:g}"
                )
        rows = {name: part.table(process[name], times) for name, part in self.parts}
        steps = [np.asarray(row.step) for row in rows.values()]
        if any(len(step) != len(steps[0]) or np.any(step != steps[0]) for step in steps):
            counts = {name: len(row.step) for name, row in rows.items()}
            raise ValueError(f"solvers.Joint has parts with {counts} model calls: expected as many in every step")
        return JointRow(t={name: row.t for name, row in rows.items()}, step=steps[0], parts=rows)

    def check_start(self, start, model, t):
        """A part that is held needs points: its prior is noise."""
        for name, part in self.parts:
            if isinstance(part, Hold) and start.part(name).is_prior(model.process[name]):
                raise ValueError(
                    f"sample.start gives no points for {name}, which is held: expected starts.Joint with {name!r}: Fixed(points)"
                )

    def init(self, process, y, log_weights):
        """That of every part."""
        return {name: part.init(process[name], y[name], log_weights) for name, part in self.parts}

    def require(self, prediction):
        """What every part needs of its own."""
        super().require(prediction)
        for name, part in self.parts:
            part.require(prediction.parts[name])

    def query(self, keys, y, carry, row: JointRow):
        """Part by part."""
        own = ((self._keys(keys, i), *part) for i, part in enumerate(self.parts))
        return {name: part.query(keys, y[name], carry[name], row.parts[name]) for keys, name, part in own}

    def _keys(self, keys, i: int):
        return folded(keys if self.parts[i][1].along_path else of_row(keys), i)

    def update(self, keys, y, prediction, carry, row: JointRow):
        """Part by part, from one prediction."""
        moved = {
            name: part.update(self._keys(keys, i), y[name], prediction.parts[name], carry[name], row.parts[name])
            for i, (name, part) in enumerate(self.parts)
        }
        for name, part in self.parts:
            require_moved(part, "update", y[name], moved[name][0])
        return {name: y for name, (y, _) in moved.items()}, {name: carry for name, (_, carry) in moved.items()}

    def decode(self, process, y, carry):
        """Part by part."""
        return {name: part.decode(process[name], y[name], carry[name]) for name, part in self.parts}

    def outputs(self, carry, records):
        """Those of the parts, by the name of the part and their own: ``image_sign_flips``."""
        return {f"{name}_{key}": value for name, part in self.parts for key, value in part.outputs(carry[name], ()).items()}


class HoldRow(NamedTuple):
    """Nothing happens.

    Attributes:
        t: the time at which the part is held.
        step: the grid step.
    """

    t: Array
    step: Array


@dataclass(frozen=True, kw_only=True)
class Hold(Solver):
    """A part of a joint walk that stays as it began, at its clean time: what the other parts are conditioned on.

    It begins at given points (``starts.Joint(image=..., label=Fixed(labels))``).
    """

    process_type = Process
    needs = ()
    order = 0
    stochastic = False

    def table(self, process, times):
        """One row for each step."""
        steps = len(times) - 1
        return HoldRow(t=np.full(steps, process.clean_time), step=np.arange(steps))

    def update(self, keys, y, prediction, carry, row):
        return y, carry
