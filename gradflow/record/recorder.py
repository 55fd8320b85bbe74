"""Recorder: takes the measures while a model trains."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradflow.record.buffer import Buffer, Show, Watchers, check_folder_is_free
from gradflow.record.measures import DEFAULT_MEASURES, Measure, choose
from gradflow.record.memory import HOST
from gradflow.record.models import unwrapped_model
from gradflow.record.optimizers import StepHooks, check_optimizers_fit, fused_scale, unwrapped
from gradflow.record.outputs import OutputHooks
from gradflow.record.parameters import ParameterReads
from gradflow.record.processes import Processes
from gradflow.record.readable import NotTaken
from gradflow.record.schedule import DEFAULT_CADENCE, Cadence, MaxOverhead, Schedule, Stopwatch
from gradflow.record.schedule import every as every_n
from gradflow.record.sites import kind_of
from gradflow.record.steps import DeadChannels, Layout, RecordedStep, compact, to_trace
from gradflow.record.trace import Trace
from gradflow.record.unseen import MissedOutputs, UnseenSteps


class Recorder:
    """Record gradient norms, activation statistics and updates of `model`, layer by layer.

    Put it before the training loop; the loop stays as it is::

        with Recorder(model, optimizer, every=16) as recorder:
            for images, labels in batches:
                optimizer.zero_grad()
                loss(model(images), labels).backward()
                optimizer.step()
        recorder.trace.select("grad_norm")

    Outputs are measured in forward hooks and their gradients in hooks on the output tensors, both
    reduced on the spot: no tensor is kept, but where a graph is kept for more backward passes. What
    counts are the backward passes that added to a parameter's gradient, if it is still there at the
    step. Parameters and their gradients are read when the optimizer steps, so after accumulation,
    clipping and all-reduce: as the optimizer receives them. On steps that are not recorded the
    modules carry no hook. The numbers stay on the device until 64 steps are full, or until `flush`,
    `trace` or `close`. What cannot be read is not taken (NaN), and the logger "gradflow" says so.

    `optimizer` is the one whose `step` you call. Of several, as in `[muon, adamw]`, a step is over
    when each has stepped; the parameters of each are read around its own, and where one steps again
    before the others have, its first counts. Parameters that none of them owns have no update.
    Where no torch optimizer makes the update, give None and put the update into
    `with recorder.around_step():`.

    `every` is a number of optimizer steps, a schedule `step -> bool`, or `MaxOverhead(0.02)`,
    which finds the interval by itself. The norms of gradients are taken at every recorded step;
    what is dearer (outputs, updates, weights, Adam's moments) at the full ones: the first 16, and
    then one in `cadence`. `measures` are names of `MEASURES`, or a `Measure` of your
    own; what none of them needs is not read. With a `folder` the trace goes there as Parquet
    files, otherwise it is held in memory. With `histograms`, it counts at the full steps how many
    elements of each parameter and of its gradient lie between which powers of two:
    `trace.histograms`, and of a folder `load_histograms`. Under float16 with a GradScaler, pass it
    as `scaler`, so that the gradients of the outputs can be given in true size. `skipped_steps`
    lists the steps whose update came to nothing, as where a GradScaler met an inf. `first_step` is
    the number of steps done before.

    Under DistributedDataParallel give it the wrapped model, on every process: what it records is
    then that of the whole batch, and the first process writes.

    A model in eval mode, or under `no_grad`, is not recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None,
        *,
        every: int | Schedule = 1,
        cadence: int = DEFAULT_CADENCE,
        measures: Sequence[str | Measure] = DEFAULT_MEASURES,
        folder: str | Path | None = None,
        scaler: Any = None,
        first_step: int = 0,
        histograms: bool = False,
    ) -> None:
        self.measures = choose(measures)
        with_outputs = any(measure.of != "parameter" for measure in self.measures)
        processes = Processes(getattr(model, "_orig_mod", model))  # of torch.compile
        self.model = model = unwrapped_model(model, with_outputs)
        given = optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]
        self.optimizers = tuple(map(unwrapped, given))
        check_optimizers_fit(self.optimizers, model)
        self.schedule: Schedule = every if callable(every) else every_n(every)
        self.folder = None if folder is None else Path(folder)
        check_folder_is_free(self.folder, first_step)
        self.scaler = scaler
        self.step = first_step
        self._loss: Tensor | float | None = None
        self._cadence = Cadence(cadence)
        # How many steps were recorded: what `every` says, or else a checkpoint.
        self._n_recorded = 0 if callable(every) else -(-first_step // every)
        self._processes = processes
        self._not_taken = not_taken = NotTaken()
        self._outputs = OutputHooks(
            model, self.measures, not_taken, self._on_discard, self._is_stepping
        )
        self._missed = MissedOutputs(model, self._outputs, not_taken)
        self._parameters = ParameterReads(
            model, self.optimizers, self.measures, processes, not_taken, histograms=histograms
        )
        self._grad_scale = torch.ones((), device=HOST)
        self._last_scale: float | None = None
        self._found_inf: Tensor | None = None
        self._layouts: list[Layout] = []
        self._is_scheduled = self._is_full = self._is_closed = False
        self._stepped: set[int] = set()  # optimizers, in the step that is under way
        self._stepping = Lock()  # optimizers may step in several threads
        self._unseen = UnseenSteps(model, self.optimizers)
        self._stopwatch = Stopwatch(self.schedule)
        self._buffer = Buffer(
            self.folder, processes.is_first, self._read, Watchers(not_taken), self._stopwatch
        )
        self._steps: list[StepHooks] = []
        processes.meet()
        try:
            self._arm()
            self._hook_optimizers()
        except BaseException:
            self._take_hooks_off()
            raise

    def _hook_optimizers(self) -> None:
        for i, optimizer in enumerate(self.optimizers):
            if optimizer is not None:
                self._steps.append(
                    StepHooks(
                        optimizer,
                        partial(self._begin_step, i),
                        partial(self._read_gradients, i),
                        partial(self._end_step, i),
                        self._listen,
                        self._not_taken,
                    )
                )

    # -- the user's side ---------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._close(warn=error is None)

    @contextmanager
    def around_step(self) -> Iterator[None]:
        """Count the update inside as one step: for updates that no torch optimizer makes.

        Gradients must be there on entry. Nothing is counted where the update raises.
        """
        self._begin_step(0, False)
        self._read_gradients(0)
        try:
            yield
        finally:
            self._listen(True)
        self._end_step(0)

    @property
    def trace(self) -> Trace:
        """Everything recorded so far. This waits for the device."""
        return self._buffer.trace()

    @property
    def skipped_steps(self) -> list[int]:
        """The steps whose update came to nothing, as where a GradScaler met an inf."""
        return self._buffer.skipped_steps

    @property
    def loss(self) -> Tensor | float | None:
        """The loss of a step, if the loop sets it: only to be shown, and read only then."""
        return self._loss

    @loss.setter
    def loss(self, loss: Tensor | float | None) -> None:
        self._loss = loss.detach() if isinstance(loss, Tensor) else loss

    def flush(self) -> Trace | None:
        """Bring the buffered steps to the host, write them, and return them (None if none)."""
        return self._buffer.flush()

    def tell(self, show: Show) -> None:
        """Have `show` called with the latest records while the model trains.

        With the steps that are not written yet, at most twice a second and for at most a two
        hundredth of the time, waiting for the device included; and with all of them when they are
        written. Where it raises, that is logged, and training goes on without it.
        """
        self._buffer.watchers.add(show)

    def _read(self, steps: Sequence[RecordedStep], dead: DeadChannels) -> Trace:
        """On the host."""
        kinds = {name: kind_of(module) for name, module in self.model.named_modules()}
        chunk = to_trace(steps, self.measures, self._outputs.depth, kinds, dead)
        return replace(chunk, feeds=dict(self._outputs.feeds) if self._outputs.feeds else None)

    def close(self) -> None:
        """Take every hook off the model and the optimizer, and flush. More calls do nothing.

        Warns where the model was trained and no step was seen.
        """
        self._close(warn=True)

    def _close(self, *, warn: bool) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        backward = self._outputs.backward
        backward.end()
        self._take_hooks_off()
        self.flush()
        if warn:
            has_backward = backward.n_counted > 0 if self._outputs.are_wanted else None
            self._unseen.tell(has_backward, stacklevel=3)

    def _take_hooks_off(self) -> None:
        self._disarm()
        for hooks in self._steps:
            hooks.remove()
        self._steps = []

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs so that records go on as if training had not stopped.

        Tensors and plain numbers: what measures over several steps compare with.
        """
        self.flush()
        return {
            "parameters": self._parameters.state_dict(),
            "dead": self._buffer.dead.state_dict(),
            "n_recorded": self._n_recorded,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; `first_step` is the step at which it was taken."""
        self._parameters.load_state_dict(state["parameters"])
        self._buffer.dead.load_state_dict(state["dead"])
        self._n_recorded = state.get("n_recorded", self._n_recorded)
        if self._is_scheduled:
            self._attach()

    # -- arming ------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Hook the model if the coming step is to be recorded, unhook it if it is not."""
        self._is_scheduled = bool(self.schedule(self.step))
        if isinstance(self.schedule, MaxOverhead):  # every process has timed its own steps
            self._is_scheduled = self._processes.first_says(self._is_scheduled)
        if not self._is_scheduled:
            self._disarm()
            return
        self._attach()

    def _attach(self) -> None:
        self._is_full = self._cadence.is_full(self._n_recorded)
        self._parameters.attach(is_full=self._is_full)
        self._outputs.attach(is_full=self._is_full)

    def _disarm(self) -> None:
        self._parameters.detach()
        self._outputs.detach()

    def _on_discard(self, has_nonfinite: bool) -> None:
        """Gradients were zeroed without a step: did a GradScaler skip it, or a loop that looks?"""
        scale = self._scale()
        fell = scale is not None and self._last_scale is not None and scale < self._last_scale
        self._last_scale = scale
        if has_nonfinite or fell:
            self.skipped_steps.append(self.step)

    # -- the optimizer's step ----------------------------------------------------------------

    def _is_stepping(self) -> bool:
        return any(hooks.is_running() for hooks in self._steps)

    def _listen(self, is_listening: bool) -> None:
        self._outputs.backward.is_listening = is_listening

    def _is_recorded(self, index: int) -> bool:
        return self._is_scheduled and index not in self._stepped

    @torch.no_grad()
    def _begin_step(self, index: int, has_closure: bool) -> None:
        """The user's step of an optimizer begins: what its weights are now."""
        self._unseen.begun(index)
        self._listen(False)
        if self._is_recorded(index):
            try:
                self._parameters.begin(index, has_closure=has_closure)
            except Exception as error:
                self._not_taken.failed("the parameters", error)

    @torch.no_grad()
    def _read_gradients(self, index: int) -> None:
        """The gradients are there; with a closure, after its first call."""
        if not self._is_recorded(index):
            self._outputs.backward.drop()
            return
        optimizer = self.optimizers[index]
        scale = fused_scale(optimizer)
        try:
            self._outputs.backward.settle(index)
            self._grad_scale = self._scale_of_outputs(scale)
            # The optimizer lets go of it after its step.
            self._found_inf = getattr(optimizer, "found_inf", None) if scale is not None else None
            self._parameters.read(index, scale, self._grad_scale)
        except Exception as error:
            self._not_taken.failed("the gradients", error)
        self._parameters.read_own(index, scale)

    def _scale_of_outputs(self, fused_scale: Tensor | None) -> Tensor:
        """What the loss, and so the gradients of the outputs, are multiplied by."""
        self._last_scale = self._scale()
        if fused_scale is not None:
            return fused_scale.reshape(())
        return torch.tensor(1.0 if self._last_scale is None else self._last_scale, device=HOST)

    def _scale(self) -> float | None:
        is_scaled = self.scaler is not None and self.scaler.is_enabled()
        return float(self.scaler.get_scale()) if is_scaled else None

    def _end_step(self, index: int) -> None:
        """The user's step of an optimizer has ended; that of the Recorder with the last of them."""
        try:
            if self._is_recorded(index):
                with torch.no_grad():
                    self._parameters.end(index)
        except Exception as error:
            self._not_taken.failed("the updates", error)
        self._listen(True)
        with self._stepping:
            self._stepped.add(index)
            is_over = len(self._stepped) == len(self.optimizers)
            if is_over:
                self._stepped.clear()
        if is_over:
            self._finish_step()

    @torch.no_grad()
    def _finish_step(self) -> None:
        if self._is_scheduled:
            try:
                self._keep_step()
                self._buffer.show_recent()
            except Exception as error:
                self._not_taken.failed("a step", error)
        self._stopwatch.step(self._is_scheduled, self._is_full)
        self._unseen.ended(self.step)
        self.step += 1
        self._n_recorded += self._is_scheduled
        self._arm()
        try:
            self._buffer.flush_if_full()
        except OSError as error:  # a full disk is no reason to stop training
            self._not_taken.failed("records to the files yet", error)

    def _keep_step(self) -> None:
        passes = self._outputs.take()
        parameters = self._parameters.take()
        step = compact(
            self.step, passes, parameters, self._grad_scale, self._found_inf, self._layouts
        )
        if self._outputs.are_wanted:
            self._missed.look(has_passes=bool(passes))
        step = self._processes.gather(step)
        if self._processes.is_first:
            self._buffer.pending.append(step)
