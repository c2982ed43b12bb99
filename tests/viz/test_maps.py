"""Tables as coloured cells, scalar and vector fields: what is drawn is what was given."""

import numpy as np
import pytest

from scorelab import viz

LABELS = dict(xlabel="rank", ylabel="components", colour="share")


def drawn(figure):
    """The axes that have an image, without those of the colour bars."""
    return [axes for axes in figure.axes if axes.get_images() and axes.get_label() != "<colorbar>"]


def test_a_table_has_its_numbers_in_its_cells_under_one_scale():
    tables = {"low": np.array([[0.25, -3.0, 1.0]]), "high": np.array([[1.0, 0.5, -20.0]])}
    figure = viz.heatmaps(tables, rows=["1"], columns=["2", "4", "8"], limits=(0.0, 1.0), **LABELS)
    panels = drawn(figure)
    assert [axes.get_title(loc="left") for axes in panels] == ["low", "high"]
    for axes, table in zip(panels, tables.values(), strict=True):
        (image,) = axes.get_images()
        assert np.array_equal(np.asarray(image.get_array()), table)
        assert image.get_clim() == (0.0, 1.0)
    assert [text.get_text() for text in panels[0].texts] == [".250", "-3.000", "1.000"]
    assert [text.get_text() for text in panels[1].texts] == ["1.000", ".500", "-20"]


def test_a_field_is_its_length_and_its_direction():
    axis = np.linspace(-1, 1, 5)
    x, y = np.meshgrid(axis, axis)
    # Away from the origin, twice and once as far.
    rows = {"row": {"first": 2 * np.stack([x, y], -1), "second": np.stack([x, y], -1)}}
    figure = viz.fields(rows, axis=axis, arrows=5, points=np.zeros((1, 2)), **LABELS)
    for axes, field in zip(drawn(figure), rows["row"].values(), strict=True):
        (image,) = axes.get_images()
        assert np.allclose(np.asarray(image.get_array()), np.linalg.norm(field, axis=-1))
        # The scale of the first field, in every column.
        assert image.get_clim() == pytest.approx((0, 2 * np.sqrt(2)))
        (quiver,) = [part for part in axes.collections if hasattr(part, "U")]
        at, arrows = np.stack([quiver.X, quiver.Y], -1), np.stack([quiver.U, quiver.V], -1)
        away = np.linalg.norm(at, axis=1) > 0
        assert np.allclose(arrows[away], at[away] / np.linalg.norm(at[away], axis=1, keepdims=True))


def test_rows_of_grids_have_one_scale_each_and_one_extent():
    fine, coarse = np.arange(16.0).reshape(4, 4) - 4, np.full((2, 2), -20.0)
    rows = {"field": {"truth": fine, "averages": coarse}, "spread": {"exact": np.abs(fine)}}
    figure = viz.grids(rows, points=np.array([[0, 3], [2, 1]]), diverging=("field",))
    panels = drawn(figure)
    assert [axes.get_title() for axes in panels] == ["truth", "averages", "exact"]
    images = [axes.get_images()[0] for axes in panels]
    for image, field in zip(images, (fine, coarse, np.abs(fine)), strict=True):
        assert np.array_equal(np.asarray(image.get_array()), field)
        assert image.get_extent() == [-0.5, 3.5, 3.5, -0.5]
    assert [image.get_clim() for image in images] == [(-20, 20), (-20, 20), (0, 11)]
    # A place is (row, column): right and down.
    assert np.array_equal(panels[0].lines[0].get_xydata(), [[3, 0], [1, 2]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: viz.heatmaps({}, rows=[], columns=[], limits=(0, 1), **LABELS), "heatmaps got no table"),
        (
            lambda: viz.heatmaps({"a": np.zeros((2, 1))}, rows=["1"], columns=["1"], limits=(0, 1), **LABELS),
            r"table 'a' has shape \(2, 1\): expected \(1, 1\)",
        ),
        (lambda: viz.grids({"row": {}}), "grids got no field"),
        (lambda: viz.grids({"row": {"a": np.zeros(3)}}), r"'a' of 'row' has shape \(3,\): expected \(height, width\)"),
        (
            lambda: viz.fields({"row": {"a": np.zeros((3, 3))}}, axis=np.zeros(3), **LABELS),
            r"fields: 'a' of 'row' has shape \(3, 3\): expected \(3, 3, 2\)",
        ),
    ],
)
def test_errors_say_what_is_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
