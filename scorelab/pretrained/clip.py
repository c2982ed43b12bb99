r"""CLIP of Radford et al. (2021), arXiv:2103.00020: text and images to one space, from folders of transformers.

The text encoders of Stable Diffusion are its text tower: that of OpenAI in SD 1, and that of OpenCLIP without its last layer
in SD 2, so that its last layer there is the one before the last of the original.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array
from scorelab.errors import WeightsError, shown
from scorelab.pretrained import fields, trees
from scorelab.pretrained.layers import LayerNorm, Linear, Patches, Table, attend, wide
from scorelab.pretrained.store import Folder
from scorelab.validation import require_choice, require_int, require_positive

# Of the pixels that the vision tower was trained on, by channel.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": lambda x: nn.gelu(x, approximate=False),
}


class Text(NamedTuple):
    """What the text tower finds.

    Attributes:
        last: ``(n, length, width)``, after the final norm: the context of SD 1 and 2.
        penultimate: ``(n, length, width)``, after the last layer but one, without a norm: the context of SDXL.
        pooled: ``(n, width)``, of ``last`` at the end token.
        projected: ``(n, d)``, the point of the common space; None without a projection.
    """

    last: Array
    penultimate: Array
    pooled: Array
    projected: Array | None


class Image(NamedTuple):
    """What the vision tower finds.

    Attributes:
        last: ``(n, 1 + patches, width)``, after the last layer, without a norm.
        pooled: ``(n, width)``, of the first token, normed.
        projected: ``(n, d)``, the point of the common space; None without a projection.
    """

    last: Array
    pooled: Array
    projected: Array | None


class Layer(nn.Module):
    """Attention and a perceptron, each after a norm and beside a sum.

    Attributes:
        heads: of the attention.
        intermediate: width inside of the perceptron.
        activation: ``quick_gelu`` or ``gelu``.
        epsilon: of the norms.
        causal: each token sees those before it and itself.
    """

    heads: int
    intermediate: int
    activation: str
    epsilon: float
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The layer at tokens ``(n, length, width)``."""
        width = x.shape[-1]
        h = LayerNorm(self.epsilon, name="layer_norm1")(x)
        q, k, v = (Linear(width, name=f"self_attn_{part}_proj")(h) for part in "qkv")
        x = x + Linear(width, name="self_attn_out_proj")(attend(q, k, v, self.heads, causal=self.causal))
        h = Linear(self.intermediate, name="mlp_fc1")(LayerNorm(self.epsilon, name="layer_norm2")(x))
        return x + Linear(width, name="mlp_fc2")(_ACTIVATIONS[self.activation](h))


class _Tower(nn.Module):
    """What both towers have; fields are those of a published config.

    Attributes:
        hidden_size: width of the tokens.
        intermediate_size: width inside of the perceptrons.
        num_hidden_layers: layers.
        num_attention_heads: heads of the attention.
        hidden_act: ``quick_gelu`` or ``gelu``.
        layer_norm_eps: epsilon of the norms.
        projection_dim: dimension of the common space, None for a tower without a projection.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int | None = None

    def __post_init__(self):
        require_int(
            self, 1, hidden_size=self.hidden_size, intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers, num_attention_heads=self.num_attention_heads,
        )  # fmt: skip
        if self.projection_dim is not None:
            require_int(self, 1, projection_dim=self.projection_dim)
        require_choice(self, tuple(_ACTIVATIONS), hidden_act=self.hidden_act)
        require_positive(self, layer_norm_eps=self.layer_norm_eps)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{type(self).__name__}.num_attention_heads = {self.num_attention_heads}: expected a divisor of {self.hidden_size}"
            )
        super().__post_init__()

    def layers(self, x: jax.Array, *, causal: bool) -> list[jax.Array]:
        """Tokens before the first layer and after each."""
        found = [x]
        for i in range(self.num_hidden_layers):
            layer = Layer(
                self.num_attention_heads, self.intermediate_size, self.hidden_act, self.layer_norm_eps, causal, name=f"layers_{i}"
            )
            found.append(layer(found[-1]))
        return found

    def projected(self, name: str, pooled: jax.Array) -> jax.Array | None:
        """The point of the common space, where there is one."""
        return None if self.projection_dim is None else Linear(self.projection_dim, bias=False, name=name)(pooled)


class TextTower(_Tower):
    """The text tower: token and position embeddings, causal layers, a final norm.

    The end of a prompt is the first ``eos_token_id``. Files from before 2023 have 2 there, whatever their tokenizer: then it is the
    largest number of the row, as in the original.

    Attributes:
        vocab_size: numbers of tokens.
        max_position_embeddings: the longest row.
        eos_token_id: of the end token, or 2.
    """

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407

    def __post_init__(self):
        require_int(self, 1, vocab_size=self.vocab_size, max_position_embeddings=self.max_position_embeddings)
        require_int(self, 0, eos_token_id=self.eos_token_id)
        super().__post_init__()

    @nn.compact
    def __call__(self, ids: jax.Array) -> Text:
        """What it finds in rows of tokens ``ids (n, length)``.

        NaN in rows with a number that is no token, and in ``pooled`` and ``projected`` of a row without end token.
        """
        if ids.ndim != 2 or ids.shape[1] > self.max_position_embeddings or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(
                f"TextTower got {ids.dtype} {ids.shape}: expected integers (n, length), at most {self.max_position_embeddings} long"
            )
        x = Table(self.vocab_size, self.hidden_size, name="token_embedding")(ids)
        # Everything is computed in the type of the table, but for float16, whose range is small.
        x = x.astype(wide(x)) if x.dtype == jnp.float16 else x
        places = Table(self.max_position_embeddings, self.hidden_size, name="position_embedding")()
        x = x + places[: ids.shape[1]].astype(x.dtype)
        states = self.layers(x, causal=True)
        last = LayerNorm(self.layer_norm_eps, name="final_layer_norm")(states[-1])
        ends = ids == (ids.max(1, keepdims=True) if self.eos_token_id == 2 else self.eos_token_id)
        pooled = jnp.take_along_axis(last, jnp.argmax(ends, 1)[:, None, None], 1)[:, 0]
        pooled = jnp.where(ends.any(1, keepdims=True), pooled, jnp.nan)
        return Text(last, states[-2], pooled, self.projected("text_projection", pooled))


class VisionTower(_Tower):
    """The vision tower: patches and a class token, layers, a norm of the class token.

    Attributes:
        num_channels: of the images.
        image_size: side of the images.
        patch_size: side of the patches.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32

    def __post_init__(self):
        require_int(self, 1, num_channels=self.num_channels, patch_size=self.patch_size)
        require_int(self, self.patch_size, image_size=self.image_size)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> Image:
        """What it finds in images ``(n, image_size, image_size, channels)``, normalised as :func:`seen` does."""
        if x.shape[1:] != (self.image_size, self.image_size, self.num_channels):
            raise ValueError(
                f"VisionTower got images {x.shape}: expected (n, {self.image_size}, {self.image_size}, {self.num_channels})"
            )
        tokens = Patches(self.hidden_size, self.patch_size, bias=False, name="patch_embedding")(x)
        first = self.param("class_embedding", nn.initializers.normal(0.02), (self.hidden_size,)).astype(x.dtype)
        tokens = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, self.hidden_size)), tokens], 1)
        tokens = tokens + Table(tokens.shape[1], self.hidden_size, name="position_embedding")().astype(x.dtype)
        # Spelt as in the files.
        tokens = LayerNorm(self.layer_norm_eps, name="pre_layrnorm")(tokens)
        last = self.layers(tokens, causal=False)[-1]
        pooled = LayerNorm(self.layer_norm_eps, name="post_layernorm")(last[:, 0])
        return Image(last, pooled, self.projected("visual_projection", pooled))


class CLIP(nn.Module):
    """Both towers, whose projections have the same dimension.

    Attributes:
        text_model: the text tower.
        vision_model: the vision tower.
    """

    text_model: TextTower
    vision_model: VisionTower

    def __post_init__(self):
        dims = self.text_model.projection_dim, self.vision_model.projection_dim
        if dims[0] is None or dims[0] != dims[1]:
            raise ValueError(f"CLIP of towers with projection_dim = {dims[0]} and {dims[1]}: expected one number for both")
        super().__post_init__()

    @nn.compact
    def __call__(self, ids: jax.Array, x: jax.Array) -> jax.Array:
        r"""``(images, texts)``: :math:`e^s` times the cosines of their points, with the learned ``logit_scale`` :math:`s`."""
        scale = jnp.exp(self.param("logit_scale", nn.initializers.constant(2.6592), ()))
        texts, images = (unit(jnp.asarray(tower.projected)) for tower in (self.text_model(ids), self.vision_model(x)))
        return scale * images @ texts.T


Network = TextTower | VisionTower | CLIP


def unit(x: Array) -> Array:
    """Vectors ``(..., d)`` of length one."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def seen(images: Array, size: int = 224) -> Array:
    """Images ``(n, h, w, 3 or 1)`` on the scale [0, 1] as the vision tower sees them, ``(n, size, size, 3)``; differentiable.

    The shorter side is brought to ``size`` by a bicubic filter, wider where images shrink, the middle is cut out, and channels
    are centred and scaled. Nothing is rounded or clipped; the published preprocessing of bytes does both after resizing.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"clip.seen got {images.dtype} images {images.shape}: expected floats (n, height, width, 3), or 1 channel")
    n, height, width, _ = images.shape
    short = min(height, width)
    # The longer side and the margin are rounded down, as in transformers.
    sides = tuple(size * side // short for side in (height, width))
    if sides != (height, width):
        images = jax.image.resize(images, (n, *sides, images.shape[-1]), "cubic", antialias=True)
    top, left = ((side - size) // 2 for side in sides)
    middle = images[:, top : top + size, left : left + size]
    return (middle - jnp.asarray(MEAN, images.dtype)) / jnp.asarray(STD, images.dtype)


def image_features(net: VisionTower, params: Mapping[str, Any], images: Array) -> Array:
    """Points ``(n, d)`` of the common space of images ``(n, h, w, 3 or 1)`` on the scale [0, 1], not scaled to length one.

    Of a tower without projection, its ``pooled``. In the type of the images; differentiable in them.
    """
    found: Any = net.apply(params, seen(images, net.image_size))
    return found.pooled if found.projected is None else found.projected


_MODELS = {"text_projection": "text_model", "visual_projection": "vision_model"}
_OWN = ("text_model", "vision_model")


def params(net: Network, tensors: Mapping[str, np.ndarray], *, name: str = "params") -> dict[str, Any]:
    """The parameters of a network, from published names to the tree of ``net.apply``; those of a tower may lack its prefix.

    Args:
        net: the network that the weights are of.
        tensors: by their published names, such as ``text_model.encoder.layers.0.mlp.fc1.weight``.
        name: what messages call them.

    Raises:
        WeightsError: a tensor that the network has not, or the other way round, or of another shape; each is named.
    """
    own = None if isinstance(net, CLIP) else "text_model" if isinstance(net, TextTower) else "vision_model"

    def place(key: str) -> tuple[trees.Path, str] | None:
        # A buffer of old files: 0, 1, 2 and so on.
        if key.endswith("embeddings.position_ids"):
            return None
        if key == "logit_scale":
            return (key,), "same"
        model, *rest = key.split(".")
        if model in _MODELS:
            model, rest = _MODELS[model], [model, *rest]
        elif own is not None and model not in _OWN:
            # transformers 5 has no prefix for a tower alone.
            model, rest = own, [model, *rest]
        path, layout = _path(rest)
        # What is of the other tower keeps its name, so that it is refused by it.
        return (path if model == own else (model, *path)), layout

    return trees.params(shapes(net), tensors, place, name=name, network=type(net).__name__)


def _path(parts: list[str]) -> tuple[trees.Path, str]:
    """The place in a tower of a published name without the tower, and the layout."""
    text = ".".join(parts).removeprefix("embeddings.")
    text = re.sub(r"^encoder\.layers\.(\d+)\.", r"layers_\1/", text)
    text = re.sub(r"/(self_attn|mlp)\.", r"/\1_", text)
    layer, dot, leaf = text.rpartition(".")
    path = (*layer.split("/"), leaf) if dot else (leaf,)
    if leaf != "weight":
        return path, "same"
    if layer.endswith("_embedding") and layer != "patch_embedding":
        return (*path[:-1], "embedding"), "same"
    if re.search(r"norm\d?$", layer):
        return (*path[:-1], "scale"), "same"
    return (*path[:-1], "kernel"), "conv" if layer == "patch_embedding" else "linear"


def published(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The other direction of :func:`params`: the tensors by their published names, with the prefix of their tower."""
    inside = tree["params"]
    own = None if "logit_scale" in inside else "text_model" if "token_embedding" in inside else "vision_model"

    def key(path: trees.Path) -> tuple[str, str]:
        if path == ("logit_scale",):
            return "logit_scale", "same"
        model, *rest = path if own is None else (own, *path)
        layer = rest[0]
        layout = "conv" if layer == "patch_embedding" else "linear" if rest[-1] == "kernel" else "same"
        rest[-1] = rest[-1] if rest[-1] == "bias" or len(rest) == 1 else "weight"
        if layer in _MODELS:
            return ".".join(rest), layout
        if layer.endswith("_embedding"):
            rest.insert(0, "embeddings")
        rest[0] = re.sub(r"^layers_", "encoder.layers.", rest[0])
        if rest[0].startswith("encoder"):
            rest[1] = re.sub(r"^(self_attn|mlp)_", r"\1.", rest[1])
        return ".".join((model, *rest)), layout

    return trees.published(tree, key)


def shapes(net: Network) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters by their places in the tree, found without computing anything."""
    ids = lambda tower: jax.ShapeDtypeStruct((1, tower.max_position_embeddings), jnp.int32)
    image = lambda tower: jax.ShapeDtypeStruct((1, tower.image_size, tower.image_size, tower.num_channels), jnp.float32)
    if isinstance(net, CLIP):
        return trees.shapes(net, ids(net.text_model), image(net.vision_model))
    return trees.shapes(net, ids(net) if isinstance(net, TextTower) else image(net))


# What changes neither the function nor the weights: names, chance in training, the type of the computation, and what the configs of
# all models had once, for decoders and for generation.
_UNUSED = frozenset(
    """
    _name_or_path _commit_hash _attn_implementation _attn_implementation_autoset _attn_implementation_internal architectures
    model_type transformers_version torch_dtype dtype use_bfloat16 torchscript tf_legacy_loss return_dict output_hidden_states
    output_attentions return_dict_in_generate output_scores attention_dropout dropout initializer_range initializer_factor
    logit_scale_init_value bos_token_id pad_token_id sep_token_id decoder_start_token_id tie_word_embeddings
    chunk_size_feed_forward is_encoder_decoder is_decoder is_composition cross_attention_hidden_size add_cross_attention
    tie_encoder_decoder max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature
    top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens finetuning_task id2label label2id num_labels tokenizer_class prefix task_specific_params
    problem_type use_cache gradient_checkpointing
    """.split()  # noqa: SIM905
)
# All heads are there.
_HEADS = {"pruned_heads": ({}, [], None)}
# By architecture: its type, and whether it has a projection.
_ARCHITECTURES = {
    "CLIPTextModel": ("clip_text_model", False),
    "CLIPTextModelWithProjection": ("clip_text_model", True),
    "CLIPVisionModel": ("clip_vision_model", False),
    "CLIPVisionModelWithProjection": ("clip_vision_model", True),
    "CLIPModel": ("clip", True),
}


def network(config: Mapping[str, Any], *, name: str = "config.json") -> Network:
    """The network that a ``config.json`` of transformers says: a tower, with or without projection, or both.

    Raises:
        WeightsError: another architecture, or fields that none of them has.
    """
    said, kind = config.get("architectures"), config.get("model_type")
    if not said:
        said = [each for each, (its, _) in _ARCHITECTURES.items() if its == kind][:1]
    architecture = said[0] if isinstance(said, list) and len(said) == 1 else None
    found, projects = _ARCHITECTURES.get(str(architecture), (None, False))
    if found is None or kind not in (None, found):
        raise WeightsError(f"{name}: architectures {said} of model_type {kind!r}: expected one of {', '.join(_ARCHITECTURES)}")
    if found != "clip":
        return _tower(found, config, projects, name)
    known = ("text_config", "vision_config", "text_config_dict", "vision_config_dict", "projection_dim")
    config = fields.kept(config, known, "CLIP", name=name, usual=_HEADS, unused=_UNUSED)
    towers = []
    for part in ("text", "vision"):
        # Old files have a second table, which replaces the first one.
        inner = config.get(f"{part}_config_dict") or config.get(f"{part}_config") or {}
        if not isinstance(inner, Mapping):
            raise WeightsError(f"{name}: {part}_config = {inner!r}: expected a table")
        # Both towers go to the one space.
        inner = {**inner, "projection_dim": config.get("projection_dim", 512)}
        towers.append(_tower(f"clip_{part}_model", inner, projects, f"{name}, {part}_config"))
    return fields.built(lambda: CLIP(*towers), name)


def _tower(kind: str, config: Mapping[str, Any], projects: bool, name: str) -> Any:
    build = TextTower if kind == "clip_text_model" else VisionTower
    config = dict(config)
    for side in ("image_size", "patch_size"):
        # Of squares both ways of saying it are in use.
        if isinstance(both := config.get(side), list) and len(both) == 2 and both[0] == both[1]:
            config[side] = both[0]
    # Every old config has the number of an end token, and the tower of images no use for it.
    given = fields.read(config, build, name=name, usual=_HEADS, unused=_UNUSED | {"eos_token_id"})
    given["projection_dim"] = given.get("projection_dim", 512) if projects else None
    net: Any = fields.built(lambda: build(**given), name)
    fields.require_size(name, blocks=net.num_hidden_layers)
    if isinstance(net, VisionTower):
        fields.require_size(name, tokens=(net.image_size // net.patch_size) ** 2)
    return net


def load(folder: Folder) -> tuple[Network, dict[str, Any]]:
    """The network and the parameters of a converted folder of transformers; parameters stay on the host until used.

    Raises:
        WeightsError: the folder has weights of another kind, or of another network than it says.
    """
    name = shown(folder.path)
    net = network(folder.network("transformers"), name=name)
    return net, params(net, folder.tensors(), name=name)


T = TypeVar("T", bound=_Tower)


def tower(folder: Folder, kind: type[T]) -> tuple[T, dict[str, Any]]:
    """The one tower of a converted folder that has it alone or beside the other; errors as :func:`load`."""
    net: Any
    net, tree = load(folder)
    if isinstance(net, CLIP):
        part = "text_model" if kind is TextTower else "vision_model"
        net, tree = getattr(net, part), {"params": tree["params"][part]}
    if not isinstance(net, kind):
        raise WeightsError(f"{shown(folder.path)}: a {type(net).__name__}: expected a {kind.__name__}, or a CLIP with both")
    return net, tree
