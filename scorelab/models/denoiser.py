r"""A network with its parameterisation and preconditioning, and the model it becomes once it has parameters.

Every parameterisation is a linear map from the network's output ``F`` and the centred input
:math:`\tilde y = y - b_t` to the consistent pair (denoised, eps):

.. math:: D = p\,\tilde y + q F,\qquad \hat\epsilon = m\,\tilde y + n F,\qquad \alpha p + \sigma m = 1,\ \alpha q + \sigma n = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, Pytree, per_example
from scorelab.models.base import ChecksCondition, Trainable
from scorelab.models.estimates import SeesEstimate
from scorelab.models.nets import conditions
from scorelab.processes.linear_gaussian import GaussianPrediction, LinearGaussian
from scorelab.processes.scale import warn_scale
from scorelab.validation import owner, require_choice, require_int, require_positive, require_shape, require_spec


class Coefficients(NamedTuple):
    r"""The four numbers of :math:`D = p\tilde y + qF`, :math:`\hat\epsilon = m\tilde y + nF`."""

    p: Array
    q: Array
    m: Array
    n: Array


def _eps(alpha, sigma, std, floor):
    # F = eps.
    return Coefficients(1 / alpha, -sigma / alpha, jnp.zeros_like(alpha), jnp.ones_like(alpha))


def _x0(alpha, sigma, std, floor):
    # F = y_0.
    return Coefficients(jnp.zeros_like(alpha), jnp.ones_like(alpha), 1 / sigma, -alpha / sigma)


def _v(alpha, sigma, std, floor):
    # F = (alpha eps - sigma y_0) / sqrt(alpha^2 + sigma^2): Salimans & Ho (2022) when that root is one.
    square = alpha**2 + sigma**2
    root = jnp.sqrt(square)
    return Coefficients(alpha / square, -sigma / root, sigma / square, alpha / root)


def _flow(alpha, sigma, std, floor):
    # F = eps - y_0: the velocity of rectified flow.
    total = alpha + sigma
    return Coefficients(1 / total, -sigma / total, 1 / total, alpha / total)


def _edm(alpha, sigma, std, floor):
    # Karras et al. (2022), Table 1, with alpha: the output has unit variance and its error is least amplified.
    variance = (alpha * std) ** 2 + sigma**2
    root = jnp.sqrt(variance)
    return Coefficients(alpha * std**2 / variance, sigma * std / root, sigma / variance, -alpha * std / root)


def _consistency(alpha, sigma, std, floor):
    # Song et al. (2023), appendix C, with alpha: D is the clean point itself at the smallest noise ratio, whatever the output.
    above = sigma - floor * alpha
    square = above**2 + (alpha * std) ** 2
    q = std * above / jnp.sqrt(sigma**2 + (alpha * std) ** 2)
    return Coefficients(alpha * std**2 / square, q, above**2 / (sigma * square), -alpha * q / sigma)


# One row per parameterisation, a function of alpha, sigma, the data's deviation and the smallest noise ratio sigma/alpha of the
# process; the keys are the accepted values of Denoiser.predict.
PARAMETERISATIONS = {"eps": _eps, "x0": _x0, "v": _v, "flow": _flow, "edm": _edm, "consistency": _consistency}


def require_signal(what: str, process: LinearGaussian) -> None:
    r"""ValueError where :math:`\alpha` is 0 at ``t_max``, since ``what`` gives :math:`D = (y-b-\sigma\hat\epsilon)/\alpha`."""
    alpha = float(process.alpha(np.float64(process.t_max)))
    # Up to the rounding of t to float32, of which a division by alpha leaves no digit.
    if alpha <= np.finfo(np.float32).eps:
        raise ValueError(
            f"{what} under {process!r}, where alpha is {alpha:.3g} at t_max and the denoised point cannot be had from it: expected "
            "another form of prediction ('denoised' or 'velocity' of a function; 'flow', 'v', 'x0' or 'edm' of a network), or a "
            "schedule that ends before (such as t_max=0.99)"
        )


def example(where: str, x: Any) -> jax.Array:
    """One example ``(1, *event)`` of data ``(batch, *event)``, or of one event's shape as a tuple; ValueError for another."""
    if isinstance(x, tuple) and all(isinstance(size, int | np.integer) for size in x):
        require_int(where, 1, **{f"x[{i}]": size for i, size in enumerate(x)})
        x = jnp.zeros((1, *x))
    x = jnp.asarray(x, jnp.float32)
    if x.ndim < 2:
        raise ValueError(f"{where}.x has shape {x.shape}: expected data (batch, *event), or one event's shape as a tuple")
    return x[:1]


def copied(where: str, params: Pytree, fresh: Callable[[], Pytree]) -> Pytree:
    """A copy of parameters; ValueError where they have other names or shapes than ``fresh`` ones would have."""
    wanted, found = (jax.tree.map(jnp.shape, tree) for tree in (jax.eval_shape(fresh), params))
    if wanted != found:
        raise ValueError(f"{where}.like has parameters of the shapes {found}: expected those of the network, {wanted}")
    return jax.tree.map(lambda p: jnp.array(p, copy=True), params)


def check_network(net: Any, cond: Pytree) -> None:
    """Raise ``ValueError`` for what is no condition of a network; one that says nothing of conditions is not asked."""
    if (condition := conditions.of_network(net)) is not None and cond is not None:
        condition.check(cond)


@dataclass(frozen=True, kw_only=True)
class Denoiser(Trainable):
    r"""A network, the process it denoises, and what its output means.

    The network sees :math:`\tilde y/\sqrt{\alpha^2 s^2 + \sigma^2}` (``s`` = ``data_std``) and
    :math:`c_{\mathrm{noise}} = \tfrac14\log(\sigma/\alpha)`.

    Attributes:
        net: a pair of functions ``init(key, x, c_noise, cond)`` and ``apply(params, x, c_noise, cond)``; every
            Flax linen module is one. ``c_noise`` is ``(batch,)``; a net with the attribute ``shares_noise_level``
            gets ``(1,)`` where the whole batch has one noise level.
        process: the forward process.
        predict: ``"eps"``, ``"x0"``, ``"v"`` (:math:`(\alpha\epsilon-\sigma y_0)/\sqrt{\alpha^2+\sigma^2}`),
            ``"flow"`` (:math:`\epsilon - y_0`), ``"edm"`` (Karras et al. 2022 preconditioning) or ``"consistency"``
            (arXiv 2303.01469: that of EDM, shifted so that :math:`D = \tilde y/\alpha` exactly at ``process.t_min``).
            ``"eps"`` is refused under a process with :math:`\alpha = 0` at its ``t_max``; the others are finite there.
        data_std: standard deviation of the encoded data, per element; a warning where the noise of the process is not large
            against it.
        self_condition: the network sees the denoised estimate of its former call as well, over ``data_std``, as its argument
            ``estimate`` (arXiv 2208.04202). It is trained by :class:`scorelab.losses.SelfConditioned` and sampled by
            :class:`scorelab.solvers.SelfConditioned`. A net of this kind has the attribute ``takes_estimate``.
    """

    net: Any
    process: LinearGaussian
    predict: Literal["eps", "x0", "v", "flow", "edm", "consistency"] = "edm"
    data_std: float = 0.5
    self_condition: bool = False

    def __post_init__(self):
        require_spec(self, LinearGaussian, process=self.process)
        require_choice(self, (True, False), self_condition=self.self_condition)
        if self.self_condition and not getattr(self.net, "takes_estimate", False):
            raise ValueError(
                f"{owner(self)}.self_condition = True for {type(self.net).__name__}: expected False, or a network with "
                "takes_estimate = True that is called with estimate=, shaped like x"
            )
        require_choice(self, tuple(PARAMETERISATIONS), predict=self.predict)
        require_positive(self, data_std=self.data_std)
        if self.predict == "eps":
            require_signal(f"{owner(self)}.predict = 'eps'", self.process)
        if not (callable(getattr(self.net, "init", None)) and callable(getattr(self.net, "apply", None))):
            raise TypeError(f"{owner(self)}.net = {self.net!r}: expected an object with init and apply, such as a Flax module")
        warn_scale(f"{owner(self)}.data_std", self.process, self.process.t_max, std=self.data_std)

    @property
    def network(self) -> Denoiser:
        """Itself."""
        return self

    def init(self, key: Key, x: Array, cond: Pytree = None, like: Any = None) -> Pytree:
        """Fresh parameters for data shaped like ``x``, or a copy of those of ``like``.

        ``x`` is data ``(batch, *event)``, or the shape of one event as a tuple of integers, ``(28, 28, 1)``.

        ``ValueError`` where ``like`` has parameters of other names or shapes than this network.
        """
        one = example(f"{owner(self)}.init", x)

        def fresh():
            sees = {"estimate": jnp.zeros_like(one)} if self.self_condition else {}
            return self.net.init(key, one, jnp.zeros(1, one.dtype), jax.tree.map(lambda c: c[:1], cond), **sees)

        if like is None:
            return fresh()
        require_spec(f"{owner(self)}.init", BoundDenoiser, like=like)
        return copied(f"{owner(self)}.init", like.params, fresh)

    def bind(self, params: Pytree, dropout: Key | None = None) -> BoundDenoiser:
        """The model with these parameters; a pytree whose leaves are the parameters.

        With the key ``dropout``, a network with a field ``dropout`` above zero is called as in training (``train=True``).
        """
        return BoundDenoiser(params=params, denoiser=self, dropout=dropout if getattr(self.net, "dropout", 0.0) else None)

    def check_condition(self, cond: Pytree) -> None:
        """Raise ``ValueError`` for what is no condition of the network: names, shapes, dtypes, labels out of range, partly NaN.

        Values inside ``jit`` cannot be looked at; there, the networks here become NaN where the condition is none. A network that
        says nothing of conditions is not asked.
        """
        check_network(self.net, cond)

    def coefficients(self, t: Array) -> Coefficients:
        """The linear map of the chosen parameterisation at ``t``."""
        floor = float(self.process.noise_ratio(self.process.t_min))
        return PARAMETERISATIONS[self.predict](self.process.alpha(t), self.process.sigma(t), self.data_std, floor)

    def network_output(
        self, params: Pytree, y: Array, t: Array | float, cond: Pytree = None, estimate: Array | float | None = None, **options: Any
    ) -> Array:
        """``F``, the raw output of the network on the preconditioned input; ``options`` go to the network.

        ``estimate`` is that of the former call in the space of the process, 0 for none, for a network that sees it.
        """
        output = self._apply(params, y, t, cond, estimate, **options)
        require_shape(f"the output of {type(self.net).__name__}", output, y)
        return output.astype(y.dtype)

    def _apply(
        self, params: Pytree, y: Array, t: Array | float, cond: Pytree, estimate: Array | float | None = None, **options: Any
    ) -> Any:
        self.process.check_times(f"{owner(self)}.t", t)
        if self.self_condition:
            options["estimate"] = self._seen(estimate, y)
        self.check_condition(cond)
        t = jnp.asarray(t, y.dtype)
        # While sampling, t is one number: networks that say so embed it once, which spares the MLP half its arithmetic.
        rows = (1,) if t.ndim == 0 and getattr(self.net, "shares_noise_level", False) else y.shape[:1]
        t = jnp.broadcast_to(t, rows)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        # alpha = 0 (pure noise at the end of rectified flow) has an infinite log ratio; the network gets a large one.
        c_noise = jnp.clip(-self.process.log_snr(t) / 8, -4.0, 4.0)
        scale = 1 / jnp.sqrt((alpha * self.data_std) ** 2 + sigma**2)
        centred = y - self.process.offset(t).reshape(rows + (1,) * (y.ndim - 1))
        return self.net.apply(params, scale.reshape(rows + (1,) * (y.ndim - 1)) * centred, c_noise, cond, **options)

    def _seen(self, estimate: Array | float | None, y: Array) -> Array:
        """What the network sees of its former estimate, of about unit variance."""
        if estimate is None:
            raise ValueError(
                "Denoiser.self_condition = True, and the model was asked without its former estimate: expected a solver in "
                "solvers.SelfConditioned, a loss in losses.SelfConditioned, or models.informed(model, 0.0), which is told none"
            )
        if jnp.ndim(estimate) == 0:
            return jnp.full_like(y, estimate / self.data_std)
        estimate = jnp.asarray(estimate, y.dtype)
        require_shape("the former estimate", estimate, y)
        return estimate / self.data_std

    def features(self, params: Pytree, y: Array, t: Array, cond: Pytree = None, *, names: tuple[str, ...]) -> tuple[Array, ...]:
        """What the named submodules of a Flax network return, in that order; differentiable, and the rest is not computed.

        ``ValueError`` for a name the network does not have.
        """

        def catch(module, method):
            return method == "__call__" and module.name in names

        _, held = self._apply(params, y, t, cond, capture_intermediates=catch, mutable=["intermediates"])
        found = held.get("intermediates", {})
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(
                f"{owner(self)}.features.names = {names}: {type(self.net).__name__} has no submodule {', '.join(missing)}"
            )
        return tuple(found[name]["__call__"][0] for name in names)

    def prediction(self, output: Array, y: Array, t: Array | float) -> GaussianPrediction:
        """The network's output ``F`` as a prediction."""
        require_shape(f"{owner(self)}.prediction.output", output, y)
        t = jnp.asarray(t, y.dtype)
        c = Coefficients(*(per_example(value, y) for value in self.coefficients(t)))
        centred = y - per_example(self.process.offset(t), y)
        return GaussianPrediction(
            denoised=c.p * centred + c.q * output, eps=c.m * centred + c.n * output, t=t, process=self.process
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BoundDenoiser(ChecksCondition, SeesEstimate):
    """A denoiser with parameters: a model. Its leaves are the parameters (and a key in training); the denoiser is static.

    Under ``Denoiser.self_condition`` it waits for the ``estimate`` of its former call, which whoever asks it has to tell.
    """

    has_parts: ClassVar[bool] = False

    params: Pytree
    denoiser: Denoiser = field(metadata={"static": True})
    dropout: Key | None = None
    estimate: Array | float | None = None

    @property
    def process(self) -> LinearGaussian:
        """That of the denoiser."""
        return self.denoiser.process

    @property
    def waits(self) -> bool:
        """Under ``self_condition``, until it is told."""
        return self.denoiser.self_condition and self.estimate is None

    def informed(self, estimate: Array | float) -> BoundDenoiser:
        return replace(self, estimate=estimate)

    def check_condition(self, cond: Pytree) -> None:
        """As the network."""
        self.denoiser.check_condition(cond)

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> GaussianPrediction:
        """Predict for ``y`` of shape ``(batch, *event)``."""
        options = {} if self.dropout is None else dict(train=True, rngs={"dropout": self.dropout})
        return self.denoiser.prediction(self.denoiser.network_output(self.params, y, t, cond, self.estimate, **options), y, t)
