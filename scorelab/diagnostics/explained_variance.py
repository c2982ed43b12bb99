"""How much of a model's score (or denoised mean) a law in closed form explains, by noise level."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, Pytree
from scorelab.densities import Density
from scorelab.diagnostics.blocks import blocks, require_batch, require_finite, require_leading, standard_error
from scorelab.diagnostics.levels import noise_levels
from scorelab.models.base import Model, ask
from scorelab.models.function import as_pytree
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.randomness import per_example_keys, per_example_normal
from scorelab.validation import require_spec


@dataclass(frozen=True, kw_only=True)
class ExplainedVariance:
    r"""What :func:`explained_variance` returns: float64 arrays ``(k,)``, with :math:`e` the difference, :math:`s` the model.

    Attributes:
        sigmas: the noise ratios.
        mean_of_ratios: :math:`E[1 - |e|^2/|s|^2]`, the published definition; where noise is low, the points at which the
            model's score is small decide it.
        standard_error: of ``mean_of_ratios``, over the points; NaN for a single point.
        ratio_of_means: :math:`1 - E|e|^2/E|s|^2`, on which no single point weighs much.
    """

    sigmas: np.ndarray
    mean_of_ratios: np.ndarray
    standard_error: np.ndarray
    ratio_of_means: np.ndarray


def explained_variance(
    model: Model,
    law: Density | Mapping[str, Density],
    data: Array,
    sigmas: Array,
    *,
    of: Literal["score", "denoised"] = "score",
    cond: Pytree = None,
    key: Key | None = None,
    batch: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> ExplainedVariance | dict[str, ExplainedVariance]:
    r"""The share of a model's score that a law explains, at points of data noised by the model's own process.

    .. math:: \mathrm{EV}(\sigma) = E\Big[1 - \frac{|s_\theta(y) - s_p(y)|^2}{|s_\theta(y)|^2}\Big], \qquad
              y = \alpha y_0 + b + \sigma\epsilon,

    with the scores :math:`s_\theta` of the model and :math:`s_p` of the law: 1 where they are the same, without lower bound.
    With ``of="denoised"`` the denoised means take their place, neither of them centred. Scores are compared as predicted
    noise: :math:`\sigma` cancels, and no digits do.

    Args:
        model: the model.
        law: a law of the data in the chart (or one that the chart knows), or several by name. The model is evaluated once
            per noised point, however many laws there are.
        data: points in data space, ``(n, *event)``.
        sigmas: noise ratios :math:`\sigma/\alpha` ``(k,)``, in the units of the chart: the same for every process.
        of: what is compared, ``"score"`` or ``"denoised"``.
        cond: the model's conditions, with leading axis ``n``.
        key: PRNG key, ``jax.random.key(0)`` by default. Point ``i`` has a noise of its own at each level, which depends on
            the key, ``i`` and the number of the level only.
        batch: points evaluated at once.
        progress: called with (points done, points wanted) after each batch.

    Returns:
        The explained variance, or one for each name.

    Raises:
        ValueError: no data, points of another shape than the law's, noise ratios that the process does not have between
            ``t_min`` and ``t_max``, an argument out of range.
        TypeError: a law that is no :class:`scorelab.densities.Density`, what is no model.

    Source: arXiv 2412.09726.
    """
    laws = dict(law) if isinstance(law, Mapping) else {"law": law}
    data = np.asarray(data)
    n = _check(laws, data, of, cond, batch)
    model = as_pytree("explained_variance", model)
    process = model.process
    require_spec(explained_variance, LinearGaussian, process=process)
    laws = {name: value.in_chart(process.chart) for name, value in laws.items()}
    sigmas, times = noise_levels("explained_variance", process, sigmas)
    keys = [jax.random.fold_in(jax.random.key(0) if key is None else key, k) for k in range(len(times))]

    size = np.empty((len(times), n))
    error = {name: np.empty_like(size) for name in laws}
    done = 0
    for index, count in blocks(n, batch):
        y0 = process.encode(jnp.asarray(data[index], float))
        part = jax.tree.map(lambda c: jnp.asarray(c)[index], cond)
        rows = slice(done, done + count)
        for k, t in enumerate(times):
            y, said, square = _predict(model, keys[k], y0, jnp.asarray(t, y0.dtype), index, part, of=of)
            size[k, rows] = square[:count]
            for name, value in laws.items():
                error[name][k, rows] = _squared_error(value, y, said, jnp.asarray(t, y0.dtype), process=process, of=of)[:count]
        done += count
        if progress is not None:
            progress(done, n)
    found = {name: _summary(sigmas, value, size) for name, value in error.items()}
    return found if isinstance(law, Mapping) else found["law"]


@functools.partial(jax.jit, static_argnames="of")
def _predict(model, key, y0, t, ids, cond, *, of):
    """A noised batch, what the model says about it, and the squared norm of that."""
    y = model.process.noised(per_example_normal(per_example_keys(key, ids), y0), y0, t).y
    prediction = ask(model, y, t, cond)
    said = prediction.eps if of == "score" else prediction.denoised
    return y, said, _squared_norm(said)


@functools.partial(jax.jit, static_argnames=("process", "of"))
def _squared_error(law, y, said, t, *, process, of):
    # A program apart from the model's: another law compiles no network.
    if of == "score":
        return _squared_norm(said + process.sigma(t) * law.noised(process, t).score(y))
    return _squared_norm(said - law.denoise(process, y, t))


def _squared_norm(value: Array) -> Array:
    return jnp.sum(value**2, axis=tuple(range(1, value.ndim)))


def _summary(sigmas: np.ndarray, error: np.ndarray, size: np.ndarray) -> ExplainedVariance:
    with np.errstate(divide="ignore", invalid="ignore"):  # a model that says exactly zero
        share = 1 - error / size
        return ExplainedVariance(
            sigmas=sigmas,
            mean_of_ratios=share.mean(axis=1),
            standard_error=standard_error(share),
            ratio_of_means=1 - error.mean(axis=1) / size.mean(axis=1),
        )


def _check(laws: dict[str, Density], data: np.ndarray, of: str, cond: Pytree, batch: int) -> int:
    if of not in ("score", "denoised"):
        raise ValueError(f"explained_variance.of = {of!r}: expected 'score' or 'denoised'")
    require_batch("explained_variance", batch)
    if not laws:
        raise ValueError("explained_variance.law has no laws: expected at least one")
    for name, law in laws.items():
        if not isinstance(law, Density):
            raise TypeError(f"explained_variance.{name} = {law!r}: expected a Density")
        if data.ndim == 0 or data.shape[1:] != tuple(law.event):
            raise ValueError(f"explained_variance.data has shape {data.shape}: expected (n, *{tuple(law.event)}), as {name} has")
    if len(data) == 0:
        raise ValueError(f"explained_variance.data has shape {data.shape}: expected at least one point")
    require_finite("explained_variance.data", data)
    require_leading("explained_variance", cond, len(data))
    return len(data)
