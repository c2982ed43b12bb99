"""What random numbers cost: a key for each sample over one for all, other generators, and draws that count without keys.

Noise for one step of a sampler, for points as of the networks of the table. Here a sample draws from a key of its own, so that it
does not depend on the batch. The counting draws keep that by other means: the bits of an element are a function of the
key of the row, the id of the sample, and the number of the element.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

from benchmarks.common import NETS, Row, in_turns
from scorelab.randomness import per_example_keys, per_example_normal

STEPS = 20


def counted(key: Any, ids: Any, event: tuple[int, ...]) -> Any:
    """Standard normal noise ``(batch, *event)`` whose bits are Threefry of the words (id, number of a pair of elements)."""
    size = math.prod(event)
    pairs = -(-size // 2)
    words = (*jax.random.key_data(key), ids.astype(jnp.uint32)[:, None], jnp.arange(pairs, dtype=jnp.uint32))
    first, second = threefry2x32_p.bind(*(jnp.broadcast_to(word, (len(ids), pairs)) for word in words))
    bits = jnp.stack([first, second], axis=-1).reshape(len(ids), 2 * pairs)[:, :size]
    # In (-1, 1), the midpoints of 2^23 parts: the ends would be infinite.
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-22 - 1.0
    return (math.sqrt(2) * jax.lax.erf_inv(uniform)).reshape(len(ids), *event)


def ways(event: tuple[int, ...], batch: int) -> dict[str, tuple[str, Callable[[Any, Any], Any]]]:
    """Name -> the generator, and the noise of a row from its key and the ids."""
    like = jnp.zeros((batch, *event))
    own = lambda key, ids: per_example_normal(per_example_keys(key, ids), like)
    words = lambda key, ids: jax.random.key_data(per_example_keys(key, ids))[:, 0]
    keys = lambda key, ids: like + words(key, ids).astype(jnp.float32).reshape(-1, *[1] * len(event))
    one = lambda key, ids: jax.random.normal(key, like.shape)
    return {
        "one key": ("threefry2x32", one),
        "a key for each sample": ("threefry2x32", own),
        "the keys alone": ("threefry2x32", keys),
        "counting": ("threefry2x32", lambda key, ids: counted(key, ids, event)),
        "rbg, one key": ("rbg", one),
        "rbg, a key for each sample": ("rbg", own),
        "unsafe_rbg, one key": ("unsafe_rbg", one),
    }


def draws(rounds: int, quick: bool) -> Iterator[Row]:
    """Noise of twenty rows in a scan, over that of one key for the batch."""
    for name in ("MLP",) if quick else NETS:
        _, event, batch, _ = NETS[name]
        functions = {}
        for title, (kind, noise) in ways(event, batch).items():

            @jax.jit
            def run(key, ids, noise=noise, shape=(batch, *event)):
                # The sum keeps the noise from being left out, and costs less than any of it.
                def body(total, row):
                    return total + noise(jax.random.fold_in(key, row), ids), None

                return jax.lax.scan(body, jnp.zeros(shape), jnp.arange(STEPS))[0]

            key, ids = jax.random.key(0, impl=kind), jnp.arange(batch)
            functions[title] = lambda run=run, key=key, ids=ids: run(key, ids)
        yield from in_turns(functions, rounds, base="one key", case=f"{{}}: {name}, batch {batch}")


def compiling(rounds: int, quick: bool) -> Iterator[Row]:
    """Seconds to compile the noise of one row."""
    _, event, batch, _ = NETS["MLP" if quick else "DiT"]
    for title, (kind, noise) in ways(event, batch).items():
        key, ids = jax.random.key(0, impl=kind), jnp.arange(batch)
        seconds = []
        for _ in range(1 if quick else 3):
            jax.clear_caches()
            began = time.perf_counter()
            jax.jit(noise).lower(key, ids).compile()
            seconds.append(time.perf_counter() - began)
        low, value, high = np.quantile(seconds, [0.0, 0.5, 1.0])
        yield Row(f"compile: {title}", value, low, high, "s")


PARTS = {"draws": draws, "compiling": compiling}
