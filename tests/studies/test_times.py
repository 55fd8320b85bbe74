"""How long the trainings took stands beside the results of a study, not in them."""

from pathlib import Path
from statistics import fmean

import pytest
from tiny import tiny

from gradflow.studies import Engine, Study, StudyDir, run_study
from gradflow.studies.arms import PLACES, Place

pytestmark = pytest.mark.usefixtures("in_this_process")


def seconds(folder: StudyDir, place: Place, seed: int) -> float:
    network = folder.baseline(place, seed)
    assert network is not None
    return sum(epoch["seconds"] for epoch in network.history())


def test_a_study_keeps_the_mean_time_of_a_training_by_arm_and_network(
    pictures: Path, tmp_path: Path
) -> None:
    content = tiny(pictures, seeds=2, base={"epochs": 1})
    content["arms"]["bias"]["networks"] = "accused"
    folder = StudyDir(tmp_path)
    run_study(Study.read(content, name="tiny", changes={}), folder, Engine())
    times = folder.times()
    assert {arm: set(places) for arm, places in times.items()} == {
        "baseline": {"accused", "reference"}, "bias": {"accused"},
    }  # fmt: skip
    for place in PLACES:
        assert (
            times["baseline"][place] == fmean(seconds(folder, place, seed) for seed in (0, 1)) > 0
        )
    assert "seconds" not in (tmp_path / "results.json").read_text(encoding="utf-8")
