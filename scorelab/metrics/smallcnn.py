"""The small classifier whose feature layer the image metrics use, and its stored weights.

Pure functions of a dictionary of arrays; weights are stored as plain npz with their SHA-256 and provenance
in ``weights/index.json``.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.errors import WeightsError
from scorelab.models.nets.conv import convolve

WEIGHTS = Path(__file__).parent / "weights"

Params = dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """3x3 convolutions with ReLU, global average pool, dense ``width`` (the features), ReLU, dense classes.

    ``convolutions`` holds (channels, stride) pairs; ``shape`` is (height, width, channels) of an image. The
    feature layer is read before its ReLU: those values are closer to Gaussian, which is what the Frechet
    distance compares.
    """

    shape: tuple[int, int, int]
    convolutions: tuple[tuple[int, int], ...]
    width: int = 64
    num_classes: int = 10

    def __post_init__(self):
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape={self.shape}: expected (height, width, channels), all at least 1")
        if not self.convolutions or min(min(pair) for pair in self.convolutions) < 1:
            raise ValueError(f"convolutions={self.convolutions}: expected at least one (channels, stride) pair")
        for field in ("width", "num_classes"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: expected at least 1")

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter: kernels are (3, 3, in, out) and (in, out)."""
        shapes, last = {}, self.shape[-1]
        for i, (channels, _) in enumerate(self.convolutions):
            shapes |= {f"conv{i}_w": (3, 3, last, channels), f"conv{i}_b": (channels,)}
            last = channels
        shapes |= {"feature_w": (last, self.width), "feature_b": (self.width,)}
        return shapes | {"class_w": (self.width, self.num_classes), "class_b": (self.num_classes,)}


# Behind a global average pool the receptive field bounds what can be told apart: 17 pixels in the first
# layout, where convolutions of stride 1, 2, 2 would see 9 (a bag of strokes: 96.4 % on MNIST in four
# epochs); 9 in the second, which covers an 8x8 image.
FOR_28 = Architecture(shape=(28, 28, 1), convolutions=((32, 1), (64, 2), (96, 2), (96, 2)))
FOR_8 = Architecture(shape=(8, 8, 1), convolutions=((32, 1), (64, 2), (64, 1)))


def init(key: jax.Array, architecture: Architecture) -> Params:
    """Kernels ~ N(0, 2 / fan_in), biases zero (He et al. 2015, arXiv 1502.01852, equation 10)."""
    shapes = architecture.param_shapes()
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    return {
        name: jnp.zeros(shape) if name.endswith("_b") else jnp.sqrt(2 / np.prod(shape[:-1])) * jax.random.normal(keys[name], shape)
        for name, shape in shapes.items()
    }


@functools.partial(jax.jit, static_argnames=("architecture", "loop_safe"))
def apply(params: Params, unit: jax.Array, architecture: Architecture, *, loop_safe: bool = False) -> tuple[jax.Array, jax.Array]:
    """Features (n, width) and logits (n, num_classes) of float images (n, *shape) in [0, 1].

    ``loop_safe`` is for gradients inside ``lax.scan`` and other loops on the CPU, where those of a plain
    convolution are slow; values and gradients are the same up to the order of sums.
    """
    # Full float32 products everywhere: metrics must not depend on the accelerator's default precision.
    precision = jax.lax.Precision.HIGHEST
    # The CPU knows no other precision. Accelerators do, and their loops are as fast with plain convolutions.
    loop_safe = loop_safe and jax.default_backend() == "cpu"
    h = 2 * unit - 1
    for i, (_, stride) in enumerate(architecture.convolutions):
        kernel = params[f"conv{i}_w"]
        if loop_safe:
            h = convolve(h, kernel, stride=stride, loop_safe=True)
        else:
            h = jax.lax.conv_general_dilated(
                h, kernel, (stride, stride), "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision,
            )  # fmt: skip
        h = jax.nn.relu(h + params[f"conv{i}_b"])
    features = jnp.matmul(h.mean((1, 2)), params["feature_w"], precision=precision) + params["feature_b"]
    logits = jnp.matmul(jax.nn.relu(features), params["class_w"], precision=precision) + params["class_b"]
    return features, logits


def with_moments(params: Params, features: np.ndarray) -> Params:
    """The parameters with the ``mean`` (width,) of training features and their ``scale``, the root mean square
    about it.

    (features - mean) / scale is what metrics compare: the size of a trained layer is arbitrary, and the
    cubic kernel (a . b / d + 1)^3 is made for values of order one. One scale for all coordinates keeps
    their proportions.
    """
    f = np.asarray(features, np.float64)
    mean = f.mean(0)
    scale = np.sqrt(np.mean((f - mean) ** 2))
    return {**params, "mean": jnp.asarray(mean, jnp.float32), "scale": jnp.asarray(scale, jnp.float32)}


def _replace(path: Path, content: bytes) -> None:
    # Write and rename: a reader sees the old file or the new one, never a part.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def save(name: str, params: Params, architecture: Architecture, provenance: dict[str, Any], folder: Path = WEIGHTS) -> str:
    """Store weights as ``<name>.npz`` and their record in ``index.json``; returns the SHA-256 of the file.

    ``params`` come from ``with_moments``; ``provenance`` is JSON data and must hold ``levels``, the number of grey
    levels of the images trained on.
    """
    buffer = io.BytesIO()
    arrays = {key: np.asarray(value, np.float32) for key, value in params.items()}
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]: no array is called allow_pickle
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    index_path = folder / "index.json"
    index = json.loads(index_path.read_text()) if index_path.exists() else {}
    layout = {
        "shape": architecture.shape,
        "convolutions": architecture.convolutions,
        "width": architecture.width,
        "num_classes": architecture.num_classes,
    }
    index[name] = {"file": f"{name}.npz", "sha256": digest, "architecture": layout, **provenance}
    _replace(folder / f"{name}.npz", buffer.getvalue())
    _replace(index_path, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
    return digest


def recorded(name: str, folder: Path = WEIGHTS) -> dict[str, Any]:
    """The record of stored weights, without reading them; WeightsError where there are none of this name."""
    index_path = folder / "index.json"
    index = json.loads(index_path.read_text()) if index_path.exists() else {}
    if name not in index:
        raise WeightsError(f"name={name!r}: {index_path} has weights for {', '.join(sorted(index)) or 'no data set'}")
    return index[name]


def restore(name: str, folder: Path = WEIGHTS) -> tuple[Params, Architecture, dict[str, Any]]:
    """Parameters, architecture and record of stored weights; WeightsError unless the SHA-256 agrees."""
    record = recorded(name, folder)
    path = folder / record["file"]
    if not path.is_file():
        raise WeightsError(f"{path} is missing, though {folder / 'index.json'} lists it")
    content = path.read_bytes()
    if (digest := hashlib.sha256(content).hexdigest()) != record["sha256"]:
        raise WeightsError(f"{path}: sha256 is {digest}, expected {record['sha256']}")
    layout = record["architecture"]
    architecture = Architecture(
        shape=tuple(layout["shape"]),
        convolutions=tuple(tuple(pair) for pair in layout["convolutions"]),
        width=layout["width"],
        num_classes=layout["num_classes"],
    )
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        params = {key: jnp.asarray(archive[key]) for key in archive.files}
    wanted = architecture.param_shapes() | {"mean": (architecture.width,), "scale": ()}
    if (found := {key: value.shape for key, value in params.items()}) != wanted:
        raise WeightsError(f"{path}: shapes {found}, expected {wanted}")
    return params, architecture, record
