"""Data sets by name, batches by step, and the scale between stored values and what a diffusion sees."""

from scorelab.data.arrays import Arrays
from scorelab.data.base import DataSet
from scorelab.data.batches import Batches, IteratorAdapter, RowSource, StatefulIterator
from scorelab.data.couplings import (
    Assignment,
    Coupled,
    Coupling,
    CouplingWarning,
    Entropic,
    Independent,
    Inpainting,
    Paired,
    Rectified,
)
from scorelab.data.dequantised import Dequantised
from scorelab.data.derived import Derived, Moments, SuperResolution
from scorelab.data.ends import Classes, Encoded, Upsampled, WithBase
from scorelab.data.files import DataCorrupt, DataNotFound, PublishedFile
from scorelab.data.own import ArrayFile, ImageFolder, Indexed, Rows
from scorelab.data.registry import Named, load, names
from scorelab.data.subset import Subset
from scorelab.data.transforms import Cells, Identity, Pixels, Positive, Transform

__all__ = [
    "ArrayFile",
    "Arrays",
    "Assignment",
    "Batches",
    "Cells",
    "Classes",
    "Coupled",
    "Coupling",
    "CouplingWarning",
    "DataCorrupt",
    "DataNotFound",
    "DataSet",
    "Dequantised",
    "Derived",
    "Encoded",
    "Entropic",
    "Identity",
    "ImageFolder",
    "Independent",
    "Indexed",
    "Inpainting",
    "IteratorAdapter",
    "Moments",
    "Named",
    "Paired",
    "Pixels",
    "Positive",
    "PublishedFile",
    "Rectified",
    "RowSource",
    "Rows",
    "StatefulIterator",
    "Subset",
    "SuperResolution",
    "Transform",
    "Upsampled",
    "WithBase",
    "load",
    "names",
]
