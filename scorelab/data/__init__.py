"""Data sets by name, batches by step, and the scale between stored values and what a diffusion sees."""

from scorelab.data.arrays import Arrays
from scorelab.data.batches import Batches, IteratorAdapter, StatefulIterator
from scorelab.data.files import DataCorrupt, DataNotFound, PublishedFile
from scorelab.data.registry import load, names
from scorelab.data.transforms import Identity, Pixels, Positive, Transform

__all__ = [
    "Arrays",
    "Batches",
    "DataCorrupt",
    "DataNotFound",
    "Identity",
    "IteratorAdapter",
    "Pixels",
    "Positive",
    "PublishedFile",
    "StatefulIterator",
    "Transform",
    "load",
    "names",
]
