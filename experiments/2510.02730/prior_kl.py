"""How far the start of the reverse process is from the law it stands for, on images, against the final noise level.

    python experiments/2510.02730/prior_kl.py

Multiplicative noise turns log(1 + image) into a law that is compared here through its Gaussian with the same moments,
N(m, C + sigma_T^2 I). The table gives its Kullback-Leibler divergence, in nats per image, to the log-normal start of arXiv
2510.02730 (one mean and deviation for all pixels) and to N(m, sigma_T^2 I), which knows the mean image alone. Needs the
three data sets.
"""

from __future__ import annotations

import jax
import numpy as np

import scorelab as sl
from scorelab import viz
from scorelab.densities import Gaussian
from scorelab.run.script import parse, record, script

SETS = {"MNIST": ("mnist", "train"), "Fashion-MNIST": ("fashion_mnist", "train"), "KMNIST (test)": ("kmnist", "test")}
LEVELS = (0.8, 1.2, 2.0, 3.0, 4.0, 5.5, 8.0)
TABLE = (0.8, 2.0, 4.0, 8.0)
STARTS = ("one log-normal for all pixels", "mean image and noise")


def kl_to_isotropic(law: Gaussian, mean, std) -> float:
    """KL(law || N(mean, std^2 I)) in nats, for a law with a full eigenbasis."""
    ratio = np.asarray(law.eigenvalues, np.float64) / float(std) ** 2
    shift = np.sum((np.asarray(law.mean, np.float64) - mean) ** 2) / float(std) ** 2
    return float(0.5 * (np.sum(ratio - 1 - np.log(ratio)) + shift))


def divergences(name: str, split: str) -> tuple[dict[str, list[float]], list[float]]:
    """The two divergences at each of LEVELS, and the largest eigenvalues of the covariance."""
    images = sl.data.Positive().encode(sl.data.load(name, split).x)
    y = np.asarray(sl.processes.GeometricBrownianMotion().encode(images), np.float64)
    law = Gaussian.from_data(y)
    curves = {start: [] for start in STARTS}
    for level in LEVELS:
        process = sl.processes.GeometricBrownianMotion(sigma=level)
        t = process.t_max
        truth = law.noised(process, t)
        iid = sl.starts.LogNormal.matched(y.mean(), y.std(), process)
        curves[STARTS[0]].append(kl_to_isotropic(truth, iid.mean, iid.std))
        curves[STARTS[1]].append(kl_to_isotropic(truth, np.asarray(truth.mean), process.sigma(t)))
    return curves, sorted(np.asarray(law.eigenvalues).tolist(), reverse=True)[:3]


def main() -> None:
    """Compute, print, draw."""
    arguments = parse(__doc__)
    jax.config.update("jax_enable_x64", True)
    numbers, panels = {}, []
    columns = [LEVELS.index(level) for level in TABLE]
    print(f"{'nats per image at sigma_T =':42s}" + "".join(f"{level:8g}" for level in TABLE))
    for title, (name, split) in SETS.items():
        curves, top = divergences(name, split)
        numbers[title] = dict(sigma=LEVELS, kl=curves, top_eigenvalues=top)
        for start, values in curves.items():
            print(f"{title:14s}{start:28s}" + "".join(f"{values[i]:8.3g}" for i in columns))
        axes = dict(xlabel="noise level at the end, sigma_T", ylabel="KL (nats per image)", logx=True, logy=True, markers=True)
        panels.append(viz.Panel(series={start: (LEVELS, values) for start, values in curves.items()}, title=title, **axes))
    record(arguments, numbers, curves=viz.panels(panels, share_y=True))


if __name__ == "__main__":
    script(main)
