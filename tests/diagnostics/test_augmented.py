"""Laws of score augmentation: what its minimiser is under every transform, on laws whose posterior means are in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import scorelab as sl
from scorelab import densities, losses, models, processes, schedules
from scorelab.models import nets
from tests.precision import double

KEY = jax.random.key(0)
EDM = processes.Gaussian(schedule=schedules.EDM(sigma_max=5.0))
VP = processes.Gaussian(schedule=schedules.VPLinear())
EVENT = (3, 3, 1)
ORTHOGONAL = (losses.Rotation(), losses.Flip(), losses.Flip("height"))
LOSING = (losses.Translation(), losses.Cutout(2))


TRANSFORMS = [*ORTHOGONAL, losses.Brightness(3.0), *LOSING]
each = pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)


def augmented(*transforms, loss=None, **fields):
    return losses.ScoreAugmented(losses.DenoisingScoreMatching(EDM) if loss is None else loss, transforms, **fields)


def matrices(transform, w, event):
    """``T_w`` of every row of parameters as a matrix ``(n, d, d)``, by what it does to the basis."""
    d = int(np.prod(event))
    columns = jnp.eye(d).reshape(d, *event)
    return jax.vmap(lambda row: transform(columns, jnp.broadcast_to(row, (d, len(row)))).reshape(d, d).T)(w)


@each
def test_a_transform_is_linear_and_zero_is_the_identity(transform):
    rng, event = np.random.default_rng(0), (4, 4, 2)
    x, y = (rng.normal(size=(40, *event)).astype(np.float32) for _ in range(2))
    w = transform.draw(KEY, 40, event)
    assert w.shape == (40, transform.size)
    assert np.abs(w).max() <= 1
    assert np.all(np.any(np.asarray(w), axis=1))
    of = jax.jit(transform)
    np.testing.assert_array_equal(of(x, jnp.zeros_like(w)), x)
    # Sums of two rounded numbers of order 10.
    np.testing.assert_allclose(of(2 * x - y, w), 2 * of(x, w) - of(y, w), atol=1e-5)
    assert np.all(np.any(np.asarray(of(x, w)) != x, axis=(1, 2, 3)))
    np.testing.assert_array_equal(of(x[5:8], w[5:8]), of(x, w)[5:8])


@each
def test_a_transform_is_as_orthogonal_and_as_invertible_as_it_says(transform):
    w = transform.draw(KEY, 40, EVENT)
    T = np.asarray(matrices(transform, w, EVENT))
    gram = np.swapaxes(T, 1, 2) @ T
    assert transform.orthogonal == bool(np.allclose(gram, np.eye(9), atol=1e-6))
    assert transform.invertible == bool(np.all(np.linalg.matrix_rank(T) == 9))


def test_transforms_are_those_of_their_names():
    x = np.arange(2 * 16, dtype=np.float32).reshape(2, 4, 4, 1) + 1
    w = np.eye(3, dtype=np.float32)[[0, 2]]
    np.testing.assert_array_equal(losses.Rotation()(x, w), [np.rot90(x[0], 1), np.rot90(x[1], 3)])
    np.testing.assert_array_equal(losses.Flip()(x, np.array([[1.0], [0.0]])), [x[0][:, ::-1], x[1]])
    np.testing.assert_array_equal(losses.Flip("height")(x, np.ones((2, 1))), x[:, ::-1])
    np.testing.assert_allclose(losses.Brightness(4.0)(x, np.array([[0.5], [-1.0]])), [x[0] * 2, x[1] / 4], rtol=1e-6)
    moved = np.zeros_like(x)
    moved[0, 1:, :2], moved[1, :, 1:] = x[0, :3, 2:], x[1, :, :3]
    np.testing.assert_array_equal(losses.Translation(2)(x, np.array([[0.5, -1.0], [0.0, 0.5]])), moved)
    cut = x.copy()
    cut[0, :3, 1:], cut[1, 1:, :3] = 0, 0
    np.testing.assert_array_equal(losses.Cutout(3)(x, np.array([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])), cut)


def test_every_parameter_is_drawn():
    count = lambda transform, event: len(np.unique(np.asarray(transform.draw(KEY, 2000, event)), axis=0))
    assert count(losses.Rotation(), EVENT) == 3
    assert count(losses.Translation(2), (8, 8, 1)) == 24
    assert count(losses.Cutout(3), (8, 6, 1)) == 6 * 4
    factor = np.asarray(losses.Brightness(3.0)(np.ones((2000, 2), np.float32), losses.Brightness(3.0).draw(KEY, 2000, (2,))))
    # Log-uniform on [1/3, 3]: E of the square is (9 - 1/9) / (4 log 3), within four standard errors.
    assert abs(np.mean(factor[:, 0] ** 2) - (9 - 1 / 9) / (4 * np.log(3))) < 4 * np.std(factor[:, 0] ** 2) / np.sqrt(2000)
    assert 1 / 3 <= factor.min() < 0.35
    assert 2.9 < factor.max() <= 3 * (1 + 1e-6)


# Two Gaussians of nine numbers, far from symmetric, and their weights.
RNG = np.random.default_rng(4)
MEANS = RNG.normal(size=(2, 9))
ROOTS = RNG.normal(size=(2, 9, 9)) * 0.3
COVS = ROOTS @ np.swapaxes(ROOTS, 1, 2) + 0.05 * np.eye(9)
WEIGHTS = np.array([0.3, 0.7])


def law():
    parts = [densities.Gaussian(mean.reshape(EVENT), cov) for mean, cov in zip(MEANS, COVS, strict=True)]
    return densities.GaussianMixture.of(WEIGHTS, parts)


def truth(T, y, alpha, sigma, before=False):
    r""":math:`E[T x_0\mid T(\alpha x_0 + \sigma\epsilon) = y]` and the log-density on the range of ``T``.

    Of white noise where it is added after the transform (``before``). Of ``y (n, d)`` and ``T (n, d, d)``: Gaussian conditioning
    with the pseudo-inverse, component by component.
    """
    logs, denoised, across = [], [], lambda of: of[:, None, None] ** 2
    noise = jnp.eye(9) if before else T @ jnp.swapaxes(T, 1, 2)
    for weight, mean, cov in zip(WEIGHTS, jnp.asarray(MEANS), jnp.asarray(COVS), strict=True):
        signal = T @ cov @ jnp.swapaxes(T, 1, 2)
        values, vectors = jnp.linalg.eigh(across(alpha) * signal + across(sigma) * noise)
        seen = values > 1e-10 * values[:, -1:]
        values = jnp.where(seen, values, 1.0)
        along = jnp.einsum("nij,ni->nj", vectors, y - alpha[:, None] * (T @ mean))
        solved = jnp.einsum("nij,nj->ni", vectors, jnp.where(seen, along / values, 0.0))
        denoised.append(T @ mean + alpha[:, None] * jnp.einsum("nij,nj->ni", signal, solved))
        log_det = jnp.sum(jnp.where(seen, jnp.log(2 * jnp.pi * values), 0.0), axis=1)
        logs.append(jnp.log(weight) - 0.5 * jnp.sum(jnp.where(seen, along**2 / values, 0.0), axis=1) - 0.5 * log_det)
    share = jax.nn.softmax(jnp.stack(logs), axis=0)
    return jnp.sum(share[..., None] * jnp.stack(denoised), axis=0), jax.nn.logsumexp(jnp.stack(logs), axis=0)


def noised(transform, n, sigma, key=KEY):
    """Matrices, clean and noised points ``(n, 9)``, untransformed, and the deviation ``(n,)``."""
    keys = jax.random.split(key, 3)
    T = matrices(transform, transform.draw(keys[0], n, EVENT), EVENT)
    x0 = law().sample(keys[1], n).reshape(n, 9)
    return T, x0, x0 + sigma * jax.random.normal(keys[2], (n, 9)), jnp.full(n, sigma)


@pytest.mark.parametrize("sigma", [0.2, 1.0])
@pytest.mark.parametrize("transform", [*ORTHOGONAL, losses.Brightness(3.0), "shear"], ids=repr)
@double
def test_the_denoised_mean_and_the_score_of_an_invertible_transform_are_those_of_the_law_transformed(transform, sigma):
    n = 20
    if transform == "shear":
        _, _, xt, sigmas = noised(losses.Flip(), n, sigma)
        T = jnp.eye(9) + 0.5 * jnp.triu(jnp.asarray(RNG.normal(size=(n, 9, 9))), 1)
    else:
        T, _, xt, sigmas = noised(transform, n, sigma)
    y = jnp.einsum("nij,nj->ni", T, xt)
    denoised, _ = truth(T, y, jnp.ones(n), sigmas)
    exact = models.ExactModel(law(), EDM)(xt.reshape(n, *EVENT), sigma)
    # Rounding of linear algebra in nine dimensions, 1e-16 times condition numbers of some hundreds.
    np.testing.assert_allclose(denoised, jnp.einsum("nij,nj->ni", T, exact.denoised.reshape(n, 9)), atol=1e-12)
    score = jax.grad(lambda y: jnp.sum(truth(T, y, jnp.ones(n), sigmas)[1]))(y)
    back = jnp.linalg.solve(jnp.swapaxes(T, 1, 2), exact.score.reshape(n, 9)[..., None])[..., 0]
    np.testing.assert_allclose(score, back, atol=1e-9 / sigma**2)


@pytest.mark.parametrize("transform", LOSING, ids=repr)
@double
def test_what_a_transform_loses_is_averaged_over(transform):
    """The target given ``T x_t`` is another than ``T D(x_t)``, and farther from the truth by the variance between the two."""
    n = 4000
    T, x0, xt, sigmas = noised(transform, n, 1.0)
    y = jnp.einsum("nij,nj->ni", T, xt)
    denoised = np.asarray(truth(T, y, jnp.ones(n), sigmas)[0])
    knowing = np.asarray(
        jnp.einsum("nij,nj->ni", T, models.ExactModel(law(), EDM)(xt.reshape(n, *EVENT), 1.0).denoised.reshape(n, 9))
    )
    assert np.abs(denoised - knowing).max() > 0.5
    # What is lost is white noise to data that lost it before: it says nothing, and the target is the same.
    before = truth(T, y, jnp.ones(n), sigmas, before=True)[0]
    np.testing.assert_allclose(before, denoised, atol=1e-11)
    target = np.asarray(jnp.einsum("nij,nj->ni", T, x0))
    excess = np.sum((denoised - target) ** 2 - (knowing - target) ** 2 - (denoised - knowing) ** 2, axis=1)
    between = np.sum((denoised - knowing) ** 2, axis=1)
    # E[T D(x_t) | T x_t] is the target, so the three are a right triangle: four standard errors.
    assert abs(excess.mean()) < 4 * excess.std() / np.sqrt(n)
    assert between.mean() > 10 * between.std() / np.sqrt(n)


@partial(jax.jit, static_argnames="loss")
def gradients(loss, noised, shift):
    """Of the error of every example at the truth, moved by ``shift``: by an offset and by a factor of the answer."""
    w = noised.cond["augmentation"]
    n, process = len(w), loss.process
    T = matrices(loss.transformed, w, EVENT)
    alpha, sigma = process.alpha(noised.t), process.sigma(noised.t)
    y = noised.y.reshape(n, 9)
    answer, _ = truth(T, y, alpha, sigma, loss.before)
    answer = (answer + shift).reshape(noised.y.shape)

    def errors(theta):
        of = lambda y, t, cond: theta[0] + (1 + theta[1]) * answer
        return loss.error(models.FunctionModel(of, process, returns="denoised"), noised)

    return jax.jacfwd(errors)(jnp.zeros(2))


@pytest.mark.parametrize("process", [EDM, VP], ids=["EDM", "VP"])
@pytest.mark.parametrize("before", [False, True])
@double
def test_the_gradient_is_zero_at_the_posterior_mean_of_the_transformed_pair(process, before):
    n = 6000
    inner = losses.DenoisingScoreMatching(process, weighting=losses.VarianceWeighting(), times=losses.UniformTimes())
    loss = augmented(*TRANSFORMS, loss=inner, before=before)
    drawn = loss.draw(KEY, {"x": law().sample(jax.random.key(1), n)})
    at = np.asarray(gradients(loss, drawn, 0.0))
    # Four and a half standard errors, as in the contract of losses.
    assert np.all(np.abs(at.mean(0)) < 4.5 * at.std(0) / np.sqrt(n))
    off = np.asarray(gradients(loss, drawn, 0.3))
    assert np.any(np.abs(off.mean(0)) > 9 * off.std(0) / np.sqrt(n))
    # Under every transform on its own, and under none.
    w, first = np.asarray(drawn.cond["augmentation"]), 0
    for transform in TRANSFORMS:
        own = np.any(w[:, first : first + transform.size] != 0, axis=1)
        first += transform.size
        assert abs(own.mean() - 1 / 7) < 4.5 * np.sqrt(6 / 49 / n)
        assert np.all(np.abs(at[own].mean(0)) < 4.5 * at[own].std(0) / np.sqrt(own.sum())), transform
    none = ~np.any(w != 0, axis=1)
    assert abs(none.mean() - 1 / 7) < 4.5 * np.sqrt(6 / 49 / n)
    assert np.all(np.abs(at[none].mean(0)) < 4.5 * at[none].std(0) / np.sqrt(none.sum()))


@pytest.mark.parametrize("process", [EDM, VP], ids=["EDM", "VP"])
def test_the_noised_points_are_transformed_and_a_pair_stays_consistent(process):
    inner = losses.DenoisingScoreMatching(process)
    x = np.asarray(law().sample(KEY, 50), np.float32)
    plain = inner.draw(KEY, {"x": x})
    for transforms, exact in ((ORTHOGONAL, True), (TRANSFORMS, False)):
        loss = augmented(*transforms, loss=inner)
        drawn = loss.draw(KEY, {"x": x})
        w = drawn.cond["augmentation"]
        after, clean = loss.transformed(plain.y, w), loss.transformed(plain.y0, w)
        np.testing.assert_array_equal(drawn.t, plain.t)
        np.testing.assert_array_equal(drawn.y0, clean)
        # A permutation of pixels commutes with rounding, a factor does up to one part in 1e7.
        np.testing.assert_allclose(drawn.y, after, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-6)
    none = ~np.any(np.asarray(w), axis=1)
    assert none.any()
    np.testing.assert_array_equal(drawn.y[none], plain.y[none])
    # Each by its own parameters.
    first, moved = 0, np.array(plain.y0)
    for transform in TRANSFORMS:
        own = np.asarray(w)[:, first : first + transform.size]
        rows = np.any(own != 0, axis=1)
        moved[rows] = transform(plain.y0[rows], own[rows])
        first += transform.size
    np.testing.assert_array_equal(drawn.y0, moved)


def test_augmentation_before_the_noise_ties_for_orthogonal_transforms_and_for_no_others():
    """The pairs under noise ``T eps`` are those of data transformed before under noise ``eps``, bit for bit; both are white."""
    n = 200
    x = np.asarray(law().sample(KEY, n), np.float32)
    eps = np.asarray(jax.random.normal(jax.random.key(3), x.shape), np.float32)
    # A loss whose noise stands in the batch.
    inner = sl.distill.Reflow(process=EDM)
    for transforms, orthogonal in ((ORTHOGONAL, True), ((losses.Brightness(3.0),), False)):
        after, before = (augmented(*transforms, loss=inner, before=value) for value in (False, True))
        assert after.coloured is not orthogonal
        assert not before.coloured
        told = after.draw(KEY, {"x": x, "noise": eps})
        moved = after.transformed(eps, told.cond["augmentation"])
        control = before.draw(KEY, {"x": x, "noise": np.asarray(moved)})
        for field in ("y", "y0", "noise", "t"):
            np.testing.assert_array_equal(getattr(told, field), getattr(control, field))
        np.testing.assert_array_equal(told.cond["augmentation"], control.cond["augmentation"])
        # The law of the noise decides: of the norms of eps and T eps.
        same = np.allclose(np.sum(np.asarray(moved) ** 2, (1, 2, 3)), np.sum(eps**2, (1, 2, 3)), rtol=1e-5)
        assert same is orthogonal


def condition(loss, **members):
    return nets.Composite(augmentation=nets.Augmentation(loss.size), **members)


@pytest.mark.parametrize("labels", [False, True])
def test_a_network_is_trained_and_asked_for_data_as_they_are(labels):
    members = {"label": nets.Label(3)} if labels else {}
    told = condition(augmented(*TRANSFORMS), **members)
    dropout = losses.ConditionDropout(condition=told, rates=(("label", 0.5),), together=0.2) if labels else None
    loss = augmented(*TRANSFORMS, loss=losses.DenoisingScoreMatching(EDM, condition_dropout=dropout))
    denoiser = models.Denoiser(net=nets.MLP(width=16, depth=1, condition=told), process=EDM)
    learner = sl.training.ScoreLearner(denoiser, loss, optax.adam(1e-2), ema=None)
    x = np.asarray(law().sample(KEY, 64), np.float32)
    label = np.arange(64, dtype=np.int32) % 3
    batches = sl.data.Batches({"x": x, "label": label}, batch_size=32)
    prepared = sl.training.Prepared(batches, cond=("label",) if labels else None)
    model = learner.model(sl.training.fit(learner, prepared, steps=3, key=KEY))
    of = {"label": label[:4]} if labels else {}
    y, null = x[:4], np.full((4, loss.size), np.nan, np.float32)
    t = np.ones(4, np.float32)
    plain = model(y, t, of or None).denoised
    for value in (np.zeros_like(null), null):
        np.testing.assert_array_equal(model(y, t, {**of, "augmentation": value}).denoised, plain)
    other = model(y, t, {**of, "augmentation": loss.transforms[0].draw(KEY, 4, EVENT) @ np.eye(3, loss.size)}).denoised
    assert np.abs(np.asarray(other) - plain).max() > 1e-4
    out = sl.sample(model, solver=sl.solvers.DDIM(), grid=sl.grids.Karras(3), key=KEY, shape=(4, *EVENT), cond=of or None)
    assert np.all(np.isfinite(out.x))
    # A transform is told whatever else is dropped.
    drawn = loss.draw(KEY, prepared.prepare(batches.at(0)))
    assert np.all(np.isfinite(drawn.cond["augmentation"]))
    if labels:
        assert np.any(np.asarray(drawn.cond["label"]) == 3)
        assert loss.unconditional == pytest.approx(0.2 + 0.8 * 0.5 * 0)


def test_the_share_that_stays_as_it_is():
    x = {"x": np.ones((4000, 2), np.float32)}
    for identity, share in ((None, 0.5), (0.1, 0.1), (1.0, 1.0)):
        w = np.asarray(augmented(losses.Brightness(), identity=identity).draw(KEY, x).cond["augmentation"])
        # Four standard errors of 4000 coins.
        assert abs(np.mean(w == 0) - share) <= 4 * np.sqrt(share * (1 - share) / 4000)
    untold = augmented(losses.Brightness(), member=None).draw(KEY, x)
    assert untold.cond is None
    assert len(np.unique(untold.y0)) > 1000


IMAGES = {"x": np.zeros((4, 8, 6, 1), np.float32)}
TOLD = nets.Composite(augmentation=nets.Augmentation(1))


def learner(net, *transforms, **fields):
    return sl.training.ScoreLearner(models.Denoiser(net=net, process=EDM), augmented(*transforms, **fields), optax.adam(1e-3))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: losses.Brightness(1.0), r"Brightness\.most = 1\.0: expected a number above 1"),
        (lambda: losses.Brightness(0.5), r"Brightness\.most = 0\.5: expected a number in \[1"),
        (lambda: losses.Brightness(np.nan), r"Brightness\.most = nan"),
        (lambda: losses.Translation(0), r"Translation\.most = 0"),
        (lambda: losses.Cutout(1.5), r"Cutout\.side = 1\.5"),
        (lambda: losses.Flip("left"), r"Flip\.axis = 'left'.*'width'"),
        (lambda: augmented(), r"ScoreAugmented\.transforms = \(\): expected at least one"),
        (lambda: augmented(losses.Flip), r"transforms = <class .*Flip'>: expected a LinearTransform"),
        (lambda: augmented(losses.Flip(), identity=0.0), r"identity = 0: expected a number above 0"),
        (lambda: augmented(losses.Flip(), identity=1.5), r"identity = 1\.5: expected a number in"),
        (lambda: augmented(losses.Flip(), before=1), r"before = 1: expected a bool"),
        (lambda: augmented(losses.Flip(), member=3), r"member = 3"),
        (
            lambda: augmented(losses.Flip(), loss=losses.ImplicitScoreMatching(VP)),
            r"loss = ImplicitScore.*expected a DenoisingScoreMatching",
        ),
        (lambda: augmented(losses.Rotation()).draw(KEY, IMAGES), r"Rotation\(\) of images of 8 by 6: expected square"),
        (lambda: augmented(losses.Flip()).draw(KEY, {"x": np.zeros((4, 2))}), r"events of shape \(2,\): expected images"),
        (lambda: augmented(losses.Translation(6)).draw(KEY, IMAGES), r"Translation\(most=6\) of images of 8 by 6"),
        (lambda: augmented(losses.Cutout(6)).draw(KEY, IMAGES), r"Cutout\(side=6\) of images of 8 by 6"),
        (
            lambda: augmented(losses.Flip()).draw(KEY, {**IMAGES, "cond": np.zeros(4, np.int32)}),
            r'batch\["cond"\] is int32 without a name.*DataSpec\.cond = \("label",\)',
        ),
        (
            lambda: augmented(losses.Flip()).draw(KEY, {**IMAGES, "cond": {"augmentation": np.zeros((4, 1))}}),
            r"has the name 'augmentation'",
        ),
        (
            lambda: learner(nets.MLP(), losses.Flip()),
            r"whose condition is None: expected a Composite with augmentation=Augmentation\(1\)",
        ),
        (lambda: learner(nets.MLP(condition=nets.Augmentation(1)), losses.Flip()), r"expected a Composite with augmentation"),
        (
            lambda: learner(nets.MLP(condition=TOLD), losses.Rotation()),
            r"augmentation=Augmentation\(3\), the parameters of \(Rotation",
        ),
        (
            lambda: learner(nets.MLP(condition=nets.Composite(augmentation=nets.Vector(1))), losses.Flip()),
            r"expected a Composite with augmentation=Augmentation\(1\)",
        ),
        (
            lambda: augmented(
                losses.Flip(),
                loss=losses.DenoisingScoreMatching(
                    EDM, condition_dropout=losses.ConditionDropout(condition=TOLD, rates=(("augmentation", 0.1),))
                ),
            ),
            r"drops 'augmentation' of the condition with the rate 0\.1: expected 0",
        ),
        (
            lambda: losses.Regularised(augmented(losses.Brightness()), ((lambda model, noised: noised.t, 1.0),)),
            r"noise is not that of the process: expected another loss, or ScoreAugmented with orthogonal",
        ),
    ],
)
def test_what_does_not_fit_is_named(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()


def test_a_network_that_is_not_told_is_refused_by_the_loss_itself():
    denoiser = models.Denoiser(net=nets.MLP(width=8, depth=1, condition=nets.Composite(augmentation=nets.Vector(1))), process=EDM)
    model = denoiser.bind(denoiser.init(KEY, (2,)))
    with pytest.raises(ValueError, match=r"expected a Composite with augmentation=Augmentation\(1\)"):
        augmented(losses.Brightness())(KEY, model, {"x": np.zeros((4, 2), np.float32)})


def test_terms_and_estimates_stand_around_it():
    inside = augmented(*ORTHOGONAL)
    drawn = losses.Regularised(inside, ((lambda model, noised: noised.t, 1.0),)).draw(KEY, {"x": np.zeros((4, *EVENT), np.float32)})
    assert drawn.cond["augmentation"].shape == (4, 5)
    assert losses.SelfConditioned(augmented(losses.Brightness())).coloured
    denoiser = models.Denoiser(net=nets.MLP(width=8, depth=1, condition=condition(inside)), process=EDM, self_condition=True)
    sl.training.ScoreLearner(denoiser, losses.SelfConditioned(inside), optax.adam(1e-3))
    with pytest.raises(ValueError, match="expected a Composite with augmentation"):
        sl.training.ScoreLearner(denoiser, losses.SelfConditioned(augmented(losses.Rotation())), optax.adam(1e-3))
