r"""The autoencoder of latent diffusion, Rombach et al. (2022), arXiv:2112.10752, as ``AutoencoderKL`` of diffusers stores it.

It is that of Stable Diffusion 1 and 2, of its finer trained forms (sd-vae-ft), of SDXL and of DiT. Images are ``(batch, height,
width, 3)`` on the scale [-1, 1]; latents are smaller by the factor 8 along both sides, and scaled to a deviation of about 1.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, Pytree
from scorelab.data import Pixels
from scorelab.errors import WeightsError, shown
from scorelab.pretrained import fields, trees, unetblocks
from scorelab.pretrained.edm import LEVELS
from scorelab.pretrained.layers import Conv, GroupNorm
from scorelab.pretrained.store import Folder
from scorelab.pretrained.unetblocks import Downsample, ResnetBlock, SpatialAttention, Upsample
from scorelab.randomness import per_example_keys, per_example_normal
from scorelab.validation import require_choice, require_int, require_number, require_positive, require_spec

# Of all norms, and the range of the logarithm of the variance.
_EPSILON, _LOG_VARIANCE = 1e-6, (-30.0, 20.0)


class AutoencoderKL(nn.Module):
    """The two networks; fields are the arguments of the published one.

    Attributes:
        in_channels: of the images.
        out_channels: of the decoded images.
        block_out_channels: of every level.
        layers_per_block: residual blocks of a level of the encoder; the decoder has one more.
        latent_channels: of the latents.
        norm_num_groups: of every norm.
        sample_size: side of the images in training, and of a tile where images are taken apart.
        scaling_factor: by which latents are multiplied.
        shift_factor: which is subtracted before, None for 0.
        use_quant_conv: a convolution of size 1 after the encoder.
        use_post_quant_conv: the same before the decoder.
        mid_block_add_attention: attention at the lowest level.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self):
        owner = type(self).__name__
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        fields = ("in_channels", "out_channels", "layers_per_block", "latent_channels", "norm_num_groups", "sample_size")
        require_int(owner, 1, **{field: getattr(self, field) for field in fields})
        if not self.block_out_channels or any(
            isinstance(width, bool) or not isinstance(width, int) or width < 1 or width % self.norm_num_groups
            for width in self.block_out_channels
        ):
            raise ValueError(
                f"{owner}.block_out_channels = {self.block_out_channels!r}: expected integers that norm_num_groups = "
                f"{self.norm_num_groups} divides"
            )
        require_positive(owner, scaling_factor=self.scaling_factor)
        if self.shift_factor is not None:
            require_number(owner, -1e6, 1e6, shift_factor=self.shift_factor)
        fields = ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")
        require_choice(owner, (True, False), **{field: getattr(self, field) for field in fields})
        super().__post_init__()

    @property
    def factor(self) -> int:
        """How many pixels a latent has along a side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @nn.compact
    def __call__(self, x: jax.Array, *, part: str = "both") -> jax.Array:
        """One of the networks, or the decoded mean.

        Args:
            x: images; latents that are neither scaled nor shifted for ``decoder``.
            part: ``encoder`` for mean and logarithm of the variance of the latents, one after the other; ``decoder``; or ``both``.
        """
        if part != "decoder":
            x = self._encoded(x)
        if part == "both":
            x = x[..., : self.latent_channels]
        return x if part == "encoder" else self._decoded(x)

    def _encoded(self, x: jax.Array) -> jax.Array:
        x = Conv(self.block_out_channels[0], name="encoder_conv_in")(x)
        last = len(self.block_out_channels) - 1
        for i, width in enumerate(self.block_out_channels):
            for j in range(self.layers_per_block):
                x = self._block(width, f"encoder_down_blocks_{i}_resnets_{j}")(x)
            if i < last:
                x = Downsample(padding=0, name=f"encoder_down_blocks_{i}_downsamplers_0")(x)
        x = self._ends(self._middle(x, "encoder"), 2 * self.latent_channels, "encoder")
        return Conv(2 * self.latent_channels, 1, name="quant_conv")(x) if self.use_quant_conv else x

    def _decoded(self, z: jax.Array) -> jax.Array:
        x = Conv(self.latent_channels, 1, name="post_quant_conv")(z) if self.use_post_quant_conv else z
        x = self._middle(Conv(self.block_out_channels[-1], name="decoder_conv_in")(x), "decoder")
        last = len(self.block_out_channels) - 1
        for i, width in enumerate(reversed(self.block_out_channels)):
            for j in range(self.layers_per_block + 1):
                x = self._block(width, f"decoder_up_blocks_{i}_resnets_{j}")(x)
            if i < last:
                x = Upsample(name=f"decoder_up_blocks_{i}_upsamplers_0")(x)
        return self._ends(x, self.out_channels, "decoder")

    def _middle(self, x: jax.Array, of: str) -> jax.Array:
        width = x.shape[-1]
        x = self._block(width, f"{of}_mid_block_resnets_0")(x)
        if self.mid_block_add_attention:
            x = SpatialAttention(groups=self.norm_num_groups, epsilon=_EPSILON, name=f"{of}_mid_block_attentions_0")(x)
        return self._block(width, f"{of}_mid_block_resnets_1")(x)

    def _ends(self, x: jax.Array, channels: int, of: str) -> jax.Array:
        x = nn.silu(GroupNorm(_EPSILON, self.norm_num_groups, name=f"{of}_conv_norm_out")(x))
        return Conv(channels, name=f"{of}_conv_out")(x)

    def _block(self, width: int, name: str) -> ResnetBlock:
        return ResnetBlock(width, self.norm_num_groups, _EPSILON, name=name)


# What changes neither the functions nor their weights, and what has one value in the files that are read here.
_UNUSED = ("force_upcast",)
_WITH = dict(act_fn=("silu",), latents_mean=(None,), latents_std=(None,))
_BLOCKS = dict(down_block_types="DownEncoderBlock2D", up_block_types="UpDecoderBlock2D")
_OLD = re.compile(r"\.attentions\.\d+\.(query|key|value|proj_attn|to_[qkv]|to_out\.0)\.weight$")


def network(config: Mapping[str, Any], *, name: str = "config.json") -> AutoencoderKL:
    """The network that a published ``config.json`` says.

    Raises:
        WeightsError: another class, or a field that this network has not, or with another value than it may have.
    """
    if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise WeightsError(f"{name}: _class_name = {config['_class_name']!r}: expected AutoencoderKL")
    types = {key: config.get(key, [block]) for key, block in _BLOCKS.items()}
    config = {key: value for key, value in config.items() if key not in _BLOCKS}
    # Some files have a side for each axis.
    if isinstance(size := config.get("sample_size"), list | tuple) and len(size) == 2 and size[0] == size[1]:
        config["sample_size"] = size[0]
    given = fields.read(config, AutoencoderKL, name=name, usual=_WITH, unused=_UNUSED)
    net = fields.built(lambda: AutoencoderKL(**given), name)
    fields.require_size(name, blocks=(2 * net.layers_per_block + 1) * len(net.block_out_channels))
    for key, block in _BLOCKS.items():
        levels = len(net.block_out_channels)
        if not isinstance(types[key], list | tuple) or list(types[key]) != [block] * levels:
            raise WeightsError(f"{name}: {key} = {types[key]!r}: expected {levels} times {block!r}, one for each level")
    return net


def shapes(net: AutoencoderKL) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters by their places in the tree, found without computing anything."""
    return trees.shapes(net, jax.ShapeDtypeStruct((1, net.factor, net.factor, net.in_channels), jnp.float32))


def params(net: AutoencoderKL, tensors: Mapping[str, np.ndarray], *, name: str = "params") -> dict[str, Any]:
    """The parameters of a network from published names, those of the first files included.

    Args:
        net: the network that the weights are of.
        tensors: by their published names.
        name: what messages call them.

    Raises:
        WeightsError: a tensor that the network has not, or the other way round, or of another shape; each is named.
    """
    # In the first files attention has convolutions of size 1 in the place of matrices.
    flat = lambda key, array: array[:, :, 0, 0] if _OLD.search(key) and array.shape[2:] == (1, 1) else array
    tensors = {key: flat(key, array) for key, array in tensors.items()}
    return trees.params(shapes(net), tensors, unetblocks.place, name=name, network=type(net).__name__)


def published(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The other direction of :func:`params`: the tensors by their published names of today."""
    return trees.published(tree, unetblocks.key)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Latents:
    r"""An autoencoder with its weights: from images to the latents that a model is of, and back.

    .. math:: z = s\,(\mu(x) - m + \sigma(x)\,\epsilon),\qquad x = \mathcal D(z/s + m)

    with ``scaling_factor`` s and ``shift_factor`` m. Its leaves are the weights, so it is an argument of a compiled program and no
    constant in it: a reward asks it inside a sampling (:class:`scorelab.fk.rewards.Decoded`), and differentiates through it. The
    object itself is the function :meth:`decode`.

    Attributes:
        params: the weights, ``{"params": ...}``.
        net: the network.
        chunk: examples, or tiles of examples, that are computed at once; the memory is that of one chunk, also with a gradient, for
            which each chunk is computed twice. None for all at once, or for one tile of each.
        tile: side of a tile in latents, a multiple of 4: larger images are taken apart and blended, as in diffusers, whose side is
            ``sample_size`` over the factor. The result is near that without tiles and not the same. None for never.
    """

    params: Pytree
    net: AutoencoderKL = field(metadata={"static": True})
    chunk: int | None = field(default=None, metadata={"static": True})
    tile: int | None = field(default=None, metadata={"static": True})

    # Between stored images, uint8, and the images here: levels k as k / 127.5 - 1.
    transform: ClassVar[Pixels] = LEVELS

    def __post_init__(self):
        require_spec(self, AutoencoderKL, net=self.net)
        _require(self, self.chunk, self.tile)

    @property
    def scale(self) -> float:
        """By which latents are multiplied."""
        return self.net.scaling_factor

    @property
    def event_shape(self) -> tuple[int, int, int]:
        """The shape of latents of images of the size in training."""
        return self.event(self.net.sample_size, self.net.sample_size)

    def event(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape of the latents of an image; ValueError for sides that the factor does not divide."""
        factor = self.net.factor
        if height % factor or width % factor or height < 1 or width < 1:
            raise ValueError(f"Latents of an image of {height} x {width} pixels: expected sides that {factor} divides")
        return height // factor, width // factor, self.net.latent_channels

    def __call__(self, latents: Array) -> jax.Array:
        """As :meth:`decode`."""
        return self.decode(latents)

    def decode(self, latents: Array, *, chunk: int | None = None, tile: int | None = None) -> jax.Array:
        """Images ``(b, height, width, channels)`` on the scale [-1, 1], which they may leave a little; differentiable.

        Args:
            latents: ``(b, h, w, c)``, scaled as a model has them; the type of the computation is theirs.
            chunk: in the place of that of the object.
            tile: the same.

        Raises:
            ValueError: latents of another shape or type, or no such chunk or tile.
        """
        return _decode(self, self._checked("decode", latents, self.net.latent_channels), *self._ways(chunk, tile))

    def moments(self, images: Array, *, chunk: int | None = None, tile: int | None = None) -> tuple[jax.Array, jax.Array]:
        """Mean and standard deviation of the latents of images, each ``(b, h, w, c)``, scaled as a model has them.

        Arguments and errors as :meth:`encode`.
        """
        images = self._checked("encode", images, self.net.in_channels)
        self.event(*images.shape[1:3])
        return _encode(self, images, *self._ways(chunk, tile))

    def encode(
        self,
        images: Array,
        key: Key | None = None,
        *,
        ids: Array | None = None,
        chunk: int | None = None,
        tile: int | None = None,
    ) -> jax.Array:
        """The mean of the latents of images, or with a ``key`` a draw, which is what models of latents were trained on.

        Args:
            images: ``(b, height, width, channels)`` on the scale [-1, 1].
            key: of the draw; None for the mean.
            ids: of the images, ``(b,)`` integers: what is drawn for an image depends on its id, not on the batch around it. None
                for 0, 1, and so on.
            chunk: in the place of that of the object.
            tile: the same.

        Raises:
            ValueError: images of another shape or type, sides that the factor does not divide, or no such chunk or tile.
        """
        mean, deviation = self.moments(images, chunk=chunk, tile=tile)
        if key is None:
            return mean
        ids = jnp.arange(len(mean)) if ids is None else jnp.asarray(ids)
        if ids.shape != mean.shape[:1] or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"Latents.encode.ids is {ids.dtype} {ids.shape}: expected integers ({len(mean)},), one for each image")
        return mean + deviation * per_example_normal(per_example_keys(key, ids), mean)

    def pixels(self, latents: Array) -> jax.Array:
        """Decoded images as they are stored, uint8."""
        return self.transform.decode(self.decode(latents))

    def blocks(self, images: Array, key: Key | None = None, *, batch: int = 64) -> Iterator[np.ndarray]:
        """Latents of stored images, uint8, in blocks on the host: what ``densities.Gaussian.from_data`` takes moments of.

        Args:
            images: ``(n, height, width, channels)`` uint8, such as a memory map.
            key: as in :meth:`encode`; the id of an image is its row.
            batch: images of a block.
        """
        require_int("Latents.blocks", 1, batch=batch)
        for low in range(0, len(images), batch):
            part = images[low : low + batch]
            yield np.asarray(self.encode(self.transform.encode(part), key, ids=np.arange(low, low + len(part))))

    def _checked(self, what: str, x: Array, channels: int) -> jax.Array:
        x = jnp.asarray(x)
        if x.ndim != 4 or not x.size or x.shape[-1] != channels or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"Latents.{what} got {x.dtype} of shape {x.shape}: expected floating point numbers (batch, height, width, "
                f"{channels})" + ("; stored images have their scale by Latents.transform.encode" if x.dtype == jnp.uint8 else "")
            )
        return x

    def _ways(self, chunk: int | None, tile: int | None) -> tuple[int | None, int | None]:
        _require("Latents", chunk, tile)
        return self.chunk if chunk is None else chunk, self.tile if tile is None else tile


def _require(owner: Any, chunk: int | None, tile: int | None) -> None:
    if chunk is not None:
        require_int(owner, 1, chunk=chunk)
    if tile is not None:
        require_int(owner, 4, tile=tile)
        if tile % 4:
            raise ValueError(f"Latents.tile = {tile}: expected a multiple of 4, since a quarter of it overlaps with the next")


def _apply(latents: Latents, part: str, x: jax.Array, chunk: int | None) -> jax.Array:
    """A network at ``x``, chunk after chunk."""
    apply: Any = latents.net.apply
    ask = lambda x: apply(latents.params, x, part=part)
    if chunk is None or chunk >= len(x):
        return ask(x)
    # Forgotten after each chunk, or a gradient would keep what all of them held.
    forgetful = jax.checkpoint(lambda x: ask(x[None])[0])
    return jax.lax.map(forgetful, x, batch_size=chunk)


def _tiled(ask: Callable[[jax.Array], jax.Array], x: jax.Array, size: int, size_out: int) -> jax.Array:
    """A network at the tiles of ``x (b, h, w, c)``, each blended with those above and to the left of it, as in diffusers.

    Tiles of ``size`` begin every three quarters of it; the last ones are smaller. Those of one shape are computed together.
    """
    height, width = x.shape[1:3]
    step, blend = size * 3 // 4, size_out // 4
    rows, columns = range(0, height, step), range(0, width, step)
    by_shape: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row in rows:
        for column in columns:
            by_shape.setdefault((min(size, height - row), min(size, width - column)), []).append((row, column))
    tiles: dict[tuple[int, int], jax.Array] = {}
    for (h, w), places in by_shape.items():
        found = ask(jnp.concatenate([x[:, row : row + h, column : column + w] for row, column in places]))
        tiles |= dict(zip(places, jnp.split(found, len(places)), strict=True))
    lines = []
    for row in rows:
        line = []
        for column in columns:
            tile = tiles[row, column]
            if row:
                tile = _blended(tiles[row - step, column], tile, blend, 1)
            if column:
                tile = _blended(tiles[row, column - step], tile, blend, 2)
            # The next ones are blended with what this one has become.
            tiles[row, column] = tile
            line.append(tile[:, : size_out - blend, : size_out - blend])
        lines.append(jnp.concatenate(line, 2))
    return jnp.concatenate(lines, 1)


def _blended(before: jax.Array, tile: jax.Array, extent: int, axis: int) -> jax.Array:
    """``tile``, whose beginning along ``axis`` goes over from the end of the one ``before``."""
    extent = min(extent, before.shape[axis], tile.shape[axis])
    share = (jnp.arange(extent, dtype=tile.dtype) / extent).reshape(-1, *(1,) * (3 - axis))
    end = jax.lax.slice_in_dim(before, before.shape[axis] - extent, None, axis=axis)
    begin, rest = jnp.split(tile, [extent], axis)
    return jnp.concatenate([end * (1 - share) + begin * share, rest], axis)


@functools.partial(jax.jit, static_argnames=("chunk", "tile"))
def _decode(latents: Latents, z: jax.Array, chunk: int | None, tile: int | None) -> jax.Array:
    net = latents.net
    z = z / net.scaling_factor + (net.shift_factor or 0.0)
    if tile is None or max(z.shape[1:3]) <= tile:
        return _apply(latents, "decoder", z, chunk)
    return _tiled(lambda part: _apply(latents, "decoder", part, chunk or len(z)), z, tile, tile * net.factor)


@functools.partial(jax.jit, static_argnames=("chunk", "tile"))
def _encode(latents: Latents, images: jax.Array, chunk: int | None, tile: int | None) -> tuple[jax.Array, jax.Array]:
    net = latents.net
    if tile is None or max(images.shape[1:3]) <= tile * net.factor:
        found = _apply(latents, "encoder", images, chunk)
    else:
        found = _tiled(lambda part: _apply(latents, "encoder", part, chunk or len(images)), images, tile * net.factor, tile)
    mean, log_variance = jnp.split(found, 2, -1)
    deviation = jnp.exp(jnp.clip(log_variance, *_LOG_VARIANCE) / 2)
    return (mean - (net.shift_factor or 0.0)) * net.scaling_factor, deviation * net.scaling_factor


def latents(folder: Folder, *, chunk: int | None = None, tile: int | None = None) -> Latents:
    """The autoencoder of a converted folder of diffusers; weights stay on the host until used.

    Raises:
        WeightsError: the folder has weights of another kind, or of another network than it says.
        ValueError: no such chunk or tile.
    """
    name = shown(folder.path)
    config = folder.network("diffusers", "AutoencoderKL")
    net = network(config, name=name)
    return Latents(params=params(net, folder.tensors(), name=name), net=net, chunk=chunk, tile=tile)
