"""What each rival explanation of a gap is measured by, and where it is not measured.

Where they are consistent and where inconsistent, test_thresholds.py says.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from traces import (
    N_LONG,
    batchnorm,
    dead,
    make_case,
    merged,
    noise_scale,
    rank,
    scheduled,
)

from gradflow.analysis.case import Case
from gradflow.analysis.findings import Finding, decide
from gradflow.analysis.mediators import fall_of_rate, progress
from gradflow.analysis.rivals import TRIED, rivals
from gradflow.analysis.thresholds import FALSE_ALARM_RATE, HIT_RATE

CONTROLS = Path(__file__).parents[2] / "experiments" / "results" / "rival-controls.json"
KEYS = ("H4", "H5", "H6", "H7", "H8", "H9")


def judged(case: Case) -> dict[str, Finding]:
    return {one.key: one for one in decide(rivals(case))}


def test_there_are_six_rivals_in_order() -> None:
    assert tuple(judged(make_case({}, {}))) == KEYS


@pytest.mark.parametrize("key", KEYS)
def test_not_measured(key: str) -> None:
    found = judged(make_case({}, {}))[key]
    assert found.status == "not measured"
    assert len(found.missing) == 1
    assert found.needs_weights == (key != "H5")
    assert all(one.values for one in found.evidence)  # NaN, one for each seed


@pytest.mark.parametrize("key", KEYS)
def test_what_is_printed_of_the_controls_is_what_was_measured(key: str) -> None:
    """And each rival is found where it was planted, and hardly ever where it was not."""
    saved = json.loads(CONTROLS.read_text(encoding="utf-8"))["rivals"][key]
    names = ("planted", "hits", "n_planted", "false_alarms", "n_others")
    assert dataclasses.astuple(TRIED[key]) == tuple(saved[name] for name in names)
    assert saved["n_planted"] == 16
    assert saved["hits"] >= HIT_RATE.value * saved["n_planted"]
    assert saved["false_alarms"] <= FALSE_ALARM_RATE.value * saved["n_others"]
    assert str(TRIED[key]) in judged(make_case({}, {}))[key].details


def part(found: Finding, name: str) -> tuple[float, ...]:
    return next(one.values for one in found.evidence if one.name == name)


def test_dead_units_are_compared_at_step_90_where_both_came_so_far() -> None:
    def twice(early: float, late: float) -> dict[str, Any]:
        there = dead(early, 0, "90")["dead"] | dead(late, 0, "end")["dead"]
        return {"examined": lambda s: {"dead": there}}

    found = judged(make_case(twice(0.4, 0.9), twice(0.1, 0.1)))["H4"]
    assert part(found, "dead_excess") == pytest.approx([0.3] * 5)


def test_what_a_schedule_took_is_a_closed_form() -> None:
    """The loss falls by v per step until the rate falls to a hundredth: v Λ − distance / 2."""
    steps = np.arange(N_LONG)
    mine = {**scheduled(0.0), "losses": 2 - 0.01 * np.minimum(steps, 50)}
    theirs = {**scheduled(0.0), "losses": np.full(N_LONG, 0.7)}
    found = judged(make_case(mine, theirs))["H5"]
    taken = 0.01 * 50 * 0.99  # fifty steps at 1e-5 in place of 1e-3
    assert part(found, "left_to_learn") == pytest.approx([taken - (1.5 - 0.7) / 2] * 5)
    # Means of the last tenth of the fifty steps: 0.48 of 0.5, and nothing.
    assert part(found, "fallen_until_then") == pytest.approx([0.47] * 5)


def test_a_schedule_that_falls_a_little_every_epoch_is_read_where_it_has_halved() -> None:
    falling = {**scheduled(0.6), "learning_rates": np.linspace(1e-3, 1e-5, N_LONG)}
    assert fall_of_rate(make_case(falling).accused[0]) == 50


def test_without_a_fall_of_the_learning_rate_no_schedule_is_accused() -> None:
    constant = {**scheduled(0.3), "learning_rates": np.full(N_LONG, 1e-3)}
    found = judged(make_case(constant, constant))["H5"]
    assert found.status == "not measured"
    assert "a learning rate that falls" in found.missing[0]


def test_shares_of_a_gap_that_is_not_there_are_not_formed() -> None:
    case = make_case(
        {"examined": lambda s: batchnorm(running=0.6, recalibrated=0.3, seed=s)},
        {"examined": lambda s: batchnorm(running=1.0, recalibrated=1.0, seed=s)},
    )
    found = judged(case)
    for key in ("H6", "H7"):
        assert found[key].status != "yes"
        assert found[key].missing == ("a gap in test loss that is surely above zero",)


def test_what_could_not_be_measured_is_null_and_left_out() -> None:
    """None stands for what was not finite, as the examination writes it."""
    nulls = merged(rank(3, 0.3), noise_scale(0.5), batchnorm())
    nulls["rank"]["0"]["effective_rank"][-1] = None
    nulls["rank"]["10"]["probe_accuracy"] = [None] * 9
    nulls["noise"]["10"]["all"]["noise"] = None
    nulls["batchnorm"]["end"]["test"]["plain"]["running"]["loss"] = None
    found = judged(make_case({"examined": nulls}, {"examined": nulls}))
    assert np.isfinite(part(found["H9"], "rank_to_reference")).all()
    assert part(found["H9"], "probe_drop") == pytest.approx([0.3] * 5, abs=0.01)
    assert found["H6"].status == found["H7"].status == found["H8"].status == "not measured"


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1.0), (50.0, 0.5), (450.0, 0.1)])
def test_progress_is_that_of_mccandlish(scale: float, expected: float) -> None:
    """1 / (1 + B_noise / B), batches of 50."""
    found = {"signal": 2.0, "noise": 2.0 * scale, "batch_size": 50, "signal_interval": [1, 3]}
    one = make_case({"examined": {"noise": {"10": {"all": found}}}}).accused[0]
    assert progress(one) == pytest.approx(expected)


def test_a_signal_that_is_not_seen_is_at_most_its_upper_end() -> None:
    found = {"signal": -1.0, "noise": 50.0, "batch_size": 50, "signal_interval": [-2.0, 0.25]}
    one = make_case({"examined": {"noise": {"10": {"all": found}}}}).accused[0]
    assert progress(one) == pytest.approx(0.2)
