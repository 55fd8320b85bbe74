"""experiments/study_cost.py: its shares, and that its study is one. Nothing is timed here."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from gradflow.studies import Study


@pytest.fixture
def study_cost(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "experiments")
    return importlib.import_module("study_cost")


def test_the_shares_are_those_of_the_time_of_the_cells(study_cost: ModuleType) -> None:
    states = [{"seconds": 19.0, "seconds_around": 1.0}] * 4
    one = study_cost.Finished(1, 90.0, states, "{}")
    two = study_cost.Finished(2, 50.0, states, "{}")
    found = study_cost.facts([(one, two), (one, two)])
    assert found["times_as_fast"] == [1.8, 1.8]
    assert found["share_around_trainings"] == 0.05
    assert found["share_two_workers_are_busy"] == 0.8
    assert found["same_results"]
    other = study_cost.Finished(2, 50.0, states, '{"gap": 1}')
    assert not study_cost.facts([(one, other)])["same_results"]


def test_its_study_has_four_trainings_of_one_length(study_cost: ModuleType) -> None:
    study = Study.read(study_cost.study_file(epochs=3), name="cost", changes={})
    assert [cell.config.epochs for cell in study.cells(Path())] == [3] * 4
