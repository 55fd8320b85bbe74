"""Engines: where the cells of a study are trained. None is written here.

joblib on this machine (loky), on a Dask or on a Ray cluster; submitit on Slurm. A cell is a folder
that trains itself to its end, so an engine only has to call `run_cell` for each, and a cell that is
called twice, or again after its process was killed, does no harm. All engines share the file
system with the process that started the study.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from joblib import Parallel, cpu_count, delayed, parallel_config
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool

from gradflow.studies.arms import Cell
from gradflow.studies.cell import MAX_STARTS, CellEnd, run_cell
from gradflow.studies.folder import CellDir

MAX_WORKERS = 10_000

EngineName = Literal["local", "dask", "ray", "slurm"]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where to train, and how many cells at a time."""

    name: EngineName = "local"
    workers: int | None = None  # None: what the machine or the cluster has
    address: str | None = None  # of the scheduler of a running Dask or Ray cluster
    slurm: dict[str, Any] = field(default_factory=dict)  # submitit's parameters, time and partition

    def __post_init__(self) -> None:
        if self.name not in get_args(EngineName):
            raise ValueError(f"Expected `engine` in {get_args(EngineName)}, got {self.name!r}.")
        if self.workers is not None and not 1 <= self.workers <= MAX_WORKERS:
            raise ValueError(f"Expected `workers` from 1 to {MAX_WORKERS}, but got {self.workers}.")
        if self.address is not None and self.name not in ("dask", "ray"):
            raise ValueError(
                f"Expected `address` with engine dask or ray, but got it with {self.name}."
            )
        if self.slurm and self.name != "slurm":
            raise ValueError(f"Expected `slurm` with engine slurm, but got it with {self.name}.")
        is_local = self.address in (None, "auto", "local")  # Ray's words
        if not is_local and not re.search(r"[:/]\d+$", str(self.address)):
            raise ValueError(
                f"Expected `address` with a port, such as tcp://host:8786, got {self.address!r}."
            )
        if self.name == "dask" and self.address is not None and self.workers is not None:
            raise ValueError(
                "Expected `workers` or `address`, but got both: a running Dask cluster trains as "
                "many at a time as it has workers. Leave `workers` out."
            )

    def run(self, cells: Sequence[Cell], jobs: Path) -> list[CellEnd]:
        """Train all cells; `jobs` is a folder for a scheduler's logs. Returns how they ended."""
        if not cells:
            return []
        if self.name == "slurm":
            return _run_on_slurm(cells, self, jobs)
        with _backend(self, cells) as (count, broken):
            return _run_with_joblib(cells, count, broken)


def default_workers(cells: Sequence[Cell]) -> int:
    """One per GPU where the cells train on GPUs, else as many as the cores carry."""
    if cells[0].config.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.device_count()
    n_cores: int = cpu_count()  # those that this process may use
    return max(1, n_cores // cells[0].threads)


Broken = tuple[type[BaseException], ...]  # what a backend raises when it lost a worker


@contextmanager
def _backend(engine: Engine, cells: Sequence[Cell]) -> Iterator[tuple[int, Broken]]:
    """joblib's backend for this engine; yields how many cells it trains at a time."""
    count = engine.workers or default_workers(cells)
    if engine.name == "local":
        with parallel_config("loky", inner_max_num_threads=cells[0].threads):
            yield min(count, len(cells)), (BrokenProcessPool,)
    elif engine.name == "dask":
        with _dask_client(engine.address, count) as client:
            n_workers = _workers_of(client)
            distributed = _optional("distributed", "dask")
            with parallel_config("dask", client=client):
                yield n_workers, (distributed.scheduler.KilledWorker,)
    else:
        with _ray(engine.address, count) as ray, parallel_config("ray"):
            if engine.address is not None and engine.workers is None:
                count = max(1, int(ray.cluster_resources()["CPU"]) // cells[0].threads)
            yield count, (ray.exceptions.RayError,)


def _workers_of(client: Any) -> int:
    """How many Dask has. Raises RuntimeError for workers that would train cells in threads."""
    threads = [one["nthreads"] for one in client.scheduler_info(n_workers=-1)["workers"].values()]
    if not threads:
        raise RuntimeError("Expected a Dask cluster with workers, but it has none. Start some.")
    if max(threads) > 1:
        raise RuntimeError(
            f"Expected Dask workers of one thread each, but one has {max(threads)}: trainings in "
            "threads of one process disturb each other. Start them with `--nthreads 1`."
        )
    return len(threads)


@contextmanager
def _dask_client(address: str | None, count: int) -> Iterator[Any]:
    """A client of the cluster at `address`, or of one on this machine that ends with it."""
    distributed = _optional("distributed", "dask")
    if address is not None:
        with distributed.Client(address) as client:
            yield client
        return
    cluster = distributed.LocalCluster(
        n_workers=count, threads_per_worker=1, dashboard_address=None
    )
    with cluster, distributed.Client(cluster) as client:
        yield client


@contextmanager
def _ray(address: str | None, count: int) -> Iterator[Any]:
    ray = _optional("ray", "ray")
    from ray.util.joblib import register_ray

    options = {"address": address} if address is not None else {"num_cpus": count}
    ray.init(include_dashboard=False, log_to_driver=False, **options)
    try:
        register_ray()
        yield ray
    finally:
        ray.shutdown()


def _run_with_joblib(cells: Sequence[Cell], count: int, broken: Broken) -> list[CellEnd]:
    """A pool that a killed worker broke is made anew, for the cells that are left.

    That comes to an end: a cell whose process was killed several times fails, and so do all that
    are left where processes die before any training begins.
    """
    ends: dict[str, CellEnd] = {}
    n_idle = 0  # pools in a row that broke and did nothing
    while left := [cell for cell in cells if cell.name not in ends]:
        try:
            # One cell per task: they take minutes, and a batch of them would idle a worker.
            found = Parallel(n_jobs=count, batch_size=1, pre_dispatch="all")(
                delayed(run_cell)(cell) for cell in left
            )
            ends |= {end.name: end for end in found}
        except broken as error:
            n_before, is_begun = len(ends), any(map(_is_running, left))
            ends |= {end.name: end for end in map(_ended_already, left) if end is not None}
            n_idle = 0 if is_begun or len(ends) > n_before else n_idle + 1
            if n_idle == MAX_STARTS:
                return [ends.get(cell.name) or _never_began(cell) for cell in cells]
            if isinstance(error, BrokenProcessPool):
                # loky stops all workers with the one that was killed. Which of their cells is to
                # blame shows when each is trained alone.
                ends |= {cell.name: _alone(cell) for cell in left if _is_running(cell)}
    return [ends[cell.name] for cell in cells]


def _is_running(cell: Cell) -> bool:
    return CellDir(cell.folder).state().get("state") == "running"


def _alone(cell: Cell) -> CellEnd:
    """Train one cell in a process of its own, until it ends or was killed too often."""
    for _ in range(MAX_STARTS + 1):  # the last one finds that it was, and says so
        try:
            with ProcessPoolExecutor(max_workers=1) as pool:
                return _result(pool, cell)
        except BrokenProcessPool:
            continue
    return _never_began(cell)


def _result(pool: ProcessPoolExecutor, cell: Cell) -> CellEnd:
    """How a cell ends in the pool, which nobody waits for if this process is stopped."""
    try:
        end: CellEnd = pool.submit(run_cell, cell).result()
    except KeyboardInterrupt:
        pool.shutdown(kill_workers=True)
        raise
    return end


def _never_began(cell: Cell) -> CellEnd:
    """How a cell ends whose process dies before it can write that it began."""
    return CellEnd(
        cell.name,
        "failed",
        f"its process died {MAX_STARTS} times before the training began, perhaps for want of "
        "memory. Try fewer workers",
    )


def _ended_already(cell: Cell) -> CellEnd | None:
    """How a cell ended before its pool broke; None where it has to be trained (on)."""
    state = CellDir(cell.folder).state()
    if state.get("state") in ("done", "diverged", "failed"):
        return CellEnd(cell.name, state["state"], state.get("message", ""))
    return None


def _run_on_slurm(cells: Sequence[Cell], engine: Engine, jobs: Path) -> list[CellEnd]:
    submitit = _optional("submitit", "slurm")
    options = dict(engine.slurm)
    cluster = options.pop("cluster", "slurm")
    if cluster == "slurm" and shutil.which("srun") is None:
        raise RuntimeError(
            "Expected Slurm on this machine, but there is no srun. Start the study on a node that "
            "can submit jobs."
        )
    executor = submitit.AutoExecutor(folder=jobs, cluster=cluster)
    wished = {"cpus_per_task": cells[0].threads, "timeout_min": 24 * 60}
    if engine.workers is not None:
        wished["slurm_array_parallelism"] = engine.workers
    executor.update_parameters(**wished | options)
    submitted = executor.map_array(run_cell, cells)
    return [_of_job(cell, job.result) for cell, job in zip(cells, submitted, strict=True)]


def _of_job(cell: Cell, result: Callable[[], CellEnd]) -> CellEnd:
    """A job that the scheduler ended fails alone."""
    try:
        return result()
    except Exception as error:  # submitit raises its own, and those of the job
        return CellEnd(cell.name, "failed", f"the job ended without a result: {error}")


def _optional(module: str, extra: str) -> Any:
    """A library that not everybody needs."""
    try:
        return import_module(module)
    except ImportError:
        raise RuntimeError(
            f"Expected {module} to be installed for this engine, but it is not. Install it with "
            f"pip install 'gradflow-diagnostics[{extra}]'."
        ) from None
