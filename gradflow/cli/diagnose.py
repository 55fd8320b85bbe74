"""`gradflow diagnose` and `gradflow compare`: what the records of runs say."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gradflow.cli.console import progress, show, show_json, stderr
from gradflow.cli.data import data_of
from gradflow.cli.options import JUDGED, OK, Flag, Output
from gradflow.files import held

if TYPE_CHECKING:
    from gradflow.analysis.verdict import Verdict
    from gradflow.studies import Results, StudyDir


def diagnose(
    *runs: Path,
    accused: str | None = None,
    reference: str | None = None,
    measure: Flag = False,
    full: Flag = False,
    fail_on: Literal["vanishing", "exploding"] | None = None,
    output: Output = None,
    json: Flag = False,
) -> int:
    """Answer whether the gradients vanish, and whether that explains the gap between networks.

    Parameters
    ----------
    runs
        Folders of runs, or of a Recorder, whose names may end in the seed (plain-s3); or the folder
        of one study, whose interventions then test the cause. By default the newest run in runs/.
    accused
        The network that is said to suffer from vanishing gradients; by default the first.
    reference
        The network to compare it with; by default the other one.
    measure
        First measure the rival explanations that are not yet measured, from the kept weights.
    full
        Print everything: profiles by depth, every link and rival with its evidence, the arms.
    fail_on
        Exit with 3 if the gradients vanish (explode) early in training.
    output
        The file of the figure; by default figures/verdict.png in the first run.
    json
        Print the verdict as one JSON object on stdout.
    """
    from gradflow.present.plots import picture_path, refuse_to_replace
    from gradflow.studies import analyse
    from gradflow.studies.diagnosis import judge_study, study_among
    from gradflow.training.diagnosis import diagnose as run_diagnosis

    runs = runs or (newest_run(),)
    if output is not None:
        output = picture_path(output)
        refuse_to_replace(output)
    study, found = study_among(runs, accused, reference), None
    if study is not None:
        if measure:
            _measure_study(study)
        found = analyse(study)
        verdict = judge_study(study, found)
    else:
        if measure:
            _measure_rivals(runs)
        verdict = run_diagnosis(runs, accused=accused, reference=reference)
    if json:
        show_json(verdict.to_json())
    else:
        from gradflow.present import plots
        from gradflow.present.figures import verdict_figure
        from gradflow.training.index import write_index

        path = output or runs[0] / "figures" / "verdict.png"
        picture = plots.save(verdict_figure(verdict), path)
        write_index(runs[0])
        if full:
            _show_all(verdict, found)
            show(f"\npicture  {picture}")
        else:
            show(str(verdict), f"More     add --full; picture {picture}")
    return JUDGED if fail_on is not None and verdict.has(fail_on) else OK


def _show_all(verdict: "Verdict", found: "Results | None") -> None:
    """The whole verdict, and what the study found, if there is one."""
    from gradflow.present.letter import letter, profiles
    from gradflow.present.terminal_plot import can_show_braille
    from gradflow.present.verdict_story import answer, why

    show(letter(answer(verdict)), profiles(verdict, braille=can_show_braille(sys.stdout.encoding)))
    show("", letter(why(verdict)))
    if found is not None:
        from gradflow.present.study_story import study_section

        show(letter(study_section(found)))


def newest_run() -> Path:
    from gradflow.training.rundir import RunDir

    return RunDir.newest(Path("runs")).path


def _measure_rivals(runs: Sequence[Path]) -> None:
    """Examine the kept weights of every finished network of which something was not measured."""
    from gradflow.training.diagnosis import network_dirs
    from gradflow.training.examination import examine_network
    from gradflow.training.rundir import RunDir

    for path in runs:
        networks = network_dirs(path.resolve())
        todo = [one for one in networks if one.is_finished and one.lacks_measurements()]
        if not todo:
            continue
        run = RunDir.open(todo[0].path.parent)
        config, data = data_of(run)
        with held(run.path), progress(stderr(), "networks") as (bar, task):
            for network in bar.track(todo, task_id=task):
                network.save_examination(examine_network(network, config, data))


def _measure_study(study: "StudyDir") -> None:
    """The same for the networks that a study trained without any arm: the verdict is about them."""
    from gradflow.studies.arms import BASELINE
    from gradflow.studies.cell import measure_cell

    cells = [cell for cell in study.study().cells(study.cells) if cell.arm == BASELINE]
    with progress(stderr(), "networks") as (bar, task):
        for cell in bar.track(cells, task_id=task):
            measure_cell(cell)


def compare(
    *runs: Path,
    first: str | None = None,
    second: str | None = None,
    size: Literal["output_gradient", "scale_invariant", "gradient_rms"] = "output_gradient",
    fail_on: Literal["difference"] | None = None,
    json: Flag = False,
) -> int:
    """Compare two networks layer by layer: which layers receive a different gradient.

    Parameters
    ----------
    runs
        One run that holds both networks, or several; folders as for `diagnose`.
    first
        The network whose gradients are divided; by default the first.
    second
        The network to divide them by; by default the other one.
    size
        Which size of a gradient the table shows: ∂L/∂z (δ), scale-invariant (ŝ) or raw (g).
    fail_on
        Exit with 3 if some layer differs at equal step.
    json
        Print every size as one JSON array on stdout.
    """
    from gradflow.analysis.compare import compare as run_comparison
    from gradflow.present.letter import letter
    from gradflow.present.verdict_story import comparison
    from gradflow.training.diagnosis import open_case

    runs = runs or (newest_run(),)
    comparisons = run_comparison(open_case(runs, accused=first, reference=second))
    chosen = [one for one in comparisons if one.size == size]
    if not chosen:
        raise ValueError(
            f"Expected {size} in the records of both networks, but it was not recorded. Choose "
            "another --size, or record with all measures."
        )
    if json:
        show_json([one.to_json() for one in comparisons])
    else:
        show(letter(comparison(chosen)))
    differs = any(one.differs for one in chosen if one.at == "equal step")
    return JUDGED if fail_on is not None and differs else OK
