"""A jump before multistep solvers at 25 model calls: quality against the steps skipped.

Grids of 25 steps, of which more and more are jumped over, walked by UniPC and by DPM-Solver++ 2M with their own first steps from
where the jump lands. Frechet distance and KID are over the features of a classifier; the distance of each sample to the one without
a jump, from the same noise, says how much the jump moves it.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from subject import DATA, Trial, rmse

from scorelab import grids, solvers, starts, viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="The jump works with UniPC and DPM-Solver-v3 at 25 calls as with Heun's method: 15 to 30 % of the steps are saved.",
    look_for="Curves that are flat up to about ten of 25 steps, for the Frechet distance and for KID.",
    minutes=dict(small=0.9, full=1.5, gpu=None),
    options=dict(data=DATA, workdir=Path, seeds=3, n=500, chunk=250),
    small=dict(n=100, seeds=2),
)

STEPS = 25
SKIPS = (0, 4, 6, 7, 8, 9, 10, 12, 14, 16)
MEMBERS = {"UniPC": solvers.UniPC(), "2M": solvers.DPMSolverPP(order=2)}


def measure(trial: Trial, seed: int) -> dict:
    """Solver -> steps skipped -> numbers, of one seed."""
    found = {}
    for name, solver in MEMBERS.items():
        plain = None
        for k in SKIPS:
            x, calls = trial.draw(seed, solver, grids.Karras(STEPS), starts.Teleport(trial.law, skip_steps=k))
            plain = x if plain is None else plain
            row = dict(calls=calls, rmse_to_no_skip=rmse(x, plain), **trial.values(trial.decode(x)))
            found.setdefault(name, {})[str(k)] = row
    return found


def curve(numbers: dict, name: str, which: str) -> np.ndarray:
    """``which`` as ``(skips, seeds)``."""
    return np.array([[found[name][str(k)][which] for found in numbers["seeds"].values()] for k in SKIPS])


def claims(numbers: dict) -> list[Claim]:
    """What the paper says of multistep solvers, beside what was found with UniPC."""
    found, calls = curve(numbers, "UniPC", next(iter(numbers["floors"]))), curve(numbers, "UniPC", "calls")[:, 0]
    kept, lost = (found[SKIPS.index(k)] / found[0] for k in (7, 14))
    size = f"{numbers['n']} samples, spread over {len(numbers['seeds'])} sampling seeds of one network"
    return [
        Claim(
            says="With UniPC 15 to 30 % of the steps can be skipped.", value=kept.mean(), spread=kept.std(),
            unit=f"times the FID of {calls[0]} calls, at {calls[SKIPS.index(7)]} calls after a jump over 7 of 25 steps",
            verdict="reproduced" if kept.mean() < 1.1 else "not reproduced",
            why=f"A tenth more would not count as kept. {size}.",
        ),
        Claim(
            says="A jump too far costs quality.", value=lost.mean(), spread=lost.std(),
            unit=f"times the FID of {calls[0]} calls, at {calls[SKIPS.index(14)]} calls after a jump over 14 of 25 steps",
            verdict="reproduced" if lost.mean() - lost.std() > 1.1 else "not reproduced",
            why=f"It lands at {numbers['landings'][SKIPS.index(14)]:.2g}, where the data deviate by "
            f"{numbers['deviation']:.2g} along their first direction.",
        ),
    ]  # fmt: skip


def figure(numbers: dict):
    """Distances to the samples without a jump and to the data, against the steps skipped."""
    fid, kid = list(numbers["floors"])[:2]
    skips = np.array(SKIPS)

    def panel(which, title, ylabel, logy, first=0):
        series = {name: (skips[first:], curve(numbers, name, which)[first:]) for name in MEMBERS}
        if which in numbers["floors"]:
            series["test images"] = (skips[[0, -1]], np.full(2, numbers["floors"][which]))
        return viz.Panel(
            series=series, title=title, xlabel=f"steps skipped of {STEPS}", ylabel=ylabel, logy=logy, markers=True, mean=True
        )

    content = [
        panel("rmse_to_no_skip", "to no jump, one by one", "rmse per pixel", True, first=1),
        panel(fid, "to the data", "FID", True),
        panel(kid, "to the data", "KID", False),
    ]
    return viz.panels(content, reference=("test images",), width=11.0)


def main(record) -> None:
    o = record.options
    warnings.simplefilter("ignore", starts.TeleportWarning)
    trial = Trial(o)
    process = trial.who.config.process
    landings = np.asarray(process.noise_ratio(grids.Karras(STEPS).times(process)))[list(SKIPS)]
    numbers = dict(
        model=trial.who.origin, n=trial.n, skips=SKIPS, landings=landings, deviation=trial.deviation, floors=trial.floors(),
        seeds=record.cells(measure, {str(seed): (trial, seed) for seed in range(o.seeds)}),
    )  # fmt: skip
    for name in MEMBERS:
        for i, k in enumerate(SKIPS):
            row = {which: curve(numbers, name, which)[i].mean() for which in numbers["seeds"]["0"][name][str(k)]}
            print(f"{name:6s} skip {k:2d} (to {landings[i]:7.3g})  " + "  ".join(f"{which} {v:.4f}" for which, v in row.items()))
    record.write(numbers, claims=claims(numbers), quality=figure(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
