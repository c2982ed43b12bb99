r"""Low-rank adapters: small arrays beside the frozen kernels of a network (Hu et al. 2021, arXiv 2106.09685).

.. math:: W' = W + s\,A B,\qquad A\ (\ldots, \mathrm{in}, r),\quad B\ (r, \mathrm{out})

for a kernel ``(in, out)``, or ``(k, k, in, out)`` of a convolution, where A is the convolution to ``r`` channels and B the one of
size 1 that follows. An adapter is a dict by the place of the kernel, ``{"params/block0/qkv/kernel": {"down": A, "up": B}}``. The
sum is formed before the network is called, so that it serves any network.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, Pytree
from scorelab.models.base import ChecksCondition, Trainable
from scorelab.models.denoiser import BoundDenoiser, Denoiser
from scorelab.pytrees import computed, partly_static
from scorelab.validation import require_int, require_positive, require_spec


def adapted(params: Pytree, adapter: Pytree, scale: Array | float = 1.0) -> Pytree:
    """Parameters with an adapter added, ``W + scale A B`` in at least float32, each in its own dtype; others as they are.

    Arrays of NumPy alone stay arrays of NumPy.

    Raises:
        ValueError: a place that the parameters have not, or factors of other shapes than its kernel.
    """
    places = dict(_places(params))
    if missing := sorted(set(adapter) - set(places)):
        raise ValueError(f"adapter of {', '.join(missing[:10])} ({len(missing)} places): the parameters have no such arrays")

    def leaf(path, kernel):
        at = jax.tree_util.keystr(path, simple=True, separator="/")
        return _sum(at, kernel, adapter[at], scale) if at in adapter else kernel

    return jax.tree_util.tree_map_with_path(leaf, params)


def _sum(at: str, kernel: Array, factors: Mapping[str, Array], scale: Array | float) -> Array:
    if set(factors) != {"down", "up"}:
        raise ValueError(f"adapter[{at!r}] has {sorted(factors)}: expected down and up")
    down, up = factors["down"], factors["up"]
    shape, rank = np.shape(kernel), np.shape(down)[-1:]
    if len(shape) < 2 or np.shape(down) != (*shape[:-1], *rank) or np.shape(up) != (*rank, shape[-1]):
        raise ValueError(
            f"adapter[{at!r}] has factors {np.shape(down)} and {np.shape(up)} for an array {shape}: expected "
            f"({', '.join(map(str, shape[:-1]))}, rank) and (rank, {shape[-1] if shape else 'out'})"
        )
    dtype = jnp.promote_types(kernel.dtype, jnp.float32)
    if all(isinstance(array, np.ndarray) for array in (kernel, down, up)) and isinstance(scale, int | float):
        moved = np.matmul(np.asarray(down, dtype), np.asarray(up, dtype))
        return (kernel.astype(dtype) + scale * moved).astype(kernel.dtype)
    # Every digit on any device: the product is small beside a call of the network.
    moved = jnp.matmul(jnp.asarray(down, dtype), jnp.asarray(up, dtype), precision=jax.lax.Precision.HIGHEST)
    return (jnp.asarray(kernel, dtype) + jnp.asarray(scale, dtype) * moved).astype(kernel.dtype)


def _places(params: Pytree) -> list[tuple[str, Any]]:
    found = jax.tree_util.tree_flatten_with_path(params)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in found]


@partly_static("model")
@dataclass(frozen=True, kw_only=True)
class LoRA(Trainable):
    r"""A trained denoiser whose adapter is trained, and nothing else: a ``denoiser`` for :class:`scorelab.training.ScoreLearner`.

    The parameters of the learner, of its optimiser and of its averages are those of the adapter. The frozen ones are arguments of
    the compiled step and no part of checkpoints: a run that goes on reads them from where ``model`` has them. A starts uniform on
    :math:`\pm 1/\sqrt{\mathrm{fan\ in}}` and B at zero, so the first model is ``model``, bit by bit. A step holds a second copy of
    the adapted kernels.

    What :meth:`bind` returns is an ordinary denoiser with the sum in its parameters.

    Attributes:
        model: what is adapted, a denoiser with parameters, such as ``pretrained.model(...)``.
        rank: r.
        alpha: :math:`s = \alpha / r`.
        targets: a regular expression, searched for in the places of arrays of two axes or more, such as
            ``params/block0/qkv/kernel``; all kernels by default.
    """

    model: BoundDenoiser
    rank: int = 8
    alpha: float = 8.0
    targets: str = r"kernel$"

    def __post_init__(self):
        require_spec(self, BoundDenoiser, model=self.model)
        require_int(self, 1, rank=self.rank)
        require_positive(self, alpha=self.alpha)
        require_spec(self, str, targets=self.targets)
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"LoRA.targets = {self.targets!r}: expected a regular expression: {error}") from None
        if not self.shapes:
            known = [at for at, leaf in _places(self.model.params) if np.ndim(leaf) > 1]
            raise ValueError(f"LoRA.targets = {self.targets!r}: expected some of {', '.join(known[:10])} ({len(known)} arrays)")

    @computed
    def process(self) -> Any:
        """That of ``model``."""
        return self.model.process

    @property
    def network(self) -> Denoiser:
        """The denoiser that is adapted."""
        return self.model.denoiser

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the adapted arrays by their places."""
        return {at: np.shape(leaf) for at, leaf in _places(self.model.params) if np.ndim(leaf) > 1 and re.search(self.targets, at)}

    def init(self, key: Key, x: Pytree, cond: Pytree = None, like: Any = None) -> dict[str, dict[str, Array]]:
        """A fresh adapter, or a copy of that of ``like``, an :class:`Adapted` of the same places and rank.

        ``ValueError`` where it has others; ``x`` and ``cond`` change nothing.
        """
        found = {}
        for at, (*inputs, out) in self.shapes.items():
            bound = float(np.prod(inputs)) ** -0.5
            # By its place, so that it does not depend on what else is adapted.
            own = jax.random.fold_in(key, zlib.crc32(at.encode()))
            down = jax.random.uniform(own, (*inputs, self.rank), jnp.float32, -bound, bound)
            found[at] = {"down": down, "up": jnp.zeros((self.rank, out), jnp.float32)}
        if like is None:
            return found
        require_spec("LoRA.init", Adapted, like=like)
        shapes = lambda adapter: {at: jax.tree.map(np.shape, dict(factors)) for at, factors in adapter.items()}
        if (given := shapes(like.adapter)) != (wanted := shapes(found)):
            raise ValueError(f"LoRA.init.like has an adapter of the shapes {given}: expected {wanted}")
        # The sum is the same: what scales it here goes into B.
        factor = like.scale * self.rank / self.alpha
        return {
            at: {"down": jnp.array(f["down"], jnp.float32), "up": jnp.array(f["up"] * factor, jnp.float32)}
            for at, f in like.adapter.items()
        }

    def bind(self, params: Pytree, dropout: Key | None = None) -> BoundDenoiser:
        """The denoiser with the sum of the frozen parameters and the adapter ``params``."""
        return self.model.denoiser.bind(adapted(self.model.params, params, self.alpha / self.rank), dropout)

    def adapter(self, params: Pytree) -> dict[str, dict[str, Array]]:
        """The parameters of a learner as an adapter with the scale in it, for :class:`Adapted` and to be written."""
        scale = self.alpha / self.rank
        return {at: {"down": factors["down"], "up": factors["up"] * scale} for at, factors in params.items()}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Adapted(ChecksCondition):
    """A denoiser with an adapter beside its parameters; another adapter of the same shapes, or another scale, compiles nothing.

    The sum is formed at every call. :meth:`merged` forms it once.

    Attributes:
        model: a denoiser with parameters.
        adapter: factors by the places of kernels.
        scale: of the whole adapter; 0 is ``model``, 1 the adapter as it was trained.
    """

    model: BoundDenoiser
    adapter: Pytree
    scale: Array | float = 1.0

    @property
    def process(self) -> Any:
        """That of ``model``."""
        return self.model.process

    def merged(self) -> BoundDenoiser:
        """The ordinary denoiser with the sum in its parameters."""
        return replace(self.model, params=adapted(self.model.params, self.adapter, self.scale))

    def check_condition(self, cond: Pytree) -> None:
        """As the network."""
        self.model.check_condition(cond)

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> Any:
        """Predict for ``y`` of shape ``(batch, *event)``."""
        return self.merged()(y, t, cond)
