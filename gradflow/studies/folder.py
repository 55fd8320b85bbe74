"""The study on disk: the only module that knows file names inside a study's folder.

studies/photographs-64px/
    study.yaml  cells.json  tuning.json  combination.json  results.json  times.json
    figures/  jobs/  .lock
    cells/
        baseline/accused-s0/      one run each, as `gradflow train` leaves it, and
            state.json  .lock
        sgd/accused-lr-0.1/       a trial of one value of `tune`
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypedDict

from gradflow.files import (
    DamagedFile,
    held,
    read_json,
    refuse_links,
    write_json,
    write_text,
    yaml_text,
)
from gradflow.studies.arms import BASELINE, Place, Tuned
from gradflow.studies.study import Study
from gradflow.training.rundir import NetworkDir, RunDir

CELLS = "cells"
STUDY = "study.yaml"
ENDED = ("done", "diverged")  # states with nothing more to train: the end, or a loss of NaN


ADVICE = "Delete it, and what it says is found anew."


class State(TypedDict, total=False):
    """state.json of a cell."""

    state: str
    message: str
    starts: int
    host: str
    pid: int
    epoch: int
    n_epochs: int
    train_loss: float
    seconds: float
    seconds_around: float


class TunedEntry(TypedDict):
    """Of tuning.json."""

    arm: str
    place: Place
    name: str
    value: Any
    tried: list[list[Any]]


@dataclass(frozen=True)
class CellDir:
    """The folder of one cell: a run with one network, and how far it is."""

    path: Path

    def state(self) -> dict[str, Any]:
        """How far it is; empty where it never began, or was killed while it wrote that."""
        try:
            found: dict[str, Any] = _read(self.path / "state.json", State)
        except (FileNotFoundError, DamagedFile):
            return {}
        return found

    @property
    def is_done(self) -> bool:
        """Whether there is nothing more to train."""
        return self.state().get("state") in ENDED

    def save_state(self, state: Mapping[str, Any]) -> None:
        write_json(self.path / "state.json", dict(state))

    def copy(self, other: Self) -> None:
        """Become what another cell is, its state last: a kill may come in between."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != ".lock":
                path.unlink()
        ignored = shutil.ignore_patterns("state.json", ".lock")
        shutil.copytree(other.path, self.path, ignore=ignored, dirs_exist_ok=True)
        self.save_state(other.state())

    def run(self) -> RunDir | None:
        """The run that was begun here, if there is one.

        One whose configuration cannot be read, as a full disk may leave it, begins anew, unless an
        epoch was trained with it.
        """
        run = RunDir(self.path)
        if any(self.path.glob("*/history.json")):
            return run
        try:
            run.config()
        except (FileNotFoundError, ValueError):
            return None
        return run

    def network(self) -> NetworkDir | None:
        """The network, where its training has ended."""
        run = self.run()
        finished = [one for one in run.networks() if one.is_finished] if run is not None else []
        return finished[0] if finished else None


@dataclass(frozen=True)
class StudyDir:
    """The folder of a study."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing study."""
        if not cls.holds(path):
            raise FileNotFoundError(
                f"Expected the folder of a study in {path}, but it has no {STUDY}. Give the one "
                "that `gradflow study` printed."
            )
        refuse_links(path)
        return cls(path)

    @classmethod
    def holds(cls, path: Path) -> bool:
        """Whether `path` is the folder of a study."""
        return (path / STUDY).exists() and (path / CELLS).is_dir()

    @property
    def file(self) -> Path:
        """The study as it was last begun."""
        return self.path / STUDY

    @property
    def cells(self) -> Path:
        return self.path / CELLS

    def has_begun(self, arm: str) -> bool:
        """Whether there is a training of this arm, or a trial."""
        return (self.cells / arm).is_dir()

    def baseline(self, place: Place, seed: int) -> NetworkDir | None:
        """A network as it was trained without any arm; None where that has not ended."""
        return CellDir(self.cells / BASELINE / f"{place}-s{seed}").network()

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def jobs(self) -> Path:
        """Where a cluster's scheduler keeps its logs."""
        return self.path / "jobs"

    def begin(self, study: Study) -> None:
        """Make the folder, or see that it belongs to this study.

        Seeds and arms may be added or left out; what was begun may not change, also not when an arm
        comes back. Raises ValueError.
        """
        if self.holds(self.path):
            self._check_same(study)
        self.cells.mkdir(parents=True, exist_ok=True)
        # What was begun comes first: a disk that is full after it has lost nothing.
        write_json(self.path / "cells.json", self._begun() | _recipes(study))
        write_text(self.file, yaml_text(dict(study.source)))

    def _check_same(self, study: Study) -> None:
        name = Study.load(self.file).name
        if name != study.name:
            raise ValueError(
                f"Expected the study {name}, which was begun in {self.path}, but got {study.name}. "
                "Give each study a folder of its own with --out."
            )
        now = _recipes(study)
        for cell, recipe in self._begun().items():
            if cell not in now:
                continue  # an arm that was left out stays on disk
            differing = sorted(key for key in recipe if recipe[key] != now[cell].get(key))
            if differing:
                raise ValueError(
                    f"Expected the study that was begun in {self.path}, but {cell} differs in "
                    f"{', '.join(differing)}. Give the changed study a folder of its own with "
                    "--out, or delete this one."
                )

    def _begun(self) -> dict[str, dict[str, Any]]:
        path = self.path / "cells.json"
        return _read(path, dict[str, dict[str, Any]]) if path.exists() else {}

    def locked(self) -> AbstractContextManager[str]:
        """Hold the folder for this process. Raises RuntimeError where another one has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        return held(self.path)

    def study(self) -> Study:
        """The study as it was last begun, with what was tuned and the two strongest combined."""
        study = dataclasses.replace(Study.load(self.file), tuned=self.tuning())
        pair = self.combination(study)
        return study.with_arm(study.combined(*pair)) if pair is not None else study

    def combination(self, study: Study) -> tuple[str, str] | None:
        """The two strongest arms, where they are combined and that is no longer open."""
        path = self.path / "combination.json"
        if study.combine != "strongest" or not path.exists():
            return None
        pair: list[str] = _read(path, list[str])
        if len(pair) != 2:
            raise DamagedFile(path, "the names of two arms", f"{len(pair)} names", ADVICE)
        first, second = pair
        return (first, second) if {first, second} <= study.names else None

    def save_combination(self, pair: tuple[str, str]) -> None:
        write_json(self.path / "combination.json", pair)

    def tuning(self) -> tuple[Tuned, ...]:
        """What the trials said, as far as they have ended."""
        path = self.path / "tuning.json"
        if not path.exists():
            return ()
        return tuple(
            Tuned(**{**one, "tried": tuple((value, loss) for value, loss in one["tried"])})
            for one in _read(path, list[TunedEntry])
        )

    def save_tuning(self, tuned: Sequence[Tuned]) -> None:
        write_json(self.path / "tuning.json", [dataclasses.asdict(one) for one in tuned])

    def save_results(self, results: Mapping[str, Any]) -> None:
        write_json(self.path / "results.json", dict(results))

    def times(self) -> dict[str, dict[str, float]]:
        """By arm and network, the mean seconds of a training; there once the study has ended."""
        return dict(_read(self.path / "times.json", dict[str, dict[str, float]]))

    def save_times(self, times: Mapping[str, Mapping[Place, float]]) -> None:
        """Beside the results, which no machine and no day may change."""
        write_json(self.path / "times.json", times)


def _recipes(study: Study) -> dict[str, dict[str, Any]]:
    """By cell, what its result depends on, as JSON gives it back."""
    free = ("out", "device", "wandb", "project", "seeds")
    return {
        f"{arm.name}/{place}": {
            name: value
            for name, value in dataclasses.asdict(study.config(arm.name, place, 0)).items()
            if name not in free
        }
        | {"threads": study.threads, "tune": {key: list(tried) for key, tried in arm.tune.items()}}
        for arm in study.arms
        for place in arm.networks
    }


def _read(path: Path, hint: Any) -> Any:
    return read_json(path, hint, f"the {path.stem} of a study", ADVICE)
