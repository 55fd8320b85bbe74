"""Trainings of the experiments: what is finished is not trained again, what stopped goes on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gradflow.training.rundir import RunDir


def gradflow(*arguments: str | Path) -> str:
    """What the command prints on stdout."""
    command = [sys.executable, "-m", "gradflow", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def begun_in(out: Path) -> RunDir | None:
    """The newest run in a folder, None where none was begun."""
    configs = sorted(out.glob("*/config.yaml"))
    return RunDir.open(configs[-1].parent) if configs else None


def finished(begun: RunDir | None, *options: str | Path) -> RunDir:
    """`begun`, resumed if it stopped, or else a run that is trained with these options."""
    if begun is not None and begun.is_finished:
        return begun
    how = options if begun is None else ("--resume", begun.path)
    return RunDir.open(Path(json.loads(gradflow("train", "--json", *how))["run"]))


def environment(run: RunDir) -> dict[str, Any]:
    """What a run was made with, as far as it is needed to repeat it: no paths of this machine."""
    found = run.environment()
    kept = ("gradflow", "commit", "started", "python", "packages", "device", "processes")
    return {key: found[key] for key in kept}
