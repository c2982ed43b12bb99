"""The training loop: one compiled step, dispatched ahead of the device, for any learner.

Steps are counted from 1: step ``n`` is the update that takes ``state.step`` from ``n - 1`` to ``n``, with the
batch ``data.at(n - 1)`` and the key ``fold_in(key, n - 1)``. Nothing else varies, so a run that is stopped,
saved and resumed is bitwise the run that was not.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from scorelab import devices
from scorelab.arrays import Array, Key, Pytree
from scorelab.models.base import check_condition
from scorelab.processes.geodesic import Geodesic
from scorelab.pytrees import is_model_pytree
from scorelab.training.early import Watch
from scorelab.training.learner import Learner
from scorelab.training.memory import Memory, exhausted, measured, ran_out
from scorelab.training.parallel import Sharding, gathered, laid_out, replicate, replicated, shard_batch
from scorelab.validation import require_int, require_spec
from scorelab.warn import warn

# Steps that may wait in the device's queue, each with its batch in device memory. Enough to ride out a slow
# batch on the host, and a bound on memory.
STEPS_AHEAD = 32
# The metric that says of a step whether its batch was skipped: 0 or 1.
SKIPPED = "skipped"
# The stream of the initial parameters: no step has this number.
_INIT_STREAM = 2**32 - 1
# The layout unless another is given: data parallel.
WHOLE = Sharding()


@dataclass(frozen=True, eq=False)
class Window(Mapping[str, float]):
    """The metrics of consecutive steps: a mapping from names to means, and the values of every step.

    Where batches may be skipped, means are over the others, and ``"skipped"`` is the number of those that were.

    Attributes:
        first: the first step of the window.
        last: its last step.
        by_step: the values by name, ``(last - first + 1,)`` float32 on the host.
    """

    first: int
    last: int
    by_step: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> float:
        values = self.by_step[name]
        if SKIPPED in self.by_step:
            values = values if name == SKIPPED else values[self.by_step[SKIPPED] == 0]
            return float(np.sum(values)) if name == SKIPPED else float(np.mean(values, dtype=np.float64)) if len(values) else np.nan
        return float(np.mean(values, dtype=np.float64))

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_step)

    def __len__(self) -> int:
        return len(self.by_step)

    @property
    def skipped(self) -> tuple[int, ...]:
        """The steps whose batches were skipped; that of step ``n`` is ``data.at(n - 1)``."""
        return tuple(int(step) for step in self.first + np.flatnonzero(self.by_step.get(SKIPPED, ())))


class NonFiniteLoss(FloatingPointError):
    """The loss or the gradient norm stopped being finite.

    Attributes:
        step: the first step that has it.
        metric: ``"loss"`` or ``"grad_norm"``.
        value: what it was.
        row: how many steps in a row had it, 1 unless some were skipped.
    """

    def __init__(self, step: int, metric: str, value: float, cause: str = "", row: int = 1):
        last = f", number {row} in a row" if row > 1 else ""
        super().__init__(f"{metric} = {value} at step {step} (batch data.at({step - 1})){last}: expected a finite number{cause}")
        self.step, self.metric, self.value, self.row = step, metric, value, row


class SkippedBatchWarning(UserWarning):
    """A batch gave a loss or a gradient that is no number, and was skipped."""


class NonFiniteState(FloatingPointError):
    """The updated state has NaN, or its parameters are infinite, although every loss so far was finite.

    Attributes:
        step: the step after which it was seen.
        leaf: where in the state, such as ``.params['dense']['kernel']``.
    """

    def __init__(self, step: int, leaf: str):
        super().__init__(f"state{leaf} is not finite after step {step}: expected finite numbers (is the learning rate too high?)")
        self.step, self.leaf = step, leaf


class Hook(Protocol):
    """Something to do every so often: save, sample, evaluate."""

    @property
    def every(self) -> int:
        """The hook is called after each step that is a multiple of it, and after the last step."""
        ...

    def __call__(self, step: int, state: Pytree, window: Window) -> None:
        """Act on the state after ``step``.

        The state's arrays are consumed by the next step: copy what is to be kept (``np.array``, not
        ``np.asarray``). ``window`` holds the steps since the last boundary of any kind, not since this hook's
        last call.
        """
        ...


def fit(
    learner: Learner,
    data: Any,
    *,
    steps: int,
    key: Key,
    state: Pytree = None,
    hooks: Sequence[Hook] = (),
    log: Callable[[Window], None] | None = None,
    log_every: int = 100,
    mesh: devices.Spread = None,
    sharding: Sharding = WHOLE,
    stop: Callable[[], bool] | None = None,
    skip_nonfinite: int = 0,
    memory: Callable[[Memory], None] | None = None,
    early: Watch | None = None,
) -> Pytree:
    """Train ``learner`` until ``state.step == steps`` and return the state.

    Steps are dispatched without waiting for the device, at most ``STEPS_AHEAD`` in advance. Metrics stay on
    the device until a window ends: at every multiple of ``log_every``, at every multiple of a hook's
    ``every`` or of ``early.every``, and at the last step. Windows thus partition the steps without gaps, and are the same in a run
    resumed from a hook's checkpoint as in one that was never stopped (drop the logged windows with ``last``
    beyond the checkpoint). At the end of a window its metrics are checked, then logged, then the state is checked
    where a hook is due, then the hooks due are called in order.

    Args:
        learner: a hashable :class:`~scorelab.training.Learner`, or one that is a pytree with hashable static parts.
        data: an object with ``at(step) -> dict`` of host arrays, a pure function of the step, and optionally
            a hashable ``prepare(batch) -> dict`` that runs inside the compiled step
            (:class:`~scorelab.training.Prepared`). With several processes it is called as ``at(step, host,
            hosts)`` and returns this host's share.
        steps: the total number of updates, those already in ``state`` included.
        key: PRNG key; the same one when resuming.
        state: where to start, device or host arrays, which are left alone; None for ``learner.init``.
        hooks: what to do along the way.
        log: called with each window as it ends, in order.
        log_every: the longest window.
        mesh: devices to train on (:func:`~scorelab.training.data_mesh`); None for all, which must divide the
            batch. ``"auto"`` is the same on accelerators, for several processes and for a state that is split; on a CPU
            (:func:`scorelab.use_all_cores`) it takes as many as divide the batch and get 1.5e8 floating point operations of an
            update each, and 3000 for every number of the state, which each of them updates. So it does for convolutional networks
            of images. The update is traced once more to count them.
        sharding: how the state lies on them (:class:`~scorelab.training.Sharding`): whole on every device, or split. The state that
            is returned, and that hooks see, lies like that too.
        stop: asked after every update; True makes that step the last one: its window ends, every hook is called, and
            the state is returned. With several processes it must answer the same everywhere.
        skip_nonfinite: how many batches in a row may be skipped, since their loss or gradient norm is not finite. A skipped batch
            leaves parameters, optimiser and averages as they were, bitwise; the step counts. The metric ``"skipped"`` and a
            :class:`~scorelab.training.SkippedBatchWarning` say which. 0 for none, with the program that there is without this.
            They are counted from where ``fit`` begins.
        memory: called once before the first step with the :class:`~scorelab.training.Memory` that a step takes on each device. It
            costs nothing, since the program that is asked is the one that runs.
        early: an :class:`~scorelab.training.EarlyStopping` at work, ``EarlyStopping(...).watch(held_out)``. It evaluates the state
            at its multiples of ``every``, before hooks are called, and may make that step the last one. The last state is returned;
            ``early.best_state`` is the one with the smallest held-out loss. Where it has ended the training before, nothing is
            done.

    Raises:
        NonFiniteLoss: names the exact step; the finite steps before it have been logged. With ``skip_nonfinite`` the first step
            that is one too many in a row.
        NonFiniteState: before a hook sees a state with NaN or infinite parameters.
        OutOfMemory: the state or a step does not fit into the memory of a device; names a batch that would, and what takes less.
        ValueError: a batch that the devices do not divide, a mesh without the axes of ``sharding``, a metric that is not a scalar,
            no metric ``"loss"``.
    """
    _check(learner, data, steps, log_every, hooks, skip_nonfinite, sharding, memory, early)
    devices.require_mesh("fit", mesh)
    start = 0 if state is None else int(state.step)
    if start >= steps:
        return state
    shard = () if jax.process_count() == 1 else (jax.process_index(), jax.process_count())
    prepare, first = getattr(data, "prepare", _as_is), data.at(start, *shard)
    if isinstance(mesh, str) and sharding.whole:
        mesh = devices.training_mesh(learner, jax.eval_shape(prepare, first), key)
    mesh = sharding.mesh() if mesh is None or isinstance(mesh, str) else mesh
    sharding.check(mesh)
    if early is not None:
        early.begin(learner, prepare, mesh, start)
        if early.stopped:
            return state
    program = (prepare, mesh, skip_nonfinite > 0, sharding)
    size = lambda: jax.tree.leaves(first)[0].shape[0] * jax.process_count()
    of_step = lambda compiles: measured(update, *like, mesh=mesh, compiles=compiles)
    too_large = lambda step, error: exhausted(step, size(), of_step, error, learner)
    try:
        # The arrays of the learner, a teacher's, are laid out here.
        init, update = compiled(learner, *program)
        batch, key = shard_batch(first, mesh), replicate(key, mesh)
        state = init(batch, key) if state is None else sharding.place(state, mesh)
    except jax.errors.JaxRuntimeError as error:
        if not ran_out(error):
            raise
        update, like = _as_shapes(learner, program, state, first, key)
        raise too_large(start + 1, error) from error
    # Their arrays are consumed: what the memory of a step follows from are their shapes.
    like = jax.tree.map(_shape, (state, batch, key))
    if memory is not None:
        try:
            found = measured(update, state, batch, key, mesh=mesh)
        except jax.errors.JaxRuntimeError as error:
            if not ran_out(error):
                raise
            raise too_large(start + 1, error) from error
        memory(found)

    pending: list[dict[str, Array]] = []
    in_a_row = 0
    for step in range(start + 1, steps + 1):
        try:
            state, metrics = update(state, batch, key)
            pending.append(metrics)
            last = step == steps or (stop is not None and stop())
            if not last:
                # Before anything below waits for the device, so that the next batch is on its way meanwhile.
                batch = shard_batch(data.at(step, *shard), mesh)
            if len(pending) > STEPS_AHEAD:
                jax.block_until_ready(pending[-1 - STEPS_AHEAD])
        except jax.errors.JaxRuntimeError as error:
            if not ran_out(error):
                raise
            raise too_large(step, error) from error
        due = [hook for hook in hooks if step % hook.every == 0 or last]
        held_out = early is not None and step % early.every == 0
        if due or held_out or step % log_every == 0 or last:
            try:
                window, in_a_row = _finish(pending, step, log, skip_nonfinite, in_a_row)
            except NonFiniteLoss as error:
                cause = _cause(learner.model(state), data, error.step, shard)
                raise NonFiniteLoss(error.step, error.metric, error.value, cause, error.row) from None
            except jax.errors.JaxRuntimeError as error:
                # A device that was dispatched to ahead says only here that it had no memory.
                if not ran_out(error):
                    raise
                raise too_large(step, error) from error
            pending = []
            for skipped in window.skipped:
                _say_skipped(skipped, window, _cause(learner.model(state), data, skipped, shard))
            if int(state.step) != step:
                raise ValueError(f"{type(learner).__name__} made step = {state.step} of update {step}: expected {step}")
            if due or held_out or last:
                _require_finite(learner, step, state)
            if early is not None and held_out and early(step, state):
                last, due = True, hooks
            for hook in due:
                hook(step, state, window)
        if last:
            break
    return state


def compiled(
    learner: Learner, prepare: Callable, mesh: Mesh, skips: bool = False, sharding: Sharding = WHOLE
) -> tuple[Callable, Any]:
    """The jitted ``init(batch, key)`` and ``update(state, batch, key)``, one pair for equal arguments.

    ``update.lower(state, batch, key)`` is its program, for arrays or for shapes that say where they lie (:meth:`Sharding.place`). A
    learner may have shapes in the place of its arrays as well, where nothing is to be run.

    With ``skips``, a step whose loss or gradient norm is not finite changes nothing but ``state.step``, at the price of a second
    state in memory.

    The arrays of a learner that is a pytree are arguments of the program: other ones of the same shapes reuse it.
    """
    named, structure = jax.tree_util.tree_flatten_with_path(learner) if is_model_pytree(learner) else ([], _Static(learner))
    # By number and place: in this order they make the learner again, and their layout follows from where they are in it.
    arrays = {f"{i:05d}/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf for i, (path, leaf) in enumerate(named)}
    init, update, choose = _compiled(structure, prepare, mesh, skips, sharding)
    if not arrays:
        return init, update if choose is None else Update(update, choose)
    arrays = sharding.place(arrays, mesh)
    return functools.partial(init, arrays=arrays), Update(update, choose, arrays)


@dataclass(frozen=True, eq=False)
class Update:
    """An update of more than one program, or of a learner with arrays, called as ``update(state, batch, key)``.

    Attributes:
        program: the step, called with ``arrays`` as well.
        choose: the choice between its state and the one before, None for none.
        arrays: those of the learner, by their places in it.
    """

    program: Any
    choose: Any = None
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def __call__(self, state: Pytree, batch: Pytree, key: Key) -> tuple[Pytree, dict[str, Array]]:
        made = self.program(state, batch, key, arrays=self.arrays)
        return made if self.choose is None else self.choose(state, *made)

    def lower(self, state: Pytree, batch: Pytree, key: Key) -> Any:
        """The program of the step."""
        return self.program.lower(state, batch, key, arrays=self.arrays)


@dataclass(frozen=True)
class _Static:
    """A learner without arrays, in the form of a tree's structure."""

    learner: Learner

    def unflatten(self, arrays: Iterable[Array]) -> Learner:
        return self.learner


@functools.lru_cache(maxsize=16)
def _compiled(structure: Any, prepare: Callable, mesh: Mesh, skips: bool, sharding: Sharding) -> tuple[Any, Any, Any]:
    # The learner is closed over, not a static argument: hashing it at every call costs more than dispatching a small step.
    whole = replicated(mesh)
    jit = functools.partial(jax.jit, out_shardings=whole if sharding.whole else None)

    def split(state, metrics=()):
        if sharding.whole:
            return state, metrics
        # Where they are made: how a state is split follows from its leaves, which are known here alone.
        wanted = sharding.of(state, mesh), jax.tree.map(lambda _: whole, metrics)
        return jax.lax.with_sharding_constraint((state, metrics), wanted)

    def init(batch, key, arrays=None):
        learner = structure.unflatten((arrays or {}).values())
        return split(learner.init(jax.random.fold_in(key, _INIT_STREAM), prepare(batch)))[0]

    def update(state, batch, key, arrays=None):
        with laid_out(sharding, mesh):
            learner = structure.unflatten(gathered(arrays or {}).values())
            state, metrics = learner.update(state, prepare(batch), jax.random.fold_in(key, state.step))
        wrong = {name: value.shape for name, value in metrics.items() if value.shape}
        if "loss" not in metrics or wrong:
            raise ValueError(
                f"{type(learner).__name__} returned metrics {sorted(metrics)}, not scalar: {wrong}: "
                "expected scalars, and 'loss' among them"
            )
        return split(state, metrics)

    def chosen(old, new, metrics):
        return split(*_unless_skipped(old, new, metrics))

    begin = jit(init)
    if not skips:
        return begin, jit(update, donate_argnums=0), None
    # Two programs: in one, the choice would be fused with the update, and round it in another way.
    return begin, jit(update), jit(chosen, donate_argnums=1)


def _unless_skipped(old: Pytree, new: Pytree, metrics: dict[str, Array]) -> tuple[Pytree, dict[str, Array]]:
    """The new state where the loss and the gradient norm are finite, else the old one, at the new step; and which it was."""
    if SKIPPED in metrics:
        raise ValueError(
            "fit.skip_nonfinite with a learner that has a metric 'skipped': expected another name, since fit has that one"
        )
    good = jnp.all(jnp.stack([jnp.isfinite(metrics[name]) for name in _checked(metrics)]))
    kept: Any = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
    if hasattr(kept, "_replace"):
        kept = kept._replace(step=new.step)
    elif dataclasses.is_dataclass(kept) and not isinstance(kept, type):
        kept = dataclasses.replace(kept, step=new.step)
    else:
        raise TypeError(f"fit.skip_nonfinite with a state of type {type(kept).__name__}: expected a dataclass or a NamedTuple")
    return kept, {**metrics, SKIPPED: jnp.where(good, 0, 1)}


def _checked(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics that have to be finite."""
    return [name for name in ("loss", "grad_norm") if name in metrics]


def _finish(
    pending: list[dict[str, Array]], step: int, log: Callable[[Window], None] | None, most: int, in_a_row: int
) -> tuple[Window, int]:
    """Fetch the metrics of the steps up to ``step``, check them and log them; and how many were skipped in a row at the end."""
    rows = jax.device_get(pending)
    first = step - len(rows) + 1
    values = {name: np.array([row[name] for row in rows], np.float32) for name in sorted(rows[0])}
    checked = _checked(values)
    finite = np.all([np.isfinite(values[name]) for name in checked], axis=0)
    good = len(rows)
    for i in range(len(rows)):
        in_a_row = 0 if finite[i] else in_a_row + 1
        if in_a_row > most:
            good = i
            break
    window = Window(first, first + good - 1, {name: value[:good] for name, value in values.items()})
    if log is not None and good:
        log(window)
    if good < len(rows):
        metric = next(name for name in checked if not np.isfinite(values[name][good]))
        raise NonFiniteLoss(first + good, metric, float(values[metric][good]), row=in_a_row)
    return window, in_a_row


def _say_skipped(step: int, window: Window, cause: str) -> None:
    values = {name: window.by_step[name][step - window.first] for name in _checked(window.by_step)}
    metric = next(name for name, value in values.items() if not np.isfinite(value))
    warn(
        f"fit skipped the batch of step {step} (data.at({step - 1})), where {metric} = {values[metric]}{cause}", SkippedBatchWarning
    )


def _cause(model: Any, data: Any, step: int, shard: tuple[int, ...]) -> str:
    """What can be seen in the batch of ``step`` that explains a loss that is no number; empty where there is nothing."""
    try:
        batch = getattr(data, "prepare", _as_is)(data.at(step - 1, *shard))
    except ValueError:  # an iterator does not go back
        return ""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and (bad := int(np.sum(~np.isfinite(np.asarray(leaf))))):
            found.append(f"batch{jax.tree_util.keystr(path)} has {bad} values that are not finite")
    try:
        check_condition(model, batch.get("cond"))
    except ValueError as error:
        found.append(str(error))
    if isinstance(process := getattr(model, "process", None), Geodesic):
        for name in ("x", "base"):
            try:
                if batch.get(name) is not None:
                    process.space.check(f"batch['{name}']", batch[name])
            except ValueError as error:
                found.append(str(error))
    return "".join(f"; {cause}" for cause in found)


def _require_finite(learner: Learner, step: int, state: Pytree) -> None:
    """Refuse a state with NaN outside ``learner.statistics``, or infinite parameters; an optimiser may start at infinity."""
    statistics = tuple(f".{name}" for name in learner.statistics)
    flags = np.asarray(_flags(state, statistics))
    if not flags.all():
        leaves = [path for path, _ in _numbers(state, statistics)]
        raise NonFiniteState(step, jax.tree_util.keystr(leaves[int(np.argmin(flags))]))


@functools.partial(jax.jit, static_argnames="statistics")
def _flags(state: Pytree, statistics: tuple[str, ...]) -> Array:
    """One flag for each leaf of real or complex numbers ``(leaves,)``: True where it is as it should be."""
    of_params = lambda path: jax.tree_util.keystr(path[:1]) in (".params", "['params']")
    good = lambda path, leaf: jnp.all(jnp.isfinite(leaf) if of_params(path) else ~jnp.isnan(leaf))
    found = [good(path, leaf) for path, leaf in _numbers(state, statistics)]
    return jnp.stack(found) if found else jnp.ones(1, bool)


def _numbers(state: Pytree, statistics: tuple[str, ...]) -> list[tuple[Any, Array]]:
    return [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and jax.tree_util.keystr(path[:1]) not in statistics
    ]


def _shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _as_shapes(
    learner: Learner, program: tuple[Callable, Mesh, bool, Sharding], state: Pytree, batch: Pytree, key: Key
) -> tuple[Any, tuple[Pytree, Pytree, Key]]:
    """The update, and its arguments as shapes that say where they would lie: where there is no memory for the arrays themselves."""
    prepare, mesh, _, sharding = program
    begun = lambda learner, batch, key: learner.init(key, prepare(batch))
    if is_model_pytree(learner):
        learner = jax.eval_shape(_as_is, learner)
        begin = functools.partial(jax.eval_shape, begun, learner)
    else:
        begin = functools.partial(jax.eval_shape, functools.partial(begun, learner))
    wanted = begin(batch, key) if state is None else jax.eval_shape(_as_is, state)
    _, update = compiled(learner, *program)
    of_all = lambda leaf: (leaf.shape[0] * jax.process_count(), *leaf.shape[1:])
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(of_all(leaf), leaf.dtype, sharding=devices.by_rows(mesh)), jax.eval_shape(_as_is, batch)
    )
    of_key: Any = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
    return update, (sharding.place(wanted, mesh), batch, of_key)


def _as_is(tree: Pytree) -> Pytree:
    return tree


def _check(learner, data, steps, log_every, hooks, skip_nonfinite, sharding, memory, early) -> None:
    require_spec(fit, Learner, learner=learner)
    require_spec(fit, Sharding, sharding=sharding)
    if memory is not None and not callable(memory):
        raise TypeError(f"fit.memory = {memory!r}: expected a function of a Memory, or None")
    require_int(fit, 1, steps=steps, log_every=log_every)
    require_int(fit, 0, skip_nonfinite=skip_nonfinite)
    if early is not None:
        require_spec(fit, Watch, early=early)
    if not callable(getattr(data, "at", None)):
        raise TypeError(f"fit.data = {data!r}: expected an object with at(step)")
    for hook in hooks:
        every = getattr(hook, "every", None)
        require_int(f"fit.hooks: {hook!r}", 1, every=every)
    try:
        hash(jax.tree.structure(learner) if is_model_pytree(learner) else learner)
    except TypeError as error:
        raise TypeError(f"fit.learner of type {type(learner).__name__} is not hashable: {error}") from error
