"""Every outcome is reached by a network that deserves it; what decides the links and the gap."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from traces import N_STEPS, RESIDUAL, dead, make_case, merged, rank
from verdicts import (
    CLOSES,
    DOES_NOT,
    FAILED,
    GROWS,
    REACHED,
    WORSE,
    judged,
    reach,
    vanishing,
)

from gradflow.analysis.findings import OUTCOMES, Outcome
from gradflow.analysis.vanishing import directions
from gradflow.analysis.verdict import Restored, Verdict, judge_case


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_outcome_is_reached(outcome: Outcome) -> None:
    verdict = reach(outcome)
    assert verdict.outcome == outcome
    assert verdict.to_json()["meaning"] == OUTCOMES[outcome]
    assert verdict.gap_status == ("no" if outcome == "nothing to explain" else "yes")
    assert verdict.sentences[0].lower().startswith(f"{outcome}:")


def test_every_outcome_is_in_the_table_of_meanings() -> None:
    assert tuple(OUTCOMES) == get_args(Outcome) == tuple(REACHED)


UNTESTED: Outcome = "present, cause not tested"
OPEN: Outcome = "undetermined"

# What is so -> the accused, the reference, what an intervention found; the outcome, and a sentence.
SAID: dict[str, tuple[Mapping[str, Any], Mapping[str, Any], Restored, Outcome, str]] = {
    "a control helps under SGD": (
        vanishing(), {}, Restored(DOES_NOT, under_sgd="sgd-up"), "present, not causal",
        "Under SGD it lowers the training loss (sgd-up)"),
    "both sizes grow": (GROWS, {}, Restored(), "refuted", "vanish towards the input; they grow."),
    "one size grows": ({"delta": -0.2, "invariant": 3, **WORSE}, {}, Restored(), "refuted",
                       "vanish towards the input; ŝ grows."),
    "nothing grows": ({"delta": 0, **WORSE}, {}, Restored(), "refuted",
                      "do not vanish towards the input."),
    "δ alone vanishes": (vanishing(delta=-2, invariant=0), {}, Restored(), UNTESTED,
                         "vanish towards the input"),
    "ŝ alone vanishes": (vanishing(delta=0, invariant=-2), {}, Restored(), UNTESTED,
                         "vanish towards the input"),
    # What speaks against it decides nothing: only an intervention can show what is not the cause.
    "the reference receives as little": (vanishing(), {"delta": -2}, Restored(), UNTESTED,
                                         "does not hold them back (link 2)"),
    "the early layers move": (vanishing(first_moves=1.0), {}, Restored(), UNTESTED,
                              "does not hold them back (link 2)"),
    "they learned": (vanishing(cost=0.5), {}, Restored(), UNTESTED,
                     "though the early layers did learn (link 3)"),
    "the evidence conflicts": (vanishing(first_moves=1.0), {}, Restored(CLOSES), OPEN,
                               "the evidence conflicts"),
    # It changed the gap, as for an arm of a study: neither removes nor adds a tenth.
    "restoring does harm": (vanishing(), {}, Restored(tuple(-x for x in CLOSES)), OPEN,
                            "restoring them makes the gap wider"),
    # Worse on average, but not for sure.
    "the gap is open": (vanishing(loss=lambda seed: 0.5 + 0.4 * (seed % 2), accuracy=0.75), {},
                        Restored(CLOSES), OPEN, "that there is a gap to explain is not known"),
    "the gap shows in the loss alone": (vanishing(accuracy=0.8), {}, Restored(), UNTESTED,
                                        "The two measures of a gap disagree"),
    "the accused does better": (vanishing(), {"loss": 1.5, "accuracy": 0.3}, Restored(),
                                "nothing to explain", "plain does no worse than residual"),
    "both failed": ({"delta": -2, **FAILED}, FAILED, Restored(), UNTESTED,
                    ". The gap was not measured. In 5 of 5 seeds both trainings failed."),
}  # fmt: skip


@pytest.mark.parametrize(
    ("accused", "reference", "restored", "outcome", "words"), SAID.values(), ids=SAID
)
def test_what_is_concluded_is_said(
    accused: Mapping[str, Any],
    reference: Mapping[str, Any],
    restored: Restored,
    outcome: Outcome,
    words: str,
) -> None:
    verdict = judged(accused, reference, restored=restored)
    assert verdict.outcome == outcome
    assert words in " ".join(verdict.sentences)


# -- the links -------------------------------------------------------------------------------------


def statuses(verdict: Verdict) -> list[str]:
    return [link.status for link in verdict.links]


def test_the_links_of_a_supported_verdict() -> None:
    assert statuses(reach("supported")) == ["yes"] * 4
    assert statuses(reach("present, cause not tested")) == ["yes", "yes", "yes", "not measured"]


def test_two_sizes_that_contradict_each_other_are_neither() -> None:
    """δ a thousand times larger at the input and ŝ a thousand times smaller."""
    verdict = judged({"delta": 3, "invariant": -3, **WORSE}, {})
    assert directions(verdict.case) == {"vanishing", "exploding"}
    assert not verdict.has("vanishing")
    assert not verdict.has("exploding")
    assert verdict.outcome == "undetermined"
    assert "one vanishes and the other explodes" in verdict.sentences[0]
    assert not any("seeds" in step for step in verdict.next_steps)


def test_the_raw_gradient_is_shown_and_not_judged() -> None:
    """Weights that grow towards the input shrink g; ŝ and δ do not see it."""
    scale = 10 ** np.linspace(3, 0, len(RESIDUAL))
    tables = {"grad_norm": 1 / scale, "weight_norm": scale, "output_grad_norm": 1.0}
    verdict = judged({"tables": tables}, {})
    raw = next(one for one in verdict.rates if (one.size, one.window) == ("gradient_rms", "early"))
    assert raw.decades.mean < -2
    assert verdict.outcome != "present, cause not tested"
    assert not verdict.has("vanishing")


def test_what_happens_late_is_not_judged() -> None:
    rates = np.repeat([1.0, 0.1], N_STEPS // 2)
    table = np.ones((N_STEPS, len(RESIDUAL)))
    table[N_STEPS // 2 :] = 10 ** np.linspace(-3, 0, len(RESIDUAL))
    tables = {"output_grad_norm": table, "grad_norm": table}
    given = {"tables": tables, "learning_rates": rates}
    assert directions(make_case(given)) == set()
    turned = {name: table[::-1] for name in tables}
    assert directions(make_case({**given, "tables": turned})) == {"vanishing"}
    compared = judged(given, {"learning_rates": rates}).links[1].evidence[1:]
    assert [one.interval.mean for one in compared] == pytest.approx([0, 0], abs=0.1)


# -- few seeds, no reference, an open gap ----------------------------------------------------------


@pytest.mark.parametrize("n_seeds", [1, 2, 4])
@pytest.mark.parametrize("outcome", ["supported", "refuted", "nothing to explain"])
def test_few_seeds_describe_and_conclude_nothing(outcome: Outcome, n_seeds: int) -> None:
    verdict = reach(outcome, n_seeds)
    assert verdict.outcome == "undetermined"
    assert {one.status for one in (*verdict.links, *verdict.rivals)} <= {
        "undetermined",
        "not measured",
    }
    assert "nothing can be concluded from fewer than 5" in verdict.sentences[0]
    assert "times smaller" in verdict.sentences[1] or outcome == "refuted"
    assert verdict.next_steps[0].startswith("Train 5 seeds")


def test_enough_seeds_have_what_is_decided() -> None:
    assert reach("supported").has("vanishing")
    assert judged(GROWS, {}).has("exploding")
    assert not judged(GROWS, {}).has("vanishing")
    assert not reach("undetermined").has("vanishing")  # ten-fold on average, and no one knows
    assert not reach("undetermined").has("exploding")


def test_without_a_reference_there_is_no_gap_and_there_are_no_rivals() -> None:
    verdict = judged(vanishing(), restored=Restored(CLOSES))
    assert verdict.outcome == "undetermined"  # four links, but no gap to explain
    assert statuses(verdict) == ["yes"] * 4
    assert (verdict.gap, verdict.gap_status, verdict.rivals) == ((), "not measured", ())
    assert verdict.to_json()["reference"] is None
    assert not any("gap" in sentence for sentence in verdict.sentences[1:])
    assert "Gap" not in str(verdict)
    assert judged(vanishing()).outcome == "present, cause not tested"
    assert judged({"delta": 2}).outcome == "refuted"
    assert judged({"delta": 0}).outcome == "refuted"


@pytest.mark.parametrize("n_failed", [1, 2, 7])
def test_trainings_that_failed_count_against_their_network(n_failed: int) -> None:
    """Equal but for the failed ones: never "does no worse"; all failed: surely worse."""

    def failing(seed: int) -> float:
        return float("inf") if seed < n_failed else 0.5

    verdict = judged({"delta": -2, "loss": failing}, {}, 7)
    assert verdict.gap_status == ("yes" if n_failed == 7 else "undetermined")
    assert f"{n_failed} of 7 trainings of plain failed" in verdict.sentences[-1]
    turned = judged({"delta": -2}, {"loss": lambda s: failing(s - 100)}, 7)
    assert turned.gap_status != "yes"
    assert f"{n_failed} of 7 trainings of residual failed" in turned.sentences[-1]


def test_a_network_that_never_ended_is_not_called_worse_and_better() -> None:
    better = judged({"delta": -2}, FAILED)
    assert better.outcome == "nothing to explain"
    assert "plain is better without a number in training loss" in better.sentences[-1]
    worse = judged({"delta": -2, **FAILED}, {})
    assert "plain is worse without a number in training loss" in worse.sentences[-1]
    some = judged({"loss": lambda s: float("inf") if s < 2 else 0.5}, {}, 7)
    assert "; 2 more failed) in training loss" in str(some)


def test_seeds_that_only_one_network_finished_count_against_the_other() -> None:
    case = make_case({"delta": -2}, {}, 7)
    assert judge_case(case).gap_status == "no"
    lost = judge_case(replace(case, lost=(2, 0)))
    assert lost.gap_status == "undetermined"
    assert "2 of 9 trainings of plain failed" in lost.sentences[-1]


def test_a_clear_gap_over_too_few_seeds_says_how_many_it_takes() -> None:
    few = judged(vanishing(), {}, 4)
    assert few.gap_status == "undetermined"
    assert "There seems to be a gap (a claim needs 5 seeds)" in few.sentences[-1]
    assert few.next_steps[0].startswith("Train 5 seeds, run your loop once for each")
    assert "There is a gap to explain" in judged(vanishing(), {}, 5).sentences[-1]


def test_a_gap_within_the_margins_is_none_however_sure_it_is_above_zero() -> None:
    slightly = {
        "loss": lambda seed: 0.53 + seed / 1000,
        "accuracy": lambda seed: 0.79 - seed / 1000,
    }
    verdict = judged({"delta": -2, **slightly}, {"loss": 0.5, "accuracy": 0.8})
    assert [one.interval.low > 0 for one in verdict.gap] == [True, True]
    assert verdict.outcome == "nothing to explain"
    assert verdict.next_steps == ()
    assert "Rivals" not in str(verdict)


def test_the_family_of_questions_is_corrected_as_one() -> None:
    """A p that would do alone does not beside the rivals, which are questions, too."""
    close = {"delta": lambda seed: -1.35 + 0.1 * (seed % 5 - 2), **WORSE}
    assert judged(close).links[0].status == "yes"
    asked = {"examined": lambda seed: merged(rank(3, 0.3, seed), dead(0.1, seed))}
    beside = judged({**close, **asked}, asked)
    assert max(one.p_for for one in beside.links[0].evidence[:2]) < 0.02
    assert beside.links[0].status == "undetermined"
