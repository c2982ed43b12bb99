"""Pruning: many candidates are begun, and at set steps only those with the best intermediate reward are carried on.

Steering with hard selection and without copies, whose batch shrinks, so that the calls are saved in fact. The idea of pruning by
noise-aware rewards is that of TTSnap; there the reward of noisy points is learned (:class:`scorelab.fk.Learned`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from scorelab import walk
from scorelab.arguments import check_shape
from scorelab.arrays import Array, Key, Pytree, float_like
from scorelab.callbacks import own_errors
from scorelab.fk.intermediate import Believes, Denoised, Intermediate
from scorelab.fk.particles import WeightsWarning
from scorelab.grids import Grid
from scorelab.models.base import Model
from scorelab.models.per_sample import map_per_sample
from scorelab.processes.base import Start
from scorelab.pytrees import partly_static
from scorelab.randomness import per_example_keys
from scorelab.solvers.base import Integrator, Population, Solver
from scorelab.validation import require_int, require_positive, require_spec
from scorelab.warn import warn

# The stream of what an intermediate reward draws, beside the noise of the walk.
_BELIEF = 1_000_039


@partly_static("reward", "scale", "intermediate")
@dataclass(frozen=True)
class Pruning(Believes):
    r"""Which candidates are carried on: of every population the ``count`` with the largest intermediate rewards, at set steps.

    Attributes:
        reward: from points of data space ``(batch, *event)`` to ``(batch,)``; a function, or a callable pytree whose numbers are
            leaves. It need not be differentiable, and may be a :class:`scorelab.fk.Callback`.
        keep: ``{step: count}``: after the model's call at the beginning of this step of the grid (from 0), so many of every
            population are left. Counts fall from step to step.
        particles: candidates in a population; None for one population of all.
        intermediate: how the reward is believed at a noisy point.
        scale: :math:`\lambda` of the intermediate reward, which matters to those that average over :math:`e^{\lambda r}`.
        with_cond: call ``reward(x, cond)`` with the conditions of the candidates.
    """

    reward: Callable[..., Array]
    keep: Mapping[int, int] | tuple[tuple[int, int], ...]
    _: KW_ONLY
    particles: int | None = None
    intermediate: Intermediate = field(default_factory=Denoised)
    scale: float = 1.0
    with_cond: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, scale=self.scale)
        if self.particles is not None:
            require_int(self, 1, particles=self.particles)
        pairs = self.keep.items() if isinstance(self.keep, Mapping) else self.keep
        if not np.iterable(pairs) or any(np.ndim(pair) != 1 or len(pair) != 2 for pair in pairs):
            raise TypeError(f"Pruning.keep = {self.keep!r}: expected {{step: count}}, such as {{10: 4}}")
        plan = tuple(sorted((step, count) for step, count in pairs))
        kept = {step: count for step, count in plan}
        if not plan:
            raise ValueError("Pruning.keep is empty: expected {step: count}, or sample() and best_of() for no pruning")
        for step, count in plan:
            require_int(self, 0, keep=step)
            require_int(self, 1, keep=count)
        steps, counts = [step for step, _ in plan], [count for _, count in plan]
        if len(set(steps)) < len(steps) or any(after >= before for before, after in itertools.pairwise(counts)):
            raise ValueError(f"Pruning.keep = {kept}: expected counts that fall from step to step")
        if self.particles is not None and counts[0] >= self.particles:
            raise ValueError(f"Pruning.keep = {kept}: expected counts below the {self.particles} candidates of a population")
        # Hashable, since it is part of what a compiled program is known by.
        object.__setattr__(self, "keep", plan)

    @property
    def plan(self) -> tuple[tuple[int, int], ...]:
        """``keep`` as pairs, by step."""
        return cast(tuple[tuple[int, int], ...], self.keep)


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What :func:`prune` returns; survivors are in the order of the candidates, population by population.

    Attributes:
        x: the survivors in data space, ``(populations * count, *event)``; a dictionary of parts where the process has them.
        rewards: of the survivors, ``(populations * count,)``; one of each population is picked by
            ``best_of(out.x, out.rewards, count)``.
        ids: of the survivors.
        dropped_at: for every candidate ``(n,)`` the step at which it was dropped, -1 for survivors.
        beliefs: the intermediate rewards, times ``scale``, ``(prunings, n)``; NaN for those that were no longer there.
        model_calls: calls of the model, one for each candidate and row of the solver's table.
        unpruned_calls: those that all candidates would have cost.
        times: the grid that was walked, ``(steps + 1,)``.
    """

    x: Pytree
    rewards: Array
    ids: Array
    dropped_at: np.ndarray
    beliefs: np.ndarray
    model_calls: int
    unpruned_calls: int
    times: np.ndarray


@own_errors()
def prune(
    model: Model,
    *,
    pruning: Pruning,
    solver: Solver,
    grid: Grid,
    key: Key,
    shape: Any,
    start: Start | None = None,
    cond: Pytree = None,
    ids: Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pruned:
    """Draw samples as :func:`scorelab.sample` does, and give up the worst on the way.

    The noise of a candidate comes from its id, so survivors are the samples that ``sample`` gives for their ids (up to rounding,
    since the batch has another shape). **A search, not a sampler** of any tilted law. One program is compiled for the walk
    between two prunings. NaN among the intermediate rewards counts as the least; of equal ones the first is kept.
    :class:`scorelab.fk.WeightsWarning` where NaN or ``+inf`` were kept.

    Args:
        model: as in ``sample``, of a process without signs.
        pruning: the rewards, and how many are kept when.
        solver: any whose samples do not depend on one another, and whose rows are the model's calls.
        grid: as in ``sample``.
        key: as in ``sample``.
        shape: as in ``sample``, with all candidates, who are one batch: for more than fit call again with other ``ids``.
        start: as in ``sample``; its weights, if any, are not used.
        cond: as in ``sample``, the same within a population.
        ids: as in ``sample``.
        progress: called with (model calls made, model calls planned) after every stretch.

    Raises:
        NonFiniteSample: as in ``sample``, also for a candidate that would have been dropped.
        ValueError: steps outside the grid, counts that are not below the candidates.
    """
    require_spec(prune, Pruning, pruning=pruning)
    require_spec(prune, Solver, solver=solver)
    n, _ = check_shape(shape)
    particles = n if pruning.particles is None else pruning.particles
    if isinstance(solver, Population | Integrator):
        raise ValueError(f"prune.solver = {solver!r}: expected one with independent samples and a fixed number of model calls")
    if n % particles or pruning.plan[0][1] >= particles:
        raise ValueError(
            f"prune.shape = ({n}, ...) with populations of {particles}, of which {pruning.plan[0][1]} are kept: expected whole "
            "populations of more"
        )
    plan = walk.plan(
        "prune", model, solver=solver, grid=grid, key=key, shape=shape, start=start, cond=cond, ids=ids, particles=particles
    )
    process = plan.model.process
    if process.has_signs:
        raise ValueError(f"prune.model is of {process!r}: expected signed=False, since a belief has no signs")
    if pruning.plan[-1][0] >= len(plan.times) - 1:
        raise ValueError(f"Pruning.keep = {dict(pruning.plan)}: expected steps from 0 to {len(plan.times) - 2}, those of the grid")

    calls, index = plan.calls, np.arange(plan.calls, dtype=np.int32)
    # The first call of a step is the one at the state where the step begins.
    ends = [int(np.argmax(plan.rows.step == step)) + 1 for step, _ in pruning.plan]
    counts = [particles, *(count for _, count in pruning.plan)]
    lengths = np.diff([0, *ends, calls])
    planned = int(np.sum(lengths * np.array(counts)) * (n // particles))
    # When and how many is nothing to the compiled stretches, which are shared by all plans with their shapes.
    search = _Search(solver, dataclasses.replace(pruning, keep={0: 1}, particles=None))

    visit = walk.Visit(plan.model, key, plan.ids, cond)
    state = _begin(search, visit, walk.drawn(plan.start, process, key, plan.ids, cond, plan.first, event=plan.event))
    alive, at, done, unusable = np.arange(n), 0, 0, 0
    dropped_at, beliefs, value = np.full(n, -1), np.full((len(ends), n), np.nan), jnp.full(n, jnp.nan)
    for i, end in enumerate([*ends, calls]):
        if end > at:
            rows, which = jax.tree.map(lambda column: column[at:end], (plan.rows, index))
            state, value = _stretch(search, visit, state, rows, which, i < len(ends))
        walk.raise_if_bad(np.asarray(state.bad), plan.times)
        done, at = done + (end - at) * len(alive), end
        if i < len(ends):
            step, count = pruning.plan[i]
            beliefs[i, alive] = value
            kept = _best(np.asarray(value), len(alive) * particles // n, count)
            dropped_at[np.delete(alive, kept)] = step
            alive = alive[kept]
            take = lambda leaf: jnp.asarray(leaf)[kept]
            own = map_per_sample(lambda _, value: take(value), visit.model)
            state, ids, cond = jax.tree.map(take, (state, visit.ids, visit.cond))
            visit = visit._replace(model=own, ids=ids, cond=cond)
            unusable += int(np.sum(_no_number(np.asarray(value)[kept])))
        if progress is not None:
            progress(done, planned)
    x, rewards = _finish(search, visit, state)
    worthless = int(np.sum(_no_number(np.asarray(rewards))))
    if unusable or worthless:
        warn(
            f"prune kept {unusable} candidates whose intermediate reward was NaN or +inf, and {worthless} of {len(rewards)} "
            "survivors have such a reward: expected rewards that are numbers, at least for as many as are kept",
            WeightsWarning,
        )
    return Pruned(
        x=x, rewards=rewards, ids=plan.ids[alive], dropped_at=dropped_at, beliefs=beliefs, model_calls=done,
        unpruned_calls=calls * n, times=plan.times,
    )  # fmt: skip


@partly_static("solver", "pruning")
@dataclass(frozen=True)
class _Search:
    """One argument of the compiled stretches: what is a spec in it is static, what is a number a leaf."""

    solver: Solver
    pruning: Pruning


def _no_number(value: np.ndarray) -> np.ndarray:
    return np.isnan(value) | (value == math.inf)


def _best(value: np.ndarray, population: int, count: int) -> np.ndarray:
    """The indices of the ``count`` largest of every population, in their order."""
    value = np.where(np.isnan(value), -math.inf, value).reshape(-1, population)
    order = np.sort(np.argsort(-value, axis=1, kind="stable")[:, :count], axis=1)
    return (order + population * np.arange(len(value))[:, None]).ravel()


@jax.jit
def _begin(search, visit, drawn):
    return walk.begin(search.solver, visit, drawn)


@jax.jit
def _stretch(search, visit, state, rows, index, due):
    """The state after the rows, and the intermediate rewards of the last one where it is to be judged."""
    working = float_like(rows.t)

    last = index[-1]

    def judge(y, prediction, row, at):
        def judged():
            own = per_example_keys(jax.random.fold_in(jax.random.fold_in(visit.key, _BELIEF), at), visit.ids)
            return search.pruning.believed(y, prediction, own, visit.cond)

        # In the scan, under a condition: the network stands in the program once, and rewards are asked where they count.
        return jax.lax.cond(due & (at == last), judged, lambda: jnp.full(len(visit.ids), jnp.nan, working))

    state, (_, values, _) = walk.scan(search.solver, visit, state, rows, index, judge=judge)
    return state, values[-1]


@jax.jit
def _finish(search, visit, state):
    x = search.solver.decode(visit.model.process, state.y, state.carry)
    return x, search.pruning.rewards(x, visit.cond)
