"""What the trainings of a study leave: what it is judged by, computed again here by hand, how long
each took, and what one hands on to another."""

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from tiny import read
from torch.nn import functional as F

from gradflow.examine.batchnorm import recalibrated
from gradflow.studies import Engine, StudyDir, run_study
from gradflow.studies.arms import PLACES, Place
from gradflow.studies.cell import load_once, run_cell
from gradflow.studies.folder import CellDir
from gradflow.studies.outcomes import _rate_check, read_outcomes
from gradflow.training.config import TrainConfig


def test_the_outcomes_are_those_of_the_last_weights(pictures: Path, tmp_path: Path) -> None:
    study, folder = read(pictures, keep_weights=True), StudyDir(tmp_path)
    (cell,) = (
        one for one in study.cells(folder.cells) if (one.arm, one.place) == ("baseline", "accused")
    )
    assert run_cell(cell).state == "done"
    ((key, outcome),) = read_outcomes(folder, study)[0].items()
    assert key == ("baseline", "accused", 0)

    config, data = load_once(cell.config)
    network = CellDir(cell.folder).network()
    assert network is not None
    model = network.load_model(config, len(data.class_names), "last")
    train, test = (next(iter(data.in_order(part).epoch(0))) for part in ("train", "test"))
    assert len(train.labels) == len(data.split.train)
    steady = recalibrated(model, (one.images for one in data.training(config, 0).epoch(0)))
    with torch.no_grad():
        loss, lagging = (
            float(F.cross_entropy(one(train.images), train.labels, label_smoothing=0.2))
            for one in (steady, model)
        )
        predicted = model(test.images).argmax(1)
    assert config.label_smoothing == 0.2
    assert outcome.train_loss == pytest.approx(loss, rel=1e-5)
    assert outcome.train_loss != pytest.approx(lagging, rel=1e-3)
    assert outcome.test_accuracy == pytest.approx(balanced_accuracy_score(test.labels, predicted))


@pytest.mark.parametrize(
    ("used", "own", "is_tuned", "passed"),
    [
        (0.01, 0.01, True, True),  # the trials chose the rate that was there before
        (0.01, 0.01, False, False),  # an arm that was to change it, and did not
        (0.05, 0.05, False, True),
        (0.05, 0.05, True, True),
        (0.01, 0.05, True, False),  # not trained at the rate that was chosen
    ],
)
def test_a_tuned_rate_may_be_that_of_before(
    used: float, own: float, is_tuned: bool, passed: bool
) -> None:
    history = [{"lr": used}] * 2
    config, without = (TrainConfig(lr=lr, epochs=2, schedule="constant") for lr in (own, 0.01))
    check = _rate_check(history, config, without, is_tuned)
    assert check["passed"] is passed
    assert ("the tuned value is the same" in check["what"]) == (is_tuned and own == 0.01)


def seconds(folder: StudyDir, place: Place, seed: int) -> float:
    network = folder.baseline(place, seed)
    assert network is not None
    return sum(epoch["seconds"] for epoch in network.history())


@pytest.mark.usefixtures("in_this_process")
def test_a_study_keeps_the_mean_time_of_a_training_by_arm_and_network(
    pictures: Path, tmp_path: Path
) -> None:
    bias = {"tests": "explosion", "intervene": "norm_bias(beta=1)", "networks": "accused"}
    study = read(pictures, seeds=2, base={"epochs": 1}, arms={"bias": bias})
    folder = StudyDir(tmp_path)
    run_study(study, folder, Engine())
    times = folder.times()
    assert {arm: set(places) for arm, places in times.items()} == {
        "baseline": {"accused", "reference"}, "bias": {"accused"},
    }  # fmt: skip
    for place in PLACES:
        taken = fmean(seconds(folder, place, seed) for seed in (0, 1))
        assert times["baseline"][place] == taken > 0
    assert "seconds" not in (tmp_path / "results.json").read_text(encoding="utf-8")


# By arm: the network that gets the recorded gradient sizes of the other one.
GIVEN = "transplant(profile={cells}/baseline/reference-s{seed}/resnet_18-s{seed})"
TAKEN = "transplant(profile={cells}/baseline/accused-s{seed}/plain_18-s{seed})"
ARMS: dict[str, Any] = {
    "given": {"tests": "size", "networks": "accused", "intervene": GIVEN},
    "taken": {"tests": "size", "networks": "reference", "intervene": TAKEN},
}


@pytest.mark.usefixtures("in_this_process")
def test_each_network_is_trained_with_the_gradient_sizes_of_the_other(
    pictures: Path, tmp_path: Path
) -> None:
    base = {"log_grads": True, "epochs": 1}
    study = read(pictures, arms=ARMS, restores="given", base=base)
    found = run_study(study, StudyDir(tmp_path), Engine())
    assert {one.arm.name: one.seeds for one in found.arms} == {"given": (0,), "taken": (0,)}
    for one, place in zip(found.arms, PLACES, strict=True):
        (check,) = (one for one in one.checks if one["what"].startswith("largest relative"))
        assert (check["of"], check["network"], check["passed"]) == ("transplant", place, True)
        assert one.moved
        before, after = (
            found.level(name, place, "train_loss") for name in ("baseline", one.arm.name)
        )
        assert before is not None
        assert after is not None
        assert before.mean != after.mean, "the sizes made a difference"
