"""What the experiments on multiplicative diffusion share: a target with known answers, its exact start, and the record of a run."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import jax
import numpy as np

import scorelab as sl
from scorelab import viz

PROCESS = sl.processes.GeometricBrownianMotion()
WEIGHTS, MEANS, STDS = np.array([0.30, 0.45, 0.25]), np.array([-0.6, 0.1, 0.9]), np.array([0.12, 0.18, 0.10])
TARGET = sl.densities.LogNormalMixture(WEIGHTS, MEANS[:, None], STDS**2)
MODEL = sl.models.ExactModel(TARGET, PROCESS)


def exact_start(key, n: int) -> sl.starts.Fixed:
    """``n`` draws of the law of ``log x`` at ``t_max``."""
    return sl.starts.Fixed(TARGET.logs.noised(PROCESS, PROCESS.t_max).sample(key, n))


def density(y: np.ndarray, t: float = 0.0) -> np.ndarray:
    """The density of ``log x`` at time ``t`` on the points ``y`` ``(m,)``."""
    return np.exp(TARGET.logs.noised(PROCESS, t).log_prob(y[:, None]))


def quantiles(n: int) -> np.ndarray:
    """The quantiles of ``log x`` at ``(i + 1/2) / n``."""
    y = np.linspace(-2.5, 2.5, 50_001)
    cdf = np.asarray(jax.scipy.stats.norm.cdf((y[:, None] - MEANS) / STDS), np.float64) @ WEIGHTS
    return np.interp((np.arange(n) + 0.5) / n, cdf, y)


def w1(logs: np.ndarray) -> float:
    """The Wasserstein-1 distance of points ``(n,)`` to the law of ``log x``."""
    return float(np.mean(np.abs(np.sort(np.asarray(logs, np.float64)) - quantiles(len(logs)))))


def parse(doc: str, name: str, **options: int) -> argparse.Namespace:
    """The command line: ``--out``, and integer options with these defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/figures") / name, help="folder of the figures and numbers")
    for option, default in options.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    return parser.parse_args()


def record(arguments: argparse.Namespace, name: str, numbers, **figures) -> None:
    """Write the numbers with the command and the versions, and each figure as ``{name}_{its name}.png``."""
    options = "".join(f" --{option} {value}" for option, value in vars(arguments).items() if not isinstance(value, Path))
    versions = dict(scorelab=sl.__version__, python=platform.python_version(), jax=jax.__version__, numpy=np.__version__)
    document = dict(command=f"python experiments/{name}.py{options}", versions=versions, numbers=numbers)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    for label, figure in figures.items():
        print("wrote", viz.save(figure, arguments.out / f"{name}_{label}.png"))
