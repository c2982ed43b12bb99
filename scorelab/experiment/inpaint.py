"""Inpainting of one image of a data set by the trained model, so that a config can name it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, cast

import jax
import numpy as np

from scorelab import fk, models, solvers
from scorelab.arrays import Array
from scorelab.densities import Gaussian
from scorelab.experiment.data import DataSpec
from scorelab.models.base import Model
from scorelab.validation import require_choice, require_int, require_positive, require_spec

METHODS = ("replace", "guide", "steer")


@dataclass(frozen=True, kw_only=True)
class Inpainting:
    """A box of one image that is filled in, by every sample anew (see ``docs/recipes.md``).

    Attributes:
        method: ``"replace"``: the known pixels are replaced at every step (:class:`scorelab.models.Known`; the solver is a
            :class:`scorelab.solvers.RePaint`); ``"guide"``: they are a linear measurement (:class:`scorelab.models.PiGDM` with the
            deviation of the data); ``"steer"``: their likelihood weighs particles (the solver is a
            :class:`scorelab.fk.FeynmanKac` without a potential).
        split: of the data set.
        image: its number in the split.
        box: what is filled in: first row, row after the last, first column, column after the last.
        std: the noise of the known pixels in the chart, for ``"guide"`` and ``"steer"``; ``"replace"`` takes them as they are.
    """

    method: Literal["replace", "guide", "steer"] = "replace"
    split: str = "test"
    image: int = 0
    box: tuple[int, int, int, int]
    std: float = 0.1

    def __post_init__(self):
        require_choice(self, METHODS, method=self.method)
        require_spec(self, str, split=self.split)
        require_int(self, 0, image=self.image)
        require_positive(self, std=self.std)
        require_spec(self, tuple | list, box=self.box)
        object.__setattr__(self, "box", tuple(self.box))
        if len(self.box) != 4:
            raise ValueError(
                f"Inpainting.box = {self.box}: expected (first row, row after the last, first column, column after the last)"
            )
        for value in self.box:
            require_int(self, 0, box=value)

    def check(self, data: DataSpec, solver: solvers.Solver) -> None:
        """Raise ValueError where the solver is not that of the method, or the data have no such image or box."""
        if (self.method == "replace") != isinstance(solver, solvers.RePaint):
            wanted = "a RePaint" if self.method == "replace" else "another solver than RePaint"
            raise ValueError(f"Sample.solver = {solver!r} with Inpainting.method = {self.method!r}: expected {wanted}")
        steers = isinstance(solver, fk.FeynmanKac) and isinstance(solver.potential, fk.Zero)
        if self.method == "steer" and not steers:
            raise ValueError(
                f"Sample.solver = {solver!r} with Inpainting.method = 'steer': expected a FeynmanKac without a potential, which is "
                "the likelihood"
            )
        images = data.load(self.split)
        shape = images.event_shape
        if len(shape) < 2:
            raise ValueError(f"Inpainting for {data.name} with points of shape {shape}: expected images")
        top, bottom, left, right = self.box
        if not (top < bottom <= shape[0] and left < right <= shape[1]) or (bottom - top, right - left) == shape[:2]:
            raise ValueError(f"Inpainting.box = {self.box} for images of shape {shape}: expected a part of them")
        if self.image >= len(images.x):
            raise ValueError(
                f"Inpainting.image = {self.image}: expected 0 to {len(images.x) - 1}, the {self.split} images of {data.name}"
            )

    def __call__(self, model: Model, solver: solvers.Solver, data: DataSpec) -> tuple[Model, solvers.Solver]:
        """The model and the solver that fill in; the numbers of the image are leaves of both."""
        self.check(data, solver)
        process: Any = model.process
        stored = data.load(self.split).x[self.image : self.image + 1]
        y = np.asarray(process.chart.encode(data.transform.encode(stored)), np.float64)[0]
        top, bottom, left, right = self.box
        mask = np.ones(y.shape, bool)
        mask[top:bottom, left:right] = False
        if self.method == "replace":
            return models.Known(model=model, values=y, mask=mask), solver
        known = mask.reshape(-1)
        measurement = models.LinearMeasurement(matrix=np.eye(y.size)[known], values=y.reshape(-1)[known], std=self.std)
        if self.method == "guide":
            return models.PiGDM(model=model, measurement=measurement, prior_std=data.moments(process.chart)[1]), solver
        law = Gaussian.from_data(data.encoded(process.chart))
        likelihood = _Likelihood(measurement, process)
        potential = fk.Difference(reward=likelihood, scale=1.0, intermediate=fk.Blurred(measurement=measurement, law=law))
        return model, dataclasses.replace(cast(fk.FeynmanKac, solver), potential=potential)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Likelihood:
    """The likelihood of points of data space; other measurements do not recompile."""

    measurement: models.LinearMeasurement
    process: Any = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Array) -> Array:
        return self.measurement.log_likelihood(self.process.encode(x))
