"""How evidence combines into answers, and Holm's correction over all questions."""

from collections.abc import Sequence
from itertools import product
from typing import get_args

import pytest

from gradflow.analysis.findings import (
    OUTCOMES,
    Changes,
    Evidence,
    Finding,
    Side,
    Status,
    all_of,
    any_of,
    decide,
    outcome_of,
)
from gradflow.analysis.statistics import p_beyond, seeds_needed
from gradflow.analysis.thresholds import Threshold

LINE = Threshold("line", 1.0, "1", "a line", "this test")
NAN = float("nan")

CLEAR = (2.0, 2.1, 1.9, 2.05, 1.95)  # surely above 1
AGAINST = (0.0, 0.1, -0.1, 0.05, -0.05)  # surely not
OPEN = (-1.0, 3.0, 1.2, 2.5, 1.8)  # nobody knows
NONE = (NAN,) * 5


def evidence(values: Sequence[float], side: Side = "above", unit: str = "") -> Evidence:
    return Evidence("size", "the size", unit, tuple(values), LINE, 1.0, side)


def finding(key: str, *evidence: Evidence) -> Finding:
    p_for, p_against = all_of(evidence)
    return Finding(key, key, f"{key}?", evidence, p_for, p_against)


def status_of(*values: Sequence[float]) -> Status:
    return decide([finding("H", *map(evidence, values))])[0].status


# -- one piece -------------------------------------------------------------------------------------


def test_the_two_tests_of_one_piece_of_evidence() -> None:
    above, below = evidence(CLEAR), evidence(CLEAR, "below")
    assert above.p_for == below.p_against == p_beyond(CLEAR, 1.0, "above") < 0.001
    assert above.p_against == below.p_for == p_beyond(CLEAR, 1.0, "below") > 0.999


def test_sentences_hold_number_interval_and_claim() -> None:
    assert evidence([2.0, 2.0, 2.0]).sentence == (
        "the size is 2 (95 % 2 to 2, 3 seeds); claimed: above 1."
    )
    assert evidence([-0.3], "below", "decades").sentence == (
        "the size is -0.3 decades (one seed); claimed: below +1."
    )
    assert "0.501×" in evidence([-0.3], "below", "×").sentence  # of log10
    assert "10×" in evidence([-0.3], "below", "×").sentence
    assert evidence(NONE).sentence == "the size: not measured."


def test_json_has_null_for_what_was_not_measured() -> None:
    content = evidence([1.5, NAN]).to_json()
    assert content["values"] == [1.5, None]
    assert content["interval"] == [None, None]
    assert content["n_seeds"] == 1
    assert content["threshold"]["limit"] == 1.0


# -- combination -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([CLEAR], "yes"),
        ([AGAINST], "no"),
        ([OPEN], "undetermined"),
        ([NONE], "not measured"),
        ([CLEAR, CLEAR], "yes"),
        ([CLEAR, AGAINST], "no"),  # one broken part breaks it
        ([OPEN, AGAINST], "no"),
        ([CLEAR, OPEN], "undetermined"),  # the weakest part decides
        ([CLEAR, NONE], "undetermined"),  # what was not measured could break it
        ([AGAINST, NONE], "no"),
        ([NONE, NONE], "not measured"),
    ],
)
def test_all_parts_must_hold(parts: list[Sequence[float]], status: Status) -> None:
    assert status_of(*parts) == status


def test_all_of_takes_the_largest_p_for_and_corrects_the_smallest_p_against() -> None:
    parts = [evidence(CLEAR), evidence(AGAINST), evidence(OPEN)]
    p_for, p_against = all_of(parts)
    assert p_for == parts[1].p_for
    assert p_against == pytest.approx(3 * parts[1].p_against)
    assert all_of([]) == (1, 1)
    assert all_of([evidence(CLEAR)] * 3)[1] == 1  # never above 1


def test_one_of_several_is_enough() -> None:
    assert any_of([(0.01, 0.9), (0.5, 0.3)]) == (0.02, 0.9)
    assert any_of([(0.5, 0.02), (0.6, 0.01)]) == (1.0, 0.02)
    assert any_of([]) == (1, 1)


# -- over all questions ----------------------------------------------------------------------------


def asked(key: str, p_for: float, p_against: float = 1.0) -> Finding:
    return Finding(key, key, key, (evidence(CLEAR),), p_for, p_against)


def test_holm_over_the_family_changes_a_decision() -> None:
    assert decide([asked("a", 0.01)])[0].status == "yes"
    together = decide([asked("a", 0.01), asked("b", 0.5)])
    assert [one.status for one in together] == ["undetermined", "undetermined"]
    assert [one.p_for for one in together] == [0.02, 0.5]
    against = decide([asked("a", 1.0, 0.01), asked("b", 1.0, 0.5)])
    assert against[0].status == "undetermined"


def test_what_was_not_measured_is_no_part_of_the_family() -> None:
    found = decide([asked("a", 0.01), finding("b", evidence(NONE))])
    assert [one.status for one in found] == ["yes", "not measured"]


def test_decisions_keep_their_order() -> None:
    found = decide([asked("a", 0.9, 0.001), asked("b", 0.001)])
    assert [(one.key, one.status) for one in found] == [("a", "no"), ("b", "yes")]


# -- how many seeds --------------------------------------------------------------------------------


def test_seeds_needed_is_for_the_evidence_furthest_from_a_decision() -> None:
    far = (0.0, 2.1, 0.2, 2.4, 1.0)
    both = finding("H", evidence(CLEAR), evidence(OPEN))
    assert both.seeds_needed == seeds_needed(OPEN, 1.0, both.alpha)
    most = finding("H", evidence(OPEN), evidence(far))
    counts = [seeds_needed(values, 1.0, most.alpha) for values in (OPEN, far)]
    assert all(counts)
    assert most.seeds_needed == max(n for n in counts if n is not None)


def test_no_number_of_seeds_where_all_is_decided_or_hopeless() -> None:
    assert finding("H", evidence(CLEAR)).seeds_needed is None
    assert finding("H", evidence(NONE)).seeds_needed is None
    assert finding("H", evidence((0.0, 1.0, 2.0)), evidence(OPEN)).seeds_needed is None


# -- the table from links to outcome ---------------------------------------------------------------


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
