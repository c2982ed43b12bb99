"""One-step students of digits and of MNIST, by several divergences, against the teacher's sampler.

Every student is a run of `configs/paper/2502.15681/DATA.gin` with another divergence and seed; `steps` is the length of a
training, 0 for that of the config. Values are of as many images as the config evaluates, against as many training images, with
the features of the classifier: the Frechet distance, KID, precision, recall, the share of images that are classified as the class
they were asked for, and the total variation of the histogram of the classes they are taken for. The teacher is sampled with 18
steps of Heun's method (35 calls), once for each seed. Times are per image, of one compiled program each, taken in turns.
"""

from __future__ import annotations

import statistics
import time

import jax
import numpy as np
from students import DIVERGENCES, NAMES, SHOWN, STEPS, Students, difference, losses_of, table, values, without_images

from scorelab import viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="Table 3, Figure 6 (a)",
    claims="On ImageNet-64 students of one call have FID 1.27 (reverse KL), 1.21 (forward KL) and 1.16 (Jensen-Shannon), the "
    "teacher with 79 calls 2.35; recall .65 to .66 and .68.",
    look_for="Students of one call show what the teacher shows with 35 from the same noise; their distance is larger, and the "
    "three divergences are alike.",
    minutes=dict(small=3, full=15, gpu=None),
    options=dict(data=("digits", "mnist"), seeds=3, steps=0),
    small=dict(seeds=2, steps=100),
)

CHOSEN = ("rkl", "js", "fkl")


def claims(numbers: dict) -> list[Claim]:
    """What the paper says of the divergences, of the teacher and of recall, beside what was found."""
    fid = {name: values(rows, "frechet") for name, rows in numbers["students"].items()}
    teacher, recall = values(numbers["teacher"], "frechet"), values(numbers["teacher"], "recall")
    best = min(fid, key=lambda name: fid[name].mean())
    ratio = fid[best] / teacher
    lost = recall - values(numbers["students"][best], "recall")
    seeds = f"{len(ratio)} seed{'s' * (len(ratio) > 1)}, {numbers['steps']} steps of training and a small teacher."
    return [
        difference(
            "Jensen-Shannon has a lower FID than reverse KL (1.16 and 1.27).", fid["rkl"], fid["js"],
            "Frechet distance, reverse KL less Jensen-Shannon",
        ),
        Claim(
            says="The best student of one call is better than its teacher with many (1.16 and 2.35).", value=ratio.mean(),
            spread=ratio.std(ddof=ratio.size > 1), unit=f"Frechet distance of {NAMES[best]} over that of the teacher",
            verdict="reproduced" if ratio.mean() < 1 else "not reproduced", why=seeds,
        ),
        Claim(
            says="Students lose .02 to .03 of the teacher's recall (.68).", value=lost.mean(), spread=lost.std(ddof=lost.size > 1),
            unit=f"recall, teacher less {NAMES[best]}",
            verdict="reproduced" if lost.mean() <= 0.03 else "in shape" if lost.mean() > 0 else "not reproduced", why=seeds,
        ),
    ]  # fmt: skip


def health(students: dict):
    """The statistics by noise level at the end of training, one line for each seed."""
    titles = dict(ratio="mean of the ratio", h_cv="deviation of h over its mean", clipped="clipped share", accuracy="accuracy")
    content = []
    for which, title in titles.items():
        series = {}
        for name, rows in students.items():
            noise = np.array(next(iter(rows.values()))["health"]["noise"])
            series[NAMES[name]] = (noise, np.array([row["health"][which] for row in rows.values()]).T)
        content.append(viz.Panel(series=series, title=title, xlabel="noise level", logx=True))
    return viz.panels(content, width=11.0)


def main(record) -> None:
    who, o = Students(record, record.options.data), record.options

    def measure(name, seed):
        run = f"{name}_{seed}"
        experiment, state = who.train(run, seed, f"DIVERGENCE = @distill.{DIVERGENCES[name]}()")
        images = who.decode(who.draw(experiment.learner.model(state), 1, who.key(seed)))
        row = dict(who.judge(images), health=experiment.learner.diagnostics(state), losses=losses_of(record.out / "runs" / run))
        return dict(row, images=images[:SHOWN])

    def times():
        """Milliseconds per image of the teacher's sampler and of a student, in turns, after a first call of each."""
        experiment, state = who.train(f"{CHOSEN[0]}_0", 0, f"DIVERGENCE = @distill.{DIVERGENCES[CHOSEN[0]]}()")
        ways, found = dict(teacher=(who.teacher, STEPS), student=(experiment.learner.model(state), 1)), dict(teacher=[], student=[])
        for i in range(6):
            for way, (model, steps) in ways.items():
                began = time.perf_counter()
                jax.block_until_ready(who.draw(model, steps, jax.random.key(i)))
                if i:
                    found[way].append(1000 * (time.perf_counter() - began) / who.n)
        return dict(found, ratio=statistics.median(a / b for a, b in zip(found["teacher"], found["student"], strict=True)))

    known = who.floor_and_teacher()
    found = record.cells(measure, {f"{name} {seed}": (name, seed) for seed in range(o.seeds) for name in CHOSEN})
    students = {name: {str(seed): without_images(found[f"{name} {seed}"]) for seed in range(o.seeds)} for name in CHOSEN}
    numbers = dict(who.said, floor=known["floor"], teacher=known["teacher"], students=students)
    numbers["milliseconds"] = record.cell("times", times)
    table({"floor": {"": known["floor"]}, "teacher": known["teacher"], **students})
    pictures = {"teacher": known["images"]} | {NAMES[name]: found[f"{name} 0"]["images"] for name in CHOSEN}
    record.write(numbers, claims=claims(numbers), samples=who.picture(pictures), health=health(students))


if __name__ == "__main__":
    FIGURE.make(main)
