"""What a study judges by is what the trained network does, computed again here by hand."""

from pathlib import Path

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from tiny import tiny
from torch.nn import functional as F

from gradflow.examine.batchnorm import recalibrated
from gradflow.studies import Study, StudyDir
from gradflow.studies.cell import load_once, run_cell
from gradflow.studies.folder import CellDir
from gradflow.studies.outcomes import _rate_check, read_outcomes
from gradflow.training.config import TrainConfig


def test_the_outcomes_are_those_of_the_last_weights(pictures: Path, tmp_path: Path) -> None:
    study = Study.read(tiny(pictures, keep_weights=True), name="tiny", changes={})
    folder = StudyDir(tmp_path)
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
