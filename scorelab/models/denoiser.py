r"""A network with its parameterisation and preconditioning, and the model it becomes once it has parameters.

Every parameterisation is a linear map from the network's output ``F`` and the centred input
:math:`\tilde y = y - b_t` to the consistent pair (denoised, eps):

.. math:: D = p\,\tilde y + q F,\qquad \hat\epsilon = m\,\tilde y + n F,\qquad \alpha p + \sigma m = 1,\ \alpha q + \sigma n = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from scorelab.processes.base import Prediction, Process
from scorelab.typing import Array, Key, Pytree, per_example, require_choice, require_positive, require_spec


class Coefficients(NamedTuple):
    r"""The four numbers of :math:`D = p\tilde y + qF`, :math:`\hat\epsilon = m\tilde y + nF`."""

    p: Array
    q: Array
    m: Array
    n: Array


def _eps(alpha, sigma, std):
    # F = eps.
    return Coefficients(1 / alpha, -sigma / alpha, jnp.zeros_like(alpha), jnp.ones_like(alpha))


def _x0(alpha, sigma, std):
    # F = y_0.
    return Coefficients(jnp.zeros_like(alpha), jnp.ones_like(alpha), 1 / sigma, -alpha / sigma)


def _v(alpha, sigma, std):
    # F = (alpha eps - sigma y_0) / sqrt(alpha^2 + sigma^2): Salimans & Ho (2022) when that root is one.
    square = alpha**2 + sigma**2
    root = jnp.sqrt(square)
    return Coefficients(alpha / square, -sigma / root, sigma / square, alpha / root)


def _flow(alpha, sigma, std):
    # F = eps - y_0: the velocity of rectified flow.
    total = alpha + sigma
    return Coefficients(1 / total, -sigma / total, 1 / total, alpha / total)


def _edm(alpha, sigma, std):
    # Karras et al. (2022), Table 1, with alpha: the output has unit variance and its error is least amplified.
    variance = (alpha * std) ** 2 + sigma**2
    root = jnp.sqrt(variance)
    return Coefficients(alpha * std**2 / variance, sigma * std / root, sigma / variance, -alpha * std / root)


# One row per parameterisation; the keys are the accepted values of Denoiser.predict.
PARAMETERISATIONS = {"eps": _eps, "x0": _x0, "v": _v, "flow": _flow, "edm": _edm}


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    r"""A network, the process it denoises, and what its output means.

    The network sees :math:`\tilde y/\sqrt{\alpha^2 s^2 + \sigma^2}` (``s`` = ``data_std``) and
    :math:`c_{\mathrm{noise}} = \tfrac14\log(\sigma/\alpha)`.

    Attributes:
        net: a pair of functions ``init(key, x, c_noise, cond)`` and ``apply(params, x, c_noise, cond)``; every
            Flax linen module is one. ``c_noise`` is ``(batch,)``; a net with the attribute ``shares_noise_level``
            gets ``(1,)`` where the whole batch has one noise level.
        process: the forward process.
        predict: ``"eps"``, ``"x0"``, ``"v"`` (:math:`(\alpha\epsilon-\sigma y_0)/\sqrt{\alpha^2+\sigma^2}`),
            ``"flow"`` (:math:`\epsilon - y_0`) or ``"edm"`` (Karras et al. 2022 preconditioning).
        data_std: standard deviation of the encoded data, per element.
    """

    net: Any
    process: Process
    predict: Literal["eps", "x0", "v", "flow", "edm"] = "edm"
    data_std: float = 0.5

    def __post_init__(self):
        require_spec(self, Process, process=self.process)
        require_choice(self, tuple(PARAMETERISATIONS), predict=self.predict)
        require_positive(self, data_std=self.data_std)
        if not (callable(getattr(self.net, "init", None)) and callable(getattr(self.net, "apply", None))):
            raise TypeError(f"Denoiser.net = {self.net!r}: expected an object with init and apply, such as a Flax module")

    def init(self, key: Key, x: Array, cond: Pytree = None) -> Pytree:
        """Fresh parameters for data shaped like ``x`` ``(batch, *event)``."""
        x = jnp.asarray(x, jnp.float32)
        return self.net.init(key, x[:1], jnp.zeros(1, x.dtype), jax.tree.map(lambda c: c[:1], cond))

    def bind(self, params: Pytree) -> BoundDenoiser:
        """The model with these parameters; a pytree whose leaves are the parameters."""
        return BoundDenoiser(params=params, denoiser=self)

    def coefficients(self, t: Array) -> Coefficients:
        """The linear map of the chosen parameterisation at ``t``."""
        return PARAMETERISATIONS[self.predict](self.process.alpha(t), self.process.sigma(t), self.data_std)

    def network_output(self, params: Pytree, y: Array, t: Array, cond: Pytree = None, **options: Any) -> Array:
        """``F``, the raw output of the network on the preconditioned input; ``options`` go to the network."""
        t = jnp.asarray(t, y.dtype)
        # While sampling, t is one number: networks that say so embed it once, which spares the MLP half its arithmetic.
        rows = (1,) if t.ndim == 0 and getattr(self.net, "shares_noise_level", False) else y.shape[:1]
        t = jnp.broadcast_to(t, rows)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        # alpha = 0 (pure noise at the end of rectified flow) has an infinite log ratio; the network gets a large one.
        c_noise = jnp.clip(-self.process.log_snr(t) / 8, -4.0, 4.0)
        scale = 1 / jnp.sqrt((alpha * self.data_std) ** 2 + sigma**2)
        centred = y - self.process.offset(t).reshape(rows + (1,) * (y.ndim - 1))
        return self.net.apply(params, scale.reshape(rows + (1,) * (y.ndim - 1)) * centred, c_noise, cond, **options).astype(y.dtype)

    def prediction(self, output: Array, y: Array, t: Array) -> Prediction:
        """The network's output ``F`` as a prediction."""
        t = jnp.asarray(t, y.dtype)
        c = Coefficients(*(per_example(value, y) for value in self.coefficients(t)))
        centred = y - per_example(self.process.offset(t), y)
        return Prediction(
            denoised=c.p * centred + c.q * output, eps=c.m * centred + c.n * output, t=t, process=self.process
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BoundDenoiser:
    """A denoiser with parameters: a model. Its leaves are the parameters; the denoiser is static."""

    params: Pytree
    denoiser: Denoiser = field(metadata={"static": True})

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> Prediction:
        """Predict for ``y`` of shape ``(batch, *event)``."""
        return self.denoiser.prediction(self.denoiser.network_output(self.params, y, t, cond), y, t)
