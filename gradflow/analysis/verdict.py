"""The verdict: do the gradients vanish, does it reach and matter, and would it explain the gap?

The seed is the sample: every number is taken once per seed, and what is said of a network holds
over seeds. With fewer than three seeds the verdict describes, and says that it cannot conclude.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from gradflow.analysis import thresholds as at
from gradflow.analysis.case import Case
from gradflow.analysis.findings import Evidence, Finding, Status, decide, enough_seeds
from gradflow.analysis.notebook import verdict_html
from gradflow.analysis.overview import Band, RateOfGroup, bands, rates
from gradflow.analysis.rivals import rivals
from gradflow.analysis.sentences import next_steps, sentences
from gradflow.analysis.shares import is_sure_gap
from gradflow.analysis.statistics import p_equivalent
from gradflow.analysis.vanishing import (
    JUDGED_SIZES,
    causes,
    does_not_vanish,
    early_decades,
    exists,
    explodes,
    matters,
    reaches,
    vanishes,
)

SCHEMA_VERSION = 1

Outcome = Literal[
    "supported",
    "present, not shown causal",
    "present but not causal",
    "matters only under SGD",
    "refuted",
    "exploding instead",
    "nothing to explain",
    "undetermined",
    "no verdict",
]
OUTCOMES: dict[Outcome, str] = {
    "supported": "the gradients vanish, it matters, and restoring them takes away part of the gap",
    "present, not shown causal": "the gradients vanish, and nobody has yet restored them to see "
    "whether the gap closes",
    "present but not causal": "the gradients vanish, and it is not the cause of the gap",
    "matters only under SGD": "the gradients vanish, and restoring them would help under SGD, but "
    "not with the optimizer of these runs",
    "refuted": "the gradients do not vanish, or their size changes nothing",
    "exploding instead": "the gradients grow towards the input, more than ten-fold",
    "nothing to explain": "the accused network does no worse than the other one",
    "undetermined": "the data do not decide",
    "no verdict": "the instrument failed its controls on this machine",
}


@dataclass(frozen=True)
class GradientSize:
    """What a study found where it changed the size of the accused's gradients, and nothing else.

    `changes_nothing` names the arms if, with an optimizer that divides by that size, every dose
    leaves the training loss within the margin (TOST) while a positive control under another one
    reacts. `helps_sgd` names the control in which the restored gradients lower the loss under SGD.
    """

    changes_nothing: tuple[str, ...] = ()
    helps_sgd: str = ""


class Instrument(Protocol):
    """How well the rates tell networks whose truth is known: see `gradflow.controls.gate`."""

    @property
    def hit_rate(self) -> float: ...
    @property
    def false_alarm_rate(self) -> float: ...
    @property
    def passed(self) -> bool: ...
    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Verdict:
    """The answer with its evidence. `sentences` are for people, `to_json` for programs."""

    outcome: Outcome
    case: Case
    gap: tuple[Evidence, ...]
    gap_status: Status
    links: tuple[Finding, ...]
    rivals: tuple[Finding, ...]  # the consistent ones first
    rates: tuple[RateOfGroup, ...]
    bands: tuple[Band, ...]
    sentences: tuple[str, ...]
    next_steps: tuple[str, ...]
    notes: tuple[str, ...]
    instrument: Instrument | None
    size: GradientSize = GradientSize()

    def has(self, label: Literal["vanishing", "exploding"]) -> bool:
        """Whether the early gradients do: decided over seeds, or as measured with few."""
        if enough_seeds(len(self.case.seeds)):
            return vanishes(self.case) if label == "vanishing" else explodes(self.case)
        sign = -1.0 if label == "vanishing" else 1.0
        means = [early_decades(self.case, size).mean for size in JUDGED_SIZES]
        return any(sign * mean > at.VANISHING_DECADES.value for mean in means)

    def _repr_html_(self) -> str:
        return verdict_html(self, OUTCOMES[self.outcome])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; the schema is verdict.schema.json beside this file."""
        return {
            "schema_version": SCHEMA_VERSION,
            "outcome": self.outcome,
            "meaning": OUTCOMES[self.outcome],
            "accused": self.case.name,
            "reference": self.case.reference_name or None,
            "seeds": list(self.case.seeds),
            "changed": self.case.changed or None,
            "sentences": list(self.sentences),
            "gap": {
                "status": self.gap_status,
                "evidence": [one.to_json() for one in self.gap],
            },
            "links": [one.to_json() for one in self.links],
            "rivals": [one.to_json() for one in self.rivals],
            "rates": [one.to_json() for one in self.rates],
            "profiles": [one.to_json() for one in self.bands],
            "next": list(self.next_steps),
            "notes": list(self.notes),
            "instrument": self.instrument.to_json() if self.instrument is not None else None,
        }


def judge_case(
    case: Case,
    instrument: Instrument | None = None,
    gap_shares: Sequence[float] = (),
    size: GradientSize | None = None,
) -> Verdict:
    """Judge "the gradients of the accused network vanish, and that is why it does worse".

    `gap_shares` is what an intervention found: the share of the gap, per seed, that goes away when
    the gradients are restored. Without it the last link stays open. `size` is what it found of
    their size alone. Raises ValueError where the number of shares is not that of the seeds.
    """
    size = size or GradientSize()
    _check_has_gradients(case)
    if len(gap_shares) not in (0, len(case.seeds)):
        raise ValueError(
            f"Expected one share of the gap for each of {len(case.seeds)} seeds, "
            f"but got {len(gap_shares)}."
        )
    gap = _gap(case)
    gap_status = _gap_status(gap)
    links = [exists(case), reaches(case), matters(case), causes(case, gap_shares)]
    others = rivals(case) if case.reference else []
    # One family: every question that is asked of these runs.
    decided = decide([*links, *others])
    links, others = decided[: len(links)], decided[len(links) :]
    verdict = Verdict(
        outcome=_outcome(case, instrument, gap_status, links, size),
        case=case,
        gap=gap,
        gap_status=gap_status,
        links=tuple(links),
        rivals=tuple(sorted(others, key=_rank)),
        rates=tuple(rates(case)),
        bands=tuple(bands(case)),
        sentences=(),
        next_steps=(),
        notes=case.notes,
        instrument=instrument,
        size=size,
    )
    return replace(verdict, sentences=sentences(verdict), next_steps=next_steps(verdict))


def _check_has_gradients(case: Case) -> None:
    """Raises ValueError where there is nothing to judge by."""
    if any(early_decades(case, size).n for size in JUDGED_SIZES):
        return
    names = ("output_grad_norm", "grad_norm")
    tables = [one.trace.values[name] for one in case.accused for name in names
              if name in one.trace.values]  # fmt: skip
    if not tables:
        got, todo = "they were not recorded", "Record with the default measures"
    elif any((table == 0).any() for table in tables):
        got, todo = "all are zero", "Look whether the loss depends on the network at all"
    else:
        got = "none is finite"
        todo = "Training diverged: lower the learning rate; `trace.nonfinite()` tells where"
    raise ValueError(
        f"Expected gradients of {case.name} above zero in two layers of a stage, but {got}. {todo}."
    )


# -- the outcome ---------------------------------------------------------------------------------


def _outcome(
    case: Case,
    instrument: Instrument | None,
    gap: Status,
    links: Sequence[Finding],
    size: GradientSize,
) -> Outcome:
    if instrument is not None and not instrument.passed:
        return "no verdict"
    if not enough_seeds(len(case.seeds)):
        return "undetermined"
    if gap == "no":
        return "nothing to explain"
    return _outcome_of_links(case, gap, [link.status for link in links], size)


def _outcome_of_links(
    case: Case, gap: Status, status: Sequence[Status], size: GradientSize
) -> Outcome:
    reaches_weights, causes_gap = status[1], status[3]
    # A small gap can close within the margin: then the two conflict, and the size decides nothing.
    is_without_effect = bool(size.changes_nothing) and causes_gap != "yes"
    if status[0] == "no":
        if does_not_vanish(case):
            return "exploding instead" if explodes(case) else "refuted"
        if vanishes(case):
            # It shrinks, and yet the early layers receive no less than those of the reference.
            return "present but not causal"
    if status[0] != "yes":
        # Whether they vanish is open; that it would not matter here is known.
        return "refuted" if is_without_effect else "undetermined"
    if causes_gap == "no" or is_without_effect:
        return "matters only under SGD" if size.helps_sgd else "present but not causal"
    if reaches_weights == "no":
        # What never reaches the weights cannot matter. If the gap closes, the two conflict.
        return "undetermined" if causes_gap == "yes" else "present but not causal"
    if all(one == "yes" for one in status) and gap == "yes":
        return "supported"
    # What was not asked stays open, and so does what was asked and not decided. Early layers that
    # did learn speak against the story, and do not rule it out: they may have learned less.
    return "present, not shown causal"


def _gap(case: Case) -> tuple[Evidence, ...]:
    """How much worse the accused network does: on training loss and on test accuracy."""
    if not case.reference:
        return ()
    evidence = (
        Evidence(
            "gap_train_loss",
            f"{case.name}'s training loss less {case.reference_name}'s, without augmentation,",
            "nats",
            case.pairs(lambda mine, theirs: _minus(mine.train_loss, theirs.train_loss)),
            at.LOSS_MARGIN, 0.0, "above",
        ),
        Evidence(
            "gap_test_accuracy",
            f"{case.reference_name}'s balanced test accuracy less {case.name}'s",
            "",
            case.pairs(lambda mine, theirs: _minus(theirs.test_accuracy, mine.test_accuracy)),
            at.ACCURACY_MARGIN, 0.0, "above",
        ),
    )  # fmt: skip
    return tuple(one for one in evidence if one.is_measured)


def _gap_status(gap: Sequence[Evidence]) -> Status:
    """Yes where both outcomes are worse, over five seeds; no where both are equal or better."""
    if not gap:
        return "not measured"
    if all(is_sure_gap(one.values) for one in gap):
        return "yes"
    alpha = 1 - at.CONFIDENCE.value
    if all(
        p_equivalent(one.values, one.threshold.value) <= alpha or one.p_against <= alpha / 2
        for one in gap
    ):
        return "no"
    return "undetermined"


def _minus(one: float | None, other: float | None) -> float:
    return math.nan if one is None or other is None else one - other


def _rank(finding: Finding) -> tuple[int, float]:
    order: tuple[Status, ...] = ("yes", "undetermined", "no", "not measured")
    return order.index(finding.status), finding.p_for
