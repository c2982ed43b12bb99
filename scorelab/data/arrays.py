"""The in-memory form every data set is handed out in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from scorelab.validation import require_spec


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrays:
    """One split of one data set, read-only.

    ``x`` is uint8 (n, height, width, channels) with values 0 .. levels - 1, or float32 ``(n, *event)`` with
    ``levels=None``; ``label`` is int32 (n,) with values 0 .. num_classes - 1, or None. ``more`` are further arrays of
    the same rows by name, such as conditions: float32 ``(n, *row)``, in which a row that is wholly NaN is not known; int32 (n,)
    from 0 on; uint8 (n, height, width, channels) with the levels of ``x``. ``sha256`` is the hash of
    the bytes of ``x`` followed by those of ``label`` and of ``more`` (name and bytes, in the order of the names), in C order: equal
    hashes mean that equal arrays were trained on, whatever file they came from.
    """

    x: np.ndarray
    label: np.ndarray | None = None
    name: str
    split: str
    num_classes: int | None = None
    levels: int | None = None
    more: Mapping[str, np.ndarray] = field(default_factory=dict)
    sha256: str = field(init=False)

    def __post_init__(self):
        x, label = self.x, self.label
        require_spec(self, np.ndarray, x=x)
        if label is not None:
            require_spec(self, np.ndarray, label=label)
        if self.levels is None and (x.dtype != np.float32 or x.ndim < 2):
            raise ValueError(f"Arrays.x is {x.dtype} {x.shape}: expected float32 (n, *event) where levels is None")
        if self.levels is not None and (x.dtype != np.uint8 or x.ndim != 4):
            raise ValueError(f"Arrays.x is {x.dtype} {x.shape}: expected uint8 (n, height, width, channels)")
        if self.levels is not None and x.size and int(x.max()) >= self.levels:
            raise ValueError(f"Arrays.x has the value {x.max()}: expected 0 to levels - 1 = {self.levels - 1}")
        if self.levels is None and (bad := np.flatnonzero(~np.isfinite(x).all(tuple(range(1, x.ndim))))).size:
            raise ValueError(
                f"Arrays.x has {len(bad)} rows that are not finite, the first is row {bad[0]}: expected finite numbers"
            )
        if label is not None and (label.dtype != np.int32 or label.shape != x.shape[:1]):
            raise ValueError(f"Arrays.label is {label.dtype} {label.shape}: expected int32 {x.shape[:1]}")
        last = np.iinfo(np.int32).max if self.num_classes is None else self.num_classes - 1
        if label is not None and label.size and not 0 <= label.min() <= label.max() <= last:
            raise ValueError(f"Arrays.label has values from {label.min()} to {label.max()}: expected 0 to num_classes - 1 = {last}")
        more = dict(sorted(self.more.items()))
        for key, value in more.items():
            self._check_more(key, value)
        digest = hashlib.sha256(np.ascontiguousarray(x).data)
        if label is not None:
            digest.update(np.ascontiguousarray(label).data)
        for key, value in more.items():
            digest.update(key.encode())
            digest.update(np.ascontiguousarray(value).data)
        object.__setattr__(self, "sha256", digest.hexdigest())
        # Views, so that a caller's own array stays writable while nobody can change what the hash was taken
        # of.
        for key in ("x", "label"):
            if (value := getattr(self, key)) is not None:
                object.__setattr__(self, key, _read_only(value))
        object.__setattr__(self, "more", MappingProxyType({key: _read_only(value) for key, value in more.items()}))

    def _check_more(self, key: str, value: np.ndarray) -> None:
        require_spec(self, np.ndarray, **{f"more[{key!r}]": value})
        what = f"Arrays.more[{key!r}]"
        if not isinstance(key, str) or key in ("x", "label", "cond"):
            raise ValueError(f"{what}: expected another name than x, label and cond")
        pixels = value.dtype == np.uint8 and value.ndim == 4 and self.levels is not None
        numbers, classes = value.dtype == np.float32 and value.ndim > 1, value.dtype == np.int32 and value.ndim == 1
        if not (pixels or numbers or classes) or len(value) != len(self.x):
            raise ValueError(
                f"{what} is {value.dtype} {value.shape}: expected float32 ({len(self.x)}, *row), int32 ({len(self.x)},), or uint8 "
                f"images ({len(self.x)}, height, width, channels) beside those of x"
            )
        if pixels and value.size and self.levels is not None and int(value.max()) >= self.levels:
            raise ValueError(f"{what} has the value {value.max()}: expected 0 to levels - 1 = {self.levels - 1}, as x")
        if classes and value.size and value.min() < 0:
            raise ValueError(f"{what} has the value {value.min()}: expected classes 0, 1, ..")
        if numbers and (bad := not_known_or_finite(value)).size:
            raise ValueError(
                f"{what} has {len(bad)} rows that are not finite, the first is row {bad[0]}: expected finite numbers, or a row "
                "that is NaN as a whole for one that is not known"
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.x.shape[1:]

    def columns(self) -> dict[str, np.ndarray]:
        """``{"x": ...}``, with ``"label"`` where there are labels, and the further arrays."""
        return {"x": self.x} | ({} if self.label is None else {"label": self.label}) | dict(self.more)


def not_known_or_finite(value: np.ndarray) -> np.ndarray:
    """The numbers of the rows that are neither finite nor wholly NaN, ``value`` being ``(n, *row)``."""
    flat = value.reshape(len(value), -1)
    return np.flatnonzero(~np.isfinite(flat).all(1) & ~np.isnan(flat).all(1))


def _read_only(value: np.ndarray) -> np.ndarray:
    view = value.view()
    view.flags.writeable = False
    return view
