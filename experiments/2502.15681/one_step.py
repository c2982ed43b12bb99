r"""One-step students of digits and of MNIST, by several divergences, against the teacher's sampler.

    python experiments/2502.15681/one_step.py --data digits
    python experiments/2502.15681/one_step.py --data mnist

Every student is a run of ``configs/paper/2502.15681/DATA.gin`` with another divergence and seed, in ``--workdir``; runs that are
complete there are used again, and a killed one goes on from its checkpoint; with ``--steps 0`` as far as the config says. Scores
are of ``n`` images each, against as many training images, with the classifier's features: the Frechet distance, KID, recall, the
share of images that are classified as the class they were asked for, and the total variation of the histogram of the classes they
are taken for. The teacher is sampled with 18 steps of Heun's method (35 calls), once for each seed. Times are per image, of one
compiled program each, taken in turns.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import jax
import numpy as np

from scorelab import config as configs
from scorelab import grids, metrics, sample, solvers, viz
from scorelab.experiment import Evaluate, Train
from scorelab.run.script import parse, plus_minus, record, script, trained

NAMES = dict(rkl="ReverseKL", js="JensenShannon", fkl="ForwardKL")
STEPS, SHOWN = 18, 20


def main() -> None:
    options = dict(data=("digits", "mnist"), seeds=3, steps=0, workdir=Path("runs/one_step"))
    arguments = parse(__doc__, small=dict(seeds=1, steps=20, workdir=Path("runs/one_step_small")), **options)
    who = Students(arguments.data, arguments)
    numbers = dict(
        n=who.n, steps=who.experiment.one(Train).steps, sampler=f"Heun, {STEPS} steps, {2 * STEPS - 1} calls", students={}
    )
    numbers["floor"] = who.floor()
    numbers["teacher"] = {str(seed): who.judge(who.images(who.teacher, STEPS, seed)) for seed in range(arguments.seeds)}
    print("floor", numbers["floor"], "\nteacher", numbers["teacher"], flush=True)
    shown = {}
    for seed in range(arguments.seeds):
        for name, divergence in NAMES.items():
            experiment, state, seconds = who.trained("", f"{name}_{seed}", seed, f"DIVERGENCE = @distill.{divergence}()")
            model, health = experiment.learner.model(state), experiment.learner.diagnostics(state)
            row = dict(who.judge(who.images(model, 1, seed)), seconds=seconds, health=health)
            numbers["students"].setdefault(name, {})[str(seed)] = row
            shown.setdefault(name, model)
            print(name, seed, {k: v for k, v in row.items() if k != "health"}, flush=True)
    numbers["milliseconds"] = who.race(shown[next(iter(NAMES))])
    print("per image", numbers["milliseconds"])
    for which in ("frechet", "kid", "recall", "wanted", "histogram"):
        rows = {"teacher": numbers["teacher"]} | numbers["students"]
        cells = (f"{name} {plus_minus([row[which] for row in found.values()])}" for name, found in rows.items())
        print(which + ": " + ", ".join(cells))
    pictures = {"teacher": who.draw(who.teacher, STEPS, jax.random.key(3), SHOWN)}
    pictures |= {name: who.draw(model, 1, jax.random.key(3), SHOWN) for name, model in shown.items()}
    record(arguments, numbers, samples=who.picture(pictures), health=health_panel(numbers["students"]))


class Students:
    """The config of a data set, its teacher, and what the images are held against."""

    def __init__(self, data: str, arguments):
        self.folder, self.config = arguments.workdir / data, f"paper/2502.15681/{data}"
        self.sets = [f"STEPS = {arguments.steps}"] if arguments.steps else []
        # The config decides the number of devices, so nothing before this may use JAX.
        self.experiment = configs.load(self.config, self.sets).experiment
        self.data, self.teacher = self.experiment.data, self.experiment.learner.teacher
        self.train_set, self.test_set = self.data.load("train"), self.data.load("test")
        self.cnn = metrics.small_cnn(data)
        self.n = min(self.experiment.one(Evaluate).evaluations[0].n, len(self.test_set))
        self.label = np.arange(self.n, dtype=np.int32) % 10
        chosen = np.random.default_rng(0).permutation(len(self.train_set))[: self.n]
        self.reference = self.cnn(self.train_set.x[chosen])

    def judge(self, images: np.ndarray, label: np.ndarray | None = None) -> dict[str, float]:
        """The scores of images of the classes ``label``, 0 to 9 in turns by default."""
        z, same = self.cnn(images), metrics.Coordinates(id=self.cnn.id)
        label = self.label if label is None else label
        taken = self.cnn.logits(images).argmax(1)
        share = lambda of: np.bincount(of, minlength=10) / len(of)
        found = metrics.precision_recall(z, self.reference, same)
        return dict(
            frechet=metrics.frechet(z, self.reference, same).value, kid=metrics.kid(z, self.reference, same).value,
            precision=found.precision, recall=found.recall, wanted=float(np.mean(taken == label)),
            histogram=float(0.5 * np.abs(share(taken) - share(label)).sum()), classes=share(taken).tolist(),
        )  # fmt: skip

    def floor(self) -> dict[str, float]:
        """The scores of test images."""
        chosen = np.random.default_rng(1).permutation(len(self.test_set))[: self.n]
        return self.judge(self.test_set.x[chosen], self.test_set.label[chosen].astype(int))

    def trained(self, method: str, run: str, seed: int, *sets: str):
        """The experiment of a method (that of the paper: "") in the folder ``run``, its last state, and the seconds of training."""
        began = time.monotonic()
        sets = [*sets, *self.sets, f"experiment.Experiment.seed = {seed}"]
        experiment, state = trained(self.config + method, sets, self.folder / run)
        return experiment, state, time.monotonic() - began

    def decode(self, x) -> np.ndarray:
        return np.asarray(self.data.transform.decode(x))

    def draw(self, model, steps: int, key, n: int = 0):
        """As many samples as are judged, or ``n``, as one compiled program."""
        n = n or self.n
        shape = (n, *self.train_set.event_shape)
        return sample(model, solver=solvers.Heun(), grid=grids.Karras(steps), key=key, shape=shape, cond=self.label[:n]).x

    def images(self, model, steps: int, seed: int) -> np.ndarray:
        """Samples in stored values."""
        return self.decode(self.draw(model, steps, jax.random.key(100 + seed)))

    def race(self, student, rounds: int = 5) -> dict:
        """Milliseconds per image of the teacher's sampler and of the student, in turns, after a first call of each."""
        ways = dict(teacher=(self.teacher, STEPS), student=(student, 1))
        times = {way: [] for way in ways}
        for i in range(rounds + 1):
            for way, (model, steps) in ways.items():
                began = time.perf_counter()
                jax.block_until_ready(self.draw(model, steps, jax.random.key(i)))
                if i:
                    times[way].append(1000 * (time.perf_counter() - began) / self.n)
        ratio = statistics.median(a / b for a, b in zip(times["teacher"], times["student"], strict=True))
        return dict(times, ratio=ratio)

    def picture(self, samples: dict):
        """The first samples of each, one row each."""
        print("rows of the picture:", ", ".join(samples))
        images = self.decode(np.concatenate([np.asarray(x[:SHOWN]) for x in samples.values()]))
        return viz.image_grid(images, levels=self.train_set.levels, columns=SHOWN)


def health_panel(students: dict):
    """The statistics by noise level at the end of training, one line for each divergence, dots for seeds."""
    titles = dict(ratio="mean of the ratio", h_cv="deviation of h / mean", clipped="clipped share", accuracy="accuracy")
    content = []
    for which, title in titles.items():
        series = {}
        for name, rows in students.items():
            noise = np.array(next(iter(rows.values()))["health"]["noise"])
            series[name] = (noise, np.array([row["health"][which] for row in rows.values()]).T)
        content.append(viz.Panel(series=series, title=title, xlabel="noise ratio", logx=True))
    return viz.panels(content)


if __name__ == "__main__":
    script(main)
