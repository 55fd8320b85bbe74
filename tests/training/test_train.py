"""Training: learns, pairs its networks, stops, resumes to the same bits."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradflow
from gradflow import Trace
from gradflow.training.config import TrainConfig
from gradflow.training.fit import Epoch, NonFiniteLoss, make_accelerator
from gradflow.training.images import BadFiles, Data, check_same_data, load_data
from gradflow.training.rundir import NetworkDir, RunDir
from gradflow.training.summary import summarise
from gradflow.training.train import begin_run, train_network
from gradflow.training.weights import load_tensors

TINY: dict[str, Any] = {
    "image_size": 8, "width": 0.125, "arch": "plain_18", "epochs": 3, "batch_size": 16,
    "log_grads": True, "rivals": False,  # tested in test_examination.py
    "wandb": "off", "device": "cpu", "step_size": 1,
}  # fmt: skip


@dataclass
class Begun:
    """A run that is to be trained."""

    run: RunDir
    config: TrainConfig
    data: Data

    @property
    def network(self) -> NetworkDir:
        return self.run.network(self.config.networks[0], 0)

    def train(self, **options: Any) -> list[Epoch]:
        accelerator = make_accelerator(self.config)
        return [
            epoch
            for arch in self.config.networks
            for epoch in train_network(
                self.run.network(arch, 0), self.config, self.data, accelerator, **options
            )
        ]


Begin = Callable[..., Begun]


@pytest.fixture
def config(pictures: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Makes a tiny training, some of whose settings are others."""
    return lambda **settings: TrainConfig(
        data=str(pictures), out=tmp_path / "runs", **TINY | settings
    )


@pytest.fixture
def begin(config: Callable[..., TrainConfig]) -> Begin:
    def begin(**settings: Any) -> Begun:
        resolved, data = load_data(config(**settings))
        return Begun(begin_run(resolved, data, make_accelerator(resolved)), resolved, data)

    return begin


def assert_same_network(one: NetworkDir, other: NetworkDir) -> None:
    names = {path.name for path in other.path.glob("*.pt")}
    assert {path.name for path in one.path.glob("*.pt")} == names > {"best.pt", "last.pt"}
    for file in names:
        mine, theirs = (load_tensors(network.path / file) for network in (one, other))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    trace, expected = one.trace(), other.trace()
    assert trace.sites == expected.sites
    np.testing.assert_array_equal(trace.steps, expected.steps)
    for measure, table in expected.values.items():
        np.testing.assert_array_equal(trace.values[measure], table)
    first, second = ([epoch | {"seconds": 0} for epoch in net.history()] for net in (one, other))
    assert first == second


def test_the_function_train_gives_the_run_of_its_parts(
    begin: Begin, config: Callable[..., TrainConfig]
) -> None:
    parts = begin(epochs=1, log_grads=False)
    parts.train()
    whole = gradflow.train(config(epochs=1, log_grads=False))
    assert whole.is_finished
    (mine,), (theirs,) = (run.networks()[0].history() for run in (parts.run, whole))
    assert mine["step_losses"] == theirs["step_losses"]


def test_a_run_learns_and_leaves_everything_on_disk(begin: Begin) -> None:
    begun = begin(epochs=4)
    epochs, network = begun.train(), begun.network
    assert [epoch.index for epoch in epochs] == [0, 1, 2, 3]
    assert [epoch.lr for epoch in epochs] == pytest.approx([6e-4, 6e-5, 6e-6, 6e-7])
    assert epochs[-1].train_loss < epochs[0].train_loss
    assert network.is_finished
    assert not network.checkpoint.exists()
    trace = network.trace()
    assert trace.steps.tolist() == list(range(epochs[-1].step))
    last = network.trace_from(epochs[-2].step)
    assert last.steps.tolist() == list(range(epochs[-2].step, epochs[-1].step))
    history, evaluation = network.history(), network.evaluation()
    assert sum(len(epoch["step_losses"]) for epoch in history) == len(trace)
    assert evaluation["best"]["epoch"] == int(np.argmin([epoch["val_loss"] for epoch in history]))
    assert evaluation["last"]["test"]["n"] == len(begun.data.split.test)
    summary = summarise(begun.run)
    assert summary["networks"][0]["grad_norm_first_to_last"]["first_recorded_step"] > 0
    assert not network.load_model(begun.config, 3).training


def test_networks_of_a_seed_see_the_same_and_start_alike(begin: Begin) -> None:
    begun = begin(arch="plain_18,resnet_18", epochs=1)
    begun.train()
    traces = [network.trace() for network in begun.run.networks()]
    for measure, site in (("weight_norm", "conv1.weight"), ("output_rms", "conv1")):
        one, other = (trace.values[measure][0, trace.sites.index(site)] for trace in traces)
        assert one == other
    comparison = summarise(begun.run)["comparisons"][0]
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
    begin: Begin, monkeypatch: pytest.MonkeyPatch, val_losses: list[float], patience: int,
    min_delta: float, n_epochs: int, best: int,
) -> None:  # fmt: skip
    told = iter(val_losses)
    monkeypatch.setattr("gradflow.training.fit._validate", lambda *_: (next(told), 0.5))
    begun = begin(epochs=6, patience=patience, min_delta=min_delta, log_grads=False)
    epochs = begun.train()
    assert len(epochs) == n_epochs
    assert max(epoch.index for epoch in epochs if epoch.is_best) == best
    assert begun.network.evaluation()["best"]["epoch"] == best


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resumed_training_is_bit_identical(begin: Begin, optimizer: str) -> None:
    """Stopped in the middle of an epoch, with records of steps that will be done again."""
    whole, stopped = (begin(optimizer=optimizer, schedule="cosine", patience=0) for _ in range(2))
    whole.train()
    steps = iter(range(5))  # 3 steps an epoch: Ctrl-C comes in the second one

    def interrupt() -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.train(on_step=interrupt)
    network = stopped.network
    assert network.checkpoint.exists()
    assert network.trace().steps[-1] >= 4, "what was recorded stays readable"
    assert not network.is_finished
    check_same_data(stopped.run, stopped.data.to_json())
    stopped.train()
    assert_same_network(network, whole.network)


@pytest.fixture
def flags(pictures: Path) -> list[str]:
    """A training as the command takes it."""
    return ["train", "--data", str(pictures), "--image-size", "8", "--width", "0.125", "--arch",
            "plain_18", "--batch-size", "16", "--log-grads", "--no-rivals", "--wandb", "off",
            "--device", "cpu"]  # fmt: skip


@pytest.mark.usefixtures("without_figures")
def test_killed_run_resumes_to_the_same_result(
    flags: list[str], tmp_path: Path, command: Any
) -> None:
    """kill -9 of the real command, then --resume, against an uninterrupted one."""
    flags += ["--epochs", "12", "--out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gradflow", *flags, str(tmp_path / "killed")],
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("killed/*/*/checkpoint.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = (tmp_path / "killed").iterdir()
    assert not (run / "summary.json").exists()
    assert '"networks"' in command("train", "--resume", run, "--json").out
    assert command(*flags, tmp_path / "whole").code == 0
    (whole,) = (tmp_path / "whole").iterdir()
    (one,), (other,) = RunDir.open(run).networks(), RunDir.open(whole).networks()
    assert_same_network(one, other)


def test_two_processes_train_what_one_trains(flags: list[str], tmp_path: Path) -> None:
    """torchrun on two CPU processes: the same batches, one record, the same kind of run.

    BatchNorm sees half a batch in each process, so the numbers agree at the first step only
    where no statistic of a batch comes in: the images.
    """
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    result = subprocess.run(
        [sys.executable, *torchrun, "-m", "gradflow", *flags, "--epochs", "2", "--json", "--out",
         str(tmp_path / "two")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count('"networks"') == 1, "only the main process prints"
    (path,) = (tmp_path / "two").iterdir()
    (network,) = RunDir.open(path).networks()
    assert [epoch["step"] for epoch in network.history()] == [3, 6]
    trace = network.trace()
    assert trace.steps.tolist() == list(range(6))
    assert np.isfinite(trace.select("grad_norm").values).all()


def test_a_loss_that_is_not_finite_stops_with_the_record_kept(begin: Begin) -> None:
    begun = begin(optimizer="sgd", lr=1e30)
    with pytest.raises(NonFiniteLoss, match="at step [1-9].*Lower the learning rate") as error:
        begun.train()
    trace = Trace.load(begun.network.path)
    assert error.value.step in trace.steps
    first = error.value.first
    assert first is not None
    assert first == trace.nonfinite()[0]
    assert f"the first recorded NaN or inf is at {first.site}" in str(error.value)
    nonfinite = trace.select("output_nonfinite").values.sum(axis=1)
    assert nonfinite[0] == 0
    assert nonfinite[-1] > 0


def test_a_share_of_the_time_is_set_for_recording(begin: Begin) -> None:
    begun = begin(max_overhead="40%", batch_size=2, epochs=4)
    begun.train()
    (network,) = summarise(begun.run)["networks"]
    assert network["recording"]["share_allowed"] == 0.4
    assert network["recording"]["share_of_time"] >= 0
    assert begun.network.trace().steps[0] == 0


def test_bad_files_fail_by_default_and_are_skipped_on_request(
    pictures: Path, config: Callable[..., TrainConfig]
) -> None:
    (pictures / "red" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(BadFiles, match="(?s)but 1 are not.*broken.png.*--on-bad skip"):
        load_data(config())
    facts = load_data(config(on_bad="skip"))[1].to_json()
    assert [bad["key"] for bad in facts["audit"]["bad"]] == ["red/broken.png"]
    indices = facts["split"]["indices"]
    assert len({i for part in ("train", "validation", "test") for i in indices[part]}) == 60


@pytest.mark.parametrize(("twins", "bits"), [("near", 8), ("exact", None)])
def test_twins_say_what_the_split_keeps_together(
    config: Callable[..., TrainConfig], twins: str, bits: int | None
) -> None:
    assert load_data(config(twins=twins))[1].audit.near_bits == bits


def test_a_run_whose_pictures_changed_is_not_continued(pictures: Path, begin: Begin) -> None:
    begun = begin()
    check_same_data(begun.run, begun.data.to_json())
    one, other = (pictures / "red" / name for name in ("00.png", "01.png"))
    before = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(before)  # only the order has changed
    with pytest.raises(ValueError, match="images or their split have changed"):
        check_same_data(begun.run, load_data(begun.config)[1].to_json())
