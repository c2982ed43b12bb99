"""What a jump costs and what it saves: quality against the steps skipped, and against the number of model calls.

    python experiments/teleport_quality.py --data digits --n 1000
    python experiments/teleport_quality.py --data mnist --n 500

First, grids of 18 steps of which more and more are jumped over. Second, few model calls: a grid from the largest noise level
beside a grid that begins where the jump lands. In both, every sample starts from the same noise, so that images can be compared
one by one: with those without a jump, and with a fine solution of the probability flow. Frechet distance and KID are over the
features of a classifier; the same numbers over pixels, which reward a Gaussian, are never used alone.
"""

from __future__ import annotations

import warnings

import numpy as np
from recording import record
from teleport_common import parse, subject

STEPS, REFERENCE = 18, 60
SKIPS = (0, 4, 5, 6, 7, 8, 10, 12)
CALLS = (5, 7, 9, 11)
SCORES = ("FID", "KID")


def main() -> None:
    arguments = parse(__doc__, "teleport_quality", seeds=3, n=500, chunk=250)
    who = subject(arguments)

    import jax

    from scorelab import grids, sample, solvers, starts, viz
    from scorelab.metrics import frechet, kid, pixels
    from scorelab.metrics.features import Coordinates
    from scorelab.training import data_mesh

    warnings.simplefilter("ignore", starts.TeleportWarning)
    experiment, process, law = who.experiment, who.experiment.process, who.law
    data = experiment.data
    top = float(np.sqrt(np.max(law.eigenvalues)))
    landing = starts.teleport.AUTO * top
    members = {"Heun": solvers.Heun(), "2M": solvers.DPMSolverPP(order=2), "UniPC": solvers.UniPC()}
    mesh = data_mesh() if jax.device_count() > 1 else None
    features = getattr(experiment.evaluation, "features", None)
    judges = {f"-{features.id}": features} if features is not None else {}
    judges["-pixels"] = pixels(levels=data.load().levels)
    order = np.random.default_rng(0).permutation(len(data.load()))[: arguments.n]
    truth = {name: judge(data.load().x[order]) for name, judge in judges.items()}
    held = data.load("test").x[: arguments.n]

    def draw(seed, solver, grid, start=None):
        out = sample(
            who.model, process, solver=solver, grid=grid, start=start, key=jax.random.key(1000 + seed), mesh=mesh,
            shape=(arguments.n, *data.load().event_shape), chunk=arguments.chunk,
        )  # fmt: skip
        return np.asarray(out.x), int(out.diagnostics["model_calls"])

    def scores(images):
        found = {}
        for name, judge in judges.items():
            z, known = judge(images), Coordinates(id=judge.id)
            found |= {"FID" + name: frechet(z, truth[name], known).value, "KID" + name: kid(z, truth[name], known).value}
        return found

    def rmse(a, b):
        return float(np.sqrt(np.mean((a - b) ** 2)))

    def judged(x, calls, reference, plain=None):
        found = dict(calls=calls, rmse_to_fine=rmse(x, reference), **scores(np.asarray(data.transform.decode(x))))
        return found if plain is None else found | dict(rmse_to_no_skip=rmse(x, plain))

    floors, skipped, few, pictures = scores(held), {}, {}, {}
    for seed in range(arguments.seeds):
        fine, calls = draw(seed, solvers.Heun(), grids.Karras(REFERENCE))
        skipped.setdefault("fine", {}).setdefault("0", []).append(judged(fine, calls, fine))
        for name, solver in members.items():
            plain = None
            for k in SKIPS:
                x, calls = draw(seed, solver, grids.Karras(STEPS), starts.Teleport(law, skip_steps=k))
                plain = x if plain is None else plain
                found = judged(x, calls, fine, plain)
                skipped.setdefault(name, {}).setdefault(str(k), []).append(found)
                if seed == 0 and name == "Heun":
                    pictures[k] = np.asarray(data.transform.decode(x[:10]))
                print(f"seed {seed}: {name}, skip {k}: {found}", flush=True)
            for calls in CALLS:
                steps = (calls + 1) // 2 if name == "Heun" else calls
                jump = starts.Teleport(law, skip_steps=0, t_from=process.t_max)
                for way, grid, start in (
                    ("plain", grids.Karras(steps), None),
                    ("teleport", grids.Karras(steps, t_max=landing), jump),
                ):
                    x, made = draw(seed, solver, grid, start)
                    assert made == calls, (made, calls)
                    found = judged(x, calls, fine)
                    few.setdefault(f"{name}, {way}", {}).setdefault(str(calls), []).append(found)
                    print(f"seed {seed}: {name}, {calls} calls, {way}: {found}", flush=True)

    sigmas = np.asarray(process.noise_ratio(grids.Karras(STEPS).times(process)[: max(SKIPS) + 1]))
    distance = next(iter(floors))

    def mean(table, name, which):
        keys = sorted(table[name], key=int)
        return np.array([int(k) for k in keys]), np.array([[f[which] for f in table[name][k]] for k in keys])

    print(f"\n{arguments.data}: largest deviation {top:.3g}, landing at {landing:.3g}; floors {floors}")
    for table, what in ((skipped, "skip"), (few, "calls")):
        for name in table:
            x, _ = mean(table, name, "calls")
            for i, k in enumerate(x):
                row = {which: mean(table, name, which)[1][i] for which in table[name][str(k)][0]}
                cells = (f"{which} {v.mean():.4f} ± {v.std(ddof=len(v) > 1):.4f}" for which, v in row.items())
                print(f"{name:18s} {what} {k:3d}  " + "  ".join(cells))

    def panel(table, which, title, xlabel, names, floor=None):
        series = {name: mean(table, name, which) for name in names}
        if floor is not None:
            ends = np.array([min(s[0].min() for s in series.values()), max(s[0].max() for s in series.values())])
            series["test images"] = (ends, np.full(2, floor))
        return viz.Panel(series=series, title=title, xlabel=xlabel, ylabel=which.replace("_", " "), logy=True, markers=True)

    record(
        arguments, "teleport_quality",
        {arguments.data: dict(
            model=who.made, n=arguments.n, steps=STEPS, reference_steps=REFERENCE, largest_deviation=top, landing=landing,
            sigmas=sigmas.tolist(), floors=floors, skipped=skipped, few_calls=few,
        )},
        label=f"teleport_quality_{arguments.data}",
        skip=viz.panels([
            panel(skipped, "rmse_to_fine", "to a fine solution, one by one", "steps skipped of 18", members),
            panel(skipped, distance, "to the data", "steps skipped of 18", members, floors[distance]),
        ], reference=("test images",)),
        calls=viz.panels([
            panel(few, "rmse_to_fine", "to a fine solution, one by one", "model calls", few),
            panel(few, distance, "to the data", "model calls", few, floors[distance]),
        ], reference=("test images",)),
        samples=viz.image_grid(np.concatenate([pictures[k] for k in SKIPS]), levels=data.load().levels, columns=10),
    )  # fmt: skip


if __name__ == "__main__":
    main()
