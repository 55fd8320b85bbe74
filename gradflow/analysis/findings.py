"""Evidence and findings: numbers per seed against thresholds, and how they combine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from gradflow.analysis import thresholds as at
from gradflow.analysis.numerals import factor
from gradflow.analysis.statistics import Interval, holm, p_beyond, seeds_needed, t_interval
from gradflow.analysis.thresholds import ALPHA, CONFIDENCE, Threshold
from gradflow.typed import to_json

Side = Literal["below", "above"]
Status = Literal["yes", "no", "undetermined", "not measured"]


@dataclass(frozen=True)
class Evidence:
    """One number per seed against one threshold; what it claims holds on one `side` of it."""

    name: str
    meaning: str  # what the number is, as the subject of a sentence
    unit: str  # "×" for a ratio, whose values are log10 of it
    values: tuple[float, ...]
    threshold: Threshold
    limit: float  # the threshold on the scale of `values`
    side: Side

    @property
    def interval(self) -> Interval:
        is_of_accuracies = self.threshold in (at.ACCURACY_MARGIN, at.PROBE_DROP)
        bounds = (-1.0, 1.0) if is_of_accuracies else (-math.inf, math.inf)
        return t_interval(self.values, bounds=bounds)

    @property
    def is_measured(self) -> bool:
        return not all(map(math.isnan, self.values))

    @property
    def n_failed(self) -> int:
        """Seeds whose number is infinite: a training that failed."""
        return sum(map(math.isinf, self.values))

    @property
    def p_for(self) -> float:
        """That the claim holds: one-sided t test over seeds."""
        return p_beyond(self.values, self.limit, self.side)

    @property
    def p_against(self) -> float:
        """That it does not."""
        return p_beyond(self.values, self.limit, "above" if self.side == "below" else "below")

    @property
    def sentence(self) -> str:
        """The number with its interval, and where the claim would hold."""
        if not self.is_measured:
            return f"{self.meaning}: not measured."
        found = self.interval
        spread = (
            f"{at.LEVEL} {self._show(found.low)} to {self._show(found.high)}, {found.n} seeds"
            if found.n > 1
            else "one seed"
        )
        spread += f"; {self.n_failed} more failed" if self.n_failed else ""
        unit = f" {self.unit}" if self.unit not in ("", "×") else ""
        return (
            f"{self.meaning} is {self._show(found.mean)}{unit} ({spread}); "
            f"claimed: {self.side} {self._show(self.limit)}."
        )

    def _show(self, value: float) -> str:
        """A ratio as a factor; a difference with its sign; a share as it is."""
        if self.unit == "×":
            return f"{factor(value)}×"
        signed = self.unit.startswith(("decades", "nats")) and value != 0
        return f"{value:+.3g}" if signed else f"{value:.3g}"

    def to_json(self) -> dict[str, Any]:
        found = self.interval
        return {
            "name": self.name,
            "sentence": self.sentence,
            "unit": self.unit,
            "values": to_json(self.values),
            "mean": to_json(found.mean),
            "interval": to_json([found.low, found.high]),
            "confidence": CONFIDENCE.value,
            "n_seeds": found.n,
            "threshold": to_json(self.threshold) | {"limit": self.limit, "side": self.side},
            "p_for": self.p_for,
            "p_against": self.p_against,
        }


@dataclass(frozen=True)
class Finding:
    """A question, its evidence, and the answer after Holm's correction over all questions."""

    key: str  # "link 1", "H4"
    title: str
    question: str
    evidence: tuple[Evidence, ...]
    p_for: float
    p_against: float
    missing: tuple[str, ...] = ()  # what was not measured, and how to have it
    details: tuple[str, ...] = ()  # further numbers, which decide nothing
    needs_weights: bool = False  # whether what is missing is measured on kept weights
    status: Status = "undetermined"
    alpha: float = ALPHA.value  # that each part must pass, among all that was asked

    @property
    def is_measured(self) -> bool:
        return any(one.is_measured for one in self.evidence)

    @property
    def seeds_needed(self) -> int | None:
        """The seeds that would decide the evidence that is furthest from a decision."""
        counts = [
            seeds_needed(one.values, one.limit, self.alpha)
            for one in self.evidence
            if one.is_measured and min(one.p_for, one.p_against) > self.alpha
        ]
        return None if not counts or None in counts else max(n for n in counts if n is not None)

    def to_json(self) -> dict[str, Any]:
        said = ("key", "title", "question", "status", "p_for", "p_against", "missing", "details")
        evidence = [one.to_json() for one in self.evidence]
        return {name: to_json(getattr(self, name)) for name in said} | {"evidence": evidence}


def all_of(evidence: Sequence[Evidence]) -> tuple[float, float]:
    """(p_for, p_against) where every part must hold: the weakest for it, any one against it.

    For: the intersection-union test, the largest p. Against: the smallest, times their number.
    """
    measured = [one for one in evidence if one.is_measured]
    if not measured:
        return 1.0, 1.0
    p_for = max(one.p_for for one in measured) if len(measured) == len(evidence) else 1.0
    return p_for, min(1.0, len(measured) * min(one.p_against for one in measured))


def any_of(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(p_for, p_against) where one part suffices."""
    if not parts:
        return 1.0, 1.0
    return min(1.0, len(parts) * min(p for p, _ in parts)), max(p for _, p in parts)


def decide(findings: Sequence[Finding]) -> list[Finding]:
    """The status of each, with Holm's correction over all that were measured, either way."""
    family = [one for one in findings if one.is_measured]
    p_for = holm([one.p_for for one in family])
    p_against = holm([one.p_against for one in family])
    adjusted = {one.key: (a, b) for one, a, b in zip(family, p_for, p_against, strict=True)}
    alpha = ALPHA.value / max(1, len(family))
    return [replace(_with_status(one, adjusted.get(one.key)), alpha=alpha) for one in findings]


def _with_status(finding: Finding, adjusted: tuple[float, float] | None) -> Finding:
    if adjusted is None:
        return replace(finding, status="not measured")
    status: Status = "undetermined"
    if adjusted[0] <= ALPHA.value:
        status = "yes"
    elif adjusted[1] <= ALPHA.value:
        status = "no"
    return replace(finding, status=status, p_for=adjusted[0], p_against=adjusted[1])


# -- the outcome -----------------------------------------------------------------------------------


Outcome = Literal[
    "supported",
    "supported for signal and gradient",
    "present, cause not tested",
    "present, not causal",
    "refuted",
    "nothing to explain",
    "undetermined",
    "no verdict",
]
OUTCOMES: dict[Outcome, str] = {
    "supported": "the gradients vanish, and restoring them alone closes a part of the gap",
    "supported for signal and gradient": "the gradients vanish, and what restores them and the "
    "signal together closes a part of the gap: which of the two it was is not told apart",
    "present, cause not tested": "the gradients vanish, and nobody has yet restored them to see "
    "whether the gap closes",
    "present, not causal": "the gradients vanish, and restoring them does not close the gap",
    "refuted": "the gradients do not vanish",
    "nothing to explain": "the accused network does no worse than the other one",
    "undetermined": "the data do not decide",
    "no verdict": "the instrument failed its controls on this machine",
}

# What an intervention that restores the gradients changes.
Changes = Literal["gradients", "signal and gradients"]


def outcome_of(
    gap: Status, exists: Status, reaches: Status, causes: Status, changes: Changes = "gradients"
) -> Outcome:
    """The outcome of a gap and of links 1, 2 and 4; link 3 describes and decides nothing.

    Early layers that learned something (link 3) may have learned less than they could.
    """
    match gap, exists, reaches, causes:
        case "no", _, _, _:
            return "nothing to explain"
        case _, "no", _, _:
            return "refuted"
        case _, "yes", _, "not measured":
            return "present, cause not tested"
        case "yes", "yes", _, "no":
            return "present, not causal"
        case "yes", "yes", ("yes" | "undetermined" | "not measured"), "yes":
            alone = changes == "gradients"
            return "supported" if alone else "supported for signal and gradient"
        case _:  # open, or the evidence conflicts: what does not reach the weights closes the gap
            return "undetermined"
