"""What the benchmarks share: networks with weights, functions timed in turns, and the rows of the table."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import scorelab as sl

EDM = sl.processes.Gaussian(schedule=sl.schedules.EDM())


class Case(NamedTuple):
    """A network at a size at which a research run on two cores works.

    Attributes:
        net: the network.
        event: the shape of a sample.
        batch: samples in a call.
        steps: grid steps of a sampling call.
    """

    net: Any
    event: tuple[int, ...]
    batch: int
    steps: int


NETS = {
    "MLP": Case(sl.models.nets.MLP(width=256, depth=4), (2,), 512, 20),
    "DiT": Case(sl.models.nets.DiT(patch=7, width=128, depth=3), (28, 28, 1), 16, 18),
    "UNet": Case(sl.models.nets.UNet(channels=(32, 64, 64), attention=(False, False, False)), (28, 28, 1), 16, 10),
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        case: what was measured.
        value: the median over rounds.
        low: the lower quartile.
        high: the upper quartile.
        unit: ``"x"`` for a ratio, or seconds and the like.
        cpu: the median of the ratio in CPU seconds of the process, which other programs disturb less; None where it was not taken.
        goal: what the value should not exceed; None without one.
        base: what it is a ratio to, and how long that took.
    """

    case: str
    value: float
    low: float
    high: float
    unit: str = "x"
    cpu: float | None = None
    goal: float | None = None
    base: str = ""

    @classmethod
    def of(cls, case: str, value: float, unit: str, goal: float | None = None, base: str = "") -> Row:
        """A quantity that was counted, or measured once."""
        return cls(case, float(value), float(value), float(value), unit, goal=goal, base=base)


Part = Callable[[int, bool], Iterator[Row]]


def perturbed(params: Any, scale: float = 0.02) -> Any:
    """Parameters moved off the zero initialisation, which would make predictions and gradients trivial."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    return tree.unflatten([a + scale * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)])


def model_of(name: str) -> tuple[Any, tuple[int, ...], int, int]:
    """The model, the shape of a sample, the batch and the steps of a network of the table."""
    net, event, batch, steps = NETS[name]
    return denoiser(net, event), event, batch, steps


@functools.cache
def denoiser(net: Any, event: tuple[int, ...], labels: bool = False) -> Any:
    """A bound denoiser around a network, under labels where it has them."""
    spec, cond = sl.models.Denoiser(net=net, process=EDM, data_std=0.5), jnp.zeros(1, jnp.int32) if labels else None
    return spec.bind(perturbed(jax.jit(spec.init)(jax.random.key(0), jnp.zeros((1, *event)), cond), 0.05))


def interleaved(functions: dict[str, Callable[[], Any]], rounds: int, pause: float = 0.0) -> tuple[dict, dict]:
    """Wall and CPU seconds of each function, round by round, after a call to compile; the order turns around every round.

    Before each call is a pause in seconds, in which the threads of another library go to sleep.
    """
    for function in functions.values():
        jax.block_until_ready(function())
    wall, cpu = ({name: [] for name in functions} for _ in range(2))
    for number in range(rounds):
        for name in list(functions)[:: 1 if number % 2 == 0 else -1]:
            time.sleep(pause)
            w, c = time.perf_counter(), time.process_time()
            jax.block_until_ready(functions[name]())
            wall[name].append(time.perf_counter() - w)
            cpu[name].append(time.process_time() - c)
    return wall, cpu


def in_turns(
    functions: dict[str, Callable[[], Any]], rounds: int, *, base: str, calls: dict[str, float] | None = None,
    goal: float | None = None, case: str = "{}", pause: float = 0.0,
) -> Iterator[Row]:  # fmt: skip
    """A row for every function but the base: the ratio of their times within a round, per call where calls are counted."""
    wall, cpu = interleaved(functions, rounds, pause)
    calls = calls or {}
    each = {
        table_name: {name: np.array(seconds) / calls.get(name, 1) for name, seconds in table.items()}
        for table_name, table in (("wall", wall), ("cpu", cpu))
    }
    took = f"{base}, {1e3 * statistics.median(each['wall'][base]):.3g} ms"
    for name in functions:
        if name != base:
            low, value, high = np.quantile(each["wall"][name] / each["wall"][base], [0.25, 0.5, 0.75])
            spent = float(np.median(each["cpu"][name] / each["cpu"][base]))
            yield Row(case.format(name), float(value), float(low), float(high), cpu=spent, goal=goal, base=took)


def bare_calls(model: Any, event: tuple[int, ...], batch: int, calls: int) -> Callable[[], Any]:
    """The network ``calls`` times in one jitted scan, fed with its own output so that nothing can be skipped."""

    @jax.jit
    def run(params, y, ts):
        def body(y, t):
            return 0.5 * y + 0.1 * model.denoiser.net.apply(params, y, t), None

        return jax.lax.scan(body, y, ts)[0]

    ts = jnp.asarray(np.geomspace(80, 0.01, calls)[:, None], jnp.float32)
    y = jax.random.normal(jax.random.key(2), (batch, *event))
    return lambda: run(model.params, y, ts)


def drawn(model: Any, shape: tuple[int, ...], solver: Any, grid: Any, **options: Any) -> Callable[[], Any]:
    """A sampling call, as a user makes it."""
    arguments = dict(solver=solver, grid=grid, key=jax.random.key(3), shape=shape) | options
    return lambda: sl.sample(model, **arguments).x
