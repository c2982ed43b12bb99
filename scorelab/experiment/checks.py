"""Whether the parts of an experiment fit one another and the data, found out before anything is trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from scorelab.errors import ConfigWarning
from scorelab.experiment.base import Experiment
from scorelab.experiment.bits import BitsPerDim
from scorelab.experiment.data import DataSpec
from scorelab.experiment.holes import check_data, holed
from scorelab.experiment.straightness import Straightness
from scorelab.experiment.train import state_like
from scorelab.fk.rewards import ClassLogProb
from scorelab.models.nets import Condition, Label
from scorelab.models.nets.conditions import of_network
from scorelab.processes import Geodesic
from scorelab.warn import warn

# Preconditioning scales what the network sees to a mean square of (rms^2 + sigma^2) / (data_std^2 + sigma^2), one where the root
# mean square of the data is data_std. Beyond this factor it is off by more than four where there is little noise, and so are the
# weights of the loss.
SCALE = 2.0


def check(experiment: Experiment) -> None:
    """Raise ValueError or TypeError where the parts do not fit; a ConfigWarning says what runs and is hardly meant.

    What would otherwise show only after the training: the data and their scale, the labels and the classes, the network, and what
    every stage refuses. Encodes the data once and traces a sampling run; nothing else is computed.
    """
    experiment.data.check()
    _check_holes(experiment)
    _check_space(experiment)
    _check_classes(experiment)
    _check_rewards(experiment)
    like = state_like(experiment)
    for stage in experiment.stages:
        stage.check(experiment, like)
    _check_scale(experiment)


def _check_holes(experiment: Experiment) -> None:
    """The data of a process that fills holes, and what does not know them."""
    if not holed(experiment.process):
        return
    check_data(experiment.data, experiment.process)
    for part in _parts(experiment.stages):
        if isinstance(part, BitsPerDim | Straightness):
            raise ValueError(f"{type(part).__name__} under {experiment.process!r}: expected a process without holes")


def _check_space(experiment: Experiment) -> None:
    """All points of a process on a manifold; compiled, a loss sees no values."""
    if isinstance(experiment.process, Geodesic):
        for _ in experiment.data.encoded(experiment.process.chart):
            pass


def _check_classes(experiment: Experiment) -> None:
    data, learner = experiment.data, experiment.learner
    owner, dropout, null = type(learner).__name__, learner.label_dropout, learner.null_label
    if data.condition is None:
        if learner.condition_dropout is not None:
            raise ValueError(f"{owner}.condition_dropout is given without DataSpec.cond: expected None")
        if dropout:
            raise ValueError(f"{owner}.label_dropout = {dropout} without DataSpec.labels: expected 0")
        return
    conditions = {type(part).__name__: found for part in _parts(learner) if (found := _condition(part)) is not None}
    taken: dict[str | None, str] = {None: data.condition} if isinstance(data.condition, str) else dict(data.condition)
    for owner_of, condition in conditions.items():
        _check_labels(owner_of, condition, taken, data)
    if learner.condition_dropout is not None and conditions and learner.condition_dropout.condition not in conditions.values():
        raise ValueError(
            f"{owner}.condition_dropout is of {learner.condition_dropout.condition!r}: expected the condition of the network, "
            f"{next(iter(conditions.values()))!r}"
        )
    if dropout and (other := next((found for found in conditions.values() if not isinstance(found, Label)), None)):
        raise ValueError(
            f"{owner}.label_dropout = {dropout} for a network with the condition {other!r}: expected 0, and "
            "condition_dropout = losses.ConditionDropout(...), since the null label would be written into every member"
        )
    networks = {name: found.num_classes for name, found in conditions.items() if isinstance(found, Label)}
    if dropout and networks and null not in networks.values():
        raise ValueError(
            f"{owner}.null_label = {null}: expected {max(networks.values())}, the num_classes of the network, which "
            "is what no condition means to it"
        )


def _condition(part: Any) -> Condition | None:
    """The condition of a network, which may be anybody's object, or of the heads of a discriminator."""
    if isinstance(part, Condition) or not (hasattr(part, "num_classes") or hasattr(part, "apply")):
        return None
    return of_network(part)


def _check_labels(owner: str, condition: Condition, taken: dict, data: DataSpec) -> None:
    arrays = data.load()
    for name, member in condition.members:
        array = taken.get(name)
        if not isinstance(member, Label) or array is None or array not in arrays.columns():
            continue
        label = arrays.columns()[array]
        classes = (arrays.num_classes or 0) if array == "label" else int(label.max(initial=0)) + 1
        if member.num_classes < classes:
            where = f"{owner}.num_classes" if name is None else f"{name} of the condition of {owner}, num_classes"
            raise ValueError(f"{where} = {member.num_classes} for {data.name} with labels: expected at least its {classes} classes")


def _parts(spec: Any, depth: int = 8) -> Iterator[Any]:
    """A spec and the specs inside it."""
    if isinstance(spec, tuple):
        for part in spec:
            yield from _parts(part, depth)
    elif depth and dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        yield spec
        for field in dataclasses.fields(spec):
            # A Flax module's parent is no part of it.
            if field.name != "parent":
                yield from _parts(getattr(spec, field.name, None), depth - 1)


def _check_rewards(experiment: Experiment) -> None:
    known = experiment.data.dataset.known_as
    for part in (*_parts(experiment.stages), *_parts(experiment.learner)):
        if isinstance(part, ClassLogProb) and part.dataset not in known:
            raise ValueError(f"{type(part).__name__}.dataset = {part.dataset!r} for the data {known[0]}: expected {known[-1]!r}")


def _check_scale(experiment: Experiment) -> None:
    if (network := experiment.learner.network) is None:
        return
    given, (mean, std) = network.data_std, experiment.data.moments(experiment.process.chart)
    size = math.hypot(mean, std)
    if not 1 / SCALE <= size / given <= SCALE:
        warn(
            f"{type(network).__name__}.data_std = {given:.4g}, but {experiment.data.measured(experiment.process.chart)}: expected "
            f"their root mean square, {size:.4g}, up to a factor of {SCALE:g}. Set data_std = @experiment.measured_std(), or "
            "centre and scale the data in DataSpec.transform",
            ConfigWarning,
        )
