r"""Students of the digits by published methods, each a config beside ``paper/2502.15681/digits``, against the same teacher.

    python experiments/2502.15681/published_students.py

Every student is a run of its config in ``--workdir``; runs that are complete there are used again, and a killed one goes on from
its checkpoint. Sampled as the config says, and scored as in ``one_step.py``. With ``--methods`` only those are run, and what the
file of numbers has of others stays.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
from one_step import STEPS, Students

from scorelab import sample
from scorelab.experiment import Sample, Train
from scorelab.run.script import parse, plus_minus, record, script

METHODS = ["diff_instruct", "dmd", "dmd2", "gan", "sid", "consistency"]
SHOWN = ("frechet", "kid", "recall", "wanted", "histogram")


def main() -> None:
    small = dict(seeds=1, steps=120, workdir=Path("runs/published_small"))
    options = dict(methods=METHODS, seeds=2, steps=0, workdir=Path("runs/one_step"))
    arguments = parse(__doc__, small=small, **options)
    who = Students("digits", arguments)
    file = arguments.out / "published_students.json"
    numbers = json.loads(file.read_text())["numbers"] if file.exists() else dict(n=who.n, students={})
    teacher = [who.draw(who.teacher, STEPS, jax.random.key(100 + seed)) for seed in range(arguments.seeds)]
    numbers["teacher"] = {str(seed): who.judge(who.decode(x)) for seed, x in enumerate(teacher)}
    first = {"teacher": teacher[0]}
    for method in arguments.methods:
        for seed in range(arguments.seeds):
            x, row = student(who, method, seed)
            first.setdefault(method, x)
            numbers["students"].setdefault(method, {})[str(seed)] = row
            print(method, seed, row, flush=True)
    print(f"teacher with {2 * STEPS - 1} calls")
    for name, rows in {"teacher": numbers["teacher"], **numbers["students"]}.items():
        cells = (f"{which} {plus_minus([row[which] for row in rows.values()])}" for which in SHOWN)
        print(f"{name}: " + ", ".join(cells))
    record(arguments, numbers, samples=who.picture(first))


def student(who: Students, method: str, seed: int):
    """The samples of a trained student by the sampler of its config, and their scores."""
    experiment, state, _ = who.trained(f"_{method}", f"{method}_{seed}", seed)
    spec = experiment.one(Sample)
    out = sample(
        experiment.learner.model(state), solver=spec.solver, grid=spec.grid, key=jax.random.key(100 + seed),
        shape=(who.n, *who.train_set.event_shape), cond=who.label,
    )  # fmt: skip
    found = who.judge(who.decode(out.x))
    return out.x, dict(found, calls=int(out.diagnostics["model_calls"]), steps=experiment.one(Train).steps)


if __name__ == "__main__":
    script(main)
