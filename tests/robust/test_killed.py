"""kill -9 while a file is written: a resumed run ends as one that was never stopped."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradflow.record import Trace

pytestmark = pytest.mark.slow

FLAGS = ["--image-size", "8", "--arch", "plain_18,resnet_18", "--width", "0.125", "--epochs", "2",
         "--batch-size", "8", "--device", "cpu", "--wandb", "off", "--log-grads",
         "--intervene", "gradient_scale(layers=1-3, factor=0.5)", "--json"]  # fmt: skip
# One moment of each kind of file, some of them in the first network and some in the second.
MOMENTS = [
    ("config.yaml", 0), ("data.json", 0), ("environment.json", 0), ("step-000000.pt", 0),
    ("step-000010.pt", 0), ("step-000010.pt", 1), ("part-000000000.parquet", 0),
    ("part-000000006.parquet", 0), ("best.pt", 0), ("best.pt", 1), ("history.json", 0),
    ("history.json", 1), ("history.json", 3), ("checkpoint.pt", 0), ("checkpoint.pt", 2),
    ("last.pt", 0), ("last.pt", 1), ("interventions.json", 0), ("report.txt", 0),
    ("evaluation.json", 0), ("evaluation.json", 1), ("examination.json", 0),
    ("summary.json", 0),
]  # fmt: skip

Server = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    script = Path(__file__).with_name("killed.py")
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(*arguments: str | Path, at: int | None = None, before: bool = False) -> dict[str, Any]:
        asked = {"arguments": list(map(str, arguments)), "at": at, "before": before}
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer

    yield ask
    process.communicate()


@pytest.fixture(scope="module")
def whole(
    server: Server, draw_pictures: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str], list[str]]:
    """A run that was never stopped, how it was begun, and what it wrote in its order."""
    home = tmp_path_factory.mktemp("killed")
    begin = ["train", "--data", str(draw_pictures(home)), *FLAGS, "--out"]
    done = server(*begin, home / "runs")
    assert done["code"] == 0
    (run,) = (home / "runs").iterdir()
    return run, begin, done["files"]


def of(files: list[str], name: str, number: int) -> int:
    """The number, among all files, of the one that comes so often before."""
    found = [i for i, file in enumerate(files) if Path(file).name == name]
    assert len(found) > number, (
        f"{name}: {len(found)} of {sorted({Path(one).name for one in files})}"
    )
    return found[number]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("name", "number"), MOMENTS)
def test_a_run_killed_while_it_writes_ends_as_if_it_had_not_been(
    name: str, number: int, before: bool, whole: Any, server: Server, tmp_path: Path
) -> None:
    expected, begin, files = whole
    killed = server(*begin, tmp_path, at=of(files, name, number), before=before)
    assert killed["code"] == -signal.SIGKILL
    (run,) = tmp_path.iterdir()
    if not all((run / one).exists() for one in ("config.yaml", "data.json", "environment.json")):
        said = server("train", "--resume", run)
        assert said["code"] in (0, 2), "nothing was trained yet"
        return
    assert server("train", "--resume", run, "--json")["code"] == 0
    same(expected, run)


def same(expected: Path, run: Path) -> None:
    assert not list(run.glob("*/checkpoint.pt"))
    assert not list(run.rglob(".unfinished-*"))
    for network in ("plain_18-s0", "resnet_18-s0"):
        mine, theirs = run / network, expected / network
        for name in ("evaluation.json", "examination.json", "interventions.json", "report.txt"):
            assert (mine / name).read_text("utf-8") == (theirs / name).read_text("utf-8"), name
        ours, others = (json.loads((one / "history.json").read_text()) for one in (mine, theirs))
        for one in (*ours, *others):
            one.pop("seconds")
        assert ours == others
        assert {p.name for p in mine.glob("*.pt")} == {p.name for p in theirs.glob("*.pt")}
        for path in theirs.glob("*.pt"):
            weights, other = (
                torch.load(one / path.name, weights_only=True) for one in (mine, theirs)
            )
            assert all(torch.equal(weights[key], other[key]) for key in other), path.name
        trace, other_trace = Trace.load(mine), Trace.load(theirs)
        assert trace.sites == other_trace.sites
        for measure, table in other_trace.values.items():
            np.testing.assert_array_equal(trace.values[measure], table)


STUDY = """
question: Does a training that was killed count?
base: {{data: {data}, image_size: 8, width: 0.125, epochs: 1, batch_size: 16, device: cpu,
       wandb: "off", log_grads: true, rivals: false}}
accused: plain_18
reference: resnet_18
seeds: 1
arms:
  slower: {{tests: schedule, set: {{lr: 0.0001}}}}
"""


@pytest.mark.parametrize("name", ["study.yaml", "cells.json", "results.json", "times.json"])
def test_a_study_killed_while_it_writes_comes_to_the_same_results(
    name: str, server: Server, pictures: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(STUDY.format(data=pictures), encoding="utf-8")
    whole = server("study", file, "--out", tmp_path / "whole", "--workers", "1")
    assert whole["code"] == 0
    for copy in ("dry", "killed"):  # trained already
        shutil.copytree(tmp_path / "whole" / "cells", tmp_path / copy / "cells")
    dry = server("study", file, "--out", tmp_path / "dry", "--workers", "1")
    again = ("study", file, "--out", tmp_path / "killed", "--workers", "1")
    at = of(dry["files"], name, 0)
    assert server(*again, at=at, before=True)["code"] == -signal.SIGKILL
    assert server(*again)["code"] == 0
    results = [(tmp_path / one / "results.json").read_text("utf-8") for one in ("whole", "killed")]
    assert results[0] == results[1]
