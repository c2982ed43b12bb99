r"""Estimators of the log-ratio :math:`l = \log p_t(y)/q_t(y)` of teacher over student.

The logit of a discriminator of real against generated points, at the same noise, is that ratio where it is optimal:
:math:`l^* = \log p_t - \log q_t` for equal numbers of both. Positive means real.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Key, Pytree
from scorelab.distill.teachers import as_network
from scorelab.losses import Times
from scorelab.models.base import KnowsDensity, Model
from scorelab.models.denoiser import BoundDenoiser, Denoiser
from scorelab.models.nets.heads import Heads
from scorelab.models.nets.layers import COMPUTE_DTYPES
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.pytrees import computed
from scorelab.validation import require_choice, require_int, require_number, require_positive, require_spec


class Logits(NamedTuple):
    """Points with their times and logits."""

    t: Array
    logit: Array


class Points(NamedTuple):
    """Real and generated points as a discriminator sees them: noised, each at a time of its own, with its condition."""

    real: Array
    real_t: Array
    fake: Array
    fake_t: Array
    cond: Pytree


class Ratio(abc.ABC):
    """An estimator of the log-ratio; a new one states ``logit``, and ``init`` where it has parameters.

    Attributes:
        process: the process it is about, None for any.
    """

    process: LinearGaussian | None = None

    def init(self, key: Key, x: Array, cond: Pytree, teacher: BoundDenoiser | None) -> Pytree:
        """The first parameters; ``()`` for none."""
        return ()

    @abc.abstractmethod
    def logit(self, params: Pytree, y: Array, t: Array, cond: Pytree, teacher: Model, fake: Model | None) -> Array:
        """The log-ratio at ``y`` ``(batch, *event)`` and ``t`` ``(batch,)``, float32, differentiable in ``y``.

        ``fake`` is the score of the student, None where the ratio is trained.
        """

    def regulariser(self, params: Pytree, key: Key, y: Array, t: Array, cond: Pytree, teacher: Model, logit: Array) -> Array:
        """What is added to the loss of the discriminator, from real points ``y`` and their logits."""
        return jnp.zeros((), jnp.float32)

    def loss(
        self,
        params: Pytree,
        key: Key,
        real: Array,
        fake: Array,
        cond: Pytree,
        teacher: Model,
        process: LinearGaussian,
        times: Times,
    ) -> tuple[Array, tuple[Logits, Logits]]:
        r""":math:`\mathrm{mean}\,\mathrm{softplus}(-l_{real}) + \mathrm{mean}\,\mathrm{softplus}(l_{fake})` and who was judged how.

        ``real`` and ``fake`` are clean points of the chart, each noised at times of its own.
        """
        return self.error(params, self.draw(key, real, fake, cond, process, times), key, teacher)

    def draw(self, key: Key, real: Array, fake: Array, cond: Pytree, process: LinearGaussian, times: Times) -> Points:
        """The points that the loss looks at."""
        key_real, key_fake, _ = jax.random.split(key, 3)

        def noised(key, clean):
            key_t, key_noise = jax.random.split(key)
            t = times(key_t, process, len(clean))
            return process.noised(jax.random.normal(key_noise, clean.shape, clean.dtype), clean, t).y, t

        return Points(*noised(key_real, real), *noised(key_fake, fake), cond)

    def error(self, params: Pytree, points: Points, key: Key, teacher: Model) -> tuple[Array, tuple[Logits, Logits]]:
        """The loss at points that were drawn, with the key of :meth:`draw` or, for a part of the batch, another one."""
        _, _, key_extra = jax.random.split(key, 3)
        y, t, cond = points.real, points.real_t, points.cond
        true = Logits(t, self.logit(params, y, t, cond, teacher, None))
        made = Logits(points.fake_t, self.logit(params, points.fake, points.fake_t, cond, teacher, None))
        value = jnp.mean(jax.nn.softplus(-true.logit)) + jnp.mean(jax.nn.softplus(made.logit))
        return value + self.regulariser(params, key_extra, y, t, cond, teacher, true.logit), (true, made)


@dataclass(frozen=True)
class UnitRatio(Ratio):
    """``l = 0``: reverse KL whatever the divergence; Diff-Instruct and DMD."""

    def logit(self, params, y, t, cond, teacher, fake):
        return jnp.zeros(y.shape[:1], jnp.float32)


@dataclass(frozen=True)
class ExactRatio(Ratio):
    """From known densities: teacher and fake score are models with ``log_prob``, such as :class:`scorelab.models.ExactModel`.

    Both must be densities. An energy, known up to a constant of ``t``, shifts the ratio by that constant, which nothing can tell.
    """

    def logit(self, params, y, t, cond, teacher, fake):
        """The difference of the log-densities."""
        require_spec(self, KnowsDensity, teacher=teacher, fake=fake)
        p, q = cast(KnowsDensity, teacher), cast(KnowsDensity, fake)
        return p.log_prob(y, t, cond) - q.log_prob(y, t, cond)


@dataclass(frozen=True, kw_only=True)
class _Trained(Ratio):
    r"""A discriminator that is trained.

    Attributes:
        smooth: weight :math:`\gamma` of :math:`(l(y) - l(y + .1\,\epsilon))^2` at noised real points, an approximate R1 penalty.
    """

    smooth: float = 0.0

    def __post_init__(self):
        require_number(self, 0.0, 1e6, smooth=self.smooth)

    def regulariser(self, params, key, y, t, cond, teacher, logit):
        if not self.smooth:
            return super().regulariser(params, key, y, t, cond, teacher, logit)
        near = y + 0.1 * jax.random.normal(key, y.shape, y.dtype)
        return self.smooth * jnp.mean((self.logit(params, near, t, cond, teacher, None) - logit) ** 2)


@dataclass(frozen=True, kw_only=True)
class Discriminator(_Trained):
    """A network of its own: any network of the library, its output summed over the event.

    Attributes:
        denoiser: gives the network its preconditioned input; the parameterisation has no meaning here.
    """

    denoiser: Denoiser

    def __post_init__(self):
        super().__post_init__()
        require_spec(self, Denoiser, denoiser=self.denoiser)

    @computed
    def process(self) -> LinearGaussian:
        """That of the denoiser."""
        return self.denoiser.process

    def init(self, key, x, cond, teacher):
        """Fresh parameters."""
        return self.denoiser.init(key, x, cond)

    def logit(self, params, y, t, cond, teacher, fake):
        output = self.denoiser.network_output(params, y, t, cond)
        return jnp.sum(output.astype(jnp.promote_types(output.dtype, jnp.float32)).reshape(len(y), -1), axis=1)


@dataclass(frozen=True, kw_only=True)
class TeacherFeatures(_Trained):
    """Small heads on features of the frozen teacher, their logits averaged.

    The teacher knows noised data already, and the fake score is left to its own loss.

    Attributes:
        names: submodules of the teacher's network whose output is used: ``"middle_1"`` of a UNet, ``"block2"`` of a DiT,
            ``"layer3"`` of an MLP.
        width: hidden width of a head.
        num_classes: 0, or the number of labels the heads know.
        dtype: compute dtype of the heads, "float32" or "bfloat16"; their parameters and logits stay float32.
    """

    names: tuple[str, ...]
    width: int = 64
    num_classes: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "names", tuple(self.names))
        if not self.names or not all(isinstance(name, str) for name in self.names):
            raise ValueError(f"TeacherFeatures.names = {self.names!r}: expected names of submodules of the teacher's network")
        require_positive(self, width=self.width)
        require_int(self, 0, num_classes=self.num_classes)
        require_choice(self, COMPUTE_DTYPES, dtype=self.dtype)

    @property
    def heads(self) -> Heads:
        """The module."""
        return Heads(width=self.width, num_classes=self.num_classes, dtype=self.dtype)

    def init(self, key, x, cond, teacher):
        """Fresh heads."""
        teacher = as_network(teacher, "TeacherFeatures")
        shapes = jax.eval_shape(lambda p: self._features(p, teacher, x[:1], jnp.zeros(1), _first(cond)), teacher.params)
        features = tuple(jnp.zeros(s.shape, s.dtype) for s in shapes)
        return self.heads.init(key, features, jnp.zeros(1), _first(cond))

    def logit(self, params, y, t, cond, teacher, fake):
        teacher = as_network(teacher, "TeacherFeatures")
        t = jnp.broadcast_to(jnp.asarray(t, y.dtype), y.shape[:1])
        features = self._features(teacher.params, teacher, y, t, cond)
        c_noise = jnp.clip(-teacher.denoiser.process.log_snr(t) / 8, -4.0, 4.0)
        return cast(Array, self.heads.apply(params, features, c_noise, cond))

    def _features(self, params, teacher, y, t, cond):
        return teacher.denoiser.features(params, y, t, cond, names=self.names)


def _first(cond: Pytree) -> Pytree:
    return jax.tree.map(lambda c: c[:1], cond)
