r"""Losses of stochastic interpolants: regressions whose minimisers are the velocity and the latent noise.

.. math:: u = E[\dot\alpha x + \dot\beta w + \dot\gamma z\mid y_t],\qquad v = E[\dot\alpha x + \dot\beta w\mid y_t],\qquad
          \eta = E[z\mid y_t],\qquad s = E[-z/\gamma\mid y_t] = \nabla\log p_t .
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Key, per_example
from scorelab.losses.base import Batch, Loss, example_keys, mean_square, require_floating
from scorelab.losses.times import ArcsineTimes, Times, UniformTimes
from scorelab.models.base import Model
from scorelab.processes.base import Noised
from scorelab.processes.bridge import Bridge
from scorelab.processes.interpolant import StochasticInterpolant
from scorelab.processes.predictions import HasLatent, HasScore, HasVelocity, require_capabilities
from scorelab.validation import require_choice, require_spec

Head = Literal["u", "v", "eta", "s"]
_HEADS = (("u", "eta"), ("v", "eta"), ("u", "s"), ("v", "s"), ("u",), ("v",), ("eta",), ("s",))


@dataclass(frozen=True)
class InterpolantMatching(Loss):
    r"""The sum over heads of :math:`\lVert\text{head} - \text{target}\rVert^2/d`, at a random time with random noise.

    The same times, data and base are seen with the noise ``z`` and with ``-z``, at two calls of the model. Without that the target
    of ``u`` has the variance of :math:`\dot\gamma`, which a Brownian gamma makes infinite at the ends: at ``t = 1e-3`` the gradient
    varies less than a twentieth of that with it. The target of ``s`` has the same fault. It buys nothing for ``v``.

    Under the law :math:`t = \sin^2(\pi U/2)` the errors carry the weight :math:`\pi\sqrt{t(1-t)}`, so that the loss is the
    integral over uniform times. Any other law weighs a time by its density.

    Attributes:
        process: the interpolant, or :class:`scorelab.processes.Geodesic`, whose velocity is compared in its tangent space.
        heads: one of ``u`` and ``v``, one of ``eta`` and ``s``, or one of each, as ``("u", "eta")``. Without latent noise ``u`` is
            ``v``, and there is neither ``eta`` nor ``s``. The error of ``s``, the score, is that of ``eta`` over
            :math:`\gamma^2`: it weighs the ends more. That weight has no finite integral under a gamma that is smooth at its ends,
            where the loss of ``eta`` trains a network of the score as well (:class:`scorelab.models.InterpolantField`).
        times: the law of the times; None for :class:`ArcsineTimes` where gamma is steep at the ends, and for
            :class:`UniformTimes` where it is not.
        antithetic: whether ``-z`` is seen as well; None for: where there is latent noise and a head that depends on it.

    A batch has data ``x`` and, where the process has a coupling, the ``base`` that belongs to each. Under
    :class:`scorelab.data.Inpainting` it has the hole too: noise is inside of it, and the error is the mean over it.

    Metrics: the error of every head under its name.

    Source: Albergo, Boffi and Vanden-Eijnden, arXiv 2303.08797; antithetic pairs as there.
    """

    process: Bridge
    _: KW_ONLY
    heads: tuple[Head, ...] = ("u", "eta")
    times: Times | None = None
    antithetic: bool | None = None

    def __post_init__(self):
        require_spec(self, Bridge, process=self.process)
        heads = (self.heads,) if isinstance(self.heads, str) else tuple(self.heads)
        require_choice(self, _HEADS, heads=heads)
        object.__setattr__(self, "heads", heads)
        if self.process.silent and {"eta", "s"} & {*heads}:
            raise ValueError(
                f"{type(self).__name__}.heads = {heads!r} under {self.process!r}: expected ('u',), without latent noise"
            )
        if "s" in heads and not self.process.steep:
            raise ValueError(
                f"{type(self).__name__}.heads = {heads!r} under {self.process!r}: expected 'eta' in the place of 's', whose "
                "error has no finite mean there; a network of the score is trained by it too"
            )
        if self.times is None:
            object.__setattr__(self, "times", ArcsineTimes() if self.process.steep else UniformTimes())
        require_spec(self, Times, times=self.times)
        require_spec(f"{type(self).__name__}.times = {self.times!r}", self._times.process_type, process=self.process)
        if self.antithetic is None:
            object.__setattr__(self, "antithetic", not self.process.silent and heads != ("v",))
        require_choice(self, (True, False), antithetic=self.antithetic)
        if "s" in heads and not self.antithetic:
            raise ValueError(
                f"{type(self).__name__}.antithetic = False with heads = {heads!r}: expected True or None, since the target of "
                "'s' has no finite variance without"
            )

    @property
    def _times(self) -> Times:
        return cast(Times, self.times)

    def draw(self, key: Key, batch: Batch) -> Noised:
        """Times, base and noise; ``extra`` is the mirrored point and the hole, None for each where there is none."""
        x = batch["x"]
        require_floating(x)
        key_times, key_base, key_noise = jax.random.split(key, 3)
        margin = self.process.margin
        t = jnp.clip(self._times(key_times, self.process, len(x)), margin, 1 - margin)
        w = self._base(key_base, batch)
        hole = self._hole(batch)
        # Outside of a hole base and data are the same numbers, and so is every point between them.
        noised = self.process.between(key_noise, x, w if hole is None else jnp.where(hole, w, x), t)
        mirrored = self.process.mirrored(noised) if self.antithetic else None
        if hole is not None:
            (w, z), still = noised.noise, lambda y: jnp.where(hole, y, x)
            noised = noised._replace(y=still(noised.y), noise=(w, None if z is None else jnp.where(hole, z, 0.0)))
            mirrored = None if mirrored is None else still(mirrored)
        return noised._replace(cond=batch.get("cond"), keys=example_keys(key, len(x)), extra=(mirrored, hole))

    def _hole(self, batch: Batch) -> Array | None:
        name = None if self.process.coupling is None else self.process.coupling.hole
        if name is None:
            return None
        if batch.get(name) is None or jnp.shape(batch[name]) != jnp.shape(batch["x"]):
            found = "is not there" if batch.get(name) is None else f"has shape {jnp.shape(batch[name])}"
            raise ValueError(
                f"batch[{name!r}] {found}, under {self.process.coupling!r}: expected {jnp.shape(batch['x'])}, that of x, as "
                "batches of data.Coupled have it"
            )
        return jnp.asarray(batch[name], bool)

    def _base(self, key: Key, batch: Batch) -> Array:
        x, coupling = batch["x"], self.process.coupling
        if self.process.joined:
            if batch.get("base") is None:
                raise ValueError(f'batch["base"] is not there, under the coupling {coupling!r}: expected batches of data.Coupled')
            if jnp.shape(batch["base"]) != jnp.shape(x):
                raise ValueError(f'batch["base"] has shape {jnp.shape(batch["base"])}: expected {jnp.shape(x)}, that of x')
            if batch.get("cond") is not None and not (coupling.given or coupling.paired) and coupling.groups is None:
                raise ValueError(
                    f"the coupling {coupling!r} under a condition: expected groups = the array of its labels, since the base of a "
                    "class would be another law than the one that is sampled from"
                )
            if not jnp.issubdtype(batch["base"].dtype, jnp.floating):
                raise TypeError(
                    f'batch["base"] has dtype {batch["base"].dtype}: expected floating point on the scale of x, from data.Coupled'
                )
            return jnp.asarray(batch["base"], x.dtype)
        if batch.get("base") is not None:
            raise ValueError(f'batch["base"] under {self.process!r}: expected a process with the coupling that made these pairs')
        return x if self.process.base is None else self.process.draw_base(jax.random.split(key, len(x)), x.shape[1:], x.dtype)

    def error(self, model: Model, noised: Noised) -> Array:
        return self.evaluate(model, noised)[0]

    def evaluate(self, model: Model, noised: Noised) -> tuple[Array, dict[str, Any]]:
        """The errors ``(batch,)``, and the mean of every head's."""
        mirrored, _ = noised.extra
        sides = [(noised.y, 1.0)] if mirrored is None else [(noised.y, 1.0), (mirrored, -1.0)]
        parts = [self._errors(self.ask(model, y, noised.t, noised.cond), noised, sign) for y, sign in sides]
        weight = self._times.importance(noised.t) * self.process.weights(noised)
        heads = {head: weight * sum(part[head] for part in parts) / len(parts) for head in self.heads}
        total = jnp.sum(jnp.stack(list(heads.values())), axis=0)
        return total, {head: jnp.mean(error) for head, error in heads.items()}

    def _errors(self, prediction: Any, noised: Noised, sign: float) -> dict[str, Array]:
        needs = (HasVelocity, HasLatent) if not self.process.silent and self.heads != ("u",) else (HasVelocity,)
        require_capabilities(type(self).__name__, prediction, (*needs, HasScore) if "s" in self.heads else needs)
        straight, slope = self.process.rates(noised)
        z: Any = 0.0 if self.process.silent else sign * noised.noise[1]
        hole = noised.extra[1]
        # Not where base and data differ: a base of points may have a value of the data, which is learned from all the same.
        mean = mean_square if hole is None else lambda error: _mean_inside(error, hole)
        errors = {}
        for head in self.heads:
            if head == "eta":
                errors[head] = mean(prediction.eta - z)
            elif head == "s":
                gamma = per_example(cast(StochasticInterpolant, self.process).gamma.gamma(noised.t), z)
                errors[head] = mean(prediction.score + z / gamma)
            elif head == "u":
                errors[head] = mean(prediction.velocity - straight - slope * z)
            elif self.process.silent:
                errors[head] = mean(prediction.velocity - straight)
            else:
                errors[head] = mean(prediction.velocity - slope * prediction.eta - straight)
        return errors


def _mean_inside(error: Array, inside: Array) -> Array:
    """Mean over a part of the event of the square, ``(batch,)``; 0 where there is none."""
    count = jnp.sum(inside.reshape(len(inside), -1), axis=1)
    return mean_square(jnp.where(inside, error, 0.0)) * error[0].size / jnp.maximum(count, 1)
