"""Metrics of samples against data; every number comes with its extractor, its n and its floor."""

from scorelab.metrics.effective_classes import effective_classes
from scorelab.metrics.ensemble import Uniformity, crps, rank_histogram, rank_test, rmse, spread_skill
from scorelab.metrics.evaluate import report
from scorelab.metrics.features import Coordinates, Features, NetworkFeatures, RawPixels, SmallCNN, pixels, small_cnn
from scorelab.metrics.frechet import Moments, feature_moments, frechet, frechet_distance, read_moments, write_moments
from scorelab.metrics.kernel import kid, median_bandwidth, mmd, mmd2_unbiased
from scorelab.metrics.precision_recall import PrecisionRecall, precision_recall
from scorelab.metrics.spectrum import PowerSpectrum, power_spectrum, shell_average, spectral_error
from scorelab.metrics.transport import sinkhorn, sliced_wasserstein, wasserstein, wasserstein_1d
from scorelab.metrics.value import MetricValue
from scorelab.metrics.vendi import hill_number, vendi, vendi_from_kernel, vendi_from_points

__all__ = [
    "Coordinates",
    "Features",
    "MetricValue",
    "Moments",
    "NetworkFeatures",
    "PowerSpectrum",
    "PrecisionRecall",
    "RawPixels",
    "SmallCNN",
    "Uniformity",
    "crps",
    "effective_classes",
    "feature_moments",
    "frechet",
    "frechet_distance",
    "hill_number",
    "kid",
    "median_bandwidth",
    "mmd",
    "mmd2_unbiased",
    "pixels",
    "power_spectrum",
    "precision_recall",
    "rank_histogram",
    "rank_test",
    "read_moments",
    "report",
    "rmse",
    "shell_average",
    "sinkhorn",
    "sliced_wasserstein",
    "small_cnn",
    "spectral_error",
    "spread_skill",
    "vendi",
    "vendi_from_kernel",
    "vendi_from_points",
    "wasserstein",
    "wasserstein_1d",
    "write_moments",
]
