r"""Students: generators that take noise to a sample in one network call, or in a few."""

from __future__ import annotations

import abc
import itertools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Key, Pytree, per_example
from scorelab.models.denoiser import BoundDenoiser, Denoiser
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.pytrees import computed
from scorelab.validation import require_spec


class Student(abc.ABC):
    """What a distillation trains: a hashable spec of pure functions on parameters.

    A new one states ``init``, ``bind`` and ``draw``, or in the place of ``draw`` its two halves ``noise`` and ``made``. With these
    a batch is drawn as a whole and made in parts (``Distillation.accumulate``).

    Attributes:
        process: the process in whose chart it draws, None for any.
        calls: network calls of a sample.
    """

    process: LinearGaussian | None = None
    calls: int = 1

    @abc.abstractmethod
    def init(self, key: Key, x: Array, cond: Pytree, teacher: BoundDenoiser | None) -> Pytree:
        """The first parameters, for data shaped like ``x``; ``teacher`` is there where the teacher is a network."""

    def draw(self, params: Pytree, key: Key, like: Array, cond: Pytree) -> Array:
        """Samples in the chart, shaped like ``like``, differentiable in ``params``."""
        return self.made(params, self.noise(key, like), cond)

    def noise(self, key: Key, like: Array) -> Pytree:
        """All that is random in samples shaped like ``like``: arrays with a row for each of them."""
        raise NotImplementedError(f"{type(self).__name__}: expected draw, or noise and made")

    def made(self, params: Pytree, noise: Pytree, cond: Pytree) -> Array:
        """The samples that ``noise`` becomes, row by row."""
        raise NotImplementedError(f"{type(self).__name__}: expected draw, or noise and made")

    @abc.abstractmethod
    def bind(self, params: Pytree) -> Any:
        """The generator with parameters: called as ``(z, cond)`` with standard normal ``z``, it returns points of data space."""

    def model(self, params: Pytree) -> Any:
        """A model for :func:`scorelab.sample` where the student is a network, else its generator."""
        return self.bind(params)


@dataclass(frozen=True, kw_only=True)
class FewStep(Student):
    r"""A denoiser called at a few fixed times; with one time, :math:`G(z) = D(b_T + \sigma_T z,\ T)`.

    .. math:: x_1 = D(b_1+\sigma_1z_1, t_1),\qquad x_{k+1} = D(\alpha_{k+1}x_k + b_{k+1} + \sigma_{k+1}z_{k+1},\ t_{k+1}) .

    In training each example stops at a step drawn at random, the steps before it run without a gradient, as the sampler would
    take them (DMD2, arXiv 2405.14867, section 4.5). Sampled by ``solvers.Renoise()`` on the grid of the times, with the clean time
    at the end.

    Attributes:
        denoiser: network, process and parameterisation; for an initialisation from a teacher, the network of the teacher.
        times: decreasing times; None for the largest one alone.
        from_teacher: begin with the parameters of the teacher, if it is a network.
    """

    denoiser: Denoiser
    times: tuple[float, ...] | None = None
    from_teacher: bool = True

    def __post_init__(self):
        require_spec(self, Denoiser, denoiser=self.denoiser)
        if self.times is not None:
            object.__setattr__(self, "times", tuple(float(t) for t in self.times))
            low, high = self.process.t_min, self.process.t_max
            falling = all(a > b for a, b in itertools.pairwise(self.times))
            if not (self.times and falling and low <= self.times[-1] and self.times[0] <= high):
                raise ValueError(f"FewStep.times = {self.times}: expected decreasing times in [{low}, {high}], at least one")

        with jax.ensure_compile_time_eval():
            found = [bool(jnp.isfinite(jnp.stack(self.denoiser.coefficients(jnp.float32(t)))).all()) for t in self.steps]
        if not all(found):
            raise ValueError(
                f"FewStep.times = {self.steps} with predict = {self.denoiser.predict!r}: expected times at which the denoised "
                "point is finite; alpha is 0 at the end of this process, where 'flow' or an earlier time would do"
            )

    @computed
    def process(self) -> LinearGaussian:
        """The process of the denoiser."""
        return self.denoiser.process

    @computed
    def calls(self) -> int:
        """One at each time."""
        return len(self.steps)

    @property
    def steps(self) -> tuple[float, ...]:
        """The times at which the network is called."""
        return (self.process.t_max,) if self.times is None else self.times

    def init(self, key, x, cond, teacher):
        """Those of the teacher, or fresh ones."""
        return self.denoiser.init(key, x, cond, like=teacher if self.from_teacher else None)

    def noise(self, key, like):
        """Of every step, and the numbers of the steps at which the examples stop."""
        key_step, *keys = jax.random.split(key, self.calls + 1)
        drawn = tuple(jax.random.normal(k, like.shape, like.dtype) for k in keys)
        return drawn, jax.random.randint(key_step, like.shape[:1], 0, self.calls)

    def made(self, params, noise, cond):
        noise, last = noise
        count, like = self.calls, noise[0]
        if count == 1:
            return self.at(params, noise[0], None, self.steps[0], cond)
        # No gradient through the earlier steps: their parameters are held, and each example ends at a step of its own.
        held, inputs, x = jax.lax.stop_gradient(params), [], None
        for t, z in zip(self.steps, noise, strict=True):
            inputs.append(self._noised(z, x, t))
            if len(inputs) < count:
                x = self.denoiser.bind(held)(inputs[-1], jnp.asarray(t, like.dtype), cond).denoised
        chosen = jnp.take_along_axis(jnp.stack(inputs), per_example(last, like)[None], axis=0)[0]
        return self.denoiser.bind(params)(chosen, jnp.asarray(self.steps, like.dtype)[last], cond).denoised

    def at(self, params: Pytree, z: Array, x: Array | None, t: float, cond: Pytree) -> Array:
        """One step: the denoised point at ``t`` from ``x`` of the step before, None at the first one; in the chart."""
        return self.denoiser.bind(params)(self._noised(z, x, t), jnp.asarray(t, z.dtype), cond).denoised

    def _noised(self, z, x, t):
        t = jnp.asarray(t, z.dtype)
        clean = 0.0 if x is None else self.process.alpha(t) * x
        return clean + self.process.offset(t) + self.process.sigma(t) * z

    def bind(self, params):
        return BoundFewStep(params=params, student=self)

    def model(self, params) -> BoundDenoiser:
        """The network."""
        return self.denoiser.bind(params)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BoundFewStep:
    """A few-step student with parameters; its leaves are the parameters."""

    params: Pytree
    student: FewStep = field(metadata={"static": True})

    def __call__(self, z: Array, cond: Pytree = None) -> Array:
        """Points of data space from standard normal ``z``: ``(batch, *event)``, or ``(steps, batch, *event)`` for several steps."""
        steps = self.student.steps
        parts = [z] if len(steps) == 1 else list(z)
        if len(parts) != len(steps):
            raise ValueError(f"FewStep got z of shape {z.shape}: expected ({len(steps)}, batch, *event), noise for every step")
        x = self.student.at(self.params, parts[0], None, steps[0], cond)
        for t, part in zip(steps[1:], parts[1:], strict=True):
            x = self.student.at(self.params, part, x, t, cond)
        return self.student.process.decode(x)
