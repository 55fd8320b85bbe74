"""A verdict as trackers are told it."""

import math

import pytest

from gradflow.analysis.verdict import OUTCOMES, Verdict, judge_case
from gradflow.present.tracking.verdict_log import ANSWER, FINDINGS, PROFILES, log_verdict
from tests.analysis.traces import make_case
from tests.present.epochs import Memory


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    accused = {"delta": -3.0, "loss": 1.0, "accuracy": 0.6, "first_moves": 0.01}
    return judge_case(make_case(accused, {"delta": 0.0}))


@pytest.fixture(scope="module")
def told(verdict: Verdict) -> Memory:
    memory = Memory()
    log_verdict(verdict, memory)
    return memory


def test_the_summary_the_answer_and_the_picture_are_those_of_the_verdict(
    verdict: Verdict, told: Memory
) -> None:
    ((summary, failed),) = told.ends
    assert not failed
    assert summary["verdict/outcome"] == verdict.outcome
    assert summary["verdict/sentences"] == " ".join(verdict.sentences)
    assert summary["verdict/n_seeds"] == 5
    for name, planted in ("plain", -3.0), ("residual", 0.0):
        decades = summary[f"verdict/{name}/output_gradient_decades"]
        assert decades == pytest.approx(planted, abs=0.1)
    columns, rows = told.tables[ANSWER]
    assert len(columns) == 2
    text = dict(rows)
    assert (text["verdict"], text["meaning"]) == (verdict.outcome, OUTCOMES[verdict.outcome])
    assert [row[1] for row in rows if row[0] == "why"] == list(verdict.sentences)
    ((key, _, pixels),) = told.pictures
    assert (key, pixels.shape[1]) == (PROFILES, 700)


def test_every_link_and_rival_is_a_row_with_its_evidence(verdict: Verdict, told: Memory) -> None:
    columns, rows = told.tables[FINDINGS]
    assert all(len(row) == len(columns) for row in rows)
    by_key = {row[0]: row for row in rows}
    assert list(by_key) == [one.key for one in (*verdict.links, *verdict.rivals)]
    for one in (*verdict.links, *verdict.rivals):
        _, _, status, p_for, _, evidence = by_key[one.key]
        assert status == one.status
        if one.is_measured:
            assert p_for == one.p_for
            assert all(part.sentence in evidence for part in one.evidence if part.is_measured)
        else:
            assert math.isnan(p_for)
            assert "needs" in evidence
