"""`gradflow.judge`: traces and outcomes of a loop of one's own."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gradflow
from gradflow.record import Trace

SEEDS = range(5)
LOSSES = {"plain": [0.9 + seed / 100 for seed in SEEDS], "skips": [0.4] * 5}
CLOSES = [0.80, 0.82, 0.78, 0.81, 0.79]


@pytest.fixture(autouse=True)
def without_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradflow.training.diagnosis.load_gate", lambda: None)


def trace(decades: float, seed: int) -> Trace:
    """Six layers whose δ and gradients change by so many decades from the last to the first."""
    layers = [f"{i}" for i in range(7)]
    size = np.append(10 ** (np.linspace(decades, 0, 6) + seed / 100), 1.0)
    both = np.broadcast_to(np.repeat(size, 2), (4, 14))
    is_weight = np.tile([False, True], 7)
    return Trace(
        np.arange(4),
        tuple(site for one in layers for site in (one, f"{one}.weight")),
        ("linear", "linear.weight") * 7,
        np.full(14, 4),
        {
            "output_grad_norm": np.where(is_weight, np.nan, both),
            "grad_norm": np.where(is_weight, both, np.nan),
            "weight_norm": np.where(is_weight, np.ones((4, 14)), np.nan),
            "update_norm": np.where(is_weight, both, np.nan),
        },
    )


def traces() -> dict[str, list[Trace]]:
    return {"plain": [trace(-2, seed) for seed in SEEDS], "skips": [trace(0, s) for s in SEEDS]}


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        ({}, "present, cause not tested"),
        ({"losses": LOSSES}, "present, cause not tested"),
        ({"losses": LOSSES, "gap_shares": CLOSES, "restored": "gradients"}, "supported"),
        ({"losses": LOSSES, "gap_shares": np.array(CLOSES), "restored": "gradients"}, "supported"),
        (
            {"losses": LOSSES, "gap_shares": CLOSES, "restored": "signal and gradients"},
            "supported for signal and gradient",
        ),
        ({"gap_shares": CLOSES, "restored": "gradients"}, "undetermined"),  # no gap is known
        ({"losses": {**LOSSES, "plain": LOSSES["skips"]}}, "nothing to explain"),
        ({"losses": {**LOSSES, "plain": [0.9, 0.9, 0.9, np.inf, np.nan]}},
         "present, cause not tested"),
        ({"losses": {**LOSSES, "plain": [0.4, 0.4, 0.4, np.inf, np.nan]},
          "gap_shares": CLOSES, "restored": "gradients"}, "undetermined"),
        ({"losses": LOSSES, "accuracies": {"plain": [0.8] * 5, "skips": [0.8] * 5},
          "gap_shares": CLOSES, "restored": "gradients"}, "undetermined"),
    ],
)  # fmt: skip
def test_outcomes_follow_from_what_is_given(given: dict[str, Any], outcome: str) -> None:
    assert gradflow.judge(traces(), **given).outcome == outcome


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gap_shares": CLOSES}, "together with `restored`"),
        ({"gap_shares": CLOSES, "restored": "grads"}, "'grads'. It is one of"),
        ({"losses": {"plain": [1.0] * 5}}, "one number for each of 5 traces of skips"),
        ({"losses": {**LOSSES, "plain": [1.0] * 4}}, "one number for each of 5 traces of plain"),
        ({"losses": {**LOSSES, "plain": [None] * 5}}, "one number for each of 5 traces of plain"),
        ({"gap_shares": [0.5], "restored": "gradients"}, "for each of 5 seeds, but got 1"),
        ({"gap_shares": [np.inf] * 5, "restored": "gradients"}, "NaN where none is known"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradflow.judge(traces(), **given)


def test_a_network_without_traces_is_not_left_out_in_silence() -> None:
    with pytest.raises(ValueError, match="one trace of each network, but skips has none"):
        gradflow.judge({**traces(), "skips": []})


def test_records_without_a_graph_say_which_order_was_taken() -> None:
    verdict = gradflow.judge(traces())
    assert verdict.notes == (
        "plain and skips: The layers stand in order of execution: the records hold no graph.",
    )
    (where,) = (one for one in str(verdict).splitlines() if one.startswith("Where"))
    assert where.endswith("; layers in order of execution")
    feeds = {f"{i}": (*([f"{i - 1}"] if i else []), f"{i}.weight") for i in range(7)}
    known = {name: [replace(one, feeds=feeds) for one in group]
             for name, group in traces().items()}  # fmt: skip
    assert "in order of execution" not in str(gradflow.judge(known))


def cut_off(seed: int) -> Trace:
    """No gradient at all at the first three layers."""
    one = trace(0, seed)
    return replace(one, values={
        name: np.where(np.arange(14) < 6, 0.0, table) if "grad" in name else table
        for name, table in one.values.items()
    })  # fmt: skip


def test_what_no_gradient_reaches_has_no_number_of_times() -> None:
    verdict = gradflow.judge([cut_off(seed) for seed in SEEDS])
    assert verdict.outcome == "present, cause not tested"
    assert "is 0 at the first layer in 5 of 5 seeds" in verdict.sentences[1]
    assert "times" not in verdict.sentences[1]
    assert "0 at the first layer in 5 of 5 seeds" in str(verdict)
    some = gradflow.judge([cut_off(0), *(trace(-2, seed) for seed in range(1, 5))])
    assert "(δ) is 0 at the first layer in 1 of 5 seeds" in some.sentences[1]
    far = gradflow.judge([trace(-30, seed) for seed in SEEDS])  # small, and still there
    assert "1e+30 times smaller" in far.sentences[1]
