r"""The weight h of every divergence over the log-ratio, and how noisy it makes the gradient of a student.

    python experiments/2502.15681/divergence_weights.py

Left and middle: :math:`h(r) = f''(r)\,r^2`, in units of :math:`h(1)`, since scales mean nothing once ``h`` is normalised. Right:
the normalised variance :math:`V = \mathrm{Var}_q(h)/E_q[h]^2` for the teacher N(m, 1) and the student N(0, 1), by quadrature, and
in closed form where h is a power of r or one plus that.
"""

from __future__ import annotations

import jax
import numpy as np

from scorelab import distill, viz
from scorelab.run.script import parse, record, script

PAPER = (
    distill.ReverseKL(), distill.SoftenedReverseKL(), distill.JensenShannon(), distill.SquaredHellinger(), distill.ForwardKL(),
    distill.Jeffreys(),
)  # fmt: skip
OTHERS = (distill.LeCam(), distill.SkewedJensenShannon(c=0.1), distill.Neyman(), distill.Pearson())
CLOSED = {
    "squared Hellinger": lambda m: np.expm1(m**2 / 4),
    "Jeffreys": lambda m: np.expm1(m**2) / 4,
    "forward KL": lambda m: np.expm1(m**2),
    "Neyman": lambda m: np.expm1(m**2),
    "Pearson": lambda m: np.expm1(4 * m**2),
}
LOG_RATIO = np.linspace(-6, 6, 241)
SEPARATIONS = np.linspace(0.05, 3.0, 60)
TABLE = (0.5, 1.0, 2.0, 3.0)


def named(divergence: distill.Divergence) -> str:
    """Its name, with the number of the one that has one."""
    return f"{divergence.name}, c = {divergence.c:g}" if isinstance(divergence, distill.SkewedJensenShannon) else divergence.name


def weight(divergence: distill.Divergence) -> np.ndarray:
    """h over the log-ratio, 1 at r = 1."""
    with jax.enable_x64(True):
        log_h, at_one = np.asarray(divergence.log_h(LOG_RATIO)), float(divergence.log_h(np.float64(0)))
    return np.exp(log_h - at_one)


def variance(divergence: distill.Divergence, m: float) -> float:
    """V by quadrature over the student's law, in logarithms: h reaches 1e31 where Pearson's moments are made."""
    x = np.linspace(-30, 40, 70_001)
    with jax.enable_x64(True):
        log_h = np.asarray(divergence.log_h(m * x - m**2 / 2))
    log_q = -0.5 * x**2 - 0.5 * np.log(2 * np.pi)

    def log_moment(k):
        v = log_q + k * log_h
        return v.max() + np.log(np.sum(np.exp(v - v.max())) * (x[1] - x[0]))

    return max(0.0, float(np.expm1(log_moment(2) - 2 * log_moment(1))))


def main() -> None:
    arguments = parse(__doc__)
    everyone = {named(d): d for d in (*PAPER, *OTHERS)}
    table = {name: {f"{m:g}": variance(d, m) for m in TABLE} for name, d in everyone.items()}
    error = max(abs(table[name][f"{m:g}"] / closed(m) - 1) for name, closed in CLOSED.items() for m in TABLE)
    for name, row in table.items():
        print(f"{name:32s} " + "  ".join(f"m = {m}: {v:.4g}" for m, v in row.items()))
    print(f"largest relative error of the quadrature against closed forms: {error:.1e}")

    # Reverse KL has none, and Neyman that of forward KL.
    shown = [named(d) for d in (*PAPER, *OTHERS) if d.name not in ("reverse KL", "Neyman")]
    curve = {name: (SEPARATIONS, np.array([variance(everyone[name], m) for m in SEPARATIONS])) for name in shown}
    show = lambda some: {named(d): (LOG_RATIO, weight(d)) for d in some}
    weights = dict(xlabel="log r", logy=True, ylim=(1e-3, 1e3))
    figure = viz.panels(
        [
            viz.Panel(series=show(PAPER), title="h(r) / h(1), those of the paper", **weights),
            viz.Panel(series=show(OTHERS), title="h(r) / h(1), others", **weights),
            viz.Panel(
                series=curve, title="Var(h) / E[h]^2; dots: closed forms", xlabel="separation m", logy=True,
                ylim=(1e-3, 1e4),
            ),
        ],
        width=11.0,
    )  # fmt: skip
    at = np.arange(0.25, 3.01, 0.25)
    for name in set(CLOSED) & set(shown):
        figure.axes[2].plot(at, CLOSED[name](at), "o", color=viz.figures.INK, markersize=3, markeredgewidth=0)
    found = dict(variance=table, closed_form_error=error, log_ratio=[-4, -2, 0, 2, 4])
    found["weight"] = {name: np.interp(found["log_ratio"], LOG_RATIO, weight(d)).tolist() for name, d in everyone.items()}
    record(arguments, found, weights=figure)


if __name__ == "__main__":
    script(main)
