r"""One-step students of digits and of MNIST, by several divergences, against the teacher's sampler.

    python experiments/one_step.py --data digits
    python experiments/one_step.py --data mnist

Every student is a run of ``configs/paper/2502.15681/DATA.gin`` with another divergence and seed, in ``--workdir``; runs that are
complete there are used again, and a killed one goes on from its checkpoint. Scores are of ``n`` images each, against as many
training images, with the classifier's features: the Frechet distance, KID, recall, the share of images that are classified as the
class they were asked for, and the total variation of the histogram of the classes they are taken for. The teacher is sampled with
18 steps of Heun's method (35 calls), once for each seed. Times are per image, of one compiled program each, taken in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from recording import record, script

from scorelab.experiment import Train

NAMES = dict(rkl="ReverseKL", js="JensenShannon", fkl="ForwardKL")
STEPS = 18


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/figures/one_step"), help="folder of the figures and numbers")
    parser.add_argument("--workdir", type=Path, default=Path("runs/one_step"), help="folder of the trainings")
    arguments = parser.parse_args()

    who = Students(arguments.data, arguments.workdir)
    numbers = dict(
        n=who.n, steps=who.experiment.one(Train).steps, sampler=f"Heun, {STEPS} steps, {2 * STEPS - 1} calls", students={}
    )
    numbers["floor"] = who.floor()
    numbers["teacher"] = {str(seed): who.judge(who.teacher_images(seed)) for seed in range(arguments.seeds)}
    print("floor", numbers["floor"], "\nteacher", numbers["teacher"], flush=True)
    shown = {}
    for seed in range(arguments.seeds):
        for name in NAMES:
            learner, state, seconds = who.train(name, seed)
            images = who.student_images(learner, state, seed)
            row = dict(who.judge(images), seconds=seconds, health={k: v.tolist() for k, v in learner.diagnostics(state).items()})
            numbers["students"].setdefault(name, {})[str(seed)] = row
            shown.setdefault(name, (learner, state))
            print(name, seed, {k: v for k, v in row.items() if k != "health"}, flush=True)
    numbers["milliseconds"] = who.race(*shown[next(iter(NAMES))])
    print("per image", numbers["milliseconds"])
    label = f"one_step_{arguments.data}"
    figures = dict(samples=who.grid(shown), health=health_panel(numbers["students"]))
    for which in ("frechet", "kid", "recall", "wanted", "histogram"):
        of = lambda rows: np.array([row[which] for row in rows.values()])
        cells = {"teacher": of(numbers["teacher"])} | {name: of(rows) for name, rows in numbers["students"].items()}
        print(which + ": " + ", ".join(f"{k} {v.mean():.3f} ± {v.std(ddof=len(v) > 1):.3f}" for k, v in cells.items()))
    record(arguments, "one_step", numbers, label=label, **figures)


class Students:
    """The config of a data set, its teacher, and what the images are held against."""

    def __init__(self, name: str, workdir: Path):
        # The config decides the number of devices, so nothing before this may use JAX.
        from scorelab import config as configs
        from scorelab import metrics

        self.name, self.workdir = name, workdir
        self.config = f"paper/2502.15681/{name}"
        self.experiment = configs.load(self.config).experiment
        self.data = self.experiment.data
        self.train_set, self.test_set = self.data.load("train"), self.data.load("test")
        self.teacher = self.experiment.learner.teacher
        self.cnn = metrics.small_cnn(name)
        self.n = min(self.experiment.evaluation.n, len(self.test_set))
        self.event = self.train_set.event_shape
        self.label = np.arange(self.n, dtype=np.int32) % 10
        chosen = np.random.default_rng(0).permutation(len(self.train_set))[: self.n]
        self.reference = self.cnn(self.train_set.x[chosen])

    def judge(self, images: np.ndarray, label: np.ndarray | None = None) -> dict[str, float]:
        """The scores of images of the classes ``label``, 0 to 9 in turns by default."""
        from scorelab import metrics

        z, same = self.cnn(images), metrics.features.Coordinates(id=self.cnn.id)
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

    def train(self, name: str, seed: int):
        """The learner, its last state, and the seconds of training (0 where it was there already)."""
        overrides = [f"DIVERGENCE = @distill.{NAMES[name]}()", f"experiment.Experiment.seed = {seed}"]
        experiment, state, seconds = self.run(self.config, overrides, f"{name}_{seed}")
        return experiment.learner, state, seconds

    def run(self, config: str, overrides: list[str], label: str):
        """The experiment of a config, its last state, and the seconds of training."""
        from scorelab import config as configs
        from scorelab.experiment.train import trained_state
        from scorelab.experiment.workdir import Workdir
        from scorelab.run.pipeline import from_config

        root = self.workdir / self.name / label
        began = time.monotonic()
        from_config(config, overrides, root, resume=root.exists(), whole=False)
        experiment = configs.load(config, overrides).experiment
        state, step = trained_state(experiment, Workdir(root))
        if step != experiment.one(Train).steps:
            raise ValueError(f"{root} is at step {step}: expected {experiment.one(Train).steps}")
        return experiment, state, time.monotonic() - began

    def decode(self, x) -> np.ndarray:
        return np.asarray(self.data.transform.decode(x))

    def sampler(self, model, steps: int):
        """``key -> samples``, one compiled program of all images."""
        from scorelab import grids, sample, solvers

        options = dict(solver=solvers.Heun(), grid=grids.Karras(steps), shape=(self.n, *self.event), cond=self.label)
        return lambda key: sample(model, key=key, **options).x

    def teacher_images(self, seed: int) -> np.ndarray:
        import jax

        return self.decode(self.sampler(self.teacher, STEPS)(jax.random.key(100 + seed)))

    def student_images(self, learner, state, seed: int) -> np.ndarray:
        import jax

        return self.decode(self.sampler(learner.model(state), 1)(jax.random.key(100 + seed)))

    def race(self, learner, state, rounds: int = 5) -> dict:
        """Milliseconds per image of the teacher's sampler and of the student, in turns, after a first call of each."""
        import jax

        ways = dict(teacher=self.sampler(self.teacher, STEPS), student=self.sampler(learner.model(state), 1))
        times = {way: [] for way in ways}
        for i in range(rounds + 1):
            for way, draw in ways.items():
                began = time.perf_counter()
                jax.block_until_ready(draw(jax.random.key(i)))
                if i:
                    times[way].append(1000 * (time.perf_counter() - began) / self.n)
        ratio = statistics.median(a / b for a, b in zip(times["teacher"], times["student"], strict=True))
        return dict(times, ratio=ratio)

    def grid(self, shown: dict):
        """The teacher's images and every student's from the same noise, one row each."""
        import jax

        from scorelab import grids, sample, solvers, viz

        columns, key = 20, jax.random.key(3)
        label = np.arange(columns, dtype=np.int32) % 10
        options = dict(solver=solvers.Heun(), key=key, shape=(columns, *self.event), cond=label)
        rows = [sample(self.teacher, grid=grids.Karras(STEPS), **options).x]
        rows += [sample(learner.model(state), grid=grids.Karras(1), **options).x for learner, state in shown.values()]
        print("rows of the picture: teacher,", ", ".join(shown))
        images = self.decode(np.concatenate([np.asarray(x) for x in rows]))
        return viz.image_grid(images, levels=self.train_set.levels, columns=columns)


def health_panel(students: dict):
    """The statistics by noise level at the end of training, one line for each divergence, dots for seeds."""
    from scorelab import viz

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
