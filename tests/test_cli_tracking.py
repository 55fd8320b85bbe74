"""`gradflow train` with its trackers, as a user gives it."""

import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gradflow.cli import train as train_module
from gradflow.training import diagnosis
from gradflow.training.rundir import RunDir
from tests.conftest import Command
from tests.present.epochs import history_of, read_wandb, run_of, summary_of

KEY = "0123456789abcdef" * 2 + "01234567"  # the form of a W&B key
SMALL = ["--image-size", "8", "--width", "0.125", "--epochs", "1"]
SMALL += ["--batch-size", "16", "--device", "cpu", "--no-rivals", "--log-grads"]
NETWORKS = ["plain_18-s0", "resnet_18-s0"]

pytestmark = pytest.mark.usefixtures("instrument", "no_account", "without_figures")


@pytest.fixture
def train(pictures: Path, tmp_path: Path, command: Command, monkeypatch) -> Command:
    """`gradflow train` of two networks, by default, into `runs`; a key is in the environment."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    out = ["--data", pictures, "--out", tmp_path / "runs"]
    return lambda *flags, arch="plain_18,resnet_18": command(
        "train", *SMALL, *out, "--arch", arch, *flags
    )


def wandb_runs(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Name of each W&B run -> its records, of one that went on those of the continuation."""
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda at: at.stat().st_mtime)
    return {run_of(records)["display_name"]: records for records in map(read_wandb, files)}


def test_a_run_tells_both_trackers_all_of_it_and_no_file_or_line_holds_the_key(
    tmp_path: Path, train: Command, command: Command
) -> None:
    said = train("--tensorboard")
    run = RunDir.newest(tmp_path / "runs")

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in said.out + said.err

    found = wandb_runs(run.path)
    assert sorted(found) == [*NETWORKS, "verdict"]
    for name, records in found.items():
        summary = summary_of(records)
        assert summary["verdict/outcome"] == "undetermined", "one seed proves nothing"
        assert ("last/test_accuracy" in summary) == (name != "verdict")
        if name != "verdict":
            keys = {key.partition(".")[0] for key in summary}
            assert len(keys) == 12, "a dozen, of which a picture is one"
    tables = [row for row in history_of(found["verdict"])
              if row.get("verdict/findings._type") == "table-file"]  # fmt: skip
    assert len(tables) == 1

    events = {path.name: EventAccumulator(str(path)).Reload() for path in run.tensorboard.iterdir()}
    assert sorted(events) == [*NETWORKS, "verdict"]
    rows = history_of(found["plain_18-s0"])
    keys = {key for row in rows for key in row if not key.startswith("gradient/")}
    scalars = set(events["plain_18-s0"].Tags()["scalars"])
    assert keys - {"trainer/step", "profile/layer"} == scalars
    assert {"train/loss", "grad_norm/00.conv1/weight", "stage/layer4/output"} <= scalars
    losses = [event.value for event in events["plain_18-s0"].Scalars("train/loss")]
    assert losses == pytest.approx(run.networks()[0].history()[0]["step_losses"])
    assert "verdict/findings/text_summary" in events["verdict"].Tags()["tensors"]

    # To look at it again tells nothing twice.
    assert command("train", "--resume", run.path).code == 0
    assert len(list(run.path.glob("wandb/offline-run-*"))) == 3


def test_a_network_that_was_trained_before_a_stop_is_told_the_verdict_too(
    tmp_path: Path, train: Command, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "_track_verdict", stopped)
        assert train().code == 130
    run = RunDir.newest(tmp_path / "runs")
    before = wandb_runs(run.path)
    assert sorted(before) == NETWORKS
    for records in before.values():
        assert "verdict/outcome" not in summary_of(records)
        assert "last/test_accuracy" in summary_of(records)
    assert command("train", "--resume", run.path).code == 0
    again = wandb_runs(run.path)
    for name in NETWORKS:
        assert summary_of(again[name])["verdict/outcome"] == "undetermined"
        assert run_of(again[name])["run_id"] == run_of(before[name])["run_id"]


def test_what_cannot_be_judged_costs_the_training_nothing(
    tmp_path: Path, train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("the instrument could not be checked")

    monkeypatch.setattr(diagnosis, "load_gate", broken)
    said = train("--wandb", "off", "--tensorboard", arch="plain_18").err
    assert "No verdict for the trackers: the instrument could not be checked" in said
    assert RunDir.newest(tmp_path / "runs").is_finished


def test_without_tensorboard_it_is_said_before_anything_is_done(
    tmp_path: Path, train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    said = train("--wandb", "off", "--tensorboard")
    assert said.code == 2
    assert "Expected tensorboard for --tensorboard, but it is not installed" in said.err
    assert "readable" not in said.err, "no picture was read"
    assert not (tmp_path / "runs").exists()
