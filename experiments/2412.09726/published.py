"""What the figures of published networks share: the network, images that did not come with it, and what was measured with it.

A network is the name of a converted checkpoint or its folder (`scorelab pretrained convert`); one that was trained here, or that
the package carries, does as well. Images are a data set by name, an .npz or .npy file with uint8 images `x`, or a folder of image
files.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scorelab import data, pretrained
from scorelab.data.registry import SETS, unknown_name
from scorelab.devices import operations
from scorelab.errors import ConfigError
from scorelab.pretrained.kept import parameters_hash

# FLOP/s that a GPU of the size of an H200 may reach with these networks. It is assumed, and was not measured.
ASSUMED = 1.5e14


class Subject:
    """A network, and images in its scale.

    Attributes:
        model: the network, which knows its process.
        transform: from stored images to what it sees, and back.
        event: the shape of an image.
        classes: the number of classes that it is told, None for none.
        images: the training split.
        origin: name and hash of the weights, name and hash of the images.
    """

    def __init__(self, model: str, images: str):
        who = pretrained.load(model)
        if who.latents is not None or who.transform is None:
            raise ConfigError(f"model = {model}: a network of latents, or of a scale that is not said; expected one of images")
        # On the device once, and not with every chunk.
        self.model, self.transform = jax.device_put(who.model), who.transform
        self.event, self.classes = tuple(who.event_shape), who.classes
        try:
            self.images = image_set(images).load("train")
        except ValueError as error:
            raise ConfigError(f"data = {images}: {error}") from error
        if self.images.event_shape != self.event:
            raise ConfigError(f"data = {images}: images {self.images.event_shape}: expected {self.event}, as {model} makes them")
        try:
            self.transform.check(self.images.x, self.images.levels)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"data = {images} for {model}: {error}") from error
        if self.classes is not None and (self.images.label is None or self.images.num_classes != self.classes):
            raise ConfigError(f"data = {images}: {self.images.num_classes} classes: expected {self.classes}, as {model} is told")
        name = who.config["name"] if isinstance(who, pretrained.Converted) else Path(model).name
        weights = parameters_hash(self.model.params)
        self.origin = dict(name=name, weights=weights, data=self.images.name, data_sha256=self.images.sha256)

    def encoded(self, rows=slice(None)) -> np.ndarray:
        """Images as the network sees them, ``(n, *event)``."""
        return np.asarray(self.transform.encode(self.images.x[rows]))

    def labels(self, n: int) -> np.ndarray | None:
        """The classes of ``n`` samples, all in turn; None for a network without."""
        return None if self.classes is None else np.arange(n, dtype=np.int32) % self.classes

    def flops(self) -> float:
        """Floating point operations of a call for one image, as XLA counts them before it compiles: two for a multiplication."""
        label = None if self.classes is None else jnp.zeros(1, jnp.int32)
        return operations(_asked, self.model, jnp.zeros((1, *self.event)), jnp.ones(1), label)


@jax.jit
def _asked(model, y, t, label):
    return model(y, t, label).denoised


def image_set(name: str) -> data.DataSet:
    """The data set of this name, file or folder; ConfigError where there is none."""
    path = Path(name).expanduser()
    if name not in SETS and path.suffix in (".npz", ".npy") and path.is_file():
        return data.ArrayFile(train=str(path), label_key=_label_key(path))
    if name not in SETS and path.is_dir():
        return data.ImageFolder(root=str(path))
    if name not in SETS:
        raise ConfigError(f"{unknown_name('data', name)} Or an .npz file with the images x, or a folder of images")
    return data.Named(name=name)


def _label_key(path: Path) -> str | None:
    """``label`` where a file has labels."""
    if path.suffix != ".npz":
        return None
    with np.load(path, allow_pickle=False) as file:
        return "label" if "label" in file.files else None


def estimate(flops: float, calls: int, n: int) -> dict[str, float]:
    """What ``n`` samples of ``calls`` calls cost, from the operations of a call; the minutes are those of one GPU, and assumed."""
    total = flops * calls * n
    return dict(gflop_a_call=flops / 1e9, pflop=total / 1e15, minutes_assumed=total / ASSUMED / 60, flops_assumed=ASSUMED)


def memory() -> int | None:
    """The most bytes that the first device has had in use; None where it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
