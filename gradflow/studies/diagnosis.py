"""The verdict on the baseline of a study, with what its interventions found as link 4."""

import dataclasses

from gradflow.analysis.case import Case
from gradflow.analysis.network import TrainedNetwork
from gradflow.analysis.verdict import Verdict, judge_case
from gradflow.controls.gate import load_gate
from gradflow.studies.folder import StudyDir
from gradflow.studies.results import Results, analyse
from gradflow.studies.study import PLACES, Place, Study
from gradflow.training.diagnosis import from_training, recalibrated_loss


def diagnose_study(folder: StudyDir) -> Verdict:
    """Judge the two networks as they were trained without any arm.

    The share of the gap that went away in the arm that restores the gradients is link 4. Raises
    ValueError where no pair of networks is done, or was recorded.
    """
    return judge_study(folder, analyse(folder))


def judge_study(folder: StudyDir, found: Results) -> Verdict:
    """The same, where the analysis is already there."""
    study = found.study
    case = Case.of(*(_networks(folder, study, place) for place in PLACES))
    if why := found.why_open(case.seeds):
        case = dataclasses.replace(case, notes=(*case.notes, f"Link 4 is open: {why}."))
        return judge_case(case, load_gate())
    return judge_case(case, load_gate(), found.gap_shares(case.seeds))


def _networks(folder: StudyDir, study: Study, place: Place) -> list[TrainedNetwork]:
    """Of every seed whose training is done and was recorded."""
    name = study.network(place).arch
    if study.accused.arch == study.reference.arch:
        name = f"{name} ({place})"
    found = []
    for seed in study.seeds:
        network = folder.baseline(place, seed)
        if network is not None and network.has_trace():
            examined = network.examination() or {}
            one = from_training(network, examined, recalibrated_loss(network, examined))
            found.append(dataclasses.replace(one, name=name, seed=seed))
    if not found:
        raise ValueError(
            f"Expected a recorded training of the {place} network in the baseline of "
            f"{folder.path}, but there is none. Give `base` of the study log_grads: true, and let "
            "`gradflow study` come to an end."
        )
    return found
