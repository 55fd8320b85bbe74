"""A tiny run that the tests damage, and what nobody may reach from it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gradflow.cli import main
from tests.robust.foreign import SECRET

SMALL = ["--image-size", "8", "--arch", "plain_18,resnet_18", "--width", "0.0625", "--epochs", "1"]
SMALL += ["--batch-size", "16", "--device", "cpu", "--wandb", "off"]


@pytest.fixture(scope="session")
def trained(
    draw_pictures: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run with records. Never changed: see `run`."""
    home = tmp_path_factory.mktemp("robust")
    pictures = draw_pictures(home)
    flags = [*SMALL, "--log-grads", "--out", str(home / "runs"), "--json"]
    assert main(["train", "--data", str(pictures), *flags]) == 0
    (run,) = (home / "runs").iterdir()
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "run"))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / ".bashrc"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of a report, and hold no file and no name of somebody else."""
    monkeypatch.setattr("gradflow.present.report.story.charts", lambda report: [])
