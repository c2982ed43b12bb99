r"""Bits per dimension of integer data under a model of continuous data: dequantisation, uniform, learned and importance-weighted.

A level ``x`` is a cell of the scale. With dequantisation noise ``v``, the place in the cell, of unit volume, and
:math:`y = y(x + v)` in data space,

.. math:: P(x) = \int p(y)\Big|\frac{dy}{dv}\Big|\,dv,\qquad
          \log P(x) \ge E\log\frac1K\sum_{k=1}^K e^{w_k},\qquad
          w = \log p(y) + \log\Big|\frac{dy}{dv}\Big| - \log q(v\mid x),\quad v\sim q .

The bound holds for every law ``q`` of the noise, rises with ``K`` and tends to :math:`\log P(x)`. ``q`` is uniform
(Theis et al. 2016, arXiv 1511.01844), or learned (Ho et al. 2019, arXiv 1902.00275); ``K`` is that of Burda et al. (2016), arXiv
1509.00519.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Integer

from scorelab import walk
from scorelab.arguments import check_conditions, check_ids, check_key, require_rows
from scorelab.arrays import Array, Key, Pytree, is_traced, on_host
from scorelab.data.transforms import Cells
from scorelab.elbo import denoising_bound, likelihood_bound
from scorelab.grids import Arcsine, Grid
from scorelab.likelihood import log_likelihood
from scorelab.models.base import Model
from scorelab.models.function import as_pytree
from scorelab.processes.interpolant import StochasticInterpolant
from scorelab.randomness import folded, per_example_keys
from scorelab.solvers.epsilons import Epsilon, Proportional
from scorelab.validation import require_int, require_spec

# Of the paths that a law of an interpolant is learned with: the steps, and a little noise, under which the bound is tight.
_STEPS, _NOISE = 20, Proportional(1.0)


class Places(abc.ABC):
    """The law ``q`` of the dequantisation noise, the place in a cell, given the levels; a pytree. A new one needs ``draw``."""

    @abc.abstractmethod
    def draw(
        self, keys: Key, x: Integer[Array, " n *event"], transform: Cells
    ) -> tuple[Float[Array, " n *event"], Float[Array, " n"]]:
        """One point of data space in each cell, from one key for each row, and :math:`\\log q` of its place."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Uniform(Places):
    """Uniform dequantisation noise."""

    def draw(self, keys, x, transform):
        return jax.vmap(transform.dequantise)(keys, x), jnp.zeros(len(x))


@dataclass(frozen=True, kw_only=True)
class LogitLogistic:
    r"""A learned law of dequantisation noise: :math:`\mathrm{logit}\,v = m(x) + s(x)\,z` by element, with ``z`` logistic.

    At :math:`m = 0` and :math:`s = 1` it is uniform, where a network whose output begins at zero begins. The network sees the whole
    ``x``. It gets the levels twice, side by side in the last axis, and returns ``m`` and :math:`\log s` so. :func:`fit` makes the
    law.

    Attributes:
        net: as that of :class:`scorelab.models.Denoiser`.
    """

    net: Any

    def __post_init__(self):
        net = self.net
        if isinstance(net, type) or not (callable(getattr(net, "init", None)) and callable(getattr(net, "apply", None))):
            raise TypeError(
                f"LogitLogistic.net = {net!r}: expected a network with init(key, x, c_noise) and apply(params, x, c_noise)"
            )

    def init(self, key: Key, x: Integer[Array, " n *event"], levels: int) -> Pytree:
        """Fresh parameters."""
        return self.net.init(key, self._seen(x, levels)[:1], jnp.zeros(1), None)

    def bind(self, params: Pytree) -> BoundLogitLogistic:
        """The law with these parameters."""
        return BoundLogitLogistic(params=params, law=self)

    def moments(self, params: Pytree, x: Integer[Array, " n *event"], levels: int) -> tuple[Array, Array]:
        """``m`` and :math:`\\log s`, shaped like ``x``."""
        out = self.net.apply(params, self._seen(x, levels), jnp.zeros(len(x)), None)
        m, log_s = jnp.split(out, 2, axis=-1)
        # Bounded, so that a law that is learned cannot fall into a point.
        return 8 * jnp.tanh(m / 8), 3 * jnp.tanh(log_s / 3)

    @staticmethod
    def _seen(x: Array, levels: int) -> Array:
        y = (2 * jnp.asarray(x, jnp.float32) + 1) / levels - 1
        return jnp.concatenate([y, y], axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BoundLogitLogistic(Places):
    """That of :class:`LogitLogistic` with parameters, which are its leaves."""

    params: Pytree
    law: LogitLogistic = field(metadata={"static": True})

    def draw(self, keys, x, transform):
        m, log_s = self.law.moments(self.params, x, transform.levels)
        z = jax.vmap(lambda key: jax.random.logistic(key, x.shape[1:]))(keys)
        logit = m + jnp.exp(log_s) * z
        # The logarithm of sigmoid(a) sigmoid(-a), the density of a logistic number and the slope of the sigmoid.
        slope = lambda a: -jax.nn.softplus(a) - jax.nn.softplus(-a)
        log_q = slope(z) - log_s - slope(logit)
        return transform.at(x, jax.nn.sigmoid(logit)), jnp.sum(log_q, axis=tuple(range(1, x.ndim)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BitsPerDim:
    r"""What :func:`bits_per_dim` returns: an upper bound of :math:`-\log_2 P(x)/d`, in expectation over what was drawn.

    Attributes:
        bits: of every row, ``(n,)``.
        log_prob: the bound of :math:`\log P(x)`, nats, ``(n,)``.
        log_weights: :math:`w` of every draw, nats, ``(n, draws)``.
        law: which law of the model it belongs to, in words.
        event: the shape of one row.
    """

    bits: Array
    log_prob: Array
    log_weights: Array
    law: str = field(metadata={"static": True})
    event: tuple[int, ...] = field(metadata={"static": True})

    @property
    def mean(self) -> Float[Array, ""]:
        """Over the rows."""
        return jnp.mean(self.bits)

    @property
    def standard_error(self) -> Float[Array, ""]:
        """Of the mean, from the spread over the rows; NaN for one."""
        return jnp.std(self.bits, ddof=1) / math.sqrt(len(self.bits)) if len(self.bits) > 1 else jnp.asarray(jnp.nan)

    def bits_of(self, draws: int) -> Float[Array, " n"]:
        r"""The bits with fewer draws, ``(n,)``: the mean over disjoint groups of so many.

        Raises:
            ValueError: a number that does not divide that of the draws.
        """
        require_int("BitsPerDim.bits_of", 1, draws=draws)
        n, most = self.log_weights.shape
        if most % draws:
            raise ValueError(f"BitsPerDim.bits_of.draws = {draws}: expected a divisor of the {most} draws")
        return _bits(jnp.mean(_importance(self.log_weights.reshape(n, most // draws, draws)), axis=1), self.event)


def bits_per_dim(
    model: Model,
    x: Integer[Array, " n *event"],
    transform: Cells,
    *,
    key: Key,
    places: Places | None = None,
    draws: int = 1,
    grid: Grid | None = None,
    epsilon: Epsilon | None = None,
    paths: int = 1,
    probes: int = 0,
    cond: Pytree = None,
    ids: Array | None = None,
    chunk: int | None = None,
    **options: Any,
) -> BitsPerDim:
    r"""Bits per dimension of integer data, an upper bound: dequantisation noise is drawn, and its weights counted.

    The density is that of the model's flow (:func:`scorelab.log_likelihood`), or with a ``grid`` the lower bound of that of its SDE
    (:func:`scorelab.likelihood_bound`). It is that of data noised to the first time of the process, or to the last one of the grid.
    What a row draws depends on the key and its id.

    Args:
        model: a model of data on the scale ``transform``, trained on dequantised data.
        x: integer data, ``(n, *event)`` uint8.
        transform: such as ``scorelab.data.Pixels(levels=256)``.
        key: PRNG key.
        places: the law of the dequantisation noise, ``Uniform()`` by default, or what :func:`fit` returns.
        draws: ``K``, noises for each row; more than one with the exact divergence of the flow only.
        grid: of the SDE; None for the flow.
        epsilon: see :func:`scorelab.likelihood_bound`.
        paths: see there.
        probes: see :func:`scorelab.log_likelihood`.
        cond: conditions with leading axis ``n``.
        ids: of the rows; ``arange(n)`` by default.
        chunk: rows at once; all by default.
        **options: the other arguments of the one function or the other.

    Raises:
        TypeError: a transform without levels; data that are not uint8; what is no law of dequantisation noise.
        ValueError: values that are no levels of the transform; several draws with probes or a grid, whose noise in the exponent
            would be a bias towards too few bits; epsilon without a grid.
        FloatingPointError: see the two functions.
    """
    where = "bits_per_dim"
    _require_cells(where, transform)
    places = Uniform() if places is None else places
    require_spec(where, Places, places=places)
    require_int(where, 1, draws=draws)
    require_int(where, 0, probes=probes)
    check_key(where, key)
    if grid is None and (epsilon is not None or paths != 1):
        raise ValueError(
            f"{where}.epsilon = {epsilon!r} and paths = {paths} without a grid: expected grid=, or neither, for the flow"
        )
    if draws > 1 and (probes or grid is not None):
        raise ValueError(
            f"{where}.draws = {draws} with probes = {probes} and grid = {grid!r}: expected probes = 0 and no grid, since "
            "the weights need the likelihood itself, and an estimate of it in the exponent gives too few bits"
        )
    x = _checked(where, x, transform)
    n = len(x)
    ids = check_ids(where, ids, n)
    model = as_pytree(where, model)
    check_conditions(where, model, cond, n)
    if chunk is not None:
        require_int(where, 1, chunk=chunk)
    key_places, key_model = jax.random.split(key)
    law, parts = "the probability flow", []
    for low, part_model, (part_x, part_ids, part_cond) in walk.chunks(n, min(chunk or n, n), model, x, ids, cond):
        keys, column = per_example_keys(key_places, jnp.asarray(part_ids)), []
        for k in range(draws):
            y, log_q = places.draw(folded(keys, k), part_x, transform)
            common: dict[str, Any] = dict(
                key=jax.random.fold_in(key_model, k), probes=probes, cond=part_cond, ids=part_ids, **options
            )
            if grid is None:
                found = log_likelihood(part_model, y, **common)
            else:
                found = likelihood_bound(part_model, y, grid=grid, epsilon=epsilon, paths=paths, **common)
                law = found.law
            column.append(found.log_prob - log_q)
        parts.append(jnp.stack(column, axis=1)[: n - low])
    event = tuple(x.shape[1:])
    # The Jacobian of the scale, in nats.
    log_det = -transform.bits_per_dim(jnp.zeros(()), event) * math.prod(event) * math.log(2)
    log_weights = jnp.concatenate(parts) + log_det
    log_prob = _importance(log_weights)
    bits = _bits(log_prob, event)
    if not is_traced(bits):
        require_rows(np.isfinite(on_host(bits)), f"{where}: the rows {{rows}} of {{n}} have no finite bits", FloatingPointError)
    return BitsPerDim(bits=bits, log_prob=log_prob, log_weights=log_weights, law=law, event=event)


def _importance(log_weights: Array) -> Array:
    return jax.nn.logsumexp(log_weights, axis=-1) - math.log(log_weights.shape[-1])


def _bits(log_prob: Array, event: tuple[int, ...]) -> Array:
    return -log_prob / (math.prod(event) * math.log(2))


def _require_cells(where: str, transform: Cells) -> None:
    if not isinstance(transform, Cells):
        raise TypeError(f"{where}.transform = {transform!r}: expected a transform with levels, such as Pixels(levels=256)")


def _checked(where: str, x: Array, transform: Cells) -> Array:
    """Integer data ``(n, *event)`` that are on the levels of the transform."""
    if np.ndim(x) < 2 or not np.size(x):
        raise ValueError(f"{where}.x has shape {np.shape(x)}: expected (n, *event) with at least one row")
    if not is_traced(x):
        try:
            transform.check(on_host(x))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}.x: {error}") from error
    return jnp.asarray(x)


Objective = Callable[[Any, Array, Key, Pytree], Array]


def fit(
    law: LogitLogistic,
    model: Model,
    x: Integer[Array, " n *event"],
    transform: Cells,
    *,
    key: Key,
    steps: int = 500,
    batch_size: int = 64,
    optimiser: Any = None,
    objective: Objective | None = None,
    cond: Pytree = None,
) -> tuple[BoundLogitLogistic, np.ndarray]:
    r"""Learn the law of dequantisation noise under a fixed model, by gradients of :math:`E[\log p(y) - \log q(v\mid x)]`.

    The model is not changed. Any law gives a bound, and what was learned only makes it tighter. So ``x`` are training data, and the
    bits are counted on others.

    Args:
        law: what is learned.
        model: a model of data on the scale ``transform``.
        x: integer data, ``(n, *event)`` uint8.
        transform: the scale.
        key: PRNG key.
        steps: of the optimiser.
        batch_size: rows in each, at most ``n``.
        optimiser: of optax; None for ``optax.adam(1e-3)``.
        objective: ``(model, y, key, cond) -> (batch,)``, an estimate of a lower bound of :math:`\log p(y)` that is
            differentiable in ``y``, up to a constant. None for :func:`scorelab.elbo.denoising_bound` of a linear-Gaussian process,
            and for one path of :func:`scorelab.likelihood_bound` on a coarse grid under an interpolant.
        cond: conditions with leading axis ``n``.

    Returns:
        The law, and the bound in nats at every step, ``(steps,)``.

    Raises:
        TypeError, ValueError: as in :func:`bits_per_dim`.
        FloatingPointError: the bound was not finite, with the step.
    """
    where = "dequantisation.fit"
    require_spec(where, LogitLogistic, law=law)
    _require_cells(where, transform)
    require_int(where, 1, steps=steps, batch_size=batch_size)
    check_key(where, key)
    x, model = _checked(where, x, transform), as_pytree(where, model)
    n = len(x)
    if batch_size > n:
        raise ValueError(f"{where}.batch_size = {batch_size}: expected at most the {n} rows")
    check_conditions(where, model, cond, n)
    if objective is None:
        objective = _path if isinstance(model.process, StochasticInterpolant) else denoising_bound
    elif not callable(objective):
        raise TypeError(f"{where}.objective = {objective!r}: expected a function (model, y, key, cond) of log-densities, or None")
    optimiser = optax.adam(1e-3) if optimiser is None else optimiser
    key_init, key_steps = jax.random.split(key)
    params = law.init(key_init, x, transform.levels)

    @jax.jit
    def step(model, x, cond, params, state, key):
        key_rows, key_places, key_model = jax.random.split(key, 3)
        rows = jax.random.choice(key_rows, n, (batch_size,), replace=False)
        batch_x, batch_cond = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], (x, cond))

        def loss(params):
            y, log_q = law.bind(params).draw(jax.random.split(key_places, batch_size), batch_x, transform)
            found = objective(model, y, key_model, batch_cond)
            if jnp.shape(found) != (batch_size,):
                raise ValueError(f"{where}.objective returned shape {jnp.shape(found)}: expected ({batch_size},), one for each row")
            return -jnp.mean(found - log_q)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, values = optimiser.init(params), []
    for i in range(steps):
        params, state, value = step(model, x, cond, params, state, jax.random.fold_in(key_steps, i))
        values.append(value)
    bounds = -np.asarray(jnp.stack(values), np.float64)
    if len(bad := np.flatnonzero(~np.isfinite(bounds))):
        raise FloatingPointError(f"{where}: the bound is not finite at step {bad[0]}: expected a model that is, and a smaller rate")
    return law.bind(params), bounds


def _path(model: Model, y: Array, key: Key, cond: Pytree) -> Array:
    return likelihood_bound(model, y, grid=Arcsine(_STEPS), epsilon=_NOISE, key=key, paths=1, probes=1, cond=cond).log_prob
