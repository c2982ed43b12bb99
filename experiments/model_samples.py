r"""The picture of docs/pretrained.md: a row of samples of every model that the package carries, by the sampler of its config.

    python experiments/model_samples.py

Classes go from 0 to 9 where the model knows them; the others draw what they like. Nothing is chosen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from scorelab import pretrained, viz
from scorelab.run.figure import script
from scorelab.viz.images import as_uint8

IMAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "pretrained.png"
COLUMNS, SIZE = 10, 56


def row(name: str) -> np.ndarray:
    """Samples of a model as uint8 RGB images of ``SIZE`` pixels, every stored pixel a whole square of them."""
    who = pretrained.load(name)
    images = as_uint8(who.sample(COLUMNS).x, who.data().levels)
    print(name, flush=True)
    zoom = SIZE // images.shape[1]
    return images.repeat(zoom, 1).repeat(zoom, 2)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    names = pretrained.names()
    figure = viz.image_grid(np.concatenate([row(name) for name in names]), columns=COLUMNS, rows=names)
    print("wrote", viz.save(figure, IMAGE).name)


if __name__ == "__main__":
    script(main)
