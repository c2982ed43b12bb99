"""The jump of a teleported start over one call of a network, 28 x 28 images.

The Gaussian has random eigenvectors: its cost depends on the shapes alone. Dispatch of both is included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import EDM, Row, in_turns, perturbed
from scorelab import densities, starts
from scorelab.models.nets import DiT, UNet

EVENT = (28, 28, 1)
NETS = {
    "UNet": UNet(channels=(64, 128, 128), blocks=2, attention=(False, True, True), heads=4),
    "DiT": DiT(),
}


def laws():
    """Name -> Gaussian or mixture of one per class."""
    size = int(np.prod(EVENT))
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    variances = np.geomspace(20.0, 1e-4, size)
    full, low = (densities.Gaussian.low_rank(np.zeros(EVENT), basis[:, :r], variances[:r]) for r in (size, 100))
    return {"full rank": full, "rank 100": low, "10 classes, full": densities.GaussianMixture.of(np.ones(10), [full] * 10)}


def jump(rounds: int, quick: bool) -> Iterator[Row]:
    """One jump over one call, batch 16 and 256."""
    for batch in (16,) if quick else (16, 256):
        y, c = 80 * jax.random.normal(jax.random.key(0), (batch, *EVENT)), jnp.zeros(batch)
        jumps = {}
        for name, law in laws().items():
            label = np.arange(batch) % 10 if isinstance(law, densities.GaussianMixture) else None
            start = starts.Teleport(law, skip_steps=0, label=label, start=starts.Fixed(y), t_from=80.0)
            keys, ids = jax.random.split(jax.random.key(0), batch), jnp.arange(batch)
            draw = jax.jit(lambda start, keys=keys, ids=ids: start.draw(keys, ids, EDM, jnp.float32(13.0), EVENT))
            jumps[name] = lambda draw=draw, start=start: draw(start)
        for name, net in NETS.items():
            params = perturbed(net.init(jax.random.key(1), y[:1], c[:1]))
            apply = jax.jit(lambda params, net=net: net.apply(params, y / 80, c))
            base = f"{name}, batch {batch}"
            functions = {base: lambda apply=apply, params=params: apply(params)} | jumps
            for row in in_turns(functions, rounds, base=base, case=f"{{}}: {base}"):
                # The goal is one of the network that such a start is used with; a small DiT is cheaper than the product itself.
                goal = 0.01 if name == "UNet" and row.case.startswith("full rank") else None
                yield dataclasses.replace(row, goal=goal)


PARTS = {"jump": jump}
