"""A tiny run that the tests damage, and the program called as a person calls it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gradflow.cli import main

DOCUMENTED = {0, 1, 2, 3, 130}
SMALL = ["--image-size", "8", "--arch", "plain_18,resnet_18", "--width", "0.0625", "--epochs", "1"]
SMALL += ["--batch-size", "16", "--device", "cpu", "--wandb", "off"]


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Calls `gradflow`; an exception that leaves it fails the test, as a traceback would."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str | Path) -> Said:
        capsys.readouterr()
        code = main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        assert code in DOCUMENTED
        assert "Traceback" not in err
        return Said(code, out, err)

    return call


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
