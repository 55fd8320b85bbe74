"""The section of a study: its gap, its arms, and what keeps some of them open."""

import math
from collections.abc import Sequence
from typing import Any

from gradflow.analysis import thresholds as at
from gradflow.analysis.numerals import p_text, part
from gradflow.analysis.statistics import Interval
from gradflow.present.section import Items, Part, Section, TextTable
from gradflow.present.verdict_story import counted
from gradflow.studies import Results, Study
from gradflow.studies.arms import Place, Tuned
from gradflow.studies.outcomes import MEASURES, OutcomeMeasure
from gradflow.studies.results import ArmResult, PositiveControl

COLUMNS = ("arm", "it is", "share of the gap", at.LEVEL, "of the accuracy gap", "accused gains",
           "reference gains", "check", "time")  # fmt: skip
CHECKS = "What each arm changed, measured"
LEGEND = (
    "Gains are in nats of training loss. An arm is a main cause if it surely takes more than "
    f"{part(at.SHARE_MAIN.value)} of the gap, a contributor if more than "
    f"{part(at.SHARE_CONTRIBUTOR.value)}, and not a cause if it surely neither takes nor adds "
    f"{part(at.SHARE_NONE.value)}, corrected for the number of all arms of the file."
)


def duration(seconds: float) -> str:
    """1 h 20 min, 3 min, or 12 s.

    >>> duration(4800), duration(190), duration(12.3)
    ('1 h 20 min', '3 min', '12 s')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def study_section(found: Results, figures: Sequence[Part] = ()) -> Section:
    """The gap, one row per arm, what each says, the figures, the controls and the notes."""
    arms = found.strongest
    says = [
        f"{one.arm.name} (tests {one.arm.tests}): {one.arm.says}" for one in arms if one.arm.says
    ]
    checks = [line for one in found.arms for line in check_lines(one)]
    about: list[Part] = [
        TextTable(COLUMNS, [*map(_row, arms)]),
        LEGEND,
        *([Items(says)] if says else []),
    ]
    measured: list[Part] = [Items(checks, CHECKS, folded=True)]
    return Section(
        "study",
        "What the interventions say",
        [
            found.study.question,
            *gap_lines(found),
            *(about if arms else []),
            *remarks(found),
            *(measured if checks else []),
            *figures,
        ],
    )


def remarks(found: Results) -> list[str]:
    """The controls, the 2 × 2, why arms stay open, what went wrong: a line each."""
    lines = [*tuned_lines(found), *control_lines(found)]
    if found.interaction is not None:
        pair = found.interaction
        lines.append(f"{pair.both}: interaction {_span(pair.interval)} of the gap; {pair.reads}")
    lines += [line for one in found.arms if (line := algebra_line(one))]
    lines += [line for one in found.arms if (line := why_line(one))]
    lines += [line for one in found.arms for line in check_lines(one, failed_only=True)]
    if not found.study.split_by_seed:
        lines.append(
            "all seeds share one split of the data: the intervals do not cover other test images "
            "(`split_seed: seed` in `base` draws another one for every seed)"
        )
    return [*lines, *(f"note: {note}" for note in found.notes)]


def gap_lines(found: Results) -> list[str]:
    """By how much the accused network does worse, for both outcomes."""
    lines = []
    for measure in MEASURES:
        gap = found.gap[measure.name]
        unit = f" {measure.unit}" if measure.unit else ""
        sure = "" if found.gap_is_sure[measure.name] else f"; {_why_unsure(gap, measure)}"
        lines.append(
            f"gap in {measure.title}: {_number(gap.mean)}{unit} ({at.LEVEL} {_number(gap.low)} to "
            f"{_number(gap.high)}, {gap.n} seeds{sure})"
        )
        if not found.can_be_shared[measure.name]:
            lines[-1] += f": not surely above {measure.margin:g}: it has no shares"
    return lines


def _why_unsure(gap: Interval, measure: OutcomeMeasure) -> str:
    if gap.n < at.MIN_SEEDS.value:
        return f"a gap is claimed from {at.MIN_SEEDS.value} seeds"
    return "not surely above zero" if gap.high > measure.small else "too small to matter"


def control_lines(found: Results) -> list[str]:
    """Whether the positive controls reacted, and by how much."""
    return [f"positive control {one.arm.name}: {_reaction(one)}" for one in found.controls]


def _reaction(one: PositiveControl) -> str:
    if not one.seeds:
        said = "no seed is complete"
    else:
        said = (
            f"{'reacts' if one.reacts else 'does not surely react'}, training loss "
            f"{_signed(one.change.mean)} nats ({_signed(one.change.low)} to "
            f"{_signed(one.change.high)}, {one.change.n} seeds)"
        )
    if not one.diverged:
        return said
    return (
        f"{said}; it diverged in {counted(one.diverged)}, which is a "
        "reaction that has no number and is not counted"
    )


def algebra_line(one: ArmResult) -> str | None:
    """How near an arm that changes nothing by algebra came to that."""
    found = one.equivalence
    if found is None:
        return None
    return (
        f"{one.arm.name} multiplies gradients by a constant, which AdamW divides away again. So it "
        "is no evidence, and only checks the machinery: the training loss changes by "
        f"{_span(found.change)} nats, surely within {at.LOSS_MARGIN.value:g}: "
        f"{'yes' if found.holds else 'not shown'} ({p_text(found.p)})"
    )


def tuned_lines(found: Results) -> list[str]:
    """Which value each tuned network got, and what that leaves open."""
    return [
        f"{one.arm}: {one.name} {one.value} has the best validation loss of "
        f"{found.study.network(one.place).arch} (tried: "
        f"{', '.join(str(value) for value, _ in one.tried)})"
        + ("; a better one may lie beyond" if one.is_at_an_end else "")
        + _untried(found.study, one)
        for one in found.study.tuned
        if one.arm in found.study.names  # it may have been left out of the file since
    ]


def _untried(study: Study, one: Tuned) -> str:
    """What an arm leaves open in which tuning changed nothing, or ""."""
    arm = study.arm(one.arm)
    before = getattr(study.config(arm.against, one.place, study.seeds[0]), one.name)
    if before != one.value or arm.set or arm.intervene:
        return ""
    return f"; {arm.against} has the same, so that {one.arm} tries no other over seeds"


def why_line(one: ArmResult) -> str | None:
    """What keeps an arm undetermined, where that is not its interval alone."""
    judged = one.primary
    if judged is not None and judged.widens:
        share = one.shares[MEASURES[0].name].interval
        return (
            f"{one.arm.name} surely widens the gap (share {_number(share.mean)}, {at.LEVEL} "
            f"{_range(share)})"
        )
    return f"{one.arm.name}: {judged.why}" if judged is not None and judged.why else None


def check_lines(one: ArmResult, *, failed_only: bool = False) -> list[str]:
    """What was measured of the change that an arm makes, beside what it should have been."""
    return [
        f"{one.arm.name}, {check['network']}: {check['what']} is {_measured(check['measured'])}, "
        f"expected {_measured(check['expected'])}: {'passed' if check['passed'] else 'FAILED'}"
        for check in one.checks
        if check["passed"] is not None and not (failed_only and check["passed"])
    ]


def _measured(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _row(one: ArmResult) -> list[str]:
    loss, accuracy = (one.shares[measure.name] for measure in MEASURES)
    of_accuracy = f"{_number(accuracy.value)} ({_range(accuracy.interval)})"
    return [
        one.arm.name,
        one.primary.status if one.primary is not None else "undetermined",
        _number(loss.value),
        _range(loss.interval),
        "-" if math.isnan(accuracy.value) else of_accuracy,  # "-": that gap has no shares
        _gain(one, "accused"),
        _gain(one, "reference"),
        _check(one),
        duration(one.seconds),
    ]


def _gain(one: ArmResult, place: Place) -> str:
    if place not in one.arm.networks:
        return "untouched"
    share = one.shares[MEASURES[0].name]
    values = share.accused_gain if place == "accused" else share.reference_gain
    return _signed(sum(values) / len(values))


def _check(one: ArmResult) -> str:
    if all(check["passed"] is None for check in one.checks):
        return "missing"
    return "passed" if one.moved else "failed"


def _range(found: Interval) -> str:
    return f"{_number(found.low)} to {_number(found.high)}"


def _span(found: Interval) -> str:
    return f"{_signed(found.mean)} ({_signed(found.low)} to {_signed(found.high)})"


def _number(value: float) -> str:
    """Two decimals, with a true minus; a dash where it is not known."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.2f}".replace("-", "−")


def _signed(value: float) -> str:
    return f"+{_number(value)}" if value > 0 else _number(value)
