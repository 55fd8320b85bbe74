"""`gradflow study`: trainings with one thing changed, planned, run and analysed."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from gradflow.cli.console import show, show_json, stderr
from gradflow.cli.options import FAILED, OK, Flag, SlurmOptions

if TYPE_CHECKING:
    from gradflow.studies import Cell

POLL_SECONDS = 2.0  # between two looks at the trainings of a study


def study(
    file: Path,
    *,
    data: str | None = None,
    out: Path | None = None,
    plan: Flag = False,
    engine: Literal["local", "dask", "ray", "slurm"] = "local",
    workers: int | None = None,
    address: str | None = None,
    slurm: SlurmOptions = None,
    json: Flag = False,
) -> int:
    """Test explanations: change one thing at a time, and see which share of the gap goes away.

    Call a stopped study again and it continues, to the same results. Exits with 1 if a training
    failed.

    Parameters
    ----------
    file
        The study file, or the folder of a study that was begun. docs/studies.md explains both.
    data
        The images, instead of those in the study file.
    out
        The folder of the study; by default studies/ and the name of the file.
    plan
        Only show the trainings, how long they take, and how many seeds the precision needs.
    engine
        Where to train: on this machine, on a Dask or Ray cluster, or as jobs of Slurm.
    workers
        How many trainings at a time; by default one per GPU, or as many as the cores allow.
    address
        The scheduler of a running Dask or Ray cluster; by default one is started here.
    slurm
        Parameters of the jobs, such as --slurm.slurm_partition gpu --slurm.timeout_min 60.
    json
        Print the results, or the plan, as one JSON object on stdout.
    """
    from gradflow.present import study_view
    from gradflow.present.letter import letter
    from gradflow.present.study_figures import save_study_figures
    from gradflow.present.study_story import study_section
    from gradflow.studies import Engine, Study, StudyDir, run_study
    from gradflow.studies.engine import default_workers
    from gradflow.studies.plan import plan_study

    if file.is_dir():
        folder, content = StudyDir.open(file), StudyDir.open(file).file
        if data is not None or out is not None:
            raise ValueError("Expected neither --data nor --out with the folder of a study.")
    else:
        folder, content = StudyDir(out or Path("studies") / file.stem), file
    asked = Study.load(content, {} if data is None else {"data": data})
    where = Engine(name=engine, workers=workers, address=address, slurm=_numbers(slurm or {}))
    if plan:
        count = workers or default_workers(asked.cells(folder.cells))
        planned = plan_study(asked, folder, count)
        if json:
            show_json(planned.to_json())
        else:
            show(study_view.plan_view(planned))
        return OK
    log = stderr()
    log.print(f"study          {folder.path}", soft_wrap=True)
    with _stopped_by_sigterm(), _watching(log) as watch:
        found = run_study(asked, folder, where, on_begin=watch)
    pictures = save_study_figures(found, folder.figures)
    if json:
        show_json(found.to_json())
    else:
        show(letter(study_section(found)), f"study    {folder.path}")
        show(*(f"picture  {path}" for path in pictures))
    return FAILED if any(" failed: " in note for note in found.notes) else OK


def _numbers(options: dict[str, str]) -> dict[str, Any]:
    """Whole numbers as numbers; submitit tells them from text."""
    return {name: int(value) if value.isdecimal() else value for name, value in options.items()}


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """As by Ctrl-C: a process that just ends leaves its workers behind, and they train on."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are not this thread's matter
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _watching(log: Console) -> Iterator[Callable[[Sequence["Cell"]], None]]:
    """Show how far all trainings of a study are: a live table, or a line as each ends."""
    from rich.live import Live

    from gradflow.present.study_view import end_line, progress_view
    from gradflow.studies.folder import CellDir

    cells: list[Cell] = []
    said: set[str] = set()
    is_over, one_at_a_time = threading.Event(), threading.Lock()

    def say_ends() -> None:
        with one_at_a_time:
            for cell in cells:
                line = end_line(cell) if cell.name not in said else None
                if line is not None:
                    said.add(cell.name)
                    log.print(line, markup=False, highlight=False, soft_wrap=True)

    def keep_saying() -> None:
        while not is_over.wait(POLL_SECONDS):
            say_ends()

    def watch(found: Sequence["Cell"]) -> None:
        if not log.is_terminal:
            say_ends()  # of the cells before these
        cells[:] = found
        said.update(cell.name for cell in cells if CellDir(cell.folder).is_done)

    if log.is_terminal:
        with Live(get_renderable=lambda: progress_view(cells), console=log, refresh_per_second=1):
            yield watch
        return
    thread = threading.Thread(target=keep_saying, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        is_over.set()
        thread.join()
        say_ends()
