"""What the cells of a study left, read from disk: one Outcome per finished training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gradflow.analysis.network import early
from gradflow.analysis.vanishing import JUDGED_SIZES, decades
from gradflow.studies.folder import CellDir, StudyDir
from gradflow.studies.study import Arm, Place, Study
from gradflow.training.config import TrainConfig
from gradflow.training.diagnosis import from_training
from gradflow.training.rundir import NetworkDir
from gradflow.training.schedule import lr_factors

# Fields of the recipe whose change shows in the learning rates of the history.
LR_FIELDS = frozenset({"lr", "schedule", "warmup", "lr_sum", "step_size", "gamma", "epochs"})
LR_TOLERANCE = 1e-6  # relative; sums of some hundred float64


@dataclass(frozen=True)
class Measure:
    """One of the two outcomes that a study judges by."""

    name: str
    title: str
    unit: str
    sign: float  # what makes a larger number a worse one


MEASURES = (
    Measure("train_loss", "training loss, recalibrated BatchNorm", "nats", 1.0),
    Measure("test_accuracy", "balanced test accuracy", "", -1.0),
)


@dataclass(frozen=True)
class Outcome:
    """How one cell ended: what it is judged by, and whether its arm changed what it says."""

    train_loss: float  # nats, clean transform, statistics of all training images
    test_accuracy: float  # balanced over the classes
    checks: tuple[Mapping[str, Any], ...] = ()
    decades: Mapping[str, float] = field(default_factory=dict)  # of each size, if it was recorded
    seconds: float = math.nan

    def badness(self, measure: Measure) -> float:
        """Larger is worse."""
        return measure.sign * float(getattr(self, measure.name))


Outcomes = Mapping[tuple[str, Place, int], Outcome]


def read_outcomes(folder: StudyDir, study: Study) -> dict[tuple[str, Place, int], Outcome]:
    """By arm, network and seed, those that are done."""
    found = {}
    for cell in study.cells(folder.cells):
        network = CellDir(cell.folder).network()
        if network is None or CellDir(cell.folder).state().get("state") != "done":
            continue
        arm = study.arm(cell.arm)
        expected = study.config(cell.arm, cell.place, cell.seed)
        without = study.config(arm.against, cell.place, cell.seed)
        found[cell.arm, cell.place, cell.seed] = _outcome(network, arm, expected, without)
    return found


def failures(folder: StudyDir, study: Study) -> dict[str, str]:
    """By name, which cells failed or diverged, and why."""
    states = {cell.name: CellDir(cell.folder).state() for cell in study.cells(folder.cells)}
    of_trials = {cell.name: CellDir(cell.folder).state() for cell in study.trials(folder.cells)}
    # A trial that diverged has told what it was to tell.
    states |= {name: one for name, one in of_trials.items() if one.get("state") == "failed"}
    return {
        name: f"{state['state']}: {state.get('message', '')}"
        for name, state in states.items()
        if state.get("state") in ("failed", "diverged")
    }


def training_loss(evaluation: Mapping[str, Any]) -> float:
    """In nats, of the last weights on clean images, with recalibrated BatchNorm."""
    return float(evaluation["last"]["train"]["recalibrated"]["loss"])


def _outcome(network: NetworkDir, arm: Arm, config: TrainConfig, without: TrainConfig) -> Outcome:
    evaluation = network.evaluation()
    test = evaluation["last"]["test"]
    balanced = test["balanced_accuracy"]
    checks = [
        check | {"of": one["name"]} for one in network.interventions() for check in one["checks"]
    ]
    return Outcome(
        train_loss=training_loss(evaluation),
        test_accuracy=float(test["accuracy"] if balanced is None else balanced),
        checks=(*checks, *_recipe_checks(network, arm, config, without)),
        decades=_decades(network) if network.has_trace() else {},
        seconds=sum(epoch["seconds"] for epoch in network.history()),
    )


def _decades(network: NetworkDir) -> dict[str, float]:
    """The change of each gradient size from the last to the first layer, early in training."""
    trained = from_training(network, {}, None)
    return {size: decades(trained, size, early(trained)) for size in JUDGED_SIZES}


def _recipe_checks(
    network: NetworkDir, arm: Arm, config: TrainConfig, without: TrainConfig
) -> list[dict[str, Any]]:
    """Whether the training went by the recipe that the arm sets."""
    checks = []
    changed = {*arm.set, *arm.tune}
    if LR_FIELDS & changed:
        measured = math.fsum(epoch["lr"] for epoch in network.history())
        expected = _sum_of_lr(config)
        what = "sum of the learning rates over epochs, over that of the recipe without the arm"
        scale = _sum_of_lr(without)
        passed = abs(measured - expected) <= LR_TOLERANCE * expected
        checks.append(_check(what, measured / scale, expected / scale, passed))
    used = network.path.parent / "config.yaml"
    before = TrainConfig.load(used)
    for name in sorted(changed - LR_FIELDS):
        measured, expected = getattr(before, name), getattr(config, name)
        checks.append(_check(f"`{name}` of the run", measured, expected, measured == expected))
    return checks


def _sum_of_lr(config: TrainConfig) -> float:
    return math.fsum(config.lr * factor for factor in lr_factors(config))


def _check(what: str, measured: Any, expected: Any, passed: bool) -> dict[str, Any]:
    return {
        "of": "recipe",
        "what": what,
        "measured": measured,
        "expected": expected,
        "passed": passed,
        "by_layer": {},
    }
