"""Prompts as conditions: a tokenizer and the text tower that was trained with it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array
from scorelab.errors import WeightsError, shown
from scorelab.pretrained import clip, tokens
from scorelab.pretrained.store import Folder
from scorelab.pretrained.tokens import Tokenizer
from scorelab.validation import require_choice, require_spec


@dataclass(frozen=True, kw_only=True, eq=False)
class TextEncoder:
    """From prompts to what a denoiser attends to, ``text(prompts)`` ``(n, length, width)``.

    It takes texts, so it is called outside of compiled code. Equal prompts of a call are encoded once.

    Attributes:
        tokenizer: of the same folder as the tower.
        net: the text tower.
        params: its parameters.
        layer: ``last``, as SD 1 and 2 have it, or ``penultimate``, as SDXL.
    """

    tokenizer: Tokenizer
    net: clip.TextTower
    params: Mapping[str, Any] = field(repr=False)
    layer: str = "last"

    def __post_init__(self):
        require_spec(self, Tokenizer, tokenizer=self.tokenizer)
        require_spec(self, clip.TextTower, net=self.net)
        require_choice(self, ("last", "penultimate"), layer=self.layer)
        rows, most = self.tokenizer.length, self.tokenizer.most
        if rows > self.net.max_position_embeddings or most >= self.net.vocab_size:
            raise ValueError(
                f"TextEncoder.tokenizer has rows of {rows} with numbers up to {most}: expected at most "
                f"{self.net.max_position_embeddings}, up to {self.net.vocab_size - 1}, those of the tower"
            )

    def __call__(self, prompts: str | Sequence[str]) -> Array:
        """The context ``(n, length, width)`` of one prompt or several."""
        return getattr(self._found(prompts), self.layer)

    def pooled(self, prompts: str | Sequence[str]) -> Array:
        """The end token ``(n, width)``, normed; ValueError where tower and tokenizer have different ones."""
        return self._ended(prompts).pooled

    def projected(self, prompts: str | Sequence[str]) -> Array:
        """Points of the common space ``(n, d)``, not of length one; ValueError as :meth:`pooled`, or without a projection."""
        if (found := self._ended(prompts).projected) is None:
            raise ValueError(
                "TextEncoder.net has no projection: expected a CLIPTextModelWithProjection, or the tower of a CLIPModel"
            )
        return found

    def _ended(self, prompts: str | Sequence[str]) -> clip.Text:
        end, own = self.tokenizer.end, self.net.eos_token_id
        if own not in (2, end):
            raise ValueError(f"TextEncoder.net.eos_token_id = {own}: expected {end}, that of the tokenizer, or 2")
        return self._found(prompts)

    @functools.cached_property
    def empty(self) -> Array:
        """The context of the empty prompt ``(length, width)``, which guidance takes for no condition."""
        return self("")[0]

    def _found(self, prompts: str | Sequence[str]) -> clip.Text:
        rows, which = np.unique(self.tokenizer(prompts), axis=0, return_inverse=True)
        if not len(rows):
            raise ValueError("TextEncoder got no prompts: expected one at least")
        found = _encoded(self.net, self.params, jnp.asarray(rows))
        return jax.tree.map(lambda part: part[which.reshape(-1)], found)


def load(folder: Folder, tokenizer: str | Path, *, layer: str = "last") -> TextEncoder:
    """The text encoder of a converted folder of transformers, such as ``text_encoder`` of Stable Diffusion.

    Args:
        folder: with a text tower, alone or in a ``CLIPModel``.
        tokenizer: the folder of its tokenizer, see ``pretrained.tokens.read``.
        layer: as in :class:`TextEncoder`.

    Raises:
        WeightsError: weights of another kind, or a tokenizer that is not theirs.
    """
    net, params = clip.tower(folder, clip.TextTower)
    return encoder(net, params, tokenizer, layer=layer, name=shown(folder.path))


def encoder(
    net: clip.TextTower, params: Mapping[str, Any], tokenizer: str | Path, *, layer: str = "last", name: str = "params"
) -> TextEncoder:
    """A text tower with the tokenizer of a folder; errors as :func:`load`, where ``name`` is that of the tower."""
    try:
        return TextEncoder(tokenizer=tokens.read(tokenizer), net=net, params=params, layer=layer)
    except ValueError as error:
        raise WeightsError(f"{name}, tokenizer {shown(Path(tokenizer))}: {error}") from error


@functools.partial(jax.jit, static_argnums=0)
def _encoded(net: clip.TextTower, params: Mapping[str, Any], ids: Array) -> Any:
    return net.apply(params, ids)
