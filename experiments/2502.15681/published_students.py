"""Students of the digits by published methods, each a config beside `paper/2502.15681/digits`, against the same teacher.

Every student is a run of its config, sampled as the config says, and judged as in `one_step`. `steps` is the length of a
training, 0 for that of the config.
"""

from __future__ import annotations

import numpy as np
from students import Students, table, values, without_images

from scorelab import viz
from scorelab.run.figure import Claim, Figure

METHODS = ["diff_instruct", "dmd", "dmd2", "gan", "sid", "consistency"]
NAMES = dict(
    diff_instruct="Diff-Instruct", dmd="DMD, with pairs", dmd2="DMD2, four steps", gan="GAN alone", sid="SiD",
    consistency="consistency distillation",
)  # fmt: skip
FIGURE = Figure(
    __doc__,
    answers="Table 3",
    claims="On ImageNet-64 DMD2 has FID 1.27, SiD 1.52, a GAN on noised data 1.88, DMD 2.62, consistency training 4.02 and "
    "Diff-Instruct 5.57; the teacher with 79 calls 2.35.",
    look_for="Every method gives digits; the GAN alone and consistency distillation are farthest from the data.",
    minutes=dict(small=3, full=20, gpu=None),
    options=dict(methods=METHODS, seeds=2, steps=0),
    small=dict(seeds=2, steps=120),
)
# FID on ImageNet-64, as the paper's Table 3 has it.
PAPER = dict(diff_instruct=5.57, dmd=2.62, dmd2=1.27, gan=1.88, sid=1.52, consistency=4.02)


def claims(numbers: dict) -> list[Claim]:
    """How many pairs of methods are in the paper's order."""
    fid = {name: values(rows, "frechet") for name, rows in numbers["students"].items()}
    pairs = [(a, b) for a in fid for b in fid if PAPER[a] < PAPER[b]]
    if not pairs:
        return []
    same = sum(fid[a].mean() < fid[b].mean() for a, b in pairs)
    alone = np.mean([fid[a] < fid[b] for a, b in pairs], axis=0)
    # Without any relation half of the pairs are in order.
    return [
        Claim(
            says="In the order of FID: DMD2, SiD, a GAN, DMD, consistency, Diff-Instruct.", value=same / len(pairs),
            spread=alone.std(ddof=alone.size > 1),
            unit=f"of {len(pairs)} pairs of methods are in the paper's order",
            verdict="reproduced" if same == len(pairs) else "in shape" if same > 0.75 * len(pairs) else "not reproduced",
            why="No method was tuned on the digits, the trainings are short, and DMD2 has four steps here and one there.",
        )
    ]  # fmt: skip


def distances(numbers: dict):
    """The Frechet distance, a dot for each seed."""
    rows = {NAMES[name]: values(found, "frechet") for name, found in numbers["students"].items()}
    reference = {"teacher": values(numbers["teacher"], "frechet").mean(), "test images": numbers["floor"]["frechet"]}
    return viz.dots(rows, xlabel="Frechet distance", reference=reference, logx=True)


def main(record) -> None:
    who, o = Students(record), record.options

    def measure(method, seed):
        return who.student(f"{method}_{seed}", seed, method=f"_{method}")

    known = who.floor_and_teacher()
    found = record.cells(measure, {f"{m} {seed}": (m, seed) for seed in range(o.seeds) for m in o.methods})
    students = {m: {str(seed): without_images(found[f"{m} {seed}"]) for seed in range(o.seeds)} for m in o.methods}
    numbers = dict(who.said, floor=known["floor"], teacher=known["teacher"], students=students)
    table({"floor": {"": known["floor"]}, "teacher": known["teacher"], **students})
    pictures = {"teacher": known["images"]} | {NAMES[method]: found[f"{method} 0"]["images"] for method in o.methods}
    record.write(numbers, claims=claims(numbers), samples=who.picture(pictures), distances=distances(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
