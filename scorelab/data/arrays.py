"""The in-memory form every data set is handed out in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from scorelab.validation import require_spec


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrays:
    """One split of one data set, read-only.

    `x` is uint8 (n, height, width, channels) with values 0 .. levels - 1, or float32 (n, *event) with
    `levels=None`; `label` is int32 (n,) with values 0 .. num_classes - 1, or None. `sha256` is the hash of
    the bytes of `x` followed by those of `label`, in C order: equal hashes mean that equal arrays were
    trained on, whatever file they came from.
    """

    x: np.ndarray
    label: np.ndarray | None = None
    name: str
    split: str
    num_classes: int | None = None
    levels: int | None = None
    sha256: str = field(init=False)

    def __post_init__(self):
        x, label = self.x, self.label
        require_spec(self, np.ndarray, x=x)
        if label is not None:
            require_spec(self, np.ndarray, label=label)
        if self.levels is None and (x.dtype != np.float32 or x.ndim < 2):
            raise ValueError(f"x is {x.dtype} {x.shape}: expected float32 (n, *event) where levels is None")
        if self.levels is not None and (x.dtype != np.uint8 or x.ndim != 4):
            raise ValueError(f"x is {x.dtype} {x.shape}: expected uint8 (n, height, width, channels)")
        if self.levels is not None and x.size and int(x.max()) >= self.levels:
            raise ValueError(f"x has the value {x.max()}: expected 0 to levels - 1 = {self.levels - 1}")
        if self.levels is None and (bad := np.flatnonzero(~np.isfinite(x).all(tuple(range(1, x.ndim))))).size:
            raise ValueError(f"x has {len(bad)} rows that are not finite, the first is row {bad[0]}: expected finite numbers")
        if label is not None and (label.dtype != np.int32 or label.shape != x.shape[:1]):
            raise ValueError(f"label is {label.dtype} {label.shape}: expected int32 {x.shape[:1]}")
        last = np.iinfo(np.int32).max if self.num_classes is None else self.num_classes - 1
        if label is not None and label.size and not 0 <= label.min() <= label.max() <= last:
            raise ValueError(f"label has values from {label.min()} to {label.max()}: expected 0 to num_classes - 1 = {last}")
        digest = hashlib.sha256(np.ascontiguousarray(x).data)
        if label is not None:
            digest.update(np.ascontiguousarray(label).data)
        object.__setattr__(self, "sha256", digest.hexdigest())
        # Views, so that a caller's own array stays writable while nobody can change what the hash was taken
        # of.
        for key in ("x", "label"):
            if (value := getattr(self, key)) is not None:
                view = value.view()
                view.flags.writeable = False
                object.__setattr__(self, key, view)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.x.shape[1:]

    def columns(self) -> dict[str, np.ndarray]:
        """``{"x": ...}``, with ``"label"`` where there are labels."""
        return {"x": self.x} if self.label is None else {"x": self.x, "label": self.label}
