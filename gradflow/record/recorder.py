"""Recorder: takes the measures while a model trains. The only module that touches hooks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradflow.record import measures
from gradflow.record.schedule import Schedule
from gradflow.record.schedule import every as every_n
from gradflow.record.trace import FOLDER, Trace

# Recorded steps that are kept on the device before they are written: few enough to lose little
# when a process is killed, enough to make files of a useful size.
BUFFER_STEPS = 64


@dataclass(frozen=True)
class _Site:
    """An output: the module's qualified name and which call of it in one forward pass."""

    module: str
    call: int

    def __str__(self) -> str:
        return self.module if self.call == 0 else f"{self.module}#{self.call}"


@dataclass
class _Step:
    """What one optimizer step has brought so far; the tensors are still on their device."""

    # (sums, number of elements, number of channels), one entry per forward pass.
    outputs: dict[_Site, list[tuple[Tensor, int, int]]] = field(default_factory=dict)
    gradients: dict[_Site, list[tuple[Tensor, int]]] = field(default_factory=dict)
    parameters: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    updates: dict[str, Tensor] = field(default_factory=dict)
    grad_scale: Tensor | None = None  # of the output gradients, under automatic mixed precision

    def tensors(self) -> Iterator[Tensor]:
        for passes in self.outputs.values():
            yield from (entry[0] for entry in passes)
        for grads in self.gradients.values():
            yield from (entry[0] for entry in grads)
        yield from (entry[0] for entry in self.parameters.values())
        yield from (update.reshape(1) for update in self.updates.values())
        if self.grad_scale is not None:
            yield self.grad_scale.reshape(1)


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
    the outputs can be given in true size. `first_step` is the number of steps done before.

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
        self.scaler = scaler
        self.step = first_step
        self.skipped_steps: list[int] = []
        self._with_updates = updates
        self._parameters = dict(model.named_parameters())
        _check_optimizer_fits(self.optimizer, self._parameters)
        self._sites = dict(_find_sites(model)) if outputs else {}
        self._kinds = {name: _kind(module) for name, module in model.named_modules()}
        self._site_hooks: list[RemovableHandle] = []
        self._depth: dict[_Site, int] = {}  # in order of first execution
        self._calls: dict[str, int] = {}
        self._recomputed_calls: dict[str, int] = {}
        self._current = _Step()
        self._copies: dict[str, Tensor] = {}  # memory for the parameters before a step
        self._before: dict[str, Tensor] = {}
        self._pending: list[tuple[int, _Step]] = []
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
        if self.folder is None:
            return Trace.concat(self._flushed)
        return Trace.load(self.folder)

    def flush(self) -> Trace | None:
        """Bring the buffered steps to the host, write them, and return them (None if none)."""
        if not self._pending:
            return None
        chunk = _to_trace(self._pending, self._depth, list(self._parameters), self._kinds)
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
        if self._current.gradients and self._gradients_were_dropped():
            # The backward pass of these outputs is over and its gradients are gone without an
            # optimizer step: a GradScaler met an inf and skipped it.
            self.skipped_steps.append(self.step)
            self._current = _Step()

    def _gradients_were_dropped(self) -> bool:
        return all(parameter.grad is None for parameter in self._parameters.values())

    def _output_hook(self, name: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            tensor = _first_floating_tensor(output)
            if tensor is None or not self.model.training or not torch.is_grad_enabled():
                return
            site = self._next_site(name)
            if site is None:
                return
            x = tensor.detach()
            x = x.reshape(1, -1) if x.dim() < 2 else x
            channel_dim = _channel_dim(module, x)
            entry = (measures.output_sums(x, channel_dim), x.numel(), x.shape[channel_dim])
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

    def _next_site(self, name: str) -> _Site | None:
        """The site of this call, or None where activation checkpointing repeats a known one."""
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward and name in self._calls:
            return None  # the first time was recorded, and its output carries the gradient hook
        calls = self._recomputed_calls if in_backward else self._calls
        site = _Site(name, calls.get(name, 0))
        calls[name] = site.call + 1
        self._depth.setdefault(site, len(self._depth))
        return site

    @staticmethod
    def _keep_gradient(step: _Step, site: _Site, grad: Tensor) -> None:
        entry = (measures.gradient_sums(grad), grad.numel())
        step.gradients.setdefault(site, []).append(entry)

    # -- the optimizer's step ----------------------------------------------------------------

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if not self.schedule(self.step):
            return
        scale = _fused_scale(optimizer)
        self._current.grad_scale = self._scale_of_outputs(scale)
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
        return torch.tensor(self.scaler.get_scale())

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if self.schedule(self.step):
            for name, before in self._before.items():
                after = self._parameters[name]
                self._current.updates[name] = measures.update_square_sum(after, before)
            self._before = {}
            self._pending.append((self.step, self._current))
        self._current = _Step()
        self.step += 1
        self._calls, self._recomputed_calls = {}, {}
        self._arm()
        if len(self._pending) >= BUFFER_STEPS:
            self.flush()


# -- from device sums to a Trace ---------------------------------------------------------------


def _to_trace(
    steps: list[tuple[int, _Step]],
    depth: dict[_Site, int],
    parameters: list[str],
    kinds: dict[str, str],
) -> Trace:
    """Finish the measures of some steps on the host, in float64."""
    seen = {site for _, step in steps for site in (*step.outputs, *step.gradients)}
    outputs = sorted(seen, key=depth.__getitem__)
    rows = _in_depth_order(outputs, parameters, depth)
    column = {name: i for i, name in enumerate(rows)}
    values = {name: np.full((len(steps), len(rows)), np.nan) for name in measures.MEASURES}
    sizes = np.zeros(len(rows), dtype=np.int64)
    for index, (_, step) in enumerate(steps):
        for name, size, row in _finish(step):
            sizes[column[name]] = sizes[column[name]] or size
            for measure, value in row.items():
                values[measure][index, column[name]] = value
    return Trace(
        steps=np.array([step for step, _ in steps], dtype=np.int64),
        sites=tuple(rows),
        kinds=tuple(_site_kind(name, rows[name], kinds) for name in rows),
        sizes=sizes,
        values=values,
    )


def _finish(step: _Step) -> Iterator[tuple[str, int, dict[str, float]]]:
    """(site, size, measures) of everything that one step recorded."""
    host = iter(_to_host(list(step.tensors())))
    outputs = {s: np.stack([next(host) for _ in passes]) for s, passes in step.outputs.items()}
    grads = {s: np.stack([next(host) for _ in passes]) for s, passes in step.gradients.items()}
    parameters = {name: next(host) for name in step.parameters}
    updates = {name: float(next(host)[0]) for name in step.updates}
    scale = float(next(host)[0]) if step.grad_scale is not None else 1.0
    for site, sums in outputs.items():
        n = np.array([entry[1] for entry in step.outputs[site]])
        n_channels = np.array([entry[2] for entry in step.outputs[site]])
        row = measures.finish_output(sums, n, n_channels)
        if site in grads:
            grad_sums = grads[site] / np.array([scale**2, 1.0])
            grad_n = np.array([entry[1] for entry in step.gradients[site]])
            row |= measures.finish_gradient(grad_sums, grad_n)
        yield str(site), int(n.sum()), row
    for name, sums in parameters.items():
        row = measures.finish_parameter(sums, updates.get(name, np.nan))
        yield name, step.parameters[name][1], row


def _to_host(tensors: list[Tensor]) -> list[np.ndarray]:
    """The vectors as float64 arrays, in one copy where they share a device."""
    if len({tensor.device for tensor in tensors}) > 1:
        tensors = [tensor.cpu() for tensor in tensors]
    if not tensors:
        return []
    joined = torch.cat(tensors).cpu().double().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])
    return np.split(joined, ends[:-1])


def _in_depth_order(
    outputs: list[_Site], parameters: list[str], depth: Mapping[_Site, int]
) -> dict[str, str]:
    """Site name -> module name, the input end first.

    Outputs stand in order of execution, and a module's parameters right after its output. The
    parameters of a module that was not seen to run follow those registered before them.
    """
    order: list[tuple[tuple[int, int, int], str, str]] = []
    for site in outputs:
        order.append(((depth[site], 0, 0), str(site), site.module))
    last = -1
    for index, name in enumerate(parameters):
        module = name.rpartition(".")[0]
        last = depth.get(_Site(module, 0), last)
        order.append(((last, 1, index), name, module))
    return {name: module for _, name, module in sorted(order)}


def _site_kind(name: str, module: str, kinds: dict[str, str]) -> str:
    kind = kinds.get(module, "other")
    return kind if name.partition("#")[0] == module else f"{kind}.{name.rpartition('.')[2]}"


# -- what is a site ----------------------------------------------------------------------------

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
_ACTIVATIONS = tuple(
    getattr(nn.modules.activation, name)
    for name in nn.modules.activation.__all__
    if name != "MultiheadAttention"
)


def _find_sites(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers whose output is measured: activations, attention, and leaves with parameters."""
    for name, module in model.named_modules():
        is_leaf = next(module.children(), None) is None
        has_parameters = next(module.parameters(recurse=False), None) is not None
        if isinstance(module, (*_ACTIVATIONS, nn.MultiheadAttention)) or (
            is_leaf and has_parameters
        ):
            yield name, module


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _NORMS) or "norm" in type(module).__name__.lower():
        return "norm"
    if isinstance(module, _ACTIVATIONS):
        return "activation"
    return "other"


def _channel_dim(module: nn.Module, output: Tensor) -> int:
    """Dimension 1 of (N, C, H, W) and (N, C); the last of (N, T, C) and of what acts on it."""
    acts_on_last = isinstance(module, (nn.Linear, nn.LayerNorm))
    return output.dim() - 1 if acts_on_last or output.dim() == 3 else 1


def _first_floating_tensor(output: object) -> Tensor | None:
    """The tensor to measure in what a module returned: LSTMs give tuples, other models dicts."""
    if isinstance(output, Tensor):
        measurable = output.is_floating_point() or output.is_complex()
        return output if measurable and output.numel() else None
    parts: Any = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, (tuple, list)):
        parts = output
    elif is_dataclass(output):
        parts = vars(output).values()
    for part in parts:
        tensor = _first_floating_tensor(part)
        if tensor is not None:
            return tensor
    return None


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
