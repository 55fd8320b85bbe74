"""Data-parallel training: what two processes record is what one records of the whole batch."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import two_processes
from byhand import ByHand
from loops import sgd, small_net
from torch import nn
from two_processes import ALL, MODELS, N_STEPS, SHARES, share_loss

from gradflow import Recorder
from gradflow.record.trace import load_parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have left what they recorded."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, two_processes.__file__]
    started = [
        subprocess.Popen([*command, str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[Any, Any]]:
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


def whole_batch(name: str, shares: list[slice]) -> ByHand:
    """One process; the shares make its loss, each in a forward pass of its own."""
    model = MODELS[name]()
    hand = ByHand(model, sgd(model))
    for step in range(N_STEPS):
        hand.zero()
        for share in shares:
            hand.backward(share_loss, model, step, share, 1)
        hand.update()
    return hand


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shares", SHARES)
def test_two_processes_record_what_one_does_of_the_whole_batch(
    results: list[dict[Any, Any]], name: str, shares: str
) -> None:
    trace = results[0][name, shares]
    assert list(trace.values) == ALL
    whole_batch(name, [slice(0, 8)]).compare(trace)
    assert len(results[1][name, shares]) == 0, "the first process holds the record"


def test_channels_that_are_dead_on_one_process_only_are_not_dead(
    results: list[dict[Any, Any]],
) -> None:
    """Or else the comparison above would not tell shares from the whole."""
    hand = whole_batch("without norm", SHARES["uneven"])
    seen = hand._outputs[0]["1"]
    alive = [one.channels_alive().tolist() for one in seen]
    assert alive[0] != alive[1]
    trace = results[0]["without norm", "uneven"]
    n_dead = 6 - np.logical_or(*alive).sum()
    assert trace.values["output_dead_fraction"][0, trace.sites.index("1")] == n_dead / 6


def test_only_some_steps_of_two_processes(results: list[dict[Any, Any]]) -> None:
    whole_batch("without norm", [slice(0, 8)]).compare(results[0]["every 2"], steps=[0, 2])


def test_the_first_process_alone_writes(results: list[dict[Any, Any]], folder: Path) -> None:
    written = load_parts(folder / "written")
    assert len(list((folder / "written" / "records").glob("*.parquet"))) == 1
    whole_batch("without norm", [slice(0, 8)]).compare(written)


def test_micro_batches_of_two_processes(results: list[dict[Any, Any]]) -> None:
    quarters = [slice(first, first + 2) for first in (0, 2, 4, 6)]
    whole_batch("without norm", quarters).compare(results[0]["micro-batches"])


def test_noise_over_processes_and_micro_batches(results: list[dict[Any, Any]]) -> None:
    """Two processes with two micro-batches each are four micro-batches."""
    model = MODELS["without norm"]()
    optimizer, trace = sgd(model), results[0]["noise"]
    parameters = dict(model.named_parameters())
    for step in range(N_STEPS):
        optimizer.zero_grad()
        parts: list[tuple[torch.Tensor, ...]] = []
        for first in (0, 2, 4, 6):
            loss = share_loss(model, step, slice(first, first + 2), 1)
            parts.append(torch.autograd.grad(loss, list(parameters.values())))
        for index, (name, parameter) in enumerate(parameters.items()):
            # h_i = K g_i: what micro-batch i alone would have given
            h = torch.stack([4 * part[index].double().flatten() for part in parts])
            noise = (h - h.mean(0)).square().sum().item() / 3
            signal = h.mean(0).square().sum().item() - noise / 4
            column = trace.sites.index(name)
            assert trace.values["grad_noise"][step, column] == pytest.approx(noise, rel=1e-5)
            assert trace.values["grad_signal"][step, column] == pytest.approx(
                signal, rel=1e-5, abs=1e-5 * noise
            )
            parameter.grad = sum(part[index] for part in parts)
        optimizer.step()


def test_a_recorder_on_one_process_only_says_what_is_missing(
    results: list[dict[Any, Any]],
) -> None:
    said = results[0]["refusal"]
    assert "a Recorder on each of the 2 processes" in said
    assert "after 2 s some have none. Make it on every process" in said


# -- refusals ----------------------------------------------------------------------------------


@pytest.fixture
def _alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_alone")
def test_one_process_alone_may_use_the_wrapper() -> None:
    model = small_net()
    ddp = nn.parallel.DistributedDataParallel(model)
    hand = ByHand(model, sgd(model))
    with Recorder(ddp, hand.optimizer) as recorder:
        hand.train(share_loss, ddp, 0, slice(0, 8), 1)
    hand.compare(recorder.trace)


@pytest.mark.usefixtures("_alone")
def test_parameters_that_fully_shard_has_divided_are_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    whole, part = small_net(), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    fully_shard(whole, mesh=mesh)
    fully_shard(part[1], mesh=mesh)
    for model in (whole, part):
        with pytest.raises(TypeError, match="sharded ones.*DistributedDataParallel"):
            Recorder(model, sgd(model))


def test_the_wrapper_of_the_older_fsdp_is_refused() -> None:
    """It cannot be made without an accelerator, so its name has to do."""

    class FullyShardedDataParallel(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self._fsdp_wrapped_module = module

    wrapped = FullyShardedDataParallel(small_net())
    for model in (wrapped, nn.Sequential(wrapped)):
        with pytest.raises(TypeError, match="sharded ones.*DistributedDataParallel"):
            Recorder(model, sgd(model))


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("original", [True, False])
def test_on_cuda_the_older_fsdp_is_refused(tmp_path: Path, original: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    dist.init_process_group("nccl", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = FullyShardedDataParallel(small_net().cuda(), use_orig_params=original)
        with pytest.raises(TypeError, match="sharded ones.*DistributedDataParallel"):
            Recorder(model, sgd(model))
    finally:
        dist.destroy_process_group()
