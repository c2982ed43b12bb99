r"""Rewards of images by published networks: CLIP's agreement with a prompt, and the aesthetic predictor on its points.

Both are rewards of :mod:`scorelab.fk.rewards`, differentiable, with the parameters as leaves: ``jax.device_put(reward)`` moves them
once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array
from scorelab.errors import ConfigError, WeightsError, shown
from scorelab.fk.rewards import ImageReward
from scorelab.pretrained import clip, conversion, store, text
from scorelab.pretrained.keys import listed
from scorelab.pytrees import partly_static
from scorelab.validation import require_spec


@dataclass(frozen=True, kw_only=True, eq=False)
class _OfClip(ImageReward):
    """What looks at images through CLIP.

    Attributes:
        net: the vision tower.
        params: its parameters.
    """

    net: clip.VisionTower
    params: Mapping[str, Any] = field(repr=False)

    def __post_init__(self):
        super().__post_init__()
        require_spec(self, clip.VisionTower, net=self.net)
        if self.net.projection_dim is None:
            raise ValueError(
                f"{type(self).__name__}.net has no projection: expected that of a CLIPModel or a CLIPVisionModelWithProjection"
            )

    # Arrays are not compared: two rewards are the same where they are one.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return object.__hash__(self)

    def _require(self, what: str, vector: Any) -> None:
        if np.shape(vector) != (self.net.projection_dim,):
            raise ValueError(f"{type(self).__name__}.{what} has shape {np.shape(vector)}: expected ({self.net.projection_dim},)")

    def direction(self, images: Array) -> Array:
        """Points ``(batch, d)`` of images on the scale [0, 1], scaled to length one."""
        return clip.unit(clip.image_features(self.net, self.params, images))


@partly_static("params", "target")
@dataclass(frozen=True, kw_only=True, eq=False)
class ClipCosine(_OfClip):
    r"""The cosine of the points of an image and of a prompt, from -1 to 1; the CLIP score of papers is 100 times it.

    Images are resized as ``pretrained.clip.seen`` does. Source: Hessel et al., arXiv 2104.08718.

    Attributes:
        target: the point of the prompt, ``(d,)``, of any length.
    """

    target: Array | np.ndarray = field(repr=False)

    def __post_init__(self):
        super().__post_init__()
        self._require("target", self.target)

    def of(self, unit):
        return self.direction(unit) @ clip.unit(jnp.asarray(self.target, unit.dtype))


@partly_static("params", "weight", "offset")
@dataclass(frozen=True, kw_only=True, eq=False)
class Aesthetic(_OfClip):
    r""":math:`w\cdot e + b` of the point :math:`e` of an image, scaled to length one: about 1 to 10, as people rated images.

    The published predictor is a chain of linear layers without anything between them, so it is one map.
    Source: Schuhmann et al., arXiv 2210.08402, section 3.

    Attributes:
        weight: :math:`w`, ``(d,)``.
        offset: :math:`b`.
    """

    weight: Array | np.ndarray = field(repr=False)
    offset: Array | float

    def __post_init__(self):
        super().__post_init__()
        self._require("weight", self.weight)

    def of(self, unit):
        return self.direction(unit) @ jnp.asarray(self.weight, unit.dtype) + jnp.asarray(self.offset, unit.dtype)


def affine(tensors: Mapping[str, np.ndarray], *, name: str = "tensors") -> tuple[np.ndarray, float]:
    r"""The one map :math:`w, b` in float64 that a chain of linear layers ``layers.0.weight``, ``layers.0.bias``, ... is.

    Raises:
        WeightsError: other tensors, numbers that are not finite, or maps that do not follow each other to one number.
    """
    found: dict[int, dict[str, np.ndarray]] = {}
    for key, value in tensors.items():
        # One name for a number alone: layers.00 would take the place of layers.0.
        if (match := re.fullmatch(r"layers\.(0|[1-9][0-9]{0,3})\.(weight|bias)", key)) is None:
            said = f"{name}: tensor {key[:80]!r}"
            raise WeightsError(f"{said}: expected layers.0.weight, layers.0.bias and so on, of linear layers alone")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise WeightsError(f"{name}: tensor {key!r} is {value.dtype}: expected numbers of floating point")
        if not np.isfinite(value).all():
            raise WeightsError(f"{name}: tensor {key!r} has numbers that are not finite: expected none")
        found.setdefault(int(match[1]), {})[match[2]] = np.asarray(value, np.float64)
    if halves := [f"layers.{i}" for i, layer in found.items() if len(layer) != 2]:
        raise WeightsError(f"{name}: {listed(halves)}: expected a weight and a bias each")
    said = ", ".join(f"layers.{i} {layer['weight'].shape} {layer['bias'].shape}" for i, layer in sorted(found.items()))
    weight, bias = np.eye(1), np.zeros(1)
    for _, layer in sorted(found.items(), reverse=True):
        w, b = layer["weight"], layer["bias"]
        if w.ndim != 2 or b.shape != w.shape[:1] or w.shape[0] != weight.shape[1]:
            raise WeightsError(f"{name}: {said}: expected maps from one to the next, the last to one number")
        weight, bias = weight @ w, bias + weight @ b
    if not found:
        raise WeightsError(f"{name}: no tensors: expected linear layers")
    return weight[0], float(bias[0])


def clip_cosine(
    folder: str | Path, tokenizer: str | Path | None, prompt: str, *, low: float = -1.0, high: float = 1.0
) -> ClipCosine:
    """The cosine to a prompt by a converted ``CLIPModel``; ``low`` and ``high`` are the scale of the images.

    Args:
        folder: the converted model, by its name or folder.
        tokenizer: the folder of its tokenizer, see ``pretrained.tokens.read``; None for the one that was converted with it.
        prompt: what the images should show.
        low: the lower end of the scale of the images.
        high: its upper end.

    Raises:
        ConfigError: there is none.
        WeightsError: its weights are not those of a ``CLIPModel``, or it came without a tokenizer.
        TypeError: a prompt that is no text, or a tokenizer that is no path.
    """
    require_spec("pretrained.clip_cosine", str, prompt=prompt)
    require_spec("pretrained.clip_cosine", str | Path | None, tokenizer=tokenizer)
    net, tree = clip.load(opened := _opened("clip_cosine", folder))
    if not isinstance(net, clip.CLIP):
        raise WeightsError(f"{shown(opened.path)}: a {type(net).__name__}: expected a CLIP with both towers, whose space is one")
    own = lambda part: {"params": tree["params"][part]}
    if tokenizer is None and not (tokenizer := opened.path / "tokenizer").is_dir():
        raise WeightsError(f"{shown(opened.path)}: no tokenizer/: expected pretrained.clip_cosine.tokenizer, the folder of one")
    encoder = text.encoder(net.text_model, own("text_model"), tokenizer, name=shown(opened.path))
    target = np.asarray(encoder.projected(prompt)[0])
    return ClipCosine(net=net.vision_model, params=own("vision_model"), target=target, low=low, high=high)


def aesthetic(folder: str | Path, predictor: str | Path, *, low: float = -1.0, high: float = 1.0) -> Aesthetic:
    """The aesthetic predictor on a converted CLIP, that of OpenAI with patches of 14 for the published one.

    Args:
        folder: the converted model, by its name or folder.
        predictor: the file of the predictor, of torch or safetensors, or a converted one.
        low: the lower end of the scale of the images.
        high: its upper end.

    Raises:
        ConfigError: there is none of them, or they do not belong together.
        TypeError: a predictor that is no path.
    """
    require_spec("pretrained.aesthetic", str | Path, predictor=predictor)
    net, params = clip.tower(_opened("aesthetic", folder), clip.VisionTower)
    own = store.find(predictor)
    tensors = conversion.read(Path(predictor))[0] if own is None else store.open_folder(own).tensors()
    weight, offset = affine(tensors, name=str(predictor))
    try:
        return Aesthetic(net=net, params=params, weight=weight, offset=offset, low=low, high=high)
    except ValueError as error:
        raise WeightsError(f"{predictor}: {error}") from error


def _opened(who: str, folder: str | Path) -> store.Folder:
    if (found := store.find(folder)) is None:
        raise ConfigError(f"pretrained.{who}.folder = {str(folder)!r}: no such converted model; see scorelab pretrained convert")
    return store.open_folder(found)
