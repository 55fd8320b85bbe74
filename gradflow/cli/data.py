"""`gradflow data`: an audit of images before anything is trained."""

import sys
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType

from gradflow.cli.console import progress, show, show_json, stderr
from gradflow.cli.options import FAILED, OK, Flag

if TYPE_CHECKING:
    from gradflow.training.config import TrainConfig
    from gradflow.training.images import Data
    from gradflow.training.rundir import RunDir


def data(
    path: str,
    *,
    download: Flag = False,
    allow_outside: Flag = False,
    all: Flag = False,
    json: Flag = False,
) -> int:
    """Audit images before training: classes, unreadable files, copies, conflicting labels.

    Exits with 1 if a file cannot be read.

    Parameters
    ----------
    path
        Like `--data` of train: digits, a folder, a CSV file, or a torchvision name.
    download
        Let torchvision download the data set.
    allow_outside
        Let a table of labels name files outside its own folder.
    all
        List every file concerned instead of the first ten of each kind.
    json
        Print the audit as one JSON object on stdout.
    """
    from gradflow.data import audit, open_source, split
    from gradflow.present import terminal

    source = open_source(path, download=download, allow_outside=allow_outside)
    with progress(stderr(), "images") as (bar, task):
        found = audit(
            source, progress=lambda n_done, n: bar.update(task, completed=n_done, total=n)
        )
    content = found.to_json()
    if json:
        show_json(content)
    else:
        views: list[RenderableType] = [terminal.audit_view(content, sys.maxsize if all else 10)]
        for kind in ("grouped", "random"):
            try:
                views.append(terminal.split_view(split(found, source.labels, kind=kind).to_json()))
            except ValueError as error:
                views.append(f"split          {kind}: not possible. {error}")
        show(*views)
    return FAILED if found.bad else OK


def data_of(run: "RunDir") -> tuple["TrainConfig", "Data"]:
    """The images of a run, as they were when it was trained; those of a foreign one are named."""
    from gradflow.training.images import check_same_data

    log, config = stderr(), run.config()
    if not run.is_trained_here:
        log.print(f"images         {config.data}, which the run names", soft_wrap=True)
    config, data = load_shown(config, log)
    check_same_data(run, data.to_json())
    return config, data


def load_shown(config: "TrainConfig", log: Console) -> tuple["TrainConfig", "Data"]:
    """`load_data`, with a bar for the images."""
    from gradflow.training.images import load_data

    with progress(log, "images") as (bar, task):
        return load_data(
            config, progress=lambda n_done, n: bar.update(task, completed=n_done, total=n)
        )
