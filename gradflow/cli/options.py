"""Exit codes, and the kinds of options that several commands have."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gradflow.training.config import TrainConfig

OK, FAILED, USAGE, JUDGED, INTERRUPTED = 0, 1, 2, 3, 130

Flag = Annotated[bool, Parameter(negative=())]
Output = Annotated[Path | None, Parameter(name=("--output", "-o"))]
Config = Annotated[TrainConfig, Parameter(name="*")]  # one option for each of its fields
ConfigFile = Annotated[Path | None, Parameter(name="--config")]
SlurmOptions = Annotated[dict[str, str] | None, Parameter(name="--slurm")]
