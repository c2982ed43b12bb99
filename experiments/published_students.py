r"""Students of the digits by published methods, each a config beside ``paper/2502.15681/digits``, against the same teacher.

    python experiments/published_students.py

Every student is a run of its config in ``--workdir``; runs that are complete there are used again, and a killed one goes on from
its checkpoint. Sampled as the config says, and scored as in ``one_step.py``. With ``--methods`` only those are run, and what the
file of numbers has of others stays.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from one_step import STEPS, Students
from recording import record, script

from scorelab.experiment import Sample, Train

METHODS = ("diff_instruct", "dmd", "dmd2", "gan", "sid", "consistency")
SHOWN = ("frechet", "kid", "recall", "wanted", "histogram")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/figures/published_students"), help="folder of the results")
    parser.add_argument("--workdir", type=Path, default=Path("runs/one_step"), help="folder of the trainings")
    arguments = parser.parse_args()

    who = Students("digits", arguments.workdir)
    file = arguments.out / "published_students.json"
    numbers = json.loads(file.read_text())["numbers"] if file.exists() else dict(n=who.n, students={})
    numbers["teacher"] = {str(seed): who.judge(who.teacher_images(seed)) for seed in range(arguments.seeds)}
    first = {"teacher": who.teacher_images(0)}
    for method in arguments.methods:
        for seed in range(arguments.seeds):
            images, row = student(who, method, seed)
            first.setdefault(method, images)
            numbers["students"].setdefault(method, {})[str(seed)] = row
            print(method, seed, row, flush=True)
    print(f"teacher with {2 * STEPS - 1} calls")
    for name, rows in {"teacher": numbers["teacher"], **numbers["students"]}.items():
        cells = {which: np.array([row[which] for row in rows.values()]) for which in SHOWN}
        print(f"{name}: " + ", ".join(f"{which} {v.mean():.3f} ± {v.std(ddof=len(v) > 1):.3f}" for which, v in cells.items()))
    record(arguments, "published_students", numbers, samples=rows_of(who, first))


def student(who: Students, method: str, seed: int) -> tuple[np.ndarray, dict]:
    """The images of a trained student by the sampler of its config, and their scores."""
    import jax

    from scorelab import sample

    experiment, state, _ = who.run(f"{who.config}_{method}", [f"experiment.Experiment.seed = {seed}"], f"{method}_{seed}")
    spec = experiment.one(Sample)
    out = sample(
        experiment.learner.model(state), solver=spec.solver, grid=spec.grid, key=jax.random.key(100 + seed),
        shape=(who.n, *who.event), cond=who.label,
    )  # fmt: skip
    images = who.decode(out.x)
    return images, dict(who.judge(images), calls=int(out.diagnostics["model_calls"]), steps=experiment.one(Train).steps)


def rows_of(who: Students, images: dict[str, np.ndarray]):
    """Twenty images of each, one row each."""
    from scorelab import viz

    columns = 20
    print("rows of the picture:", ", ".join(images))
    stacked = np.concatenate([rows[:columns] for rows in images.values()])
    return viz.image_grid(stacked, levels=who.train_set.levels, columns=columns)


if __name__ == "__main__":
    script(main)
