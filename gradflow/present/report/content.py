"""What a report says: everything read from runs once, before anything is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gradflow.analysis.compare import Comparison, LayerDifference, compare
from gradflow.analysis.overview import Band, Profile, bands
from gradflow.analysis.verdict import Verdict, judge_case
from gradflow.controls.gate import load_gate
from gradflow.files import DamagedFile
from gradflow.present.figures import of_run, without_short
from gradflow.present.report.depth import (
    Distribution,
    activations,
    angles,
    distributions,
    drawn_seeds,
    load_traces,
    tables,
    updates,
)
from gradflow.present.report.saliency import SaliencyPicture, saliency_pictures
from gradflow.record.trace import Table
from gradflow.studies import Results, StudyDir, analyse
from gradflow.studies.arms import PLACES
from gradflow.studies.diagnosis import judge_study, study_among
from gradflow.training.diagnosis import (
    changed_on_purpose,
    check_alike,
    choose,
    network_dirs,
    open_case,
    run_folder,
)
from gradflow.training.evaluate import mcnemar
from gradflow.training.rundir import NetworkDir, RunDir

# Where the profiles are taken; the verdict is about the first.
WINDOWS = {
    "early": "early in training",
    "start": "at the first recorded step",
    "whole": "over the whole training",
}


@dataclass(frozen=True)
class Trained:
    """What training left of one network of one seed."""

    arch: str
    seed: int
    history: list[dict[str, Any]]
    evaluation: dict[str, Any]
    test_images: tuple[int, ...] = ()  # their positions among all images


@dataclass(frozen=True)
class Report:
    """All that a page shows. What a run does not have is empty, and `missing` says why."""

    names: tuple[str, ...]  # the networks, the accused first
    seeds: tuple[int, ...]
    verdict: Verdict | None = None  # None where no gradients were recorded
    comparisons: tuple[Comparison, ...] = ()
    bands: dict[str, tuple[Band, ...]] = field(default_factory=dict)  # window
    tables: dict[tuple[str, str], Table] = field(default_factory=dict)  # network, gradient size
    short_batch: tuple[int, int] | None = None  # left out of the tables; see `short_batches`
    tables_of: dict[str, tuple[int, ...]] = field(default_factory=dict)  # network: their seeds
    activations: dict[str, dict[str, Profile]] = field(default_factory=dict)  # measure, network
    updates: dict[str, dict[str, Profile]] = field(default_factory=dict)  # measure, network
    distributions: tuple[Distribution, ...] = ()  # where histograms were counted
    changed: str = ""  # what was changed on purpose, in a sentence
    trained: tuple[Trained, ...] = ()
    class_names: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    environments: tuple[dict[str, Any], ...] = ()  # of each run
    saliency: tuple[SaliencyPicture, ...] = ()
    missing: tuple[str, ...] = ()
    study: Results | None = None  # what interventions found, in the report of a study
    images: str = ""  # where pictures of the test set may be read; "" where they may not

    def of(self, arch: str) -> list[Trained]:
        """One per seed, in the order of the seeds."""
        return sorted((one for one in self.trained if one.arch == arch), key=lambda one: one.seed)

    @property
    def trained_names(self) -> tuple[str, ...]:
        """The networks that gradflow trained; of records of a loop of the user's own none."""
        return tuple(name for name in self.names if self.of(name))

    @property
    def has_one_split(self) -> bool:
        """Whether all networks were tested on the same images; no split is one, too."""
        return len({one.test_images for one in self.trained}) < 2

    @property
    def largest_difference(self) -> tuple[Comparison, LayerDifference] | None:
        """The layer whose δ differs most between the networks, at equal step.

        Of those that surely differ, where there are such: the largest ratio may be chance.
        """
        for one in self.comparisons:
            known = [layer for layer in one.layers if np.isfinite(layer.ratio.mean)]
            if (one.size, one.at) == ("output_gradient", "equal step") and known:
                sure = [layer for layer in known if layer.differs]
                return one, max(sure or known, key=lambda layer: abs(layer.ratio.mean))
        return None

    def mcnemar(self) -> list[dict[str, Any]]:
        """The exact test between the two networks, per seed, at the last epoch."""
        if len(self.names) < 2:
            return []
        found = []
        for mine, theirs in zip(*(self.of(name) for name in self.names), strict=False):
            right = [
                np.asarray(one.evaluation["last"]["test"]["is_right"], dtype=bool)
                for one in (mine, theirs)
            ]
            if mine.seed == theirs.seed:
                found.append({"seed": mine.seed} | mcnemar(*right))
        return found


def collect(
    runs: Sequence[Path],
    *,
    accused: str | None = None,
    reference: str | None = None,
    images: str | None = None,
) -> Report:
    """Read runs as `gradflow diagnose` does, or without gradients where none were recorded.

    `images` is where the pictures are, in place of where the run says: see `Report.images`. Raises
    FileNotFoundError, ValueError.
    """
    study = study_among(runs, accused, reference)
    found = _of_runs(runs, accused, reference) if study is None else _of_study(study)
    return found if images is None else replace(found, images=images)


def _of_runs(runs: Sequence[Path], accused: str | None, reference: str | None) -> Report:
    folders = [folder for path in runs for folder in network_dirs(run_folder(path))]
    finished = [one for one in folders if one.is_finished]
    if folders and not finished:
        raise ValueError(
            f"Expected a run with a network that is trained to the end, but {runs[0]} has none. "
            f"Continue it with `gradflow train --resume {folders[0].path.parent}`."
        )
    if finished and not any(one.has_trace() for one in finished):
        return _without_records(*_whole(finished), accused, reference)
    case = open_case(runs, accused=accused, reference=reference)
    shown = {
        one: one.arch
        for one in finished
        if one.arch in (case.name, case.reference_name) and one.seed in case.seeds
    }
    return _judged(judge_case(case, load_gate()), shown)


def _of_study(folder: StudyDir) -> Report:
    """The baseline of a study as the runs of a report, and what its arms found."""
    found = analyse(folder)
    verdict = judge_study(folder, found)
    case = verdict.case
    names = dict(zip(PLACES, (case.name, case.reference_name), strict=True))
    shown = {
        network: names[place]
        for place in PLACES
        for seed in case.seeds
        if (network := folder.baseline(place, seed)) is not None
    }
    return replace(_judged(verdict, shown), study=found)


def _judged(verdict: Verdict, shown: Mapping[NetworkDir, str]) -> Report:
    """All that the records show; `shown` gives the name of each network that gradflow trained."""
    case = verdict.case
    groups = {group[0].name: group for group in (case.accused, case.reference) if group}
    traces = load_traces(groups)
    found_activations = activations(traces)
    found_updates = updates(groups) | angles(traces, _turned(shown))
    runs = {one.path.parent for one in shown}
    shorts = {of_run(RunDir.open(run)) for run in runs}
    short = shorts.pop() if len(shorts) == 1 else None  # all runs of a report are alike
    return Report(
        names=tuple(groups),
        seeds=case.seeds,
        verdict=verdict,
        comparisons=tuple(compare(case)) if case.reference else (),
        bands={window: tuple(bands(case, window)) for window in WINDOWS},
        tables={key: without_short(table, short) for key, table in tables(groups).items()},
        short_batch=short,
        tables_of={
            name: tuple(one.seed for one in drawn_seeds(group)[0]) for name, group in groups.items()
        },
        activations=found_activations,
        updates=found_updates,
        distributions=distributions(groups),
        missing=(
            *_missing(tuple(groups), shown),
            *_missing_measures(found_activations, found_updates),
        ),
        **_facts(shown),
    )


def _turned(shown: Mapping[NetworkDir, str]) -> dict[str, list[dict[str, float]]]:
    """Network -> per seed, how far each weight turned; without those of older versions."""
    found: dict[str, list[dict[str, float]]] = {}
    for network, name in shown.items():
        found.setdefault(name, []).append(network.evaluation()["last"].get("angle_from_start", {}))
    return {name: of_seeds for name, of_seeds in found.items() if all(of_seeds)}


def _whole(networks: Sequence[NetworkDir]) -> tuple[list[NetworkDir], list[str]]:
    """Those of which every file can be read, and a note for each other one."""
    found, notes = [], []
    for one in networks:
        try:
            one.history(), one.evaluation()
            found.append(one)
        except DamagedFile as error:
            notes.append(f"{one.name} in {one.path.parent.name} was left out: {error}")
    if not found:
        raise ValueError(f"Expected a network that can be read, but got none. {' '.join(notes)}")
    return found, notes


def _without_records(
    finished: Sequence[NetworkDir],
    notes: Sequence[str],
    accused: str | None,
    reference: str | None,
) -> Report:
    """Accuracies, curves and classes are worth a page too."""
    check_alike(finished)
    first, second = choose(list(dict.fromkeys(one.arch for one in finished)), accused, reference)
    names = (first, second) if second else (first,)
    of_each = [{one.seed for one in finished if one.arch == name} for name in names]
    seeds = set.intersection(*of_each)
    if not seeds:
        raise ValueError(
            f"Expected {' and '.join(names)} with a seed in common, but got "
            f"{' and '.join(str(sorted(one)) for one in of_each)}. Train both with the same seeds."
        )
    shown = {one: one.arch for one in finished if one.arch in names and one.seed in seeds}
    nothing = (
        "No gradients were recorded: the report has no gradients, activations and updates. Train "
        "again with --log-grads."
    )
    return Report(
        names=names,
        seeds=tuple(sorted(seeds)),
        missing=(*notes, nothing, *_missing(names, shown)),
        **_facts(shown),
    )


def _facts(shown: Mapping[NetworkDir, str]) -> dict[str, Any]:
    """What training left; the settings are the same for all networks of the runs, and so are the
    data, but for the split of a study that draws one for every seed."""
    if not shown:
        return {}
    runs = [RunDir.open(path) for path in dict.fromkeys(one.path.parent for one in shown)]
    data, config = {run.path: run.data() for run in runs}, runs[0].config()
    test_images = {path: tuple(of["split"]["indices"]["test"]) for path, of in data.items()}
    first = data[runs[0].path]
    is_ours = config.data == "digits" or runs[0].is_trained_here
    return {
        "images": config.data if is_ours else "",
        "changed": changed_on_purpose(list(shown)),
        "trained": tuple(
            Trained(name, one.seed, one.history(), one.evaluation(), test_images[one.path.parent])
            for one, name in shown.items()
        ),
        "class_names": tuple(first["classes"]),
        "data": first,
        "config": {name: str(value) for name, value in vars(config).items()},
        "environments": tuple(run.environment() for run in runs),
        "saliency": saliency_pictures(runs),
    }


def _missing(names: Sequence[str], shown: Mapping[NetworkDir, str]) -> list[str]:
    """What a reader may look for and not find, and how to get it."""
    lines = []
    if own := [name for name in names if name not in shown.values()]:
        which = f"The records of {' and '.join(own)}" if shown else "The records"
        lines.append(
            f"{which} come from a loop of your own: gradflow knows no accuracies, images or "
            "settings of it."
        )
    if len(names) < 2:
        lines.append("There is only one network, so that there is no difference between two.")
    if shown and any("probabilities" not in one.evaluation()["last"]["test"] for one in shown):
        lines.append(
            "The probabilities of single images were not kept by the version that trained: no "
            "calibration and no worst mistakes. Train again to have them."
        )
    return lines


def _missing_measures(
    found_activations: dict[str, Any], found_updates: dict[str, Any]
) -> list[str]:
    lines = []
    if not found_activations:
        lines.append(
            "Nothing is known of activations: the records have no outputs of activation layers. "
            "Record with the default measures."
        )
    if not found_updates:
        lines.append(
            "Nothing is known of updates: give the optimizer to the Recorder, "
            "Recorder(model, optimizer)."
        )
    elif "angle_from_start" not in found_updates:
        lines.append(
            "The angle that weights travelled is not known: it was not recorded, or nowhere "
            'finite. A Recorder of your own takes it: measures=["angle_from_start", …].'
        )
    return lines
