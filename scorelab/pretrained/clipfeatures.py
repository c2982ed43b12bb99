"""Points of CLIP as features of distances between sets of images.

Jayasumana et al. (2024), arXiv:2401.09603, compare such points by the squared MMD under a Gaussian kernel
(:func:`scorelab.metrics.mmd`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from scorelab.data.files import cache_dir
from scorelab.errors import WeightsError, shown
from scorelab.metrics import NetworkFeatures
from scorelab.pretrained import clip, store
from scorelab.pytrees import computed
from scorelab.validation import require_choice


@functools.lru_cache(maxsize=2)
def _stored(path: Path, stamp: int) -> tuple[clip.VisionTower, dict[str, Any], str]:
    """The tower of a converted folder, its parameters and its hash; ``stamp`` is when it was written."""
    net, params = clip.tower(folder := store.open_folder(path), clip.VisionTower)
    if net.projection_dim is None:
        raise WeightsError(f"{shown(path)}: a tower without projection: expected a CLIPModel or a CLIPVisionModelWithProjection")
    return net, params, folder.config["weights"]["sha256"]


@dataclass(frozen=True, kw_only=True)
class ClipFeatures(NetworkFeatures):
    r"""The points :math:`e/\lVert e\rVert` of CLIP's common space, of uint8 images ``(n, h, w, 3)`` of any size.

    Images are resized and cut as ``pretrained.clip.seen`` does, without rounding. The weights are read when they are first used.
    Source: arXiv 2401.09603, whose distance is 1000 times ``metrics.mmd(x, y, 10.0, features=...)`` with the tower of 336 pixels.

    Attributes:
        weights: a converted ``CLIPModel`` or ``CLIPVisionModelWithProjection``, by its name or folder.
        batch_size: images that are looked at together.
    """

    weights: str = "clip-vit-large-patch14-336"
    levels: int = 256  # pyright: ignore[reportIncompatibleVariableOverride]: never None here

    def __post_init__(self):
        super().__post_init__()
        require_choice(self, (256,), levels=self.levels)
        if not isinstance(self.weights, str | Path) or not str(self.weights).strip():
            raise TypeError(f"ClipFeatures.weights = {self.weights!r}: expected the name or the folder of a converted model")

    def _found(self) -> tuple[clip.VisionTower, dict[str, Any], str]:
        if (path := store.find(self.weights)) is None:
            where = f" here or in {cache_dir()}/pretrained" if cache_dir() else ""
            raise WeightsError(
                f"ClipFeatures.weights = {str(self.weights)!r}: no such converted model{where}: expected one by "
                "scorelab pretrained fetch or convert, such as clip-vit-large-patch14-336"
            )
        file = path / store.TENSORS
        return _stored(path.resolve(), file.stat().st_mtime_ns if file.exists() else 0)

    @computed
    def id(self) -> str:
        """Such as ``clip(clip-vit-large-patch14-336-6726825d)``, with the first digits of the hash of the weights."""
        path = store.find(self.weights)
        return f"clip({(path or Path(self.weights)).name}-{self._found()[2][:8]})"

    @computed
    def params(self) -> Any:
        """Of the vision tower."""
        return self._found()[1]

    def forward(self, params, images):
        return jnp.asarray(clip.unit(clip.image_features(self._found()[0], params, images / 255)))
