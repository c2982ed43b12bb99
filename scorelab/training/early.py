"""Early stopping: the held-out loss of a training, the state that has the smallest, and when to end."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from scorelab import hosts
from scorelab.arrays import Array, Key, Pytree, on_host
from scorelab.devices import by_rows, everywhere, replicated
from scorelab.losses import Loss
from scorelab.processes.base import require_same_process
from scorelab.pytrees import is_model_pytree
from scorelab.training.learner import Learner
from scorelab.validation import require_int, require_number, require_seed, require_spec


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """The loss of the held-out points after a step.

    Attributes:
        step: the step.
        loss: mean over points and draws; infinite or NaN where the model gave such numbers.
        standard_error: of the mean, over the points; NaN for a single one. Two losses of one run differ by much less than that,
            since both have the same points, times and noise.
    """

    step: int
    loss: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    r"""End a training when the loss of held-out points has stopped falling, and keep the state where it was smallest.

    .. math:: \ell(\theta) = \frac{1}{n\,k}\sum_{i\le n}\sum_{j\le k} L\big(\theta;\,x_i,\,t_{ij},\,\epsilon_{ij}\big)

    of the model that is sampled (the averaged one), with the loss of the learner. Times and noise are drawn once, from ``seed``:
    every evaluation has the same, so a difference of two is one of the models. The numbers are the same on every host, and in a
    run that was resumed.

    Denoising regresses clean data on noised data, so what is left of the training loss below that of the true score is label
    noise that was learned by heart (arXiv 2401.15604). The held-out loss turns where that begins.

    Attributes:
        every: steps between evaluations, which are at its multiples.
        patience: evaluations in a row without an improvement after which the training ends.
        min_delta: an improvement is a loss that is smaller by more than this than the last one that was. The best state is the
            one with the smallest loss, whatever ``min_delta`` is.
        n: held-out points at most, the first ones.
        draws: times and noises of each point.
        batch: points evaluated at once; the draw depends on it.
        loss: another loss than that of the learner, such as one without a regulariser; needed for a learner without one.
        seed: of times and noise.
    """

    every: int = 1000
    patience: int = 5
    min_delta: float = 0.0
    n: int = 1024
    draws: int = 4
    batch: int = 256
    loss: Loss | None = None
    seed: int = 0

    def __post_init__(self):
        counts = ("every", "patience", "n", "draws", "batch")
        require_int(self, 1, **{name: getattr(self, name) for name in counts})
        require_number(self, 0.0, np.finfo(np.float64).max, min_delta=self.min_delta)
        require_seed(self, seed=self.seed)
        if self.loss is not None:
            require_spec(self, Loss, loss=self.loss)

    def loss_of(self, learner: Learner) -> Loss:
        """The loss of the held-out points; ValueError for a learner without one, or of another process."""
        loss = getattr(learner, "loss", None) if self.loss is None else self.loss
        if not isinstance(loss, Loss):
            raise ValueError(f"EarlyStopping.loss = None for a {type(learner).__name__}, which has none: expected a loss")
        require_same_process("EarlyStopping", loss=loss.process, learner=learner.process)
        return loss

    def best(self, records: Sequence[HeldOutLoss]) -> HeldOutLoss | None:
        """The first of the smallest finite losses; None where there is none."""
        return min((record for record in records if math.isfinite(record.loss)), key=lambda record: record.loss, default=None)

    def waited(self, records: Sequence[HeldOutLoss]) -> int:
        """Evaluations since the last improvement."""
        reference, waited = math.inf, 0
        for record in records:
            improved = math.isfinite(record.loss) and (math.isinf(reference) or record.loss < reference - self.min_delta)
            reference, waited = (record.loss, 0) if improved else (reference, waited + 1)
        return waited

    def watch(
        self,
        held_out: Mapping[str, Any],
        *,
        records: Sequence[HeldOutLoss] = (),
        tell: Callable[[HeldOutLoss], None] | None = None,
        keep_state: bool = True,
    ) -> Watch:
        """What ``fit(early=...)`` takes.

        Args:
            held_out: a batch as ``data.at(step)`` gives it, host arrays ``(n, ...)`` by name; it is prepared as the data are.
            records: those of the run that goes on.
            tell: called with each new record.
            keep_state: keep the best state, on the host.

        Raises:
            ValueError: no held-out points, arrays of different lengths, numbers that are not finite.
            TypeError: what is no mapping of arrays.
        """
        return Watch(self, held_out, records=records, tell=tell, keep_state=keep_state)


class Watch:
    """An :class:`EarlyStopping` at work on one training.

    Attributes:
        spec: the early stopping.
        records: the losses so far, in the order of steps.
        best_state: the state with the smallest loss as host arrays; None where it was not kept, or not seen since a resume.
    """

    def __init__(
        self,
        early: EarlyStopping,
        held_out: Mapping[str, Any],
        *,
        records: Sequence[HeldOutLoss] = (),
        tell: Callable[[HeldOutLoss], None] | None = None,
        keep_state: bool = True,
    ):
        require_spec("watch", EarlyStopping, early=early)
        if not isinstance(held_out, Mapping):
            raise TypeError(f"watch.held_out is a {type(held_out).__name__}: expected a batch, host arrays by name")
        for record in records:
            require_spec("watch", HeldOutLoss, records=record)
        steps = [record.step for record in records]
        if steps != sorted(set(steps)):
            raise ValueError(f"watch.records are of the steps {steps}: expected each once, in order")
        self.spec, self.records, self.best_state = early, list(records), None
        self._rows = _rows(held_out, early.n)
        self._tell, self._keep_state = tell, keep_state
        self._loss: Callable[[Pytree], HeldOutLoss] | None = None

    @property
    def every(self) -> int:
        """Steps between evaluations."""
        return self.spec.every

    @property
    def best(self) -> HeldOutLoss | None:
        """The smallest loss so far; None before the first."""
        return self.spec.best(self.records)

    @property
    def stopped(self) -> bool:
        """Whether the training is to end, after ``patience`` evaluations without an improvement."""
        return self.spec.waited(self.records) >= self.spec.patience

    def begin(self, learner: Learner, prepare: Callable, mesh: Mesh, start: int) -> None:
        """Called by ``fit`` before the first step; ValueError for records of steps that the state has not made yet."""
        if self.records and self.records[-1].step > start:
            raise ValueError(
                f"watch.records go up to step {self.records[-1].step} and the state is at step {start}: expected those up to it"
            )
        self._loss = functools.partial(
            _held_out_loss, self.spec, learner, self.spec.loss_of(learner), prepare, mesh, self._blocks(mesh)
        )

    def __call__(self, step: int, state: Pytree) -> bool:
        """Evaluate the state after ``step``; True makes that step the last one."""
        if self._loss is None:
            raise RuntimeError("a Watch was called before begin: expected it as fit(early=...)")
        record = self._loss(state)
        if record.step != step:
            raise ValueError(f"a held-out loss of step {step} with the state of step {record.step}: expected the same")
        self.records.append(record)
        if self._keep_state and self.best is record:
            # A copy: the next step consumes the arrays of the state.
            self.best_state = jax.tree.map(lambda leaf: np.array(on_host(leaf)) if not _is_key(leaf) else leaf.copy(), state)
        if self._tell is not None:
            self._tell(record)
        return self.stopped

    def _blocks(self, mesh: Mesh) -> list[tuple[Pytree, int]]:
        """The points on the devices in blocks of one size, the last filled up with its last row, and how many of each count."""
        n = len(self._rows["x"])
        size = min(n, self.spec.batch)
        layout = by_rows(mesh) if size % mesh.shape[mesh.axis_names[0]] == 0 else replicated(mesh)
        found = []
        for low in range(0, n, size):
            index = np.minimum(np.arange(low, low + size), n - 1)
            rows = jax.tree.map(lambda leaf, index=index: _placed(layout, leaf[index]), self._rows)
            found.append((rows, min(size, n - low)))
        return found


def _held_out_loss(
    spec: EarlyStopping,
    learner: Learner,
    loss: Loss,
    prepare: Callable,
    mesh: Mesh,
    blocks: list[tuple[Pytree, int]],
    state: Pytree,
) -> HeldOutLoss:
    arrays = [everywhere(part, mesh) if is_model_pytree(part) else None for part in (learner, loss)]
    fixed = [None if is_model_pytree(part) else part for part in (learner, loss)]
    program, key = _program(prepare, mesh, *fixed), jax.random.key(spec.seed)
    values = [
        [program(state, rows, key, np.int32(draw), np.int32(block), *arrays) for block, (rows, _) in enumerate(blocks)]
        for draw in range(spec.draws)
    ]
    by_point = np.stack(
        [
            np.concatenate([np.asarray(part, np.float64)[:count] for part, (_, count) in zip(row, blocks, strict=True)])
            for row in values
        ]
    ).mean(axis=0)
    n = len(by_point)
    with np.errstate(invalid="ignore", over="ignore"):
        mean, error = float(by_point.mean()), float(by_point.std(ddof=1) / np.sqrt(n)) if n > 1 else math.nan
    # Processors of several kinds may round in several ways, and all hosts have to stop at one step.
    mean, error = hosts.agreed([mean, error])
    return HeldOutLoss(step=int(state.step), loss=mean, standard_error=error)


@functools.lru_cache(maxsize=8)
def _program(prepare: Callable, mesh: Mesh, learner: Learner | None, loss: Loss | None) -> Any:
    """The errors ``(batch,)`` of a state at stored points; learner and loss are arguments where they have arrays."""

    def errors(state: Pytree, rows: Pytree, key: Key, draw: Array, block: Array, learner_: Any, loss_: Any) -> Array:
        own: Any = learner_ if learner is None else learner
        judged: Any = loss_ if loss is None else loss
        key = jax.random.fold_in(jax.random.fold_in(key, draw), block)
        return judged(key, own.model(state), prepare(rows))

    return jax.jit(errors, out_shardings=replicated(mesh))


def _placed(layout: Any, value: np.ndarray) -> jax.Array:
    """A host array, which every process has, on the devices."""
    return jax.make_array_from_callback(value.shape, layout, lambda index: value[index])


def _rows(held_out: Mapping[str, Any], n: int) -> dict[str, Pytree]:
    """The first ``n`` rows as host arrays; ValueError for what cannot be evaluated."""
    found: dict[str, Pytree] = jax.tree.map(np.asarray, dict(held_out))
    if found.get("x") is None:
        raise ValueError(f"watch.held_out has the arrays {sorted(found)}: expected one that is named 'x'")
    shapes = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(found)}
    if len({shape[:1] for shape in shapes.values()}) > 1 or not min(shapes.values()) or found["x"].shape[0] == 0:
        raise ValueError(f"watch.held_out has the shapes {shapes}: expected one leading axis of at least one point")
    found = jax.tree.map(lambda leaf: leaf[:n], found)
    # A condition may have rows that are NaN as a whole: they say that it is not known.
    if found["x"].dtype.kind == "f" and (bad := np.count_nonzero(~np.isfinite(found["x"]))):
        raise ValueError(f"watch.held_out['x'] has {bad} values that are not finite: expected none")
    return found


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
