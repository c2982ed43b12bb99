r"""Linear transforms of data by a few numbers, :math:`x\mapsto T_w x`: turns, reflections, brightness, shifts, holes.

A transform is known by its parameters :math:`w`, which a network can be told; :math:`w = 0` is the identity, exactly. Each is
linear in ``x``, so that it acts on data and on noise alike. Zero is what the process has there: of pixels in (-1, 1) the middle
grey. Every row of a batch has parameters of its own.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Key, per_example
from scorelab.validation import require_choice, require_int, require_number


class LinearTransform(abc.ABC):
    """A linear map of one example with parameters; a new one states the attributes, ``draw`` and a call.

    Attributes:
        size: how many numbers its parameters are.
        orthogonal: whether :math:`T_w^\\top T_w = I` for all parameters that are drawn; white noise stays white then.
        invertible: whether no such :math:`T_w` loses anything.
    """

    size: ClassVar[int]
    orthogonal: ClassVar[bool]
    invertible: ClassVar[bool]

    def check(self, event: tuple[int, ...]) -> None:  # noqa: B027
        """Raise ``ValueError`` for the shape of an event that it does not apply to."""

    @abc.abstractmethod
    def draw(self, key: Key, n: int, event: tuple[int, ...]) -> Array:
        """Parameters of ``n`` transforms, none of them the identity, ``(n, size)``, about as large as one."""

    @abc.abstractmethod
    def __call__(self, x: Array, w: Array) -> Array:
        """``T_w x`` of ``x (n, *event)`` under the parameters ``w (n, size)``, which are zero or drawn."""


def _require_image(owner: LinearTransform, event: tuple[int, ...]) -> None:
    if len(event) != 3:
        raise ValueError(f"{owner!r} of events of shape {event}: expected images (height, width, channels)")


@dataclass(frozen=True)
class Rotation(LinearTransform):
    """A turn of a square image by 90, 180 or 270 degrees; the parameters say which, ``(1, 0, 0)`` to ``(0, 0, 1)``."""

    size = 3
    orthogonal = invertible = True

    def check(self, event):
        _require_image(self, event)
        if event[0] != event[1]:
            raise ValueError(f"{self!r} of images of {event[0]} by {event[1]}: expected square ones")

    def draw(self, key, n, event):
        return jax.nn.one_hot(jax.random.randint(key, (n,), 0, 3), 3)

    def __call__(self, x, w):
        turned = x
        for quarters in (1, 2, 3):
            chosen = per_example(w[:, quarters - 1] > 0.5, x)
            turned = jnp.where(chosen, jnp.rot90(x, quarters, axes=(1, 2)), turned)
        return turned


@dataclass(frozen=True)
class Flip(LinearTransform):
    """The mirror image along an axis; the parameter is 1.

    Attributes:
        axis: ``"width"`` exchanges left and right, ``"height"`` top and bottom.
    """

    axis: Literal["width", "height"] = "width"

    size = 1
    orthogonal = invertible = True

    def __post_init__(self):
        require_choice(self, ("width", "height"), axis=self.axis)

    def check(self, event):
        _require_image(self, event)

    def draw(self, key, n, event):
        return jnp.ones((n, 1))

    def __call__(self, x, w):
        mirrored = jnp.flip(x, axis=2 if self.axis == "width" else 1)
        return jnp.where(per_example(w[:, 0] > 0.5, x), mirrored, x)


@dataclass(frozen=True)
class Brightness(LinearTransform):
    r"""All values times :math:`B^w` with ``w`` uniform in [-1, 1]: a factor from :math:`1/B` to ``B``, of events of any shape.

    Attributes:
        most: the largest factor ``B``, above 1.
    """

    most: float = 2.0

    size = 1
    orthogonal = False
    invertible = True

    def __post_init__(self):
        require_number(self, 1.0, 1e3, most=self.most)
        if self.most == 1:
            raise ValueError(f"Brightness.most = {self.most}: expected a number above 1")

    def draw(self, key, n, event):
        return jax.random.uniform(key, (n, 1), minval=-1.0, maxval=1.0)

    def __call__(self, x, w):
        return per_example(jnp.exp(w[:, 0] * math.log(self.most)).astype(x.dtype), x) * x


@dataclass(frozen=True)
class Translation(LinearTransform):
    """An image moved by whole pixels, with zeros where nothing is left; the parameters are rows down and columns right.

    They are in units of ``most``.

    Attributes:
        most: the largest number of pixels along either axis.
    """

    most: int = 1

    size = 2
    orthogonal = invertible = False

    def __post_init__(self):
        require_int(self, 1, most=self.most)

    def check(self, event):
        _require_image(self, event)
        if self.most >= min(event[:2]):
            raise ValueError(f"{self!r} of images of {event[0]} by {event[1]}: expected less than the shorter side")

    def draw(self, key, n, event):
        side = 2 * self.most + 1
        # All shifts but the one in the middle, which is none.
        place = jax.random.randint(key, (n,), 0, side**2 - 1)
        place = place + (place >= side**2 // 2)
        return jnp.stack([place // side - self.most, place % side - self.most], axis=1) / self.most

    def __call__(self, x, w):
        by = jnp.round(w * self.most).astype(jnp.int32)
        for axis in (1, 2):
            length = x.shape[axis]
            source = jnp.arange(length) - by[:, axis - 1, None]
            inside = (source >= 0) & (source < length)
            shape = [1] * x.ndim
            shape[0], shape[axis] = len(x), length
            x = jnp.take_along_axis(x, jnp.clip(source, 0, length - 1).reshape(shape), axis=axis)
            x = jnp.where(inside.reshape(shape), x, jnp.zeros_like(x))
        return x


@dataclass(frozen=True)
class Cutout(LinearTransform):
    """A square of an image set to zero; the parameters are 1 and its place, from -1 (top, left) to 1 (bottom, right).

    Attributes:
        side: that of the square, which lies within the image.
    """

    side: int = 2

    size = 3
    orthogonal = invertible = False

    def __post_init__(self):
        require_int(self, 1, side=self.side)

    def check(self, event):
        _require_image(self, event)
        if self.side >= min(event[:2]):
            raise ValueError(f"{self!r} of images of {event[0]} by {event[1]}: expected less than the shorter side")

    def draw(self, key, n, event):
        places = []
        for part, length in zip(jax.random.split(key), event[:2], strict=True):
            room = length - self.side
            places.append(2 * jax.random.randint(part, (n,), 0, room + 1) / room - 1)
        return jnp.stack([jnp.ones(n), *places], axis=1)

    def __call__(self, x, w):
        hole = per_example(w[:, 0] > 0.5, x)
        for axis in (1, 2):
            length = x.shape[axis]
            first = jnp.round((w[:, axis] + 1) / 2 * (length - self.side)).astype(jnp.int32)[:, None]
            place = jnp.arange(length)
            shape = [1] * x.ndim
            shape[0], shape[axis] = len(x), length
            hole = hole & ((place >= first) & (place < first + self.side)).reshape(shape)
        return jnp.where(hole, jnp.zeros_like(x), x)
