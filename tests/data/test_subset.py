"""A few rows of a data set."""

import numpy as np
import pytest

from scorelab.data import Moments, Named, Subset
from scorelab.data.couplings import Independent

DIGITS = Named(name="digits")


def test_a_subset_is_rows_of_the_training_split_and_the_others_are_whole():
    whole, few, more = DIGITS.load(), Subset(source=DIGITS, n=50), Subset(source=DIGITS, n=200)
    small, large = few.load(), more.load()
    assert (len(small), small.name, small.split, small.levels, small.num_classes) == (50, "digits-50", "train", 17, 10)
    np.testing.assert_array_equal(small.x, large.x[:50])
    rows = {row.tobytes(): label for row, label in zip(whole.x, whole.label, strict=True)}
    assert all(rows[row.tobytes()] == label for row, label in zip(large.x, large.label, strict=True))
    # The split is sorted by class; two hundred rows in a random order have all of them.
    assert len(np.unique(large.label)) == 10
    assert few.load("test").sha256 == DIGITS.load("test").sha256
    assert Subset(source=DIGITS, n=50, seed=1).load().sha256 != small.sha256
    assert few.known_as == ("digits-50", "digits")
    assert Subset(source=DIGITS, n=50, seed=3).name == "digits-50-3"


def test_batches_are_of_these_rows_and_their_arrays():
    few = Subset(source=Moments(source=DIGITS), n=10)
    arrays, batch = few.load(), few.batches(10, 0).at(0)
    order = lambda x: np.sort(x.reshape(10, -1).sum(1))
    np.testing.assert_array_equal(order(batch["x"]), order(arrays.x))
    np.testing.assert_allclose(order(batch["moments"]), order(Moments(source=DIGITS).of(arrays.x, 17)), rtol=1e-6)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Subset(source=DIGITS, n=0), r"Subset\.n = 0"),
        (lambda: Subset(source=DIGITS, n=1501).load(), r"Subset\.n = 1501 of digits: expected at most 1500"),
        (lambda: Subset(source=DIGITS, n=5, seed=-1), r"Subset\.seed = -1"),
        (lambda: Subset(source=Independent(), n=5), r"Subset\.source = Independent"),
        (lambda: Subset(source=DIGITS, n=5).load("valid"), r"'valid': expected one of train, test"),
    ],
)
def test_errors(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()
