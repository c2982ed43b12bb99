import numpy as np
import pytest

from scorelab import viz

X = np.array([10.0, 20.0, 40.0])


def test_lines_and_panels_are_the_same_twice():
    def figures():
        yield viz.lines({"one": (X, 1 / X)}, logx=True, logy=True, xlabel="steps", ylabel="error", markers=True)
        yield viz.lines({"paths": (X, np.ones((3, 5))), "mean": (X, X * np.nan)}, reference=["mean"], title="paths")
        contents = [viz.Panel(series={"a": (X, X)}), viz.Panel(series={"b": (X, X), "a": (X, X)}), viz.Panel(series={})]
        yield viz.panels(contents, columns=2, share_y=True, widths=[2, 1])

    for first, second in zip(figures(), figures(), strict=True):
        png = viz.to_png_bytes(first)
        assert png.startswith(b"\x89PNG")
        assert viz.to_png_bytes(second) == png


def test_a_name_has_one_colour_everywhere_and_a_reference_is_set_apart():
    contents = [viz.Panel(series={"exact": (X, X), "a": (X, X)}), viz.Panel(series={"b": (X, X), "a": (X, 2 * X)})]
    first, second = viz.panels(contents, reference=["exact"]).axes
    exact, a = first.get_lines()
    b, a_again = second.get_lines()
    assert a.get_color() == a_again.get_color()
    assert len({exact.get_color(), a.get_color(), b.get_color()}) == 3
    assert (exact.get_linestyle(), a.get_linestyle()) == ("--", "-")


def test_the_mean_of_columns_is_the_line_and_each_of_them_dots():
    y = np.stack([X, 3 * X], axis=1)
    *dots, line = viz.lines({"one": (X, y)}, mean=True).axes[0].get_lines()
    np.testing.assert_array_equal(line.get_ydata(), 2 * X)
    np.testing.assert_array_equal(np.stack([d.get_ydata() for d in dots], axis=1), y)
    assert [d.get_linestyle() for d in (*dots, line)] == ["None", "None", "-"]
    assert len({d.get_color() for d in (*dots, line)}) == 1


def test_few_values_on_a_logarithmic_axis_are_named():
    axes = viz.lines({"one": (X, X)}, logx=True).axes[0]
    np.testing.assert_array_equal(axes.get_xticks(), X)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "20", "40"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: viz.lines({"one": (X, X[:2])}), r"'one' has x \(3,\) and y \(2,\)"),
        (lambda: viz.panels([]), "at least one"),
    ],
)
def test_errors_say_what_is_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
