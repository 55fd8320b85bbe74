"""One cell of a study: train it where it stands, once, and alone in its failures."""

import dataclasses
import os
import platform
import re
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import current_process
from typing import Any, Literal

import torch

from gradflow.files import held
from gradflow.studies.arms import Cell
from gradflow.studies.folder import ENDED, CellDir
from gradflow.training.config import DATA_FIELDS, TrainConfig
from gradflow.training.examination import examine_network, finish_network, lacks_rivals
from gradflow.training.fit import NonFiniteLoss, make_accelerator
from gradflow.training.images import Data, check_same_data, load_data
from gradflow.training.rundir import NetworkDir, RunDir
from gradflow.training.summary import summarise
from gradflow.training.train import begin_run, train_network

MAX_STARTS = 3  # of a cell whose process was killed each time


@dataclass(frozen=True)
class CellEnd:
    """How a cell ended: trained, or failed and why."""

    name: str
    state: Literal["done", "diverged", "failed"]
    message: str = ""


def run_cell(cell: Cell) -> CellEnd:
    """Train a cell to its end, from where it stands; does nothing where it is done.

    Any failure is the cell's own: it is written down and returned, and other cells go on. A cell
    that another process is training is waited for.
    """
    folder = CellDir(cell.folder)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        with held(folder.path, wait=True):
            return _run(cell, folder)
    except NonFiniteLoss as error:
        return _ended(folder, CellEnd(cell.name, "diverged", str(error)))
    except Exception as error:  # what it is, the person reads; the other cells go on
        return _ended(folder, CellEnd(cell.name, "failed", f"{type(error).__name__}: {error}"))


def _run(cell: Cell, folder: CellDir) -> CellEnd:
    if cell.same_as is not None and not folder.is_done:
        _take_over(CellDir(cell.same_as), cell, folder)
    state = folder.state()
    if state.get("state") in ENDED:
        return CellEnd(cell.name, state["state"], state.get("message", ""))
    starts = int(state.get("starts", 0)) + 1
    if state.get("state") == "running" and starts > MAX_STARTS:
        raise RuntimeError(
            f"its process was killed {MAX_STARTS} times, perhaps for want of memory. Try fewer "
            "workers or a smaller batch"
        )
    started = {"state": "running", "starts": starts, "host": platform.node(), "pid": os.getpid()}
    folder.save_state(started | {"n_epochs": cell.config.epochs})
    begin = time.perf_counter()
    seconds = _train(cell, folder, started)
    overhead = time.perf_counter() - begin - seconds
    end = CellEnd(cell.name, "done")
    folder.save_state(
        {"state": "done", "starts": starts, "seconds": seconds, "seconds_around": overhead}
    )
    return end


def _take_over(same: CellDir, cell: Cell, folder: CellDir) -> None:
    """End as the same training did, which is not repeated."""
    if not same.is_done:
        raise RuntimeError(f"it is the training of {same.path}, which has not ended")
    folder.copy(same)
    if (network := folder.network()) is not None:
        _drop_weights(network, cell)


def _train(cell: Cell, folder: CellDir, started: dict[str, Any]) -> float:
    """Returns the seconds from the first step to the evaluation."""
    torch.set_num_threads(cell.threads)
    _choose_gpu(cell.config)
    accelerator = make_accelerator(cell.config)
    config, data = load_once(cell.config)
    run = folder.run()
    if run is None:
        run = begin_run(config, data, accelerator, folder.path)
    else:
        _check_same_config(run.config(), config, cell)
        check_same_data(run, data.to_json())
    begin = time.perf_counter()
    network = run.network(config.arch, cell.seed)
    if network.is_finished:
        finish_network(network, config, data, accelerator)  # killed before it came to it
    else:
        for epoch in train_network(network, config, data, accelerator):
            folder.save_state(
                started | {"epoch": epoch.index + 1, "n_epochs": config.epochs,
                           "train_loss": epoch.train_loss, "seconds": epoch.seconds}
            )  # fmt: skip
    summarise(run)
    if not lacks_rivals(network, config):
        _drop_weights(network, cell)
    return time.perf_counter() - begin


def measure_cell(cell: Cell) -> None:
    """Measure the rival explanations of a trained network where that was not done.

    That takes its weights: those stay where the study keeps them, or a measurement failed.
    """
    folder = CellDir(cell.folder)
    network = folder.network()
    if network is None:
        return
    with held(folder.path, wait=True):
        if not (network.lacks_measurements() and network.weights("last").exists()):
            return
        run = RunDir(folder.path)
        config, data = load_once(run.config())
        check_same_data(run, data.to_json())
        network.save_examination(examine_network(network, config, data))
        _drop_weights(network, cell)


def _drop_weights(network: NetworkDir, cell: Cell) -> None:
    """A study has hundreds of them."""
    if not cell.keep_weights:
        for path in network.path.glob("*.pt"):
            path.unlink()


@lru_cache(maxsize=1)  # most cells of a study share their images
def _decoded(config: TrainConfig) -> tuple[TrainConfig, Data]:
    return load_data(config)


def load_once(config: TrainConfig) -> tuple[TrainConfig, Data]:
    """As load_data, but what this process loaded last is not decoded again."""
    found, data = _decoded(TrainConfig(**{name: getattr(config, name) for name in DATA_FIELDS}))
    assert found.image_size is not None
    config = config.resolved(image_size=found.image_size, mirror=bool(found.flip))
    return config, data.changed_by(config.interventions)


def _check_same_config(before: TrainConfig, now: TrainConfig, cell: Cell) -> None:
    differing = [
        field.name
        for field in dataclasses.fields(TrainConfig)
        if getattr(before, field.name) != getattr(now, field.name)
        and field.name not in ("out", "device", "channels_last")  # the machine's matter
    ]
    if differing:
        raise ValueError(
            f"Expected the configuration with which {cell.folder} was begun, but "
            f"{', '.join(differing)} differ. Give the changed study a folder of its own"
        )


def _choose_gpu(config: TrainConfig) -> None:
    """Let the workers of one machine take turns over its GPUs."""
    if config.device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(gpu_of(_worker_name(), torch.cuda.device_count()))


def _worker_name() -> str:
    """A name that ends in the number of the worker: Dask's processes all have the same name."""
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        try:
            return f"dask-{distributed.get_worker().name}"
        except ValueError:  # it is loaded, and this is no worker of it
            pass
    return current_process().name


def gpu_of(process_name: str, n_gpus: int) -> int:
    """The GPU for a worker, by the number at the end of its name; 0 without one.

    >>> gpu_of("LokyProcess-3", 2), gpu_of("MainProcess", 2)
    (0, 0)
    """
    number = re.search(r"(\d+)$", process_name)
    return (int(number[1]) - 1) % n_gpus if number else 0


def _ended(folder: CellDir, end: CellEnd) -> CellEnd:
    """Write down how it ended, if the disk allows."""
    try:
        before = folder.state()
        folder.save_state(
            {"state": end.state, "message": end.message, "starts": before.get("starts", 0)}
        )
    except OSError:
        pass  # the disk is full: what was written before stays as it was
    return end
