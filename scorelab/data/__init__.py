"""Data sets by name, batches by step, and the scale between stored values and what a diffusion sees."""

from scorelab.data.arrays import Arrays
from scorelab.data.base import DataSet
from scorelab.data.batches import Batches, IteratorAdapter, RowSource, StatefulIterator
from scorelab.data.couplings import Assignment, Coupled, Coupling, CouplingWarning, Entropic, Independent, Paired
from scorelab.data.derived import Derived, Moments, SuperResolution
from scorelab.data.ends import Classes, Encoded, Upsampled, WithBase
from scorelab.data.files import DataCorrupt, DataNotFound, PublishedFile
from scorelab.data.own import ArrayFile, ImageFolder, Indexed, Rows
from scorelab.data.registry import Named, load, names
from scorelab.data.transforms import Identity, Pixels, Positive, Transform

__all__ = [
    "ArrayFile",
    "Arrays",
    "Assignment",
    "Batches",
    "Classes",
    "Coupled",
    "Coupling",
    "CouplingWarning",
    "DataCorrupt",
    "DataNotFound",
    "DataSet",
    "Derived",
    "Encoded",
    "Entropic",
    "Identity",
    "ImageFolder",
    "Independent",
    "Indexed",
    "IteratorAdapter",
    "Moments",
    "Named",
    "Paired",
    "Pixels",
    "Positive",
    "PublishedFile",
    "RowSource",
    "Rows",
    "StatefulIterator",
    "SuperResolution",
    "Transform",
    "Upsampled",
    "WithBase",
    "load",
    "names",
]
