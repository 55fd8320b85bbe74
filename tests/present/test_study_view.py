"""A study in the terminal: what is planned, how far it is, what each arm changed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradflow.present.letter import letter
from gradflow.present.section import Items
from gradflow.present.study_story import CHECKS, control_lines, remarks, study_section, tuned_lines
from gradflow.present.study_view import plan_view, progress_view
from gradflow.studies import Results, Study
from gradflow.studies.arms import Tuned
from gradflow.studies.folder import CellDir
from gradflow.studies.judging import results
from gradflow.studies.outcomes import Outcome
from gradflow.studies.plan import Plan, PlannedCell
from tests.present.printed import printed

LAMBDA = {"of": "norm_bias", "what": "λ", "measured": 0.85, "expected": 1.12, "passed": False}
BIAS = {"of": "norm_bias", "what": "first bias", "measured": 1.0, "expected": 1.0, "passed": True}
SEEN = {"of": "norm_bias", "what": "λ", "measured": 0.5, "expected": None, "passed": None}


CONTENT: dict[str, Any] = {
    "base": {"data": "digits", "epochs": 4}, "accused": "plain_18", "reference": "resnet_18",
    "seeds": 3, "arms": {"bias": {"tests": "explosion", "intervene": "norm_bias(beta=1)"}},
}  # fmt: skip


def study() -> Study:
    return Study.read(CONTENT, name="study", changes={})


def found(*checks: dict[str, Any]) -> Results:
    levels = {"accused": (1.4, 1.1), "reference": (1.0, 1.0)}
    return results(
        study(),
        {
            (arm, place, seed): Outcome(
                loss + 0.01 * seed, 0.5,
                (checks if place == "accused" else (SEEN,)) if arm == "bias" else (),
                seconds=90.0,
            )
            for place, losses in levels.items()
            for arm, loss in zip(("baseline", "bias"), losses, strict=True)
            for seed in range(3)
        },
    )  # fmt: skip


def all_checks(of: Results) -> list[str]:
    parts = study_section(of).parts
    (items,) = (one for one in parts if isinstance(one, Items) and one.title == CHECKS)
    return list(items.lines)


@pytest.mark.parametrize("n", [4, 5])
def test_a_plan_says_so_where_its_seeds_will_decide_nothing(n: int) -> None:
    few = replace(study(), seeds=tuple(range(n)))
    plan = Plan(few, (), 0, 2, spread=0.2, spread_is_measured=False, seeds_needed=4)
    said = " ".join(printed(plan_view(plan)).split())
    assert "need 4 seeds" in said
    assert ("Warning: 5 seeds to claim, and there are 4: this study will describe" in said) == (
        n < 5
    )


def test_no_seed_of_a_trial_is_shown_as_one_of_the_study(tmp_path: Path) -> None:
    """A trial of `tune` has a seed of its own, 999, which is nobody's concern."""
    sgd = {"tests": "lr", "tune": {"lr": [0.1, 0.2]}}
    tuned = Study.read({**CONTENT, "arms": {"sgd": sgd}}, name="study", changes={})
    trials = tuned.trials(tmp_path)
    planned = tuple(PlannedCell(one, 10, 2.0) for one in trials)
    plan = Plan(tuned, planned, 0, 2, spread=0.2, spread_is_measured=False, seeds_needed=4)
    for said in (printed(plan_view(plan)), printed(progress_view(trials))):
        assert "sgd, lr 0.1" in said
        assert "999" not in said


def test_a_check_that_failed_is_told_with_its_number() -> None:
    line = "bias, accused: λ is 0.85, expected 1.12: FAILED"
    assert line in remarks(found(LAMBDA, BIAS))
    assert all_checks(found(LAMBDA, BIAS)) == [
        line,
        "bias, accused: first bias is 1, expected 1: passed",
    ]
    assert not [one for one in remarks(found(BIAS)) if "expected" in one]


@pytest.mark.parametrize(
    ("checks", "word"), [((BIAS,), "passed"), ((LAMBDA, BIAS), "failed"), ((SEEN,), "missing")]
)
def test_the_table_says_what_the_checks_say_and_how_long_a_training_took(
    checks: tuple[dict[str, Any], ...], word: str
) -> None:
    (row,) = (line for line in printed(letter(study_section(found(*checks)))).splitlines()
              if line.startswith("  bias ") and "%" not in line and ":" not in line)  # fmt: skip
    assert word in row.split()
    assert row.rstrip().endswith("90 s")
    assert " - " in row, "the networks are as accurate: that gap has no share"
    assert "(-" not in row


# -- what stands below the table -------------------------------------------------------------------

MOVED = {**BIAS, "passed": True}
SCALE = {"tests": "vanishing", "networks": "accused"}
WOBBLE = (0.010, -0.006, 0.004, -0.012, 0.004)
DOWN = {**SCALE, "intervene": "gradient_scale(layers=1-9, factor=0.1)"}


def with_control(
    levels: dict[str, float],
    check: dict[str, Any] = MOVED,
    failed: dict[str, str] | None = None,
    attenuation: float = 0.5,
) -> Results:
    """Five seeds of a gap of 0.4; `levels` of the accused in each arm, `check` of the control."""
    arms = {
        "down": DOWN,
        "sgd": {"role": "baseline", "networks": "accused", "set": {"optimizer": "sgd"}},
        "sgd-down": {**DOWN, "role": "positive control", "against": "sgd"},
    }
    content = {"base": {"data": "digits"}, "accused": "plain_18", "reference": "resnet_18",
               "seeds": 5, "arms": arms}  # fmt: skip
    losses = {"baseline": 1.4, "down": 1.4, "sgd": 1.5, "sgd-down": 1.9} | levels
    cells = {
        (arm, "accused", seed): Outcome(
            loss + WOBBLE[(seed + len(arm)) % 5], 1 - loss / 2,
            (check if arm == "sgd-down" else MOVED,),
            seconds=60.0,
            attenuation=attenuation,
        )
        for arm, loss in losses.items()
        for seed in range(5)
        if f"{arm}/accused-s{seed}" not in (failed or {})
    }  # fmt: skip
    reference = {("baseline", "reference", seed): Outcome(1.0, 0.5) for seed in range(5)}
    return results(Study.read(content, name="study", changes={}), cells | reference, failed)


def test_a_control_that_diverged_or_never_ended_is_told() -> None:
    nan = {f"sgd-down/accused-s{seed}": "diverged: The loss was nan" for seed in range(5)}
    (line,) = control_lines(with_control({}, failed=nan))
    assert line == (
        "positive control sgd-down: no seed is complete; it diverged in 5 seeds, which is a "
        "reaction that has no number and is not counted"
    )
    full = {name: "failed: OSError" for name in nan}
    (line,) = control_lines(with_control({}, failed=full))
    assert line == "positive control sgd-down: no seed is complete"
    (line,) = control_lines(with_control({}))
    assert line.startswith("positive control sgd-down: reacts, training loss +0.40 nats")


@pytest.mark.parametrize(("value", "changes_nothing"), [(6e-4, True), (1e-2, False)])
def test_tuning_that_ends_at_the_recipe_says_what_it_leaves_open(
    value: float, changes_nothing: bool
) -> None:
    """The recipe's own rate is 6e-4."""
    tuned = Tuned("tuned", "accused", "lr", value, ((1e-4, 1.2), (value, 1.1), (1.0, None)))
    arms: dict[str, Any] = {"tuned": {"tests": "lr", "tune": {"lr": [1e-4, value, 1.0]}}}
    asked = Study.read(CONTENT | {"arms": arms}, name="study", changes={})
    left_out = replace(tuned, arm="gone")
    (line,) = tuned_lines(results(replace(asked, tuned=(tuned, left_out)), {}))
    assert line.startswith(
        f"tuned: lr {value} has the best validation loss of plain_18 (tried: 0.0001"
    )
    said = "baseline has the same, so that tuned tries no other over seeds"
    assert (said in line) == changes_nothing
    other = arms["tuned"] | {"set": {"optimizer": "sgd"}}
    asked = Study.read(CONTENT | {"arms": {"tuned": other}}, name="study", changes={})
    (line,) = tuned_lines(results(replace(asked, tuned=(tuned,)), {}))
    assert said not in line, "another optimizer is a change too"


@pytest.mark.parametrize(("level", "word"), [(1.4, "yes"), (1.5, "not shown")])
def test_what_changes_nothing_by_algebra_is_told_as_a_control(level: float, word: str) -> None:
    found = with_control({"down": level}, attenuation=1.0)
    (line,) = (one for one in remarks(found) if "AdamW" in one)
    assert line.startswith("down multiplies gradients by a constant, which AdamW divides away")
    assert f"surely within 0.05: {word} (p = " in line
    assert not found.causes


def test_the_live_table_says_how_far_each_training_is(tmp_path: Path) -> None:
    cells = study().cells(tmp_path)
    for cell, state in zip(
        cells,
        ({"state": "done"}, {"state": "running", "epoch": 2}, {"state": "failed"}),
        strict=False,
    ):
        folder = CellDir(cell.folder)
        folder.path.mkdir(parents=True)
        folder.save_state(state)
    lines = printed(progress_view(cells)).splitlines()
    assert lines[0].split() == ["arm", "network", "seed", "0", "seed", "1", "seed", "2"]
    assert lines[1].split()[:4] == ["baseline", "accused", "(plain_18)", "done"]
    assert lines[2].split()[3:5] == ["epoch", "2/4"]
    assert lines[3].split()[3] == "failed"
    assert "waiting" in lines[4]
    assert lines[-1] == "1 of 12 trainings are done"
