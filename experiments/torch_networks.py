"""The U-Net and the DiT of scorelab in torch, which read what ``scorelab.pretrained.own.export`` writes.

    from torch_networks import load

    denoiser = load("exported")                 # a torch.nn.Module
    x = denoiser(y, alpha, sigma, label)        # E[x0 | y] at y = alpha x0 + sigma noise, images (batch, channels, height, width)

It needs torch and safetensors, and nothing of scorelab. Networks of images with no condition or with classes are here, in float32
or float64; dropout is for training and left out.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


class Embedding(nn.Module):
    """silu(W_2 silu(W_1 waves(c)) + row of the label), the last row for none."""

    def __init__(self, width, num_classes):
        super().__init__()
        self.num_classes = num_classes
        if num_classes:
            self.label = nn.Embedding(num_classes + 1, width)
        self.features = 2 * max(8, width // 4)
        self.hidden, self.out = nn.Linear(self.features, width), nn.Linear(width, width)

    def forward(self, c, label):
        half = self.features // 2
        steps = torch.arange(half, dtype=torch.float64) / (half - 1)
        # Float32 numbers, as in the network that was trained.
        frequencies = (0.25 * 256.0**steps).float().to(c)
        angles = c[:, None] * frequencies
        h = self.out(F.silu(self.hidden(torch.cat([angles.cos(), angles.sin()], -1))))
        if self.num_classes:
            label = torch.full((len(c),), self.num_classes, device=c.device) if label is None else label
            h = h + self.label(label)
        elif label is not None:
            raise ValueError("label was given to a network without classes")
        return F.silu(h)


def conv(features_in, features, kernel=3):
    """Convolution at stride 1 with zeros around, so that the sides stay."""
    return nn.Conv2d(features_in, features, kernel, padding=kernel // 2)


def halved(x, down):
    """Convolution of size 3 at stride 2; of an odd number of zeros around, the larger part comes last."""
    pads = []
    for side in (x.shape[3], x.shape[2]):
        total = max((-(-side // 2) - 1) * 2 + 3 - side, 0)
        pads += [total // 2, total - total // 2]
    return down(F.pad(x, pads))


def group_norm(channels):
    groups = max(g for g in range(1, min(32, max(1, channels // 4)) + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-5)


def attend(q, k, v, heads):
    split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2)


class ResBlock(nn.Module):
    """skip(x) + conv2(silu(film(norm2(conv1(silu(norm1(x)))))))."""

    def __init__(self, features_in, features, embedding):
        super().__init__()
        self.film = nn.Linear(embedding, 2 * features)
        self.norm1, self.conv1 = group_norm(features_in), conv(features_in, features)
        self.norm2, self.conv2 = group_norm(features), conv(features, features)
        self.skip = conv(features_in, features, 1) if features_in != features else None

    def forward(self, x, embedding):
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, 1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return (x if self.skip is None else self.skip(x)) + h


class AttentionBlock(nn.Module):
    """x + out(attention(qkv(norm(x)))) over pixels."""

    def __init__(self, channels, heads):
        super().__init__()
        self.norm, self.qkv, self.out = group_norm(channels), nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.heads = heads

    def forward(self, x):
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        h = self.out(attend(*self.qkv(pixels).chunk(3, -1), self.heads))
        return x + h.transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """``scorelab.models.nets.UNet`` of images."""

    def __init__(self, *, channels=(32, 64, 64), blocks=1, attention=None, heads=2, num_classes=0, event, **unused):
        super().__init__()
        levels, width = len(channels), 4 * channels[0]
        attends = tuple(attention) or (False,) * levels if attention is not None else (*[False] * (levels - 1), True)
        self.levels, self.blocks, self.attends = list(channels), blocks, attends
        self.embedding = Embedding(width, num_classes)
        add = self.add_module

        def block(name, features_in, features, used):
            add(name, ResBlock(features_in, features, width))
            if used:
                add(f"{name}_attention", AttentionBlock(features, heads))

        add("in", conv(event[-1], channels[0]))
        skips, last = [channels[0]], channels[0]
        for i, features in enumerate(channels):
            if i:
                add(f"down{i}", nn.Conv2d(last, features, 3, stride=2))
                last = features
                skips.append(last)
            for j in range(blocks):
                block(f"down{i}_{j}", last, features, attends[i])
                last = features
                skips.append(last)
        block("middle_0", last, last, attends[-1])
        block("middle_1", last, last, False)
        for i, features in reversed(list(enumerate(channels))):
            if i < levels - 1:
                add(f"up{i}", conv(last, features))
                last = features
            for j in range(blocks + 1):
                block(f"up{i}_{j}", last + skips.pop(), features, attends[i])
                last = features
        self.norm = group_norm(channels[0])
        add("out", conv(channels[0], event[-1]))

    def forward(self, x, c, label=None):
        embedding = self.embedding(c, label)
        part = lambda name: getattr(self, name)

        def block(name, h):
            h = part(name)(h, embedding)
            return part(f"{name}_attention")(h) if f"{name}_attention" in self._modules else h

        h = part("in")(x)
        skips = [h]
        for i in range(len(self.levels)):
            if i:
                h = halved(h, part(f"down{i}"))
                skips.append(h)
            for j in range(self.blocks):
                h = block(f"down{i}_{j}", h)
                skips.append(h)
        h = block("middle_1", block("middle_0", h))
        for i in reversed(range(len(self.levels))):
            if i < len(self.levels) - 1:
                height, width = skips[-1].shape[2:]
                h = part(f"up{i}")(F.interpolate(h, scale_factor=2, mode="nearest")[:, :, :height, :width])
            for j in range(self.blocks + 1):
                h = block(f"up{i}_{j}", torch.cat([h, skips.pop()], 1))
        return part("out")(F.silu(self.norm(h)))


class Block(nn.Module):
    """adaLN-zero block of a transformer."""

    def __init__(self, width, heads, ratio):
        super().__init__()
        self.modulation, self.qkv, self.out = nn.Linear(width, 6 * width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out, self.heads = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width), heads

    def forward(self, x, embedding):
        s1, b1, a1, s2, b2, a2 = self.modulation(embedding)[:, None].chunk(6, -1)
        x = x + a1 * self.out(attend(*self.qkv(modulate(x, s1, b1)).chunk(3, -1), self.heads))
        return x + a2 * self.mlp_out(F.gelu(self.mlp_in(modulate(x, s2, b2)), approximate="tanh"))


def modulate(x, scale, shift):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class DiT(nn.Module):
    """``scorelab.models.nets.DiT``."""

    def __init__(self, *, patch=7, width=128, depth=3, heads=4, mlp_ratio=4, num_classes=0, event, **unused):
        super().__init__()
        self.patch, self.width, self.depth = patch, width, depth
        self.embedding = Embedding(width, num_classes)
        self.add_module("in", nn.Linear(patch**2 * event[-1], width))
        for i in range(depth):
            self.add_module(f"block{i}", Block(width, heads, mlp_ratio))
        self.modulation, self.out = nn.Linear(width, 2 * width), nn.Linear(width, patch**2 * event[-1])

    def forward(self, x, c, label=None):
        height, width = x.shape[2:]
        p = self.patch
        image = F.pad(x, (0, -width % p, 0, -height % p))
        rows, columns = image.shape[2] // p, image.shape[3] // p
        cut = image.unflatten(3, (columns, p)).unflatten(2, (rows, p))  # b c h p w q
        tokens = getattr(self, "in")(cut.permute(0, 2, 4, 3, 5, 1).reshape(len(x), rows * columns, -1))
        tokens = tokens + positions((rows, columns), self.width).to(tokens)
        embedding = self.embedding(c, label)
        for i in range(self.depth):
            tokens = getattr(self, f"block{i}")(tokens, embedding)
        scale, shift = self.modulation(embedding)[:, None].chunk(2, -1)
        out = self.out(modulate(tokens, scale, shift)).reshape(len(x), rows, columns, p, p, -1)
        return out.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, rows * p, columns * p)[:, :, :height, :width]


def positions(sides, width):
    """Sines and cosines of the place of a token, half of the width for each side."""
    count = width // 4
    frequencies = 10_000.0 ** -(torch.arange(count, dtype=torch.float64) / count)
    places = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in sides), indexing="ij")
    waves = [wave(p.reshape(-1, 1) * frequencies) for p in places for wave in (torch.sin, torch.cos)]
    # Float32 numbers, as in the network that was trained.
    return torch.cat(waves, 1).float()


class Denoiser(nn.Module):
    """E[x0 | y] at ``y = alpha x0 + sigma noise``, from a network of the scaled input and of log(sigma / alpha) / 4."""

    def __init__(self, net, predict, data_std):
        super().__init__()
        self.net, self.predict, self.data_std = net, predict, data_std

    def forward(self, y, alpha, sigma, label=None):
        alpha, sigma = (torch.as_tensor(value, dtype=y.dtype, device=y.device).expand(len(y)) for value in (alpha, sigma))
        c = (torch.log(sigma / alpha) / 4).clip(-4, 4)
        a, s, std = alpha[:, None, None, None], sigma[:, None, None, None], self.data_std
        variance = (a * std) ** 2 + s**2
        output = self.net(y / variance.sqrt(), c, label)
        square = a**2 + s**2
        p, q = {
            "eps": lambda: (1 / a, -s / a),
            "x0": lambda: (0.0, 1.0),
            "v": lambda: (a / square, -s / square.sqrt()),
            "flow": lambda: (1 / (a + s), -s / (a + s)),
            "edm": lambda: (a * std**2 / variance, s * std / variance.sqrt()),
        }[self.predict]()
        return p * y + q * output


def load(folder):
    """The denoiser of an exported folder."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    network, denoiser = dict(config["network"]), config["denoiser"]
    kind = network.pop("type")
    condition = network.pop("condition", None)
    if condition is not None:
        if condition["type"] != "Label":
            raise ValueError(f"{folder}: a network with the condition {condition['type']}: expected none or classes")
        network["num_classes"] = condition["num_classes"]
    told = denoiser["self_condition"] or denoiser["predict"] == "consistency"
    if kind not in ("UNet", "DiT") or len(config["event"]) != 3 or told:
        raise ValueError(f"{folder}: {kind} of {config['event']} with {denoiser}: expected a UNet or a DiT of images")
    net = {"UNet": UNet, "DiT": DiT}[kind](**network, event=config["event"])
    # Every tensor is used, and every parameter filled.
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return Denoiser(net.eval(), denoiser["predict"], denoiser["data_std"])
