"""Multiplicative against additive diffusion on images: the same network, training budget and number of model calls.

Trains `paper/2510.02730/DATA`, `DATA_additive` and (on the digits and MNIST) `DATA_wide`, which has sigma = 4, once per seed. Then
it draws samples with every combination of sampler, start and grid, and scores them beside test images (the floor). `n` is the
number of samples of each way, `steps` that of training (0 for those of the config). `quick 1` leaves out the uniform grids and
sigma = 4. `long` is the number of steps of the two schemes in a longer run (0 for none).
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from subject import DATA, draw, images, network

from scorelab import grids, solvers, viz
from scorelab.experiment import DataStart, Evaluate, Sample
from scorelab.run.figure import Claim, Figure, Verdict, plus_minus

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Multiplicative diffusion generates MNIST, Fashion-MNIST and Kuzushiji-MNIST by two rules, from a log-normal start.",
    look_for="The log-normal start is behind the start with the moments of the data, a little on the digits and far on MNIST. "
    "Additive diffusion is ahead of multiplicative diffusion at the paper's noise level.",
    minutes=dict(small=3, full=60, gpu=None),
    options=dict(data=DATA, seeds=3, n=0, steps=0, quick=0, long=1000),
    small=dict(seeds=2, n=200, steps=1000, quick=1, long=0),
)

CALLS, SHOWN = 36, 10
SAMPLERS = {
    "Dale-Langevin": (solvers.EulerMaruyama(), CALLS),
    "sign-agnostic": (solvers.EulerMaruyama(coords="ambient"), CALLS),
    "Heun": (solvers.Heun(), CALLS // 2),
}
STARTS = {"log-normal": DataStart(kind="lognormal"), "moments": DataStart(kind="moments")}
GRIDS = {"uniform": grids.Uniform, "Karras": grids.Karras}
SCORES = ("FID", "KID", "precision", "recall")
WIDE = ("digits", "mnist")
ADDITIVE = "additive, Heun, Karras"


def ways(kind: str, quick: bool, long: int) -> dict[str, tuple]:
    """Name -> (solver, grid, start) of the ways to sample; ``long`` adds the two schemes with that many steps."""
    if kind == "_additive":
        return {ADDITIVE: (solvers.Heun(), grids.Karras(CALLS // 2), None)}
    if kind == "_wide":
        # The sign-agnostic rule does not survive 36 steps from this noise: values leave float32.
        return {
            f"{name}, moments, Karras, sigma = 4": (solver, grids.Karras(steps), STARTS["moments"])
            for name, (solver, steps) in SAMPLERS.items()
            if name != "sign-agnostic"
        }
    found = {
        f"{name}, {start}, {grid}": (solver, make(steps), from_data)
        for name, (solver, steps) in SAMPLERS.items()
        for start, from_data in STARTS.items()
        for grid, make in GRIDS.items()
        if not quick or grid == "Karras"
    }
    for name in ("Dale-Langevin", "sign-agnostic") if long else ():
        for start, from_data in STARTS.items():
            found[f"{name}, {start}, {long} uniform steps"] = (SAMPLERS[name][0], grids.Uniform(long), from_data)
    return found


def kinds(options) -> tuple[str, ...]:
    """The configs that are trained, by what follows the name of the data."""
    return ("", "_wide", "_additive") if options.data in WIDE and not options.quick else ("", "_additive")


def measure(experiment, model, kind: str, options) -> dict:
    """Name -> the metrics of what is drawn that way, the samples in which a sign changed, and the first images."""
    evaluation = experiment.one(Evaluate).evaluations[0]
    drawn = options.n or experiment.one(Sample).n
    scorer, found = dataclasses.replace(evaluation, n=min(drawn, evaluation.n)), {}
    for name, (solver, grid, start) in ways(kind, bool(options.quick), options.long).items():
        out, _ = draw(experiment, model, solver, grid, start, drawn)
        x = images(experiment, out.x)
        # One evaluation key for all seeds: the same reference images and the same floor.
        metrics = {m.name.split("(")[0]: m for m in scorer(x, experiment.data, jax.random.key(0))}
        found[name] = dict(
            scores={s: metrics[s].value for s in SCORES}, floors={s: metrics[s].floor for s in SCORES}, images=x[:SHOWN],
            signs=int(np.sum(np.asarray(out.diagnostics.get("sign_flips", np.zeros(drawn))) > 0)),
        )  # fmt: skip
    return dict(ways=found, extractor=evaluation.features.id, drawn=drawn, n=scorer.n)


def claims(numbers: dict) -> list[Claim]:
    """What the paper says of images, beside what was found."""
    scores = numbers["scores"]

    def ratio(way: str, other: str) -> tuple[float, float]:
        values = np.divide(scores[way]["FID"], scores[other]["FID"])
        return float(values.mean()), float(values.std(ddof=values.size > 1))

    def verdict(value: float, _: float) -> Verdict:
        return "reproduced" if value <= 1.1 else "in shape" if value < 2 else "not reproduced"

    first = "Dale-Langevin, log-normal, Karras"
    additive, moments, rules = (ratio(first, ADDITIVE), ratio(first, "Dale-Langevin, moments, Karras"),
                                ratio("sign-agnostic, log-normal, Karras", first))  # fmt: skip
    long = [name for name in scores if name.endswith("uniform steps") and "log-normal" in name]
    many = f"With {long[0].split(', ')[-1]} it is {ratio(long[1], long[0])[0]:.3g}. " if long else ""
    bound = f"Up to 1.1 counts as equal, below 2 as near; seeds: {len(scores[first]['FID'])}."
    of = f"{numbers['extractor']}, n = {numbers['n']}"
    return [
        Claim(
            says="Multiplicative diffusion generates images, with the paper's noise, start and Dale-Langevin rule.",
            value=additive[0], spread=additive[1], unit=f"times the FID of additive diffusion with the same network ({of})",
            verdict=verdict(*additive), why=bound,
        ),
        Claim(
            says="One log-normal law for all pixels is a start to sample from.", value=moments[0], spread=moments[1],
            unit="times the FID from the moments of the data", verdict=verdict(*moments), why=bound,
        ),
        Claim(
            says="The sign-agnostic sampler generates images as the Dale-Langevin sampler does.", value=rules[0], spread=rules[1],
            unit=f"times its FID with {CALLS} model calls", verdict=verdict(*rules), why=many + bound,
        ),
    ]  # fmt: skip


def fid_figure(numbers: dict, data: str):
    """The Frechet distance of every way, every seed."""
    return viz.dots(
        {name: found["FID"] for name, found in numbers["scores"].items()}, reference={"test images": numbers["floors"]["FID"]},
        logx=True, title=f"{data}, {CALLS - 1} or {CALLS} model calls: every seed, and the mean",
        xlabel=f"FID-{numbers['extractor']}, n = {numbers['n']}",
    )  # fmt: skip


def main(record) -> None:
    options, scores, floors, pictures = record.options, {}, {}, {}
    for seed in range(options.seeds):
        for kind in kinds(options):
            experiment, model = network(record, options.data, kind=kind, seed=seed, steps=options.steps)
            found = record.cell(f"{options.data}{kind}, seed {seed}", measure, experiment, model, kind, options)
            for name, row in found["ways"].items():
                for score in SCORES:
                    scores.setdefault(name, {}).setdefault(score, []).append(row["scores"][score])
                scores[name].setdefault("samples with a changed sign", []).append(row["signs"])
                floors |= row["floors"]
                if seed == 0 and "Karras" in name:
                    pictures[name] = row["images"]
    print(f"\n{'':52s}" + "".join(f"{name:>18s}" for name in SCORES))
    for name, row in {"test images (floor)": {k: [v] for k, v in floors.items()}, **scores}.items():
        print(f"{name:52s}" + "".join(f"{plus_minus(row[s]):>18s}" for s in SCORES))
    numbers = dict(extractor=found["extractor"], drawn=found["drawn"], n=found["n"], calls=CALLS, floors=floors, scores=scores)
    samples = viz.image_grid(
        np.concatenate(list(pictures.values())), levels=experiment.data.load().levels, columns=SHOWN, rows=list(pictures), width=6
    )
    record.write(numbers, claims=claims(numbers), fid=fid_figure(numbers, options.data), samples=samples)


if __name__ == "__main__":
    FIGURE.make(main)
