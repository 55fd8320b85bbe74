"""On both sides of every threshold the answer that it governs is another one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log10
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from traces import (
    batchnorm,
    dead,
    linearity,
    losses,
    make_case,
    make_network,
    rank,
    reset,
    scheduled,
    share_of_first,
    shattering,
    stepping,
)

import gradflow.controls.gate
from gradflow.analysis.case import Case
from gradflow.analysis.findings import Finding, decide
from gradflow.analysis.rates import Rate
from gradflow.analysis.rivals import rivals
from gradflow.analysis.thresholds import THRESHOLDS
from gradflow.analysis.vanishing import causes, exists, explodes, matters, reaches, vanishes
from gradflow.analysis.verdict import judge_case

# Of the gate, which is tested with the controls.
OF_THE_GATE = {"hit_rate", "false_alarm_rate"}


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
    return status(next(one for one in rivals(case) if one.key == key))


# -- statistics ------------------------------------------------------------------------------------


def asked(p: float) -> str:
    measured = exists(make_case({})).evidence
    return decide([Finding("H", "H", "H?", measured, p, 1.0)])[0].status


def outcome_of_seeds(n: float) -> str:
    return judge_case(make_case({"delta": -2, "first_moves": 0.1}, n_seeds=int(n))).outcome


def gap_of_seeds(n: float) -> str:
    better = {"loss": 0.1, "accuracy": 0.95}
    return judge_case(make_case({"loss": 0.9, "accuracy": 0.6}, better, int(n))).gap_status


def gap(loss: float = 0.0, accuracy: float = 0.0) -> str:
    """Over four seeds: too few for a gap, so that only "none" can be found."""
    mine = [
        replace(
            make_network("plain", seed),
            train_loss=1.0 + loss + wobble,
            test_accuracy=0.8 - accuracy + wobble,
        )
        for seed, wobble in enumerate((-0.002, 0.001, 0.002, -0.001))
    ]
    theirs = [
        replace(make_network("residual", seed), train_loss=1.0, test_accuracy=0.8)
        for seed in range(4)
    ]
    return judge_case(Case.of(mine, theirs)).gap_status


# -- the four links --------------------------------------------------------------------------------


def link_1(decades: float) -> str:
    return status(exists(make_case({"delta": decades})))


def link_1_to_reference(factor: float) -> str:
    """Both vanish by two decades; all layers of the reference receive `factor` times more."""
    return status(exists(make_case({"delta": -2}, {"delta": -2, "level": log10(factor)})))


def link_2_by_attenuation(attenuation: float) -> str:
    case = make_case({"tables": lambda s: {"adam_attenuation": attenuation + s * 1e-4}})
    return status(reaches(case))


def link_2(first_to_last: float, to_reference: float) -> str:
    mine = {"first_moves": first_to_last}
    return status(reaches(make_case(mine, {"first_moves": first_to_last / to_reference})))


def link_3(cost: float) -> str:
    return status(matters(make_case({"examined": lambda s: reset(cost, s)})))


def link_4(share: float, half_width: float = 0.005) -> str:
    """Over five seeds; `half_width` is that of the one-sided 95 % bound."""
    pattern = np.array([-1, -0.5, 0, 0.5, 1])
    spread = half_width * 5**0.5 / 2.1318 / pattern.std(ddof=1)
    return status(causes(make_case({}), tuple(share + spread * pattern)))


def main_cause(share: float) -> bool:
    mine = {
        "delta": -2, "first_moves": 0.1, "examined": lambda s: reset(0.0, s),
        "loss": 0.9, "accuracy": 0.6,
    }  # fmt: skip
    shares = tuple(share + np.array([-0.002, -0.001, 0, 0.001, 0.002]))
    verdict = judge_case(make_case(mine, {}), gap_shares=shares)
    assert verdict.outcome == "supported"
    return "main cause" in verdict.sentences[0]


# -- the rivals ------------------------------------------------------------------------------------


def explosion(
    decades: float = 2.0, share: float = 0.95, ratio: float = 0.1, reference: float = 0.0
) -> str:
    mine = {
        "delta": decades,
        "tables": lambda s: share_of_first(share + s * 1e-4),
        "examined": lambda s: linearity(early=ratio, seed=s),
    }
    return rival("H2", make_case(mine, {"delta": reference}))


def shattered(ratio: float) -> str:
    mine = {"examined": lambda s: shattering(0.3 * ratio, s)}
    return rival("H3", make_case(mine, {"examined": lambda s: shattering(0.3, s)}))


def dying(excess: float) -> str:
    mine = {"examined": lambda s: dead(0.2 + excess, s)}
    return rival("H4", make_case(mine, {"examined": lambda s: dead(0.2, s)}))


def frozen(fall: float = 0.3, changed: float = 0.1, last: float = 0.3) -> str:
    mine = scheduled(fall, changed=changed, last=last)
    mine["tables"] = lambda s: {"update_changed_fraction": changed + s * 1e-4}
    return rival("H5", make_case(mine, scheduled(1.5)))


def slope_at_the_drop(slope: float) -> str:
    """The loss falls in the first half of the steps before the drop; then it has this slope."""

    def curve(seed: int) -> np.ndarray:
        curve = losses(0.3, seed, last=0.0)
        curve[25:50] += slope * np.arange(25)
        return curve

    return rival("H5", make_case({**scheduled(0.3), "losses": curve}, scheduled(1.5)))


def lagging(share: float, of_reference: float = 0.0) -> str:
    gap = 0.4
    mine = {"examined": lambda s: batchnorm(running=1, recalibrated=1 - share * gap, seed=s)}
    theirs = {"examined": lambda s: batchnorm(recalibrated=0.6 - of_reference, seed=s)}
    return rival("H6", make_case(mine, theirs))


def generalising(share: float) -> str:
    gap = 0.4
    mine = {"examined": lambda s: batchnorm(train=0.3 + (1 - share) * gap, running=1, seed=s)}
    return rival("H7", make_case(mine, {"examined": lambda s: batchnorm(train=0.3, seed=s)}))


def noisy(rms: float, of_reference: float) -> str:
    return rival("H8", make_case(stepping(rms), stepping(of_reference)))


def collapsing(ratio: float = 0.1, drop: float = 0.3) -> str:
    mine = {"examined": lambda s: rank(50 * ratio, drop, s)}
    return rival("H9", make_case(mine, {"examined": lambda s: rank(50, 0.0, s)}))


def rough(gap: float) -> str:
    mine = {"examined": lambda s: linearity(later=0.9 - gap, seed=s)}
    return rival("H10", make_case(mine, {"examined": lambda s: linearity(later=0.9, seed=s)}))


TURNS = (
    Turn("confidence", asked, 0.0499, 0.0501, outside="undetermined"),
    Turn("min_seeds", outcome_of_seeds, 3, 2, "present, not shown causal", "undetermined"),
    Turn("effect_seeds", gap_of_seeds, 5, 4, outside="undetermined"),
    Turn("loss_margin", lambda x: gap(loss=x), 0.04, 0.06, "no", "undetermined"),
    Turn("loss_margin", link_3, 0.045, 0.055),
    Turn("accuracy_margin", lambda x: gap(accuracy=x), 0.04, 0.06, "no", "undetermined"),
    Turn("vanishing_decades", lambda x: Rate(x, 2).label, -1.001, -0.999, "vanishing", "healthy"),
    Turn("vanishing_decades", lambda x: Rate(x, 2).label, 1.001, 0.999, "exploding", "healthy"),
    Turn("vanishing_decades", link_1, -1.1, -0.9),
    Turn("vanishing_decades", lambda x: vanishes(make_case({"delta": x})), -1.1, -0.9, True, False),
    Turn("vanishing_decades", lambda x: explodes(make_case({"delta": x})), 1.1, 0.9, True, False),
    Turn("vanishing_decades", explosion, 1.1, 0.9),
    Turn("reference_factor", link_1_to_reference, 3.3, 2.7),
    Turn("attenuation", link_2_by_attenuation, 0.89, 0.91),
    Turn("movement_ratio", lambda x: link_2(x, 0.1), 0.29, 0.39),
    Turn("movement_ratio", lambda x: link_2(0.2, x), 0.28, 0.40),
    Turn("share_main", main_cause, 0.51, 0.49, True, False),
    Turn("share_contributor", link_4, 0.11, 0.09),
    Turn("share_none", lambda x: link_4(0.1, x - 0.1), 0.195, 0.205, "no", "undetermined"),
    Turn("exploding_share", lambda x: explosion(share=x), 0.81, 0.79),
    Turn("linearity", lambda x: explosion(ratio=x), 0.49, 0.51),
    Turn("shattered_ratio", shattered, 0.32, 0.35),
    Turn("dead_excess", dying, 0.11, 0.09),
    Turn("frozen_fraction", lambda x: frozen(changed=x), 0.49, 0.51),
    Turn("still_falling", slope_at_the_drop, -0.001, 0.001),
    Turn("slower_ratio", lambda x: frozen(fall=1.5 * x), 0.48, 0.52),
    Turn("start_excess", lambda x: explosion(reference=2.0 - x), 0.1, -0.1),
    Turn("mode_share", lagging, 0.26, 0.24),
    Turn("mode_excess", lambda x: lagging(0.5, 0.2 - x), 0.01, -0.01),
    Turn("generalisation_share", generalising, 0.51, 0.49),
    Turn("noise_update_rms", lambda x: noisy(x, 0.6), 0.37, 0.39),
    Turn("noise_excess", lambda x: noisy(0.3, 0.3 - x), -0.01, 0.01),
    Turn("rank_ratio", lambda x: collapsing(ratio=x), 0.32, 0.35),
    Turn("probe_drop", lambda x: collapsing(drop=x), 0.06, 0.045),
    Turn("linearity_gap", rough, 0.21, 0.19),
)


@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: turn.threshold)
def test_the_answer_turns_at_the_threshold(turn: Turn) -> None:
    assert turn.answer(turn.x_inside) == turn.inside
    assert turn.answer(turn.x_outside) == turn.outside


def test_every_threshold_is_tested() -> None:
    assert {turn.threshold for turn in TURNS} | OF_THE_GATE == set(THRESHOLDS)
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
