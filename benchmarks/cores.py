"""All cores of a CPU: one device of JAX against as many as there are cores, and against torch on all threads.

XLA computes a convolution of the CPU on one thread. ``sl.use_all_cores()`` makes every core a device with a part of the batch.
A ratio of wall seconds means something on a quiet machine alone; the CPU seconds beside it are what the spread costs in all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import scorelab as sl
from benchmarks.common import EDM, NETS, Case, Row, denoiser, drawn, in_turns
from benchmarks.training import Repeated
from scorelab.models import nets

# Batches below, at and above what a research run on two cores has.
SAMPLING = {
    "MLP, 2-D": (NETS["MLP"], (64, 512, 4096)),
    "MLP, 8x8": (Case(nets.MLP(width=512, depth=4), (64,), 128, 20), (16, 128, 1024)),
    "DiT, 28x28": (NETS["DiT"], (1, 4, 16, 64)),
    "UNet, 28x28": (NETS["UNet"], (1, 2, 16, 64)),
}
# name: (network, event, batches, steps in a round)
TRAINING = {
    "MLP, 2-D": (nets.MLP(width=256, depth=4), (2,), (128, 2048), 40),
    "MLP, 8x8": (nets.MLP(width=512, depth=4), (64,), (128, 1024), 20),
    "DiT, 8x8": (nets.DiT(patch=2, width=64, depth=2), (8, 8, 1), (16, 64), 10),
    "UNet, 8x8": (nets.UNet(channels=(16, 32)), (8, 8, 1), (16, 64), 10),
    "UNet, 28x28": (NETS["UNet"].net, (28, 28, 1), (32,), 8),
}
# Sides, channels and features of convolutions in the U-Net of the table.
CONVOLUTIONS = ((28, 32, 32), (28, 96, 32), (14, 64, 64), (7, 128, 64))
PAUSE = 0.02


def sampling(rounds: int, quick: bool) -> Iterator[Row]:
    """A call of ``sample`` on all devices, and on those that "auto" takes, over the call on one."""
    sl.use_all_cores()
    for name, ((net, event, _, steps), batches) in SAMPLING.items():
        model, grid = denoiser(net, event), sl.grids.Karras(steps)
        for batch in batches[:2] if quick else batches:
            yield from _spread(
                f"sampling {name}, batch {batch}", rounds,
                lambda mesh, model=model, shape=(batch, *event), grid=grid: drawn(model, shape, sl.solvers.Heun(), grid, mesh=mesh),
            )  # fmt: skip


def training(rounds: int, quick: bool) -> Iterator[Row]:
    """Steps of ``fit`` on all devices, and on those that "auto" takes, over steps on one."""
    sl.use_all_cores()
    for name, (net, event, batches, steps) in TRAINING.items():
        for batch in batches[:1] if quick else batches:
            learner, data = _learner(net, sl.training.EMA()), Repeated(event, batch)
            yield from _spread(
                f"training {name}, batch {batch}", rounds,
                lambda mesh, learner=learner, data=data, steps=steps: _continued(learner, data, steps, mesh),
            )  # fmt: skip


def _learner(net: Any, ema: Any = None) -> Any:
    loss = sl.losses.DenoisingScoreMatching(EDM)
    return sl.training.ScoreLearner(sl.models.Denoiser(net=net, process=EDM), loss, optax.adam(1e-4), ema=ema)


def _continued(learner: Any, data: Any, steps: int, mesh: Any) -> Callable[[], Any]:
    """Some more steps of a training at every call."""
    state = None

    def run():
        nonlocal state
        done = 0 if state is None else int(state.step)
        state = sl.training.fit(learner, data, steps=done + steps, key=jax.random.key(0), state=state, mesh=mesh)
        return state.params

    return run


def _spread(case: str, rounds: int, made: Callable[[Any], Callable[[], Any]]) -> Iterator[Row]:
    """Rows of all devices over one, and how many "auto" takes: it has one of the two programs where there are two devices."""
    one, every = sl.training.data_mesh(jax.devices()[:1]), sl.training.data_mesh()
    functions = {"one device": made(one), f"{every.size} devices": made(every)}
    for row in in_turns(functions, rounds, base="one device"):
        yield dataclasses.replace(row, case=f"{case}, {row.case}")
    yield Row.of(f'{case}, mesh="auto"', jax.tree.leaves(made("auto")())[0].sharding.num_devices, "devices")


def _convolved(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _shifts(x):
    """The nine shifts of 3 x 3 taps, (batch, height, width, channels) each."""
    side = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + side, j : j + side] for i in range(3) for j in range(3)]


def _columns(x):
    return jnp.concatenate(_shifts(x), -1).reshape(-1, 9 * x.shape[-1])


FORWARD = {
    "columns and one product (im2col)": lambda x, w: (_columns(x) @ w.reshape(-1, w.shape[-1])).reshape(*x.shape[:-1], -1),
    "nine products": lambda x, w: sum(s @ w[i // 3, i % 3] for i, s in enumerate(_shifts(x))),
    "the batch in two": lambda x, w: jnp.concatenate([_convolved(part, w) for part in jnp.split(x, 2)]),
}
WEIGHTS = {
    "columns and one product (im2col)": lambda x, dy: _columns(x).T @ dy.reshape(-1, dy.shape[-1]),
    "nine products": lambda x, dy: jnp.stack([jnp.einsum("nhwc,nhwo->co", s, dy) for s in _shifts(x)]),
    "columns of two images at a time": lambda x, dy: lax.scan(
        lambda total, pair: (total + _columns(pair[0]).T @ pair[1].reshape(-1, dy.shape[-1]), None),
        jnp.zeros((9 * x.shape[-1], dy.shape[-1])), (x.reshape(-1, 2, *x.shape[1:]), dy.reshape(-1, 2, *dy.shape[1:])),
    )[0],
}  # fmt: skip


def alternatives(rounds: int, quick: bool) -> Iterator[Row]:
    """Other ways to compute a 3 x 3 convolution and the gradient of its kernel on one device, over what XLA does."""
    for side, channels, features in CONVOLUTIONS[:1] if quick else CONVOLUTIONS:
        x, w, dy = _operands(side, channels, features)
        gradient = lambda x, dy, w=w: jax.vjp(lambda w: _convolved(x, w), w)[1](dy)[0]
        for what, ours, others, arguments in (("forward", _convolved, FORWARD, (x, w)), ("kernel", gradient, WEIGHTS, (x, dy))):
            functions = {"XLA": ours} | others
            compiled = {name: jax.jit(function) for name, function in functions.items()}
            expected = np.ravel(ours(*arguments))
            for name, function in compiled.items():
                difference = np.abs(np.ravel(function(*arguments)) - expected).max() / np.abs(expected).max()
                if not difference < 1e-4:
                    raise AssertionError(f"{what}, {name}: differs by {difference:.1e}")
            calls = {name: (lambda f=f, a=arguments: f(*a)) for name, f in compiled.items()}
            yield from in_turns(calls, rounds, base="XLA", case=f"{what} {side}x{side}, {channels} to {features}: {{}}")


def _operands(side: int, channels: int, features: int, batch: int = 16) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (batch, side, side, channels), (3, 3, channels, features), (batch, side, side, features)
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def convolutions(rounds: int, quick: bool) -> Iterator[Row]:
    """Every convolution of a training step over torch's: CPU seconds compare the kernels, and wall seconds the threads."""
    import torch

    torch.set_num_threads(sl.devices.cores())
    for side, channels, features in CONVOLUTIONS[:1] if quick else CONVOLUTIONS:
        x, w, dy = _operands(side, channels, features)
        last = torch.channels_last
        tx, tdy = (torch.tensor(np.array(a)).movedim(-1, 1).contiguous(memory_format=last) for a in (x, dy))
        tw = torch.tensor(np.array(w).transpose(3, 2, 0, 1).copy()).contiguous(memory_format=last)

        def backward(mask, tx=tx, tw=tw, tdy=tdy):
            return torch.ops.aten.convolution_backward(tdy, tx, tw, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, [*mask, False])

        parts = {
            "forward": (jax.jit(_convolved), (x, w), lambda tx=tx, tw=tw: torch.nn.functional.conv2d(tx, tw, padding=1)),
            "gradient of the input": (
                jax.jit(lambda x, w, dy: jax.vjp(lambda x: _convolved(x, w), x)[1](dy)[0]), (x, w, dy),
                lambda backward=backward: backward((True, False)),
            ),
            "gradient of the kernel": (
                jax.jit(lambda x, w, dy: jax.vjp(lambda w: _convolved(x, w), w)[1](dy)[0]), (x, w, dy),
                lambda backward=backward: backward((False, True)),
            ),
        }  # fmt: skip
        for what, (ours, arguments, theirs) in parts.items():
            functions = {"torch": theirs, "XLA": lambda ours=ours, arguments=arguments: ours(*arguments)}
            yield from in_turns(functions, rounds, base="torch", case=f"{what} {side}x{side}, {channels} to {features}: {{}}")


def torch(rounds: int, quick: bool) -> Iterator[Row]:
    """Training the U-Net by ``fit`` on all cores over torch on all threads: the same weights, batch, loss, clipping and Adam.

    Before it is timed, the gradients of both networks have to agree.
    """
    # First of all: the C library keeps the arenas that the threads of torch have made by then.
    sl.use_all_cores()
    import torch

    from benchmarks.torch_peers import to_torch, torch_network, torch_weight

    torch.set_num_threads(sl.devices.cores())
    net, event, _, _ = NETS["UNet"]
    model, (_, _, batches, steps) = denoiser(net, event), TRAINING["UNet, 28x28"]
    batch, std = batches[0], 0.5
    peer = torch_network(model, event).train().requires_grad_(True)
    data, learner = Repeated(event, batch), _learner(net)
    _require_gradients(model, peer, data.at(0)["x"], to_torch, torch_weight)
    optimizer = torch.optim.Adam(peer.parameters(), lr=1e-4, fused=True)
    batches = [to_torch(b["x"]) for b in data.batches]

    def theirs():
        for i in range(steps):
            x = batches[i % len(batches)]
            sigma = torch.exp(1.2 * torch.randn(batch, 1, 1, 1) - 1.2)
            y, root = x + sigma * torch.randn_like(x), (sigma**2 + std**2).sqrt()
            out = peer(y / root, sigma.flatten().log() / 4)
            # The EDM loss, whose weight turns the error of D into that of the network.
            loss = ((out - (x - (std / root) ** 2 * y) * root / (sigma * std)) ** 2).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizer.step()
        return float(loss.detach())

    ours = _continued(learner, data, steps, "auto")
    functions = {"torch": theirs, "scorelab": ours}
    for row in in_turns(functions, rounds, base="torch", calls=dict.fromkeys(functions, steps), goal=0.8, pause=PAUSE):
        yield dataclasses.replace(row, case=f"training UNet, 28x28, batch {batch}, all cores over torch on all threads")


def _require_gradients(model: Any, peer: Any, x: np.ndarray, to_torch: Callable, torch_weight: Callable) -> None:
    """Raise unless the gradients of the mean square of the outputs agree to 1e-3 of the largest."""
    from flax.traverse_util import flatten_dict

    from benchmarks.torch_peers import torch_name

    c_noise = np.linspace(-1, 1, len(x), dtype=np.float32)
    square = lambda params: jnp.mean(model.denoiser.net.apply(params, x, c_noise) ** 2)
    ours = flatten_dict(jax.jit(jax.grad(square))(model.params)["params"])
    (peer(to_torch(x), to_torch(c_noise)) ** 2).mean().backward()
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters()}
    largest = max(float(np.abs(leaf).max()) for leaf in ours.values())
    for path, leaf in ours.items():
        difference = float(np.abs(torch_weight(leaf).numpy() - theirs[torch_name(path)].numpy()).max())
        if not difference <= 1e-3 * largest:
            raise AssertionError(f"gradients of {'/'.join(path)} differ by {difference:.1e} of {largest:.1e}")
    peer.zero_grad()


PARTS = {
    "sampling": sampling, "training": training, "alternatives": alternatives, "convolutions": convolutions, "torch": torch,
}  # fmt: skip
