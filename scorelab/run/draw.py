"""The sampling stage: from the newest checkpoint to ``samples.npz`` and its pictures."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from scorelab import viz
from scorelab.data.memory import require_memory
from scorelab.files import DamagedFile, read_npz, write_bytes, write_npz
from scorelab.run.console import Console
from scorelab.run.describe import describe
from scorelab.run.experiment import Experiment
from scorelab.run.sources import ConfigError, shown
from scorelab.run.train import trained_state
from scorelab.run.workdir import Workdir
from scorelab.sampling import Samples, sample
from scorelab.solvers.base import population_size
from scorelab.training import data_mesh
from scorelab.typing import require_seed

# Frames of a trajectory of images and of points, and images of the sample picture.
FRAMES, POINT_FRAMES, PICTURED = 10, 5, 100


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Samples in stored values, their conditions or None, and how they were drawn (JSON data)."""

    x: np.ndarray
    label: np.ndarray | None
    record: dict[str, Any]


def read_samples(workdir: Workdir) -> Drawn | None:
    """The samples of a work directory, None where there are none; DamagedFile where they are not what was written."""
    if not workdir.samples.is_file():
        return None
    # Samples that are all one point are compressed a thousandfold; anything beyond that has no place there.
    stored = read_npz(workdir.samples, limit=max(1 << 28, 256 * workdir.samples.stat().st_size), name=shown(workdir.samples))
    try:
        record = json.loads(str(stored["record"]))
        if missing := {"step", "n", "seed", "sampling", "seconds", "model_calls"} - record.keys():
            raise ValueError(f"its record has no {', '.join(sorted(missing))}")
        return Drawn(x=stored["x"], label=stored.get("label"), record=record)
    except (KeyError, ValueError, AttributeError) as error:
        raise DamagedFile(f"{shown(workdir.samples)}: not samples written by `scorelab sample`: {error}") from error


def draw(
    experiment: Experiment,
    workdir: Workdir,
    console: Console,
    *,
    n: int | None = None,
    seed: int | None = None,
    keep: bool = False,
) -> Drawn:
    """Sample the newest checkpoint, unless these very samples are there already.

    With ``keep``, ConfigError rather than the loss of other samples that were scored, or of any file of another name.
    """
    if seed is not None:
        require_seed("sample", seed=seed)
    spec, data = experiment.sampling, experiment.data
    n = spec.n if n is None else n
    event = data.load().event_shape
    require_memory(f"sample.n = {n}", 4.0 * n * math.prod(event))
    state, step = trained_state(experiment, workdir)
    how = {"step": step, "n": n, "seed": experiment.seed if seed is None else seed, "sampling": describe(spec)}
    if (before := _already(workdir, how, keep)) is not None:
        console.stage("sample", f"nothing to do, {n} samples of step {step} are there")
        return before

    label = spec.conditions(data, n)
    model, solver, start = spec.applied(experiment.learner.model(state))
    run = functools.partial(
        sample,
        model,
        solver=solver,
        grid=spec.grid,
        start=spec.begin(data, experiment.process, label) if start is None else start,
        key=experiment.keys()[1] if seed is None else jax.random.key(seed),
    )
    began = time.monotonic()
    with console.progress("sample", n) as tick:
        mesh = data_mesh() if jax.device_count() > 1 else None
        progress = lambda done, total: tick(done)
        out = run(shape=(n, *event), cond=label, chunk=spec.chunk, mesh=mesh, progress=progress)
        x = np.asarray(data.transform.decode(out.x))
    record = {**how, "seconds": time.monotonic() - began, "model_calls": int(out.diagnostics["model_calls"])}
    note = _entered(out, record)
    # Pictures of one sampler never lie beside samples of another, whenever this is stopped: those of before go first, and samples
    # without pictures are drawn again.
    for path in (workdir.samples_picture, workdir.trajectory_picture):
        path.unlink(missing_ok=True)
    arrays = {"x": x, "record": np.asarray(json.dumps(record, allow_nan=False))}
    write_npz(workdir.samples, arrays if label is None else {**arrays, "label": label})
    write_bytes(workdir.samples_picture, viz.to_png_bytes(picture(x, experiment)))
    write_bytes(workdir.trajectory_picture, viz.to_png_bytes(_trajectory(experiment, run, label)))
    where = "" if workdir.place == workdir.root else f", {shown(workdir.samples)}"
    console.stage("sample", f"{n} samples, {record['model_calls']} model calls each, {record['seconds']:.1f} s{note}{where}")
    return Drawn(x=x, label=label, record=record)


def _already(workdir: Workdir, how: Mapping[str, Any], keep: bool) -> Drawn | None:
    """The samples that were drawn like this, with their pictures; None where there are none. ConfigError as :func:`draw`."""
    if keep and workdir.out is not None and workdir.out.exists():
        raise ConfigError(f"--out {shown(workdir.out)} exists: pass another name")
    if (before := read_samples(workdir)) is None:
        return None
    was = before.record
    if all(was.get(key) == value for key, value in how.items()):
        return before if workdir.samples_picture.is_file() and workdir.trajectory_picture.is_file() else None
    if keep and workdir.metrics.is_file():
        raise ConfigError(
            f"{shown(workdir.samples)} holds {was['n']} samples of step {was['step']}, seed {was['seed']}, that were scored: "
            "pass --name or --out for others"
        )
    return None


def _entered(out: Samples, record: dict[str, Any]) -> str:
    """Enter what a sampler says of itself into the record; a note of what should be seen."""
    note = ""
    if (flips := out.diagnostics.get("sign_flips")) is not None:
        # Decoding to pixels clips what is negative, so this is where a change of sign would be lost.
        record["samples_with_a_changed_sign"] = int(np.sum(np.asarray(flips) > 0))
        note = f", {record['samples_with_a_changed_sign']} with a changed sign"
    return note + _weights(out, record)


def _weights(out: Samples, record: dict[str, Any]) -> str:
    """Enter what weighted particles say of themselves; a note where weights were not numbers or a population died."""
    if "final_ess" not in out.diagnostics:
        return ""
    ess, log_z = (np.ravel(np.asarray(values, np.float64)) for values in (out.diagnostics["final_ess"], out.log_z))
    bad, dead = int(np.sum(np.asarray(out.diagnostics["bad_weights"]))), int(np.sum(~(ess > 0)))
    record["weights"] = {
        "populations": len(ess),
        "dead_populations": dead,
        "bad_weights": bad,
        # JSON has no infinity: None is a population without any weight.
        "final_ess": [float(v) if np.isfinite(v) else None for v in ess],
        "log_z": [float(v) if np.isfinite(v) else None for v in log_z],
    }
    return f", {dead} of {len(ess)} populations without any weight, {bad} weights that were no numbers" if bad or dead else ""


def picture(x: np.ndarray, experiment: Experiment):
    """The figure of a set in stored values: the first images, or the points in the chart of the process.

    Points that are not in the plane become a histogram of all their coordinates beside that of the training data.
    """
    data = experiment.data.load()
    if data.levels is not None:
        return viz.image_grid(x[:PICTURED], levels=data.levels, columns=10)
    points, reference = _in_chart(x, experiment), _in_chart(data.x, experiment)
    if data.event_shape == (2,):
        return viz.scatter(points, reference=reference)
    return viz.histogram({"samples": points, "data": reference})


def _in_chart(x: np.ndarray, experiment: Experiment) -> np.ndarray:
    """Where points are shown: logarithms fill a picture that heavy tails would leave empty."""
    # Compiled, the chart does not refuse a sample that has underflowed to 0: a picture is no reason to lose a run.
    return np.asarray(jax.jit(experiment.process.chart.encode)(experiment.data.transform.encode(x)))


def _trajectory(experiment: Experiment, run: Callable[..., Samples], label: np.ndarray | None):
    spec, data = experiment.sampling, experiment.data
    levels = data.load().levels
    shown = min(spec.n, spec.shown if levels is not None else 2000)
    # Whole populations are drawn, of which the first samples are shown.
    particles = population_size(spec.solver, shown)
    n = -(-shown // particles) * particles
    cond = None if label is None else np.resize(label, n)
    out = run(shape=(n, *data.load().event_shape), cond=cond, chunk=n, keep="all")
    # The start, then the later two thirds: before that there is noise of one kind only.
    last, count = len(out.times) - 1, POINT_FRAMES if levels is None else FRAMES
    chosen = np.unique(np.append(0, np.linspace(last / 3, last, count - 1).round().astype(int)))
    frames = np.asarray(out.trajectory)[chosen, :shown]
    headings = [f"t = {out.times[i]:.3g}" for i in chosen]
    if levels is None:
        frames = np.stack([np.asarray(jax.jit(experiment.process.chart.encode)(frame)) for frame in frames])
        if data.load().event_shape == (2,):
            return viz.trajectory(frames, headings)
        return viz.histogram(dict(zip(headings, frames, strict=True)), columns=len(frames), width=9.0)
    images = np.stack([np.asarray(data.transform.decode(_in_range(frame, frames[-1]))) for frame in frames])
    return viz.trajectory(images, headings, levels=levels)


def _in_range(frame: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Noise shown at the brightness and contrast of the data: it would be all black and white otherwise."""
    shrink = min(1.0, float(last.std()) / max(float(frame.std()), 1e-12))
    return last.mean() + (frame - frame.mean()) * shrink if shrink < 1 else frame
