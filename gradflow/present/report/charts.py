"""The figures of a report: each with a title that says what was found, and how to read it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradflow.analysis.case import Case
from gradflow.analysis.overview import Band
from gradflow.analysis.profile import GRADIENT_SIZES, geometric_mean
from gradflow.analysis.vanishing import JUDGED_SIZES, early_decades
from gradflow.present import plots
from gradflow.present.report import interactive
from gradflow.present.report.content import Report
from gradflow.present.report.depth import ACTIVATIONS, UPDATES, Profile
from gradflow.present.report.rows import evaluated
from gradflow.training.classes import part_reliability, recall_differences
from gradflow.training.evaluate import Reliability, reliability

SECTIONS = {
    "gradients": "Gradients by depth",
    "activations": "Activations by depth",
    "updates": "Updates by depth",
    "training": "Loss and accuracy",
    "classes": "Classes",
}


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
    verdict = report.verdict
    if verdict is not None and verdict.bands:
        yield Chart(
            "gradient-profiles",
            "gradients",
            gradient_title(verdict.case),
            "Each point is a layer, the input at the left; the line is the mean over seeds, early "
            "in training, the band their range. Vanishing would be a line that falls ten-fold or "
            "more from right to left. δ is what is passed on from layer to layer, ŝ what a small "
            "relative change of a weight does, g the raw gradient.",
            lambda: _profiles_figure(verdict.bands),
            lambda: interactive.to_html(
                interactive.gradient_profiles(verdict.bands, report.names), "gradient-profiles"
            ),
        )
    if report.tables:
        yield Chart(
            "gradient-heat-map",
            "gradients",
            heat_title(report),
            f"Seed {report.seeds[0]}. The input is at the top, training runs to the right; yellow "
            "is a large gradient, blue a small one, on one scale for all networks."
            f"{_thinning(report)}",
            lambda: _heat_figure(report),
            lambda: interactive.to_html(interactive.heat_map(report.tables), "gradient-heat-map"),
        )


def gradient_title(case: Case) -> str:
    """By how much δ changes from the output to the input, in each network."""
    changes = {case.name: early_decades(case, "output_gradient").mean}
    if case.reference:
        changes[case.reference_name] = early_decades(Case(case.reference), "output_gradient").mean
    known = [
        f"{10 ** abs(change):.3g} times {'larger' if change > 0 else 'smaller'} in {name}"
        for name, change in changes.items()
        if np.isfinite(change)
    ]
    if not known:
        return f"Gradient by depth of {' and '.join(changes)}"
    return f"At the first layer the gradient is {' and '.join(known)} than at the last"


def heat_title(report: Report) -> str:
    """Between which layers the gradient that is drawn first ranges, over the whole training."""
    (name, size), table = next(iter(report.tables.items()))
    typical = geometric_mean(table.values)
    if not np.isfinite(typical).any():
        return "Every layer at every recorded step"
    high, low = (table.sites[int(at(typical))] for at in (np.nanargmax, np.nanargmin))
    symbol = GRADIENT_SIZES[size].symbol
    return f"Over the training {symbol} of {name} is largest at {high} and smallest at {low}"


def _thinning(report: Report) -> str:
    """Says so where not every recorded step is drawn."""
    longest = max(report.tables.values(), key=lambda table: len(table.steps))
    drawn, recorded = len(interactive.thinned(longest).steps), len(longest.steps)
    if drawn == recorded:
        return ""
    return (
        f" Of {recorded} recorded steps {drawn} are drawn, evenly spaced; no number is computed "
        "from these alone."
    )


def _profiles_figure(bands: Sequence[Band]) -> plots.Figure:
    sizes = [size for size in JUDGED_SIZES if any(band.size == size for band in bands)]
    fig = plots.new_figure(7.0, 3.8 * len(sizes))
    for ax, size in zip(fig.subplots(len(sizes), 1, squeeze=False)[:, 0], sizes, strict=True):
        one = GRADIENT_SIZES[size]
        by_name = {
            band.network: (band.layers, band.mean, band.low, band.high)
            for band in bands
            if band.size == size
        }
        plots.profile_bands_plot(by_name, f"{one.symbol} ({one.unit})", one.formula, ax)
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
        yield _by_depth(
            report.names,
            measure,
            "activations",
            profiles,
            ACTIVATIONS[measure],
            "Behind each activation, over all recorded steps; the band is the range of the seeds.",
        )


UPDATE_CAPTIONS = {
    "relative_update": "The size of one step beside that of the weights, the geometric mean over "
    "the recorded steps; about 10⁻³ is usual.",
    "distance": "The sum over all steps of the relative size of the update. A layer that does not "
    "move does not learn, whatever its gradient; Adam moves layers alike, although their "
    "gradients differ.",
    "angle_from_start": "Between the weights at the last recorded step and when the recording "
    "began. What BatchNorm makes free of size, only the angle changes.",
}


def _updates(report: Report) -> Iterator[Chart]:
    for measure, profiles in report.updates.items():
        caption = UPDATE_CAPTIONS[measure]
        yield _by_depth(report.names, measure, "updates", profiles, UPDATES[measure], caption)


def _by_depth(
    names: Sequence[str],
    measure: str,
    section: str,
    profiles: dict[str, Profile],
    unit: str,
    caption: str,
) -> Chart:
    key = measure.replace("_", "-")
    return Chart(
        key,
        section,
        depth_title(profiles, unit),
        caption,
        lambda: _layer_figure(profiles, unit),
        lambda: interactive.to_html(interactive.layer_profiles(names, profiles, unit), key),
    )


def depth_title(profiles: dict[str, Profile], unit: str) -> str:
    """Where each network has the most of it, and how much."""
    what = f"{unit[0].upper()}{unit[1:]}"
    if all(np.nanmax(one.mean) == 0 for one in profiles.values()):
        return f"{what}: none in any layer"
    most = [
        f"{name} at {one.layers[at]} ({one.mean[at]:.3g})"
        for name, one in profiles.items()
        for at in [int(np.nanargmax(one.mean))]
    ]
    return f"{what}: most in {', in '.join(most)}"


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
            curve_title(series, what),
            "Training as a thin line (augmented images, train mode), validation as a thick one: "
            "the mean over seeds and their range. Below, the learning rate.",
            lambda s=series, u=unit: plots.figure_of(  # type: ignore[misc]
                plots.curves_plot(s, rates, u, "")[0]
            ),
            lambda s=series, u=unit, w=what: interactive.to_html(  # type: ignore[misc]
                interactive.curves(s, rates, u), f"{w}-by-epoch"
            ),
        )


def curve_title(series: dict[str, tuple[np.ndarray, np.ndarray]], what: str) -> str:
    """Where each network's validation curve ends, as the mean over the seeds that came so far."""
    ends = []
    for name, (_, validation) in series.items():
        known = validation[:, -1][np.isfinite(validation[:, -1])]
        ends.append(f"{name} {known.mean():.3g}" if len(known) else f"{name} not finite")
    return f"Validation {what} after the last epoch: {', '.join(ends)}"


def _series(report: Report, name: str, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation, (seeds, epochs) each, NaN where a seed had ended."""
    histories = [one.history for one in report.of(name)]
    longest = max(map(len, histories))
    values = np.full((2, len(histories), longest), np.nan)
    for i, history in enumerate(histories):
        for j, part in enumerate(("train", "val")):
            values[j, i, : len(history)] = [epoch[f"{part}_{what}"] for epoch in history]
    return values[0], values[1]


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
        f"The recall of {worst.name} differs most, by {worst.mean:+.2f}"
        f"{'' if worst.low > 0 or worst.high < 0 else ', which may be chance'}",
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
