"""How long the trainings of a study took: of no consequence for what it found."""

from collections.abc import Mapping
from statistics import fmean

from gradflow.studies.arms import Place
from gradflow.studies.folder import CellDir, StudyDir
from gradflow.studies.study import Study


def training_times(folder: StudyDir, study: Study) -> Mapping[str, Mapping[Place, float]]:
    """By arm and network, the mean seconds of a training over the seeds that are done.

    Those of all epochs, as the history has them: without validation and evaluation.
    """
    seconds: dict[str, dict[Place, list[float]]] = {}
    for cell in study.cells(folder.cells):
        network = CellDir(cell.folder).network()
        if network is not None:
            took = seconds.setdefault(cell.arm, {}).setdefault(cell.place, [])
            took.append(network.training_seconds())
    return {
        arm: {place: fmean(taken) for place, taken in places.items()}
        for arm, places in seconds.items()
    }
