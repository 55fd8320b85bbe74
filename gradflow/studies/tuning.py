"""Tune a field in an arm: train each value once, and take the one that learns best."""

from collections.abc import Sequence

from gradflow.studies.folder import CellDir, StudyDir
from gradflow.studies.study import Cell, Study, Tuned


def open_trials(study: Study, folder: StudyDir) -> list[Cell]:
    """The trials of every network whose value has not been chosen."""
    chosen = {(one.arm, one.place) for one in study.tuned}
    return [one for one in study.trials(folder.cells) if (one.arm, one.place) not in chosen]


def choose(study: Study, folder: StudyDir) -> list[Tuned]:
    """For each network whose trials have all ended: the value with the lowest training loss.

    That is the outcome by which the study judges (clean images, BatchNorm recalibrated), so that
    each network is compared at its best. None is chosen where every value diverged.
    """
    by_network: dict[tuple[str, str], list[Cell]] = {}
    for trial in open_trials(study, folder):
        by_network.setdefault((trial.arm, trial.place), []).append(trial)
    found = []
    for trials in by_network.values():
        if all(CellDir(one.folder).is_done for one in trials):
            losses = [_training_loss(CellDir(one.folder)) for one in trials]
            found += _best(study, trials, losses)
    return found


def _best(study: Study, trials: Sequence[Cell], losses: Sequence[float | None]) -> list[Tuned]:
    arm, place = study.arm(trials[0].arm), trials[0].place
    ((name, values),) = arm.tune.items()
    known = [(loss, value) for value, loss in zip(values, losses, strict=True) if loss is not None]
    if not known:
        return []
    value = min(known, key=lambda one: one[0])[1]
    return [Tuned(arm.name, place, name, value, tuple(zip(values, losses, strict=True)))]


def _training_loss(folder: CellDir) -> float | None:
    """In nats at the end of a trial; None where it diverged."""
    network = folder.network()
    if network is None or folder.state().get("state") == "diverged":
        return None
    return float(network.evaluation()["last"]["train"]["recalibrated"]["loss"])
