"""What the names in files of torch stand for: storages, tensors, modules and numbers, none of them with code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from scorelab.errors import WeightsError
from scorelab.pretrained.pickles import Budget, Built, Ordered, Symbol, require_key, shown

# How deep containers and modules lie in one another.
DEPTH = 100
# Axes of a tensor, numbers and texts among the arguments of networks, characters of them, and numbers of an array that is an
# attribute.
_RANK, _ARGUMENTS, _TEXT, _SMALL = 32, 10_000, 1 << 20, 64
_STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16, "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_, "ComplexFloatStorage": np.complex64, "ComplexDoubleStorage": np.complex128,
}  # fmt: skip
_NUMPY = {code: np.dtype(code) for code in ("f8", "f4", "i8", "i4", "b1")}
# Classes of the published networks: names only, whose code is never looked at.
PERSISTENT = frozenset({
    "EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond", "SongUNet", "DhariwalUNet", "UNetBlock", "Linear", "Conv2d",
    "GroupNorm", "PositionalEmbedding", "FourierEmbedding", "EDMLoss", "VPLoss", "VELoss", "AugmentPipe", "Precond", "UNet",
    "Block", "MPConv", "MPFourier", "EDM2Loss", "Encoder", "StandardRGBEncoder", "StabilityVAEEncoder",
})  # fmt: skip
_VERSION = 6


@dataclass(eq=False)
class Storage:
    """One-dimensional memory that tensors are views of; ``data`` comes later in the older format."""

    dtype: np.dtype
    numel: int
    data: memoryview | None = None

    def fill(self, data: memoryview) -> Storage:
        """Give it its bytes; WeightsError where they are not as many as it says."""
        if len(data) != self.numel * self.dtype.itemsize:
            raise WeightsError(
                f"{len(data):,} bytes for {self.numel:,} elements of {self.dtype}: expected {self.numel * self.dtype.itemsize:,}"
            )
        self.data = data
        return self


@dataclass(frozen=True, eq=False)
class Tensor:
    """A strided view of a storage, whose bounds were checked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of its elements."""
        return self.size * self.storage.dtype.itemsize

    def array(self) -> np.ndarray:
        """Its elements, read only: of the file where they lie in order, else a copy."""
        dtype = self.storage.dtype
        # The stride of an axis of length 1 is not used, and may be any number.
        stride = [step if length > 1 else 0 for length, step in zip(self.shape, self.stride, strict=True)]
        inner = [math.prod(self.shape[axis + 1 :]) if length > 1 else 0 for axis, length in enumerate(self.shape)]
        if not self.size:
            found = np.empty(self.shape, dtype)
        elif stride == inner:
            found = self._flat()[: self.size].reshape(self.shape)
        else:
            steps = [step * dtype.itemsize for step in stride]
            found = np.lib.stride_tricks.as_strided(self._flat(), self.shape, steps, writeable=False).copy()
        if dtype == np.bool_ and found.view(np.uint8).max(initial=0) > 1:
            raise WeightsError("bytes of a bool other than 0 and 1")
        found.flags.writeable = False
        return found

    def _flat(self) -> np.ndarray:
        """The storage from its first element on; of a stream it has its bytes by now."""
        assert self.storage.data is not None
        return np.frombuffer(self.storage.data, self.storage.dtype)[self.offset :]


class Module(Built):
    """A module of torch, or an object of ``torch_utils.persistence``: the name of its class and its state."""

    def __init__(self, kind: str, state: Any = None):
        self.kind, self.state = kind, state

    def build(self, state: Any) -> None:
        """Take the attributes."""
        if self.state is not None or not isinstance(state, dict):
            raise WeightsError(f"the state of {self.kind} is {shown(state)}: expected a dict, and once")
        self.state = state

    def part(self, name: str) -> dict:
        """The dict of its attributes, or one of the dicts in there; empty where there is none."""
        found = self.state if name == "" else (self.state or {}).get(name)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise WeightsError(f"{name or 'the state'} of {self.kind} is {shown(found)}: expected a dict")
        return found

    def members(self, budget: Budget) -> Iterator[tuple[str, Any]]:
        """Parameters, buffers and modules by name, as ``state_dict`` has them; what is left out is spent as well."""
        names = (self.state or {}).get("_non_persistent_buffers_set", ())
        if not isinstance(names, set | frozenset | tuple | list):
            raise WeightsError(f"_non_persistent_buffers_set of {self.kind} is {shown(names)}: expected a set")
        budget.spend(len(names))
        left_out = frozenset(map(require_key, names))
        for part, kind in (("_parameters", Tensor), ("_buffers", Tensor), ("_modules", Module)):
            for name, value in self.part(part).items():
                budget.spend()
                if value is None or (part == "_buffers" and name in left_out):
                    continue
                if not isinstance(value, kind):
                    raise WeightsError(f"{part}[{shown(name)}] of {self.kind} is {shown(value)}: expected a {kind.__name__}")
                yield name, value

    def facts(self, left: Budget) -> dict[str, Any]:
        """Its class, the arguments it was made with, and its attributes that are numbers, small arrays or text."""
        left.spend(len(self.part("")))
        plain = {name: value for name, value in self.part("").items() if _is_plain(value) and not str(name).startswith("_")}
        args, kwargs = (self.state or {}).get("_init_args", ()), self.part("_init_kwargs")
        return dict(type=self.kind, args=_plain(args, left), kwargs=_plain(kwargs, left), attributes=_plain(plain, left))


def arguments() -> Budget:
    """What the arguments and attributes of all modules of a file may have together."""
    return Budget(_ARGUMENTS, _TEXT)


class _Dtype(Built):
    """A ``numpy.dtype`` of plain numbers."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 8 or state[1] not in ("<", "|") or state[2:5] != (None, None, None):
            raise WeightsError(f"the state of a numpy.dtype is {shown(state)}: expected one of little-endian numbers")


class _Array(Built):
    """A ``numpy.ndarray``, as its pickle builds it."""

    def __init__(self):
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        if self.value is not None or type(state) is not tuple or len(state) != 5:
            raise WeightsError(
                f"the state of a numpy.ndarray is {shown(state)}: expected version, shape, dtype, order and bytes, once"
            )
        _, shape, dtype, fortran, content = state
        self.fill(content, dtype, shape, "F" if fortran is True else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
        """Give it its elements."""
        shape = _shape(shape)
        if not isinstance(dtype, _Dtype) or order not in ("C", "F") or not isinstance(content, memoryview | bytes):
            raise WeightsError("expected bytes, a dtype of numbers and the order C or F")
        if math.prod(shape) * dtype.dtype.itemsize != len(content):
            raise WeightsError(f"{len(content):,} bytes for the shape {shape} of {dtype.dtype}")
        flat = np.frombuffer(content, dtype.dtype) if len(content) else np.empty(0, dtype.dtype)
        self.value = flat.reshape(shape, order="F" if order == "F" else "C")
        return self


def _is_integer(value: Any) -> bool:
    return type(value) is int and value >= 0


def _lengths(what: str, value: Any) -> tuple[int, ...]:
    """A tuple of lengths or strides of a tensor."""
    if type(value) is not tuple or len(value) > _RANK or not all(map(_is_integer, value)):
        found = shown(value) if type(value) is not tuple else f"({', '.join(map(shown, value[:8]))})"
        raise WeightsError(f"{what} {found}: expected up to {_RANK} integers >= 0")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    """A shape that an array can have, also where it is empty."""
    shape = _lengths("shape", value)
    if math.prod(length for length in shape if length) >= 1 << 48:
        raise WeightsError(f"shape {shape}: expected fewer than 2^48 elements")
    return shape


def _is_scalar(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)


def _is_plain(value: Any) -> bool:
    """Whether an attribute is a number, text, or a small array."""
    return _is_scalar(value) or (isinstance(value, _Array) and value.value is not None and value.value.size <= _SMALL)


def _plain(value: Any, left: Budget, depth: int = 0) -> Any:
    """Numbers, text and containers of them as JSON has them; numbers that are not finite become text."""
    left.spend()
    if depth > DEPTH:
        raise WeightsError(f"arguments of a network {DEPTH} deep: expected fewer")
    if type(value) is float and not math.isfinite(value):
        return str(value)
    if _is_scalar(value):
        # Text counts each time: a pickle says it once and names it again, JSON repeats it.
        left.copy(len(value) if isinstance(value, str) else 0)
        return value
    if isinstance(value, _Array) and value.value is not None:
        left.spend(value.value.size)
        return _plain(value.value.tolist(), left, depth + 1)
    if isinstance(value, dict):
        left.copy(sum(len(key) for key in value if isinstance(key, str)))
        return {str(key): _plain(item, left, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, left, depth + 1) for item in value]
    raise WeightsError(f"{shown(value)} among the arguments of a network: expected numbers, text, lists and dicts")


class Symbols:
    """What the names in these files stand for; each function checks its arguments, and none calls anything of the file."""

    def __init__(self, budget: Budget, nested: Callable[[memoryview, Symbols], Any]):
        self.budget, self._nested = budget, nested
        self.storages = {("torch", name): Symbol(f"torch.{name}", value=np.dtype(dtype)) for name, dtype in _STORAGES.items()}
        calls: dict[tuple[str, str], Callable[[tuple], Any]] = {
            ("collections", "OrderedDict"): self.ordered,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            ("torch._utils", "_rebuild_parameter"): self.parameter,
            ("torch", "Size"): self.size,
        }
        self.torch = self.storages | {name: Symbol(".".join(name), call=call) for name, call in calls.items()}
        more: dict[tuple[str, str], Callable[[tuple], Any]] = {
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): self.persistent,
            ("torch.storage", "_load_from_bytes"): self.nested,
            ("builtins", "set"): self.set,
            ("__builtin__", "set"): self.set,
            ("_codecs", "encode"): self.encode,
            ("numpy", "dtype"): self.dtype,
        }
        for core in ("numpy.core", "numpy._core"):
            more |= {(f"{core}.multiarray", "scalar"): self.scalar, (f"{core}.multiarray", "_reconstruct"): self.ndarray}
            more[(f"{core}.numeric", "_frombuffer")] = lambda arguments: _Array().fill(*self.take(arguments, 4))
        self.modules = self.torch | {name: Symbol(".".join(name), call=call) for name, call in more.items()}
        # Whose constructor is its own class: `NEWOBJ`.
        self.modules |= {
            ("numpy", "ndarray"): Symbol("numpy.ndarray"),
            ("dnnlib.util", "EasyDict"): Symbol("dnnlib.util.EasyDict", new=dict),
        }
        self.modules[("collections", "OrderedDict")] = self.torch[("collections", "OrderedDict")]
        for name in ("ModuleDict", "ModuleList", "Sequential"):
            full = ("torch.nn.modules.container", name)
            self.modules[full] = Symbol(".".join(full), new=lambda name=name: Module(name))

    def take(self, arguments: tuple, low: int, high: int | None = None) -> tuple:
        """Arguments, as many as there may be."""
        if not low <= len(arguments) <= (high or low):
            raise WeightsError(f"{len(arguments)} arguments: expected {low}{f' to {high}' if high else ''}")
        return arguments

    def ordered(self, arguments: tuple) -> Ordered:
        """``collections.OrderedDict()``."""
        self.take(arguments, 0)
        return Ordered()

    def set(self, arguments: tuple) -> set:
        """``set([...])``."""
        (items,) = self.take(arguments, 1)
        if type(items) is not list:
            raise WeightsError(f"{shown(items)}: expected a list")
        self.budget.spend(len(items))
        return set(map(require_key, items))

    def size(self, arguments: tuple) -> tuple:
        """``torch.Size((...))``, a tuple."""
        (lengths,) = self.take(arguments, 1)
        return _lengths("lengths", lengths)

    def encode(self, arguments: tuple) -> bytes:
        """``_codecs.encode(text, "latin1")``, bytes in protocol 2."""
        text, encoding = self.take(arguments, 2)
        if type(text) is not str or encoding != "latin1":
            raise WeightsError(f"{shown(text)} in {shown(encoding)}: expected text in latin1")
        self.budget.copy(len(text))
        try:
            return text.encode("latin1")
        except UnicodeEncodeError:
            raise WeightsError("text that latin1 has not") from None

    def storage(self, arguments: tuple, key: Any) -> tuple[np.dtype, int]:
        """The dtype and the number of elements of a persistent id ``('storage', type, key, location, numel)``."""
        tag, kind, _, location, numel = arguments
        if tag != "storage" or not isinstance(kind, Symbol) or not isinstance(kind.value, np.dtype) or type(key) is not str:
            what = f"{shown(tag)}, {shown(kind)}, {shown(key)}"
            raise WeightsError(f"a persistent id of {what}: expected 'storage', a type of storage and text")
        if type(location) is not str or not _is_integer(numel):
            raise WeightsError(f"a storage on {shown(location)} of {shown(numel)} elements: expected text and an integer >= 0")
        return kind.value, numel

    def tensor(self, arguments: tuple) -> Tensor:
        """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])``."""
        storage, offset, shape, stride, _, hooks, *metadata = self.take(arguments, 6, 7)
        if not isinstance(storage, Storage) or not _is_integer(offset):
            raise WeightsError(f"the storage {shown(storage)} at {shown(offset)}: expected a storage and an integer >= 0")
        shape, stride = _shape(shape), _lengths("strides", stride)
        if len(shape) != len(stride):
            raise WeightsError(f"shape {shape} with strides {stride}: expected as many of both")
        if hooks or any(metadata):
            raise WeightsError("hooks, or a conjugate or negative view: expected a tensor as it is stored")
        last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        # The second keeps out a small storage that a stride of 0 repeats without end.
        if 0 not in shape and (last >= storage.numel or math.prod(shape) > storage.numel):
            what = f"shape {shape}, strides {stride}, offset {offset}"
            raise WeightsError(f"{what}: expected elements inside a storage of {storage.numel:,}, and no more of them")
        return Tensor(storage, offset, shape, stride)

    def parameter(self, arguments: tuple) -> Tensor:
        """``_rebuild_parameter(tensor, requires_grad, hooks)``, its tensor."""
        data, _, hooks = self.take(arguments, 3)
        if not isinstance(data, Tensor) or hooks:
            raise WeightsError(f"{shown(data)}: expected a tensor without hooks")
        return data

    def nested(self, arguments: tuple) -> Storage:
        """``_load_from_bytes(bytes)``, a storage in a stream of its own."""
        (content,) = self.take(arguments, 1)
        if not isinstance(content, memoryview | bytes):
            raise WeightsError(f"{shown(content)}: expected bytes")
        found = self._nested(memoryview(content), self)
        if not isinstance(found, Storage):
            raise WeightsError(f"{shown(found)}: expected a storage")
        return found

    def persistent(self, arguments: tuple) -> Module:
        """``_reconstruct_persistent_obj(dict)``, of which the source is left alone."""
        (meta,) = self.take(arguments, 1)
        if not isinstance(meta, dict) or meta.get("type") != "class" or meta.get("version") != _VERSION:
            raise WeightsError(f"expected a dict of type 'class' and version {_VERSION}")
        name, state = meta.get("class_name"), meta.get("state")
        if type(name) is not str or name not in PERSISTENT:
            raise WeightsError(f"the class {shown(name)}: expected one of {', '.join(sorted(PERSISTENT))}")
        # Its source, which the original runs, is not looked at.
        made = Module(name)
        if state is not None:
            made.build(state)
        return made

    def dtype(self, arguments: tuple) -> _Dtype:
        """``numpy.dtype(code, align, copy)``."""
        code = self.take(arguments, 1, 3)[0]
        if type(code) is not str or code not in _NUMPY:
            raise WeightsError(f"{shown(code)}: expected one of {', '.join(_NUMPY)}")
        return _Dtype(_NUMPY[code])

    def scalar(self, arguments: tuple) -> float | int | bool:
        """``scalar(dtype, bytes)``, a number."""
        dtype, content = self.take(arguments, 2)
        if not isinstance(dtype, _Dtype) or not isinstance(content, memoryview | bytes) or len(content) != dtype.dtype.itemsize:
            raise WeightsError("expected a dtype of numbers, and the bytes of one")
        return np.frombuffer(content, dtype.dtype)[0].item()

    def ndarray(self, arguments: tuple) -> _Array:
        """``_reconstruct(ndarray, (0,), code)``, filled later."""
        kind, shape, code = self.take(arguments, 3)
        if (
            not isinstance(kind, Symbol)
            or kind.name != "numpy.ndarray"
            or shape != (0,)
            or not isinstance(code, memoryview | bytes)
        ):
            raise WeightsError("expected numpy.ndarray, (0,) and a code")
        return _Array()
