"""`gradflow watch`: a training that goes on elsewhere, from its records on disk."""

import time
from pathlib import Path

from gradflow.cli.console import picture, show, stderr
from gradflow.cli.options import INTERRUPTED, OK, Flag


def watch(folder: Path | None = None, *, seconds: float = 2.0, once: Flag = False) -> int:
    """Show the gradients by depth of a running or finished training, from another terminal.

    On a terminal it refreshes until the run is done or Ctrl-C; elsewhere it prints once. Records
    are written every 64 recorded steps, and at the end of an epoch.

    Parameters
    ----------
    folder
        A run, one of its networks, or the folder of a Recorder; by default the newest in runs/.
    seconds
        Seconds between two refreshes.
    once
        Print once, and end.
    """
    from rich.live import Live

    if not 0.1 <= seconds <= 3600:
        raise ValueError(f"Expected `seconds` from 0.1 to 3600, but got {seconds:g}.")
    folder = _newest() if folder is None else folder
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected the folder of a training, but there is none: {folder}.")
    console = stderr()
    if once or not console.is_terminal:
        show(*_drawn(folder, console.width, console.encoding))
        return OK
    try:
        with Live(console=console, auto_refresh=False) as screen:
            while True:
                drawn = _drawn(folder, console.width, console.encoding)
                screen.update(picture(drawn), refresh=True)
                if (folder / "summary.json").exists():
                    return OK
                time.sleep(seconds)
    except KeyboardInterrupt:
        return INTERRUPTED


def _newest() -> Path:
    """The newest run, which may have begun just now."""
    runs = sorted(path.parent for path in Path("runs").glob("*/config.yaml"))
    if not runs:
        raise FileNotFoundError(
            "Expected a run in runs/, but there is none. Give the folder of a training."
        )
    return runs[-1]


def _drawn(folder: Path, width: int, encoding: str) -> list[str]:
    """The newest networks with records, or that there are none yet."""
    from gradflow.present.live import MOST, Moment, lines, moment
    from gradflow.present.terminal_plot import can_show_braille
    from gradflow.record.trace import load_last

    networks = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    found: dict[str, Moment] = {}
    for path in networks:
        trace = load_last(path) if path.name != "records" or path == folder else None
        now = moment(trace, _loss(path)) if trace is not None else None
        if now is not None:
            found[path.name] = now
    newest = sorted(found, key=lambda name: _age(folder, name))[-MOST:]
    drawn = lines({name: found[name] for name in newest}, width=width,
                  braille=can_show_braille(encoding))  # fmt: skip
    return drawn or [f"No records in {folder} yet (train with --log-grads, or with a Recorder)."]


def _age(folder: Path, name: str) -> float:
    path = folder / name / "records"
    return path.stat().st_mtime if path.exists() else 0.0


def _loss(network: Path) -> float | None:
    """The training loss of the last epoch; None where the folder is no network of a run."""
    from gradflow.training.rundir import NetworkDir

    history = NetworkDir(network, "", 0).history()
    return float(history[-1]["train_loss"]) if history else None
