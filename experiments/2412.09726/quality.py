"""What a jump costs and what it saves: quality against the steps skipped, and against the number of model calls.

    python experiments/2412.09726/quality.py --data digits --n 297
    python experiments/2412.09726/quality.py --data mnist --n 500

First, grids of 18 steps of which more and more are jumped over. Second, few model calls: a grid from the largest noise level
beside a grid that begins where the jump lands. In both, every sample starts from the same noise, so that images can be compared
one by one: with those without a jump, and with a fine solution of the probability flow. Frechet distance and KID are over the
features of a classifier; the same numbers over pixels, which reward a Gaussian, are never used alone. Each seed is written when
it is done, and seeds that are in the output folder already are not measured again.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import jax
import numpy as np
from subject import DATA, subject

from scorelab import densities, grids, metrics, sample, solvers, starts, viz
from scorelab.experiment import Evaluate, ImageEvaluation
from scorelab.run.script import parse, plus_minus, record, script
from scorelab.starts.teleport import AUTO
from scorelab.training import data_mesh

STEPS, REFERENCE, SHOWN = 18, 60, 10
SKIPS = (0, 4, 5, 6, 7, 8, 10, 12)
CALLS = (5, 7, 9, 11)
MEMBERS = {"Heun": solvers.Heun(), "2M": solvers.DPMSolverPP(order=2), "UniPC": solvers.UniPC()}


class Trial:
    """A model, the Gaussian with the moments of its data, and what ``n`` images are held against."""

    def __init__(self, arguments):
        self.who, y = subject(arguments)
        self.law, self.event = densities.Gaussian.from_data(y), y.shape[1:]
        self.n, self.chunk = arguments.n, arguments.chunk
        self.landing = AUTO * float(np.sqrt(np.max(self.law.eigenvalues)))
        data = self.who.data()
        evaluations = self.who.config.one(Evaluate).evaluations
        features = [each.features for each in evaluations if isinstance(each, ImageEvaluation)]
        chosen = data.x[np.random.default_rng(0).permutation(len(data))[: self.n]]
        self.truth = {judge: judge(chosen) for judge in (*features, metrics.pixels(levels=data.levels))}

    def draw(self, seed: int, solver, grid, start=None, n: int | None = None) -> tuple[np.ndarray, int]:
        """Samples in the chart, and the number of model calls."""
        n = self.n if n is None else n
        out = sample(
            self.who.model, solver=solver, grid=grid, start=start, key=jax.random.key(1000 + seed),
            shape=(n, *self.event), chunk=min(n, self.chunk), mesh=data_mesh() if jax.device_count() > 1 else None,
        )  # fmt: skip
        return np.asarray(out.x), int(out.diagnostics["model_calls"])

    def decode(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.who.transform.decode(x))

    def scores(self, images: np.ndarray) -> dict[str, float]:
        """Of images in stored values, under every extractor."""
        found = {}
        for judge, reference in self.truth.items():
            z, same = judge(images), metrics.Coordinates(id=judge.id)
            distance, kid = metrics.frechet(z, reference, same).value, metrics.kid(z, reference, same).value
            found |= {f"FID-{judge.id}": distance, f"KID-{judge.id}": kid}
        return found


def measure(trial: Trial, seed: int) -> dict:
    """``{"skipped": {solver: {skip: numbers}}, "few_calls": {way: {calls: numbers}}}`` of one seed."""
    law, process = trial.law, trial.who.config.process

    def rmse(a, b):
        return float(np.sqrt(np.mean((a - b) ** 2)))

    def judged(x, calls, plain=None):
        found = dict(calls=calls, rmse_to_fine=rmse(x, fine), **trial.scores(trial.decode(x)))
        return found if plain is None else found | dict(rmse_to_no_skip=rmse(x, plain))

    fine, calls = trial.draw(seed, solvers.Heun(), grids.Karras(REFERENCE))
    skipped, few = {"fine": {"0": judged(fine, calls)}}, {}
    for name, solver in MEMBERS.items():
        plain = None
        for k in SKIPS:
            x, calls = trial.draw(seed, solver, grids.Karras(STEPS), starts.Teleport(law, skip_steps=k))
            plain = x if plain is None else plain
            skipped.setdefault(name, {})[str(k)] = judged(x, calls, plain)
            print(f"seed {seed}: {name}, skip {k}: {skipped[name][str(k)]}", flush=True)
        for wanted in CALLS:
            steps = (wanted + 1) // 2 if name == "Heun" else wanted
            jump = starts.Teleport(law, skip_steps=0, t_from=process.t_max)
            short = grids.Karras(steps, t_max=float(process.schedule.time(-2 * np.log(trial.landing))))
            for way, grid, start in (("plain", grids.Karras(steps), None), ("teleport", short, jump)):
                x, calls = trial.draw(seed, solver, grid, start)
                if calls != wanted:
                    raise RuntimeError(f"{name} with {steps} steps made {calls} model calls: expected {wanted}")
                few.setdefault(f"{name}, {way}", {})[str(wanted)] = judged(x, calls)
                print(f"seed {seed}: {name}, {calls} calls, {way}: {few[f'{name}, {way}'][str(wanted)]}", flush=True)
    return dict(skipped=skipped, few_calls=few)


def curve(seeds: dict, part: str, name: str, which: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps skipped (or the model calls), and ``which`` as ``(m, seeds)``."""
    keys = sorted(next(iter(seeds.values()))[part][name], key=int)
    return np.array([int(k) for k in keys]), np.array([[found[part][name][k][which] for found in seeds.values()] for k in keys])


def figures(trial: Trial, numbers: dict) -> dict:
    seeds, floors = numbers["seeds"], numbers["floors"]
    distance = next(iter(floors))

    def panel(part, which, title, xlabel, names, floor=None):
        series = {name: curve(seeds, part, name, which) for name in names}
        if floor is not None:
            ends = np.array([min(s[0].min() for s in series.values()), max(s[0].max() for s in series.values())])
            series["test images"] = (ends, np.full(2, floor))
        return viz.Panel(series=series, title=title, xlabel=xlabel, ylabel=which.replace("_", " "), logy=True, markers=True)

    # A sample depends on the key and its id: these are the first ones of seed 0.
    rows = [
        trial.draw(0, MEMBERS["Heun"], grids.Karras(STEPS), starts.Teleport(trial.law, skip_steps=k), n=SHOWN)[0] for k in SKIPS
    ]
    names, ways = list(MEMBERS), [f"{name}, {way}" for name in MEMBERS for way in ("plain", "teleport")]
    skipped = f"steps skipped of {STEPS}"
    return dict(
        skip=viz.panels(
            [
                panel("skipped", "rmse_to_fine", "to a fine solution, one by one", skipped, names),
                panel("skipped", distance, "to the data", skipped, names, floors[distance]),
            ],
            reference=("test images",),
        ),
        calls=viz.panels(
            [
                panel("few_calls", "rmse_to_fine", "to a fine solution, one by one", "model calls", ways),
                panel("few_calls", distance, "to the data", "model calls", ways, floors[distance]),
            ],
            reference=("test images",),
        ),
        samples=viz.image_grid(
            trial.decode(np.concatenate(rows)), levels=trial.who.data().levels, columns=SHOWN,
        ),
    )  # fmt: skip


def main() -> None:
    arguments = parse(__doc__, small=dict(n=60, seeds=1), data=DATA, workdir=Path, seeds=3, n=500, chunk=250)
    warnings.simplefilter("ignore", starts.TeleportWarning)
    trial = Trial(arguments)
    floors = trial.scores(trial.who.data("test").x[: arguments.n])
    numbers = dict(
        model=trial.who.origin, n=arguments.n, steps=STEPS, reference_steps=REFERENCE, largest_deviation=trial.landing / AUTO,
        landing=trial.landing, floors=floors, seeds={},
    )  # fmt: skip
    if (path := arguments.out / f"quality_{arguments.data}.json").is_file():
        before = json.loads(path.read_text())["numbers"][arguments.data]
        if differing := [k for k in ("model", "n", "steps", "reference_steps") if before[k] != numbers[k]]:
            raise SystemExit(f"{path} was measured with another {', '.join(differing)}: pass another --out")
        numbers["seeds"] = before["seeds"]
    for seed in range(arguments.seeds):
        if str(seed) not in numbers["seeds"]:
            found = measure(trial, seed)
            numbers["seeds"][str(seed)] = found
            record(arguments, {arguments.data: numbers})
    record(arguments, {arguments.data: numbers}, **figures(trial, numbers))

    print(f"\n{arguments.data}: largest deviation {trial.landing / AUTO:.3g}, landing at {trial.landing:.3g}; floors {floors}")
    for part, what in (("skipped", "skip"), ("few_calls", "calls")):
        first = next(iter(numbers["seeds"].values()))[part]
        for name in first:
            for i, key in enumerate(sorted(first[name], key=int)):
                columns = {which: curve(numbers["seeds"], part, name, which)[1][i] for which in first[name][key]}
                cells = (f"{which} {plus_minus(v, 4)}" for which, v in columns.items())
                print(f"{name:18s} {what} {key:3s}  " + "  ".join(cells))


if __name__ == "__main__":
    script(main)
