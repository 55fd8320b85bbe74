"""The analysis of a study, on outcomes whose truth is known."""

import dataclasses
import json
import math
import re
from typing import Any

import pytest
from traces import group

from gradflow.analysis.findings import Finding, Status
from gradflow.studies import Study, diagnosis
from gradflow.studies.diagnosis import contradictions
from gradflow.studies.judging import results
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


SGD_UP = {"role": "positive control", "against": "sgd", "networks": "accused",
          "tests": "vanishing", "intervene": "gradient_scale(layers=1-9, factor=10)"}  # fmt: skip


def with_arms(**arms: Any) -> Study:
    return study(arms={**study().source["arms"], **arms})


# By arm: the training loss of the accused and of the reference network; None: it is not treated.
LOSSES: dict[str, tuple[float | None, float | None]] = {
    "baseline": (1.4, 1.0),
    "restored": (1.4, None),
    "constant": (1.0, 0.8),  # the gap of 0.4 becomes 0.2
    "weak-skip": (None, 1.3),  # three quarters of the deficit appear
    "sgd": (1.5, None),
    "sgd-down": (1.9, None),
}


def outcomes(
    losses: dict[str, tuple[float | None, float | None]] = LOSSES,
    attenuation: float = 0.5,
    **checks: Any,
) -> Any:
    """With gradients so small that Adam's ε takes half of a step: then their size matters."""
    return {
        (arm, place, seed): Outcome(
            # Each arm has a spread of its own, so that no difference is free of it.
            train_loss=loss + WOBBLE[(seed + shift + 2 * (place == "reference")) % SEEDS] * 0.5,
            test_accuracy=1.0 - loss / 2,
            checks=(CHECK | checks,),
            seconds=60.0,
            attenuation=attenuation,
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


@pytest.mark.parametrize(("gap", "can_be_shared"), [(0.045, False), (0.2, True)])
def test_a_gap_in_accuracy_that_luck_could_make_has_no_shares(
    gap: float, can_be_shared: bool
) -> None:
    """The accuracy here is 1 less half of the loss, so that a loss gap of 0.4 is one of 0.2."""
    losses = {**LOSSES, "baseline": (1.0 + 2 * gap, 1.0), "constant": (0.8 + gap, 0.8)}
    found = results(study(), outcomes(losses))
    constant = by_name(found)["constant"]
    share = constant.shares["test_accuracy"]
    assert found.can_be_shared == {"train_loss": True, "test_accuracy": can_be_shared}
    assert found.gap_is_sure["test_accuracy"]
    assert math.isfinite(share.value) == math.isfinite(share.interval.low) == can_be_shared
    assert (constant.judged["test_accuracy"].status == "contributor") == can_be_shared
    assert ("not surely above 0.05" in constant.judged["test_accuracy"].why) != can_be_shared
    assert constant.primary is not None
    assert constant.primary.status == "contributor", "the training loss decides"
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["gap"]["test_accuracy"]["can_be_shared"] == can_be_shared


def extra(intervene: str, **more: Any) -> dict[str, Any]:
    return {"extra": {"tests": "x", "intervene": intervene, **more}}


DEAF = {"sgd-down": (1.52, None)}


@pytest.mark.parametrize(
    ("more", "losses", "arm", "status", "why"),
    [
        ({}, {}, "restored", "not a cause", ""),
        ({}, {}, "constant", "contributor", ""),
        ({}, {}, "weak-skip", "main cause", ""),
        ({}, DEAF, "restored", "undetermined", "no positive control reacted (sgd-down)"),
        ({}, DEAF, "weak-skip", "main cause", ""),  # another explanation is not concerned
        ({"sgd-up": SGD_UP}, {"sgd-up": (1.52, None)}, "restored", "not a cause", ""),  # one of two
        # What the training loss cannot see: a gain of 0 by construction, or another task's.
        (extra("recalibrate()"), {}, "extra", "undetermined", "only the accuracy can judge it"),
        (extra("random_labels()"), {}, "extra", "undetermined", "that of other labels"),
        (extra("recalibrate()", set={"schedule": "constant"}), {}, "extra", "not a cause", ""),
        (extra("recalibrate(); norm_bias(beta=1)"), {}, "extra", "not a cause", ""),
        (extra("random_labels(share=0)"), {}, "extra", "not a cause", ""),
    ],
)  # fmt: skip
def test_what_an_arm_is_and_why_it_is_left_open(
    more: dict[str, Any], losses: dict[str, Any], arm: str, status: str, why: str
) -> None:
    given = outcomes({**LOSSES, **({"extra": (1.4, 1.0)} if "extra" in more else {}), **losses})
    found = by_name(results(with_arms(**more), given))
    assert found[arm].primary.status == status
    assert why in found[arm].primary.why
    assert bool(found[arm].primary.why) == bool(why)
    assert arm != "extra" or found[arm].judged["test_accuracy"].status == "not a cause"
    assert found["sgd"].primary is None, "it is no candidate for a cause"


def test_a_gap_of_the_wrong_sign_has_no_shares() -> None:
    found = results(study(), outcomes({**LOSSES, "baseline": (1.0, 1.4)}))
    assert not any(found.gap_is_sure.values())
    assert all(math.isnan(one.shares["train_loss"].value) for one in found.causes)
    assert all("not surely above zero" in one.primary.why for one in found.causes)


@pytest.mark.parametrize("loss", [math.inf, math.nan])
@pytest.mark.parametrize("arm", ["baseline", "restored"])
def test_a_loss_that_is_not_finite_says_why_nothing_is_decided(arm: str, loss: float) -> None:
    given = outcomes()
    given[arm, "accused", 2] = dataclasses.replace(given[arm, "accused", 2], train_loss=loss)
    found = results(study(), given)
    assert "is not finite" in found.why_open(range(SEEDS)) or "surely" in found.why_open(
        range(SEEDS)
    )
    assert by_name(found)["restored"].primary.status == "undetermined"
    assert by_name(found)["restored"].primary.why


def test_a_baseline_that_diverged_counts_against_its_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of seven seeds of the accused diverged, and the others end as the reference's do."""
    seven = study(seeds=list(range(7)))
    groups = {"accused": group(5, name="plain"), "reference": group(7, name="residual")}
    monkeypatch.setattr(diagnosis, "_networks", lambda folder, study, place: groups[place])
    monkeypatch.setattr(diagnosis, "load_gate", lambda: None)
    written = {f"baseline/accused-s{seed}": "diverged: nan" for seed in (5, 6)}
    for failed, n in ((written, 2), ({}, 0)):
        monkeypatch.setattr(diagnosis, "failures", lambda folder, study, failed=failed: failed)
        verdict = diagnosis.judge_study(None, results(seven, {}, failed))  # type: ignore[arg-type]
        assert verdict.case.lost == (n, 0)
        assert verdict.gap_status == ("undetermined" if n else "no")
        assert (f"{n} of 7 trainings of plain failed" in verdict.sentences[-1]) == bool(n)


@pytest.mark.parametrize("n_seeds", [2, 4])
def test_fewer_seeds_than_a_gap_is_claimed_from_decide_nothing(n_seeds: int) -> None:
    """As in the verdict, which calls no gap sure below five."""
    found = results(study(seeds=n_seeds), outcomes())
    assert not any(found.gap_is_sure.values())
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
    two = with_arms(bias={"intervene": "norm_bias(beta=1)"})
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
    assert sum(found.restored_shares(range(5)).shares) / 5 == pytest.approx(0.75)
    assert found.restored_shares([3]).shares == found.restored.shares["train_loss"].per_seed[3:4]


DELTA, S_HAT = "output_gradient", "scale_invariant"


@pytest.mark.parametrize(
    ("intervene", "vanishing", "after", "why"),
    [
        ("gradient_scale(factor=10)", [DELTA, S_HAT], (-19, -15), "with it ŝ changes by -15.0 dec"),
        ("gradient_scale(factor=10)", [DELTA, S_HAT], (-19, -0.9), ""),  # δ is not what it changes
        ("gradient_scale(factor=10)", [DELTA], (-19, 0.9), "with it δ changes by -19.0 decades"),
        ("gradient_scale(factor=10)", [S_HAT], (-19, math.nan), "recorded in restored, or is zero"),
        ("lsuv()", [DELTA, S_HAT], (-1.1, 0.2), "with it δ changes by -1.1 decades"),
        ("lsuv()", [DELTA, S_HAT], (0.3, 0.2), ""),
        ("lsuv()", [S_HAT], (-1.5, 0.2), ""),  # δ did not vanish without it
        ("lsuv()", [], (-1.5, -1.5), ""),
    ],
)
def test_an_arm_whose_gradients_still_vanish_restored_none(
    intervene: str, vanishing: list[str], after: tuple[float, float], why: str
) -> None:
    """Whether the gap closed or not: the share is then that of something else."""
    decades = dict(zip((DELTA, S_HAT), after, strict=True))
    recorded = {key: dataclasses.replace(one, decades=decades) for key, one in outcomes().items()}
    arm = {"tests": "vanishing", "networks": "accused", "intervene": intervene}
    found = results(with_arms(restored=arm), recorded).why_unrestored(vanishing)
    assert (why in found, bool(found)) == (True, bool(why))


def test_an_arm_on_the_reference_restores_nothing() -> None:
    found = results(study(restores="weak-skip"), outcomes())
    assert "leaves the gradients of the accused" in found.why_unrestored([DELTA])


@pytest.mark.parametrize(("floor", "says"), [(0.96, True), (0.94, False), (math.nan, False)])
def test_a_reference_that_has_nothing_left_to_gain_is_named(floor: float, says: bool) -> None:
    """Its loss is 1.0: within the margin of 0.05 above the least that there is, or not."""
    known = {key: dataclasses.replace(one, loss_floor=floor) for key, one in outcomes().items()}
    notes = [note for note in results(study(), known).notes if "can hardly gain" in note]
    assert len(notes) == says
    assert all(note.startswith("resnet_18 ends 0.040 nats above the least") for note in notes)


def test_arms_that_are_not_trained_yet_count_in_the_correction() -> None:
    """So that no answer is taken back when they come."""
    all_known = {**LOSSES, "constant": (1.22, 1.02)}
    now = {name: levels for name, levels in all_known.items() if name != "weak-skip"}
    p_now, p_then = (
        by_name(results(study(), outcomes(losses)))["constant"].primary.p_contributor
        for losses in (now, all_known)
    )
    shares = by_name(results(study(), outcomes(now)))["constant"].shares["train_loss"]
    p = shares.p_beyond(0.2, "above")
    assert p_now == pytest.approx(3 * p), "of three that the file asks about it is the smallest"
    assert p_now >= p_then
    notes = results(study(), outcomes(now), unbegun=("weak-skip",)).notes
    assert notes == ("Not trained yet: weak-skip.",)
    bias = {"tests": "explosion", "intervene": "norm_bias(beta=1)"}
    two = study(arms={**study().source["arms"], "bias": bias}, combine=["constant", "bias"])
    with_bias = outcomes({**now, "bias": (1.39, 1.0)})
    shares = by_name(results(two, with_bias))["constant"].shares["train_loss"]
    p_two = by_name(results(two, with_bias))["constant"].primary.p_contributor
    assert p_two == pytest.approx(5 * shares.p_beyond(0.2, "above")), "and the two together"


@pytest.mark.parametrize(
    ("losses", "checks", "why"),
    [
        ({"sgd-down": (1.52, None)}, {}, r"left open: no positive control reacted \(sgd-down\)"),
        ({"sgd-down": (None, None)}, {}, r"reacted \(sgd-down: no seed is complete\)"),
        ({"baseline": (1.001, 1.0)}, {}, "the gap in .* is not surely above zero"),
        ({}, {"passed": False}, "no positive control .*its manipulation check failed"),
        ({}, {"passed": None}, "left open: its manipulation check failed or is missing"),
        ({"restored": (None, None)}, {}, "restored is complete for 0 of 5 seeds"),
    ],
)
def test_what_the_table_leaves_open_decides_no_link_either(
    losses: dict[str, Any], checks: dict[str, Any], why: str
) -> None:
    found = results(study(), outcomes(LOSSES | losses, **checks))
    assert re.search(why, found.why_open(range(SEEDS)))
    (control,) = found.to_json()["controls"]
    assert control["reacts"] != ("control" in why or "reacted" in why)
    assert (control["change"]["mean"] is None) == (not control["seeds"])


def test_an_arm_that_only_spoils_the_reference_decides_no_link() -> None:
    """Its share is that of a main cause."""
    found = results(study(restores="constant"), outcomes({**LOSSES, "constant": (1.41, 1.35)}))
    assert found.restored.shares["train_loss"].value > 0.5
    assert re.search("constant is left open.*did not gain", found.why_open(range(SEEDS)))


@pytest.mark.parametrize(
    ("cell", "name", "why"),
    [
        ("constant/reference-s3", "constant", "it diverged in 1 of 5 seeds"),
        ("baseline/accused-s3", "constant", "baseline diverged in 1 of 5 seeds"),
    ],
)
def test_where_seeds_diverged_the_others_are_no_sample(cell: str, name: str, why: str) -> None:
    arm, rest = cell.split("/")
    left = {key: one for key, one in outcomes().items() if key != (arm, rest[:-3], 3)}
    assert len(left) == len(outcomes()) - 1
    found = by_name(results(study(seeds=list(range(SEEDS))), left, {cell: "diverged: nan"}))
    assert (found[name].primary.status, found[name].primary.why) == ("undetermined", why)
    failed = by_name(results(study(), left, {cell: "failed: OSError: no space"}))
    assert "diverged" not in failed[name].primary.why, "a full disk does not choose its seeds"


# -- what an arm changes ---------------------------------------------------------------------------


@pytest.mark.parametrize("attenuation", [1.0, math.nan])
def test_a_constant_factor_under_adamw_is_algebra_and_no_evidence(attenuation: float) -> None:
    """m̂ / √v̂ does not know it: the arm controls the machinery, and is no candidate for a cause."""
    found = results(study(), outcomes(attenuation=attenuation))
    assert [one.arm.name for one in found.causes] == ["constant", "weak-skip"]
    restored = by_name(found)["restored"]
    assert restored.equivalence.holds
    assert restored.equivalence.change.mean == pytest.approx(0.0, abs=1e-9)
    assert "a constant, which AdamW divides away" in found.why_open(range(SEEDS))
    content = {one["name"]: one for one in found.to_json()["arms"]}
    assert content["restored"]["equivalent"]["holds"] is True
    assert content["restored"]["shares"] == {}
    moved = results(study(), outcomes({**LOSSES, "restored": (1.3, None)}, attenuation=attenuation))
    assert not by_name(moved)["restored"].equivalence.holds


@pytest.mark.parametrize(
    ("arm", "changed"),
    [
        ({"intervene": "gradient_scale(factor=10)"}, "gradients"),
        ({"intervene": "gradient_scale(factor=10); freeze(layers=1)"}, "gradients"),
        ({"intervene": "lsuv()"}, "signal and gradients"),
        ({"intervene": "gradient_scale(factor=10); norm_bias(beta=1)"}, "signal and gradients"),
        ({"intervene": "gradient_scale(factor=10)", "set": {"lr": 0.1}}, "signal and gradients"),
        ({"set": {"init": "torch-default"}}, "signal and gradients"),
    ],
)
def test_an_arm_declares_what_it_changes(arm: dict[str, Any], changed: str) -> None:
    """So that what repairs the signal too cannot show that the gradients were the cause."""
    extra = with_arms(restored={"tests": "vanishing", "networks": "accused", **arm})
    found = results(extra, outcomes())
    assert found.restored_shares(range(SEEDS)).changes == changed


@pytest.mark.parametrize(("loss", "name"), [(1.2, "sgd-up"), (1.9, ""), (1.49, "")])
def test_restored_gradients_help_under_sgd_where_they_lower_the_loss(
    loss: float, name: str
) -> None:
    found = results(with_arms(**{"sgd-up": SGD_UP}), outcomes({**LOSSES, "sgd-up": (loss, None)}))
    assert found.restored_shares(range(SEEDS)).under_sgd == name


# -- beside the verdict ----------------------------------------------------------------------------


def rival(status: Status, key: str = "H5", title: str = "a schedule that freezes") -> Finding:
    return Finding(key, title, "?", (), 1.0, 1.0, status=status)


@pytest.mark.parametrize(
    ("status", "loss", "words"),
    [
        ("no", (1.0, 0.8), "(H5) is inconsistent with the records, and yet constant, which tests "
         "it, is a contributor"),
        ("yes", (1.4, 1.0), "(H5) is consistent with the records, and yet constant, which tests "
         "it, is not a cause"),
        ("yes", (1.0, 0.8), ""),
        ("no", (1.4, 1.0), ""),
        ("undetermined", (1.0, 0.8), ""),
    ],
)  # fmt: skip
def test_an_arm_that_contradicts_the_records_is_named(
    status: Status, loss: tuple[float, float], words: str
) -> None:
    found = results(study(), outcomes({**LOSSES, "constant": loss}))
    lines = contradictions([rival(status)], found)
    assert len(lines) == (1 if words else 0)
    assert all(words in line and line.startswith("A schedule") for line in lines)
    assert not contradictions([rival(status, "H4", "dead units")], found), "another explanation"


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
    found = results(study(), outcomes(measured=math.nan))
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["gap"]["train_loss"]["is_sure"]
