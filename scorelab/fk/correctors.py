r"""Feynman-Kac correctors: annealed, multiplied, guided and tilted laws, sampled rightly instead of by their score alone.

Each function returns ``(model, potential, start)`` for one call of :func:`scorelab.sample` with
``solver=FeynmanKac(base, potential)``. Source: Skreta et al., arXiv 2503.02819; the anchored form is ours
(:mod:`scorelab.fk.composition`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, is_traced
from scorelab.densities import Gaussian
from scorelab.fk.checks import require_scalar, same
from scorelab.fk.composition import Composition, Tilt, signal_fraction
from scorelab.fk.flows import FlowComposition
from scorelab.fk.potentials import Observation, Potential
from scorelab.grids import just_below
from scorelab.models import conditioned
from scorelab.models.base import Model
from scorelab.processes.interpolant import StochasticInterpolant
from scorelab.processes.scale import KnowsScale
from scorelab.pytrees import partly_static
from scorelab.starts import Tempered, TemperedBase
from scorelab.validation import require_choice, require_int


class Weight(NamedTuple):
    """The row of a corrector at a node.

    Attributes:
        before: the part of the step that ends here.
        after: the part of the step that begins here.
        last: the length of the step that begins here, where it ends at the data of an interpolant; else 0.
    """

    before: Array
    after: Array
    last: Array


@dataclass(frozen=True, kw_only=True)
class Corrector(Potential):
    r"""The weights :math:`\int h\,d\tau` of a :class:`Composition`, between the grid times at which there is noise.

    On a grid that ends at clean data the target is that of the last time with noise, and the last step only removes it. Under an
    interpolant it is that of the data themselves; no rate is asked at its ends (:mod:`scorelab.fk.flows`).

    Attributes:
        rule: ``"trapezoid"`` (both ends of a step; each call serves two steps) or ``"left"``.
        probes: for the divergence of the anchored form, as in :meth:`Composition.evaluate`.
    """

    rule: Literal["trapezoid", "left"] = "trapezoid"
    probes: int | None = None

    closes = True

    def __post_init__(self):
        require_choice(self, ("trapezoid", "left"), rule=self.rule)
        if self.probes is not None:
            require_int(self, 0, probes=self.probes)

    def table(self, process, times):
        """The parts of the steps before and after every node."""
        dt = -np.diff(times)
        nothing = np.zeros(len(times))
        if isinstance(process, StochasticInterpolant):
            asked = (times > 0) & (times < 1)
            if not np.all(asked[1:] | asked[:-1]):
                raise ValueError(f"Corrector on a grid with the times {times}: expected one inside (0, 1), where there is a rate")
            # A step that ends where no rate is asked is weighed at its beginning, at once: there is no later node to do it.
            ends = np.where(asked[1:], np.where(asked[:-1] & (self.rule == "trapezoid"), 0.5, ~asked[:-1]), 0.0)
            now = np.where(asked[1:], 0.0, dt)
            before = np.append(0.0, ends * dt) + np.append(now, 0.0)
            last = np.append(np.where(times[1:] == 0, dt, 0.0), 0.0)
            return Weight(before=before, after=np.append((1 - ends) * dt - now, 0.0), last=last)
        if not float(process.alpha(np.float64(times[0]))) > 0:
            raise ValueError(
                f"Corrector needs finite SDE rates, but alpha is 0 at t = {times[0]} under {process!r}: start the grid "
                f"below it (such as t_max={just_below(float(times[0])):g})"
            )
        sigma = np.asarray(process.sigma(np.asarray(times, np.float64)))
        dt = np.where((sigma[1:] > 0) & np.isfinite(dt), dt, 0.0)
        before, after = np.append(0.0, dt), np.append(dt, 0.0)
        if self.rule == "trapezoid":
            return Weight(before=before / 2, after=after / 2, last=nothing)
        return Weight(before=0 * before, after=after, last=nothing)

    def init(self, zeros):
        """What the beginning of the step has put in, and the tilt at the end of what has been weighed."""
        return zeros, zeros

    def check(self, model, base):
        """The model has to be the composition, and the solver has to make the noise that its drift is for."""
        if not isinstance(model, Composition):
            raise TypeError(
                f"Corrector got the model {type(model).__name__}: expected the one that annealed, product, geometric, tilted "
                "or weighted returned"
            )
        model.check_base(base)

    def check_start(self, start, model, t):
        r"""The start has to weigh its points by :math:`\Phi` at ``t``: the corrector's, or another one that weighs.

        Another one is the law itself only for one expert with the exponent one, and a tilt that has hardly begun (a ramp below
        0.001): the :class:`scorelab.starts.Noised` law of its data, and the prior as far as it is the noised law.
        """
        if not isinstance(model, Composition):
            return  # refused by check()
        expected = "expected the start that annealed, product, geometric, tilted or weighted returned with the model"
        if isinstance(start, Tempered):
            target = start.target
            # The experts themselves are asked only where they know their density.
            experts = lambda composition: composition.models if composition.knows_density else len(composition.models)
            parts = lambda composition: (composition.exponents, composition.tilt, experts(composition))
            other = model.tilt is not None if target is None else not same(parts(target), parts(model))
            theirs, total = _total(start.exponents, t), _total(model.exponents, t)
            differ = theirs is not None and total is not None and abs(theirs - total) > 1e-5 * abs(total)
            if other or differ:
                raise ValueError(f"sample.start is the Tempered start of another law than {_named(model, total)}: {expected}")
            return
        if start.weighs(model.process):
            return
        total, tilt = _total(model.exponents, t), model.tilt
        with jax.ensure_compile_time_eval():
            begun = tilt is not None and not (
                isinstance(tilt, Tilt) and abs(float(tilt.ramp(model.process, jnp.asarray(t)))) < 1e-3
            )
        if len(model.models) > 1 or begun or (total is not None and abs(total - 1) > 1e-6):
            raise ValueError(
                f"sample.start = {type(start).__name__} has no weights for {_named(model, total)} at t = {t:.4g}: {expected}"
            )

    def see(self, model, keys, y, row, cond):
        """The composition's prediction, rate and tilt."""
        prediction, rate, tilt, change = cast(Composition, model).evaluate(y, row.t, cond, keys, self.probes)
        return Observation(model.process.checked("Composition", prediction, y), (rate, tilt, change))

    def weigh(self, memory, notes, row, populations):
        """The step that ends here."""
        rate, tilt, change = notes
        # Where no weight is asked, the rate may not be a number.
        part = lambda share, value: jnp.where(share > 0, share * value, 0.0)
        before, after, last = row.potential
        return memory[0] + part(before, rate), (part(after, rate), tilt + part(last, change))


@partly_static("tilt")
@dataclass(frozen=True, kw_only=True)
class TiltCorrector(Corrector):
    r"""A corrector whose target ends at :math:`q\,e^{\lambda r}` whatever the ramp is worth at the last node.

    Attributes:
        tilt: that of the composition.
    """

    tilt: Tilt

    def finish(self, memory, x, cond):
        r""":math:`\lambda r(x) - R` at the end of what has been weighed."""
        return self.tilt.final(x, cond) - memory[1]


class Corrected(NamedTuple):
    """What one call of ``sample`` needs."""

    model: Composition
    potential: Potential
    start: Tempered


def weighted(
    models: Sequence[Model],
    exponents: Sequence[Array | float | Callable[[Array | float], Array]],
    *,
    tilt: Any = None,
    anchor: Literal["score", "flow"] = "flow",
    noise: float = 1.0,
    rule: Literal["trapezoid", "left"] = "trapezoid",
    probes: int | None = None,
    laws: Sequence[Gaussian] | None = None,
) -> Corrected:
    r""":math:`\prod_i q_i^{b_i}\,e^R`: what the functions below are cases of.

    Args:
        models: the experts, under one process; interpolants may have one each.
        exponents: :math:`b_i`, numbers or functions of the process's time; negative ones are allowed as long as the product is
            normalisable at every time.
        tilt: a :class:`Tilt`, or a function ``(y, t, process, cond) -> (batch,)`` of the chart's points.
        anchor: ``"flow"`` needs the divergence of the scores, and its weights are quiet at high noise; ``"score"`` does not,
            and its weights are noise there. The two are one where the exponents sum to one.
        noise: :math:`c^2/g^2` of the base solver; the weights do not depend on it, the drift does. Not of interpolants.
        rule: of the integral of the weights.
        probes: Hutchinson probes, 0 for the exact divergence, None for exact in up to 16 dimensions and 8 above.
        laws: Gaussians with the moments of the experts, one for all or one for each, for a start at moderate noise. None takes
            those of models that know them (:class:`scorelab.models.ExactModel`). Interpolants begin at their bases, and moments
            only say whether the product has a law on the way.

    Raises:
        TypeError: models that are not a list, exponents that are not numbers.
        ValueError: exponents that do not fit the models, or have no positive sum.
    """
    _require_list("weighted", models=models, exponents=exponents)
    models, exponents = tuple(models), tuple(exponents)
    numbers = [b for b in exponents if isinstance(b, int | float)]
    if anchor == "flow" and len(numbers) == len(exponents) and abs(sum(numbers) - 1) < 1e-12:
        anchor = "score"  # the same, without a divergence to multiply by zero
    flows = bool(models) and isinstance(getattr(models[0], "process", None), StochasticInterpolant)
    options: dict[str, Any] = dict(models=models, exponents=exponents, tilt=tilt, anchor=anchor, noise=noise)
    alone = len(models) == 1 and numbers == [1]
    composition = FlowComposition(**options, alone=alone) if flows else Composition(**options)
    if laws is not None and len(laws) not in (1, len(models)):
        raise ValueError(f"weighted.laws has {len(laws)} laws: expected one for all {len(models)} models, or one for each")
    if flows:
        start = TemperedBase(exponents=exponents, laws=tuple(laws or ()), target=composition)
    else:
        if laws is None:
            found = [law for model in models if isinstance(model, KnowsScale) and (law := model.matched()) is not None]
            laws = found if len(found) == len(models) else ()
        start = Tempered(exponents=exponents, laws=tuple(laws), target=composition)
    if isinstance(tilt, Tilt):
        return Corrected(composition, TiltCorrector(rule=rule, probes=probes, tilt=tilt), start)
    return Corrected(composition, Corrector(rule=rule, probes=probes), start)


def annealed(model: Model, beta: Array | float, **options: Any) -> Corrected:
    r""":math:`q^\beta`: the law at the temperature :math:`1/\beta`. ``options`` as in :func:`weighted`.

    The power is that of the density in the chart; on the log chart :math:`q_X^\beta` of data space needs the tilt
    :math:`(1-\beta)\sum_i y_i` on top.
    """
    return weighted([model], [_positive("annealed", beta)], **options)


def product(models: Sequence[Model], beta: Array | float = 1.0, **options: Any) -> Corrected:
    r""":math:`\big(\prod_i q_i\big)^\beta`: what all models believe in at once. ``options`` as in :func:`weighted`."""
    _require_list("product", models=models)
    return weighted(models, [_positive("product", beta)] * len(models), **options)


def geometric(unconditional: Model, conditional: Model, beta: Array | float, **options: Any) -> Corrected:
    r""":math:`q_\varnothing^{1-\beta}\,q_c^\beta`: what classifier-free guidance with the scale :math:`\beta` is meant to sample.

    ``conditional`` gets the conditions of the samples, ``unconditional`` none. ``options`` as in :func:`weighted`; the exponents
    sum to one, so that ``anchor="score"``, the default here, has quiet weights and needs no divergence.
    """
    if not callable(beta):
        require_scalar("geometric", beta=beta)
    options.setdefault("anchor", "score")
    return weighted([conditioned(unconditional), conditional], [1 - beta, beta], **options)


def tilted(
    model: Model,
    reward: Callable[..., Array],
    scale: Array | float = 1.0,
    *,
    ramp: Callable = signal_fraction,
    with_cond: bool = False,
    **options: Any,
) -> Corrected:
    r""":math:`q\,e^{\lambda r}` along :math:`q_t\,e^{\lambda u(t)\,r}`, with the gradient of the reward in the drift.

    The reward is that of the noisy point itself, so it must be defined everywhere and differentiable; no gradient goes through
    the network. ``options`` as in :func:`weighted`; one expert with the exponent one needs no divergence.
    """
    tilt = Tilt(reward=reward, scale=scale, ramp=ramp, with_cond=with_cond)
    options.setdefault("anchor", "score")
    return weighted([model], [1.0], tilt=tilt, **options)


def _positive(name: str, beta: Array | float) -> Array | float:
    if not callable(beta):
        require_scalar(name, beta=beta)
        if not is_traced(beta) and not beta > 0:
            raise ValueError(f"{name}.beta = {beta!r}: expected a finite number above 0")
    return beta


def _require_list(name: str, **fields: Any) -> None:
    for field, value in fields.items():
        if not isinstance(value, Sequence | np.ndarray | jax.Array) or isinstance(value, str):
            raise TypeError(f"{name}.{field} = {value!r}: expected a list, one for each expert")


def _total(exponents: Sequence[Array | float | Callable[[Array | float], Array]], t: float) -> float | None:
    """The sum of the exponents at the host time ``t``; None where it is traced."""
    with jax.ensure_compile_time_eval():
        total = sum(b(jnp.asarray(t)) if callable(b) else b for b in exponents)
    return None if is_traced(total) else float(total)


def _named(model: Composition, total: float | None) -> str:
    names = ", ".join(type(expert).__name__ for expert in model.models)
    return f"the composition of {names} with the exponents {model.exponents!r} (sum {total}){' and a tilt' if model.tilt else ''}"
