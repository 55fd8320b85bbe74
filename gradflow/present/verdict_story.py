"""The sections of a verdict, and of a comparison of two networks."""

from collections.abc import Sequence

import numpy as np

from gradflow.analysis import thresholds as at
from gradflow.analysis.compare import MEANINGS, Comparison
from gradflow.analysis.findings import Finding
from gradflow.analysis.numerals import factor, p_text
from gradflow.analysis.overview import WINDOWS
from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.analysis.statistics import Interval, enough_seeds
from gradflow.analysis.verdict import Verdict
from gradflow.present.section import Box, Items, Part, Reason, Section, TextTable

# What "yes" and "no" mean of a rival: the data cannot show that it is the cause.
RIVAL_STATUS = {"yes": "consistent", "no": "inconsistent"}
ABOUT = (
    "The four links of the story, and other explanations of the same gap. Consistent means that "
    "the data look as the explanation says, not that it is the cause."
)


def question(verdict: Verdict) -> str:
    """What the verdict answers, in one sentence."""
    case = verdict.case
    asked = f"Do the gradients of {case.name} vanish towards the input"
    seeds = f"({counted(case.seeds)} of each)"
    if not case.reference:
        return f"{asked}? ({counted(case.seeds)})"
    if not verdict.gap:  # whether one does worse was not given
        return f"{asked}, beside those of {case.reference_name}? {seeds}"
    return f"{asked}, and is that why it does worse than {case.reference_name}? {seeds}"


def answer(verdict: Verdict) -> Section:
    """The question, the outcome, and what it rests on."""
    case = verdict.case
    names = [case.name, *filter(None, [case.reference_name])]
    said, *rest = (*verdict.sentences, how_sure(names, case.seeds, verdict))
    return Section("answer", question(verdict), [*changed(case.changed), Box(said, rest)])


def changed(said: str) -> list[Part]:
    """What was changed on purpose, where something was."""
    return [Box(said)] if said else []


def how_sure(names: Sequence[str], seeds: Sequence[int], verdict: Verdict | None) -> str:
    """What the answer rests on: seeds, intervals, and the controls."""
    each = " of each network" if len(names) > 1 else ""
    if len(seeds) == 1:
        said = [f"It rests on one training{each}: it describes, and nothing can be concluded."]
    else:
        paired = ", paired by seed" if each else ""
        said = [f"It rests on {len(seeds)} trainings{each}{paired}."]
    if verdict is not None and len(seeds) > 1:
        said.append(
            f"Intervals are {at.LEVEL}, over seeds where nothing else is said. The tests of the "
            "verdict and of the layers are corrected by Holm's method."
        )
    if verdict is not None and verdict.instrument is not None:
        gate = verdict.instrument
        said.append(
            f"On networks whose truth is known, gradflow recognised {gate.hit_rate:.0%} of the "
            f"vanishing and exploding ones on this machine, with {gate.false_alarm_rate:.0%} false "
            "alarms (`gradflow check --controls`)."
        )
    return " ".join(said)


def why(verdict: Verdict) -> Section:
    """The rates, every link and rival with its evidence, and what to do next."""
    steps: list[Part] = [Items(verdict.next_steps, "Next", numbered=True)]
    return Section(
        "why",
        "Why, and the rivals",
        [
            ABOUT,
            [reason(one) for one in (*verdict.links, *verdict.rivals)],
            _rates(verdict),
            *(steps if verdict.next_steps else []),
            *(f"Note: {note}" for note in verdict.notes),
        ],
    )


def reason(finding: Finding) -> Reason:
    """The answer, and what it rests on: evidence, further numbers, what was not measured."""
    return Reason(
        f"{finding.key}, {finding.title}: {status(finding)}",
        finding.question,
        [
            *(one.sentence for one in finding.evidence if one.is_measured),
            *finding.details,
            *(f"Not measured: needs {what}" for what in finding.missing),
        ],
    )


def status(finding: Finding) -> str:
    """In words, with the p value that decided."""
    is_rival = finding.key.startswith("H")
    said = RIVAL_STATUS.get(finding.status, finding.status) if is_rival else finding.status
    p = {"yes": finding.p_for, "no": finding.p_against}.get(finding.status)
    return said if p is None else f"{said}, {p_text(p)}"


def _rates(verdict: Verdict) -> TextTable:
    found = {(rate.size, rate.network, rate.window): rate for rate in verdict.rates}
    rows = []
    networks = dict.fromkeys(rate.network for rate in verdict.rates)
    for size, network in ((one, name) for one in GRADIENT_SIZES for name in networks):
        if (size, network, WINDOWS[0]) not in found:
            continue
        windows = [found[size, network, window] for window in WINDOWS]
        symbol = f"{GRADIENT_SIZES[size].symbol} {size.replace('_', ' ')}"
        cells = [_interval(one.decades) for one in windows]
        rows.append([symbol, network, *cells, f"{windows[0].growth:.3f}"])
    return TextTable(
        ["size", "network", "start", "early", "whole training", "λ at the start"],
        rows,
        f"Change from the last to the first layer, in decades ({at.LEVEL} over seeds)",
        n_left=2,
    )


def _interval(found: Interval) -> str:
    if not np.isfinite(found.mean):
        return "–"
    mean = f"{found.mean:+.2f}"
    return mean if found.n < 2 else f"{mean} ({found.low:+.2f} to {found.high:+.2f})"


def counted(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"


def comparison(chosen: Sequence[Comparison]) -> Section:
    """Layer by layer: the ratio of one gradient size at the start, at equal step, at equal loss."""
    first = chosen[0]
    rows = [
        [layers[0].layer, *(_ratio(one.ratio) + (" *" if one.differs else "") for one in layers)]
        for layers in zip(*(one.layers for one in chosen), strict=True)
    ]
    return Section(
        "comparison",
        f"{GRADIENT_SIZES[first.size].symbol} ({first.size.replace('_', ' ')}): {first.first} over "
        f"{first.second}, {counted(first.seeds)} ({at.LEVEL} interval; * differs)",
        [
            TextTable(["layer", *(one.at for one in chosen)], rows),
            *(f"{one.at}, {MEANINGS[one.at]}: {_how_many(one)}" for one in chosen),
        ],
    )


def _ratio(ratio: Interval) -> str:
    ends = f" ({factor(ratio.low, 2)} to {factor(ratio.high, 2)})" if ratio.n > 1 else ""
    return f"{factor(ratio.mean)}×{ends}"


def _how_many(one: Comparison) -> str:
    if not enough_seeds(len(one.seeds)):
        return f"described only, since nothing can be concluded from {counted(one.seeds)}."
    known = [layer for layer in one.layers if np.isfinite(layer.ratio.mean)]
    n = sum(layer.differs for layer in one.layers)
    said = f"{n} of {len(one.layers)} layers differ (t test over seeds, Holm over layers)"
    if not known:
        return f"{said}."
    largest = max(known, key=lambda layer: abs(layer.ratio.mean))
    return f"{said}; the largest ratio is {factor(largest.ratio.mean)}× at {largest.layer}."
