"""A guidance scale that depends on the noise."""

import jax
import numpy as np
import pytest

import scorelab as sl
from scorelab.models import Autoguidance, ClassifierFreeGuidance, ExactModel, ScaleAt

EDM = sl.processes.Gaussian(schedule=sl.schedules.EDM())
GOOD, WEAK = (ExactModel(sl.densities.Gaussian(np.array([mean]), 0.5), EDM) for mean in (1.0, -1.0))
Y = np.array([[0.3], [-0.8]], np.float32)
SCALE = ScaleAt(ratios=(0.1, 1.0, 10.0), scales=(1.0, 4.0, 2.0))


# Linear in the logarithm of the ratio; outside, the ends.
@pytest.mark.parametrize(
    ("ratio", "scale"), [(0.01, 1.0), (0.1, 1.0), (np.sqrt(0.1), 2.5), (1.0, 4.0), (np.sqrt(10.0), 3.0), (50.0, 2.0)]
)
def test_the_prediction_is_that_of_the_scale_at_its_noise(ratio, scale):
    # The guided denoised mean of two Gaussian laws of one variance is that of a law with the extrapolated mean.
    law = ExactModel(sl.densities.Gaussian(np.array([-1.0 + 2.0 * scale]), 0.5), EDM)
    for guided in (
        Autoguidance(model=GOOD, weak=WEAK, scale=SCALE),
        ClassifierFreeGuidance(model=GOOD, unconditional=WEAK, scale=SCALE),
    ):
        np.testing.assert_allclose(guided(Y, ratio).denoised, law(Y, ratio).denoised, rtol=2e-5, atol=1e-5)
    # Times of its own for each sample.
    each = Autoguidance(model=GOOD, weak=WEAK, scale=SCALE)(Y, np.array([ratio, 0.1], np.float32)).denoised
    np.testing.assert_allclose(each, np.concatenate([law(Y[:1], ratio).denoised, GOOD(Y[1:], 0.1).denoised]), rtol=2e-5, atol=1e-5)


def test_other_numbers_compile_nothing_and_chunks_change_nothing():
    def drawn(scales, **options):
        guided = Autoguidance(model=GOOD, weak=WEAK, scale=ScaleAt(ratios=(0.1, 1.0, 10.0), scales=scales))
        arguments = dict(solver=sl.solvers.DDIM(), grid=sl.grids.Karras(4), key=jax.random.key(0), shape=(6, 1))
        return np.asarray(sl.sample(guided, **arguments, **options).x)

    whole = drawn((1.0, 2.0, 1.0), chunk=2)
    compiled = sl.sampling._walk._cache_size()
    assert not np.allclose(drawn((1.0, 3.0, 1.0), chunk=2), whole)
    assert sl.sampling._walk._cache_size() == compiled


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(ratios=(1.0, 0.1), scales=(1.0, 2.0)), "expected numbers above 0 that increase"),
        (dict(ratios=(0.0, 0.1), scales=(1.0, 2.0)), "expected numbers above 0 that increase"),
        (dict(ratios=(0.1, 1.0), scales=(1.0,)), "ScaleAt.scales has 1 numbers: expected 2"),
        (dict(ratios=(0.1, 1.0), scales=(1.0, np.nan)), "ScaleAt.scales = .*: expected finite numbers"),
        (dict(ratios=1.0, scales=(1.0,)), "ScaleAt.ratios = 1.0: expected finite numbers"),
    ],
)
def test_what_is_no_scale_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        ScaleAt(**fields)
