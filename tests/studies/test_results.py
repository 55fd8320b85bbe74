"""The analysis of a study, on outcomes whose truth is known."""

import dataclasses
import math
from typing import Any

import pytest

from gradflow.studies import Study, results
from gradflow.studies.outcomes import Outcome

SEEDS = 5
WOBBLE = (0.010, -0.006, 0.004, -0.012, 0.004)  # of the losses of one arm over seeds

CHECK = {"of": "norm_bias", "what": "λ", "measured": 1.1, "expected": 1.12, "passed": True}


def study(**changes: Any) -> Study:
    content = {
        "base": {"data": "digits", "epochs": 2},
        "accused": "plain_18",
        "reference": "resnet_18",
        "seeds": SEEDS,
        "restores": "restored",
        "arms": {
            "restored": {
                "tests": "vanishing", "networks": "accused",
                "intervene": "gradient_scale(layers=1-9, factor=10)",
            },
            "constant": {"tests": "schedule", "set": {"schedule": "constant"}},
            "weak-skip": {
                "tests": "skip", "networks": "reference", "intervene": "skip(alpha=0.5)",
            },
            "sgd": {"role": "baseline", "networks": "accused", "set": {"optimizer": "sgd"}},
            "sgd-down": {
                "role": "positive control", "against": "sgd", "networks": "accused",
                "tests": "vanishing", "intervene": "gradient_scale(layers=1-9, factor=0.1)",
            },
        },
    } | changes  # fmt: skip
    return Study.read(content, name="study", changes={})


# By arm: the training loss of the accused and of the reference network; None: it is not treated.
LOSSES: dict[str, tuple[float | None, float | None]] = {
    "baseline": (1.4, 1.0),
    "restored": (1.4, None),
    "constant": (1.0, 0.8),  # the gap of 0.4 becomes 0.2
    "weak-skip": (None, 1.3),  # three quarters of the deficit appear
    "sgd": (1.5, None),
    "sgd-down": (1.9, None),
}


def outcomes(losses: dict[str, tuple[float | None, float | None]] = LOSSES, **checks: Any) -> Any:
    return {
        (arm, place, seed): Outcome(
            # Each arm has a spread of its own, so that no difference is free of it.
            train_loss=loss + WOBBLE[(seed + shift + 2 * (place == "reference")) % SEEDS] * 0.5,
            test_accuracy=1.0 - loss / 2,
            checks=(CHECK | checks,),
            seconds=60.0,
        )
        for shift, (arm, levels) in enumerate(losses.items())
        for place, loss in zip(("accused", "reference"), levels, strict=True)
        if loss is not None
        for seed in range(SEEDS)
    }


def by_name(found: Any) -> dict[str, Any]:
    return {one.arm.name: one for one in found.arms}


def test_shares_are_those_that_were_planted() -> None:
    found = results(study(), outcomes())
    arms = by_name(found)
    assert found.gap["train_loss"].mean == pytest.approx(0.4)
    assert found.gap["test_accuracy"].mean == pytest.approx(0.2)
    planted = {"restored": 0.0, "constant": 0.5, "weak-skip": 0.75}
    for name, share in planted.items():
        assert arms[name].shares["train_loss"].value == pytest.approx(share, abs=1e-9), name
        assert arms[name].shares["test_accuracy"].value == pytest.approx(share, abs=1e-9), name
    assert [one.arm.name for one in found.strongest] == ["weak-skip", "constant", "restored"]


def test_what_each_arm_is() -> None:
    arms = by_name(results(study(), outcomes()))
    assert arms["restored"].primary.status == "not a cause"
    assert arms["constant"].primary.status == "contributor"
    assert arms["weak-skip"].primary.status == "main cause"
    assert arms["sgd"].primary is None
    assert arms["sgd-down"].primary is None


def test_without_a_reaction_of_the_positive_control_its_explanation_is_open() -> None:
    deaf = outcomes({**LOSSES, "sgd-down": (1.52, None)})
    found = results(study(), deaf)
    assert [(one.arm.name, one.reacts) for one in found.controls] == [("sgd-down", False)]
    arms = by_name(found)
    assert arms["restored"].primary.status == "undetermined"
    assert "no positive control reacted (sgd-down)" in arms["restored"].primary.why
    assert arms["weak-skip"].primary.status == "main cause", "another explanation is not concerned"


def test_one_of_two_positive_controls_is_enough() -> None:
    content = dict(study().source)
    content["arms"] = {**content["arms"], "sgd-up": {**content["arms"]["sgd-down"]}}
    both = Study.read(content, name="study", changes={})
    found = results(both, outcomes({**LOSSES, "sgd-up": (1.52, None)}))
    assert [one.reacts for one in found.controls] == [True, False]
    assert by_name(found)["restored"].primary.status == "not a cause"


def test_a_failed_manipulation_check_keeps_an_arm_open() -> None:
    arms = by_name(results(study(), outcomes(passed=False)))
    assert arms["weak-skip"].primary.status == "undetermined"
    assert "manipulation check" in arms["weak-skip"].primary.why


def test_a_gap_that_is_not_sure_explains_nothing() -> None:
    found = results(study(), outcomes({**LOSSES, "baseline": (1.001, 1.0)}))
    assert not found.gap_is_sure["train_loss"]
    assert all(one.primary.status == "undetermined" for one in found.causes)


def test_two_seeds_decide_nothing() -> None:
    found = results(study(seeds=2), outcomes())
    assert {one.primary.status for one in found.causes} == {"undetermined"}
    assert all("seeds cannot decide" in one.primary.why for one in found.causes)


def test_a_seed_that_failed_is_left_out_of_its_arm_and_noted() -> None:
    left = {key: one for key, one in outcomes().items() if key != ("constant", "accused", 3)}
    found = results(study(), left, {"constant/accused-s3": "diverged: The loss was nan"})
    assert by_name(found)["constant"].seeds == (0, 1, 2, 4)
    assert by_name(found)["weak-skip"].seeds == (0, 1, 2, 3, 4)
    assert "constant/accused-s3 diverged: The loss was nan" in found.notes
    assert "constant: 4 of 5 seeds are complete." in found.notes


def test_the_2x2_of_a_combination() -> None:
    content = dict(study().source)
    content["arms"] = {**content["arms"], "bias": {"intervene": "norm_bias(beta=1)"}}
    two = Study.read(content, name="study", changes={})
    two = two.with_arm(two.combined("constant", "bias"))
    # Alone they take 0.5 and 0.25 of the gap, together 0.6: they overlap by 0.15.
    losses = {**LOSSES, "bias": (1.2, 0.9), "constant + bias": (0.86, 0.7)}
    found = results(two, outcomes(losses))
    assert found.interaction is not None
    assert found.interaction.interval.mean == pytest.approx(-0.15, abs=1e-9)
    assert found.to_json()["interaction"]["first"] == "constant"


def test_the_arm_that_restores_the_gradients_feeds_link_4() -> None:
    found = results(study(restores="weak-skip"), outcomes())
    assert found.why_open(range(5)) == ""
    assert sum(found.gap_shares(range(5))) / 5 == pytest.approx(0.75)
    assert found.gap_shares([3]) == found.restored.shares["train_loss"].per_seed[3:4]


@pytest.mark.parametrize(
    ("losses", "checks", "why"),
    [
        ({"sgd-down": (1.52, None)}, {}, r"no positive control of restored reacted \(sgd-down\)"),
        ({}, {"passed": False}, "the manipulation check of restored failed"),
        ({}, {"passed": None}, "the manipulation check of restored failed or is missing"),
        ({"restored": (None, None)}, {}, "restored is complete for 0 of 5 seeds"),
    ],
)
def test_what_the_table_leaves_open_decides_no_link_either(
    losses: dict[str, Any], checks: dict[str, Any], why: str
) -> None:
    found = results(study(), outcomes(LOSSES | losses, **checks))
    with pytest.raises(ValueError, match=why):
        found.gap_shares(range(SEEDS))


def test_a_network_at_chance_that_the_arm_treats_has_to_gain() -> None:
    """Its gain is 0 in every seed, as if it were untouched; the arm only spoils the reference."""
    given = outcomes({**LOSSES, "constant": (1.4, 1.35)})
    for seed in range(SEEDS):
        given["constant", "accused", seed] = given["baseline", "accused", seed]
    constant = by_name(results(study(), given))["constant"]
    assert constant.shares["train_loss"].value == pytest.approx(0.35 / 0.4, abs=0.05)
    assert constant.primary.status == "undetermined"
    assert "did not gain" in constant.primary.why


def test_a_check_is_the_mean_over_seeds_of_one_network() -> None:
    given = outcomes()
    for (arm, place, seed), one in list(given.items()):
        if arm == "constant":
            level = 1.0 + seed / 10 if place == "accused" else 5.0
            expected = 1.2 if place == "accused" else None
            check = CHECK | {"measured": level, "expected": expected, "passed": None}
            given[arm, place, seed] = dataclasses.replace(one, checks=(check,))
    checks = by_name(results(study(), given))["constant"].checks
    assert [(one["network"], one["measured"], one["expected"]) for one in checks] == [
        ("accused", pytest.approx(1.2), pytest.approx(1.2)), ("reference", 5.0, None),
    ]  # fmt: skip


def test_results_are_plain_json_without_nan() -> None:
    import json

    found = results(study(), outcomes(measured=math.nan))
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["gap"]["train_loss"]["is_sure"]
