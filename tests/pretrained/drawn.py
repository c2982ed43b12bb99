"""Small networks of EDM with drawn numbers, as they are published."""

import numpy as np
from flax.traverse_util import unflatten_dict

from scorelab.pretrained import edm, store


def tensors(arguments, seed=0):
    """The tensors of a SongUNet in EDMPrecond by their published names."""
    net = edm.network({"": dict(type="EDMPrecond"), "model": dict(type="SongUNet", kwargs=arguments)})
    rng = np.random.default_rng(seed)
    leaves = {tuple(key.split("/")): rng.standard_normal(shape).astype("f4") / 4 for key, shape in edm.shapes(net).items()}
    return edm.published({"params": unflatten_dict(leaves)})


def converted(path, arguments):
    """What the file of such a network is converted to."""
    outer = dict(type="EDMPrecond", args=[], kwargs={}, attributes=dict(sigma_min=0, sigma_max="inf", sigma_data=0.5))
    modules = {"": outer, "model": dict(type="SongUNet", args=[], kwargs=arguments)}
    return store.write_folder(path, tensors(arguments), dict(name=path.name, kind="edm", network=modules))
