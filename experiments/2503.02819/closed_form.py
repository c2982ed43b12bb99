"""Feynman-Kac correctors on laws whose powers, products and tilts are known: the score alone, and the score with weights.

Every row is a mean over three independent populations, with their standard deviation. KS, W1 and TV are distances to the exact
density on the line (TV on 80 bins); dlogz is the error of the normalising constant; roots is the share of first ancestors left.
Of 40 modes in the plane, TV is that of the masses of the modes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import scorelab as sl
from scorelab import fk, viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="Table A1",
    claims="Weights correct guidance, products and powers of known laws; of 40 Gaussians at a lower temperature the target score "
    "with weights comes nearest, and tempered noise drops modes.",
    look_for="The corrected histograms lie on the exact densities, where the score alone puts mass into the wrong modes.",
    minutes=dict(small=5, full=None, gpu=None),
    options=dict(particles=8192, parts=["guidance", "tilts", "products", "powers", "modes"]),
    small=dict(particles=2048, parts=["guidance", "products", "modes"]),
)

PROCESS = sl.processes.Gaussian(schedule=sl.schedules.VPLinear())
# The samples are those at t = 1e-3, where a standard deviation of 0.01 of noise is left.
T_MIN, POINTS, POPULATIONS = 1e-3, np.linspace(-10.0, 10.0, 8001), 3
ALWAYS, NEVER, EITHER = fk.Always(), fk.Never(), fk.EssBelow(0.5)
# Of the histograms on the line and in the plane.
BINS, EDGES = np.linspace(-5.5, 5.5, 111), np.linspace(-1.85, 1.85, 201)
FORTY = "40 modes, power 3"


def mixture(weights, means, deviations):
    """The exact model of a Gaussian mixture on the line."""
    column = lambda values: np.asarray(values, np.float64)[:, None]
    return sl.models.ExactModel(sl.densities.GaussianMixture(weights, column(means), column(deviations) ** 2), PROCESS)


FREE, BOUND = mixture((0.4, 0.3, 0.3), (-3, 0, 3), (0.8, 0.6, 0.8)), mixture((0.15, 0.6, 0.25), (-3, 0, 3), (0.8, 0.6, 0.8))
WIDE, NARROW = mixture((0.5, 0.5), (-1.5, 2.5), (1.2, 1.2)), mixture((0.5, 0.5), (-1, 2), (0.6, 0.6))
FIRST, SECOND = mixture((0.5, 0.5), (-2, 1), (0.6, 0.8)), mixture((0.3, 0.7), (-1, 2), (0.7, 0.6))
HARD, EASY = mixture((0.3, 0.4, 0.3), (-3, 0.5, 4), (0.3, 0.8, 0.5)), mixture((0.3, 0.4, 0.3), (-2, 0.5, 2.5), (0.5, 0.5, 0.5))
LINE = sl.models.ExactModel(sl.densities.Gaussian(np.array([0.5]), 1.0), PROCESS)
TILTED = mixture((0.3, 0.4, 0.3), (-3, 0.5, 4), (0.5, 0.8, 0.5))


def forty_modes():
    """Forty equal modes in the plane, in disorder."""
    centres = np.random.default_rng(0).uniform(-40, 40, (40, 2)) / 25
    return sl.models.ExactModel(sl.densities.GaussianMixture(np.ones(40), centres, np.full(40, (1.313 / 25) ** 2)), PROCESS)


def run(n, corrected, steps=120, t_max=1.0, policy=EITHER, noise=1.0, order=2, weigh=True, spacing=sl.grids.Quadratic, event=(1,)):
    """Independent populations of one corrector, or the drift alone."""
    base = sl.solvers.DPMSolverPP(order=order, eta=noise)
    solver = fk.FeynmanKac(base=base, potential=corrected.potential, policy=policy, particles=n) if weigh else base
    grid, count = spacing(steps, t_max=t_max, t_min=T_MIN, clean=False), POPULATIONS * n
    options = dict(start=corrected.start, key=jax.random.key(0), shape=(count, *event), chunk=count)
    return sl.sample(corrected.model, solver=solver, grid=grid, **options)


def log_density(corrected, points):
    """The target at the last time, without its constant."""
    return np.asarray(corrected.model.log_density(jnp.asarray(points, jnp.float32), jnp.asarray(T_MIN)), np.float64)


def parts(out, weigh):
    """The points and the weights of every population, with sum one."""
    x = np.asarray(out.x, np.float64).reshape(POPULATIONS, -1, *out.x.shape[1:])
    w = np.asarray(out.log_weights, np.float64).reshape(POPULATIONS, -1) if weigh else np.zeros(x.shape[:2])
    w = np.exp(w - w.max(1, keepdims=True))
    return x, w / w.sum(1, keepdims=True)


def health(out, weigh):
    """What the particle system says of itself."""
    if not weigh:
        return {}
    found = out.diagnostics
    n = len(out.x) / POPULATIONS
    return dict(
        min_ess=np.asarray(found["ess"]).min(1) / n, resampled=np.asarray(found["resampled"]).sum(1),
        roots=np.asarray(found["unique_roots"]) / n,
    )  # fmt: skip


def on_the_line(corrected, out, weigh):
    """Distances to the exact density."""
    logs, step = log_density(corrected, POINTS[:, None]), POINTS[1] - POINTS[0]
    mass = np.exp(logs - logs.max())
    exact, cdf = mass / mass.sum(), np.cumsum(mass) / mass.sum()
    bins = np.linspace(-10, 10, 81)
    binned = np.histogram(POINTS, bins, weights=exact)[0]
    rows = dict(ks=[], w1=[], tv=[])
    for x, w in zip(*parts(out, weigh), strict=True):
        order = np.argsort(x[:, 0])
        steps = np.append(0.0, np.cumsum(w[order]))
        gap = np.abs(steps[np.searchsorted(x[order, 0], POINTS, side="right")] - cdf)
        rows["ks"].append(gap.max())
        rows["w1"].append(gap.sum() * step)
        rows["tv"].append(0.5 * np.abs(np.histogram(x[:, 0], bins, weights=w)[0] - binned).sum())
    if weigh:
        rows["dlogz"] = np.asarray(out.log_z, np.float64) - (np.log(mass.sum() * step) + logs.max())
    return rows | health(out, weigh)


def in_the_plane(corrected, out, weigh):
    """Distances of the masses of the modes, each point counted for the nearest."""
    centres = np.asarray(corrected.model.models[0].law.components.mean)
    nearest = lambda x: np.argmin(((x[:, None] - centres) ** 2).sum(-1), axis=1)
    axis = np.linspace(-1.9, 1.9, 120)
    plane = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    logs = log_density(corrected, plane)
    mass = np.exp(logs - logs.max())
    exact = np.bincount(nearest(plane), mass / mass.sum(), minlength=40)
    rows = dict(tv=[], modes=[])
    for x, w in zip(*parts(out, weigh), strict=True):
        found = np.bincount(nearest(x), w, minlength=40)
        rows["tv"].append(0.5 * np.abs(found - exact).sum())
        # A mode counts as found with a quarter of its mass.
        rows["modes"].append(np.sum(found > exact / 4))
    if weigh:
        rows["dlogz"] = np.asarray(out.log_z, np.float64) - (np.log(mass.sum() * (axis[1] - axis[0]) ** 2) + logs.max())
    return rows | health(out, weigh)


def measure(options, how) -> dict:
    """One row: mean and standard deviation over the populations, and the histogram of the first of them (plane: of all)."""
    plane = how.get("event") == (2,)
    out = run(options.particles // 2 if plane else options.particles, **how)
    weigh = how.get("weigh", True)
    rows = (in_the_plane if plane else on_the_line)(how["corrected"], out, weigh)
    x, w = parts(out, weigh)
    if plane:
        histogram = np.histogram2d(x[..., 0].ravel(), x[..., 1].ravel(), [EDGES, EDGES], weights=w.ravel())[0]
    else:
        histogram = np.histogram(x[0][:, 0], BINS, weights=w[0])[0] / np.diff(BINS)
    numbers = {name: [round(float(np.mean(v)), 4), round(float(np.std(v, ddof=1)), 4)] for name, v in rows.items()}
    print("  ".join(f"{k} {m:.4g} ± {s:.2g}" for k, (m, s) in numbers.items()), flush=True)
    return dict(numbers=numbers, histogram=histogram)


# What is sampled: case -> name of the row -> arguments of ``run``.


def row(corrected, **options) -> dict:
    return dict(corrected=corrected, **options)


def guidance() -> dict:
    """Geometric means of two laws."""
    found = {}
    for pair, free, bound, scales in (("", FREE, BOUND, (2.0, 4.0)), (", second pair", WIDE, NARROW, (1.5, 3.0))):
        for b in scales:
            corrected = fk.geometric(free, bound, b)
            found[f"guidance {b:g}{pair}"] = {"score alone": row(corrected, weigh=False), "corrected": row(corrected)}
    corrected = fk.geometric(FREE, BOUND, 4.0)
    found["guidance 4"] |= {
        "corrected, every step": row(corrected, policy=ALWAYS),
        "corrected, birth and death": row(corrected, policy=fk.BirthDeath()),
    }
    return found


def tilts() -> dict:
    """Rewards with a gradient."""
    parabola, narrow = lambda x: -0.5 * (x[:, 0] - 3) ** 2, lambda x: -0.5 * ((x[:, 0] - 2) / 0.5) ** 2
    ramp, square = lambda process, t: 1 - t, lambda process, t: (1 - t) ** 2
    one, other = fk.tilted(LINE, narrow, ramp=ramp), fk.tilted(TILTED, parabola, ramp=ramp)
    return {
        "tilt of a Gaussian": {
            "guidance alone": row(one, weigh=False),
            "corrected": row(one),
            "corrected, left rule": row(fk.tilted(LINE, narrow, ramp=ramp, rule="left")),
            "corrected, ramp s^2": row(fk.tilted(LINE, narrow, ramp=square)),
            "corrected, default ramp": row(fk.tilted(LINE, narrow)),
        },
        "tilt of a mixture": {
            "guidance alone": row(other, weigh=False),
            "corrected": row(other),
            "corrected, never resampled": row(other, policy=NEVER),
        },
    }


def products() -> dict:
    """Two laws multiplied."""
    build = lambda **options: fk.product([FIRST, SECOND], **({"anchor": "score"} | options))
    return {
        "product": {
            "score alone": row(build(), weigh=False),
            "corrected, left rule": row(build(rule="left")),
            "corrected": row(build()),
            "corrected, every step": row(build(), policy=ALWAYS),
            "corrected, half the noise": row(build(noise=0.5), noise=0.5),
            "corrected, flow anchor": row(build(anchor="flow")),
        }
    }


def powers() -> dict:
    """A law at a lower temperature: the narrow mode takes over in the hard case, none does in the easy one."""
    found = {}
    for b in (2.0, 5.0, 10.0):
        score, flow = fk.annealed(HARD, b, anchor="score"), fk.annealed(HARD, b)
        tempered = fk.annealed(HARD, b, anchor="score", noise=1 / b)
        found[f"hard mixture, power {b:g}"] = {
            "score alone": row(score, weigh=False),
            "score alone, noise 1/b": row(tempered, weigh=False, noise=1 / b),
            "corrected, never resampled": row(score, policy=NEVER),
            "corrected": row(score),
            "corrected, every step": row(score, policy=ALWAYS),
            "corrected, noise 1/b": row(tempered, noise=1 / b),
            "corrected, birth and death": row(score, policy=fk.BirthDeath()),
            # Small steps at high noise too: with the others the drift of a high power is unstable there.
            "corrected, 500 even steps": row(score, steps=500, spacing=sl.grids.Uniform),
            "corrected, from t = .4": row(score, t_max=0.4),
            "corrected, flow anchor": row(flow),
            "corrected, flow anchor, t = .4": row(flow, t_max=0.4),
        }
    for b in (2.0, 5.0):
        score, flow = fk.annealed(EASY, b, anchor="score"), fk.annealed(EASY, b)
        found[f"easy mixture, power {b:g}"] = {
            "score alone": row(score, weigh=False),
            "corrected": row(score),
            "corrected, t = .4, 40 steps": row(score, steps=40, t_max=0.4),
            "corrected, flow anchor": row(flow),
            "corrected, flow anchor, order 1": row(flow, order=1),
            "corrected, flow anchor, no noise": row(fk.annealed(EASY, b, noise=0.0), noise=0.0, policy=NEVER),
        }
    return found


def modes() -> dict:
    """Forty modes in the plane, cubed."""
    model = forty_modes()
    score, flow = fk.annealed(model, 3.0, anchor="score"), fk.annealed(model, 3.0)
    tempered = fk.annealed(model, 3.0, anchor="score", noise=1 / 3)
    found = {
        "score alone": row(score, weigh=False),
        "corrected": row(score),
        "corrected, from t = .4": row(score, t_max=0.4),
        "corrected, every step, t = .4": row(score, t_max=0.4, policy=ALWAYS),
        "corrected, noise 1/b, t = .4": row(tempered, t_max=0.4, noise=1 / 3),
        "corrected, flow anchor, t = .4": row(flow, t_max=0.4),
    }
    return {FORTY: {name: how | dict(event=(2,)) for name, how in found.items()}}


def claims(numbers: dict) -> list[Claim]:
    """Whether weights bring samples nearer to the exact law, in the parts that were made."""
    apart = lambda a, b: a[0] - b[0] > 2 * np.hypot(a[1], b[1]) / np.sqrt(POPULATIONS)
    found = []
    for says, begins, why in (
        ("Weights correct guidance, whose law is a geometric mean.", "guidance", ""),
        ("Weights correct a product of two laws.", "product", ""),
        (
            "Weights correct a law at a lower temperature.",
            "hard mixture",
            " 120 quadratic steps are unstable at power 10.",
        ),
    ):
        cases = {case: rows for case, rows in numbers.items() if case.startswith(begins)}
        if not cases:
            continue
        won = [apart(rows["score alone"]["ks"], rows["corrected"]["ks"]) for rows in cases.values()]
        pairs = ", ".join(f"{rows['score alone']['ks'][0]:.3f} to {rows['corrected']['ks'][0]:.3f}" for rows in cases.values())
        found.append(
            Claim(
                says=says, value=sum(won), spread=0, unit=f"of {len(won)} cases nearer to the exact law (KS {pairs})",
                verdict="reproduced" if all(won) else "in shape" if any(won) else "not reproduced",
                why=f"Nearer is by more than two standard errors over {POPULATIONS} populations.{why}",
            )
        )  # fmt: skip
    if FORTY in numbers:
        rows = numbers[FORTY]
        best, tempered = rows["corrected, from t = .4"], rows["corrected, noise 1/b, t = .4"]
        nearer, more = apart(tempered["tv"], best["tv"]), apart(best["modes"], tempered["modes"])
        found.append(
            Claim(
                says="Of 40 Gaussians, tempered noise drops modes that the target score with weights keeps (Table A1).",
                value=best["modes"][0] - tempered["modes"][0], spread=float(np.hypot(best["modes"][1], tempered["modes"][1])),
                unit=f"modes of 40 more with the target score (TV {tempered['tv'][0]:.3f} to {best['tv'][0]:.3f})",
                verdict="reproduced" if nearer and more else "in shape" if nearer or more else "not reproduced",
                why="Other centres and a temperature of a third; both differences are to exceed two standard errors.",
            )
        )  # fmt: skip
    return found


def density_figure(shown: dict, targets: dict):
    """Exact densities, and what the score alone and the corrected sampler make of them."""
    middles = (BINS[1:] + BINS[:-1]) / 2
    titles = {
        "guidance 2": ("guidance, scale 2", "corrected"), "guidance 4": ("guidance, scale 4", "corrected"),
        "product": ("product of two laws", "corrected"),
        "hard mixture, power 5": ("fifth power", "corrected, flow anchor, t = .4"),
    }  # fmt: skip
    content = []
    for case, (title, name) in titles.items():
        if case not in shown:
            continue
        logs = log_density(targets[case], middles[:, None])
        mass = np.exp(logs - logs.max())
        series = {"exact": (middles, mass / mass.sum() / np.diff(BINS))}
        series |= {"score alone": (middles, shown[case]["score alone"]), "corrected": (middles, shown[case][name])}
        content.append(viz.Panel(series=series, title=title, xlabel="x", ylabel="density"))
    return viz.panels(content, reference=("exact",), columns=2, width=8.5, height=2.4)


def mode_figure(shown: dict, target):
    """Densities in the plane as pictures: exact, by the score alone, corrected."""
    middles = (EDGES[1:] + EDGES[:-1]) / 2
    logs = log_density(target, np.stack(np.meshgrid(middles, middles, indexing="ij"), -1).reshape(-1, 2))
    names = ("score alone", "corrected", "corrected, flow anchor, t = .4")
    pictures = [np.exp(logs - logs.max()).reshape(len(middles), -1), *(shown[name] for name in names)]
    # Square roots, so that a mode with a tenth of the mass of another is still seen.
    scaled = [np.sqrt(p / np.quantile(p[p > p.max() / 50], 0.9)) for p in pictures]
    dark = np.stack([255 - np.rint(255 * np.clip(p, 0, 1)).astype(np.uint8) for p in scaled])
    headings = ["exact", "score alone", "score anchor", "flow anchor, t = .4"]
    return viz.image_grid(dark[..., None], columns=4, headings=headings, width=8.2)


def main(record) -> None:
    builders = dict(guidance=guidance, tilts=tilts, products=products, powers=powers, modes=modes)
    cases: dict = {}
    for part in record.options.parts:
        cases |= builders[part]()
    found = record.cells(
        measure, {f"{case}: {name}": (record.options, how) for case, rows in cases.items() for name, how in rows.items()}
    )
    of = lambda key: {case: {name: found[f"{case}: {name}"][key] for name in rows} for case, rows in cases.items()}
    numbers, shown = of("numbers"), of("histogram")
    targets = {case: next(iter(rows.values()))["corrected"] for case, rows in cases.items()}
    figures = dict(densities=density_figure(shown, targets)) if {"guidance 2", "product"} & {*cases} else {}
    if FORTY in cases:
        figures["modes"] = mode_figure(shown[FORTY], targets[FORTY])
    record.write(numbers, claims=claims(numbers), **figures)


if __name__ == "__main__":
    FIGURE.make(main)
