"""Whether the parts of an experiment fit one another and the data, found out before anything is trained."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from scorelab.data.memory import require_memory
from scorelab.fk.rewards import ClassLogProb
from scorelab.processes.scale import TOLERATED, prior_error
from scorelab.run.data_start import FromData
from scorelab.run.experiment import Experiment
from scorelab.run.sources import ConfigWarning
from scorelab.run.train import state_like
from scorelab.sampling import sample
from scorelab.typing import Pytree

# Preconditioning scales what the network sees to a mean square of (rms^2 + sigma^2) / (data_std^2 + sigma^2), one where the root
# mean square of the data is data_std. Beyond this factor it is off by more than four where there is little noise, and so are the
# weights of the loss.
SCALE = 2.0


def check(experiment: Experiment) -> None:
    """Raise ValueError or TypeError where the parts do not fit; a ConfigWarning says what runs and is hardly meant.

    What would otherwise show only after the training: the data and their scale, the labels and the classes, the network, the batch
    and the devices, the sampler, the evaluation, the memory. Encodes the data once and traces a sampling run; nothing else is
    computed.
    """
    data, spec, process = experiment.data, experiment.sampling, experiment.process
    data.check()
    _check_classes(experiment)
    mean, std = data.moments(process.chart)
    event = data.load().event_shape
    require_memory(f"SamplingSpec.n = {spec.n}", 4.0 * spec.n * math.prod(event))
    if experiment.evaluation is not None:
        experiment.evaluation.check(data, spec.n)
    _check_rewards(experiment)
    like = state_like(experiment)
    require_memory("the training state", sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(like)))
    if experiment.batch_size % jax.device_count():
        raise ValueError(
            f"Experiment.batch_size = {experiment.batch_size}: expected a multiple of the {jax.device_count()} devices"
        )
    times = spec.grid.times(process)
    if isinstance(spec.start, FromData):
        spec.start.check(data, process, times)
    elif spec.start is not None:
        with warnings.catch_warnings():
            # What does not suit the model is said when it is sampled.
            warnings.simplefilter("ignore")
            spec.start.check(spec.n, event, process)
            _, times = spec.start.on_grid(process, times)
    elif process.has_signs:
        raise ValueError(f"SamplingSpec.start = None under {process!r}: expected DataStart(kind='signed'), which has the signs")
    spec.solver.table(process, times)
    _trace_sampling(experiment, like)
    _check_scale(experiment, mean, std)


def _check_classes(experiment: Experiment) -> None:
    data, spec, learner = experiment.data, experiment.sampling, experiment.learner
    classes = data.load().num_classes or 0
    owner, dropout, null = type(learner).__name__, learner.label_dropout, learner.null_label
    if not data.labels:
        if spec.classes:
            raise ValueError(f"SamplingSpec.classes = {spec.classes} without DataSpec.labels: expected (), or a model with labels")
        if dropout:
            raise ValueError(f"{owner}.label_dropout = {dropout} without DataSpec.labels: expected 0")
        return
    if wrong := [label for label in spec.classes if label >= classes]:
        raise ValueError(f"SamplingSpec.classes = {spec.classes}: expected 0 to {classes - 1} for {data.name}, not {wrong[0]}")
    # A network may be anybody's object.
    networks = {type(part).__name__: part.num_classes for part in _parts(learner) if getattr(part, "num_classes", 0)}
    for name, count in networks.items():
        if count < classes:
            raise ValueError(f"{name}.num_classes = {count} for {data.name} with labels: expected at least its {classes} classes")
    if dropout and networks and null not in networks.values():
        raise ValueError(
            f"{owner}.null_label = {null}: expected {max(networks.values())}, the num_classes of the network, which "
            "is what no condition means to it"
        )
    if not dropout:
        reason = (
            "expected None, since without label dropout the model never learned what no condition means: train with "
            "DenoisingScoreMatching(label_dropout=0.1, null_label=num_classes), or a loss that states both"
        )
        if spec.guidance not in (None, 1.0):
            raise ValueError(f"SamplingSpec.guidance = {spec.guidance}: {reason}")
        if spec.correction is not None and spec.correction.kind == "geometric":
            raise ValueError(f"Correction.kind = 'geometric': {reason}")


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
    known = experiment.data.known_as
    for part in (*_parts(experiment.sampling.solver), *_parts(experiment.learner)):
        if isinstance(part, ClassLogProb) and part.dataset not in known:
            raise ValueError(f"{type(part).__name__}.dataset = {part.dataset!r} for the data {known[0]}: expected {known[-1]!r}")


def _trace_sampling(experiment: Experiment, like: Pytree) -> None:
    """Trace the sampling run without running it: shapes of rewards, conditions and chunks that do not fit raise here."""
    data, spec, process = experiment.data, experiment.sampling, experiment.process
    if process.has_signs:
        return

    def run(state, key):
        model, solver, start = spec.applied(experiment.learner.model(state))
        # Where a start from data begins is of no matter to shapes.
        start = start if isinstance(spec.start, FromData) or spec.start is None else spec.start
        shape, label = (spec.n, *data.load().event_shape), spec.conditions(data, spec.n)
        return sample(
            model, solver=solver, grid=spec.grid, start=start, key=key, shape=shape, cond=label, chunk=spec.chunk
        ).x  # fmt: skip

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            jax.eval_shape(run, like, jax.random.key(0))
    except jax.errors.JAXTypeError:
        # A sampler that looks at values cannot be traced: it shows when it runs.
        return


def _check_scale(experiment: Experiment, mean: float, std: float) -> None:
    network = experiment.learner.network
    measured = f"the data of {experiment.data.name} in the chart have mean {mean:.4g} and standard deviation {std:.4g}"
    given, size = None if network is None else network.data_std, math.hypot(mean, std)
    if given is not None and not 1 / SCALE <= size / given <= SCALE:
        warnings.warn(
            f"Denoiser.data_std = {given:.4g}, but {measured}: expected their root mean square, {size:.4g}, up to a factor of "
            f"{SCALE:g}. Set data_std = @experiment.measured_std(), or centre and scale the data in DataSpec.transform",
            ConfigWarning,
            stacklevel=2,
        )
    if experiment.sampling.start is not None or experiment.sampling.correction is not None:
        return
    first = float(experiment.sampling.grid.times(experiment.process)[0])
    off_mean, off_std = prior_error(experiment.process, first, mean=mean, std=std)
    ratio = float(experiment.process.noise_ratio(first))
    enough = max(abs(mean) / TOLERATED, std / math.sqrt((1 - TOLERATED) ** -2 - 1))
    if max(off_mean, off_std) > TOLERATED:
        warnings.warn(
            f"sampling starts from noise of {ratio:.4g} times the signal, but {measured}: a start that does not know them moves "
            f"the mean by about {off_mean:.2g} standard deviations and narrows the samples by about {off_std:.2g} of their width. "
            f"Expected noise of at least {enough:.4g} (sigma_max, t_max), or "
            "SamplingSpec.start = @experiment.DataStart()",
            ConfigWarning,
            stacklevel=2,
        )
