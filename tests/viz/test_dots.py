"""Dots of runs: every value is drawn, empty rows are named."""

import pytest

from scorelab import viz


def test_every_run_is_a_dot_and_the_mean_a_bar():
    figure = viz.dots({"a": [1.0, 3.0], "b": [2.0]}, xlabel="value", reference={"floor": 0.5})
    (axes,) = figure.axes
    clouds, means = axes.lines[0:4:2], axes.lines[1:4:2]
    assert [list(line.get_xdata()) for line in clouds] == [[1.0, 3.0], [2.0]]
    assert [line.get_xdata()[0] for line in means] == [2.0, 2.0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    assert viz.to_png_bytes(figure).startswith(b"\x89PNG")


def test_a_row_without_values_is_named():
    with pytest.raises(ValueError, match="'b'"):
        viz.dots({"a": [1.0], "b": []}, xlabel="value")
