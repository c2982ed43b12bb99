r"""Networks of interpolants: a velocity and a latent noise, as two heads of one network or as two networks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Key, Pytree
from scorelab.models.base import ChecksCondition, Trainable
from scorelab.models.denoiser import check_network, copied, example
from scorelab.processes.bridge import Bridge, FlowPrediction
from scorelab.validation import require_choice, require_positive, require_shape, require_spec

# The form of the prediction that a head is.
_FORMS = {"u": "velocity", "v": "path_velocity", "eta": "eta", "s": "score"}


@dataclass(frozen=True, kw_only=True)
class InterpolantField(Trainable):
    r"""A network that states the velocity and the latent noise of an interpolant, or the velocity of a geodesic process.

    It sees :math:`y/\sqrt{\alpha^2 s^2+\beta^2 s_w^2+\gamma^2}`, or the embedding of a point of a manifold, and the angle
    :math:`2\arcsin\sqrt t - \pi/2`, which tells times near both ends apart. One network with two heads gets the point twice,
    side by side in its last axis, and returns both heads so.

    Attributes:
        net: as that of :class:`scorelab.models.Denoiser`.
        process: the interpolant, or :class:`scorelab.processes.Geodesic`.
        heads: ``("u", "eta")``, the default with latent noise, ``("v", "eta")``, ``("u", "s")`` or ``("v", "s")``, with the score
            itself in the place of the latent noise, or ``("u",)``, the default without it.
        eta_net: a network of its own for ``eta`` or ``s``; None for the second head of ``net``.
        data_std: standard deviation of the data, per element.
        base_std: that of the base.
    """

    net: Any
    process: Bridge
    heads: tuple[Literal["u", "v", "eta", "s"], ...] | None = None
    eta_net: Any = None
    data_std: float = 1.0
    base_std: float = 1.0

    def __post_init__(self):
        require_spec(self, Bridge, process=self.process)
        require_positive(self, data_std=self.data_std, base_std=self.base_std)
        silent = self.process.silent
        heads = ("u",) if self.heads is None and silent else ("u", "eta") if self.heads is None else tuple(self.heads)
        known = (("u",),) if silent else (("u", "eta"), ("v", "eta"), ("u", "s"), ("v", "s"), ("u",))
        require_choice(self, known, heads=heads)
        object.__setattr__(self, "heads", heads)
        for name, net in dict(net=self.net, eta_net=self.eta_net).items():
            if net is None and name == "eta_net":
                continue
            if isinstance(net, type) or not (callable(getattr(net, "init", None)) and callable(getattr(net, "apply", None))):
                raise TypeError(f"InterpolantField.{name} = {net!r}: expected an object with init and apply, such as a Flax module")
        if self.eta_net is not None and len(heads) == 1:
            raise ValueError(f"InterpolantField.eta_net with heads = {heads}: expected None, since there is no such head")

    @property
    def nets(self) -> tuple[Any, ...]:
        """One for all heads, or one for each."""
        return (self.net,) if self.eta_net is None else (self.net, self.eta_net)

    @property
    def _twice(self) -> bool:
        return len(self.heads or ()) == 2 and self.eta_net is None

    def init(self, key: Key, x: Array, cond: Pytree = None, like: Any = None) -> Pytree:
        """Fresh parameters for data shaped like ``x``, or a copy of those of ``like``; arguments as of ``Denoiser.init``."""
        one = example("InterpolantField.init", x)

        def fresh():
            mine, keys = jax.tree.map(lambda c: c[:1], cond), jax.random.split(key, len(self.nets))
            seen = self.process.seen(one, jnp.zeros(1, one.dtype), self.data_std, self.base_std)
            seen = jnp.concatenate([seen, seen], -1) if self._twice else seen
            return tuple(net.init(k, seen, jnp.zeros(1, one.dtype), mine) for net, k in zip(self.nets, keys, strict=True))

        if like is None:
            return fresh()
        require_spec("InterpolantField.init", BoundInterpolantField, like=like)
        return copied("InterpolantField.init", like.params, fresh)

    def bind(self, params: Pytree, dropout: Key | None = None) -> BoundInterpolantField:
        """The model with these parameters, a pytree; with the key ``dropout``, as it is called in training."""
        drops = any(getattr(net, "dropout", 0.0) for net in self.nets)
        return BoundInterpolantField(params=params, field=self, dropout=dropout if drops else None)

    def check_condition(self, cond: Pytree) -> None:
        """Raise ``ValueError`` for what is no condition of the networks."""
        for net in self.nets:
            check_network(net, cond)

    def evaluate(
        self, params: Pytree, y: Array, t: Array | float, cond: Pytree = None, dropout: Key | None = None
    ) -> FlowPrediction:
        """The prediction for ``y`` ``(batch, *event)``; as in training with the key ``dropout``."""
        self.process.check_times("InterpolantField.t", t)
        self.check_condition(cond)
        t = jnp.asarray(t, y.dtype)
        shared = t.ndim == 0 and all(getattr(net, "shares_noise_level", False) for net in self.nets)
        rows = (1,) if shared else y.shape[:1]
        times = jnp.broadcast_to(t, rows)
        seen = self.process.seen(y, times, self.data_std, self.base_std)
        angle = 2 * jnp.arcsin(jnp.sqrt(jnp.clip(times, 0.0, 1.0))) - math.pi / 2
        if self._twice:
            seen = jnp.concatenate([seen, seen], -1)
        outputs = []
        for i, (net, p) in enumerate(zip(self.nets, params, strict=True)):
            options = {} if dropout is None else dict(train=True, rngs={"dropout": jax.random.fold_in(dropout, i)})
            output = net.apply(p, seen, angle, cond, **options)
            require_shape(f"the output of {type(net).__name__}", output, seen)
            outputs.append(output)
        parts = jnp.split(outputs[0], 2, axis=-1) if self._twice else outputs
        forms = {_FORMS[head]: self.process.answer(y, part) for head, part in zip(self.heads or (), parts, strict=True)}
        return self.process.predict(y, t, **forms)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BoundInterpolantField(ChecksCondition):
    """An interpolant's network with parameters: a model. Its leaves are the parameters (and a key in training)."""

    has_parts: ClassVar[bool] = False

    params: Pytree
    field: InterpolantField = field(metadata={"static": True})
    dropout: Key | None = None

    @property
    def process(self) -> Bridge:
        """That of the network."""
        return self.field.process

    def check_condition(self, cond: Pytree) -> None:
        """As the network."""
        self.field.check_condition(cond)

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> FlowPrediction:
        """Predict for ``y`` of shape ``(batch, *event)``."""
        return self.field.evaluate(self.params, y, t, cond, self.dropout)
