"""Denoisers of this package as safetensors, for other programs: networks of :mod:`scorelab.models.nets` under names of torch.

``experiments/torch_networks.py`` has the U-Net and the DiT in torch, as a program of one file that reads them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from scorelab import data, processes, schedules
from scorelab.data import Transform
from scorelab.errors import WeightsError, shown
from scorelab.experiment.describe import describe
from scorelab.models import BoundDenoiser, Denoiser, Energy, nets
from scorelab.pretrained import fields
from scorelab.pretrained.conversion import writer
from scorelab.pretrained.keys import differences, listed, require_real
from scorelab.pretrained.store import Folder, write_folder
from scorelab.validation import require_spec

KIND = "scorelab"
# Where the classes in a config are looked up, and nowhere else.
_PLACES = (nets, processes, schedules)
# Of what `data` has, since the rest reads files; names are not those of the others, as `Identity` is in both.
_TRANSFORMS = {
    name: kind
    for name in data.__all__
    if isinstance(kind := getattr(data, name), type) and issubclass(kind, Transform) and dataclasses.is_dataclass(kind)
}


def export(
    model: BoundDenoiser,
    folder: str | Path,
    *,
    event: tuple[int, ...],
    transform: Transform | None = None,
    name: str = "",
    licence: str | None = None,
) -> Folder:
    """Write a denoiser as ``model.safetensors`` and ``config.json``, which :func:`model` and other programs read.

    Names are those of the layers with ``.`` between, kernels lie as torch has them: ``(out, in)``, and ``(out, in, k, k)`` of a
    convolution. The config has the fields of the network, the parameterisation, the deviation of the data, the process, and the
    scale of the data where that is given.

    Args:
        model: a denoiser with a network of :mod:`scorelab.models.nets`.
        folder: a new folder.
        event: the shape of one sample as the network sees it, ``(height, width, channels)``.
        transform: from stored values to what the network sees, and back, one of :mod:`scorelab.data`; None for unknown.
        name: of the model; that of the folder by default.
        licence: of the weights, as SPDX has it; None for unknown.

    Raises:
        WeightsError: a network, a process or a transform of another package, parameters that are not of the network or not finite,
            or there is something at ``folder``.
        TypeError: what is no model, or no transform.
    """
    require_spec("pretrained.export", BoundDenoiser, model=model)
    require_spec("pretrained.export", Transform | None, transform=transform)
    if not isinstance(event, Sequence) or not all(isinstance(side, int) and side > 0 for side in event):
        raise TypeError(f"pretrained.export.event = {event!r}: expected the shape of one sample, such as (28, 28, 1)")
    folder, denoiser = Path(folder), model.denoiser
    said = describe(denoiser)
    form: dict[str, Any] = dict(predict=denoiser.predict, data_std=float(denoiser.data_std), self_condition=denoiser.self_condition)
    if isinstance(denoiser, Energy):
        # Said of energies alone: a reader that does not know them refuses the name, and takes no energy for a field.
        form["energy"] = True
    config = dict(
        kind=KIND,
        name=name or folder.name,
        network=_plain(said["net"]),
        denoiser=form,
        process=_plain(said["process"]),
        event=list(event),
        licence=dict(id=licence, url=None),
        written_by=writer(),
    )
    stated: dict[str, tuple[Any, Any]] = dict(network=(denoiser.net, None), process=(denoiser.process, None))
    if transform is not None:
        config["transform"] = _plain(describe(transform))
        stated["transform"] = transform, _TRANSFORMS
    for field, (spec, among) in stated.items():
        if _built(config[field], shown(folder), among) != spec:
            raise WeightsError(f"{shown(folder)}: {field} {spec!r}: expected one that is made of the classes of scorelab")
    expected = shapes(denoiser, event)
    if different := differences({"/".join(path): np.shape(leaf) for path, leaf in _flat(model.params).items()}, expected):
        raise WeightsError(f"{shown(folder)}: {'; '.join(different)}: expected the parameters of {type(denoiser.net).__name__}")
    tensors = published(model.params)
    # What could not be read again is not written.
    require_real(tensors, shown(folder))
    return write_folder(folder, tensors, config)


def shapes(denoiser: Denoiser, event: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters by their places in the tree, found without computing anything."""
    shape: Any = tuple(event)
    tree = jax.eval_shape(lambda key: denoiser.init(key, shape), jax.eval_shape(lambda: jax.random.key(0)))
    return {"/".join(path): leaf.shape for path, leaf in _flat(tree).items()}


def published(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors by their names in torch, bit by bit."""
    found = {}
    for path, leaf in _flat(tree).items():
        array = np.asarray(leaf)
        # (k, .., in, out) to (out, in, k, ..).
        found[_name(path)] = np.moveaxis(array, (-1, -2), (0, 1)) if path[-1] == "kernel" else array
    return found


def params(
    denoiser: Denoiser, event: tuple[int, ...], tensors: Mapping[str, np.ndarray], *, name: str = "params"
) -> dict[str, Any]:
    """The other direction of :func:`published`: every tensor is used once, and every place filled once.

    Raises:
        WeightsError: a tensor that the network has not, or the other way round, or of another shape, or of integers, or with
            numbers that are not finite; each is named.
    """
    expected = shapes(denoiser, event)
    places = {_name(path): path for path in (tuple(at.split("/")) for at in expected)}
    flat: dict[str, np.ndarray] = {}
    for key, array in tensors.items():
        path = places.get(key, (key,))
        turned = path[-1] == "kernel" and array.ndim > 1
        flat["/".join(path)] = np.moveaxis(array, (0, 1), (-1, -2)) if turned else array
    if different := differences({at: array.shape for at, array in flat.items()}, expected):
        raise WeightsError(
            f"{name}: {'; '.join(different)}: expected the {len(expected):,} tensors of {type(denoiser.net).__name__}"
        )
    require_real(tensors, name)
    return {"params": unflatten_dict({tuple(at.split("/")): flat[at] for at in expected})}


def model(folder: Folder) -> BoundDenoiser:
    """The denoiser of an exported folder; its parameters stay on the host until used.

    Raises:
        WeightsError: the folder is of another kind, its config makes no denoiser, or its tensors are not those of the network.
    """
    name, config = shown(folder.path), folder.config
    folder.network(KIND)
    if missing := sorted({"network", "process", "denoiser", "event"} - config.keys()):
        raise WeightsError(f"{name}: no {listed(missing)} in its config")
    try:
        net, process = (_built(config[field], name) for field in ("network", "process"))
        if not isinstance(config["denoiser"], Mapping):
            raise WeightsError(f"{name}: denoiser = {fields.told(config['denoiser'])}: expected a table")
        form = dict(config["denoiser"])
        if type(energy := form.pop("energy", False)) is not bool:
            raise WeightsError(f"{name}: energy = {fields.told(energy)}: expected true or false")
        fields.require_types(form, Denoiser, name)
        denoiser = (Energy if energy else Denoiser)(net=net, process=process, **form)
        event = config["event"]
        is_side = lambda side: type(side) is int and 0 < side <= fields.LARGEST
        if not isinstance(event, list) or len(event) > fields.LONGEST or not all(map(is_side, event)):
            raise WeightsError(
                f"{name}: event = {fields.told(event)}: expected a list of integers from 1 to {fields.LARGEST:,}, at most "
                f"{fields.LONGEST}"
            )
        tree = params(denoiser, tuple(event), folder.tensors(), name=name)
    except WeightsError:
        raise
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise WeightsError(f"{name}: {error}") from error
    return denoiser.bind(tree)


def transform(folder: Folder) -> Transform | None:
    """From stored values to what the network sees, and back, as :func:`export` was told; None where the folder does not say.

    Raises:
        WeightsError: what it says is no transform.
    """
    name = shown(folder.path)
    if (said := folder.config.get("transform")) is None:
        return None
    if not isinstance(found := _built(said, name, _TRANSFORMS), Transform):
        raise WeightsError(f"{name}: transform {said!r}: expected one of scorelab.data, such as Pixels")
    return found


def _flat(tree: Mapping[str, Any]) -> dict[Any, Any]:
    return flatten_dict(tree["params"])


def _name(path: tuple[str, ...]) -> str:
    *layers, leaf = path
    return ".".join((*layers, "weight" if leaf in ("kernel", "scale", "embedding") else leaf))


def _plain(said: Any) -> Any:
    """What ``describe`` says, with class names alone, without what is None and without the name of a Flax module."""
    if isinstance(said, Mapping):
        kept = {
            key: value for key, value in said.items() if value is not None and not ("type" in said and key in ("name", "parent"))
        }
        return {key: value.rpartition(".")[2] if key == "type" else _plain(value) for key, value in kept.items()}
    return [_plain(value) for value in said] if isinstance(said, list) else said


def _built(said: Any, name: str, among: Mapping[str, type] | None = None) -> Any:
    """The spec that a config states; ``among`` has the classes by name where these are not those of the networks."""
    if isinstance(said, list):
        return tuple(_built(value, name, among) for value in said)
    if said in ("inf", "-inf"):
        return math.inf if said == "inf" else -math.inf
    if not isinstance(said, Mapping):
        return said
    given = {key: _built(value, name, among) for key, value in said.items() if key != "type"}
    if "type" not in said:
        return given
    if among is None:
        kind = next((getattr(place, said["type"]) for place in _PLACES if said["type"] in place.__all__), None)
    else:
        kind = among.get(str(said["type"]))
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        expected = "a network, a condition, a process or a schedule of scorelab" if among is None else ", ".join(among)
        raise WeightsError(f"{name}: {said['type']!r}: expected {expected}")
    if kind.__module__.startswith(nets.__name__):
        fields.require_types(given, kind, name)
        # One block for each level, where there are several.
        blocks = given.get("depth", given.get("blocks", 1))
        levels = given.get("channels", (0,))
        fields.require_size(f"{name}: {said['type']}", blocks=blocks * (len(levels) if isinstance(levels, tuple) else 1))
    else:
        # Levels of a schedule are made when it is.
        for field, value in given.items():
            if isinstance(value, int) and abs(value) > fields.LARGEST:
                raise WeightsError(
                    f"{name}: {said['type']}.{field} = {fields.told(value)}: expected an integer of at most {fields.LARGEST:,}"
                )
    try:
        # Members by name are arguments of their own.
        return kind(**dict(given["parts"])) if kind is nets.Composite else kind(**given)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise WeightsError(f"{name}: {said['type']}: {error}") from error
