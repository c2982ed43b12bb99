"""What the config of a published scheduler says of a model: its noise levels, and what its network predicts.

How to sample is said there as well. The spacing of the steps and the last one are a grid, :func:`steps_of`; clipping is that of
:class:`scorelab.models.Clipped`, and is not read here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.errors import WeightsError
from scorelab.grids import Explicit
from scorelab.pretrained import fields
from scorelab.pretrained.layers import wide
from scorelab.schedules import VE, Discrete, GaussianSchedule
from scorelab.validation import require_int

# What the names of a prediction are as `Denoiser.predict`.
_PREDICTS: dict[Any, Literal["eps", "v", "x0"]] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
# Schedulers of betas; those of flows, of EDM and of consistency models have other noise levels.
_CLASSES = (
    "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
_VE = "ScoreSdeVeScheduler"
# Betas of a config that does not say them, by its class: beta_start, beta_end, beta_schedule.
_USUAL = (1e-4, 0.02, "linear")
_UNUSUAL = {
    "DPMSolverSDEScheduler": (0.00085, 0.012, "linear"),
    "HeunDiscreteScheduler": (0.00085, 0.012, "linear"),
    "KDPM2AncestralDiscreteScheduler": (0.00085, 0.012, "linear"),
    "KDPM2DiscreteScheduler": (0.00085, 0.012, "linear"),
    "LCMScheduler": (0.00085, 0.012, "scaled_linear"),
}
# What a network is told, or its noise, would be another one; and the values under which it is the one here.
_PLAIN: dict[str, tuple[Any, ...]] = {"timestep_type": ("discrete", None), "use_flow_sigmas": (False, None)}


class Noise(NamedTuple):
    """What a model was trained with.

    Attributes:
        schedule: its noise levels.
        predict: what its network predicts, as :class:`scorelab.models.Denoiser` says it.
    """

    schedule: GaussianSchedule
    predict: Literal["eps", "v", "x0"]


def read(config: Mapping[str, Any], *, name: str = "scheduler_config.json") -> Noise:
    r"""The noise of a model by the config of its scheduler, published by diffusers.

    Its betas become :class:`~scorelab.schedules.Discrete` levels :math:`\bar\alpha_i`, in float32 as diffusers rounds them.
    ``ScoreSdeVeScheduler`` becomes :class:`~scorelab.schedules.VE`.

    Args:
        config: what ``scheduler_config.json`` holds; fields that it lacks have the defaults of its class.
        name: of the file, for messages.

    Raises:
        WeightsError: another kind of scheduler, betas that are none, or noise without signal under a network that predicts it;
            ``timestep_type`` other than ``discrete``, or ``use_flow_sigmas``.
    """
    kind = config.get("_class_name")
    if kind == _VE:
        sigmas = {key: config.get(key, usual) for key, usual in _SIGMAS.items()}
        for key, value in sigmas.items():
            if not fields.is_number(value):
                raise WeightsError(f"{name}: {key} = {fields.told(value)}: expected a finite number")
        return fields.built(lambda: Noise(VE(**{key: float(value) for key, value in sigmas.items()}), "eps"), name)
    if kind not in _CLASSES:
        raise WeightsError(f"{name}: scheduler {kind!r}: expected {_VE} or one of betas, {', '.join(_CLASSES)}")
    for field, plain in _PLAIN.items():
        if not fields.is_one_of(value := config.get(field), plain):
            raise WeightsError(
                f"{name}: {field} = {fields.told(value)}: expected {plain[0]!r}, for a network of the indices of betas"
            )
    prediction, zero = config.get("prediction_type", "epsilon"), config.get("rescale_betas_zero_snr", False)
    if not isinstance(prediction, str) or prediction not in _PREDICTS:
        raise WeightsError(f"{name}: prediction_type = {fields.told(prediction)}: expected {', '.join(_PREDICTS)}")
    if not fields.is_one_of(zero, (True, False, None)):
        raise WeightsError(f"{name}: rescale_betas_zero_snr = {zero!r}: expected true or false")
    if zero and prediction == "epsilon":
        raise WeightsError(
            f"{name}: rescale_betas_zero_snr with prediction_type = 'epsilon': expected v_prediction or sample, since pure noise "
            "does not tell the data"
        )
    make = lambda: Discrete(alphas_cumprod=tuple(levels(config, name=name).tolist()), zero_terminal=bool(zero))
    schedule = fields.built(make, name)
    return Noise(schedule, _PREDICTS[prediction])


_SIGMAS = {"sigma_min": 0.01, "sigma_max": 1348.0}


def levels(config: Mapping[str, Any], *, name: str = "scheduler_config.json") -> np.ndarray:
    r""":math:`\bar\alpha_i` of the config of a scheduler of betas, ``(N,)`` float64, before any rescaling.

    Betas are float32, and each product is rounded to float32: what a network was trained with. Exact levels differ by up to 1e-6.

    Raises:
        WeightsError: betas that are not numbers between 0 and 1.
    """
    steps, trained = config.get("num_train_timesteps", 1000), config.get("trained_betas")
    *usual, form = _UNUSUAL.get(str(config.get("_class_name")), _USUAL)
    if trained is not None:
        if not isinstance(trained, list | tuple) or len(trained) < 3 or not all(map(fields.is_number, trained)):
            raise WeightsError(f"{name}: trained_betas = {fields.told(trained)}: expected a list of three or more numbers")
        with np.errstate(over="ignore"):
            betas = np.asarray(trained, np.float64).astype(np.float32)
    elif isinstance(steps, bool) or not isinstance(steps, int) or not 3 <= steps <= 1_000_000:
        raise WeightsError(f"{name}: num_train_timesteps = {steps!r}: expected an integer from 3 to 1,000,000")
    elif (kind := config.get("beta_schedule", form)) == "squaredcos_cap_v2":
        bar = lambda i: math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.array([min(1 - bar(i + 1) / bar(i), 0.999) for i in range(steps)], np.float32)
    elif kind in _BETAS:
        ends = [config.get(key, end) for key, end in zip(("beta_start", "beta_end"), usual, strict=True)]
        if not all(fields.is_number(end) and 0 < end < 1 for end in ends):
            raise WeightsError(f"{name}: beta_start = {ends[0]!r}, beta_end = {ends[1]!r}: expected numbers between 0 and 1")
        low, high = ends
        betas = _line(low, high, steps) if kind == "linear" else _line(low**0.5, high**0.5, steps) ** 2
    else:
        raise WeightsError(f"{name}: beta_schedule = {kind!r}: expected {', '.join(_BETAS)}, or trained_betas")
    if not np.all((betas > 0) & (betas < 1)):
        raise WeightsError(f"{name}: betas from {betas.min():.4g} to {betas.max():.4g}: expected numbers between 0 and 1")
    # torch keeps the product in float64, and rounds every one of them.
    return np.cumprod((np.float32(1) - betas).astype(np.float64)).astype(np.float32).astype(np.float64)


def _line(start: float, end: float, steps: int) -> np.ndarray:
    """``torch.linspace`` in float32: from both ends to the middle, each number rounded once."""
    low, high = np.float32(start), np.float32(end)
    step = np.float64((high - low) / np.float32(steps - 1))
    i = np.arange(steps)
    return np.where(i < steps // 2, low + step * i, high - step * (steps - 1 - i)).astype(np.float32)


def index(schedule: Discrete, c_noise: jax.Array) -> jax.Array:
    r"""What a network of indices is told at :math:`c = \log(\sigma / \alpha) / 4`: a real number from 0 to N - 1.

    Samplers of other processes ask beyond both ends of the chain, where the network was not trained: it is told the end.
    """
    return jnp.clip(schedule.time(-8 * c_noise.astype(wide(c_noise))), 0.0, schedule.t_max)


def steps_of(config: Mapping[str, Any], steps: int, *, name: str = "scheduler_config.json") -> Explicit:
    r"""The grid on which DDIM of diffusers walks so many steps under the config of a scheduler of betas.

    ``leading`` spacing, the default there, asks at :math:`k\lfloor N/n\rfloor` and ``steps_offset``, from the last k to 0;
    ``trailing`` at :math:`N - 1 - kN/n`. The walk ends at clean data, or at the first level without ``set_alpha_to_one``.

    Args:
        config: what ``scheduler_config.json`` holds.
        steps: how many, at most the levels; with ``trailing`` spacing a divisor of them.
        name: of the file, for messages.

    Raises:
        ValueError: another number of steps.
        WeightsError: spacing that is not one of these two, or a first time outside of the levels.
    """
    require_int("steps_of", 1, steps=steps)
    total = len(levels(config, name=name))
    spacing, offset = config.get("timestep_spacing", "leading"), config.get("steps_offset", 0)
    clean = bool(config.get("set_alpha_to_one", True))
    if spacing not in ("leading", "trailing"):
        raise WeightsError(f"{name}: timestep_spacing = {spacing!r}: expected leading or trailing, whose steps are equal")
    if steps > total or (spacing == "trailing" and total % steps):
        raise ValueError(f"steps_of.steps = {steps}: expected {'a divisor of' if spacing == 'trailing' else 'at most'} {total}")
    if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
        raise WeightsError(f"{name}: steps_offset = {offset!r}: expected an integer from 0")
    # Trailing spacing counts from the end, and has no offset.
    times = np.arange(steps)[::-1] * (total // steps) + (offset if spacing == "leading" else total // steps - 1)
    if times[0] >= total:
        raise WeightsError(
            f"{name}: steps_offset = {offset} in {steps} steps asks at {times[0]}: expected levels up to {total - 1}"
        )
    last = () if clean or times[-1] == 0 else (0,)
    return Explicit((*times.tolist(), *last), clean=clean)
