import subprocess
import sys

import numpy as np
import pytest

from scorelab import viz


def images(n=7, channels=1, levels=17):
    return np.random.default_rng(0).integers(0, levels, (n, 8, 8, channels)).astype(np.uint8)


def figures():
    points = np.random.default_rng(0).standard_normal((50, 2))
    yield viz.image_grid(images(), levels=17, title="seven")
    yield viz.image_grid(images(3, 3, 256), columns=2, rows=["with", "without"], headings=["a", "b"])
    yield viz.scatter(points, reference=3 * points, title="points")
    yield viz.scatter_grid([[points, 2 * points], [points]], rows=["a", "b"], headings=["1", "2"], reference=3 * points)
    yield viz.loss_curve(range(50), np.geomspace(2, 0.3, 50))
    yield viz.loss_curve([1, 2, 3], [np.nan, -1.0, 2.0])
    yield viz.loss_curve([10], [0.5])
    yield viz.trajectory(np.stack([images()] * 4), ["a", "b", "c", "d"], levels=17)
    yield viz.trajectory(np.stack([points, points / 2]), ["t = 1", "t = 0"])
    yield viz.sequences(points[:48].reshape(6, 4, 4), columns=4)
    yield viz.sequences(points[:40].reshape(8, 5, 2), headings=["a", "b"], columns=2)
    yield viz.histogram({"one": points, "other": 3 * points[:20]}, normal=True)
    yield viz.histogram({"a": points, "b": [0, 1, np.inf], "c": np.exp(points)}, normal=True, log=True, columns=2, bins=10)


def test_every_figure_is_a_png_and_the_same_twice(tmp_path):
    for first, second in zip(figures(), figures(), strict=True):
        png = viz.to_png_bytes(first)
        assert png.startswith(b"\x89PNG")
        assert viz.save(second, tmp_path / "f.png").read_bytes() == png
    assert [p.name for p in tmp_path.iterdir()] == ["f.png"]


def test_clouds_in_rows_and_columns_have_the_same_axes():
    points = np.random.default_rng(0).standard_normal((50, 2))
    rows = [[points, 5 * points], [9 * points, points]]
    panels = viz.scatter_grid(rows, rows=["a", "b"], headings=["1", "2"], reference=3 * points).axes
    assert len({axes.get_xlim() + axes.get_ylim() for axes in panels}) == 1
    for axes, cloud in zip(panels, [cloud for row in rows for cloud in row], strict=True):
        under, own = axes.collections
        np.testing.assert_array_equal(under.get_offsets(), 3 * points)
        np.testing.assert_array_equal(own.get_offsets(), cloud)
    assert [axes.get_title() for axes in panels] == ["1", "2", "", ""]
    assert [axes.get_ylabel() for axes in panels] == ["a", "", "b", ""]


def test_sequences_are_lines_on_the_axes_of_the_data_or_of_their_column():
    values = np.random.default_rng(0).standard_normal((4, 6, 2)) * np.array([1, 10, 1, 10])[:, None, None]
    panels = viz.sequences(values, columns=2, reference=values[:1]).axes
    assert len({axes.get_ylim() for axes in panels}) == 1
    for axes, sequence in zip(panels, values, strict=True):
        np.testing.assert_array_equal(np.stack([line.get_ydata() for line in axes.lines], 1), sequence)
    panels = viz.sequences(values, columns=2, headings=["t = 1", "t = 0"]).axes
    limits = [axes.get_ylim()[1] for axes in panels]
    assert limits[0] == limits[2] < limits[1] == limits[3]
    assert [axes.get_title() for axes in panels] == ["t = 1", "t = 0", "", ""]
    for wrong, message in (
        (dict(values=values[0]), "values of shape"),
        (dict(values=values, headings=["a"]), "1 headings: expected 5"),
    ):
        with pytest.raises(ValueError, match=message):
            viz.sequences(**wrong)


def test_histograms_are_densities_over_common_bins():
    rng = np.random.default_rng(0)
    sets = {"a": rng.normal(1, 2, 2000), "b": rng.normal(0, 1, (100, 5))}
    axes = viz.histogram(sets, bins=40, normal=True).axes[0]
    outlines = [patch.get_data() for patch in axes.patches if not patch.get_fill()]
    assert len(outlines) == len(axes.lines) == 2
    np.testing.assert_array_equal(outlines[0].edges, outlines[1].edges)
    for outline, values, curve in zip(outlines, sets.values(), axes.lines, strict=True):
        inside = np.mean((values >= outline.edges[0]) & (values <= outline.edges[-1]))
        assert np.sum(outline.values * np.diff(outline.edges)) == pytest.approx(inside)
        at, height = curve.get_data()
        assert height.max() == pytest.approx(1 / (values.std() * np.sqrt(2 * np.pi)), rel=1e-3)
        assert at[height.argmax()] == pytest.approx(values.mean(), abs=0.02)


def test_mosaic_keeps_every_pixel():
    batch = images(5, levels=256)
    sheet = viz.mosaic(batch, columns=3, zoom=2)
    assert sheet.shape == (2 * (2 * 9 - 1), 2 * (3 * 9 - 1), 3)
    np.testing.assert_array_equal(sheet[::2, ::2][9:17, 9:17, 0], batch[4, ..., 0])
    assert (sheet[::2, ::2][9:, 18:] == 255).all()


def test_levels_span_black_to_white():
    sheet = viz.mosaic(np.array([0, 16], np.uint8).reshape(2, 1, 1, 1), levels=17, gap=0)
    np.testing.assert_array_equal(sheet[0, :, 0], [0, 255])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: viz.image_grid(images().astype(float)), "expected uint8"),
        (lambda: viz.image_grid(images(), levels=4), "levels - 1 = 3"),
        (lambda: viz.image_grid(images(3, 3, 256), columns=2, rows=["with"]), "1 rows: expected 2"),
        (lambda: viz.image_grid(images(3, 3, 256), columns=2, headings=["a"]), "1 headings: expected 2"),
        (lambda: viz.mosaic(images(0)), "at least one image"),
        (lambda: viz.scatter(np.zeros((3, 3))), r"expected \(n, 2\)"),
        (lambda: viz.scatter_grid([[np.zeros((3, 3))]], rows=["a"], headings=["b"]), r"expected \(n, 2\)"),
        (lambda: viz.scatter_grid([[np.zeros((3, 2))]], rows=["a", "b"], headings=["c"]), "got 2 rows: expected 1"),
        (lambda: viz.loss_curve([1, 2], [1.0]), "equal length"),
        (lambda: viz.histogram({}), "at least one"),
        (lambda: viz.histogram({"a": [1.0, np.nan]}), r"samples\['a'\] has 1 different finite numbers"),
        (lambda: viz.histogram({"a": [0, 1]}, bins=0), "bins = 0: expected at least 1"),
        (lambda: viz.trajectory(np.stack([images()]), ["a", "b"], levels=17), "2 headings for 1 frames"),
    ],
)
def test_errors_say_what_is_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_headings_have_room_above_the_images():
    # Drawn at all, and not cut off at the top.
    for headings in (["a", "b"], ["t 1\ns 0.8", "t 0"]):
        figure = viz.image_grid(images(3, 3, 256), columns=2, rows=["with", "without"], headings=headings)
        figure.canvas.draw()
        assert all(text.get_window_extent().y1 <= figure.bbox.y1 for text in figure.texts)


def test_matplotlib_is_imported_late_and_pyplot_never():
    code = (
        "import sys; from scorelab import viz; assert 'matplotlib' not in sys.modules;"
        "viz.loss_curve([1, 2], [1.0, 2.0]);"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
