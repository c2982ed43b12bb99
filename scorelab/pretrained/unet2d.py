r"""The U-Nets of diffusers as their published weights need them: ``UNet2DModel`` and ``UNet2DConditionModel``.

The first is that of Ho et al. (2020), arXiv:2006.11239, in pixels, with the variants of Dhariwal & Nichol (2021), arXiv:2105.05233,
and Song et al. (2021), arXiv:2011.13456. The second is that of Rombach et al. (2022), arXiv:2112.10752, which Stable Diffusion 1.x
and 2.x use in latent space. A network is asked with the scaled input and :math:`c = \log(\sigma / \alpha) / 4`, as every one here.
It turns both into what it was trained with: the index of its step, or its noise level.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.errors import WeightsError, shown
from scorelab.models import BoundDenoiser, Denoiser
from scorelab.models.nets.conditions import Sequence
from scorelab.pretrained import fields, trees, unetblocks
from scorelab.pretrained import scheduler as schedulers
from scorelab.pretrained.classes import Given
from scorelab.pretrained.layers import Table
from scorelab.pretrained.store import Folder
from scorelab.pretrained.unetblocks import SpatialAttention, Transformer
from scorelab.pretrained.unetlevels import UNet
from scorelab.processes import Gaussian, LinearGaussian
from scorelab.schedules import VE, Discrete
from scorelab.validation import require_int

# The tokens of a text; the leaf of the parameters with those of the empty one.
TOKENS, NULL = 77, "null_context"


_SPATIAL = ("{0}Block2D", "Attn{0}Block2D", "Resnet{0}sampleBlock2D", "Skip{0}Block2D", "AttnSkip{0}Block2D")
_CROSS = ("{0}Block2D", "CrossAttn{0}Block2D")


class UNet2DModel(UNet):
    """The network of images in pixels, with classes or without; fields beside those that both networks have:

    Attributes:
        attention_head_dim: channels of a head; None for one head.
        downsample_type: ``conv``, or ``resnet`` after levels with attention.
        upsample_type: the same on the way up.
        attn_norm_num_groups: of the norm before the attention between; None for ``norm_num_groups`` under the default way of the
            embedding, and for no norm under ``scale_shift``.
        add_attention: whether there is attention between.
        num_class_embeds: number of classes, None for none.
    """

    downsample_type: str = "conv"
    upsample_type: str = "conv"
    attn_norm_num_groups: int | None = None
    add_attention: bool = True
    num_class_embeds: int | None = None

    blocks = (tuple(t.format("Down") for t in _SPATIAL), ("UNetMidBlock2D", None), tuple(t.format("Up") for t in _SPATIAL))

    def __post_init__(self):
        for name in ("downsample_type", "upsample_type"):
            if (value := getattr(self, name)) not in ("conv", "resnet"):
                raise ValueError(f"UNet2DModel.{name} = {value!r}: expected conv or resnet")
        super().__post_init__()

    @property
    def num_classes(self) -> int:
        """The number of classes, 0 for a network without."""
        return self.num_class_embeds or 0

    @property
    def condition(self) -> Given | None:
        """Of the network: a class, which has to be given."""
        return Given(self.num_classes) if self.num_classes else None

    def resamples(self, how):
        return getattr(self, f"{how}sample_type") == "resnet"

    def told(self, cond, batch, width):
        if self.condition is None:
            if cond is not None:
                raise ValueError("cond was given to UNet2DModel, whose num_class_embeds is None: expected None")
            return None, None
        label = self.condition.told(self, cond, batch)
        return Table(self.num_classes, width, 1.0, name="class_embedding")(label), None

    def _attention(self, level: int, name: str, groups: int | None, scale: float) -> Callable[..., jax.Array]:
        features = self.block_out_channels[level]
        size = self.attention_head_dim or features
        if not isinstance(size, int) or not 0 < size <= features:
            raise ValueError(
                f"UNet2DModel.attention_head_dim = {size!r}: expected an integer of at most {features}, the channels of a level"
            )
        heads = features // size
        mix = SpatialAttention(heads, heads * size, groups, self.norm_eps, scale, name=name)
        return lambda h, context: mix(h)

    def mixer(self, kind, level, name):
        if kind.skips:
            return self._attention(level, name, 32, math.sqrt(2))
        return self._attention(level, name, self.norm_num_groups or 0, 1.0)

    def middle(self, level):
        if not self.add_attention:
            return None
        groups = self.norm_num_groups or 0 if self.resnet_time_scale_shift == "default" else None
        groups = self.attn_norm_num_groups or groups
        return self._attention(level, "mid_block_attentions_0", groups, self.mid_block_scale_factor)


class UNet2DConditionModel(UNet):
    """The network of latents under a text, whose tokens it attends to; fields beside those that both networks have:

    The parameters may have the leaf ``null_context (77, width)``, the tokens of the empty text: what is asked with no condition,
    as classifier-free guidance asks, or with a row that is wholly NaN.

    Attributes:
        attention_head_dim: number of heads, in spite of its name; one for all levels, or one for each.
        cross_attention_dim: width of a token.
        transformer_layers_per_block: of every transformer, one for all levels, or one for each.
        use_linear_projection: the outer maps of transformers are stored as matrices.
        tokens: of a text.
    """

    in_channels: int = 4
    out_channels: int = 4
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    tokens: int = TOKENS

    blocks = (
        tuple(t.format("Down") for t in _CROSS),
        ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
        tuple(t.format("Up") for t in _CROSS),
    )

    def __post_init__(self):
        if self.time_embedding_type != "positional":
            raise ValueError(f"UNet2DConditionModel.time_embedding_type = {self.time_embedding_type!r}: expected positional")
        if self.norm_num_groups is None:
            raise ValueError("UNet2DConditionModel.norm_num_groups = None: expected an integer")
        require_int(self, 1, cross_attention_dim=self.cross_attention_dim, tokens=self.tokens)
        super().__post_init__()
        for name in ("attention_head_dim", "transformer_layers_per_block", "layers_per_block"):
            if len(self.each(name)) != len(self.block_out_channels) or None in self.each(name):
                raise ValueError(
                    f"UNet2DConditionModel.{name} = {getattr(self, name)!r}: expected an integer, or one for each of "
                    f"{len(self.block_out_channels)} levels"
                )

    @property
    def condition(self) -> Sequence:
        """Of the network: the tokens of a text."""
        return Sequence(size=self.cross_attention_dim, length=self.tokens)

    @property
    def single(self) -> bool:
        """Whether the block between is one residual block alone."""
        return self.mid_block_type == "UNetMidBlock2D"

    def told(self, cond, batch, width):
        null = self.get_variable("params", NULL) if self.has_variable("params", NULL) else None
        if cond is None:
            if null is None and not self.is_initializing():
                raise ValueError(
                    f"cond = None for UNet2DConditionModel without {NULL}: expected {self.condition.accepted}, or the context of "
                    f"the empty text in its parameters, params(net, tensors, null_context=...)"
                )
            cond = jnp.zeros((self.tokens, self.cross_attention_dim)) if null is None else null
        context = jnp.asarray(self.condition.rows("cond", cond, batch))
        if null is not None:
            context = jnp.where(jnp.all(jnp.isnan(context), (1, 2), keepdims=True), null.astype(context.dtype), context)
        return None, jnp.broadcast_to(context, (batch, *context.shape[1:]))

    def _transformer(self, level: int, name: str) -> Transformer:
        heads, layers = (self.each(field)[level] for field in ("attention_head_dim", "transformer_layers_per_block"))
        return Transformer(heads, self.norm_num_groups or 0, layers, self.use_linear_projection, name=name)

    def mixer(self, kind, level, name):
        return self._transformer(level, name)

    def middle(self, level):
        return None if self.single else self._transformer(level, "mid_block_attentions_0")


_CLASSES: dict[str, type[UNet2DModel] | type[UNet2DConditionModel]] = {
    kind.__name__: kind for kind in (UNet2DModel, UNet2DConditionModel)
}
# Fields that networks here have not, each with the values under which the function is the one that is here.
_USUAL: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
}
# Those that change nothing: of parts that are not there, and the type of the attention, whose softmax is float32 always.
_UNUSED = (
    "addition_embed_type_num_heads", "addition_time_embed_dim", "num_train_timesteps", "projection_class_embeddings_input_dim",
    "upcast_attention",
)  # fmt: skip
# What configs leave out is what the classes of diffusers say.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "UNet2DModel": dict(
        down_block_types=("DownBlock2D", *("AttnDownBlock2D",) * 3),
        up_block_types=(*("AttnUpBlock2D",) * 3, "UpBlock2D"),
        block_out_channels=(224, 448, 672, 896),
    ),
    "UNet2DConditionModel": dict(
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        block_out_channels=(320, 640, 1280, 1280),
    ),
}


def network(
    config: Mapping[str, Any], schedule: Discrete | None = None, *, name: str = "config.json"
) -> UNet2DModel | UNet2DConditionModel:
    """The network that a published config says.

    Args:
        config: what ``config.json`` of diffusers holds.
        schedule: the noise levels of its steps, as :func:`scorelab.pretrained.scheduler.read` gives them.
        name: of the file, for messages.

    Raises:
        WeightsError: another class, a field that the networks here have not, or a value that they do not know.
    """
    kind = _CLASSES.get(str(config.get("_class_name")))
    if kind is None:
        raise WeightsError(f"{name}: _class_name = {config.get('_class_name')!r}: expected {' or '.join(_CLASSES)}")
    if config.get("addition_embed_type") == "text_time":
        raise WeightsError(
            f"{name}: addition_embed_type = 'text_time', a U-Net of SDXL: expected None, as in Stable Diffusion 1.x and 2.x"
        )
    given = fields.read(config, kind, name=name, without=("schedule", "tokens"), usual=_USUAL, unused=_UNUSED)
    net = fields.built(lambda: kind(**_DEFAULTS[kind.__name__] | given, schedule=schedule), name)
    inside = net.each("transformer_layers_per_block") if isinstance(net, UNet2DConditionModel) else (1,) * net.levels
    blocks = sum((2 * layers + 1) * each for layers, each in zip(net.each("layers_per_block"), inside, strict=True))
    fields.require_size(name, blocks=blocks)
    # The rest is found where it is called, such as groups that do not divide the channels.
    fields.built(lambda: shapes(net), name)
    return net


def shapes(net: UNet2DModel | UNet2DConditionModel) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters by their places in the tree, found without computing anything."""
    return dict(_shapes(net))  # pyright: ignore[reportArgumentType]: a module can be hashed


@functools.lru_cache(maxsize=16)
def _shapes(net: UNet2DModel | UNet2DConditionModel) -> dict[str, tuple[int, ...]]:
    """Of equal networks once: a large one takes seconds."""
    side = 2 ** (len(net.block_out_channels) - 1)
    image = jax.ShapeDtypeStruct((1, side, side, net.in_channels), jnp.float32)
    return trees.shapes(net, image, jax.ShapeDtypeStruct((1,), jnp.float32))


# Of the layers that are neither norm, matrix nor convolution, by their published names.
_OTHER = {"class_embedding.weight": ("class_embedding", "embedding"), "time_proj.weight": ("time_proj", "weight")}


def params(
    net: UNet2DModel | UNet2DConditionModel,
    tensors: Mapping[str, np.ndarray],
    *,
    null_context: Any = None,
    name: str = "params",
) -> dict[str, Any]:
    """The parameters of a network, from published names ``down_blocks.0.resnets.0.conv1.weight`` to the tree of ``net.apply``.

    Args:
        net: the network that the weights are of.
        tensors: by their published names; those that the first versions of diffusers gave to attention are known as well.
        null_context: of a network under texts, the tokens of the empty one, ``(tokens, width)``; None for a tree without.
        name: of the file, for messages.

    Raises:
        WeightsError: a tensor that the network has not, or the other way round, or of another shape; each is named.
    """
    tensors, linear = dict(tensors), getattr(net, "use_linear_projection", False)
    # Frequencies were stored under two names.
    if "time_proj.W" in tensors and np.array_equal(tensors["time_proj.W"], tensors.get("time_proj.weight", ())):
        del tensors["time_proj.W"]

    def place(key: str) -> tuple[trees.Path, str]:
        return (_OTHER[key], "same") if key in _OTHER else unetblocks.place(key, linear=linear)

    tree = trees.params(shapes(net), tensors, place, name=name, network=type(net).__name__)
    return tree if null_context is None else with_null(net, tree, null_context)


def with_null(net: UNet2DModel | UNet2DConditionModel, tree: Mapping[str, Any], null_context: Any) -> dict[str, Any]:
    """The parameters with ``null_context (tokens, width)``, what the text encoder says of the empty text; ValueError for others."""
    if not isinstance(net, UNet2DConditionModel):
        raise ValueError(f"{NULL} for {type(net).__name__}: expected None, since it takes no text")
    wanted, found = (net.tokens, net.cross_attention_dim), np.shape(null_context)
    finite = np.all(np.isfinite(np.asarray(null_context, np.float32))) if found == wanted else False
    if not finite:
        raise ValueError(f"{NULL} has shape {found}: expected finite numbers of shape {wanted}")
    return {"params": {**tree["params"], NULL: np.asarray(null_context)}}


def published(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The other direction of :func:`params`: the tensors by their published names, without ``null_context``."""
    own = {top: part for top, part in tree["params"].items() if top != NULL}
    names = {path: key for key, path in _OTHER.items()}
    linear = any(np.ndim(part["proj_in"]["kernel"]) == 2 for part in own.values() if "proj_in" in part)
    key = lambda path: (names[path], "same") if path in names else unetblocks.key(path, linear=linear)
    return trees.published({"params": own}, key)


def model(
    folder: Folder,
    process: LinearGaussian | None = None,
    *,
    scheduler: Mapping[str, Any] | None = None,
    null_context: Any = None,
) -> BoundDenoiser:
    r"""The denoised mean of a converted folder of diffusers; parameters stay on the host until used.

    What it was trained with is the noise of its scheduler: :class:`~scorelab.schedules.Discrete` levels, or
    :class:`~scorelab.schedules.VE` for a network that is told the noise level, whose images have values in [0, 1]. The network
    answers under other processes as well, such as :class:`~scorelab.schedules.EDM`; it is asked by :math:`\sigma/\alpha`.

    Args:
        folder: that :func:`scorelab.pretrained.convert` wrote.
        process: of the model; None for the noise of its scheduler.
        scheduler: its ``scheduler_config.json``; None for what the folder has of it.
        null_context: of a network under texts, see :func:`params`.

    Raises:
        WeightsError: weights of another kind, of another network than the folder says, or no scheduler.
    """
    name = shown(folder.path)
    config = folder.network("diffusers")
    said = folder.config.get("scheduler") if scheduler is None else scheduler
    if not isinstance(said, Mapping):
        raise WeightsError(f"{name}: no scheduler: expected the content of its scheduler_config.json")
    noise = schedulers.read(said, name=f"{name}: scheduler")
    discrete = noise.schedule if isinstance(noise.schedule, Discrete) else None
    net = network(config, discrete, name=name)
    by_level = net.time_embedding_type == "fourier"
    if by_level != isinstance(noise.schedule, VE) or (by_level and noise.predict != "eps"):
        raise WeightsError(
            f"{name}: time_embedding_type = {net.time_embedding_type!r} with scheduler {said.get('_class_name')!r}: expected "
            f"{'ScoreSdeVeScheduler' if by_level else 'one of betas'}"
        )
    tree = params(net, folder.tensors(), null_context=null_context, name=name)
    process = Gaussian(schedule=noise.schedule) if process is None else process
    return Denoiser(net=net, process=process, predict=noise.predict, data_std=1.0).bind(tree)
