r"""Products of powers of laws that know their density, noise level by noise level."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import jax.numpy as jnp

from scorelab.arrays import Array, Pytree, per_example
from scorelab.models.base import KnowsDensity, Model, ask, model_name, require_model
from scorelab.models.energy import EnergyPrediction
from scorelab.models.per_sample import PER_SAMPLE, require_numbers
from scorelab.processes.base import require_same_process
from scorelab.processes.linear_gaussian import GaussianPrediction, LinearGaussian
from scorelab.processes.predictions import HasLogProb, require_capabilities
from scorelab.pytrees import computed, partly_static
from scorelab.validation import require_spec


@partly_static("models", "powers")
@dataclass(frozen=True, kw_only=True)
class Product(KnowsDensity):
    r"""The product of powers of noised laws, :math:`\log p_t = \sum_i w_i\log p_{i,t}`, with the sum of their scores.

    Exact laws and energies go together. One model with one power is a tempered law; the powers :math:`(w, 1-w)` of a model under a
    condition and under none are classifier-free guidance with a density.

    A product of noised laws is not the noised product, but at clean data: no noising leads from one to the other. So a solver that
    walks along these scores does not sample the product. Weights do (:func:`scorelab.fk.product`), and so do Markov chains at one
    noise level after the other. For two equal normal laws of variance ``v``, the probability flow from noise of the variance
    :math:`\sigma^2\gg v` ends with the variance :math:`v^2/\sigma^2` in the place of :math:`v/2`.

    Attributes:
        models: the factors, each a :class:`KnowsDensity` of the same linear-Gaussian process. Densities are those of its chart.
        powers: :math:`w_i`, one for each model, of any sign: scalars, or ``(batch,)``; leaves.

    Raises:
        TypeError: a model that does not know its density, or of another kind of process.
        ValueError: models of different processes, or not as many powers.
    """

    models: tuple[Model, ...]
    powers: tuple[Array | float, ...] = field(metadata=PER_SAMPLE)

    def __post_init__(self):
        for name in ("models", "powers"):
            if not isinstance(getattr(self, name), tuple | list):
                raise TypeError(f"Product.{name} = {getattr(self, name)!r}: expected a tuple, one for each factor")
        if not self.models or len(self.models) != len(self.powers):
            raise ValueError(
                f"Product has {len(self.models)} models and {len(self.powers)} powers: expected as many, and at least one"
            )
        for i, (model, power) in enumerate(zip(self.models, self.powers, strict=True)):
            require_model("Product", model, f"models[{i}]")
            if not isinstance(model, KnowsDensity):
                raise TypeError(
                    f"Product.models[{i}] is {model_name(model)}, which does not know its density: expected an exact law or an "
                    "energy; scores alone are joined by fk.Composition"
                )
            named: dict[str, Any] = {f"powers[{i}]": power}
            require_numbers(self, **named)
        require_spec(self, LinearGaussian, process=self.process)
        require_same_process("Product", **{f"models[{i}]": model.process for i, model in enumerate(self.models)})

    @computed
    def process(self) -> Any:
        """That of the factors."""
        return self.models[0].process

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> EnergyPrediction:
        """Predict for ``y`` of shape ``(batch, *event)``; all factors are asked under ``cond``."""
        for i, power in enumerate(self.powers):
            if jnp.shape(power) not in ((), (len(y),)):
                raise ValueError(f"Product.powers[{i}] has shape {jnp.shape(power)}: expected () or ({len(y)},), one per point")
        predictions = [ask(model, y, t, cond) for model in self.models]
        for model, prediction in zip(self.models, predictions, strict=True):
            require_capabilities(f"Product of {model_name(model)}", prediction, (HasLogProb,))
        pair = multiplied(predictions, self.powers, y)
        log_prob = weighted_sum(self.powers, [p.log_prob for p in predictions]).astype(y.dtype)
        return EnergyPrediction(denoised=pair.denoised, eps=pair.eps, log_prob=log_prob, t=pair.t, process=self.process)


def multiplied(predictions: Sequence[Any], powers: Iterable[Array | float], y: Array) -> GaussianPrediction:
    r"""The pair with the score :math:`\sum_i w_i s_i` of predictions of one process about ``y``.

    .. math:: \hat\epsilon = \sum_i w_i\hat\epsilon_i,\qquad D = \sum_i w_i D_i + \Big(1 - \sum_i w_i\Big)\tilde y/\alpha ,

    where the last term, which may be large at high noise, is gone for powers that sum to one.

    At :math:`\alpha = 0`, where the score does not say it, the denoised mean is :math:`\sum_i w_i D_i`.
    """
    first = predictions[0]
    process, t = first.process, first.t
    alpha, offset = (per_example(f(t), y) for f in (process.alpha, process.offset))
    factors = [per_example(jnp.asarray(w, y.dtype), y) for w in powers]
    centred = jnp.where(alpha > 0, (y - offset) / jnp.where(alpha > 0, alpha, 1.0), 0.0)
    denoised = weighted_sum(factors, [p.denoised for p in predictions]) + (1 - sum(factors)) * centred
    return GaussianPrediction(denoised=denoised, eps=weighted_sum(factors, [p.eps for p in predictions]), t=t, process=process)


def weighted_sum(factors: Iterable[Any], terms: Iterable[Array]) -> Array:
    """The sum of the products."""
    return cast(Array, sum(factor * term for factor, term in zip(factors, terms, strict=True)))
