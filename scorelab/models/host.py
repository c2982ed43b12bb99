"""Functions of another framework as JAX functions: a model that nobody ported, called on the host."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Pytree
from scorelab.callbacks import remembered


@dataclass(frozen=True)
class HostFunction:
    r"""A function ``(y, t, cond)`` of NumPy arrays as one of JAX, for ``FunctionModel(HostFunction(fn), process, returns=...)``.

    It is called through ``jax.pure_callback`` with ``y (batch, *event)``, ``t (batch,)`` and the condition, and returns an array
    shaped like ``y``. It has to be a function of its arguments alone, since JAX may call it again. It must not use JAX itself, nor
    write to what it is given. What it raises arrives as itself, but under an outer ``jit``. Keep the object: with another ``fn`` it
    compiles anew.

    Without ``vjp`` it has no derivative, and what asks for one is refused by name. With it there is reverse mode in ``y``, and
    no forward mode, which likelihoods ask for. Derivatives in ``t`` and in the condition are not known, so they are NaN.

    Attributes:
        fn: the function.
        vjp: ``(y, t, cond, cotangent)`` to the gradient in ``y``, :math:`(\partial f/\partial y)^T v`; None for no derivative.
    """

    fn: Callable[..., Any]
    vjp: Callable[..., Any] | None = field(default=None, kw_only=True)

    def __post_init__(self):
        if not callable(self.fn):
            raise TypeError(f"{type(self).__name__}.fn = {self.fn!r}: expected a function of (y, t, cond)")
        if self.vjp is not None and not callable(self.vjp):
            raise TypeError(f"{type(self).__name__}.vjp = {self.vjp!r}: expected None, or a function of (y, t, cond, cotangent)")

    @property
    def __name__(self) -> str:
        """That of the function, by which messages name a model."""
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    @property
    def differentiable(self) -> bool:
        """Whether it has a derivative in reverse mode."""
        return self.vjp is not None

    def value(self, y: Array, t: Array, cond: Pytree) -> Any:
        """What the function says of numbers on the host."""
        return self.fn(*jax.tree.map(np.asarray, (y, t, cond)))

    def pulled(self, y: Array, t: Array, cond: Pytree, cotangent: Array) -> Any:
        """What ``vjp`` says of numbers on the host."""
        assert self.vjp is not None
        return self.vjp(*jax.tree.map(np.asarray, (y, t, cond, cotangent)))

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> Array:
        """The answer for ``y (batch, *event)``, in the shape and dtype of ``y``."""
        y = jnp.asarray(y)
        t = jnp.broadcast_to(jnp.asarray(t, y.dtype), y.shape[:1])
        return (_differentiable if self.differentiable else _plain)(self, y, t, cond)


def _on_host(owner: HostFunction, method: str, y: Array, *others: Any) -> Array:
    def call(y, *others):
        found = np.asarray(getattr(owner, method)(y, *others))
        name = "fn" if method == "value" else "vjp"
        if found.shape != y.shape or found.dtype.kind not in "iuf":
            raise ValueError(
                f"{type(owner).__name__}.{name} returned {found.dtype} of shape {found.shape}: expected numbers {y.shape}, as y has"
            )
        return found.astype(y.dtype)

    asks = [fn for fn in (owner.fn, owner.vjp) if fn is not None]
    result = jax.ShapeDtypeStruct(y.shape, y.dtype)
    return jax.pure_callback(remembered(call, *asks), result, y, *others, vmap_method="sequential")


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _plain(owner: HostFunction, y: Array, t: Array, cond: Pytree) -> Array:
    return _on_host(owner, "value", y, t, cond)


@_plain.defjvp
def _refused(owner, primals, tangents):
    raise TypeError(
        f"a derivative of {owner.__name__}, a function on the host without one: expected HostFunction(..., vjp=...), "
        "TorchFunction(..., derivative=True), or what asks for no derivative of the model"
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(owner: HostFunction, y: Array, t: Array, cond: Pytree) -> Array:
    return _on_host(owner, "value", y, t, cond)


def _forward(owner, y, t, cond):
    return _on_host(owner, "value", y, t, cond), (y, t, cond)


def _backward(owner, kept, cotangent):
    y, t, cond = kept

    def unknown(value):
        value = jnp.asarray(value)
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            return np.zeros(value.shape, jax.dtypes.float0)
        return jnp.full_like(value, jnp.nan)

    return _on_host(owner, "pulled", y, t, cond, cotangent), unknown(t), jax.tree.map(unknown, cond)


_differentiable.defvjp(_forward, _backward)


@dataclass(frozen=True)
class TorchFunction(HostFunction):
    """A function ``(y, t, cond)`` of torch tensors, such as a module, as one of JAX; ``vjp`` is torch's own reverse mode.

    Tensors are copies of the arrays of JAX, so that the function may work in place. It imports torch when it is first called. See
    :class:`HostFunction` for what holds of both.

    Attributes:
        device: of torch, such as ``"cuda"``, on which the function is called.
        derivative: whether there is one; a function under ``torch.no_grad`` has none.
    """

    device: str = field(default="cpu", kw_only=True)
    derivative: bool = field(default=True, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.device, str):
            raise TypeError(f"TorchFunction.device = {self.device!r}: expected the name of a device, such as 'cpu' or 'cuda'")
        if self.vjp is not None:
            raise TypeError(f"TorchFunction.vjp = {self.vjp!r}: expected None, since torch has its own; HostFunction takes one")

    @property
    def differentiable(self) -> bool:
        """As ``derivative``."""
        return self.derivative

    def value(self, y, t, cond):
        torch = importlib.import_module("torch")
        with torch.no_grad():
            return _back(self.fn(*self._tensors(torch, (y, t, cond))))

    def pulled(self, y, t, cond, cotangent):
        torch = importlib.import_module("torch")
        y, t, cond, cotangent = self._tensors(torch, (y, t, cond, cotangent))
        y = y.detach().requires_grad_(True)
        with torch.enable_grad():
            # A copy, since torch refuses to work in place on what a derivative is asked in.
            out = self.fn(y.clone(), t, cond)
            return _back(torch.autograd.grad(out, y, cotangent.to(out.dtype))[0])

    def _tensors(self, torch: Any, tree: Pytree) -> Any:
        # A tensor of dlpack shares the memory of JAX, which nothing may write to.
        return jax.tree.map(lambda array: torch.from_dlpack(array).to(self.device, copy=True), tree)


def _back(tensor: Any) -> Any:
    return tensor.detach().cpu().numpy()
