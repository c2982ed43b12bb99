"""The sets themselves: what is embedded, what is generated, and the real files where they are at hand."""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from scorelab import densities
from scorelab.data import Arrays, DataNotFound, load, names

TOYS = ("eight_gaussians", "rings", "swiss_roll", "checkerboard", "pinwheel", "two_moons")


def test_digits_splits_partition_the_source_by_class():
    train, test = load("digits"), load("digits", "test")
    assert (len(train), len(test), train.levels, train.event_shape) == (1500, 297, 17, (8, 8, 1))
    source = load_digits()
    both = np.concatenate([train.x, test.x]).reshape(1797, -1)
    np.testing.assert_array_equal(np.unique(both, axis=0), np.unique(source.data.astype(np.uint8), axis=0))
    share = np.bincount(source.target) * 297 / 1797
    # Systematic picking from the list sorted by class is within one of every class's share, by construction.
    assert np.abs(np.bincount(test.label) - share).max() < 1
    np.testing.assert_array_equal(np.bincount(train.label) + np.bincount(test.label), np.bincount(source.target))


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_functions_of_their_seed_and_split(name):
    a = load(name, n=1000, seed=3)
    assert (a.x.shape, a.x.dtype, a.levels, a.label) == ((1000, 2), np.float32, None, None)
    assert a.sha256 == load(name, n=1000, seed=3).sha256
    assert a.sha256 != load(name, n=1000, seed=4).sha256
    assert a.sha256 != load(name, "test", n=1000, seed=3).sha256
    assert np.abs(a.x).max() < 6


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("eight_gaussians", densities.eight_gaussians),
        ("rings", densities.Rings),
        ("swiss_roll", densities.swiss_roll),
        ("checkerboard", densities.checkerboard),
        ("pinwheel", densities.pinwheel),
        ("on_torus", densities.on_torus),
        ("on_sphere", densities.on_sphere),
        ("on_rotations", densities.on_rotations),
        ("on_product", densities.on_product),
    ],
)
def test_toys_come_from_the_law_of_their_name(name, law):
    """No point outside the support, and E log p over the set equals E log p over the law's own samples."""
    n = 1000
    density = law()
    ours = np.asarray(density.log_prob(jnp.asarray(load(name, n=n, seed=0).x)), np.float64)
    theirs = np.asarray(density.log_prob(density.sample(jax.random.key(9), n)), np.float64)
    assert np.isfinite(ours).all()
    # Five standard errors of the difference; float32 rounding of a constant log-density comes on top.
    error = np.sqrt((ours.var() + theirs.var()) / n)
    assert abs(ours.mean() - theirs.mean()) < 5 * error + 1e-5


def test_the_regimes_are_draws_of_their_law():
    x = load("regimes", n=4000, seed=1).x
    assert (x.shape, x.dtype) == ((4000, 16, 16, 1), np.float32)
    law = densities.regimes()
    first = np.asarray(law.responsibilities(x)[0], np.float64)
    # The regimes hardly overlap: the share has the deviation of a coin.
    assert abs(first.mean() - 0.6) < 4 * np.sqrt(0.24 / 4000)
    # Shares and means alone: 0.6 * 0.7 - 0.4 * 0.7 of the wave, and a variance about 0.64 + 0.96 * 0.7^2 / 2 of a point.
    wave = np.cos(np.pi / 2 * np.arange(16))[:, None, None]
    along = np.mean(x * wave, (1, 2, 3)) / np.mean(wave**2)
    assert abs(along.mean() - 0.14) < 4 * along.std() / np.sqrt(4000)
    assert law.scale() == pytest.approx((0.14 / np.sqrt(2), np.sqrt(0.64 + 0.96 * 0.49 / 2)), rel=1e-5)
    # A wave of period four has the average 0 over every block of four.
    np.testing.assert_allclose(np.asarray(law.components.mean).reshape(2, 4, 4, 16).mean(2), 0, atol=1e-6)


def test_two_moons_lie_on_their_arcs():
    x = load("two_moons", n=4000, seed=0).x
    to_arc = [np.abs(np.linalg.norm(x - c, axis=1) - 1) for c in ((-0.5, -0.25), (0.5, 0.25))]
    # Radial noise of deviation 0.08: beyond 5 deviations one point in 1.7 million.
    assert np.minimum(*to_arc).max() < 0.4
    # By the symmetry (x, y) -> (-x, -y) of the law the mean is zero; standard error below 1 / sqrt(4000).
    assert np.abs(x.mean(0)).max() < 5 / np.sqrt(4000)


@pytest.mark.parametrize("name", ["concentrations", "synaptic_weights"])
def test_log_normal_sets_have_the_moments_of_their_law(name):
    """Mean and covariance of log |x| against the mixture's, within 4 standard errors; signs fixed by the coordinate."""
    n = 20000
    x = load(name, n=n, seed=0).x
    made = getattr(densities, name)()
    signs, law = made if isinstance(made, tuple) else (np.ones(2), made)
    assert (x.shape, x.dtype) == ((n, len(signs)), np.float32)
    np.testing.assert_array_equal(np.sign(x), np.broadcast_to(signs, x.shape))
    assert not np.array_equal(x, load(name, "test", n=n, seed=0).x)

    weights, parts = np.asarray(law.weights, np.float64), law.logs.components
    means = np.asarray(parts.mean, np.float64)
    covs = np.asarray(jax.vmap(lambda part: part.covariance())(parts), np.float64)
    mean = weights @ means
    centred = means - mean
    cov = np.einsum("k,kij->ij", weights, covs + centred[:, :, None] * centred[:, None, :])

    logs = np.log(np.abs(x, dtype=np.float64))
    assert (np.abs(logs.mean(0) - mean) < 4 * logs.std(0) / np.sqrt(n)).all()
    products = (logs - mean)[:, :, None] * (logs - mean)[:, None, :]
    assert (np.abs(products.mean(0) - cov) < 4 * products.std(0) / np.sqrt(n)).all()


def test_the_sets_of_positive_data_are_what_their_docs_say():
    x = load("concentrations", n=20000, seed=0).x
    logs = np.log(x)
    # Normal logs have excess kurtosis 0 with standard error sqrt(24 / n) = 0.035.
    assert (((logs - logs.mean(0)) ** 4).mean(0) / logs.var(0) ** 2 > 4).all()
    assert np.corrcoef(logs.T)[0, 1] > 0.6
    weights = load("synaptic_weights", n=20000, seed=0).x
    # Equal deviations, means of the logs that differ by 1: inhibitory synapses are e times stronger.
    ratio = -weights[:, 12:].mean() / weights[:, :12].mean()
    assert abs(ratio - np.e) < 0.1
    with pytest.raises(ValueError, match="inhibitory = 0: expected at least 1"):
        densities.synaptic_weights(inhibitory=0)
    signs, law = densities.synaptic_weights(excitatory=2, inhibitory=3)
    assert (signs.tolist(), law.event) == ([1, 1, -1, -1, -1], (5,))


def test_requests_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"name = 'mnst'.*digits.*Did you mean mnist\?"):
        load("mnst")
    with pytest.raises(ValueError, match=r"digits.split = 'valid'.*train, test"):
        load("digits", "valid")
    with pytest.raises(ValueError, match="n = 5 for digits"):
        load("digits", n=5)
    with pytest.raises(ValueError, match="seed = 5 for mnist"):
        load("mnist", seed=5)
    for n in (0, 2.5, -3):
        with pytest.raises(ValueError, match=rf"load.n = {n}: expected an integer >= 1"):
            load("rings", n=n)
    for name, size in (("rings", 2), ("synaptic_weights", 16)):
        assert load(name, n=3).x.shape == (3, size)
        # Four float32 arrays of 10^12 points: refused by name, where an allocation would end the process.
        with pytest.raises(ValueError, match=rf"{name} with n = 1000000000000 takes {16e12 * size:.3g} bytes".replace("+", r"\+")):
            load(name, n=10**12)
    assert set(TOYS) < set(names())


def test_arrays_are_read_only_and_validated():
    x = np.zeros((3, 2, 2, 1), np.uint8)
    label = np.array([0, 1, 2], np.int32)
    arrays = Arrays(x=x, label=label, name="a", split="train", num_classes=3, levels=4)
    assert arrays.sha256 == hashlib.sha256(x.tobytes() + label.tobytes()).hexdigest()
    with pytest.raises(ValueError, match="read-only"):
        arrays.x[0] = 1
    x[0] = 1
    with pytest.raises(ValueError, match="value 9"):
        Arrays(x=np.full((1, 1, 1, 1), 9, np.uint8), name="a", split="train", levels=4)
    with pytest.raises(ValueError, match="label is int64"):
        Arrays(x=x, label=label.astype(np.int64), name="a", split="train", levels=4)
    with pytest.raises(ValueError, match="x is float64"):
        Arrays(x=np.zeros((2, 2)), name="a", split="train")
    for wrong in (-4, 3):
        with pytest.raises(ValueError, match=r"label has values from .*: expected 0 to num_classes - 1 = 2"):
            Arrays(x=x, label=np.array([0, 1, wrong], np.int32), name="a", split="train", num_classes=3, levels=4)
    with pytest.raises(ValueError, match="x has 1 rows that are not finite, the first is row 1"):
        Arrays(x=np.array([[0, 0], [0, np.nan]], np.float32), name="a", split="train")


# Image counts, class counts and pixel moments as published with the sets.
@pytest.mark.parametrize(
    ("name", "split", "size", "mean", "std"),
    [
        ("mnist", "train", 60000, 0.1307, 0.3081),
        ("mnist", "test", 10000, None, None),
        ("fashion_mnist", "train", 60000, 0.2860, 0.3530),
        ("fashion_mnist", "test", 10000, None, None),
        ("kmnist", "test", 10000, None, None),
    ],
)
def test_real_files(real_data_dir, name, split, size, mean, std):
    arrays = load(name, split, data_dir=real_data_dir, download=False)
    assert arrays.x.shape == (size, 28, 28, 1)
    assert np.bincount(arrays.label, minlength=10).sum() == size
    assert arrays.label.min() == 0
    assert arrays.label.max() == 9
    if mean is not None:
        # The published moments carry four digits.
        assert abs(arrays.x.mean() / 255 - mean) < 5.1e-5
        assert abs(arrays.x.std() / 255 - std) < 5.1e-5


def test_real_cifar_subset_has_no_labels(real_data_dir):
    arrays = load("cifar10_subset", data_dir=real_data_dir, download=False)
    assert arrays.x.shape == (4000, 32, 32, 3)
    assert arrays.label is None


def test_a_complete_split_is_served_while_another_misses_a_file(real_data_dir, tmp_path):
    here = tmp_path / "kmnist"
    here.mkdir()
    for path in (Path(real_data_dir) / "kmnist").glob("*.gz"):
        if not path.name.startswith("train-images"):
            (here / path.name).symlink_to(path)
    assert len(load("kmnist", "test", data_dir=tmp_path, download=False)) == 10000
    with pytest.raises(DataNotFound, match=r"kmnist: file train-images-idx3-ubyte\.gz is missing"):
        load("kmnist", "train", data_dir=tmp_path, download=False)
