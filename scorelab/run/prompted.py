"""What figures of models of texts share: a model with its prompts, and who looks at the images.

A model is a converted pipeline of texts and latents, such as Stable Diffusion, or one of classes. The reward is CLIP's, that of the
aesthetic predictor, or that of a Python file, which may use another framework.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from scorelab import fk, models, pretrained
from scorelab.arrays import Array
from scorelab.callbacks import remembered
from scorelab.devices import operations
from scorelab.errors import ConfigError
from scorelab.grids import Grid, Karras
from scorelab.pretrained import store
from scorelab.pretrained.kept import parameters_hash
from scorelab.pretrained.text import load as load_text
from scorelab.pytrees import partly_static

# FLOP/s that a GPU of the size of an H200 may reach with these networks. It is assumed, and was not measured.
ASSUMED = 1.5e14
# Of a model without a file of prompts.
PROMPTS = (
    "a photo of a red bicycle leaning against a blue wall",
    "two brown dogs and one white cat on a green sofa",
    "a yellow bowl to the left of a black cup",
    "a photo of four oranges in a wooden box",
    "a purple car parked under a pink tree",
    "a green clock above a brown bench",
    "a photo of an orange umbrella and a white horse",
    "a small robot painting a landscape at sunset",
)
REWARDS = ("clip", "aesthetic", "host", "classifier")
# Down to a noise of .02 of levels that a model is told; the levels of Stable Diffusion end at .029.
NOISE_MIN = 0.02


class Subject:
    """A model of texts or classes, and its prompts.

    Attributes:
        model: the denoiser.
        free: the model in its place where there is no condition.
        latents: the autoencoder; None for a model of pixels.
        transform: from stored images to decoded ones, and back.
        event: the shape of a sample.
        texts: what the images should show, one for each prompt.
        origin: name and hashes of the weights.
    """

    def __init__(
        self,
        model: str,
        *,
        prompts: Path | None = None,
        first: int = 0,
        unconditional: str | None = None,
        autoencoder: str | None = None,
        dtype: str = "float32",
        decoded: int = 2,
    ):
        try:
            who = pretrained.load(model, dtype=dtype, autoencoder=autoencoder)
        except ValueError as error:
            raise ConfigError(f"model = {model}: {error}") from error
        if who.text is None and who.classes is None:
            raise ConfigError(f"model = {model}: it is told neither texts nor classes: expected a model that is")
        if who.transform is None:
            raise ConfigError(f"model = {model}: a model of latents without an autoencoder: expected autoencoder=NAME")
        self.who, self.classes = who, who.classes
        # On the device once, and not with every population.
        self.model = self.free = jax.device_put(who.model)
        if unconditional is not None:
            self.free = jax.device_put(pretrained.load(unconditional, dtype=dtype).model)
            if self.free.process != self.model.process:
                raise ConfigError(f"unconditional = {unconditional}: expected a model under the noise of {model}")
        self.latents = None if who.latents is None else jax.device_put(_by_chunks(who.latents, decoded))
        self.transform, self.event = who.transform, tuple(who.event_shape)
        self.texts, self._labels = _prompts(prompts, first, who)
        name = who.config["name"] if isinstance(who, pretrained.Converted) else Path(model).name
        parts = dict(weights=self.model.params, unconditional=self.free.params, autoencoder=self.latents)
        self.origin = dict(name=name, **{part: tree and parameters_hash(jax.tree.leaves(tree)) for part, tree in parts.items()})

    @property
    def levels(self) -> int:
        """Of stored images."""
        return getattr(self.transform, "levels", None) or 256

    def grid(self, steps: int) -> Grid:
        """As it was published; Karras's, down to a little noise, for a model that is told the noise level."""
        if isinstance(self.who, pretrained.Converted) and self.who.config.get("scheduler") is not None:
            return self.who.grid(steps)
        return Karras(steps, t_min=float(self.model.process.schedule.time(-2 * np.log(NOISE_MIN))))

    def cond(self, i: int, n: int) -> Array:
        """The condition of prompt ``i`` for ``n`` samples."""
        if self._labels is not None:
            return jnp.full(n, self._labels[i], jnp.int32)
        return jnp.repeat(cast(pretrained.Converted, self.who).prompt(self.texts[i]), n, axis=0)

    def guided(self, scale: float) -> models.ClassifierFreeGuidance:
        """Guidance as it was published."""
        free = None if self.free is self.model else self.free
        return models.ClassifierFreeGuidance(model=self.model, scale=scale, unconditional=free)

    def decoded(self, z: Array) -> Array:
        """Images in their scale, of what was sampled."""
        return z if self.latents is None else self.latents.decode(z)

    def stored(self, images: Array) -> np.ndarray:
        """Decoded images as uint8."""
        return np.asarray(self.transform.decode(images))

    def flops(self, scale: float) -> float:
        """Floating point operations of a guided call for one sample, as XLA counts them before it compiles."""
        return operations(_asked, self.guided(scale), jnp.zeros((1, *self.event)), jnp.ones(()), self.cond(0, 1))


@partly_static("which")
@dataclass(frozen=True, kw_only=True)
class HostReward:
    """What a Python function says of images under one of several prompts; another prompt compiles nothing.

    Attributes:
        fn: ``reward(prompt, images)`` of a text and images (n, h, w, c) uint8, to n numbers. It must not use JAX.
        texts: all prompts.
        which: the number of the one; a leaf.
    """

    fn: Callable[[str, np.ndarray], Any]
    texts: tuple[str, ...]
    which: Array | int = 0

    def __call__(self, x: Array) -> Array:
        """Rewards ``(n,)`` of decoded images, on the scale [-1, 1]."""
        asked = remembered(functools.partial(_on_host, self.fn, self.texts), self.fn)
        found = jax.ShapeDtypeStruct(x.shape[:1], x.dtype)
        return jax.pure_callback(asked, found, x, jnp.asarray(self.which, jnp.int32), vmap_method="sequential")


def _on_host(fn: Callable, texts: tuple[str, ...], x: Array, which: Array) -> np.ndarray:
    of_images = lambda x: fn(texts[int(which)], np.clip(np.floor(127.5 * x + 128), 0, 255).astype(np.uint8))
    return fk.Callback(of_images).on_host(np.asarray(x))


class Judge:
    """The reward of every prompt, and how far images are apart.

    Attributes:
        name: of the reward.
        unit: what a reward is multiplied with where it is told, 100 for the CLIP score.
        with_cond: the reward takes the conditions of the samples.
        origin: name of the reward and hash of its weights, None for a function.
    """

    def __init__(
        self,
        subject: Subject,
        reward: str,
        *,
        clip: str = "",
        tokenizer: Path | None = None,
        predictor: Path | None = None,
        host: Path | None = None,
    ):
        self.subject, self.name, self.unit, self.with_cond, self._targets = subject, reward, 1.0, False, None
        texts = tuple(subject.texts)
        if reward == "host":
            self._reward = HostReward(fn=_reward_of(host), texts=texts)
        elif reward == "classifier":
            # Its condition is the class.
            data = getattr(getattr(subject.who, "config", None), "data", None)
            if subject.classes is None or data is None:
                raise ConfigError(
                    "reward = classifier: expected a model of classes that was trained here, such as digits-edm-classes"
                )
            self._reward, self.with_cond = fk.rewards.ClassLogProb(dataset=data.name), True
        elif reward == "aesthetic":
            self._reward = pretrained.aesthetic(clip, _given("predictor", predictor, "the file of the aesthetic predictor"))
        else:
            tokenizer = _given("tokenizer", tokenizer, "the folder of the tokenizer of the CLIP")
            self._reward, self.unit = pretrained.clip_cosine(clip, tokenizer, texts[0]), 100.0
            self._targets = np.asarray(load_text(store.open_folder(cast(Path, store.find(clip))), tokenizer).projected(texts))
        if reward in ("clip", "aesthetic"):
            self._reward = jax.device_put(self._reward)
        leaves = jax.tree.leaves(self._reward) if reward in ("clip", "aesthetic") else None
        self.origin = dict(reward=reward, weights=leaves and parameters_hash(leaves))

    def of_images(self, i: int) -> Any:
        """The reward of decoded images under prompt ``i``."""
        if isinstance(self._reward, HostReward):
            return dataclasses.replace(self._reward, which=np.int32(i))
        return self._reward if self._targets is None else dataclasses.replace(self._reward, target=self._targets[i])

    def reward(self, i: int) -> Any:
        """The reward of samples under prompt ``i``, for a potential."""
        found = self.of_images(i)
        return found if self.subject.latents is None else fk.rewards.Decoded(reward=found, decoder=self.subject.latents)

    def __call__(self, i: int, images: Array) -> np.ndarray:
        """Rewards as they are told, ``(n,)``."""
        cond = (self.subject.cond(i, len(images)),) if self.with_cond else ()
        return self.unit * np.asarray(_looked(_Held(self.of_images(i)), images, *cond), np.float64)

    def points(self, images: Array) -> np.ndarray:
        """Directions in the space of CLIP where it looks, else in that of pixels; ``(n, d)`` of length one."""
        if self.name in ("clip", "aesthetic"):
            return np.asarray(_directed(self._reward, images), np.float64)
        flat = np.asarray(images, np.float64).reshape(len(images), -1)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    def flops(self) -> float:
        """Floating point operations of a look at one sample, what is asked on the host not counted."""
        cond = (self.subject.cond(0, 1),) if self.with_cond else ()
        return operations(_looked, _Held(self.reward(0)), jnp.zeros((1, *self.subject.event)), *cond)


def apart(points: np.ndarray) -> float:
    """One minus the mean cosine of two of the points ``(..., n, d)``, which have length one."""
    n = points.shape[-2]
    total = np.square(points.sum(-2)).sum(-1)
    return float(1 - np.mean((total - n) / (n * (n - 1))))


def estimate(calls: float, a_call: float, looks: float, a_look: float) -> dict[str, float]:
    """What so many calls of the network and looks of the judge cost; the minutes are those of one GPU, and assumed."""
    total = calls * a_call + looks * a_look
    found = dict(gflop_a_call=a_call / 1e9, gflop_a_look=a_look / 1e9, calls=calls, looks=looks, pflop=total / 1e15)
    return found | dict(minutes_assumed=total / ASSUMED / 60, flops_assumed=ASSUMED)


def shown(images: np.ndarray, side: int = 128) -> np.ndarray:
    """Stored images, averaged over blocks until they are about ``side`` pixels wide."""
    k = max(1, images.shape[1] // side)
    h, w = (size // k for size in images.shape[1:3])
    blocks = images[:, : h * k, : w * k].reshape(len(images), h, k, w, k, -1)
    return np.round(blocks.mean((2, 4))).astype(np.uint8)


def in_rows(rows: Sequence[np.ndarray], columns: int, empty: int) -> np.ndarray:
    """Images of every row one after the other, each filled up to ``columns`` with empty ones of the level ``empty``."""
    rest = lambda row: np.full((columns - len(row), *row.shape[1:]), empty, np.uint8)
    return np.concatenate([part for row in rows for part in (row[:columns], rest(row[:columns]))])


@jax.jit
def _asked(model, y, t, cond):
    return model(y, t, cond).denoised


@partly_static("reward")
@dataclass(frozen=True)
class _Held:
    """A reward, function or callable pytree, as an argument of a compiled function."""

    reward: Any


@jax.jit
def _looked(held, x, *cond):
    return held.reward(x, *cond)


@jax.jit
def _directed(reward, x):
    return reward.direction(reward.unit(x))


def _by_chunks(latents: Any, chunk: int) -> Any:
    """The autoencoder, with so many images at once."""
    if hasattr(latents, "latents"):
        return dataclasses.replace(latents, latents=_by_chunks(latents.latents, chunk))
    return dataclasses.replace(latents, chunk=chunk)


def _prompts(file: Path | None, first: int, who: Any) -> tuple[list[str], list[int] | None]:
    """Texts, and the classes of a model of classes: of the lines of a file, or by default."""
    texts: list[str]
    labels: list[int] | None
    if file is None:
        texts, labels = ([*PROMPTS], None) if who.text is not None else _classes(who)
    else:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"prompts = {file.name}: {error}: expected a text file with a prompt on each line") from error
        if not lines:
            raise ConfigError(f"prompts = {file.name}: nothing inside: expected a prompt on each line")
        texts, labels = (lines, None) if who.text is not None else _labelled(file, lines, who.classes)
    first = first or len(texts)
    return texts[:first], labels and labels[:first]


def _classes(who: Any) -> tuple[list[str], list[int]]:
    return [f"class {k}" for k in range(who.classes)], list(range(who.classes))


def _labelled(file: Path, lines: list[str], classes: int) -> tuple[list[str], list[int]]:
    pairs = [line.partition(" ") for line in lines]
    for line, (number, _, text) in zip(lines, pairs, strict=True):
        if not number.isdecimal() or int(number) >= classes or not text.strip():
            raise ConfigError(f"prompts = {file.name}: {line!r}: expected a class from 0 to {classes - 1}, a space and its text")
    return [text.strip() for _, _, text in pairs], [int(number) for number, _, _ in pairs]


def _given(option: str, value: Path | None, what: str) -> Path:
    if value is None or not value.exists():
        raise ConfigError(f"{option} = {value}: expected {what}")
    return value


def _reward_of(file: Path | None) -> Callable:
    """The function ``reward`` of a Python file."""
    file = _given("host", file, "a Python file with a function reward(prompt, images)")
    spec = importlib.util.spec_from_file_location(f"_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"host = {file.name}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(found := getattr(module, "reward", None)):
        raise ConfigError(f"host = {file.name}: expected a function reward(prompt, images) in it")
    return found
