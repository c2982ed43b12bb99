"""A few samples from the same noise at some checkpoints of a training: how they come about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from scorelab.errors import shown
from scorelab.experiment.base import Experiment, Stage
from scorelab.experiment.describe import describe
from scorelab.experiment.pictures import FRAMES, POINT_FRAMES, as_images, beside, in_chart
from scorelab.experiment.workdir import Workdir
from scorelab.files import DamagedFile, read_npz, write_npz


def described(experiment: Experiment, spec: Stage) -> dict[str, Any]:
    """How the samples of a stage are drawn (JSON data)."""
    return {"seed": experiment.seed, "sampling": describe(spec)}


def write(workdir: Workdir, step: int, x: np.ndarray, how: Mapping[str, Any]) -> None:
    """Write samples of the weights of ``step``, in stored values, and how they were drawn (JSON data)."""
    workdir.previews.mkdir(exist_ok=True)
    write_npz(workdir.previews / f"{step}.npz", {"x": x, "record": np.asarray(json.dumps(how, allow_nan=False))})


def read(workdir: Workdir, step: int, how: Mapping[str, Any]) -> np.ndarray | None:
    """The samples of ``step`` that were drawn like this; None where there are none."""
    path = workdir.previews / f"{step}.npz"
    if not path.is_file():
        return None
    try:
        stored = read_npz(path, limit=max(1 << 28, 256 * path.stat().st_size), name=shown(path))
        return stored["x"] if json.loads(str(stored["record"])) == how else None
    except (DamagedFile, KeyError, ValueError):
        # No more than a picture is lost.
        return None


def picture(workdir: Workdir, experiment: Experiment, how: Mapping[str, Any]):
    """The figure of all that were drawn like this, at most ``FRAMES`` of them; None where there are none.

    Images have one row for each noise and one column for each step, points one panel for each step.
    """
    steps = sorted(int(path.stem) for path in workdir.previews.glob("*.npz") if path.stem.isdecimal())
    found = {step: x for step in steps if (x := read(workdir, step, how)) is not None}
    if not found:
        return None
    chosen = [list(found)[i] for i in np.unique(np.linspace(0, len(found) - 1, FRAMES).round().astype(int))]
    states = np.stack([found[step] for step in chosen])
    headings = [f"step {step:,}" for step in chosen]
    if as_images(experiment):
        return beside(states, headings, experiment, width=0.75 * len(chosen))
    # A single panel of points is no wider than one of five.
    width = 9.0 * min(len(chosen), POINT_FRAMES) / POINT_FRAMES
    return beside(np.stack([in_chart(x, experiment) for x in states]), headings, experiment, width=width)
