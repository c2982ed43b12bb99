r"""The transformer of Peebles & Xie (2023), arXiv:2212.09748, on latents, as ``DiTTransformer2DModel`` of diffusers stores it.

A network is asked as every one here, with the scaled input and :math:`c = \log(\sigma / \alpha) / 4`, and turns ``c`` into the
index of the discrete chain that it was trained with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scorelab.errors import WeightsError, shown
from scorelab.models import BoundDenoiser, Denoiser
from scorelab.pretrained import fields, trees
from scorelab.pretrained import scheduler as schedulers
from scorelab.pretrained.keys import listed
from scorelab.pretrained.layers import LayerNorm, Linear, Patches, Table, attend, waves
from scorelab.pretrained.store import Folder
from scorelab.processes import Gaussian, LinearGaussian
from scorelab.schedules import Discrete
from scorelab.validation import require_choice, require_int, require_number, require_positive, require_spec

# Numbers of a wave of the index, and of hidden units of a block in its width.
_WAVES, _HIDDEN = 256, 4


def positions(features: int, side: int, base: int, dtype: Any) -> jax.Array:
    r"""Waves of the places of a square of ``side`` times ``side`` tokens, ``(side^2, features)``.

    The first half is of the column, the second of the row, each :math:`[\sin(w_k p), \cos(w_k p)]` with
    :math:`w_k = 10000^{-4k/n}`, n the features. Places are stretched to those of ``base`` tokens, the side in training.
    """
    frequencies = 10000.0 ** (-np.arange(features // 4) / (features / 4))
    angles = np.outer(np.arange(side) * (base / side), frequencies)
    # Only one line of them is a constant of the program.
    line = jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], -1), dtype)
    shape = (side, side, features // 2)
    return jnp.concatenate([jnp.broadcast_to(line, shape), jnp.broadcast_to(line[:, None], shape)], -1).reshape(side**2, -1)


class Embedder(nn.Module):
    """The sum of the embeddings of the index and of the class.

    Attributes:
        features: of the embedding.
        classes: their number; the table has one more row, for no class.
        freq_shift: of the waves.
    """

    features: int
    classes: int
    freq_shift: int

    @nn.compact
    def __call__(self, t: jax.Array, labels: jax.Array) -> jax.Array:
        """``(b, features)`` for indices ``t (b or 1,)`` and ``labels (b,)``; NaN for a label that is none."""
        h = waves(t, _WAVES, endpoint=bool(self.freq_shift))
        h = nn.silu(Linear(self.features, name="timestep_embedder.linear_1")(h))
        h = Linear(self.features, name="timestep_embedder.linear_2")(h)
        return h + Table(self.classes + 1, self.features, name="class_embedder.embedding_table")(labels).astype(h.dtype)


class Block(nn.Module):
    """Attention and two linear maps, each scaled, shifted and gated by the embedding.

    Attributes:
        heads: of the attention.
        bias: of its queries, keys and values.
        tanh: the form of the activation with a tanh; else the exact one.
        epsilon: of the second norm; that of the first is 1e-6.
        dropout: in training.
    """

    heads: int
    bias: bool
    tanh: bool
    epsilon: float
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, train: bool) -> jax.Array:
        """The block at tokens ``x (b, n, width)`` under ``embedding (b, width)``."""
        width = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        parts = jnp.split(Linear(6 * width, name="norm1.linear")(nn.silu(embedding))[:, None], 6, -1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
        h = LayerNorm(1e-6, affine=False)(x) * (1 + scale) + shift
        q, k, v = (Linear(width, self.bias, name=f"attn1.to_{part}")(h) for part in "qkv")
        x = x + gate * drop(Linear(width, name="attn1.to_out.0")(attend(q, k, v, self.heads)))
        h = LayerNorm(self.epsilon, affine=False)(x) * (1 + scale_mlp) + shift_mlp
        h = nn.gelu(Linear(_HIDDEN * width, name="ff.net.0.proj")(h), approximate=self.tanh)
        return x + gate_mlp * Linear(width, name="ff.net.2")(drop(h))


class DiT(nn.Module):
    """A transformer on patches; fields are the arguments of the published network, and what its file does not say.

    The class after the last, ``num_embeds_ada_norm``, is that for no condition. Where the output has twice the channels of the
    input, its second half is a learned variance, which is left out.

    Attributes:
        num_attention_heads: of every block.
        attention_head_dim: width of a head.
        in_channels: of the latents.
        out_channels: of the output; None for those of the latents.
        num_layers: blocks.
        dropout: in training.
        attention_bias: of queries, keys and values.
        sample_size: side of the latents in training; other sides are seen stretched.
        patch_size: side of a patch.
        activation_fn: ``gelu-approximate`` or ``gelu``.
        num_embeds_ada_norm: number of classes.
        norm_eps: of the second norm of every block.
        freq_shift: of the waves of the index: 1 as in diffusers, 0 as in the original code.
        one_embedding: all blocks have the same, of which one is kept; else each its own, as the files say it.
        schedule: the chain whose index is embedded.
    """

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = None
    num_layers: int = 28
    dropout: float = 0.0
    attention_bias: bool = True
    sample_size: int = 32
    patch_size: int = 2
    activation_fn: str = "gelu-approximate"
    num_embeds_ada_norm: int = 1000
    norm_eps: float = 1e-5
    freq_shift: int = 1
    one_embedding: bool = False
    schedule: Discrete = Discrete()

    # It embeds the noise level of a batch once.
    shares_noise_level = True

    def __post_init__(self):
        owner = type(self).__name__
        fields = ("num_attention_heads", "attention_head_dim", "in_channels", "num_layers", "sample_size", "patch_size")
        require_int(owner, 1, **{field: getattr(self, field) for field in (*fields, "num_embeds_ada_norm")})
        require_choice(owner, ("gelu-approximate", "gelu"), activation_fn=self.activation_fn)
        require_choice(owner, (None, self.in_channels, 2 * self.in_channels), out_channels=self.out_channels)
        require_choice(owner, (0, 1), freq_shift=self.freq_shift)
        require_choice(owner, (True, False), attention_bias=self.attention_bias, one_embedding=self.one_embedding)
        require_number(owner, 0.0, 1.0, dropout=self.dropout)
        require_positive(owner, norm_eps=self.norm_eps)
        require_spec(owner, Discrete, schedule=self.schedule)
        if self.width % 4:
            raise ValueError(
                f"{owner}.num_attention_heads = {self.num_attention_heads}, attention_head_dim = {self.attention_head_dim}: "
                "expected a product that 4 divides, for the waves of rows and columns"
            )
        if self.sample_size % self.patch_size:
            raise ValueError(f"{owner}.patch_size = {self.patch_size}: expected a divisor of sample_size = {self.sample_size}")
        super().__post_init__()

    @property
    def width(self) -> int:
        """Numbers of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def num_classes(self) -> int:
        """The number of classes, beside that for none."""
        return self.num_embeds_ada_norm

    @nn.compact
    def __call__(self, x: jax.Array, c_noise: jax.Array, cond: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """The noise at latents ``x (b, side, side, c)`` and ``c_noise (b,)`` or ``(1,)``, with classes ``cond (b,)``."""
        side = self._side(x)
        t = schedulers.index(self.schedule, c_noise)
        labels = jnp.full(x.shape[:1], self.num_classes) if cond is None else cond
        h = Patches(self.width, self.patch_size, name="pos_embed_proj")(x)
        h = h + positions(self.width, side, self.sample_size // self.patch_size, x.dtype)
        tanh = self.activation_fn == "gelu-approximate"
        place = "transformer_blocks_{}_norm1_emb".format
        told = lambda i: Embedder(self.width, self.num_classes, self.freq_shift, name=place(i))(t, labels).astype(x.dtype)
        first = embedding = told(0)
        for i in range(self.num_layers):
            if i and not self.one_embedding:
                embedding = told(i)
            block = Block(
                self.num_attention_heads, self.attention_bias, tanh, self.norm_eps, self.dropout, name=f"transformer_blocks_{i}"
            )
            h = block(h, embedding, train)
        shift, scale = jnp.split(Linear(2 * self.width, name="proj_out_1")(nn.silu(first))[:, None], 2, -1)
        h = LayerNorm(1e-6, affine=False)(h) * (1 + scale) + shift
        channels, patch = self.out_channels or self.in_channels, self.patch_size
        h = Linear(patch**2 * channels, name="proj_out_2")(h).reshape(-1, side, side, patch, patch, channels)
        return h.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * patch, side * patch, channels)[..., : self.in_channels]

    def _side(self, x: jax.Array) -> int:
        """Patches along a side; ValueError for what is no batch of square latents."""
        if x.ndim != 4 or x.shape[1] != x.shape[2] or x.shape[1] % self.patch_size or x.shape[3] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__} got x of shape {x.shape}: expected (batch, side, side, {self.in_channels}) with a side "
                f"that {self.patch_size} divides"
            )
        return x.shape[1] // self.patch_size


# What changes neither the function nor its weights.
_UNUSED = ("norm_num_groups", "upcast_attention")
# What others of the class for all transformers have, and this one has not.
_WITHOUT = dict(
    norm_type=("ada_norm_zero",), norm_elementwise_affine=(False,), cross_attention_dim=(None,), num_vector_embeds=(None,),
    only_cross_attention=(False,), double_self_attention=(False,), use_linear_projection=(False,), attention_type=("default",),
    caption_channels=(None,), interpolation_scale=(None,),
)  # fmt: skip
_PAPER = {"_class_name": "DDIMScheduler"}
# Files of before it had a class of its own have the class for all transformers.
_CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(norm1\.emb\.)?")
_TOP = re.compile(r"transformer_blocks_(\d+)(_norm1_emb)?")
# Where the embedding is that is kept where all blocks have the same.
_FIRST = "transformer_blocks_0_norm1_emb"


def network(config: Mapping[str, Any], schedule: Discrete | None = None, *, name: str = "config.json") -> DiT:
    """The network that a published ``config.json`` says.

    Args:
        config: what the file holds.
        schedule: the chain whose index is embedded, see :mod:`scorelab.pretrained.scheduler`; None for that of the paper.
        name: of the file, for messages.

    Raises:
        WeightsError: another class, or a field that this network has not, or with another value than it may have.
    """
    if config.get("_class_name", _CLASSES[0]) not in _CLASSES:
        raise WeightsError(f"{name}: _class_name = {config['_class_name']!r}: expected {' or '.join(_CLASSES)}")
    ours = ("freq_shift", "one_embedding", "schedule")
    given = fields.read(config, DiT, name=name, without=ours, usual=_WITHOUT, unused=_UNUSED)
    if schedule is not None:
        given["schedule"] = schedule
    net = fields.built(lambda: DiT(**given), name)
    fields.require_size(name, blocks=net.num_layers, width=net.width)
    return net


def _place(key: str) -> tuple[trees.Path, str]:
    """The place in the tree of a published name, and its layout."""
    head, _, leaf = key.rpartition(".")
    if found := _BLOCK.match(key):
        parts = (f"transformer_blocks_{found[1]}{'_norm1_emb' if found[2] else ''}", head[found.end() :])
    else:
        parts = ("pos_embed_proj" if head == "pos_embed.proj" else head,)
    if leaf != "weight":
        return (*parts, leaf), "same"
    if parts[-1] == "class_embedder.embedding_table":
        return (*parts, "embedding"), "same"
    return (*parts, "kernel"), "conv" if parts[-1] == "pos_embed_proj" else "linear"


def _key(path: trees.Path) -> tuple[str, str]:
    """The published name of a place in the tree, and its layout."""
    head, *rest = path[:-1]
    if found := _TOP.fullmatch(head):
        head = f"transformer_blocks.{found[1]}{'.norm1.emb' if found[2] else ''}"
    elif head == "pos_embed_proj":
        head = "pos_embed.proj"
    key = ".".join((head, *rest, "bias" if path[-1] == "bias" else "weight"))
    return key, _place(key)[1]


def shapes(net: DiT) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters by their places in the tree, found without computing anything."""
    # Of one patch: those of more have no others.
    side, one = net.patch_size, jax.ShapeDtypeStruct((1,), jnp.float32)
    return trees.shapes(net, jax.ShapeDtypeStruct((1, side, side, net.in_channels), jnp.float32), one)


def params(net: DiT, tensors: Mapping[str, np.ndarray], *, name: str = "params") -> dict[str, Any]:
    """The parameters of a network from published names; under ``one_embedding``, all blocks have to have the same.

    Args:
        net: the network that the weights are of.
        tensors: by their published names.
        name: what messages call them.

    Raises:
        WeightsError: a tensor that the network has not, or the other way round, or of another shape; or embeddings that differ
            under ``one_embedding``. Each is named.
    """
    whole = net.clone(one_embedding=False)
    tree = trees.params(shapes(whole), tensors, _place, name=name, network=type(net).__name__)
    if not net.one_embedding:
        return tree
    if different := _others(tree):
        raise WeightsError(f"{name}: {listed(different)}: expected the weights of {_FIRST}, under DiT.one_embedding = True")
    return {"params": {place: part for place, part in tree["params"].items() if place == _FIRST or not _is_embedding(place)}}


def _is_embedding(place: str) -> bool:
    return place.endswith("_norm1_emb")


def _others(tree: Mapping[str, Any]) -> list[str]:
    """The embeddings that are not that of the first block, bit by bit."""
    of = lambda place: [leaf.tobytes() for leaf in jax.tree.leaves(tree["params"][place])]
    first = of(_FIRST)
    return [place for place in tree["params"] if _is_embedding(place) and of(place) != first]


def published(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The other direction of :func:`params`: the tensors by their published names, with a copy of one embedding in each block."""
    parts = tree["params"]
    blocks = [place for place in parts if _TOP.fullmatch(place) and not _is_embedding(place)]
    parts = {f"{block}_norm1_emb": parts[_FIRST] for block in blocks} | dict(parts)
    return trees.published({"params": parts}, _key)


def model(folder: Folder, process: LinearGaussian | None = None, *, scheduler: Mapping[str, Any] | None = None) -> BoundDenoiser:
    """The denoised latents that a converted folder of diffusers states, as a model of ``process``.

    Where all blocks have the same embedding, as in published files, it is kept and computed once. Latents are those of
    :class:`scorelab.pretrained.vae.Latents`. The network sees noise ratios as indices of its chain under every process.

    Args:
        folder: that :func:`scorelab.pretrained.convert` wrote.
        process: of the model; None for the noise of the scheduler.
        scheduler: its ``scheduler_config.json``; None for what the folder has of it, and where it has none, for the chain of the
            paper: 1000 linear betas from 1e-4 to 0.02.

    Raises:
        WeightsError: the folder has weights of another kind, or of another network than it says.
    """
    name = shown(folder.path)
    config = folder.network("diffusers", *_CLASSES)
    said = scheduler or folder.config.get("scheduler") or _PAPER
    noise = schedulers.read(said, name=f"{name}: scheduler")
    if not isinstance(noise.schedule, Discrete):
        raise WeightsError(f"{name}: scheduler {said.get('_class_name')!r}: expected one of betas")
    net = network(config, noise.schedule, name=name)
    tensors = folder.tensors()
    if not _others(params(net, tensors, name=name)):
        net = net.clone(one_embedding=True)
    tree = params(net, tensors, name=name)
    process = Gaussian(schedule=net.schedule) if process is None else process
    return Denoiser(net=net, process=process, predict=noise.predict, data_std=1.0).bind(tree)
