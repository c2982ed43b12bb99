"""The gap between flow and SDE in closed form: a Gaussian whose score is wrong by a factor that depends on time.

dx = -x dt + dw from T = 5, data of variance .1, and the field -a(t) x with a = (1 + delta exp(-t)) / v(t), which is no score unless
delta is 0. Flow and reverse SDE stay Gaussian, so that their distances W2, the residual and its bound of the gap are integrals.

The second panel has exact scores of Gaussians with another variance: their residual is zero, and so is the gap.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

import scorelab as sl
from scorelab import viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="The distance W2 between the laws of the flow and of the reverse SDE is bounded by the Fokker-Planck residual.",
    look_for="The gap lies below the bound by a factor that hardly changes. The flow errs about twice as much as the SDE. A score "
    "of the wrong Gaussian has neither residual nor gap, and samples as wrong as it is.",
    minutes=dict(small=0.1, full=0.1, gpu=None),
)

# Twice the process dx = -x dt + sqrt(2) dw in squares: lengths are times sqrt(1/2).
PROCESS = sl.processes.Gaussian(schedule=sl.schedules.VPLinear(beta_min=2.0, beta_max=2.0, t_max=5.0))
UNIT, DATA = np.sqrt(0.5), 0.2
GRID = sl.grids.Uniform(60)
DELTAS = (0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4)
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)


def variance(t, data):
    """Of data with this variance at t."""
    return data * jnp.exp(-2 * t) + 1 - jnp.exp(-2 * t)


def closed(delta, data) -> dict:
    """All numbers for the precision of data with this variance, times 1 + delta exp(-t)."""
    wrong = lambda t: (1 + delta * jnp.exp(-t)) / variance(t, data)
    # The law whose score it nearly is, at T: from the prior there would be a gap of 1e-6 without any residual.
    start = float(variance(5.0, data))
    found = sl.diagnostics.gaussian_gap(PROCESS, wrong, grid=GRID, variance=DATA, start=start)
    return dict(
        residual=2 * found.residual, gap=UNIT * found.gap, bound=UNIT * found.bound, ode=UNIT * found.ode, sde=UNIT * found.sde,
        ode_variance=found.ode_variance / 2, sde_variance=found.sde_variance / 2,
    )  # fmt: skip


def measure() -> dict:
    """By delta, of either sign, and by the factor of the variance."""
    signed = [sign * delta for delta in DELTAS for sign in (1, -1)]
    return dict(
        delta={f"{delta:g}": closed(delta, DATA) for delta in (0.0, *signed)},
        factor={f"{factor:g}": closed(0.0, factor * DATA) for factor in FACTORS},
    )


def column(rows: dict, name: str) -> np.ndarray:
    """One number of all rows."""
    return np.array([row[name] for row in rows.values()])


def gap_figure(found: dict):
    """The gap and its bound over the residual, and a zero residual beside wrong samples."""
    positive = {key: row for key, row in found["delta"].items() if float(key) > 0}
    root = np.sqrt(column(positive, "residual"))
    factors = np.array(FACTORS)
    content = [
        viz.Panel(
            series={name: (root, column(positive, key)) for name, key in NAMES.items()},
            title="a factor that depends on time", xlabel="root of the integral of the squared residual", ylabel="W2",
            logx=True, logy=True, markers=True,
        ),
        viz.Panel(
            series={name: (factors, column(found["factor"], key)) for name, key in NAMES.items()},
            title="the exact score of a wrong variance", xlabel="variance of the score over that of the data", ylabel="W2",
            markers=True,
        ),
    ]  # fmt: skip
    return viz.panels(content, columns=2, reference=("bound by the residual",), width=9.0, height=3.2)


NAMES = {"SDE to flow": "gap", "bound by the residual": "bound", "flow to data": "ode", "SDE to data": "sde"}


def claims(found: dict) -> list[Claim]:
    """Nothing is drawn, so that there is no spread."""
    rows = {key: row for key, row in found["delta"].items() if float(key)}
    ratio = column(rows, "bound") / column(rows, "gap")
    positive = {key: row for key, row in rows.items() if float(key) > 0}
    slope = np.polyfit(np.log(column(positive, "residual")), np.log(column(positive, "gap")), 1)[0]
    twice = column(rows, "ode") / column(rows, "sde")
    wrong = found["factor"]["2"]
    return [
        Claim(
            says="The residual bounds the gap.", value=ratio.max(), spread=0.0, unit="times the gap is the bound, at most",
            verdict="reproduced" if ratio.min() >= 1 else "not reproduced",
            why=f"Of {len(rows)} fields, at least {ratio.min():.2f} times. The bound is our own, by Gronwall's inequality: its "
            "constant has the slope of the flow and nothing else of the field.",
        ),
        Claim(
            says="The smaller the residual, the smaller the gap.", value=slope, spread=0.0,
            unit="is the power of the integral of the squared residual that the gap follows",
            verdict="reproduced" if abs(slope - 0.5) < 0.1 else "in shape",
            why=f"A half is expected. The flow is {twice.min():.2f} to {twice.max():.2f} times as far from the data as the SDE.",
        ),
        Claim(
            says="Where the residual is zero there is no gap.", value=column(found["factor"], "gap").max(), spread=0.0,
            unit="is the largest W2 between SDE and flow for exact scores of some variance, right or wrong", verdict="reproduced",
            why=f"Rounding to float32 is left. But with the score of variance .2 samples have {wrong['ode_variance']:.3f} where "
            "the data have .1: zero says that flow and SDE agree, and not that they are right.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    found = record.cell("closed forms", measure)
    for key, row in found["delta"].items():
        print(f"delta {key}:", {name: round(float(value), 5) for name, value in row.items()})
    record.write(found, claims=claims(found), curves=gap_figure(found))


if __name__ == "__main__":
    FIGURE.make(main)
