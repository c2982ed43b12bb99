"""The Inception network of FID and of the Inception score, by the weights that papers use.

Szegedy et al. (2015), arXiv:1512.00567; Heusel et al. (2017), arXiv:1706.08500; Salimans et al. (2016), arXiv:1606.03498. It is the
graph of TensorFlow of 2015-12-05 as ``pt_inception-2015-12-05-6726825d.pth`` has it, the file of pytorch-fid and of torch-fidelity.
The Inception networks of torchvision have other weights, average pools and another last block, so they give other distances.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scorelab.data.files import cache_dir
from scorelab.errors import WeightsError, shown
from scorelab.metrics import NetworkFeatures
from scorelab.pretrained import store, torchfile, trees
from scorelab.pretrained.keys import listed
from scorelab.pretrained.layers import wide
from scorelab.pytrees import computed, content
from scorelab.validation import require_choice

# The sides of the images that the network looks at.
SIDE = 299
LAYERS = ("64", "192", "768", "2048", "logits_unbiased", "logits")
MODES = ("tf1", "pytorch_fid")
# Of the published normalisation.
_EPSILON = 1e-3


class _Convolution(nn.Module):
    """Convolution without bias, normalisation by stored moments, ReLU; ``size`` and ``padding`` are those of height and width."""

    features: int
    size: tuple[int, int]
    stride: int
    padding: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        param = lambda name, init: self.param(name, init, (self.features,)).astype(wide(x))
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (*self.size, x.shape[-1], self.features))
        scale, bias = param("scale", nn.initializers.ones), param("bias", nn.initializers.zeros)
        mean, var = param("mean", nn.initializers.zeros), param("var", nn.initializers.ones)
        slope = scale / jnp.sqrt(var + _EPSILON)
        y = jax.lax.conv_general_dilated(
            x, (kernel.astype(wide(x)) * slope).astype(x.dtype), (self.stride, self.stride), [(p, p) for p in self.padding],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return nn.relu(y + (bias - mean * slope).astype(x.dtype))


def _largest(x: jax.Array, stride: int = 2, padding: int = 0) -> jax.Array:
    """The largest of 3 x 3."""
    zeros: Any = [(padding, padding)] * 2
    return nn.max_pool(x, (3, 3), (stride, stride), zeros)


def _mean(x: jax.Array) -> jax.Array:
    """The mean of 3 x 3 at stride 1, of those that lie in the image."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


class Inception(nn.Module):
    """The network, of images ``(b, 299, 299, 3)`` on [-1, 1].

    It has no fields, since one set of weights is published. A layer ``64``, ``192``, ``768`` or ``2048`` is the mean over the image
    of as many channels; ``logits`` and ``logits_unbiased`` are 1008, with and without the bias of the last layer.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """The vectors ``(b, d)`` by the name of the layer; under ``jit`` those that nobody uses cost nothing."""

        def conv(name, x, features, size=1, stride=1, padding=0):
            return _Convolution(features, (size, size), stride, (padding, padding), name=name)(x)

        # The two sides of a factorised convolution, with zeros so that the sides stay.
        def across(name, x, features, size):
            return _Convolution(features, (1, size), 1, (0, size // 2), name=name)(x)

        def along(name, x, features, size):
            return _Convolution(features, (size, 1), 1, (size // 2, 0), name=name)(x)

        found = {}
        x = conv("Conv2d_1a_3x3", x, 32, 3, 2)
        x = conv("Conv2d_2a_3x3", x, 32, 3)
        x = _largest(conv("Conv2d_2b_3x3", x, 64, 3, padding=1))
        found["64"] = x.mean((1, 2))
        x = conv("Conv2d_3b_1x1", x, 80)
        x = _largest(conv("Conv2d_4a_3x3", x, 192, 3))
        found["192"] = x.mean((1, 2))
        for block, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            at = lambda branch, block=block: f"{block}_branch{branch}"
            double = conv(at("3x3dbl_2"), conv(at("3x3dbl_1"), x, 64), 96, 3, padding=1)
            x = jnp.concatenate(
                [
                    conv(at("1x1"), x, 64),
                    conv(at("5x5_2"), conv(at("5x5_1"), x, 48), 64, 5, padding=2),
                    conv(at("3x3dbl_3"), double, 96, 3, padding=1),
                    conv(at("_pool"), _mean(x), pooled),
                ],
                -1,
            )
        double = conv("Mixed_6a_branch3x3dbl_2", conv("Mixed_6a_branch3x3dbl_1", x, 64), 96, 3, padding=1)
        double = conv("Mixed_6a_branch3x3dbl_3", double, 96, 3, 2)
        x = jnp.concatenate([conv("Mixed_6a_branch3x3", x, 384, 3, 2), double, _largest(x)], -1)
        for block, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            at = lambda branch, block=block: f"{block}_branch{branch}"
            single = across(at("7x7_2"), conv(at("7x7_1"), x, width), width, 7)
            double = along(at("7x7dbl_2"), conv(at("7x7dbl_1"), x, width), width, 7)
            double = along(at("7x7dbl_4"), across(at("7x7dbl_3"), double, width, 7), width, 7)
            x = jnp.concatenate(
                [
                    conv(at("1x1"), x, 192),
                    along(at("7x7_3"), single, 192, 7),
                    across(at("7x7dbl_5"), double, 192, 7),
                    conv(at("_pool"), _mean(x), 192),
                ],
                -1,
            )
        found["768"] = x.mean((1, 2))
        single = conv("Mixed_7a_branch3x3_2", conv("Mixed_7a_branch3x3_1", x, 192), 320, 3, 2)
        double = across("Mixed_7a_branch7x7x3_2", conv("Mixed_7a_branch7x7x3_1", x, 192), 192, 7)
        double = conv("Mixed_7a_branch7x7x3_4", along("Mixed_7a_branch7x7x3_3", double, 192, 7), 192, 3, 2)
        x = jnp.concatenate([single, double, _largest(x)], -1)
        # The graph of TensorFlow pools by the largest in its last block, whatever the paper says.
        for block, pool in (("Mixed_7b", _mean), ("Mixed_7c", lambda x: _largest(x, 1, 1))):
            at = lambda branch, block=block: f"{block}_branch{branch}"
            single = conv(at("3x3_1"), x, 384)
            double = conv(at("3x3dbl_2"), conv(at("3x3dbl_1"), x, 448), 384, 3, padding=1)
            x = jnp.concatenate(
                [
                    conv(at("1x1"), x, 320),
                    across(at("3x3_2a"), single, 384, 3),
                    along(at("3x3_2b"), single, 384, 3),
                    across(at("3x3dbl_3a"), double, 384, 3),
                    along(at("3x3dbl_3b"), double, 384, 3),
                    conv(at("_pool"), pool(x), 192),
                ],
                -1,
            )
        found["2048"] = x = x.mean((1, 2))
        return found | _Logits(1008, name="fc")(x)


class _Logits(nn.Module):
    """The last layer, with its bias and without."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = x @ kernel.astype(x.dtype)
        return {"logits_unbiased": y, "logits": y + bias.astype(x.dtype)}


def resized(x: jax.Array, mode: str) -> jax.Array:
    r"""Images ``(b, h, w, c)`` at 299 x 299, bilinear between two neighbours in x and in y, however small the result is.

    .. math:: u_i = i\,n/299,\qquad u_i = \max\big((i + \tfrac12)\,n/299 - \tfrac12,\,0\big)

    is where pixel ``i`` is read in a row of ``n``, in the modes ``tf1`` and ``pytorch_fid``. Nothing is smoothed before, so images
    that are made smaller are as rough as in the published values.
    """
    for axis in (2, 1):
        n, dtype = x.shape[axis], np.dtype(x.dtype)
        i = np.arange(SIDE, dtype=dtype)
        if mode == "tf1":
            # The factor is float32 in the published code, whatever the type of the rest.
            at = i * np.asarray(n / SIDE, np.float32).astype(dtype)
        else:
            at = np.maximum(np.asarray(n / SIDE, dtype) * (i + dtype.type(0.5)) - dtype.type(0.5), dtype.type(0))
        low = np.minimum(at.astype(np.int64), n - 1)
        part = (at - low.astype(dtype)).reshape(tuple(SIDE if k == axis else 1 for k in range(4)))
        a, b = (jnp.take(x, index, axis=axis) for index in (low, np.minimum(low + 1, n - 1)))
        x = a + (b - a) * part
    return x


def seen(images: jax.Array, mode: str) -> jax.Array:
    """What the network looks at of grey levels 0 to 255 ``(b, h, w, 3)``, floating point; differentiable in them."""
    return (resized(images, mode) - 128) / 128 if mode == "tf1" else 2 * resized(images / 255, mode) - 1


_LEAVES = {"running_mean": "mean", "running_var": "var", "weight": "scale", "bias": "bias"}


def _place(key: str) -> tuple[trees.Path, str] | None:
    """The place of a published name."""
    *layers, leaf = key.split(".")
    if layers == ["fc"]:
        return ("fc", "kernel" if leaf == "weight" else leaf), "linear" if leaf == "weight" else "same"
    *block, kind = layers or [""]
    if kind == "bn":
        # The number of batches of its training plays no part.
        return None if leaf == "num_batches_tracked" else (("_".join(block), _LEAVES.get(leaf, leaf)), "same")
    return (("_".join(block), "kernel"), "conv") if (kind, leaf) == ("conv", "weight") else ((*layers, leaf), "same")


def _key(path: trees.Path) -> tuple[str, str]:
    """The published name of a place."""
    layer, leaf = path
    if layer == "fc":
        return f"fc.{'weight' if leaf == 'kernel' else leaf}", "linear" if leaf == "kernel" else "same"
    layer = re.sub(r"^(Mixed_\d\w)_", r"\1.", layer)
    if leaf == "kernel":
        return f"{layer}.conv.weight", "conv"
    return f"{layer}.bn.{ {ours: theirs for theirs, ours in _LEAVES.items()}[leaf] }", "same"


@functools.cache
def shapes() -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters by their places in the tree."""
    return trees.shapes(Inception(), jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32))


def params(tensors: Mapping[str, np.ndarray], *, name: str = "params") -> dict[str, Any]:
    """The parameters, from published names ``Mixed_5b.branch1x1.conv.weight``.

    Raises:
        WeightsError: a tensor that the network has not, or the other way round, or of another shape, or numbers that are not
            finite, or a variance below zero; each is named.
    """
    found = trees.params(shapes(), tensors, _place, name=name, network="the Inception network of 2015-12-05")
    if wrong := [layer for layer, its in found["params"].items() if (its.get("var", np.zeros(1)) < 0).any()]:
        raise WeightsError(f"{name}: variances below zero in {listed(wrong)}: expected none")
    return found


def published(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The other direction of :func:`params`, without the numbers of batches."""
    return trees.published(tree, _key)


@functools.lru_cache(maxsize=2)
def _stored(path: Path, stamp: int) -> tuple[dict[str, Any], str]:
    """The parameters of a file or a converted folder and the first digits of their hash; ``stamp`` is when it was written."""
    if path.is_dir():
        tensors = store.open_folder(path).tensors()
    else:
        digest = store.sha256(path)
        stated = re.search(r"-([0-9a-f]{8})$", path.stem)
        if stated and not digest.startswith(stated[1]):
            raise WeightsError(f"{shown(path)} has the hash {digest}: expected {stated[1]}..., as its name says")
        tensors = store.read_safetensors(path) if path.suffix == ".safetensors" else torchfile.read(path).tensors()
    found = params(tensors, name=shown(path))
    # Of the numbers alone: what a folder says of its source is protected by nothing. The order is that of the sorted names.
    return found, content(found, names=False)[:8]


@dataclass(frozen=True, kw_only=True)
class InceptionFeatures(NetworkFeatures):
    r"""The features of the published Frechet distances, of uint8 images ``(n, h, w, 3)`` of any size.

    The weights are read when they are first used, by a reader that runs nothing of the file. What is compared has to have the same
    ``mode`` and ``layer``, which are in the ``id``: distances of the two modes differ by tenths.

    Attributes:
        weights: the file ``pt_inception-2015-12-05-6726825d.pth``, a safetensors file of the same names, or what
            ``scorelab pretrained convert`` made of one, by its name or folder. Eight digits at the end of a file's name are the
            beginning of its hash.
        mode: ``"tf1"``, as TensorFlow 1, torch-fidelity and the statistics of EDM have it, or ``"pytorch_fid"``: how images are
            brought to 299 x 299 (``pretrained.inception.resized``).
        layer: ``"2048"``, or a lower one of ``"64"``, ``"192"`` and ``"768"``, or ``"logits"`` or ``"logits_unbiased"``.
        batch_size: images that are looked at together.
    """

    weights: str = "pt_inception-2015-12-05-6726825d"
    mode: str = "tf1"
    layer: str = "2048"
    levels: int = 256  # pyright: ignore[reportIncompatibleVariableOverride]: never None here

    def __post_init__(self):
        super().__post_init__()
        require_choice(self, MODES, mode=self.mode)
        require_choice(self, LAYERS, layer=self.layer)
        require_choice(self, (256,), levels=self.levels)
        if not isinstance(self.weights, str | Path) or not str(self.weights).strip():
            raise TypeError(f"InceptionFeatures.weights = {self.weights!r}: expected a file, or the name of a converted one")

    def _found(self) -> tuple[dict[str, Any], str]:
        path = store.find(self.weights) or Path(self.weights)
        if not path.exists():
            where = f", or {cache_dir()}/pretrained/{self.weights}" if cache_dir() else ""
            raise WeightsError(
                f"InceptionFeatures.weights = {str(self.weights)!r}: no such file{where}: expected the file "
                "pt_inception-2015-12-05-6726825d.pth of pytorch-fid, or the folder of a converted one"
            )
        file = path / store.TENSORS if path.is_dir() else path
        return _stored(path.resolve(), file.stat().st_mtime_ns if file.exists() else 0)

    @computed
    def id(self) -> str:
        """Mode, layer and weights, such as ``inception(tf1-0123abcd)``.

        The digits are the first eight of a SHA-256 of the weights in the order of their places in the network. A file of torch, a
        safetensors file and a folder of the same weights have one id. They are not those in the name of the published file, which
        are of its bytes.
        """
        layer = "" if self.layer == "2048" else f"{self.layer}-"
        return f"inception({self.mode}-{layer}{self._found()[1]})"

    @computed
    def params(self) -> Any:
        """Of the network."""
        return self._found()[0]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Vectors ``(n, d)`` of uint8 images ``(n, height, width, 3)``; WeightsError where they are not finite."""
        found = super().__call__(images)
        if wrong := np.count_nonzero(~np.isfinite(found)):
            raise WeightsError(f"{self.id}: {wrong:,} features that are not finite: expected weights of which all are")
        return found

    def forward(self, params, images):
        found: Any = Inception().apply(params, seen(images, self.mode))
        return found[self.layer]

    def class_probabilities(self, images: np.ndarray) -> np.ndarray:
        """The softmax of the logits without bias, ``(n, 1008)`` float64, of which the published Inception score is."""
        z = replace(self, layer="logits_unbiased")(images).astype(np.float64)
        z = np.exp(z - z.max(-1, keepdims=True))
        return z / z.sum(-1, keepdims=True)
