"""The verdict: do the gradients vanish, does it reach and matter, and would it explain the gap?

The seed is the sample: every number is taken once per seed, and what is said of a network holds
over seeds. With fewer than five seeds the verdict describes, and says that it cannot conclude.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from gradflow.analysis import thresholds as at
from gradflow.analysis.brief import brief, title
from gradflow.analysis.case import Case
from gradflow.analysis.findings import (
    OUTCOMES,
    Changes,
    Evidence,
    Finding,
    Outcome,
    Status,
    decide,
    outcome_of,
)
from gradflow.analysis.network import TrainedNetwork
from gradflow.analysis.notebook import verdict_html
from gradflow.analysis.overview import Band, RateOfGroup, bands, rates
from gradflow.analysis.rivals import rivals
from gradflow.analysis.sentences import next_steps, sentences
from gradflow.analysis.shares import gap_status
from gradflow.analysis.statistics import enough_seeds
from gradflow.analysis.vanishing import (
    JUDGED_SIZES,
    Direction,
    causes,
    directions,
    early_decades,
    exists,
    matters,
    reaches,
)

SCHEMA_VERSION = 2
ALL_ZERO = (
    "Look for a layer near the output that lets nothing through (`gradflow.check` names it at the "
    "start), and whether the loss depends on the network at all"
)


@dataclass(frozen=True)
class Restored:
    """What an intervention found that restores the gradients of the accused network.

    `shares` of the gap that went away, one per seed; `changes` says what it touched: where it
    repairs the signal as well, it does not show that the gradients were the cause. `under_sgd`
    names a positive control in which the same change lowers the loss under SGD.
    """

    shares: tuple[float, ...] = ()
    changes: Changes = "gradients"
    under_sgd: str = ""


class Instrument(Protocol):
    """How well the rates tell networks whose truth is known: see `gradflow.controls.gate`."""

    @property
    def hit_rate(self) -> float: ...
    @property
    def false_alarm_rate(self) -> float: ...
    @property
    def passed(self) -> bool: ...
    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True, repr=False)
class Verdict:
    """The answer with its evidence. `print` gives it in ten lines, `to_json` all for programs."""

    outcome: Outcome
    case: Case
    gap: tuple[Evidence, ...]
    links: tuple[Finding, ...]
    rivals: tuple[Finding, ...]  # the consistent ones first
    notes: tuple[str, ...]
    instrument: Instrument | None
    restored: Restored

    @property
    def gap_status(self) -> Status:
        """Whether there is a gap to explain, by training loss and test accuracy together."""
        return _gap_status(self.gap)

    @cached_property
    def rates(self) -> tuple[RateOfGroup, ...]:
        return tuple(rates(self.case))

    @cached_property
    def bands(self) -> tuple[Band, ...]:
        """Early in training."""
        return tuple(bands(self.case))

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        return sentences(self)

    @cached_property
    def next_steps(self) -> tuple[str, ...]:
        return next_steps(self)

    def has(self, label: Direction) -> bool:
        """Whether the early gradients do this, and not by another size the other as well."""
        return directions(self.case) == {label}

    def __str__(self) -> str:
        return brief(self)

    def __repr__(self) -> str:
        return f"<Verdict {self.outcome}: {title(self)}>"

    def _repr_html_(self) -> str:
        return verdict_html(self)

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
            "restored": self.restored.changes if self.restored.shares else None,
            "rivals": [one.to_json() for one in self.rivals],
            "rates": [one.to_json() for one in self.rates],
            "profiles": [one.to_json() for one in self.bands],
            "next": list(self.next_steps),
            "notes": list(self.notes),
            "instrument": self.instrument.to_json() if self.instrument is not None else None,
        }


def judge_case(
    case: Case, instrument: Instrument | None = None, restored: Restored | None = None
) -> Verdict:
    """Judge "the gradients of the accused network vanish, and that is why it does worse".

    Without what an intervention found, `restored`, the last link stays open. Raises ValueError
    where it has another number of shares than there are seeds.
    """
    restored = restored or Restored()
    _check_has_gradients(case)
    if len(restored.shares) not in (0, len(case.seeds)):
        raise ValueError(
            f"Expected one share of the gap for each of {len(case.seeds)} seeds, "
            f"but got {len(restored.shares)}."
        )
    gap = _gap(case)
    links = [exists(case), reaches(case), matters(case), causes(case, restored.shares)]
    others = rivals(case) if case.reference else []
    # One family: every question that is asked of these runs.
    decided = decide([*links, *others])
    links, others = decided[: len(links)], decided[len(links) :]
    outcome = _outcome(case, instrument, _gap_status(gap), links, restored)
    others.sort(key=_rank)
    return Verdict(
        outcome, case, gap, tuple(links), tuple(others), case.notes, instrument, restored
    )


def _outcome(
    case: Case,
    instrument: Instrument | None,
    gap: Status,
    links: Sequence[Finding],
    restored: Restored,
) -> Outcome:
    if instrument is not None and not instrument.passed:
        return "no verdict"
    if not enough_seeds(len(case.seeds)):
        return "undetermined"
    there, reached, _, caused = (link.status for link in links)
    return outcome_of(gap, there, reached, caused, restored.changes)


def _check_has_gradients(case: Case) -> None:
    """Raises ValueError where there is nothing to judge by."""
    if any(early_decades(case, size).n for size in JUDGED_SIZES):
        return
    names = ("output_grad_norm", "grad_norm")
    tables = [one.trace.values[name] for one in case.accused for name in names
              if name in one.trace.values]  # fmt: skip
    if not tables:
        got = "they were not recorded"
        todo = f"Let the Recorder take {' or '.join(names)}, as it does by default"
    elif any((table == 0).any() for table in tables):
        got, todo = "all are zero", ALL_ZERO
    elif not any(one.trace.nonfinite() for one in case.accused):
        got = "none was taken"
        todo = "A Recorder sees the outputs of modules, and no functions: make the layers modules"
    else:
        got = "none is finite"
        todo = "Training diverged: lower the learning rate; `trace.nonfinite()` tells where"
    raise ValueError(
        f"Expected gradients of {case.name} above zero in two layers, but {got}. {todo}."
    )


# -- the gap ---------------------------------------------------------------------------------------


def _gap(case: Case) -> tuple[Evidence, ...]:
    """How much worse the accused network does: on training loss and on test accuracy.

    A training that failed is worse than any number: its seed counts as infinite.
    """
    if not case.reference:
        return ()
    of_lost = (math.inf,) * case.lost[0] + (-math.inf,) * case.lost[1]
    evidence = (
        Evidence(
            "gap_train_loss",
            f"{case.name}'s training loss less {case.reference_name}'s, without augmentation,",
            "nats",
            case.pairs(lambda mine, theirs: _loss(mine) - _loss(theirs)),
            at.LOSS_MARGIN, 0.0, "above",
        ),
        Evidence(
            "gap_test_accuracy",
            f"{case.reference_name}'s balanced test accuracy less {case.name}'s",
            "",
            case.pairs(lambda mine, theirs: _error(mine) - _error(theirs)),
            at.ACCURACY_MARGIN, 0.0, "above",
        ),
    )  # fmt: skip
    return tuple(
        replace(one, values=(*one.values, *of_lost)) for one in evidence if one.is_measured
    )


def _loss(network: TrainedNetwork) -> float:
    """NaN where it was not measured, infinite where it is not finite."""
    loss = network.train_loss
    return math.nan if loss is None else loss if math.isfinite(loss) else math.inf


def _error(network: TrainedNetwork) -> float:
    """1 − accuracy; infinite where the loss is, since its answers are then those of no network."""
    accuracy = network.test_accuracy
    if accuracy is None:
        return math.nan
    return math.inf if _loss(network) == math.inf else 1 - accuracy


def _gap_status(gap: Sequence[Evidence]) -> Status:
    """Yes where both outcomes are worse; no where both are equal or better."""
    if not gap:
        return "not measured"
    found = {gap_status(one.values, one.threshold.value) for one in gap}
    return found.pop() if len(found) == 1 else "undetermined"


def _rank(finding: Finding) -> tuple[int, float]:
    order: tuple[Status, ...] = ("yes", "undetermined", "no", "not measured")
    return order.index(finding.status), finding.p_for
