"""`gradflow train` with its trackers, as a user gives it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gradflow.cli import main
from gradflow.cli import train as train_module
from gradflow.training import diagnosis
from gradflow.training.rundir import RunDir

Capture = pytest.CaptureFixture[str]
KEY = "0123456789abcdef" * 2 + "01234567"  # the form of a W&B key
TWO = "plain_18,resnet_18"
SMALL = ["--image-size", "8", "--width", "0.125", "--epochs", "1"]
SMALL += ["--batch-size", "16", "--device", "cpu", "--no-rivals", "--log-grads"]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key in the environment, no account on the machine, and an instrument that has passed."""

    class Passed:
        hit_rate, false_alarm_rate, passed = 1.0, 0.0, True

        def to_json(self) -> dict[str, Any]:
            return {"hit_rate": 1.0, "false_alarm_rate": 0.0, "passed": True}

    monkeypatch.setattr(diagnosis, "load_gate", Passed)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)


def wandb_runs(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Name of each W&B run -> its records, of one that went on those of the continuation."""
    reader, found = Path(sys.executable).with_name("wandb"), {}
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda at: at.stat().st_mtime):
        command = [reader, "leet", "inspect", "--json", file]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        records = [json.loads(line) for line in done.stdout.splitlines()]
        (about,) = [record["run"] for record in records if record["type"] == "run"]
        found[about["display_name"]] = records
    return found


def summary_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    updates = [one["summary"].get("update", {}) for one in records if one["type"] == "summary"]
    return {key: value for update in updates for key, value in update.items()}


def run_id(records: list[dict[str, Any]]) -> str:
    (about,) = [one["run"] for one in records if one["type"] == "run"]
    return str(about["run_id"])


@pytest.mark.usefixtures("without_figures")
def test_a_run_tells_both_trackers_all_of_it_and_no_file_or_line_holds_the_key(
    pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = [*SMALL, "--arch", TWO, "--tensorboard", "--out", str(tmp_path / "runs")]
    assert main(["train", "--data", str(pictures), *flags]) == 0
    out, err = capfd.readouterr()
    run = RunDir.newest(tmp_path / "runs")

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in out + err

    found = wandb_runs(run.path)
    assert sorted(found) == ["plain_18-s0", "resnet_18-s0", "verdict"]
    for name, records in found.items():
        summary = summary_of(records)
        assert summary["verdict/outcome"] == "undetermined", "one seed proves nothing"
        assert ("last/test_accuracy" in summary) == (name != "verdict")
        if name != "verdict":
            keys = {key.partition(".")[0] for key in summary if key[0] != "_"}
            assert len(keys) == 12, "a dozen, of which a picture is one"
    logged = [r["history"]["item"] for r in found["verdict"] if r["type"] == "history"]
    tables = [row for row in logged if row.get("verdict/findings._type") == "table-file"]
    assert len(tables) == 1

    events = {path.name: EventAccumulator(str(path)).Reload() for path in run.tensorboard.iterdir()}
    assert sorted(events) == ["plain_18-s0", "resnet_18-s0", "verdict"]
    rows = [r["history"]["item"] for r in found["plain_18-s0"] if r["type"] == "history"]
    keys = {key for row in rows for key in row if not key.startswith(("_", "gradient/"))}
    scalars = set(events["plain_18-s0"].Tags()["scalars"])
    assert keys - {"trainer/step", "profile/layer"} == scalars
    assert {"train/loss", "grad_norm/00.conv1/weight", "stage/layer4/output"} <= scalars
    losses = [event.value for event in events["plain_18-s0"].Scalars("train/loss")]
    assert losses == pytest.approx(run.networks()[0].history()[0]["step_losses"])
    assert "verdict/findings/text_summary" in events["verdict"].Tags()["tensors"]

    # To look at it again tells nothing twice.
    assert main(["train", "--resume", str(run.path)]) == 0
    assert len(list(run.path.glob("wandb/offline-run-*"))) == 3


@pytest.mark.usefixtures("without_figures")
def test_a_network_that_was_trained_before_a_stop_is_told_the_verdict_too(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    flags = [*SMALL, "--arch", TWO, "--out", str(tmp_path / "runs")]
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "_track_verdict", stopped)
        assert main(["train", "--data", str(pictures), *flags]) == 130
    run = RunDir.newest(tmp_path / "runs")
    before = wandb_runs(run.path)
    assert sorted(before) == ["plain_18-s0", "resnet_18-s0"]
    assert all("verdict/outcome" not in summary_of(records) for records in before.values())
    assert all("last/test_accuracy" in summary_of(records) for records in before.values())
    assert main(["train", "--resume", str(run.path)]) == 0
    again = wandb_runs(run.path)
    for name in ("plain_18-s0", "resnet_18-s0"):
        summary = summary_of(again[name])
        assert (summary["verdict/outcome"], run_id(again[name])) == (
            "undetermined",
            run_id(before[name]),
        )


@pytest.mark.usefixtures("without_figures")
def test_what_cannot_be_judged_costs_the_training_nothing(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def broken() -> None:
        raise RuntimeError("the instrument could not be checked")

    monkeypatch.setattr(diagnosis, "load_gate", broken)
    trackers = ["--wandb", "off", "--tensorboard"]
    flags = [*SMALL, "--arch", "plain_18", *trackers, "--out", str(tmp_path / "runs")]
    assert main(["train", "--data", str(pictures), *flags]) == 0
    said = capsys.readouterr().err
    assert "No verdict for the trackers: the instrument could not be checked" in said
    assert RunDir.newest(tmp_path / "runs").is_finished


def test_without_tensorboard_it_is_said_before_anything_is_done(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    flags = [*SMALL, "--wandb", "off", "--tensorboard", "--out", str(tmp_path / "runs")]
    assert main(["train", "--data", str(pictures), *flags]) == 2
    err = capsys.readouterr().err
    assert "Expected tensorboard for --tensorboard, but it is not installed" in err
    assert "readable" not in err, "no picture was read"
    assert not (tmp_path / "runs").exists()
