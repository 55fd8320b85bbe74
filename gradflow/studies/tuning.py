"""Tune a field in an arm: train each value once, and take the one that learns best."""

from collections.abc import Sequence

from gradflow.studies.arms import Cell, Tuned
from gradflow.studies.folder import CellDir, StudyDir
from gradflow.studies.study import Study


def open_trials(study: Study, folder: StudyDir) -> list[Cell]:
    """The trials of every network whose value has not been chosen."""
    return [
        one
        for one in study.trials(folder.cells)
        if study.choice(study.arm(one.arm), one.place) is None
    ]


def choose(study: Study, folder: StudyDir) -> list[Tuned]:
    """For each network whose trials have all ended: the value with the lowest validation loss.

    That of the last epoch, as a person would choose it: by the training loss a trial would choose
    the value that fits its own images best. None is chosen where every value diverged.
    """
    by_network: dict[tuple[str, str], list[Cell]] = {}
    for trial in open_trials(study, folder):
        by_network.setdefault((trial.arm, trial.place), []).append(trial)
    found = []
    for trials in by_network.values():
        if all(CellDir(one.folder).is_done for one in trials):
            losses = [_validation_loss(CellDir(one.folder)) for one in trials]
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


def _validation_loss(folder: CellDir) -> float | None:
    """Of a trial that is done, in nats; None where it diverged."""
    network = folder.network()
    if network is None or not network.is_finished:
        return None
    return float(network.history()[-1]["val_loss"])
