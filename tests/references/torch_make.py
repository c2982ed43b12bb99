"""Write small files of torch in each format, and what they hold: ``python tests/references/torch_make.py``.

Needs torch (made with 2.13.0, CPU) and NumPy, and nothing of this project. The pickles of whole modules have the layout that
``torch_utils.persistence`` gives them; the classes here are our own stand-ins, which hold tensors and never run.
"""

import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parent / "torch_files"


def tensors():
    """One of each dtype, and the shapes and strides that a reader gets wrong."""
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    found = OrderedDict(
        contiguous=base,
        transposed=base.T,
        every_other=base[1:, ::2],
        tied=base,
        row=base[2],
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        ones=torch.randn(1, 3, 1),
    )
    for dtype in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "complex64", "complex128"):
        found[dtype] = (torch.randn(2, 3) * 5).to(getattr(torch, dtype))
    found["bool"] = torch.tensor([True, False, True])
    return found


def arrays(found):
    """As NumPy has them; bfloat16 by its bits."""
    return {
        name: value.view(torch.int16).numpy().view(np.uint16) if value.dtype == torch.bfloat16 else value.resolve_conj().numpy()
        for name, value in found.items()
    }


def stand_ins():
    """Modules with the names that such pickles use, and a base class that is pickled as theirs are."""
    persistence, dnnlib, util = (
        types.ModuleType("torch_utils.persistence"),
        types.ModuleType("dnnlib"),
        types.ModuleType("dnnlib.util"),
    )

    def _reconstruct_persistent_obj(meta):
        raise NotImplementedError

    class EasyDict(dict):
        pass

    for module, value in ((persistence, _reconstruct_persistent_obj), (util, EasyDict)):
        value.__module__, value.__qualname__ = module.__name__, value.__name__
        setattr(module, value.__name__, value)
    sys.modules |= {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": persistence}
    sys.modules |= {"dnnlib": dnnlib, "dnnlib.util": util}

    class Kept(torch.nn.Module):
        def __reduce__(self):
            state = {name: value for name, value in self.__dict__.items() if name != "name_of_class"}
            source = "raise SystemExit('the source of a module was run')"
            meta = dict(type="class", version=6, module_src=source, class_name=self.name_of_class, state=state)
            return _reconstruct_persistent_obj, (meta,)

    return Kept, EasyDict


def network(kept):
    """A tree of modules with every kind of member, as a preconditioner around a network."""

    def made(name, **kwargs):
        module = kept()
        module.name_of_class, module._init_args, module._init_kwargs = name, (), kwargs
        return module

    torch.manual_seed(1)
    inner = made("SongUNet", img_resolution=8, channel_mult=[1, 2], dropout=np.float64(0.125))
    layer = made("Linear", in_features=3, out_features=2)
    layer.weight, layer.bias = torch.nn.Parameter(torch.randn(2, 3)), None
    layer.init_weight, layer.skip_scale = 1, np.sqrt(0.5)
    norm = made("GroupNorm", num_channels=4)
    norm.weight = torch.nn.Parameter(torch.randn(4))
    norm.register_buffer("resample_filter", torch.ones(1, 1, 2, 2) / 4)
    norm.register_buffer("scratch", torch.zeros(2), persistent=False)
    norm.register_parameter("bias", None)
    inner.enc = torch.nn.ModuleDict({"8x8_conv": layer, "8x8_block0": norm})
    last = made("Linear", in_features=1, out_features=1)
    last.weight = torch.nn.Parameter(torch.randn(1, 1))
    inner.map = torch.nn.ModuleList([torch.nn.Sequential(last)])
    outer = made("EDMPrecond", img_resolution=8, img_channels=3, label_dim=0, sigma_max=float("inf"))
    outer.model, outer.sigma_min, outer.sigma_max, outer.sigma_data = inner, 0, float("inf"), 0.5
    return outer


def main():
    FOLDER.mkdir(exist_ok=True)
    found = tensors()
    torch.save(found, FOLDER / "zip.pth")
    torch.save(found, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.manual_seed(2)
    trained = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimiser = torch.optim.Adam(trained.parameters())
    trained(torch.randn(2, 1, 5, 5)).square().mean().backward()
    optimiser.step()
    torch.save(dict(epoch=3, state_dict=trained.state_dict(), optimizer=optimiser.state_dict()), FOLDER / "checkpoint.pth")
    kept, easy = stand_ins()
    edm = network(kept)
    augment = torch.nn.Sequential()
    augment.register_buffer("wavelet", torch.randn(3))
    content = dict(
        ema=edm, loss_fn=None, augment_pipe=augment, dataset_kwargs=easy(path="data.zip", resolution=8, mean=np.ones(2, np.float32))
    )
    for protocol in (2, 4, 5):
        (FOLDER / f"persistence{protocol}.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    expected = {f"tensors/{name}": value for name, value in arrays(found).items()}
    expected |= {f"state_dict/{name}": value.numpy() for name, value in trained.state_dict().items()}
    expected |= {f"ema/{name}": value.numpy() for name, value in edm.state_dict().items()}
    np.savez_compressed(FOLDER / "expected.npz", **expected, versions=np.array([torch.__version__, np.__version__]))


if __name__ == "__main__":
    main()
