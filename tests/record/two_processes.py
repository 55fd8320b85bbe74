"""What two processes of one training record: run as a program, twice, by test_processes.py."""

import pickle
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from loops import batch, recorded, small_net
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradflow import Recorder, Trace
from gradflow.record import DEFAULT_MEASURES, processes

N, N_STEPS = 8, 3
NOISE = ["grad_noise", "grad_signal", "grad_norm"]
ALL = [*DEFAULT_MEASURES, "grad_dot_update", "angle_from_start", "grad_cosine"]


def without_norm() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(96, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip
    with torch.no_grad():  # dead in the whole batch, and dead in a share of it
        model[0].bias[0] = -100
        model[0].bias[1] = -1.4
    return model


def with_fixed_norm() -> nn.Sequential:
    """Batch statistics of a share are not those of the whole: running statistics instead."""
    model = small_net()
    model[1].running_mean.fill_(0.1)
    model[1].running_var.fill_(0.5)
    model.train = lambda mode=True: fixed(nn.Sequential.train(model, mode))  # type: ignore
    return model.train()


def fixed(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


MODELS = {"without norm": without_norm, "with fixed norm": with_fixed_norm}
SHARES: dict[str, list[slice]] = {
    "even": [slice(0, 4), slice(4, 8)],
    "uneven": [slice(0, 6), slice(6, 8)],
}


def share_loss(model: Any, step: int, part: slice, n_processes: int) -> Tensor:
    """DistributedDataParallel averages over the processes: this one's part, so many times over."""
    images, labels = batch(N, seed=step)
    losses = nn.functional.cross_entropy(model(images[part]), labels[part], reduction="sum")
    return losses * n_processes / N


def train(name: str, shares: str, rank: int, **settings: Any) -> Trace:
    ddp = DistributedDataParallel(MODELS[name](), broadcast_buffers=False)
    fixed(ddp)
    loss = partial(share_loss, ddp, part=SHARES[shares][rank], n_processes=2)
    return recorded(ddp, loss, n_steps=N_STEPS, **{"measures": ALL} | settings)


def train_micro_batches(rank: int, measures: Any) -> Trace:
    """Two processes with two micro-batches each; only the last one talks to the other process."""
    ddp = DistributedDataParallel(without_norm())

    def loss(index: int) -> Tensor:
        step, micro = divmod(index, 2)
        first = 4 * rank + 2 * micro
        ddp.require_backward_grad_sync = micro == 1  # as `no_sync` has it
        return share_loss(ddp, step, slice(first, first + 2), 2)

    return recorded(ddp, loss, n_steps=N_STEPS, n_passes=2, measures=measures)


def refusal(rank: int) -> str:
    """What a Recorder says that is made by one process only."""
    processes.PATIENCE = timedelta(seconds=2)
    model = without_norm()
    ddp = DistributedDataParallel(model)
    said = ""
    if rank == 0:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        try:
            Recorder(ddp, optimizer)
        except RuntimeError as error:
            said = str(error)
        assert not any(module._forward_hooks for module in model.modules())
        assert not optimizer._optimizer_step_pre_hooks
    dist.barrier()
    return said


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    result: dict[Any, Any] = {}
    for name in MODELS:
        for shares in SHARES:
            result[name, shares] = train(name, shares, rank)
    result["every 2"] = train("without norm", "uneven", rank, every=2)
    train("without norm", "uneven", rank, folder=folder / "written")
    result["files"] = sorted(path.name for path in folder.glob("written/records/*"))
    result["noise"] = train_micro_batches(rank, NOISE)
    result["micro-batches"] = train_micro_batches(rank, ALL)
    result["refusal"] = refusal(rank)
    dist.destroy_process_group()
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
