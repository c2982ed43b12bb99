"""An experiment: data, a learner, and the stages that are run one after another in a work directory."""

from __future__ import annotations

import abc
import zlib
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import jax

from scorelab.arrays import Key, Pytree
from scorelab.errors import ConfigError
from scorelab.experiment.console import Console
from scorelab.experiment.data import DataSpec
from scorelab.experiment.faults import Signals
from scorelab.experiment.workdir import Workdir
from scorelab.training import Learner
from scorelab.validation import require_int, require_seed, require_spec

S = TypeVar("S", bound="Stage")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: ``learner`` learns from ``data``, and ``stages`` say what is done, in their order.

    Attributes:
        data: the data set, its scale, its conditions.
        learner: what is trained.
        stages: ``Train``, and any number of ``Sample``, ``Evaluate``, ``Diagnose`` and ``Report``, or stages of your own.
        seed: seed of batches, parameters, noise and samples.
        cpu_devices: number of devices the CPU is split into, all of which train and sample. None for all cores on the command
            line, of which a network takes those that make it faster (``mesh="auto"``). Results depend on the number in the last
            digits, so a run that goes on takes the number that it began with.
    """

    data: DataSpec
    learner: Learner
    stages: tuple[Stage, ...]
    seed: int = 0
    cpu_devices: int | None = None

    def __post_init__(self):
        require_spec(self, DataSpec, data=self.data)
        require_spec(self, Learner, learner=self.learner)
        object.__setattr__(self, "stages", tuple(self.stages) if isinstance(self.stages, tuple | list) else (self.stages,))
        for stage in self.stages:
            require_spec(self, Stage, stages=stage)
        seen = [(type(stage), stage.name) for stage in self.stages]
        if twice := next((pair for pair in seen if seen.count(pair) > 1), None):
            raise ValueError(
                f"Experiment.stages has {twice[0].__name__} twice with the name {twice[1]!r}: expected another name for each"
            )
        require_seed(self, seed=self.seed)
        if self.cpu_devices is not None:
            require_int(self, 1, cpu_devices=self.cpu_devices)

    @property
    def process(self) -> Any:
        """That of the learner."""
        return self.learner.process

    def all(self, kind: type[S]) -> tuple[S, ...]:
        """The stages of one kind, in their order."""
        return tuple(stage for stage in self.stages if isinstance(stage, kind))

    def one(self, kind: type[S], name: str | None = None) -> S:
        """The stage of one kind with this name, or the first of the kind; ConfigError where there is none."""
        found = [stage for stage in self.all(kind) if name is None or stage.name == name]
        if not found:
            raise ConfigError(
                f"Experiment.stages = {[type(stage).__name__ for stage in self.stages]}: expected a {kind.__name__}"
                + (f" with the name {name!r}" if name else "")
            )
        return found[0]

    def require_order(self, stage: Stage, earlier: Stage) -> None:
        """Raise ``ValueError`` unless ``earlier`` stands before ``stage``, which needs what it makes."""
        place = [id(each) for each in self.stages]
        if place.index(id(stage)) < place.index(id(earlier)):
            what = f"the {type(earlier).__name__} of its samples" if earlier.name else type(earlier).__name__
            raise ValueError(f"Experiment.stages: {type(stage).__name__} stands before {what}: expected it later")

    def keys(self) -> tuple[Key, Key, Key]:
        """The keys of training, sampling and evaluation."""
        return tuple(jax.random.split(jax.random.key(self.seed), 3))


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a stage works with.

    Attributes:
        experiment: what is run.
        workdir: where everything is read and written.
        console: where progress is told.
        signals: what may end the run early; None where nothing waits for it.
        name: of the config.
        text: of the config.
    """

    experiment: Experiment
    workdir: Workdir
    console: Console = field(default_factory=Console)
    signals: Signals | None = None
    name: str = ""
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Stage(abc.ABC):
    """One thing that is done in a run. A new one needs ``__call__``, and ``check`` where it can refuse something.

    A stage that is interrupted and run again goes on where it was: what lies in the work directory is not made anew.

    Attributes:
        name: tells stages of one kind apart, and names the files they write.
        may_change: the fields that a run which goes on may have changed; ``("*",)`` for all.
        on_every_host: whether every host of several takes part, over the devices of all. Otherwise host 0 does it with its own
            devices, and the others wait.
    """

    name: str = ""

    may_change: ClassVar[tuple[str, ...]] = ("*",)
    on_every_host: ClassVar[bool] = False

    def check(self, experiment: Experiment, like: Pytree) -> None:
        """Raise ValueError or TypeError for what cannot work, before anything is trained; ``like`` has the state's shapes."""
        return None

    @abc.abstractmethod
    def __call__(self, run: Run) -> None:
        """Do it."""

    def preview(self, run: Run, step: int, state: Pytree) -> None:
        """Do something small of it with the state of a training that goes on, at the checkpoints of ``Train.previews``.

        ``state`` is on the host. It is called again with equal arguments where a run goes on from an earlier checkpoint.
        """
        return None

    def key(self, key: Key) -> Key:
        """``key`` for a stage without a name, and a key of its own for one with a name."""
        return jax.random.fold_in(key, zlib.crc32(self.name.encode()) & 0x7FFFFFFF) if self.name else key
