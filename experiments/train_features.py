"""Train the small classifiers whose features the image metrics use, and store their weights in the package.

    python experiments/train_features.py digits|mnist|fashion_mnist|kmnist [--epochs N] [--folder DIR]

KMNIST is trained on one half of its TEST images (every second one) and tested on the other half: a
demonstration only, for machines that do not have its training images. The stored record says so.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import jax
import numpy as np
import optax

from scorelab.data import Arrays, Batches, Pixels, load
from scorelab.metrics import smallcnn
from scorelab.run.figure import script

# Passes over the data; chosen once, so that training takes minutes on two cores.
EPOCHS = {"digits": 60, "mnist": 4, "fashion_mnist": 4, "kmnist": 15}
SEED, BATCH_SIZE, LEARNING_RATE = 0, 128, 3e-3


def split_for(name: str) -> tuple[Arrays, Arrays, str]:
    """(train, test, note)."""
    if name != "kmnist":
        return load(name, "train"), load(name, "test"), "trained on the train split"
    halves = (load("kmnist_halves", split) for split in ("train", "test"))
    return *halves, "DEMONSTRATION: trained on every second image of the TEST split, tested on the others"


def train(name: str, epochs: int, folder: Path) -> None:
    """Train, report the test accuracy, store."""
    train_set, test_set, note = split_for(name)
    architecture = smallcnn.FOR_8 if name == "digits" else smallcnn.FOR_28
    scale = Pixels(levels=train_set.levels, low=0.0, high=1.0)
    batches = Batches(train_set, batch_size=BATCH_SIZE, seed=SEED)
    steps = epochs * batches.steps_per_epoch
    schedule = optax.cosine_onecycle_schedule(steps, LEARNING_RATE, pct_start=0.1)
    optimizer = optax.adamw(schedule, weight_decay=1e-2)
    params = smallcnn.init(jax.random.key(SEED), architecture)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch):
        def loss(params):
            _, logits = smallcnn.apply(params, scale.encode(batch["x"]), architecture)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    def outputs(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
        blocks = (arrays.x[first : first + 500] for first in range(0, len(arrays), 500))
        pairs = [smallcnn.apply(params, scale.encode(block), architecture) for block in blocks]
        return tuple(np.concatenate(part) for part in zip(*pairs, strict=True))

    began = time.perf_counter()
    # One jitted step called from Python: the gradient of a convolution inside a scan is far slower on the
    # CPU.
    for i in range(steps):
        params, state, value = step(params, state, batches.at(i))
        if (i + 1) % batches.steps_per_epoch == 0:
            epoch = (i + 1) // batches.steps_per_epoch
            seconds = time.perf_counter() - began
            print(f"{name}: epoch {epoch}/{epochs}, loss {float(value):.4f}, {seconds:.0f} s", flush=True)
    provenance = {
        "dataset": name,
        "data_sha256": train_set.sha256,
        "levels": train_set.levels,
        "note": note,
        "command": f"python experiments/train_features.py {name} --epochs {epochs}",
        "seed": SEED,
        "steps": steps,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "test_accuracy": float((outputs(test_set)[1].argmax(-1) == test_set.label).mean()),
        "test_size": len(test_set),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "optax": optax.__version__,
            "numpy": np.__version__,
            "backend": jax.default_backend(),
        },
    }
    params = smallcnn.with_moments(params, outputs(train_set)[0])
    digest = smallcnn.save(name, params, architecture, provenance, folder)
    print(f"{name}: test accuracy {provenance['test_accuracy']:.4f} on {len(test_set)}, sha256 {digest}")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(EPOCHS))
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=smallcnn.WEIGHTS)
    arguments = parser.parse_args()
    train(arguments.dataset, arguments.epochs or EPOCHS[arguments.dataset], arguments.folder)


if __name__ == "__main__":
    script(main)
