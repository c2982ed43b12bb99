"""Networks: flax linen modules called as ``net(x, c_noise, cond=None, *, estimate=None, train=False)``."""

from scorelab.models.nets.conditions import Augmentation, Composite, Condition, Image, Label, Member, Numbers, Sequence, Vector
from scorelab.models.nets.dit import DiT
from scorelab.models.nets.layers import Conv, GroupNorm
from scorelab.models.nets.mlp import MLP
from scorelab.models.nets.transformer import Transformer
from scorelab.models.nets.unet import UNet

__all__ = [
    "MLP",
    "Augmentation",
    "Composite",
    "Condition",
    "Conv",
    "DiT",
    "GroupNorm",
    "Image",
    "Label",
    "Member",
    "Numbers",
    "Sequence",
    "Transformer",
    "UNet",
    "Vector",
]
