"""The jump of a teleported start against one evaluation of a network, on 28x28 images.

Run ``python benchmarks/teleport.py``. The comparison is interleaved round by round in one process; a figure is the median of
the rounds, in wall milliseconds. The Gaussian has random eigenvectors: its cost depends on the shapes alone.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from common import milliseconds, perturbed

from scorelab import densities, processes, schedules, starts
from scorelab.models.nets import DiT, UNet

EVENT = (28, 28, 1)
NETS = {
    "UNet (mnist/edm_cpu)": UNet(channels=(16, 32, 32), blocks=1, attention=(False, False, True)),
    "UNet (mnist/edm)": UNet(channels=(64, 128, 128), blocks=2, attention=(False, True, True), heads=4),
    "DiT": DiT(),
}


def laws():
    """Name -> Gaussian or mixture of one per class."""
    size = int(np.prod(EVENT))
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    variances = np.geomspace(20.0, 1e-4, size)
    full, low = (densities.Gaussian.low_rank(np.zeros(EVENT), basis[:, :r], variances[:r]) for r in (size, 100))
    return {"full rank": full, "rank 100": low, "10 classes, full": densities.GaussianMixture.of(np.ones(10), [full] * 10)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 256])
    arguments = parser.parse_args()
    process = processes.Gaussian(schedule=schedules.EDM())
    for batch in arguments.batches:
        y, c = 80 * jax.random.normal(jax.random.key(0), (batch, *EVENT)), jnp.zeros(batch)
        runs = {}
        for name, law in laws().items():
            label = np.arange(batch) % 10 if isinstance(law, densities.GaussianMixture) else None
            start = starts.Teleport(law, skip_steps=0, label=label, start=starts.Fixed(y), t_from=80.0)
            keys, ids = jax.random.split(jax.random.key(0), batch), jnp.arange(batch)
            draw = jax.jit(lambda start, keys=keys, ids=ids: start.draw(keys, ids, process, 13.0, EVENT))
            runs[f"jump, {name}"] = lambda draw=draw, start=start: draw(start)
        for name, net in NETS.items():
            params = perturbed(net.init(jax.random.key(1), y[:1], c[:1]))
            apply = jax.jit(lambda params, net=net: net.apply(params, y / 80, c))
            runs[name] = lambda apply=apply, params=params: apply(params)
        times = milliseconds(arguments.rounds, **runs)
        print(f"batch {batch}: " + ", ".join(f"{name} {t:.2f} ms" for name, t in times.items()))
        for jump in (name for name in times if name.startswith("jump")):
            print(f"  {jump}: " + ", ".join(f"{100 * times[jump] / times[net]:.2f} % of {net}" for net in NETS))


if __name__ == "__main__":
    main()
