"""What the training loop costs: a step of ``fit`` against the bare jitted step, interleaved in one process.

The bare step is gradient, clipping and Adam in one donated jitted function, driven by a Python loop over
batches that lie on the device, without averages, metrics or checks. ``fit`` has an EMA, metrics every 50
steps, the non-finite check, and host batches. The goal is a ratio of at most 1.02.

Rounds of both take turns, and the order alternates; wall time and the CPU time of the process are kept. The
table has the medians over rounds of the ratio within a round, with the quartiles.

    python benchmarks/training.py [--rounds 10] [--only mlp] [--no-ema]
"""

from __future__ import annotations

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scorelab.losses import DenoisingScoreMatching
from scorelab.models import nets
from scorelab.models.denoiser import Denoiser
from scorelab.processes import Gaussian
from scorelab.schedules import EDM
from scorelab.training import EMA, ScoreLearner, fit

# name: (network, event, batch size, steps in a round)
CASES = {
    "mlp 2-D": (nets.MLP(width=256, depth=4), (2,), 128, 200),
    "mlp 8x8": (nets.MLP(width=512, depth=4), (64,), 128, 100),
    "unet 8x8": (nets.UNet(channels=(16, 32)), (8, 8, 1), 64, 50),
}


class Repeated:
    """Four host batches, again and again."""

    def __init__(self, event, batch_size):
        rng = np.random.default_rng(0)
        self.batches = [{"x": rng.normal(0, 0.5, (batch_size, *event)).astype(np.float32)} for _ in range(4)]

    def at(self, step):
        return self.batches[step % 4]


def bare_step(learner):
    """The step without averages and metrics."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch, key):
        params, opt_state, number = state

        def objective(params):
            return jnp.mean(learner.loss(jax.random.fold_in(key, number), learner.denoiser.bind(params), batch))

        grads = jax.grad(objective)(params)
        grads, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
        updates, opt_state = learner.optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, number + 1

    return step


def timed(function):
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return (time.perf_counter() - wall, time.process_time() - cpu), result


def measure(name, rounds, ema):
    net, event, batch_size, steps = CASES[name]
    process, key = Gaussian(schedule=EDM()), jax.random.key(0)
    learner = ScoreLearner(Denoiser(net=net, process=process), DenoisingScoreMatching(process), optax.adam(1e-4), ema=ema)
    data = Repeated(event, batch_size)
    resident = jax.device_put(data.batches)
    step = bare_step(learner)
    params = learner.denoiser.init(key, data.at(0)["x"])
    bare = (params, learner.optimizer.init(params), jnp.int32(0))
    state = fit(learner, data, steps=5, key=key)
    bare = jax.block_until_ready(step(bare, resident[0], key))

    def run_bare():
        now = bare
        for i in range(steps):
            now = step(now, resident[i % 4], key)
        return jax.block_until_ready(now)

    def run_fit():
        return jax.block_until_ready(fit(learner, data, steps=int(state.step) + steps, key=key, state=state, log_every=50))

    times = {"bare": [], "fit": []}
    for number in range(rounds):
        order = ["bare", "fit"] if number % 2 == 0 else ["fit", "bare"]
        for kind in order:
            if kind == "bare":
                clock, bare = timed(run_bare)
            else:
                clock, state = timed(run_fit)
            times[kind].append(clock)
    fit_times, bare_times = np.array(times["fit"]), np.array(times["bare"])
    ratios = np.quantile(fit_times / bare_times, [0.25, 0.5, 0.75], axis=0)
    each = 1e3 * np.min(bare_times[:, 0]) / steps
    wall, cpu = (f"{r[1]:.3f} ({r[0]:.3f}-{r[2]:.3f})" for r in ratios.T)
    print(f"| {name} | {each:.2f} | {wall} | {cpu} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", default="")
    parser.add_argument("--no-ema", action="store_true")
    arguments = parser.parse_args()
    print("| network | bare step, ms | fit / bare, wall | fit / bare, CPU time |\n|---|---|---|---|")
    for name in CASES:
        if arguments.only in name:
            measure(name, arguments.rounds, None if arguments.no_ema else EMA())


if __name__ == "__main__":
    main()
