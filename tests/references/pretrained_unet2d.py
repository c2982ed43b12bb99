"""Write ``pretrained_unet2d.npz``, the U-Nets of diffusers on tiny configurations.

By ``python tests/references/pretrained_unet2d.py``.

The oracle is diffusers (Apache-2.0; made with 0.42.1, torch 2.14.0, CPU), in float64: it computes the embedding of time in float32
whatever its type, which is widened here. Weights are drawn, not stored (``drawn.py``); a hash says whether they are the same.

Each case of a network has its config, times (indices, or noise levels for ``ncsnpp``), inputs, output, and the gradient of the
output's product with a cotangent: to the input, and to the weights along a drawn direction. Beside these are the rounded levels of
schedulers, the counts and names of tensors at published sizes, and runs of ten steps of two schedulers. Images are channels last.
"""

import json
import math
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.models import embeddings
from diffusers.schedulers import scheduling_ddpm
from drawn import digest, drawn, listing

FILE = Path(__file__).resolve().parent / "pretrained_unet2d.npz"
DDPM = dict(sample_size=16, norm_num_groups=8, layers_per_block=1, block_out_channels=[32, 64])
CASES = {
    # As google/ddpm-*: zeros at the right and the bottom, sines first, one head.
    "ddpm": DDPM
    | dict(
        down_block_types=["DownBlock2D", "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", "UpBlock2D"], downsample_padding=0,
        norm_eps=1e-6, flip_sin_to_cos=False, freq_shift=1, attention_head_dim=None,
    ),
    # As ADM: the embedding scales and shifts, blocks resample, classes.
    "adm": DDPM
    | dict(
        down_block_types=["ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"], block_out_channels=[32, 32, 64],
        up_block_types=["AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"], downsample_type="resnet",
        upsample_type="resnet", resnet_time_scale_shift="scale_shift", attention_head_dim=8, num_class_embeds=5, out_channels=6,
    ),
    # What is left: other norms and widths, an input from 0 to 1, sums divided.
    "other": DDPM
    | dict(
        down_block_types=["UNetResAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "UNetResAttnUpBlock2D"],
        center_input_sample=True, resnet_time_scale_shift="scale_shift", attn_norm_num_groups=4, time_embedding_dim=48,
        mid_block_scale_factor=1.5, attention_head_dim=12,
    ),
    "bare": DDPM
    | dict(
        down_block_types=["AttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "AttnUpBlock2D"], add_attention=False,
        attention_head_dim=16, layers_per_block=2,
    ),
    # As google/ncsnpp-*: skip images, told the noise level.
    "ncsnpp": DDPM
    | dict(
        down_block_types=["SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"], block_out_channels=[32, 64, 32],
        up_block_types=["SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"], norm_num_groups=None, norm_eps=1e-6,
        mid_block_scale_factor=math.sqrt(2), time_embedding_type="fourier", attention_head_dim=None,
    ),
    "sd1": DDPM
    | dict(
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        cross_attention_dim=24, attention_head_dim=4,
    ),
    "sd2": DDPM
    | dict(
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"], block_out_channels=[32, 32, 64],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"], cross_attention_dim=16,
        attention_head_dim=[2, 4, 8], use_linear_projection=True, transformer_layers_per_block=[1, 2, 1], upcast_attention=True,
    ),
}  # fmt: skip
SCHEDULES = {
    "linear": dict(),
    "short": dict(num_train_timesteps=37, beta_start=0.001, beta_end=0.3),
    "stable_diffusion": dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "cosine": dict(beta_schedule="squaredcos_cap_v2"),
    "trained": dict(trained_betas=[0.01, 0.02, 0.05, 0.1, 0.3]),
}
SIX = [128, 128, 256, 256, 512, 512]
PUBLISHED = {
    "ddpm-cifar10-32": dict(
        _class_name="UNet2DModel", block_out_channels=[128, 256, 256, 256], downsample_padding=0, freq_shift=1,
        down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"], flip_sin_to_cos=False,
        up_block_types=["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"], norm_eps=1e-6, attention_head_dim=None,
    ),
    "ddpm-celebahq-256": dict(
        _class_name="UNet2DModel", block_out_channels=SIX, downsample_padding=0, freq_shift=1, flip_sin_to_cos=False,
        down_block_types=[*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"], norm_eps=1e-6, attention_head_dim=None,
        up_block_types=["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
    ),
    "ncsnpp-256": dict(
        _class_name="UNet2DModel", block_out_channels=[128, 128, *[256] * 5], time_embedding_type="fourier", norm_num_groups=None,
        down_block_types=[*["SkipDownBlock2D"] * 4, "AttnSkipDownBlock2D", *["SkipDownBlock2D"] * 2], attention_head_dim=None,
        up_block_types=[*["SkipUpBlock2D"] * 2, "AttnSkipUpBlock2D", *["SkipUpBlock2D"] * 4],
        mid_block_scale_factor=math.sqrt(2), norm_eps=1e-6,
    ),
    "stable-diffusion-v1-5": dict(_class_name="UNet2DConditionModel", cross_attention_dim=768),
    "stable-diffusion-2-1": dict(
        _class_name="UNet2DConditionModel", cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True
    ),
}  # fmt: skip
STEPS = 10
SD = SCHEDULES["stable_diffusion"] | dict(set_alpha_to_one=False, steps_offset=1, clip_sample=False)
# The network of the case "ddpm" at a smaller side, a scheduler, and the options of its steps.
RUNS = {
    "ddim_eta0": ("DDIMScheduler", SD, dict(eta=0.0)),
    "ddim_eta1": ("DDIMScheduler", SD, dict(eta=1.0)),
    "ddim_v": ("DDIMScheduler", SD | dict(prediction_type="v_prediction"), dict(eta=0.0)),
    "ddpm_clipped": ("DDPMScheduler", dict(clip_sample=True), dict()),
    "ddpm_threshold": (
        "DDPMScheduler", dict(clip_sample=False, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.8), dict()
    ),
    "ddim_clipped": ("DDIMScheduler", dict(clip_sample=True), dict(eta=0.0, use_clipped_model_output=True)),
    "ddim_clipped_kept": ("DDIMScheduler", dict(clip_sample=True), dict(eta=0.0, use_clipped_model_output=False)),
}  # fmt: skip


def embedding(timesteps, embedding_dim, flip_sin_to_cos=False, downscale_freq_shift=1, scale=1, max_period=10000):
    """The embedding of diffusers, in float64."""
    half = embedding_dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float64) / (half - downscale_freq_shift))
    angles = scale * timesteps[:, None].double() * frequencies
    parts = [torch.sin(angles), torch.cos(angles)]
    return torch.cat(parts[::-1] if flip_sin_to_cos else parts, -1)


def last(value):
    """Channels last."""
    return np.moveaxis(value.detach().numpy(), 1, -1)


def built(config):
    """A network with drawn weights in float64, and what is said of it."""
    kind = diffusers.UNet2DConditionModel if "cross_attention_dim" in config else diffusers.UNet2DModel
    channels = {} if kind is diffusers.UNet2DModel else dict(in_channels=3, out_channels=3)
    config = channels | config
    net = kind(**config).double().eval()
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    weights = drawn(shapes)
    net.load_state_dict({name: torch.tensor(value).double() for name, value in weights.items()})
    # With every default, as it is written beside weights.
    config = json.loads(net.to_json_string())
    return net, dict(config=config, shapes=shapes, sha256=digest(weights))


def networks(out, rng):
    for case, config in CASES.items():
        net, info = built(config)
        # Frequencies are fixed in a published network, and no parameter.
        times = np.array([0.3, 40.0]) if case == "ncsnpp" else np.array([7, 812])
        x, cotangent = (rng.standard_normal((2, 3, 16, 16)) for _ in range(2))
        labels, context = rng.integers(config.get("num_class_embeds", 1), size=2), None
        given, more = torch.tensor(x, requires_grad=True), {}
        if "num_class_embeds" in config:
            more = dict(class_labels=torch.tensor(labels))
        if "cross_attention_dim" in config:
            context = rng.standard_normal((2, 77, config["cross_attention_dim"]))
            more = dict(encoder_hidden_states=torch.tensor(context))
        # The first half of twice the channels is the prediction.
        output = net(given, torch.tensor(times), **more).sample[:, :3]
        output.backward(torch.tensor(cotangent))
        direction = drawn(info["shapes"], seed=11)
        along = sum(
            float((value.grad * torch.tensor(direction[name])).sum())
            for name, value in net.named_parameters()
            if value.grad is not None
        )
        single = net.float()(torch.tensor(x).float(), torch.tensor(times), **{k: to_single(v) for k, v in more.items()}).sample[
            :, :3
        ]
        error = float((single - output).detach().abs().max() / output.detach().abs().max())
        out |= {
            f"{case}/info": np.array(json.dumps(info | dict(float32_difference=error))),
            f"{case}/times": times,
            f"{case}/x": last(torch.tensor(x)),
            f"{case}/cotangent": last(torch.tensor(cotangent)),
            f"{case}/output": last(output),
            f"{case}/gradient": last(given.grad),
            f"{case}/along": np.array(along),
        }
        if more:
            out[f"{case}/cond"] = labels if context is None else context
        print(case, "float32 differs by", error)


def to_single(value):
    return value.float() if value.is_floating_point() else value


def walked(net, kind, config, options, start, noise, dtype):
    """The states of a run, ``(steps + 1, 2, 8, 8, 3)``, and its times."""
    scheduler = getattr(diffusers, kind)(**config)
    scheduler.set_timesteps(STEPS)
    for name in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod", "one"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).to(dtype))
    x = torch.tensor(start).to(dtype)
    states = [x]
    for i, t in enumerate(scheduler.timesteps):
        drawn_now = torch.tensor(noise[i]).to(dtype)
        scheduling_ddpm.randn_tensor = lambda *_, now=drawn_now, **__: now
        own = dict(variance_noise=drawn_now) if options.get("eta") else {}
        with torch.no_grad():
            x = scheduler.step(net(x, t).sample, t, x, **options, **own).prev_sample
        states.append(x)
    return np.moveaxis(torch.stack(states).double().numpy(), 2, -1), scheduler.timesteps.tolist()


def runs(out, rng):
    net, single = built(CASES["ddpm"])[0], built(CASES["ddpm"])[0].float()
    start, noise = rng.standard_normal((2, 3, 8, 8)), rng.standard_normal((STEPS, 2, 3, 8, 8))
    out |= {"runs/start": last(torch.tensor(start)), "runs/noise": np.moveaxis(noise, 2, -1)}
    for case, (kind, config, options) in RUNS.items():
        states, times = walked(net, kind, config, options, start, noise, torch.float64)
        other, _ = walked(single, kind, config, options, start, noise, torch.float32)
        # At every time, of the largest number there.
        error = float(np.max(np.abs(other - states) / np.abs(states).max((1, 2, 3, 4), keepdims=True)))
        print(case, "float32 differs by", error)
        info = dict(config=dict(_class_name=kind, **config), options=options, timesteps=times, float32_difference=error)
        out[f"runs/{case}"], out[f"runs/{case}/info"] = states, np.array(json.dumps(info))


def main():
    out = dict(
        cases=np.array(list(CASES)),
        schedules=np.array(list(SCHEDULES)),
        published=np.array(list(PUBLISHED)),
        runs=np.array(list(RUNS)),
        versions=np.array([torch.__version__, np.__version__, diffusers.__version__]),
    )
    for name, config in SCHEDULES.items():
        out[f"schedule/{name}"] = diffusers.DDPMScheduler(**config).alphas_cumprod.numpy()
        out[f"schedule/{name}/config"] = np.array(json.dumps(dict(_class_name="DDPMScheduler", **config)))
    for name, config in PUBLISHED.items():
        with torch.device("meta"):
            net = getattr(diffusers, config["_class_name"])(**{k: v for k, v in config.items() if not k.startswith("_")})
        shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        config = json.loads(net.to_json_string())
        found = dict(config=config, numbers=sum(math.prod(s) for s in shapes.values()), tensors=len(shapes), sha256=listing(shapes))
        out[f"published/{name}"] = np.array(json.dumps(found))
        print(name, found["numbers"])
    embeddings.get_timestep_embedding = embedding
    rng = np.random.default_rng(8)
    networks(out, rng)
    runs(out, rng)
    np.savez_compressed(FILE, **out)


if __name__ == "__main__":
    main()
