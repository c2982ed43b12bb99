"""Parts of the networks: convolutions with a backward pass for loops, GroupNorm, forward times, bfloat16, energies."""

from __future__ import annotations

import time
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

import scorelab as sl
from benchmarks.common import EDM, NETS, Row, denoiser, drawn, in_turns, interleaved, perturbed
from scorelab.models.nets import MLP, DiT, GroupNorm, UNet


def loops(rounds: int, quick: bool) -> Iterator[Row]:
    """Input gradient and training step of plain and loop-safe convolutions, in a scan and not, over plain ones called directly."""
    batch, steps = 64, 2
    x, c = jax.random.normal(jax.random.key(0), (batch, 8, 8, 1)), jnp.zeros(batch)
    plain = UNet(channels=(16, 32), attention=())
    params = perturbed(plain.init(jax.random.key(1), x, c))

    def loss(net):
        return lambda params, x: jnp.mean((net.apply(params, x, c) - 1.0) ** 2)

    def input_step(net):
        return lambda x: x - jax.grad(loss(net), 1)(params, x)

    def train_step(net):
        return lambda p: jax.tree.map(lambda a, g: a - 1e-3 * g, p, jax.grad(loss(net))(p, x))

    def scanned(step):
        return jax.jit(lambda init: jax.lax.scan(lambda s, _: (step(s), None), init, None, length=steps)[0])

    for label, step, init in (("input gradient", input_step, x), ("training step", train_step, params)):
        functions, calls = {}, {}
        for name, net in (("plain", plain), ("loop-safe", plain.clone(loop_safe=True))):
            single, loop = jax.jit(step(net)), scanned(step(net))
            functions[f"{name}, direct"] = lambda f=single, init=init: f(init)
            functions[f"{name}, in a scan"] = lambda f=loop, init=init: f(init)
            calls |= {f"{name}, direct": 1, f"{name}, in a scan": steps}
        yield from in_turns(
            functions,
            max(rounds // 3, 3),
            base="plain, direct",
            calls=calls,
            case=f"{label}, {{}}: UNet(16, 32), 8x8, batch {batch}",
        )


def norms(rounds: int, quick: bool) -> Iterator[Row]:
    """The two-stage GroupNorm over that of Flax, each with silu behind it."""
    for side, channels in ((28, 32), (28, 64), (14, 64), (7, 64)):
        x = jax.random.normal(jax.random.key(0), (16, side, side, channels))
        functions = {}
        for name, norm in (("Flax", nn.GroupNorm(channels // 4, epsilon=1e-5)), ("GroupNorm", GroupNorm(channels // 4))):
            params = norm.init(jax.random.key(0), x)
            f = jax.jit(lambda p, x, norm=norm: nn.silu(norm.apply(p, x)))
            functions[name] = lambda f=f, params=params, x=x: f(params, x)
        yield from in_turns(functions, 3 * rounds, base="Flax", goal=1.0, case=f"{{}} and silu: {side}x{side}x{channels}, batch 16")


def forward(rounds: int, quick: bool) -> Iterator[Row]:
    """Milliseconds of a call, with the arithmetic that it does."""
    cases = (
        ("UNet(32, 64, 64), no attention, 28x28", UNet(attention=()), 16, (28, 28, 1)),
        ("UNet(16, 32, 32), 28x28", UNet(channels=(16, 32, 32)), 16, (28, 28, 1)),
        ("DiT(7, 128, 3), 28x28", DiT(), 16, (28, 28, 1)),
        ("MLP(512, 4), 8x8", MLP(width=512), 128, (8, 8, 1)),
        ("MLP(256, 4), 2-D", MLP(), 512, (2,)),
    )
    for name, net, batch, event in cases:
        x, c = jax.random.normal(jax.random.key(0), (batch, *event)), jnp.zeros(batch)
        params = net.init(jax.random.key(1), x, c)
        start = time.perf_counter()
        compiled = jax.jit(net.apply).lower(params, x, c).compile()
        seconds = time.perf_counter() - start
        wall, _ = interleaved({"forward": lambda f=compiled, p=params, x=x, c=c: f(p, x, c)}, rounds)
        low, value, high = jnp.quantile(jnp.array(wall["forward"]), jnp.array([0.25, 0.5, 0.75])) * 1e3
        gflop = compiled.cost_analysis()["flops"] / 1e9
        said = f"{gflop / batch:.4f} GFLOP a sample, {1e3 * gflop / float(value):.0f} GFLOP/s, {seconds:.2f} s to compile"
        yield Row(f"{name}, batch {batch}", float(value), float(low), float(high), "ms", base=said)


def bfloat16(rounds: int, quick: bool) -> Iterator[Row]:
    """Networks in bfloat16 over the same in float32, with the same parameters: a call, and the gradient of a training step."""
    for name, (net, event, batch, _) in NETS.items():
        x, c = jax.random.normal(jax.random.key(0), (batch, *event)), jnp.zeros(batch)
        params = perturbed(net.init(jax.random.key(1), x, c))
        for label, derive in (("forward", lambda loss: loss), ("gradient", jax.grad)):
            functions = {}
            for dtype in ("float32", "bfloat16"):
                one = net.clone(dtype=dtype)
                f = jax.jit(derive(lambda p, x, c, one=one: jnp.mean((one.apply(p, x, c) - 1.0) ** 2)))
                functions[dtype] = lambda f=f, params=params, x=x, c=c: f(params, x, c)
            yield from in_turns(functions, rounds, base="float32", case=f"{label} in {{}}: {name}, batch {batch}")


def energy(rounds: int, quick: bool) -> Iterator[Row]:
    """A sampling step and a training step of an energy over those of the denoiser with the same network and parameters."""
    loss = sl.losses.DenoisingScoreMatching(EDM)
    for name, (net, event, batch, steps) in NETS.items():
        free = denoiser(net, event)
        models = {"denoiser": free, "energy": sl.models.Energy(net=net, process=EDM, data_std=0.5).bind(free.params)}
        case = f"{{}}: {name}, batch {batch}"
        walks = {
            kind: drawn(model, (batch, *event), sl.solvers.DDIM(), sl.grids.Karras(min(steps, 4) if quick else steps))
            for kind, model in models.items()
        }
        yield from in_turns(walks, rounds, base="denoiser", goal=3.2, case=f"sampling step of an {case}")

        def step(spec):
            def update(params, key, x):
                noised = loss.draw(key, {"x": x})
                mean = lambda p: jnp.mean(loss.error(spec.bind(p, dropout=key), noised))
                return jax.tree.map(lambda p, g: p - 1e-3 * g, params, jax.grad(mean)(params))

            compiled, x = jax.jit(update), jax.random.normal(jax.random.key(2), (batch, *event))
            return lambda: compiled(free.params, jax.random.key(1), x)

        yield from in_turns(
            {kind: step(model.denoiser) for kind, model in models.items()},
            max(rounds // 2, 3),
            base="denoiser",
            case=f"training step of an {case}",
        )


PARTS = {"forward": forward, "norms": norms, "loops": loops, "bfloat16": bfloat16, "energy": energy}
