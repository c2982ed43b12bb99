"""Posterior sampling by guidance against posteriors in closed form: super-resolution of a periodic field from two modalities.

The field has 32 points and unit variance, with the variance of wave number k falling as (1 + (k/3)^2)^-2. Measured are eight
averages of four points (noise 0.1) and four points (noise 0.05). Ladder: every sampler on the same truths and measurements,
`draws` samples of each of a few for the distance to the exact posterior, ensembles of nine of many for the scores against the
truth; what exact draws miss is chance. Modalities: the same scores with one modality and with both. Mixture: a prior with two
components that differ by a wave of period four, invisible to the averages, and point sensors of noise 0.5, so that the posterior
often has both. "SMC" is the same guidance as the proposal of weighted particles, `PARTICLES` for each truth: the weights make up
for what a rung assumes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np

import scorelab as sl
from scorelab import metrics, models, viz
from scorelab.models import LinearMeasurement
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Guidance of a score-based model recovers a field from averages and sparse sensors without training on them, with an "
    "uncertainty, and uses what each modality adds.",
    look_for="Only the Tweedie covariance has the spread of the exact posterior at every point; ranks pooled over the points "
    "hardly tell the others apart.",
    minutes=dict(small=2, full=10, gpu=None),
    options=dict(truths=5, draws=1000, cases=150, mixtures=120, members=100, seed=0),
    small=dict(truths=2, draws=200, cases=20, mixtures=10, members=20),
)

POINTS, MEMBERS, PARTICLES, SENSORS = 32, 9, 200, np.array([2, 9, 17, 27])
AVERAGES = np.kron(np.eye(8), np.full((1, 4), 0.25))
PROCESS = sl.processes.Gaussian(schedule=sl.schedules.EDM())
ANCESTRAL, GRID = sl.solvers.DDIM(eta=1.0), sl.grids.Karras(250)
ON_MIXTURES = (
    "exact draws", "DPS 0.2", "SDA 0.1", "PiGDM", "PiGDM, Heun", "Tweedie, 50 steps", "Tweedie, Heun", "SMC, PiGDM",
    "SMC, Tweedie, 50 steps",
)  # fmt: skip

# A sampler takes a key and a measurement to samples (n, POINTS) and log-weights (n,), which need not be normalised.
Sampler = Callable[[jax.Array, LinearMeasurement], tuple[np.ndarray, np.ndarray]]


def field(length: float) -> np.ndarray:
    """The covariance of the periodic field: unit variance, and a spectrum that falls from wave number ``length`` on."""
    spectrum = 1 / (1 + (np.fft.fftfreq(POINTS, 1 / POINTS) / length) ** 2) ** 2
    row = np.fft.ifft(spectrum / spectrum.mean()).real
    return row[(np.arange(POINTS)[:, None] - np.arange(POINTS)) % POINTS]


PRIOR = sl.densities.Gaussian(np.zeros(POINTS), field(3.0))
WAVE = 0.5 * np.cos(np.pi / 2 * (np.arange(POINTS) - SENSORS[0]))
MIXTURE = sl.densities.GaussianMixture([0.6, 0.4], np.stack([WAVE, -WAVE]), np.stack([field(3.0), field(2.0)]))


def measure(rng, truth: np.ndarray, modalities: dict[str, float]) -> LinearMeasurement:
    """Averages and sensors of a truth, each with its noise; the modalities that are not named are left out."""
    rows = dict(averages=AVERAGES, sensors=np.eye(POINTS)[SENSORS])
    noise = {name: rng.normal(size=len(h)) for name, h in rows.items()}  # the same whatever is left out
    return LinearMeasurement.stacked([
        LinearMeasurement(matrix=rows[name], values=rows[name] @ truth + std * noise[name], std=std)
        for name, std in modalities.items()
    ])  # fmt: skip


def samplers(prior: sl.densities.Density, n: int) -> dict[str, Sampler]:
    """The ladder under a prior, ``n`` samples a call."""
    exact = models.ExactModel(prior, PROCESS)

    def guided(make, *, solver=ANCESTRAL, grid=GRID, **options) -> Sampler:
        def draw(key, measurement):
            model = make(model=exact, measurement=measurement, **options)
            out = sl.sample(model, solver=solver, grid=grid, key=key, shape=(n, POINTS))
            return out.x, out.log_weights

        return draw

    def weighted(make, grid=GRID, **options) -> Sampler:
        particles = max(n, PARTICLES)

        def draw(key, measurement):
            # The measurement is a leaf of the reward: other values reuse the program.
            likelihood = jax.tree_util.Partial(LinearMeasurement.log_likelihood, measurement)
            blurred = sl.fk.Blurred(measurement=measurement, law=prior.matched())
            solver = sl.fk.FeynmanKac(base=ANCESTRAL, potential=sl.fk.Difference(likelihood, 1.0, intermediate=blurred))
            model = make(model=exact, measurement=measurement, **options)
            out = sl.sample(model, solver=solver, grid=grid, key=key, shape=(particles, POINTS))
            return out.x, out.log_weights

        return draw

    fifty, forty = sl.grids.Karras(50), dict(solver=sl.solvers.Heun(), grid=sl.grids.Karras(40))
    return {
        "exact draws": lambda key, measurement: (models.exact_posterior(prior, measurement).sample(key, n), np.zeros(n)),
        **{f"DPS {zeta:g}": guided(functools.partial(models.DPS, grid=GRID), zeta=zeta) for zeta in (0.05, 0.2, 1.0)},
        "DPS 0.2, 50 steps": guided(functools.partial(models.DPS, grid=fifty), zeta=0.2, grid=fifty),
        **{f"SDA {gamma:g}": guided(models.SDA, gamma=gamma) for gamma in (0.1, 0.3, 1.0)},
        "PiGDM": guided(models.PiGDM),
        "PiGDM, Heun": guided(models.PiGDM, **forty),
        "Tweedie, 50 steps": guided(models.TweedieCovariance, grid=fifty),
        "Tweedie": guided(models.TweedieCovariance),
        "Tweedie, Heun": guided(models.TweedieCovariance, **forty),
        "SMC, SDA 0.3": weighted(models.SDA, gamma=0.3),
        "SMC, PiGDM": weighted(models.PiGDM),
        "SMC, Tweedie, 50 steps": weighted(models.TweedieCovariance, grid=fifty),
    }


def drawn(sampler: Sampler, key, cases) -> tuple[np.ndarray, np.ndarray]:
    """What a sampler gives for every case: samples (n, cases, POINTS) and normalised weights (n, cases), float64."""
    found = [sampler(k, measurement) for k, (_, measurement) in zip(jax.random.split(key, len(cases)), cases, strict=True)]
    x, log_weights = (np.stack([np.asarray(part, np.float64) for part in parts], 1) for parts in zip(*found, strict=True))
    weights = np.exp(log_weights - log_weights.max(0))
    return x, weights / weights.sum(0)


def equal(key, x: np.ndarray, w: np.ndarray, n: int) -> np.ndarray:
    """``n`` members of each case without weights, drawn by them where they differ."""
    if np.ptp(w) < 1e-9:
        return x[:n]
    picks = [jax.random.choice(k, len(x), (n,), p=p) for k, p in zip(jax.random.split(key, len(w.T)), w.T, strict=True)]
    return np.stack([x[pick, case] for case, pick in enumerate(picks)], 1)


def distances(x, w, posteriors) -> dict:
    """Against exact posteriors: distance, error of the mean, ratios of variances; lists over the cases."""
    found = dict(w2=[], mean_error=[], variance_ratio=[], pointwise=[])
    for case, posterior in enumerate(posteriors):
        mean, cov = np.asarray(posterior.mean, np.float64), np.asarray(posterior.covariance(), np.float64)
        centre, spread = w[:, case] @ x[:, case], np.cov(x[:, case].T, aweights=w[:, case])
        found["w2"].append(float(np.sqrt(metrics.frechet_distance(centre, spread, mean, (cov + cov.T) / 2))))
        found["mean_error"].append(float(np.sqrt(np.mean((centre - mean) ** 2))))
        found["variance_ratio"].append(float(np.trace(spread) / np.trace(cov)))
        found["pointwise"].append((np.diag(spread) / np.diag(cov)).tolist())
    return found


def scores(key, x, w, cases) -> dict:
    """Against the truth: error, spread and CRPS with their standard errors, and counts of ranks."""
    truth, (key_pick, key_rank) = np.stack([truth for truth, _ in cases]), jax.random.split(key)
    found = {f.__name__: f(x, truth, weights=w) for f in (metrics.rmse, metrics.spread_skill, metrics.crps)}
    ranks = metrics.rank_histogram(key_rank, equal(key_pick, x, w, MEMBERS), truth).tolist()
    return {name: [score.value, score.stderr] for name, score in found.items()} | dict(ranks=ranks)


def shares(key, x, w, posteriors) -> dict:
    """Against posteriors of two components: error of the first one's share, and the sliced distance to as many exact draws."""
    found, (key_pick, *keys) = dict(share_error=[], sliced=[]), jax.random.split(key, len(posteriors) + 1)
    members = equal(key_pick, x, w, len(x))
    for case, (k, posterior) in enumerate(zip(keys, posteriors, strict=True)):
        first = np.asarray(posterior.responsibilities(x[:, case])[0])
        found["share_error"].append(float(w[:, case] @ first - posterior.weights[0]))
        draws = posterior.sample(k, len(x))
        found["sliced"].append(metrics.sliced_wasserstein(jax.random.fold_in(k, 1), members[:, case], draws).value)
    return found


def calibration(ladder: dict):
    """Spread at every point of one case, and the histograms of ranks."""
    names = ("DPS 0.2", "SDA 0.3", "PiGDM, Heun", "Tweedie, Heun", "exact draws")
    spread = {name: (np.arange(POINTS), np.sqrt(ladder[name]["pointwise"][0])) for name in names}
    ranks = {name: np.array(ladder[name]["ranks"]) for name in names}
    content = [
        viz.Panel(series=spread, title="standard deviation of the samples, relative to the posterior's", xlabel="point"),
        viz.Panel(
            series={name: (np.arange(MEMBERS + 1), counts / counts.mean()) for name, counts in ranks.items()},
            title=f"rank of the truth among {MEMBERS} members", xlabel="rank", ylabel="relative frequency", ylim=(0.6, 1.5),
        ),
    ]  # fmt: skip
    return viz.panels(content, reference=("exact draws",), width=10.0, height=3.2)


def distance(ladder: dict):
    """The distance to the exact posterior, a dot for each truth."""
    return viz.dots({name: row["w2"] for name, row in ladder.items()}, xlabel="W2 to the posterior", logx=True)


def text(row: dict) -> str:
    """The scores against the truth in one line."""
    return "  ".join(f"{name} {row[name][0]:.4f} +- {row[name][1]:.4f}" for name in ("rmse", "spread_skill", "crps"))


def claims(numbers: dict) -> list[Claim]:
    """What the paper claims of guidance by several modalities, beside posteriors in closed form."""
    ladder, m = numbers["ladder"], numbers["modalities"]
    dps, exact = (np.mean(ladder[name]["w2"]) for name in ("DPS 0.2", "exact draws"))
    alone, both = m["averages"]["Tweedie, Heun"]["rmse"], m["both"]["Tweedie, Heun"]["rmse"]
    calibrated, error = m["both"]["Tweedie, Heun"]["spread_skill"]
    gain, spread = alone[0] - both[0], float(np.hypot(alone[1], both[1]))
    ratio = np.array(ladder["DPS 0.2"]["w2"]) / exact
    return [
        Claim(
            says="A second modality improves the reconstruction.", value=gain, spread=spread,
            unit="error, averages alone less averages and sensors", verdict="reproduced" if gain > 2 * spread else "not reproduced",
            why="The spread is the standard error over the truths, and two of them are asked for.",
        ),
        Claim(
            says="The samples tell the uncertainty of the reconstruction.", value=calibrated, spread=error,
            unit="spread over error (Tweedie covariance, Heun)",
            verdict="reproduced" if abs(calibrated - 1) < max(0.1, 2 * error) else "not reproduced",
            why="A tenth or two standard errors from 1 are allowed.",
        ),
        Claim(
            says="Diffusion posterior sampling gives samples of the posterior.", value=dps / exact,
            spread=ratio.std(ddof=ratio.size > 1), unit="W2 to the posterior, over that of exact draws (DPS .2)",
            verdict="reproduced" if dps < 2 * exact else "not reproduced",
            why="Its step has no noise level of the measurement; the Tweedie covariance, which has, is at "
            f"{np.mean(ladder['Tweedie, Heun']['w2']) / exact:.2f}.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o = record.options
    key_few, key_many, key_mixture, key = jax.random.split(jax.random.key(o.seed), 4)
    both = dict(averages=0.1, sensors=0.05)

    def cases(key, prior, n, modalities):
        rng = np.random.default_rng(o.seed)
        return [(truth, measure(rng, truth, modalities)) for truth in np.asarray(prior.sample(key, n), np.float64)]

    few, many = cases(key_few, PRIOR, o.truths, both), cases(key_many, PRIOR, o.cases, both)
    exact = [models.exact_posterior(PRIOR, measurement) for _, measurement in few]
    wide, small = samplers(PRIOR, o.draws), samplers(PRIOR, MEMBERS)

    def rung(name):
        return distances(*drawn(wide[name], key, few), exact) | scores(key, *drawn(small[name], key, many), many)

    def modality(chosen, method):
        given = cases(key_many, PRIOR, o.cases, {name: both[name] for name in chosen})
        return scores(key, *drawn(small[method], key, given), given)

    given = cases(key_mixture, MIXTURE, o.mixtures, dict(averages=0.1, sensors=0.5))
    posteriors = [models.exact_posterior(MIXTURE, measurement) for _, measurement in given]

    def on_mixture(name):
        samples = drawn(samplers(MIXTURE, o.members)[name], key, given)
        return shares(key, *samples, posteriors) | scores(key, *samples, given)

    ladder = record.cells(rung, {name: (name,) for name in wide})
    for name, row in ladder.items():
        w2, error, variance = (np.mean(row[column]) for column in ("w2", "mean_error", "variance_ratio"))
        spread = f"variance {variance:.2f} ({np.min(row['pointwise']):.2f} to {np.max(row['pointwise']):.2f})"
        print(f"{name:22s} W2 {w2:.3f}  mean {error:.3f}  {spread}  {text(row)}")
    asked = dict(averages=["averages"], sensors=["sensors"], both=list(both))
    cells = {f"{name}: {method}": (chosen, method) for name, chosen in asked.items() for method in ("exact draws", "Tweedie, Heun")}
    modalities: dict[str, dict] = {}
    for name, row in record.cells(modality, cells).items():
        modalities.setdefault(name.split(": ")[0], {})[name.split(": ")[1]] = row
        print(f"{name:26s} {text(row)}")
    mixture = record.cells(on_mixture, {f"mixture: {name}": (name,) for name in ON_MIXTURES})
    for name, row in mixture.items():
        share, sliced = np.mean(np.abs(row["share_error"])), np.mean(row["sliced"])
        print(f"{name:32s} share {share:.3f}  sliced W2 {sliced:.3f}  {text(row)}")
    weights = [float(posterior.weights[0]) for posterior in posteriors]
    mixture = dict(weights=weights) | {name.split(": ")[1]: row for name, row in mixture.items()}
    numbers = dict(ladder=ladder, modalities=modalities, mixture=mixture)
    record.write(numbers, claims=claims(numbers), calibration=calibration(ladder), distance=distance(ladder))


if __name__ == "__main__":
    FIGURE.make(main)
