"""Weights & Biases: one run per trained network. The only module that imports wandb."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import wandb
import wandb.errors
from matplotlib.axes import Axes

from gradflow.analysis.profile import depth_profile, weight_table
from gradflow.present import plots
from gradflow.record.trace import Table, Trace
from gradflow.training.fit import Epoch

Mode = Literal["offline", "online"]

STEP = "trainer/step"  # the horizontal axis of every panel: optimizer steps done before

# W&B's guidance is at most 1,000 values a log and 100,000 values a minute. 10,000 values an epoch
# keep to the second in epochs of 6 seconds or more, and shorter ones have few steps. With the 34
# layers of a ResNet-34 they are 142 steps; all steps stand in the run's own records.
VALUES_PER_LOG = 1_000
VALUES_PER_EPOCH = 10_000

IMAGE_DPI = 100  # 700 pixels wide: W&B shows a picture at 400 to 900


class WandbRun:
    """The W&B run of one network, in `folder`/wandb. Several may be open in one process.

    Per step it logs `train/loss` and, of each layer on the way from input to output,
    `grad_norm/<NN>.<layer>/weight` and `grad_norm/<NN>.<layer>/output` (‖∂L/∂w‖₂ and ‖∂L/∂z‖₂), NN
    being the layer's depth, so that panels sort from input to output. Per epoch: loss, accuracy,
    learning rate, and the pictures `gradient/heatmap` and `gradient/depth_profile`. NaN and inf
    are logged as they are.

    "offline" needs no account and no network, and asks for nothing. "online" raises RuntimeError
    where nobody is logged in or W&B cannot be reached. An API key is read by wandb alone. Of the
    machine only its name goes into the run: no source code, git state, command line or hardware.

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
        arch: str,
        seed: int,
        config: Mapping[str, Any],
        resume_id: str | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)  # wandb would go to a temporary folder
        self.name = f"{arch}-s{seed}"
        try:
            with _unattended():
                self._run = wandb.init(
                    mode=mode,
                    dir=folder,
                    project=project,
                    group=group,
                    job_type=arch,
                    name=self.name,
                    config={**config, "arch": arch, "seed": seed},
                    id=resume_id,
                    resume="allow" if resume_id and mode == "online" else None,
                    reinit="create_new",  # beside other runs, and beside the user's own
                    settings=_settings(),
                )
        except wandb.errors.Error as error:
            raise RuntimeError(
                f"Expected W&B to start a run {mode}, but got: {error} "
                "Log in with `wandb login`, or train with `--wandb offline`."
            ) from error
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    @property
    def id(self) -> str:
        """What `resume_id` takes to go on with this run."""
        return str(self._run.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)

    def log_epoch(self, epoch: Epoch, chunk: Trace | None, trace: Trace | None) -> None:
        """Log one epoch: `chunk` is what was recorded in it, `trace` everything recorded so far.

        Of more than `VALUES_PER_EPOCH` values, evenly spaced steps are logged.
        """
        for step, row in sorted(step_rows(epoch, chunk).items()):
            self._run.log({**row, STEP: step})
        pictures = {
            f"gradient/{key}": wandb.Image(plots.to_pixels(plots.figure_of(ax), IMAGE_DPI))
            for key, ax in _pictures(self.name, epoch.index, chunk, trace).items()
        }
        self._run.log(
            {
                "train/loss_epoch": epoch.train_loss,
                "train/accuracy": epoch.train_accuracy,
                "val/loss": epoch.val_loss,
                "val/accuracy": epoch.val_accuracy,
                "lr": epoch.lr,
                "epoch": epoch.index,
                **pictures,
                STEP: epoch.step,
            }
        )

    def close(self, summary: Mapping[str, Any]) -> None:
        """Add `summary` to the run's summary and end it. Online this waits for the upload."""
        self._run.summary.update(dict(summary))
        self._run.finish()


def step_rows(epoch: Epoch, chunk: Trace | None) -> dict[int, dict[str, float]]:
    """Step -> key -> value, within the limits on values per log and per epoch."""
    steps = [] if chunk is None else chunk.steps.tolist()
    tables = {} if chunk is None else _layer_tables(chunk)
    n_values = 2 + len(tables)  # with the loss and the step
    n_steps = max(1, VALUES_PER_EPOCH // n_values)
    rows: dict[int, dict[str, float]] = {}
    first = epoch.step - len(epoch.step_losses)
    for index in _evenly(len(epoch.step_losses), n_steps):
        rows[first + index] = {"train/loss": epoch.step_losses[index]}
    for index in _evenly(len(steps), n_steps):
        row = rows.setdefault(steps[index], {})
        row.update({key: float(values[index]) for key, values in tables.items()})
    return rows


def _layer_tables(trace: Trace) -> dict[str, np.ndarray]:
    """Key of a panel -> its values (steps,), in depth order."""
    # The norm of a weight is taken of frozen layers too, so that a layer keeps its number.
    layers = weight_table(trace, "weight_norm").sites
    weights = _columns(weight_table(trace))
    outputs = _columns(trace.select("output_grad_norm"))
    n_digits = max(2, len(str(len(layers) - 1)))
    tables = {}
    for depth in _evenly(len(layers), (VALUES_PER_LOG - 2) // 2):
        site = layers[depth]
        layer = site.removesuffix(".weight")
        for kind, column in ("weight", weights.get(site)), ("output", outputs.get(layer)):
            if column is not None:
                tables[f"grad_norm/{depth:0{n_digits}d}.{layer}/{kind}"] = column
    return tables


def _columns(table: Table) -> dict[str, np.ndarray]:
    return dict(zip(table.sites, table.values.T, strict=True))


def _evenly(n: int, most: int) -> list[int]:
    """At most `most` of the indices 0 to n - 1, evenly spaced, the first and the last with them.

    >>> _evenly(3, 5), _evenly(9, 5)
    ([0, 1, 2], [0, 2, 4, 6, 8])
    """
    if n <= most:
        return list(range(n))
    return [round(index) for index in np.linspace(0, n - 1, most).tolist()]


def _pictures(
    name: str, epoch_index: int, chunk: Trace | None, trace: Trace | None
) -> dict[str, Axes]:
    pictures = {}
    if trace is not None and len(trace):
        table = weight_table(trace)
        ax = plots.layer_step_heatmap(table.values, table.steps, table.sites, plots.GRAD_NORM)
        ax.set_title(f"{name}: {ax.get_title()}", parse_math=False)
        pictures["heatmap"] = ax
    traces = {f"epoch {epoch_index}": chunk, "all epochs so far": trace}
    profiles = {
        label: depth_profile(part)
        for label, part in traces.items()
        if part is not None and len(part)
    }
    if profiles:
        drawn = {label: (profile.sites, profile.values) for label, profile in profiles.items()}
        ax = plots.depth_profile_plot(drawn, plots.GRAD_NORM)
        ax.set_title(f"{name}: {ax.get_title()}", parse_math=False)
        pictures["depth_profile"] = ax
    return pictures


def _settings() -> wandb.Settings:
    return wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )


@contextlib.contextmanager
def _unattended() -> Iterator[None]:
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
