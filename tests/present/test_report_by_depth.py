"""The report's figures by depth: profiles, heat maps and angles, drawn and to be switched."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gradflow.analysis.case import Case
from gradflow.analysis.network import TrainedNetwork
from gradflow.analysis.overview import Band, Profile, bands
from gradflow.present import plots
from gradflow.present.report import interactive
from gradflow.present.report.charts_by_depth import depth_title
from gradflow.present.report.content import Report
from gradflow.present.report.depth import angles, drawn_seeds, tables
from gradflow.present.report.story import charts
from gradflow.present.section import Chart
from gradflow.record.trace import Table, Trace
from gradflow.training.rundir import RunDir
from gradflow.training.weights import build_network


def chart_of(report: Report, key: str) -> Chart:
    (chart,) = (one for one in charts(report) if one.key == key)
    return chart


def network(seed: int, steps: list[int], delta: float) -> TrainedNetwork:
    """Of three layers whose ‖∂L/∂z‖ is `delta` at every step."""
    layers = ("conv1", "conv2", "fc")
    sites = (*layers, *(f"{one}.weight" for one in layers))
    kinds = ("conv", "conv", "linear", "conv.weight", "conv.weight", "linear.weight")
    values = np.full((len(steps), len(sites)), np.nan)
    values[:, :3] = delta
    trace = Trace(np.array(steps), sites, kinds, np.ones(len(sites), np.int64),
                  {"output_grad_norm": values})  # fmt: skip
    return TrainedNetwork("net", seed, trace)


def test_every_choice_shows_one_line_per_network_or_one_heat_map(report: Report) -> None:
    profiles = interactive.gradient_profiles(report.bands, report.names)
    offered = interactive.choices(profiles)
    assert list(offered) == ["size", "window"]
    for size, window in itertools.product(*offered.values()):
        wanted = {"size": size, "window": window}.items()
        names = [one.name for one in profiles.data if wanted <= one.meta.items()]
        assert list(filter(None, names)) == list(report.names)
    first = {key: values[0] for key, values in offered.items()}
    assert all(first.items() <= one.meta.items() for one in profiles.data if one.visible)
    heat = interactive.heat_map(report.tables)
    networks, sizes = interactive.choices(heat).values()
    found = {(one.meta["network"], one.meta["size"]) for one in heat.data}
    assert len(found) == len(heat.data) == len(networks) * len(sizes)
    for size in sizes:
        scales = {(one.zmin, one.zmax) for one in heat.data if one.meta["size"] == size}
        assert len(scales) == 1, "one scale for both networks"


def test_the_layer_that_differs_most_is_marked_in_the_profile_of_its_own_measure(
    report: Report,
) -> None:
    assert report.largest_difference is not None
    layer = report.largest_difference[1].layer
    figure = interactive.gradient_profiles(report.bands, report.names, ("output_gradient", layer))
    (mark,) = (one for one in figure.data if one.name == f"differ most: {layer}")
    assert set(mark.x) == {layer}
    assert (mark.meta["size"], mark.meta["window"]) == ("output_gradient", "early")
    delta, rest = chart_of(report, "gradient-profiles").draw().axes
    named = [text.get_text() for text in delta.get_legend().get_texts()]
    assert f"differ most:\n{layer}" in named
    assert len(rest.get_legend().get_texts()) == len(report.names)


SHALLOW = ("conv1", "layer1.0.conv1", "layer2.0.conv1")
DEEP = ("conv1", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.1.conv1")


def test_layers_of_networks_of_other_depth_stand_by_their_number_from_the_input() -> None:
    """By name, plotly would put layer1.1.conv1 behind layer2.0.conv1, and the line would turn."""
    found = [
        Band(layers, *np.zeros((3, len(layers))), name, "output_gradient")
        for name, layers in (("flat", SHALLOW), ("deep", DEEP))
    ]
    mark = ("output_gradient", "layer2.0.conv1")
    figure = interactive.gradient_profiles({"early": found}, ["flat", "deep"], mark)
    lines = {one.name: one for one in figure.data if one.name}
    assert list(lines["deep"].x) == [1, 2, 3, 4, 5]
    assert list(lines["deep"].text) == list(DEEP)
    assert "%{text}" in lines["deep"].hovertemplate
    assert figure.layout.xaxis.title.text == "layer, counted from the input"
    assert list(lines["differ most: layer2.0.conv1 of flat"].x) == [3, 3]
    assert list(lines["differ most: layer2.0.conv1 of deep"].x) == [4, 4]
    by_name = {one.network: (one.layers, *3 * [10**one.mean]) for one in found}
    ax = plots.profile_bands_plot(by_name, "δ", "", mark=("layer2.0.conv1", "differ most"))
    at = {line.get_label(): line.get_xdata()[0] for line in ax.lines}
    assert (at["differ most of flat"], at["differ most of deep"]) == (2, 3)
    assert ax.xaxis.get_major_formatter()(at["differ most of deep"], 0) == "4", "counted from 1"


def test_a_profile_shows_true_values_between_its_seeds() -> None:
    logs = np.array([[0.0, -1.0], [-0.5, -2.0], [0.5, 0.0]])  # mean, low, high
    band = Band(SHALLOW[:2], *logs, "net", "output_gradient")
    figure = interactive.gradient_profiles({"early": [band]}, ["net"])
    low, high, mean = (np.asarray(one.y, float) for one in figure.data)
    np.testing.assert_allclose(mean, [1.0, 0.1])
    np.testing.assert_allclose(low, [10**-0.5, 0.01])
    np.testing.assert_allclose(high, [10**0.5, 1.0])
    assert figure.data[1].fill == "tonexty", "the band lies between the two lines before"
    np.testing.assert_allclose(figure.data[2].customdata, np.stack([low, high], axis=-1))
    assert figure.layout.yaxis.type == "log"


def test_a_layer_that_is_dead_in_one_seed_keeps_the_profile_of_the_others() -> None:
    dead, alive = network(0, [0, 1], 0.0), network(1, [0, 1], 0.1)
    (band,) = bands(Case((dead, alive)), "whole")
    np.testing.assert_allclose([band.mean, band.low, band.high], -1.0)


def test_a_layer_that_is_not_finite_is_left_out_of_titles_and_axes(report: Report) -> None:
    values = np.array([np.nan, 0.3, np.inf])
    one = Profile(("conv1", "conv2", "fc"), values, values, values)
    found = {"angle_from_start": {"plain_18": one}}
    chart = chart_of(replace(report, updates=found), "angle-from-start")
    assert chart.title.endswith("most in plain_18 at conv2 (0.3)")
    assert chart.interact is not None
    figure = chart.interact()
    assert "angle-from-start" in interactive.to_html("angle-from-start", figure)
    assert figure.layout.yaxis.range == pytest.approx((0, 0.315))
    plots.to_svg(chart.draw())
    nothing = replace(one, mean=np.full(3, np.nan))
    assert depth_title({"net": nothing}, "angle") == "Angle: none in any layer"


def test_channels_off_in_a_step_stand_in_until_a_window_is_full(report: Report) -> None:
    assert "output_dead_window" not in report.activations, "6 steps fill no window of 16"
    assert set(report.activations["output_dead_fraction"]) == set(report.names)


def test_a_heat_map_is_thinned_for_drawing_which_it_says_and_the_numbers_are_not(
    report: Report,
) -> None:
    """Of 1000 steps every third is drawn; b is larger than a, but at the others alone."""
    values = np.ones((1000, 2))
    values[1::3, 1] = 100.0
    table = Table(np.arange(1000), ("a", "b"), values)
    shown = {("net", "output_gradient"): table}
    chart = chart_of(replace(report, tables=shown), "gradient-heat-map")
    assert chart.title.endswith("of net is largest at b and smallest at a")
    assert "334 of 1000 recorded steps are drawn" in chart.caption
    drawn = chart.draw().axes[0].images[0].get_array()
    np.testing.assert_array_equal(drawn, np.ones((2, 334)), "the file shows what the caption says")
    (of_page,) = interactive.heat_map(shown).data
    assert len(of_page.x) == 334
    assert "are drawn" not in chart_of(report, "gradient-heat-map").caption
    group = network(0, list(range(1000)), 1.0)
    group.trace.values["output_grad_norm"][1::3, 0] = 100.0
    (band,) = (one for one in bands(Case.of([group]), "whole") if one.size == "output_gradient")
    assert band.mean[0] == pytest.approx(2 * 333 / 1000), "the mean of the logarithms"


def test_the_heat_map_is_the_median_of_what_is_finite_at_the_steps_that_all_recorded() -> None:
    of_seeds = [network(seed, [0, 1, 2], 10.0**seed) for seed in (0, 1)]
    ended_early = network(2, [0, 1], 100.0)
    lacking = [network(seed, [0, 1], value) for seed, value in enumerate((1.0, 3.0, np.nan))]
    for group, median in (([*of_seeds, ended_early], 10.0), (lacking, 2.0), (lacking[2:], np.nan)):
        found = tables({"net": group})["net", "output_gradient"]
        np.testing.assert_array_equal(found.steps, [0, 1])
        np.testing.assert_allclose(found.values, np.full((2, 2), median))


def test_seeds_that_were_recorded_at_other_steps_leave_the_first_one(report: Report) -> None:
    group = [network(0, [0, 2, 4, 6], 1.0), network(1, [0, 3, 5, 7], 9.0)]
    found = tables({"net": group})["net", "output_gradient"]
    np.testing.assert_array_equal(found.steps, [0, 2, 4, 6])
    np.testing.assert_allclose(found.values, 1.0)
    assert [one.seed for one in drawn_seeds(group)[0]] == [0]
    both = chart_of(report, "gradient-heat-map")
    assert both.caption.startswith("The median over 2 seeds.")
    alone = replace(report, tables_of={"plain_18": (0,), "resnet_18": (0, 1)})
    chart = chart_of(alone, "gradient-heat-map")
    assert chart.caption.startswith("Only seed 0 of plain_18 is drawn:")


@pytest.mark.parametrize("arch", ["plain_18", "resnet_18"])
def test_the_angle_of_a_training_is_that_of_its_weights(
    run: Path, report: Report, arch: str
) -> None:
    """By hand, from the weights on disk and the ones that the seed draws."""
    config, by_seed = RunDir.open(run).config(), []
    for seed in (0, 1):
        trained = RunDir.open(run).network(arch, seed).load_model(config, 2, "last")
        first, last = (
            model.conv1.weight.detach().double().flatten()
            for model in (build_network(arch, 2, config, seed=seed), trained)
        )
        by_seed.append(float(torch.acos(first @ last / first.norm() / last.norm())))
    profile = report.updates["angle_from_start"][arch]
    assert profile.layers[0] == "conv1"
    assert not [layer for layer in profile.layers if "downsample" in layer]
    of_conv1 = (profile.mean[0], profile.low[0], profile.high[0])
    assert of_conv1 == pytest.approx((np.mean(by_seed), min(by_seed), max(by_seed)), rel=1e-5)


def trace_of_angles(rows: Sequence[Sequence[float]] | np.ndarray) -> Trace:
    """Of two layers, at every step."""
    sites = ("conv1.weight", "fc.weight")
    kinds = ("conv.weight", "linear.weight")
    values = {"angle_from_start": np.array(rows)}
    return Trace(np.arange(len(rows)), sites, kinds, np.ones(2, np.int64), values)


def test_a_seed_whose_weights_are_not_finite_at_the_end_takes_no_angle_of_the_others() -> None:
    broken, whole = (trace_of_angles([[0.1, 0.2], end]) for end in ([np.nan] * 2, [0.3, 0.4]))
    assert angles({"net": [broken]}, {}) == {}
    found = angles({"bad": [broken], "net": [broken, whole]}, {})["angle_from_start"]
    assert set(found) == {"net"}
    np.testing.assert_array_equal([found["net"].mean, found["net"].high], [[0.3, 0.4]] * 2)


def test_an_angle_is_that_of_the_last_step_at_which_it_was_due() -> None:
    """One recorded step in 8, so that the last rows need not have it; broken weights never have."""
    rows = np.full((23, 2), np.nan)
    rows[[0, 8, 16]] = [[0.1, 0.2], [0.2, 0.3], [0.5, 0.6]]
    found = angles({"net": [trace_of_angles(rows)]}, {})["angle_from_start"]["net"]
    np.testing.assert_array_equal(found.mean, [0.5, 0.6])
    rows[16] = np.nan  # due, and not finite
    assert angles({"net": [trace_of_angles(rows)]}, {}) == {}
