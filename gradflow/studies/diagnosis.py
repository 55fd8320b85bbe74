"""The verdict on the baseline of a study, with what its interventions found as link 4."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from gradflow.analysis.case import Case
from gradflow.analysis.findings import Finding
from gradflow.analysis.network import TrainedNetwork
from gradflow.analysis.vanishing import sizes_that_go
from gradflow.analysis.verdict import Verdict, judge_case
from gradflow.controls.gate import load_gate
from gradflow.studies.arms import BASELINE, PLACES, Place
from gradflow.studies.comparable import diverged_seeds
from gradflow.studies.folder import StudyDir
from gradflow.studies.outcomes import failures
from gradflow.studies.results import Results
from gradflow.studies.study import Study
from gradflow.training.diagnosis import from_training


def study_among(runs: Sequence[Path], *names: str | None) -> StudyDir | None:
    """The study, where the one folder that is given is that of a study.

    Raises ValueError for one beside other folders, or with `names` of networks, which it gives.
    """
    studies = [path for path in runs if StudyDir.holds(path)]
    if studies and len(runs) > 1:
        raise ValueError(
            f"Expected a study alone, but got {len(runs)} folders. A study holds all its runs."
        )
    if studies and any(name is not None for name in names):
        raise ValueError(
            "Expected neither --accused nor --reference with a study, which names both. "
            "Leave them out."
        )
    return StudyDir.open(studies[0]) if studies else None


def judge_study(folder: StudyDir, found: Results) -> Verdict:
    """Judge the two networks as they were trained without any arm; `found` is of the same study.

    The share of the gap that went away in the arm that restores the gradients is link 4. Raises
    ValueError where no pair of networks is done, or was recorded.
    """
    study = found.study
    networks = {place: _networks(folder, study, place) for place in PLACES}
    written = failures(folder, study)
    diverged = {place: diverged_seeds(study, BASELINE, (place,), written) for place in PLACES}
    ended = {place: {one.seed for one in networks[place]} for place in PLACES}
    lost = (
        len(ended["reference"].intersection(diverged["accused"])),
        len(ended["accused"].intersection(diverged["reference"])),
    )
    case = Case.of(*networks.values())
    case = dataclasses.replace(case, source="study", lost=lost)
    vanishing = sizes_that_go(case, "vanishing")
    why = found.why_open(case.seeds) or found.why_unrestored(vanishing)
    restored = None if why else found.restored_shares(case.seeds)
    verdict = judge_case(case, load_gate(), restored)
    notes = [f"Link 4 is open: {why}."] if why else []
    notes += contradictions(verdict.rivals, found)
    return dataclasses.replace(verdict, notes=(*verdict.notes, *notes))


def contradictions(rivals: Sequence[Finding], found: Results) -> list[str]:
    """Where an arm that tests a rival explanation says otherwise than the records: a line each."""
    lines = []
    for rival in rivals:
        for one in found.causes:
            is_it = one.primary.status if one.primary is not None else "undetermined"
            if not _is_tested(rival, one.arm.tests):
                continue
            what = f"{one.arm.name}, which tests it, is"
            if rival.status == "no" and is_it in ("main cause", "contributor"):
                lines.append(
                    f"{rival.title} ({rival.key}) is inconsistent with the records, and yet "
                    f"{what} a {is_it}: it may work in another way than this explanation says."
                )
            elif rival.status == "yes" and is_it == "not a cause":
                lines.append(
                    f"{rival.title} ({rival.key}) is consistent with the records, and yet {what} "
                    "not a cause: what the records show explains no gap."
                )
    return [line[0].upper() + line[1:] for line in lines]


def _is_tested(rival: Finding, tests: str) -> bool:
    """Whether the words of `tests` are those of the rival's title, or its key."""
    words, title = (set(re.findall(r"\w+", text.lower())) for text in (tests, rival.title))
    return bool(words) and (words <= title or tests.strip() == rival.key)


def _networks(folder: StudyDir, study: Study, place: Place) -> list[TrainedNetwork]:
    """Of every seed whose training is done and was recorded."""
    name = study.network(place).arch
    if study.accused.arch == study.reference.arch:
        name = f"{name} ({place})"
    found = []
    for seed in study.seeds:
        network = folder.baseline(place, seed)
        if network is not None and network.has_trace():
            try:
                one = from_training(network)
            except ValueError:  # `analyse` names it
                continue
            found.append(dataclasses.replace(one, name=name, seed=seed))
    if not found:
        raise ValueError(
            f"Expected a recorded training of the {place} network in the baseline of "
            f"{folder.path}, but there is none. Give `base` of the study log_grads: true, and let "
            "`gradflow study` come to an end."
        )
    return found
