"""A verdict follows its schema, and gradients that are missing, zero or lost do not make one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from traces import N_STEPS, RESIDUAL, STACK, make_case
from verdicts import FAILED, NAN, judged, reach, vanishing

import gradflow.analysis
from gradflow.analysis.findings import OUTCOMES, Outcome
from gradflow.analysis.verdict import Verdict, judge_case

SCHEMA = Path(gradflow.analysis.__file__).parent / "verdict.schema.json"


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


def test_json_of_trainings_that_failed_follows_the_schema() -> None:
    valid_json(judged(FAILED, {}))


# -- gradients that are missing, zero or lost --------------------------------------------------

LOST = dict.fromkeys(("output_grad_norm", "grad_norm", "weight_norm"), NAN)
ZERO = dict.fromkeys(("output_grad_norm", "grad_norm"), 0.0)
NO_GRADIENTS = {
    "nothing but NaN": (LOST, "none was taken. A Recorder sees the outputs of modules"),
    "diverged": (LOST | {"grad_nonfinite": 4.0}, "none is finite. Training diverged"),
    "zero gradients": (ZERO, "all are zero"),
}


@pytest.mark.parametrize(("tables", "message"), NO_GRADIENTS.values(), ids=NO_GRADIENTS)
def test_without_gradients_there_is_nothing_to_judge(
    tables: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        judged({"tables": tables}, {})


def test_without_measures_there_is_nothing_to_judge() -> None:
    case = make_case({}, {})
    for one in (*case.accused, *case.reference):
        one.trace.values.clear()
    with pytest.raises(ValueError, match="not recorded"):
        judge_case(case)


def test_layers_without_any_gradient_vanish() -> None:
    """Exact zeros, as behind a dead layer, are not left out: nothing vanishes more."""

    def tables(seed: int) -> dict[str, Any]:
        later = np.arange(len(RESIDUAL)) >= len(RESIDUAL) // 2
        return dict.fromkeys(("output_grad_norm", "grad_norm"), later * (1.0 + 0.01 * seed))

    verdict = judged({"tables": tables})
    assert verdict.has("vanishing")
    assert verdict.links[0].status == "yes"


def test_a_size_that_was_not_recorded_refutes_nothing() -> None:
    verdict = judged({"tables": {"output_grad_norm": NAN}})
    assert verdict.links[0].status != "no"
    assert "output_grad_norm" in verdict.links[0].missing[0]


def test_a_lost_layer_does_not_lose_the_verdict() -> None:
    table = np.ones((N_STEPS, len(RESIDUAL)))
    table[:, 3] = NAN
    verdict = judged({"tables": {"output_grad_norm": table}})
    assert verdict.links[0].status == "no"
    valid_json(verdict)


def test_one_seed_without_gradients_is_left_out_of_the_numbers() -> None:
    lost = vanishing(tables=lambda seed: LOST if seed == 2 else {})
    verdict = judged(lost, {}, 6)
    assert verdict.links[0].evidence[0].interval.n == 5
    assert verdict.outcome == "present, cause not tested"


def test_a_seed_in_which_nothing_has_a_gradient_counts() -> None:
    """Four vanish and one is dead: it is there. Five are healthy and one is dead: it is open."""

    def dead(seed: int) -> dict[str, float]:
        return ZERO if seed == 2 else {}

    sick = judged(vanishing(tables=dead), {})
    assert sick.links[0].status == "yes"
    assert "0 at the first layer in 1 of 5 seeds" in sick.sentences[1]
    assert judged({"tables": dead}, {}, 6).links[0].status == "undetermined"


def test_a_deeper_accused_is_compared_in_the_common_layers() -> None:
    accused = {"names": STACK, "delta": -2}
    verdict = judged(accused, {"names": STACK[:4]})
    assert verdict.links[0].status == "yes"
    valid_json(verdict)
