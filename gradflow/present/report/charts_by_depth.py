"""Figures by depth: gradients, activations and updates, with titles that say what was found."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from gradflow.analysis import thresholds as at
from gradflow.analysis.numerals import power_of_two
from gradflow.analysis.overview import Profile
from gradflow.analysis.profile import GRADIENT_SIZES, geometric_mean
from gradflow.present import plots
from gradflow.present.figures import draw_profiles, gradient_title
from gradflow.present.report import interactive
from gradflow.present.report.content import Report
from gradflow.present.report.depth import (
    ACTIVATIONS,
    KINDS,
    MOMENTS,
    UPDATES,
    Distribution,
    Measure,
)
from gradflow.present.report.words import place_in_stage
from gradflow.present.section import Chart
from gradflow.record.histograms import GRADIENTS
from gradflow.record.trace import Table


def gradient_charts(report: Report) -> Iterator[Chart]:
    """The profiles and the heat map."""
    verdict = report.verdict
    mark = report.largest_difference[1].layer if report.largest_difference else ""
    if verdict is not None and verdict.bands:
        yield Chart(
            "gradient-profiles",
            "gradients",
            gradient_title(verdict.case),
            "Each point is a layer, the input at the left; the line is the mean over seeds, early "
            "in training, the band their range. Vanishing would be a line that falls "
            f"{10**at.VANISHING_DECADES.value:g}-fold or more from right to left. δ is what is "
            "passed on from layer to layer, ŝ what a small "
            f"relative change of a weight does, g the raw gradient.{_names_of_layers(report)}",
            partial(draw_profiles, verdict, mark),
            partial(
                interactive.gradient_profiles,
                {window: found for window, found in report.bands.items() if found},
                report.names,
                ("output_gradient", mark) if mark else None,
            ),
        )
    if report.tables and not any(
        (np.nan_to_num(t.values) > 0).any() for t in report.tables.values()
    ):
        text = "Every recorded gradient is zero or not finite: there is nothing to draw."
        yield Chart("gradient-heat-map", "gradients", "No gradient in any layer", text)
    elif report.tables:
        yield Chart(
            "gradient-heat-map",
            "gradients",
            heat_title(report),
            f"{_seeds_of_tables(report)}{_short_batches(report)} The input is at the top, training "
            "runs to the right; yellow is a large gradient, blue a small one, on one scale for all "
            "networks."
            f"{_thinning(report)}",
            partial(_heat_maps, report),
            partial(interactive.heat_map, report.tables),
        )


def histogram_charts(report: Report) -> Iterator[Chart]:
    """How large the elements of gradients and weights are, where that was counted."""
    if not report.distributions:
        return
    yield Chart(
        "histograms",
        "gradients",
        histogram_title(report.distributions),
        "Of the elements of each layer, the share between one power of two and the next, the mean "
        "over the seeds. In a layer that is dark all over, the other elements are exactly zero.",
        partial(_histogram_plots, report.distributions),
        partial(interactive.histograms, report.distributions),
    )


def histogram_title(found: Sequence[Distribution]) -> str:
    """The median element of the gradient at the end, at the first and at the last layer."""
    said = []
    for one in found:
        first, last = one.median(0), one.median(-1)
        if (one.kind, one.moment) == (GRADIENTS, MOMENTS[-1]) and np.isfinite([first, last]).all():
            ends = f"{power_of_two(first)} at the first layer and {power_of_two(last)} at the last"
            said.append(f"of {one.network} is {ends}")
    what = "The median element of the gradient at the end"
    return f"{what} {', '.join(said)}" if said else "Weights and gradients by power of two"


def _histogram_plots(found: Sequence[Distribution]) -> list[plots.Axes]:
    """At the end of the training: of each network the gradients, and the weights below them."""
    shown = [one for one in found if one.moment == MOMENTS[-1]]
    axes = plots.stacked(len(shown), 7.0, 3.2)
    for ax, one in zip(axes, shown, strict=True):
        plots.histogram_map(one.shares, one.exponents, one.layers, ax)
        ax.set_title(f"{one.network}: {KINDS[one.kind]}")
    return axes


def heat_title(report: Report) -> str:
    """Between which layers the gradient of each network ranges, over the whole training."""
    size, tables = _shown_tables(report)
    ends = []
    for name, table in tables.items():
        typical = geometric_mean(table.values)
        if np.isfinite(typical).any():
            high, low = (table.sites[int(at(typical))] for at in (np.nanargmax, np.nanargmin))
            ends.append(f"of {name} is largest at {high} and smallest at {low}")
    if not ends:
        return "Every layer at every recorded step"
    return f"Over the training {GRADIENT_SIZES[size].symbol} {', that '.join(ends)}"


def _shown_tables(report: Report) -> tuple[str, dict[str, Table]]:
    """(the gradient size that is shown first, network -> its table of it)."""
    size = next(size for _, size in report.tables)
    return size, {name: table for (name, one), table in report.tables.items() if one == size}


def _names_of_layers(report: Report) -> str:
    """How to read the names, by an example from the second stage; empty for other networks."""
    bands = report.verdict.bands if report.verdict else ()
    names = [name for band in bands[:1] for name in band.layers if place_in_stage(name)]
    if not names:
        return ""
    name = next((one for one in names if one.startswith("layer2.")), names[0])
    return (
        f" {name} is {place_in_stage(name)} (stages and layers are counted from 1, blocks from 0)."
    )


def _seeds_of_tables(report: Report) -> str:
    """Whether a heat map shows all seeds or one."""
    alone = [
        f"seed {seeds[0]} of {name}"
        for name, seeds in report.tables_of.items()
        if len(seeds) < len(report.seeds)
    ]
    if alone:
        return f"Only {' and '.join(alone)} is drawn: the seeds were recorded at different steps."
    n = len(report.seeds)
    return f"The median over {n} seeds." if n > 1 else f"Seed {report.seeds[0]}."


def _short_batches(report: Report) -> str:
    if report.short_batch is None:
        return ""
    return (
        f" The last batch of each epoch, {report.short_batch[1]} images, is left out: the gradient "
        "of few images is noisier."
    )


def _thinning(report: Report) -> str:
    """Says so where not every recorded step is drawn."""
    longest = max(report.tables.values(), key=lambda table: len(table.steps))
    drawn, recorded = len(interactive.thinned(longest).steps), len(longest.steps)
    if drawn == recorded:
        return ""
    return (
        f" {drawn} of {recorded} recorded steps are drawn, evenly spaced; no number is computed "
        "from these alone."
    )


def _heat_maps(report: Report) -> list[plots.Axes]:
    size, tables = _shown_tables(report)
    limits = plots.positive_range(table.values for table in tables.values())
    axes, label = plots.stacked(len(tables), 7.0, 4.2), interactive.axis_of(size)
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        drawn = interactive.thinned(table)
        plots.layer_step_heatmap(drawn.values, drawn.steps, drawn.sites, label, ax, limits)
        ax.set_title(name)
    return axes


# -- activations and updates -----------------------------------------------------------------------


def layer_charts(report: Report) -> Iterator[Chart]:
    """One figure per measure of the activations, then of the updates."""
    for section, found, measures in (
        ("activations", report.activations, ACTIVATIONS),
        ("updates", report.updates, UPDATES),
    ):
        for measure, profiles in found.items():
            key, shown = measure.replace("_", "-"), measures[measure]
            title = depth_title(profiles, shown.says)
            if not any((np.nan_to_num(one.mean) > 0).any() for one in profiles.values()):
                yield Chart(key, section, title, f"{shown.caption} There is nothing to draw.")
                continue
            draw = partial(_layer_plot, profiles, shown)
            interact = partial(interactive.layer_profiles, report.names, profiles, shown)
            yield Chart(key, section, title, shown.caption, draw, interact)


def depth_title(profiles: dict[str, Profile], says: str) -> str:
    """Where each network has the most of it, and how much."""
    what = f"{says[0].upper()}{says[1:]}"
    most = []
    for name, one in profiles.items():
        finite = np.where(np.isfinite(one.mean), one.mean, -np.inf)
        at = int(finite.argmax())
        if finite[at] > 0:
            most.append(f"{name} at {one.layers[at]} ({finite[at]:.3g})")
    return f"{what}: most in {', in '.join(most)}" if most else f"{what}: none in any layer"


def _layer_plot(profiles: dict[str, Profile], shown: Measure) -> plots.Axes:
    bands = {name: (one.layers, one.mean, one.low, one.high) for name, one in profiles.items()}
    return plots.profile_bands_plot(bands, shown.axis, "", log=shown.log, by_kind=shown.by_kind)
