"""What a jump costs and what it saves: quality against the steps skipped, and against the number of model calls.

First, grids of 18 steps of which more and more are jumped over. Second, few model calls: a grid from the largest noise level
beside a grid that begins where the jump lands. In both, every sample starts from the same noise, so that images can be compared
one by one: with those without a jump, and with a fine solution of the probability flow. Frechet distance and KID are over the
features of a classifier; the same numbers over pixels, which reward a Gaussian, are never used alone.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from subject import DATA, Trial, rmse

from scorelab import grids, solvers, starts, viz
from scorelab.run.figure import Claim, Figure, plus_minus
from scorelab.starts.teleport import AUTO

FIGURE = Figure(
    __doc__,
    answers="",
    claims="The first 15 to 30 % of the steps can be skipped while the quality of the samples is kept: FID 1.93 on CIFAR-10.",
    look_for="Frechet distances that are flat up to a third of the steps and rise steeply beyond one half; at few model calls, "
    "solutions with a jump that are nearer to the fine one than those without.",
    minutes=dict(small=1.9, full=2.2, gpu=None),
    options=dict(data=DATA, workdir=Path, seeds=3, n=500, chunk=250),
    small=dict(n=100, seeds=2),
)

STEPS, REFERENCE, SHOWN = 18, 60, 10
SKIPS = (0, 4, 5, 6, 7, 8, 10, 12)
CALLS = (5, 7, 9, 11)
MEMBERS = {"Heun": solvers.Heun(), "2M": solvers.DPMSolverPP(order=2), "UniPC": solvers.UniPC()}


def measure(trial: Trial, seed: int) -> dict:
    """``{"skipped": {solver: {skip: numbers}}, "few_calls": {way: {calls: numbers}}}`` of one seed."""
    law, process = trial.law, trial.who.config.process
    landing = float(process.schedule.time(-2 * np.log(AUTO * trial.deviation)))

    def judged(x, calls, plain=None):
        found = dict(calls=calls, rmse_to_fine=rmse(x, fine), **trial.values(trial.decode(x)))
        return found if plain is None else found | dict(rmse_to_no_skip=rmse(x, plain))

    fine, calls = trial.draw(seed, solvers.Heun(), grids.Karras(REFERENCE))
    skipped, few = {"fine": {"0": judged(fine, calls)}}, {}
    for name, solver in MEMBERS.items():
        plain = None
        for k in SKIPS:
            x, calls = trial.draw(seed, solver, grids.Karras(STEPS), starts.Teleport(law, skip_steps=k))
            plain = x if plain is None else plain
            skipped.setdefault(name, {})[str(k)] = judged(x, calls, plain)
        for wanted in CALLS:
            steps = (wanted + 1) // 2 if name == "Heun" else wanted
            jump = starts.Teleport(law, skip_steps=0, t_from=process.t_max)
            for way, grid, start in (
                ("plain", grids.Karras(steps), None),
                ("teleport", grids.Karras(steps, t_max=landing), jump),
            ):
                x, calls = trial.draw(seed, solver, grid, start)
                if calls != wanted:
                    raise RuntimeError(f"{name} with {steps} steps made {calls} model calls: expected {wanted}")
                few.setdefault(f"{name}, {way}", {})[str(wanted)] = judged(x, calls)
    return dict(skipped=skipped, few_calls=few)


def pictured(trial: Trial) -> np.ndarray:
    """The first samples of seed 0 as stored images, a row for each number of steps skipped."""
    rows = [trial.draw(0, MEMBERS["Heun"], grids.Karras(STEPS), starts.Teleport(trial.law, skip_steps=k), SHOWN)[0] for k in SKIPS]
    return trial.decode(np.concatenate(rows))


def curve(numbers: dict, part: str, name: str, which: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps skipped (or the model calls), and ``which`` as ``(m, seeds)``."""
    seeds = numbers["seeds"]
    keys = sorted(next(iter(seeds.values()))[part][name], key=int)
    return np.array([int(k) for k in keys]), np.array([[found[part][name][k][which] for found in seeds.values()] for k in keys])


def claims(numbers: dict) -> list[Claim]:
    """What the paper says of skipped steps, beside what was found with Heun's method."""
    distance = next(iter(numbers["floors"]))
    steps, found = curve(numbers, "skipped", "Heun", distance)
    ratio = found / found[0]
    kept, lost = ratio[list(steps).index(5)], ratio[list(steps).index(10)]
    plain, jumped = (curve(numbers, "few_calls", f"UniPC, {way}", "rmse_to_fine")[1][0] for way in ("plain", "teleport"))
    gain = jumped / plain
    size = f"{numbers['n']} samples, spread over {len(numbers['seeds'])} sampling seeds of one network"
    return [
        Claim(
            says="The quality is kept when 15 to 30 % of the steps are skipped.", value=kept.mean(), spread=kept.std(),
            unit="times the FID without a jump, 5 of 18 steps skipped",
            verdict="reproduced" if kept.mean() < 1.1 else "not reproduced",
            why=f"A tenth more would not count as kept. {size}.",
        ),
        Claim(
            says="Beyond, it is lost: FID 23.5 against 1.96 on CIFAR-10 with 10 of 18 steps skipped (an independent reproduction).",
            value=lost.mean(), spread=lost.std(), unit="times the FID without a jump, 10 of 18 steps skipped",
            verdict="reproduced" if lost.mean() > 6 else "in shape" if lost.mean() - lost.std() > 1.1 else "not reproduced",
            why=f"Less than half of their factor of 12 is in shape. {size}.",
        ),
        Claim(
            says="A jump saves model calls with multistep solvers too.", value=gain.mean(), spread=gain.std(),
            unit="times the distance to a fine solution without a jump, UniPC at 5 calls",
            verdict="reproduced" if gain.mean() + gain.std() < 1 else "not reproduced",
            why=f"The jump lands at three deviations of the data. {size}.",
        ),
    ]  # fmt: skip


def figures(numbers: dict) -> dict:
    """Quality against steps skipped, and against model calls."""
    floors = numbers["floors"]
    distance = next(iter(floors))

    def panel(part, which, title, xlabel, names, floor=None):
        series = {name: curve(numbers, part, name, which) for name in names}
        if floor is not None:
            ends = np.array([min(s[0].min() for s in series.values()), max(s[0].max() for s in series.values())])
            series["test images"] = (ends, np.full(2, floor))
        label = "rmse per pixel to a fine solution" if which == "rmse_to_fine" else which.partition("(")[0].replace("-smallcnn", "")
        return viz.Panel(series=series, title=title, xlabel=xlabel, ylabel=label, logy=True, markers=True, mean=True)

    names, ways = list(MEMBERS), [f"{name}, {way}" for name in MEMBERS for way in ("plain", "teleport")]
    skipped = f"steps skipped of {numbers['steps']}"
    pairs = dict(skip=("skipped", skipped, names), calls=("few_calls", "model calls", ways))
    return {
        name: viz.panels(
            [
                panel(part, "rmse_to_fine", "to a fine solution, one by one", xlabel, shown),
                panel(part, distance, "to the data", xlabel, shown, floors[distance]),
            ],
            reference=("test images",),
        )
        for name, (part, xlabel, shown) in pairs.items()
    }


def main(record) -> None:
    o = record.options
    warnings.simplefilter("ignore", starts.TeleportWarning)
    trial = Trial(o)
    numbers = dict(
        model=trial.who.origin, n=trial.n, steps=STEPS, reference_steps=REFERENCE, largest_deviation=trial.deviation,
        landing=AUTO * trial.deviation, floors=trial.floors(),
        seeds=record.cells(measure, {str(seed): (trial, seed) for seed in range(o.seeds)}),
    )  # fmt: skip
    print(f"largest deviation {trial.deviation:.3g}, landing at {numbers['landing']:.3g}; floors {numbers['floors']}")
    for part, what in (("skipped", "skip"), ("few_calls", "calls")):
        first = next(iter(numbers["seeds"].values()))[part]
        for name in first:
            for i, key in enumerate(sorted(first[name], key=int)):
                columns = {which: curve(numbers, part, name, which)[1][i] for which in ("rmse_to_fine", *numbers["floors"])}
                cells = (f"{which} {plus_minus(v, 4)}" for which, v in columns.items() if "pixels" not in which)
                print(f"{name:18s} {what} {key:3s}  " + "  ".join(cells))
    rows = ["no jump", *(f"{k} of {STEPS} skipped" for k in SKIPS[1:])]
    images = viz.image_grid(pictured(trial), levels=trial.who.data().levels, columns=SHOWN, rows=rows)
    record.write(numbers, claims=claims(numbers), **figures(numbers), samples=images)


if __name__ == "__main__":
    FIGURE.make(main)
