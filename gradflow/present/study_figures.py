"""The figures of a study: a forest plot of the shares, and one plot per series of doses."""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from gradflow.analysis import thresholds as at
from gradflow.analysis.numerals import part
from gradflow.analysis.statistics import Interval
from gradflow.present import plots
from gradflow.present.section import Chart
from gradflow.studies.arms import PLACES, Place
from gradflow.studies.outcomes import MEASURES
from gradflow.studies.results import ArmResult, Results

ZONES = {
    "contributor": at.SHARE_CONTRIBUTOR.value,
    "main cause": at.SHARE_MAIN.value,
}
FOREST = "forest"
LIMITS = (-1.0, 1.5)  # of the axis of shares


FOREST_CAPTION = (
    "One row per arm: how much of the gap in training loss goes away when that one thing is "
    f"changed, with its {at.LEVEL} interval over seeds. 0: nothing, 1: all of it. "
    "The sign on the line is a diamond for a main cause, a square for a contributor, a circle for "
    "what is not a cause, and a cross for what the data do not decide."
)
DOSE_CAPTION = (
    f"The outcome at each dose of one thing, with its {at.LEVEL} interval over seeds. A cause "
    "shows as a line that goes one way; a flat line shows that the thing does not matter."
)


def save_study_figures(found: Results, folder: Path) -> list[Path]:
    """Each as PNG; none before the first arm is complete."""
    return [
        plots.save(chart.draw_with_title(), folder / f"{chart.key}.png")
        for chart in study_charts(found)
    ]


def study_charts(found: Results) -> Iterator[Chart]:
    """The forest plot once an arm is complete, and one figure for each series of two doses."""
    if found.causes:
        yield Chart(FOREST, "study", finding(found), FOREST_CAPTION, partial(_forest, found))
    for series, arms in _series(found).items():
        key, title = f"dose-{_slug(series)}", _answer(found, series, arms)
        draw = partial(_dose_response, found, series, arms)
        yield Chart(key, "study", title, DOSE_CAPTION, draw)


def _forest(found: Results) -> plots.Axes:
    arms = found.strongest
    shares = [one.shares[MEASURES[0].name] for one in arms]
    return plots.forest_plot(
        [one.arm.name for one in arms],
        np.array([share.value for share in shares]),
        np.array([(share.interval.low, share.interval.high) for share in shares]),
        f"share of the gap that the arm takes away ({at.LEVEL} interval over seeds)",
        statuses=[one.primary.status if one.primary else "" for one in arms],
        zones=ZONES,
        limits=LIMITS,
    )


def finding(found: Results) -> str:
    """What the shares say, in one line."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for one in found.strongest:
        if one.primary is not None:
            names[one.primary.status].append(one.arm.name)
    if names["main cause"]:
        most = part(at.SHARE_MAIN.value)
        return f"Takes away more than {most} of the gap: {', '.join(names['main cause'])}"
    if names["contributor"]:
        return f"Takes away part of the gap: {', '.join(names['contributor'])}"
    if len(names["not a cause"]) == len(found.causes):
        return f"No arm takes away {part(at.SHARE_NONE.value)} of the gap"
    return "No arm surely takes away part of the gap"


def _series(found: Results) -> dict[str, list[ArmResult]]:
    by_name: dict[str, list[ArmResult]] = {}
    for one in found.arms:
        if one.arm.series:
            by_name.setdefault(one.arm.series, []).append(one)
    return {name: arms for name, arms in by_name.items() if len(_doses(arms)) > 1}


def _doses(arms: list[ArmResult]) -> set[float]:
    found = (dose for one in arms for dose in (one.arm.dose, one.arm.dose_without))
    return {dose for dose in found if dose is not None}


def _dose_response(found: Results, series: str, arms: list[ArmResult]) -> plots.Figure:
    """Both outcomes side by side, for each network that the series treats."""
    doses = _doses(arms)
    log = min(doses) > 0 and max(doses) > 50 * min(doses)
    fig = plots.new_figure(11.0, 3.6)
    for ax, measure in zip(fig.subplots(1, len(MEASURES)), MEASURES, strict=True):
        responses = {
            _name(found, place): _arrays(_levels(found, arms, place, measure.name))
            for place in PLACES
        }
        unit = f" ({measure.unit})" if measure.unit else ""
        plots.dose_response_plot(responses, series, f"{measure.title}{unit}", ax, log=log)
    return fig


def _answer(found: Results, series: str, arms: list[ArmResult]) -> str:
    """How each treated network's training loss goes from one end of the doses to the other.

    From the dose without the arm, where that is an end, and over it, where it lies between them.
    """
    untouched = {one.arm.dose_without for one in arms}
    ways = []
    for place in PLACES:
        levels = _levels(found, arms, place, MEASURES[0].name)
        known = [(dose, level.mean) for dose, level in levels if np.isfinite(level.mean)]
        if len(known) < 2:
            continue
        stops = [known[0], *(one for one in known[1:-1] if one[0] in untouched), known[-1]]
        if known[-1][0] in untouched:
            stops.reverse()
        (first, *between, last) = [f"{loss:.2f} at {dose:g}" for dose, loss in stops]
        over = "".join(f" over {one}" for one in between)
        ways.append(f"of {_name(found, place)} goes from {first}{over} to {last}")
    if not ways:
        return f"Answer to the dose: {series}"
    return f"Training loss {', that '.join(ways)} ({series})"


def _name(found: Results, place: Place) -> str:
    study = found.study
    arch = study.network(place).arch
    return f"{arch} ({place})" if study.accused.arch == study.reference.arch else arch


def _levels(
    found: Results, arms: list[ArmResult], place: Place, measure: str
) -> list[tuple[float, Interval]]:
    """(dose, level) of a network that the series treats, and of the arm without a dose."""
    levels = {}
    for one in arms:
        if place not in one.levels or one.arm.dose is None:
            continue
        levels[one.arm.dose] = one.levels[place][measure]
        if one.arm.dose_without is not None:
            without = found.level(one.arm.against, place, measure)
            if without is not None:
                levels[one.arm.dose_without] = without
    return sorted(levels.items())


def _arrays(levels: list[tuple[float, Interval]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    doses = np.array([dose for dose, _ in levels])
    means = np.array([level.mean for _, level in levels])
    return doses, means, np.array([(level.low, level.high) for _, level in levels]).reshape(-1, 2)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "series"
