"""Write ``pretrained_inception.npz``: outputs of the Inception network of torch-fidelity at drawn weights, in both input modes.

    python tests/references/pretrained_inception.py

It needs torch and torch-fidelity (0.4.0, Apache-2.0). The network has 23.9 million weights, which are not stored: tests draw them
again by ``weights`` below. Stored are the images, the layers in float32 as torch-fidelity returns them (computed in float64), the
names with the shapes of the state, and what its Inception score makes of stored probabilities.

The mode ``tf1`` is the module as it is. For ``pytorch_fid`` its resizing is replaced by torch's own, of images over 255 with
``align_corners=False``, and by 256 times that, so that its (x - 128) / 128 is 2 x - 1.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

SIZES = [(32, 32), (64, 64), (299, 299), (300, 400)]
LAYERS = ("64", "192", "768", "2048", "logits_unbiased", "logits")


def weights(shapes):
    """Drawn weights by the names of the state; variances keep activations of the order of one through all layers."""
    rng = np.random.default_rng(11)
    found = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        uniform = 2 * rng.random(tuple(shape), np.float32) - 1
        kind = name.rpartition(".")[2]
        if name.startswith("fc") or name.endswith("conv.weight"):
            fan = np.prod(shape[1:]) if kind == "weight" else 1
            found[name] = uniform * np.float32((6 / fan) ** 0.5 if kind == "weight" else 0.3)
        elif kind in ("weight", "running_var"):
            found[name] = 1 + np.float32(0.3) * uniform
        else:
            found[name] = np.float32(0.3) * uniform
    return found


def images():
    """Smooth ones with noise, so that neighbours of a pixel are not all alike."""
    rng = np.random.default_rng(5)
    found = []
    for height, width in SIZES:
        coarse = np.kron(rng.random((1, 9, 9, 3)), np.ones((1, -(-height // 9), -(-width // 9), 1)))[:, :height, :width]
        found.append(np.clip(220 * coarse + 30 * rng.random((1, height, width, 3)), 0, 255).astype(np.uint8))
    return found


def main():
    import torch
    import torch_fidelity
    from torch_fidelity import feature_extractor_inceptionv3 as oracle
    from torch_fidelity.metric_isc import isc_features_to_metric

    # The constructor wants a file: first of the state that it would draw itself, for the names.
    blank = torch.nn.Module.load_state_dict
    torch.nn.Module.load_state_dict = lambda self, state, *args, **kwargs: None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.pth"
        torch.save({}, file)
        net = oracle.FeatureExtractorInceptionV3("oracle", list(LAYERS), str(file), "float64")
    torch.nn.Module.load_state_dict = blank
    shapes = {name: list(value.shape) for name, value in net.state_dict().items()}
    state = {name: torch.from_numpy(value).double() for name, value in weights(shapes).items()}
    found = net.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)

    stored = {}
    plain = oracle.interpolate_bilinear_2d_like_tensorflow1x
    half = lambda x, size, align_corners: (
        256 * torch.nn.functional.interpolate(x / 255, size=size, mode="bilinear", align_corners=False)
    )
    for mode, resize in (("tf1", plain), ("pytorch_fid", half)):
        oracle.interpolate_bilinear_2d_like_tensorflow1x = resize
        for index, image in enumerate(images()):
            with torch.no_grad():
                found = net(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
            for layer, value in zip(LAYERS, found, strict=True):
                stored[f"{mode}/{index}/{layer}"] = value.numpy()
    logits = np.random.default_rng(2).normal(size=(57, 7)) * 2
    score = isc_features_to_metric(torch.from_numpy(logits), splits=10)
    np.savez_compressed(
        Path(__file__).with_suffix(".npz"),
        shapes=json.dumps(shapes),
        score_logits=logits,
        score=np.array([score["inception_score_mean"], score["inception_score_std"]]),
        versions=json.dumps(dict(torch=torch.__version__, torch_fidelity=torch_fidelity.__version__, numpy=np.__version__)),
        command=" ".join(["python", "tests/references/pretrained_inception.py"]),
        **stored,
    )


if __name__ == "__main__":
    sys.exit(main())
