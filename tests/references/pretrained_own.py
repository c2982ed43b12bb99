"""Write ``pretrained_own.npz``: our networks in torch at drawn weights, alone and under adapters of PEFT.

    python tests/references/pretrained_own.py

It needs torch, safetensors and peft (0.19). The networks are those of ``experiments/torch_networks.py``, in float64, with weights
that ``weights`` draws for the names and shapes of their states. Stored are the configs as ``scorelab.pretrained.own.export`` writes
them, inputs, outputs, gradients, and the files that PEFT saves of adapters with drawn factors, with the outputs under them.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
EDM = {"type": "Gaussian", "schedule": {"type": "EDM", "sigma_min": 0.002, "sigma_max": 80.0}}
DENOISER = {"predict": "edm", "data_std": 0.5, "self_condition": False}
CASES = {
    "unet": dict(
        network=dict(type="UNet", channels=[16, 32], blocks=1, attention=[False, True], heads=2, num_classes=3),
        event=[7, 7, 2],
        targets=r".*(qkv|film|conv1|skip|down1)",
        options=dict(r=3, lora_alpha=6),
    ),
    "dit": dict(
        network=dict(type="DiT", patch=3, width=32, depth=2, heads=4, mlp_ratio=2, num_classes=0),
        event=[8, 7, 1],
        targets=r".*block\d\.(qkv|out|mlp_in|mlp_out)",
        options=dict(r=4, lora_alpha=3, use_rslora=True, rank_pattern={"block1.qkv": 2}, alpha_pattern={"mlp_in": 10}),
    ),
}


def weights(shapes, seed):
    """Drawn numbers of every shape, those of kernels small enough that activations stay of the order of one."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in sorted(shapes.items()):
        uniform = 2 * rng.random(tuple(shape)) - 1
        scale = (3 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.3
        found[name] = (scale * uniform + (1 if "norm" in name and name.endswith("weight") else 0)).astype(np.float32)
    return found


def inputs(case):
    """Noised points, noise levels, labels and a cotangent."""
    rng = np.random.default_rng(3)
    shape = (3, *case["event"])
    sigma = np.array([0.05, 0.7, 9.0])
    label = rng.integers(0, 3, 3) if case["network"]["num_classes"] else None
    return rng.normal(size=shape) * (0.25 + sigma**2)[:, None, None, None] ** 0.5, sigma, label, rng.normal(size=shape)


def main():
    import peft
    import safetensors.torch
    import torch

    sys.path.insert(0, str(ROOT / "experiments"))
    import torch_networks

    stored = {}
    for name, case in CASES.items():
        config = dict(kind="scorelab", network=case["network"], denoiser=DENOISER, process=EDM, event=case["event"])
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            kind = {"UNet": torch_networks.UNet, "DiT": torch_networks.DiT}[case["network"]["type"]]
            blank = kind(**{k: v for k, v in case["network"].items() if k != "type"}, event=case["event"])
            shapes = {key: list(value.shape) for key, value in blank.state_dict().items()}
            tensors = {key: torch.from_numpy(value) for key, value in weights(shapes, 1).items()}
            safetensors.torch.save_file(tensors, place / "model.safetensors")
            (place / "config.json").write_text(json.dumps(config))
            denoiser = torch_networks.load(place).double()

            y, sigma, label, cotangent = inputs(case)
            turned = lambda x: torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))
            asked = turned(y).requires_grad_(True)
            kind = None if label is None else torch.from_numpy(label)
            ask = lambda: denoiser(asked, torch.ones(3).double(), torch.from_numpy(sigma), kind)
            out = ask()
            (gradient,) = torch.autograd.grad(out, asked, turned(cotangent))
            stored[f"{name}/config"], stored[f"{name}/shapes"] = json.dumps(config), json.dumps(shapes)
            back = lambda x: np.moveaxis(x.detach().numpy(), 1, -1)
            stored[f"{name}/denoised"], stored[f"{name}/gradient"] = back(out), back(gradient)

            lora = peft.LoraConfig(target_modules=case["targets"], **case["options"])
            wrapped = peft.get_peft_model(denoiser.net, lora)
            factors = {key: value.shape for key, value in wrapped.state_dict().items() if "lora_" in key}
            drawn = weights(factors, 2)
            found = wrapped.load_state_dict({key: torch.from_numpy(value) for key, value in drawn.items()}, strict=False)
            assert not found.unexpected_keys
            wrapped.save_pretrained(place / "adapter")
            denoiser.net = wrapped.base_model.model
            stored[f"{name}/adapted"] = back(ask())
            assert np.abs(stored[f"{name}/adapted"] - stored[f"{name}/denoised"]).max() > 0.01
            saved = safetensors.torch.load_file(place / "adapter" / "adapter_model.safetensors")
            for key, value in saved.items():
                stored[f"{name}/adapter/{key}"] = value.float().numpy()
            stated = json.loads((place / "adapter" / "adapter_config.json").read_text())
            stored[f"{name}/adapter_config"] = json.dumps(stated)
    np.savez_compressed(
        Path(__file__).with_suffix(".npz"),
        versions=json.dumps(dict(torch=torch.__version__, peft=peft.__version__, numpy=np.__version__)),
        command="python tests/references/pretrained_own.py",
        **stored,
    )


if __name__ == "__main__":
    sys.exit(main())
