r"""The networks of Karras et al. (2022), arXiv:2206.00364, as their published weights need them: DDPM++, NCSN++ and ADM.

Song et al. (2021), arXiv:2011.13456, for the first two, and Dhariwal & Nichol (2021), arXiv:2105.05233, for the last. A network
is asked as every one here, with the scaled input and :math:`c = \log(\sigma / \alpha) / 4`. It turns both into what it was trained
with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scorelab.data import Pixels
from scorelab.errors import WeightsError, shown
from scorelab.models import BoundDenoiser, Denoiser
from scorelab.models.nets.conditions import Label
from scorelab.pretrained import fields, trees
from scorelab.pretrained.classes import Given
from scorelab.pretrained.layers import Conv, GroupNorm, Linear, attention, fir, resample, waves, wide
from scorelab.pretrained.store import Folder
from scorelab.processes import Gaussian, LinearGaussian
from scorelab.schedules import EDM
from scorelab.validation import require_int, require_number

# Of the classes of published files.
_PRECONDITIONERS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}


class Block(nn.Module):
    """A residual block, then attention: ``UNetBlock`` of both families.

    Attributes:
        features: channels of the result.
        how: ``""``, ``"down"`` or ``"up"``.
        heads: of the attention, 0 for none.
        adaptive: scale and shift by the embedding, as in ADM; else shift.
        taps: of the filter of ``how``.
        epsilon: of the norms.
        scale: of the sums.
        dropout: in training.
    """

    features: int
    how: str = ""
    heads: int = 0
    adaptive: bool = False
    taps: tuple[int, ...] = (1, 1)
    epsilon: float = 1e-6
    scale: float = math.sqrt(0.5)
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, train: bool) -> jax.Array:
        """The block at images ``x`` under ``embedding (b or 1, e)``."""
        norm = lambda i: GroupNorm(self.epsilon, name=f"norm{i}")
        h = nn.silu(norm(0)(x))
        h = Conv(self.features, how=self.how, taps=self.taps, name="conv0")(h)
        affine = Linear(self.features * (1 + self.adaptive), name="affine")(embedding)[:, None, None]
        if self.adaptive:
            scale, shift = jnp.split(affine, 2, -1)
            h = nn.silu(norm(1)(h) * (1 + scale) + shift)
        else:
            h = nn.silu(norm(1)(h + affine))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = Conv(self.features, name="conv1")(h)
        if x.shape[-1] != self.features or (self.how and not self.adaptive):
            x = Conv(self.features, 1, self.how, self.taps, name="skip")(x)
        elif self.how:
            x = resample(x, self.taps, self.how)
        x = (x + h) * self.scale
        if self.heads:
            found = attention(Conv(3 * self.features, 1, name="qkv")(norm(2)(x)), self.heads)
            x = (Conv(self.features, 1, name="proj")(found) + x) * self.scale
        return x


def _beside(x: jax.Array, skip: jax.Array) -> jax.Array:
    return jnp.concatenate([x, skip], -1)


class _Frequencies(nn.Module):
    """Fixed frequencies, of the file."""

    features: int

    @nn.compact
    def __call__(self, c: jax.Array) -> jax.Array:
        freqs = jax.lax.stop_gradient(self.param("freqs", nn.initializers.normal(16.0), (self.features // 2,)))
        angles = 2 * math.pi * c[:, None] * freqs
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


def levels(net: Any, x: jax.Array, begin: Callable, block: Callable, *, everywhere: bool, join: Callable = _beside) -> jax.Array:
    """Images down the levels of a network and up again, with the names of published files: no convolution and no block is in here.

    Args:
        net: its ``img_resolution``, ``model_channels``, ``channel_mult``, ``num_blocks`` and ``attn_resolutions``.
        x: images ``(b, h, w, c)``.
        begin: the first layer, ``name -> x -> x``.
        block: the others, ``(name, channels, how, attends) -> x -> x``; ``how`` is ``""``, ``"down"`` or ``"up"``.
        everywhere: on the way up, attention in every block of a side that has it; else in the last.
        join: images with those of the way down.
    """
    sides = [net.img_resolution >> level for level in range(len(net.channel_mult))]
    rows = [
        (f"{side}x{side}", net.model_channels * multiple, side in net.attn_resolutions)
        for side, multiple in zip(sides, net.channel_mult, strict=True)
    ]
    skips = []
    for level, (side, width, attends) in enumerate(rows):
        x = block(f"enc_{side}_down", x.shape[-1], "down", False)(x) if level else begin(f"enc_{side}_conv")(x)
        skips.append(x)
        for i in range(net.num_blocks):
            x = block(f"enc_{side}_block{i}", width, "", attends)(x)
            skips.append(x)
    for level, (side, width, attends) in reversed(list(enumerate(rows))):
        if level == len(rows) - 1:
            x = block(f"dec_{side}_in0", x.shape[-1], "", True)(x)
            x = block(f"dec_{side}_in1", x.shape[-1], "", False)(x)
        else:
            x = block(f"dec_{side}_up", x.shape[-1], "up", False)(x)
        for i in range(net.num_blocks + 1):
            last = i == net.num_blocks
            x = block(f"dec_{side}_block{i}", width, "", attends and (everywhere or last))(join(x, skips.pop()))
    return x


def one_hot(net: Any, cond: jax.Array | None, batch: int, dtype: Any) -> jax.Array:
    """One row ``(classes,)`` for each class of a module, NaN for what is no class.

    A network that was trained without them as well, ``Label`` as its condition, has zeros for none: the label after the last, or
    no condition at all. One that was not refuses the condition None.
    """
    condition = net.condition
    classes = condition.num_classes
    if isinstance(condition, Given):
        cond, known_to = condition.told(net, cond, batch), classes
    elif cond is None:
        return jnp.zeros((1, classes), dtype)
    else:
        cond, known_to = jnp.asarray(cond), classes + 1
    known = (cond >= 0) & (cond < known_to)
    return jnp.where(known[..., None], jax.nn.one_hot(cond, classes, dtype=dtype), jnp.nan)


class _UNet(nn.Module):
    """What both families have; fields are the arguments of the published networks.

    Attributes:
        img_resolution: side of the images.
        in_channels: of the images.
        out_channels: of the result.
        label_dim: number of classes, 0 for none.
        label_dropout: how often there was no class in training; at 0 a class has to be given.
        augment_dim: number of augmentation labels, which are zero in sampling.
        model_channels: channels of the first level.
        channel_mult: of every level.
        channel_mult_emb: width of the embedding, in ``model_channels``.
        num_blocks: residual blocks of a level.
        attn_resolutions: sides at which there is attention.
        dropout: in training.
        preconditioner: ``edm``, ``vp``, ``ve`` or ``iddpm``: what the network was trained with, of the arguments of a file.
        beta_d: of ``vp``, the slope of its noise rate.
        beta_min: of ``vp``, its noise rate at 0.
        steps: of ``vp`` and ``iddpm``, those of their training.
    """

    img_resolution: int
    in_channels: int = 3
    out_channels: int = 3
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.10
    label_dropout: float = 0.0
    preconditioner: str = "edm"
    beta_d: float = 19.9
    beta_min: float = 0.1
    steps: int = 1000

    # It embeds the noise level of a batch once.
    shares_noise_level = True

    def __post_init__(self):
        if self.preconditioner not in _PRECONDITIONERS.values():
            raise ValueError(
                f"{type(self).__name__}.preconditioner = {self.preconditioner!r}: expected {', '.join(_PRECONDITIONERS.values())}"
            )
        if self.out_channels != self.in_channels and (self.preconditioner != "iddpm" or self.out_channels < self.in_channels):
            raise ValueError(
                f"{type(self).__name__}.out_channels = {self.out_channels!r}: expected {self.in_channels}, as in_channels"
                f"{', or more' if self.preconditioner == 'iddpm' else ''}"
            )
        for name in ("channel_mult", "attn_resolutions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        require_int(
            type(self).__name__, 1, img_resolution=self.img_resolution, in_channels=self.in_channels, steps=self.steps,
            model_channels=self.model_channels, channel_mult_emb=self.channel_mult_emb, num_blocks=self.num_blocks,
            **{f"channel_mult[{i}]": multiple for i, multiple in enumerate(self.channel_mult)},
        )  # fmt: skip
        require_int(type(self).__name__, 0, label_dim=self.label_dim, augment_dim=self.augment_dim)
        require_number(type(self).__name__, 0, 1, label_dropout=self.label_dropout)
        super().__post_init__()

    @property
    def num_classes(self) -> int:
        """The number of classes, 0 for a network without."""
        return self.label_dim

    @property
    def condition(self) -> Label | None:
        """Of the network: a class, which has to be given unless it was left out in training."""
        return (Label if self.label_dropout else Given)(self.label_dim) if self.label_dim else None

    def asked(self, x: jax.Array, c_noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The input and the noise label that the network was trained with."""
        if x.ndim != 4 or x.shape[-1] != self.in_channels:
            wanted = f"(batch, height, width, {self.in_channels})"
            raise ValueError(f"{type(self).__name__}: images of shape {x.shape}: expected {wanted}")
        c = c_noise.astype(wide(c_noise))
        if self.preconditioner == "edm":
            return x, c
        ratio = jnp.exp(4 * c)
        if self.preconditioner == "vp":
            t = (jnp.sqrt(self.beta_min**2 + 2 * self.beta_d * jnp.log1p(ratio**2)) - self.beta_min) / self.beta_d
            return x, (self.steps - 1) * t
        if self.preconditioner == "iddpm":
            # Levels u_0 > ... > u_M = 0 of the file: the label counts from the smallest that is noise.
            u = jax.lax.stop_gradient(self.param("u", nn.initializers.zeros, (self.steps + 1,))).astype(c.dtype)
            return x, (self.steps - 1 - jnp.argmin(jnp.abs(u[:-1] - ratio[:, None]), 1)).astype(c.dtype)
        return x * jnp.sqrt(1 + ratio**2)[:, None, None, None].astype(x.dtype), jnp.log(ratio / 2)

    def answered(self, output: jax.Array) -> jax.Array:
        """The noise from what the network was trained to return; under ``edm`` that itself."""
        # VE predicts it with the other sign. Variances that iDDPM learned have no part in the mean.
        return -output if self.preconditioner == "ve" else output[..., : self.in_channels]

    def labels(self, cond: jax.Array | None, batch: int, dtype: Any) -> jax.Array:
        """As :func:`one_hot`."""
        return one_hot(self, cond, batch, dtype)


class SongUNet(_UNet):
    """DDPM++ (``embedding_type`` positional, ``encoder_type`` standard) and NCSN++ (fourier, residual)."""

    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: tuple[int, ...] = (1, 1)

    def __post_init__(self):
        object.__setattr__(self, "resample_filter", tuple(self.resample_filter))
        for name, known in dict(
            embedding_type=("positional", "fourier"), encoder_type=("standard", "residual"), decoder_type=("standard",)
        ).items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"SongUNet.{name} = {value!r}: expected {' or '.join(known)}, as in published files")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, c_noise: jax.Array, cond: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """The output at ``x (b, h, w, c)`` and ``c_noise (b,)`` or ``(1,)``, with classes ``cond (b,)``."""
        x, c = self.asked(x, c_noise)
        features = self.model_channels * self.channel_mult_noise
        if self.embedding_type == "positional":
            embedding = waves(c, features, endpoint=True)
        else:
            embedding = _Frequencies(features, name="map_noise")(c)
        # Sines first.
        embedding = jnp.roll(embedding, features // 2, -1)
        if self.label_dim:
            labels = self.labels(cond, x.shape[0], embedding.dtype) * math.sqrt(self.label_dim)
            embedding = embedding + Linear(features, name="map_label")(labels)
        if self.augment_dim:
            # Of which there is none in sampling; the weights are kept.
            embedding = embedding + Linear(features, bias=False, name="map_augment")(
                jnp.zeros((1, self.augment_dim), embedding.dtype)
            )
        width = self.model_channels * self.channel_mult_emb
        embedding = nn.silu(Linear(width, name="map_layer0")(embedding))
        embedding = nn.silu(Linear(width, name="map_layer1")(embedding)).astype(x.dtype)

        image, taps = x, self.resample_filter

        def block(name, features, how, attends):
            made = Block(features, how, int(attends), taps=taps, dropout=self.dropout, name=name)

            def called(x):
                nonlocal image
                x = made(x, embedding, train)
                if how == "down" and self.encoder_type == "residual":
                    # Every level sees the image as well.
                    aux = Conv(x.shape[-1], how="down", taps=taps, fused=True, name=name.replace("down", "aux_residual"))
                    x = image = (x + aux(image)) * math.sqrt(0.5)
                return x

            return called

        x = levels(self, x, lambda name: Conv(self.model_channels, name=name), block, everywhere=False)
        side = self.img_resolution
        x = nn.silu(GroupNorm(1e-6, name=f"dec_{side}x{side}_aux_norm")(x))
        return self.answered(Conv(self.out_channels, name=f"dec_{side}x{side}_aux_conv")(x))


class DhariwalUNet(_UNet):
    """ADM."""

    @nn.compact
    def __call__(self, x: jax.Array, c_noise: jax.Array, cond: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """The output at ``x (b, h, w, c)`` and ``c_noise (b,)`` or ``(1,)``, with classes ``cond (b,)``."""
        x, c = self.asked(x, c_noise)
        embedding = waves(c, self.model_channels, endpoint=False)
        if self.augment_dim:
            none = jnp.zeros((1, self.augment_dim), embedding.dtype)
            embedding = embedding + Linear(self.model_channels, bias=False, name="map_augment")(none)
        width = self.model_channels * self.channel_mult_emb
        embedding = nn.silu(Linear(width, name="map_layer0")(embedding))
        embedding = Linear(width, name="map_layer1")(embedding)
        if self.label_dim:
            labels = self.labels(cond, x.shape[0], embedding.dtype)
            embedding = embedding + Linear(width, bias=False, name="map_label")(labels)
        embedding = nn.silu(embedding).astype(x.dtype)

        def block(name, features, how, attends):
            heads = features // 64 if attends else 0
            made = Block(features, how, heads, True, epsilon=1e-5, scale=1.0, dropout=self.dropout, name=name)
            return lambda x: made(x, embedding, train)

        x = levels(self, x, lambda name: Conv(self.model_channels * self.channel_mult[0], name=name), block, everywhere=True)
        return self.answered(Conv(self.out_channels, name="out_conv")(nn.silu(GroupNorm(1e-5, name="out_norm")(x))))


# The scale of their images, k / 127.5 - 1: cells of `Pixels` whose outermost centres are -1 and 1.
LEVELS = Pixels(low=-256 / 255, high=256 / 255)
# What the last part of a published name is in a tree, by the layer it belongs to.
_NORMS, _LINEAR = re.compile(r"norm\d|.*_(aux|out)_norm|out_norm"), re.compile(r"affine|map_\w+")
_CLASSES = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


def _place(key: str) -> tuple[tuple[str, ...], str]:
    """The place in the tree of a published name, and the layout."""
    if key == "u":
        return ("u",), "same"
    parts = key.removeprefix("model.").split(".")
    # Flat names: `features` of a denoiser looks for them at the top.
    *layers, leaf = [f"{parts[0]}_{parts[1]}", *parts[2:]] if parts[0] in ("enc", "dec") and len(parts) > 2 else parts
    if not layers or leaf != "weight":
        return (*layers, leaf), "same"
    if _NORMS.fullmatch(layers[-1]):
        return (*layers, "scale"), "same"
    return (*layers, "kernel"), "linear" if _LINEAR.fullmatch(layers[-1]) else "conv"


def _key(path: tuple[str, ...]) -> tuple[str, str]:
    """The other direction of :func:`_place`."""
    *layers, leaf = path
    if not layers:
        return leaf, "same"
    name = ".".join(("model", re.sub(r"^(enc|dec)_", r"\1.", layers[0]), *layers[1:]))
    if leaf in ("kernel", "scale"):
        name += ".weight"
        return name, _place(name)[1]
    return f"{name}.{leaf}", "same"


def params(net: SongUNet | DhariwalUNet, tensors: Mapping[str, np.ndarray], *, name: str = "params") -> dict[str, Any]:
    """The parameters of a network, from published names ``model.enc.32x32_conv.weight`` to the tree of ``net.apply``.

    Kernels of convolutions go from ``(out, in, k, k)`` to ``(k, k, in, out)``, those of linear maps from ``(out, in)`` to
    ``(in, out)``. Filters of resampling are compared with those of the arguments and left out.

    Args:
        net: the network that the weights are of.
        tensors: by their published names.
        name: what messages call them.

    Raises:
        WeightsError: a tensor that the network has not, or the other way round, or of another shape; each is named.
    """
    taps = getattr(net, "resample_filter", (1, 1))
    kept: dict[str, np.ndarray] = {}
    for key, array in tensors.items():
        if not key.startswith("model.") and not (key == "u" and net.preconditioner == "iddpm"):
            raise WeightsError(
                f"{name}: tensor {key!r}: expected names that begin with 'model.', of a network in its preconditioner"
            )
        if not key.endswith(".resample_filter"):
            kept[key] = array
        elif array.shape[2:] != (len(taps),) * 2 or not np.allclose(array, fir(taps), rtol=1e-6, atol=0):
            raise WeightsError(f"{name}: {key} is not the filter of {taps}, which its arguments say")
    tree = trees.params(shapes(net), kept, _place, name=name, network=type(net).__name__)
    if (u := tree["params"].get("u")) is not None and not (np.all(np.diff(u) < 0) and u[-1] == 0 and np.all(np.isfinite(u))):
        raise WeightsError(f"{name}: the levels u: expected finite ones that decrease to 0")
    return tree


def published(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The other direction of :func:`params`: the tensors by their published names, without filters."""
    return trees.published(tree, _key)


def shapes(net: SongUNet | DhariwalUNet) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters by their places in the tree, found without computing anything."""
    image = jax.ShapeDtypeStruct((1, net.img_resolution, net.img_resolution, net.in_channels), jnp.float32)
    return trees.shapes(net, image, jax.ShapeDtypeStruct((1,), jnp.float32))


def network(modules: Mapping[str, Mapping[str, Any]], *, name: str = "config.json") -> SongUNet | DhariwalUNet:
    """The network that the arguments of a published file say: ``network`` of a converted folder, of the kind ``edm``.

    Raises:
        WeightsError: another preconditioner or network, or arguments that none of them has.
    """
    outer, inner = table(modules, "", name), table(modules, "model", name)
    if str(outer.get("type")) not in _PRECONDITIONERS or str(inner.get("type")) not in _CLASSES:
        found = f"{outer.get('type')} around {inner.get('type')}"
        raise WeightsError(f"{name}: {found}: expected {', '.join(_PRECONDITIONERS)} around {' or '.join(_CLASSES)}")
    kind = _CLASSES[inner["type"]]
    # The type of the computation is the caller's.
    given = arguments(inner, kind, name=name, without=("preconditioner", *_OUTER.values()), unused=("use_fp16",))
    preconditioner = _PRECONDITIONERS[outer["type"]]
    if preconditioner in ("vp", "iddpm"):
        more = {field: said(outer, key) for key, field in _OUTER.items() if said(outer, key) is not None}
        fields.require_types(more, kind, name)
        given |= more
    net = fields.built(lambda: kind(**given, preconditioner=preconditioner), name)
    require_size(net, name, *net.channel_mult, net.channel_mult_emb, getattr(net, "channel_mult_noise", 1))
    return net


def arguments(inner: Mapping[str, Any], kind: type, *, name: str, **how: Any) -> dict[str, Any]:
    """The arguments of a module of a file, as :func:`scorelab.pretrained.fields.read` says; WeightsError for some without names."""
    if inner.get("args"):
        raise WeightsError(f"{name}: arguments without names, {fields.told(inner['args'])}: expected names only")
    return fields.read(table(inner, "kwargs", name), kind, name=name, **how)


def table(said: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
    """A table of a config, empty where there is none; WeightsError for something else."""
    if not isinstance(found := said.get(key, {}), Mapping):
        raise WeightsError(f"{name}: {key or 'network'} = {fields.told(found)}: expected a table")
    return found


def require_size(net: Any, name: str, *multiples: int) -> None:
    """Raise WeightsError for a network of more blocks, or wider, than any published one; ``multiples`` are of its channels."""
    if not net.channel_mult:
        raise WeightsError(f"{name}: channel_mult of no level: expected one or more")
    blocks = (2 * net.num_blocks + 1) * len(net.channel_mult)
    fields.require_size(name, blocks=blocks, width=net.model_channels * max(multiples))


# Arguments of a preconditioner that its network is asked with, and our names of them.
_OUTER = {"beta_d": "beta_d", "beta_min": "beta_min", "M": "steps"}


def said(outer: Mapping[str, Any], key: str) -> Any:
    """An attribute or argument of a module of a file; None where it says nothing."""
    return {**table(outer, "kwargs", "config.json"), **table(outer, "attributes", "config.json")}.get(key)


def number(outer: Mapping[str, Any], key: str, default: float, name: str) -> float:
    """As :func:`said`, a number; WeightsError for another value."""
    if (found := said(outer, key)) is None:
        return default
    # A range without an end is one, which JSON has no number for.
    if found in (math.inf, "inf"):
        return math.inf
    if not fields.is_number(found):
        raise WeightsError(f"{name}: {key} = {fields.told(found)}: expected a number")
    return float(found)


def model(folder: Folder, process: LinearGaussian | None = None) -> BoundDenoiser:
    r"""The denoised mean that a converted file of EDM states, as a model of ``process``; parameters stay on the host until used.

    Its data are :math:`x = k / 127.5 - 1` for levels k from 0 to 255, which is the transform ``edm.LEVELS``. ``process`` is by
    default :class:`~scorelab.schedules.EDM` noise between the levels of the sampler of the paper: 0.002 and 80, or those of the
    file where these are narrower.

    Raises:
        WeightsError: the folder has weights of another kind, or of another network than it says.
    """
    name = shown(folder.path)
    modules = folder.network("edm")
    net = network(modules, name=name)
    tree = params(net, folder.tensors(), name=name)
    if process is None:
        low, high = (number(modules[""], key, usual, name) for key, usual in (("sigma_min", 0.0), ("sigma_max", math.inf)))
        if net.preconditioner == "iddpm":
            high, low = (float(tree["params"]["u"][i]) for i in (0, -2))
        process = Gaussian(schedule=EDM(sigma_min=max(0.002, low), sigma_max=min(80.0, high)))
    own = net.preconditioner == "edm"
    std = number(modules[""], "sigma_data", 0.5, name) if own else 1.0
    denoiser = Denoiser(net=net, process=process, predict="edm" if own else "eps", data_std=std)
    return denoiser.bind(tree)
