"""Learners: the networks being trained, their optimisers and averages. The loop knows none of it."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scorelab.arrays import Array, Key, Pytree
from scorelab.losses import Batch, ConditionDropout, Loss
from scorelab.models.base import Model, Trainable, require_model
from scorelab.models.denoiser import Denoiser
from scorelab.models.nets.conditions import of_network
from scorelab.processes.base import require_same_process
from scorelab.pytrees import computed, partly_static
from scorelab.training.ema import EMA, Average, average_specs, moved_averages
from scorelab.training.parallel import gathered
from scorelab.training.rates import learning_rate
from scorelab.validation import require_int, require_positive, require_spec
from scorelab.warn import warn


class Learner(abc.ABC):
    """What the loop trains: a hashable spec of pure functions on a state of any shape.

    A new one states ``process``, ``init``, ``update`` and ``model``.

    The state is a pytree with an int32 scalar attribute ``step``, the number of updates made. It may hold
    several networks. Equal learners share a compilation. A learner with arrays among its fields (a frozen
    teacher's parameters) is a pytree (:func:`scorelab.pytrees.partly_static`): its arrays are arguments of the
    compiled step and never part of what is saved.

    Attributes:
        process: the forward process of the model.
        statistics: attributes of the state in which NaN says "not known".
        pair_weight: weight of a regression on a teacher's pairs, which the batches then have.
        label_dropout: share of examples whose label is dropped.
        null_label: the label they get, None where there are none.
        condition_dropout: what is dropped of a condition with members, None for nothing beside labels.
    """

    process: Any
    statistics: tuple[str, ...] = ()
    pair_weight: float = 0.0
    label_dropout: float = 0.0
    null_label: int | None = None
    condition_dropout: ConditionDropout | None = None

    @property
    def unconditional(self) -> float:
        """The share of examples that train the model without any condition; 0 for a model that never learns it."""
        return self.label_dropout if self.condition_dropout is None else self.condition_dropout.unconditional

    @abc.abstractmethod
    def init(self, key: Key, batch: Batch) -> Pytree:
        """The state before the first update, for data shaped like ``batch``; runs under ``jit``."""

    @abc.abstractmethod
    def update(self, state: Pytree, batch: Batch, key: Key) -> tuple[Pytree, dict[str, Array]]:
        """One update and its scalar metrics, ``"loss"`` among them; the returned ``step`` is one more."""

    @abc.abstractmethod
    def model(self, state: Pytree) -> Any:
        """The model to sample from and to evaluate."""

    def diagnostics(self, state: Pytree) -> dict[str, np.ndarray]:
        """What is to be written down of a state at the end of a window, host arrays by name; nothing unless it says otherwise."""
        return {}

    def learning_rate(self) -> Callable[[int], float] | None:
        """That of the parameters which are sampled as a function of the step, counted from 1; None where it cannot be seen."""
        return learning_rate(getattr(self, "optimizer", None))

    @property
    def network(self) -> Denoiser | None:
        """The network, where the learner trains one with a scale of the data; None otherwise."""
        return None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ScoreState:
    """The state of a :class:`ScoreLearner`; ``averages`` has one entry for each average spec."""

    step: Array
    params: Pytree
    opt_state: Pytree
    averages: tuple[Pytree, ...]


class ConditionWarning(UserWarning):
    """A network with a condition is trained on batches that have none, and other arrays in its place."""


@partly_static("denoiser", "loss", "initial")
@dataclass(frozen=True)
class ScoreLearner(Learner):
    r"""One network, trained on a loss: gradient, clipping, optimiser step, averages of the parameters.

    A network with a field ``dropout`` above zero is called with ``train=True`` and a dropout key of its own
    per step.

    Attributes:
        denoiser: what is trained, such as a :class:`scorelab.models.Denoiser`: a network with its parameterisation; or its adapter
            alone, a :class:`scorelab.models.LoRA`.
        loss: the loss (:mod:`scorelab.losses`).
        optimizer: an optax transformation. It is compared by identity: keep the object, since a second
            ``optax.adam(1e-3)`` compiles anew.
        ema: an average spec, a tuple of several, or None. The model is the first average where there is one. Averages
            count updates of the parameters, which ``optax.MultiSteps`` makes once in several steps.
        clip_norm: scale gradients whose global norm is above this down to it,
            :math:`g \leftarrow g\,\min(1, c/\lVert g\rVert)`; None for no clipping.
        initial: a model of the same network whose parameters are the first ones (a teacher); None for fresh ones.
        accumulate: parts of the batch that are differentiated one after another, for the memory of one; a divisor of the batch size
            over the devices. What is random is drawn for the whole batch, as ever, and then cut: part ``i`` has the examples
            ``i, i + accumulate, ...``. So gradients, loss and metrics are those of the batch up to rounding. Dropout alone draws
            other masks. The parts are a loop, in which a U-Net on the CPU wants ``loop_safe``.

    Metrics: those of the loss, ``loss`` (mean over the batch) and ``grad_norm`` (before clipping).
    """

    denoiser: Trainable
    loss: Loss
    optimizer: optax.GradientTransformation
    _: KW_ONLY
    ema: Average | tuple[Average, ...] | None = field(default_factory=EMA)
    clip_norm: float | None = 1.0
    initial: Model | None = None
    accumulate: int = 1

    def __post_init__(self):
        require_int(self, 1, accumulate=self.accumulate)
        require_spec(self, Trainable, denoiser=self.denoiser)
        require_spec(self, optax.GradientTransformation, optimizer=self.optimizer)
        require_spec(self, Loss, loss=self.loss)
        require_same_process("ScoreLearner", loss=self.loss.process, denoiser=self.denoiser.process)
        if self.network is not None:
            self.loss.check_condition(of_network(self.network.net))
        average_specs(self, self.ema)
        if self.clip_norm is not None:
            require_positive(self, clip_norm=self.clip_norm)
        if self.initial is not None:
            require_model("ScoreLearner", self.initial, "initial")
            require_same_process("ScoreLearner", denoiser=self.denoiser.process, initial=self.initial.process)

    @property
    def process(self) -> Any:
        """That of the denoiser."""
        return self.denoiser.process

    @computed
    def label_dropout(self) -> float:
        """That of the loss."""
        return self.loss.label_dropout

    @computed
    def null_label(self) -> int | None:
        """That of the loss."""
        return self.loss.null_label

    @computed
    def condition_dropout(self) -> ConditionDropout | None:
        """That of the loss."""
        return self.loss.condition_dropout

    @property
    def network(self) -> Denoiser | None:
        """The denoiser, or the one inside of what is trained (:class:`scorelab.models.LoRA`)."""
        return self.denoiser.network

    @property
    def _ema_specs(self) -> tuple[Average, ...]:
        return average_specs(self, self.ema)

    def init(self, key: Key, batch: Batch) -> ScoreState:
        """The first parameters, for data shaped like ``batch``; a ConditionWarning for arrays that its condition may have meant."""
        others = sorted(set(batch) - {"x", "cond"})
        condition = None if self.network is None else of_network(self.network.net)
        if condition is not None and others and batch.get("cond") is None:
            warn(
                f"the network has the condition {condition!r}, and the batch has {', '.join(map(repr, others))} and no 'cond': it "
                f"is trained without one; training.Prepared(data, cond={others[0]!r}) makes a condition of a column",
                ConditionWarning,
            )
        params = self.denoiser.init(key, batch["x"], batch.get("cond"), like=self.initial)
        return ScoreState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer.init(params),
            averages=tuple(spec.init(params) for spec in self._ema_specs),
        )

    def update(self, state: ScoreState, batch: Batch, key: Key) -> tuple[ScoreState, dict[str, Array]]:
        """One optimiser step on ``batch``; see the class for the metrics."""
        key_loss, key_dropout = jax.random.split(key)
        noised = self.loss.draw(key_loss, batch)
        examples = jax.tree.leaves(batch["x"])[0].shape[0]
        require_parts("ScoreLearner", examples, self.accumulate)

        def objective(params, noised, key_dropout):
            errors, metrics = self.loss.evaluate(self.denoiser.bind(gathered(params), dropout=key_dropout), noised)
            if jnp.shape(errors) != (expected := (examples // self.accumulate,)):
                raise ValueError(
                    f"{type(self.loss).__name__} returned errors of shape {jnp.shape(errors)} (with its weighting): expected "
                    f"{expected}, one per example"
                )
            return jnp.mean(errors), metrics

        gradient = jax.value_and_grad(objective, has_aux=True)
        if self.accumulate == 1:
            (loss, metrics), grads = gradient(state.params, noised, key_dropout)
        else:
            keys = jax.random.split(key_dropout, self.accumulate)
            values, grads = accumulated(gradient, state.params, (parts(noised, examples, self.accumulate), keys))
            loss, metrics = jax.tree.map(lambda value: jnp.mean(value, axis=0), values)
        grads, norm = clipped(grads, self.clip_norm)
        params, opt_state = optimised(self.optimizer, grads, state.opt_state, state.params, loss)
        step = state.step + 1
        averages = moved_averages(self._ema_specs, state.averages, params, step, state.opt_state, opt_state)
        new = ScoreState(step=step, params=params, opt_state=opt_state, averages=averages)
        return new, {**metrics, "loss": loss, "grad_norm": norm}

    def model(self, state: ScoreState) -> Model:
        """The denoiser with the parameters of the first average, or the raw ones when nothing is averaged."""
        specs = self._ema_specs
        return self.denoiser.bind(specs[0].params(state.averages[0]) if specs else state.params)


def require_parts(owner: str, n: int, count: int) -> None:
    """Raise ``ValueError`` unless ``n`` examples are ``count`` equal parts."""
    if n % count:
        raise ValueError(f"{owner}.accumulate = {count} for a batch of {n}: expected a divisor of it")


def parts(tree: Pytree, n: int, count: int, owner: str = "ScoreLearner") -> Pytree:
    """Arrays of ``n`` rows as ``count`` parts ``(count, n / count, ...)``, part ``i`` the rows ``i, i + count, ...``.

    So every device keeps its own rows. What has no rows, such as one time for all of them, is in every part.
    """

    def cut(leaf):
        if jnp.ndim(leaf) == 0:
            return jnp.broadcast_to(leaf, (count,))
        if leaf.shape[0] != n:
            raise ValueError(
                f"{owner}.accumulate = {count} with a loss that has drawn an array of shape {leaf.shape}: expected a leading "
                f"axis of {n} examples, or accumulate = 1"
            )
        return leaf.reshape(n // count, count, *leaf.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(cut, tree)


def joined(tree: Pytree) -> Pytree:
    """The inverse of :func:`parts`: arrays ``(count, n / count, ...)`` as ``(n, ...)``."""
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), tree)


def accumulated(gradient: Callable, params: Pytree, arguments: tuple) -> tuple[Any, Pytree]:
    """``gradient(params, *part)``, values and gradients, part by part along the leading axis of ``arguments``.

    Returns:
        The values of all parts, with a leading axis, and the mean of the gradients.
    """

    def add(total, part):
        value, grads = gradient(params, *part)
        return jax.tree.map(jnp.add, total, grads), value

    total, values = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), arguments)
    count = len(jax.tree.leaves(values)[0])
    return values, jax.tree.map(lambda g: g / count, total)


def optimised(
    optimizer: optax.GradientTransformation, grads: Pytree, opt_state: Pytree, params: Pytree, loss: Array
) -> tuple[Pytree, Pytree]:
    """Parameters and optimiser state after one update; those that look at the loss (``reduce_on_plateau``) get it as ``value``."""
    updates, opt_state = optax.with_extra_args_support(optimizer).update(grads, opt_state, params, value=loss)
    return optax.apply_updates(params, updates), opt_state


def clipped(grads: Pytree, clip_norm: float | None) -> tuple[Pytree, Array]:
    """Gradients scaled down to the global norm ``clip_norm`` where theirs is above it, and their norm before that."""
    wide = lambda g: jnp.promote_types(g.dtype, jnp.float32)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g), dtype=wide(g)) for g in jax.tree.leaves(grads)))
    if clip_norm is None:
        return grads, norm
    scale = clip_norm / jnp.maximum(norm, clip_norm)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), norm
