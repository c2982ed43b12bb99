r"""How data and base are joined in the training of an interpolant: the joint law of :math:`(x, w)`.

A coupling says which base row belongs to which row of data. Data never change places, so labels and ids stay with them. It runs on
the host, as a function of (seed, step), and before times are drawn.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np

from scorelab.arrays import Array, Pytree
from scorelab.data.batches import IteratorAdapter
from scorelab.processes.spaces import Euclidean
from scorelab.validation import require_choice, require_int, require_number, require_positive, require_seed, require_spec
from scorelab.warn import warn


class CouplingWarning(UserWarning):
    """A plan between data and base did not converge."""


@dataclass(frozen=True, kw_only=True)
class Coupling(abc.ABC):
    """The base of all couplings; a new one needs :meth:`partners`.

    Attributes:
        batch: rows that are joined at once, a multiple or a divisor of those of a training batch; None for those of one batch.
        groups: the name of an array of integers, such as ``"label"``: rows are joined with base rows of their own group only.
        independent: whether it joins nothing, so that a base drawn anywhere will do.
        given: whether batches bring the pairs.
        paired: whether the data have their base, which belongs to their conditions too.
        deterministic: whether the base is a function of the condition, without noise of its own.
        hole: the name of the array that says where the base is another point than the data, None for everywhere.
        noise: deviation of the normal noise that every row of a base in the data has beside it.
    """

    independent: ClassVar[bool] = False
    given: ClassVar[bool] = False
    paired: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False
    hole: ClassVar[str | None] = None
    noise: ClassVar[float] = 0.0

    batch: int | None = None
    groups: str | None = None

    def __post_init__(self):
        if self.batch is not None:
            require_int(self, 1, batch=self.batch)
        if self.groups is not None and not isinstance(self.groups, str):
            raise TypeError(f"{type(self).__name__}.groups = {self.groups!r}: expected the name of an array, or None")

    @property
    def measures_in(self) -> Any:
        """The space of :mod:`scorelab.processes.spaces` whose distances it compares; None where it compares none that are known."""
        return None

    @abc.abstractmethod
    def partners(self, rng: np.random.Generator, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """For each row of ``x`` ``(n, d)`` the number of a row of ``w`` ``(n, d)``: ``(n,)`` integers."""


@dataclass(frozen=True, kw_only=True)
class Independent(Coupling):
    """Every row with a base row of its own, whatever the two are: what there is without a coupling."""

    independent = True

    def partners(self, rng, x, w):
        return np.arange(len(x))


@dataclass(frozen=True, kw_only=True)
class Paired(Coupling):
    r"""The base is in the data: every batch has it by the name ``base``, as coarse images, masked ones or former states.

    Attributes:
        deterministic: whether the base is a function ``w(c)`` of the condition, without noise of its own. All noise is then that of
            gamma, which has to be steep, and sampling takes an ``InterpolantSDE``. Its first step draws
            :math:`\alpha E[x\mid c] + \beta w + \gamma\xi` at its end. The flow would return one point for each condition, and is
            refused.
        noise: the base is :math:`w + \tau z` with this :math:`\tau` on the scale of ``x``, fresh in every batch; 0 for the rows
            as they are. It is no point for a condition then, so flow and SDE both lead to the data. Sampling begins at
            ``starts.Fixed`` of rows with their noise. A law as the base of the process is that with the noise.
    """

    deterministic: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]
    noise: float = 0.0  # pyright: ignore[reportIncompatibleVariableOverride]

    given = True
    paired = True

    def __post_init__(self):
        super().__post_init__()
        require_choice(self, (True, False), deterministic=self.deterministic)
        require_number(self, 0.0, np.finfo(np.float32).max, noise=self.noise)
        if self.deterministic and self.noise:
            raise ValueError(f"Paired.noise = {self.noise} with deterministic = True: expected one of the two")
        if self.batch is not None or self.groups is not None:
            raise ValueError("Paired.batch and Paired.groups: expected None, since the pairs are given")

    def partners(self, rng, x, w):
        return np.arange(len(x))


# Names that arrays of a batch have anyway.
_RESERVED = ("x", "base", "cond", "label", "places")


@dataclass(frozen=True, kw_only=True)
class Inpainting(Coupling):
    r"""The base is the data with a hole in it: :math:`w = x` outside of it, and a draw of the base of the process inside.

    On straight paths the outside stays what it is. Latent noise acts in the hole alone, and the loss is the mean over it. The
    network sees the outside in ``y``; where the hole is, it sees as a condition of the name ``hole``. A model is sampled as
    :class:`scorelab.models.Inpainted`.

    Attributes:
        sides: of a box, as many as a point has axes or fewer, which lies anywhere in each point; None where the data have the hole,
            as the array of this name, 1 or True inside of it, ``(n, *event)``.
        hole: that name.
    """

    sides: tuple[int, ...] | None = None
    hole: str = "hole"  # pyright: ignore[reportIncompatibleVariableOverride]

    paired = True

    def __post_init__(self):
        super().__post_init__()
        if self.batch is not None or self.groups is not None:
            raise ValueError("Inpainting.batch and Inpainting.groups: expected None, since every row has its own base")
        require_spec(self, str, hole=self.hole)
        if self.hole in _RESERVED:
            raise ValueError(f"Inpainting.hole = {self.hole!r}: expected the name of an array of its own, and none of {_RESERVED}")
        if self.sides is not None:
            object.__setattr__(self, "sides", tuple(self.sides) if isinstance(self.sides, tuple | list) else (self.sides,))
            if not self.sides:
                raise ValueError("Inpainting.sides = (): expected a side or more, or None for holes that the data have")
            for side in self.sides:
                require_int(self, 1, sides=side)

    def partners(self, rng, x, w):
        return np.arange(len(x))

    def holes(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Boxes in points of the shape ``(n, *event)``, True inside of them; ValueError where they do not fit."""
        n, *event = shape
        sides = self.sides or ()
        if len(sides) > len(event) or any(side > axis for side, axis in zip(sides, event, strict=False)):
            raise ValueError(f"Inpainting.sides = {sides} for points of shape {tuple(event)}: expected a box inside of them")
        found = np.ones(shape, bool)
        for axis, (side, size) in enumerate(zip(sides, event, strict=False)):
            low = rng.integers(size - side + 1, size=n)
            inside = (np.arange(size) >= low[:, None]) & (np.arange(size) < low[:, None] + side)
            found &= inside.reshape(n, *(size if other == axis else 1 for other in range(len(event))))
        return found


@dataclass(frozen=True, kw_only=True)
class Rectified(Coupling):
    """Pairs that a model has made: the two ends of its own paths (:func:`scorelab.distill.rectified_pairs`), by the name ``base``.

    Pairs of a flow make the next flow straighter (reflow). Pairs of the SDE of a Brownian gamma lead to the Schroedinger bridge
    (iterated Markovian fitting). Base rows of a condition are those of the whole base, so sampling begins there.

    Attributes:
        first: how rows are joined before there are pairs.

    Source: Liu et al., arXiv 2209.03003; Shi et al., "Diffusion Schroedinger bridge matching", arXiv 2303.16852.
    """

    first: Coupling = field(default_factory=Independent)

    given = True

    def __post_init__(self):
        super().__post_init__()
        require_spec(self, Coupling, first=self.first)
        if self.batch is not None or self.groups is not None or self.first.given:
            raise ValueError(f"{self!r}: expected batch and groups of the coupling first, and one that does not need pairs")
        if self.first.paired or self.first.hole is not None:
            raise ValueError(f"{self!r}: expected a coupling first that draws from the whole base, since sampling begins there")

    @property
    def measures_in(self):
        """That of ``first``."""
        return self.first.measures_in

    def partners(self, rng, x, w):
        return self.first.partners(rng, x, w)


@dataclass(frozen=True, kw_only=True)
class Assignment(Coupling):
    r"""The permutation of the base rows with the least :math:`\sum_i\lVert x_i - w_i\rVert^2`: optimal transport between the rows.

    A permutation leaves both marginals as they were, so the end law of the flow has no bias; the joint law comes nearer to that of
    optimal transport with more rows, and slowly so in high dimension. One assignment takes about 5 ms of 256 rows, 300 ms of 1024.

    Attributes:
        cost: another cost than the square: a function from ``x`` ``(n, d)`` and ``w`` ``(m, d)`` to ``(n, m)`` that can be hashed,
            such as :class:`scorelab.processes.spaces.SquaredDistance`.

    Source: Tong et al., "Improving and generalizing flow-based generative models with minibatch optimal transport",
    arXiv 2302.00482, where pairs are drawn from the plan with replacement.
    """

    cost: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.cost is not None and (isinstance(self.cost, type) or not callable(self.cost)):
            raise TypeError(f"Assignment.cost = {self.cost!r}: expected a function of (x, w), or None")

    @property
    def measures_in(self):
        """That of the cost, where it has one."""
        return Euclidean() if self.cost is None else getattr(self.cost, "space", None)

    def partners(self, rng, x, w):
        from scipy.optimize import linear_sum_assignment

        if self.cost is None:
            cost = np.sum(x**2, 1)[:, None] + np.sum(w**2, 1) - 2 * x @ w.T
        else:
            cost = np.asarray(self.cost(x, w))
            if cost.shape != (len(x), len(w)) or not np.all(np.isfinite(cost)):
                raise ValueError(
                    f"Assignment.cost returned shape {cost.shape}: expected finite numbers of shape {(len(x), len(w))}"
                )
        rows, columns = linear_sum_assignment(cost)
        return columns[np.argsort(rows)]


@dataclass(frozen=True, kw_only=True)
class Entropic(Coupling):
    r"""A partner drawn from the entropic plan :math:`\propto a_i b_j\,e^{-\lVert x_i-w_j\rVert^2/2k^2}`.

    It is that of a Schroedinger bridge: of a Brownian motion with the deviation ``k`` per root of time, so ``std`` is the ``scale``
    of a Brownian gamma. The plan is between the rows, by Sinkhorn's iteration; a base row may belong to several rows of data.

    Attributes:
        std: ``k``, above 0.
    """

    std: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, std=self.std)

    @property
    def measures_in(self):
        """Flat space."""
        return Euclidean()

    def log_plan(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """The logarithm of the plan between ``x`` ``(n, d)`` and ``w`` ``(m, d)``, ``(n, m)`` float64; a warning if it is rough."""
        log_plan, converged = _plan()(np.asarray(x, np.float32), np.asarray(w, np.float32), np.float32(2 * self.std**2))
        if not converged:
            warn(
                f"Entropic(std={self.std}): the plan of {len(x)} rows did not converge in 2000 iterations: expected a larger std",
                CouplingWarning,
            )
        return np.asarray(log_plan, np.float64)

    def partners(self, rng, x, w):
        log_plan = self.log_plan(x, w)
        return np.argmax(log_plan + rng.gumbel(size=log_plan.shape), axis=1)


@functools.cache
def _plan() -> Callable[..., tuple[Array, Array]]:
    # It takes seconds to import, and only this coupling needs it.
    from ott.geometry import pointcloud
    from ott.solvers import linear

    @jax.jit
    def plan(x, w, epsilon):
        geometry = pointcloud.PointCloud(x, w, epsilon=epsilon)
        found: Any = linear.solve(geometry, max_iterations=2000, threshold=1e-3)
        return (found.f[:, None] + found.g[None] - geometry.cost_matrix) / epsilon, found.converged

    return plan


@dataclass(frozen=True, eq=False)
class Coupled:
    """Batches with the base that belongs to each row, as the loss of an interpolant with a coupling takes them.

    Attributes:
        batches: anything ``fit`` takes, with its ``prepare`` if it has one.
        coupling: that of the process; of a :class:`Rectified` with a base the one before there are pairs.
        base: that of the process: a law with ``sample(key, n)``, or points ``(n, *event)``; None where pairs are given.
        seed: of the base and of the draws of the coupling.

    Raises:
        ValueError: a condition that the coupling does not know of. Rows of a class would get the base rows that are near to it, and
            sampling draws from the whole base.
    """

    batches: Any
    coupling: Coupling
    base: Any = None
    seed: int = 0
    _last: dict[Any, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        require_spec(self, Coupling, coupling=self.coupling)
        require_seed(self, seed=self.seed)
        if not callable(getattr(self.batches, "at", None)):
            raise TypeError(f"Coupled.batches = {self.batches!r}: expected an object with at(step)")
        if isinstance(self.coupling, Rectified) and self.base is not None:
            object.__setattr__(self, "coupling", self.coupling.first)
        if self.coupling.given != (self.base is None):
            wanted = "None, since the pairs are given" if self.coupling.given else "the base of the process"
            raise ValueError(f"Coupled.base with {self.coupling!r}: expected {wanted}")
        # The names of the arrays that are the condition.
        conditions = tuple(getattr(self.prepare.inner, "taken", ()))
        known = (
            self.coupling.independent or self.coupling.given or self.coupling.paired or set(conditions) <= {self.coupling.groups}
        )
        if not known:
            raise ValueError(
                f"Coupled.coupling = {self.coupling!r} under the conditions {conditions!r}: expected groups = the array of labels "
                "that is the condition, since the base of a class would be another law than the one that is sampled from"
            )

    @property
    def prepare(self) -> _PrepareCoupled:
        """That of the batches; a base of integers, as pixels are, goes through the transform of the data."""
        return _PrepareCoupled(getattr(self.batches, "prepare", None), self.coupling.hole)

    def at(self, step: int, *shard: int) -> dict[str, Array]:
        """The batch of ``step`` with its ``base``, ``(batch, *event)`` float32, and the hole of an :class:`Inpainting`."""
        if shard and self._whole:
            # Joined as on one host, of which this one takes its block: other blocks would be other couplings.
            host, hosts = shard
            whole = self.at(step)
            n = len(whole["x"]) // hosts
            return {name: value[host * n : (host + 1) * n] for name, value in whole.items()}
        batch = self.batches.at(step, *shard)
        if isinstance(self.coupling, Inpainting):
            return self._holed(self.coupling, batch, np.random.default_rng((self.seed, step, *shard[:1])))
        if self.coupling.given:
            if "base" not in batch:
                raise ValueError(f"Coupled.batches has the arrays {sorted(batch)}: expected one that is named 'base'")
            return self._noisy(batch, step, *shard[:1]) if self.coupling.noise else batch
        n = len(batch["x"])
        size = n if self.coupling.batch is None else self.coupling.batch
        if max(size, n) % min(size, n):
            raise ValueError(
                f"{self.coupling!r} with training batches of {n} rows: expected batch to be a multiple or a divisor of them"
            )
        several = max(1, size // n)
        block, place = divmod(step, several)
        if (block, *shard) not in self._last:
            steps = range(block * several, (block + 1) * several)
            others = [batch if each == step else self.batches.at(each, *shard) for each in steps]
            self._last.clear()
            self._last[block, *shard] = self._joined(block, others, shard[:1])
        return {**batch, "base": self._last[block, *shard][place * n : (place + 1) * n]}

    @property
    def _whole(self) -> bool:
        """Whether every host can read the whole batch; an iterator has the share of its host alone."""
        return not isinstance(getattr(self.batches, "batches", self.batches), IteratorAdapter)

    def _noisy(self, batch: dict[str, Array], step: int, *host: int) -> dict[str, Array]:
        base = np.asarray(self.prepare.scaled(batch["base"]))
        if not np.issubdtype(base.dtype, np.floating):
            raise TypeError(f'batch["base"] has dtype {base.dtype}: expected floating point on the scale of x')
        # A stream beside those of other parts of the batch.
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, step, *host), spawn_key=(1,)))
        return {**batch, "base": base + np.float32(self.coupling.noise) * rng.standard_normal(base.shape, np.float32)}

    def _holed(self, coupling: Inpainting, batch: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
        stored, name = np.asarray(batch["x"]), coupling.hole
        if (coupling.sides is None) != (name in batch):
            found = "there" if name in batch else "not there"
            raise ValueError(f"{coupling!r}: the array {name!r} of the data is {found}: expected either this array or sides")
        hole = np.asarray(batch[name]) if coupling.sides is None else coupling.holes(rng, stored.shape)
        if hole.shape != stored.shape or not np.all((hole == 0) | (hole == 1)):
            raise ValueError(f"{coupling!r}: {name!r} is {hole.dtype} of shape {hole.shape}: expected 0 and 1 of {stored.shape}")
        hole = hole.astype(bool)
        x = np.asarray(self.prepare({**batch, name: hole, "base": None})["x"])
        w = self._drawn(rng, len(x))
        if w.shape != x.shape:
            raise ValueError(f"Coupled.base has points of shape {w.shape[1:]}: expected {x.shape[1:]}, those of the data")
        return {**batch, name: hole.astype(np.float32), "base": np.where(hole, w, x).astype(np.float32)}

    def _joined(self, block: int, batches: list[dict[str, np.ndarray]], host: tuple[int, ...]) -> np.ndarray:
        """The base rows of several batches, in the order of their data."""
        x = np.concatenate([np.asarray(self.prepare({**batch, "base": None})["x"]) for batch in batches])
        rng = np.random.default_rng((self.seed, block, *host))
        w = self._drawn(rng, len(x))
        if w.shape != x.shape:
            raise ValueError(f"Coupled.base has points of shape {w.shape[1:]}: expected {x.shape[1:]}, those of the data")
        flat_x, flat_w = x.reshape(len(x), -1), w.reshape(len(w), -1)
        for name, rows in dict(data=flat_x, base=flat_w).items():
            if (wrong := np.flatnonzero(~np.isfinite(rows).all(1))).size:
                raise ValueError(f"{self.coupling!r}: {len(wrong)} of {len(rows)} rows of the {name} are not finite: expected none")
        if self.coupling.groups is None:
            groups = np.zeros(len(x), int)
        elif self.coupling.groups not in batches[0]:
            raise ValueError(f"{self.coupling!r}: groups is not one of the arrays {sorted(batches[0])}")
        else:
            groups = np.concatenate([np.asarray(batch[self.coupling.groups]) for batch in batches])
            if groups.ndim != 1 or not np.issubdtype(groups.dtype, np.integer):
                raise ValueError(f"{self.coupling!r}: groups is {groups.dtype} of shape {groups.shape}: expected integers (n,)")
        order, size = np.arange(len(x)), self.coupling.batch or len(x)
        for low in range(0, len(x), size):
            for group in np.unique(groups[low : low + size]):
                # Base rows are drawn independently, so those at the places of a group are as good as any.
                rows = low + np.flatnonzero(groups[low : low + size] == group)
                order[rows] = rows[self.coupling.partners(rng, flat_x[rows], flat_w[rows])]
        return w[order]

    def _drawn(self, rng: np.random.Generator, n: int) -> np.ndarray:
        if callable(getattr(self.base, "sample", None)):
            return np.asarray(self.base.sample(jax.random.key(int(rng.integers(2**32))), n), np.float32)
        points = np.asarray(self.base, np.float32)
        return points[rng.integers(len(points), size=n)]


@dataclass(frozen=True)
class _PrepareCoupled:
    inner: Callable[[dict], dict] | None
    hole: str | None = None

    def __call__(self, batch: dict[str, Pytree]) -> dict[str, Pytree]:
        rest, base = {name: value for name, value in batch.items() if name != "base"}, batch["base"]
        base = None if base is None else self.scaled(base)
        # As the condition it is no array of its own any more, and the loss needs it.
        kept = {} if self.hole is None else {self.hole: batch[self.hole]}
        return {**(rest if self.inner is None else self.inner(rest)), **kept, "base": base}

    def scaled(self, base: Array) -> Array:
        """Pixels, as those of the data, on their scale; other rows as they are."""
        transform = getattr(self.inner, "transform", None)
        return transform.encode(base) if transform is not None and np.issubdtype(base.dtype, np.integer) else base
