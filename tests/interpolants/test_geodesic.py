"""Geodesic processes: spaces, exact laws and fields on them, solvers, likelihood, and what a network learns."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

from scorelab import (
    data,
    densities,
    fk,
    grids,
    invert,
    log_likelihood,
    losses,
    metrics,
    models,
    processes,
    sample,
    solvers,
    starts,
    training,
)
from scorelab.divergence import divergence
from scorelab.models import nets
from scorelab.processes import spaces

KEY = jax.random.key(11)
TORUS, SPHERE, ROTATIONS = spaces.Torus(), spaces.Sphere(), spaces.Rotations()
PRODUCT = spaces.Product(parts=((TORUS, 2), (SPHERE, 3), (ROTATIONS, 4)))
# A space and an event of it.
SPACES = {
    "torus": (TORUS, (2, 3)),
    "circle": (SPHERE, (2,)),
    "sphere": (SPHERE, (3,)),
    "several vectors": (SPHERE, (2, 5)),
    "rotations": (ROTATIONS, (4,)),
    "product": (PRODUCT, (9,)),
}
every_space = pytest.mark.parametrize("name", SPACES)


def on(space, event):
    """In the precision of the moment."""
    return processes.Geodesic(space=space, base=densities.Uniform(space, event))


@every_space
def test_exp_and_log_are_inverse_and_geodesics_have_constant_speed(name):
    space, event = SPACES[name]
    with jax.enable_x64(True):
        x, w = (space.canonical(space.uniform(key, (200, *event))) for key in jax.random.split(KEY))
        v, distance = space.log(x, w), space.distance(x, w)
        t = jax.random.uniform(KEY, (200,), minval=0.05)
        y, rate = spaces.geodesic(space, x, w, t)
        found = dict(
            back=space.distance(space.exp(x, v), w), length=space.norm(v) - distance, tangent=space.project(x, v) - v,
            speed=space.norm(rate) - distance, way=space.distance(x, y) - t * distance, along=space.project(y, rate) - rate,
            carried=space.transport(x, y, v) - rate, symmetric=space.distance(w, x) - distance,
        )  # fmt: skip
        # Float64 rounding of numbers up to five.
        for what, error in found.items():
            np.testing.assert_allclose(error, 0, atol=1e-13, err_msg=what)
        assert np.all(space.off(np.asarray(y)) < 1e-14)
        # Nothing is further than the cut locus is.
        assert np.all(np.asarray(space.clearance(x, w)) > 0)
        # Parallel transport keeps inner products.
        a, b = (space.project(x, jax.random.normal(key, x.shape)) for key in jax.random.split(KEY))
        inner = lambda a, b: np.sum(np.asarray(a * b).reshape(200, -1), axis=1)
        np.testing.assert_allclose(inner(*(space.transport(x, y, c) for c in (a, b))), inner(a, b), atol=1e-12)


def test_isometries_move_distances_and_logarithms_with_them():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    with jax.enable_x64(True):
        x, w = (SPHERE.uniform(key, (100, 3)) for key in jax.random.split(KEY))
        np.testing.assert_allclose(SPHERE.log(x @ turn.T, w @ turn.T), SPHERE.log(x, w) @ turn.T, atol=1e-13)
        shift = jnp.array([3.0, -2.0])
        x, w = (TORUS.uniform(key, (100, 2)) for key in jax.random.split(KEY))
        np.testing.assert_allclose(TORUS.log(x + shift, w + shift + 2 * math.pi), TORUS.log(x, w), atol=1e-13)
        # The angle of a rotation is that of its matrix, and the sign of a quaternion means nothing.
        p, q = (ROTATIONS.uniform(key, (100, 4)) for key in jax.random.split(KEY))
        between = jnp.swapaxes(spaces.matrix(p), 1, 2) @ spaces.matrix(q)
        np.testing.assert_allclose(np.cos(ROTATIONS.distance(p, q)), (jnp.trace(between, axis1=1, axis2=2) - 1) / 2, atol=1e-13)
        np.testing.assert_allclose(ROTATIONS.log(p, -q), ROTATIONS.log(p, q), atol=1e-13)
        np.testing.assert_allclose(ROTATIONS.embed(-p), ROTATIONS.embed(p), atol=0)
        np.testing.assert_allclose(spaces.matrix(p) @ jnp.swapaxes(spaces.matrix(p), 1, 2), np.broadcast_to(np.eye(3), (100, 3, 3)),
                                   atol=1e-14)  # fmt: skip


@pytest.mark.parametrize("angle", [1e-4, 1e-3, 1e-2, 0.1, 3.0, math.pi - 1e-3])
def test_angles_in_float32(angle):
    """Rounding of the ends moves each by 6e-8; the inverse cosine of their product would be off by 8 % at a hundredth of that."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 3))
    x /= np.linalg.norm(x, axis=1)[:, None]
    side = np.cross(x, rng.normal(size=(500, 3)))
    side /= np.linalg.norm(side, axis=1)[:, None]
    ends = [a.astype(np.float32) for a in (x, np.cos(angle) * x + np.sin(angle) * side)]
    bound = 1.2e-7 + 4 * 2.0**-24 * angle
    assert np.max(np.abs(np.asarray(SPHERE.distance(*ends), np.float64) - angle)) < bound
    v = np.asarray(SPHERE.log(*ends), np.float64)
    # The direction of the logarithm has the digits that the distance from the nearer pole has.
    assert np.max(np.abs(v - angle * side)) < 1e-6 * max(1.0, angle / (math.pi - angle))
    half = np.concatenate([np.full((500, 1), np.cos(angle / 2)), np.sin(angle / 2) * side], axis=1).astype(np.float32)
    one = np.broadcast_to(np.eye(4, dtype=np.float32)[0], half.shape)
    assert np.max(np.abs(np.asarray(ROTATIONS.distance(one, half), np.float64) - angle)) < 2 * bound
    # Angles on the torus keep theirs beside a full turn.
    np.testing.assert_allclose(TORUS.log(jnp.zeros((1, 1)), jnp.full((1, 1), angle)), angle, rtol=1e-7)


@every_space
def test_steps_stay_on_the_space_in_float32(name):
    space, event = SPACES[name]
    x = space.canonical(space.uniform(KEY, (64, *event)))

    def step(y, key):
        return space.exp(y, space.project(y, 0.3 * jax.random.normal(key, y.shape))), None

    y = np.asarray(jax.jit(lambda x: jax.lax.scan(step, x, jax.random.split(KEY, 1000))[0])(x))
    assert np.all(space.off(y) < 1e-6)
    assert np.all(np.isfinite(y))
    # Nothing moves by nothing, with finite derivatives.
    still, rate = jax.jvp(lambda t: space.exp(x, t * jnp.zeros_like(x)), (0.0,), (1.0,))
    np.testing.assert_allclose(still, x, atol=2e-7)
    np.testing.assert_allclose(rate, 0, atol=1e-7)
    assert np.all(np.isfinite(space.log(x, x)))


def sphere_nodes(n=48):
    z, w = np.polynomial.legendre.leggauss(n)
    turn = 2 * math.pi * np.arange(2 * n) / (2 * n)
    z, turn = np.meshgrid(z, turn, indexing="ij")
    radius = np.sqrt(1 - z**2)
    x = np.stack([radius * np.cos(turn), radius * np.sin(turn), z], -1).reshape(-1, 3)
    return x, np.repeat(w, 2 * n) * math.pi / n


def torus_nodes(n=80):
    side = -math.pi + 2 * math.pi * np.arange(n) / n
    x = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    return x, np.full(len(x), (2 * math.pi / n) ** 2)


def rotation_nodes(n=32, m=48):
    u, w = np.polynomial.legendre.leggauss(n)
    turn = 2 * math.pi * np.arange(m) / m
    u, a, b = np.meshgrid((u + 1) / 2, turn, turn, indexing="ij")
    low, high = np.sqrt(1 - u), np.sqrt(u)
    x = np.stack([low * np.cos(a), low * np.sin(a), high * np.cos(b), high * np.sin(b)], -1).reshape(-1, 4)
    # Every rotation twice, and eight times the volume of the quaternions.
    return x, np.broadcast_to((w / 4)[:, None, None], u.shape).ravel() * (2 * math.pi / m) ** 2 * 4


def rotation_mixture(concentrations=(4.0, 9.0)):
    return densities.RotationMixture([0.3, 0.7], [[1, 0, 0, 0], [0.6, 0, 0.8, 0]], concentrations)


LAWS = {
    "torus": (densities.on_torus, torus_nodes),
    "wide": (lambda: densities.WrappedNormalMixture([1.0], [[2.0, -1.0]], [[5.0, 1.0]]), torus_nodes),
    "sphere": (densities.on_sphere, sphere_nodes),
    "flat sphere": (lambda: densities.VonMisesFisherMixture([2, 1], [[0, 0, 1], [0, 1, 0]], [0.0, 3.0]), sphere_nodes),
    "uniform": (lambda: densities.Uniform(SPHERE, (3,)), sphere_nodes),
    "rotations": (rotation_mixture, rotation_nodes),
    "uniform rotations": (lambda: densities.Uniform(ROTATIONS, (4,)), rotation_nodes),
}


@pytest.mark.parametrize("name", LAWS)
def test_laws_are_normalised(name):
    law, nodes = LAWS[name]
    x, weights = nodes()
    with jax.enable_x64(True):
        # The rules converge faster than any power of their nodes.
        assert np.exp(np.asarray(law().log_prob(x))) @ weights == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("d", [2, 4, 7])
def test_von_mises_fisher_laws_of_any_dimension(d):
    kappa, mean = 3.0, np.eye(d)[0]
    law = densities.VonMisesFisherMixture([1.0], mean[None], kappa)
    node, weight = np.polynomial.legendre.leggauss(60)
    angle = (node + 1) * math.pi / 2
    points = np.cos(angle)[:, None] * mean + np.sin(angle)[:, None] * np.eye(d)[1]
    shell = np.exp(math.log(2) + (d - 1) / 2 * math.log(math.pi) - math.lgamma((d - 1) / 2)) * np.sin(angle) ** (d - 2)
    mass = np.exp(np.asarray(law.log_prob(points), np.float64)) * shell @ weight * math.pi / 2
    assert mass == pytest.approx(1.0, abs=1e-5)
    x = np.asarray(law.sample(KEY, 20_000), np.float64)
    resultant = special.iv(d / 2, kappa) / special.iv(d / 2 - 1, kappa)
    np.testing.assert_allclose(x.mean(0), resultant * mean, atol=4.5 * x.std(0).max() / np.sqrt(len(x)))


def test_draws_have_the_moments_of_their_laws():
    n = 20_000
    law = densities.WrappedNormalMixture([0.25, 0.75], [[1.0, -3.0], [2.5, 0.4]], [0.4, 1.2])
    x = np.asarray(law.sample(KEY, n), np.float64)
    exact = np.array([0.25, 0.75]) @ np.exp(1j * np.array([[1.0, -3.0], [2.5, 0.4]]) - np.array([[0.08], [0.72]]))
    np.testing.assert_allclose(np.abs(np.exp(1j * x).mean(0) - exact), 0, atol=4.5 / np.sqrt(n))
    assert np.abs(x).max() <= math.pi + 1e-6
    # Of isotropic matrix Fisher laws the angle has the density e^(k cos a) (1 - cos a) / normaliser.
    for kappa in (0.5, 25.0):
        law = densities.RotationMixture([1.0], [[0.6, 0, 0.8, 0]], kappa)
        x = np.asarray(law.sample(KEY, n))
        assert x[:, 0].min() >= 0
        angle = np.asarray(ROTATIONS.distance(x, np.broadcast_to(np.array([0.6, 0, 0.8, 0], np.float32), x.shape)), np.float64)
        fine = np.linspace(0, math.pi, 4001)
        density = np.exp(kappa * (np.cos(fine) - 1)) * (1 - np.cos(fine))
        cdf = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
        assert stats.kstest(angle, lambda a, fine=fine, cdf=cdf: np.interp(a, fine, cdf / cdf[-1])).pvalue > 1e-3
    # Parts of a product belong together: the share of a cluster, told by either part, is its weight.
    x = np.asarray(densities.on_product().sample(KEY, n), np.float64)
    vectors = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / math.sqrt(3)
    angles = np.array([[-2.5, 0], [-1, 2], [1, -2], [2.8, 1]])
    one = np.argmax(x[:, 2:] @ vectors.T, axis=1)
    other = np.argmax(np.cos(x[:, None, :2] - angles).sum(-1), axis=1)
    assert np.mean(one == other) > 0.97
    np.testing.assert_allclose(np.bincount(other, minlength=4) / n, [0.4, 0.3, 0.2, 0.1], atol=4.5 * 0.5 / np.sqrt(n) + 0.002)


def test_the_score_is_the_gradient_along_the_space():
    law = densities.on_sphere()
    with jax.enable_x64(True):
        x = SPHERE.uniform(KEY, (20, 3))
        side = SPHERE.project(x, jax.random.normal(jax.random.key(1), x.shape))
        along = lambda h: densities.on_sphere().log_prob(SPHERE.exp(x, h * side))
        np.testing.assert_allclose(
            jnp.sum(densities.on_sphere().score(x) * side, -1), (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-5
        )
    assert law.space == SPHERE


# A base that is not uniform, a few points with weights, and the time.
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])
BASES = {
    "torus": lambda: densities.WrappedNormalMixture([0.5, 0.5], [[0.5, 1.0], [-2.0, 0.0]], [1.0, 2.0]),
    "sphere": lambda: densities.VonMisesFisherMixture([0.5, 0.5], [[0, 0, 1], [0, 1, 0]], [2.0, 3.0]),
    "rotations": lambda: rotation_mixture((1.0, 2.0)),
    "product": lambda: densities.ProductMixture([1.0], [(densities.Gaussian(np.zeros(1), 1.0), BASES["sphere"]())]),
}


def exact(name):
    """The exact fields of four points, in the precision of the moment."""
    base = BASES[name]()
    space = base.space
    rng = np.random.default_rng(5)
    points = space.canonical(jnp.asarray(rng.normal(size=(4, *base.event))))
    return models.ExactGeodesic.weighted(points, WEIGHTS, processes.Geodesic(space=space, base=base))


@pytest.mark.parametrize("name", BASES)
def test_the_exact_velocity_carries_the_exact_density(name):
    with jax.enable_x64(True):
        model = exact(name)
        space = model.process.space
        y = model.process.perturb(KEY, jnp.repeat(model.points, 40, axis=0), 0.7).y
        log_prob = lambda y, t: model(space.retract(y), t).log_prob

        @jax.jit
        def residual(y, t):
            rate = jax.jvp(lambda t: log_prob(y, t), (t,), (jnp.ones_like(t),))[1]
            velocity, spread = divergence(lambda y: model(space.retract(y), t).velocity, y)
            slope = jax.grad(lambda y: jnp.sum(log_prob(y, t)))(y)
            return rate + spread + jnp.sum(velocity * slope, -1), jnp.abs(spread)

        left, size = residual(y, jnp.asarray(0.7))
        # Rounding, of terms of this size.
        np.testing.assert_allclose(left, 0, atol=1e-12 * (10 + float(size.max())))


@pytest.mark.parametrize("name", BASES)
def test_the_exact_velocity_is_the_mean_of_the_targets(name):
    """At the truth the loss has the gradient zero along any field (odd, for quaternions); four and a half standard errors."""
    model = exact(name)
    process, n = model.process, 20_000
    loss = losses.InterpolantMatching(process, heads=("u",))
    rows = np.random.default_rng(0).choice(4, size=n, p=WEIGHTS)
    noised = loss.draw(KEY, {"x": np.asarray(model.points, np.float32)[rows]})

    gradients = jax.jit(lambda off: _gradients(model, loss, noised, off))
    at, away = (gradients(jnp.array(off)) for off in ([0.0, 0.0], [0.2, 0.2]))
    at, away = np.asarray(at, np.float64), np.asarray(away, np.float64)
    assert np.all(np.abs(at.mean(0)) < 4.5 * at.std(0) / np.sqrt(n))
    assert np.all(np.abs(away.mean(0)) > 4.5 * away.std(0) / np.sqrt(n))


def _gradients(model, loss, noised, off):
    process = model.process

    def error(off):
        velocity = model(noised.y, noised.t).velocity
        believed = process.predict(noised.y, noised.t, velocity=(1 + off[0]) * velocity + off[1] * jnp.roll(noised.y, 1, axis=-1))
        belief = models.FunctionModel(lambda y, t, cond=None: believed, process, returns="prediction")
        return loss.error(belief, noised)

    return jax.jacfwd(error)(off)


@pytest.mark.parametrize("name", ["torus", "sphere", "rotations", "product"])
def test_the_flow_of_points_ends_at_them_with_their_weights(name):
    model, n = exact(name), 4_000
    out = sample(model, solver=solvers.GeodesicODE(), grid=grids.Quadratic(40), key=KEY, shape=(n, *model.points.shape[1:]))
    space = model.process.space
    apart = np.stack([np.asarray(space.distance(jnp.broadcast_to(p, out.x.shape), out.x)) for p in np.asarray(model.points)])
    # Some flows run between two points until the last step, where there is no more to tell.
    assert np.mean(apart.min(0) < 0.02) > 0.97
    share = np.bincount(apart.argmin(0), minlength=4) / n
    # Four standard errors, and a hundredth for the steps.
    np.testing.assert_allclose(share, WEIGHTS, atol=4 * 0.5 / np.sqrt(n) + 0.01)
    assert np.all(space.off(np.asarray(out.x)) < 1e-6)


MATRIX = np.array([[0.9, 0.2, 0.0, 0.1], [0.2, -0.5, 0.3, 0.0], [0.0, 0.3, 0.4, -0.2], [0.1, 0.0, -0.2, -0.6]])


@jax.tree_util.register_pytree_node_class
class Stretch:
    r"""A field with a flow in closed form: :math:`P_yAy` on unit vectors, :math:`\sin` on angles, times a rate of time.

    It takes ``y`` to :math:`e^{As}y/|e^{As}y|` and :math:`\tan(y/2)` to :math:`e^s\tan(y/2)`, with ``s`` the integral of the rate.
    """

    def __init__(self, process):
        self.process = process

    def tree_flatten(self):
        return (jnp.zeros(()),), self.process

    @classmethod
    def tree_unflatten(cls, process, leaves):
        return cls(process)

    def __call__(self, y, t, cond=None):
        parts = [jnp.sin(y)] if self.process.space == TORUS else [self._part(space, y) for space, y in self._split(y)]
        rate = (0.5 + 2 * jnp.asarray(t, y.dtype)) * jnp.ones(())
        return self.process.predict(y, t, velocity=rate * jnp.concatenate(parts, -1))

    def _split(self, y):
        space = self.process.space
        return (
            [(space, y)]
            if space in (SPHERE, ROTATIONS)
            else [(s, part) for (s, _), part in zip(space.parts, space.split(y), strict=True)]
        )

    @staticmethod
    def _part(space, y):
        size = y.shape[-1]
        return jnp.sin(y) if space == TORUS else y @ jnp.asarray(MATRIX[:size, :size], y.dtype)


def stretched(y, s):
    """Where unit vectors or quaternions go."""
    values, basis = np.linalg.eigh(MATRIX[: y.shape[-1], : y.shape[-1]])
    image = y @ (basis * np.exp(s * values)) @ basis.T
    return image / np.linalg.norm(image, axis=-1, keepdims=True)


@pytest.mark.parametrize(("rule", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_the_solver(rule, order):
    solver = solvers.GeodesicODE(rule=rule)
    assert solver.order == order
    with jax.enable_x64(True):
        process = on(PRODUCT, (9,))
        y = np.asarray(PRODUCT.canonical(PRODUCT.uniform(KEY, (20, 9))))
        # Down from 1 to 0: the integral of the rate is -1.5.
        angle = 2 * np.arctan(np.exp(-1.5) * np.tan(y[:, :2] / 2))
        truth = np.concatenate([angle, stretched(y[:, 2:5], -1.5), stretched(y[:, 5:], -1.5)], axis=1)
        errors = []
        for steps in (32, 64, 128):
            out = sample(Stretch(process), solver=solver, grid=grids.Uniform(steps), key=KEY, shape=y.shape, start=starts.Fixed(y))
            errors.append(float(np.sqrt(np.mean(np.asarray(PRODUCT.distance(out.x, jnp.asarray(truth))) ** 2))))
    slopes = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.abs(slopes[-1] - order) < 0.15, errors
    assert out.diagnostics["model_calls"] == (128 if rule == "euler" else 255)


def test_inversion_returns():
    process = on(PRODUCT, (9,))
    x = np.asarray(PRODUCT.canonical(PRODUCT.uniform(KEY, (16, 9))))
    solver, grid = solvers.GeodesicODE(), grids.Uniform(100)
    z = invert(Stretch(process), x, solver=solver, grid=grid)
    back = sample(Stretch(process), solver=solver, grid=grid, key=KEY, shape=x.shape, start=starts.Fixed(np.asarray(z))).x
    # Twice the error of the rule at a hundredth: 1e-4 each.
    assert float(jnp.max(PRODUCT.distance(back, jnp.asarray(x)))) < 2e-3


@pytest.mark.parametrize("name", ["torus", "sphere", "rotations", "product"])
def test_the_likelihood_of_the_flow_is_exact(name):
    """The flow makes angular central Gaussian laws of the uniform one, and wrapped Cauchy laws on the torus."""
    space, event = {"torus": (TORUS, (2,)), "sphere": (SPHERE, (3,)), "rotations": (ROTATIONS, (4,)), "product": (PRODUCT, (9,))}[
        name
    ]

    def unit(x):
        # x = e^(-1.5 A) y / |.|: the covariance of the Gaussian is e^(-3 A).
        values, basis = np.linalg.eigh(MATRIX[: x.shape[1], : x.shape[1]])
        square = np.sum((x @ basis) ** 2 * np.exp(3 * values), axis=1)
        return 1.5 * values.sum() - x.shape[1] / 2 * np.log(square)

    def turn(x):
        # d angle / d angle' of tan(angle / 2) = e^s tan(angle' / 2).
        s = 1.5
        return np.sum(s - np.log(np.cos(x / 2) ** 2 + np.exp(2 * s) * np.sin(x / 2) ** 2), axis=1)

    with jax.enable_x64(True):
        x = np.asarray(space.canonical(space.uniform(KEY, (8, *event))))
        found = log_likelihood(Stretch(on(space, event)), x, rtol=1e-8, atol=1e-8)
        gains = {"torus": turn, "sphere": unit, "rotations": unit}
        gain = gains[name](x) if name in gains else turn(x[:, :2]) + unit(x[:, 2:5]) + unit(x[:, 5:])
        # The tolerance of the adaptive steps, a few of them.
        np.testing.assert_allclose(found.log_prob, gain - space.log_volume(event), atol=1e-6)
        assert np.all(space.off(np.asarray(found.latent)) < 1e-12)


def field(process, **options):
    return models.InterpolantField(net=nets.MLP(width=64, depth=2, embed=32), process=process, **options)


def test_a_network_sees_points_and_not_their_coordinates():
    """A turn more, or the other quaternion, is the same point, with the same velocity in its own coordinates."""
    process = on(PRODUCT, (9,))
    net = field(process)
    params = jax.tree.map(lambda p: p + 0.1, net.init(KEY, (9,)))
    y = PRODUCT.canonical(PRODUCT.uniform(KEY, (5, 9)))
    other = y.at[:, 5:].multiply(-1).at[:, 0].add(2 * math.pi)
    one, two = (net.bind(params)(at, 0.3).velocity for at in (y, other))
    size = float(jnp.max(jnp.abs(one)))
    np.testing.assert_allclose(two, one.at[:, 5:].multiply(-1), atol=1e-5 * size)
    assert size > 0.1
    np.testing.assert_allclose(PRODUCT.project(y, one), one, atol=1e-6 * size)


@pytest.mark.parametrize("law", [densities.on_torus, densities.on_sphere, densities.on_rotations, densities.on_product])
def test_a_network_learns_to_carry_the_base_to_the_data(law):
    law = law()
    process = on(law.space, law.event)
    x = np.asarray(law.sample(KEY, 8_192))
    learner = training.ScoreLearner(
        field(process),
        losses.InterpolantMatching(process, heads=("u",)),
        optax.adam(optax.cosine_decay_schedule(4e-3, 700)),
        ema=None,
    )
    state = training.fit(learner, data.Batches({"x": x}, batch_size=256, seed=0), steps=700, key=KEY)
    model, n = learner.model(state), 2_000
    drawn = sample(model, solver=solvers.GeodesicODE(), grid=grids.Uniform(24), key=KEY, shape=(n, *law.event)).x
    embedded = lambda points: np.asarray(law.space.embed(jnp.asarray(points)))
    one, two, base = (embedded(points) for points in (x[:n], x[-n:], process.base.sample(KEY, n)))
    width = metrics.median_bandwidth(one, two) / 4
    distance = lambda points: metrics.mmd(points, one, width).value
    # A tenth of what the base is away, with the floor of as many exact draws.
    assert distance(embedded(drawn)) < 0.1 * distance(base) + 3 * abs(distance(two))
    assert np.all(law.space.off(np.asarray(drawn)) < 1e-6)


def test_flat_geodesics_are_the_linear_interpolant():
    base = densities.Gaussian(np.zeros(2), 1.0)
    one = processes.Geodesic(space=spaces.Euclidean(), base=base)
    two = processes.StochasticInterpolant(gamma=processes.gammas.Zero(), base=base)
    x = np.asarray(densities.eight_gaussians().sample(KEY, 64))
    found = [losses.InterpolantMatching(process, heads=("u",)).draw(KEY, {"x": x}) for process in (one, two)]
    np.testing.assert_allclose(found[0].y, found[1].y, atol=1e-6)
    rates = [process.rates(noised)[0] for process, noised in zip((one, two), found, strict=True)]
    np.testing.assert_allclose(*rates, atol=1e-6)


def test_pairs_at_the_cut_locus_are_refused_or_have_no_weight():
    process = on(SPHERE, (3,))
    x = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], np.float32)
    w = np.array([[0, 0, -1], [0, 0, 1], [0.6, 0.8, 0]], np.float32)
    with pytest.raises(ValueError, match=r"1 of 3 rows within 1e-06 of the cut locus of x, the first is row 0"):
        process.noised(x, w, 0.5)
    paired = processes.Geodesic(space=SPHERE, base=process.base, coupling=data.Paired())
    loss = losses.InterpolantMatching(paired, heads=("u",))
    net = field(paired)
    # A new network says zero, which is what the logarithm says there.
    params = jax.tree.map(lambda p: p + 0.1, net.init(KEY, (3,)))
    noised = loss.draw(KEY, {"x": x, "base": w})
    errors, gradient = jax.jit(jax.value_and_grad(lambda p: jnp.sum(loss.error(net.bind(p), noised))))(params)
    assert np.all(np.isfinite(jax.tree.leaves(gradient)[0]))
    assert np.isfinite(errors)
    np.testing.assert_array_equal(loss.error(net.bind(params), noised) > 0, [False, True, True])


OFFENDERS = {
    "sphere": (SPHERE, [[0.0, 0.0, 8.7]], r"row \d is off by 7.7.*unit vectors"),
    "torus": (TORUS, [[180.0, 0.0, 0.0]], r"row \d is off by 174.*radians"),
}


@pytest.mark.parametrize("which", ["x", "base"])
@pytest.mark.parametrize("name", OFFENDERS)
def test_training_refuses_rows_off_the_space_and_says_where(name, which):
    space, wrong, message = OFFENDERS[name]
    process = processes.Geodesic(space=space, base=densities.Uniform(space, (3,)), coupling=data.Paired())
    rows = space.uniform(KEY, (7, 3))
    columns = {each: np.asarray(rows, np.float32) for each in ("x", "base")}
    batches = data.Batches(columns | {which: np.insert(columns[which], 1, wrong, axis=0)[:7]}, batch_size=7)
    learner = training.ScoreLearner(field(process), losses.InterpolantMatching(process, heads=("u",)), optax.adam(1e-3), ema=None)
    with pytest.raises(training.NonFiniteLoss, match=rf"step 1 .*batch\['{which}'\] has 1 of 7 rows off.*{message}"):
        training.fit(learner, batches, steps=1, key=KEY)


@pytest.mark.parametrize("which", [data.Assignment(), data.Entropic(), data.Rectified(first=data.Assignment(batch=8))], ids=repr)
def test_couplings_with_the_distances_of_another_space_are_refused(which):
    base = densities.Uniform(TORUS, (2,))
    with pytest.raises(ValueError, match=r"(?s)distances of Euclidean\(\) under points of Torus.*SquaredDistance\(space\)"):
        processes.Geodesic(space=TORUS, base=base, coupling=which)
    with pytest.raises(ValueError, match=r"distances of Sphere\(\) under points of Torus"):
        processes.Geodesic(space=TORUS, base=base, coupling=data.Assignment(cost=spaces.SquaredDistance(SPHERE)))
    with pytest.raises(ValueError, match=r"distances of Torus\(\) under points of Euclidean.*expected the default cost"):
        processes.StochasticInterpolant(
            base=densities.Gaussian(np.zeros(2), 1.0), coupling=data.Assignment(cost=spaces.SquaredDistance(TORUS))
        )


@pytest.mark.parametrize("law", [lambda: densities.Uniform(SPHERE, (3,)), densities.on_sphere], ids=["without leaves", "mixture"])
def test_rows_of_pairs_are_asked_for_under_a_condition_whatever_the_base_is(law):
    model = Stretch(processes.Geodesic(space=SPHERE, base=law(), coupling=data.Paired()))
    with pytest.raises(ValueError, match=r"sample.start = None under Paired\(.*and a condition: expected start=starts.Fixed\(rows"):
        walk(model, cond=np.arange(2))
    with pytest.raises(ValueError, match=r"log_likelihood.start = None under Paired\(.*and a condition"):
        log_likelihood(model, OFF[:1], cond=np.arange(1))


def test_an_assignment_on_the_space():
    rng = np.random.default_rng(2)
    cost = spaces.SquaredDistance(ROTATIONS)
    x, w = (np.asarray(ROTATIONS.uniform(key, (6, 4))) for key in jax.random.split(KEY))
    found = data.Assignment(cost=cost).partners(rng, x, w)
    matrix = cost(x, w)
    np.testing.assert_allclose(matrix[2, 3], float(ROTATIONS.distance(x[2:3], w[3:4])[0]) ** 2, rtol=1e-5)
    assert sorted(found) == list(range(6))
    # The sign of a quaternion changes nothing.
    np.testing.assert_array_equal(data.Assignment(cost=cost).partners(rng, x, -w), found)
    assert matrix[np.arange(6), found].sum() <= matrix[np.arange(6), data.Assignment().partners(rng, x, w)].sum()
    process = processes.Geodesic(space=ROTATIONS, base=densities.Uniform(ROTATIONS, (4,)), coupling=data.Assignment(cost=cost))
    assert process == processes.Geodesic(
        space=ROTATIONS, base=process.base, coupling=data.Assignment(cost=spaces.SquaredDistance(ROTATIONS))
    )
    coupled = data.Coupled(data.Batches({"x": x}, batch_size=6, seed=0), process.coupling, process.base)
    losses.InterpolantMatching(process, heads=("u",)).draw(KEY, coupled.prepare(coupled.at(0)))


def walk(model, solver=None, **options):
    solver = solvers.GeodesicODE() if solver is None else solver
    return sample(model, **(dict(solver=solver, grid=grids.Uniform(4), key=KEY, shape=(2, 3)) | options))


def straight():
    return models.ExactModel(
        densities.Gaussian(np.zeros(3), 1.0), processes.StochasticInterpolant(base=densities.Gaussian(np.zeros(3), 1.0))
    )


@functools.cache
def turning():
    return Stretch(on(SPHERE, (3,)))


OFF = np.array([[0.0, 0.0, 1.0], [0.0, 0.5, 0.0]], np.float32)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: processes.Geodesic(space=3, base=OFF), "expected a Space"),
        (lambda: processes.Geodesic(space=SPHERE, base=None), "expected a law on the space"),
        (lambda: processes.Geodesic(space=SPHERE, base=OFF), r"of 2 rows off Sphere\(\), the first is row 1; row 1 is off by 0.5"),
        (lambda: processes.Geodesic(space=SPHERE, base=densities.Gaussian(np.zeros(3), 1.0)), "expected one on Sphere"),
        (lambda: processes.Geodesic(space=ROTATIONS, base=densities.Uniform(SPHERE, (4,))), "expected one on Rotations"),
        (lambda: processes.Geodesic(space=TORUS, base=densities.Uniform(TORUS, (2,)), coupling=3), "expected a coupling"),
        (lambda: on(SPHERE, (3,)).encode(OFF), "1 of 2 rows off"),
        (lambda: on(TORUS, (1,)).encode(np.array([[180.0]])), "radians"),
        (lambda: on(TORUS, (1,)).encode(np.array([[np.nan]])), "off by inf"),
        (lambda: on(ROTATIONS, (4,)).encode(np.ones((2, 3))), "unit quaternions"),
        (lambda: spaces.Product(parts=()), "expected pairs of a space"),
        (lambda: spaces.Product(parts=((SPHERE, 1),)), "d >= 2"),
        (lambda: spaces.Product(parts=((3, 1),)), "expected a Space"),
        (lambda: densities.Uniform(spaces.Euclidean(), (2,)), "infinite"),
        (lambda: densities.Uniform(SPHERE, (3.0,)), "integers above 0"),
        (lambda: densities.Uniform(SPHERE, 3), "the shape of a point"),
        (lambda: models.ExactGeodesic(OFF[:1], on(SPHERE, (3,)), np.zeros(1) + 0.1), "of the sum 1.10517: expected 1"),
        (lambda: models.ExactGeodesic(OFF[:1], on(SPHERE, (3,)), np.full(1, np.nan)), "of the sum nan"),
        (lambda: models.FunctionModel(lambda y, t, c: y, on(SPHERE, (3,)), returns="velocity"), "expected 'prediction' there"),
        (lambda: densities.VonMisesFisherMixture([1.0], OFF[1:], 1.0), "rows off"),
        (lambda: densities.VonMisesFisherMixture([1.0], OFF[:1], -1.0), "from 0 to 1e6"),
        (lambda: densities.WrappedNormalMixture([1.0], [[0.0]], 0.0), "stds"),
        (lambda: densities.WrappedNormalMixture([-1.0], [[0.0]], 1.0), "positive"),
        (lambda: densities.RotationMixture([1.0, 1.0], [[1, 0, 0, 0]], 1.0), "weights"),
        (lambda: densities.ProductMixture([1.0], [()]), "one or more"),
        (lambda: densities.ProductMixture([1, 1], [(densities.on_torus(),), (densities.on_sphere(),)]), "one product for all"),
        (lambda: spaces.SquaredDistance(3), "expected a Space"),
        (lambda: data.Assignment(cost=3), "function of"),
        (lambda: losses.InterpolantMatching(on(SPHERE, (3,))), "without latent noise"),
        (lambda: field(on(SPHERE, (3,)), heads=("u", "eta")), "heads"),
        (lambda: solvers.GeodesicODE(rule="rk4"), "rule"),
        (lambda: walk(straight()), "expected a Geodesic"),
        (lambda: walk(turning(), solvers.InterpolantSDE()), "expected a StochasticInterpolant"),
        (lambda: walk(turning(), solvers.InterpolantODE()), "expected a StochasticInterpolant"),
        (lambda: walk(turning(), solvers.EulerMaruyama()), "expected a LinearGaussian"),
        (
            lambda: walk(
                turning(), fk.FeynmanKac(base=solvers.GeodesicODE(), potential=fk.Difference(jnp.sum), particles=2)
            ),
            "GeodesicODE",
        ),
        (lambda: walk(turning(), start=starts.Fixed(OFF)), "sample.start has 1 of 2 rows off"),
        (lambda: walk(turning(), start=starts.LogNormal(0.0, 1.0)), "expected None for its base"),
        (lambda: walk(turning(), shape=(2, 4)), "expected"),
        (lambda: walk(turning(), grid=grids.Uniform(4, t_max=0.5)), "begins at t = 0.5: expected t = 1"),
        (lambda: models.ClassifierFreeGuidance(model=turning(), scale=2.0), "expected a LinearGaussian or Stoch"),
        (lambda: spaces.SquaredDistance(SPHERE)(OFF[:1], np.zeros((2, 4))), r"w has shape \(2, 4\)"),
        (lambda: models.ExactModel(densities.Gaussian(np.zeros(3), 1.0), on(SPHERE, (3,))), "expected a LinearGaussian or Stoch"),
        (lambda: models.ExactGeodesic(OFF, on(SPHERE, (3,))), "points has 1 of 2 rows off"),
        (lambda: models.ExactGeodesic(OFF[:1], processes.Geodesic(space=SPHERE, base=OFF[:1])), "expected a law"),
        (lambda: exact("sphere")(OFF[:1], 0.0), "times above 0"),
        (lambda: models.ExactGeodesic.weighted(OFF[:1], [-1.0], on(SPHERE, (3,))), "at least 0"),
        (lambda: log_likelihood(Stretch(on(SPHERE, (3,))), OFF), "rows off"),
        (lambda: invert(turning(), OFF, solver=solvers.GeodesicODE(), grid=grids.Uniform(2)), "rows off"),
        (lambda: on(SPHERE, (3,)).predict(OFF, 0.5, velocity=OFF[:1]), "expected the shape of y"),
        (lambda: on(SPHERE, (3,)).predict(OFF, 1.5, velocity=OFF), "expected times"),
    ],
)  # fmt: skip
def test_errors(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()
