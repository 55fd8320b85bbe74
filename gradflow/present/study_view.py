"""A study in the terminal: its plan, its progress, and what it found, as text for rich."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradflow.analysis import thresholds as at
from gradflow.analysis.numerals import p_text
from gradflow.analysis.statistics import Interval
from gradflow.studies import Cell, Results
from gradflow.studies.arms import Place
from gradflow.studies.folder import ENDED, CellDir
from gradflow.studies.outcomes import MEASURES, OutcomeMeasure
from gradflow.studies.plan import Plan, PlannedCell
from gradflow.studies.results import ArmResult, PositiveControl

STATUS_STYLES = {
    "main cause": "bold green",
    "contributor": "green",
    "not a cause": "dim",
    "undetermined": "",
}


def duration(seconds: float) -> str:
    """1 h 20 min, 3 min, or 12 s.

    >>> duration(4800), duration(190), duration(12.3)
    ('1 h 20 min', '3 min', '12 s')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# -- before ------------------------------------------------------------------------------------


def plan_view(plan: Plan) -> RenderableType:
    """The cells, how long they take, and how many seeds the wished precision needs."""
    study = plan.study
    table = Table(box=None, pad_edge=False)
    for name in ("arm", "network", "seeds", "steps each", "time each", "changes"):
        table.add_column(name, justify="right" if name in ("steps each", "time each") else "left")
    rows: dict[tuple[str, Place], list[PlannedCell]] = {}
    for one in plan.cells:
        rows.setdefault((one.cell.label, one.cell.place), []).append(one)
    for (label, place), cells in rows.items():
        arm = study.arm(cells[0].cell.arm)
        changes = [f"{key} = {value}" for key, value in arm.set.items()]
        changes += [f"{key} tuned" for key in arm.tune if not cells[0].cell.trial]
        changes += [arm.intervene] if arm.intervene else []
        table.add_row(
            Text(label), f"{study.network(place).arch}", _seeds([one.cell.seed for one in cells]),
            str(cells[0].n_steps), duration(cells[0].seconds), Text("; ".join(changes) or "-"),
        )  # fmt: skip
    done = f", {plan.n_done} are done" if plan.n_done else ""
    total = duration(plan.seconds_one_by_one)
    lines = [
        f"{len(plan.cells)} trainings to do{done}: about {duration(plan.seconds)} with "
        f"{plan.workers} at a time, {total} one by one (from measured steps, one training alone)",
        _seeds_sentence(plan),
    ]
    return Group(Text(study.question, style="bold"), Text(), table, Text(), *map(Text, lines))


def _seeds_sentence(plan: Plan) -> str:
    study = plan.study
    source = (
        "as the finished ones vary" if plan.spread_is_measured
        else f"if runs of one recipe differ by {at.LOSS_MARGIN.value:g} nats and the gap is "
        f"{study.expected_gap:g} nats"
    )  # fmt: skip
    needed = "more than 1000" if plan.seeds_needed is None else str(plan.seeds_needed)
    least = at.MIN_SEEDS.value
    few = f"; from fewer than {least:g} nothing is decided" if len(study.seeds) < least else ""
    return (
        f"shares of the gap to ±{study.precision:g} need {needed} seeds, {source} (this study has "
        f"{len(study.seeds)}{few})"
    )


def _seeds(seeds: Sequence[int]) -> str:
    ordered = sorted(seeds)
    is_range = len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1))
    return f"{ordered[0]} to {ordered[-1]}" if is_range else ", ".join(map(str, ordered))


# -- meanwhile ---------------------------------------------------------------------------------


def progress_view(cells: Sequence[Cell]) -> RenderableType:
    """One row per arm and network, one column per seed: how far each training is."""
    states = {cell.name: CellDir(cell.folder).state() for cell in cells}
    seeds = sorted({cell.seed for cell in cells})
    table = Table(box=None, pad_edge=False)
    for name in ("arm", "network", *(f"seed {seed}" for seed in seeds)):
        table.add_column(name)
    rows: dict[tuple[str, str], dict[int, Text]] = {}
    for cell in cells:
        row = rows.setdefault((cell.label, f"{cell.place} ({cell.config.arch})"), {})
        row[cell.seed] = _state(states[cell.name], cell.config.epochs)
    for (arm, network), row in rows.items():
        table.add_row(Text(arm), network, *(row.get(seed, Text()) for seed in seeds))
    n_done = sum(state.get("state") in ENDED for state in states.values())
    return Group(table, Text(f"{n_done} of {len(cells)} trainings are done"))


def _state(state: Mapping[str, Any], n_epochs: int) -> Text:
    name = state.get("state", "waiting")
    if name == "running":
        return Text(f"epoch {state.get('epoch', 0)}/{n_epochs}", style="yellow")
    styles = {"done": "green", "failed": "red", "diverged": "red"}
    return Text(str(name), style=styles.get(name, "dim"))


def end_line(cell: Cell) -> str | None:
    """What to say of a training that has ended; None before."""
    state = CellDir(cell.folder).state()
    if state.get("state") == "done":
        return f"{cell.name} is done ({duration(state.get('seconds', math.nan))})"
    if state.get("state") in ("failed", "diverged"):
        return f"{cell.name} {state['state']}: {state.get('message', '')}"
    return None


# -- after -------------------------------------------------------------------------------------


def results_view(found: Results) -> RenderableType:
    """The question, the gap, one row per arm, the controls, the 2 × 2 and the notes."""
    study = found.study
    lines: list[RenderableType] = [Text(study.question, style="bold")]
    lines += [Text(line) for line in gap_lines(found)]
    if found.causes:
        lines += [Text(), _table(found)]
    lines += [Text(line) for line in remarks(found)]
    return Group(*lines)


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
            "all seeds share one split of the data: the intervals say nothing of other test images "
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
            lines[-1] += f": not surely above {measure.margin:g}, so that it has no shares"
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
        f"{said}; it diverged in {len(one.diverged)} {_seed_word(one.diverged)}, which is a "
        "reaction that has no number and is not counted"
    )


def _seed_word(seeds: Sequence[int]) -> str:
    return "seed" if len(seeds) == 1 else "seeds"


def algebra_line(one: ArmResult) -> str | None:
    """Of an arm that by algebra changes nothing, how near to that the trainings came."""
    found = one.equivalence
    if found is None:
        return None
    return (
        f"{one.arm.name} multiplies gradients by a constant, which AdamW divides away again: by "
        "algebra it changes nothing, and is no evidence. It controls the machinery: training loss "
        f"{_span(found.change)} nats, surely within {at.LOSS_MARGIN.value:g}: "
        f"{'yes' if found.holds else 'not shown'} ({p_text(found.p)})"
    )


def tuned_lines(found: Results) -> list[str]:
    """Which value each tuned network got, and whether a better one may lie beyond."""
    return [
        f"{one.arm}: {one.name} {one.value} suits {found.study.network(one.place).arch} best, of "
        f"{', '.join(str(value) for value, _ in one.tried)}"
        + ("; a better one may lie beyond" if one.is_at_an_end else "")
        for one in found.study.tuned
    ]


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


def all_checks(found: Results) -> list[str]:
    """What every arm was to change, and what it did: a control that failed its check counts too."""
    return [line for one in found.arms for line in check_lines(one)]


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


def _table(found: Results) -> Table:
    table = Table(box=None, pad_edge=False)
    right = ("share of the gap", "of the accuracy gap", "accused", "reference", "time")
    for name in ("arm", "it is", "share of the gap", at.LEVEL, "of the accuracy gap", "accused",
                 "reference", "check", "time"):  # fmt: skip
        table.add_column(name, justify="right" if name in right else "left")
    for row in map(arm_row, found.strongest):
        table.add_row(
            Text(row["arm"]),
            Text(row["status"], style=STATUS_STYLES[row["status"]]),
            *(row[key] for key in ("share", "interval", "accuracy_share", "accused", "reference",
                                   "check", "time")),
        )  # fmt: skip
    table.caption = (
        "accused, reference: what each network gains by the arm, in nats of training loss"
    )
    table.caption_justify = "left"
    return table


def arm_row(one: ArmResult) -> dict[str, str]:
    """What a table says of an arm, as text."""
    loss, accuracy = (one.shares[measure.name] for measure in MEASURES)
    return {
        "arm": one.arm.name,
        "says": one.arm.says,
        "tests": one.arm.tests,
        "status": one.primary.status if one.primary is not None else "undetermined",
        "share": _number(loss.value),
        "interval": _range(loss.interval),
        "accuracy_share": f"{_number(accuracy.value)} ({_range(accuracy.interval)})",
        "accused": _gain(one, "accused"),
        "reference": _gain(one, "reference"),
        "check": _check(one),
        "time": duration(one.seconds),
    }


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
