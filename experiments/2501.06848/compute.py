r"""Reward against the floating point operations for an image: a small model that is steered, and fine-tuned and larger ones.

Four models of the 8x8 digits: the large one that comes with the project; a small one of the same kind, trained here; the
large one fine-tuned for each of two rewards (log-probability of the threes, thickness of the strokes) on its own samples, of
which one in 32 is kept with probabilities softmax(:math:`\lambda r`). Best-of-N and steering take the image of the largest
reward of the N draws or K particles, as the published code does. Operations are those XLA counts in the compiled network and
in the compiled reward, for one image of a batch of 256, times the calls (XLA counts the body of a loop once, so a compiled
walk says less). A reward is asked for at the end, and by steering at every second step as well. What fine-tuning itself takes
(draws, rewards, three networks for a training step) is not in the curves: it is told as the number of images from which on
fine-tuning is the cheaper way to the reward of 4 steered particles.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench import PLAIN, Bench, scale_of

from scorelab import data, fk, losses, models, search, training, viz
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="Figure 2, with models of digits in the place of SDv2.1 and a fine-tuned SDXL",
    claims="A steered model of .8B parameters beats a fine-tuned one of 2.6B at less compute and without training (GenEval "
    ".63 with 4 "
    "particles, .58 fine-tuned), and steering a model beats fine-tuning it (SDv1.4: .549 and .437).",
    look_for="Whether a line of steering lies above and to the left of the first point of the fine-tuned model.",
    minutes=dict(small=2, full=6, gpu=None),
    options=dict(seeds=3, populations=128, most=16, kept=2048, tuning=600, training=6000),
    small=dict(seeds=2, populations=64, most=4, kept=384, tuning=300, training=2000),
)

CLASS, CANDIDATES, COUNTS, BATCH, EVERY = 3, 32, (1, 2, 4, 8, 16), 256, 2
TITLES = {"class": "log-probability of a three", "thickness": "thickness of the strokes"}


def reward_of(name: str):
    """The reward of that name."""
    return fk.rewards.ClassLogProb(dataset="digits", label=CLASS) if name == "class" else PLAIN[name]


def operations(function, shape: tuple[int, ...], params=None) -> float:
    """Floating point operations for one element of a batch, by XLA's count; twice the parameters where it has none."""
    counted = jax.jit(function).lower(jnp.zeros((BATCH, *shape))).compile().cost_analysis() or {}
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return float(counted.get("flops", 0.0)) / BATCH or 2.0 * size


def small_denoiser(bench: Bench):
    """A network with about a third of the operations of the large one."""
    denoiser = bench.who.model.denoiser
    return replace(denoiser, net=denoiser.net.clone(width=128, depth=4))


def fitted(denoiser, x: np.ndarray, steps: int, rate: float, initial=None) -> dict:
    """Train on points of the chart; the averaged parameters, leaf by leaf."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    loss = losses.DenoisingScoreMatching(denoiser.process, weighting=losses.EDMWeighting(data_std=denoiser.data_std),
                                         times=losses.LogNormalTimes(stratified=True))  # fmt: skip
    learner = training.ScoreLearner(denoiser, loss, optimizer, ema=training.EMA(decay=0.99), initial=initial)
    state = training.fit(learner, data.Batches({"x": x}, batch_size=min(128, len(x))), steps=steps, key=jax.random.key(1))
    return dict(leaves=[np.asarray(leaf) for leaf in jax.tree.leaves(learner.model(state).params)])


def bound(denoiser, kept: dict, event: tuple[int, ...]):
    """The model of kept parameters."""
    params = denoiser.init(jax.random.key(0), jnp.zeros((1, *event)))
    leaves = [jnp.asarray(leaf) for leaf in kept["leaves"]]
    return denoiser.bind(jax.tree.unflatten(jax.tree.structure(params), leaves))


def small_model(bench: Bench, options) -> dict:
    """The small network, trained on the digits."""
    return fitted(small_denoiser(bench), bench.who.encoded(), options.training, 2e-3)


def curated(bench: Bench, name: str, scale: float, options) -> dict:
    """The large network after fine-tuning on draws of its own that a reward kept."""
    n = options.kept * CANDIDATES
    x = np.asarray(bench.draw(500, 1, n).x)
    r = scale * np.asarray(reward_of(name)(x)).reshape(-1, CANDIDATES)
    # The largest of independent Gumbel numbers on top of r is drawn by softmax(r).
    chosen = np.argmax(r + np.random.default_rng(0).gumbel(size=r.shape), axis=1)
    kept = x.reshape(-1, CANDIDATES, *bench.event)[np.arange(len(r)), chosen]
    return fitted(bench.who.model.denoiser, kept, options.tuning, 3e-4, initial=bench.who.model)


def judged(bench: Bench, name: str, x) -> dict:
    """Reward and variety; for the class the distance to its test images."""
    found = dict(reward=float(np.mean(reward_of(name)(x))))
    if name == "class":
        return found | {k: v for k, v in bench.judge(x, CLASS).items() if k in ("rate", "frechet", "vendi")}
    return found | dict(vendi=bench.spread(bench.cnn(bench.decode(x)), CLASS)["vendi"])


def pilot(bench: Bench) -> dict:
    """Constants, and the mean reward of the large model and of its tilted law."""
    x, found = bench.draw(900, 1, 4096).x, {}
    for name in TITLES:
        r = np.asarray(reward_of(name)(x))
        scale = 2.0 if name == "class" else scale_of(r)
        found[name] = dict(scale=scale, unsteered=float(r.mean()), tilted=float(fk.weighted_mean(r, jnp.asarray(scale * r))))
    return found


def best_of(bench: Bench, model, name: str, counts: tuple[int, ...], seed: int) -> dict:
    """Best of N by N, on the same draws."""
    n, reward, found = bench.plan.populations, reward_of(name), {}
    x = bench.draw(seed, 1, max(counts) * n, model=model).x
    for k in counts:
        some = x[: k * n]
        found[str(k)] = judged(bench, name, search.best_of(some, reward(some), k))
    return found


def steered(bench: Bench, model, name: str, scale: float, k: int, seed: int) -> dict:
    """The best particle of each population."""
    reward = reward_of(name)
    out = bench.draw(seed, k, bench.plan.populations, fk.Difference(reward, scale, every=EVERY), model)
    return judged(bench, name, search.best_of(out.x, reward(out.x), k))


def measure(record, bench: Bench) -> dict:
    """reward -> way -> particles -> operations, and columns with one number for each seed."""
    o, steps = record.options, bench.plan.steps
    counts = tuple(k for k in COUNTS if k <= o.most)
    known = record.cell("pilot", pilot, bench)
    small = bound(small_denoiser(bench), record.cell("small", small_model, bench, o), bench.event)
    tuned = record.cells(curated, {f"fine-tuned, {name}": (bench, name, known[name]["scale"], o) for name in TITLES})
    large = bench.who.model
    network = lambda model: operations(lambda y: model(y, jnp.float32(1.0)).denoised, bench.event, model.params)
    count = dict(large=network(large), small=network(small), reward={n: operations(reward_of(n), bench.event) for n in TITLES})
    count["parameters"] = {n: sum(leaf.size for leaf in jax.tree.leaves(m.params)) for n, m in (("large", large), ("small", small))}
    numbers = dict(operations=count, pilot=known, rewards={})
    for name in TITLES:
        one, ways = count["reward"][name], {}
        who = {"large": large, "small": small, "fine-tuned": bound(large.denoiser, tuned[f"fine-tuned, {name}"], bench.event)}
        for label, model in who.items():
            walk = steps * count["small" if label == "small" else "large"]
            cells = {f"{name}: {label}, best of N, seed {s}": (bench, models.Conditioned(model=model), name, counts, s)
                     for s in range(o.seeds)}  # fmt: skip
            rows = list(record.cells(best_of, cells).values())
            for k in counts:
                # One draw needs no reward.
                spent = k * (walk + one) if k > 1 else walk
                ways.setdefault(f"{label}, best of N", {})[str(k)] = _together([row[str(k)] for row in rows], spent)
            for k in counts[1:] if label != "fine-tuned" else ():
                cells = {
                    f"{name}: {label}, steered, {k}, seed {s}":
                    (bench, models.Conditioned(model=model), name, known[name]["scale"], k, s) for s in range(o.seeds)
                }  # fmt: skip
                rows = list(record.cells(steered, cells).values())
                # Events at the nodes 2, 4, ..., before the last one; then the sample itself.
                asked = (steps - 1) // EVERY + 1
                ways.setdefault(f"{label}, steered", {})[str(k)] = _together(rows, k * (walk + asked * one))
        tuning = o.kept * CANDIDATES * (steps * count["large"] + one) + 3 * 128 * o.tuning * count["large"]
        numbers["rewards"][name] = dict(ways=ways, tuning=tuning)
    return numbers


def _together(rows: list[dict], spent: float) -> dict:
    return dict(operations=spent, **{which: [row[which] for row in rows] for which in rows[0]})


def claims(numbers: dict) -> list[Claim]:
    """Steering against fine-tuning, of the small and of the large model."""
    found, spread = [], lambda v: np.std(v, ddof=len(v) > 1)
    for name, row in numbers["rewards"].items():
        tuned, small, large = (
            row["ways"][way][k] for way, k in (("fine-tuned, best of N", "1"), ("small, steered", "4"), ("large, steered", "4"))
        )
        ratio = small["operations"] / tuned["operations"]
        lead = np.array(small["reward"]) - np.array(tuned["reward"])
        better = lead.mean() > 2 * spread(lead)
        found.append(Claim(
            says="A small model with 4 steered particles beats a fine-tuned larger one (GenEval .63 and .58) at less compute.",
            value=lead.mean(), spread=spread(lead), unit=f"more of the reward {name} than the fine-tuned model, at "
            f"{ratio:.3g} of its operations",
            verdict="reproduced" if better and ratio < 1 else "in shape" if better else "not reproduced",
            why="Both count: a reward higher by two spreads, and fewer operations for an image; in shape where only the reward is. "
            "The small network has " + f"{numbers['operations']['large'] / numbers['operations']['small']:.2g} times fewer "
            "operations.",
        ))  # fmt: skip
        lead = np.array(large["reward"]) - np.array(tuned["reward"])
        saved = large["operations"] - tuned["operations"]
        found.append(Claim(
            says="Steering a model with 4 particles beats fine-tuning it (SDv1.4: .549 and .437).", value=lead.mean(),
            spread=spread(lead), unit=f"more of the reward {name} than the fine-tuned model; fine-tuning is paid back after "
            f"{row['tuning'] / saved:.3g} images",
            verdict="reproduced" if lead.mean() > 2 * spread(lead) else "not reproduced",
            why="Fine-tuned for this one reward, on its own curated samples; a spread is that of the sampling, not of the "
            "networks.",
        ))  # fmt: skip
    return found


def figure(numbers: dict):
    """Reward and quality against the operations for an image."""
    content = []
    for name, row in numbers["rewards"].items():
        # A model with one draw belongs to both of its lines.
        begun = lambda way, ways: {"1": ways[way.replace("steered", "best of N")]["1"]} | ways[way]
        lines = {way: begun(way, row["ways"]) for way in row["ways"]}
        for which, title in (("reward", TITLES[name]), ("frechet" if name == "class" else "vendi", "")):
            series = {
                way: (np.array([one["operations"] for one in rows.values()]), np.array([one[which] for one in rows.values()]))
                for way, rows in lines.items()
            }
            if which == "reward":
                ends = np.array([min(x.min() for x, _ in series.values()), max(x.max() for x, _ in series.values())])
                series["tilted law"] = (ends, np.full(2, numbers["pilot"][name]["tilted"]))
            label = dict(frechet="Frechet distance to the class", vendi="Vendi score").get(which, "reward")
            title = title or f"{label}, {name}"
            content.append(viz.Panel(series=series, title=title, xlabel="operations for an image", ylabel=label,
                                     logx=True, logy=which == "frechet", markers=True, mean=True))  # fmt: skip
    return viz.panels(content, columns=2, reference=("tilted law",), width=9.0, height=3.0)


def main(record) -> None:
    o = record.options
    bench = Bench("digits", o.populations, o.most)
    numbers = dict(model=bench.who.origin, steps=bench.plan.steps, populations=o.populations, **measure(record, bench))
    print(numbers["operations"], numbers["pilot"])
    for name, row in numbers["rewards"].items():
        print(f"{name}: fine-tuning {row['tuning']:.3g} operations")
        for way, rows in row["ways"].items():
            for k, one in rows.items():
                columns = "  ".join(f"{which} {plus_minus(v)}" for which, v in one.items() if which != "operations")
                print(f"{way:24s}{k:>3s}  {one['operations']:.3g}  {columns}")
    record.write(numbers, claims=claims(numbers), compute=figure(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
