"""A tuned field: each network of an arm gets the value that its trials found best."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from tiny import full_disk, run_here, write

from gradflow.studies import Study, StudyDir, cell
from gradflow.studies.arms import Cell, Tuned
from gradflow.studies.engine import Engine
from gradflow.studies.folder import CellDir
from gradflow.studies.results import Results
from gradflow.studies.run import run_study

RATES = [0.001, 0.05, 1e30]  # hardly learns, learns, diverges
ARMS: dict[str, Any] = {
    "sgd": {"role": "baseline", "set": {"optimizer": "sgd"}, "tune": {"lr": RATES}},
    "bias": {"tests": "explosion", "against": "sgd", "intervene": "norm_bias(beta=1)"},
    "down": {
        "tests": "explosion", "role": "positive control", "against": "sgd",
        "networks": "accused", "intervene": "gradient_scale(layers=1-4, factor=0.001)",
        "tune": {"lr": [0.002, 0.05]},
    },
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("in_this_process")


def read(pictures: Path, **changes: Any) -> Study:
    return tiny.read(pictures, **{"arms": ARMS} | changes)


def trial_loss(folder: StudyDir, trial: str) -> float:
    """The validation loss of its last epoch."""
    (file,) = (folder.cells / trial).glob("*/history.json")
    return float(json.loads(file.read_text())[-1]["val_loss"])


def lr_of(folder: StudyDir, cell: str) -> float:
    return float(yaml.safe_load((folder.cells / cell / "config.yaml").read_text())["lr"])


@pytest.fixture(scope="module")
def tuned(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """The study, run once: its folder, to be copied, and what it found."""
    path = tmp_path_factory.mktemp("tuned")
    return path, run_here(read(pictures), StudyDir(path))


def test_each_network_is_trained_with_its_best_value(tuned: tuple[Path, Results]) -> None:
    folder, found = StudyDir(tuned[0]), tuned[1]
    chosen = {(one.arm, one.place): one for one in folder.tuning()}
    assert set(chosen) == {("sgd", "accused"), ("sgd", "reference"), ("down", "accused")}
    for (arm, place), one in chosen.items():
        losses = {
            value: trial_loss(folder, f"{arm}/{place}-lr-{value}")
            for value in ARMS[arm]["tune"]["lr"]
            if value < 1e30
        }
        assert one.value == min(losses, key=lambda value: losses[value])
        assert dict(one.tried) == {**losses, **({1e30: None} if arm == "sgd" else {})}
        assert lr_of(folder, f"{arm}/{place}-s0") == one.value
    for place in ("accused", "reference"):  # an arm without trials has the value of its `against`
        assert lr_of(folder, f"bias/{place}-s0") == lr_of(folder, f"sgd/{place}-s0")
    assert lr_of(folder, "baseline/accused-s0") == 6e-4
    assert not found.notes, "a trial that diverged is no failure"
    assert [one["arm"] for one in found.to_json()["tuned"]] == ["sgd", "sgd", "down"]


def test_a_trial_that_failed_leaves_its_arm_open_until_the_next_call(
    tuned: tuple[Path, Results], pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(tuned[0], tmp_path / "study")
    folder, study = StudyDir(tmp_path / "study"), read(pictures)
    (folder.path / "tuning.json").unlink()
    for name in ("sgd/accused-lr-0.001", "sgd/accused-s0", "bias/accused-s0"):
        shutil.rmtree(folder.cells / name)
    with full_disk("sgd/accused-lr-0.001"):
        found = run_study(study, folder, Engine())
    assert "sgd (plain_18): no lr could be chosen." in found.notes
    failed = "sgd, lr 0.001/accused-s999 failed: OSError"
    assert any(note.startswith(failed) for note in found.notes)
    assert not (folder.cells / "sgd" / "accused-s0").exists()
    assert not (folder.cells / "bias" / "accused-s0").exists(), "it needs the value too"
    assert CellDir(folder.cells / "sgd" / "reference-s0").is_done
    assert not run_study(study, folder, Engine()).notes
    assert len(folder.tuning()) == 3


def test_a_network_that_diverges_with_every_value_is_named(pictures: Path, tmp_path: Path) -> None:
    arms = {"hot": {"tests": "lr", "networks": "accused", "tune": {"lr": [1e29, 1e30]}}}
    found = run_study(read(pictures, arms=arms, restores=""), StudyDir(tmp_path), Engine())
    assert "hot (plain_18): no lr could be chosen." in found.notes


def test_the_trials_are_planned_and_their_outcome_is_told(
    tuned: tuple[Path, Results], pictures: Path, tmp_path: Path, command: Any
) -> None:
    file = write(tmp_path / "tiny.yaml", tiny.tiny(pictures, arms=ARMS))
    study = ("study", file, "--out", tmp_path / "study")
    said = command(*study, "--plan").out
    assert "15 trainings to do" in said, "8 trials; 2 + 2 + 2 + 1 trainings"
    assert "lr tuned" in said
    shutil.copytree(tuned[0], tmp_path / "study")
    said = command(*study).out
    assert "sgd: lr 0.05 has the best validation loss of resnet_18 (tried: 0.001, 0.05, " in said
    down = next(one.value for one in StudyDir(tuned[0]).tuning() if one.arm == "down")
    best = f"down: lr {down} has the best validation loss of plain_18 (tried: 0.002, 0.05)"
    assert f"{best}; a better one may lie beyond" in said
    assert "0 trainings to do, 7 are done" in command(*study, "--plan").out


@pytest.mark.parametrize(
    ("value", "values", "at_an_end"),
    [(1, (1, 2, 3), True), (2, (1, 2, 3), False), (3, (2, 1, 3), True), ("a", ("a", "b"), False)],
)
def test_the_best_of_numbers_may_lie_beyond_them(value: Any, values: Any, at_an_end: bool) -> None:
    tried = tuple((one, 1.0) for one in values)
    assert Tuned("sgd", "accused", "lr", value, tried).is_at_an_end == at_an_end


ARM_OF_RECIPE: dict[str, Any] = {
    "tuned": {"tests": "rate", "networks": "accused", "tune": {"lr": [6e-4, 1e30]}},
    "slower": {"tests": "schedule", "against": "tuned", "set": {"schedule": "constant"}},
}


def test_a_value_that_is_the_recipes_own_is_not_trained_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    train_cell = cell._train

    def counted(one: Cell, *rest: Any) -> float:
        trained.append(one.name)
        return train_cell(one, *rest)

    monkeypatch.setattr(cell, "_train", counted)
    folder, study = StudyDir(tmp_path), read(pictures, arms=ARM_OF_RECIPE, restores="")
    found = run_study(study, folder, Engine())
    assert [one.value for one in folder.tuning()] == [6e-4]
    assert "tuned/accused-s0" not in trained
    assert {"baseline/accused-s0", "slower/accused-s0", "slower/reference-s0"} <= set(trained)
    share = next(one for one in found.arms if one.arm.name == "tuned").shares["train_loss"]
    assert share.accused_gain == (0.0,)
    (again,) = (one for one in folder.study().cells(tmp_path / "again") if one.arm == "tuned")
    assert cell.run_cell(again).state == "done"
    for file in ("history.json", "evaluation.json"):
        taken, own = (
            without_times(json.loads((at / "plain_18-s0" / file).read_text()))
            for at in (folder.cells / "tuned" / "accused-s0", again.folder)
        )
        assert taken == own, "what was copied is what a training of its own gives"


def without_times(found: Any) -> Any:
    if isinstance(found, list):
        return [without_times(one) for one in found]
    if isinstance(found, dict):
        return {key: without_times(one) for key, one in found.items() if "seconds" not in key}
    return found


def test_a_training_that_failed_fails_the_one_that_is_the_same_until_both_succeed(
    pictures: Path, tmp_path: Path
) -> None:
    folder, study = StudyDir(tmp_path), read(pictures, arms=ARM_OF_RECIPE, restores="")
    with full_disk("baseline/accused-s0"):
        notes = run_study(study, folder, Engine()).notes
    assert any(note.startswith("baseline/accused-s0 failed: OSError") for note in notes)
    assert any(note.startswith("tuned/accused-s0 failed: RuntimeError: it is the training of")
               for note in notes)  # fmt: skip
    assert not run_study(study, folder, Engine()).notes


def test_arms_that_are_not_asked_for_are_neither_tried_nor_trained(
    tuned: tuple[Path, Results], pictures: Path, tmp_path: Path
) -> None:
    """And those that were say the same as when all are there, in the family of all."""
    folder = StudyDir(tmp_path)
    shutil.copytree(tuned[0] / "cells" / "baseline", folder.cells / "baseline")
    shutil.copytree(tuned[0] / "cells" / "sgd", folder.cells / "sgd")
    found = run_study(read(pictures), folder, Engine(), only=["sgd"])
    assert {path.name for path in folder.cells.iterdir()} == {"baseline", "sgd"}
    assert {one.arm for one in folder.tuning()} == {"sgd"}
    assert found.notes == ("Not trained yet: bias, down.",)
    assert [one.arm.name for one in found.arms] == ["sgd"]
    assert run_study(read(pictures), folder, Engine()).to_json() == tuned[1].to_json()
