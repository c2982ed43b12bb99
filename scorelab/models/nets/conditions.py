"""What a network is told beside the noised point: conditions, their null values, and the way each enters.

A network has a condition, None for none. A condition is one member or, by name, several of them. There are three ways in: a member
enters the sum of embeddings that modulates every layer, beside the noise level; it enters the channels of the input; or it is
tokens that are attended to.

Every member has a null value, which means "not given". That of a label is ``num_classes``. That of numbers is a row which is wholly
NaN; the network puts learned numbers in its place. No condition at all is the null one for the whole batch. A row that is partly
NaN is a mistake: it is refused where its values are known, and gives NaN inside ``jit``.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, Pytree, is_traced, on_host, per_example
from scorelab.models.nets.dense import Dense, added, repeated
from scorelab.validation import require_choice, require_int

Way = Literal["embedding", "channels", "tokens"]


class Condition(abc.ABC):
    """What a network is told: a :class:`Member`, or a :class:`Composite` of several; a hashable spec."""

    @property
    @abc.abstractmethod
    def members(self) -> tuple[tuple[str | None, Member], ...]:
        """The members by name; a member alone has no name."""

    @abc.abstractmethod
    def values(self, cond: Pytree) -> tuple[Pytree, ...]:
        """The value of each member in ``cond``, None where it is not given; ValueError for what has another form."""

    @abc.abstractmethod
    def joined(self, values: tuple[Pytree, ...]) -> Pytree:
        """The condition with these values; it undoes :meth:`values`."""

    def null(self, batch: int) -> Pytree:
        """The null condition of ``batch`` examples, as arrays; to a network it means what None means."""
        return self.joined(tuple(member.null_rows(batch) for _, member in self.members))

    def check(self, cond: Pytree, n: int | None = None) -> None:
        """Raise ``ValueError`` for a condition that is none of these, naming the member.

        Shapes and dtypes are always looked at; labels out of range, numbers that are not finite and rows that are partly NaN only
        where the values are known, which they are not inside ``jit``. ``n`` is the number of examples, None for any.
        """
        for (name, member), value in zip(self.members, self.values(cond), strict=True):
            if value is not None:
                value = member.rows(where(name), value, n)
                if not is_traced(value) and value.size:
                    member.check_values(where(name), on_host(value))

    def drop(self, key: Key, cond: Pytree, rates: tuple[float, ...], together: float = 0.0) -> Pytree:
        """``cond`` with rows replaced by the null value: all members of an example with the probability ``together``, and each.

        Member ``i`` is dropped with the probability ``rates[i]``, independently of the others and of ``together``. What is not
        given stays so. Every value has a leading axis of examples.
        """
        values = self.values(cond)
        given = [value for value in values if value is not None]
        if not given:
            return cond
        shape = jnp.shape(given[0])[:1]
        alone = len(rates) == 1 and together == 0
        whole = jax.random.bernoulli(jax.random.fold_in(key, len(rates)), together, shape)
        dropped = []
        for i, ((_, member), value, rate) in enumerate(zip(self.members, values, rates, strict=True)):
            own = jax.random.bernoulli(key if alone else jax.random.fold_in(key, i), rate, shape)
            dropped.append(None if value is None else member.without(value, own if alone else own | whole))
        return self.joined(tuple(dropped))


@dataclass(frozen=True)
class Member(Condition):
    """A condition of one kind. A new one states ``way``, the methods below that are abstract, and a layer.

    Attributes:
        way: how it enters a network. A member that enters the embedding states ``embed(layer, value, width, dtype)``, one that
            enters the channels ``image(layer, value, x)``, one that is attended to ``tokens(layer, value, width, dtype)``. They are
            called inside a network and make their layers under the name ``layer``.
    """

    way: ClassVar[Way]

    @property
    def members(self):
        return ((None, self),)

    def values(self, cond):
        if isinstance(cond, Mapping):
            raise ValueError(f"cond has the names {sorted(cond)}: expected an array, {self.accepted}")
        return (cond,)

    def joined(self, values):
        return values[0]

    @property
    @abc.abstractmethod
    def accepted(self) -> str:
        """What messages say of its values."""

    @abc.abstractmethod
    def rows(self, where: str, value: Any, n: int | None) -> Array:
        """``value`` with a leading axis: of ``n`` examples, or of 1 for all.

        ValueError naming ``where`` for another shape or dtype.
        """

    @abc.abstractmethod
    def check_values(self, where: str, value: np.ndarray) -> None:
        """Raise ``ValueError`` naming ``where`` unless the rows are values of this member, or null."""

    @abc.abstractmethod
    def null_rows(self, n: int) -> np.ndarray:
        """The null value of ``n`` examples."""

    @abc.abstractmethod
    def without(self, value: Array, dropped: Array) -> Array:
        """``value`` with the null value in the rows where ``dropped``, ``(n,)``, is true."""


@dataclass(frozen=True)
class Label(Member):
    """An integer class, ``(batch,)`` or one for all; it is looked up in a table that is added to the embedding.

    Attributes:
        num_classes: classes are ``0 .. num_classes - 1``; ``num_classes`` is the null label.
    """

    num_classes: int

    way = "embedding"

    def __post_init__(self):
        require_int(self, 1, num_classes=self.num_classes)

    @property
    def accepted(self):
        return f"integer labels 0 to {self.num_classes - 1}, or {self.num_classes} for none, of shape () or (batch,)"

    def rows(self, where, value, n):
        value = _array(value)
        if not jnp.issubdtype(value.dtype, jnp.integer):
            raise ValueError(f"{where} has dtype {value.dtype}: expected {self.accepted}")
        if value.ndim > 1 or (value.ndim and n is not None and len(value) != n):
            raise ValueError(f"{where} has shape {value.shape}{_among(n)}: expected {self.accepted}")
        return value.reshape(1) if value.ndim == 0 else value

    def check_values(self, where, value):
        low, high = int(value.min()), int(value.max())
        if low < 0 or high > self.num_classes:
            raise ValueError(
                f"{where} has labels {low} to {high}: expected 0 to {self.num_classes - 1}, the classes of "
                f"Label(num_classes={self.num_classes}), or {self.num_classes} for none"
            )

    def null_rows(self, n):
        return np.full(n, self.num_classes, np.int32)

    def without(self, value, dropped):
        return jnp.where(dropped, jnp.asarray(self.num_classes, value.dtype), value)

    def embed(self, layer: str, value: Array, width: int, dtype: str) -> jax.Array:
        """The row of the table, ``(rows, width)``."""
        value = jnp.asarray(value)
        # A label that is no class reads a row beyond the table, which is NaN: -4 would be the fourth row from its end.
        value = jnp.where((value < 0) | (value > self.num_classes), self.num_classes + 1, value)
        # Read in float32, as the gradient of a row is then summed over its examples in float32.
        return nn.Embed(self.num_classes + 1, width, dtype=jnp.float32, name=layer)(value).astype(dtype)


@dataclass(frozen=True)
class Numbers(Member):
    """A member of floating point numbers; a row that is wholly NaN is the null value."""

    @property
    @abc.abstractmethod
    def row(self) -> tuple[int | None, ...]:
        """The shape of one row, None for an axis of any length."""

    @property
    def accepted(self):
        axes = ", ".join("size" if length is None else str(length) for length in self.row)
        return f"floating point numbers ({axes}) or (batch, {axes}), a row wholly NaN for none"

    def rows(self, where, value, n):
        value = _array(value)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"{where} has dtype {value.dtype}: expected {self.accepted}")
        axes = len(self.row)
        fits = value.ndim in (axes, axes + 1) and all(
            length in (None, found) for length, found in zip(self.row, value.shape[-axes:], strict=True)
        )
        if not fits or (value.ndim > axes and n is not None and len(value) != n):
            raise ValueError(f"{where} has shape {value.shape}{_among(n)}: expected {self.accepted}")
        return value[None] if value.ndim == axes else value

    def check_values(self, where, value):
        finite = np.isfinite(value.astype(np.float32)).reshape(len(value), -1)
        bad = ~finite.all(1) & ~np.isnan(value.astype(np.float32)).reshape(len(value), -1).all(1)
        if bad.any():
            raise ValueError(
                f"{where} has {bad.sum()} rows of {len(value)} that are not finite, the first is row {np.argmax(bad)}: expected "
                "finite numbers, or a row that is NaN as a whole for none"
            )

    def null_rows(self, n):
        return np.full((n, *(1 if length is None else length for length in self.row)), np.nan, np.float32)

    def without(self, value, dropped):
        return jnp.where(per_example(dropped, value), jnp.asarray(np.nan, value.dtype), value)


@dataclass(frozen=True)
class Vector(Numbers):
    """Numbers ``(batch, size)``, about as large as one; two layers of them are added to the embedding.

    Attributes:
        size: how many.
    """

    size: int

    way = "embedding"

    def __post_init__(self):
        require_int(self, 1, size=self.size)

    @property
    def row(self):
        return (self.size,)

    def embed(self, layer: str, value: Array, width: int, dtype: str) -> jax.Array:
        """Their embedding, ``(rows, width)``."""
        return _Vector(width, dtype, name=layer)(value)


@dataclass(frozen=True)
class Augmentation(Vector):
    """What was done to the data that a network is shown: numbers ``(batch, size)``, zeros for nothing.

    "Not given" means nothing as well: None, a null row and zeros are one to the network, bit by bit. So whoever samples without it
    asks for the data as they are (:class:`scorelab.losses.ScoreAugmented`).

    Attributes:
        size: how many numbers.
    """

    def embed(self, layer: str, value: Array, width: int, dtype: str) -> jax.Array:
        """Their embedding, ``(rows, width)``, of a null row that of zeros."""
        return _Augmentation(width, dtype, name=layer)(value)


@dataclass(frozen=True)
class Image(Numbers):
    """An image ``(batch, height, width, channels)`` beside the input: its channels are added to those of the noised one.

    A coarser one is repeated to the size of the event, each side by a whole factor. One more channel is 1 where there is an image
    and 0 where there is none; the null image has one learned number for each channel.

    Attributes:
        channels: how many it has.
        axes: of space: 2 for images, 3 for volumes, 1 for sequences.
    """

    channels: int
    axes: int = 2

    way = "channels"

    def __post_init__(self):
        require_int(self, 1, channels=self.channels)
        require_choice(self, (1, 2, 3), axes=self.axes)

    @property
    def row(self):
        return (*(None,) * self.axes, self.channels)

    def image(self, layer: str, value: Array, x: jax.Array, at: str = "cond") -> jax.Array:
        """The channels it adds to ``x``, ``(rows, *space, channels + 1)``; messages call it ``at``."""
        space = x.shape[1:-1]
        if len(space) != self.axes:
            raise ValueError(f"{at} is an Image with axes = {self.axes} beside x of shape {x.shape}: expected axes = {len(space)}")
        if any(not coarse or fine % coarse for fine, coarse in zip(space, value.shape[1:-1], strict=True)):
            raise ValueError(f"{at} has shape {value.shape} beside x of shape {x.shape}: expected sides that divide those of x")
        value = _Image(name=layer)(value)
        for axis, fine in enumerate(space, 1):
            value = jnp.repeat(value, fine // value.shape[axis], axis=axis)
        return value


@dataclass(frozen=True)
class Sequence(Numbers):
    """Tokens ``(batch, length, size)``, in an order that matters; the network attends to them.

    Attributes:
        size: numbers in a token.
        length: how many tokens.
    """

    size: int
    length: int

    way = "tokens"

    def __post_init__(self):
        require_int(self, 1, size=self.size, length=self.length)

    @property
    def row(self):
        return (self.length, self.size)

    def tokens(self, layer: str, value: Array, width: int, dtype: str) -> jax.Array:
        """The tokens as a network attends to them, ``(rows, length, width)``."""
        return _Sequence(width, dtype, name=layer)(value)


@dataclass(frozen=True, init=False, repr=False)
class Composite(Condition):
    """Several members by name, such as ``Composite(label=Label(10), image=Image(1))``; the condition is a dict of these names.

    A name that is missing, or whose value is None, is not given: null for the whole batch.

    Args:
        **parts: the members.
    """

    parts: tuple[tuple[str, Member], ...]

    def __init__(self, **parts: Member):
        if not parts:
            raise ValueError("Composite has no members: expected at least one, such as label=Label(10)")
        for name, part in parts.items():
            if not isinstance(part, Member):
                raise TypeError(f"Composite.{name} = {part!r}: expected a Member, such as Label(10)")
        object.__setattr__(self, "parts", tuple(sorted(parts.items())))

    def __repr__(self):
        return f"Composite({', '.join(f'{name}={part!r}' for name, part in self.parts)})"

    @property
    def members(self):
        return self.parts

    def values(self, cond):
        names = [name for name, _ in self.parts]
        if cond is None:
            return (None,) * len(names)
        if not isinstance(cond, Mapping):
            found = f"{cond.dtype} of shape {cond.shape}" if hasattr(cond, "dtype") else type(cond).__name__
            raise ValueError(f"cond is {found}: expected a dict with the names {names}, those of the condition of the network")
        if unknown := [name for name in cond if name not in names]:
            raise ValueError(f"cond has the name {unknown[0]!r}: expected {names}, those of the condition of the network")
        return tuple(cond.get(name) for name in names)

    def joined(self, values):
        return {name: value for (name, _), value in zip(self.parts, values, strict=True)}


def where(name: str | None) -> str:
    """How messages call a member of a condition."""
    return "cond" if name is None else f'cond["{name}"]'


def of_network(net: Any) -> Condition | None:
    """The condition of a network, None for one that has none or says nothing; ``num_classes`` is short for a :class:`Label`."""
    condition, classes = getattr(net, "condition", None), getattr(net, "num_classes", 0)
    return Label(classes) if condition is None and classes else condition


def check_fields(owner: str, condition: Any, num_classes: int, ways: tuple[Way, ...]) -> None:
    """Raise unless the two fields of a network agree, and its members enter in ways that it has."""
    if condition is None:
        return
    if not isinstance(condition, Condition):
        raise TypeError(f"{owner}.condition = {condition!r}: expected None or a Condition, such as Label(10)")
    if num_classes:
        raise ValueError(f"{owner}.num_classes = {num_classes} beside condition = {condition!r}: expected 0, or no condition")
    for name, member in condition.members:
        if member.way not in ways:
            at = "" if name is None else f", whose {name} = {member!r}"
            kinds = {"embedding": "Label, Vector", "channels": "Image", "tokens": "Sequence"}
            taken = ", ".join(kinds[way] for way in ways)
            raise ValueError(f"{owner}.condition = {condition!r}{at} enters as {member.way}: expected members it takes ({taken})")


class Entry(NamedTuple):
    """One member as a network meets it.

    Attributes:
        layer: the name of its layers.
        where: how messages call it.
        member: what it is.
        value: ``(batch, ...)``, or ``(1, ...)`` for all.
    """

    layer: str
    where: str
    member: Any
    value: Array


def entries(owner: str, condition: Condition | None, cond: Pytree, batch: int) -> tuple[Entry, ...]:
    """The members of a condition with their values for ``batch`` examples, null where they are not given.

    Raises:
        ValueError: a condition for a network that has none, or one of another form, shape or dtype.
    """
    if condition is None:
        if cond is not None:
            raise ValueError(f"cond was given to {owner}, whose condition is None and num_classes = 0: expected None")
        return ()
    return tuple(_entries(condition, cond, batch))


def _entries(condition: Condition, cond: Pytree, batch: int) -> Iterator[Entry]:
    for (name, member), value in zip(condition.members, condition.values(cond), strict=True):
        # A label alone has the name it has always had, so that parameters of earlier versions fit.
        layer = f"condition_{name}" if name is not None else "label" if isinstance(member, Label) else "condition"
        rows = member.null_rows(1) if value is None else member.rows(where(name), value, batch)
        yield Entry(layer, where(name), member, rows)


def embedded(given: tuple[Entry, ...], h: jax.Array, width: int, dtype: str) -> jax.Array:
    """``h (rows, width)`` plus the embeddings of the members that enter there; called inside a network."""
    for entry in given:
        if entry.member.way == "embedding":
            h = added(h, entry.member.embed(entry.layer, entry.value, width, dtype))
    return h


def concatenated(given: tuple[Entry, ...], x: jax.Array) -> jax.Array:
    """``x (batch, *space, channels)`` with the channels of the members that enter there; called inside a network."""
    added = [entry.member.image(entry.layer, entry.value, x, entry.where) for entry in given if entry.member.way == "channels"]
    added = [jnp.broadcast_to(image, (*x.shape[:-1], image.shape[-1])).astype(x.dtype) for image in added]
    return jnp.concatenate([x, *added], axis=-1) if added else x


def attended(given: tuple[Entry, ...], batch: int, width: int, dtype: str) -> jax.Array | None:
    """The tokens ``(batch, m, width)`` of all members that are attended to, None where there are none; called inside a network."""
    tokens = [entry.member.tokens(entry.layer, entry.value, width, dtype) for entry in given if entry.member.way == "tokens"]
    tokens = [repeated(each, batch) for each in tokens]
    return jnp.concatenate(tokens, axis=1) if tokens else None


def _array(value: Any) -> Array:
    return value if hasattr(value, "dtype") else np.asarray(value)


def _among(n: int | None) -> str:
    return "" if n is None else f" for {n} examples"


def _split(value: Array) -> tuple[jax.Array, jax.Array]:
    """Which rows are wholly NaN, shaped to broadcast, and the values with 0 in these rows, so that no NaN meets a gradient."""
    value = jnp.asarray(value, jnp.float32)
    missing = jnp.all(jnp.isnan(value), axis=tuple(range(1, value.ndim)), keepdims=True)
    return missing, jnp.where(missing, 0.0, value)


class _Vector(nn.Module):
    """``W_2 silu(W_1 v)``, or a learned row for none."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, value: Array) -> jax.Array:
        missing, value = _split(value)
        h = nn.silu(Dense(self.width, dtype=self.dtype, name="hidden")(value.astype(self.dtype)))
        h = Dense(self.width, dtype=self.dtype, name="out")(h)
        null = self.param("null", nn.initializers.normal(1.0), (self.width,), jnp.float32)
        return jnp.where(missing, null, h.astype(jnp.float32)).astype(h.dtype)


class _Augmentation(nn.Module):
    """``W_2 (silu(W_1 v) - silu(W_1 0))``, whose difference is 0 without rounding for zeros and for none."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, value: Array) -> jax.Array:
        _, value = _split(value)
        hidden = Dense(self.width, dtype=self.dtype, name="hidden")
        h = nn.silu(hidden(value.astype(self.dtype))) - nn.silu(hidden(jnp.zeros((1, value.shape[-1]), self.dtype)))
        return Dense(self.width, dtype=self.dtype, name="out")(h)


class _Image(nn.Module):
    """The image and whether there is one, or learned numbers for none."""

    @nn.compact
    def __call__(self, value: Array) -> jax.Array:
        missing, value = _split(value)
        null = self.param("null", nn.initializers.zeros, value.shape[-1:], jnp.float32)
        value = jnp.where(missing, null, value)
        known = jnp.broadcast_to(1.0 - missing, (*value.shape[:-1], 1))
        return jnp.concatenate([value, known], axis=-1)


class _Sequence(nn.Module):
    """``W v_i + p_i``, or learned tokens for none."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, value: Array) -> jax.Array:
        missing, value = _split(value)
        h = Dense(self.width, dtype=self.dtype, name="in")(value.astype(self.dtype))
        place = self.param("positions", nn.initializers.normal(0.02), (value.shape[1], self.width), jnp.float32)
        null = self.param("null", nn.initializers.normal(1.0), (value.shape[1], self.width), jnp.float32)
        return jnp.where(missing, null, h.astype(jnp.float32) + place).astype(h.dtype)
