"""What shape the weights of a network take under additive and under multiplicative updates.

Gradient descent and exponentiated gradient descent train the same network (64 -> 128 -> 128 -> 10, tanh) on the 8x8 digits, on
the same batches, and from each of two starts of the same deviation:

    constant  random signs, one magnitude: neither normal nor log-normal, so that whatever shape there is comes from training
    normal    the usual start; log |w| then begins skewed (the logarithm of a normal number: skewness -1.54, excess 4.0)

Looked at is the matrix between the hidden layers (16384 weights): skewness and excess kurtosis (0 for a normal law) of w and of
log |w|, before and after, and the signs that changed. The rates were chosen once, so that both fit the training data. Biases are
trained by gradient descent in every run.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scorelab import viz
from scorelab.data import load
from scorelab.run.figure import Claim, Figure, plus_minus
from scorelab.training import exponentiated_gradient

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Exponentiated gradient descent makes log-normally distributed weights; those of gradient descent are not.",
    look_for="From equal magnitudes, log |w| is nearly normal after exponentiated gradient descent and far from it after gradient "
    "descent. Exponentiated gradient descent changes no sign.",
    minutes=dict(small=0.4, full=1, gpu=None),
    options=dict(steps=4000, seeds=3),
    small=dict(steps=1000, seeds=2),
)

SIZES, BATCH_SIZE, BIAS_RATE = (64, 128, 128, 10), 100, 0.1
OPTIMIZERS = {"gradient descent": (optax.sgd, 0.5), "exponentiated gradient": (exponentiated_gradient, 1.0)}
STARTS = {"constant": jax.random.rademacher, "normal": jax.random.normal}
WEIGHTS = SIZES[1] * SIZES[2]
# Standard errors of so many independent normal numbers.
SKEWNESS_ERROR, KURTOSIS_ERROR = math.sqrt(6 / WEIGHTS), math.sqrt(24 / WEIGHTS)


def initial(start: str, key: jax.Array) -> list[dict[str, jax.Array]]:
    """Weights of deviation 1 / sqrt(inputs), biases 0."""
    shapes = itertools.pairwise(SIZES)
    keys = jax.random.split(key, len(SIZES) - 1)
    draw = STARTS[start]
    return [
        {"w": draw(k, (a, b)).astype(jnp.float32) / math.sqrt(a), "b": jnp.zeros(b)} for k, (a, b) in zip(keys, shapes, strict=True)
    ]


def logits(params, x):
    """The network on pixels ``(batch, 64)`` in [0, 1]."""
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def images(split: str) -> tuple[jax.Array, jax.Array]:
    """Pixels in [0, 1] and labels."""
    arrays = load("digits", split)
    return jnp.asarray(arrays.x.reshape(len(arrays), -1) / (arrays.levels - 1), jnp.float32), jnp.asarray(arrays.label)


def train(rule: str, params, key: jax.Array, steps: int):
    """The trained parameters, and the mean loss over the last tenth of the steps."""
    make, rate = OPTIMIZERS[rule]
    optimizer = optax.partition(
        {"weights": make(rate), "biases": optax.sgd(BIAS_RATE)},
        lambda params: jax.tree.map(lambda p: "weights" if p.ndim > 1 else "biases", params),
    )
    x, label = images("train")

    def loss(params, rows):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x[rows]), label[rows]).mean()

    def step(carry, key):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, jax.random.randint(key, (BATCH_SIZE,), 0, len(x)))
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    # No convolutions, so a scan over the steps is as fast as steps called one by one.
    scan = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys))
    (params, _), losses = scan((params, optimizer.init(params)), jax.random.split(key, steps))
    return params, float(losses[-max(1, steps // 10) :].mean())


def shape(values: np.ndarray) -> dict[str, float | None]:
    """Mean, deviation, skewness and excess kurtosis; None for the last two of a constant."""
    mean, std = float(values.mean()), float(values.std())
    z = (values - mean) / std if std > 1e-6 * max(abs(mean), 1.0) else None
    moments = (None, None) if z is None else (float(np.mean(z**3)), float(np.mean(z**4)) - 3)
    return dict(mean=mean, std=std, skewness=moments[0], excess_kurtosis=moments[1])


def hidden(params) -> np.ndarray:
    """The weights between the hidden layers, float64."""
    return np.asarray(params[1]["w"], np.float64).ravel()


def measure(rule: str, start: str, seed: int, steps: int) -> dict:
    """One training: what became of the hidden weights, and the weights themselves."""
    keys = jax.random.split(jax.random.key(seed))
    test_x, test_label = images("test")
    first = initial(start, keys[0])
    last, loss = train(rule, first, keys[1], steps)
    before, after = hidden(first), hidden(last)
    return dict(
        rate=OPTIMIZERS[rule][1],
        test_accuracy=float((logits(last, test_x).argmax(-1) == test_label).mean()),
        train_loss=loss,
        signs_changed=float(np.mean(np.sign(after) != np.sign(before))),
        relative_move=float(np.sqrt(np.mean((after - before) ** 2) / np.mean(before**2))),
        before={"w": shape(before), "log|w|": shape(np.log(np.abs(before)))},
        after={"w": shape(after), "log|w|": shape(np.log(np.abs(after)))},
        weights=after,
    )


def claims(runs: dict) -> list[Claim]:
    """What the paper says of weights, beside what was found."""

    def over_seeds(rule: str, field: str, start: str = "constant") -> np.ndarray:
        rows = runs[f"{rule}, {start} start"].values()
        return np.array([row["signs_changed"] if field == "signs_changed" else row["after"]["log|w|"][field] for row in rows])

    def spread(values: np.ndarray) -> float:
        return float(values.std(ddof=values.size > 1))

    ours, theirs = (over_seeds(rule, "excess_kurtosis") for rule in ("exponentiated gradient", "gradient descent"))
    skew = over_seeds("exponentiated gradient", "skewness")
    signs = np.concatenate([over_seeds("exponentiated gradient", "signs_changed", start) for start in STARTS])
    near = abs(ours.mean()) < 1 and abs(skew.mean()) < 0.5
    exact = abs(ours.mean()) < 3 * KURTOSIS_ERROR and abs(skew.mean()) < 3 * SKEWNESS_ERROR
    return [
        Claim(
            says="Exponentiated gradient descent makes log-normal weights.", value=ours.mean(), spread=spread(ours),
            unit="excess kurtosis of log |w|, from equal magnitudes (0: log-normal)",
            verdict="reproduced" if exact else "in shape" if near else "not reproduced",
            why=f"Skewness {plus_minus(skew, 2)}. Within three standard errors of 0 it would be log-normal, within 1 it is near.",
        ),
        Claim(
            says="Gradient descent does not make log-normal weights.", value=theirs.mean(), spread=spread(theirs),
            unit="excess kurtosis of log |w|, from equal magnitudes",
            verdict="reproduced" if theirs.mean() - ours.mean() > 3 * max(spread(theirs), KURTOSIS_ERROR) else "not reproduced",
            why="Further from 0 than exponentiated gradient descent by three spreads or not; one small network.",
        ),
        Claim(
            says="Exponentiated gradient descent respects Dale's law.", value=signs.max(), spread=0,
            unit="largest share of weights that changed sign", verdict="reproduced" if signs.max() == 0 else "not reproduced",
            why="Over both starts and every seed; the factor is an exponential.",
        ),
    ]  # fmt: skip


def figure(runs: dict):
    """Histograms of the weights of seed 0 and of their logarithms, beside the normal law of the same moments."""
    weights = {name: seeds["seed 0"]["weights"] for name, seeds in runs.items()}
    logs = {f"log |w|: {name}": np.log(np.abs(w)) for name, w in weights.items()}
    return viz.histogram({f"w: {name}": w for name, w in weights.items()} | logs, normal=True, columns=len(weights), width=13)


def main(record) -> None:
    options = record.options
    names = {f"{rule}, {start} start": (rule, start) for start in STARTS for rule in OPTIMIZERS}
    found = record.cells(
        measure, {f"{name}, seed {s}": (*pair, s, options.steps) for s in range(options.seeds) for name, pair in names.items()}
    )
    runs = {name: {f"seed {s}": found[f"{name}, seed {s}"] for s in range(options.seeds)} for name in names}
    for name, seeds in runs.items():
        rows = list(seeds.values())
        w, log = ([row["after"][kind] for row in rows] for kind in ("w", "log|w|"))
        shapes = (plus_minus([row[field] for row in kind], 2) for kind in (w, log) for field in ("skewness", "excess_kurtosis"))
        accuracy, signs = (plus_minus([row[field] for row in rows]) for field in ("test_accuracy", "signs_changed"))
        print(f"{name}: accuracy {accuracy}, share of signs changed {signs}, skewness and excess kurtosis of w {next(shapes)} and "
              f"{next(shapes)}, of log |w| {next(shapes)} and {next(shapes)}")  # fmt: skip
    errors = dict(skewness=SKEWNESS_ERROR, excess_kurtosis=KURTOSIS_ERROR)
    bare = lambda row: {k: v for k, v in row.items() if k != "weights"}
    numbers = {name: {seed: bare(row) for seed, row in seeds.items()} for name, seeds in runs.items()}
    record.write(dict(weights=WEIGHTS, standard_errors=errors, runs=numbers), claims=claims(runs), histograms=figure(runs))


if __name__ == "__main__":
    FIGURE.make(main)
