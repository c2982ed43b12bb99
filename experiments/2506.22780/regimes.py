"""Zero-shot super-resolution of fields with two regimes: exact and learned priors against a posterior in closed form.

The field lives on a periodic 16 x 16 grid. It is a mixture of two Gaussian fields that differ in their spectra and by a wave of
period four, so that posteriors have two modes and a closed form. Measured are 16 averages over blocks of 4 x 4 points (noise 0.1),
which cannot see the wave, and six stations (noise 0.5). Rungs are the approximations of guidance, with the exact denoiser or with
the U-Net of `paper/2506.22780/regimes`, which was trained on draws and knows no measurement. Each draws `members` samples of every
truth. "SMC, PiGDM" is PiGDM as the proposal of `PARTICLES` weighted particles. What exact draws miss is chance.
"""

from __future__ import annotations

import dataclasses
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
    claims="A score-based model that was trained on fields alone is conditioned on coarse averages and sparse stations when it "
    "samples. Samples recover the field, tell their uncertainty, and balance the two modalities.",
    look_for="Averages alone leave both regimes open, which shows as stripes in the spread; stations decide. Error and spread have "
    "to be read together: a rung may be far off with a spread that says so.",
    minutes=dict(small=4, full=None, gpu=None),
    options=dict(cases=100, members=31, learned=40, shown=100, steps=6000, seed=0),
    small=dict(cases=24, members=7, learned=6, shown=16, steps=300),
)

LAW = sl.densities.regimes()
SHAPE, PARTICLES, BINS = LAW.event, 128, 4
PROCESS = sl.processes.Gaussian(schedule=sl.schedules.EDM())
ANCESTRAL, GRID = sl.solvers.DDIM(eta=1.0), sl.grids.Karras(100)
STATIONS = np.array([[1, 2], [4, 13], [6, 6], [8, 1], [10, 11], [14, 8]])
NOISE = dict(averages=0.1, stations=0.5)
EXACT = ("exact draws", "DPS 0.5", "DPS 2", "SDA", "PiGDM", "Tweedie", "SMC, PiGDM")
LEARNED = ("DPS 2", "PiGDM", "Tweedie")
LEVELS = (0.1, 0.4, 1.5, 5.0)

# A sampler takes a key and a measurement to samples (n, *SHAPE) and log-weights (n,), which need not be normalised.
Sampler = Callable[[jax.Array, LinearMeasurement], tuple[np.ndarray, np.ndarray]]


def measure(key, truth, modalities) -> LinearMeasurement:
    """Averages and stations of a truth, each with its noise; the modalities that are not named are left out."""
    made = dict(
        averages=LinearMeasurement.averages(SHAPE, (4, 4, 1), values=0.0, std=NOISE["averages"]),
        stations=LinearMeasurement.points(SHAPE, np.pad(STATIONS, ((0, 0), (0, 1))), values=0.0, std=NOISE["stations"]),
    )
    keys = dict(zip(made, jax.random.split(key), strict=True))  # the same noise whatever is left out
    return LinearMeasurement.stacked([made[name].observing(keys[name], truth) for name in modalities])


def truths(seed: int, n: int, modalities=tuple(NOISE)) -> list:
    """``n`` truths with their measurements."""
    key_truth, key_noise = jax.random.split(jax.random.key(seed))
    fields = np.asarray(LAW.sample(key_truth, n), np.float64)
    return [(x, measure(jax.random.fold_in(key_noise, i), x, modalities)) for i, x in enumerate(fields)]


def samplers(prior: models.Model, n: int) -> dict[str, Sampler]:
    """The ladder over a prior, ``n`` samples a call."""

    def guided(make, *, solver=ANCESTRAL, grid=GRID, **options) -> Sampler:
        def draw(key, measurement):
            model = make(model=prior, measurement=measurement, **options)
            out = sl.sample(model, solver=solver, grid=grid, key=key, shape=(n, *SHAPE))
            return out.x, out.log_weights

        return draw

    def weighted(key, measurement):
        likelihood = jax.tree_util.Partial(LinearMeasurement.log_likelihood, measurement)
        blurred = sl.fk.Blurred(measurement=measurement, law=matched())
        solver = sl.fk.FeynmanKac(base=ANCESTRAL, potential=sl.fk.Difference(likelihood, 1.0, intermediate=blurred))
        model = models.PiGDM(model=prior, measurement=measurement)
        out = sl.sample(model, solver=solver, grid=GRID, key=key, shape=(max(n, PARTICLES), *SHAPE))
        return out.x, out.log_weights

    heun = dict(solver=sl.solvers.Heun(), grid=sl.grids.Karras(20))
    return {
        "exact draws": lambda key, measurement: (draws(models.exact_posterior(LAW, measurement), key, n), np.zeros(n)),
        **{f"DPS {zeta:g}": guided(functools.partial(models.DPS, grid=GRID), zeta=zeta) for zeta in (0.5, 2.0)},
        "SDA": guided(models.SDA, gamma=0.1),
        "PiGDM": guided(models.PiGDM),
        "Tweedie": guided(models.TweedieCovariance, **heun),
        "SMC, PiGDM": weighted,
    }


@functools.partial(jax.jit, static_argnums=2)
def draws(law, key, n: int) -> jax.Array:
    """Draws of a law, in one program for all measurements."""
    return law.sample(key, n)


@jax.jit
def first_share(law, x) -> jax.Array:
    """The probability of the first component at points."""
    return law.responsibilities(x)[0]


@functools.cache
def matched() -> sl.densities.Gaussian:
    """The Gaussian with the moments of the law."""
    return LAW.matched()


def exact() -> models.Model:
    """The exact prior."""
    return models.ExactModel(LAW, PROCESS)


def moments(posterior: sl.densities.Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of a posterior at every point."""
    w, mean, variance = (
        np.asarray(a, np.float64) for a in (posterior.weights, posterior.components.mean, posterior.components.variance)
    )
    centre = np.tensordot(w, mean, 1)
    return centre, np.tensordot(w, variance + mean**2, 1) - centre**2


def drawn(sampler: Sampler, key, cases) -> tuple[np.ndarray, np.ndarray]:
    """What a sampler gives for every case: samples (n, cases, *SHAPE) and normalised weights (n, cases), float64."""
    found = [sampler(k, measurement) for k, (_, measurement) in zip(jax.random.split(key, len(cases)), cases, strict=True)]
    x, log_weights = (np.stack([np.asarray(part, np.float64) for part in parts], 1) for parts in zip(*found, strict=True))
    weights = np.exp(log_weights - log_weights.max(0))
    return x, weights / weights.sum(0)


def equal(key, x, w, n: int) -> np.ndarray:
    """``n`` members of each case without weights, drawn by them where they differ."""
    if np.ptp(w) < 1e-9:
        return x[:n]
    picks = [jax.random.choice(k, len(x), (n,), p=p) for k, p in zip(jax.random.split(key, len(w.T)), w.T, strict=True)]
    return np.stack([x[pick, case] for case, pick in enumerate(picks)], 1)


def prior_power() -> np.ndarray:
    """The power of the law in every shell: spectra and means of the components, by their shares."""
    w, c = np.asarray(LAW.weights, np.float64), LAW.components
    means = [metrics.power_spectrum(np.asarray(mean)[None]).power for mean in c.mean]
    return sum(p * (metrics.shell_average(s) + mean) for p, s, mean in zip(w, c.spectrum, means, strict=True))


def scores(key, x, w, cases, members: int) -> dict:
    """Against truths and exact posteriors: errors, spread, CRPS, ranks, shares of the regimes, power."""
    truth, posteriors = np.stack([truth for truth, _ in cases]), [models.exact_posterior(LAW, m) for _, m in cases]
    key_pick, key_rank = jax.random.split(key)
    found = {f.__name__: f(x, truth, weights=w) for f in (metrics.rmse, metrics.spread_skill, metrics.crps)}
    some = equal(key_pick, x, w, members)
    test = metrics.rank_test(key_rank, some, truth, bins=BINS) if len(cases) > BINS else None
    mean, variance = (np.stack(parts) for parts in zip(*map(moments, posteriors), strict=True))
    average = lambda values: np.sum(w[..., None, None, None] * values, 0)
    centre = average(x)
    spread = average((x - centre) ** 2) / (1 - np.sum(w**2, 0))[:, None, None, None]
    first = np.stack([np.asarray(first_share(p, x[:, i]), np.float64) for i, p in enumerate(posteriors)], 1)
    shares = np.sum(w * first, 0) - [float(p.weights[0]) for p in posteriors]
    error = [metrics.spectral_error(member, prior_power()) for member in some]
    return {name: [score.value, score.stderr] for name, score in found.items()} | dict(
        mean_error=float(np.sqrt(np.mean((centre - mean) ** 2))),
        variance_ratio=float(spread.mean() / variance.mean()),
        share_error=float(np.sqrt(np.mean(shares**2))),
        ranks=metrics.rank_histogram(key_rank, some, truth).tolist(),
        rank_p=None if test is None else test.p_value,
        spectral_error=[float(np.mean([e.value for e in error])), float(np.mean([e.floor for e in error]))],
        power=metrics.power_spectrum(some.reshape(-1, *SHAPE)).power,
    )


def trained(record) -> models.Model:
    """The network trained on draws of the law."""
    o = record.options
    experiment, state = record.trained(
        "prior", "paper/2506.22780/regimes", f"STEPS = {o.steps}", f"experiment.Experiment.seed = {o.seed}"
    )
    model = experiment.learner.model(state)
    net = model.denoiser.net.clone(loop_safe=True)
    return dataclasses.replace(model, denoiser=dataclasses.replace(model.denoiser, net=net))


def network_errors(network: models.Model, seed: int) -> dict:
    """Distance of the network's denoised points from the exact ones, over that of the truth from the exact ones."""
    x, found = LAW.sample(jax.random.key(seed + 1), 500), {}
    for i, t in enumerate(LEVELS):
        y = x + t * jax.random.normal(jax.random.key(i), x.shape)
        best, ours = (jax.jit(lambda y, model=model, t=t: model(y, t).denoised)(y) for model in (exact(), network))
        found[f"{t:g}"] = float(np.sqrt(np.mean((ours - best) ** 2) / np.mean((x - best) ** 2)))
    return found


def ladder_figure(exactly: dict, learned: dict, members: int):
    """Ranks and spectra of exact and learned rungs."""
    bins = np.arange(members + 1)
    series = {name: (bins, np.array(row["ranks"]) / np.mean(row["ranks"])) for name, row in exactly.items()}
    ours = {name: (bins, np.array(row["ranks"]) / np.mean(row["ranks"])) for name, row in learned.items()}
    reference = prior_power()
    power = {name: (np.arange(len(reference)), np.array(row["power"]) / reference) for name, row in exactly.items()}
    power_ours = {name: (np.arange(len(reference)), np.array(row["power"]) / reference) for name, row in learned.items()}
    ranks = dict(xlabel=f"rank of the truth among {members} members", ylim=(0.6, 1.5))
    spectra = dict(xlabel="wave number", ylim=(0.0, 2.0))
    content = [
        viz.Panel(series=series, title="ranks, exact prior", ylabel="relative frequency", **ranks),
        viz.Panel(series=ours, title="ranks, learned prior", **ranks),
        viz.Panel(series=power, title="power of the samples, exact prior", ylabel="over that of the law", **spectra),
        viz.Panel(series=power_ours, title="power of the samples, learned prior", **spectra),
    ]
    return viz.panels(content, columns=2, reference=("exact draws",), width=9.5, height=2.9)


def maps_figure(truth, measurement, alone, both, drawn_fields: dict):
    """One case: truth and measurements, means, and spreads."""
    coarse = np.asarray(measurement.values[:16]).reshape(4, 4)
    tables = dict(field=dict(truth=truth, averages=coarse), spread={})
    for name, (mean, variance) in {"exact, averages": alone, "exact, both": both}.items():
        tables["field"][f"mean: {name}"], tables["spread"][name] = mean, np.sqrt(variance)
    for name, x in drawn_fields.items():
        tables["field"][f"mean: {name}"], tables["spread"][name] = x.mean(0), x.std(0, ddof=1)
    plain = {row: {title: np.asarray(a).reshape(a.shape[:2]) for title, a in columns.items()} for row, columns in tables.items()}
    plain["spread"] = {f"deviation: {title}": a for title, a in plain["spread"].items()}
    # A coarse field on the finest grid, so that all panels have one extent.
    return viz.grids(plain, points=STATIONS, diverging=("field",), width=12.5)


def text(row: dict) -> str:
    """One row of the tables."""
    parts = [f"{name} {row[name][0]:.3f} +- {row[name][1]:.3f}" for name in ("rmse", "spread_skill", "crps")]
    parts += [f"{name} {row[name]:.3f}" for name in ("mean_error", "variance_ratio", "share_error")]
    rank = "-" if row["rank_p"] is None else f"{row['rank_p']:.2g}"
    return "  ".join([*parts, f"ranks p {rank}", "spectrum {:.3f} (floor {:.3f})".format(*row["spectral_error"])])


def claims(numbers: dict) -> list[Claim]:
    """What the paper claims, beside posteriors in closed form."""
    m, exactly, learned = numbers["modalities"], numbers["exact"], numbers["learned"]
    alone, both = m["averages"]["Tweedie"], m["both"]["Tweedie"]
    gain, spread = alone["rmse"][0] - both["rmse"][0], float(np.hypot(alone["rmse"][1], both["rmse"][1]))
    ratio, error = both["spread_skill"]
    ours, ours_error = learned["Tweedie"]["spread_skill"]
    least = learned["exact draws"]["crps"][0]
    worse = learned["Tweedie"]["crps"][0] / least - 1
    return [
        Claim(
            says="A second modality improves the reconstruction.", value=gain, spread=spread,
            unit="error, averages alone less averages and stations (exact prior, Tweedie covariance)",
            verdict="reproduced" if gain > 2 * spread else "not reproduced",
            why="The spread is the standard error over the truths, and two of them are asked for.",
        ),
        Claim(
            says="The samples tell the uncertainty of the reconstruction.", value=ratio, spread=error,
            unit="spread over error (exact prior, Tweedie covariance)",
            verdict="reproduced" if abs(ratio - 1) < max(0.1, 2 * error) else "not reproduced",
            why="A tenth or two standard errors from 1 are allowed. Diffusion posterior sampling is at "
            f"{exactly['DPS 2']['spread_skill'][0]:.2f}.",
        ),
        Claim(
            says="So do those of a trained model that is conditioned when it samples.", value=ours, spread=ours_error,
            unit="spread over error (learned prior, Tweedie covariance)",
            verdict="reproduced" if abs(ours - 1) < max(0.1, 2 * ours_error) else "not reproduced",
            why=f"Exact draws for the same truths are at {learned['exact draws']['spread_skill'][0]:.2f}.",
        ),
        Claim(
            says="A trained model recovers the field.", value=worse, spread=learned["Tweedie"]["crps"][1] / least,
            unit="CRPS above that of exact draws, as a share (learned prior, Tweedie covariance)",
            verdict="reproduced" if worse < 0.1 else "in shape" if worse < 0.5 else "not reproduced",
            why="Reproduced below a tenth, in shape below a half. The network is small and shortly trained.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o = record.options
    key = jax.random.key(o.seed)
    cases = truths(o.seed, o.cases)
    few = cases[: o.learned]

    def rung(name):
        return scores(key, *drawn(samplers(exact(), o.members)[name], key, cases), cases, o.members)

    def modality(chosen, name):
        given = truths(o.seed, o.cases, chosen)
        return scores(key, *drawn(samplers(exact(), o.members)[name], key, given), given, o.members)

    def learned_rung(name):
        return scores(key, *drawn(samplers(network, o.members)[name], key, few), few, o.members)

    def shown(kind, name):
        return dict(x=drawn(samplers(exact() if kind == "exact" else network, o.shown)[name], key, cases[:1])[0][:, 0])

    exactly = record.cells(rung, {name: (name,) for name in EXACT})
    for name, row in exactly.items():
        print(f"exact prior, {name:14s} {text(row)}")
    asked = dict(averages=("averages",), stations=("stations",))
    cells = {f"{name}: {rung}": (chosen, rung) for name, chosen in asked.items() for rung in ("exact draws", "Tweedie")}
    modalities: dict[str, dict] = dict(both={name: exactly[name] for name in ("exact draws", "Tweedie")})
    for name, row in record.cells(modality, cells).items():
        modalities.setdefault(name.split(": ")[0], {})[name.split(": ")[1]] = row
        print(f"{name:26s} {text(row)}")
    network = trained(record)
    errors = record.cell("network", network_errors, network, o.seed)
    print("network: error over that of the best denoiser, by noise level", errors)
    learned = record.cells(learned_rung, {f"learned: {name}": (name,) for name in ("exact draws", *LEARNED)})
    learned = {name.split(": ")[1]: row for name, row in learned.items()}
    for name, row in learned.items():
        print(f"learned prior, {name:12s} {text(row)}")
    pictured = {"DPS 2": ("exact", "DPS 2"), "Tweedie": ("exact", "Tweedie"), "learned, Tweedie": ("learned", "Tweedie")}
    kept = record.cells(shown, {f"shown: {name}": how for name, how in pictured.items()})
    fields = {name.split(": ")[1]: np.asarray(found["x"]) for name, found in kept.items()}
    truth, measurement = cases[0]
    alone, both = (moments(models.exact_posterior(LAW, m)) for m in (truths(o.seed, 1, ("averages",))[0][1], measurement))
    numbers = dict(exact=exactly, modalities=modalities, network=errors, learned=learned)
    record.write(
        numbers,
        claims=claims(numbers),
        maps=maps_figure(truth, measurement, alone, both, fields),
        calibration=ladder_figure(exactly, learned, o.members),
    )


if __name__ == "__main__":
    FIGURE.make(main)
