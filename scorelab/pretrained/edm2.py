r"""The networks of Karras et al. (2024), arXiv:2312.02696, "EDM2", as their published weights need them.

Every layer keeps the magnitude of its activations. There are no biases, and no norms with parameters. A kernel is the stored
weight over its own magnitude, :math:`w / (\epsilon + |w| / \sqrt{n}) / \sqrt{n}` with n inputs. That is done once, at loading.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key
from scorelab.data import Pixels
from scorelab.errors import WeightsError, shown
from scorelab.models import BoundDenoiser, Denoiser
from scorelab.pretrained import fields, trees
from scorelab.pretrained.classes import Given
from scorelab.pretrained.edm import arguments, levels, number, one_hot, require_size, said, table
from scorelab.pretrained.layers import attention, convolve, resample, wide
from scorelab.pretrained.store import Folder
from scorelab.processes import Gaussian, LinearGaussian
from scorelab.schedules import EDM
from scorelab.validation import require_int

# Of magnitudes, as in the paper.
_EPSILON = 1e-4


def silu(x: jax.Array) -> jax.Array:
    """The activation, of unit magnitude for a normal input."""
    return nn.silu(x) / 0.596


def blend(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    r""":math:`((1 - t) a + t b) / \sqrt{(1 - t)^2 + t^2}`."""
    return (a + t * (b - a)) / math.sqrt((1 - t) ** 2 + t**2)


def beside(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """Channels of both, whose shares of the magnitude are as in :func:`blend` whatever their numbers."""
    na, nb = a.shape[-1], b.shape[-1]
    root = math.sqrt((na + nb) / ((1 - t) ** 2 + t**2))
    return jnp.concatenate([a * (root / math.sqrt(na) * (1 - t)), b * (root / math.sqrt(nb) * t)], -1)


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
    """Divided by its root mean square along ``axis``, of which there is at least float32."""
    h = x.astype(wide(x))
    return (h / (_EPSILON + jnp.sqrt(jnp.square(h).mean(axis, keepdims=True)))).astype(x.dtype)


class Kernel(nn.Module):
    """A convolution with odd ``size`` and zeros around, or a linear map of the last axis (``size`` 0); without a bias."""

    features: int
    size: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``x``."""
        axes = (self.size,) * (2 if self.size else 0)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (*axes, x.shape[-1], self.features)).astype(x.dtype)
        return convolve(x, kernel, self.size // 2) if self.size else x @ kernel


class Block(nn.Module):
    """A residual block, then attention.

    Attributes:
        features: channels of the result.
        how: ``""``, ``"down"`` or ``"up"``, before everything else.
        heads: of the attention, 0 for none.
        encoder: of the way down: channels and magnitude of the input are changed before the branch, else after it.
        taps: of the filter of ``how``.
        residual: the share of the branch.
        attended: the share of the attention.
        clip: the largest value of the result, None for no bound.
        dropout: in training.
    """

    features: int
    how: str = ""
    heads: int = 0
    encoder: bool = False
    taps: tuple[int, ...] = (1, 1)
    residual: float = 0.3
    attended: float = 0.3
    clip: float | None = 256.0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, train: bool) -> jax.Array:
        """The block at images ``x`` under ``embedding (b or 1, e)``."""
        if self.how:
            x = resample(x, self.taps, self.how)
        skip = Kernel(self.features, 1, name="conv_skip") if x.shape[-1] != self.features else lambda x: x
        if self.encoder:
            x = unit(skip(x))
        h = Kernel(self.features, 3, name="conv_res0")(silu(x))
        gain = self.param("emb_gain", nn.initializers.zeros, ()).astype(x.dtype)
        h = silu(h * (1 + gain * Kernel(self.features, name="emb_linear")(embedding)[:, None, None]))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = Kernel(self.features, 3, name="conv_res1")(h)
        x = blend(x if self.encoder else skip(x), h, self.residual)
        if self.heads:
            qkv = Kernel(3 * self.features, 1, name="attn_qkv")(x)
            parts = unit(qkv.reshape(*x.shape[:3], self.heads, -1, 3), -2).reshape(qkv.shape)
            x = blend(x, Kernel(self.features, 1, name="attn_proj")(attention(parts, self.heads)), self.attended)
        return x if self.clip is None else jnp.clip(x, -self.clip, self.clip)


class _Waves(nn.Module):
    """Fixed frequencies and phases, of the file."""

    features: int

    @nn.compact
    def __call__(self, c: jax.Array) -> jax.Array:
        fixed = lambda name: jax.lax.stop_gradient(self.param(name, nn.initializers.normal(), (self.features,))).astype(c.dtype)
        return math.sqrt(2) * jnp.cos(c[:, None] * fixed("freqs") + fixed("phases"))


class UNet(nn.Module):
    """The network of EDM2; fields are the arguments of the published one.

    Attributes:
        img_resolution: side of the images, or of their latents.
        img_channels: of both.
        label_dim: number of classes, 0 for none.
        model_channels: channels of the first level.
        channel_mult: of every level.
        channel_mult_noise: waves of the noise level, in ``model_channels``; None for the channels of the first level.
        channel_mult_emb: width of the embedding, in ``model_channels``; None for the channels of the widest level.
        num_blocks: residual blocks of a level.
        attn_resolutions: sides at which there is attention.
        label_balance: the share of the class in the embedding.
        concat_balance: the share of the way down where it is joined.
        channels_per_head: of the attention.
        res_balance: the share of a branch.
        attn_balance: the share of the attention.
        clip_act: the largest activation, None for no bound.
        dropout: in training.
        resample_filter: taps of the filter between levels.
    """

    img_resolution: int
    img_channels: int
    label_dim: int
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_noise: int | None = None
    channel_mult_emb: int | None = None
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    label_balance: float = 0.5
    concat_balance: float = 0.5
    channels_per_head: int = 64
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float | None = 256
    dropout: float = 0.0
    resample_filter: tuple[int, ...] = (1, 1)

    # It embeds the noise level of a batch once.
    shares_noise_level = True

    def __post_init__(self):
        for name in ("channel_mult", "attn_resolutions", "resample_filter"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        more = dict(channel_mult_noise=self.channel_mult_noise, channel_mult_emb=self.channel_mult_emb)
        require_int(
            "UNet", 1, img_resolution=self.img_resolution, img_channels=self.img_channels, model_channels=self.model_channels,
            num_blocks=self.num_blocks, channels_per_head=self.channels_per_head,
            **{f"channel_mult[{i}]": multiple for i, multiple in enumerate(self.channel_mult)},
            **{name: value for name, value in more.items() if value is not None},
        )  # fmt: skip
        require_int("UNet", 0, label_dim=self.label_dim)
        super().__post_init__()

    @property
    def num_classes(self) -> int:
        """The number of classes, 0 for a network without."""
        return self.label_dim

    @property
    def condition(self) -> Given | None:
        """Of the network: a class, which has to be given. What guides it is a network of its own, without classes."""
        return Given(self.label_dim) if self.label_dim else None

    @nn.compact
    def __call__(self, x: jax.Array, c_noise: jax.Array, cond: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """The output at ``x (b, h, w, c)`` and ``c_noise (b,)`` or ``(1,)``, with classes ``cond (b,)``."""
        widest = max(self.channel_mult) if self.channel_mult_emb is None else self.channel_mult_emb
        waves = self.channel_mult[0] if self.channel_mult_noise is None else self.channel_mult_noise
        if x.ndim != 4 or x.shape[-1] != self.img_channels:
            raise ValueError(f"UNet of EDM2: images of shape {x.shape}: expected (batch, height, width, {self.img_channels})")
        c = c_noise.astype(wide(c_noise))
        embedding = _Waves(self.model_channels * waves, name="emb_fourier")(c)
        embedding = Kernel(self.model_channels * widest, name="emb_noise")(embedding)
        if self.label_dim:
            labels = one_hot(self, cond, x.shape[0], c.dtype)
            classes = Kernel(self.model_channels * widest, name="emb_label")(labels * math.sqrt(self.label_dim))
            embedding = blend(embedding, classes, self.label_balance)
        embedding = silu(embedding).astype(x.dtype)

        def block(name, features, how, attends):
            made = Block(
                features, how, features // self.channels_per_head if attends else 0, name.startswith("enc"),
                self.resample_filter, self.res_balance, self.attn_balance, self.clip_act, self.dropout, name=name,
            )  # fmt: skip
            return lambda x: made(x, embedding, train)

        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1)
        begin = lambda name: Kernel(self.model_channels * self.channel_mult[0], 3, name=name)
        x = levels(self, x, begin, block, everywhere=True, join=lambda x, skip: beside(x, skip, self.concat_balance))
        return self.param("out_gain", nn.initializers.zeros, ()).astype(x.dtype) * Kernel(self.img_channels, 3, name="out_conv")(x)


# What says how sure the network was in training, and has no part in its output.
_TRAINING = ("logvar_fourier.freqs", "logvar_fourier.phases", "logvar_linear.weight")
_LINEAR = ("emb_linear", "emb_noise", "emb_label")


def _place(key: str) -> tuple[tuple[str, ...], str] | None:
    """The place in the tree of a published name, and the layout."""
    if key in _TRAINING:
        return None
    parts = key.removeprefix("unet.").split(".")
    *layers, leaf = [f"{parts[0]}_{parts[1]}", *parts[2:]] if parts[0] in ("enc", "dec") and len(parts) > 2 else parts
    if not layers or leaf != "weight":
        return (*layers, leaf), "same"
    return (*layers, "kernel"), "linear" if layers[-1] in _LINEAR else "conv"


def _key(path: tuple[str, ...]) -> tuple[str, str]:
    """The other direction of :func:`_place`."""
    *layers, leaf = path
    name = ".".join(("unet", *(re.sub(r"^(enc|dec)_", r"\1.", layer) for layer in layers[:1]), *layers[1:]))
    if leaf == "kernel":
        return f"{name}.weight", "linear" if layers[-1] in _LINEAR else "conv"
    return f"{name}.{leaf}", "same"


def stored(net: UNet, tensors: Mapping[str, np.ndarray], *, name: str = "params") -> dict[str, Any]:
    """The tensors of a file in the tree of :func:`params`, its weights not divided by their magnitude yet; errors as there."""
    for key in tensors:
        if not key.startswith("unet.") and key not in _TRAINING:
            raise WeightsError(f"{name}: tensor {key!r}: expected names that begin with 'unet.', or {', '.join(_TRAINING)}")
    return trees.params(shapes(net), tensors, _place, name=name, network="UNet")


def params(net: UNet, tensors: Mapping[str, np.ndarray], *, name: str = "params") -> dict[str, Any]:
    r"""The parameters of a network from published names ``unet.enc.64x64_conv.weight``: kernels of unit magnitude, float32 or more.

    Args:
        net: the network that the weights are of.
        tensors: by their published names; what only the training asks for may be missing.
        name: what messages call them.

    Raises:
        WeightsError: a tensor that the network has not, or the other way round, or of another shape; each is named.
    """
    return jax.tree_util.tree_map_with_path(_unit_kernel, stored(net, tensors, name=name))


def _unit_kernel(path: tuple, leaf: np.ndarray) -> np.ndarray:
    w = leaf.astype(np.promote_types(leaf.dtype, np.float32))
    if path[-1].key != "kernel":
        return w
    fan = math.prod(w.shape[:-1])
    size = np.sqrt(np.square(w).sum(tuple(range(w.ndim - 1)), keepdims=True))
    return w / (_EPSILON + size / math.sqrt(fan)) / math.sqrt(fan)


def published(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The other direction of :func:`stored`: the tensors by their published names, bit by bit.

    Of :func:`params` it has the kernels as they act; who reads them as weights divides them by their magnitude again.
    """
    return trees.published(tree, _key)


def shapes(net: UNet) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters by their places in the tree, found without computing anything."""
    image = jax.ShapeDtypeStruct((1, net.img_resolution, net.img_resolution, net.img_channels), jnp.float32)
    return trees.shapes(net, image, jax.ShapeDtypeStruct((1,), jnp.float32))


def network(modules: Mapping[str, Mapping[str, Any]], *, name: str = "config.json") -> UNet:
    """The network that the arguments of a published file say: ``network`` of a converted folder, of the kind ``edm2``.

    Raises:
        WeightsError: another preconditioner or network, or arguments that it has not.
    """
    outer, inner = table(modules, "", name), table(modules, "unet", name)
    if outer.get("type") != "Precond" or inner.get("type") != "UNet":
        raise WeightsError(f"{name}: {outer.get('type')} around {inner.get('type')}: expected Precond around UNet")
    given = arguments(inner, UNet, name=name)
    net = fields.built(lambda: UNet(**given), name)
    require_size(net, name, *net.channel_mult, net.channel_mult_noise or 1, net.channel_mult_emb or 1)
    return net


# Of the latents of Stable Diffusion's encoder, in the published files.
_MEAN, _STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)


def latent_scale(config: Mapping[str, Any], *, name: str = "config.json") -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    r"""``(scale, shift)`` by channel, of :math:`z = \mathrm{scale}\,h + \mathrm{shift}` that the network sees for latents h.

    h is what the autoencoder returns, without a factor of its own. None for a network of pixels.

    Raises:
        WeightsError: another encoder, or none for a network that is not of 1 or 3 channels, or numbers that are none.
    """
    encoder = table({"encoder": config.get("encoder") or {}}, "encoder", name)
    if not encoder and (channels := said((config.get("network") or {}).get("unet", {}), "img_channels")) not in (None, 1, 3):
        raise WeightsError(
            f"{name}: img_channels = {channels!r} without an encoder, so that its scale is not known: expected 1 or 3, pixels, or "
            "the whole pickle converted, which has the encoder beside the network"
        )
    kind = encoder.get("type", "StandardRGBEncoder")
    if kind == "StandardRGBEncoder":
        return None
    if kind != "StabilityVAEEncoder":
        raise WeightsError(f"{name}: encoder {kind!r}: expected StandardRGBEncoder or StabilityVAEEncoder")
    array = lambda key, default: np.asarray(default if (value := said(encoder, key)) is None else value, np.float64)
    try:
        if (scale := said(encoder, "scale")) is None:
            scale = array("final_std", 0.5) / array("raw_std", _STD)
        if (shift := said(encoder, "bias")) is None:
            shift = array("final_mean", 0.0) - array("raw_mean", _MEAN) * np.asarray(scale, np.float64)
        scale, shift = (np.asarray(value, np.float64) for value in (scale, shift))
        scale, shift = np.broadcast_arrays(scale, shift)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{name}: encoder: {error}") from error
    if scale.ndim != 1 or not np.all(np.isfinite(scale) & np.isfinite(shift) & (scale > 0)):
        raise WeightsError(
            f"{name}: encoder: scale {scale.tolist()} and shift {shift.tolist()}: expected finite numbers by channel"
        )
    return tuple(scale.tolist()), tuple(shift.tolist())


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ByChannel:
    r"""An autoencoder whose latents h a model has as :math:`z = a h + b`, with numbers for each channel.

    Attributes:
        latents: the autoencoder, :class:`scorelab.pretrained.vae.Latents`, in whose own scale latents are :math:`s (h - m)`.
        scale: a.
        shift: b.
    """

    latents: Any
    scale: tuple[float, ...] = field(metadata={"static": True})
    shift: tuple[float, ...] = field(metadata={"static": True})

    @property
    def transform(self) -> Pixels:
        """Between stored images and those that are encoded."""
        return self.latents.transform

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of latents of images of the size in training."""
        return self.latents.event_shape

    def __call__(self, z: Array) -> Array:
        """As :meth:`decode`."""
        return self.decode(z)

    def decode(self, z: Array, **how: Any) -> Array:
        """Images of latents ``(b, h, w, c)`` as a model has them; ``how`` and errors as those of the autoencoder."""
        a, b, s, m = self._numbers(z)
        return self.latents.decode(((z - b) / a - m) * s, **how)

    def encode(self, images: Array, key: Key | None = None, **how: Any) -> Array:
        """Latents of images as a model has them: the mean, or a draw by ``key``; ``how`` and errors as those of the autoencoder."""
        z = self.latents.encode(images, key, **how)
        a, b, s, m = self._numbers(z)
        return a * (z / s + m) + b

    def pixels(self, z: Array) -> Array:
        """Decoded images as they are stored, uint8."""
        return self.transform.decode(self.decode(z))

    def _numbers(self, z: Array) -> tuple[Array, Array, float, float]:
        net = self.latents.net
        if np.shape(z)[-1:] != (len(self.scale),):
            raise ValueError(f"ByChannel got latents of shape {np.shape(z)}: expected {len(self.scale)} channels")
        dtype = jnp.result_type(z, jnp.float32)
        return jnp.asarray(self.scale, dtype), jnp.asarray(self.shift, dtype), net.scaling_factor, net.shift_factor or 0.0


def model(folder: Folder, process: LinearGaussian | None = None) -> BoundDenoiser:
    """The denoised mean that a converted file of EDM2 states, as a model of ``process``; parameters stay on the host until used.

    Its data are pixels :math:`k / 127.5 - 1`, or latents in the scale of :func:`latent_scale`. ``process`` is by default
    :class:`~scorelab.schedules.EDM` noise from 0.002 to 80.

    Raises:
        WeightsError: the folder has weights of another kind, or of another network than it says.
    """
    name = shown(folder.path)
    modules = folder.network("edm2")
    net = network(modules, name=name)
    tree = params(net, folder.tensors(), name=name)
    std = number(modules[""], "sigma_data", 0.5, name)
    process = Gaussian(schedule=EDM(sigma_min=0.002, sigma_max=80.0)) if process is None else process
    return Denoiser(net=net, process=process, predict="edm", data_std=std).bind(tree)
