r"""Energies: a scalar from a network of any kind, whose gradient is the score.

With :math:`\tilde y = y - b_t`, :math:`v = \alpha^2 s^2 + \sigma^2` (``s`` = ``data_std``) and the input
:math:`x = \tilde y/\sqrt v` of the network ``G``, the scalar is :math:`\phi = \langle x, G(x)\rangle`, and the log-density

.. math:: \log p_t(y) = -\frac{m}{2\sigma}|\tilde y|^2 - \frac{n\sqrt v}{\sigma}\,\phi(\tilde y/\sqrt v) .

Its gradient is the score of a :class:`scorelab.models.Denoiser` with the output
:math:`F = \nabla_x\phi = G + (\partial G/\partial x)^\top x`,

.. math:: D = p\,\tilde y + q F,\qquad \hat\epsilon = -\sigma\nabla\log p_t = m\,\tilde y + n F ,

with the same four numbers of the parameterisation. So input, output and error are scaled as they are there, at all noise levels:
for ``"edm"`` the energy is :math:`\tfrac12|x|^2 - \tfrac{\alpha s}{\sigma}\phi`. Every smooth function with :math:`\phi(0)=0` is of
the form :math:`\langle x, G\rangle`, by :math:`G=\int_0^1\nabla\phi(ux)\,du`; a constant is no part of an energy.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Key, Pytree, per_example
from scorelab.models.base import KnowsDensity
from scorelab.models.denoiser import BoundDenoiser, Denoiser
from scorelab.processes.linear_gaussian import GaussianPrediction
from scorelab.processes.predictions import HasLogProb
from scorelab.validation import require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class EnergyPrediction(GaussianPrediction, HasLogProb):
    r"""A Gaussian prediction with the log-density :math:`\log p_t(y)` up to a constant of ``t`` and the condition, ``(batch,)``."""

    log_prob: Array


class Potential(NamedTuple):
    r"""The scalar of an energy and its gradient.

    Attributes:
        value: :math:`\phi`, ``(batch,)``.
        gradient: :math:`F = \nabla_x\phi` in the input of the network, ``(batch, *event)``.
    """

    value: Array
    gradient: Array


@dataclass(frozen=True, kw_only=True)
class Energy(Denoiser):
    r"""A :class:`Denoiser` whose score is a gradient: the network makes one scalar, :math:`\langle x, G(x)\rangle`, and no field.

    Goes wherever a ``Denoiser`` does. Its predictions have a ``log_prob``, known up to a constant of ``t`` and of the condition.
    A call costs a forward and a backward pass through the network, and a gradient of a loss differentiates the backward pass.
    Samplers differentiate it in a loop, so on the CPU a network with the field ``loop_safe`` is called with it, unless the energy is
    bound for training. Training inside a loop (``ScoreLearner.accumulate``) wants ``loop_safe`` of the network as ever.

    Attributes:
        net: as of a ``Denoiser``: its output has the shape of its input.
        process: the forward process.
        predict: what the gradient stands for, as of a ``Denoiser``.
        data_std: standard deviation of the encoded data, per element.
        self_condition: not for energies: what the network remembers depends on ``y``, and the field would be no gradient.

    Source: Salimans and Ho, "Should EBMs model the energy or the score?", 2021, for networks of an energy with the form of a field;
    Karras et al. 2022, arXiv 2206.00364, for the scaling.
    """

    def __post_init__(self):
        if self.self_condition:
            raise ValueError(
                "Energy.self_condition = True: expected False, since a field that sees its former estimate is no gradient"
            )
        super().__post_init__()

    def init(self, key: Key, x: Array, cond: Pytree = None, like: Any = None) -> Pytree:
        """As of a ``Denoiser``; ``like`` is an energy, since parameters of a field mean something else."""
        if like is not None:
            require_spec("Energy.init", BoundEnergy, like=like)
        return super().init(key, x, cond, like)

    def bind(self, params: Pytree, dropout: Key | None = None) -> BoundEnergy:
        """The model with these parameters; a pytree whose leaves are the parameters. With the key ``dropout`` as in training."""
        kept = dropout if getattr(self.net, "dropout", 0.0) else None
        return BoundEnergy(params=params, denoiser=self, dropout=kept, trains=dropout is not None)

    def potential(self, params: Pytree, y: Array, t: Array | float, cond: Pytree = None, **options: Any) -> Potential:
        r""":math:`\phi` and its gradient, one forward and one backward pass; ``options`` go to the network."""
        root = per_example(self._root(jnp.asarray(t, y.dtype)), y)
        offset = per_example(self.process.offset(jnp.asarray(t, y.dtype)), y)

        def total(y):
            x = (y - offset) / root
            output = self.network_output(params, y, t, cond, **options)
            value = jnp.sum(x * output, axis=tuple(range(1, y.ndim)))
            # The sum's gradient is each example's own: examples do not see one another.
            return jnp.sum(value), value

        (_, value), slope = jax.value_and_grad(total, has_aux=True)(y)
        return Potential(value, root * slope)

    def density(self, potential: Potential, y: Array, t: Array | float) -> EnergyPrediction:
        """The prediction that follows from a potential."""
        pair = self.prediction(potential.gradient, y, t)
        c, sigma, root = self.coefficients(pair.t), self.process.sigma(pair.t), self._root(pair.t)
        square = jnp.sum((y - per_example(self.process.offset(pair.t), y)) ** 2, axis=tuple(range(1, y.ndim)))
        log_prob = -(c.m / sigma) * square / 2 - (c.n / sigma) * root * potential.value
        return EnergyPrediction(denoised=pair.denoised, eps=pair.eps, log_prob=log_prob, t=pair.t, process=self.process)

    def _root(self, t: Array) -> Array:
        r""":math:`\sqrt v`, by which the input of the network is divided."""
        return jnp.sqrt((self.process.alpha(t) * self.data_std) ** 2 + self.process.sigma(t) ** 2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BoundEnergy(BoundDenoiser, KnowsDensity):
    """An energy with parameters: a model that knows its density. Its leaves are the parameters; the energy is static."""

    denoiser: Energy = field(metadata={"static": True})
    trains: bool = field(default=False, metadata={"static": True})

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> EnergyPrediction:
        """Predict for ``y`` of shape ``(batch, *event)``."""
        options = {} if self.dropout is None else dict(train=True, rngs={"dropout": self.dropout})
        energy = self.denoiser if self.trains or jax.default_backend() != "cpu" else _in_loops(self.denoiser)
        return energy.density(energy.potential(self.params, y, t, cond, **options), y, t)


@functools.cache
def _in_loops(energy: Energy) -> Energy:
    """The same energy, with the derivatives of convolutions that are fast in loops on the CPU, by a factor of ten."""
    if getattr(energy.net, "loop_safe", True):
        return energy
    safe = copy.copy(energy)
    object.__setattr__(safe, "net", energy.net.clone(loop_safe=True))
    return safe
