"""Studies are run for real, on every engine, and killed in the middle: the table stays the same."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from tiny import read, tiny, write

from gradflow.studies import Cell, Engine, Study, StudyDir, run_study
from gradflow.studies.cell import MAX_STARTS, run_cell
from gradflow.studies.engine import default_workers
from gradflow.studies.folder import CellDir
from gradflow.studies.results import Results

pytestmark = pytest.mark.filterwarnings(
    # joblib and distributed say so of workers that are killed here on purpose.
    "ignore:A worker stopped while some jobs:UserWarning",
    "ignore::ResourceWarning",
    "ignore::DeprecationWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


@pytest.fixture(scope="module")
def expected(finished: tuple[Path, Results]) -> dict[str, Any]:
    """The results of a study that nothing disturbed, in this process."""
    return finished[1].to_json()


def started(folder: StudyDir, study: Study) -> dict[str, dict[str, Any]]:
    """The state of every cell."""
    return {cell.name: CellDir(cell.folder).state() for cell in study.cells(folder.cells)}


class Killer(Thread):
    """Kills the process that trains `cell`, `times` times, each as soon as it has begun."""

    def __init__(self, folder: Path, times: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.times, self.killed = CellDir(folder), times, list[int]()

    def run(self) -> None:
        deadline = time.monotonic() + 240
        while len(self.killed) < self.times and time.monotonic() < deadline:
            state = self.folder.state()
            pid = state.get("pid")
            if state.get("state") == "running" and pid not in (None, os.getpid(), *self.killed):
                os.kill(int(pid), signal.SIGKILL)
                self.killed.append(int(pid))
            time.sleep(0.02)


def test_a_worker_that_is_killed_changes_nothing(
    all_but: Callable[[str], StudyDir], pictures: Path, expected: dict[str, Any]
) -> None:
    """With two trainings to do of four."""
    folder, study = all_but("bias"), read(pictures)
    killer = Killer(folder.cells / "bias" / "accused-s0", times=1)
    killer.start()
    found = run_study(study, folder, Engine(workers=2))
    killer.join()
    assert len(killer.killed) == 1
    assert started(folder, study)["bias/accused-s0"]["starts"] >= 2
    assert found.to_json() == expected


def test_a_training_whose_process_was_always_killed_is_not_begun_again(
    all_but: Callable[[str], StudyDir], pictures: Path
) -> None:
    folder, study = all_but("bias/accused-s0"), read(pictures)
    (cell,) = (one for one in study.cells(folder.cells) if one.name == "bias/accused-s0")
    cell.folder.mkdir(parents=True)
    CellDir(cell.folder).save_state({"state": "running", "starts": MAX_STARTS})
    end = run_cell(cell)
    assert (end.state, CellDir(cell.folder).state()["state"]) == ("failed", "failed")
    assert "killed 3 times" in end.message
    assert CellDir(cell.folder).network() is None


@pytest.mark.slow
def test_a_study_that_is_told_to_end_leaves_no_worker_behind(
    pictures: Path, tmp_path: Path
) -> None:
    """SIGTERM reaches one process, and not its whole group as Ctrl-C does."""
    file = write(tmp_path / "tiny.yaml", tiny(pictures, base={"epochs": 500}))
    folder = StudyDir(tmp_path / "study")
    command = [sys.executable, "-m", "gradflow", "study", str(file), "--out", str(folder.path)]
    process = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.PIPE, text=True)
    study = Study.load(file)
    pids: set[int] = set()
    deadline = time.monotonic() + 120
    while len(pids) < 2 and time.monotonic() < deadline:
        pids = {state["pid"] for state in started(folder, study).values() if "pid" in state}
        time.sleep(0.02)
    assert len(pids) == 2
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, "gradflow: Stopped." in said) == (130, True), said
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_alive, pids))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_to_the_same_table(
    pictures: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    file = write(tmp_path / "tiny.yaml", tiny(pictures))
    folder = StudyDir(tmp_path / "study")
    command = [sys.executable, "-m", "gradflow", "study", str(file), "--out", str(folder.path)]
    command += ["--workers", "1"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    study = Study.load(file)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        states = [state.get("state") for state in started(folder, study).values()]
        if "done" in states and "running" in states:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # the study and its workers, at once
    process.communicate()
    assert not (folder.path / "results.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads((folder.path / "results.json").read_text(encoding="utf-8"))
    assert found == expected | {"study": "tiny"}


def test_a_dask_cluster_that_loses_one_of_two_workers_gives_the_same_table(
    pictures: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    distributed = pytest.importorskip("distributed")
    folder, study = StudyDir(tmp_path), read(pictures)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
    ):
        killer = Killer(folder.cells / "bias" / "accused-s0", times=1)
        killer.start()
        found = run_study(study, folder, Engine(name="dask", address=cluster.scheduler_address))
        killer.join()
    assert len(killer.killed) == 1
    assert found.to_json() == expected


def test_a_job_of_submitit_completes_a_study(
    all_but: Callable[[str], StudyDir], pictures: Path, expected: dict[str, Any]
) -> None:
    pytest.importorskip("submitit")
    engine = Engine(name="slurm", slurm={"cluster": "local"})
    assert run_study(read(pictures), all_but("bias/reference-s0"), engine).to_json() == expected


def test_dask_workers_of_several_threads_are_refused(pictures: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        engine = Engine(name="dask", address=cluster.scheduler_address)
        with pytest.raises(RuntimeError, match="one thread each, but one has 2"):
            run_study(read(pictures), StudyDir(tmp_path), engine)


def dies(cell: Cell) -> None:
    os._exit(1)


def test_processes_that_die_before_any_training_begins_come_to_an_end(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradflow.studies.engine.run_cell", dies)
    monkeypatch.setattr("gradflow.studies.engine.MAX_STARTS", 1)
    cells = read(pictures).cells(tmp_path)[:2]
    ends = Engine(workers=2).run(cells, tmp_path)
    assert [end.state for end in ends] == ["failed", "failed"]
    assert "died 1 times before the training began" in ends[0].message


@pytest.mark.slow
def test_ray_gives_the_same_table(pictures: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
    pytest.importorskip("ray")
    found = run_study(read(pictures), StudyDir(tmp_path), Engine(name="ray", workers=2))
    assert found.to_json() == expected


def test_a_machine_without_slurm_says_so(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(RuntimeError, match="Expected Slurm.*srun"):
        run_study(read(pictures), StudyDir(tmp_path), Engine(name="slurm"))


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("dask", "distributed", "dask"), ("ray", "ray", "ray"), ("slurm", "submitit", "slurm")],
)
def test_an_engine_that_is_not_installed_says_what_to_install(
    name: Any, module: str, extra: str, pictures: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeError, match=rf"{module}.*gradflow-diagnostics\[{extra}\]"):
        run_study(read(pictures), StudyDir(tmp_path), Engine(name=name))


def test_as_many_at_a_time_as_the_cores_carry(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradflow.studies.engine.cpu_count", lambda: 8)
    assert default_workers(read(pictures).cells(tmp_path)) == 8
    assert default_workers(read(pictures, threads=3).cells(tmp_path)) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "spark"}, "`engine`"),
        ({"workers": 0}, "`workers`"),
        ({"address": "tcp://x:1"}, "dask or ray"),
        ({"name": "dask", "address": "tcp://x:1", "workers": 2}, "Leave `workers` out"),
    ],
)
def test_a_wrong_engine_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(**given)
