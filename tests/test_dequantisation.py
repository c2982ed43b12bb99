"""Bits per dimension against laws whose cells have a known mass."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logit

import scorelab as sl
from scorelab import data, densities, dequantisation, grids, models, processes, schedules, starts

KEY = jax.random.key(0)
SCALE = data.Pixels(levels=8)
WIDTH = 2 / 8
PROCESS = processes.Gaussian(schedule=schedules.EDM(sigma_min=0.01, sigma_max=20.0))
WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([[-0.6, 0.1], [0.3, 0.5]]), np.array([[0.1, 0.2], [0.15, 0.08]])


def law():
    return densities.GaussianMixture(WEIGHTS, MEANS, STDS**2)


def mass(x, encode=lambda e: e, low=-1.0, width=WIDTH, noise=0.01, means=MEANS, stds=STDS):
    """Of cells under the mixture with the noise of ``t_min``, in a chart: sums of products of differences of normal integrals."""
    with np.errstate(divide="ignore"):
        ends = [encode(low + width * (x[:, None] + side)) for side in (0, 1)]
    s = np.sqrt(stds**2 + noise**2)
    below, above = (stats.norm.cdf((e - means) / s) for e in ends)
    return np.prod(above - below, axis=2) @ WEIGHTS


def counted(x, transform=SCALE, model=None, **options):
    model = models.ExactModel(law(), PROCESS) if model is None else model
    options = dict(key=KEY, start=starts.Noised(law())) | options
    return sl.bits_per_dim(model, x, transform, **options)


CELLS = np.array([[1, 4], [5, 6], [4, 5], [2, 3]], np.uint8)


def test_the_uniform_bound_has_its_closed_form():
    """Of a product of Gaussians the mean of log p over a cell is a parabola and the variance of a uniform place."""
    mean, std = np.array([-0.2, 0.4]), np.array([0.2, 0.3])
    one = densities.Gaussian(mean, std**2)
    n = 4000
    found = counted(np.tile(CELLS[:1], (n, 1)), model=models.ExactModel(one, PROCESS), start=starts.Noised(one))
    variance = std**2 + 0.01**2
    centre = -1 + WIDTH * (CELLS[0] + 0.5)
    square = (centre - mean) ** 2 + WIDTH**2 / 12
    nats = np.sum(-0.5 * square / variance - 0.5 * np.log(2 * np.pi * variance) + np.log(WIDTH))
    bits = -nats / (2 * np.log(2))
    assert found.standard_error < 0.02
    assert abs(found.mean - bits) < 4 * found.standard_error
    assert found.law == "the probability flow"
    np.testing.assert_allclose(found.bits, -np.asarray(found.log_prob) / (2 * np.log(2)), rtol=1e-6)


def test_importance_weights_close_the_gap():
    truth = np.log(mass(CELLS))
    n, most = 100, 32
    found = counted(np.repeat(CELLS, n, axis=0), draws=most)
    by_draws = {k: -2 * np.log(2) * np.asarray(found.bits_of(k), np.float64).reshape(4, n) for k in (1, 4, most)}
    gaps = {k: truth - values.mean(1) for k, values in by_draws.items()}
    errors = {k: values.std(1) / np.sqrt(n) for k, values in by_draws.items()}
    assert np.all(gaps[1] > gaps[4])
    assert np.all(gaps[4] > gaps[most] - 1e-3)
    for k in by_draws:
        assert np.all(gaps[k] > -4 * errors[k] - 1e-3)
    # A gap falls like 1/K.
    assert np.all(gaps[most] < 0.25 * gaps[4] + 4 * errors[most] + 1e-3)
    np.testing.assert_allclose(found.bits_of(most), found.bits, rtol=1e-6)
    with pytest.raises(ValueError, match="draws = 5: expected a divisor of the 32"):
        found.bits_of(5)


def test_a_learned_law_is_tighter_than_the_uniform_one():
    net = models.nets.MLP(width=32, depth=1, embed=8)
    x = np.asarray(SCALE.decode(law().sample(jax.random.key(1), 4000)))
    model = models.ExactModel(law(), PROCESS)
    learned, bounds = dequantisation.fit(dequantisation.LogitLogistic(net=net), model, x, SCALE, key=KEY, steps=300, batch_size=128)
    assert bounds.shape == (300,)
    rows = x[:600]
    truth = np.log(mass(rows)).mean()
    uniform, better = (counted(rows, places=q) for q in (None, learned))
    gap = lambda found: truth - float(np.mean(found.log_prob))
    error = float(np.std(np.asarray(better.log_prob) - np.log(mass(rows)))) / np.sqrt(len(rows))
    assert gap(better) > -4 * error
    assert gap(better) < 0.35 * gap(uniform)
    # Several draws of it have the mass itself, from below.
    weighted = counted(rows, places=learned, draws=8)
    off = np.asarray(weighted.log_prob) - np.log(mass(rows))
    assert abs(gap(weighted)) < 0.1 * gap(uniform) + 4 * np.std(off) / np.sqrt(len(rows))
    assert gap(weighted) < gap(better)


def test_places_are_learned_under_an_interpolant_too():
    base = densities.Gaussian(np.zeros(2), 0.5)
    bridge = processes.StochasticInterpolant(gamma=processes.gammas.Quadratic(), base=base)
    x = np.asarray(SCALE.decode(law().sample(jax.random.key(1), 2000)))
    net = models.nets.MLP(width=32, depth=1, embed=8)
    _, bounds = dequantisation.fit(
        dequantisation.LogitLogistic(net=net), models.ExactModel(law(), bridge), x, SCALE, key=KEY, steps=200, batch_size=128
    )
    # From the bound of uniform places, 0.7 nats below the mass, it rises towards it; a step's mean over its rows varies by 0.2.
    nats = bounds + 2 * np.log(WIDTH)
    truth, error = np.log(mass(x)).mean(), 0.2 / np.sqrt(40)
    assert truth - 1.0 < nats[:10].mean() < truth - 0.4
    assert truth - 0.3 < nats[-40:].mean() < truth + 4 * error


@dataclass(frozen=True, kw_only=True)
class Set(dequantisation.LogitLogistic):
    """With moments that are given."""

    def moments(self, params, x, levels):
        return jnp.full(x.shape, 0.7), jnp.full(x.shape, np.log(0.9))


def test_the_density_of_a_learned_law():
    """The mean of f(v) / q(v) over its draws is the integral of f."""
    x = np.broadcast_to(np.array([[3]], np.uint8), (40_000, 1))
    y, log_q = Set(net=models.nets.MLP()).bind({}).draw(jax.random.split(KEY, len(x)), x, SCALE)
    v = (np.asarray(y, np.float64)[:, 0] + 1) / WIDTH - 3
    values = (v * (1 - v)) ** 2 / np.exp(np.asarray(log_q, np.float64))
    assert abs(values.mean() - 1 / 30) < 4 * values.std() / np.sqrt(len(x))
    # And the median is the sigmoid of the mean of the logits.
    assert abs(np.mean(v < 1 / (1 + np.exp(-0.7))) - 0.5) < 4 * 0.5 / np.sqrt(len(x))
    np.testing.assert_array_equal(SCALE.decode(y), x)


@dataclass(frozen=True, kw_only=True)
class Logit(processes.Chart):
    def encode(self, x):
        return jnp.log(x) - jnp.log1p(-x)

    def decode(self, y):
        return jax.nn.sigmoid(y)

    def d_decode(self, x):
        return x * (1 - x)

    def dd_decode(self, x):
        return x * (1 - x) * (1 - 2 * x)


@dataclass(frozen=True, kw_only=True)
class LogitGaussian(processes.LinearGaussian):
    @property
    def chart(self):
        return Logit()


@pytest.mark.parametrize("name", ["logit", "log"])
def test_the_jacobian_of_a_chart_is_counted(name):
    schedule = schedules.EDM(sigma_min=0.01, sigma_max=20.0)
    if name == "logit":
        process, transform, encode, means = LogitGaussian(schedule=schedule), data.Pixels(levels=8, low=0.0), logit, MEANS
    else:
        process = processes.GeometricBrownianMotion(schedule=schedules.GBMClock(volatility=1.0, t_min=1e-4, t_max=9.0))
        transform, encode, means = data.Positive(levels=8), np.log, 0.35 + MEANS / 2
    there = densities.GaussianMixture(WEIGHTS, means, STDS**2)
    width = (transform.high - transform.low) / 8
    # At the two means and one deviation from them.
    cells = np.asarray(transform.decode(process.decode(np.concatenate([means, means + STDS]))))
    truth = np.log(mass(cells, encode, transform.low, width, float(process.sigma(process.t_min)), means))
    # In the chart the offset moves the law too.
    moved = there.noised(process, process.t_min).components.mean - means
    assert np.abs(moved).max() < 1e-3
    assert truth.min() > -8
    n = 60
    found = counted(np.repeat(cells, n, axis=0), transform, models.ExactModel(there, process), draws=32, start=starts.Noised(there))
    values = np.asarray(found.log_prob, np.float64).reshape(4, n)
    error = values.std(1) / np.sqrt(n)
    assert np.all(values.mean(1) < truth + 4 * error + 2e-3)
    assert np.all(values.mean(1) > truth - 4 * error - 0.05)


def test_the_bound_of_the_sde_is_that_of_the_flow_at_an_exact_score():
    x = np.repeat(CELLS, 100, axis=0)
    flow = counted(x)
    sde = counted(x, grid=grids.LogSNR(100), paths=2)
    assert "SDE" in sde.law
    # The score is exact, so that the two laws are one, at the same points in the cells. What is left is the spread over paths, of
    # the first order in the steps; their error is of the second.
    more = np.asarray(sde.bits - flow.bits, np.float64)
    error = more.std() / np.sqrt(len(more))
    assert 4 * error < 0.01
    assert abs(more.mean()) < 4 * error


def test_rows_depend_on_key_and_id_alone():
    whole = counted(CELLS, probes=1).bits
    np.testing.assert_allclose(counted(CELLS, probes=1, chunk=1).bits, whole, atol=1e-4)
    alone = counted(CELLS[2:3], probes=1, ids=np.array([2]))
    np.testing.assert_allclose(alone.bits, whole[2:3], atol=1e-4)
    assert np.isnan(alone.standard_error)
    assert abs(counted(CELLS[2:3], probes=1).bits - alone.bits) > 1e-3


def test_a_place_at_the_end_of_a_cell_stays_inside():
    x = np.array([[0, 7, 3]], np.uint8)
    for v in (0.0, 1.0):
        y = SCALE.at(x, np.full((1, 3), v))
        np.testing.assert_array_equal(SCALE.decode(y), x)
        assert np.all(np.abs(y) < 1)
    np.testing.assert_allclose(SCALE.at(x, np.full((1, 3), 0.5)), SCALE.encode(x))


def test_what_has_no_bits_is_refused_by_name():
    with pytest.raises(TypeError, match=r"transform = Identity.*: expected a transform with levels"):
        counted(CELLS, data.Identity())
    with pytest.raises(TypeError, match=r"bits_per_dim.x: .*float32: expected uint8"):
        counted(CELLS.astype(np.float32))
    with pytest.raises(ValueError, match=r"bits_per_dim.x: .* value 9: expected 0 to levels - 1 = 7"):
        counted(np.full((1, 2), 9, np.uint8))
    with pytest.raises(ValueError, match="draws = 2 with probes = 1"):
        counted(CELLS, draws=2, probes=1)
    with pytest.raises(ValueError, match="draws = 2 with probes = 0 and grid = LogSNR"):
        counted(CELLS, draws=2, grid=grids.LogSNR(10))
    with pytest.raises(ValueError, match="paths = 4 without a grid"):
        counted(CELLS, paths=4)
    with pytest.raises(TypeError, match=r"(?s)places = .*: expected a Places"):
        counted(CELLS, places=dequantisation.LogitLogistic(net=models.nets.MLP()))
    points = processes.StochasticInterpolant(base=np.zeros((3, 2)))
    fn = lambda y, t, cond=None: points.predict(y, t, velocity=y, eta=y)
    with pytest.raises(ValueError, match="points, which have no density"):
        sl.bits_per_dim(models.FunctionModel(fn, points, returns="prediction"), CELLS, SCALE, key=KEY)
    with pytest.raises(ValueError, match=r"fit.batch_size = 9: expected at most the 4 rows"):
        dequantisation.fit(
            dequantisation.LogitLogistic(net=models.nets.MLP()),
            models.ExactModel(law(), PROCESS),
            CELLS,
            SCALE,
            key=KEY,
            batch_size=9,
        )
    with pytest.raises(TypeError, match=r"LogitLogistic.net = .*: expected a network"):
        dequantisation.LogitLogistic(net=3)
