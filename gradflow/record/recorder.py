"""Recorder: takes the measures while a model trains. The only module that touches hooks."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradflow.record import measures
from gradflow.record.schedule import Schedule
from gradflow.record.schedule import every as every_n
from gradflow.record.sites import channel_dim, find_sites, first_floating_tensor, kind_of
from gradflow.record.steps import RecordedStep, Site, to_trace
from gradflow.record.trace import FOLDER, Trace, load_parts

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

    `every` is a number of optimizer steps or a schedule `step -> bool`. With a `folder` the trace
    goes there as Parquet files, otherwise it is held in memory. `outputs=False` records the
    parameters only, and `updates=False` saves the copy of the parameters that measuring the true
    update takes. Under float16 with a GradScaler, pass it as `scaler`, so that the gradients of
    the outputs can be given in true size, and skipped steps be told: `skipped_steps` lists them.
    `first_step` is the number of steps done before.

    A model in eval mode, or under `no_grad`, is not recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        every: int | Schedule = 1,
        outputs: bool = True,
        updates: bool = True,
        folder: str | Path | None = None,
        scaler: Any = None,
        first_step: int = 0,
    ) -> None:
        self.model = model = _unwrap(model, outputs)
        # accelerate hands out wrappers; the hooks belong on the optimizer inside.
        self.optimizer: Optimizer = getattr(optimizer, "optimizer", optimizer)
        self.schedule: Schedule = every if callable(every) else every_n(every)
        self.folder = None if folder is None else Path(folder)
        _check_folder_is_free(self.folder, first_step)
        self.scaler = scaler
        self.step = first_step
        self.skipped_steps: list[int] = []
        self._with_updates = updates
        self._parameters = dict(model.named_parameters())
        _check_optimizer_fits(self.optimizer, self._parameters)
        self._sites = dict(find_sites(model)) if outputs else {}
        self._kinds = {name: kind_of(module) for name, module in model.named_modules()}
        self._site_hooks: list[RemovableHandle] = []
        self._depth: dict[Site, int] = {}  # in order of first execution
        self._calls: dict[str, int] = {}
        self._recomputed_calls: dict[str, int] = {}
        self._channel_dim: int | None = None  # of the layer that ran before
        self._current = RecordedStep()
        self._copies: dict[str, Tensor] = {}  # memory for the parameters before a step
        self._before: dict[str, Tensor] = {}
        self._pending: list[tuple[int, RecordedStep]] = []
        self._flushed: list[Trace] = []
        self._optimizer_hooks = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
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

    @property
    def trace(self) -> Trace:
        """Everything recorded so far. This waits for the device."""
        self.flush()
        return Trace.concat(self._flushed) if self.folder is None else load_parts(self.folder)

    def flush(self) -> Trace | None:
        """Bring the buffered steps to the host, write them, and return them (None if none)."""
        if not self._pending:
            return None
        self.skipped_steps += [step for step, recorded in self._pending if recorded.was_skipped()]
        chunk = to_trace(self._pending, self._depth, list(self._parameters), self._kinds)
        self._pending = []
        if self.folder is None:
            self._flushed.append(chunk)
        else:
            chunk.save_part(self.folder / FOLDER)
        return chunk

    def close(self) -> None:
        """Take every hook off the model and the optimizer, and flush. More calls do nothing."""
        self._disarm()
        for hook in self._optimizer_hooks:
            hook.remove()
        self._before = {}
        self._copies = {}
        self.flush()

    # -- arming ------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Hook the modules if the coming step is to be recorded, unhook them if it is not."""
        if not self.schedule(self.step):
            self._disarm()
            self._copies = {}
        elif self._sites and not self._site_hooks:
            self._site_hooks = [
                self.model.register_forward_pre_hook(self._new_forward),
                *(
                    module.register_forward_hook(self._output_hook(name, module))
                    for name, module in self._sites.items()
                ),
            ]

    def _disarm(self) -> None:
        for hook in self._site_hooks:
            hook.remove()
        self._site_hooks = []

    # -- forward and backward ----------------------------------------------------------------

    def _new_forward(self, module: nn.Module, args: object) -> None:
        self._calls, self._recomputed_calls = {}, {}
        self._channel_dim = None
        if self.scaler is not None and self._current.gradients and self._no_gradients():
            # The backward pass of these outputs is over and its gradients are gone without an
            # optimizer step: a GradScaler met an inf and skipped it.
            self.skipped_steps.append(self.step)
            self._current = RecordedStep()

    def _no_gradients(self) -> bool:
        return all(parameter.grad is None for parameter in self._parameters.values())

    def _output_hook(self, name: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            tensor = first_floating_tensor(output)
            if tensor is None or not self.model.training or not torch.is_grad_enabled():
                return
            site = self._next_site(name)
            if site is None:
                return
            x = tensor.detach()
            x = x.reshape(1, -1) if x.dim() < 2 else x
            dim = self._channel_dim = channel_dim(module, x, self._channel_dim)
            entry = (measures.output_sums(x, dim), x.numel(), x.shape[dim])
            # The step is bound now: a backward pass that comes after the optimizer has stepped
            # (two networks in turn, a retained graph) belongs to the step of its forward pass.
            step = self._current
            step.outputs.setdefault(site, []).append(entry)
            if tensor.requires_grad:
                # A full backward hook on the module would fail before an in-place ReLU or `+=`.
                tensor.register_hook(  # type: ignore[no-untyped-call]
                    lambda grad: self._keep_gradient(step, site, grad)
                )

        return hook

    def _next_site(self, name: str) -> Site | None:
        """The site of this call, or None where activation checkpointing repeats a known one."""
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward and name in self._calls:
            return None  # the first time was recorded, and its output carries the gradient hook
        calls = self._recomputed_calls if in_backward else self._calls
        site = Site(name, calls.get(name, 0))
        calls[name] = site.call + 1
        self._depth.setdefault(site, len(self._depth))
        return site

    @staticmethod
    def _keep_gradient(step: RecordedStep, site: Site, grad: Tensor) -> None:
        entry = (measures.gradient_sums(grad), grad.numel())
        step.gradients.setdefault(site, []).append(entry)

    # -- the optimizer's step ----------------------------------------------------------------

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if not self.schedule(self.step):
            return
        scale = _fused_scale(optimizer)
        self._current.grad_scale = self._scale_of_outputs(scale)
        if scale is not None:
            self._current.found_inf = getattr(optimizer, "found_inf", None)
        for name, parameter in self._parameters.items():
            grad = parameter.grad
            if grad is not None and scale is not None:
                grad = grad / scale.to(grad.device)
            entry = (measures.parameter_sums(parameter, grad), parameter.numel())
            self._current.parameters[name] = entry
            if self._with_updates and parameter.grad is not None:
                self._remember(name, parameter)

    def _remember(self, name: str, parameter: Tensor) -> None:
        """Copy the parameter, into the memory of the last copy where there was one."""
        copy = self._copies.get(name)
        if copy is None or copy.shape != parameter.shape or copy.dtype != parameter.dtype:
            copy = self._copies[name] = torch.empty_like(parameter)
        self._before[name] = copy.copy_(parameter)

    def _scale_of_outputs(self, fused_scale: Tensor | None) -> Tensor | None:
        if fused_scale is not None:
            return fused_scale
        if self.scaler is None or not self.scaler.is_enabled():
            return None
        device = next(iter(self._parameters.values())).device
        return torch.tensor(self.scaler.get_scale(), device=device)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if self.schedule(self.step):
            for name, before in self._before.items():
                after = self._parameters[name]
                self._current.updates[name] = measures.update_square_sum(after, before)
            self._before = {}
            self._pending.append((self.step, self._current))
        self._current = RecordedStep()
        self.step += 1
        self._calls, self._recomputed_calls = {}, {}
        self._arm()
        if len(self._pending) >= BUFFER_STEPS:
            self.flush()


# -- refusals ----------------------------------------------------------------------------------


def _unwrap(model: nn.Module, outputs: bool) -> nn.Module:
    """The module whose layers carry the user's names, or a clear refusal."""
    if isinstance(model, nn.DataParallel):
        raise TypeError(
            "Expected a module, but got nn.DataParallel, whose replicas live for one forward pass "
            "only. Use DistributedDataParallel, or pass `model.module` and one device."
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return _unwrap(model.module, outputs)
    compiled_from = getattr(model, "_orig_mod", None)
    if isinstance(compiled_from, nn.Module):
        if outputs:
            raise TypeError(
                "Expected an uncompiled module, but got one from torch.compile, which would "
                "silently skip hooks added now. Pass `outputs=False` to record its parameters."
            )
        return _unwrap(compiled_from, outputs)
    if any(type(parameter).__name__ == "DTensor" for parameter in model.parameters()):
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


def _check_optimizer_fits(optimizer: Optimizer, parameters: dict[str, nn.Parameter]) -> None:
    ours = {id(parameter) for parameter in parameters.values()}
    theirs = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not ours & theirs:
        raise ValueError(
            "Expected `optimizer` to hold parameters of `model`, but it holds none of them. "
            "Make it with `model.parameters()` of the same model."
        )


def _fused_scale(optimizer: Optimizer) -> Tensor | None:
    """The loss scale that a fused optimizer will divide its gradients by, inside its step."""
    scale = getattr(optimizer, "grad_scale", None)
    return scale if isinstance(scale, Tensor) else None
