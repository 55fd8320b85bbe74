"""A study in the terminal: what is planned, how far it is, what each arm changed."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gradflow.present.study_view import all_checks, progress_view, remarks, results_view
from gradflow.studies import Results, Study, results
from gradflow.studies.folder import CellDir
from gradflow.studies.outcomes import Outcome

LAMBDA = {"of": "norm_bias", "what": "λ", "measured": 0.85, "expected": 1.12, "passed": False}
BIAS = {"of": "norm_bias", "what": "first bias", "measured": 1.0, "expected": 1.0, "passed": True}
SEEN = {"of": "norm_bias", "what": "λ", "measured": 0.5, "expected": None, "passed": None}


def study() -> Study:
    content = {
        "base": {"data": "digits", "epochs": 4}, "accused": "plain_18", "reference": "resnet_18",
        "seeds": 3, "arms": {"bias": {"tests": "explosion", "intervene": "norm_bias(beta=1)"}},
    }  # fmt: skip
    return Study.read(content, name="study", changes={})


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


def text(view: Any) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(view)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


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
    (row,) = (line for line in text(results_view(found(*checks))).splitlines()
              if line.startswith("bias ") and "%" not in line and ":" not in line)  # fmt: skip
    assert word in row.split()
    assert row.rstrip().endswith("90 s")


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
    lines = text(progress_view(cells)).splitlines()
    assert lines[0].split() == ["arm", "network", "seed", "0", "seed", "1", "seed", "2"]
    assert lines[1].split()[:4] == ["baseline", "accused", "(plain_18)", "done"]
    assert lines[2].split()[3:5] == ["epoch", "2/4"]
    assert lines[3].split()[3] == "failed"
    assert "waiting" in lines[4]
    assert lines[-1] == "1 of 12 trainings are done"
