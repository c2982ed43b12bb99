"""Laws of the losses: the exact denoiser is stationary, weights and times follow their formulas."""

import itertools
import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorelab import losses as L
from scorelab.arrays import per_example
from scorelab.models import FunctionModel
from scorelab.models.denoiser import Denoiser
from scorelab.models.nets import Composite, Image, Label, Vector
from scorelab.processes import Gaussian, GaussianPrediction
from scorelab.schedules import EDM, VE, RectifiedFlow, VPCosine, VPLinear

PROCESSES = {
    "edm": Gaussian(schedule=EDM()),
    "vp": Gaussian(schedule=VPLinear()),
    "cosine": Gaussian(schedule=VPCosine()),
    "ve": Gaussian(schedule=VE()),
    "flow": Gaussian(schedule=RectifiedFlow()),
}
WEIGHTINGS = {
    "edm": L.EDMWeighting(data_std=0.7),
    "snr": L.SNRWeighting(),
    "x0": L.X0Weighting(),
    "v": L.VWeighting(),
    "minsnr": L.MinSNR(gamma=5.0),
    "flow": L.FlowWeighting(),
    "truncated": L.TruncatedSNR(floor=0.8),
    "sigmoid": L.SigmoidWeighting(bias=1.0),
    "likelihood": L.LikelihoodWeighting(),
}
TIMES = {
    "lognormal": L.LogNormalTimes(mean=-0.8, std=0.9),
    "uniform": L.UniformTimes(),
    "logitnormal": L.LogitNormalTimes(mean=0.3, std=0.8),
    "logsnr": L.UniformLogSNRTimes(log_snr_min=-6.0, log_snr_max=5.0),
}
MEAN, STD = 0.4, 0.7


def gaussian_model(process, gain):
    """E[y_0|y_t] of N(MEAN, STD^2) when gain is 1: the error from the prior mean is multiplied by gain."""

    def model(y, t, cond=None):
        t = jnp.broadcast_to(jnp.asarray(t, y.dtype), y.shape[:1])
        alpha, sigma = per_example(process.alpha(t), y), per_example(process.sigma(t), y)
        variance = (alpha * STD) ** 2 + sigma**2
        rest = y - alpha * MEAN
        # eps has a closed form of its own, so that neither member is computed from the other.
        shift = (gain - 1) * alpha * STD**2 / variance * rest
        return GaussianPrediction(
            denoised=MEAN + alpha * STD**2 / variance * rest + shift,
            eps=sigma / variance * rest - alpha / sigma * shift,
            t=t,
            process=process,
        )

    return FunctionModel(model, process, returns="prediction")


def data(key, n):
    return MEAN + STD * jax.random.normal(key, (n, 2))


def only(*names):
    """All processes; those that are not named are of the long tail."""
    cases = [pytest.param(name, marks=() if name in names else pytest.mark.long) for name in PROCESSES]
    return pytest.mark.parametrize("process", cases)


@only("edm", "flow")
def test_the_exact_denoiser_is_stationary(process):
    process = PROCESSES[process]
    # A log-SNR range where no weighting is heavy-tailed, so that the standard error means something.
    times = L.UniformLogSNRTimes(log_snr_min=-4.0, log_snr_max=4.0)
    many = [L.DenoisingScoreMatching(process, weighting=w, times=times) for w in WEIGHTINGS.values()]

    @jax.jit
    def gradients(gain, key):
        # Not fold_in(key, 1): that is the second of split(key), which the loss draws its noise from.
        key_data, key_loss = jax.random.split(key)
        batch = {"x": data(key_data, 20_000), "cond": None}

        def losses(gain):
            return jnp.stack([loss(key_loss, gaussian_model(process, gain), batch) for loss in many])

        return jax.jvp(losses, (gain,), (jnp.ones_like(gain),))[1]

    def standardised(gain):
        g = np.asarray(gradients(jnp.float32(gain), jax.random.key(3)), np.float64)
        return np.abs(g.mean(1) / (g.std(1, ddof=1) / math.sqrt(g.shape[1])))

    # 45 cases: |z| < 4 fails by chance once in 350 other seeds.
    assert standardised(1.0).max() < 4, dict(zip(WEIGHTINGS, standardised(1.0), strict=True))
    assert standardised(0.8).min() > 8
    assert standardised(1.2).min() > 8


@dataclass(frozen=True)
class Linear:
    """A network pair (init, apply) with two parameters."""

    def init(self, key, x, c_noise, cond):
        return jnp.array([0.3, 0.2])

    def apply(self, params, x, c_noise, cond=None):
        return params[0] * x + params[1] * jnp.tanh(c_noise)[:, None]


@only("edm", "vp", "flow")
def test_parameterisations_agree_after_conversion(process):
    process, key = PROCESSES[process], jax.random.key(0)
    loss = L.DenoisingScoreMatching(process, weighting=L.VWeighting(), times=TIMES["logsnr"])
    exact = gaussian_model(process, 0.9)

    def converted(form):
        predict = lambda y, t, cond: process.predict(y, t, **{form: getattr(exact(y, t), form)})
        return FunctionModel(predict, process, returns="prediction")

    @jax.jit
    def values():
        batch = {"x": data(key, 256), "cond": None}
        forms = [converted(form) for form in ("denoised", "eps", "score", "velocity")]
        return [loss.evaluate(model, loss.draw(key, batch)) for model in (exact, *forms)]

    (expected, metrics), *others = values()
    for value, converted_metrics in others:
        np.testing.assert_allclose(value, expected, rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(converted_metrics["eps_mse"], metrics["eps_mse"], rtol=1e-3)


@only("edm", "flow")
def test_edm_weighting_matches_the_raw_output_with_weight_one(process):
    """w = 1/c_out^2: the loss is the mean square of F minus its target (Karras et al. 2022, eq. 8)."""
    process, key, std = PROCESSES[process], jax.random.key(1), 0.7
    loss = L.DenoisingScoreMatching(process, weighting=L.EDMWeighting(data_std=std), times=TIMES["logsnr"])
    denoiser = Denoiser(net=Linear(), process=process, predict="edm", data_std=std)

    @jax.jit
    def parts():
        params, x = denoiser.net.init(None, None, None, None), data(key, 512)
        key_times, key_noise, _ = jax.random.split(key, 3)
        t = loss.times(key_times, process, len(x))
        noised, c = process.perturb(key_noise, x, t), denoiser.coefficients(t)
        target = (noised.y0 - c.p[:, None] * noised.y) / c.q[:, None]
        error = denoiser.network_output(params, noised.y, t) - target
        value = loss(key, denoiser.bind(params), {"x": x})
        return value, jnp.mean(error**2, 1), loss.weighting(process, t), process.noise_ratio(t)

    value, square, weights, ratio = map(np.asarray, parts())
    c_out = np.float64(ratio) * std / np.sqrt(np.float64(ratio) ** 2 + std**2)
    np.testing.assert_allclose(weights, 1 / c_out**2, rtol=1e-5)
    np.testing.assert_allclose(value, square, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("process", ["edm", pytest.param("vp", marks=pytest.mark.long)])
def test_float32_keeps_its_digits_at_both_ends(process):
    process, key, rng = PROCESSES[process], jax.random.key(5), np.random.default_rng(0)
    x = np.float32(MEAN + STD * rng.standard_normal((64, 2)))

    @dataclass(frozen=True, kw_only=True)
    class Fixed(L.Times):
        at: float

        def time(self, u, process):
            return jnp.full(u.shape, self.at)

    for t in (process.t_min, process.t_max):
        loss = L.DenoisingScoreMatching(process, weighting=L.EDMWeighting(data_std=STD), times=Fixed(at=t))

        @jax.jit
        def both(x, loss=loss, t=t):
            noised = process.perturb(jax.random.split(key, 3)[1], x, jnp.full(64, t))
            return loss(key, gaussian_model(process, 0.9), {"x": x}), noised

        value, noised = both(x)
        # The same in float64, from the float32 time and draws.
        t64 = float(np.float32(t))
        alpha, sigma = float(process.alpha(t64)), float(process.sigma(t64))
        y0, eps = np.asarray(noised.y0, np.float64), np.asarray(noised.noise, np.float64)
        rest = alpha * (y0 - MEAN) + sigma * eps
        error = MEAN + 0.9 * alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2) * rest - y0
        weight = 1 / STD**2 + (alpha / sigma) ** 2
        np.testing.assert_allclose(value, weight * np.mean(error**2, 1), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("process", PROCESSES)
def test_weights_follow_their_formulas(process):
    process = PROCESSES[process]
    t = np.linspace(process.t_min, process.t_max, 23)[1:-1]
    alpha, sigma = process.alpha(t), process.sigma(t)
    snr = (alpha / sigma) ** 2
    h = 1e-6 * t
    d_log_snr = (process.log_snr(t + h) - process.log_snr(t - h)) / (2 * h)
    expected = {
        "edm": (sigma**2 / alpha**2 + 0.49) / (0.7 * sigma / alpha) ** 2,
        "snr": snr,
        "x0": np.ones_like(t),
        "v": 1 + snr,
        "minsnr": np.minimum(snr, 5.0),
        "flow": ((alpha + sigma) / sigma) ** 2,
        "truncated": np.maximum(snr, 0.8),
        "sigmoid": snr / (1 + np.exp(np.log(snr) - 1.0)),
        # g^2 = -sigma^2 d(log snr)/dt, and the error in the score is alpha/sigma^2 times that in the data.
        "likelihood": -(sigma**2) * d_log_snr * (alpha / sigma**2) ** 2,
    }
    found = jax.jit(lambda t: {name: weighting(process, t) for name, weighting in WEIGHTINGS.items()})(np.float32(t))
    for name, weights in found.items():
        np.testing.assert_allclose(weights, expected[name], rtol=2e-4, err_msg=name)


@pytest.mark.parametrize("stratified", [False, True])
def test_times_follow_their_laws(stratified):
    process, n, key = PROCESSES["vp"], 4000, jax.random.key(7)
    span = process.t_max - process.t_min
    cdfs = {
        "lognormal": lambda t: stats.norm.cdf(np.log(process.noise_ratio(t)), -0.8, 0.9),
        "uniform": lambda t: (t - process.t_min) / span,
        "logitnormal": lambda t: stats.norm.cdf(stats.logistic.ppf((t - process.t_min) / span), 0.3, 0.8),
        "logsnr": lambda t: (5.0 - process.log_snr(t)) / 11.0,
    }
    specs = {name: replace(spec, stratified=stratified) for name, spec in TIMES.items()}
    drawn = jax.jit(lambda: {name: spec(key, process, n) for name, spec in specs.items()})()
    for name, t in drawn.items():
        t = np.asarray(t, np.float64)
        assert t.dtype == np.float64
        assert process.t_min <= t.min() <= t.max() <= process.t_max + 1e-7
        u = np.clip(cdfs[name](t), 0, 1)
        assert stats.kstest(u, "uniform").pvalue > 1e-3, name
        if stratified:
            # One time in each of the n strata, up to rounding at their edges.
            np.testing.assert_allclose(np.sort(u), (np.arange(n) + 0.5) / n, atol=1.5 / n)


def test_stratified_times_reduce_the_variance_of_the_batch_loss():
    process = PROCESSES["vp"]

    times = [L.UniformTimes(stratified=stratified) for stratified in (False, True)]
    losses = [L.DenoisingScoreMatching(process, weighting=L.X0Weighting(), times=law) for law in times]

    @jax.jit
    @jax.vmap
    def values(key):
        key_data, key_loss = jax.random.split(key)
        batch = {"x": data(key_data, 16)}
        return [loss(key_loss, gaussian_model(process, 1.0), batch).mean() for loss in losses]

    found = np.array(values(jax.random.split(jax.random.key(0), 1000)))
    (mean_a, mean_b), (var_a, var_b) = found.mean(1), found.var(1)
    assert var_b < 0.9 * var_a
    assert abs(mean_a - mean_b) < 4 * math.sqrt((var_a + var_b) / 1000)


def test_every_stratified_time_is_uniform_by_itself():
    spec, process = L.UniformTimes(stratified=True), PROCESSES["flow"]
    first = jax.jit(jax.vmap(lambda key: spec(key, process, 8)[0]))(jax.random.split(jax.random.key(0), 2000))
    u = (np.asarray(first, np.float64) - process.t_min) / (process.t_max - process.t_min)
    assert stats.kstest(u, "uniform").pvalue > 1e-3


def test_rectified_flow_never_trains_where_alpha_is_zero():
    process = PROCESSES["flow"]

    @dataclass(frozen=True, kw_only=True)
    class End(L.Times):
        def time(self, u, process):
            return jnp.full(u.shape, process.t_max)

    loss = L.DenoisingScoreMatching(process, weighting=L.SNRWeighting(), times=End())
    forms = ("flow", "x0", "v")  # an "eps" network is refused under such a process: models/test_denoiser.py

    @jax.jit
    def values(params):
        batch = {"x": data(jax.random.key(1), 16)}
        denoisers = [Denoiser(net=Linear(), process=process, predict=predict) for predict in forms]
        value = lambda params, denoiser: loss(jax.random.key(0), denoiser.bind(params), batch).mean()
        return [jax.value_and_grad(value)(params, denoiser) for denoiser in denoisers]

    for predict, (result, gradient) in zip(forms, values(np.float32([0.3, 0.2])), strict=True):
        assert np.isfinite(result), predict
        assert np.isfinite(gradient).all(), predict


def test_label_dropout_replaces_labels_by_the_null_label():
    process = PROCESSES["edm"]

    def seen(loss, batch):
        """The condition that the model is asked with."""

        @jax.jit
        def conditions(batch):
            asked = []

            def model(y, t, cond=None):
                asked.append(cond)
                return gaussian_model(process, 1.0)(y, t)

            loss(jax.random.key(0), FunctionModel(model, process, returns="prediction"), batch)
            return asked[-1]

        return jax.device_get(conditions(batch))

    labels = np.arange(4000, dtype=np.int32) % 10
    batch = {"x": np.zeros((4000, 1), np.float32), "cond": labels}
    np.testing.assert_array_equal(seen(L.DenoisingScoreMatching(process), batch), labels)
    loss = L.DenoisingScoreMatching(process, label_dropout=0.25, null_label=10)
    found = seen(loss, batch)
    dropped = found == 10
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found[~dropped], labels[~dropped])
    assert abs(dropped.mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    with pytest.raises(ValueError, match="cond"):
        seen(loss, {"x": batch["x"], "cond": None})
    # The null label stands for no vector: it is not written into one, nor into the members of a condition.
    for other in ({"label": labels, "vector": np.ones((4000, 2), np.float32)}, np.ones((4000, 2), np.float32), {"label": labels}):
        with pytest.raises(
            ValueError, match=r'batch\["cond"\] is (dict|float32): expected one array of integer .*condition_dropout'
        ):
            loss.draw(jax.random.key(0), {"x": batch["x"], "cond": other})


def test_condition_dropout_drops_each_member_by_itself_and_all_together():
    """Each of the eight patterns as often as the product of probabilities says, and what is dropped is exactly the null."""
    n, rates, together = 40_000, {"label": 0.1, "vector": 0.3}, 0.2
    condition = Composite(label=Label(10), vector=Vector(2), image=Image(1))
    rng = np.random.default_rng(0)
    cond = {
        "label": rng.integers(10, size=n).astype(np.int32),
        "vector": rng.normal(size=(n, 2)).astype(np.float32),
        "image": rng.normal(size=(n, 1, 1, 1)).astype(np.float32),
    }
    dropout = L.ConditionDropout(condition=condition, rates=rates, together=together)
    loss = L.DenoisingScoreMatching(PROCESSES["edm"], condition_dropout=dropout)
    found = jax.device_get(jax.jit(loss.draw)(jax.random.key(0), {"x": np.zeros((n, 1), np.float32), "cond": cond}).cond)
    null = {"label": found["label"] == 10} | {name: np.isnan(found[name]).reshape(n, -1).all(1) for name in ("vector", "image")}
    for name, value in cond.items():
        np.testing.assert_array_equal(found[name][~null[name]], value[~null[name]])
    for pattern in itertools.product((False, True), repeat=3):
        each = {"image": 0.0, **rates}
        p = (1 - together) * math.prod(each[k] if gone else 1 - each[k] for k, gone in zip(null, pattern, strict=True))
        p += together * all(pattern)
        share = np.mean(np.all([null[k] == gone for k, gone in zip(null, pattern, strict=True)], axis=0))
        # Four binomial standard errors; none at all where the probability is 0.
        assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / n), pattern
    assert dropout.unconditional == pytest.approx(together)
    assert (
        loss.unconditional == L.Regularised(loss, ((lambda model, noised: noised.t, 1.0),)).unconditional == dropout.unconditional
    )


def test_condition_dropout_of_a_label_is_label_dropout():
    batch = {"x": np.zeros((64, 1), np.float32), "cond": np.arange(64, dtype=np.int32) % 10}
    short = L.DenoisingScoreMatching(PROCESSES["edm"], label_dropout=0.25, null_label=10)
    long = L.DenoisingScoreMatching(PROCESSES["edm"], condition_dropout=L.ConditionDropout(condition=Label(10), rate=0.25))
    np.testing.assert_array_equal(short.draw(jax.random.key(1), batch).cond, long.draw(jax.random.key(1), batch).cond)
    assert short.unconditional == long.unconditional == 0.25


def test_a_condition_dropout_that_does_not_fit_is_named():
    both = Composite(label=Label(10), image=Image(1))
    for make, match in [
        (lambda: L.ConditionDropout(condition=Label(10), rates=(("label", 0.1),)), r"ConditionDropout\.rates = .*expected \(\)"),
        (lambda: L.ConditionDropout(condition=both, rate=0.1), r"ConditionDropout\.rate = 0\.1"),
        *(
            (
                lambda bad=bad: L.ConditionDropout(condition=both, rates=bad),
                r"ConditionDropout\.rates = .*: expected pairs such as \(\('image', 0\.1\),\), .* names \['image', 'label'\]",
            )
            for bad in (0.1, (0.1, 0.2), ("label", 0.1), None)
        ),
        (
            lambda: L.ConditionDropout(condition=Label(10), rates=0.1),
            r"ConditionDropout\.rates = 0\.1 of .*: expected \(\), and a rate",
        ),
        (lambda: L.ConditionDropout(condition=both, rates={"labels": 0.1}), r"has 'labels': expected each of \['image', 'label'\]"),
        (lambda: L.ConditionDropout(condition=both, rates={"label": 1.5}), r"rates\['label'\]\.rate = 1\.5"),
        (
            lambda: L.DenoisingScoreMatching(
                PROCESSES["edm"],
                label_dropout=0.1,
                null_label=10,
                condition_dropout=L.ConditionDropout(condition=Label(10), rate=0.1),
            ),
            "beside condition_dropout: expected 0 and None",
        ),
    ]:
        with pytest.raises(ValueError, match=match):
            make()


def test_specs_are_hashable_values_that_validate():
    process = PROCESSES["edm"]
    a, b = (L.DenoisingScoreMatching(process, times=L.LogNormalTimes(mean=-1.0)) for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
    for spec in (*WEIGHTINGS.values(), *TIMES.values()):
        hash(spec)
    for make, match in [
        (lambda: L.EDMWeighting(data_std=0.0), "EDMWeighting.data_std"),
        (lambda: L.MinSNR(gamma=-1.0), "MinSNR.gamma"),
        (lambda: L.TruncatedSNR(floor=0.0), "TruncatedSNR.floor"),
        (lambda: L.LogNormalTimes(std=0.0), "LogNormalTimes.std"),
        (lambda: L.UniformLogSNRTimes(log_snr_min=1.0, log_snr_max=0.0), "log_snr_min"),
        (lambda: L.DenoisingScoreMatching(process, label_dropout=1.5), "label_dropout"),
        (lambda: L.DenoisingScoreMatching(process, label_dropout=0.1), "null_label"),
        (lambda: L.UniformLogSNRTimes()(jax.random.key(0), PROCESSES["flow"], 4), "finite"),
    ]:
        with pytest.raises(ValueError, match=match):
            make()
    with pytest.raises(TypeError, match="process"):
        L.DenoisingScoreMatching("vp")
    with pytest.raises(TypeError, match="times"):
        L.DenoisingScoreMatching(process, times="uniform")
    with pytest.raises(TypeError, match="uint8"):
        a(jax.random.key(0), gaussian_model(process, 1.0), {"x": jnp.zeros((2, 1), jnp.uint8)})
