"""Weights & Biases: one run, in a folder or sent. With the workspace, all that imports wandb."""

import contextlib
import io
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import wandb
import wandb.errors

from gradflow.present.tracking.sink import LAYER, STEP, Cell

Mode = Literal["offline", "online"]

# Of what is logged, the series whose last values stand in a run's summary, beside those that
# `finish` is given, with which they are a dozen: a table of runs shows a column for each.
IN_SUMMARY = ("train/loss_epoch", "val/loss")

HISTOGRAM_FIELDS = ("._type", ".bins", ".values")  # of a histogram; each counts as a key


class WandbSink:
    """A W&B run in `folder`/wandb. Several may be open in one process.

    "offline" needs no account and no network, and asks for nothing. "online" raises RuntimeError
    where nobody is logged in or W&B cannot be reached. An API key is read by wandb alone. Of the
    machine only its name goes into the run: no source code, git state, command line or hardware.

    The run has an id of its own, also where the environment or a sweep sets one for the process,
    which several networks would share: group and job type connect them, and the configuration says
    under `wandb` which run or sweep it was.

    `resume_id` is the `id` of an earlier run to go on with. Offline the continuation is a folder
    of its own with that id: upload it with `wandb sync --append`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mode: Mode,
        project: str,
        group: str,
        name: str,
        job_type: str,
        config: Mapping[str, Any],
        resume_id: str | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)  # wandb would go to a temporary folder
        try:
            with unattended(), _on_its_own() as outer:
                self._run = wandb.init(
                    mode=mode,
                    dir=folder,
                    project=project,
                    group=group,
                    job_type=job_type,
                    name=name,
                    config=dict(config) | ({"wandb": outer} if outer else {}),
                    id=resume_id or secrets.token_hex(6),
                    resume="allow" if resume_id and mode == "online" else None,
                    reinit="create_new",  # beside other runs, and beside the user's own
                    settings=_settings(),
                )
        except wandb.errors.Error as error:
            raise _refused(mode, error) from error
        self._seen: set[str] = set()
        self._run.define_metric(STEP)
        self._run.define_metric(LAYER)
        self._run.define_metric("profile/*", step_metric=LAYER)
        self._run.define_metric("*", step_metric=STEP)

    @property
    def id(self) -> str:
        """What `resume_id` takes to go on with this run."""
        return str(self._run.id)

    def log(self, values: Mapping[str, float], at: int, axis: str = STEP) -> None:
        self._keep_out_of_summary({*values, axis}, axis)
        self._run.log({**values, axis: at})

    def _keep_out_of_summary(
        self, keys: set[str], axis: str, fields: Sequence[str] = ("",)
    ) -> None:
        for key in keys - self._seen:
            self._seen.add(key)
            if key not in IN_SUMMARY:
                # By its name, in which a dot would part it: in a pattern W&B overlooks such keys.
                name = key.replace(".", "\\.")
                step = None if key == axis else axis
                for field in fields:
                    self._run.define_metric(f"{name}{field}", step_metric=step, summary="none")

    def histogram(self, key: str, counts: np.ndarray, edges: np.ndarray, at: int) -> None:
        self._keep_out_of_summary({key}, STEP, HISTOGRAM_FIELDS)
        found = wandb.Histogram(np_histogram=(counts.tolist(), edges.tolist()))
        self._run.log({key: found, STEP: at})

    def picture(self, key: str, pixels: np.ndarray, at: int) -> None:
        self._run.log({key: wandb.Image(pixels), STEP: at})

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        self._run.log({key: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def finish(self, summary: Mapping[str, Cell], *, failed: bool = False) -> None:
        """Online this waits for the upload."""
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=1 if failed else 0)


def check_login() -> None:
    """Raises RuntimeError where nobody is logged in, or W&B cannot be reached."""
    try:
        with unattended():
            wandb.login()
    except wandb.errors.Error as error:
        raise _refused("online", error) from error


def _refused(mode: Mode, error: Exception) -> RuntimeError:
    return RuntimeError(
        f"Expected W&B to start a run {mode}, but got: {error} "
        "Log in with `wandb login`, or train with `--wandb offline`."
    )


def _settings() -> wandb.Settings:
    return wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        sagemaker_disable=True,  # it would name the run after the job
    )


# Of wandb's settings, what says which run this process is; read from the environment.
_WHICH_RUN = (
    "run_id", "run_name", "resume", "resume_from", "fork_from", "sweep_id", "sweep_param_path",
    "launch",
)  # fmt: skip


@contextlib.contextmanager
def _on_its_own() -> Iterator[dict[str, str]]:
    """Hide from `wandb.init` which run the process is; hands out the run's id and the sweep's."""
    settings = wandb.setup().settings
    before = {name: getattr(settings, name) for name in _WHICH_RUN}
    try:
        for name in _WHICH_RUN:
            setattr(settings, name, False if name == "launch" else None)
        yield {name: before[name] for name in ("run_id", "sweep_id") if before[name]}
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


@contextlib.contextmanager
def unattended() -> Iterator[None]:
    """Let wandb start without asking and without reporting home, then put everything back.

    On a terminal wandb asks for an API key when it has none. Training must not stop to ask: a
    standard input that is no terminal makes it raise instead.
    """
    quiet = {"WANDB_ERROR_REPORTING": "false", "WANDB_DISABLE_CODE": "true"}
    before = {name: os.environ.get(name) for name in quiet}
    stdin = sys.stdin
    try:
        os.environ.update(quiet)
        sys.stdin = io.StringIO()
        yield
    finally:
        sys.stdin = stdin
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
