"""Means and leading covariance directions of data, from arrays or from an iterator over blocks that is read once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from jaxtyping import Float

from scorelab.validation import require_real, require_seed

METHODS = ("eigh", "randomized", "streaming")
# Rows that are turned to float64 at once.
_BLOCK = 8192
# The reach of data: how many points are looked at, along how many directions, and the deviations above which they are far.
_KEPT, _DIRECTIONS, FAR = 4096, 256, 4.0


class Moments(NamedTuple):
    r"""Float64 statistics of points: :math:`\Sigma \approx U\,\mathrm{diag}(w)\,U^\top + \tau(I - UU^\top)`.

    Attributes:
        mean: ``event``.
        basis: ``(d, r)``, orthonormal columns in order of decreasing variance.
        eigenvalues: ``(r,)``, clipped at 0.
        tail: the variance in every other direction.
        reach: how far rare points lie, see :func:`reach`.
    """

    mean: np.ndarray
    basis: np.ndarray
    eigenvalues: np.ndarray
    tail: float
    reach: float


def moments(
    points: np.ndarray | Iterable[np.ndarray],
    *,
    rank: int | None = None,
    method: Literal["eigh", "randomized", "streaming"] = "eigh",
    tail: Literal["zero", "mean"] = "zero",
    seed: int = 0,
    ddof: int = 1,
) -> Moments:
    """Mean and covariance, accumulated in float64 whatever the dtype of the points; see :meth:`Gaussian.from_data`.

    ``ddof`` is subtracted from the number of points in the denominator of the covariance.

    Raises:
        ValueError: too few points, blocks of different shapes, a value that is not finite, or a rank that the method
            cannot give.
    """
    require_seed("from_data", seed=seed)
    for name, value, choices in (("method", method, METHODS), ("tail", tail, ("zero", "mean"))):
        if value not in choices:
            raise ValueError(f"from_data.{name} = {value!r}: expected one of {', '.join(map(repr, choices))}")
    # An incremental SVD of a block costs its rows squared or more: blocks are as small as the method allows.
    rows = max(2 * rank, 256) if method == "streaming" and isinstance(rank, int) else _BLOCK
    blocks = _Blocks(points, rows)
    first = blocks.first
    size = first[0].size
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | np.integer) or not 1 <= rank <= size):
        raise ValueError(f"from_data.rank = {rank!r}: expected None or an integer from 1 to the dimension {size}")
    if rank is None and method != "eigh":
        raise ValueError(f"from_data.rank = None with method = {method!r}: expected a rank, the number of directions to find")
    find = {"eigh": _eigh, "randomized": _randomized, "streaming": _streaming}[method]
    n, mean, basis, squares, total = find(blocks, rank, seed)
    if n <= ddof:
        raise ValueError(f"from_data got {n} points: expected at least {ddof + 1}")
    eigenvalues = np.maximum(squares, 0.0) / (n - ddof)
    rest = size - len(eigenvalues)
    left = max(total / (n - ddof) - eigenvalues.sum(), 0.0) / rest if rest and tail == "mean" else 0.0
    return Moments(mean.reshape(first.shape[1:]), basis, eigenvalues, left, reach(blocks.kept - mean))


def reach(centred: Float[np.ndarray, " m d"]) -> float:
    r"""The distance from the mean, along one direction, of rare points further out than a Gaussian goes; 0 where there are none.

    Along the directions :math:`u` of the points furthest from the mean: the level that one point in a thousand and two more
    exceed (one is the point that gives the direction), where that is more than four standard deviations of
    :math:`u^\top x` and three of the largest in any direction; the largest of them, or the distance of the mean of the points
    beyond half of it. A Gaussian has about 3 deviations there, whatever its dimension. Modes of fewer
    than three points, or of less than two in a thousand, are not seen.

    Args:
        centred: ``(m, d)``.
    """
    radius = np.linalg.norm(centred, axis=1)
    furthest = np.argsort(-radius, kind="stable")[:_DIRECTIONS]
    furthest = furthest[radius[furthest] > 0]
    rank = math.ceil(len(centred) / 1000) + 2
    if rank > len(centred) or not len(furthest):
        return 0.0
    along = centred @ (centred[furthest] / radius[furthest, None]).T
    level = np.partition(along, len(along) - rank, axis=0)[len(along) - rank]
    deviation = np.sqrt(np.mean(along**2, axis=0))
    # What lies within three of the largest deviations is near, whatever its own direction. Power iteration: 5 % will do.
    direction = along[:, np.argmax(deviation)] @ centred
    for _ in range(10):
        direction = (centred @ (direction / np.linalg.norm(direction))) @ centred
    largest = np.sqrt(np.linalg.norm(direction) / len(centred))
    level = np.where(level > np.maximum(FAR * deviation, 3 * largest), level, 0.0)
    if not level.any():
        return 0.0
    # In many dimensions a single point of a mode does not point to its centre: the mean of those on its side does.
    best = np.argmax(level)
    return float(max(level[best], np.linalg.norm(centred[along[:, best] > level[best] / 2].mean(axis=0))))


def elementwise(points: np.ndarray | Iterable[np.ndarray]) -> tuple[int, np.ndarray, np.ndarray, float]:
    """Number of points, mean and unbiased variance of every element (of the event shape), reach; errors as :func:`moments`."""
    blocks = _Blocks(points)
    n, mean, square = 0, np.zeros(()), np.zeros(())
    for block in blocks:
        count, shift = len(block), block.mean(axis=0) - mean
        square = square + block.var(axis=0) * count + shift**2 * (n * count / (n + count))
        mean, n = mean + shift * (count / (n + count)), n + count
    event = blocks.first.shape[1:]
    return n, mean.reshape(event), (square / max(n - 1, 1)).reshape(event), reach(blocks.kept - mean)


class _Blocks:
    """Flat float64 blocks of the points; ``first`` is the first one in its own shape.

    ``kept`` is a uniform random part of the points that were read, at most 64 MB of them.
    """

    def __init__(self, points: np.ndarray | Iterable[np.ndarray], rows: int = _BLOCK):
        if hasattr(points, "shape"):
            array = cast(np.ndarray, points)
            if array.ndim < 2:
                raise ValueError(f"from_data got points of shape {array.shape}: expected (n, *event)")
            self._source: Iterator = (array[low : low + rows] for low in range(0, len(array), rows))
        elif isinstance(points, Iterable):
            self._source = iter(points)
        else:
            raise TypeError(f"from_data.points = {points!r}: expected an array or an iterator over arrays")
        block = next(self._source, None)
        if block is None or np.ndim(block) < 2 or np.size(block) == 0:
            raise ValueError(f"from_data got {'no points' if block is None else np.shape(block)}: expected blocks (n, *event)")
        self.first = np.asarray(block)
        size = math.prod(self.first.shape[1:])
        self._most = max(min(_KEPT, 2**23 // size), 2)
        self._keys, self.kept, self._rng = np.zeros(0), np.zeros((0, size)), np.random.default_rng(0)

    def _keep(self, flat: np.ndarray) -> None:
        """The points with the smallest of random keys stay."""
        keys = self._rng.random(len(flat))
        free = min(self._most - len(self.kept), len(flat))
        if free:
            self.kept, self._keys = np.concatenate([self.kept, flat[:free]]), np.concatenate([self._keys, keys[:free]])
            flat, keys = flat[free:], keys[free:]
        both = np.concatenate([self._keys, keys])
        chosen = np.zeros(len(both), bool)
        chosen[np.argsort(both)[: len(self.kept)]] = True
        out, into = np.flatnonzero(~chosen[: len(self.kept)]), np.flatnonzero(chosen[len(self.kept) :])
        self.kept[out], self._keys[out] = flat[into], keys[into]

    def __iter__(self) -> Iterator[np.ndarray]:
        block, event, low = self.first, self.first.shape[1:], 0
        while block is not None:
            block = np.asarray(block)
            if block.shape[1:] != event:
                raise ValueError(f"from_data got blocks of shape (n, *{event}) and {block.shape}: expected one event shape")
            require_real("from_data.points", block)
            flat = block.reshape(len(block), math.prod(event)).astype(np.float64)
            if not np.all(np.isfinite(flat)):
                bad = low + int(np.argmin(np.isfinite(flat).all(axis=1)))
                raise ValueError(f"from_data: point {bad} has a value that is not finite")
            if len(flat):
                self._keep(flat)
                yield flat
            low += len(block)
            block = next(self._source, None)


def _eigh(blocks, rank, seed):
    """One pass over the blocks, merging their centred second moments (Chan, Golub & LeVeque 1979)."""
    size = blocks.first[0].size
    n, mean, scatter = 0, np.zeros(size), np.zeros((size, size))
    for block in blocks:
        count, centre = len(block), block.mean(axis=0)
        centred, shift = block - centre, centre - mean
        # One more row carries the distance of the two means, so that a single product is added in place.
        rows = np.concatenate([centred, np.sqrt(n * count / (n + count)) * np.atleast_2d(shift)])
        scatter += rows.T @ rows
        mean = mean + shift * (count / (n + count))
        n += count
    squares, basis = np.linalg.eigh(scatter)
    kept = slice(None, None if rank is None else rank)
    return n, mean, basis[:, ::-1][:, kept], squares[::-1][kept], float(np.trace(scatter))


def _randomized(blocks, rank, seed):
    """Halko, Martinsson & Tropp (2011) on the centred points, which are held in memory."""
    # scikit-learn takes more than a second to import, and few programs fit a law to points this way.
    from sklearn.utils.extmath import randomized_svd

    points = np.concatenate(list(blocks))
    if rank > min(points.shape):
        raise ValueError(f"from_data.rank = {rank} with method 'randomized': expected at most {min(points.shape)}")
    mean = points.mean(axis=0)
    points -= mean
    _, singular, rows = randomized_svd(
        points,
        rank,
        n_iter=7,  # pyright: ignore[reportArgumentType]: its type is read off its default, "auto"
        random_state=seed,
    )
    return len(points), mean, rows.T, singular**2, float(np.sum(points**2))


def _streaming(blocks, rank, seed):
    """Incremental SVD (Ross et al. 2008): memory for one block and ``rank`` directions, not for ``d x d`` numbers."""
    from sklearn.decomposition import IncrementalPCA

    pca: Any = IncrementalPCA(n_components=rank)  # its attributes are None until it is fitted
    waiting: list[np.ndarray] = []
    # Every call needs at least ``rank`` rows, so short blocks wait, and what is left at the end joins the last full block.
    full = None
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= rank:
            if full is not None:
                pca.partial_fit(full)
            full, waiting = np.concatenate(waiting), []
    if full is None:
        count = sum(map(len, waiting))
        raise ValueError(f"from_data.rank = {rank} with method 'streaming': expected at most the number of points, {count}")
    pca.partial_fit(np.concatenate([full, *waiting]))
    n = int(pca.n_samples_seen_)
    return n, pca.mean_, pca.components_.T, pca.singular_values_**2, float(np.sum(pca.var_)) * n
