"""Feature extractors: from uint8 images to the vectors the metrics compare, each with an id to print."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.data.transforms import Pixels
from scorelab.metrics import smallcnn
from scorelab.pytrees import computed
from scorelab.validation import require_int

# Images that are looked at together where they are not in memory: a multiple of the batches of ``SmallCNN``.
_BLOCK = 1000


class Features(abc.ABC):
    """What every metric takes: ``features(images)`` -> (n, d), and an ``id`` printed beside every metric value.

    ``id`` is a name, with the first eight digits of the weights' SHA-256 where there are weights. What samples it is for:
    ``dataset``, the data set it was trained on, ``levels``, the grey levels, and ``shape``, that of an image; None for any.
    """

    id: str
    dataset: str | None = None
    levels: int | None = None
    shape: tuple[int, ...] | None = None

    @abc.abstractmethod
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Vectors (n, d) of samples (n, ...)."""


def in_memory(x: Any) -> bool:
    """Whether samples are arrays in memory, and not rows that are read when they are asked for (:class:`scorelab.Shards`)."""
    return isinstance(x, np.ndarray | jax.Array | list | tuple) and not isinstance(x, np.memmap)


def blocks(x: Any, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """The samples of some ``rows``, all by default: at once where they are in memory, and else a block at a time."""
    if in_memory(x):
        yield np.asarray(x) if rows is None else np.asarray(x)[rows]
        return
    rows = np.arange(len(x)) if rows is None else rows
    for low in range(0, len(rows), _BLOCK):
        yield np.asarray(x[rows[low : low + _BLOCK]])


def extracted(features: Features, x: Any, rows: np.ndarray | None = None) -> np.ndarray:
    """Vectors ``(n, d)`` of samples, or of some ``rows`` of them; of samples on disk a block is read at a time."""
    parts = [features(block) for block in blocks(x, rows)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _check_images(images: np.ndarray, levels: int, shape: tuple[int, ...] | None) -> np.ndarray:
    images = np.asarray(images)
    wanted = "(n, height, width, channels)" if shape is None else f"(n, {', '.join(map(str, shape))})"
    if images.dtype != np.uint8 or images.ndim != 4 or (shape is not None and images.shape[1:] != shape):
        raise ValueError(f"images are {images.dtype} {images.shape}: expected uint8 {wanted}")
    if images.size and int(images.max()) >= levels:
        raise ValueError(f"images have the value {images.max()}: expected 0 to levels - 1 = {levels - 1}")
    return images


def _by_batches(fn: Callable[[np.ndarray], Any], images: np.ndarray, size: int) -> Any:
    """``fn(images)``, a pytree of arrays with one row for each image, by batches of one shape."""
    if not len(images):
        raise ValueError(f"images have shape {images.shape}: expected at least one image")
    size, parts = min(size, len(images)), []
    for first in range(0, len(images), size):
        block = images[first : first + size]
        # The last block is filled up with zeros and cut again: one shape, one compilation.
        full = np.zeros((size, *images.shape[1:]), np.uint8)
        full[: len(block)] = block
        parts.append(jax.tree.map(np.asarray, fn(full)))
    return jax.tree.map(lambda *rows: np.concatenate(rows)[: len(images)], *parts)


@dataclass(frozen=True, kw_only=True)
class RawPixels(Features):
    """The pixels themselves, (x + 1/2) / levels flattened to (n, height * width * channels)."""

    id = "pixels"
    levels: int = 256  # pyright: ignore[reportIncompatibleVariableOverride]: never None here

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Vectors of uint8 images (n, height, width, channels)."""
        images = _check_images(images, self.levels, None)
        return (images.reshape(len(images), -1).astype(np.float32) + 0.5) / self.levels


@dataclass(frozen=True, kw_only=True)
class Coordinates(Features):
    """Vectors (n, d) as they are: 2-D data, or features computed before, under the id of their extractor."""

    id: str = "coordinates"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """The vectors."""
        vectors = np.asarray(images)
        if vectors.ndim != 2:
            raise ValueError(f"vectors have shape {vectors.shape}: expected (n, d)")
        return vectors


@dataclass(frozen=True, kw_only=True)
class NetworkFeatures(Features):
    """What a network says of uint8 images ``(n, height, width, channels)``, float32 with every digit on any device.

    A new one states ``id``, ``params`` and ``forward``, and what else it is made of as fields. Two are equal when their fields are.
    Images of one size are looked at by one program.

    Attributes:
        params: of the network, a pytree of arrays.
        channels: of the images.
        batch_size: images that are looked at together.
    """

    batch_size: int = field(compare=False, default=64)

    params: ClassVar[Any]
    channels: ClassVar[int] = 3

    def __post_init__(self):
        require_int(self, 1, batch_size=self.batch_size)

    @abc.abstractmethod
    def forward(self, params: Any, images: jax.Array) -> jax.Array:
        """Vectors ``(b, d)`` of grey levels ``(b, height, width, channels)`` from 0 to ``levels - 1``, floating point; traced."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Vectors ``(n, d)`` of uint8 images ``(n, height, width, channels)``."""
        images = _check_images(images, self.levels or 256, self.shape)
        if images.shape[-1] != self.channels:
            raise ValueError(
                f"images have shape {images.shape}: expected {self.channels} channels, as {self.id} has; images of one channel in "
                "colour are np.repeat(images, 3, axis=-1)"
            )
        # To the device once, and not with every batch.
        params = jax.device_put(self.params)
        return _by_batches(lambda batch: _forward(self, params, batch), images, self.batch_size)


@functools.partial(jax.jit, static_argnums=0)
def _forward(features: NetworkFeatures, params: Any, images: jax.Array) -> jax.Array:
    # Metrics must not depend on the accelerator's default precision.
    with jax.default_matmul_precision("highest"):
        return features.forward(params, jnp.asarray(images, jnp.float32))


@dataclass(frozen=True, kw_only=True)
class SmallCNN(Features):
    """The stored classifier of one data set: its 64 features, its logits, its class probabilities.

    Input everywhere: uint8 images ``(n, height, width, channels)`` with values 0 to ``levels - 1``, seen by the
    network as ``(x + 1/2) / levels``, which is ``Pixels(levels=levels, low=0, high=1).encode(x)``. Only
    ``unit_logits`` takes those floats, so that a reward can be differentiated. Two extractors are equal when
    their ids (so their weights) are.
    """

    id: str
    levels: int = field()  # pyright: ignore[reportIncompatibleVariableOverride]: without the default of the base class
    architecture: smallcnn.Architecture
    params: smallcnn.Params = field(compare=False, repr=False)
    record: dict[str, Any] = field(compare=False, repr=False, default_factory=dict)
    batch_size: int = field(compare=False, default=500)

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: expected at least 1")

    @computed
    def dataset(self) -> str | None:
        """That of the record."""
        return self.record.get("dataset")

    @computed
    def shape(self) -> tuple[int, ...]:
        """That of the architecture."""
        return self.architecture.shape

    def _forward(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = _check_images(images, self.levels, self.architecture.shape)
        scale = Pixels(levels=self.levels, low=0.0, high=1.0)
        features, logits = _by_batches(
            lambda batch: smallcnn.apply(self.params, scale.encode(batch), self.architecture), images, self.batch_size
        )
        return (features - self.params["mean"]) / self.params["scale"], logits

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features (n, width) float32, with mean 0 and mean square 1 over the training images."""
        return np.asarray(self._forward(images)[0])

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Class logits ``(n, num_classes)``, float32."""
        return self._forward(images)[1]

    def class_probabilities(self, images: np.ndarray) -> np.ndarray:
        """The softmax of the logits, ``(n, num_classes)``, float32."""
        return np.asarray(jax.nn.softmax(self._forward(images)[1], axis=-1))

    def unit_logits(self, unit: jax.Array, *, loop_safe: bool = False) -> jax.Array:
        """Class logits of float images in [0, 1], differentiable and jit-safe.

        For values on ``[low, high]`` pass ``(y - low) / (high - low)``.

        The gradient of a plain convolution inside ``lax.scan`` is slower on the CPU than outside, for wide
        layers many times: set ``loop_safe`` there.
        """
        unit = jnp.asarray(unit, jnp.float32)
        return smallcnn.apply(self.params, unit, self.architecture, loop_safe=loop_safe)[1]


def pixels(levels: int = 256) -> RawPixels:
    """Raw pixels as features."""
    return RawPixels(levels=levels)


def small_cnn(dataset_name: str, *, folder: Path | None = None) -> SmallCNN:
    """The stored classifier trained on ``dataset_name``, its weights checked against the recorded SHA-256.

    ``folder`` is where ``index.json`` and the weights lie, by default inside the package. ``.record`` tells how
    they were made: data hash, command, seed, versions, test accuracy.

    Raises:
        WeightsError: the weights are missing, or not those recorded.
    """
    params, architecture, record = smallcnn.restore(dataset_name, smallcnn.WEIGHTS if folder is None else folder)
    return SmallCNN(
        id=f"smallcnn({dataset_name}-{record['sha256'][:8]})",
        levels=record["levels"],
        architecture=architecture,
        params=params,
        record=record,
    )
