"""What shape the weights of a network take under additive and under multiplicative updates.

    python experiments/2510.02730/weight_histograms.py

"Dale meets Langevin" (arXiv 2510.02730) starts from the claim that gradient descent makes normal weights and exponentiated
gradient descent log-normal ones. Here both train the same network (64 -> 128 -> 128 -> 10, tanh) on the 8x8 digits, on the same
batches, and from each of two starts of the same deviation:

    constant  random signs, one magnitude: neither normal nor log-normal, so that whatever shape there is comes from training
    normal    the usual start; log |w| then begins skewed (the logarithm of a normal number: skewness -1.54, excess 4.0)

Written for the matrix between the hidden layers (16384 weights): skewness and excess kurtosis (0 for a normal law) of w and of
log |w|, before and after, and the signs that changed. The rates were chosen once, so that both fit the training data. Biases
are trained by gradient descent in every run. A minute on two CPU cores.
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
from scorelab.run.script import parse, record, script
from scorelab.training import exponentiated_gradient

SIZES, BATCH_SIZE, BIAS_RATE = (64, 128, 128, 10), 100, 0.1
OPTIMIZERS = {"gradient descent": (optax.sgd, 0.5), "exponentiated gradient": (exponentiated_gradient, 1.0)}
STARTS = {"constant": jax.random.rademacher, "normal": jax.random.normal}


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


def main() -> None:
    """Parse the command line, train, write."""
    arguments = parse(__doc__, small=dict(steps=200), steps=4000, seed=0)
    keys = jax.random.split(jax.random.key(arguments.seed))
    test_x, test_label = images("test")
    numbers, weights, logs = {}, {}, {}
    for start in STARTS:
        first = initial(start, keys[0])
        for rule in OPTIMIZERS:
            last, loss = train(rule, first, keys[1], arguments.steps)
            before, after = hidden(first), hidden(last)
            accuracy = float((logits(last, test_x).argmax(-1) == test_label).mean())
            name = f"{rule}, {start} start"
            weights[f"w: {name}"], logs[f"log |w|: {name}"] = after, np.log(np.abs(after))
            numbers[name] = dict(
                rate=OPTIMIZERS[rule][1],
                test_accuracy=accuracy,
                train_loss=loss,
                signs_changed=float(np.mean(np.sign(after) != np.sign(before))),
                relative_move=float(np.sqrt(np.mean((after - before) ** 2) / np.mean(before**2))),
                before={"w": shape(before), "log|w|": shape(np.log(np.abs(before)))},
                after={"w": shape(after), "log|w|": shape(np.log(np.abs(after)))},
            )
            w, log = (numbers[name]["after"][k] for k in ("w", "log|w|"))
            print(
                f"{name}: accuracy {accuracy:.3f}, loss {loss:.2g}, signs changed {numbers[name]['signs_changed']:.1%}, "
                f"skewness and excess kurtosis of w {w['skewness']:.2f} {w['excess_kurtosis']:.2f}, "
                f"of log |w| {log['skewness']:.2f} {log['excess_kurtosis']:.2f}",
                flush=True,
            )
    n = len(hidden(first))
    # Standard errors of independent normal numbers.
    errors = dict(skewness=math.sqrt(6 / n), excess_kurtosis=math.sqrt(24 / n))
    figure = viz.histogram(weights | logs, normal=True, columns=len(weights), width=13)
    record(arguments, dict(weights=n, standard_errors=errors, runs=numbers), histograms=figure)


if __name__ == "__main__":
    script(main)
