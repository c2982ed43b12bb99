"""Products of powers: closed forms of normal laws, guidance with a density, and what they are not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import densities, fk, grids, sample, solvers
from scorelab.models import (
    ClassifierFreeGuidance,
    Denoiser,
    ExactModel,
    KnowsDensity,
    Product,
    RewardGradient,
    ask,
    conditioned,
)  # fmt: skip
from scorelab.processes import Gaussian, HasLogProb, StochasticInterpolant
from scorelab.schedules import EDM, RectifiedFlow, VPLinear
from tests.models.test_energy import KEY, MEAN, VARIANCE, Waves, exact, normal, points, waves
from tests.precision import double

pytestmark = pytest.mark.usefixtures("quick_compilation")

VP = Gaussian(schedule=VPLinear())
OTHER = densities.Gaussian.diagonal(np.array([-0.5, 0.2]), np.array([0.5, 0.1]))


def constant(values):
    """Whether values differ by rounding alone."""
    return float(jnp.ptp(values)) < 1e-9 * (1 + float(jnp.max(jnp.abs(values))))


@pytest.mark.parametrize("powers", [(1.0, 1.0), (0.5, 2.0), (1.7, -0.4)])
@double
def test_a_product_of_an_energy_and_an_exact_law_is_the_normal_law_of_closed_form(powers):
    """Precisions add up, each times its power; at every noise level by itself."""
    y, times = points(VP)
    model = Product(models=(normal(VP), ExactModel(OTHER, VP)), powers=powers)
    for t in times:
        alpha, sigma = VP.alpha(t), VP.sigma(t)
        precisions = [w / (alpha**2 * v + sigma**2) for w, v in zip(powers, (VARIANCE, np.diag(OTHER.covariance())), strict=True)]
        total = precisions[0] + precisions[1]
        centre = alpha * (precisions[0] * MEAN + precisions[1] * OTHER.mean) / total
        prediction = ask(model, y, t)
        np.testing.assert_allclose(prediction.score, -total * (y - centre), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(alpha * prediction.denoised + sigma * prediction.eps, y, rtol=1e-9, atol=1e-9)
        assert constant(prediction.log_prob + jnp.sum(total * (y - centre) ** 2, -1) / 2)
        np.testing.assert_array_equal(model.log_prob(y, t), prediction.log_prob)


@double
def test_the_score_is_the_gradient_of_the_log_density():
    y, t = points(VP)
    mixture = ExactModel(densities.GaussianMixture([0.4, 0.6], np.array([[-1.0, 0.5], [1.0, 0.0]]), 0.2), VP)
    model = Product(models=(waves(VP), mixture, normal(VP)), powers=(0.7, -0.2, 1.1))
    both = jax.jit(lambda y: (ask(model, y, t).score, jax.grad(lambda y: jnp.sum(model.log_prob(y, t)))(y)))
    np.testing.assert_allclose(*both(y), rtol=1e-9, atol=1e-9)


@double
def test_guidance_is_a_product_of_powers_with_a_density():
    model, (y, t), label = waves(VP), points(VP), jnp.array(2.0)
    product = Product(models=(conditioned(model, label), conditioned(model)), powers=(2.5, -1.5))
    guided = ask(ClassifierFreeGuidance(model=model, scale=2.5), y, t, jnp.full(len(y), label))
    found = ask(product, y, t)
    np.testing.assert_allclose(found.denoised, guided.denoised, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.eps, guided.eps, rtol=1e-9, atol=1e-9)
    assert isinstance(found, HasLogProb)
    assert isinstance(product, KnowsDensity)


@double
def test_without_weights_the_composition_of_particles_moves_by_the_same_pair():
    models, powers, (y, t) = (normal(VP), ExactModel(OTHER, VP)), (0.8, 0.9), points(VP)
    composed = fk.weighted(models, powers, anchor="score").model
    found, expected = ask(composed, y, t[2]), ask(Product(models=models, powers=powers), y, t[2])
    np.testing.assert_allclose(found.denoised, expected.denoised, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        composed.log_density(y, t[2]), Product(models=models, powers=powers).log_prob(y, t[2]), rtol=1e-12, atol=1e-12
    )


def test_a_power_for_each_sample_is_a_leaf_and_goes_with_its_chunk():
    powers = np.linspace(0.5, 2.0, 6).astype(np.float32)
    draw = lambda powers, **options: (
        sample(
            Product(models=(exact(VP),), powers=(powers,)),
            solver=solvers.DDIM(),
            grid=grids.LogSNR(3),
            key=KEY,
            shape=(6, 2),
            **options,
        ).x
    )
    together = draw(powers)
    np.testing.assert_allclose(draw(powers, chunk=2), together, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(draw(0.5)[0], together[0], rtol=1e-5, atol=1e-6)
    # Functions keep no number of it.
    assert len(jax.tree.leaves(Product(models=(exact(VP),), powers=(0.5,)))) == 1 + len(jax.tree.leaves(exact(VP)))


@double
def test_a_solver_does_not_sample_the_product_but_what_the_closed_form_says():
    """Two equal normal laws of variance v: from N(0, S^2) the flow ends with S^2 (v / (v + S^2))^2, and not v / 2."""
    v, top = 0.3, 4.0
    process = Gaussian(schedule=EDM(sigma_max=top))
    law = ExactModel(densities.Gaussian(np.zeros(2), v), process)
    model = Product(models=(law, law), powers=(1.0, 1.0))
    out = sample(model, solver=solvers.Heun(), grid=grids.Karras(400), key=KEY, shape=(64, 2), keep="all")
    # The flow is linear. Heun's method is of second order: 200 steps leave 1.1e-3, and these a quarter of it.
    np.testing.assert_allclose(out.x / out.trajectory[0], v / (v + top**2), rtol=1e-3)


@double
def test_it_is_finite_where_alpha_is_zero():
    flow = Gaussian(schedule=RectifiedFlow())
    y = jnp.array([[1.0, -2.0], [0.3, 0.4]])
    models = (exact(flow), ExactModel(OTHER, flow))
    prediction = ask(Product(models=models, powers=(0.8, 0.9)), y, 1.0)
    # There all laws are N(0, 1), and the denoised mean is that of the data.
    np.testing.assert_allclose(prediction.eps, 1.7 * y, rtol=1e-12)
    np.testing.assert_allclose(prediction.denoised, jnp.broadcast_to(0.8 * MEAN + 0.9 * OTHER.mean, y.shape), rtol=1e-6)
    assert constant(prediction.log_prob + 1.7 * jnp.sum(y**2, -1) / 2)


FREE = Denoiser(net=Waves(), process=VP)


class Column(KnowsDensity):
    """A model whose log-density would broadcast against that of others."""

    process = VP

    def __call__(self, y, t, cond=None):
        prediction = ask(exact(VP), y, t)
        return dataclasses.replace(prediction, log_prob=prediction.log_prob[:, None])


@pytest.mark.parametrize(
    ("act", "error", "match"),
    [
        (lambda: Product(models=(), powers=()), ValueError, "0 models and 0 powers: expected as many, and at least one"),
        (lambda: Product(models=(exact(VP),), powers=(1.0, 2.0)), ValueError, "1 models and 2 powers"),
        (lambda: Product(models=exact(VP), powers=(1.0,)), TypeError, r"Product\.models = .*: expected a tuple"),
        (lambda: Product(models=(exact(VP),), powers=1.0), TypeError, r"Product\.powers = 1\.0: expected a tuple"),
        (lambda: Product(models=(exact(VP),), powers=(np.nan,)), ValueError, r"Product\.powers\[0\] = nan: expected a finite"),
        (
            lambda: Product(models=(exact(VP), FREE.bind(FREE.init(KEY, (2,)))), powers=(1.0, 1.0)), TypeError,
            r"Product\.models\[1\] is BoundDenoiser, which does not know its density: expected an exact law or an energy",
        ),
        (
            lambda: Product(models=(exact(VP), exact(Gaussian(schedule=EDM()))), powers=(1.0, 1.0)), ValueError,
            r"(?s)VPLinear\(.*EDM\(",
        ),
        (
            lambda: Product(models=(exact(VP), RewardGradient(model=exact(VP), reward=lambda x: x[:, 0])), powers=(1.0, 1.0)),
            TypeError, r"Product\.models\[1\] is RewardGradient",
        ),
        (
            lambda: Product(models=(exact(VP), Column()), powers=(1.0, 1.0))(jnp.ones((4, 2)), 0.5), ValueError,
            r"Column: log_prob has shape \(4, 1\) for y of shape \(4, 2\): expected \(4,\)",
        ),
        (
            lambda: Product(models=(exact(VP),), powers=(jnp.ones(5),))(jnp.ones((6, 2)), 0.5), ValueError,
            r"Product\.powers\[0\] has shape \(5,\): expected \(\) or \(6,\)",
        ),
        (lambda: Product(models=(jnp.sin,), powers=(1.0,)), TypeError, r"Product\.models\[0\] = .*: expected a model"),
        (
            lambda: Product(
                models=(ExactModel(OTHER, StochasticInterpolant(base=densities.Gaussian(np.zeros(2), 1.0))),), powers=(1.0,)
            ),
            TypeError, r"(?s)Product\.process = .*: expected a LinearGaussian",
        ),
    ],
    ids=["none", "count", "models", "powers", "nan", "field", "processes", "guided", "column", "length", "function", "interpolant"],
)  # fmt: skip
def test_what_is_no_product_is_named(act, error, match):
    with pytest.raises(error, match=match):
        act()
