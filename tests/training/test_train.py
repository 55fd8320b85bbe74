"""Training: learns, pairs its networks, stops, resumes to the same bits."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradflow
from gradflow import Trace
from gradflow.cli import main
from gradflow.training.config import TrainConfig
from gradflow.training.fit import NonFiniteLoss, make_accelerator
from gradflow.training.images import BadFiles, check_same_data, load_data
from gradflow.training.rundir import NetworkDir, RunDir
from gradflow.training.summary import summarise
from gradflow.training.train import train_network
from gradflow.training.weights import load_tensors

TINY: dict[str, Any] = {
    "image_size": 8,
    "width": 0.125,
    "arch": "plain_18",
    "epochs": 3,
    "batch_size": 16,
    "log_grads": True,
    "rivals": False,  # tested in test_examination.py
    "wandb": "off",
    "device": "cpu",
    "step_size": 1,
}


def start(config: TrainConfig) -> tuple[RunDir, TrainConfig, Any]:
    config, data = load_data(config)
    run = RunDir.create(config)
    run.save_config(config)
    run.save_data(data.to_json())
    return run, config, data


def train_all(run: RunDir, config: TrainConfig, data: Any) -> list[Any]:
    accelerator = make_accelerator(config)
    epochs = []
    for seed in config.seed_list:
        for arch in config.networks:
            network = run.network(arch, seed)
            epochs += list(train_network(network, config, data, accelerator))
    return epochs


def assert_same_network(one: NetworkDir, other: NetworkDir) -> None:
    for which in ("last", "best"):
        weights = [load_tensors(network.weights(which)) for network in (one, other)]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    traces = [one.trace(), other.trace()]
    assert traces[0].sites == traces[1].sites
    np.testing.assert_array_equal(traces[0].steps, traces[1].steps)
    for measure in traces[0].measures:
        np.testing.assert_array_equal(traces[0].values[measure], traces[1].values[measure])
    histories = [one.history(), other.history()]
    for epochs in zip(*histories, strict=True):
        first, second = ({**epoch, "seconds": 0} for epoch in epochs)
        assert first == second


def test_the_function_train_gives_the_run_of_its_parts(pictures: Path, tmp_path: Path) -> None:
    settings = TINY | {"epochs": 1, "log_grads": False}
    config = TrainConfig(data=str(pictures), out=tmp_path / "runs", **settings)
    run, resolved, data = start(config)
    train_all(run, resolved, data)
    whole = gradflow.train(config)
    assert whole.is_finished
    histories = [one.networks()[0].history() for one in (run, whole)]
    assert histories[0][0]["step_losses"] == histories[1][0]["step_losses"]


def test_a_run_learns_and_leaves_everything_on_disk(pictures: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=str(pictures), out=tmp_path / "runs", **TINY | {"epochs": 4})
    run, config, data = start(config)
    epochs = train_all(run, config, data)
    assert [epoch.index for epoch in epochs] == [0, 1, 2, 3]
    assert [epoch.lr for epoch in epochs] == pytest.approx([6e-4, 6e-5, 6e-6, 6e-7])
    assert epochs[-1].train_loss < epochs[0].train_loss
    network = run.networks()[0]
    assert network.is_finished
    assert not network.checkpoint.exists()
    trace = network.trace()
    assert trace.steps.tolist() == list(range(epochs[-1].step))
    last = network.trace_from(epochs[-2].step)
    assert last.steps.tolist() == list(range(epochs[-2].step, epochs[-1].step))
    losses = [loss for epoch in network.history() for loss in epoch["step_losses"]]
    assert len(losses) == len(trace)
    evaluation = network.evaluation()
    assert evaluation["best"]["epoch"] == int(
        np.argmin([epoch["val_loss"] for epoch in network.history()])
    )
    assert evaluation["last"]["test"]["n"] == len(data.split.test)
    summary = summarise(run)
    assert summary["networks"][0]["grad_norm_first_to_last"]["first_recorded_step"] > 0
    model = network.load_model(config, 3)
    assert not model.training


def test_networks_of_a_seed_see_the_same_and_start_alike(pictures: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        data=str(pictures),
        out=tmp_path / "runs",
        **TINY | {"arch": "plain_18,resnet_18", "epochs": 1},
    )
    run, config, data = start(config)
    train_all(run, config, data)
    traces = [network.trace() for network in run.networks()]
    weight = [trace.values["weight_norm"][0, trace.sites.index("conv1.weight")] for trace in traces]
    images = [trace.values["output_rms"][0, trace.sites.index("conv1")] for trace in traces]
    assert weight[0] == weight[1]
    assert images[0] == images[1]
    comparison = summarise(run)["comparisons"][0]
    assert (comparison["first"], comparison["second"]) == ("plain_18", "resnet_18")


@pytest.mark.parametrize(
    ("val_losses", "patience", "min_delta", "n_epochs", "best"),
    [
        ([5, 4, 6, 5, 3, 2], 2, 0.0, 4, 1),  # two epochs after the lowest, whatever would come
        ([5, 4, 6, 3, 4, 2], 2, 0.0, 6, 5),  # a lower loss starts the count anew
        ([1, 2, 3, 4, 5, 6], 0, 0.0, 6, 0),  # 0 never stops
        ([float("nan"), 2, 3, 4, 5, 6], 2, 0.0, 4, 1),
        ([5, 4.9, 4.8, 4.7, 4.6, 4.5], 2, 0.5, 3, 2),  # too little each; the lowest is the best
        ([5, 4.7, 4.4, 4.1, 3.8, 3.5], 2, 0.5, 6, 5),  # and small ones add up
    ],
)
def test_early_stopping_waits_for_a_lower_validation_loss(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    val_losses: list[float],
    patience: int,
    min_delta: float,
    n_epochs: int,
    best: int,
) -> None:
    settings = TINY | {"epochs": 6, "patience": patience, "log_grads": False}
    settings |= {"min_delta": min_delta}
    config = TrainConfig(data=str(pictures), out=tmp_path / "runs", **settings)
    told = iter(val_losses)
    monkeypatch.setattr("gradflow.training.fit._validate", lambda *_: (next(told), 0.5))
    run, config, data = start(config)
    epochs = train_all(run, config, data)
    assert len(epochs) == n_epochs
    assert max(epoch.index for epoch in epochs if epoch.is_best) == best
    assert run.networks()[0].evaluation()["best"]["epoch"] == best


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resumed_training_is_bit_identical(pictures: Path, tmp_path: Path, optimizer: str) -> None:
    """Stopped in the middle of an epoch, with records of steps that will be done again."""
    settings = TINY | {"optimizer": optimizer, "schedule": "cosine", "patience": 0}
    config = TrainConfig(data=str(pictures), out=tmp_path / "runs", **settings)
    whole, config, data = start(config)
    train_all(whole, config, data)
    stopped, _, _ = start(config)
    accelerator = make_accelerator(config)
    network = stopped.network("plain_18", 0)
    steps = iter(range(5))  # 3 steps an epoch: Ctrl-C comes in the second one

    def interrupt() -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(train_network(network, config, data, accelerator, on_step=interrupt))
    assert network.checkpoint.exists()
    assert network.trace().steps[-1] >= 4, "what was recorded stays readable"
    assert not network.is_finished
    check_same_data(stopped, data.to_json())
    train_all(stopped, config, data)
    assert_same_network(network, whole.network("plain_18", 0))


@pytest.mark.usefixtures("without_figures")
def test_killed_run_resumes_to_the_same_result(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 of the real command, then --resume, against an uninterrupted one."""
    flags = ["train", "--data", str(pictures), "--image-size", "8", "--width", "0.125"]
    flags += ["--arch", "plain_18", "--epochs", "12", "--batch-size", "16", "--log-grads"]
    flags += ["--no-rivals", "--wandb", "off", "--device", "cpu"]
    runs = {name: tmp_path / name for name in ("whole", "killed")}
    process = subprocess.Popen(
        [sys.executable, "-m", "gradflow", *flags, "--out", str(runs["killed"])],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(runs["killed"].glob("*/*/checkpoint.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = runs["killed"].iterdir()
    assert not (run / "summary.json").exists()
    assert main(["train", "--resume", str(run), "--json"]) == 0
    assert '"networks"' in capsys.readouterr().out
    assert main([*flags, "--out", str(runs["whole"])]) == 0
    (whole,) = runs["whole"].iterdir()
    (one,), (other,) = RunDir.open(run).networks(), RunDir.open(whole).networks()
    assert_same_network(one, other)


def test_a_loss_that_is_not_finite_stops_with_the_record_kept(
    pictures: Path, tmp_path: Path
) -> None:
    settings = TINY | {"optimizer": "sgd", "lr": 1e30}
    config = TrainConfig(data=str(pictures), out=tmp_path / "runs", **settings)
    run, config, data = start(config)
    with pytest.raises(NonFiniteLoss, match="at step [1-9].*Lower the learning rate") as error:
        train_all(run, config, data)
    trace = Trace.load(run.networks()[0].path)
    assert error.value.step in trace.steps
    first = error.value.first
    assert first is not None
    assert first == trace.nonfinite()[0]
    assert f"the first recorded NaN or inf is at {first.site}" in str(error.value)
    nonfinite = trace.select("output_nonfinite").values.sum(axis=1)
    assert nonfinite[0] == 0
    assert nonfinite[-1] > 0


def test_a_share_of_the_time_is_set_for_recording(pictures: Path, tmp_path: Path) -> None:
    settings = TINY | {"max_overhead": "40%", "batch_size": 2, "epochs": 4, "arch": "plain_18"}
    config = TrainConfig(data=str(pictures), out=tmp_path / "runs", **settings)
    run, config, data = start(config)
    train_all(run, config, data)
    (network,) = summarise(run)["networks"]
    assert network["recording"]["share_allowed"] == 0.4
    assert network["recording"]["share_of_time"] >= 0
    assert Trace.load(run.networks()[0].path).steps[0] == 0


def test_bad_files_fail_by_default_and_are_skipped_on_request(
    pictures: Path, tmp_path: Path
) -> None:
    (pictures / "red" / "broken.png").write_bytes(b"not a picture")
    config = TrainConfig(data=str(pictures), out=tmp_path / "runs", **TINY)
    with pytest.raises(BadFiles, match="(?s)but 1 are not.*broken.png.*--on-bad skip"):
        load_data(config)
    _, data = load_data(dataclasses.replace(config, on_bad="skip"))
    facts = data.to_json()
    assert [bad["key"] for bad in facts["audit"]["bad"]] == ["red/broken.png"]
    used = {index for part in ("train", "validation", "test")
            for index in facts["split"]["indices"][part]}  # fmt: skip
    assert len(used) == 60


@pytest.mark.parametrize(("twins", "bits"), [("near", 8), ("exact", None)])
def test_twins_say_what_the_split_keeps_together(
    pictures: Path, twins: str, bits: int | None
) -> None:
    config = TrainConfig(data=str(pictures), **TINY | {"twins": twins})
    assert load_data(config)[1].audit.near_bits == bits


def test_a_run_whose_pictures_changed_is_not_continued(pictures: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=str(pictures), out=tmp_path / "runs", **TINY)
    run, config, data = start(config)
    check_same_data(run, data.to_json())
    other = (pictures / "red" / "00.png").read_bytes()
    (pictures / "red" / "00.png").write_bytes((pictures / "red" / "01.png").read_bytes())
    (pictures / "red" / "01.png").write_bytes(other)  # only the order has changed
    with pytest.raises(ValueError, match="images or their split have changed"):
        check_same_data(run, load_data(config)[1].to_json())


def test_two_processes_train_what_one_trains(pictures: Path, tmp_path: Path) -> None:
    """torchrun on two CPU processes: the same batches, one record, the same kind of run.

    BatchNorm sees half a batch in each process, so the numbers agree at the first step only
    where no statistic of a batch comes in: the images.
    """
    flags = ["train", "--data", str(pictures), "--image-size", "8", "--width", "0.125"]
    flags += ["--arch", "plain_18", "--epochs", "2"]
    flags += ["--batch-size", "16", "--log-grads", "--wandb", "off"]
    flags += ["--no-rivals", "--device", "cpu", "--json"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    result = subprocess.run(
        [sys.executable, *torchrun, "-m", "gradflow", *flags, "--out", str(tmp_path / "two")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count('"networks"') == 1, "only the main process prints"
    (path,) = (tmp_path / "two").iterdir()
    (network,) = RunDir.open(path).networks()
    history = network.history()
    assert [epoch["step"] for epoch in history] == [3, 6]
    trace = network.trace()
    assert trace.steps.tolist() == list(range(6))
    assert np.isfinite(trace.select("grad_norm").values).all()
