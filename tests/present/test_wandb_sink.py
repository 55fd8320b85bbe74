"""An offline W&B run, read back by wandb's own reader. No network, no account."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image

from gradflow.present.tracking.rows import step_rows
from gradflow.present.tracking.sink import LAYER, STEP
from gradflow.present.tracking.wandb_sink import WandbSink
from tests.present.epochs import (
    Terminal,
    Training,
    epoch_of,
    history_of,
    read_wandb,
    run_of,
    summary_of,
    trace_of,
    with_histograms,
)

pytestmark = pytest.mark.usefixtures("no_account")


def start(folder: Path, **changes: Any) -> WandbSink:
    facts = {"mode": "offline", "project": "gradflow", "group": "digits", "job_type": "plain_34"}
    config = {"batch": 50, "arch": "plain_34", "seed": 3}
    return WandbSink(folder, **{**facts, "name": "plain_34-s3", "config": config, **changes})


def read(folder: Path) -> list[dict]:
    """The records of the only run in `folder`."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    return read_wandb(file)


def test_an_offline_run_holds_what_was_logged(tmp_path):
    training = Training(start(tmp_path))
    training.epoch((2.0, math.nan))
    training.epoch((math.inf, 0.5), val_accuracy=0.75)
    training.log.close({"test/accuracy": 0.8})
    records = read(tmp_path)

    rows = history_of(records)
    by_step = [row for row in rows if "train/loss" in row]
    assert [row["trainer/step"] for row in by_step] == [0, 1, 2, 3]
    assert by_step[0] == {
        "trainer/step": 0,
        **step_rows(epoch_of(0, 2, (2.0, 0.0)), trace_of([0, 1]), 1000)[0],
    }
    losses = [row["train/loss"] for row in by_step]
    assert losses == [2.0, "NaN", "Infinity", 0.5]  # JSON's spelling of what wandb stored
    assert by_step[3]["grad_norm/03.fc/weight"] == pytest.approx(4.9)
    epochs = [row for row in rows if "epoch" in row]
    assert [row["epoch"] for row in epochs] == [0, 1]
    assert epochs[1] == {
        "train/loss_epoch": 1.5,
        "train/accuracy": 0.25,
        "val/loss": 1.25,
        "val/accuracy": 0.75,
        "lr": 6e-4,
        "epoch": 1,
        "trainer/step": 4,
    }
    for key in ("gradient/heatmap", "gradient/depth_profile"):
        last = [row for row in rows if f"{key}.path" in row][-1]
        assert last["trainer/step"] == 4
        picture = next(tmp_path.glob(f"wandb/*/files/{last[f'{key}.path']}"))
        with Image.open(picture) as image:
            assert image.width == {"gradient/heatmap": 700}.get(key, 800)
    profile = [row for row in rows if LAYER in row]
    assert [row[LAYER] for row in profile] == [0, 1, 2]
    assert profile[0]["profile/output_gradient"] == pytest.approx((1.1 * 2.1 * 3.1 * 4.1) ** 0.25)

    about = run_of(records)
    assert (about["project"], about["run_group"]) == ("gradflow", "digits")
    assert (about["job_type"], about["display_name"]) == ("plain_34", "plain_34-s3")
    config = about["config"]["update"]
    assert (config["arch"], config["seed"], config["batch"]) == ("plain_34", 3, 50)
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    globs = {m["glob_name"]: m["step_metric"] for m in metrics if "glob_name" in m}
    assert globs == {"*": STEP, "profile/*": LAYER}
    summary = summary_of(records)
    assert summary["test/accuracy"] == 0.8
    names = {key.partition(".")[0] for key in summary}  # of a picture: its path, size and so on
    assert names == {
        "test/accuracy", "train/loss_epoch", "val/loss",
        "gradient/heatmap", "gradient/depth_profile",
    }  # fmt: skip


def test_histograms_stand_on_an_axis_of_powers_of_two_and_in_no_summary(tmp_path):
    training = Training(start(tmp_path), recorded=with_histograms)
    training.epoch()
    training.log.close({"test/accuracy": 0.8})
    records = read(tmp_path)
    key = "histogram/03.fc/gradient"
    (row,) = [row for row in history_of(records) if f"{key}.bins" in row]
    assert row["trainer/step"] == 1
    assert row[f"{key}._type"] == "histogram"
    assert (row[f"{key}.bins"], row[f"{key}.values"]) == ([0, 1, 2, 3], [4, 0, 5])
    assert not [key for key in summary_of(records) if key.startswith("histogram/")]


def test_nothing_private_goes_into_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    start(tmp_path).finish({})
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"k" * 40 not in written
    assert "environment" not in {record["type"] for record in read(tmp_path)}
    assert not list(tmp_path.glob("wandb/*/files/*"))
    assert "WANDB_ERROR_REPORTING" not in os.environ


def test_two_networks_run_one_after_the_other_and_side_by_side(tmp_path):
    mine = wandb.run
    plain = start(tmp_path / "plain")
    residual = start(tmp_path / "residual")
    plain.log({"train/loss": 1.0}, 0)
    residual.log({"train/loss": 2.0}, 0)
    residual.finish({})
    plain.log({"train/loss": 3.0}, 1)
    plain.finish({})
    assert wandb.run is mine  # the user's own run, none here, is left alone
    assert plain.id != residual.id
    for name, losses in {"plain": [1.0, 3.0], "residual": [2.0]}.items():
        rows = history_of(read(tmp_path / name))
        assert [row["train/loss"] for row in rows if "train/loss" in row] == losses


WHICH_RUN = {
    "WANDB_RUN_ID": "theirs",
    "WANDB_NAME": "their-name",
    "WANDB_RESUME": "must",
    "WANDB_RESUME auto": "auto",
    "WANDB_RUN_GROUP": "their-group",
    "WANDB_JOB_TYPE": "their-type",
    "WANDB_SWEEP_ID": "their-sweep",
    "WANDB_LAUNCH": "true",
    "WANDB_FORK_FROM": "theirs?_step=3",
    "WANDB_RESUME_FROM": "theirs?_step=3",
    "TRAINING_JOB_NAME": "their-job",  # of SageMaker
}


@pytest.mark.parametrize("variable", WHICH_RUN)
def test_each_network_has_a_run_of_its_own_whatever_the_environment_says(
    variable, tmp_path, monkeypatch
):
    """Two networks under one id would be one run, with the records of both mixed."""
    theirs = {variable.split()[0]: WHICH_RUN[variable]}
    session = wandb.setup()  # it has read the environment, and does so once
    settings = session.settings.model_copy()
    settings.update_from_env_vars(theirs)
    monkeypatch.setattr(session, "_settings", settings)
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    before = settings.model_dump()
    runs = {arch: start(tmp_path, job_type=arch, name=arch) for arch in ("a", "b")}
    assert settings.model_dump() == before, "for the user's own runs"
    for arch, sink in runs.items():
        run = sink._run
        assert (run.name, run.group, run.job_type) == (arch, "digits", arch)
        assert not run.sweep_id
        sink.finish({})
    assert len({"theirs", runs["a"].id, runs["b"].id}) == 3


def test_networks_of_a_sweep_are_runs_of_their_own_and_name_it(tmp_path, monkeypatch):
    """As they stand in the files, with an environment that wandb reads itself."""
    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    monkeypatch.setenv("WANDB_SWEEP_ID", "their-sweep")
    wandb.teardown()  # it reads the environment once
    try:
        sinks = [start(tmp_path / arch) for arch in ("a", "b")]
        for sink in sinks:
            sink.finish({})
    finally:
        wandb.teardown()
    assert len({"theirs", *(sink.id for sink in sinks)}) == 3
    for arch, sink in zip("ab", sinks, strict=True):
        about = run_of(read(tmp_path / arch))
        assert (about["run_id"], about["run_group"]) == (sink.id, "digits")
        assert not about.get("sweep_id")
        outer = about["config"]["update"]["wandb"]
        assert outer == {"run_id": "theirs", "sweep_id": "their-sweep"}


def test_an_error_in_training_keeps_what_was_logged(tmp_path):
    training = Training(start(tmp_path))
    training.epoch()
    with pytest.raises(KeyboardInterrupt), training.log:
        raise KeyboardInterrupt
    records = read(tmp_path)
    assert history_of(records)[0]["train/loss"] == 1.0
    assert records[-1]["type"] == "exit"
    assert records[-1]["exit"]["exit_code"] == 1


def test_a_table_is_kept_whole(tmp_path):
    run = start(tmp_path)
    run.table("verdict/findings", ("key", "p"), [("link 1", 0.25), ("a|b <script>", math.nan)])
    run.finish({"verdict/outcome": "refuted"})
    (path,) = tmp_path.glob("wandb/offline-run-*/files/media/table/verdict/*.json")
    assert json.loads(path.read_text())["columns"] == ["key", "p"]
    assert json.loads(path.read_text())["data"][0] == ["link 1", 0.25]
    assert summary_of(read(tmp_path))["verdict/outcome"] == "refuted"


def test_a_run_can_go_on_under_its_id(tmp_path):
    first = start(tmp_path / "a")
    first.finish({})
    second = start(tmp_path / "b", resume_id=first.id)
    second.finish({})
    assert second.id == first.id


def test_online_without_a_login_is_an_error_and_no_question(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(RuntimeError, match=r"`wandb login`, or train with `--wandb offline`"):
        start(tmp_path, mode="online")
    assert sys.stdin is terminal
