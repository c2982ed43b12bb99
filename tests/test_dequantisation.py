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
    by_draws = {k: np.asarray(found.of(k), np.float64).reshape(4, n) for k in (1, 4, most)}
    gaps = {k: truth - values.mean(1) for k, values in by_draws.items()}
    errors = {k: values.std(1) / np.sqrt(n) for k, values in by_draws.items()}
    assert np.all(gaps[1] > gaps[4])
    assert np.all(gaps[4] > gaps[most] - 1e-3)
    for k in by_draws:
        assert np.all(gaps[k] > -4 * errors[k] - 1e-3)
    # A gap falls like 1/K.
    assert np.all(gaps[most] < 0.25 * gaps[4] + 4 * errors[most] + 1e-3)
    np.testing.assert_allclose(found.of(most), found.log_prob, rtol=1e-6)
    with pytest.raises(ValueError, match="draws = 5: expected a divisor of the 32"):
        found.of(5)


def test_a_learned_law_is_tighter_than_the_uniform_one():
    net = models.nets.MLP(width=32, depth=1, embed=8)
    x = np.asarray(SCALE.decode(law().sample(jax.random.key(1), 4000)))
    model = models.ExactModel(law(), PROCESS)
    learned, bounds = dequantisation.fit(
        dequantisation.LogitNormal(net=net), model, x, SCALE, key=KEY, steps=400, batch_size=128
    )
    assert bounds.shape == (400,)
    rows = x[:1500]
    truth = np.log(mass(rows)).mean()
    uniform, better = (counted(rows, places=q) for q in (None, learned))
    gap = lambda found: truth - float(np.mean(found.log_prob))
    error = float(np.std(np.asarray(better.log_prob) - np.log(mass(rows)))) / np.sqrt(len(rows))
    assert gap(better) > -4 * error
    assert gap(better) < 0.35 * gap(uniform)


def test_the_density_of_a_learned_law():
    """The mean of f(v) / q(v) over its draws is the integral of f, for parameters that are not those it begins with."""
    net = models.nets.MLP(width=16, depth=1, embed=8, zero_init=False)
    places = dequantisation.LogitNormal(net=net)
    x = np.broadcast_to(np.array([[3]], np.uint8), (40_000, 1))
    q = places.bind(places.init(jax.random.key(3), x, 8))
    m, log_s = (float(a[0, 0]) for a in places.moments(q.params, x[:1], 8))
    assert abs(m) > 0.05
    assert abs(log_s - np.log(1.6)) > 0.05
    y, log_q = q.draw(jax.random.split(KEY, len(x)), x, SCALE)
    v = (np.asarray(y, np.float64)[:, 0] + 1) / WIDTH - 3
    values = (v * (1 - v)) ** 2 / np.exp(np.asarray(log_q, np.float64))
    assert abs(values.mean() - 1 / 30) < 4 * values.std() / np.sqrt(len(x))
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
        process, transform, encode, shift = LogitGaussian(schedule=schedule), data.Pixels(levels=8, low=0.0), logit, 0.0
    else:
        process = processes.GeometricBrownianMotion(schedule=schedules.GBMClock(volatility=1.0, t_min=1e-4, t_max=9.0))
        transform, encode, shift = data.Positive(levels=8), np.log, 0.5
    means = MEANS + shift
    there = densities.GaussianMixture(WEIGHTS, means, STDS**2)
    width = (transform.high - transform.low) / 8
    truth = np.log(mass(CELLS, encode, transform.low, width, float(process.sigma(process.t_min)), means))
    # In the chart the offset moves the law too.
    moved = there.noised(process, process.t_min).components.mean - means
    assert np.abs(moved).max() < 1e-3
    n = 60
    found = counted(
        np.repeat(CELLS, n, axis=0), transform, models.ExactModel(there, process), draws=32, start=starts.Noised(there)
    )
    values = np.asarray(found.log_prob, np.float64).reshape(4, n)
    error = values.std(1) / np.sqrt(n)
    assert np.all(values.mean(1) < truth + 4 * error + 2e-3)
    assert np.all(values.mean(1) > truth - 0.05)


def test_the_bound_of_the_sde_needs_more_bits():
    x = np.repeat(CELLS, 100, axis=0)
    flow = counted(x)
    sde = counted(x, grid=grids.LogSNR(100), paths=2)
    assert "SDE" in sde.law
    # The score is exact, so that the two laws are one; the error of 100 steps is of the second order.
    assert abs(float(sde.mean - flow.mean)) < 0.03


def test_rows_depend_on_key_and_id_alone():
    options = dict(draws=2)
    whole = counted(CELLS, **options).bits
    np.testing.assert_allclose(counted(CELLS, chunk=3, **options).bits, whole, atol=1e-4)
    np.testing.assert_allclose(counted(CELLS[2:3], ids=np.array([2]), **options).bits, whole[2:3], atol=1e-4)
    probed = dict(probes=1)
    np.testing.assert_allclose(
        counted(CELLS[2:3], ids=np.array([2]), **probed).bits, counted(CELLS, **probed).bits[2:3], atol=1e-4
    )
    assert np.isnan(counted(CELLS[:1]).standard_error)


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
    with pytest.raises(TypeError, match=r"places = .*: expected a Places"):
        counted(CELLS, places=dequantisation.LogitNormal(net=models.nets.MLP()))
    points = processes.StochasticInterpolant(base=np.zeros((3, 2)))
    fn = lambda y, t, cond=None: points.predict(y, t, velocity=y, eta=y)
    with pytest.raises(ValueError, match="points, which have no density"):
        sl.bits_per_dim(models.FunctionModel(fn, points, returns="prediction"), CELLS, SCALE, key=KEY)
    with pytest.raises(ValueError, match=r"fit.batch_size = 9: expected at most the 4 rows"):
        dequantisation.fit(
            dequantisation.LogitNormal(net=models.nets.MLP()), models.ExactModel(law(), PROCESS), CELLS, SCALE, key=KEY, batch_size=9
        )
    with pytest.raises(TypeError, match="LogitNormal.net = .*: expected a network"):
        dequantisation.LogitNormal(net=3)
