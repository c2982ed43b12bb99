"""What the figures of steering share: one trained model, and the numbers of each way to spend K particles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from scorelab import fk, grids, metrics, models, pretrained, sample, search, solvers

LADDER = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
LEFT, STRENGTH, SHOWN = 0.1, 0.5, 12
BASE = solvers.DPMSolverPP(order=2, eta=1.0)
# Rewards without a gradient.
PLAIN = {"symmetry": fk.rewards.Symmetry(), "lit": fk.rewards.LitPixels(), "thickness": fk.rewards.Thickness()}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured: ``counts`` of particles for each potential, ``populations`` of each class and seed."""

    classes: tuple[int, ...]
    steps: int
    populations: int
    chunk: int
    counts: dict[str, tuple[int, ...]]
    rewards: tuple[int, ...] = ()


ALL, SOME = (1, 2, 4, 8, 16, 32, 64), (2, 4, 16, 64)
PLANS = {
    "digits": Plan(
        classes=(3, 8), steps=20, populations=64, chunk=4096, rewards=(4, 16),
        counts={"base": ALL, "Difference": ALL[1:], "Max": SOME, "Sum": SOME, "Current": SOME, "Difference + gradient": (1, 4, 16)},
    ),
    "mnist": Plan(
        classes=(3,), steps=12, populations=24, chunk=96,
        counts={"base": (1, 4, 16), "Difference": (4, 16), "Difference + gradient": (4,)},
    ),
}  # fmt: skip


class Bench:
    """One model and one plan."""

    def __init__(self, data: str, populations: int = 0, most: int = 0):
        self.who, self.name, plan = pretrained.load(f"{data}-edm"), data, PLANS[data]
        few = lambda counts: tuple(k for k in counts if k <= (most or k))
        counts = {name: few(counts) for name, counts in plan.counts.items()}
        self.plan = replace(plan, populations=populations or plan.populations, counts=counts, rewards=few(plan.rewards))
        self.model, self.cnn = models.Conditioned(model=self.who.model), metrics.small_cnn(data)
        denoiser = self.who.model.denoiser
        if hasattr(denoiser.net, "loop_safe"):
            # Gradients through the convolutions of a U-Net, in a loop on the CPU: 6 ms for an image and a call, 41 without.
            denoiser = replace(denoiser, net=denoiser.net.clone(loop_safe=True))
        self.pulled = models.Conditioned(model=denoiser.bind(self.who.model.params))
        train, test = self.who.data(), self.who.data("test")
        self.event = train.event_shape
        self.test = {c: self.cnn(test.x[test.label == c]) for c in self.plan.classes}
        self.train = {c: self.cnn(train.x[train.label == c][: self.plan.populations]) for c in self.plan.classes}

    def draw(self, seed, particles, populations, potential=None, model=None, cond=None, *, base=BASE, steps=None):
        """Weighted samples of populations side by side."""
        n = particles * populations
        # The effective size of two particles is never below one: with the usual half they would not be resampled at all.
        policy = fk.EssBelow(0.75)
        solver = base
        if potential is not None:
            solver = fk.FeynmanKac(base=base, potential=potential, policy=policy, particles=particles)
        return sample(
            model or self.model, solver=solver, grid=grids.Karras(steps or self.plan.steps), key=jax.random.key(1000 + seed),
            shape=(n, *self.event), cond=cond, chunk=min(n, self.plan.chunk),
        )  # fmt: skip

    def decode(self, x) -> np.ndarray:
        return np.asarray(self.who.transform.decode(x))

    def judge(self, x, label: int, **found: float) -> dict:
        """Reward, classification, distance to the test images of the class and variety of one image per population."""
        images = self.decode(x)
        reward = fk.rewards.ClassLogProb(dataset=self.name, label=label)(x)
        rate = np.mean(self.cnn.logits(images).argmax(1) == label)
        return dict(reward=float(np.mean(reward)), rate=float(rate), **self.spread(self.cnn(images), label), **found)

    def spread(self, z: np.ndarray, label: int) -> dict:
        """The Frechet distance of features to the test images of a class, and their variety."""
        same, centre = metrics.Coordinates(id=self.cnn.id), self.train[label].mean(0)
        distance = metrics.frechet(z, self.test[label], same).value
        return dict(frechet=distance, vendi=metrics.vendi(z, features=same, centre=centre).value)

    def floor(self, label: int) -> dict:
        """The same of training images of a class, as many as are judged."""
        return dict(self.spread(self.train[label], label), test=len(self.test[label]))

    def unsteered(self, seed: int) -> np.ndarray:
        n = max(self.plan.counts["base"]) * self.plan.populations * len(self.plan.classes)
        return np.asarray(self.draw(seed, 1, n).x)

    def from_base(self, x: np.ndarray, scale: float, seed: int) -> dict:
        """Best-of-N and importance sampling on the same draws; images of the first class under ``images``."""
        found, plan = {"best of N": {}, "FinalOnly": {}, "images": {}}, self.plan
        for block, label in zip(np.split(x, len(plan.classes)), plan.classes, strict=True):
            r = np.asarray(fk.rewards.ClassLogProb(dataset=self.name, label=label)(block))
            for k in plan.counts["base"]:
                some, rewards = block[: plan.populations * k], r[: plan.populations * k]
                lw = scale * jnp.reshape(rewards, (-1, k))
                best, drawn = search.best_of(some, rewards, k), some[fk.one_of_each(jax.random.key(seed), lw.ravel(), k)]
                found["best of N"].setdefault(str(k), {})[str(label)] = self.judge(best, label)
                spent = dict(ess=float(np.mean(fk.ess(lw))), roots=float(k))
                found["FinalOnly"].setdefault(str(k), {})[str(label)] = self.judge(drawn, label, **spent)
                if label == plan.classes[0]:
                    found["images"]["best of N", k] = best[:SHOWN]
        found["images"]["base", 1] = x[:SHOWN]
        return found

    def steered(self, seed: int, name: str, k: int, scale: float) -> tuple[dict, np.ndarray]:
        """One potential: numbers of each class, and images of the first."""
        plan, reward = self.plan, fk.rewards.ClassLogProb(dataset=self.name)
        cond = np.repeat(np.asarray(plan.classes, np.int32), plan.populations * k)
        (rule, _, gradient), model = name.partition(" + "), self.model
        if gradient:
            model = models.RewardGradient(model=self.pulled, reward=reward, scale=STRENGTH * scale, with_cond=True)
        potential = getattr(fk, rule)(reward, scale, every=2, with_cond=True)
        out = self.draw(seed, k, plan.populations * len(plan.classes), potential, model, cond)
        drawn = out.x[fk.one_of_each(jax.random.key(seed), out.log_weights, k)]
        left, roots = (np.asarray(out.diagnostics[which]).astype(float) for which in ("final_ess", "unique_roots"))
        parts = [np.split(v, len(plan.classes)) for v in (np.asarray(drawn), left, roots)]
        numbers = {
            str(c): self.judge(x, c, ess=float(e.mean()), roots=float(u.mean()))
            for c, x, e, u in zip(plan.classes, *parts, strict=True)
        }
        return numbers, parts[0][0][:SHOWN]

    def pilot(self, x: np.ndarray) -> dict:
        """Of every constant of the ladder: effective samples, reward and classification under the tilted law, by class."""
        found, predicted = {}, self.cnn.logits(self.decode(x)).argmax(1)
        for label in self.plan.classes:
            r = np.asarray(fk.rewards.ClassLogProb(dataset=self.name, label=label)(x))
            for scale in (0.0, *LADDER):
                lw = jnp.asarray(scale * r)
                mean = lambda v: float(fk.weighted_mean(v, lw))
                numbers = dict(ess=float(fk.ess(lw)) / len(x), reward=mean(r), rate=mean((predicted == label).astype(np.float32)))
                found.setdefault(str(scale), {})[str(label)] = numbers
        return found

    def plain_reward(self, name: str, base: list[np.ndarray]) -> dict:
        """A reward without a gradient: the mean over one image per population, against the tilted law."""
        reward = PLAIN[name]
        r = [np.asarray(reward(x)) for x in base]
        everything = np.concatenate(r)
        scale = scale_of(everything)
        tilted = float(fk.weighted_mean(everything, jnp.asarray(scale * everything)))
        found = dict(scale=scale, base=float(everything.mean()), spread=float(everything.std()), tilted=tilted, counts={})
        groups = 2 * self.plan.populations
        for k in self.plan.rewards:
            rows = {"best of N": [], "FinalOnly": [], "Difference": []}
            for seed, values in enumerate(r):
                out = self.draw(seed, k, groups, fk.Difference(reward, scale, every=2))
                some, key = values[: groups * k], jax.random.key(seed)
                rows["best of N"].append(float(np.mean(some.reshape(-1, k).max(1))))
                rows["FinalOnly"].append(float(np.mean(some[fk.one_of_each(key, scale * some, k)])))
                rows["Difference"].append(float(np.mean(reward(out.x[fk.one_of_each(key, out.log_weights, k)]))))
            found["counts"][str(k)] = rows
        return found


def scale_of(rewards: np.ndarray) -> float:
    """The constant that leaves a tenth of unsteered samples with these ``rewards`` in effect."""
    low, high = 0.0, 1e4
    for _ in range(40):
        scale = (low + high) / 2
        enough = float(fk.ess(jnp.asarray(scale * rewards))) > LEFT * len(rewards)
        low, high = (scale, high) if enough else (low, scale)
    return scale
