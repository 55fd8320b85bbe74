"""What the cells of a study left, read from disk: one Outcome per finished training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy.special import entr

from gradflow.analysis import thresholds as at
from gradflow.analysis.network import early, mean_of_layers, third
from gradflow.analysis.vanishing import JUDGED_SIZES
from gradflow.studies.arms import Arm, Place
from gradflow.studies.folder import CellDir, StudyDir
from gradflow.studies.study import Study
from gradflow.training.config import TrainConfig
from gradflow.training.diagnosis import from_training
from gradflow.training.rundir import NetworkDir
from gradflow.training.schedule import lr_factors

# Fields of the recipe whose change shows in the learning rates of the history.
LR_FIELDS = frozenset({"lr", "schedule", "warmup", "lr_sum", "step_size", "gamma"})
LR_TOLERANCE = 1e-6  # relative; the same formula, rounded in other places


@dataclass(frozen=True)
class OutcomeMeasure:
    """One of the two outcomes that a study judges by."""

    name: str
    title: str
    unit: str
    sign: float  # what makes a larger number a worse one
    largest: float  # of what is possible; the smallest is 0
    small: float = 0.0  # a gap that surely lies within it is none, and no arm is judged by it
    margin: float = 0.0  # the gap must surely be wider to be shared out among arms


MEASURES = (
    OutcomeMeasure("train_loss", "training loss, recalibrated BatchNorm", "nats", 1.0, math.inf,
            small=at.LOSS_MARGIN.value),
    OutcomeMeasure("test_accuracy", "balanced test accuracy", "", -1.0, 1.0,
            margin=at.ACCURACY_MARGIN.value),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How one cell ended: what it is judged by, and whether its arm changed what it says."""

    train_loss: float  # nats, clean transform, statistics of all training images
    test_accuracy: float  # balanced over the classes
    checks: tuple[Mapping[str, Any], ...] = ()
    decades: Mapping[str, float] = field(default_factory=dict)  # of each size, if it was recorded
    seconds: float = math.nan
    attenuation: float = math.nan  # Adam's, in the first third of the layers, early in training
    loss_floor: float = math.nan  # nats: the least training loss that label smoothing allows


Outcomes = Mapping[tuple[str, Place, int], Outcome]


def read_outcomes(
    folder: StudyDir, study: Study
) -> tuple[dict[tuple[str, Place, int], Outcome], dict[str, str]]:
    """By arm, network and seed, those that are done; and by name, why one cannot be read."""
    found, damaged = {}, {}
    for cell in study.cells(folder.cells):
        network = CellDir(cell.folder).network()
        if network is None or CellDir(cell.folder).state().get("state") != "done":
            continue
        arm = study.arm(cell.arm)
        expected = study.config(cell.arm, cell.place, cell.seed)
        without = study.config(arm.against, cell.place, cell.seed)
        try:
            found[cell.arm, cell.place, cell.seed] = _outcome(network, arm, expected, without)
        except ValueError as error:  # a damaged file, or records without depth
            damaged[cell.name] = f"failed: {error}"
    return found, damaged


def failures(folder: StudyDir, study: Study) -> dict[str, str]:
    """By name, which cells failed or diverged, and why."""
    found = {}
    for cell in (*study.cells(folder.cells), *study.trials(folder.cells)):
        state = CellDir(cell.folder).state()
        # A trial that diverged has told what it was to tell.
        if state.get("state") in (("failed",) if cell.trial else ("failed", "diverged")):
            found[cell.name] = f"{state['state']}: {state.get('message', '')}"
    return found


def _outcome(network: NetworkDir, arm: Arm, config: TrainConfig, without: TrainConfig) -> Outcome:
    last = network.evaluation()["last"]
    test = last["test"]
    balanced = test["balanced_accuracy"]
    checks = [
        check | {"of": one["name"]} for one in network.interventions() for check in one["checks"]
    ]
    return Outcome(
        train_loss=float(last["train"]["recalibrated"]["loss"]),
        test_accuracy=float(test["accuracy"] if balanced is None else balanced),
        checks=(*checks, *_recipe_checks(network, arm, config, without)),
        seconds=network.training_seconds(),
        loss_floor=loss_floor(config.label_smoothing, len(last["train"]["confusion_matrix"])),
        **(_recorded(network) if network.has_trace() else {}),
    )


def loss_floor(label_smoothing: float, n_classes: int) -> float:
    """The least cross-entropy there is, that of the smoothed label with itself, in nats.

    With smoothing s over K classes the label gives 1 − s + s/K to its class and s/K to each other.

    >>> round(loss_floor(0.2, 5), 3), loss_floor(0.0, 5)
    (0.661, 0.0)
    """
    other = label_smoothing / n_classes
    own = 1 - (n_classes - 1) * other
    return float(entr(own) + (n_classes - 1) * entr(other))


def _recorded(network: NetworkDir) -> dict[str, Any]:
    """What the records tell of the early gradients."""
    trained = from_training(network)
    first = trained.layers[third(len(trained.layers), "first")]
    return {
        "decades": {size: trained.rate(size, early(trained)).decades for size in JUDGED_SIZES},
        "attenuation": mean_of_layers(trained, "adam_attenuation", first, early(trained)),
    }


def _recipe_checks(
    network: NetworkDir, arm: Arm, config: TrainConfig, without: TrainConfig
) -> list[dict[str, Any]]:
    """Whether the training went by the recipe that the arm sets, as far as it left a trace."""
    history = network.history()
    changed = {*arm.set, *arm.tune}
    is_tuned = bool(LR_FIELDS & set(arm.tune))
    checks = [_rate_check(history, config, without, is_tuned)] if LR_FIELDS & changed else []
    if "epochs" in changed:
        n = len(history)
        is_longer = n > without.epochs  # and was then stopped early
        checks.append(_check("epochs trained", n, config.epochs, n == config.epochs or is_longer))
    used = _used(network)
    for name in sorted(changed - LR_FIELDS - {"epochs"}):
        measured, expected = used[name], getattr(config, name)
        checks.append(_check(f"`{name}` of the training", measured, expected, measured == expected))
    return checks


def _used(network: NetworkDir) -> dict[str, Any]:
    """The recipe: what the optimizer had is told by itself, all else by the run's config."""
    config = TrainConfig.load(network.path.parent / "config.yaml")
    return vars(config) | dict(network.evaluation().get("optimizer") or {})


def _rate_check(
    history: Sequence[Mapping[str, Any]], config: TrainConfig, without: TrainConfig, is_tuned: bool
) -> dict[str, Any]:
    """By how much the learning rate of an epoch differed from that of the recipe without the arm.

    Passed where every epoch had the rate of the arm's own recipe, and some had another than before.
    One that was tuned may turn out to be the same as before: that is an answer, no failure.
    """
    used = [float(epoch["lr"]) for epoch in history]
    wished, before = _rates(config), _rates(without)
    measured, expected = _largest_change(used, before), _largest_change(wished[: len(used)], before)
    is_wished = all(math.isclose(*pair, rel_tol=LR_TOLERANCE)
                    for pair in zip(used, wished, strict=False))  # fmt: skip
    what = "largest relative change of an epoch's learning rate by the arm"
    if is_tuned and expected == 0:
        what += " (the tuned value is the same)"
    return _check(what, measured, expected, is_wished and (expected > 0 or is_tuned))


def _rates(config: TrainConfig) -> list[float]:
    """(epochs,) the learning rate of each."""
    return [config.lr * factor for factor in lr_factors(config)]


def _largest_change(rates: Sequence[float], before: Sequence[float]) -> float:
    """Over the epochs that both have."""
    pairs = zip(rates, before, strict=False)
    return max((abs(one / other - 1) for one, other in pairs), default=0.0)


def _check(what: str, measured: Any, expected: Any, passed: bool) -> dict[str, Any]:
    return {
        "of": "recipe",
        "what": what,
        "measured": measured,
        "expected": expected,
        "passed": passed,
        "by_layer": {},
    }
