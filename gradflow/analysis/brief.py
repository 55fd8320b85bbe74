"""A verdict in at most ten lines: the answer, its numbers, where it happens, what to do next."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gradflow.analysis import thresholds as at
from gradflow.analysis.findings import OUTCOMES
from gradflow.analysis.network import early
from gradflow.analysis.numerals import part, plain, times
from gradflow.analysis.profile import GRADIENT_SIZES, typical
from gradflow.analysis.rates import Rate
from gradflow.analysis.sentences import (
    SEEDS,
    SIZE_WORDS,
    at_the_first_layer,
    undetermined,
    worse_by,
)
from gradflow.analysis.statistics import enough_seeds
from gradflow.analysis.vanishing import JUDGED_SIZES, early_decades, n_cut_off

if TYPE_CHECKING:
    from gradflow.analysis.verdict import Verdict

INDENT = 9  # characters before what a line says


def brief(verdict: "Verdict") -> str:
    """What `gradflow diagnose` prints and `str(verdict)` is."""
    return "\n".join(f"{name:<{INDENT}}{said}" for name, said in lines(verdict))


def title(verdict: "Verdict") -> str:
    """Which networks, over how many seeds."""
    case = verdict.case
    seeds = f"{len(case.seeds)} seed{'s' if len(case.seeds) > 1 else ''}"
    if not case.reference:
        return f"{case.name}, {seeds}"
    return f"{case.name} against {case.reference_name}, {seeds} of each"


def lines(verdict: "Verdict") -> list[tuple[str, str]]:
    """What each says, and its name."""
    return [(name, said) for name, said in _lines(verdict) if said]


def _lines(verdict: "Verdict") -> Iterator[tuple[str, str]]:
    changed = f". {verdict.case.changed}" if verdict.case.changed else ""
    yield "Asked", f"do the gradients vanish towards the input? {title(verdict)}{changed}"
    yield "Answer", f"{verdict.outcome}: {OUTCOMES[verdict.outcome]}"
    for size in JUDGED_SIZES:
        yield GRADIENT_SIZES[size].symbol, _size(verdict, size)
    gap = ", ".join(map(worse_by, verdict.gap))
    yield "Gap", f"{verdict.case.name} is {gap}" if gap else ""
    yield "Where", where(verdict)
    yield "Open", _open(verdict)
    yield "Rivals", _rivals(verdict)
    yield "Next", _without_reason(verdict.next_steps[0]) if verdict.next_steps else ""


def _size(verdict: "Verdict", size: str) -> str:
    """Times, from the last to the first layer, with the interval over seeds."""
    found = early_decades(verdict.case, size)
    if not found.n:
        return ""
    said = f"{SIZE_WORDS[size]}: {at_the_first_layer(verdict.case, size)}"
    if n_cut_off(verdict.case, size):
        return said
    ends = sorted((abs(found.low), abs(found.high)))
    # An interval on both sides of "no change" cannot be said in times larger or smaller.
    spread = f"{at.LEVEL} {found.low:+.2f} to {found.high:+.2f} decades; "
    if found.low * found.high > 0:
        spread = f"{at.LEVEL} {times(ends[0])} to {times(ends[1])}; "
    limit = plain(10**at.VANISHING_DECADES.value)
    return f"{said} ({spread if found.n > 1 else ''}vanishing: {limit} smaller)"


def where(verdict: "Verdict") -> str:
    """The layer where it happens, early in training, over the seeds of the accused network."""
    case = verdict.case
    for one in case.accused:
        if bad := one.trace.nonfinite():
            return f"NaN or inf first at {bad[0].site}, step {bad[0].first_step}, seed {one.seed}"
    layers = case.accused[0].layers
    for size in JUDGED_SIZES:
        if not all(GRADIENT_SIZES[size].is_in(one.trace) for one in case.accused):
            continue
        of_seeds = [one.rate(size, early(one)).values for one in case.accused]
        place = _place(Rate(typical(np.array(of_seeds))), [layer.name for layer in layers], size)
        has_graph = all(one.trace.feeds is not None for one in case.accused)
        return place if has_graph or not place else f"{place}; layers in order of execution"
    return ""


def _place(rate: Rate, names: list[str], size: str) -> str:
    symbol, n = GRADIENT_SIZES[size].symbol, len(names)

    def named(index: int) -> str:
        return f"{names[index]}, layer {index + 1} of {n}"

    if 0 < rate.n_without < n:
        return f"no gradient at all up to {named(rate.n_without - 1)}"
    known = np.flatnonzero(np.isfinite(rate.values) & (rate.values > 0))
    if len(known) < 2:
        return ""
    change = np.log10(rate.values[known] / rate.values[known[-1]])
    limit = at.VANISHING_DECADES.value
    if rate.label not in ("vanishing", "exploding"):
        least = int(known[change.argmin()])
        return f"nowhere by that much: {symbol} is smallest at {named(least)}"
    is_past = change < -limit if rate.label == "vanishing" else change > limit
    first = int(known[is_past].max())
    side = f"{part(10**-limit)} of" if rate.label == "vanishing" else f"{10**limit:g} times"
    said = f"{symbol} passes {side} the last layer's at {named(first)}"
    drop = rate.drop
    if rate.label == "exploding" or drop is None:
        return said
    if 3 * drop.decades > rate.decades:
        return f"{said}, in steps of at most {times(drop.decades, 2)} times"
    return f"{said}; {times(drop.decades, 2)} times of it at {named(drop.index)} alone"


def _open(verdict: "Verdict") -> str:
    """Why it is undetermined."""
    if verdict.outcome != "undetermined":
        return ""
    n = len(verdict.case.seeds)
    if not enough_seeds(n):
        return f"a claim needs {SEEDS} seeds; with {n} this is a description"
    return undetermined(verdict)


def _rivals(verdict: "Verdict") -> str:
    """Which explanations of the gap the data are consistent with, and how many they are not."""
    if not verdict.rivals or verdict.gap_status == "no":
        return ""
    of = {status: [one for one in verdict.rivals if one.status == status]
          for status in ("yes", "no", "undetermined", "not measured")}  # fmt: skip
    shown = ", ".join(f"{one.title} ({one.key})" for one in of["yes"]) or "none"
    counts = [f"{len(found)} {words}" for status, words in
              (("no", "ruled out"), ("undetermined", "open"), ("not measured", "not measured"))
              if (found := of[status])]  # fmt: skip
    return f"consistent with the gap: {shown}; {', '.join(counts)}"


def _without_reason(step: str) -> str:
    """Up to the first colon or full stop that is not inside of code.

    >>> _without_reason("Train 5 seeds, `seeds: 5` in the study's file: fewer prove nothing.")
    "Train 5 seeds, `seeds: 5` in the study's file"
    """
    outside = r"(?=(?:[^`]*`[^`]*`)*[^`]*$)"
    return re.split(rf"[:.] {outside}", step, maxsplit=1)[0].rstrip(".")
