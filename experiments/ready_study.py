"""A ready study, and what is kept of it: results, times, verdict and figures in results/studies/.

    python experiments/ready_study.py digits-30-epochs
    python experiments/ready_study.py vanishing-control
    python experiments/ready_study.py photographs-64px --data PHOTOGRAPHS

Claim: which share of the gap between two networks each arm of the study file takes away. The file,
with its thresholds, was committed before the trainings that it judges. A study that was stopped
goes on where it stands, also on another day and machine: with --keep, the trainings that have ended
are kept in results/studies/NAME/cells, without weights, and none of them is trained again.
README.md beside this file has the tables and the times.
"""

import argparse
import dataclasses
import shutil
from pathlib import Path

from rich.console import Console

from gradflow.files import write_json
from gradflow.present.letter import letter
from gradflow.present.study_figures import save_study_figures
from gradflow.present.study_story import study_section
from gradflow.record.part_files import FOLDER
from gradflow.record.trace import load_parts
from gradflow.studies import Engine, Study, StudyDir, run_study
from gradflow.studies.diagnosis import judge_study
from gradflow.studies.folder import CellDir
from gradflow.studies.results import Results

HERE = Path(__file__).parent
RAW = argparse.RawTextHelpFormatter
RESULTS = HERE / "results" / "studies"


def main() -> None:
    names = sorted(path.stem for path in (HERE / "studies").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("study", choices=names)
    parser.add_argument("--data", help="the images, in place of those of the study file")
    parser.add_argument("--out", type=Path, help="the study's folder; by default studies/NAME")
    parser.add_argument("--arms", type=int, help="only the first so many arms: others can follow")
    parser.add_argument("--keep", action="store_true", help="the trainings, ended ones at once")
    options = parser.parse_args()
    changes = {} if options.data is None else {"data": options.data}
    study = Study.load(HERE / "studies" / f"{options.study}.yaml", changes)
    only = None if options.arms is None else list(study.source["arms"])[: options.arms]
    folder = StudyDir(options.out or Path("studies") / options.study)
    kept = RESULTS / options.study / "cells"
    bring_back(kept, folder.cells)
    if options.keep:
        keep_cells(folder.cells, kept)
    found = run_study(study, folder, Engine(), only=only)
    if options.keep:
        keep_cells(folder.cells, kept)
    Console(width=160).print(letter(study_section(found)))
    keep(options.study, "", found.to_json())
    keep(options.study, "-times", folder.times())
    keep(options.study, "-verdict", judge_study(folder, found).to_json())
    if study.restores:
        keep(options.study, "-link-4", by_restoring_arm(folder, found))
    for figure in save_study_figures(found, folder.figures):
        (RESULTS / f"{options.study}-{figure.name}").write_bytes(figure.read_bytes())


def by_restoring_arm(folder: StudyDir, found: Results) -> dict[str, object]:
    """What the verdict were, if each arm in turn were the one that restores the gradients."""
    names = [one.arm.name for one in found.causes]
    studies = {name: dataclasses.replace(found.study, restores=name) for name in names}
    verdicts = {name: judge_study(folder, dataclasses.replace(found, study=study))
                for name, study in studies.items()}  # fmt: skip
    return {name: {"outcome": one.outcome, "notes": one.notes} for name, one in verdicts.items()}


def bring_back(kept: Path, cells: Path) -> None:
    """Put the trainings that were kept where the study looks for its own."""
    for state in kept.glob("*/*/state.json"):
        here = cells / state.parent.relative_to(kept)
        if not CellDir(here).is_done:
            shutil.copytree(state.parent, here, dirs_exist_ok=True)


def keep_cells(cells: Path, kept: Path) -> None:
    """Copy each training that has ended: its JSON, and its records in one file. No weights."""
    for state in cells.glob("*/*/state.json"):
        cell, there = state.parent, kept / state.parent.relative_to(cells)
        if not CellDir(cell).is_done or there.exists():
            continue
        ignored = shutil.ignore_patterns(FOLDER, "*.pt", ".lock")
        shutil.copytree(cell, there, ignore=ignored)
        for records in cell.glob(f"*/{FOLDER}"):
            load_parts(records).save_part(there / records.parent.name / FOLDER)


def keep(name: str, what: str, content: object) -> None:
    write_json(RESULTS / f"{name}{what}.json", content)


if __name__ == "__main__":
    main()
