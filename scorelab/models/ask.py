"""The one place in which a model is called: what it answers is checked here, for sampling, training, guidance and distillation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from scorelab.processes.base import Prediction, Process, require_same_process
from scorelab.typing import Array, Model, Pytree, require_shape


def ask(model: Model, y: Array, t: Array | float, cond: Pytree = None, *, process: Process | None = None) -> Prediction:
    """What ``model`` says of ``y`` at ``t``: of the shape of ``y``, in its dtype, about the wanted process.

    A network that computes in bfloat16, or in float32 under x64, is cast to the working precision of ``y``.

    Args:
        model: a model.
        y: ``(batch, *event)`` in the chart.
        t: scalar or ``(batch,)``.
        cond: conditions.
        process: the process that is asked about; None where the caller has none of its own.

    Raises:
        TypeError: the model returned something else than a :class:`scorelab.processes.Prediction`.
        ValueError: a prediction of another shape than ``y``, which would broadcast, or about another process.
    """
    prediction = model(y, t, cond)
    name = model_name(model)
    if not isinstance(prediction, Prediction):
        found = "an array" if hasattr(prediction, "dtype") else f"a {type(prediction).__name__}"
        raise TypeError(
            f"{name} returned {found}: expected a Prediction; a function that returns an array becomes a model by "
            'FunctionModel(fn=..., process=..., returns="denoised")'
        )
    if process is not None:
        require_same_process(name, process=process, model=prediction.process)
    for form in ("denoised", "eps"):
        require_shape(f"{name}: {form}", getattr(prediction, form), y)
    if jnp.shape(prediction.t) not in ((), y.shape[:1]):
        raise ValueError(f"{name}: t has shape {jnp.shape(prediction.t)} for y of shape {y.shape}: expected () or {y.shape[:1]}")
    denoised, eps = (jnp.asarray(value).astype(y.dtype) for value in (prediction.denoised, prediction.eps))
    return dataclasses.replace(prediction, denoised=denoised, eps=eps, t=jnp.asarray(prediction.t, y.dtype))


def model_name(model: Any) -> str:
    """The name of a model for messages: that of its class, or of the function."""
    while isinstance(model, jax.tree_util.Partial):
        model = model.func
    return getattr(model, "__name__", type(model).__name__)
