"""Neither necessary nor sufficient: a score that is no gradient and samples the law, and a gradient that does not.

Beside the exact score s of a mixture in the plane stand two wrong ones of the same error |s_theta - s| = delta |s|: s + delta J s
with a quarter turn J, which is a gauge, and (1 + delta) s, which is a gradient. KL in nats of the data to what the flow samples is
that of exact log-densities at draws of the data, with adaptive steps, so that no sampling noise hides an effect. Sliced W2 to data
is that of samples of the flow (Heun) and of the reverse SDE (Euler-Maruyama), over seeds, beside that of as many exact draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import scorelab as sl
from scorelab import viz
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="",
    claims="A conservative vector field is neither necessary nor sufficient for exact density estimation and exact sampling.",
    look_for="At the same error of the score the gauge has a Jacobian of any asymmetry and KL 0 to the precision of the solver. "
    "The score of another size has asymmetry 0, and a KL that grows with its error; both samplers say the same.",
    minutes=dict(small=2, full=None, gpu=None),
    options=dict(seeds=5, n=20_000, held=2000, steps=400),
    small=dict(seeds=5, n=5000, held=500, steps=200),
)

DELTAS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
TURN = np.array([[0.0, -1.0], [1.0, 0.0]])
KINDS = {"gauge, s + delta J s": TURN, "gradient, (1 + delta) s": np.eye(2)}
# Of the asymmetry and the residual.
SIGMAS = (0.1, 0.3, 1.0, 3.0)
PROCESS = sl.processes.Gaussian(schedule=sl.schedules.EDM(sigma_min=0.02, sigma_max=40.0))


def law():
    covs = np.array([[[0.3, 0.1], [0.1, 0.1]], [[0.1, 0.0], [0.0, 0.4]]])
    return sl.densities.GaussianMixture([0.6, 0.4], [[-1.0, 0.0], [1.2, 0.5]], covs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mapped(sl.models.Wraps):
    """The score of another model times a matrix; another matrix compiles nothing."""

    model: sl.models.ExactModel
    matrix: Any

    def __call__(self, y, t, cond=None):
        eps = sl.models.ask(self.model, y, t, cond).eps
        return self.process.predict(y, t, eps=eps @ jnp.asarray(self.matrix, y.dtype).T)


def mapped(kind, delta):
    return Mapped(sl.models.ExactModel(law(), PROCESS), jnp.asarray(np.eye(2) + delta * KINDS[kind]))


def measure(kind, delta, seed, options) -> dict:
    """KL of the flow's law, distances of samples, and what the diagnostics say."""
    model, truth = mapped(kind, delta), law()
    held = truth.sample(jax.random.key(100 + seed), options.held)
    # The flow's density is that of data with the least noise.
    exact = truth.noised(PROCESS, PROCESS.t_min).log_prob(held)
    ours = sl.log_likelihood(model, held, rtol=1e-5, atol=1e-5).log_prob
    kl = np.asarray(exact, np.float64) - np.asarray(ours, np.float64)
    data = np.asarray(truth.sample(jax.random.key(200 + seed), 4 * options.n))
    apart = lambda x: float(sl.metrics.sliced_wasserstein(jax.random.key(0), np.asarray(x), data, projections=128).value)
    shape, key = (options.n, 2), jax.random.key(10 + seed)
    grid = sl.grids.LogSNR(options.steps)
    samplers = {"flow": sl.solvers.Heun(), "SDE": sl.solvers.EulerMaruyama()}
    drawn = {
        name: sl.sample(model, solver=solver, grid=grid, key=key, shape=shape, chunk=options.n).x
        for name, solver in samplers.items()
    }
    points = held[:200]
    one = sl.diagnostics.conservativity(model, points, SIGMAS, probes=0, key=key)
    two = sl.diagnostics.gauge_residual(model, truth, points, SIGMAS, key=key)
    return dict(
        kl=float(kl.mean()), kl_error=float(kl.std(ddof=1) / np.sqrt(len(kl))), w2={name: apart(x) for name, x in drawn.items()},
        floor=apart(truth.sample(jax.random.key(300 + seed), options.n)), asymmetry=one.asymmetry, loop=one.loop,
        residual=np.sqrt(two.mean_square), error=np.sqrt(two.error),
        gradient=two.gradient / np.where(two.error > 0, two.error, 1.0),
    )  # fmt: skip


def curves(numbers):
    """Against the relative error of the score; every dot is a seed."""
    delta = np.array(DELTAS)
    of = lambda kind, what: np.array([[what(cell) for cell in cells] for cells in numbers[kind].values()])
    floor = np.mean([cell["floor"] for by in numbers.values() for cells in by.values() for cell in cells])
    asymmetry = {kind: (delta, of(kind, lambda cell: np.mean(cell["asymmetry"]))) for kind in numbers}
    kl = {kind: (delta[1:], np.abs(of(kind, lambda cell: cell["kl"]))[1:]) for kind in numbers}
    w2 = lambda which: (
        {kind: (delta, of(kind, lambda cell: cell["w2"][which])) for kind in numbers}
        | {"as many exact draws": (delta, np.full(len(delta), floor))}
    )
    panel = lambda series, **options: viz.Panel(series=series, xlabel="error of the score, relative", mean=True, **options)
    return viz.panels(
        [
            panel(asymmetry, ylabel="asymmetry A of the Jacobian", title="is it a gradient?"),
            panel(kl, ylabel="|KL| of data to the flow, nats", title="is it the law?", logy=True, logx=True),
            panel(w2("flow"), ylabel="sliced W2 to data", title="samples of the flow", logy=True),
            panel(w2("SDE"), ylabel="sliced W2 to data", title="samples of the SDE", logy=True),
        ],
        columns=2, reference=("as many exact draws",), width=8.0, height=2.6,
    )  # fmt: skip


def claims(numbers) -> list[Claim]:
    """Spreads are over seeds."""
    gauge, gradient = (numbers[kind] for kind in KINDS)
    of = lambda cells, what: np.array([what(cell) for cell in cells])
    spread = lambda values: values.std(ddof=values.size > 1)
    kl, asymmetry = of(gauge["1"], lambda c: c["kl"]), of(gauge["1"], lambda c: np.mean(c["asymmetry"]))
    base, floor = of(gauge["0"], lambda c: c["w2"]["flow"]), of(gauge["0"], lambda c: c["floor"])
    turned = of(gauge["1"], lambda c: c["w2"]["flow"])
    wrong, straight = of(gradient["0.1"], lambda c: c["kl"]), of(gradient["0.1"], lambda c: np.max(c["asymmetry"]))
    far = of(gradient["0.1"], lambda c: c["w2"]["flow"])
    residual = {
        name: of(cells, lambda c: np.max(c["residual"])).max() for name, cells in (("J s", gauge["1"]), ("1.1 s", gradient["0.1"]))
    }
    return [
        Claim(
            says="A conservative field is not necessary for exact densities.", value=np.abs(kl).max(), spread=0.0,
            unit="nats, the largest |KL| of s + J s over the seeds",
            verdict="reproduced" if np.abs(kl).max() < 1e-2 else "not reproduced",
            why=f"A is {plus_minus(asymmetry, 2)}. KL of the exact score is {plus_minus(of(gauge['0'], lambda c: c['kl']), 5)}.",
        ),
        Claim(
            says="Nor for exact sampling.", value=turned.mean(), spread=spread(turned), unit="sliced W2 of the flow under s + J s",
            verdict="reproduced" if abs(turned.mean() - base.mean()) < 2 * spread(base) + 2 * spread(turned) else "not reproduced",
            why=f"Exact score {plus_minus(base)}; as many exact draws {plus_minus(floor)}.",
        ),
        Claim(
            says="It is not sufficient.", value=wrong.mean(), spread=spread(wrong), unit="nats, KL of 1.1 s",
            verdict="reproduced" if wrong.min() > 10 * np.abs(kl).max() and straight.max() < 1e-4 else "not reproduced",
            why=f"A is at most {straight.max():.0e}; sliced W2 {plus_minus(far)}.",
        ),
        Claim(
            says="The part of the error that is no gauge is what matters.",
            value=residual["1.1 s"] / max(residual["J s"], 1e-12), spread=0.0,
            unit="times the gauge residual of s + J s has 1.1 s",
            verdict="reproduced" if residual["1.1 s"] > 100 * residual["J s"] else "not reproduced",
            why=f"Root mean squares: {residual['J s']:.1e} of s + J s (float32), {residual['1.1 s']:.2f} of 1.1 s.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o = record.options
    wanted = {
        f"{kind}, {delta:g}, seed {seed}": (kind, delta, seed, o) for kind in KINDS for delta in DELTAS for seed in range(o.seeds)
    }
    found = record.cells(measure, wanted)
    numbers = {
        kind: {f"{delta:g}": [found[f"{kind}, {delta:g}, seed {seed}"] for seed in range(o.seeds)] for delta in DELTAS}
        for kind in KINDS
    }
    for kind, by in numbers.items():
        for delta, cells in by.items():
            mean = lambda what: np.mean([what(cell) for cell in cells])
            print(
                f"{kind:24} {delta:5} A {mean(lambda c: np.mean(c['asymmetry'])):.3f} KL {mean(lambda c: c['kl']):.5f} "
                f"W2 flow {mean(lambda c: c['w2']['flow']):.4f} SDE {mean(lambda c: c['w2']['SDE']):.4f} "
                f"floor {mean(lambda c: c['floor']):.4f}"
            )
    record.write(numbers, claims=claims(numbers), curves=curves(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
