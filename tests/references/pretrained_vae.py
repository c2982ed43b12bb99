"""Write ``pretrained_vae.npz``, tiny autoencoders of latent diffusion: ``python tests/references/pretrained_vae.py``.

The oracle is ``AutoencoderKL`` of diffusers (Apache-2.0; made with diffusers 0.42.1 and torch 2.14 on a CPU), in float64. Weights
and directions are drawn, not stored: uniform numbers of NumPy's PCG64 by their published names; a hash says whether they are the
same.
"""

import json
import sys
from pathlib import Path

import diffusers
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pretrained"))
from drawn_weights import digest, drawn, keys_digest

FILE = Path(__file__).resolve().with_suffix(".npz")
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
CASES = {
    # As of Stable Diffusion 1 and 2; widths go up and stay.
    "sd": dict(
        down_block_types=[DOWN] * 3, up_block_types=[UP] * 3, block_out_channels=[16, 32, 32], norm_num_groups=8,
        sample_size=32,
    ),
    # As of later ones: more channels, a shift, no convolutions between.
    "sd3": dict(
        down_block_types=[DOWN] * 2, up_block_types=[UP] * 2, block_out_channels=[16, 32], latent_channels=6, norm_num_groups=4,
        sample_size=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
        in_channels=1, out_channels=1, mid_block_add_attention=False, layers_per_block=2,
    ),
}  # fmt: skip
# Of latents that are taken apart.
SIDES = {"sd": (14, 9), "sd3": (13, 8)}
LEVELS = dict(
    down_block_types=[DOWN] * 4, up_block_types=[UP] * 4, block_out_channels=[128, 256, 512, 512], layers_per_block=2,
    sample_size=512,
)  # fmt: skip
PUBLISHED = {"sd": LEVELS, "sd3": LEVELS | dict(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)}


def listed(build, config):
    """Of a network at its published size: the arguments, the parameters, and a hash of names and shapes."""
    with torch.device("meta"):
        state = build(**config).state_dict()
    numbers = sum(value.numel() for value in state.values())
    return np.array(json.dumps(dict(config=config, numbers=numbers, sha256=keys_digest(state))))


def differentiated(net, ask, given, cotangent, directions):
    """A result, its gradient to the input, and that to every tensor along its direction."""
    given = torch.tensor(given, requires_grad=True)
    net.zero_grad()
    result = ask(given)
    result.backward(torch.tensor(cotangent))
    along = lambda name, p: 0.0 if p.grad is None else float((p.grad * torch.tensor(directions[name])).sum())
    return result.detach(), given.grad, np.array([along(name, p) for name, p in net.named_parameters()])


def main():
    torch.set_default_dtype(torch.float64)
    out = dict(cases=np.array(list(CASES)), versions=np.array([torch.__version__, np.__version__, diffusers.__version__]))
    out |= {f"published/{name}": listed(diffusers.AutoencoderKL, config) for name, config in PUBLISHED.items()}
    rng = np.random.default_rng(8)
    last = lambda value: np.moveaxis(np.asarray(value), 1, -1)
    for case, config in CASES.items():
        net = diffusers.AutoencoderKL(**config).double().eval()
        shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
        assert [name for name, _ in net.named_parameters()] == list(shapes)
        weights, directions = drawn(shapes, 7), drawn(shapes, 9)
        net.load_state_dict({name: torch.tensor(value).double() for name, value in weights.items()})
        channels, colours = net.config.latent_channels, net.config.in_channels
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        image, z = rng.uniform(-1, 1, (2, colours, 4 * factor, 4 * factor)), rng.standard_normal((2, channels, 4, 4))
        info = dict(config=config, shapes=shapes, sha256=digest(weights))
        out |= {f"{case}/info": np.array(json.dumps(info)), f"{case}/image": last(image), f"{case}/z": last(z)}
        # Mean and logarithm of the variance; and the image of latents as they are stored, unscaled.
        for part, given, like, ask in (
            ("moments", image, (2, 2 * channels, 4, 4), lambda x: net.encode(x).latent_dist.parameters),
            ("decoded", z, image.shape, lambda z: net.decode(z).sample),
        ):
            cotangent = rng.standard_normal(like)
            result, gradient, slopes = differentiated(net, ask, given, cotangent, directions)
            arrays = {"": result, "_cotangent": cotangent, "_gradient": gradient}
            out |= {f"{case}/{part}{name}": last(value) for name, value in arrays.items()} | {f"{case}/{part}_slopes": slopes}
        # Tiles of 8 latents every 6: along the axes 8, 8 and 2 of 14, 8 and 3 of 9; and 8, 7 and 1 of 13.
        net.enable_tiling()
        assert net.tile_latent_min_size == 8
        h, w = SIDES[case]
        z, image = rng.standard_normal((1, channels, h, w)), rng.uniform(-1, 1, (1, colours, h * factor, w * factor))
        with torch.no_grad():
            decoded, moments = net.decode(torch.tensor(z)).sample, net.encode(torch.tensor(image)).latent_dist.parameters
        arrays = dict(large_z=z, large_decoded=decoded, large_image=image, large_moments=moments)
        out |= {f"{case}/{name}": last(value) for name, value in arrays.items()}
    np.savez_compressed(FILE, **out)


if __name__ == "__main__":
    main()
