"""Run a study: tune, train what is left, combine the strongest arms if that is asked, analyse."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import fmean

from gradflow.data import open_source
from gradflow.studies.arms import BASELINE, Cell, Place, Tuned, expected_one_of
from gradflow.studies.cell import CellEnd, run_cell
from gradflow.studies.engine import Engine
from gradflow.studies.folder import CellDir, StudyDir
from gradflow.studies.judging import analyse
from gradflow.studies.results import Results
from gradflow.studies.study import Study
from gradflow.training.intervening import check_interventions

IMAGE_SIZE = 224  # where a study names none: what layers a network has does not depend on it


def run_study(
    study: Study,
    folder: StudyDir,
    engine: Engine,
    *,
    only: Collection[str] | None = None,
    on_begin: Callable[[Sequence[Cell]], None] = lambda cells: None,
) -> Results:
    """Train every cell that is not done, and save what all of them say.

    A study that was killed at any time continues where it stands, to the same results. With `only`,
    these arms are trained and those that they start from; what they say is judged as a part of the
    study, which asks about the others too. `on_begin` is told the cells as soon as they are known.
    Raises RuntimeError where another process works in the folder, ValueError where another study
    began it or `only` names no arm, and before there is a folder where there are no images or an
    intervention does not fit its network.
    """
    if not StudyDir.holds(folder.path):
        cells = study.cells(folder.cells)
        check_arms(cells)
        recipes = {cell.config.data: cell.config for cell in cells}
        for data, config in recipes.items():
            open_source(data, download=config.download, allow_outside=config.allow_outside)
    with folder.locked():
        folder.begin(study)
        study = folder.study()
        names = study.names if only is None else needed_arms(study, only)
        ends: dict[str, CellEnd] = {}
        if trials := [trial for trial in open_trials(study, folder) if trial.arm in names]:
            ends = _train(trials, engine, folder, on_begin)
            folder.save_tuning([*study.tuned, *choose(study, folder)])
            study = folder.study()
        ends |= _train(study.ready(folder.cells, names), engine, folder, on_begin)
        if (pair := _pair(study, folder)) is not None and names.issuperset(pair):
            folder.save_combination(pair)
            study = folder.study()
            both = study.ready(folder.cells, {*names, study.combined(*pair).name})
            ends |= _train(both, engine, folder, on_begin)
        # Also of cells that could not write it: on a full disk, or ended by a scheduler.
        failed = {name: end for name, end in ends.items() if end.state == "failed"}
        found = analyse(folder, {name: f"failed: {end.message}" for name, end in failed.items()})
        folder.save_results(found.to_json())
        folder.save_times(training_times(folder, study))
        return found


def needed_arms(study: Study, only: Collection[str]) -> frozenset[str]:
    """These arms with those that they start from, and what combines two of them.

    Raises ValueError for what is no arm.
    """
    needed = {BASELINE}
    for name in [only] if isinstance(only, str) else only:
        if name not in study.names:
            raise ValueError(expected_one_of("every arm to train", sorted(study.names), name))
        while name not in needed:
            needed.add(name)
            name = study.arm(name).against
    return frozenset(
        {*needed, *(arm.name for arm in study.arms if arm.parts and needed.issuperset(arm.parts))}
    )


def check_arms(cells: Iterable[Cell]) -> None:
    """Refuse interventions that do not fit their network: one seed of each arm speaks for all.

    Raises ValueError, which names the arm. What takes the records of other trainings is not known.
    """
    for cell in {(one.arm, one.place): one for one in cells if not one.needs_others}.values():
        try:
            config = cell.config.resolved(image_size=IMAGE_SIZE, mirror=False)
            check_interventions(config, n_classes=2)
        except ValueError as error:
            raise ValueError(f"arm {cell.arm!r}, {cell.config.arch}: {error}") from None


def _train(
    cells: Sequence[Cell],
    engine: Engine,
    folder: StudyDir,
    on_begin: Callable[[Sequence[Cell]], None],
) -> dict[str, CellEnd]:
    """How the cells ended that were not done, by name."""
    on_begin(cells)
    for cell in cells:
        _forget_failure(CellDir(cell.folder))
    ends = []
    for late in (False, True):
        those = [cell for cell in cells if cell.needs_others is late]
        own = [cell for cell in those if cell.same_as is None]
        ends += engine.run(_unfinished(own), folder.jobs)
        ends += map(run_cell, _unfinished(cell for cell in those if cell.same_as is not None))
    return {end.name: end for end in ends}


def _unfinished(cells: Iterable[Cell]) -> list[Cell]:
    return [cell for cell in cells if not CellDir(cell.folder).is_done]


def _forget_failure(folder: CellDir) -> None:
    """What failed for want of a disk or a machine is tried again; a loss of NaN stays one."""
    state = folder.state()
    if state.get("state") in ("failed", "running"):
        folder.save_state({"state": "waiting", "epoch": state.get("epoch", 0)})


def _pair(study: Study, folder: StudyDir) -> tuple[str, str] | None:
    """The two strongest arms, where they are to be combined and that is still open.

    They are chosen once all trainings have ended, among arms that changed what they say:
    a training that failed for want of a disk must not decide which they are.
    """
    if study.combine != "strongest" or folder.combination(study) is not None:
        return None
    if _unfinished(study.cells(folder.cells)):
        return None
    ranked = [one.arm.name for one in analyse(folder).strongest if one.moved]
    return next(study.combinable(ranked), None)


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


# -- tuning ----------------------------------------------------------------------------------------


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
    by_network: dict[tuple[str, Place], list[Cell]] = {}
    for trial in open_trials(study, folder):
        by_network.setdefault((trial.arm, trial.place), []).append(trial)
    found = []
    for (arm, place), trials in by_network.items():
        if not all(CellDir(one.folder).is_done for one in trials):
            continue
        ((name, values),) = study.arm(arm).tune.items()
        losses = [_validation_loss(CellDir(one.folder)) for one in trials]
        tried = tuple(zip(values, losses, strict=True))
        if known := [(loss, value) for value, loss in tried if loss is not None]:
            best = min(known, key=lambda one: one[0])[1]
            found.append(Tuned(arm, place, name, best, tried))
    return found


def _validation_loss(folder: CellDir) -> float | None:
    """Of a trial that is done, in nats; None where it diverged."""
    network = folder.network()
    if network is None or not network.is_finished:
        return None
    return float(network.history()[-1]["val_loss"])
