"""What the benchmarks share: networks with weights, and times taken in turns."""

import statistics
import time

import jax
import jax.numpy as jnp

import scorelab as sl

EDM = sl.processes.Gaussian(schedule=sl.schedules.EDM())
# name -> (network, event, batch, steps); sizes at which a research run on two cores really works.
NETS = {
    "MLP": (sl.models.nets.MLP(width=256, depth=4), (2,), 512, 20),
    "DiT": (sl.models.nets.DiT(patch=7, width=128, depth=3), (28, 28, 1), 16, 18),
    "UNet": (sl.models.nets.UNet(channels=(32, 64, 64), attention=(False, False, False)), (28, 28, 1), 8, 10),
}


def perturbed(params, scale=0.02):
    """Parameters moved off the zero initialisation, which would make predictions and gradients trivial."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    return tree.unflatten([a + scale * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)])


def model_of(name):
    net, event, batch, steps = NETS[name]
    denoiser = sl.models.Denoiser(net=net, process=EDM, data_std=0.5)
    params = denoiser.init(jax.random.key(0), jnp.zeros((1, *event)))
    return denoiser.bind(perturbed(params, 0.05)), event, batch, steps


def interleaved(functions, rounds):
    """Wall and CPU seconds of each function, measured round by round after one call to compile."""
    for fn in functions.values():
        jax.block_until_ready(fn())
    wall, cpu = ({name: [] for name in functions} for _ in range(2))
    for _ in range(rounds):
        for name, fn in functions.items():
            w, c = time.perf_counter(), time.process_time()
            jax.block_until_ready(fn())
            wall[name].append(time.perf_counter() - w)
            cpu[name].append(time.process_time() - c)
    return wall, cpu


def milliseconds(rounds, **functions):
    """Median wall milliseconds of each function over interleaved rounds."""
    return {name: 1e3 * statistics.median(seconds) for name, seconds in interleaved(functions, rounds)[0].items()}


def ratios(wall, cpu, name, base, calls, base_calls):
    """Medians over rounds of the per-call ratio to the base of the same round."""
    pair = lambda table: statistics.median((a / calls) / (b / base_calls) for a, b in zip(table[name], table[base], strict=True))
    return pair(wall), pair(cpu)
