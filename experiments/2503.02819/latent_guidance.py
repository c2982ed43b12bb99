"""Guidance of a latent model, corrected by weights: reward, variety and effective sample size against the particles.

Classifier-free guidance with the scale w is meant to sample the geometric mean of the law under the prompt and the law without one,
to the powers w and 1 - w. Its particles are weighted at the rate g^2/2 w (w - 1) |s_c - s_0|^2 and resampled at every step. Each
number of particles makes as many images of a prompt, in the fewer populations the more particles there are, so that all cost the
same. One particle is guidance alone. In many dimensions these weights differ by much more than resampling can use, so that, as in
the published code, an increment counts up to `clamp` away from the mean of its population; that is a bias, and `clamp=0` is none.

The default is Stable Diffusion 1.5. EDM2 needs more names: `model=edm2-img512-xs-2147483-0.045`, the other network as
`unconditional`, `autoencoder`, and a file of `prompts` with a class and its text on every line. The reward is as in the figure of
steering: `clip` with `tokenizer`, `predictor`, or `host`. Variety is one minus the mean cosine of two images in the space of CLIP,
in that of pixels where CLIP does not look: of a population, and of one image of each. At small size the model is of the digits.

By its operations alone, 8 images of a prompt by Stable Diffusion take 1.3 PFLOP, and four numbers of particles 5.2: 35 s of a GPU
at an assumed 150 TFLOP/s. The memory is an estimated 18 GB with 8 images at once. Neither was measured. The network is in float32,
since the weights are of the difference of its two answers.
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
from scorelab.run.prompted import REWARDS, Judge, Subject, apart, estimate, in_rows, shown

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Weights improve the guidance of large image models by CLIP and ImageReward, from 2 particles on, and 8 are best "
    "(EDM2-XS on ImageNet-512, latent models of texts); the images of one population are nearly the same.",
    look_for="A higher reward with more particles, and less variety inside of a population.",
    minutes=dict(small=0.3, full=None, gpu=None),
    options=dict(
        model="stable-diffusion-v1-5", unconditional=str, autoencoder=str, prompts=Path, first=8, reward=REWARDS,
        clip="clip-vit-large-patch14", tokenizer=Path, predictor=Path, host=Path, guidance=7.5, clamp=1.0, steps=100, most=8,
        seeds=1, dtype=("float32", "bfloat16"), decoded=2,
    ),
    small=dict(
        model="digits-edm-classes", first=3, reward="classifier", guidance=2.0, clamp=0.0, steps=20, most=8, seeds=2,
    ),
)  # fmt: skip

# Of second order, since no weight repairs the error of a step.
BASE = solvers.DPMSolverPP(order=2, eta=1.0)


@dataclass(frozen=True)
class Trial:
    """A model, who judges its images, and how they are made."""

    subject: Subject
    judge: Judge
    options: Any

    def walk(self, i: int, seed: int, k: int, **how: Any) -> Any:
        """Samples of prompt ``i`` in populations of ``k``; ``how`` as in :class:`scorelab.fk.FeynmanKac`."""
        o, subject = self.options, self.subject
        found = fk.geometric(subject.free, subject.model, o.guidance)
        usual: dict = dict(policy=fk.Always(), resample_final=True, clip=o.clamp or None)
        solver = fk.FeynmanKac(base=BASE, potential=found.potential, particles=k, **(usual | how))
        return sample(
            found.model, solver=solver, grid=subject.grid(o.steps), start=found.start, shape=(o.most, *subject.event), chunk=o.most,
            key=jax.random.fold_in(jax.random.key(seed), i), cond=subject.cond(i, o.most),
        )  # fmt: skip


def corrected(trial: Trial, known: dict, i: int, seed: int, k: int) -> dict:
    """The images of a prompt: rewards, variety, and what the populations say of themselves."""
    out = trial.walk(i, seed, k)
    images, found = trial.subject.decoded(out.x), out.diagnostics
    points = trial.judge.points(images).reshape(trial.options.most // k, k, -1)
    # The images of a population are exchangeable but for their order.
    one = points[np.arange(len(points)), np.random.default_rng(seed).integers(k, size=len(points))]
    nothing = float("nan")
    return dict(
        reward=trial.judge(i, images), images=trial.subject.stored(images), inside=apart(points) if k > 1 else nothing,
        across=apart(one) if len(one) > 1 else nothing, ess=float(np.mean(found["ess"])) / k,
        min_ess=float(np.mean(np.min(found["ess"], axis=1))) / k, roots=float(np.mean(found["unique_roots"])) / k,
        clipped=int(np.sum(found["clipped"])),
    )  # fmt: skip


def column(numbers: dict, which: str) -> np.ndarray:
    """The mean reward, or another number of the populations, as ``(particles, prompts x seeds)``."""
    cells = lambda k: [seed[str(k)] for prompt in numbers["prompts"].values() for seed in prompt.values()]
    return np.array([[np.mean(cell[which]) for cell in cells(k)] for k in numbers["particles"]])


def claims(numbers: dict) -> list[Claim]:
    """Whether weights raise the reward, from two particles on and most with most of them."""
    reward, ks = column(numbers, "reward"), numbers["particles"]
    why = "" if numbers["published"] else "Digits by their classes, in the place of large images."
    error = lambda v: np.std(v, ddof=v.size > 1) / np.sqrt(v.size)
    verdict = lambda gain: (
        "not comparable" if why
        else "reproduced" if gain.mean() > 2 * error(gain) else "in shape" if gain.mean() > 0 else "not reproduced"
    )  # fmt: skip
    unit = f"more of the reward {numbers['reward']} than guidance alone, over {reward.shape[1]} sets of images"
    said = why or "Reproduced where the gain exceeds two standard errors. The numbers of the paper are not known."
    few, many = reward[1] - reward[0], reward[-1] - reward[0]
    inside = column(numbers, "inside")[-1]
    between = column(numbers, "across")[0]
    left = inside / between
    return [
        Claim(says="Weights improve guidance already with 2 particles.", value=few.mean(), spread=error(few), unit=unit,
              verdict=verdict(few), why=said),
        Claim(says="The most particles are best.", value=many.mean(), spread=error(many), unit=f"{unit}, with {ks[-1]}",
              verdict=verdict(many) if np.argmax(reward.mean(axis=1)) == len(ks) - 1 or why else "not reproduced", why=said),
        Claim(says="The images of one population are nearly the same.", value=left.mean(), spread=error(left),
              unit=f"of the variety of independent images is left in a population of {ks[-1]}",
              verdict="not comparable" if why else "reproduced" if left.mean() < 0.5 else "not reproduced",
              why=why or "Less than half counts as nearly the same."),
    ]  # fmt: skip


def figure(numbers: dict):
    """Reward, variety and effective sample size against the particles."""
    ks = np.array(numbers["particles"])
    line = lambda which: (ks, column(numbers, which).mean(axis=1))
    panels = {
        numbers["reward"]: dict(corrected=line("reward")),
        "variety": {"inside of a population": line("inside"), "one of each": line("across")},
        "share of the particles": {"mean effective size": line("ess"), "first ancestors left": line("roots")},
    }
    content = [
        viz.Panel(series=series, title=title, xlabel="particles", logx=True, markers=True) for title, series in panels.items()
    ]
    return viz.panels(content, columns=3, width=10.0, height=2.8)


def main(record) -> None:
    o = record.options
    subject = Subject(
        o.model, prompts=o.prompts, first=o.first, unconditional=o.unconditional, autoencoder=o.autoencoder, dtype=o.dtype,
        decoded=o.decoded,
    )  # fmt: skip
    judge = Judge(subject, o.reward, clip=o.clip, tokenizer=o.tokenizer, predictor=o.predictor, host=o.host)
    trial, ks = Trial(subject, judge, o), [2**j for j in range(o.most.bit_length())]
    if ks[-1] != o.most or o.most < 2:
        raise ConfigError(f"most = {o.most}: expected a power of two from 2, the largest number of particles")
    if o.clamp < 0:
        raise ConfigError(f"clamp = {o.clamp:g}: expected a number above 0, or 0 for none")
    known = dict(model=subject.origin, judge=judge.origin, prompts=list(subject.texts))
    where = lambda i, s, k: f"{i} {subject.texts[i]}, seed {s}, {k}"
    pairs = [(i, s) for i in range(len(subject.texts)) for s in range(o.seeds)]
    found = record.cells(corrected, {where(i, s, k): (trial, known, i, s, k) for i, s in pairs for k in ks})
    prompts: dict = {}
    for i, s in pairs:
        rows = {str(k): {name: v for name, v in found[where(i, s, k)].items() if name != "images"} for k in ks}
        prompts.setdefault(f"{i} {subject.texts[i]}", {})[str(s)] = rows
    numbers: dict = dict(
        model=subject.origin, judge=judge.origin, published=subject.latents is not None, reward=judge.name,
        guidance=o.guidance, clamp=o.clamp, particles=ks, prompts=prompts,
        cost_of_a_prompt=estimate(len(ks) * o.most * o.steps, subject.flops(o.guidance), len(ks) * o.most, judge.flops()),
    )  # fmt: skip
    for j, k in enumerate(ks):
        columns = ("reward", "inside", "across", "ess", "min_ess", "roots")
        print(f"{k:3d} particles  " + "  ".join(f"{which} {plus_minus(column(numbers, which)[j])}" for which in columns))
    cost = numbers["cost_of_a_prompt"]
    print(f"a prompt: {cost['pflop']:.3g} PFLOP, {cost['minutes_assumed']:.2g} min of a GPU at an assumed 150 TFLOP/s")
    rows = [shown(found[where(0, 0, k)]["images"]) for k in ks]
    names = ["guidance alone", *(f"{k} particles" for k in ks[1:])]
    picture = viz.image_grid(
        in_rows(rows, o.most, 0), levels=subject.levels, columns=o.most, rows=names, title=subject.texts[0], width=8.0
    )
    record.write(numbers, claims=claims(numbers), guidance=figure(numbers), samples=picture)


if __name__ == "__main__":
    FIGURE.make(main)
