"""Recorder: takes the measures while a model trains."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradflow.record.measures import DEFAULT_MEASURES, Measure, choose
from gradflow.record.outputs import OutputHooks
from gradflow.record.parameters import ParameterReads
from gradflow.record.processes import Processes
from gradflow.record.schedule import MaxOverhead, Schedule
from gradflow.record.schedule import every as every_n
from gradflow.record.sites import kind_of
from gradflow.record.steps import DeadChannels, Pass, RecordedStep, compact, to_trace
from gradflow.record.trace import FOLDER, Trace, load_parts, load_skipped_steps, save_skipped_steps

# Recorded steps that are kept on the device before they are written: few enough to lose little
# when a process is killed, enough to make files of a useful size.
BUFFER_STEPS = 64


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
    reduced on the spot: no tensor is kept. Parameters and their gradients are read when the
    optimizer steps, so after accumulation, clipping and all-reduce: as the optimizer receives
    them. On steps that are not recorded the modules carry no hook. The numbers stay on the device
    until 64 steps are full, or until `flush`, `trace` or `close`.

    `every` is a number of optimizer steps, a schedule `step -> bool`, or `MaxOverhead(0.02)`,
    which finds the interval by itself. `measures` are names of `MEASURES`, or a `Measure` of your
    own; what none of them needs is not read. With a `folder` the trace goes there as Parquet
    files, otherwise it is held in memory. Under float16 with a GradScaler, pass it as `scaler`, so
    that the gradients of the outputs can be given in true size. `skipped_steps` lists the steps
    that came to nothing. `first_step` is the number of steps done before.

    Under DistributedDataParallel give it the wrapped model, on every process: what it records is
    then that of the whole batch, and the first process writes. Where no torch optimizer makes the
    update, give None and put the update into `with recorder.around_step():`.

    A model in eval mode, or under `no_grad`, is not recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        *,
        every: int | Schedule = 1,
        measures: Sequence[str | Measure] = DEFAULT_MEASURES,
        folder: str | Path | None = None,
        scaler: Any = None,
        first_step: int = 0,
    ) -> None:
        self.measures = choose(measures)
        with_outputs = any(measure.of != "parameter" for measure in self.measures)
        processes = Processes(getattr(model, "_orig_mod", model))  # of torch.compile
        self.model = model = _unwrap(model, with_outputs)
        # accelerate hands out wrappers; the hooks belong on the optimizer inside.
        self.optimizer: Optimizer | None = getattr(optimizer, "optimizer", optimizer)
        _check_optimizer_fits(self.optimizer, model)
        self.schedule: Schedule = every if callable(every) else every_n(every)
        self.folder = None if folder is None else Path(folder)
        _check_folder_is_free(self.folder, first_step)
        self.scaler = scaler
        self.step = first_step
        self.skipped_steps = load_skipped_steps(self.folder) if self.folder is not None else []
        self._processes = processes
        self._outputs = OutputHooks(model, self.measures, self._skip) if with_outputs else None
        self._parameters = ParameterReads(model, self.optimizer, self.measures, processes)
        self._dead = DeadChannels()
        self._passes: list[Pass] = []  # of the step that is coming to its end
        self._grad_scale = torch.ones(())
        self._found_inf: Tensor | None = None
        self._last: RecordedStep | None = None
        self._is_scheduled = False
        self._was_seen = False  # whether an output was ever measured
        self._pending: list[RecordedStep] = []
        self._flushed: list[Trace] = []
        self._stopwatch = _Stopwatch(self.schedule)
        processes.meet()
        self._optimizer_hooks = [] if self.optimizer is None else [
            self.optimizer.register_step_pre_hook(self._on_step),
            self.optimizer.register_step_post_hook(self._after_hook),
        ]  # fmt: skip
        self._arm()

    # -- the user's side ---------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def around_step(self) -> Iterator[None]:
        """Count the update inside as one step: for updates that no torch optimizer makes.

        Gradients must be there on entry. Nothing is counted where the update raises.
        """
        self._before_step()
        yield
        self._after_step()

    @property
    def trace(self) -> Trace:
        """Everything recorded so far. This waits for the device."""
        self.flush()
        if self.folder is not None:
            return load_parts(self.folder)
        return Trace.concat(self._flushed).with_skipped(self.skipped_steps)

    def flush(self) -> Trace | None:
        """Bring the buffered steps to the host, write them, and return them (None if none)."""
        start = time.perf_counter()
        self.skipped_steps += [step.step for step in self._pending if step.was_skipped()]
        if self.folder is not None and self._processes.is_first:
            save_skipped_steps(self.folder / FOLDER, self.skipped_steps)
        if not self._pending:
            return None
        kinds = {name: kind_of(module) for name, module in self.model.named_modules()}
        depth = self._outputs.depth if self._outputs is not None else {}
        feeds = self._outputs.feeds if self._outputs is not None else None
        chunk = to_trace(self._pending, self.measures, depth, kinds, self._dead)
        chunk = replace(chunk, feeds=dict(feeds) if feeds else None)
        n_steps = len(self._pending)
        self._pending = []
        if self.folder is None:
            self._flushed.append(chunk)
        else:
            chunk.save_part(self.folder / FOLDER)
        self._stopwatch.flushed(n_steps, time.perf_counter() - start)
        return chunk

    def close(self) -> None:
        """Take every hook off the model and the optimizer, and flush. More calls do nothing."""
        self._disarm()
        for hook in self._optimizer_hooks:
            hook.remove()
        self.flush()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs so that records go on as if training had not stopped.

        Tensors and plain numbers: what measures over several steps compare with.
        """
        self.flush()
        return {"parameters": self._parameters.state_dict(), "dead": self._dead.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; `first_step` is the step at which it was taken."""
        self._parameters.load_state_dict(state["parameters"])
        self._dead.load_state_dict(state["dead"])

    # -- arming ------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Hook the model if the coming step is to be recorded, unhook it if it is not."""
        self._is_scheduled = bool(self.schedule(self.step))
        if isinstance(self.schedule, MaxOverhead):  # every process has timed its own steps
            self._is_scheduled = self._processes.first_says(self._is_scheduled)
        if not self._is_scheduled:
            self._disarm()
            return
        self._parameters.attach()
        if self._outputs is not None:
            self._outputs.attach()

    def _disarm(self) -> None:
        self._parameters.detach()
        if self._outputs is not None:
            self._outputs.detach()

    def _skip(self) -> None:
        self.skipped_steps.append(self.step)

    # -- the optimizer's step ----------------------------------------------------------------

    def _on_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Read the gradients now, or, where a closure makes them inside the step, after it."""
        in_args = len(args) > 1 and callable(args[1])
        closure = args[1] if in_args else kwargs.get("closure")
        if closure is None:
            self._before_step()
            return None
        is_first = True

        def recorded_closure() -> Any:
            nonlocal is_first
            loss = closure()
            if is_first:  # LBFGS calls it several times; the first is at the weights before
                is_first = False
                self._before_step()
            elif self._outputs is not None:
                self._outputs.take()
            return loss

        if in_args:
            return (args[0], recorded_closure, *args[2:]), kwargs
        return args, {**kwargs, "closure": recorded_closure}

    def _after_hook(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        self._after_step()

    @torch.no_grad()
    def _before_step(self) -> None:
        if not self._is_scheduled:
            return
        if self._outputs is not None:
            self._passes = self._outputs.take()
        scale = _fused_scale(self.optimizer)
        self._grad_scale = self._scale_of_outputs(scale)
        # The optimizer lets go of it after its step.
        self._found_inf = getattr(self.optimizer, "found_inf", None) if scale is not None else None
        self._parameters.before_step(scale, self._grad_scale)

    def _scale_of_outputs(self, fused_scale: Tensor | None) -> Tensor:
        """What the loss, and so the gradients of the outputs, are multiplied by."""
        if fused_scale is not None:
            return fused_scale.reshape(())
        is_scaled = self.scaler is not None and self.scaler.is_enabled()
        return torch.tensor(self.scaler.get_scale() if is_scaled else 1.0)

    @torch.no_grad()
    def _after_step(self) -> None:
        if self._is_scheduled:
            parameters = self._parameters.after_step()
            self._check_was_seen()
            step = compact(
                self.step, self._passes, parameters, self._grad_scale, self._found_inf, self._last
            )
            self._passes = []
            step = self._last = self._processes.gather(step)
            if self._processes.is_first:
                self._pending.append(step)
        self._stopwatch.step(self._is_scheduled)
        self.step += 1
        self._arm()
        if len(self._pending) >= BUFFER_STEPS:
            self.flush()

    def _check_was_seen(self) -> None:
        """A Recorder that sees nothing says so, at the first step."""
        self._was_seen = self._was_seen or bool(self._passes)
        if self._outputs is None or self._was_seen:
            return
        if all(parameter.grad is None for parameter in self.model.parameters()):
            return
        self.close()
        raise RuntimeError(
            "Expected to see the outputs of the model's layers in this step, but no layer ran "
            "through its hooks although the parameters have gradients. Was the model compiled "
            "before the Recorder was made, in eval mode, or called as `model.forward(x)`? Make the "
            "Recorder before the first compiled call, call `model.train()` and `model(x)`, or "
            "record parameters only: `measures=PARAMETER_MEASURES`."
        )


class _Stopwatch:
    """Tells a schedule that asks for it how long steps take, with and without recording."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule if isinstance(schedule, MaxOverhead) else None
        self._last: float | None = None

    def step(self, is_recorded: bool) -> None:
        if self._schedule is not None:
            now = time.perf_counter()
            if self._last is not None:
                self._schedule.saw_step(is_recorded, now - self._last)
            self._last = now

    def flushed(self, n_steps: int, seconds: float) -> None:
        if self._schedule is not None:
            self._schedule.saw_flush(n_steps, seconds)
            self._last = None  # the flush must not count as a long step


# -- refusals ----------------------------------------------------------------------------------


def _unwrap(model: nn.Module, with_outputs: bool) -> nn.Module:
    """The module whose layers carry the user's names, or a clear refusal."""
    if isinstance(model, nn.DataParallel):
        raise TypeError(
            "Expected a module, but got nn.DataParallel, whose replicas live for one forward pass "
            "only. Use DistributedDataParallel, or pass `model.module` and one device."
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return _unwrap(model.module, with_outputs)
    compiled_from = getattr(model, "_orig_mod", None)
    if isinstance(compiled_from, nn.Module):
        if with_outputs:
            raise TypeError(
                "Expected an uncompiled module, but got one from torch.compile, which would "
                "silently skip hooks added now. Give the Recorder the module before it is "
                "compiled, and then compile; or record the parameters only: "
                "`measures=PARAMETER_MEASURES`."
            )
        return _unwrap(compiled_from, with_outputs)
    wrappers = {type(module).__name__ for module in model.modules()}
    types = {type(parameter).__name__ for parameter in model.parameters()}
    if "FullyShardedDataParallel" in wrappers or "DTensor" in types:
        raise TypeError(
            "Expected whole parameters, but got sharded ones (FSDP, tensor parallel). gradflow "
            "cannot record those yet: train with DistributedDataParallel to record."
        )
    return model


def _check_folder_is_free(folder: Path | None, first_step: int) -> None:
    """Records of two trainings in one folder would read as one."""
    later = len(load_parts(folder, from_step=first_step)) if folder is not None else 0
    if later:
        raise FileExistsError(
            f"Expected no records from step {first_step} on in {folder}, but it holds {later} "
            "recorded steps. Give another folder, remove them, or give the `first_step` at which "
            "training goes on."
        )


def _check_optimizer_fits(optimizer: Optimizer | None, model: nn.Module) -> None:
    if optimizer is None:
        return
    if not hasattr(optimizer, "register_step_pre_hook"):
        raise TypeError(
            f"Expected a torch.optim.Optimizer, but got {type(optimizer).__name__}. Pass None, and "
            "put its update into `with recorder.around_step():`."
        )
    ours = {id(parameter) for parameter in model.parameters()}
    theirs = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not ours & theirs:
        raise ValueError(
            "Expected `optimizer` to hold parameters of `model`, but it holds none of them. "
            "Make it with `model.parameters()` of the same model."
        )


def _fused_scale(optimizer: Optimizer | None) -> Tensor | None:
    """The loss scale that a fused optimizer will divide its gradients by, inside its step."""
    scale = getattr(optimizer, "grad_scale", None)
    return scale if isinstance(scale, Tensor) else None
