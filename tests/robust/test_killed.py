"""kill -9 while a file is written: a resumed run ends as one that was never stopped."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradflow.training.rundir import RunDir
from tests.training.test_train import assert_same_network

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first of them trains a study

FLAGS = ["--image-size", "8", "--arch", "plain_18,resnet_18", "--width", "0.125", "--epochs", "2",
         "--batch-size", "8", "--device", "cpu", "--wandb", "off", "--log-grads",
         "--intervene", "gradient_scale(layers=1-3, factor=0.5)", "--json"]  # fmt: skip
# One moment of each kind of file, some of them in the first network and some in the second.
MOMENTS = [
    ("config.yaml", 0), ("data.json", 0), ("environment.json", 0), ("step-000000.pt", 0),
    ("step-000010.pt", 0), ("step-000010.pt", 1), ("part-000000000.parquet", 0),
    ("part-000000006.parquet", 0), ("best.pt", 0), ("best.pt", 1), ("history.json", 0),
    ("history.json", 1), ("history.json", 3), ("checkpoint.pt", 0), ("checkpoint.pt", 2),
    ("last.pt", 0), ("last.pt", 1), ("interventions.json", 0),
    ("evaluation.json", 0), ("evaluation.json", 1), ("examination.json", 0),
    ("summary.json", 0), ("index.md", 0),
]  # fmt: skip

Server = Callable[..., int]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    script = Path(__file__).with_name("killed.py")
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(*arguments: str | Path, at: tuple[str, int] | None = None, before: bool = False) -> int:
        asked = {"arguments": list(map(str, arguments)), "at": at, "before": before}
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield ask
    process.communicate()


@pytest.fixture(scope="module")
def whole(
    server: Server, draw_pictures: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A run that was never stopped, and how it was begun."""
    home = tmp_path_factory.mktemp("killed")
    begin = ["train", "--data", str(draw_pictures(home)), *FLAGS, "--out"]
    assert server(*begin, home / "runs") == 0
    (run,) = (home / "runs").iterdir()
    return run, begin


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("name", "number"), MOMENTS)
def test_a_run_killed_while_it_writes_ends_as_if_it_had_not_been(
    name: str, number: int, before: bool, whole: Any, server: Server, tmp_path: Path
) -> None:
    expected, begin = whole
    assert server(*begin, tmp_path, at=(name, number), before=before) == -signal.SIGKILL
    (run,) = tmp_path.iterdir()
    if not all((run / one).exists() for one in ("config.yaml", "data.json", "environment.json")):
        assert server("train", "--resume", run) in (0, 2), "nothing was trained yet"
        return
    assert server("train", "--resume", run, "--json") == 0
    same(expected, run)


def same(expected: Path, run: Path) -> None:
    assert not list(run.glob("*/checkpoint.pt"))
    assert not list(run.rglob(".unfinished-*"))
    mine, theirs = (RunDir.open(path).networks() for path in (run, expected))
    for one, other in zip(mine, theirs, strict=True):
        assert_same_network(one, other)
        for name in ("evaluation.json", "examination.json", "interventions.json"):
            ours, others = ((net.path / name).read_text("utf-8") for net in (one, other))
            assert ours == others, name


STUDY = """
question: Does a training that was killed count?
base: {{data: {data}, image_size: 8, width: 0.125, epochs: 1, batch_size: 16, device: cpu,
       wandb: "off", log_grads: true, rivals: false}}
accused: plain_18
reference: resnet_18
seeds: 1
arms:
  slower: {{tests: schedule, set: {{lr: 0.0001}}}}
  tuned: {{tests: schedule, tune: {{lr: [0.001, 0.01]}}}}
"""


@pytest.fixture(scope="module")
def whole_study(
    server: Server, draw_pictures: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A study file, and the folder of that study, which was never stopped."""
    home = tmp_path_factory.mktemp("study")
    file = home / "tiny.yaml"
    file.write_text(STUDY.format(data=draw_pictures(home)), encoding="utf-8")
    assert server("study", file, "--out", home / "whole", "--workers", "1") == 0
    return file, home / "whole"


@pytest.mark.parametrize(
    "name", ["study.yaml", "cells.json", "tuning.json", "results.json", "times.json"]
)
def test_a_study_killed_while_it_writes_comes_to_the_same_results(
    name: str, server: Server, whole_study: tuple[Path, Path], tmp_path: Path
) -> None:
    file, whole = whole_study
    shutil.copytree(whole / "cells", tmp_path / "killed" / "cells")  # trained already
    again = ("study", file, "--out", tmp_path / "killed", "--workers", "1")
    assert server(*again, at=(name, 0), before=True) == -signal.SIGKILL
    assert server(*again) == 0
    results = [(one / "results.json").read_text("utf-8") for one in (whole, tmp_path / "killed")]
    assert results[0] == results[1]
    assert (tmp_path / "killed" / "times.json").exists()


@pytest.mark.parametrize(
    ("name", "number"), [("state.json", 2), ("best.pt", 1), ("part-000000000.parquet", 2)]
)
def test_a_study_killed_while_it_trains_comes_to_the_same_results(
    name: str, number: int, server: Server, whole_study: tuple[Path, Path], tmp_path: Path
) -> None:
    file, whole = whole_study
    again = ("study", file, "--out", tmp_path / "killed", "--workers", "1")
    assert server(*again, at=(name, number), before=True) == -signal.SIGKILL
    assert server(*again) == 0
    found, expected = (
        without_seconds(json.loads((one / "results.json").read_text("utf-8")))
        for one in (tmp_path / "killed", whole)
    )
    assert found == expected


def without_seconds(found: Any) -> Any:
    """The same results, but for how long the trainings took."""
    if isinstance(found, dict):
        return {k: without_seconds(v) for k, v in found.items() if k != "seconds"}
    return [without_seconds(one) for one in found] if isinstance(found, list) else found
