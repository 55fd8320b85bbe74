"""The verdict, end to end, on simulated studies whose truth is planted."""

import json
import math
from pathlib import Path
from typing import get_args

import pytest
from verdict_controls import PLANTED, Planted, Tally, simulate

from gradflow.analysis.findings import Outcome

ROOT = Path(__file__).parents[2]
SAVED = ROOT / "experiments" / "results" / "verdict-controls.json"
LARGEST_ERROR = 0.05


def named(name: str) -> Planted:
    return next(one for one in PLANTED if one.name == name)


@pytest.mark.parametrize("name", ["vanishes, restored: 0.8 of the gap", "grows a hundred-fold"])
def test_far_from_the_limits_five_seeds_find_the_truth(name: str) -> None:
    found = simulate(named(name), 3)
    assert found.said == {found.planted.truth: 3}


def test_every_outcome_of_the_data_is_planted() -> None:
    assert {one.truth for one in PLANTED} == set(get_args(Outcome)) - {"no verdict"}


def test_open_is_not_wrong_and_wrong_is_not_open() -> None:
    tally = Tally(named("no gap"), {"nothing to explain": 5, "present, cause not tested": 3,
                                    "undetermined": 2, "supported": 1})  # fmt: skip
    assert (tally.n, tally.n_right, tally.n_open, tally.n_wrong) == (11, 5, 5, 1)
    limit = Tally(named("shrinks ten-fold, the limit itself"), {"undetermined": 9, "refuted": 1})
    assert (limit.n_right, limit.n_open, limit.n_wrong) == (9, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("planted", PLANTED, ids=lambda one: one.name)
def test_at_most_five_of_a_hundred_verdicts_are_wrong(planted: Planted) -> None:
    found = simulate(planted, 500, seed=1000)
    error = math.sqrt(LARGEST_ERROR * (1 - LARGEST_ERROR) / found.n)
    assert found.n_wrong / found.n <= LARGEST_ERROR + 3 * error, found.said


def test_the_saved_table_is_of_these_studies_and_stands_in_the_docs() -> None:
    saved = json.loads(SAVED.read_text(encoding="utf-8"))["studies"]
    assert [one["planted"]["name"] for one in saved] == [one.name for one in PLANTED]
    page = (ROOT / "docs" / "controls.md").read_text(encoding="utf-8")
    for one in saved:
        assert one["n"] == 500
        assert one["wrong"] / one["n"] <= LARGEST_ERROR
        shares = " | ".join(f"{100 * one[key] / 500:.1f}" for key in ("right", "open", "wrong"))
        assert f"| {one['planted']['name']} | {one['planted']['truth']} | {shares} |" in page
