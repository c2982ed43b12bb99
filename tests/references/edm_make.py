"""Write ``edm.npz``, the networks of EDM on tiny configurations: ``python tests/references/edm_make.py FOLDER``.

The oracle is nvidia-physicsnemo (Apache-2.0; made with 2.2.2, torch 2.13.0, CPU). ``FOLDER`` holds its unpacked wheel: its start-up
asks for libraries that these two networks do not use, so they are put aside here. Weights are drawn, not stored: uniform numbers of
NumPy's PCG64 by the names of the published files; a hash says whether they are the same.
"""

import dataclasses
import hashlib
import importlib.abc
import importlib.machinery
import json
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch

FILE = Path(__file__).resolve().parent / "edm.npz"
TINY = dict(img_resolution=16, in_channels=3, out_channels=3, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8])
NCSNPP = dict(embedding_type="fourier", encoder_type="residual", channel_mult_noise=2, resample_filter=[1, 3, 3, 1])
CASES = {
    "ddpmpp": ("SongUNet", TINY | dict(model_channels=32, label_dim=10, augment_dim=9)),
    "ncsnpp": ("SongUNet", TINY | NCSNPP | dict(model_channels=32, augment_dim=9)),
    "ncsnpp_three_levels": ("SongUNet", TINY | NCSNPP | dict(model_channels=16, channel_mult=[1, 2, 2], label_dim=3)),
    "adm": ("DhariwalUNet", TINY | dict(model_channels=64, channel_mult=[1, 2], attn_resolutions=[16, 8], label_dim=10)),
}


def oracle(folder):
    """The two classes, without the package around them."""

    def package(name):
        module = types.ModuleType(name)
        module.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = module
        return module

    class Module(torch.nn.Module):
        def __init__(self, meta=None):
            super().__init__()

    class Aside(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name, path, target=None):
            known = ("warp", "tensordict", "apex", "transformer_engine", "physicsnemo", "cuml", "cupy", "nvtx", "jaxtyping")
            return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in known else None

        def create_module(self, spec):
            module = MagicMock()
            module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
            return module

        def exec_module(self, module):
            pass

    for name in ("physicsnemo", "physicsnemo.models", "physicsnemo.models.diffusion_unets", "physicsnemo.nn.module"):
        package(name)
    core, nn = package("physicsnemo.core"), package("physicsnemo.nn")
    meta = dataclasses.make_dataclass("ModelMetaData", [("name", str, "")])
    core.Module, core.ModelMetaData = Module, meta
    sys.modules["physicsnemo.core.module"], sys.modules["physicsnemo.core.meta"] = core, core
    sys.meta_path.append(Aside())
    for module, names in dict(
        embedding_layers=["FourierEmbedding", "PositionalEmbedding"],
        conv_layers=["Conv2d"],
        fully_connected_layers=["Linear"],
        group_norm=["get_group_norm"],
        unet_layers=["UNetBlock"],
    ).items():
        for name in names:
            setattr(nn, name, getattr(importlib.import_module(f"physicsnemo.nn.module.{module}"), name))
    unets = "physicsnemo.models.diffusion_unets"
    return {
        "SongUNet": importlib.import_module(f"{unets}.song_unet").SongUNet,
        "DhariwalUNet": importlib.import_module(f"{unets}.dhariwal_unet").DhariwalUNet,
    }


def published(name):
    """The name of a tensor in a published file: there attention is part of its block."""
    return "model." + name.replace(".attn.norm.", ".norm2.").replace(".attn.", ".")


def drawn(shapes):
    """Float32 weights by name: norms about 1, the rest so that activations keep their size; filters are those of the network."""
    rng = np.random.default_rng(7)
    found = {}
    for name, shape in shapes.items():
        uniform = 2 * rng.random(shape) - 1
        if "norm" in name:
            uniform = (1 if name.endswith("weight") else 0) + 0.3 * uniform
        elif name.endswith("weight"):
            uniform = uniform * (3 / np.prod(shape[1:])) ** 0.5
        elif not name.endswith("freqs"):
            uniform = 0.3 * uniform
        found[name] = uniform.astype(np.float32)
    return found


def main():
    classes = oracle(Path(sys.argv[1]))
    torch.set_default_dtype(torch.float64)
    # The oracle computes frequencies and attention in float32 whatever its input is.
    narrow, torch.float32 = torch.float32, torch.float64
    out = dict(cases=np.array(list(CASES)), versions=np.array([torch.__version__, np.__version__, "nvidia-physicsnemo 2.2.2"]))
    rng = np.random.default_rng(8)
    for case, (kind, config) in CASES.items():
        # In evaluation its group norm divides by n - 1, which neither torch nor the published networks do; in training by n.
        net = classes[kind](**config, dropout=0.0).double().train()
        state = net.state_dict()
        # Frequencies that are no chance are in no published file.
        left = ("resample_filter",) if config.get("embedding_type") == "fourier" else ("resample_filter", "map_noise.freqs")
        shapes = {name: tuple(value.shape) for name, value in state.items() if not name.endswith(left)}
        weights = drawn(shapes)
        net.load_state_dict({**state, **{name: torch.tensor(value).double() for name, value in weights.items()}})
        batch = 3
        x, cotangent = (rng.standard_normal((batch, 3, 16, 16)) for _ in range(2))
        noise = np.log(np.array([0.02, 1.0, 40.0])) / 4
        labels = rng.integers(config.get("label_dim", 0) or 1, size=batch)
        given = torch.tensor(x, requires_grad=True)
        one_hot = torch.eye(config["label_dim"])[labels] if config.get("label_dim") else None
        result = net(given, torch.tensor(noise), one_hot)
        result.backward(torch.tensor(cotangent))
        none = net(torch.tensor(x), torch.tensor(noise), None if one_hot is None else torch.zeros_like(one_hot))
        digest = hashlib.sha256(b"".join(value.tobytes() for value in weights.values())).hexdigest()
        names = {published(name): shape for name, shape in shapes.items()}
        info = dict(
            kind=kind, config=config, shapes=names, sha256=digest, filters=[published(n) for n in state if n.endswith("filter")]
        )
        last = lambda value: np.moveaxis(value, 1, -1)
        out |= {
            f"{case}/info": np.array(json.dumps(info)),
            f"{case}/x": last(x),
            f"{case}/c_noise": noise,
            f"{case}/labels": labels,
            f"{case}/cotangent": last(cotangent),
            f"{case}/output": last(result.detach().numpy()),
            f"{case}/without_label": last(none.detach().numpy()),
            f"{case}/gradient": last(given.grad.numpy()),
        }
    torch.float32 = narrow
    np.savez_compressed(FILE, **out)


if __name__ == "__main__":
    main()
