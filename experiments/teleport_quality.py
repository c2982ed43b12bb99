"""What a jump costs and what it saves: quality against the steps skipped, and against the number of model calls.

    python experiments/teleport_quality.py --data digits --n 297
    python experiments/teleport_quality.py --data mnist --n 500

First, grids of 18 steps of which more and more are jumped over. Second, few model calls: a grid from the largest noise level
beside a grid that begins where the jump lands. In both, every sample starts from the same noise, so that images can be compared
one by one: with those without a jump, and with a fine solution of the probability flow. Frechet distance and KID are over the
features of a classifier; the same numbers over pixels, which reward a Gaussian, are never used alone. Each seed is written when
it is done, and seeds that are in the output folder already are not measured again.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
from recording import record, script
from teleport_common import Subject, parse, subject

STEPS, REFERENCE = 18, 60
SKIPS = (0, 4, 5, 6, 7, 8, 10, 12)
CALLS = (5, 7, 9, 11)
SHOWN = 10


def members() -> dict:
    from scorelab import solvers

    return {"Heun": solvers.Heun(), "2M": solvers.DPMSolverPP(order=2), "UniPC": solvers.UniPC()}


def draw(who: Subject, seed: int, n: int, chunk: int, solver, grid, start=None) -> tuple[np.ndarray, int]:
    """Samples in the chart, and the number of model calls."""
    import jax

    from scorelab import sample
    from scorelab.training import data_mesh

    out = sample(
        who.model, solver=solver, grid=grid, start=start, key=jax.random.key(1000 + seed),
        shape=(n, *who.y.shape[1:]), chunk=min(n, chunk), mesh=data_mesh() if jax.device_count() > 1 else None,
    )  # fmt: skip
    return np.asarray(out.x), int(out.diagnostics["model_calls"])


def judges(who: Subject, n: int):
    """A function from images to scores, and the scores of test images (the floor)."""
    from scorelab.metrics import frechet, kid, pixels
    from scorelab.metrics.features import Coordinates

    data = who.experiment.data
    known = [pixels(levels=data.load().levels)]
    if (features := getattr(who.experiment.evaluation, "features", None)) is not None:
        known.insert(0, features)
    chosen = np.random.default_rng(0).permutation(len(data.load()))[:n]
    truth = [judge(data.load().x[chosen]) for judge in known]

    def scores(images: np.ndarray) -> dict[str, float]:
        found = {}
        for judge, reference in zip(known, truth, strict=True):
            z, same = judge(images), Coordinates(id=judge.id)
            found |= {f"FID-{judge.id}": frechet(z, reference, same).value, f"KID-{judge.id}": kid(z, reference, same).value}
        return found

    return scores, scores(data.load("test").x[:n])


def measure(who: Subject, seed: int, n: int, chunk: int, landing: float, scores) -> dict:
    """``{"skipped": {solver: {skip: numbers}}, "few_calls": {way: {calls: numbers}}}`` of one seed."""
    from scorelab import grids, solvers, starts

    def rmse(a, b):
        return float(np.sqrt(np.mean((a - b) ** 2)))

    def judged(x, calls, plain=None):
        found = dict(calls=calls, rmse_to_fine=rmse(x, fine), **scores(np.asarray(who.experiment.data.transform.decode(x))))
        return found if plain is None else found | dict(rmse_to_no_skip=rmse(x, plain))

    fine, calls = draw(who, seed, n, chunk, solvers.Heun(), grids.Karras(REFERENCE))
    skipped, few = {"fine": {"0": judged(fine, calls)}}, {}
    for name, solver in members().items():
        plain = None
        for k in SKIPS:
            x, calls = draw(who, seed, n, chunk, solver, grids.Karras(STEPS), starts.Teleport(who.law, skip_steps=k))
            plain = x if plain is None else plain
            skipped.setdefault(name, {})[str(k)] = judged(x, calls, plain)
            print(f"seed {seed}: {name}, skip {k}: {skipped[name][str(k)]}", flush=True)
        for wanted in CALLS:
            steps = (wanted + 1) // 2 if name == "Heun" else wanted
            jump = starts.Teleport(who.law, skip_steps=0, t_from=who.experiment.process.t_max)
            short = grids.Karras(steps, t_max=float(who.experiment.process.schedule.time(-2 * np.log(landing))))
            for way, grid, start in (("plain", grids.Karras(steps), None), ("teleport", short, jump)):
                x, calls = draw(who, seed, n, chunk, solver, grid, start)
                if calls != wanted:
                    raise RuntimeError(f"{name} with {steps} steps made {calls} model calls: expected {wanted}")
                few.setdefault(f"{name}, {way}", {})[str(wanted)] = judged(x, calls)
                print(f"seed {seed}: {name}, {calls} calls, {way}: {few[f'{name}, {way}'][str(wanted)]}", flush=True)
    return dict(skipped=skipped, few_calls=few)


def curve(seeds: dict, part: str, name: str, which: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps skipped (or the model calls), and ``which`` as ``(m, seeds)``."""
    keys = sorted(next(iter(seeds.values()))[part][name], key=int)
    return np.array([int(k) for k in keys]), np.array([[found[part][name][k][which] for found in seeds.values()] for k in keys])


def figures(who: Subject, numbers: dict) -> dict:
    from scorelab import grids, starts, viz

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
        draw(who, 0, SHOWN, SHOWN, members()["Heun"], grids.Karras(STEPS), starts.Teleport(who.law, skip_steps=k))[0] for k in SKIPS
    ]
    names, ways = list(members()), [f"{name}, {way}" for name in members() for way in ("plain", "teleport")]
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
            np.asarray(who.experiment.data.transform.decode(np.concatenate(rows))),
            levels=who.experiment.data.load().levels, columns=SHOWN,
        ),
    )  # fmt: skip


def main() -> None:
    arguments = parse(__doc__, "teleport_quality", seeds=3, n=500, chunk=250)
    who = subject(arguments)

    from scorelab.starts import TeleportWarning
    from scorelab.starts.teleport import AUTO

    warnings.simplefilter("ignore", TeleportWarning)
    label = f"teleport_quality_{arguments.data}"
    top = float(np.sqrt(np.max(who.law.eigenvalues)))
    scores, floors = judges(who, arguments.n)
    numbers = dict(
        model=who.made, n=arguments.n, steps=STEPS, reference_steps=REFERENCE, largest_deviation=top, landing=AUTO * top,
        floors=floors, seeds={},
    )  # fmt: skip
    if (path := arguments.out / f"{label}.json").is_file():
        before = json.loads(path.read_text())["numbers"][arguments.data]
        if differing := [k for k in ("model", "n", "steps", "reference_steps") if before[k] != numbers[k]]:
            raise SystemExit(f"{path} was measured with another {', '.join(differing)}: pass another --out")
        numbers["seeds"] = before["seeds"]
    for seed in range(arguments.seeds):
        if str(seed) not in numbers["seeds"]:
            found = measure(who, seed, arguments.n, arguments.chunk, AUTO * top, scores)
            numbers["seeds"][str(seed)] = found
            record(arguments, "teleport_quality", {arguments.data: numbers}, label=label)
    record(arguments, "teleport_quality", {arguments.data: numbers}, label=label, **figures(who, numbers))

    print(f"\n{arguments.data}: largest deviation {top:.3g}, landing at {AUTO * top:.3g}; floors {floors}")
    for part, what in (("skipped", "skip"), ("few_calls", "calls")):
        first = next(iter(numbers["seeds"].values()))[part]
        for name in first:
            for i, key in enumerate(sorted(first[name], key=int)):
                columns = {which: curve(numbers["seeds"], part, name, which)[1][i] for which in first[name][key]}
                cells = (f"{which} {v.mean():.4f} ± {v.std(ddof=len(v) > 1):.4f}" for which, v in columns.items())
                print(f"{name:18s} {what} {key:3s}  " + "  ".join(cells))


if __name__ == "__main__":
    script(main)
