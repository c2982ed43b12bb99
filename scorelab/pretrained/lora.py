"""Published low-rank adapters: PEFT, diffusers and kohya files of safetensors, onto the networks here, and back to PEFT.

Hu et al. (2021), arXiv:2106.09685; :mod:`scorelab.models.lora` has what is done with them.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict

from scorelab.arrays import Pytree
from scorelab.errors import WeightsError, shown
from scorelab.files import write_json
from scorelab.models import Adapted, BoundDenoiser
from scorelab.models.lora import adapted
from scorelab.pretrained import edm2, fields, own
from scorelab.pretrained.keys import listed, require_real
from scorelab.pretrained.kinds import Narrow
from scorelab.pretrained.store import read_json, read_safetensors, write_safetensors
from scorelab.validation import require_choice, require_number, require_spec

# The files of a folder of PEFT.
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Models that a file of diffusers adapts beside one another, as its names begin.
_PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
_KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
# How names end, and which factor that is: PEFT, then diffusers before it used PEFT, then kohya.
_ENDINGS = (
    (re.compile(r"(.+)\.lora_A(?:\.default)?\.weight"), "down"),
    (re.compile(r"(.+)\.lora_B(?:\.default)?\.weight"), "up"),
    (re.compile(r"(.+)\.lora(?:_linear_layer)?\.(down|up)\.weight"), ""),
    (re.compile(r"(.+)\.processor\.(to_\w+)_lora\.(down|up)\.weight"), ""),
    (re.compile(r"(.+)\.lora_(down|up)\.weight"), ""),
    (re.compile(r"(.+)\.(alpha)"), ""),
)
# Of the config of PEFT: what changes the function, and the value under which it is the one here.
_PLAIN = {
    "bias": ("none", None), "use_dora": (False, None), "fan_in_fan_out": (False, None), "modules_to_save": (None, []),
    "lora_bias": (False, None), "use_qalora": (False, None), "trainable_token_indices": (None,), "layer_replication": (None,),
    "target_parameters": (None, []), "megatron_config": (None,), "alora_invocation_tokens": (None,),
}  # fmt: skip


# PEFT looks modules up by expressions, in which a dot is any character. What is stored are names; other ones can take for ever.
_NAME = re.compile(r"\^?(?:\w|\\?[.-])+\$?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What a file says of one module.

    Attributes:
        down: A, ``(r, in)`` or ``(r, in, k, k)``.
        up: B, ``(out, r)`` or ``(out, r, 1, 1)``.
        scale: of their product.
    """

    down: np.ndarray
    up: np.ndarray
    scale: float


def read(source: str | Path) -> dict[str, dict[str, Factors]]:
    r"""The adapters of a file, or of a folder of PEFT, by the model they are of and by the name of the module.

    The model is ``"unet"``, ``"transformer"`` or ``"text_encoder"`` where names say so, and ``""`` where they do not. The scale is
    :math:`\alpha / r`, or :math:`\alpha / \sqrt r` under ``use_rslora``: by ``adapter_config.json`` or the metadata of the file, or
    by its ``alpha`` tensors; 1 where nothing says. Names of kohya have ``_`` in the place of every ``.``.

    Raises:
        WeightsError: no such file, another kind of adapter (DoRA, LoHa, LoKr, biases), a tensor whose name says nothing, a factor
            without the other one, factors of different ranks, or a config with a field of another type than PEFT gives it.
    """
    require_spec("lora.read", str | Path, source=source)
    source = Path(source)
    config: dict[str, Any] = {}
    file = source
    if source.is_dir():
        file = source / TENSORS
        if not file.is_file():
            raise WeightsError(f"{shown(source)}: no {TENSORS}: expected a folder of PEFT, or a safetensors file")
    name, tensors = shown(file), read_safetensors(file)
    if (beside := file.with_name(CONFIG)).is_file() and file.name == TENSORS:
        config = {"": read_json(beside)}
    elif stated := _metadata(file):
        config = stated
    for stated in config.values():
        _require_config(stated, name)
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    unknown = []
    for key, array in tensors.items():
        if (place := _split(key)) is None:
            unknown.append(key)
            continue
        part, module, kind = place
        factors = found.setdefault((part, module), {})
        if kind in factors:
            raise WeightsError(f"{name}: {key!r} is the second {kind} of {module}: expected one")
        factors[kind] = array
    if unknown or not found:
        said = f"tensors {listed(unknown)}" if unknown else "no tensors"
        raise WeightsError(
            f"{name}: {said}: expected pairs such as X.lora_A.weight and X.lora_B.weight, X.lora.down.weight and X.lora.up.weight, "
            "or lora_unet_X.lora_down.weight and lora_unet_X.lora_up.weight; other kinds (DoRA, LoHa, LoKr) are none of these"
        )
    parts: dict[str, dict[str, Factors]] = {}
    for (part, module), factors in found.items():
        parts.setdefault(part, {})[module] = _factors(name, module, factors, config.get(part, config.get("")))
    return parts


def _split(key: str) -> tuple[str, str, str] | None:
    """The model, the module and the factor that a name says."""
    for ending, kind in _ENDINGS:
        if (match := ending.fullmatch(key)) is None:
            continue
        module, *more = match.groups()
        # A processor of attention: its maps are those of the attention.
        module = ".".join((module, *({"to_out": "to_out.0"}.get(m, m) for m in more[:-1])))
        kind = kind or more[-1]
        for prefix, part in _KOHYA.items():
            if module.startswith(prefix):
                return part, module.removeprefix(prefix), kind
        module = module.removeprefix("base_model.model.")
        part = next((part for part in _PARTS if module.startswith(f"{part}.")), "")
        return part, module.removeprefix(f"{part}."), kind
    return None


def _metadata(file: Path) -> dict[str, Any]:
    """The configs of PEFT that diffusers writes into a file, by model."""
    with safetensors.safe_open(file, framework="np") as opened:
        text = (opened.metadata() or {}).get("lora_adapter_metadata")
    if text is None:
        return {}
    try:
        stated = json.loads(text)
        split = [(key.partition("."), value) for key, value in stated.items()]
    except (ValueError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{shown(file)}: lora_adapter_metadata: expected a JSON object: {error}") from error
    found: dict[str, Any] = {}
    for (part, dot, field), value in split:
        part, field = (part, field) if dot and part in _PARTS else ("", f"{part}{dot}{field}")
        found.setdefault(part, {})[field] = value
    return found


def _factors(name: str, module: str, given: Mapping[str, np.ndarray], config: Mapping[str, Any] | None) -> Factors:
    if missing := sorted({"down", "up"} - given.keys()):
        raise WeightsError(f"{name}: {module} has no {' and no '.join(missing)}: expected both factors")
    down, up = given["down"], given["up"]
    require_real({f"lora_A of {module}": down, f"lora_B of {module}": up}, name)
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.shape[1] != down.shape[0] or up.shape[2:] not in ((), (1, 1)):
        raise WeightsError(
            f"{name}: {module} has factors {down.shape} and {up.shape}: expected (r, in) and (out, r), or (r, in, k, k) and "
            "(out, r, 1, 1)"
        )
    if (rank := down.shape[0]) < 1:
        raise WeightsError(f"{name}: {module} has rank 0: expected 1 or more")
    if (stored := given.get("alpha")) is not None:
        if stored.size != 1:
            raise WeightsError(f"{name}: {module}.alpha has shape {stored.shape}: expected one number")
        if not any(jnp.issubdtype(stored.dtype, kind) for kind in (jnp.floating, jnp.integer)):
            raise WeightsError(f"{name}: {module}.alpha is {stored.dtype}: expected a real number")
        if not math.isfinite(alpha := float(stored.reshape(())[()])):
            raise WeightsError(f"{name}: {module}.alpha is {alpha!r}: expected a finite number")
        return Factors(down=down, up=up, scale=alpha / rank)
    if config is None:
        return Factors(down=down, up=up, scale=1.0)
    stated = _pattern(config.get("rank_pattern"), module, config.get("r", rank))
    if stated != rank:
        raise WeightsError(f"{name}: {module} has rank {rank}: expected {stated}, as its config says")
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    return Factors(down=down, up=up, scale=alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _require_config(config: Mapping[str, Any], name: str) -> None:
    """Raise WeightsError for the config of another kind of adapter, or a field of another type than it may have."""
    for field, plain in _PLAIN.items():
        if field in config and not fields.is_one_of(config[field], plain):
            raise WeightsError(
                f"{name}: {field} = {fields.told(config[field])}: expected {plain[0]!r}, as other adapters are not read here"
            )
    if not fields.is_one_of(config.get("use_rslora"), (True, False, None)):
        raise WeightsError(f"{name}: use_rslora = {fields.told(config['use_rslora'])}: expected true or false")
    for one, pattern, wanted in (
        ("r", "rank_pattern", "an integer of 1 or more"),
        ("lora_alpha", "alpha_pattern", "a finite number"),
    ):
        table = {} if (said := config.get(pattern)) is None else said
        if not isinstance(table, Mapping):
            raise WeightsError(f"{name}: {pattern} = {fields.told(said)}: expected a table")
        for key in table:
            if not _NAME.fullmatch(key):
                raise WeightsError(
                    f"{name}: {pattern} has {fields.told(key)}: expected the name of a module or the end of one, "
                    "of letters, digits, _ and dots"
                )
        stated = {f"{pattern}[{key!r}]": value for key, value in table.items()}
        for field, value in (stated | ({one: config[one]} if one in config else {})).items():
            if not fields.is_number(value) or (one == "r" and not (isinstance(value, int) and value >= 1)):
                raise WeightsError(f"{name}: {field} = {fields.told(value)}: expected {wanted}")


def _pattern(table: Any, module: str, default: Any) -> Any:
    """The value of the first row that ends the name of the module, as PEFT looks them up."""
    for key, value in (table or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def places(tree: Mapping[str, Any], published: Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]]) -> dict[str, str]:
    """The place ``params/conv_in/kernel`` of every array of a tree by the published name of its module, ``conv_in``.

    Args:
        tree: parameters of a network, or their shapes.
        published: of its family, from a tree to tensors by name.
    """
    flat: dict[Any, Any] = flatten_dict(tree["params"])
    # Arrays of one number each, which is the number of the place: whatever the order of axes, it arrives.
    marks = {path: np.full((1,) * len(np.shape(leaf)), i, np.float64) for i, (path, leaf) in enumerate(flat.items())}
    nested: dict[str, Any] = {}
    for path, mark in marks.items():
        at = nested
        for part in path[:-1]:
            at = at.setdefault(part, {})
        at[path[-1]] = mark
    paths = list(flat)
    found = published({"params": nested})
    return {
        key.removesuffix(".weight"): "/".join(("params", *paths[int(mark.reshape(())[()])]))
        for key, mark in found.items()
        if key.endswith(".weight") and mark.ndim > 1
    }


def adapter(
    factors: Mapping[str, Factors],
    tree: Mapping[str, Any],
    published: Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]],
    *,
    name: str = "adapter",
) -> dict[str, dict[str, np.ndarray]]:
    """The factors of a file as an adapter of parameters here, with their scale in B.

    Args:
        factors: by the published names of modules, or by those with ``_`` for ``.``: one model of :func:`read`.
        tree: the parameters.
        published: of the family of the network.
        name: of the file, for messages.

    Raises:
        WeightsError: a module that the network has not, or factors that do not fit its kernel; each is named.
    """
    known = places(tree, published)
    # A preconditioner is no part of the names that PEFT sees.
    known |= {key.removeprefix("model."): at for key, at in known.items() if key.startswith("model.")}
    flat: dict[str, list[str]] = {}
    for key in known:
        flat.setdefault(key.replace(".", "_"), []).append(key)
    kernels = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    found: dict[str, dict[str, np.ndarray]] = {}
    unknown = []
    for module, given in factors.items():
        names = [module] if module in known else flat.get(module, [])
        if len({known[key] for key in names}) != 1:
            unknown.append(module)
            continue
        at = known[names[0]]
        if at in found:
            raise WeightsError(f"{name}: {module} is the second adapter of {at}: expected one")
        found[at] = _laid_out(name, module, given, kernels[at])
    if unknown:
        raise WeightsError(f"{name}: adapters of {listed(unknown)}: expected modules of the network, {listed(sorted(known))}")
    return found


def _laid_out(name: str, module: str, given: Factors, kernel: tuple[int, ...]) -> dict[str, np.ndarray]:
    down, up, rank = given.down, given.up.reshape(given.up.shape[:2]), given.down.shape[0]
    *sides, inputs, out = kernel
    if down.shape[1:] not in ((inputs, *sides), (inputs,) if set(sides) <= {1} else (), (inputs, 1, 1) if not sides else ()):
        raise WeightsError(f"{name}: lora_A of {module} has shape {down.shape}: expected {(rank, inputs, *sides)}, of its kernel")
    if len(up) != out:
        raise WeightsError(f"{name}: lora_B of {module} has shape {up.shape}: expected {(out, rank)}, of its kernel")
    wide = np.promote_types(np.float32, up.dtype) if up.dtype.kind == "f" else np.dtype(np.float32)
    down = down.reshape(rank, inputs, *sides).astype(wide)
    return {
        "down": np.ascontiguousarray(np.moveaxis(down, (0, 1), (-1, -2))),
        "up": np.ascontiguousarray(up.astype(wide).T * wide.type(given.scale)),
    }


def _network(model: BoundDenoiser, *, name: str) -> Any:
    """The network of a denoiser, whatever the type that it is computed in; WeightsError where no adapter here fits it."""
    net = model.denoiser.net
    while isinstance(net, Narrow):
        net = net.net
    if isinstance(net, edm2.UNet):
        raise WeightsError(
            f"{name}: edm2.UNet: expected another network, since its kernels here are normalised already, and adapters of its file "
            "are added before that"
        )
    return net


def _family(net: Any) -> Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]]:
    """The names of the tensors of a network: of the published family it is of, or those under which ours are exported."""
    module = sys.modules[type(net).__module__]
    if module.__name__.startswith("scorelab.pretrained.") and hasattr(module, "published"):
        return module.published
    return own.published


def load(
    model: BoundDenoiser, source: str | Path, *, part: str | None = None, merged: bool = True, scale: float = 1.0
) -> BoundDenoiser | Adapted:
    """A denoiser with a published adapter.

    Args:
        model: a denoiser of a published network, or of one of ours, whose names are those of its export.
        source: a safetensors file, or a folder of PEFT.
        part: the model that the adapter is of where a file has several, such as ``"unet"``; None where it has one.
        merged: the sum once and for all, in parameters that stay on the host; False for an :class:`scorelab.models.Adapted` with
            the adapter as leaves.
        scale: of the whole adapter.

    Raises:
        WeightsError: as :func:`read` and :func:`adapter`; several models in the file and no ``part``, or none of this name; a
            network of EDM2, whose kernels are normalised before an adapter could be added.
    """
    require_spec("lora.load", BoundDenoiser, model=model)
    require_choice("lora.load", (True, False), merged=merged)
    require_number("lora.load", -1e6, 1e6, scale=scale)
    net, parts = _network(model, name=shown(Path(source))), read(source)
    if part is None and len(parts) == 1:
        (part,) = parts
    if part not in parts:
        raise WeightsError(f"{shown(Path(source))}: part = {part!r}: expected one of {', '.join(map(repr, parts))}")
    found = adapter(parts[part], model.params, _family(net), name=shown(Path(source)))
    if not merged:
        return Adapted(model=model, adapter=found, scale=scale)
    return model.denoiser.bind(adapted(model.params, found, scale))


def save(folder: str | Path, model: BoundDenoiser, adapter: Pytree) -> Path:
    """Write an adapter as PEFT does, ``adapter_model.safetensors`` and ``adapter_config.json``, with the names of the network.

    The scale is in B, so ``lora_alpha`` is the rank.

    Args:
        folder: is made where it is not there.
        model: the denoiser that it is of.
        adapter: factors by the places of kernels, such as ``LoRA.adapter(params)``.

    Raises:
        WeightsError: places that the network has no published name for, or a network of EDM2.
    """
    require_spec("lora.save", BoundDenoiser, model=model)
    folder = Path(folder)
    net = _network(model, name=shown(folder))
    names = {at: key for key, at in places(model.params, _family(net)).items()}
    missing = sorted(set(adapter) - set(names))
    if missing or not adapter:
        said = listed(missing) if adapter else "an adapter of nothing"
        raise WeightsError(f"{shown(folder)}: {said}: expected places of kernels of {type(net).__name__}")
    # Shapes that fit no kernel are refused before anything is written.
    jax.eval_shape(adapted, model.params, adapter)
    tensors, ranks = {}, {}
    for at, factors in adapter.items():
        down, up = (np.asarray(factors[which]) for which in ("down", "up"))
        down = np.moveaxis(down, (-1, -2), (0, 1))
        prefix, rank = f"base_model.model.{names[at]}", down.shape[0]
        tensors[f"{prefix}.lora_A.weight"] = down
        tensors[f"{prefix}.lora_B.weight"] = up.T.reshape(up.shape[1], rank, *(1,) * (down.ndim - 2))
        ranks[names[at]] = rank
    rank = next(iter(ranks.values()), 1)
    other = {re.escape(name): r for name, r in ranks.items() if r != rank}
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / TENSORS, tensors)
    config = dict(
        peft_type="LORA", r=rank, lora_alpha=rank, rank_pattern=other, alpha_pattern=other, target_modules=sorted(ranks),
        bias="none", use_dora=False, use_rslora=False, fan_in_fan_out=False, modules_to_save=None, lora_dropout=0.0,
        inference_mode=True, task_type=None, base_model_name_or_path=None,
    )  # fmt: skip
    write_json(folder / CONFIG, config)
    return folder
