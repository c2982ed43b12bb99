"""Log-likelihoods over the calls of the network that they take, forwards and in forward mode."""

from __future__ import annotations

from collections.abc import Iterator

import diffrax
import jax
import jax.numpy as jnp

import scorelab as sl
from benchmarks.common import Row, in_turns, model_of


def value(rounds: int, quick: bool) -> Iterator[Row]:
    """``log_likelihood`` with one probe, over as many calls of the network with one product in forward mode in a scan."""
    for name in ("DiT",) if quick else ("MLP", "DiT"):
        model, event, batch, _ = model_of(name)
        batch = min(batch, 64)
        x = 0.5 * jax.random.normal(jax.random.key(0), (batch, *event))
        arguments = dict(probes=1, key=jax.random.key(1), rtol=1e-3, atol=1e-3, solver=diffrax.Heun())
        found = sl.log_likelihood(model, x, **arguments)
        # Every step of Heun's rule calls the field twice; that of the slowest row is walked by all.
        calls = 2 * int(jnp.max(found.steps))
        times = jnp.linspace(0.01, 50.0, calls)

        @jax.jit
        def products(model, y, times=times):
            def body(y, t):
                field = lambda y: model.denoiser.net.apply(model.params, y, t[None])
                out, tangent = jax.jvp(field, (y,), (jnp.ones_like(y),))
                return 0.5 * y + 0.1 * out + 0.01 * tangent, None

            return jax.lax.scan(body, y, times)[0]

        base = f"{calls} products"
        functions = {
            base: lambda products=products, model=model, x=x: products(model, x),
            "log_likelihood": lambda model=model, x=x, arguments=arguments: sl.log_likelihood(model, x, **arguments).log_prob,
        }
        yield from in_turns(functions, max(rounds // 3, 3), base=base, case=f"{{}}: {name}, batch {batch}, one probe")


PARTS = {"value": value}
