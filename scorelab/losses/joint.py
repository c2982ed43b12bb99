"""The loss of several parts under one network call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp

from scorelab.arrays import Array
from scorelab.losses.base import PredictionLoss, example_keys
from scorelab.processes import joint
from scorelab.processes.predictions import require_capabilities
from scorelab.validation import require_spec


@dataclass(frozen=True, init=False, repr=False)
class Joint(PredictionLoss):
    """The sum of the losses of the parts, such as ``Joint(image=DenoisingScoreMatching(...), label=...)``.

    Every part is noised to a time of its own, which its loss draws: the network learns all conditional laws beside the joint one.

    Args:
        **parts: losses that ask the model once (:class:`PredictionLoss`), and drop no conditions: a part has none.

    Metrics: ``<part>_loss``, the mean of each.
    """

    parts: tuple[tuple[str, PredictionLoss], ...]
    process: Any

    def __init__(self, **parts: PredictionLoss):
        for name, part in parts.items():
            require_spec("losses.Joint", PredictionLoss, **{name: part})
            if part.label_dropout or part.condition_dropout is not None:
                raise ValueError(
                    f"losses.Joint.{name} has label_dropout = {part.label_dropout} and condition_dropout = "
                    f"{part.condition_dropout!r}: expected 0 and None, since a part draws without the condition"
                )
        object.__setattr__(self, "process", joint.Joint(**{name: part.process for name, part in parts.items()}))
        object.__setattr__(self, "parts", tuple(sorted(parts.items())))

    def __repr__(self):
        return f"Joint({', '.join(f'{name}={part!r}' for name, part in self.parts)})"

    def draw(self, key, batch):
        """Every part by its loss."""
        keys = jax.random.split(key, len(self.parts))
        drawn = {name: part.draw(k, {"x": batch["x"][name]}) for (name, part), k in zip(self.parts, keys, strict=True)}
        n = len(jax.tree.leaves(batch["x"])[0])
        extra = {name: part.extra for name, part in drawn.items()}
        return joint.gathered(drawn)._replace(cond=batch.get("cond"), keys=example_keys(key, n), extra=extra)

    def judge(self, prediction, noised):
        """The sum."""
        require_capabilities("losses.Joint", prediction, (joint.JointPrediction,))
        errors = {}
        for name, part in self.parts:
            own = noised._replace(**{which: getattr(noised, which)[name] for which in ("y", "y0", "noise", "t", "extra")})
            errors[name], _ = part.judge(prediction.parts[name], own)
        return cast(Array, sum(errors.values())), {f"{name}_loss": jnp.mean(error) for name, error in errors.items()}
