"""The Inception score of papers: how sure a classifier is of each sample, and how little it is of all."""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import numpy as np

from scorelab.metrics.features import blocks
from scorelab.metrics.value import MetricValue, numbers
from scorelab.validation import require_int, require_seed


class Classifier(Protocol):
    """Features that know class probabilities, as ``SmallCNN`` and ``pretrained.InceptionFeatures`` do."""

    @property
    def id(self) -> Any:
        """The name to print."""
        ...

    def class_probabilities(self, images: np.ndarray) -> np.ndarray:
        """Of images, ``(n, classes)``."""
        ...


def effective_classes(x: Any, features: Classifier, *, splits: int = 10, seed: int = 2020) -> MetricValue:
    r"""The Inception score: the exponential of the mutual information between a sample and its class, a mean over parts.

    .. math:: \exp E_x\,\mathrm{KL}\big(p(c|x)\,\|\,E_x p(c|x)\big)

    It is between 1 and the number of classes, and grows with quality and with variety among classes; it knows nothing of the data.
    Samples are dealt out by ``seed``, since they may come in the order of their classes. The default is that of torch-fidelity,
    whose values these are. ``stderr`` is the deviation over the parts, which papers print, over the root of their number.
    Source: Salimans et al., "Improved techniques for training GANs", 2016, arXiv 1606.03498, section 4.

    Args:
        x: samples as ``features`` takes them; of those on disk (:class:`scorelab.Shards`) a block is read at a time.
        features: with ``class_probabilities``.
        splits: number of parts; each has at least one sample.
        seed: of the order.

    Raises:
        TypeError: features without class probabilities.
        ValueError: fewer samples than parts, or rows that are no probabilities.
    """
    require_int("effective_classes", 1, splits=splits)
    require_seed("effective_classes", seed=seed)
    if not callable(getattr(features, "class_probabilities", None)):
        raise TypeError(f"effective_classes.features = {features!r}: expected features with class_probabilities")
    if len(x) < splits:
        raise ValueError(f"effective_classes.splits = {splits} of {len(x)} samples: expected at most their number")
    p = np.concatenate([numbers(features.class_probabilities(block), "class_probabilities") for block in blocks(x)])
    # Float32 sums of a thousand classes.
    if p.ndim != 2 or len(p) != len(x) or p.min() < 0 or np.abs(p.sum(-1) - 1).max() > 1e-3:
        raise ValueError(f"class_probabilities are of shape {p.shape}: expected ({len(x)}, classes), rows that sum to 1")
    p = p[np.random.RandomState(seed).permutation(len(p))]
    edges = [i * len(p) // splits for i in range(splits + 1)]
    found = np.array([_exponential(p[low:high]) for low, high in itertools.pairwise(edges)])
    stderr = float(found.std() / np.sqrt(splits)) if splits > 1 else None
    return MetricValue(name="IS", value=float(found.mean()), extractor=features.id, n=len(p), stderr=stderr)


def _exponential(p: np.ndarray) -> float:
    mean = p.mean(0)
    # 0 log 0 is 0, and where a mean is 0 so is every row.
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(mean)), 0)
    return float(np.exp(terms.sum(1).mean()))
