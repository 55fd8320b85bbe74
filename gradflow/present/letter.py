"""The verdict and the comparison of two networks in the terminal, as text for rich."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gradflow.analysis import thresholds as at
from gradflow.analysis.compare import MEANINGS, Comparison
from gradflow.analysis.findings import Finding
from gradflow.analysis.numerals import p_text, plain
from gradflow.analysis.outcome import OUTCOMES
from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.analysis.statistics import Interval, enough_seeds
from gradflow.analysis.vanishing import JUDGED_SIZES
from gradflow.analysis.verdict import Verdict
from gradflow.present.terminal import ASCII_BARS, BARS, bar_picture
from gradflow.present.terminal_plot import braille_profile

# What "yes" and "no" mean of a rival: the data cannot show that it is the cause.
RIVAL_STATUS = {
    "yes": "consistent",
    "no": "inconsistent",
    "undetermined": "undetermined",
    "not measured": "not measured",
}
STYLES = {"yes": "bold", "no": "dim", "undetermined": "", "not measured": "dim"}


def summary_view(verdict: Verdict, *, braille: bool = True) -> RenderableType:
    """The question, the answer, and the profiles."""
    return Group(*_answer_lines(verdict), Text(), *_profile_lines(verdict, braille=braille))


def verdict_view(verdict: Verdict, *, braille: bool = True) -> RenderableType:
    """Verdict, Why, Next: like a doctor's letter. Without `braille` the pictures are ASCII."""
    return Group(
        *_answer_lines(verdict),
        Text("\nWhy", style="bold"),
        *_profile_lines(verdict, braille=braille),
        _rate_table(verdict),
        *(line for link in verdict.links for line in _finding_lines(link, link.status)),
        *_rival_lines(verdict),
        Text("\nNext", style="bold"),
        *(_indented(f"{i}. {step}") for i, step in enumerate(verdict.next_steps, start=1)),
        *(_indented(f"Note: {note}") for note in verdict.notes),
        *_instrument_lines(verdict),
    )


def _answer_lines(verdict: Verdict) -> list[RenderableType]:
    return [
        Text(question(verdict), style="italic"),
        *([Text(f"\n{verdict.case.changed}")] if verdict.case.changed else []),
        Text(f"\nVerdict  {verdict.outcome}: {OUTCOMES[verdict.outcome]}", style="bold"),
        *(_indented(sentence) for sentence in verdict.sentences),
    ]


def question(verdict: Verdict) -> str:
    """What the verdict answers, in one sentence."""
    case = verdict.case
    seeds = f"{len(case.seeds)} seed{'s' if len(case.seeds) > 1 else ''}"
    if not case.reference:
        return f"Do the gradients of {case.name} vanish towards the input? ({seeds})"
    if not verdict.gap:  # whether one does worse was not given
        return (
            f"Do the gradients of {case.name} vanish towards the input, beside those of "
            f"{case.reference_name}? ({seeds} of each)"
        )
    return (
        f"Do the gradients of {case.name} vanish towards the input, and is that why it does worse "
        f"than {case.reference_name}? ({seeds} of each)"
    )


def _indented(text: str, by: int = 2) -> Padding:
    return Padding(Text(text), (0, 0, 0, by))


def _profile_lines(verdict: Verdict, *, braille: bool) -> list[Text]:
    """Every gradient size by depth, the networks on one scale; g, which proves nothing, in bars."""
    to = "→" if braille else "to"
    lines = [f"  by depth, input {to} output, early in training (log scale, mean over seeds)"]
    for size, meaning in GRADIENT_SIZES.items():
        profiles = {band.network: band.mean for band in verdict.bands if band.size == size}
        if braille and size in JUDGED_SIZES:
            unit = f"{meaning.symbol} {size.replace('_', ' ')}, {meaning.unit}"
            lines += [f"  {line}" for line in braille_profile(profiles, unit)]
        else:
            lines += _bar_lines(profiles, size, BARS if braille else ASCII_BARS)
    return [Text(line) for line in lines]


def _bar_lines(profiles: Mapping[str, np.ndarray], size: str, bars: str) -> list[str]:
    """A row of bars for each network, and the scale below."""
    meaning = GRADIENT_SIZES[size]
    values = np.concatenate([[], *(mean[np.isfinite(mean)] for mean in profiles.values())])
    if not len(values):
        return []
    low, high = 10 ** float(values.min()), 10 ** float(values.max())
    width = max(map(len, profiles))
    head = meaning.symbol if bars == BARS else size.replace("_", " ")
    lines = [
        f"  {head}  {network:<{width}}  {bar_picture(10**mean, low, high, bars)}"
        for network, mean in profiles.items()
    ]
    return [*lines, f"     {bars[0]} {low:.2g} to {bars[-1]} {high:.2g} {meaning.unit}"]


def _rate_table(verdict: Verdict) -> Padding:
    table = Table(
        title="change from the last to the first layer, in decades ({at.LEVEL} over seeds)",
        title_justify="left",
    )
    for name in ("size", "network", "start", "early", "whole training", "λ at the start"):
        table.add_column(name, justify="left" if name in ("size", "network") else "right")
    found = {(rate.size, rate.network, rate.window): rate for rate in verdict.rates}
    for size, meaning in GRADIENT_SIZES.items():
        for network in dict.fromkeys(rate.network for rate in verdict.rates):
            windows = [found.get((size, network, w)) for w in ("start", "early", "whole")]
            if windows[0] is None:
                continue
            cells = ["" if one is None else _interval(one.decades) for one in windows]
            row = (f"{meaning.symbol} {size.replace('_', ' ')}", network, *cells)
            table.add_row(*row, f"{windows[0].growth:.3f}")
    return Padding(table, (1, 0, 0, 2))


def _interval(found: Interval, digits: int = 2) -> str:
    if not np.isfinite(found.mean):
        return "–"
    mean = f"{found.mean:+.{digits}f}"
    return mean if found.n < 2 else f"{mean} ({found.low:+.{digits}f} to {found.high:+.{digits}f})"


def _finding_lines(finding: Finding, status: str) -> list[RenderableType]:
    p = f", {p_text(finding.p_for if finding.status == 'yes' else finding.p_against)}"
    decided = finding.status in ("yes", "no")
    if not finding.is_measured:
        return [
            _indented(f"{finding.key}, {finding.title}: not measured"),
            *(_indented(f"· needs {what}", 4) for what in finding.missing),
        ]
    head = f"\n  {finding.key}, {finding.title}: {status}{p if decided else ''}"
    lines: list[RenderableType] = [Text(head, style=STYLES[finding.status])]
    lines += [_indented(finding.question, 4)]
    lines += [_indented(f"· {one.sentence}", 4) for one in finding.evidence if one.is_measured]
    lines += [_indented(f"· {line}", 4) for line in finding.details]
    lines += [_indented(f"· not measured: needs {what}", 4) for what in finding.missing]
    return lines


def _rival_lines(verdict: Verdict) -> list[RenderableType]:
    if not verdict.rivals:
        return []
    lines: list[RenderableType] = [
        Text("\nRivals: other explanations of the gap, the consistent ones first", style="bold")
    ]
    for rival in verdict.rivals:
        lines += _finding_lines(rival, RIVAL_STATUS[rival.status])
    return lines


def _instrument_lines(verdict: Verdict) -> list[RenderableType]:
    gate = verdict.instrument
    if gate is None:
        return []
    return [
        Text("\nInstrument", style="bold"),
        _indented(
            f"On networks whose truth is known, on this machine: {gate.hit_rate:.0%} of the "
            f"vanishing and exploding ones recognised, {gate.false_alarm_rate:.0%} false alarms "
            "(`gradflow check --controls`)."
        ),
    ]


def comparison_view(comparisons: Sequence[Comparison], size: str) -> RenderableType:
    """Layer by layer: the ratio of one gradient size at the start, at equal step, at equal loss."""
    chosen = [one for one in comparisons if one.size == size]
    first = chosen[0]
    table = Table(
        title=f"{GRADIENT_SIZES[size].symbol} ({size.replace('_', ' ')}): {first.first} over "
        f"{first.second}, {len(first.seeds)} seed{'s' if len(first.seeds) > 1 else ''} "
        f"({at.LEVEL} interval; * differs)",
        title_justify="left",
    )
    table.add_column("layer")
    for one in chosen:
        table.add_column(one.at, justify="right")
    for rows in zip(*(one.layers for one in chosen), strict=True):
        cells = [
            f"{plain(10**row.ratio.mean)}×" + _factors(row.ratio) + (" *" if row.differs else "")
            for row in rows
        ]
        table.add_row(rows[0].layer, *cells)
    legend = "; ".join(f"{one.at}: {MEANINGS[one.at]}" for one in chosen)
    return Group(table, Text(f"({legend})"), *map(Text, _comparison_sentences(chosen)))


def _factors(ratio: Interval) -> str:
    return "" if ratio.n < 2 else f" ({plain(10**ratio.low, 2)} to {plain(10**ratio.high, 2)})"


def _largest(comparison: Comparison) -> str:
    known = [layer for layer in comparison.layers if np.isfinite(layer.ratio.mean)]
    if not known:
        return ""
    largest = max(known, key=lambda layer: abs(layer.ratio.mean))
    return f"; the largest ratio is {plain(largest.factor)}× at {largest.layer}"


def _comparison_sentences(comparisons: Sequence[Comparison]) -> list[str]:
    lines = []
    for one in comparisons:
        n = sum(layer.differs for layer in one.layers)
        if not enough_seeds(len(one.seeds)):
            lines.append(
                f"{one.at}: described only, since nothing can be told from {len(one.seeds)} "
                f"seed{'s' if len(one.seeds) > 1 else ''}."
            )
            continue
        lines.append(
            f"{one.at}: {n} of {len(one.layers)} layers differ (t test over seeds, Holm over "
            f"layers){_largest(one)}."
        )
    return lines
