"""Figures of what training came to: curves, classes and calibration."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from gradflow.analysis import thresholds as at
from gradflow.present import plots
from gradflow.present.figures import LOSS, curves, learning_rates
from gradflow.present.report import interactive
from gradflow.present.report.content import Report
from gradflow.present.report.numbers import confusions, differences_in_recall, reliabilities
from gradflow.present.section import Chart

MOST_INTERVALS = 40  # classes in one figure; with more, those that differ most


def training_charts(report: Report) -> Iterator[Chart]:
    """Loss and accuracy by epoch."""
    if not report.trained:
        return
    rates = learning_rates(one.history for one in report.trained)
    for what, unit in ("loss", LOSS), ("accuracy", "accuracy (share of images)"):
        series = {
            name: curves([one.history for one in report.of(name)], what)
            for name in report.trained_names
        }
        if not any(np.isfinite(part).any() for parts in series.values() for part in parts):
            text = f"No {what} was finite in any epoch: there is nothing to draw."
            yield Chart(f"{what}-by-epoch", "training", curve_title(series, what), text)
            continue
        yield Chart(
            f"{what}-by-epoch",
            "training",
            curve_title(series, what),
            "Training as a thin line (augmented images, train mode), validation as a thick one: "
            "the mean over seeds and their range. Below, the learning rate.",
            partial(plots.curves_plot, series, rates, unit, ""),
            partial(interactive.curves, series, rates, unit),
        )


def curve_title(series: dict[str, tuple[np.ndarray, np.ndarray]], what: str) -> str:
    """Where each network's validation curve ends, as the mean over the seeds that came so far."""
    ends = []
    for name, (_, validation) in series.items():
        known = validation[:, -1][np.isfinite(validation[:, -1])]
        ends.append(f"{name} {known.mean():#.3g}" if len(known) else f"{name} not finite")
    return f"Validation {what} after the last epoch: {', '.join(ends)}"


def class_charts(report: Report) -> Iterator[Chart]:
    """Confusion, differences in recall, calibration."""
    for name, matrix in confusions(report).items():
        n = len(report.of(name))
        yield Chart(
            f"confusion-{name}",
            "classes",
            confusion_title(name, matrix, report.class_names),
            f"Rows are the true class, columns the answer: {int(matrix.sum())} answers of "
            f"{n} seed{'s' * (n > 1)} on the test images after the last epoch.",
            partial(plots.confusion_plot, matrix, report.class_names, ""),
        )
    yield from _differences(report)
    yield from _calibration(report)


def confusion_title(name: str, matrix: np.ndarray, class_names: Sequence[str]) -> str:
    """Which class is most often taken for another, as a share of its images."""
    wrong = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    if not wrong.any():
        return f"{name} makes no mistake"
    n = matrix.sum(axis=1)
    shares = wrong / np.maximum(n, 1)[:, None]
    true, answer = divmod(int(shares.argmax()), shares.shape[1])
    return (
        f"{name} most often takes {class_names[true]} for {class_names[answer]}: "
        f"{wrong[true, answer]} of {n[true]} times"
    )


def _differences(report: Report) -> Iterator[Chart]:
    found = differences_in_recall(report)
    known = [one for one in found if np.isfinite(one.mean)]
    if not known:  # one network, or no test image of any class
        return
    first, second = report.trained_names
    largest = sorted(known, key=lambda one: -abs(one.mean))
    worst = largest[0]
    shown = found if len(found) <= MOST_INTERVALS else largest[:MOST_INTERVALS]
    some = f" Of {len(found)} classes the {len(shown)} that differ most are drawn."
    names = [one.name for one in shown]
    mean, low, high = np.array([[one.mean, one.low, one.high] for one in shown]).T
    label = f"recall of {first} less that of {second}"
    yield Chart(
        "class-differences",
        "classes",
        f"The recall of {worst.name} differs most, by {worst.mean:+.2f}"
        f"{'' if worst.low > 0 or worst.high < 0 else ', which may be chance'}",
        f"Recall of {first} less that of {second} ({worst.method}). At zero both do equally well. "
        f"All intervals together hold with {at.LEVEL} (Bonferroni), so that each may be picked out."
        f"{some * (len(shown) < len(found))}",
        partial(plots.forest_plot, names, mean, np.stack([low, high], 1), label),
    )


def _calibration(report: Report) -> Iterator[Chart]:
    pooled = reliabilities(report)
    if not pooled:
        return
    errors = ", ".join(
        f"{name} {one.calibration_error:.3f} ({one.error_if_perfect:.3f} if calibrated perfectly)"
        for name, one in pooled.items()
    )
    bins = {name: (one.confidence, one.accuracy, one.n) for name, one in pooled.items()}
    yield Chart(
        "calibration",
        "calibration",
        f"How sure, how right: calibration error {errors}",
        "On the dotted line a network that is 70 % sure is right 70 % of the time; below it, it is "
        "too sure. Below, how many images each bin holds. All seeds together, test images.",
        partial(plots.reliability_plot, bins, ""),
    )
