"""Other libraries on the same work, each where it is installed: ``pip install '.[peers]'``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp

import scorelab as sl
from benchmarks.common import EDM, NETS, Row, drawn, in_turns, model_of
from benchmarks.smc import filters


def torch(rounds: int, quick: bool) -> Iterator[Row]:
    """diffusers and k-diffusion on torch: the same weights, grids and noise, on one core and on two.

    On one core the row is the ratio of CPU seconds, on two that of wall seconds. Results have to agree before they are timed.
    """
    from benchmarks.torch_peers import against_peers

    goals = dict(MLP=0.6, UNet=1.0)
    for row in against_peers(max(rounds // 2, 3) if quick else rounds):
        low, value, high = row["cpu" if row["threads"] == 1 else "wall"]
        clock = "CPU seconds on one core" if row["threads"] == 1 else "wall seconds on two"
        yield Row(
            f"{row['net']}, {row['solver']} over {row['peer']}: {clock}", value, low, high, cpu=row["cpu"][1],
            goal=goals[row["net"]] if row["threads"] == 1 else 0.8,
            base=f"{1e3 * row['peer_s']:.0f} ms; others kept {row['other_cores']:.1f} cores busy",
        )  # fmt: skip


def diffrax(rounds: int, quick: bool) -> Iterator[Row]:
    """The flow by diffrax with fixed steps, per call of the network."""
    import diffrax

    for name in ("DiT",) if quick else NETS:
        model, event, batch, steps = model_of(name)
        grid = sl.grids.Karras(steps)
        times = jnp.asarray(grid.times(EDM), jnp.float32)[:-1]
        y = 80 * jax.random.normal(jax.random.key(2), (batch, *event))
        pairs = {
            "Euler": (sl.solvers.ProbabilityFlowEuler(), diffrax.Euler, steps, steps - 1),
            "Heun": (sl.solvers.Heun(), diffrax.Heun, 2 * steps - 1, 2 * (steps - 1)),
        }
        for title, (ours, kind, calls, their_calls) in pairs.items():

            @jax.jit
            def run(model, y, kind=kind, times=times):
                term = diffrax.ODETerm(lambda t, y, args: model(y, t).velocity)
                solution = diffrax.diffeqsolve(
                    term, kind(), t0=times[0], t1=times[-1], dt0=None, y0=y, max_steps=len(times),
                    stepsize_controller=diffrax.StepTo(ts=times), adjoint=diffrax.ForwardMode(), throw=False,
                )  # fmt: skip
                return solution.ys[0]

            functions = {
                "diffrax": lambda run=run, model=model, y=y: run(model, y),
                "scorelab": drawn(model, (batch, *event), ours, grid),
            }
            counts = {"diffrax": their_calls, "scorelab": calls}
            for row in in_turns(functions, rounds, base="diffrax", calls=counts, goal=1.02):
                yield dataclasses.replace(row, case=f"{name}, {title} over diffrax, per call")


PARTS = {"torch": torch, "diffrax": diffrax, "filters": filters}
