"""Converted models as models: which family builds a published class, and what a folder or a pipeline of them becomes.

A new family is one file and one row of :data:`FAMILIES`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key
from scorelab.data import Pixels, Transform
from scorelab.errors import WeightsError, shown
from scorelab.grids import Explicit
from scorelab.models import BoundDenoiser
from scorelab.pretrained import own
from scorelab.pretrained.conversion import SCHEDULER, require_known
from scorelab.pretrained.edm import LEVELS
from scorelab.pretrained.edm2 import ByChannel, latent_scale
from scorelab.pretrained.scheduler import steps_of
from scorelab.pretrained.store import Folder, Pipeline, open_any, open_folder
from scorelab.pretrained.text import TextEncoder
from scorelab.pretrained.vae import Latents
from scorelab.processes import LinearGaussian
from scorelab.schedules import Discrete
from scorelab.validation import require_choice

# The scale of images of `ScoreSdeVeScheduler` and `center_input_sample`, k / 255: cells whose outermost centres are 0 and 1.
UNIT = Pixels(low=-1 / 510, high=511 / 510)
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Family:
    """What builds the networks of a published class.

    Attributes:
        module: where, imported when it is used.
        function: in there: ``model(folder, process)``, ``latents(folder)`` or ``load(folder, tokenizer)``, by the role.
        role: ``model``, ``latents``, ``text``, or ``features`` for what is part of no pipeline.
        latent: of latents, which an autoencoder makes.
        null: ``model`` takes the context of the empty text as well, ``null_context``.
        own: of this package: ``model(folder)`` has the process that it was trained with, and ``transform(folder)`` the scale of its
            data, None where that is not said.
    """

    module: str
    function: str
    role: str
    latent: bool = False
    null: bool = False
    own: bool = False

    def build(self, folder: Folder, *args: Any, **named: Any) -> Any:
        """What becomes of a converted folder."""
        return getattr(importlib.import_module(self.module), self.function)(folder, *args, **named)


_EDM = Family("scorelab.pretrained.edm", "model", "model")
_DIT = Family("scorelab.pretrained.dit", "model", "model", latent=True)
_TEXT = Family("scorelab.pretrained.text", "load", "text")
# By the class that a published config says.
FAMILIES = {
    "EDMPrecond": _EDM,
    "VPPrecond": _EDM,
    "VEPrecond": _EDM,
    "iDDPMPrecond": _EDM,
    "Precond": Family("scorelab.pretrained.edm2", "model", "model"),
    "UNet2DModel": Family("scorelab.pretrained.unet2d", "model", "model"),
    "UNet2DConditionModel": Family("scorelab.pretrained.unet2d", "model", "model", latent=True, null=True),
    "DiTTransformer2DModel": _DIT,
    "Transformer2DModel": _DIT,
    "AutoencoderKL": Family("scorelab.pretrained.vae", "latents", "latents"),
    "CLIPTextModel": _TEXT,
    "CLIPTextModelWithProjection": _TEXT,
    "CLIPModel": Family("scorelab.pretrained.clip", "load", "features"),
    "scorelab": Family("scorelab.pretrained.own", "model", "model", own=True),
}
# Of configs of transformers without the name of a class.
_TYPES = {"clip_text_model": "CLIPTextModel", "clip": "CLIPModel"}


def class_of(folder: Folder) -> str | None:
    """The class that a converted model was published as; None where it does not say."""
    network = folder.config.get("network")
    if folder.config.get("kind") == "scorelab":
        return "scorelab"
    if not isinstance(network, Mapping):
        return None
    outer, several = network.get(""), network.get("architectures")
    found = {
        "diffusers": network.get("_class_name"),
        "transformers": several[0] if isinstance(several, list) and several else _TYPES.get(str(network.get("model_type"))),
    }.get(str(folder.config.get("kind")), outer.get("type") if isinstance(outer, Mapping) else None)
    return found if isinstance(found, str) else None


def family(folder: Folder) -> Family:
    """What builds a converted model; WeightsError where nothing here does."""
    if (found := FAMILIES.get(name := class_of(folder) or "")) is None:
        kind = f"kind {folder.config.get('kind')!r}, class {name!r}" if name else f"kind {folder.config.get('kind')!r}"
        raise WeightsError(f"{shown(folder.path)}: {kind}: expected one of {', '.join(FAMILIES)}")
    return found


@dataclass(frozen=True)
class Narrow:
    """A network of which all but its statistics is computed in another type; its input and output keep theirs.

    Attributes:
        net: the network, whose layers compute in the type of their input.
        dtype: of the computation.
    """

    net: Any
    dtype: str

    def init(self, *args: Any, **named: Any) -> Any:
        """As the network."""
        return self.net.init(*args, **named)

    def apply(self, params: Any, x: Array, c_noise: Array, cond: Any = None, **named: Any) -> Any:
        """As the network, at ``x`` rounded to ``dtype``; the noise level is not rounded."""
        found = self.net.apply(params, x.astype(self.dtype), c_noise, cond, **named)
        return (found[0].astype(x.dtype), found[1]) if isinstance(found, tuple) else found.astype(x.dtype)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "net":
            raise AttributeError(name)
        return getattr(self.net, name)


def narrowed(model: BoundDenoiser, dtype: str) -> BoundDenoiser:
    """A model with parameters and computation in ``dtype``, on the host until used.

    In bfloat16, vectors stay in float32: biases, scales of norms, tables of noise levels.
    """
    require_choice("pretrained.load", DTYPES, dtype=dtype)
    wide = np.dtype(np.float32)
    kernel = wide if dtype == "float32" else jnp.dtype(dtype)
    cast = lambda leaf: np.asarray(leaf).astype(kernel if np.ndim(leaf) > 1 else wide, copy=False)
    params = jax.tree.map(cast, model.params)
    if dtype == "float32":
        return dataclasses.replace(model, params=params)
    denoiser = dataclasses.replace(model.denoiser, net=Narrow(model.denoiser.net, dtype))
    return denoiser.bind(params)


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A published model, and what it takes to use it.

    Attributes:
        model: the denoiser, which knows its process.
        transform: from stored images to what ``latents`` see, or the model where there are none, and back; None for a model of
            latents without its autoencoder, and for one of this package whose export does not say it.
        config: what ``config.json`` says, with ``scheduler`` where the model was published with one.
        latents: the autoencoder of a model of latents, with ``encode`` and ``decode``; None for one of pixels.
        text: from prompts to conditions, None for a model without.
    """

    model: BoundDenoiser
    transform: Transform | None
    config: dict[str, Any]
    latents: Latents | ByChannel | None = None
    text: TextEncoder | None = None

    # The weights would be pages of numbers.
    def __repr__(self) -> str:
        parts = "".join(f", with {part}" for part in ("latents", "text") if getattr(self, part) is not None)
        try:
            shape = self.event_shape
        except WeightsError:
            shape = None
        said = f"event_shape={shape}, classes={self.classes}, licence={self.licence['id']!r}"
        return f"Converted({self.config.get('name')!r}, {said}{parts})"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of a sample as it was trained, of images or of latents; WeightsError where its sides are not said."""
        if "event" in self.config:
            return tuple(self.config["event"])
        net = self.model.denoiser.net
        named: Any = lambda *names: next((value for name in names if (value := getattr(net, name, None)) is not None), None)
        side = named("img_resolution", "sample_size")
        if side is None:
            raise WeightsError(
                f"Converted.event_shape of {self.config.get('name')!r}: sample_size is null in its config, so that the sides of "
                "its samples are not known: expected a shape of your own in the place of event_shape"
            )
        sides = tuple(side) if isinstance(side, Sequence) else (side, side)
        return (*sides, named("in_channels", "img_channels"))

    @property
    def classes(self) -> int | None:
        """The number of classes that the model is told, None for a model without."""
        return getattr(self.model.denoiser.net, "num_classes", 0) or None

    @property
    def licence(self) -> dict[str, Any]:
        """``id`` and ``url`` of that of the weights, None where nobody said them."""
        return self.config.get("licence") or dict(id=None, url=None)

    def encode(self, images: Array, key: Key | None = None) -> Array:
        """Stored images ``(b, h, w, c)`` uint8 as the model has them: in its scale, or as latents, which ``key`` draws.

        Without a key latents are their means. WeightsError where the scale is not known.
        """
        x = self._scale.encode(images)
        return x if self.latents is None else self.latents.encode(x, key)

    def decode(self, y: Array) -> Array:
        """What the model made as stored images, uint8; WeightsError where the scale is not known."""
        return self._scale.decode(y if self.latents is None else self.latents.decode(y))

    @property
    def _scale(self) -> Transform:
        if self.transform is None:
            if self.config.get("kind") == "scorelab":
                why = "its export does not say the scale of its data: expected pretrained.export(..., transform=...)"
            else:
                why = "its latents have no autoencoder: expected pretrained.load(..., autoencoder=...)"
            raise WeightsError(f"Converted of {self.config.get('name')!r}: {why}")
        return self.transform

    def grid(self, steps: int) -> Explicit:
        """The grid of DDIM in so many steps as it was published; WeightsError for a model without a scheduler of betas.

        It is that of the model's own noise, and not of another ``process``.
        """
        scheduler = self.config.get("scheduler")
        if scheduler is None or not isinstance(getattr(self.model.process, "schedule", None), Discrete):
            raise WeightsError(f"Converted.grid of {self.config.get('name')!r}: no scheduler of betas: expected a grid of yours")
        return steps_of(scheduler, steps, name=f"{self.config.get('name')}: scheduler")

    def prompt(self, prompts: str | Sequence[str]) -> Array:
        """The condition of one prompt or several; WeightsError for a model without text."""
        if self.text is None:
            raise WeightsError(
                f"Converted.prompt of {self.config.get('name')!r}: it has no text encoder: expected a model of texts"
            )
        return self.text(prompts)


def load(
    path: Path, *, dtype: str = "float32", process: LinearGaussian | None = None, autoencoder: Path | None = None
) -> Converted:
    """A converted folder or pipeline with a denoiser, its hashes compared.

    Args:
        path: of the folder.
        dtype: of parameters and computation of the denoiser, ``float32`` or ``bfloat16``.
        process: of the model; None for the noise that it was published with.
        autoencoder: the converted folder of another one than that of the pipeline, or of a model of latents that came without.

    Raises:
        WeightsError: it is damaged, has no denoiser, or a part that no family here builds; the message names it.
    """
    require_choice("pretrained.load", DTYPES, dtype=dtype)
    found = open_any(path)
    require_known(found.config.get("network"), shown(path))
    parts = found.parts if isinstance(found, Pipeline) else {"": found}
    by_role: dict[str, tuple[Family, Folder]] = {}
    for folder in parts.values():
        if (made := family(folder)).role in by_role:
            both = f"{shown(by_role[made.role][1].path)} and {shown(folder.path)}"
            raise WeightsError(f"{both}: two parts for {made.role}: expected one")
        by_role[made.role] = made, folder
    if "model" not in by_role:
        other = "; ".join(f"{class_of(folder)} is for {made.role}" for made, folder in by_role.values())
        raise WeightsError(f"{shown(path)}: {other}: expected a denoiser among {', '.join(parts) or 'its parts'}")
    made, folder = by_role["model"]
    scheduler = found.read(f"scheduler/{SCHEDULER}") if isinstance(found, Pipeline) else folder.config.get("scheduler")
    if scheduler is not None:
        folder = dataclasses.replace(folder, config=folder.config | dict(scheduler=scheduler))
    if made.own:
        for field, value, usual in (("process", process, None), ("dtype", dtype, "float32")):
            if value != usual:
                raise WeightsError(
                    f"{shown(path)}: {field} = {value!r}: expected {usual!r} for a network of scorelab, as it was trained"
                )
    scale = latent_scale(folder.config, name=shown(folder.path)) if class_of(folder) == "Precond" else None
    latent = made.latent or scale is not None
    latents = text = None
    if autoencoder is not None:
        if not latent or (other := family(folder_of := open_folder(autoencoder))).role != "latents":
            what = f"{shown(autoencoder)} as its autoencoder: expected one, of a model of latents"
            raise WeightsError(f"{shown(path)} ({class_of(folder)}), {what}")
        by_role["latents"] = other, folder_of
    if "latents" in by_role:
        latents = by_role["latents"][0].build(by_role["latents"][1])
        latents = latents if scale is None else ByChannel(latents=latents, scale=scale[0], shift=scale[1])
    if "text" in by_role:
        if not isinstance(found, Pipeline) or (tokenizer := found.folder("tokenizer")) is None:
            raise WeightsError(f"{shown(path)}: a text encoder without a tokenizer: expected the files of tokenizer/")
        text = by_role["text"][0].build(by_role["text"][1], tokenizer)
    null = dict(null_context=np.asarray(text.empty)) if made.null and text is not None else {}
    model = narrowed(made.build(folder, *(() if made.own else (process,)), **null), dtype)
    if made.own:
        transform = own.transform(folder)
    elif latent:
        transform = None if latents is None else LEVELS
    else:
        # Images in [0, 1], as they are or brought to [-1, 1] inside of the network.
        by_level = scheduler is not None and scheduler.get("_class_name") == "ScoreSdeVeScheduler"
        transform = UNIT if by_level or getattr(model.denoiser.net, "center_input_sample", False) else LEVELS
    return Converted(
        model=model,
        transform=transform,
        config=found.config | (dict(scheduler=scheduler) if scheduler is not None else {}),
        latents=latents,
        text=text,
    )
