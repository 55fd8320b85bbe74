"""What the plots draw: data, axes and words, not pixels."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import LogNorm, to_hex, to_rgb

from gradflow.present import plots
from gradflow.present.plots import profiles
from gradflow.present.saliency.attribution import Attribution

BLOCKS = [f"layer{i}.{j}.conv{k}.weight" for i in (1, 2) for j in (0, 1) for k in (1, 2)]
LAYERS = ("conv1.weight", *BLOCKS, "fc.weight")
STEPS = np.arange(5)


def profile(layers, values):
    """One value for each layer: the band of a single seed."""
    return plots.profile_bands_plot({"net": (layers, values, values, values)}, "norm", "")


def table(n_steps: int = 5) -> np.ndarray:
    return np.logspace(-3, 2, n_steps * len(LAYERS)).reshape(n_steps, len(LAYERS))


def pixels_of(ax):
    """The (layers, steps) array behind the heat map."""
    (image,) = [child for child in ax.get_children() if type(child).__name__ in IMAGES]
    return image


IMAGES = ("AxesImage", "PcolorImage", "QuadMesh")


# -- depth profile -----------------------------------------------------------------------------


def test_a_band_reaches_from_the_lowest_to_the_highest_seed_in_true_values():
    logs = np.array([[0.0, -1.0, np.nan], [-0.5, -2.0, np.nan], [0.5, 0.0, np.nan]])
    mean, low, high = 10**logs
    names = ("conv1", "layer1.0.conv1", "fc")
    ax = plots.profile_bands_plot({"net": (names, mean, low, high)}, "δ (loss)", "title")
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_ydata(), [1.0, 0.1, np.nan])
    np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
    edges = ax.collections[0].get_paths()[0].vertices
    for place, least, most in ((0, 10**-0.5, 10**0.5), (1, 0.01, 1.0)):
        at = edges[edges[:, 0] == place, 1]
        assert (at.min(), at.max()) == pytest.approx((least, most))
    assert (ax.get_yscale(), ax.get_ylabel(), ax.get_title()) == ("log", "δ (loss)", "title")
    shares = np.array([0.5, 0.25, 0.0])
    ax = plots.profile_bands_plot({"net": (names, *3 * [shares])}, "share", "", log=False)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), shares)
    assert (ax.get_yscale(), ax.get_ylim()[0]) == ("linear", 0.0)


def test_the_ticks_of_a_profile_are_the_beginnings_of_the_stages():
    ax = profile(LAYERS, np.ones(len(LAYERS)))
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names == ["conv1", "layer1.0.conv1", "layer2.0.conv1", "fc"]
    assert ax.get_xticks().tolist() == [0, 1, 5, 9]


def test_zero_and_nan_leave_a_gap_in_a_profile(tmp_path):
    values = np.array([1.0, 0.0, np.nan, 1e-3])
    ax = profile(tuple("abcd"), values)
    assert plots.save(ax, tmp_path / "profile.png").exists()
    low, high = ax.get_ylim()
    assert 1e-4 < low < 1e-3
    assert 1 < high < 10


# -- heat map ----------------------------------------------------------------------------------


def test_a_heat_map_has_the_input_at_the_top_and_logarithmic_colours():
    values = table()
    ax = plots.layer_step_heatmap(values, STEPS, LAYERS, "gradient norm (loss/weight)")
    image = pixels_of(ax)
    np.testing.assert_allclose(image.get_array(), values.T)
    assert isinstance(image.norm, LogNorm)
    assert (image.norm.vmin, image.norm.vmax) == (values.min(), values.max())
    assert ax.get_ylim() == (len(LAYERS) - 0.5, -0.5)  # the first layer, 0, is uppermost
    assert ax.get_yticklabels()[0].get_text() == "conv1"
    assert ax.get_xlabel() == "optimizer step"
    colorbar = plots.figure_of(ax).axes[1]
    assert colorbar.get_ylabel() == "gradient norm (loss/weight)"


def test_zero_nan_and_inf_are_grey_and_explained():
    values = table()
    values[0, 0], values[1, 1], values[2, 2] = 0, np.nan, np.inf
    ax = plots.layer_step_heatmap(values, STEPS, LAYERS, "norm")
    image = pixels_of(ax)
    assert np.ma.getmaskarray(image.get_array()).sum() == 3
    assert np.isfinite(image.norm.vmax)
    grey = image.cmap.get_bad()[:3]
    np.testing.assert_allclose(grey, to_rgb(plots.NO_VALUE), atol=1e-6)
    assert to_hex(grey) not in {to_hex(color) for color in image.cmap(np.arange(256))}
    assert ax.get_legend().get_texts()[0].get_text() == "no value (0, NaN, inf)"
    assert plots.layer_step_heatmap(table(), STEPS, LAYERS, "norm").get_legend() is None


def test_a_long_trace_is_drawn_in_at_most_2000_columns():
    n = 4001
    values = np.arange(1.0, n + 1)[:, None] * np.ones(2)
    ax = plots.layer_step_heatmap(values, np.arange(n), ("a", "b"), "norm")
    drawn = pixels_of(ax).get_array()
    assert drawn.shape == (2, 1334)
    np.testing.assert_array_equal(drawn[0], values[::3, 0])  # steps are picked, not averaged
    assert "1 of 3" in ax.get_title()


def test_uneven_steps_stand_where_they_belong():
    """With steps 0, 1 and 10 the last column begins halfway, at 5.5."""
    np.testing.assert_allclose(profiles._edges(np.array([0, 1, 10])), [-0.5, 0.5, 5.5, 14.5])
    ax = plots.layer_step_heatmap(np.ones((3, 1)), np.array([0, 1, 10]), ("a",), "norm")
    assert ax.get_xlim() == (-0.5, 14.5)


def test_a_table_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(steps, layers\) = \(5, 10\), but got \(10, 5\)"):
        plots.layer_step_heatmap(table().T, STEPS, LAYERS, "norm")


# -- the look of a network ---------------------------------------------------------------------


def test_an_architecture_has_one_style_whatever_else_is_drawn():
    from gradflow.nets import NETWORKS
    from gradflow.present.plots.style import OF_ARCHITECTURE, STYLES

    assert len({OF_ARCHITECTURE[name] for name in NETWORKS}) == len(NETWORKS)
    runs = [f"{arch}-s{seed}" for seed in range(3) for arch in ("plain_34", "resnet_34")]
    for names in (runs, runs[::-1], runs[5:], ["mine", *runs]):
        numbers = plots.style_numbers(names)
        for name in runs:
            if name in numbers:
                assert numbers[name] == OF_ARCHITECTURE[name[:-3]]
    assert len(set(plots.style_numbers(["a", "resnet_34", "b", "plain_34", "c"]).values())) == 5
    assert plots.style_numbers(map(str, range(7)))["6"] < len(STYLES)


def test_a_legend_stands_beside_the_axes():
    bands = {name: (LAYERS, *np.ones((3, len(LAYERS)))) for name in ("plain_34", "resnet_34")}
    ax = plots.profile_bands_plot(bands, "g", "title")
    figure = plots.figure_of(ax)
    figure.draw_without_rendering()
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1
    assert ax.get_legend().get_window_extent().x1 <= figure.bbox.x1


def test_a_line_joins_activations_of_one_kind_only():
    layers = ["relu", *(f"{block}.relu{i}" for block in range(4) for i in (1, 2))]
    values = np.where([name.endswith("2") for name in layers], 1.0, 0.1)
    bands = {"net": (layers, values, values, values)}
    ax = plots.profile_bands_plot(bands, "share", "", log=False, by_kind=True)
    found = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert found["net, relu1"][:, 0].tolist() == [0, 1, 3, 5, 7]
    assert found["net, relu2"].tolist() == [[2, 1], [4, 1], [6, 1], [8, 1]]
    for one_kind in (["0", "1", "2"], ["a.act", "b.act", "c.act"], ["x", "y"], []):
        assert list(plots.kinds_of_layers(one_kind)) == [""]


# -- saliency grid -----------------------------------------------------------------------------


def attribution(classes, probabilities, maps) -> Attribution:
    shown = tuple(range(len(classes)))
    return Attribution("gradcam", "layer4.2", tuple(classes), probabilities, maps, shown)


def maps_of(n: int, best: int = 0) -> Attribution:
    probabilities = np.full(n, 0.5 / (n - 1))
    probabilities[best] = 0.5
    maps = np.random.default_rng(0).random((n, 8, 8))
    return attribution([f"class_{i}" for i in range(n)], probabilities, maps)


PHOTO = np.full((16, 16, 3), 128, np.uint8)


@pytest.mark.parametrize(("n", "n_rows"), [(2, 1), (5, 1), (6, 2), (10, 2), (12, 3)])
def test_a_grid_has_one_map_per_class_five_in_a_row(n, n_rows):
    (axes,) = plots.saliency_grid(PHOTO, {"net": maps_of(n)})
    assert len(axes) == 1 + n
    assert {ax.get_subplotspec().rowspan.start for ax in axes} == set(range(n_rows))
    assert [ax.get_title().split("\n")[0] for ax in axes[1:]] == [f"class_{i}" for i in range(n)]


def test_networks_stand_below_each_other_and_the_predicted_class_is_framed():
    grid = plots.saliency_grid(PHOTO, {"plain": maps_of(3, best=2), "res": maps_of(3, best=0)})
    titles = [axes[0].get_title() for axes in grid]
    assert titles == ["plain:\nclass_2 50.0 %", "res:\nclass_0 50.0 %"]
    framed = [[ax.spines["left"].get_visible() for ax in axes[1:]] for axes in grid]
    assert framed == [[False, False, True], [True, False, False]]
    assert "gradcam at layer4.2" in plots.figure_of(grid[0][0]).get_suptitle()


def test_a_map_lies_over_the_whole_photograph_with_its_own_values():
    maps = maps_of(2)
    (axes,) = plots.saliency_grid(PHOTO, {"net": maps})
    photo, overlay = axes[1].images
    assert list(photo.get_extent()) == list(overlay.get_extent())
    np.testing.assert_array_equal(overlay.get_array(), maps.maps[0])
    assert overlay.norm.vmin == 0
    assert overlay.norm.vmax == pytest.approx(np.percentile(maps.maps[0], 99))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_map_without_a_positive_value_leaves_the_photograph_bare(value, tmp_path):
    maps = maps_of(2)
    maps.maps[0] = value
    (axes,) = plots.saliency_grid(PHOTO, {"net": maps})
    assert len(axes[1].images) == 1
    assert axes[1].texts[0].get_text() == "no map: nothing above zero"
    assert len(axes[2].images) == 2
    plots.save(axes, tmp_path / "grid.png")


def test_a_map_that_failed_a_check_says_so_on_the_picture():
    failed = replace(maps_of(2), notes=("fails: randomisation, insertion − deletion",))
    failed.maps[1] = 0
    axes, others = plots.saliency_grid(PHOTO, {"net": failed, "other": maps_of(2)})
    assert axes[1].get_xlabel() == "fails: randomisation, insertion −\ndeletion"
    assert [text.get_text() for text in axes[2].texts] == ["no map: nothing above zero"]
    assert axes[2].get_xlabel() == others[1].get_xlabel() == ""


def test_a_class_name_is_shown_as_it_is(tmp_path):
    names = ("$x_1$", "a_class_with_a_very_long_name")
    maps = attribution(names, np.array([0.9, 0.1]), np.ones((2, 4, 4)))
    (axes,) = plots.saliency_grid(PHOTO, {"net": maps})
    assert axes[1].get_title() == "$x_1$\n90.0 %"
    assert not axes[1].title.get_parse_math()
    assert axes[2].get_title() == "a_class_with_a_\nvery_long_name\n10.0 %"


# -- files and state ---------------------------------------------------------------------------


STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".jpg": b"\xff\xd8",
          ".jpeg": b"\xff"}  # fmt: skip


@pytest.mark.parametrize("suffix", plots.FORMATS)
def test_the_same_figure_gives_the_same_file(tmp_path, suffix):
    def draw(name):
        ax = plots.layer_step_heatmap(table(), STEPS, LAYERS, "norm")
        return plots.save(ax, tmp_path / "new" / f"{name}{suffix}").read_bytes()

    first = draw("a")
    assert first == draw("b")
    assert first.startswith(STARTS[suffix])
    assert b"CreationDate" not in first


def test_drawing_does_not_load_pyplot():
    code = (
        "import sys; from gradflow.present import plots; import numpy as np;"
        "plots.profile_bands_plot({'a': (('x',), *np.ones((3, 1)))}, 'n', '');"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_pair_of_dollars_in_a_name_is_no_formula(tmp_path: Path) -> None:
    """Matplotlib would set `$x$` in italics, and fail at `$\\foo{$`."""
    names = ("$x$", "$\\foo{$")
    ax = plots.confusion_plot(np.array([[3, 1], [1, 4]]), names, "$y$")
    path = plots.save(ax, tmp_path / "x.svg")
    assert all(name in path.read_text("utf-8") for name in (*names, "$y$"))
