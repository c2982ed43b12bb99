"""Multiplicative against additive diffusion on images: the same network and training budget, the same number of model calls.

    python experiments/2510.02730/comparison.py --data digits --seeds 3 --long 1000 --wide 1
    python experiments/2510.02730/comparison.py --data mnist --seeds 3 --n 500

Trains `paper/2510.02730/DATA.gin`, `DATA_additive.gin` and on request `DATA_wide.gin` once per seed (work directories are
reused), then draws samples with every combination of sampler, start and grid, and scores them. The table gives the mean over
the seeds and their standard deviation, beside the score of test images (the floor). Options: `--n` samples of each way and
`--steps` of training (0 for those of the config), `--quick 1` without the uniform grids, `--long` steps of the two schemes more
(0 for none), `--wide 1` with the model of sigma = 4 (digits and mnist).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np

from scorelab import grids, sample, solvers, viz
from scorelab.experiment import DataStart, Evaluate, Sample
from scorelab.run.script import parse, plus_minus, record, script, trained

CALLS = 36
SAMPLERS = {
    "Dale-Langevin": (solvers.EulerMaruyama(), CALLS),
    "sign-agnostic": (solvers.EulerMaruyama(coords="ambient"), CALLS),
    "Heun": (solvers.Heun(), CALLS // 2),
}
STARTS = {"log-normal": DataStart(kind="lognormal"), "moments": DataStart(kind="moments")}
GRIDS = {"uniform": grids.Uniform, "Karras": grids.Karras}
SCORES = ("FID", "KID", "precision", "recall")


def ways(kind: str, quick: bool, long: int) -> dict[str, tuple]:
    """Name -> (solver, grid, start) of the ways to sample; ``long`` adds the two schemes with that many steps."""
    if kind == "_additive":
        return {"additive, Heun, Karras": (solvers.Heun(), grids.Karras(CALLS // 2), None)}
    if kind == "_wide":
        # The sign-agnostic rule does not survive 36 steps from this noise: values leave float32.
        return {
            f"{name}, moments, Karras, sigma = 4": (solver, grids.Karras(steps), STARTS["moments"])
            for name, (solver, steps) in SAMPLERS.items()
            if name != "sign-agnostic"
        }
    found = {
        f"{name}, {start}, {grid}": (solver, make(steps), from_data)
        for name, (solver, steps) in SAMPLERS.items()
        for start, from_data in STARTS.items()
        for grid, make in GRIDS.items()
        if not quick or grid == "Karras"
    }
    for name in ("Dale-Langevin", "sign-agnostic") if long else ():
        for start, from_data in STARTS.items():
            found[f"{name}, {start}, {long} uniform steps"] = (SAMPLERS[name][0], grids.Uniform(long), from_data)
    return found


def draw(experiment, model, way: tuple, n: int) -> tuple[np.ndarray, int]:
    """Samples in stored values, and the number of samples in which a sign changed."""
    solver, grid, start = way
    data, label = experiment.data, experiment.one(Sample).conditions(experiment.data, n)
    begin = dataclasses.replace(experiment.one(Sample), start=start).begin(data, experiment.process, label)
    out = sample(
        model, solver=solver, grid=grid, start=begin, key=experiment.keys()[1],
        shape=(n, *data.load().event_shape), cond=label,
    )  # fmt: skip
    flips = out.diagnostics.get("sign_flips", np.zeros(n))
    return np.asarray(data.transform.decode(out.x)), int(np.sum(np.asarray(flips) > 0))


def main() -> None:
    """Train, draw, score, print."""
    small = dict(seeds=1, n=60, steps=150, quick=1, workdir=Path("runs/comparison_small"))
    options = dict(seeds=3, n=0, steps=0, quick=0, long=0, wide=0, workdir=Path("runs/comparison"))
    arguments = parse(__doc__, small=small, data=("digits", "mnist", "fashion_mnist", "kmnist"), **options)
    sets = [f"STEPS = {arguments.steps}"] if arguments.steps else []

    scores, floors, pictures = {}, {}, {}
    for seed in range(arguments.seeds):
        for kind in ("", "_wide", "_additive") if arguments.wide else ("", "_additive"):
            config = arguments.data + kind
            seeded = [*sets, f"experiment.Experiment.seed = {seed}"]
            experiment, state = trained(f"paper/2510.02730/{config}", seeded, arguments.workdir / f"{config}-seed{seed}")
            model, evaluation = experiment.learner.model(state), experiment.one(Evaluate).evaluations[0]
            drawn = arguments.n or experiment.one(Sample).n
            n = min(drawn, evaluation.n)
            judge = dataclasses.replace(evaluation, n=n)
            for name, way in ways(kind, bool(arguments.quick), arguments.long).items():
                x, flipped = draw(experiment, model, way, drawn)
                if seed == 0 and ("Karras" in name and "log-normal" not in name):
                    pictures[name] = x[:10]
                # One evaluation key for all seeds: the same reference images and the same floor.
                for score in judge(x, experiment.data, jax.random.key(0)):
                    if (metric := score.name.split("(")[0]) in SCORES:
                        scores.setdefault(name, {}).setdefault(metric, []).append(score.value)
                        floors[metric] = score.floor
                scores[name].setdefault("samples with a changed sign", []).append(flipped)
                print(f"seed {seed}: {name}: FID {scores[name]['FID'][-1]:.3f}, KID {scores[name]['KID'][-1]:.4f}", flush=True)

    print(f"\n{'':52s}" + "".join(f"{name:>18s}" for name in SCORES))
    for name, found in {"test images (floor)": {k: [v] for k, v in floors.items()}, **scores}.items():
        cells = "".join(f"{plus_minus(found[s]):>18s}" for s in SCORES)
        print(f"{name:52s}{cells}")
    levels = experiment.data.load().levels
    numbers = dict(extractor=evaluation.features.id, drawn=drawn, n=n, calls=CALLS, floors=floors, scores=scores)
    record(
        arguments, {arguments.data: numbers},
        **{
            "fid": viz.dots(
                {name: found["FID"] for name, found in scores.items()}, reference={"test images": floors["FID"]}, logx=True,
                title=f"{arguments.data}, {CALLS - 1} or {CALLS} model calls: every seed, and the mean",
                xlabel=f"FID-{numbers['extractor']}, n = {n}",
            ),
            "samples": viz.image_grid(np.concatenate(list(pictures.values())), levels=levels, columns=10),
        },
    )  # fmt: skip


if __name__ == "__main__":
    script(main)
