"""Ratios of the networks' parts: loop-safe convolution in and out of a scan, GroupNorm, forward times.

Run ``python benchmarks/nets.py``. Every comparison is interleaved round by round in one process; a figure
is the median of the rounds, in wall milliseconds.
"""

import argparse
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
from common import milliseconds, perturbed

from scorelab.models.nets import MLP, DiT, GroupNorm, UNet


def loop_trap(rounds, batch=64, steps=2):
    """Input gradient and training step per evaluation: plain and loop-safe, called directly and in a scan."""
    x = jax.random.normal(jax.random.key(0), (batch, 8, 8, 1))
    c = jnp.zeros(batch)
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
        functions = {}
        for name, net in (("plain", plain), ("safe", plain.clone(loop_safe=True))):
            single, loop = jax.jit(step(net)), scanned(step(net))
            functions[f"{name}, direct"] = lambda f=single: f(init)
            functions[f"{name}, scan"] = lambda f=loop: f(init)
        ms = milliseconds(rounds, **functions)
        ms = {name: t / steps if "scan" in name else t for name, t in ms.items()}
        print(f"{label}, UNet(16, 32) 8x8 batch {batch}: " + "; ".join(f"{n} {t:.1f} ms" for n, t in ms.items()))
        print(
            f"  scan / direct: plain {ms['plain, scan'] / ms['plain, direct']:.2f}, "
            f"safe {ms['safe, scan'] / ms['safe, direct']:.2f}; "
            f"safe in scan / plain direct {ms['safe, scan'] / ms['plain, direct']:.2f}; "
            f"safe / plain direct {ms['safe, direct'] / ms['plain, direct']:.2f}"
        )


def group_norm(rounds):
    """Two-stage GroupNorm against flax's, each followed by silu."""
    for side, channels in ((28, 32), (28, 64), (14, 64), (7, 64)):
        x = jax.random.normal(jax.random.key(0), (16, side, side, channels))
        functions = {}
        for name, norm in (
            ("ours", GroupNorm(channels // 4)),
            ("flax", nn.GroupNorm(channels // 4, epsilon=1e-5)),
        ):
            params = norm.init(jax.random.key(0), x)
            f = jax.jit(lambda p, x, norm=norm: nn.silu(norm.apply(p, x)))
            functions[name] = lambda f=f, params=params: f(params, x)
        ms = milliseconds(5 * rounds, **functions)
        print(
            f"GroupNorm + silu {side}x{side}x{channels} batch 16: ours {ms['ours']:.2f} ms, "
            f"flax {ms['flax']:.2f} ms, "
            f"ratio {ms['ours'] / ms['flax']:.2f}"
        )


def forward(rounds):
    """Forward time, arithmetic and compile time of the networks of the examples."""
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
        ms = milliseconds(2 * rounds, forward=lambda f=compiled, p=params, x=x, c=c: f(p, x, c))["forward"]
        gflop = compiled.cost_analysis()["flops"] / 1e9
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        print(
            f"{name}: batch {batch}, {count} parameters, {ms:.1f} ms, {gflop / batch:.4f} GFLOP per example, "
            f"{1e3 * gflop / ms:.0f} GFLOP/s, compile {seconds:.2f} s"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    forward(rounds)
    group_norm(rounds)
    loop_trap(rounds)
