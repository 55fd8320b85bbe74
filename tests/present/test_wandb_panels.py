"""An offline W&B run, read back by wandb's own reader. No network, no account."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wandb
from PIL import Image

from gradflow.present import wandb_panels
from gradflow.present.wandb_panels import WandbRun, step_rows
from gradflow.record.trace import Trace
from gradflow.training.fit import Epoch

PARAMETERS = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight")
OUTPUTS = ("conv1", "bn1", "layer1.0.conv1", "fc")
KINDS = ("conv", "norm", "conv", "linear")


def epoch_of(
    index: int, step: int, step_losses: tuple[float, ...], val_accuracy: float = 0.5
) -> Epoch:
    return Epoch(
        index=index,
        step=step,
        lr=6e-4,
        train_loss=1.5,
        train_accuracy=0.25,
        val_loss=1.25,
        val_accuracy=val_accuracy,
        is_best=False,
        seconds=1.0,
        step_losses=step_losses,
    )


def trace_of(steps, with_outputs: bool = True) -> Trace:
    """Gradient norms that tell their step and site: step + site / 10."""
    outputs = OUTPUTS if with_outputs else ()
    sites = outputs + PARAMETERS
    kinds = KINDS[: len(outputs)] + tuple(f"{kind}.weight" for kind in KINDS)
    steps = np.asarray(steps, dtype=np.int64)
    told = steps[:, None] + np.arange(len(sites)) / 10
    is_output = np.arange(len(sites)) < len(outputs)
    values = {
        "grad_norm": np.where(is_output, np.nan, told),
        "output_grad_norm": np.where(is_output, told, np.nan),
        "weight_norm": np.where(is_output, np.nan, 1.0) * np.ones_like(told),
        "grad_nonfinite": np.where(is_output, np.nan, 0.0) * np.ones_like(told),
    }
    return Trace(steps, sites, kinds, np.ones(len(sites), np.int64), values)


@pytest.fixture(autouse=True)
def _without_account(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_ERROR_REPORTING"):
        monkeypatch.delenv(name, raising=False)


def start(folder: Path, **changes) -> WandbRun:
    facts = {"mode": "offline", "project": "gradflow", "group": "digits", "arch": "plain_34"}
    return WandbRun(folder, **{**facts, "seed": 3, "config": {"batch": 50}, **changes})


def read(folder: Path) -> list[dict]:
    """The records of the only run in `folder`."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    reader = Path(sys.executable).with_name("wandb")
    command = [reader, "leet", "inspect", "--json", file]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(records) -> list[dict]:
    """The logged rows, without wandb's own keys."""
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [{key: v for key, v in row.items() if not key.startswith("_")} for row in rows]


# -- the rows of an epoch ----------------------------------------------------------------------


def test_a_row_holds_the_loss_and_each_layer_on_the_path_in_depth_order():
    rows = step_rows(epoch_of(0, 12, (0.5, 0.25)), trace_of([10, 11]))
    assert rows == {
        10: {
            "train/loss": 0.5,
            "grad_norm/00.conv1/weight": 10.4,
            "grad_norm/00.conv1/output": 10.0,
            "grad_norm/01.layer1.0.conv1/weight": 10.6,
            "grad_norm/01.layer1.0.conv1/output": 10.2,
            "grad_norm/02.fc/weight": 10.7,
            "grad_norm/02.fc/output": 10.3,
        },
        11: {key: value + 1 for key, value in rows[10].items() if key != "train/loss"}
        | {"train/loss": 0.25},
    }
    assert list(rows[10])[1:] == sorted(list(rows[10])[1:], key=lambda key: key.split("/")[1])


def test_without_records_a_row_is_the_loss():
    assert step_rows(epoch_of(0, 2, (0.5, 0.25)), None) == {
        0: {"train/loss": 0.5},
        1: {"train/loss": 0.25},
    }


def test_outputs_that_were_not_recorded_are_left_out():
    rows = step_rows(epoch_of(0, 1, (0.5,)), trace_of([0], with_outputs=False))
    assert [key for key in rows[0] if key.endswith("/output")] == []
    assert len(rows[0]) == 4


def test_a_layer_keeps_its_number_while_another_is_frozen():
    trace = trace_of([0])
    trace.values["grad_norm"][:, 4] = np.nan  # conv1.weight
    rows = step_rows(epoch_of(0, 1, (0.5,)), trace)
    assert "grad_norm/00.conv1/weight" not in rows[0]
    assert rows[0]["grad_norm/01.layer1.0.conv1/weight"] == 0.6


def test_a_long_epoch_is_thinned_evenly_and_keeps_its_ends():
    n = 5000
    losses = tuple(float(i) for i in range(n))
    rows = step_rows(epoch_of(0, n, losses), trace_of(range(n)))
    n_values = sum(len(row) + 1 for row in rows.values())  # each row has its step too
    assert 0.95 * wandb_panels.VALUES_PER_EPOCH < n_values <= wandb_panels.VALUES_PER_EPOCH
    steps = np.array(sorted(rows))
    assert (steps[0], steps[-1]) == (0, n - 1)
    assert np.ptp(np.diff(steps)) <= 1
    assert all(len(row) == 7 for row in rows.values())  # losses and norms of the same steps
    assert all(row["train/loss"] == step for step, row in rows.items())


def test_a_network_of_a_thousand_layers_stays_within_a_log():
    n = 1000
    sites = tuple(f"{i}.weight" for i in range(n))
    ones = np.ones((1, n))
    trace = Trace(
        np.zeros(1, np.int64),
        sites,
        ("linear.weight",) * n,
        np.ones(n, np.int64),
        {"grad_norm": ones, "weight_norm": ones, "output_grad_norm": ones * np.nan},
    )
    (row,) = step_rows(epoch_of(0, 1, (0.5,)), trace).values()
    assert 400 < len(row) <= wandb_panels.VALUES_PER_LOG
    assert {"grad_norm/000.0/weight", "grad_norm/999.999/weight"} <= row.keys()


# -- a run on disk -----------------------------------------------------------------------------


def test_an_offline_run_holds_what_was_logged(tmp_path):
    run = start(tmp_path)
    first, both = trace_of([0, 1]), trace_of([0, 1, 2, 3])
    run.log_epoch(epoch_of(0, 2, (2.0, math.nan)), first, first)
    run.log_epoch(epoch_of(1, 4, (math.inf, 0.5), val_accuracy=0.75), trace_of([2, 3]), both)
    run.close({"test/accuracy": 0.8})
    records = read(tmp_path)

    rows = history(records)
    assert [row["trainer/step"] for row in rows] == [0, 1, 2, 2, 3, 4]
    assert rows[0] == {
        "trainer/step": 0,
        **step_rows(epoch_of(0, 2, (2.0, 0.0)), first)[0],
    }
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses == [2.0, "NaN", "Infinity", 0.5]  # JSON's spelling of what wandb stored
    assert rows[4]["grad_norm/02.fc/weight"] == 3.7
    epochs = [row for row in rows if "epoch" in row]
    assert [row["epoch"] for row in epochs] == [0, 1]
    numbers = {key: v for key, v in epochs[1].items() if not key.startswith("gradient/")}
    assert numbers == {
        "train/loss_epoch": 1.5,
        "train/accuracy": 0.25,
        "val/loss": 1.25,
        "val/accuracy": 0.75,
        "lr": 6e-4,
        "epoch": 1,
        "trainer/step": 4,
    }
    for key in ("gradient/heatmap", "gradient/depth_profile"):
        picture = next(tmp_path.glob(f"wandb/*/files/{epochs[1][f'{key}.path']}"))
        with Image.open(picture) as image:
            assert image.width == 700

    (about,) = [record["run"] for record in records if record["type"] == "run"]
    assert (about["project"], about["run_group"]) == ("gradflow", "digits")
    assert (about["job_type"], about["display_name"]) == ("plain_34", "plain_34-s3")
    config = about["config"]["update"]
    assert (config["arch"], config["seed"], config["batch"]) == ("plain_34", 3, 50)
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    assert metrics[0]["name"] == "trainer/step"
    assert (metrics[1]["glob_name"], metrics[1]["step_metric"]) == ("*", "trainer/step")
    summaries = [r["summary"]["update"] for r in records if r["type"] == "summary"]
    assert {"test/accuracy": 0.8}.items() <= {k: v for s in summaries for k, v in s.items()}.items()


def test_nothing_private_goes_into_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    start(tmp_path).close({})
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"k" * 40 not in written
    assert "environment" not in {record["type"] for record in read(tmp_path)}
    assert not list(tmp_path.glob("wandb/*/files/*"))
    assert "WANDB_ERROR_REPORTING" not in os.environ


def test_two_networks_run_one_after_the_other_and_side_by_side(tmp_path):
    mine = wandb.run
    plain = start(tmp_path / "plain")
    with start(tmp_path / "residual", arch="resnet_34") as residual:
        plain.log_epoch(epoch_of(0, 1, (1.0,)), None, None)
        residual.log_epoch(epoch_of(0, 1, (2.0,)), None, None)
    plain.log_epoch(epoch_of(1, 2, (3.0,)), None, None)
    plain.close({})
    assert wandb.run is mine  # the user's own run, none here, is left alone
    assert plain.id != residual.id
    losses = {
        name: [row["train/loss"] for row in history(read(tmp_path / name)) if "train/loss" in row]
        for name in ("plain", "residual")
    }
    assert losses == {"plain": [1.0, 3.0], "residual": [2.0]}


def test_an_error_in_training_keeps_what_was_logged(tmp_path):
    def train():
        with start(tmp_path) as run:
            run.log_epoch(epoch_of(0, 1, (1.0,)), None, None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    records = read(tmp_path)
    assert history(records)[0]["train/loss"] == 1.0
    assert records[-1]["type"] == "exit"
    assert records[-1]["exit"]["exit_code"] == 1


def test_a_run_can_go_on_under_its_id(tmp_path):
    first = start(tmp_path / "a")
    first.close({})
    second = start(tmp_path / "b", resume_id=first.id)
    second.close({})
    assert second.id == first.id


def test_online_without_a_login_is_an_error_and_no_question(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def readline(self, *args):
            pytest.fail("wandb asked for a key")

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(RuntimeError, match=r"`wandb login`, or train with `--wandb offline`"):
        start(tmp_path, mode="online")
    assert sys.stdin is terminal
