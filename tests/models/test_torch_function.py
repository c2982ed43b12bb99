"""Functions of another framework as models: what they answer, their derivative, and what is refused."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import sample
from scorelab.densities import Gaussian as Law
from scorelab.grids import Karras
from scorelab.models import ExactModel, FunctionModel, HostFunction, TorchFunction
from scorelab.models.base import ask
from scorelab.processes import Gaussian
from scorelab.schedules import EDM
from scorelab.solvers import Heun

PROCESS = Gaussian(schedule=EDM())
MEAN, VAR = np.float32([0.5, -0.3]), np.float32(0.36)
pytestmark = pytest.mark.usefixtures("quick_compilation")


def denoised(y, t, cond):
    """That of a Gaussian law, in NumPy."""
    assert type(y) is np.ndarray
    assert t.shape == y.shape[:1]
    gain = VAR / (VAR + t[:, None] ** 2)
    shift = 0 if cond is None else cond[:, None]
    return MEAN + shift + gain * (y - MEAN - shift)


def pulled(y, t, cond, cotangent):
    return VAR / (VAR + t[:, None] ** 2) * cotangent


EXACT = ExactModel(Law(MEAN, VAR), PROCESS)


def test_samples_are_those_of_the_same_function_in_jax():
    draw = lambda model: sample(model, solver=Heun(), grid=Karras(steps=5), key=jax.random.key(0), shape=(6, 2)).x
    # Float32 in another order.
    np.testing.assert_allclose(draw(FunctionModel(HostFunction(denoised), PROCESS)), draw(EXACT), rtol=1e-4, atol=1e-5)


def test_conditions_arrive_and_vmap_maps():
    fn = HostFunction(denoised)
    y, t, cond = np.ones((3, 2), np.float32), np.float32(0.5), np.float32([0, 1, 2])
    wanted = denoised(y, np.broadcast_to(t, 3), cond)
    np.testing.assert_allclose(jax.jit(fn)(y, t, cond), wanted, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda y: fn(y, t, cond))(np.stack([y, y]))[1], wanted, rtol=1e-6)
    found = ask(FunctionModel(fn, PROCESS), jnp.asarray(y), t, jnp.asarray(cond))
    np.testing.assert_allclose(found.denoised, wanted, rtol=1e-6)


def test_a_derivative_that_is_given_is_used_and_one_that_is_not_is_refused():
    y, t = jnp.array([[0.2, 1.0], [3.0, -2.0]], jnp.float32), jnp.float32(0.7)
    loss = lambda fn: lambda y, t: jnp.sum(fn(y, t) ** 2)
    exact = lambda y, t: EXACT(y, t).denoised
    given = HostFunction(denoised, vjp=pulled)
    np.testing.assert_allclose(jax.grad(loss(given))(y, t), jax.grad(loss(exact))(y, t), rtol=1e-5)
    # Of the time nothing is known.
    assert np.isnan(jax.grad(loss(given), argnums=1)(y, t))
    with pytest.raises(TypeError, match="a derivative of denoised, a function on the host without one"):
        jax.grad(loss(HostFunction(denoised)))(y, t)
    # Inside a loop and compiled, as guidance asks for it.
    steps = lambda fn: jax.jit(lambda y: jax.lax.scan(lambda y, _: (jax.grad(loss(fn))(y, t), None), y, length=3)[0])(y)
    np.testing.assert_allclose(steps(given), steps(exact), rtol=1e-5)
    # There is no forward mode, which likelihoods ask for.
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda y: given(y, t), (y,), (y,))


def test_wrong_answers_and_errors_arrive_by_name():
    y = np.ones((3, 2), np.float32)

    def fails(y, t, cond):
        raise KeyError("weights of mine")

    from scorelab.callbacks import own_errors

    for fn, error, match in (
        (lambda y, t, cond: y[:1], ValueError, r"HostFunction\.fn returned float32 of shape \(1, 2\): expected numbers \(3, 2\)"),
        (lambda y, t, cond: y.astype(complex), ValueError, "returned complex128"),
        (fails, KeyError, "weights of mine"),
    ):
        with pytest.raises(error, match=match), own_errors():
            jax.block_until_ready(HostFunction(fn)(y, 0.5))
    with pytest.raises(TypeError, match=r"HostFunction\.fn = 3: expected a function"):
        HostFunction(3)
    with pytest.raises(TypeError, match=r"HostFunction\.vjp = 3"):
        HostFunction(denoised, vjp=3)
    with pytest.raises(TypeError, match=r"TorchFunction\.vjp = .*torch has its own"):
        TorchFunction(denoised, vjp=pulled)
    with pytest.raises(TypeError, match=r"TorchFunction\.device = 0"):
        TorchFunction(denoised, device=0)


class Tensor:
    """What the adapter asks of a tensor of torch, over NumPy."""

    def __init__(self, array):
        self.array = np.asarray(array)

    dtype = property(lambda self: self.array.dtype)

    def to(self, where, copy=False):
        return Tensor(self.array.copy()) if copy else self

    def clone(self):
        return self.to(None, copy=True)

    detach = cpu = lambda self: self

    def requires_grad_(self, wanted):
        return self

    def numpy(self):
        return self.array


def test_tensors_go_there_and_back_by_dlpack(monkeypatch):
    """With a stand-in of torch; ``tests/pretrained/test_own.py`` has the real one where it is installed."""
    seen = []

    class Mode:
        def __enter__(self):
            return None

        def __exit__(self, *error):
            return None

    def from_dlpack(array):
        seen.append(type(array))
        return Tensor(array)

    def grad(out, y, cotangent):
        t = np.full(len(y.array), 0.7, np.float32)
        return (Tensor(pulled(y.array, t, None, cotangent.array)),)

    torch = types.ModuleType("torch")
    torch.no_grad = torch.enable_grad = Mode
    torch.from_dlpack, torch.autograd = from_dlpack, types.SimpleNamespace(grad=grad)
    monkeypatch.setitem(sys.modules, "torch", torch)
    fn = TorchFunction(lambda y, t, cond: Tensor(denoised(y.array, t.array, None)))
    y = jnp.ones((3, 2), jnp.float32)
    np.testing.assert_allclose(fn(y, 0.7), EXACT(y, 0.7).denoised, rtol=1e-6)
    assert seen
    assert np.ndarray not in seen

    def in_place(y, t, cond):
        """As ``ReLU(inplace=True)`` does."""
        y.array *= 0
        return Tensor(y.array + 1)

    doubled, kept = jax.jit(lambda y: (TorchFunction(in_place)(y, 0.7), y))(y)
    np.testing.assert_array_equal([doubled, kept, y], np.ones((3, 3, 2)))
    gradient = jax.grad(lambda y: fn(y, 0.7).sum())(y)
    np.testing.assert_allclose(gradient, jax.grad(lambda y: EXACT(y, 0.7).denoised.sum())(y), rtol=1e-6)
    with pytest.raises(TypeError, match="without one"):
        jax.grad(lambda y: TorchFunction(fn.fn, derivative=False)(y, 0.7).sum())(y)
