"""Write ``pretrained_dit.npz``, the transformer of DiT on tiny configurations: ``python tests/references/pretrained_dit.py``.

The oracle is ``DiTTransformer2DModel`` of diffusers (Apache-2.0; made with diffusers 0.42.1 and torch 2.14 on a CPU). It computes
waves, positions and the levels of the sampler in float32 whatever its input is, and is widened here. Weights and directions are
drawn, not stored: uniform numbers of NumPy's PCG64 by their published names; a hash says whether they are the same.
"""

import json
import sys
from pathlib import Path

import diffusers
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pretrained"))
from drawn_weights import digest, drawn, keys_digest

# Of guidance, as in the published pipeline.
SCALE = 4.0
FILE = Path(__file__).resolve().with_suffix(".npz")
TINY = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, sample_size=8, num_embeds_ada_norm=10)
CASES = {
    # As published, but that each block has another embedding.
    "each": TINY | dict(out_channels=8),
    # One embedding in all blocks; everything else that a config may say.
    "one": TINY | dict(num_layers=3, patch_size=4, attention_bias=False, activation_fn="gelu", norm_eps=1e-6, in_channels=3),
}

PUBLISHED = {"DiT-XL-2-256": dict(out_channels=8), "DiT-XL-2-512": dict(out_channels=8, sample_size=64)}


def listed(build, config):
    """Of a network at its published size: the arguments, the parameters, and a hash of names and shapes."""
    with torch.device("meta"):
        state = build(**config).state_dict()
    numbers = sum(value.numel() for value in state.values())
    return np.array(json.dumps(dict(config=config, numbers=numbers, sha256=keys_digest(state))))


def sampled(net, x, labels):
    """Ten steps of DDIM under guidance, as the published pipeline makes them."""
    channels, none = net.config.in_channels, torch.full_like(labels, net.config.num_embeds_ada_norm)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    for t in scheduler.timesteps:
        time = t.expand(2 * len(x))
        eps = net(torch.cat([x, x]), time, torch.cat([labels, none])).sample[:, :channels]
        with_label, without = eps.chunk(2)
        x = scheduler.step(without + SCALE * (with_label - without), t, x).prev_sample
    return x, scheduler.timesteps


def main():
    torch.set_default_dtype(torch.float64)
    torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double
    out = dict(cases=np.array(list(CASES)), versions=np.array([torch.__version__, np.__version__, diffusers.__version__]))
    out |= {f"published/{name}": listed(diffusers.DiTTransformer2DModel, config) for name, config in PUBLISHED.items()}
    rng = np.random.default_rng(8)
    for case, config in CASES.items():
        net = diffusers.DiTTransformer2DModel(**config).double().eval()
        shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
        weights = drawn(shapes, 7)
        if case == "one":
            for name in weights:
                if tail := name.partition(".norm1.emb.")[2]:
                    weights[name] = weights[f"transformer_blocks.0.norm1.emb.{tail}"]
        net.load_state_dict({name: torch.tensor(value).double() for name, value in weights.items()})
        channels, classes = net.config.in_channels, net.config.num_embeds_ada_norm
        x, wide = (rng.standard_normal((3, channels, side, side)) for side in (8, 12))
        t, labels = np.array([3.0, 250.5, 999.0]), np.array([4, classes, 0])
        cotangent = rng.standard_normal((3, net.out_channels, 8, 8))
        # Of the channels that are the prediction; the rest is a variance.
        cotangent[:, channels:] = 0
        ask = lambda x: net(x, torch.tensor(t), torch.tensor(labels)).sample
        given = torch.tensor(x, requires_grad=True)
        result = ask(given)
        result.backward(torch.tensor(cotangent))
        directions = drawn(shapes, 9)
        with torch.no_grad():
            larger = ask(torch.tensor(wide))
            samples, timesteps = sampled(net, torch.tensor(x), torch.tensor(labels % classes))
            for block in net.transformer_blocks:
                block.norm1.emb.time_proj.downscale_freq_shift = 0
            original = ask(torch.tensor(x))
        last = lambda value: np.moveaxis(np.asarray(value)[:, :channels], 1, -1)
        info = dict(config=config, shapes=shapes, sha256=digest(weights))
        out |= {
            f"{case}/info": np.array(json.dumps(info)),
            f"{case}/x": last(x),
            f"{case}/t": t,
            f"{case}/labels": labels,
            f"{case}/cotangent": last(cotangent),
            f"{case}/output": last(result.detach()),
            f"{case}/gradient": last(given.grad),
            # Of every tensor, along its direction.
            f"{case}/slopes": np.array([float((p.grad * torch.tensor(directions[n])).sum()) for n, p in net.named_parameters()]),
            f"{case}/larger_x": last(wide),
            f"{case}/larger": last(larger),
            f"{case}/freq_shift_0": last(original),
            f"{case}/sampled": last(samples),
            f"{case}/timesteps": np.asarray(timesteps),
        }
        assert [name for name, _ in net.named_parameters()] == list(shapes)
    np.savez_compressed(FILE, **out)


if __name__ == "__main__":
    main()
