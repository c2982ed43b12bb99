"""What the published U-Nets have in common: levels of residual blocks, down and up again, under an embedding of time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from scorelab.pretrained import scheduler as schedulers
from scorelab.pretrained.layers import Conv, GroupNorm, Linear, resample, waves, wide
from scorelab.pretrained.unetblocks import FIR, Downsample, ResnetBlock, Upsample
from scorelab.schedules import Discrete
from scorelab.validation import require_int, require_number, require_positive


class Kind(NamedTuple):
    """What a type of block has beside its residual blocks: by its name."""

    spatial: bool
    cross: bool
    skips: bool
    resnet: bool

    @classmethod
    def of(cls, name: str) -> Kind:
        """Of the published name of a block, such as ``CrossAttnDownBlock2D``."""
        name = name.removeprefix("UNetRes")
        return cls(name.startswith("Attn"), name.startswith("CrossAttn"), "Skip" in name, name.startswith("Resnet"))


class _Fourier(nn.Module):
    """Sines and cosines of fixed frequencies, of the file."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        frequencies = jax.lax.stop_gradient(self.param("weight", nn.initializers.normal(16.0), (self.features,)))
        angles = 2 * math.pi * x[:, None] * frequencies.astype(x.dtype)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


class _TimeEmbedding(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Linear(self.features, name="linear_2")(nn.silu(Linear(self.features, name="linear_1")(x)))


class UNet(nn.Module):
    """What both networks have; fields are those of published configs, and ``schedule``.

    Attributes:
        sample_size: sides of the images, for information: any multiple of ``2 ** (levels - 1)`` will do.
        in_channels: of the images.
        out_channels: of the result; twice those of the images have a variance beside, which is left out.
        center_input_sample: the images go through ``2 x - 1``.
        flip_sin_to_cos: cosines before sines in the embedding of time.
        freq_shift: of its frequencies.
        time_embedding_type: ``positional``, of the index in ``schedule``; or ``fourier``, of the noise level.
        time_embedding_dim: width of the embedding; None for four times that of the first level.
        down_block_types: one for each level.
        mid_block_type: None for no block between.
        up_block_types: one for each level, the last level first.
        block_out_channels: channels of every level.
        layers_per_block: residual blocks of a level, one more on the way up.
        mid_block_scale_factor: what the sums of the block between are divided by.
        downsample_padding: 1 for zeros on every side before the sides are halved; 0 at the right and the bottom only.
        dropout: in training.
        norm_num_groups: of the norms; None for ``min(32, channels // 4)``, as blocks with a skip image have it always.
        norm_eps: of the norms.
        resnet_time_scale_shift: ``default`` or ``scale_shift``.
        attention_head_dim: see the networks.
        schedule: the noise levels of its steps; None for a network that is not asked, or is asked by noise level.
    """

    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    block_out_channels: tuple[int, ...]
    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    mid_block_type: str | None = "UNetMidBlock2D"
    layers_per_block: int | tuple[int, ...] = 2
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    dropout: float = 0.0
    norm_num_groups: int | None = 32
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    attention_head_dim: int | tuple[int, ...] | None = 8
    schedule: Discrete | None = None

    # It embeds the noise level of a batch once.
    shares_noise_level = True
    # Of the names of its blocks, on the way down, between and on the way up.
    blocks = ((), (), ())
    # Whether the block between is one residual block alone.
    single = False

    def __post_init__(self):
        # Lists of a JSON file, since a network can be hashed.
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name, None), list):
                object.__setattr__(self, field.name, tuple(value))
        owner = type(self).__name__
        for name in ("down_block_types", "up_block_types", "block_out_channels"):
            if not isinstance(value := getattr(self, name), tuple):
                raise ValueError(f"{owner}.{name} = {value!r}: expected a list, one for each level")
        for name in ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups", "sample_size"):
            # Of some one number may do for all, or none.
            value = getattr(self, name)
            for each in value if isinstance(value, tuple) else () if value is None and name[0] in "ns" else (value,):
                require_int(owner, 1, **{name: each})
        require_positive(owner, norm_eps=self.norm_eps, mid_block_scale_factor=self.mid_block_scale_factor)
        require_number(owner, 0, 1, freq_shift=self.freq_shift, dropout=self.dropout)
        levels = len(self.block_out_channels)
        if not levels or not len(self.down_block_types) == len(self.up_block_types) == levels:
            raise ValueError(
                f"{owner} has {len(self.down_block_types)} down_block_types, {len(self.up_block_types)} up_block_types and "
                f"{levels} block_out_channels: expected as many of each"
            )
        if len(self.each("layers_per_block")) != levels:
            raise ValueError(
                f"{owner}.layers_per_block = {self.layers_per_block!r}: expected an integer, or one for each of {levels} levels"
            )
        for name, known in zip(("down_block_types", "mid_block_type", "up_block_types"), self.blocks, strict=True):
            value = getattr(self, name)
            for each in value if isinstance(value, tuple) else (value,):
                if each not in known and not (isinstance(each, str) and each.removeprefix("UNetRes") in known):
                    raise ValueError(f"{owner}.{name} has {each!r}: expected {', '.join(map(str, known))}")
        for name, known in dict(
            time_embedding_type=("positional", "fourier"),
            downsample_padding=(0, 1),
            resnet_time_scale_shift=("default", "scale_shift"),
            out_channels=(self.in_channels, 2 * self.in_channels),
        ).items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{owner}.{name} = {value!r}: expected {' or '.join(map(str, known))}")
        skips = any(Kind.of(name).skips for name in (*self.down_block_types, *self.up_block_types))
        if skips and (self.in_channels, self.out_channels) != (3, 3):
            raise ValueError(
                f"{owner} has in_channels = {self.in_channels!r} and out_channels = {self.out_channels!r} with blocks that have a "
                "skip image: expected 3 and 3"
            )
        if self.schedule is not None and not isinstance(self.schedule, Discrete):
            raise TypeError(f"{owner}.schedule = {self.schedule!r}: expected a Discrete schedule")
        super().__post_init__()

    @property
    def levels(self) -> int:
        """How many sides the images have on their way."""
        return len(self.block_out_channels)

    def each(self, name: str) -> tuple[Any, ...]:
        """A field with one value for each level, which may be one for all."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    def resamples(self, how: str) -> bool:
        """Whether levels with attention change their sides, ``"up"`` or ``"down"``, by a residual block."""
        return False

    def told(self, cond: jax.Array | None, batch: int, width: int) -> tuple[jax.Array | None, jax.Array | None]:
        """What is added to the embedding, ``(b or 1, width)``, and the context ``(b, m, any)``; None for none."""
        raise NotImplementedError

    def mixer(self, kind: Kind, level: int, name: str) -> Callable[..., jax.Array]:
        """The attention of a block: a function of images and context."""
        raise NotImplementedError

    def middle(self, level: int) -> Callable[..., jax.Array] | None:
        """The attention of the block between."""
        raise NotImplementedError

    def _asked(self, x: jax.Array, c_noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The input that the network was trained with, and the embedding of time before its two layers."""
        features = self.block_out_channels[0]
        c = c_noise.astype(wide(c_noise))
        if self.time_embedding_type == "fourier":
            x = x * jnp.sqrt(1 + jnp.exp(8 * c))[:, None, None, None].astype(x.dtype)
            time = _Fourier(features, name="time_proj")(4 * c)
        else:
            if self.schedule is not None:
                c = schedulers.index(self.schedule, c_noise)
            elif not self.is_initializing():
                raise ValueError(
                    f"{type(self).__name__}.schedule = None: expected the Discrete levels of its scheduler, which say what step "
                    "a noise level is"
                )
            time = waves(c, features, endpoint=self.freq_shift)
            time = time if self.flip_sin_to_cos else jnp.roll(time, features // 2, -1)
        return 2 * x - 1 if self.center_input_sample else x, time

    @nn.compact
    def __call__(self, x: jax.Array, c_noise: jax.Array, cond: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """The output at ``x (b, h, w, c)`` and ``c_noise (b,)`` or ``(1,)`` under ``cond``."""
        channels, levels = self.block_out_channels, len(self.block_out_channels)
        if x.ndim != 4 or x.shape[-1] != self.in_channels:
            wanted = f"(batch, height, width, {self.in_channels})"
            raise ValueError(f"{type(self).__name__}: images of shape {x.shape}: expected {wanted}")
        if any(side % 2 ** (levels - 1) for side in x.shape[1:3]):
            raise ValueError(f"{type(self).__name__}: images of shape {x.shape}: expected sides that 2 ** {levels - 1} divides")
        given = x.shape[-1]
        x, time = self._asked(x, c_noise)
        width = self.time_embedding_dim or 4 * channels[0]
        embedding = _TimeEmbedding(width, name="time_embedding")(time)
        added, context = self.told(cond, x.shape[0], width)
        embedding = nn.silu(embedding if added is None else embedding + added.astype(embedding.dtype)).astype(x.dtype)
        context = None if context is None else context.astype(x.dtype)
        groups = self.norm_num_groups or 0

        def resnet(name: str, features: int, h: jax.Array, skips: bool = False, **options: Any) -> jax.Array:
            own: dict[str, Any] = dict(groups=0, scale=math.sqrt(2)) if skips else dict(groups=groups)
            shifts = self.resnet_time_scale_shift == "scale_shift"
            block = ResnetBlock(
                features, epsilon=self.norm_eps, scale_shift=shifts, dropout=self.dropout, name=name, **own | options
            )
            return block(h, embedding, train)

        layers, image = self.each("layers_per_block"), x
        h = Conv(channels[0], name="conv_in")(x)
        passed = [h]
        for i, (kind, features) in enumerate(zip(map(Kind.of, self.down_block_types), channels, strict=True)):
            block = f"down_blocks_{i}_"
            for j in range(layers[i]):
                h = resnet(f"{block}resnets_{j}", features, h, kind.skips)
                if kind.spatial or kind.cross:
                    h = self.mixer(kind, i, f"{block}attentions_{j}")(h, context)
                passed.append(h)
            if i == levels - 1:
                continue
            if kind.skips:
                h = resnet(f"{block}resnet_down", features, h, True, how="down", smooth=True)
                image = resample(image, FIR, "down")
                h = Conv(features, 1, name=f"{block}skip_conv")(image) + h
            elif kind.resnet or (kind.spatial and self.resamples("down")):
                h = resnet(f"{block}downsamplers_0", features, h, how="down")
            else:
                h = Downsample(self.downsample_padding, name=f"{block}downsamplers_0")(h)
            passed.append(h)
        if self.mid_block_type is not None:
            h = resnet("mid_block_resnets_0", channels[-1], h, scale=self.mid_block_scale_factor)
            if (mix := self.middle(levels - 1)) is not None:
                h = mix(h, context)
            if not self.single:
                h = resnet("mid_block_resnets_1", channels[-1], h, scale=self.mid_block_scale_factor)
        image = None
        for i, kind in enumerate(map(Kind.of, self.up_block_types)):
            block, level = f"up_blocks_{i}_", levels - 1 - i
            features, last = channels[level], level == 0
            for j in range(layers[level] + 1):
                own = {}
                if kind.skips and kind.spatial:
                    # As published: a quarter of the second number only.
                    own = dict(groups=min(h.shape[-1] + passed[-1].shape[-1] // 4, 32), groups_out=min(features // 4, 32))
                h = resnet(f"{block}resnets_{j}", features, jnp.concatenate([h, passed.pop()], -1), kind.skips, **own)
                if kind.cross or (kind.spatial and not kind.skips):
                    h = self.mixer(kind, level, f"{block}attentions_{j}")(h, context)
            if kind.skips:
                if kind.spatial:
                    h = self.mixer(kind, level, f"{block}attentions_0")(h, context)
                image = None if image is None else resample(image, FIR, "up")
                if not last:
                    own = nn.silu(GroupNorm(self.norm_eps, name=f"{block}skip_norm")(h))
                    own = Conv(3, name=f"{block}skip_conv")(own)
                    image = own if image is None else image + own
                    h = resnet(f"{block}resnet_up", features, h, True, how="up", smooth=True)
            elif not last and (kind.resnet or (kind.spatial and self.resamples("up"))):
                h = resnet(f"{block}upsamplers_0", features, h, how="up")
            elif not last:
                h = Upsample(name=f"{block}upsamplers_0")(h)
        h = nn.silu(GroupNorm(self.norm_eps, groups, name="conv_norm_out")(h))
        h = Conv(self.out_channels, name="conv_out")(h)
        h = h if image is None else h + image
        h = h[..., :given]
        # The published one divides by sigma: it is the score, which is minus the noise over sigma.
        return -h if self.time_embedding_type == "fourier" else h
