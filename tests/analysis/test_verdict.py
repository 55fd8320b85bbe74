"""Every outcome is reached by a network that deserves it, and bad data do not make one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from traces import (
    N_STEPS,
    RESIDUAL,
    STACK,
    dead,
    make_case,
    merged,
    rank,
    reset,
)

import gradflow.analysis
from gradflow.analysis.case import Case
from gradflow.analysis.findings import OUTCOMES, Outcome
from gradflow.analysis.vanishing import directions
from gradflow.analysis.verdict import Restored, Verdict, judge_case

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


BOTH = Restored(CLOSES, "signal and gradients")

# Outcome -> the accused, what an intervention found, whether the instrument passed.
REACHED: dict[Outcome, tuple[Mapping[str, Any], Restored, bool]] = {
    "supported": (vanishing(), Restored(CLOSES), True),
    "supported for signal and gradient": (vanishing(), BOTH, True),
    "present, cause not tested": (vanishing(), Restored(), True),
    "present, not causal": (vanishing(), Restored(DOES_NOT), True),
    "refuted": ({"delta": 0, **WORSE}, Restored(), True),
    "nothing to explain": ({"delta": -2}, Restored(), True),
    "undetermined": ({"delta": lambda seed: -1 + 3 * (-1) ** seed, **WORSE}, Restored(), True),
    "no verdict": (vanishing(), Restored(CLOSES), False),
}
GROWS = {"delta": 2, **WORSE}


def reach(outcome: Outcome, n_seeds: int = 5) -> Verdict:
    accused, restored, passed = REACHED[outcome]
    restored = replace(restored, shares=restored.shares[:n_seeds])
    return judge_case(make_case(accused, {}, n_seeds), Checked(passed), restored)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_outcome_is_reached(outcome: Outcome) -> None:
    verdict = reach(outcome)
    assert verdict.outcome == outcome
    assert verdict.to_json()["meaning"] == OUTCOMES[outcome]
    assert verdict.gap_status == ("no" if outcome == "nothing to explain" else "yes")
    assert verdict.sentences[0].lower().startswith(f"{outcome}:")


def test_every_outcome_is_in_the_table_of_meanings() -> None:
    assert tuple(OUTCOMES) == get_args(Outcome) == tuple(REACHED)


FAILED = {"loss": float("inf"), "accuracy": NAN}
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
    verdict = judge_case(make_case(accused, reference), restored=restored)
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
    verdict = judge_case(make_case({"delta": 3, "invariant": -3, **WORSE}, {}))
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
    verdict = judge_case(make_case({"tables": tables}, {}))
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
    compared = judge_case(make_case(given, {"learning_rates": rates})).links[1].evidence[1:]
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
    assert judge_case(make_case(GROWS, {})).has("exploding")
    assert not judge_case(make_case(GROWS, {})).has("vanishing")
    assert not reach("undetermined").has("vanishing")  # ten-fold on average, and no one knows
    assert not reach("undetermined").has("exploding")


def test_without_a_reference_there_is_no_gap_and_there_are_no_rivals() -> None:
    verdict = judge_case(make_case(vanishing()), restored=Restored(CLOSES))
    assert verdict.outcome == "undetermined"  # four links, but no gap to explain
    assert statuses(verdict) == ["yes"] * 4
    assert (verdict.gap, verdict.gap_status, verdict.rivals) == ((), "not measured", ())
    assert verdict.to_json()["reference"] is None
    assert not any("gap" in sentence for sentence in verdict.sentences[1:])
    assert "Gap" not in str(verdict)
    assert judge_case(make_case(vanishing())).outcome == "present, cause not tested"
    assert judge_case(make_case({"delta": 2})).outcome == "refuted"
    assert judge_case(make_case({"delta": 0})).outcome == "refuted"


@pytest.mark.parametrize("n_failed", [1, 2, 7])
def test_trainings_that_failed_count_against_their_network(n_failed: int) -> None:
    """Equal but for the failed ones: never "does no worse"; all failed: surely worse."""

    def failing(seed: int) -> float:
        return float("inf") if seed < n_failed else 0.5

    verdict = judge_case(make_case({"delta": -2, "loss": failing}, {}, 7))
    assert verdict.gap_status == ("yes" if n_failed == 7 else "undetermined")
    assert f"{n_failed} of 7 trainings of plain failed" in verdict.sentences[-1]
    turned = judge_case(make_case({"delta": -2}, {"loss": lambda s: failing(s - 100)}, 7))
    assert turned.gap_status != "yes"
    assert f"{n_failed} of 7 trainings of residual failed" in turned.sentences[-1]


def test_a_network_that_never_ended_is_not_called_worse_and_better() -> None:
    better = judge_case(make_case({"delta": -2}, FAILED))
    assert better.outcome == "nothing to explain"
    assert "plain is better without a number in training loss" in better.sentences[-1]
    worse = judge_case(make_case({"delta": -2, **FAILED}, {}))
    assert "plain is worse without a number in training loss" in worse.sentences[-1]
    some = judge_case(make_case({"loss": lambda s: float("inf") if s < 2 else 0.5}, {}, 7))
    assert "; 2 more failed) in training loss" in str(some)


def test_seeds_that_only_one_network_finished_count_against_the_other() -> None:
    case = make_case({"delta": -2}, {}, 7)
    assert judge_case(case).gap_status == "no"
    lost = judge_case(replace(case, lost=(2, 0)))
    assert lost.gap_status == "undetermined"
    assert "2 of 9 trainings of plain failed" in lost.sentences[-1]


def test_a_clear_gap_over_too_few_seeds_says_how_many_it_takes() -> None:
    few = judge_case(make_case(vanishing(), {}, 4))
    assert few.gap_status == "undetermined"
    assert "There seems to be a gap (a claim needs 5 seeds)" in few.sentences[-1]
    assert few.next_steps[0].startswith("Train 5 seeds, run your loop once for each")
    assert "There is a gap to explain" in judge_case(make_case(vanishing(), {}, 5)).sentences[-1]


def test_a_gap_within_the_margins_is_none_however_sure_it_is_above_zero() -> None:
    slightly = {
        "loss": lambda seed: 0.53 + seed / 1000,
        "accuracy": lambda seed: 0.79 - seed / 1000,
    }
    verdict = judge_case(make_case({"delta": -2, **slightly}, {"loss": 0.5, "accuracy": 0.8}))
    assert [one.interval.low > 0 for one in verdict.gap] == [True, True]
    assert verdict.outcome == "nothing to explain"
    assert verdict.next_steps == ()
    assert "Rivals" not in str(verdict)


def test_the_family_of_questions_is_corrected_as_one() -> None:
    """A p that would do alone does not beside the rivals, which are questions, too."""
    close = {"delta": lambda seed: -1.35 + 0.1 * (seed % 5 - 2), **WORSE}
    assert judge_case(make_case(close)).links[0].status == "yes"
    asked = {"examined": lambda seed: merged(rank(3, 0.3, seed), dead(0.1, seed))}
    beside = judge_case(make_case({**close, **asked}, asked))
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
    assert "times larger" in judge_case(make_case(GROWS, {})).sentences[1]


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
    assert reach("present, cause not tested").next_steps[0].startswith(intervene)
    assert not any(intervene in step for step in reach("supported").next_steps)


def test_consistent_rivals_come_first_and_are_named_as_leads() -> None:
    accused = {**WORSE, "examined": lambda seed: rank(3, 0.3, seed)}
    verdict = judge_case(make_case(accused, {"examined": lambda seed: rank(50, 0, seed)}))
    assert verdict.rivals[0].key == "H9"
    assert verdict.rivals[0].status == "yes"
    assert any("rank collapse (H9)" in step for step in verdict.next_steps)
    unmeasured = next(step for step in verdict.next_steps if step.startswith("Measure the rest"))
    assert "H9" not in unmeasured
    assert "H4" in unmeasured


@pytest.mark.parametrize(("source", "said"), [
    ("traces", "give one trace per seed"), ("records", "plain-s0"),
    ("training", "`gradflow train --seeds 5 --log-grads`"), ("study", "`seeds: 5`"),
])  # fmt: skip
def test_advice_fits_where_the_records_come_from(source: Any, said: str) -> None:
    few = judge_case(replace(make_case(vanishing(), {}, 2), source=source))
    assert said in few.next_steps[0]
    assert ("gradflow train --seeds" in " ".join(few.next_steps)) == (source == "training")
    enough = judge_case(replace(make_case(vanishing(), {}), source=source))
    (how,) = (step for step in enough.next_steps if "on purpose" in step)
    assert ("gap_shares" in how) == (source in ("traces", "records"))
    assert ("`gradflow study`" in how) == (source == "training")


def test_what_is_open_is_said_the_same_way_everywhere() -> None:
    conflict = judge_case(make_case(vanishing(first_moves=1.0), {}), restored=Restored(CLOSES))
    wide = judge_case(make_case(vanishing(), {}), restored=Restored((0.1, 0.9, 0.2, 0.5, 0.05)))
    for verdict in (conflict, wide, reach("undetermined")):
        (line,) = (one for one in str(verdict).splitlines() if one.startswith("Open "))
        assert verdict.sentences[0] == f"Undetermined: {line[9:]}."
    assert "whether the gap closes" in wide.next_steps[0]


@pytest.mark.parametrize(("source", "how"), [("traces", "`losses`"), ("training", "--arch both")])
def test_without_a_gap_the_first_step_is_to_have_one(source: Any, how: str) -> None:
    alone = replace(make_case(vanishing()), source=source)
    for restored in (Restored(), Restored(CLOSES)):
        assert how in judge_case(alone, restored=restored).next_steps[0]
    assert how not in judge_case(make_case(vanishing(**FAILED), FAILED)).next_steps[0]


def test_no_change_is_too_large_to_be_said() -> None:
    """10^320, beyond what a float64 holds."""
    table = np.append(10.0 ** np.linspace(-300, 20, len(RESIDUAL) - 1), 1.0)
    verdict = judge_case(make_case({"tables": {"output_grad_norm": table}}))
    assert "(δ) is 10^320 times smaller" in verdict.sentences[1]
    assert "10^320 times smaller" in str(verdict)


# -- JSON ------------------------------------------------------------------------------------------


def bad(name: str) -> Verdict:
    """Verdicts over data that are not what one would wish for."""
    if name in ("nothing but NaN", "diverged"):
        tables = dict.fromkeys(("output_grad_norm", "grad_norm", "weight_norm"), NAN)
        tables |= {"grad_nonfinite": 4.0} if name == "diverged" else {}
        return judge_case(make_case({"tables": tables}, {}))
    if name == "zero gradients":
        return judge_case(make_case({"tables": {"output_grad_norm": 0.0, "grad_norm": 0.0}}, {}))
    if name == "one layer lost":
        table = np.ones((N_STEPS, len(RESIDUAL)))
        table[:, 3] = NAN
        return judge_case(make_case({"tables": {"output_grad_norm": table}}, {}))
    if name == "infinite loss":
        return judge_case(make_case(FAILED, {}))
    case = make_case({}, {})
    for one in (*case.accused, *case.reference):
        one.trace.values.clear()
    return judge_case(case)


NO_GRADIENTS = {
    "nothing but NaN": "none was taken. A Recorder sees the outputs of modules",
    "diverged": "none is finite. Training diverged",
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
    content = valid_json(verdict)
    assert content["outcome"] == verdict.outcome
    assert content["seeds"] == list(range(n_seeds))


@pytest.mark.parametrize("name", BAD)
def test_json_of_bad_data_follows_the_schema(name: str) -> None:
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


def test_a_size_that_was_not_recorded_refutes_nothing() -> None:
    verdict = judge_case(make_case({"tables": {"output_grad_norm": NAN}}))
    assert verdict.links[0].status != "no"
    assert "output_grad_norm" in verdict.links[0].missing[0]


def test_a_lost_layer_does_not_lose_the_verdict() -> None:
    assert bad("one layer lost").links[0].status == "no"


def test_one_seed_without_gradients_is_left_out_of_the_numbers() -> None:
    def tables(seed: int) -> dict[str, Any]:
        lost = ("output_grad_norm", "grad_norm", "weight_norm")
        return dict.fromkeys(lost, NAN) if seed == 2 else {}

    verdict = judge_case(make_case(vanishing(tables=tables), {}, 6))
    assert verdict.links[0].evidence[0].interval.n == 5
    assert verdict.outcome == "present, cause not tested"


def test_a_seed_in_which_nothing_has_a_gradient_counts() -> None:
    """Four vanish and one is dead: it is there. Five are healthy and one is dead: it is open."""

    def dead(seed: int) -> dict[str, Any]:
        return dict.fromkeys(("output_grad_norm", "grad_norm"), 0.0) if seed == 2 else {}

    sick = judge_case(make_case(vanishing(tables=dead), {}))
    assert sick.links[0].status == "yes"
    assert "0 at the first layer in 1 of 5 seeds" in sick.sentences[1]
    assert judge_case(make_case({"tables": dead}, {}, 6)).links[0].status == "undetermined"


def test_a_deeper_accused_is_compared_in_the_common_layers() -> None:
    accused = {"names": STACK, "delta": -2}
    verdict = judge_case(make_case(accused, {"names": STACK[:4]}))
    assert verdict.links[0].status == "yes"
    valid_json(verdict)


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
