r"""A lower bound of the log-likelihood of a model's SDE, for any velocity and score that it has learned.

A model with the velocity ``u`` and the score ``s`` is sampled backwards by the SDE :math:`dy = (u - \epsilon s)\,dt +
\sqrt{2\epsilon}\,d\bar w`. Under the SDE that goes the other way,

.. math:: dY = (u + \epsilon s)\,dt + \sqrt{2\epsilon}\,dW,\qquad Y_0 = x,

the density of its samples is, by Girsanov's theorem,

.. math:: \log p(x) \ge E[A],\qquad \log p(x) = \log E[e^A],\qquad
          A = \log p_T(Y_T) + \int\big(\nabla\!\cdot(u-\epsilon s) - \epsilon|s|^2\big)\,dt - \int\sqrt{2\epsilon}\,s\cdot dW .

The last integral has the mean 0. With it ``A`` is the same number on every path where ``s`` is the score of the model's own law.
Then the bound is an equality. Sources: Albergo, Boffi, Vanden-Eijnden, arXiv 2303.08797; for :math:`\epsilon = g^2/2`, the reverse
SDE of a linear-Gaussian process, Song et al. (2021), arXiv 2101.09258, and Huang et al. (2021), arXiv 2106.02808.

The law of the SDE depends on :math:`\epsilon`, and is another one than that of the flow
(:func:`scorelab.likelihood.log_likelihood`) unless ``s`` is exact.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scorelab import walk
from scorelab.arguments import check_conditions, check_data, check_ids, check_key, require_rows
from scorelab.arrays import Array, Key, Pytree, Scalar, is_traced, on_host
from scorelab.divergence import BLOCK, dot, pushed, signs, trace
from scorelab.grids import Grid, check_times
from scorelab.models.base import Model, ask
from scorelab.models.estimates import refuse_waiting
from scorelab.models.function import as_pytree
from scorelab.models.per_sample import map_per_sample
from scorelab.processes.base import Start
from scorelab.processes.interpolant import StochasticInterpolant
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.processes.predictions import HasLatent, HasNoise, HasVelocity, require_capabilities
from scorelab.randomness import folded, per_example_keys, per_example_normal
from scorelab.solvers.epsilons import Epsilon, Proportional, Reverse
from scorelab.starts import Prior
from scorelab.validation import require_int, require_spec

# Numbers that are pushed through a model at once by default.
CHUNK_ELEMENTS = 2**20
# The logarithm of the noise ratio at which nothing of the data is left.
_FAR = 7.0
# The stream of a row's keys that probes are drawn from.
_PROBES = 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LikelihoodBound:
    r"""What :func:`likelihood_bound` returns.

    Attributes:
        log_prob: the mean of ``log_weights`` over paths, a lower bound in expectation; nats in data space, ``(n,)``.
        standard_error: of that mean, from the spread over paths, ``(n,)``; NaN for a single path.
        log_weights: ``A`` of every path, ``(n, paths)``.
        probes: Hutchinson probes behind each divergence; 0 means that it is exact.
        law: which law the numbers belong to, in words.
    """

    log_prob: Array
    standard_error: Array
    log_weights: Array
    probes: int = field(metadata={"static": True})
    law: str = field(metadata={"static": True})


class BoundRow(NamedTuple):
    r"""The numbers of one stage. ``n`` is what the model says of the noise, with the score :math:`-n/\lambda`.

    .. math:: f = w u - a n,\qquad A \leftarrow A + \nabla\!\cdot(w u + b n) - c|n|^2 + m\,n\cdot\xi .

    The first stage leads to :math:`y' = y + 2f + r\xi`, the second from there to :math:`y + f_1 + f + r\xi`. In the first
    :math:`b = a`. In the second :math:`b = a - m r`: by Stein's lemma :math:`E[n\cdot\xi] = r\,E[\nabla\!\cdot n]` at :math:`y'`,
    so that the two terms with ``m`` have together the mean 0. They are the integral over ``dW`` to second order.

    Attributes:
        t: where the model is asked.
        step: the step, whose two stages see the same noise.
        second: 1 in the second stage.
        w: half of the step, :math:`\tfrac12\Delta l\,dt/dl`.
        a: :math:`w\epsilon/\lambda`.
        b: see above.
        c: :math:`w\epsilon/\lambda^2`.
        r: :math:`(2\int\epsilon\,dt)^{1/2}` over the step.
        m: :math:`\sqrt c`.
    """

    t: Scalar
    step: Scalar
    second: Scalar
    w: Scalar
    a: Scalar
    b: Scalar
    c: Scalar
    r: Scalar
    m: Scalar


def likelihood_bound(
    model: Model,
    x: Float[Array, " n *event"],
    *,
    grid: Grid,
    key: Key,
    epsilon: Epsilon | None = None,
    paths: int = 16,
    probes: int = 0,
    start: Start | None = None,
    cond: Pytree = None,
    ids: Array | None = None,
    chunk: int | None = None,
) -> LikelihoodBound:
    r"""A lower bound of the log-likelihood of data points under a model's SDE, from simulated paths.

    Paths by the stochastic Heun rule, integrals by the trapezoidal rule, both in :math:`l = \log(\sigma/\alpha)`, or in
    :math:`l = \arcsin\sqrt t` of an interpolant. The mean of ``A`` has the order 2 in the steps, for two calls of the model in
    each. Its spread over paths under the exact score has the order 1. A row's paths depend on the key and its id alone.

    Where :math:`\epsilon` is not 0 and there is no latent noise, at the ends of an interpolant, the step beside it is one of the
    flow, as in :class:`scorelab.solvers.InterpolantSDE`.

    Args:
        model: a model of a linear-Gaussian process, or of an interpolant with latent noise whose base is a law.
        x: data, ``(n, *event)``.
        grid: the times, as they are sampled on. Of a linear-Gaussian process those without noise are left out.
        key: PRNG key of paths and probes.
        epsilon: how much noise (:mod:`scorelab.solvers.epsilons`); None for ``Reverse()``, the reverse SDE of a linear-Gaussian
            process, and for ``Proportional()`` under an interpolant.
        paths: paths for each row.
        probes: as in :func:`scorelab.likelihood.log_likelihood`, but drawn anew in every stage.
        start: the law at the first time of the grid; the prior of the process by default.
        cond: conditions with leading axis ``n``.
        ids: of the rows, as in :func:`scorelab.sample`; ``arange(n)`` by default.
        chunk: paths computed at once, over all rows.

    Raises:
        ValueError: no data, rows that are not finite or outside the domain of the chart (named); an interpolant without latent
            noise, or whose base is points; a grid whose noise ratio is infinite, or that does not reach from the data to the base
            of an interpolant; an epsilon that is negative, not finite, or zero everywhere; a base that is a point for each
            condition; paired data under a condition without a ``start``, which has to be the law of their base rows.
        TypeError: a prediction without a velocity, or without the noise that the score is told from.
        FloatingPointError: the numbers of some rows became NaN or infinite; the message names them.
    """
    where = "likelihood_bound"
    model = as_pytree(where, model)
    process = model.process
    require_spec(where, LinearGaussian | StochasticInterpolant, process=process)
    require_spec(where, Grid, grid=grid)
    walk.check_known(where, model, None)
    refuse_waiting(where, model, "samples that were drawn with it follow no SDE")
    require_int(where, 1, paths=paths)
    require_int(where, 0, probes=probes)
    check_key(where, key)
    if epsilon is None:
        epsilon = Reverse() if isinstance(process, LinearGaussian) else Proportional()
    require_spec(where, Epsilon, epsilon=epsilon)
    start = Prior() if start is None else start
    require_spec(where, Start, start=start)
    rows, times = _table(process, epsilon, grid)
    x = check_data(where, x)
    n = len(x)
    ids = check_ids(where, ids, n)
    check_conditions(where, model, cond, n)
    y = process.encode(x)
    if not is_traced(y):
        outside = f"{where}.x has rows outside the domain of {process!r}: {{rows}} of {{n}}"
        require_rows(np.isfinite(on_host(y)), outside, ValueError)
    if not is_traced(start):
        start.check(n, x.shape[1:], process)
        start.suit(where, model, float(times[-1]), cond)
    size = math.prod(x.shape[1:])
    if chunk is not None:
        require_int(where, 1, chunk=chunk)
    chunk = chunk or max(1, CHUNK_ELEMENTS // (size * min(probes or size, BLOCK)))

    # Every path is an example of its own.
    row, path = (index.ravel() for index in np.indices((n, paths)))
    many = map_per_sample(lambda _, value: jnp.asarray(value)[row], model)
    trees = jax.tree.map(lambda leaf: jnp.asarray(leaf)[row], (x, y, jnp.asarray(ids), cond))
    parts = []
    for low, part_model, (part, part_path) in walk.chunks(n * paths, min(chunk, n * paths), many, trees, path):
        part_x, part_y, part_ids, part_cond = part
        keys = _keys(key, part_ids, part_path)
        found = _walk(part_model, start, part_x, part_y, keys, part_cond, rows, jnp.asarray(times[-1], x.dtype), probes=probes)
        parts.append(found[: n * paths - low])
    log_weights = jnp.concatenate(parts).reshape(n, paths)
    if not is_traced(log_weights):
        message = (
            f"{where}: the paths of the rows {{rows}} of {{n}} have numbers that are not finite, under {epsilon!r} on {grid!r}"
        )
        require_rows(np.isfinite(on_host(log_weights)), message, FloatingPointError)
    error = jnp.std(log_weights, axis=1, ddof=1) / math.sqrt(paths) if paths > 1 else jnp.full(n, jnp.nan, x.dtype)
    return LikelihoodBound(
        log_prob=jnp.mean(log_weights, axis=1), standard_error=error, log_weights=log_weights, probes=probes,
        law=f"the SDE with epsilon = {epsilon!r} from t = {times[-1]:.6g} to {times[0]:.6g}",
    )  # fmt: skip


def _table(process: Any, epsilon: Epsilon, grid: Grid) -> tuple[BoundRow, np.ndarray]:
    """The stages, float64, and the times of the grid upwards."""
    where, times = "likelihood_bound", check_times(grid, process, grid.times(process))[::-1]
    if isinstance(process, StochasticInterpolant):
        process.require_spread(where)
        if process.gamma.silent:
            raise ValueError(
                f"{where} under {process!r}: expected a gamma that is not zero, which the score is told from; its flow has a "
                "log_likelihood"
            )
        if not process.has_law:
            raise ValueError(
                f"{where} under {process!r}, whose base has no density: expected a law of densities as the base, without which "
                "there is no likelihood"
            )
        if (times[0], times[-1]) != (0.0, 1.0):
            raise ValueError(f"{where}.grid = {grid!r} goes from t = {times[0]:.6g} to {times[-1]:.6g}: expected 0 and 1")
        coordinate, inverse = (lambda t: np.arcsin(np.sqrt(t))), (lambda l: np.sin(l) ** 2)
        pace, level = (lambda t: 2 * np.sqrt(t * (1 - t))), process.gamma.gamma
    else:
        times = times[np.asarray(process.sigma(times)) > 0]
        if len(times) < 2:
            raise ValueError(f"{where}.grid = {grid!r} has {len(times)} times with noise: expected two or more")
        if not process.log_snr(times[-1]) > -np.inf:
            raise ValueError(
                f"{where}.grid = {grid!r} begins at t = {times[-1]:.6g}, where the noise ratio of {process!r} is infinite: "
                "expected a grid that begins below it (its t_max)"
            )
        coordinate, inverse = (lambda t: -process.log_snr(t) / 2), (lambda l: np.asarray(process.schedule.time(-2 * l)))
        pace, level = (lambda t: 2 * process.sigma(t) ** 2 / process.latent_diffusion(t) ** 2), process.sigma
    with np.errstate(divide="ignore", invalid="ignore"):
        l = np.asarray(coordinate(times), np.float64)
        middle = inverse((l[1:] + l[:-1]) / 2)
        at, between = (epsilon.checked(process, each) for each in (times, middle))
        pace_at, pace_between, levels = (np.asarray(each, np.float64) for each in (pace(times), pace(middle), level(times)))
        # Not a number at an end of an interpolant where epsilon is not 0.
        over, twice = (pace_at * np.where(at == 0, 0.0, at / each) for each in (levels, levels**2))
    rows = []
    for i, (low, high) in enumerate(itertools.pairwise(range(len(times)))):
        half = (l[high] - l[low]) / 2
        still = not np.all(np.isfinite([over[low], over[high], twice[low], twice[high]]))
        mean = (at[low] * pace_at[low] + 4 * between[low] * pace_between[low] + at[high] * pace_at[high]) / 6
        r = 0.0 if still else math.sqrt(4 * half * mean)
        for second, j in enumerate((low, high)):
            a, c = (0.0, 0.0) if still else (half * over[j], half * twice[j])
            m = math.sqrt(c)
            rows.append(BoundRow(times[j], i, second, half * pace_at[j], a, a - second * m * r, c, r, m))
    table = jax.tree.map(lambda *column: np.array(column), *rows)
    if not np.any(table.r > 0):
        raise ValueError(f"{where}.epsilon = {epsilon!r} is 0 on {grid!r}: expected noise; the flow has a log_likelihood")
    return table, times


def _keys(key: Key, ids: Array, path: Array) -> Key:
    return jax.vmap(jax.random.fold_in)(per_example_keys(key, ids), path)


@functools.partial(jax.jit, static_argnames=("probes",))
def _walk(model, start, x, y, keys, cond, rows, t_end, *, probes) -> Float[jax.Array, " paths"]:
    bridge = isinstance(model.process, StochasticInterpolant)
    needs = (HasVelocity, HasLatent if bridge else HasNoise)

    def stage(state, row):
        y, base, first, total = state
        of_row = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, row.step.astype(jnp.int32))

        def fields(y):
            prediction = ask(model, y, row.t, cond)
            require_capabilities("likelihood_bound", prediction, needs)
            u, n = prediction.velocity, prediction.eta if bridge else prediction.eps
            return row.w * u + row.b * n, row.w * u - row.a * n, n

        (_, drift, n), product = pushed(fields, y)
        directions = None
        if probes:
            stream = folded(of_row, _PROBES + row.second.astype(jnp.int32))
            directions = signs(stream, probes, y)
        divergence = trace(lambda v: product(v)[0], y, directions)
        noise = per_example_normal(folded(of_row, 0), y)
        total = total + divergence - row.c * dot(n, n) + row.m * dot(n, noise)
        second = row.second > 0
        moved = jnp.where(second, base + first + drift, y + 2 * drift) + row.r * noise
        return (moved, jnp.where(second, base, y), jnp.where(second, first, drift), total), None

    rows = jax.tree.map(lambda column: jnp.asarray(column, y.dtype), rows)
    state = (y, y, jnp.zeros_like(y), jnp.zeros(len(y), y.dtype))
    (end, _, _, total), _ = jax.lax.scan(jax.checkpoint(stage), state, rows)
    return start.log_prob(end, model.process, t_end) + total + model.process.chart.log_det(x)


def denoising_bound(model: Model, y: Float[Array, " n *event"], key: Key, cond: Pytree = None) -> Float[jax.Array, " n"]:
    r"""The lower bound of the reverse SDE of a linear-Gaussian process by one call of the model, up to a constant.

    .. math:: \log p(y_0) \ge -\int E\lVert\hat\epsilon(y_t) - \epsilon\rVert^2\,dl
              - \tfrac12\lVert\alpha_Ty_0\rVert^2/\sigma_T^2 + \text{const},\qquad l = \log(\sigma_t/\alpha_t),

    of the law of the model with the noise of ``t_min`` added. The integral is estimated at one ``l`` for each row, spread evenly
    over the rows of the batch. It is for learning by gradients in ``y``, and too noisy for a number.
    Source: Kingma et al. (2021), arXiv 2107.00630, eqs. 11 to 17.

    Args:
        model: a model of a linear-Gaussian process.
        y: clean points of data space, ``(n, *event)``.
        key: PRNG key.
        cond: conditions with leading axis ``n``.
    """
    process = model.process
    require_spec("denoising_bound", LinearGaussian, process=process)
    low, high = (float(-process.log_snr(t) / 2) for t in (process.t_min, process.t_max))
    high = min(high, _FAR)
    y0, n = process.encode(y), len(y)
    key_l, key_noise = jax.random.split(key)
    place = (jax.random.uniform(key_l, (), y0.dtype) + jnp.arange(n, dtype=y0.dtype) / n) % 1.0
    t = process.schedule.time(-2 * (low + (high - low) * place))
    noised = process.noised(jax.random.normal(key_noise, y0.shape, y0.dtype), y0, t)
    prediction = ask(model, noised.y, t, cond)
    require_capabilities("denoising_bound", prediction, (HasNoise,))
    error = prediction.eps - noised.noise
    return -(high - low) * dot(error, error) - 0.5 * math.exp(-2 * high) * dot(y0, y0) + process.chart.log_det(y)
