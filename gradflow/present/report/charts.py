"""The figures of a report: each with a title that says what was found, and how to read it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.analysis.vanishing import JUDGED_SIZES, early_decades
from gradflow.present import plots
from gradflow.present.report import interactive
from gradflow.present.report.content import ACTIVATIONS, Profile, Report
from gradflow.training.classes import Part, part_reliability, recall_differences
from gradflow.training.evaluate import Reliability, reliability


@dataclass(frozen=True)
class Chart:
    """One figure: drawn by matplotlib, and by plotly where hovering and choosing help."""

    key: str
    section: str
    title: str
    caption: str
    draw: Callable[[], plots.Figure]
    interact: Callable[[], str] | None = None


def charts(report: Report) -> list[Chart]:
    """All figures of what the runs hold, in the order of the page."""
    return [*_gradients(report), *_activations(report), *_updates(report), *_training(report),
            *_classes(report)]  # fmt: skip


def save_charts(found: Sequence[Chart], folder: Path) -> list[Path]:
    """Every figure as SVG and PNG."""
    return [
        plots.save(figure, folder / f"{chart.key}{suffix}")
        for chart in found
        for figure in [chart.draw()]
        for suffix in (".svg", ".png")
    ]


# -- gradients -------------------------------------------------------------------------------------


def _gradients(report: Report) -> Iterator[Chart]:
    if report.verdict.bands:
        yield Chart(
            "gradient-profiles",
            "gradients",
            gradient_title(report),
            "Each point is a layer, the input at the left; the line is the mean over seeds, early "
            "in training, the band their range. Vanishing would be a line that falls ten-fold or "
            "more from right to left. δ is what is passed on from layer to layer, ŝ what a small "
            "relative change of a weight does, g the raw gradient.",
            lambda: _profiles_figure(report),
            lambda: interactive.to_html(interactive.gradient_profiles(report), "gradient-profiles"),
        )
    if report.tables:
        seed = report.verdict.case.seeds[0]
        yield Chart(
            "gradient-heat-map",
            "gradients",
            "Every layer at every recorded step",
            f"Seed {seed}. The input is at the top, training runs to the right; yellow is a large "
            "gradient, blue a small one, on one scale for all networks. Long trainings are thinned "
            "to 400 steps for drawing; no number is computed from thinned values.",
            lambda: _heat_figure(report),
            lambda: interactive.to_html(interactive.heat_map(report), "gradient-heat-map"),
        )


def gradient_title(report: Report) -> str:
    """By how much δ changes from the output to the input."""
    change = early_decades(report.verdict.case, "output_gradient").mean
    name = report.verdict.case.name
    if not np.isfinite(change):
        return f"Gradient by depth of {name}"
    grows = "larger" if change > 0 else "smaller"
    return (
        f"In {name} the gradient is {10 ** abs(change):.3g} times {grows} at the first layer "
        "than at the last"
    )


def _profiles_figure(report: Report) -> plots.Figure:
    sizes = [size for size in JUDGED_SIZES if any(b.size == size for b in report.verdict.bands)]
    fig = plots.new_figure(7.0, 3.8 * len(sizes))
    for ax, size in zip(fig.subplots(len(sizes), 1, squeeze=False)[:, 0], sizes, strict=True):
        one = GRADIENT_SIZES[size]
        bands = {
            band.network: (band.layers, band.mean, band.low, band.high)
            for band in report.verdict.bands
            if band.size == size
        }
        plots.profile_bands_plot(bands, f"{one.symbol} ({one.unit})", one.formula, ax)
    return fig


def _heat_figure(report: Report) -> plots.Figure:
    size = (
        JUDGED_SIZES[0] if any(s == JUDGED_SIZES[0] for _, s in report.tables) else "gradient_rms"
    )
    tables = {name: table for (name, one), table in report.tables.items() if one == size}
    values = np.concatenate([table.values.ravel() for table in tables.values()])
    usable = values[np.isfinite(values) & (values > 0)]
    limits = (float(usable.min()), float(usable.max())) if len(usable) else None
    fig = plots.new_figure(7.0, 4.2 * len(tables))
    one = GRADIENT_SIZES[size]
    for ax, (name, table) in zip(
        fig.subplots(len(tables), 1, squeeze=False)[:, 0], tables.items(), strict=True
    ):
        label = f"{one.symbol} ({one.unit})"
        plots.layer_step_heatmap(table.values, table.steps, table.sites, label, ax, limits)
        ax.set_title(name)
    return fig


# -- activations and updates -----------------------------------------------------------------------


def _activations(report: Report) -> Iterator[Chart]:
    for measure, profiles in report.activations.items():
        means = {name: float(np.nanmean(one.mean)) for name, one in profiles.items()}
        listed = ", ".join(f"{name} {mean:.3g}" for name, mean in means.items())
        yield Chart(
            measure.replace("_", "-"),
            "activations",
            f"{ACTIVATIONS[measure].capitalize()}: mean over layers {listed}",
            "Behind each activation, over all recorded steps; the band is the range of the seeds.",
            lambda profiles=profiles, measure=measure: _layer_figure(  # type: ignore[misc]
                profiles, ACTIVATIONS[measure]
            ),
            lambda profiles=profiles, measure=measure: interactive.to_html(  # type: ignore[misc]
                interactive.layer_profiles(report, profiles, ACTIVATIONS[measure]),
                measure.replace("_", "-"),
            ),
        )


def _updates(report: Report) -> Iterator[Chart]:
    known = {name: one for name, one in report.distance.items() if np.isfinite(one.mean).any()}
    if known:
        unit = "way of the weights, Σ ‖Δw‖ / ‖w‖"
        yield Chart(
            "distance",
            "updates",
            "How far each layer travelled, relative to its weights",
            "The sum over all steps of the relative size of the update. A layer that does not move "
            "does not learn, whatever its gradient; Adam moves layers alike, although their "
            "gradients differ.",
            lambda: _layer_figure(known, unit),
            lambda: interactive.to_html(
                interactive.layer_profiles(report, known, unit), "distance"
            ),
        )


def _layer_figure(profiles: dict[str, Profile], unit: str) -> plots.Figure:
    """On a logarithmic axis; shares, which may be zero, from zero on."""
    is_share = unit.endswith("share")
    bands = {}
    for name, one in profiles.items():
        values = (one.mean, one.low, one.high)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = [np.where(value > 0, np.log10(value), np.nan) for value in values]
        mean, low, high = values if is_share else logs
        bands[name] = (one.layers, mean, low, high)
    return plots.figure_of(plots.profile_bands_plot(bands, unit, "", log=not is_share))


# -- training and classes --------------------------------------------------------------------------


def _training(report: Report) -> Iterator[Chart]:
    if not report.trained:
        return
    lr = max((one.history for one in report.trained), key=len)
    rates = [epoch["lr"] for epoch in lr]
    for what, unit in (("loss", "loss (nats, with label smoothing)"), ("accuracy", "accuracy")):
        series = {name: _series(report, name, what) for name in report.names}
        yield Chart(
            f"{what}-by-epoch",
            "training",
            f"{what.capitalize()} by epoch, over the learning rate",
            "Training as a thin line (augmented images, train mode), validation as a thick one: "
            "the mean over seeds and their range.",
            lambda s=series, u=unit: plots.figure_of(  # type: ignore[misc]
                plots.curves_plot(s, rates, u, "")[0]
            ),
            lambda s=series, u=unit, w=what: interactive.to_html(  # type: ignore[misc]
                interactive.curves(s, rates, u), f"{w}-by-epoch"
            ),
        )


def _series(report: Report, name: str, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation, (seeds, epochs) each, NaN where a seed had ended."""
    histories = [one.history for one in report.of(name)]
    longest = max(map(len, histories))
    values = np.full((2, len(histories), longest), np.nan)
    for i, history in enumerate(histories):
        for j, part in enumerate(("train", "val")):
            values[j, i, : len(history)] = [epoch[f"{part}_{what}"] for epoch in history]
    return values[0], values[1]


def evaluated(report: Report, name: str) -> list[Part]:
    """The evaluation on the test images after the last epoch, per seed."""
    return [one.evaluation["last"]["test"] for one in report.of(name)]


def _classes(report: Report) -> Iterator[Chart]:
    if not report.trained:
        return
    for name in report.names:
        parts = evaluated(report, name)
        matrix = np.sum([part["confusion_matrix"] for part in parts], axis=0)
        yield Chart(
            f"confusion-{name}",
            "classes",
            f"What {name} takes for what, {int(matrix.sum())} answers of {len(parts)} seed"
            f"{'s' * (len(parts) > 1)}",
            "Rows are the true class, columns the answer, on the test images after the last epoch.",
            lambda m=matrix: plots.figure_of(  # type: ignore[misc]
                plots.confusion_plot(m, report.class_names, "")
            ),
        )
    yield from _differences(report)
    yield from _calibration(report)


def _differences(report: Report) -> Iterator[Chart]:
    if len(report.names) < 2:
        return
    first, second = report.names
    try:
        found = recall_differences(
            evaluated(report, first), evaluated(report, second), report.class_names
        )
    except ValueError:  # one seed of an older run, which did not keep the labels
        return
    worst = max(found, key=lambda one: abs(one.mean))
    mean, low, high = np.array([[one.mean, one.low, one.high] for one in found]).T
    label = f"recall of {first} less that of {second}"
    yield Chart(
        "class-differences",
        "classes",
        f"The classes differ: {worst.name} by {worst.mean:+.2f} in recall",
        f"Recall of {first} less that of {second}, with 95 % intervals ({worst.method}). At zero "
        "both do equally well. The classes are looked at together: one interval of twenty misses.",
        lambda: plots.figure_of(
            plots.interval_plot([one.name for one in found], mean, low, high, label, "")
        ),
    )


def _calibration(report: Report) -> Iterator[Chart]:
    pooled: dict[str, Reliability] = {}
    for name in report.names:
        parts = evaluated(report, name)
        if all(part_reliability(part) is not None for part in parts):
            sure = np.concatenate([np.max(part["probabilities"], axis=1) for part in parts])
            right = np.concatenate([np.asarray(part["is_right"], bool) for part in parts])
            pooled[name] = reliability(sure, right)
    if not pooled:
        return
    errors = ", ".join(f"{name} {one.calibration_error:.3f}" for name, one in pooled.items())
    bins = {name: (one.confidence, one.accuracy, one.n) for name, one in pooled.items()}
    yield Chart(
        "calibration",
        "classes",
        f"How sure, how right: expected calibration error {errors}",
        "On the dotted line a network that is 70 % sure is right 70 % of the time; below it, it is "
        "too sure. All seeds together, test images.",
        lambda: plots.figure_of(plots.reliability_plot(bins, "")),
    )
