r"""Score augmentation: transforms of noised data, and of their targets, whose parameters the network is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Pytree
from scorelab.losses.base import LossAround
from scorelab.losses.denoising import DenoisingScoreMatching
from scorelab.losses.transforms import LinearTransform
from scorelab.models.denoiser import BoundDenoiser
from scorelab.models.nets.conditions import Augmentation, Composite, Condition, of_network
from scorelab.pytrees import computed
from scorelab.validation import require_number, require_spec

# The stream of a batch's key from which the transforms are drawn, beside what the loss draws.
_TRANSFORMS = 1_000_403


@dataclass(frozen=True)
class ScoreAugmented(LossAround):
    r"""Denoising of transformed noised data (Hou et al. 2025, arXiv 2508.07926), the transform applied **after** the noise.

    .. math:: E\,w(t)\,\lVert D_\theta(T_w y_t, t, w) - T_w y_0\rVert^2/d

    Every example gets one of the transforms or, with the probability ``identity``, none. The network is told the parameters
    :math:`w`. Its minimiser is :math:`E[T_w y_0\mid T_w y_t]`, which is :math:`T_w D(T_w^{-1}y)` for an invertible transform, with
    :math:`D` the denoised mean of the data as they are. Nothing given is the identity, so a model is sampled as ever: the condition
    beside, if there is any, and no word of transforms.

    The noise of :math:`T_w y_t` has the covariance :math:`\sigma_t^2 T_w T_w^\top`. An orthogonal transform leaves it white. There,
    the same pairs come from data that were transformed before the noise was added, which is augmentation of the data told to the
    network: ``before=True``. Shifts and holes have the minimiser of such an augmentation as well, and show zeros where that shows
    noise. Of the transforms here, only a change of brightness is another task. The score that a prediction derives from its
    denoised mean under :math:`w\neq0` is that of a law for orthogonal transforms alone.

    The transform acts in the chart, on :math:`y - b_t`. The noise is transformed with the data, :math:`T_w y_t = \alpha_t T_w y_0
    + \sigma_t T_w\epsilon`, so the error in the noise that the loss measures at low noise is that of the data there.

    Attributes:
        loss: the denoising loss whose draws are transformed; ``SelfConditioned`` stands around this one.
        transforms: those of which one is chosen, each with the same probability.
        member: the name of an ``Augmentation`` in the condition of the network, a ``Composite``, whose ``size`` is that of this
            loss; None for a network that is not told, which learns the mixture of all transforms.
        identity: the share of examples that stay as they are, above 0; None for that of each transform,
            ``1 / (1 + len(transforms))``.
        before: transform the clean data, and add the noise afterwards.

    Metrics: those of the loss.

    Raises:
        TypeError: another loss than one of denoising, or what is no transform.
        ValueError: no transform; data that one does not apply to; a condition without names beside ``member``, or one that has this
            name; a network whose condition has no such member.
    """

    loss: DenoisingScoreMatching  # pyright: ignore[reportIncompatibleVariableOverride]: no other loss has this minimiser
    transforms: tuple[LinearTransform, ...]
    _: KW_ONLY
    member: str | None = "augmentation"
    identity: float | None = None
    before: bool = False

    def __post_init__(self):
        require_spec(self, DenoisingScoreMatching, loss=self.loss)
        given = self.transforms
        object.__setattr__(self, "transforms", tuple(given) if isinstance(given, tuple | list) else (given,))
        for each in self.transforms:
            require_spec(self, LinearTransform, transforms=each)
        if not self.transforms:
            raise ValueError("ScoreAugmented.transforms = (): expected at least one, such as Brightness()")
        require_spec(self, str | None, member=self.member)
        require_spec(self, bool, before=self.before)
        if self.identity is not None:
            require_number(self, 0.0, 1.0, identity=self.identity)
            if self.identity == 0:
                raise ValueError(
                    "ScoreAugmented.identity = 0: expected a number above 0, since samples are of the data as they are"
                )
        dropout = self.loss.condition_dropout
        if dropout is not None and self.member is not None and dict(dropout.rates).get(self.member):
            raise ValueError(
                f"ScoreAugmented.loss drops {self.member!r} of the condition with the rate {dict(dropout.rates)[self.member]}: "
                "expected 0, since a transform that is not told would be taken for none"
            )

    @property
    def size(self) -> int:
        """How many numbers the parameters of all transforms are together."""
        return sum(each.size for each in self.transforms)

    @computed
    def coloured(self) -> bool:
        """Whether some noise is no longer white, as it is after a transform that is not orthogonal."""
        return not self.before and not all(each.orthogonal for each in self.transforms)

    def transformed(self, x: Array, w: Array) -> Array:
        """:math:`T_w x` of ``x (n, *event)`` under parameters ``w (n, size)``, those of the transforms one after another."""
        first = 0
        for each in self.transforms:
            x = each(x, w[:, first : first + each.size])
            first += each.size
        return x

    def draw(self, key, batch):
        """What the loss draws, transformed, and the parameters of the transforms in the condition."""
        noised = self.loss.draw(key, batch)
        n, *event = noised.y0.shape
        for each in self.transforms:
            each.check(tuple(event))
        kept, which, *keys = jax.random.split(jax.random.fold_in(key, _TRANSFORMS), 2 + len(self.transforms))
        identity = 1 / (1 + len(self.transforms)) if self.identity is None else self.identity
        chosen = jax.random.randint(which, (n,), 0, len(self.transforms))
        chosen = jnp.where(jax.random.bernoulli(kept, identity, (n,)), -1, chosen)
        parts = [
            jnp.where((chosen == i)[:, None], each.draw(part, n, tuple(event)), 0.0)
            for i, (each, part) in enumerate(zip(self.transforms, keys, strict=True))
        ]
        w = jnp.concatenate(parts, axis=1)
        noise = noised.noise if self.before else self.transformed(noised.noise, w)
        moved = self.loss.process.noised(noise, self.transformed(noised.y0, w), noised.t)
        return moved._replace(cond=self._told(noised.cond, w), keys=noised.keys, extra=noised.extra)

    def evaluate(self, model, noised):
        """The loss of the transformed pairs."""
        if isinstance(model, BoundDenoiser):
            self.check_condition(of_network(model.denoiser.net))
        return self.loss.evaluate(model, noised)

    def check_condition(self, condition: Condition | None) -> None:
        """Raise ``ValueError`` unless a network with this condition can be told the parameters."""
        if self.member is None:
            return
        members = dict(condition.members) if isinstance(condition, Composite) else {}
        found = members.get(self.member)
        if not isinstance(found, Augmentation) or found.size != self.size:
            raise ValueError(
                f"ScoreAugmented.member = {self.member!r} with a network whose condition is {condition!r}: expected a "
                f"Composite with {self.member}=Augmentation({self.size}), the parameters of {self.transforms!r}"
            )

    def _told(self, cond: Pytree, w: Array) -> Any:
        if self.member is None:
            return cond
        if cond is not None and not isinstance(cond, Mapping):
            raise ValueError(
                f'batch["cond"] is {getattr(cond, "dtype", type(cond).__name__)} without a name, beside ScoreAugmented.member = '
                f'{self.member!r}: expected None or a dict of names, as DataSpec.cond = ("label",) makes it'
            )
        if (cond or {}).get(self.member) is not None:
            raise ValueError(f'batch["cond"] has the name {self.member!r}, ScoreAugmented.member: expected another name')
        return {**(cond or {}), self.member: w}
