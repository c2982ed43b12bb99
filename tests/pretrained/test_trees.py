"""Tensors go to their places and back, each once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from scorelab.errors import WeightsError
from scorelab.pretrained import trees

EXPECTED = {"conv/kernel": (3, 3, 2, 5), "dense/kernel": (4, 6), "norm/scale": (5,)}
LAYOUTS = {"conv": "conv", "dense": "linear", "norm": "same"}


def place(key):
    layer, leaf = key.split(".")
    if layer == "unused":
        return None
    return (layer.removeprefix("old_"), leaf), LAYOUTS.get(layer.removeprefix("old_"), "same")


def tensors(dtype="f4"):
    draw = np.random.default_rng(0).standard_normal
    found = {"conv.kernel": draw((5, 2, 3, 3)), "dense.kernel": draw((6, 4)), "norm.scale": draw(5)}
    return {key: value.astype(dtype) for key, value in found.items()}


def placed(given):
    return trees.params(EXPECTED, given, place, name="x.safetensors", network="Net")


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", ml_dtypes.bfloat16])
def test_a_tree_is_the_layers_of_torch_and_comes_back(dtype):
    given = tensors(dtype)
    tree = placed(given | {"unused.ids": np.arange(3)})["params"]
    assert {path: leaf.shape for path, leaf in tree["conv"].items()} == {"kernel": (3, 3, 2, 5)}
    # A correlation of torch with padding 1, and a linear map of torch, at one place each.
    x = np.random.default_rng(1).standard_normal((2, 8, 8)).astype("f4")
    wanted = np.einsum("oikl,ikl->o", given["conv.kernel"].astype("f4"), x[:, 2:5, 3:6])
    found = jax.lax.conv_general_dilated(
        jnp.asarray(x.transpose(1, 2, 0))[None], tree["conv"]["kernel"].astype("f4"), (1, 1), ((1, 1),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    assert np.allclose(found[0, 3, 4], wanted, atol=1e-5)
    assert np.array_equal(tree["dense"]["kernel"], given["dense.kernel"].T)
    back = trees.published({"params": tree}, lambda path: (".".join(path), LAYOUTS[path[0]]))
    assert back.keys() == given.keys()
    assert all(back[key].tobytes() == value.tobytes() and back[key].dtype == value.dtype for key, value in given.items())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"old_norm.scale": np.ones(5, "f4")}, r"tensors 'norm.scale' and 'old_norm.scale' for the one norm/scale"),
        ({"norm.scale": np.ones(5, "i8")}, r"tensor 'norm\.scale' is int64: expected numbers of floating point"),
        ({"norm.scale": np.full(5, np.inf, "f4")}, r"^x\.safetensors: numbers that are not finite in norm\.scale: expected none"),
        ({"conv.kernel": np.ones((5, 2), "f4")}, r"tensor 'conv\.kernel' of shape \(5, 2\): expected 4 axes, as a conv layer has"),
        (
            {"dense.kernel": np.ones((4, 6), "f4")},
            r"1 of another shape: dense/kernel \(6, 4\) for \(4, 6\): expected the 3 tensors of Net",
        ),
        ({"more.bias": np.ones(2, "f4")}, r"^x\.safetensors: 1 unexpected: more/bias"),
    ],
)
def test_every_place_is_filled_once(change, reason):
    with pytest.raises(WeightsError, match=reason):
        placed(tensors() | change)


def test_what_is_missing_is_named_and_one_name_is_that_of_one_place():
    with pytest.raises(WeightsError, match="2 missing: conv/kernel, norm/scale"):
        placed({"dense.kernel": np.ones((6, 4), "f4")})
    with pytest.raises(WeightsError, match="its published name 'a' is that of another one"):
        trees.published(placed(tensors()), lambda path: ("a", LAYOUTS[path[0]]))


def test_shapes_are_found_without_computing():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, wide):
            return nn.Dense(10**6 if wide else 3, name="out")(x)

    x = jax.ShapeDtypeStruct((1, 10**6), jnp.float32)
    # Computed, they would take 4 TB.
    assert trees.shapes(Net(), x, wide=True) == {"out/kernel": (10**6, 10**6), "out/bias": (10**6,)}
    assert trees.shapes(Net(), x, wide=False)["out/bias"] == (3,)
