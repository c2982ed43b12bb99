r"""Scores of the student's own noised law: learned along the way, or exact where the law is known."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from scorelab.arrays import Array, Key, Pytree
from scorelab.densities import Density
from scorelab.losses import Batch, DenoisingScoreMatching, EDMWeighting, Loss, Times
from scorelab.models.base import Model
from scorelab.models.denoiser import BoundDenoiser, Denoiser
from scorelab.models.exact import ExactModel
from scorelab.processes.base import require_same_process
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.pytrees import computed
from scorelab.validation import require_spec


class FakeScore(abc.ABC):
    """The model of the student's law; a new one states ``model``.

    One that is trained states ``init`` and ``loss``, or in the place of ``loss`` its two halves ``draw`` and ``error``. With these
    a batch is drawn as a whole and learned in parts (``Distillation.accumulate``).

    Attributes:
        process: the process it is about, None for any.
    """

    process: LinearGaussian | None = None

    def timed(self, times: Times) -> FakeScore:
        """The same, trained at ``times`` where it does not say at which."""
        return self

    def init(self, key: Key, x: Array, cond: Pytree, teacher: BoundDenoiser | None) -> Pytree:
        """The first parameters; ``()`` for none."""
        return ()

    def loss(self, params: Pytree, key: Key, batch: Batch) -> Array:
        """What the parameters minimise on samples of the student, ``{"x": data space, "cond": ...}``: a mean over them."""
        return self.error(params, self.draw(key, batch))

    def draw(self, key: Key, batch: Batch) -> Pytree:
        """What the loss looks at: arrays with a row for each sample; None for nothing."""
        return None

    def error(self, params: Pytree, drawn: Pytree) -> Array:
        """The mean of the loss over what was drawn."""
        return jnp.zeros((), jnp.float32)

    @abc.abstractmethod
    def model(self, params: Pytree, student: Pytree, process: LinearGaussian) -> Model | None:
        """The model, from its own parameters and those of the student; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class LearnedScore(FakeScore):
    """A denoiser that follows the student, trained on its samples.

    Attributes:
        denoiser: its network; that of the teacher where it begins with the teacher's parameters.
        objective: the loss; None for that of :meth:`at`, with the times of the distillation.
        from_teacher: begin with the parameters of the teacher, if it is a network.
    """

    denoiser: Denoiser
    objective: Loss | None = None
    from_teacher: bool = True

    def __post_init__(self):
        require_spec(self, Denoiser, denoiser=self.denoiser)
        if self.objective is None:
            return
        require_spec(self, Loss, objective=self.objective)
        require_same_process("LearnedScore", objective=self.objective.process, denoiser=self.denoiser.process)

    @classmethod
    def at(cls, denoiser: Denoiser, times: Times, *, from_teacher: bool = True) -> LearnedScore:
        """Trained with the weighting of EDM at ``times``, those at which a student asks for the score.

        Where it is not trained it does not follow, and its difference to the teacher is noise.
        """
        weighting = EDMWeighting(data_std=denoiser.data_std)
        objective = DenoisingScoreMatching(denoiser.process, weighting=weighting, times=times)
        return cls(denoiser=denoiser, objective=objective, from_teacher=from_teacher)

    @computed
    def process(self) -> LinearGaussian:
        """That of the denoiser."""
        return self.denoiser.process

    def timed(self, times):
        """With the objective of :meth:`at`, where it has none."""
        return self if self.objective is not None else self.at(self.denoiser, times, from_teacher=self.from_teacher)

    def init(self, key, x, cond, teacher):
        """Those of the teacher, or fresh ones."""
        return self.denoiser.init(key, x, cond, like=teacher if self.from_teacher else None)

    def draw(self, key, batch):
        """Noised samples."""
        return self._objective.draw(key, batch)

    def error(self, params, drawn):
        """The mean of the loss."""
        return jnp.mean(self._objective.error(self.denoiser.bind(params), drawn))

    @property
    def _objective(self) -> Loss:
        if self.objective is None:
            raise ValueError("LearnedScore.objective = None: expected a loss, such as that of LearnedScore.at")
        return self.objective

    def model(self, params, student, process):
        """The denoiser."""
        return self.denoiser.bind(params)


@dataclass(frozen=True, kw_only=True)
class KnownScore(FakeScore):
    """The exact score of a student whose law is known from its parameters.

    Attributes:
        law: parameters of the student to the law of its samples in the chart, a :class:`scorelab.densities.Density`.
    """

    law: Callable[[Pytree], Density]

    def __post_init__(self):
        if not callable(self.law):
            raise TypeError(f"KnownScore.law = {self.law!r}: expected a function of the student's parameters")

    def model(self, params, student, process):
        """The exact model."""
        return ExactModel(self.law(student), process)


@dataclass(frozen=True)
class NoScore(FakeScore):
    """For objectives that need none, such as a GAN alone."""

    def model(self, params, student, process):
        return None
