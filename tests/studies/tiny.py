"""A study of seconds, on noisy pictures, for the tests that run one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradflow.studies import Study, StudyDir, run_study
from gradflow.studies.cell import run_cell
from gradflow.studies.engine import Engine
from gradflow.studies.results import Results
from gradflow.training import train

BASE: dict[str, Any] = {
    "image_size": 8, "width": 0.0625, "epochs": 2, "batch_size": 16, "step_size": 1, "patience": 0,
    "rivals": False, "checkpoint_budget": 0, "device": "cpu", "shortcut": "A",
}  # fmt: skip


def tiny(pictures: Path, *, base: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The content of a study file: a baseline and one arm, on one network of each kind."""
    content: dict[str, Any] = {
        "base": {"data": str(pictures)} | BASE | (base or {}),
        "accused": "plain_18",
        "reference": "resnet_18",
        "seeds": 1,
        "restores": "bias",
        "arms": {"bias": {"tests": "explosion", "intervene": "norm_bias(beta=1)"}},
    }
    return content | changes


def read(pictures: Path, **changes: Any) -> Study:
    return Study.read(tiny(pictures, **changes), name="tiny", changes={})


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@contextmanager
def full_disk(where: str) -> Iterator[None]:
    """No weights can be saved in a folder of the study whose path holds these words."""
    save = train.save_tensors

    def full(content: Any, path: Path) -> None:
        if where in path.as_posix():
            raise OSError(28, "No space left on device")
        save(content, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "save_tensors", full)
        yield


def run_here(study: Study, folder: StudyDir) -> Results:
    """Run a study in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "run", lambda self, cells, jobs: [run_cell(cell) for cell in cells])
        return run_study(study, folder, Engine())
