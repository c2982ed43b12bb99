"""What noise from a Brownian path costs: the time of ``sample()`` over that of the same solver with noise of its own for each row.

    python benchmarks/path.py

Both run interleaved in one process, round by round; the ratios are medians over rounds.
"""

import argparse
import statistics

import jax
from common import NETS, interleaved, model_of

import scorelab as sl

SOLVER = sl.solvers.DPMSolverPP(order=2, eta=1.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    for net in NETS:
        model, event, batch, steps = model_of(net)

        def sampler(solver, model=model, steps=steps, shape=(batch, *event)):
            arguments = dict(grid=sl.grids.Karras(steps), key=jax.random.key(3), shape=shape)
            return lambda: sl.sample(model, solver=solver, **arguments).x

        wall, cpu = interleaved({"own": sampler(SOLVER), "path": sampler(sl.solvers.Brownian(solver=SOLVER))}, rounds)
        ratio = lambda table: statistics.median(a / b for a, b in zip(table["path"], table["own"], strict=True))
        extra = 1e3 * statistics.median(a - b for a, b in zip(wall["path"], wall["own"], strict=True)) / steps
        own = 1e3 * statistics.median(wall["own"]) / steps
        found = f"with a path {ratio(wall):.2f} times (cpu {ratio(cpu):.2f}), {extra:+.2f} ms"
        print(f"{net:5} batch {batch:4}  {own:7.2f} ms a step, {found}")


if __name__ == "__main__":
    main()
