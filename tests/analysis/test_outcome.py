"""The table from links to outcome: every combination, against the rules in words."""

from itertools import product
from typing import get_args

import pytest

from gradflow.analysis.findings import Status
from gradflow.analysis.outcome import OUTCOMES, Changes, outcome_of

STATUSES: tuple[Status, ...] = get_args(Status)
COMBINATIONS = list(product(*[STATUSES] * 4, get_args(Changes)))


def test_the_rules_in_words_hold_of_every_combination() -> None:
    for gap, exists, reaches, causes, changes in COMBINATIONS:
        outcome = outcome_of(gap, exists, reaches, causes, changes)
        is_asked = gap != "no"
        is_present = is_asked and exists == "yes"
        is_tested = is_present and gap == "yes" and causes != "not measured"
        rules = {
            "nothing to explain": not is_asked,
            "refuted": is_asked and exists == "no",
            "present, cause not tested": is_present and causes == "not measured",
            "present, not causal": is_tested and causes == "no",
            "supported": is_tested and causes == "yes" and reaches != "no"
            and changes == "gradients",
            "supported for signal and gradient": is_tested and causes == "yes"
            and reaches != "no" and changes == "signal and gradients",
        }  # fmt: skip
        given = [name for name, holds in rules.items() if holds]
        assert len(given) <= 1, "the outcomes exclude each other"
        assert outcome == (given[0] if given else "undetermined"), (gap, exists, reaches, causes)


def test_every_outcome_but_that_of_a_failed_instrument_is_in_the_table() -> None:
    found = {outcome_of(*one) for one in COMBINATIONS}
    assert found == set(OUTCOMES) - {"no verdict"}


@pytest.mark.parametrize("changes", get_args(Changes))
def test_without_an_intervention_no_cause_is_claimed_or_ruled_out(changes: Changes) -> None:
    causal = {"supported", "supported for signal and gradient", "present, not causal"}
    for gap, exists, reaches in product(STATUSES, repeat=3):
        assert outcome_of(gap, exists, reaches, "not measured", changes) not in causal
