"""One-step students of a teacher that the package carries, trained by configs, and what their images are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from scorelab import config as configs
from scorelab import grids, metrics, sample, solvers, viz
from scorelab.experiment import Evaluate, Sample, Train
from scorelab.experiment.workdir import Workdir, read_lines
from scorelab.run.figure import Claim, Record, plus_minus

# The teacher is sampled with so many steps of Heun's method; so many images of each row are kept for a picture.
STEPS, SHOWN = 18, 20
SCORES = ("frechet", "kid", "precision", "recall", "wanted", "histogram")
DIVERGENCES = dict(
    rkl="ReverseKL", srkl="SoftenedReverseKL", js="JensenShannon", sqhel="SquaredHellinger", fkl="ForwardKL", jeffreys="Jeffreys"
)
NAMES = dict(
    rkl="reverse KL", srkl="softened reverse KL", js="Jensen-Shannon", sqhel="squared Hellinger", fkl="forward KL",
    jeffreys="Jeffreys",
)  # fmt: skip


class Students:
    """The config ``paper/2502.15681/DATA``, its teacher, and what the images are held against.

    Options of the record: ``steps``, of a training, 0 for those of the config.
    """

    def __init__(self, record: Record, data: str = "digits"):
        self.record, self.config = record, f"paper/2502.15681/{data}"
        self.sets = [f"STEPS = {record.options.steps}"] if record.options.steps else []
        # The config decides the number of devices, so nothing before this may use JAX.
        self.experiment = configs.load(self.config, self.sets).experiment
        self.data, self.teacher = self.experiment.data, self.experiment.learner.teacher
        self.train_set, self.test_set = self.data.load("train"), self.data.load("test")
        self.cnn = metrics.small_cnn(data)
        self.n = min(self.experiment.one(Evaluate).evaluations[0].n, len(self.test_set))
        self.label = np.arange(self.n, dtype=np.int32) % 10
        chosen = np.random.default_rng(0).permutation(len(self.train_set))[: self.n]
        self.reference = self.cnn(self.train_set.x[chosen])

    @property
    def said(self) -> dict:
        """What the numbers of a figure begin with."""
        sampler = f"Heun, {STEPS} steps, {2 * STEPS - 1} calls"
        return dict(n=self.n, steps=self.experiment.one(Train).steps, features=self.cnn.id, sampler=sampler)

    def judge(self, images: np.ndarray, label: np.ndarray | None = None) -> dict:
        """The values of the metrics for images of the classes ``label``, 0 to 9 in turns by default."""
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

    def floor(self) -> dict:
        """The values for test images."""
        chosen = np.random.default_rng(1).permutation(len(self.test_set))[: self.n]
        return self.judge(self.test_set.x[chosen], self.test_set.label[chosen].astype(int))

    def floor_and_teacher(self) -> dict:
        """The values for test images, and for the teacher's samples of every seed; with the first images of the first."""
        asked = {"floor": (None,)} | {f"teacher {seed}": (seed,) for seed in range(self.record.options.seeds)}
        found = self.record.cells(self._known, asked)
        images = found["teacher 0"]["images"]
        rows = {str(seed): without_images(found[f"teacher {seed}"]) for seed in range(self.record.options.seeds)}
        return dict(floor=found["floor"], teacher=rows, images=images)

    def _known(self, seed: int | None) -> dict:
        if seed is None:
            return self.floor()
        images = self.decode(self.draw(self.teacher, STEPS, self.key(seed)))
        return dict(self.judge(images), images=images[:SHOWN])

    def train(self, name: str, seed: int, *sets: str, method: str = ""):
        """The experiment of a method (that of the paper: "") in the run ``name``, and its last state."""
        sets = (*sets, *self.sets, f"experiment.Experiment.seed = {seed}")
        return self.record.trained(name, self.config + method, *sets)

    def student(self, name: str, seed: int, *sets: str, method: str = "") -> dict:
        """A trained student by the sampler of its config: the values, the number of calls, the training, the first images."""
        experiment, state = self.train(name, seed, *sets, method=method)
        spec = experiment.one(Sample)
        out = sample(
            experiment.learner.model(state), solver=spec.solver, grid=spec.grid, key=self.key(seed), cond=self.label,
            shape=(self.n, *self.train_set.event_shape),
        )  # fmt: skip
        images = self.decode(out.x)
        return dict(
            self.judge(images), calls=int(out.diagnostics["model_calls"]), steps=experiment.one(Train).steps,
            losses=losses_of(self.record.out / "runs" / name), images=images[:SHOWN],
        )  # fmt: skip

    def key(self, seed: int) -> jax.Array:
        """That of the samples of a seed, the same for the teacher and all students."""
        return jax.random.key(100 + seed)

    def decode(self, x) -> np.ndarray:
        """Stored values of points."""
        return np.asarray(self.data.transform.decode(x))

    def draw(self, model, steps: int, key):
        """As many samples as are judged, as one compiled program."""
        shape = (self.n, *self.train_set.event_shape)
        return sample(model, solver=solvers.Heun(), grid=grids.Karras(steps), key=key, shape=shape, cond=self.label).x

    def picture(self, images: Mapping[str, np.ndarray]):
        """The first images of everyone, from the same noise, one row each."""
        flat = np.concatenate([np.asarray(x, np.uint8) for x in images.values()])
        return viz.image_grid(flat, levels=self.train_set.levels, columns=SHOWN, rows=list(images), width=8.0)


def losses_of(root: Path) -> dict[str, list[float]]:
    """The loss of the student in a work directory: the last step of every window, and its mean there.

    Where the student is all that is trained, as under consistency distillation, it is the loss itself.
    """
    rows = [row for _, row in read_lines(Workdir(root).metrics_log)]
    return dict(step=[row["step"] for row in rows], loss=[row.get("student_loss", row["loss"]) for row in rows])


def without_images(row: Mapping) -> dict:
    """The numbers of a cell."""
    return {k: v for k, v in row.items() if k != "images"}


def values(rows: Mapping[str, Mapping], which: str) -> np.ndarray:
    """One value for each seed."""
    return np.array([row[which] for row in rows.values()])


def table(rows: Mapping[str, Mapping[str, Mapping]]) -> None:
    """Print mean and deviation over the seeds of every metric, one line for each of ``rows``."""
    for name, found in rows.items():
        print(f"{name:36s} " + "  ".join(f"{which} {plus_minus(values(found, which))}" for which in SCORES))


def difference(says: str, a: Sequence[float], b: Sequence[float], unit: str) -> Claim:
    """The claim that ``a`` exceeds ``b``, paired by seed: reproduced where it does by two standard errors."""
    d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    mean, spread = float(d.mean()), float(d.std(ddof=1)) if d.size > 1 else 0.0
    error = spread / np.sqrt(d.size)
    if d.size == 1:
        return Claim(says=says, value=mean, spread=0.0, unit=unit, verdict="not comparable",
            why="One seed does not say how much of a difference is chance.")  # fmt: skip
    verdict = "reproduced" if mean > 2 * error else "not reproduced"
    why = f"{d.size} seeds: the difference is {mean / error:.1f} of its standard errors, and two are asked for."
    return Claim(says=says, value=mean, spread=spread, unit=unit, verdict=verdict, why=why)
