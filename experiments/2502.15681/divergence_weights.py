r"""The weight h of every divergence over the log-ratio, and how noisy it makes the gradient of a student.

First row: :math:`|f'(r)|` and :math:`h(r) = f''(r)\,r^2` of the paper's six, and h of others; h in units of :math:`h(1)`, since
scales mean nothing once ``h`` is normalised. Last: the normalised variance :math:`V = \mathrm{Var}_q(h)/E_q[h]^2` for the teacher
N(m, 1) and the student N(0, 1), by quadrature, and in closed form where h is a power of r or one plus that. Beside that, the
powers of r by which :math:`f''` falls at both ends.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from scorelab import distill, viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="Figure 3, Figure 4 (a), Table 1, Table 6",
    claims="h is 1, 1/(1+r), r/(1+r), sqrt(r)/4, r and 1+r; its variance is low for softened reverse KL, Jensen-Shannon and "
    "squared Hellinger, high for forward KL and Jeffreys.",
    look_for="Forward KL and Jeffreys rise without bound to the right, and their variance leaves that of the others behind from "
    "a separation of 1 on.",
    minutes=dict(small=0.1, full=0.1, gpu=None),
)

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
# Powers of r at small and at large r, as the paper's Table 6 has them.
TAILS = {
    "reverse KL": (-2, -2), "softened reverse KL": (-2, -3), "Jensen-Shannon": (-1, -2), "squared Hellinger": (-1.5, -1.5),
    "forward KL": (-1, -1), "Jeffreys": (-2, -1),
}  # fmt: skip
ENDS = 25.0
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


def slope(divergence: distill.Divergence, end: float) -> float:
    """The power of r by which f'' goes at ``end``, a log-ratio so far out that h is one power of r."""
    with jax.enable_x64(True):
        low, high = (float(divergence.log_h(np.float64(end + step))) for step in (-0.5, 0.5))
    return high - low - 2


def autodiff_error(divergence: distill.Divergence) -> float:
    """The largest relative error of h against f'' r^2 by differentiating f twice, over the log-ratios of the figure."""
    with jax.enable_x64(True):
        r = jnp.exp(LOG_RATIO)
        exact = jax.vmap(jax.grad(jax.grad(divergence.f)))(r) * r**2
        return float(np.max(np.abs(np.asarray(divergence.h(jnp.asarray(LOG_RATIO))) / np.asarray(exact) - 1)))


def slope_of_f(divergence: distill.Divergence) -> np.ndarray:
    """The absolute value of f' over the log-ratio."""
    with jax.enable_x64(True):
        return np.abs(np.asarray(jax.vmap(jax.grad(divergence.f))(jnp.exp(LOG_RATIO))))


def measure() -> dict:
    """Everything that the claims and the tables of the pages need."""
    everyone = {named(d): d for d in (*PAPER, *OTHERS)}
    table = {name: {f"{m:g}": variance(d, m) for m in TABLE} for name, d in everyone.items()}
    error = max(abs(table[name][f"{m:g}"] / closed(m) - 1) for name, closed in CLOSED.items() for m in TABLE)
    at = [-4, -2, 0, 2, 4]
    return dict(
        variance=table, closed_form_error=error, log_ratio=at,
        weight={name: np.interp(at, LOG_RATIO, weight(d)).tolist() for name, d in everyone.items()},
        autodiff_error={named(d): autodiff_error(d) for d in PAPER},
        tails={named(d): [slope(d, -ENDS), slope(d, ENDS)] for d in PAPER},
    )  # fmt: skip


def claims(numbers: dict) -> list[Claim]:
    """The paper's tables, beside the library's divergences."""
    # Counts, since rounding errors differ from machine to machine.
    right = sum(error < 1e-9 for error in numbers["autodiff_error"].values())
    tails = sum(np.allclose(numbers["tails"][name], ends, rtol=0, atol=1e-6) for name, ends in TAILS.items())
    v, high, low = numbers["variance"], ("forward KL", "Jeffreys"), ("softened reverse KL", "Jensen-Shannon", "squared Hellinger")
    ratio = min(min(v[name][m] for name in high) / max(v[name][m] for name in low) for m in v["Jeffreys"])
    return [
        Claim(
            says="h(r) of the six divergences is f'' r^2, as in Table 1.", value=right, spread=0, unit="of six are, to 1e-9",
            verdict="reproduced" if right == len(PAPER) else "not reproduced",
            why="Against differentiating f twice in double precision, for r from exp(-6) to exp(6).",
        ),
        Claim(
            says="f'' falls at the two ends by the powers of r of Table 6.", value=tails, spread=0, unit="of six do, to 1e-6",
            verdict="reproduced" if tails == len(PAPER) else "not reproduced", why=f"At log-ratios of {ENDS:g} and -{ENDS:g}.",
        ),
        Claim(
            says="Table 1 has the variance as high for forward KL and Jeffreys, as low for the other three that have one.",
            value=ratio, spread=0, unit="least of the high ones over the largest of the low ones, at worst",
            verdict="reproduced" if ratio > 1 else "not reproduced", why="At separations of .5 (the worst), 1, 2 and 3.",
        ),
    ]  # fmt: skip


def figure():
    """The slopes, the weights and their variance."""
    everyone = {named(d): d for d in (*PAPER, *OTHERS)}
    # Reverse KL has none, and Neyman that of forward KL.
    shown = [named(d) for d in (*PAPER, *OTHERS) if d.name not in ("reverse KL", "Neyman")]
    curve = {name: (SEPARATIONS, np.array([variance(everyone[name], m) for m in SEPARATIONS])) for name in shown}
    show = lambda some, of: {named(d): (LOG_RATIO, of(d)) for d in some}
    weights = dict(xlabel="log r", logy=True, ylim=(1e-3, 1e3))
    drawn = viz.panels(
        [
            viz.Panel(series=show(PAPER, slope_of_f), title="|f'(r)|", **weights),
            viz.Panel(series=show(PAPER, weight), title="h(r) / h(1), those of the paper", **weights),
            viz.Panel(series=show(OTHERS, weight), title="h(r) / h(1), others", **weights),
            viz.Panel(
                series=curve, title="Var(h) / E[h]^2; dots: closed forms", xlabel="separation m", logy=True, ylim=(1e-3, 1e4)
            ),
        ],
        columns=2, width=9.0, height=2.8,
    )  # fmt: skip
    at = np.arange(0.25, 3.01, 0.25)
    for name in set(CLOSED) & set(shown):
        drawn.axes[3].plot(at, CLOSED[name](at), "o", color=viz.figures.INK, markersize=3, markeredgewidth=0)
    return drawn


def main(record) -> None:
    numbers = record.cell("weights", measure)
    for name, row in numbers["variance"].items():
        print(f"{name:32s} " + "  ".join(f"m = {m}: {v:.4g}" for m, v in row.items()))
    print(f"largest relative error of the quadrature against closed forms: {numbers['closed_form_error']:.1e}")
    record.write(numbers, claims=claims(numbers), weights=figure())


if __name__ == "__main__":
    FIGURE.make(main)
