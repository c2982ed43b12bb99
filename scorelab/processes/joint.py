"""Several spaces noised together: named parts, each with its process, under one network call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, Pytree
from scorelab.processes.base import Noised, Process, Start, require_same_process
from scorelab.pytrees import computed
from scorelab.randomness import folded
from scorelab.validation import require_spec


@dataclass(frozen=True, init=False, repr=False)
class Joint(Process):
    """A process of named parts, such as ``Joint(image=Gaussian(...), label=...)``; points are dictionaries with those names.

    Every part has a time of its own: where one is given it holds for all, and a dictionary of times noises one part more than
    another. A part at its clean time is a condition, one at the end of its process is not there.

    Args:
        **parts: the processes, at least one.
    """

    parts: tuple[tuple[str, Process], ...]

    def __init__(self, **parts: Process):
        if not parts:
            raise ValueError("Joint() has no parts: expected processes by name")
        for name, part in parts.items():
            require_spec("Joint", Process, **{name: part})
        object.__setattr__(self, "parts", tuple(sorted(parts.items())))

    def __repr__(self):
        return f"Joint({', '.join(f'{name}={part!r}' for name, part in self.parts)})"

    def __getitem__(self, name: str) -> Process:
        return dict(self.parts)[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts, in alphabetical order."""
        return tuple(name for name, _ in self.parts)

    @computed
    def t_min(self) -> float:
        """The smallest time that all parts are trained at."""
        return max(part.t_min for _, part in self.parts)

    @computed
    def t_max(self) -> float:
        """The largest time that all parts have."""
        return min(part.t_max for _, part in self.parts)

    @computed
    def open_end(self) -> bool:
        """Where it is so for a part."""
        return any(part.open_end for _, part in self.parts)

    @computed
    def has_signs(self) -> bool:
        """Where it is so for a part."""
        return any(part.has_signs for _, part in self.parts)

    @property
    def domain(self) -> tuple[float, float]:
        """The times that all parts have."""
        return max(part.domain[0] for _, part in self.parts), min(part.domain[1] for _, part in self.parts)

    def times(self, t: Any) -> dict[str, Any]:
        """The time of every part, from one for all or one for each."""
        if not isinstance(t, Mapping):
            return dict.fromkeys(self.names, t)
        if set(t) != set(self.names):
            raise ValueError(f"times of the parts {sorted(t)}: expected one for each of {list(self.names)}")
        return dict(t)

    def check_times(self, where: str, t: Any) -> None:
        for name, time in self.times(t).items():
            self[name].check_times(f"{where} of {name}", time)

    def check_levels(self, where: str, times: np.ndarray) -> None:
        for _, part in self.parts:
            part.check_levels(where, times)

    def encode(self, x: Pytree) -> Pytree:
        """Part by part."""
        return {name: self[name].encode(value) for name, value in self._checked("encode.x", x).items()}

    def decode(self, y: Pytree) -> Pytree:
        """Part by part."""
        return {name: self[name].decode(value) for name, value in y.items()}

    def perturb(self, key: Key, batch: Pytree, t: Any) -> Noised:
        """Every part by its process; ``t`` is one time for all or a dictionary."""
        keys, times = dict(zip(self.names, jax.random.split(key, len(self.parts)), strict=True)), self.times(t)
        batch = self._checked("perturb.batch", batch)
        return gathered({name: self[name].perturb(keys[name], batch[name], times[name]) for name in self.names})

    def prior(self) -> Start:
        """That of every part."""
        return JointStart({name: part.prior() for name, part in self.parts})

    def checked(self, name: str, prediction: Any, y: Pytree) -> Any:
        if not isinstance(prediction, JointPrediction) or set(prediction.parts) != set(self.names):
            raise TypeError(f"{name} returned a {type(prediction).__name__}: expected a JointPrediction of {list(self.names)}")
        for part in self.names:
            require_same_process(f"{name}: {part}", process=self[part], prediction=prediction.parts[part].process)
        parts = {part: self[part].checked(f"{name}: {part}", prediction.parts[part], y[part]) for part in self.names}
        return JointPrediction(parts=parts, t=prediction.t, process=self)

    def _checked(self, where: str, x: Any) -> dict[str, Any]:
        if not isinstance(x, Mapping) or set(x) != set(self.names):
            found = sorted(x) if isinstance(x, Mapping) else type(x).__name__
            raise ValueError(f"{where} has {found}: expected a dictionary with {list(self.names)}")
        return dict(x)


def gathered(parts: Mapping[str, Noised]) -> Noised:
    """Noised points of the parts as one, every field a dictionary."""
    fields = zip(*(part[:4] for part in parts.values()), strict=True)
    y, y0, noise, t = (dict(zip(parts, column, strict=True)) for column in fields)
    return Noised(y=y, y0=y0, noise=noise, t=t)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class JointPrediction:
    """What is believed of every part: a prediction for each, of the kind of its process.

    Attributes:
        parts: by name.
        t: the times, by name.
        process: the joint process (static).
    """

    parts: dict[str, Any]
    t: Any
    process: Joint = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class JointStart(Start):
    """A start for every part, independent of one another, such as the prior of one and given points of another.

    Args:
        parts: by name.
    """

    parts: dict[str, Start]

    def __post_init__(self):
        require_spec("starts.Joint", Mapping, parts=self.parts)
        for name, part in self.parts.items():
            # Pytree reconstruction passes placeholders through here.
            if type(part) is not object:
                require_spec("starts.Joint", Start, **{name: part})

    def check(self, count, event, process):
        """That of every part."""
        shapes = dict(event) if event and isinstance(event[0], tuple) else {"points without names": event}
        self._check_names(process, shapes)
        for name, start in self.parts.items():
            start.check(count, shapes[name], process[name])

    def part(self, name):
        """That of the name."""
        return self.parts[name]

    def signs(self, ids, event):
        """Those of the parts, one where a part has none."""
        shapes = dict(event)
        found = {name: start.signs(ids, shapes[name]) for name, start in self.parts.items()}
        if all(sign is None for sign in found.values()):
            return None
        return {name: jnp.ones((len(ids), *shapes[name])) if sign is None else sign for name, sign in found.items()}

    def on_grid(self, process, times):
        """That of every part; ValueError for one that skips part of the grid, which the others would not."""
        self._check_names(process, self.parts)
        begun = {name: start.on_grid(process[name], times) for name, start in self.parts.items()}
        for name, (_, rest) in begun.items():
            if len(rest) < len(times):
                raise ValueError(
                    f"JointStart.{name} = {self.parts[name]!r} skips part of the grid: expected a start at its first time"
                )
        return JointStart({name: start for name, (start, _) in begun.items()}), times

    def _check_names(self, process: Any, points: Mapping[str, Any]) -> None:
        if not isinstance(process, Joint) or not set(self.parts) == set(process.names) == set(points):
            raise ValueError(
                f"JointStart has the parts {sorted(self.parts)} for points with {sorted(points)} under {process!r}: expected the "
                "same"
            )

    def draw(self, keys, ids, process, t, event):
        """Each from a stream of its own."""
        shapes = dict(event)
        return {
            name: self.parts[name].draw(folded(keys, i), ids, process[name], t, shapes[name])
            for i, name in enumerate(process.names)
        }

    def weighs(self, process):
        """Where it is so for a part."""
        return any(self.parts[name].weighs(process[name]) for name in process.names)

    def log_weight(self, y, process, t, cond=None):
        """The sum."""
        return cast(Array, sum(self.parts[name].log_weight(y[name], process[name], t, cond) for name in process.names))

    def log_prob(self, y, process, t):
        """The sum."""
        return cast(Array, sum(self.parts[name].log_prob(y[name], process[name], t) for name in process.names))
