"""What a verdict says and shows: numbers, a gap by what was measured, and what would decide."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from traces import N_STEPS, RESIDUAL, make_case, rank
from verdicts import CLOSES, FAILED, GROWS, WORSE, judged, reach, vanishing

from gradflow.analysis.case import Case
from gradflow.analysis.verdict import Restored, judge_case


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
    assert "times larger" in judged(GROWS, {}).sentences[1]


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
    verdict = judged(open_question)
    assert verdict.outcome == "undetermined"
    needed = verdict.links[0].seeds_needed
    assert needed is not None
    assert f"Train about {needed} seeds" in verdict.next_steps[0]
    intervene = "Change the gradients on purpose"
    assert reach("present, cause not tested").next_steps[0].startswith(intervene)
    assert not any(intervene in step for step in reach("supported").next_steps)


def test_consistent_rivals_come_first_and_are_named_as_leads() -> None:
    accused = {**WORSE, "examined": lambda seed: rank(3, 0.3, seed)}
    verdict = judged(accused, {"examined": lambda seed: rank(50, 0, seed)})
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
    conflict = judged(vanishing(first_moves=1.0), {}, restored=Restored(CLOSES))
    wide = judged(vanishing(), {}, restored=Restored((0.1, 0.9, 0.2, 0.5, 0.05)))
    for verdict in (conflict, wide, reach("undetermined")):
        (line,) = (one for one in str(verdict).splitlines() if one.startswith("Open "))
        assert verdict.sentences[0] == f"Undetermined: {line[9:]}."
    assert "whether the gap closes" in wide.next_steps[0]


@pytest.mark.parametrize(("source", "how"), [("traces", "`losses`"), ("training", "--arch both")])
def test_without_a_gap_the_first_step_is_to_have_one(source: Any, how: str) -> None:
    alone = replace(make_case(vanishing()), source=source)
    for restored in (Restored(), Restored(CLOSES)):
        assert how in judge_case(alone, restored=restored).next_steps[0]
    assert how not in judged(vanishing(**FAILED), FAILED).next_steps[0]


def test_no_change_is_too_large_to_be_said() -> None:
    """10^320, beyond what a float64 holds."""
    table = np.append(10.0 ** np.linspace(-300, 20, len(RESIDUAL) - 1), 1.0)
    verdict = judged({"tables": {"output_grad_norm": table}})
    assert "(δ) is 10^320 times smaller" in verdict.sentences[1]
    assert "10^320 times smaller" in str(verdict)


def test_rates_and_bands_of_every_network_and_size() -> None:
    rates = np.repeat([1.0, 0.1], N_STEPS // 2)
    table = np.ones((N_STEPS, len(RESIDUAL)))
    table[1 : N_STEPS // 2] = 10 ** np.linspace(-2, 0, len(RESIDUAL))
    mine = {"learning_rates": rates, "tables": {"output_grad_norm": table}}
    verdict = judged(mine, {"delta": 2})
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
