"""What several tests of studies share."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import read, run_here

from gradflow.studies import StudyDir
from gradflow.studies.cell import run_cell
from gradflow.studies.engine import Engine
from gradflow.studies.results import Results


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in this process, where a test can reach in; the order is that of the study."""
    monkeypatch.setattr(Engine, "run", lambda self, cells, jobs: [run_cell(cell) for cell in cells])


@pytest.fixture(scope="session")
def pictures(
    draw_pictures: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """No test of a study changes them."""
    return draw_pictures(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """The study of `tiny` that nothing disturbed: its folder, to be copied, and what it found."""
    path = tmp_path_factory.mktemp("finished")
    return path, run_here(read(pictures), StudyDir(path))


@pytest.fixture
def all_but(finished: tuple[Path, Results], tmp_path: Path) -> Callable[[str], StudyDir]:
    """Makes a copy of that study in which one training was not done yet, or none is missing."""

    def copy(missing: str) -> StudyDir:
        path = tmp_path / "study"
        shutil.copytree(finished[0], path)
        if missing:
            shutil.rmtree(path / "cells" / missing)
        return StudyDir(path)

    return copy
