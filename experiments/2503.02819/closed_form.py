"""Feynman-Kac correctors on laws whose powers, products and tilts are known: the score alone, and the score with weights.

    python experiments/2503.02819/closed_form.py

Every row is a mean over three independent populations, with their standard deviation. KS, W1 and TV are distances to the exact
density on the line (TV on 80 bins); dlogz is the error of the normalising constant; roots is the share of first ancestors left.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import scorelab as sl
from scorelab import fk, viz
from scorelab.run.script import parse, record, script

PROCESS = sl.processes.Gaussian(schedule=sl.schedules.VPLinear())
# The samples are those at t = 1e-3, where a standard deviation of 0.01 of noise is left.
T_MIN, POINTS, POPULATIONS = 1e-3, np.linspace(-10.0, 10.0, 8001), 3
ALWAYS, NEVER, EITHER = fk.Always(), fk.Never(), fk.EssBelow(0.5)


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


def run(corrected, steps, n, t_max=1.0, policy=EITHER, noise=1.0, order=2, weigh=True, spacing=sl.grids.Quadratic, event=(1,)):
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


def summary(rows):
    """Mean and standard deviation over the populations."""
    return {name: [round(float(np.mean(v)), 4), round(float(np.std(v, ddof=1)), 4)] for name, v in rows.items()}


class Table:
    """The rows of the report, printed as they come."""

    def __init__(self, particles: int):
        self.particles, self.rows, self.kept = particles, {}, {}

    def add(self, case, name, corrected, steps, measure=on_the_line, weigh=True, keep=False, **options):
        """Run and measure one row."""
        out = run(corrected, steps, **dict(n=self.particles, weigh=weigh) | options)
        found = summary(measure(corrected, out, weigh))
        self.rows.setdefault(case, {})[name] = found
        print(f"{case:28s} {name:34s}", "  ".join(f"{k} {m:.4g} ± {s:.2g}" for k, (m, s) in found.items()), flush=True)
        if keep:
            self.kept.setdefault(case, {"target": corrected})[name] = parts(out, weigh)

    def guidance(self):
        """Geometric means of two laws."""
        for pair, free, bound, scales in (("", FREE, BOUND, (2.0, 4.0)), (", second pair", WIDE, NARROW, (1.5, 3.0))):
            for b in scales:
                corrected, case = fk.geometric(free, bound, b), f"guidance {b:g}{pair}"
                self.add(case, "score alone", corrected, 120, weigh=False, keep=True)
                self.add(case, "corrected", corrected, 120, keep=True)
        corrected = fk.geometric(FREE, BOUND, 4.0)
        self.add("guidance 4", "corrected, every step", corrected, 120, policy=ALWAYS)
        self.add("guidance 4", "corrected, birth and death", corrected, 120, policy=fk.BirthDeath())

    def tilts(self):
        """Rewards with a gradient."""
        parabola, narrow = lambda x: -0.5 * (x[:, 0] - 3) ** 2, lambda x: -0.5 * ((x[:, 0] - 2) / 0.5) ** 2
        ramp, square = lambda process, t: 1 - t, lambda process, t: (1 - t) ** 2
        corrected = fk.tilted(LINE, narrow, ramp=ramp)
        self.add("tilt of a Gaussian", "guidance alone", corrected, 120, weigh=False)
        self.add("tilt of a Gaussian", "corrected", corrected, 120)
        self.add("tilt of a Gaussian", "corrected, left rule", fk.tilted(LINE, narrow, ramp=ramp, rule="left"), 120)
        self.add("tilt of a Gaussian", "corrected, ramp s^2", fk.tilted(LINE, narrow, ramp=square), 120)
        self.add("tilt of a Gaussian", "corrected, default ramp", fk.tilted(LINE, narrow), 120)
        corrected = fk.tilted(TILTED, parabola, ramp=ramp)
        self.add("tilt of a mixture", "guidance alone", corrected, 120, weigh=False)
        self.add("tilt of a mixture", "corrected", corrected, 120)
        self.add("tilt of a mixture", "corrected, never resampled", corrected, 120, policy=NEVER)

    def products(self):
        """Two laws multiplied."""
        build = lambda **options: fk.product([FIRST, SECOND], **({"anchor": "score"} | options))
        self.add("product", "score alone", build(), 120, weigh=False, keep=True)
        self.add("product", "corrected, left rule", build(rule="left"), 120)
        self.add("product", "corrected", build(), 120, keep=True)
        self.add("product", "corrected, every step", build(), 120, policy=ALWAYS)
        self.add("product", "corrected, half the noise", build(noise=0.5), 120, noise=0.5)
        self.add("product", "corrected, flow anchor", build(anchor="flow"), 120)

    def powers(self):
        """A law at a lower temperature: the narrow mode takes over in the hard case, none does in the easy one."""
        for b in (2.0, 5.0, 10.0):
            case, score = f"hard mixture, power {b:g}", fk.annealed(HARD, b, anchor="score")
            self.add(case, "score alone", score, 120, weigh=False, keep=True)
            tempered = fk.annealed(HARD, b, anchor="score", noise=1 / b)
            self.add(case, "score alone, noise 1/b", tempered, 120, weigh=False, noise=1 / b)
            self.add(case, "corrected, never resampled", score, 120, policy=NEVER)
            self.add(case, "corrected", score, 120)
            self.add(case, "corrected, every step", score, 120, policy=ALWAYS)
            self.add(case, "corrected, noise 1/b", tempered, 120, noise=1 / b)
            self.add(case, "corrected, birth and death", score, 120, policy=fk.BirthDeath())
            # Small steps at high noise too: with the others the drift of a high power is unstable there.
            self.add(case, "corrected, 500 even steps", score, 500, spacing=sl.grids.Uniform)
            self.add(case, "corrected, from t = .4", score, 120, t_max=0.4)
            self.add(case, "corrected, flow anchor", fk.annealed(HARD, b), 120)
            self.add(case, "corrected, flow anchor, t = .4", fk.annealed(HARD, b), 120, t_max=0.4, keep=True)
        for b in (2.0, 5.0):
            case, score = f"easy mixture, power {b:g}", fk.annealed(EASY, b, anchor="score")
            self.add(case, "score alone", score, 120, weigh=False)
            self.add(case, "corrected", score, 120)
            self.add(case, "corrected, t = .4, 40 steps", score, 40, t_max=0.4)
            self.add(case, "corrected, flow anchor", fk.annealed(EASY, b), 120)
            self.add(case, "corrected, flow anchor, order 1", fk.annealed(EASY, b), 120, order=1)
            self.add(case, "corrected, flow anchor, no noise", fk.annealed(EASY, b, noise=0.0), 120, noise=0.0, policy=NEVER)

    def modes(self):
        """Forty modes in the plane, cubed."""
        model, case = forty_modes(), "40 modes, power 3"
        score, flow = fk.annealed(model, 3.0, anchor="score"), fk.annealed(model, 3.0)
        tempered = fk.annealed(model, 3.0, anchor="score", noise=1 / 3)
        options = dict(measure=in_the_plane, n=self.particles // 2, event=(2,))
        self.add(case, "score alone", score, 120, weigh=False, keep=True, **options)
        self.add(case, "corrected", score, 120, keep=True, **options)
        self.add(case, "corrected, from t = .4", score, 120, t_max=0.4, **options)
        self.add(case, "corrected, every step, t = .4", score, 120, t_max=0.4, policy=ALWAYS, **options)
        self.add(case, "corrected, noise 1/b, t = .4", tempered, 120, t_max=0.4, noise=1 / 3, **options)
        self.add(case, "corrected, flow anchor, t = .4", flow, 120, t_max=0.4, keep=True, **options)


def density_figure(kept):
    """Exact densities, and what the score alone and the corrected sampler make of them."""
    bins = np.linspace(-5.5, 5.5, 111)
    middles = (bins[1:] + bins[:-1]) / 2
    shown = {
        "guidance 2": ("guidance, scale 2", "corrected"), "guidance 4": ("guidance, scale 4", "corrected"),
        "product": ("product of two laws", "corrected"),
        "hard mixture, power 5": ("fifth power", "corrected, flow anchor, t = .4"),
    }  # fmt: skip
    content = []
    for case, (title, name) in shown.items():
        rows = kept[case]
        heights = lambda cloud: np.histogram(cloud[0][0][:, 0], bins, weights=cloud[1][0])[0] / np.diff(bins)
        logs = log_density(rows["target"], middles[:, None])
        mass = np.exp(logs - logs.max())
        series = {"exact": (middles, mass / mass.sum() / np.diff(bins)), "score alone": (middles, heights(rows["score alone"]))}
        content.append(viz.Panel(series=series | {"corrected": (middles, heights(rows[name]))}, title=title, xlabel="x"))
    return viz.panels(content, reference=("exact",), columns=2, width=8.5, height=2.4)


def mode_figure(kept):
    """Densities in the plane as pictures: exact, by the score alone, corrected."""
    rows, size = kept["40 modes, power 3"], 200
    edges = np.linspace(-1.85, 1.85, size + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    logs = log_density(rows["target"], np.stack(np.meshgrid(middles, middles, indexing="ij"), -1).reshape(-1, 2))
    pictures = [np.exp(logs - logs.max()).reshape(size, size)]
    for name in ("score alone", "corrected", "corrected, flow anchor, t = .4"):
        x, w = rows[name]
        pictures.append(np.histogram2d(x[..., 0].ravel(), x[..., 1].ravel(), [edges, edges], weights=w.ravel())[0])
    # Square roots, so that a mode with a tenth of the mass of another is still seen.
    scaled = [np.sqrt(p / np.quantile(p[p > p.max() / 50], 0.9)) for p in pictures]
    dark = np.stack([255 - np.rint(255 * np.clip(p, 0, 1)).astype(np.uint8) for p in scaled])
    title = "exact; the score alone; score anchor; flow anchor from t = .4"
    return viz.image_grid(dark[..., None], columns=4, title=title, width=8.2)


def main() -> None:
    arguments = parse(__doc__, small=dict(particles=256), particles=8192)
    table = Table(arguments.particles)
    for part in (table.guidance, table.tilts, table.products, table.powers, table.modes):
        part()
    record(arguments, table.rows, densities=density_figure(table.kept), modes=mode_figure(table.kept))


if __name__ == "__main__":
    script(main)
