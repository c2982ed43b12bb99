"""Best of N."""

import numpy as np
import pytest

from scorelab import search


def test_best_of_takes_the_largest_of_each_group():
    x = np.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(search.best_of(x, np.array([0.0, 3.0, 1.0, -5.0, -2.0, -2.0]), 3), x[[1, 4]])
    np.testing.assert_array_equal(search.best_of(x, np.array([0.0, np.nan, 1.0, -5.0, -7.0, np.nan]), 2), x[[0, 2, 4]])
    parts = search.best_of(dict(point=x, label=np.arange(6)), np.array([0.0, 3.0, 1.0, -5.0, -2.0, -2.0]), 3)
    np.testing.assert_array_equal(parts["label"], [1, 4])
    np.testing.assert_array_equal(parts["point"], x[[1, 4]])
    with pytest.raises(ValueError, match="rewards has shape"):
        search.best_of(x, x, 3)
    with pytest.raises(ValueError, match="particles = 4: expected a divisor of the 6"):
        search.best_of(x, x[:, 0], 4)
