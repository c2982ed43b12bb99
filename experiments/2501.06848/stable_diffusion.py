"""Stable Diffusion steered towards a reward: best and mean reward against the particles, beside best-of-k with equal calls.

The form is that of the published code: DDIM with eta 1 in 100 steps, guidance 7.5, lambda 10, a potential at every 20th step from
20 to 80 and at the end, resampling at each. The reward is that of decoded denoised means: the CLIP score (`clip`, `tokenizer`), the
aesthetic predictor (`predictor`), or any function `reward(prompt, images)` of a Python file (`host`), such as ImageReward. `scale`
is in the unit of the reward; the CLIP score is 100 times the cosine. Particles keep their weights at the end: the mean is weighted,
and the best is that of all particles. Unsteered draws of a prompt are the same for every k.

`prompts` is a file with one on each line. At small size the model is the one of the digits that the package carries, its prompts
are classes, it is not told them, and the reward is its classifier's log-probability. By its operations alone, a prompt of Stable
Diffusion 1.5 with 2, 4 and 8 particles and 8 unsteered draws takes 3.8 PFLOP: 25 s of a GPU at an assumed 150 TFLOP/s, without the
host. Eight particles take an estimated 16 GB: 1.7 of the network in bfloat16, 1.7 of CLIP ViT-L/14, 0.3 of the autoencoder, 2.5 for
each image that is decoded at once (`decoded`), and what is between the layers. None of this was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scorelab import fk, sample, solvers, viz
from scorelab.errors import ConfigError
from scorelab.run.figure import Claim, Figure, plus_minus
from scorelab.run.prompted import REWARDS, Judge, Subject, estimate, in_rows, shown

FIGURE = Figure(
    __doc__,
    answers="Figures 2 and 4",
    claims="More particles follow prompts better: ImageReward of Stable Diffusion 2.1 rises from .37 to .91 with 4 particles, "
    "GenEval from .50 to .63, and best-of-k stays below.",
    look_for="The reward rises with the number of particles, and above that of the best of as many unsteered draws.",
    minutes=dict(small=0.3, full=None, gpu=None),
    options=dict(
        model="stable-diffusion-v1-5", prompts=Path, first=8, reward=REWARDS, clip="clip-vit-large-patch14", tokenizer=Path,
        predictor=Path, host=Path, potential=("max", "difference"), scale=10.0, guidance=7.5, steps=100, every=20, most=8, seeds=1,
        dtype=("bfloat16", "float32"), decoded=2,
    ),
    small=dict(
        model="digits-edm-classes", first=3, reward="classifier", scale=1.0, guidance=0.0, steps=20, every=4, most=8, seeds=2,
        dtype="float32",
    ),
)  # fmt: skip

RULES = {"max": fk.Max, "difference": fk.Difference}
# Of the steps, with events.
WINDOW = (0.2, 0.8)
BASE = solvers.DDIM(eta=1.0)
# GenEval by particles, read off the bars of Figure 2; ImageReward of Figure 4. Which of the two models 2.1 it was is not known.
_SD21 = {1: 0.50, 2: 0.553, 3: 0.60, 4: 0.63, 8: 0.645, 16: 0.652}
PUBLISHED = {
    "GenEval": {
        "stable-diffusion-v1-5": {1: 0.457, 2: 0.512, 3: 0.538, 4: 0.547, 8: 0.577, 16: 0.613},
        "stable-diffusion-2-1": _SD21,
        "stable-diffusion-2-1-base": _SD21,
    },
    "ImageReward": {name: {1: 0.37, 4: 0.91} for name in ("stable-diffusion-2-1", "stable-diffusion-2-1-base")},
}


@dataclass(frozen=True)
class Trial:
    """A model, who judges its images, and how they are made."""

    subject: Subject
    judge: Judge
    options: Any

    def walk(self, solver: Any, i: int, seed: int, n: int) -> Any:
        """``n`` samples of prompt ``i``."""
        o, subject = self.options, self.subject
        return sample(
            subject.guided(o.guidance), solver=solver, grid=subject.grid(o.steps), key=jax.random.fold_in(jax.random.key(seed), i),
            shape=(n, *subject.event), cond=subject.cond(i, n), chunk=n,
        )  # fmt: skip

    def steering(self, i: int, k: int) -> fk.FeynmanKac:
        """One population under the potential of prompt ``i``."""
        o, judge = self.options, self.judge
        potential = RULES[o.potential](
            judge.reward(i), np.float32(o.scale * judge.unit), every=o.every, window=WINDOW, with_cond=judge.with_cond
        )
        return fk.FeynmanKac(base=BASE, potential=potential, policy=fk.Always(), particles=k)

    def events(self) -> int:
        """How often a particle is looked at before the end."""
        nodes = range(self.options.every, self.options.steps, self.options.every)
        return sum(WINDOW[0] <= k / self.options.steps <= WINDOW[1] for k in nodes)

    def judged(self, i: int, x: Any) -> dict:
        """Rewards and stored images of samples."""
        images = self.subject.decoded(x)
        return dict(reward=self.judge(i, images), images=self.subject.stored(images))


def unsteered(trial: Trial, known: dict, i: int, seed: int) -> dict:
    """As many draws as the largest population has particles."""
    return trial.judged(i, trial.walk(BASE, i, seed, trial.options.most).x)


def steered(trial: Trial, known: dict, i: int, seed: int, k: int) -> dict:
    """One population: rewards, weights, and how it went."""
    out = trial.walk(trial.steering(i, k), i, seed, k)
    found, ess = out.diagnostics, np.asarray(out.diagnostics["ess"][0])
    # Between events all weights are equal.
    return trial.judged(i, out.x) | dict(
        weights=np.asarray(fk.normalised(out.log_weights)), log_weights=np.asarray(out.log_weights),
        ess=float(ess.min()), final_ess=float(found["final_ess"][0]), roots=int(found["unique_roots"][0]),
        resampled=int(np.sum(found["resampled"])),
    )  # fmt: skip


def table(numbers: dict, way: str, which: str) -> np.ndarray:
    """``best`` or ``mean`` of a way as ``(particles, prompts x seeds)``."""
    rows = []
    for k in numbers["particles"]:
        row = []
        for prompt in numbers["prompts"].values():
            for seed in prompt.values():
                # One particle is an unsteered draw.
                if way == "best of k" or k == 1:
                    groups = np.asarray(seed["unsteered"])[: len(seed["unsteered"]) // k * k].reshape(-1, k)
                    row.append(groups.max(1).mean() if which == "best" else groups.mean())
                else:
                    one = seed["steered"][str(k)]
                    row.append(np.max(one["reward"]) if which == "best" else np.dot(one["weights"], one["reward"]))
        rows.append(row)
    return np.array(rows)


def claims(numbers: dict) -> list[Claim]:
    """Whether the reward rises with the particles, and above best-of-k."""
    ks, error = numbers["particles"], lambda v: np.std(v, ddof=v.size > 1) / np.sqrt(v.size)
    best, mean, search_of = (table(numbers, *which) for which in (("steered", "best"), ("steered", "mean"), ("best of k", "best")))
    why = "" if numbers["texts"] else "Digits by their classes, in the place of images by their texts."
    rise, lead, gain = np.diff(best, axis=0), best[-1] - search_of[-1], mean[-1] - mean[0]
    steps, n = rise.mean(axis=1), best.shape[1]
    verdict = lambda holds, half: "not comparable" if why else "reproduced" if holds else "in shape" if half else "not reproduced"
    least = int(np.argmin(steps))
    unit = f"of the reward {numbers['reward']}, over {n} populations"
    return [
        Claim(
            says="The more particles, the higher the reward.", value=steps[least], spread=error(rise[least]),
            unit=f"more {unit}, where it rises least, from {ks[least]} to {ks[least + 1]} particles",
            verdict=verdict(np.all(steps > 0), best[-1].mean() > best[0].mean()),
            why=why or "Reproduced where the mean rises at every number of particles; the spread is a standard error.",
        ),
        Claim(
            says="The particles follow the prompt better (ImageReward .37 to .91 with 4, Stable Diffusion 2.1).", value=gain.mean(),
            spread=error(gain), unit=f"more of the weighted mean {unit}, with {ks[-1]} particles",
            verdict=verdict(gain.mean() > 2 * error(gain), gain.mean() > 0),
            why=why or "The published prompts are not known, so the direction is compared alone; two standard errors count.",
        ),
        Claim(
            says="Steering beats best-of-k with equal calls.", value=lead.mean(), spread=error(lead),
            unit=f"more of the best {unit}, with {ks[-1]} particles",
            verdict=verdict(lead.mean() > 2 * error(lead), lead.mean() > 0),
            why=why or "Reproduced where the lead exceeds two standard errors.",
        ),
    ]  # fmt: skip


def figure(numbers: dict):
    """Rewards against the particles."""
    ks = np.array(numbers["particles"])
    content = []
    for which, ways in (("best", ("best of k", "steered")), ("mean", ("steered",))):
        series = {way: (ks, table(numbers, way, which).mean(axis=1)) for way in ways}
        series["unsteered"] = (ks, np.full(len(ks), table(numbers, "steered", "mean")[0].mean()))
        title = "best particle" if which == "best" else "weighted mean"
        content.append(viz.Panel(series=series, title=title, xlabel="particles", ylabel=numbers["reward"], logx=True, markers=True))
    return viz.panels(content, columns=2, reference=("unsteered",), width=8.0, height=2.8)


def picture(trial: Trial, found: dict, ks: list[int]):
    """All images of the first prompt and seed: a row of unsteered draws, and one for each number of particles, the best first."""
    ordered = lambda one: shown(one["images"][np.argsort(-one["reward"], kind="stable")])
    rows = [ordered(found["unsteered", 0, 0]), *(ordered(found[k, 0, 0]) for k in ks[1:])]
    columns, levels = trial.options.most, trial.subject.levels
    names = ["unsteered", *(f"{k} particles" for k in ks[1:])]
    return viz.image_grid(
        in_rows(rows, columns, levels - 1), levels=levels, columns=columns, rows=names, title=trial.subject.texts[0], width=8.0
    )


def main(record) -> None:
    o = record.options
    subject = Subject(o.model, prompts=o.prompts, first=o.first, dtype=o.dtype, decoded=o.decoded)
    judge = Judge(subject, o.reward, clip=o.clip, tokenizer=o.tokenizer, predictor=o.predictor, host=o.host)
    trial = Trial(subject, judge, o)
    ks = [2**j for j in range(o.most.bit_length())]
    if ks[-1] != o.most or o.most < 2:
        raise ConfigError(f"most = {o.most}: expected a power of two from 2, the largest number of particles")
    if not trial.events():
        raise ConfigError(f"every = {o.every} of {o.steps} steps: no event between {WINDOW[0]:g} and {WINDOW[1]:g} of them")
    # Of other weights or prompts a cell is another one.
    known = dict(model=subject.origin, judge=judge.origin, prompts=list(subject.texts))
    pairs = [(i, seed) for i in range(len(subject.texts)) for seed in range(o.seeds)]
    where = lambda i, seed: f"{i} {subject.texts[i]}, seed {seed}"
    plain = record.cells(unsteered, {f"{where(i, s)}, unsteered": (trial, known, i, s) for i, s in pairs})
    many = record.cells(steered, {f"{where(i, s)}, {k}": (trial, known, i, s, k) for i, s in pairs for k in ks[1:]})
    found: dict = {("unsteered", i, s): plain[f"{where(i, s)}, unsteered"] for i, s in pairs}
    found |= {(k, i, s): many[f"{where(i, s)}, {k}"] for i, s in pairs for k in ks[1:]}

    told = lambda one: {name: value for name, value in one.items() if name != "images"}
    prompts: dict = {}
    for i, s in pairs:
        row = dict(unsteered=found["unsteered", i, s]["reward"], steered={str(k): told(found[k, i, s]) for k in ks[1:]})
        prompts.setdefault(f"{i} {subject.texts[i]}", {})[str(s)] = row
    every, looks = o.most + sum(ks[1:]), o.most + sum(ks[1:]) * (trial.events() + 2)
    numbers: dict = dict(
        model=subject.origin, judge=judge.origin, texts=subject.classes is None, reward=judge.name,
        potential=o.potential, scale=o.scale, particles=ks, events=trial.events(),
        published=published(subject.origin["name"]), prompts=prompts,
        cost_of_a_prompt=estimate(every * o.steps, subject.flops(o.guidance), looks, judge.flops()),
    )  # fmt: skip
    for j, k in enumerate(ks):
        rows = {way: table(numbers, *way)[j] for way in (("steered", "best"), ("steered", "mean"), ("best of k", "best"))}
        print(f"{k:3d} particles  " + "  ".join(f"{way}, {which} {plus_minus(v)}" for (way, which), v in rows.items()))
    cost = numbers["cost_of_a_prompt"]
    print(f"a prompt: {cost['pflop']:.3g} PFLOP, {cost['minutes_assumed']:.2g} min of a GPU at an assumed 150 TFLOP/s")
    record.write(numbers, claims=claims(numbers), reward=figure(numbers), samples=picture(trial, found, ks))


def published(name: str) -> dict:
    """What is published of a model, by what was measured."""
    return {judge: {str(k): v for k, v in rows[name].items()} for judge, rows in PUBLISHED.items() if name in rows}


if __name__ == "__main__":
    FIGURE.make(main)
