"""Small data that the tests make for themselves, and how the suite is spread over the cores."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Two test processes share the machine's cores, and these networks are too small to be shared out.
# Read when torch is imported, here and in what the tests start.
os.environ["OMP_NUM_THREADS"] = "1"

# Keras reads these when it is imported. It writes a settings file into its folder, and does without
# one where that is no folder.
os.environ["KERAS_BACKEND"] = "torch"
os.environ["KERAS_HOME"] = os.devnull

MOST_WORKERS = 8  # each takes a gigabyte and some seconds to begin


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Folders are tested on all cores; files sooner in one process, and a GPU is not shared."""
    if config.option.markexpr == "cuda" or all(".py" in one for one in config.args):
        return 0
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(n_cores or 1, MOST_WORKERS)


def pytest_collection_finish() -> None:
    """What was imported stays: else each of hundreds of collections looks through all of it."""
    gc.collect()
    gc.freeze()


CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="session")
def draw_pictures() -> Callable[[Path], Path]:
    """Makes three class folders with 20 noisy pictures of 12 px each; always the same."""

    def draw(root: Path) -> Path:
        random = np.random.default_rng(0)
        for index, name in enumerate(CLASSES):
            folder = root / "pictures" / name
            folder.mkdir(parents=True)
            for number in range(20):
                pixels = random.integers(0, 90, (12, 12, 3), dtype=np.uint8)
                pixels[..., 2 - index] += 120
                Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        return root / "pictures"

    return draw


@pytest.fixture
def pictures(draw_pictures: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A folder of three class folders with 20 noisy pictures of 12 px each."""
    return draw_pictures(tmp_path)


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """`gradflow train` ends without its figures, which take longer than these trainings."""
    monkeypatch.setattr("gradflow.present.figures.save_figures", lambda run: {})


# -- the program, called as a person calls it ------------------------------------------------------


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
    from gradflow.cli import main

    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        code = main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        assert code in {0, 1, 2, 3, 130}, "as documented"
        assert "Traceback" not in err
        return Said(code, out, err)

    return call


@pytest.fixture
def instrument(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate is tested on its own; here it has passed."""
    from gradflow.controls import CaseResult, Gate

    cases = CaseResult("gain 1", "healthy", 20, 20), CaseResult("gain 2", "exploding", 20, 20)
    monkeypatch.setattr("gradflow.training.diagnosis.load_gate", lambda: Gate(cases, 0.0))


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of W&B, on this machine or in its environment."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_ERROR_REPORTING"):
        monkeypatch.delenv(name, raising=False)
