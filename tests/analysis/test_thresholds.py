"""On both sides of every threshold the answer that it governs is another one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log10
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from traces import (
    N_LONG,
    N_STEPS,
    batchnorm,
    dead,
    make_case,
    make_network,
    noise_scale,
    rank,
    reset,
    scheduled,
)

import gradflow.controls.gate
from gradflow.analysis import thresholds as at
from gradflow.analysis.case import Case
from gradflow.analysis.findings import Finding, decide
from gradflow.analysis.network import equal_loss_steps
from gradflow.analysis.rates import Rate
from gradflow.analysis.rivals import rivals
from gradflow.analysis.thresholds import THRESHOLDS
from gradflow.analysis.vanishing import Direction, causes, directions, exists, matters, reaches
from gradflow.analysis.verdict import Restored, judge_case

# Of the gate, which is tested with the controls.
OF_THE_GATE = {"hit_rate", "false_alarm_rate"}
OF_INTERVALS = {"confidence"}  # which no answer turns at
WOBBLES = np.array([-0.002, 0.001, 0.002, -0.001, 0.0])  # of five seeds: spread for a t test


@dataclass(frozen=True)
class Turn:
    """`answer(x)` is `inside` just where the claim holds, and `outside` on the other side."""

    threshold: str
    answer: Callable[[float], Any]
    x_inside: float
    x_outside: float
    inside: Any = "yes"
    outside: Any = "no"


def status(finding: Finding) -> str:
    return decide([finding])[0].status


def rival(key: str, case: Case) -> str:
    found = next(one for one in rivals(case) if one.key == key)
    assert found.missing == ()
    return status(found)


# -- statistics ------------------------------------------------------------------------------------


def asked(p: float) -> str:
    measured = exists(make_case({})).evidence
    return decide([Finding("H", "H", "H?", measured, p, 1.0)])[0].status


def outcome_of_seeds(n: float) -> str:
    return judge_case(make_case({"delta": -2, "first_moves": 0.1}, n_seeds=int(n))).outcome


def gap_of_seeds(n: float) -> str:
    better = {"loss": 0.1, "accuracy": 0.95}
    return judge_case(make_case({"loss": 0.9, "accuracy": 0.6}, better, int(n))).gap_status


def overlap(nats: float) -> bool:
    """Both losses fall from 2 nats, that of the accused by so much."""
    falling = np.linspace(2.0, 2.0 - nats, N_STEPS), np.linspace(2.0, 0.5, N_STEPS)
    mine, theirs = (make_network(losses=one) for one in falling)
    return bool(equal_loss_steps(mine, theirs))


def gap(loss: float = 0.0, accuracy: float = 0.0) -> str:
    """Worse by so much, within a hundredth: "no" within the margin, else open or "yes"."""
    case = make_case({}, {})
    mine = [
        replace(one, train_loss=1.0 + loss + wobble, test_accuracy=0.8 - accuracy + wobble)
        for one, wobble in zip(case.accused, WOBBLES, strict=True)
    ]
    theirs = [replace(one, train_loss=1.0, test_accuracy=0.8) for one in case.reference]
    return judge_case(Case.of(mine, theirs)).gap_status


# -- the four links --------------------------------------------------------------------------------


def link_1(decades: float) -> str:
    return status(exists(make_case({"delta": decades})))


def label(decades: float) -> str:
    return Rate(np.array([10**decades, 1.0])).label


def directions_of(decades: float) -> set[Direction]:
    return directions(make_case({"delta": decades}))


def link_2_to_reference(factor: float) -> str:
    """The early layers move less; all layers of the reference receive `factor` times more."""
    case = make_case({"first_moves": 0.05}, {"level": log10(factor)})
    return status(reaches(case))


def link_2_by_attenuation(attenuation: float) -> str:
    case = make_case({"tables": lambda s: {"adam_attenuation": attenuation + s * 1e-4}})
    return status(reaches(case))


def link_2(first_to_last: float) -> str:
    return status(reaches(make_case({"first_moves": first_to_last})))


def link_3(cost: float) -> str:
    return status(matters(make_case({"examined": lambda s: reset(cost, s)})))


def link_4(share: float) -> str:
    return status(causes(make_case({}), tuple(share + WOBBLES)))


def main_cause(share: float) -> bool:
    mine = {
        "delta": -2, "first_moves": 0.1, "examined": lambda s: reset(0.0, s),
        "loss": 0.9, "accuracy": 0.6,
    }  # fmt: skip
    verdict = judge_case(make_case(mine, {}), restored=Restored(tuple(share + WOBBLES)))
    assert verdict.outcome == "supported"
    return "main cause" in verdict.sentences[0]


# -- the rivals ------------------------------------------------------------------------------------


def dying(excess: float) -> str:
    mine = {"examined": lambda s: dead(0.2 + excess, s)}
    return rival("H4", make_case(mine, {"examined": lambda s: dead(0.2, s)}))


def frozen(taken: float = 1.0, fallen: float = 0.3) -> str:
    """A steady fall until the rate falls, and `taken` of the distance that is left then.

    Fifty steps lose their learning rate, so that the pace before would have covered as much again
    as was covered in the fifty before.
    """
    steps = np.minimum(np.arange(N_LONG), 50) / 50

    def mine(seed: int) -> np.ndarray:
        return np.asarray(2 - fallen * steps + seed % 10 * 1e-5)

    end = 2 - fallen
    theirs = {"losses": lambda s: np.where(steps > 0, end - fallen / taken, 2.0)}
    return rival("H5", make_case({**scheduled(0), "losses": mine}, {**scheduled(0), **theirs}))


def slower(ratio: float) -> str:
    steps = np.minimum(np.arange(N_LONG), 50) / 50
    falls = {"losses": lambda s: 2 - ratio * steps + s % 10 * 1e-5}
    theirs = {"losses": lambda s: 2 - steps}
    return rival("H5", make_case({**scheduled(0), **falls}, {**scheduled(0), **theirs}))


def lagging(share: float, of_reference: float = 0.0) -> str:
    gap = 0.4
    mine = {"examined": lambda s: batchnorm(running=1, recalibrated=1 - share * gap, seed=s)}
    theirs = {"examined": lambda s: batchnorm(recalibrated=0.6 - of_reference, seed=s)}
    return rival("H6", make_case(mine, theirs))


def generalising(share: float) -> str:
    gap = 0.4
    mine = {"examined": lambda s: batchnorm(train=0.3 + (1 - share) * gap, running=1, seed=s)}
    return rival("H7", make_case(mine, {"examined": lambda s: batchnorm(train=0.3, seed=s)}))


def noisy(ratio: float) -> str:
    mine = {"examined": lambda s: noise_scale(0.6 * ratio, s)}
    return rival("H8", make_case(mine, {"examined": lambda s: noise_scale(0.6, s)}))


def collapsing(ratio: float = 0.1, drop: float = 0.3) -> str:
    mine = {"examined": lambda s: rank(50 * ratio, drop, s)}
    return rival("H9", make_case(mine, {"examined": lambda s: rank(50, 0.0, s)}))


TURNS = (
    Turn("alpha", asked, 0.0166, 0.0167, outside="undetermined"),
    Turn("min_seeds", outcome_of_seeds, 5, 4, "present, cause not tested", "undetermined"),
    Turn("min_seeds", gap_of_seeds, 5, 4, outside="undetermined"),
    Turn("loss_overlap", overlap, 0.11, 0.09, True, False),
    Turn("loss_margin", lambda x: gap(loss=x), 0.04, 0.06, "no", "undetermined"),
    Turn("loss_margin", link_3, 0.045, 0.055),
    Turn("accuracy_margin", lambda x: gap(accuracy=x), 0.04, 0.06, "no", "undetermined"),
    Turn("vanishing_decades", label, -1.001, -0.999, "vanishing", "healthy"),
    Turn("vanishing_decades", label, 1.001, 0.999, "exploding", "healthy"),
    Turn("vanishing_decades", link_1, -1.1, -0.9),
    Turn("vanishing_decades", directions_of, -1.1, -0.9, {"vanishing"}, set()),
    Turn("vanishing_decades", directions_of, 1.1, 0.9, {"exploding"}, set()),
    Turn("reference_factor", link_2_to_reference, 3.6, 2.5),
    Turn("attenuation", link_2_by_attenuation, 0.89, 0.91),
    Turn("movement_ratio", link_2, 0.29, 0.39),
    Turn("share_main", main_cause, 0.51, 0.49, True, False),
    Turn("share_contributor", link_4, 0.21, 0.19, outside="undetermined"),
    Turn("share_none", link_4, 0.09, 0.11, "no", "undetermined"),
    Turn("dead_excess", dying, 0.11, 0.09),
    Turn("left_to_learn", lambda x: frozen(taken=x), 0.52, 0.48),
    Turn("slower_ratio", slower, 0.48, 0.52),
    Turn("mode_share", lagging, 0.26, 0.24),
    Turn("mode_excess", lambda x: lagging(0.5, 0.2 - x), 0.01, -0.01),
    Turn("generalisation_share", generalising, 0.51, 0.49),
    Turn("progress_ratio", noisy, 0.32, 0.35),
    Turn("rank_ratio", lambda x: collapsing(ratio=x), 0.32, 0.35),
    Turn("probe_drop", lambda x: collapsing(drop=x), 0.06, 0.045),
)


@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: turn.threshold)
def test_the_answer_turns_at_the_threshold(turn: Turn) -> None:
    assert turn.answer(turn.x_inside) == turn.inside
    assert turn.answer(turn.x_outside) == turn.outside


def test_every_threshold_is_tested() -> None:
    assert {turn.threshold for turn in TURNS} | OF_THE_GATE | OF_INTERVALS == set(THRESHOLDS)
    gate = Path(gradflow.controls.gate.__file__).read_text(encoding="utf-8")
    assert all(f"{name.upper()}.value" in gate for name in OF_THE_GATE)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_threshold_says_what_it_is(name: str) -> None:
    threshold = THRESHOLDS[name]
    assert threshold.name == name
    assert threshold.unit
    assert len(threshold.reason) > 20
    assert threshold.source
    assert float(threshold) == threshold.value


def moved(name: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at, name, replace(getattr(at, name), value=value))


def test_sentences_name_the_thresholds_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is moved, and what people read moves along."""
    for name, value in {
        "VANISHING_DECADES": 1.5, "MODE_SHARE": 1 / 3, "GENERALISATION_SHARE": 0.2,
        "PROGRESS_RATIO": 0.25, "SLOWER_RATIO": 0.1, "LEFT_TO_LEARN": 1 / 3, "SHARE_MAIN": 0.6,
    }.items():  # fmt: skip
        moved(name, value, monkeypatch)
    shares = Restored((0.8, 0.81, 0.79, 0.8, 0.8))
    worse = {"delta": -2, "first_moves": 0.1, "loss": 0.9, "accuracy": 0.6}
    verdict = judge_case(make_case(worse, {}), restored=shares)
    assert "more than 0.6 of the gap" in verdict.sentences[0]
    assert "below -1.5 decades" in verdict.sentences[1]
    said = {rival.key: " ".join(one.meaning for one in rival.evidence) for rival in verdict.rivals}
    assert "a third of the gap" in said["H6"]
    assert "a fifth of the gap" in said["H7"]
    assert "a quarter of residual's" in said["H8"]
    assert "less a third of its distance" in said["H5"]
    assert "less a tenth of residual's" in said["H5"]
