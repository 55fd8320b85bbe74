"""Every outcome is reached by a network that deserves it, and bad data do not make one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from traces import N_STEPS, RESIDUAL, STACK, group, make_case, make_network, merged, rank, reset

import gradflow.analysis
from gradflow.analysis.case import Case
from gradflow.analysis.vanishing import explodes, vanishes
from gradflow.analysis.verdict import OUTCOMES, GradientSize, Outcome, Verdict, judge_case

SCHEMA = Path(gradflow.analysis.__file__).parent / "verdict.schema.json"
NAN = float("nan")

WORSE = {"loss": 0.9, "accuracy": 0.6}  # than 0.5 and 0.8 of the reference
CLOSES = (0.80, 0.82, 0.78, 0.81, 0.79)
DOES_NOT = (0.00, 0.02, -0.02, 0.01, -0.01)


def vanishing(cost: float = 0.0, **others: Any) -> dict[str, Any]:
    """Gradients shrink a hundred-fold, early layers do not move, and losing them costs `cost`."""
    return {
        "delta": -2,
        "first_moves": 0.1,
        "examined": lambda seed: reset(cost, seed),
        **WORSE,
        **others,
    }


@dataclass(frozen=True)
class Checked:
    """A gate, as `gradflow.controls.gate` makes one."""

    passed: bool
    hit_rate: float = 1.0
    false_alarm_rate: float = 0.0

    def to_json(self) -> dict[str, Any]:
        rates = {"hit_rate": self.hit_rate, "false_alarm_rate": self.false_alarm_rate}
        return {**rates, "passed": self.passed}


# Outcome -> the accused, the reference, shares of the gap, whether the instrument passed.
REACHED: dict[Outcome, tuple[Mapping[str, Any], tuple[float, ...], bool]] = {
    "supported": (vanishing(), CLOSES, True),
    "present, not shown causal": (vanishing(), (), True),
    "present but not causal": (vanishing(), DOES_NOT, True),
    "matters only under SGD": (vanishing(), DOES_NOT, True),
    "refuted": ({"delta": 0, **WORSE}, (), True),
    "exploding instead": ({"delta": 2, **WORSE}, (), True),
    "nothing to explain": ({"delta": -2}, (), True),
    "undetermined": ({"delta": lambda seed: -1 + 3 * (-1) ** seed, **WORSE}, (), True),
    "no verdict": (vanishing(), CLOSES, False),
}


def reach(outcome: Outcome, n_seeds: int = 5) -> Verdict:
    accused, shares, passed = REACHED[outcome]
    size = GradientSize(helps_sgd="sgd-up" if outcome == "matters only under SGD" else "")
    return judge_case(make_case(accused, {}, n_seeds), Checked(passed), shares[:n_seeds], size)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_outcome_is_reached(outcome: Outcome) -> None:
    verdict = reach(outcome)
    assert verdict.outcome == outcome
    assert verdict.to_json()["meaning"] == OUTCOMES[outcome]
    assert verdict.gap_status == ("no" if outcome == "nothing to explain" else "yes")


def test_every_outcome_is_in_the_table_of_meanings() -> None:
    assert tuple(OUTCOMES) == get_args(Outcome) == tuple(REACHED)


# -- the links -------------------------------------------------------------------------------------


def statuses(verdict: Verdict) -> list[str]:
    return [link.status for link in verdict.links]


def test_the_links_of_a_supported_verdict() -> None:
    assert statuses(reach("supported")) == ["yes"] * 4
    assert statuses(reach("present, not shown causal")) == ["yes", "yes", "yes", "not measured"]


@pytest.mark.parametrize(
    ("accused", "shares", "broken", "words"),
    [
        (vanishing(first_moves=1.0), (), 1, "the early layers move far enough"),
        (vanishing(), DOES_NOT, 3, "restoring them does not close the gap"),
    ],
)
def test_a_broken_link_is_named(
    accused: Mapping[str, Any], shares: tuple[float, ...], broken: int, words: str
) -> None:
    verdict = judge_case(make_case(accused, {}), gap_shares=shares)
    assert verdict.outcome == "present but not causal"
    assert statuses(verdict)[broken] == "no"
    assert words in verdict.sentences[0]


# Rule 4: gradients whose size changes nothing under AdamW, while a control under SGD reacts.
OPEN = {"delta": lambda seed: -1 + 3 * (-1) ** seed, **WORSE}  # no one knows whether they vanish
SIZE = GradientSize(changes_nothing=("up", "down"))
WIDE = (0.6, -0.7, 0.5, -0.6, 0.2)  # shares of a gap, from which nothing follows


@pytest.mark.parametrize(
    ("accused", "shares", "size", "outcome", "words"),
    [
        (OPEN, (), GradientSize(), "undetermined", "cannot be told"),
        (OPEN, WIDE, SIZE, "refuted", "stays within 0.05 nats in up and down"),
        (OPEN, CLOSES, SIZE, "undetermined", "cannot be told"),
        (vanishing(), WIDE, GradientSize(), "present, not shown causal", "is open"),
        (vanishing(), WIDE, SIZE, "present but not causal", "their size changes nothing"),
        (vanishing(), CLOSES, SIZE, "supported", "main cause"),
        (vanishing(), DOES_NOT, replace(SIZE, helps_sgd="sgd-up"), "matters only under SGD",
         "under SGD (sgd-up), but not in this experiment"),
        (vanishing(), CLOSES, GradientSize(helps_sgd="sgd-up"), "supported", "main cause"),
        ({"delta": 0, **WORSE}, WIDE, SIZE, "refuted", "do not vanish"),
    ],
)  # fmt: skip
def test_a_size_that_changes_nothing_refutes_what_the_gradients_leave_open(
    accused: Mapping[str, Any],
    shares: tuple[float, ...],
    size: GradientSize,
    outcome: Outcome,
    words: str,
) -> None:
    verdict = judge_case(make_case(accused, {}), gap_shares=shares, size=size)
    assert verdict.outcome == outcome
    assert words in verdict.sentences[0]


def test_what_is_refuted_asks_for_no_more_seeds() -> None:
    assert any("more seeds" in step or "Train about" in step
               for step in judge_case(make_case(OPEN, {})).next_steps)  # fmt: skip
    refuted = judge_case(make_case(OPEN, {}), size=SIZE)
    assert not any("seeds" in step for step in refuted.next_steps)


def test_early_layers_that_learned_speak_against_it_and_decide_nothing() -> None:
    verdict = judge_case(make_case(vanishing(cost=0.5), {}))
    assert statuses(verdict)[2] == "no"
    assert verdict.outcome == "present, not shown causal"
    assert "though the early layers did learn" in verdict.sentences[0]


def test_gradients_that_vanish_no_more_than_those_of_the_reference_are_not_the_cause() -> None:
    verdict = judge_case(make_case(vanishing(), {"delta": -2}))
    assert verdict.links[0].status == "no"
    assert verdict.outcome == "present but not causal"
    assert "no less than a third of what those of residual do" in verdict.sentences[0]
    assert verdict.has("vanishing")  # which is a fact about the accused alone


def test_one_judged_size_that_vanishes_is_enough() -> None:
    only_delta = judge_case(make_case(vanishing(delta=-2, invariant=0), {}))
    only_invariant = judge_case(make_case(vanishing(delta=0, invariant=-2), {}))
    for verdict in (only_delta, only_invariant):
        assert verdict.outcome == "present, not shown causal"


def test_the_raw_gradient_is_shown_and_not_judged() -> None:
    """Weights that grow towards the input shrink g; ŝ and δ do not see it."""
    scale = 10 ** np.linspace(3, 0, len(RESIDUAL))
    tables = {"grad_norm": 1 / scale, "weight_norm": scale, "output_grad_norm": 1.0}
    verdict = judge_case(make_case({"tables": tables}, {}))
    raw = next(one for one in verdict.rates if (one.size, one.window) == ("gradient_rms", "early"))
    assert raw.decades.mean < -2
    assert verdict.outcome != "present, not shown causal"
    assert not verdict.has("vanishing")


def test_what_happens_late_is_not_judged() -> None:
    rates = np.repeat([1.0, 0.1], N_STEPS // 2)
    table = np.ones((N_STEPS, len(RESIDUAL)))
    table[N_STEPS // 2 :] = 10 ** np.linspace(-3, 0, len(RESIDUAL))
    tables = {"output_grad_norm": table, "grad_norm": table}
    given = {"tables": tables, "learning_rates": rates}
    assert not vanishes(make_case(given))
    turned = {name: table[::-1] for name in tables}
    assert vanishes(make_case({**given, "tables": turned}))


# -- few seeds, no reference, an open gap ----------------------------------------------------------


@pytest.mark.parametrize("n_seeds", [1, 2])
@pytest.mark.parametrize("outcome", ["supported", "refuted", "nothing to explain"])
def test_few_seeds_describe_and_conclude_nothing(outcome: Outcome, n_seeds: int) -> None:
    verdict = reach(outcome, n_seeds)
    assert verdict.outcome == "undetermined"
    assert {one.status for one in (*verdict.links, *verdict.rivals)} <= {
        "undetermined",
        "not measured",
    }
    assert "nothing can be concluded from fewer than 3" in verdict.sentences[0]
    assert "times smaller" in verdict.sentences[1] or outcome == "refuted"
    assert verdict.next_steps[0].startswith("Train 5 seeds")


def test_few_seeds_have_what_was_measured() -> None:
    assert reach("supported", 1).has("vanishing")
    assert not reach("supported", 1).has("exploding")
    assert reach("exploding instead", 2).has("exploding")
    assert not reach("refuted", 1).has("vanishing")
    assert not reach("refuted", 1).has("exploding")


def test_enough_seeds_have_what_is_decided() -> None:
    assert reach("supported").has("vanishing")
    assert reach("exploding instead").has("exploding")
    assert not reach("exploding instead").has("vanishing")
    assert not reach("undetermined").has("vanishing")  # ten-fold on average, and no one knows
    assert not reach("undetermined").has("exploding")


def test_a_failed_instrument_gives_no_verdict_whatever_was_seen() -> None:
    verdict = reach("no verdict")
    assert verdict.sentences[0].startswith("No verdict")
    assert verdict.next_steps == ("Run `gradflow check --controls` and report what fails.",)


def test_without_a_reference_there_is_no_gap_and_there_are_no_rivals() -> None:
    verdict = judge_case(make_case(vanishing()), gap_shares=CLOSES)
    assert verdict.outcome == "present, not shown causal"  # four links, but no gap to explain
    assert statuses(verdict) == ["yes"] * 4
    assert (verdict.gap, verdict.gap_status, verdict.rivals) == ((), "not measured", ())
    assert verdict.to_json()["reference"] is None
    assert "no reference network" in verdict.sentences[-1]
    assert explodes(make_case({"delta": 2}))
    assert judge_case(make_case({"delta": 2})).outcome == "exploding instead"
    assert judge_case(make_case({"delta": 0})).outcome == "refuted"


def test_an_open_gap_supports_nothing() -> None:
    """Four links hold; the accused does worse on average, but not for sure."""
    luck = vanishing(loss=lambda seed: 0.5 + 0.4 * (seed % 2), accuracy=0.75)
    verdict = judge_case(make_case(luck, {}), gap_shares=CLOSES)
    assert verdict.gap_status == "undetermined"
    assert verdict.outcome == "present, not shown causal"
    assert "open" in verdict.sentences[-1]


def test_a_clear_gap_over_too_few_seeds_says_how_many_it_takes() -> None:
    few = judge_case(make_case(vanishing(), {}, 4))
    assert few.gap_status == "undetermined"
    assert "There seems to be a gap (a claim needs 5 seeds)" in few.sentences[-1]
    assert "Train 5 seeds: a gap is claimed from no fewer." in few.next_steps
    assert "There is a gap to explain" in judge_case(make_case(vanishing(), {}, 5)).sentences[-1]


def test_a_gap_must_show_in_loss_and_in_accuracy() -> None:
    only_loss = judge_case(make_case(vanishing(accuracy=0.8), {}))
    assert only_loss.gap_status == "undetermined"


def test_an_accused_that_does_better_leaves_nothing_to_explain() -> None:
    verdict = judge_case(make_case(vanishing(), {"loss": 1.5, "accuracy": 0.3}))
    assert verdict.outcome == "nothing to explain"
    assert "plain does no worse than residual" in verdict.sentences[0]


def test_the_family_of_questions_is_corrected_as_one() -> None:
    """A p that would do alone does not beside the rivals, which are questions, too."""
    close = {"delta": lambda seed: -1.32 + 0.12 * (seed % 5 - 2), **WORSE}
    assert judge_case(make_case(close)).links[0].status == "yes"
    with_rank = {**close, "examined": lambda seed: rank(3, 0.3, seed)}
    beside = judge_case(make_case(with_rank, {"examined": lambda seed: rank(50, 0, seed)}))
    assert max(one.p_for for one in beside.links[0].evidence[:2]) < 0.02
    assert beside.links[0].status == "undetermined"


# -- sentences -------------------------------------------------------------------------------------


def test_sentences_hold_names_and_numbers() -> None:
    answer, numbers, gap = reach("supported").sentences
    assert answer.startswith("Supported: the gradients of plain vanish")
    assert "main cause" in answer
    assert "(δ) is 99.3 times smaller at the first layer than at the last, -2.00 decades" in numbers
    assert "(ŝ) is" in numbers
    assert "(95 % -2.03 to -1.96)" in numbers
    assert gap == (
        "There is a gap to explain: plain is worse by 0.397 nats (95 % +0.385 to +0.409) in "
        "training loss and worse by 0.199 (95 % +0.190 to +0.209) in test accuracy than residual."
    )
    assert "times larger" in reach("exploding instead").sentences[1]


def test_a_small_share_of_the_gap_is_called_a_part() -> None:
    shares = tuple(0.25 + np.array([0, 0.01, -0.01, 0.005, -0.005]))
    verdict = judge_case(make_case(vanishing(), {}), gap_shares=shares)
    assert verdict.outcome == "supported"
    assert "closes a part of the gap" in verdict.sentences[0]


def test_the_gap_is_named_by_what_was_measured() -> None:
    case = make_case(WORSE, {})
    for found, missing, accused in (
        ("test accuracy", "training loss", [replace(one, train_loss=None) for one in case.accused]),
        ("training loss", "test accuracy", [replace(x, test_accuracy=None) for x in case.accused]),
    ):
        verdict = judge_case(Case.of(accused, case.reference))
        assert verdict.gap_status == "yes"
        assert f"in {found}" in verdict.sentences[-1]
        assert missing not in verdict.sentences[-1]


def test_next_steps_say_what_would_decide() -> None:
    open_question = {"delta": lambda seed: -1.3 + 0.5 * (seed % 5 - 2), **WORSE}
    verdict = judge_case(make_case(open_question))
    assert verdict.outcome == "undetermined"
    needed = verdict.links[0].seeds_needed
    assert needed is not None
    assert f"Train about {needed} seeds" in verdict.next_steps[0]
    intervene = "Change the gradients on purpose"
    assert reach("present, not shown causal").next_steps[0].startswith(intervene)
    assert not any(intervene in step for step in reach("supported").next_steps)


def test_consistent_rivals_come_first_and_are_named_as_leads() -> None:
    accused = {**WORSE, "examined": lambda seed: rank(3, 0.3, seed)}
    verdict = judge_case(make_case(accused, {"examined": lambda seed: rank(50, 0, seed)}))
    assert verdict.rivals[0].key == "H9"
    assert verdict.rivals[0].status == "yes"
    assert any("rank collapse (H9)" in step for step in verdict.next_steps)
    unmeasured = next(step for step in verdict.next_steps if step.startswith("Not fully measured"))
    assert "H9" not in unmeasured
    assert "H3" in unmeasured


# -- JSON ------------------------------------------------------------------------------------------


def bad(name: str) -> Verdict:
    """Verdicts over data that are not what one would wish for."""
    if name == "nothing but NaN":
        tables = dict.fromkeys(("output_grad_norm", "grad_norm", "weight_norm"), NAN)
        return judge_case(make_case({"tables": tables}, {}))
    if name == "zero gradients":
        return judge_case(make_case({"tables": {"output_grad_norm": 0.0, "grad_norm": 0.0}}, {}))
    if name == "one layer lost":
        table = np.ones((N_STEPS, len(RESIDUAL)))
        table[:, 3] = NAN
        return judge_case(make_case({"tables": {"output_grad_norm": table}}, {}))
    if name == "infinite loss":
        return judge_case(make_case({"loss": float("inf"), "accuracy": NAN}, {}))
    case = make_case({}, {})
    for one in (*case.accused, *case.reference):
        one.trace.values.clear()
    return judge_case(case)


NO_GRADIENTS = {
    "nothing but NaN": "none is finite",
    "zero gradients": "all are zero",
    "no measures": "not recorded",
}
BAD = ("one layer lost", "infinite loss")


def valid_json(verdict: Verdict) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(content, json.loads(SCHEMA.read_text(encoding="utf-8")))
    return content


@pytest.mark.parametrize("n_seeds", [1, 5])
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_json_follows_the_schema(outcome: Outcome, n_seeds: int) -> None:
    verdict = reach(outcome, n_seeds)
    assert json.dumps(verdict.to_json(), allow_nan=False)
    content = valid_json(verdict)
    assert content["outcome"] == verdict.outcome
    assert content["seeds"] == list(range(n_seeds))


@pytest.mark.parametrize("name", BAD)
def test_json_of_bad_data_follows_the_schema(name: str) -> None:
    assert json.dumps(bad(name).to_json(), allow_nan=False)
    valid_json(bad(name))


# -- bad data --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NO_GRADIENTS)
def test_without_gradients_there_is_nothing_to_judge(name: str) -> None:
    with pytest.raises(ValueError, match=NO_GRADIENTS[name]):
        bad(name)


def test_layers_without_any_gradient_vanish() -> None:
    """Exact zeros, as behind a dead layer, are not left out: nothing vanishes more."""

    def tables(seed: int) -> dict[str, Any]:
        later = np.arange(len(RESIDUAL)) >= len(RESIDUAL) // 2
        return dict.fromkeys(("output_grad_norm", "grad_norm"), later * (1.0 + 0.01 * seed))

    verdict = judge_case(make_case({"tables": tables}))
    assert verdict.has("vanishing")
    assert verdict.links[0].status == "yes"


def test_shrinking_that_is_not_decided_is_not_refuted() -> None:
    """Link 1 is broken since the reference receives as little; that it shrinks stays open."""
    spread = (-1.0, -1.4, -1.6, -0.9, -1.3)
    mine = vanishing(delta=lambda seed: spread[seed], invariant=0)
    case = make_case(mine, {"delta": lambda seed: spread[seed - 100]})
    verdict = judge_case(case)
    assert verdict.links[0].status == "no"
    assert verdict.outcome == "undetermined"
    assert "may shrink" in verdict.sentences[0]


def test_a_size_that_was_not_recorded_refutes_nothing() -> None:
    verdict = judge_case(make_case({"tables": {"output_grad_norm": NAN}}))
    assert verdict.links[0].status != "no"
    assert "output_grad_norm" in verdict.links[0].missing[0]


def test_a_lost_layer_does_not_lose_the_verdict() -> None:
    assert bad("one layer lost").links[0].status == "no"


def test_one_seed_that_diverged_is_left_out_of_the_numbers() -> None:
    def tables(seed: int) -> dict[str, Any]:
        lost = ("output_grad_norm", "grad_norm", "weight_norm")
        return dict.fromkeys(lost, NAN) if seed == 2 else {}

    verdict = judge_case(make_case(vanishing(tables=tables), {}))
    assert verdict.links[0].evidence[0].interval.n == 4
    assert verdict.outcome == "present, not shown causal"


def test_networks_that_do_not_align_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two layers of the same name"):
        Case.of(group(3), group(3, name="stack", names=STACK))


def test_a_deeper_accused_is_compared_in_the_common_layers() -> None:
    accused = {"names": STACK, "delta": -2}
    verdict = judge_case(make_case(accused, {"names": STACK[:4]}))
    assert verdict.links[0].status == "yes"
    valid_json(verdict)


def test_duplicate_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="every seed of plain once"):
        Case.of([make_network(seed=1), make_network(seed=1)])


def test_notes_of_the_case_are_kept() -> None:
    case = Case.of(group(4), group(3, name="residual"))
    assert judge_case(case).notes == ("plain, seed 3, was left out: it has no partner.",)


# -- what is shown ---------------------------------------------------------------------------------


def test_rates_and_bands_of_every_network_and_size() -> None:
    rates = np.repeat([1.0, 0.1], N_STEPS // 2)
    table = np.ones((N_STEPS, len(RESIDUAL)))
    table[1 : N_STEPS // 2] = 10 ** np.linspace(-2, 0, len(RESIDUAL))
    mine = {"learning_rates": rates, "tables": {"output_grad_norm": table}}
    verdict = judge_case(make_case(mine, {"delta": 2}))
    assert len(verdict.rates) == 2 * 3 * 3
    assert len(verdict.bands) == 2 * 3
    found = {(one.network, one.size, one.window): one for one in verdict.rates}
    of_table = -2 * 8 / 9
    for window, share in (("start", 0), ("early", 0.9), ("whole", 0.45)):
        rate = found["plain", "output_gradient", window]
        assert rate.decades.mean == pytest.approx(of_table * share)
        assert rate.decades.mean == pytest.approx(8 * rate.decades_per_layer.mean)
        assert rate.growth == pytest.approx(10 ** (2 * rate.decades_per_layer.mean))
    band = next(one for one in verdict.bands if one.network == "residual")
    assert band.layers == RESIDUAL[:-1]
    assert band.mean[0] - band.mean[-1] == pytest.approx(2, abs=0.1)
    assert (band.low <= band.mean).all()
    assert (band.mean <= band.high).all()


def test_examined_by_merging_is_read_as_a_whole() -> None:
    """One examination holds everything; each question takes its part."""
    both = vanishing(examined=lambda seed: merged(reset(0.0, seed), rank(3, 0.3, seed)))
    verdict = judge_case(make_case(both, {"examined": lambda seed: rank(50, 0, seed)}))
    assert verdict.links[2].status == "yes"
    assert verdict.rivals[0].key == "H9"
