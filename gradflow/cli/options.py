"""Exit codes, and the kinds of options that several commands have."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from gradflow.cli.examples import GROUPS
from gradflow.training.config import TrainConfig

OK, FAILED, USAGE, JUDGED, INTERRUPTED = 0, 1, 2, 3, 130

Flag = Annotated[bool, Parameter(negative=())]
Output = Annotated[Path | None, Parameter(name=("--output", "-o"))]


def _set_groups(config: type[TrainConfig]) -> None:
    """Tell the fields of the config in which group of `train --help` they stand.

    Here and not in the class, since only the command line knows the library that reads them.
    """
    group = None
    for field in fields(config):
        group = Group.create_ordered(GROUPS[field.name]) if field.name in GROUPS else group
        config.__annotations__[field.name] = Annotated[field.type, Parameter(group=group)]


_set_groups(TrainConfig)


Config = Annotated[TrainConfig, Parameter(name="*")]  # one option for each of its fields
ConfigFile = Annotated[Path | None, Parameter(name="--config")]
SlurmOptions = Annotated[dict[str, str] | None, Parameter(name="--slurm")]
