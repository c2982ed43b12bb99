r"""Log-likelihood by the probability flow: change of variables along :math:`dy/dt = v(y, t)`, solved by diffrax.

.. math:: \log p_X(x) = \log p_T(y_T) + \int_{t_{\min}}^{T}\nabla\!\cdot v(y_t, t)\,dt + \log|\det\partial y/\partial x| .

The flow starts at ``t_min``, so the result is the density of the data noised to ``t_min`` (its noise is below the
data's own scale on every schedule), and ends at the law of a :class:`scorelab.starts.Start` at ``t_max``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Protocol

import diffrax
import jax
import jax.numpy as jnp
from einops import rearrange

from scorelab.processes.base import Process
from scorelab.starts import Prior, Start
from scorelab.typing import Array, Key, Model, Pytree, is_model_pytree, per_example_keys, require_int, require_positive

# Directions of the exact divergence pushed through the model at once.
DIVERGENCE_BLOCK = 16


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """What :func:`log_likelihood` returns.

    Attributes:
        log_prob: log density in data space, nats, ``(n,)``.
        latent: the flow's end points ``y_T``, ``(n, *event)``.
        steps: accepted and rejected solver steps.
        probes: Hutchinson probes behind each divergence; 0 means that it is exact.
    """

    log_prob: Array
    latent: Array
    steps: Array
    probes: int


class Dequantiser(Protocol):
    """The named transform that bits/dim is computed through (see :class:`scorelab.data.Pixels`)."""

    def dequantise(self, key: Key, x: Array) -> Array:
        """Integer levels to continuous values of the data space."""
        ...

    def bits_per_dim(self, log_prob: Array, event_shape: tuple[int, ...]) -> Array:
        """Nats of the continuous density to bits per dimension of the levels."""
        ...


def log_likelihood(
    model: Model,
    process: Process,
    x: Array,
    *,
    probes: int = 0,
    key: Key | None = None,
    start: Start | None = None,
    cond: Pytree = None,
    t_min: float | None = None,
    t_max: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: Any = None,
    max_steps: int = 4096,
) -> Likelihood:
    """Log-likelihood of data points under a model's probability flow.

    Args:
        model: a model pytree or function.
        process: the forward process.
        x: data, ``(n, *event)``.
        probes: 0 for the exact divergence (one forward-mode product per dimension), else the number of Rademacher
            probes of Hutchinson's unbiased estimate, held fixed along the flow (Grathwohl et al. 2019).
        key: PRNG key for the probes.
        start: the law at ``t_max``; :class:`scorelab.starts.Prior` by default.
        cond: conditions with leading axis ``n``.
        t_min: where the flow starts; the process's own by default.
        t_max: where it ends; the process's own by default.
        rtol: relative tolerance of the adaptive solver.
        atol: absolute tolerance.
        solver: a diffrax ODE solver, ``diffrax.Tsit5()`` by default.
        max_steps: solver steps allowed.

    Raises:
        ValueError: probes without a key, or data outside the domain of the chart.
        RuntimeError: the solver did not reach ``t_max``.
    """
    require_int(log_likelihood, 0, probes=probes)
    require_positive(log_likelihood, rtol=rtol, atol=atol)
    if probes and key is None:
        raise ValueError(f"log_likelihood.key = None: Hutchinson's estimate with probes = {probes} needs a PRNG key")
    if not is_model_pytree(model):
        model = jax.tree_util.Partial(model)
    t0, t1 = (process.t_min if t_min is None else t_min), (process.t_max if t_max is None else t_max)
    x = jnp.asarray(x, jnp.result_type(float))
    log_prob, latent, steps, done = _flow(
        model, Prior() if start is None else start, x, process.encode(x), key, cond,
        jnp.asarray(t0, x.dtype), jnp.asarray(t1, x.dtype), rtol, atol,
        process=process, probes=probes, solver=solver or diffrax.Tsit5(), max_steps=max_steps,
    )  # fmt: skip
    if not isinstance(done, jax.core.Tracer) and not bool(done):
        raise RuntimeError(
            f"the probability flow did not reach t = {t1} within max_steps = {max_steps}: raise it, or loosen rtol = {rtol}"
        )
    return Likelihood(log_prob=log_prob, latent=latent, steps=steps, probes=probes)


def bits_per_dim(
    model: Model, process: Process, levels: Array, transform: Dequantiser, *, key: Key, **options: Any
) -> tuple[Array, Likelihood]:
    """Bits per dimension of integer data: dequantise, take the log-likelihood, convert by the transform's Jacobian.

    Args:
        model: a model trained on the transform's scale.
        process: the forward process.
        levels: integer data, ``(n, *event)`` uint8.
        transform: for instance ``scorelab.data.Pixels(levels=256)``.
        key: PRNG key of the dequantisation noise and of Hutchinson probes.
        options: the other arguments of :func:`log_likelihood`.

    Returns:
        bits per dimension ``(n,)``, an upper bound in expectation over the dequantisation noise, and the likelihood.
    """
    key_noise, key_probes = jax.random.split(key)
    result = log_likelihood(model, process, transform.dequantise(key_noise, levels), key=key_probes, **options)
    return transform.bits_per_dim(result.log_prob, tuple(jnp.shape(levels)[1:])), result


@functools.partial(jax.jit, static_argnames=("process", "probes", "solver", "max_steps"))
def _flow(model, start, x, y0, key, cond, t0, t1, rtol, atol, *, process, probes, solver, max_steps):
    def velocity(t):
        return lambda y: model(y, t, cond).velocity.astype(y.dtype)

    if probes:
        keys = per_example_keys(key, jnp.arange(len(y0)))
        signs = jax.vmap(lambda k: jax.random.rademacher(k, (probes, *y0.shape[1:]), y0.dtype), out_axes=1)(keys)

        def divergence(fn, y):
            products = jax.lax.map(lambda v: _per_example_dot(v, jax.jvp(fn, (y,), (v,))[1]), signs)
            return jnp.mean(products, axis=0)
    else:
        size = math.prod(y0.shape[1:])

        def divergence(fn, y):
            def along(i):
                # Examples do not interact, so one product gives entry (i, i) of every example's Jacobian at once.
                unit = jnp.zeros((size,), y.dtype).at[i].set(1.0)
                unit = jnp.broadcast_to(unit.reshape(y.shape[1:]), y.shape)
                return _per_example_dot(unit, jax.jvp(fn, (y,), (unit,))[1])

            return jnp.sum(jax.lax.map(along, jnp.arange(size), batch_size=min(size, DIVERGENCE_BLOCK)), axis=0)

    def field(t, state, args):
        y, _ = state
        fn = velocity(t)
        return fn(y), divergence(fn, y)

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        t0=t0,
        t1=t1,
        dt0=None,
        y0=(y0, jnp.zeros(len(y0), y0.dtype)),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
        adjoint=diffrax.ForwardMode(),
        throw=False,
    )
    latent, volume = jax.tree.map(lambda leaf: leaf[0], solution.ys)
    log_prob = start.log_prob(latent, process, t1) + volume + process.chart.log_det(x)
    done = solution.result == diffrax.RESULTS.successful
    return log_prob, latent, solution.stats["num_steps"], done


def _per_example_dot(a: Array, b: Array) -> Array:
    return jnp.sum(rearrange(a * b, "n ... -> n (...)"), axis=-1)
