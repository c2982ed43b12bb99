"""Seeds: beyond 32 bits they would repeat, so every field takes integers in [0, 2**32)."""

import numpy as np
import pytest

from scorelab.data import Batches, Named, load
from scorelab.densities import Gaussian, GaussianMixture
from scorelab.experiment import DataSpec, Experiment, PointEvaluation
from scorelab.experiment.pairs import Pairs
from scorelab.grids import Karras
from scorelab.metrics import kid, pixels
from scorelab.models import ExactModel
from scorelab.processes import Gaussian as Process
from scorelab.schedules import EDM
from scorelab.solvers import Heun
from scorelab.training import EMA, Learner

POINTS = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
IMAGES = np.zeros((40, 1, 2, 1), np.uint8) + np.arange(40, dtype=np.uint8)[:, None, None, None]
PROCESS = Process(schedule=EDM())


class Untrained(Learner):
    """What an experiment takes for a learner."""

    ema = EMA()
    process = PROCESS

    def init(self, key, batch): ...

    def update(self, key, state, batch): ...

    def model(self, state): ...


FIELDS = {
    "Batches": lambda seed: Batches({"x": POINTS}, batch_size=4, seed=seed),
    "load": lambda seed: load("two_moons", n=4, seed=seed),
    "DataSpec": lambda seed: DataSpec(dataset=Named(name="two_moons", n=4, seed=seed)),
    "PointEvaluation": lambda seed: PointEvaluation(seed=seed),
    "Pairs": lambda seed: Pairs(
        teacher=ExactModel(Gaussian(np.zeros(2), 1.0), PROCESS), solver=Heun(), grid=Karras(4), n=4, batch_size=2, seed=seed
    ),
    "Experiment": lambda seed: Experiment(data=DataSpec(dataset=Named(name="rings")), learner=Untrained(), stages=(), seed=seed),
    "kid": lambda seed: kid(IMAGES, IMAGES, pixels(), subsets=2, seed=seed),
    "from_data": lambda seed: Gaussian.from_data(POINTS, seed=seed),
    "GaussianMixture.fit": lambda seed: GaussianMixture.fit(POINTS, 2, seed=seed),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_seed_is_an_integer_below_two_to_the_32(name):
    for seed in (-1, 2**32, 2**40, 1.5, True, "1", np.float32(2), np.int64(2**32)):
        with pytest.raises(ValueError, match=r"seed = .*: expected an integer seed in \[0, 4294967295\]"):
            FIELDS[name](seed)
    # The floor of PointEvaluation takes the next seed.
    for seed in (0, np.int64(7), 2**32 - (2 if name == "PointEvaluation" else 1)):
        FIELDS[name](seed)
