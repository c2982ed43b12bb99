"""Weights that are drawn by name and not stored: the same for the scripts in ``tests/references`` and for tests; NumPy only."""

import hashlib
import json

import numpy as np


def drawn(shapes, seed):
    """Float32 weights by published names, uniform: norms about 1, the rest so that activations keep their size."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        uniform = 2 * rng.random(shape) - 1
        if len(shape) > 1:
            uniform = uniform * (3 / np.prod(shape[1:])) ** 0.5
        else:
            uniform = (1 if name.endswith("weight") else 0) + 0.3 * uniform
        found[name] = uniform.astype(np.float32)
    return found


def digest(tensors):
    """The hash of all numbers in turn."""
    return hashlib.sha256(b"".join(value.tobytes() for value in tensors.values())).hexdigest()


def require_digest(tensors, sha256):
    assert digest(tensors) == sha256, "NumPy draws other numbers: make the file anew"


def keys_digest(tensors):
    """The hash of names and shapes."""
    lines = "".join(f"{name} {tuple(tensors[name].shape)}\n" for name in sorted(tensors))
    return hashlib.sha256(lines.encode()).hexdigest()


def zeros(shapes):
    """A tree of parameters that takes no memory, from shapes by places."""
    tree = {}
    for place, shape in shapes.items():
        *path, leaf = place.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = np.broadcast_to(np.float32(0), shape)
    return {"params": tree}


def text(array):
    return json.loads(str(array))


def error(found, wanted):
    """The largest difference, of the largest number."""
    return float(np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max())
