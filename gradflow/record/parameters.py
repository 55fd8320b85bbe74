"""Parameters, their gradients and updates: read when the optimizer steps, without hooks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradflow.record.measures import Measure
from gradflow.record.processes import Processes
from gradflow.record.steps import ParameterSums
from gradflow.record.sums import (
    Moments,
    adam_sums,
    difference_sums,
    dot,
    gradient_sums,
    product_sums,
)

# Which parameters, and (parameters, sums).
_Read = tuple[tuple[str, ...], Tensor]
_NONE = torch.empty(0, dtype=torch.float64)


class ParameterReads:
    """Takes the sums of READS that the measures need, before and after an optimizer's step."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        measures: Sequence[Measure],
        processes: Processes,
    ) -> None:
        chosen = [measure for measure in measures if measure.of == "parameter"]
        self._model = model
        self._optimizer = optimizer
        self._processes = processes
        self._own = [measure for measure in chosen if measure.function is not None]
        self._reads = {measure.read for measure in chosen if measure.function is None}
        self._before = _Copies()  # weights before the step
        self._start = _Copies()
        self._last_grad = _Copies()
        self._sums = ParameterSums()  # of the step that is coming to its end
        self._grad_versions: dict[str, int] = {}
        self._micro = _MicroBatches() if "micro-batches" in self._reads else None
        if "adam" in self._reads:
            _check_is_adam(optimizer)
        if "start" in self._reads:
            self._take_starts(self._parameters())

    def attach(self) -> None:
        """Before a step that is to be recorded."""
        if self._micro is not None:
            self._micro.attach(self._parameters())

    def detach(self) -> None:
        """Before a step that is not."""
        if self._micro is not None:
            self._micro.detach()
        self._before = _Copies()

    def _parameters(self) -> dict[str, nn.Parameter]:
        """By name, those that have values: a lazy layer's come with its first forward pass."""
        named = self._model.named_parameters()
        return {name: parameter for name, parameter in named if not is_lazy(parameter)}

    def _take_starts(self, parameters: dict[str, nn.Parameter]) -> None:
        """Where the parameters start: now, for those that are new."""
        for name, parameter in parameters.items():
            if self._start.get(name, parameter) is None:
                self._start.take(name, parameter)

    # -- the two reads -----------------------------------------------------------------------

    def before_step(self, grad_scale: Tensor | None, loss_scale: Tensor | None = None) -> None:
        """Read weights and gradients as the optimizer receives them; copy what changes.

        `grad_scale` is what a fused optimizer will divide the gradients by, `loss_scale` what
        they were multiplied by in the backward passes: the same, where it is not given.
        """
        loss_scale = grad_scale if loss_scale is None else loss_scale
        self._sums = ParameterSums()
        if not (self._reads or self._own):
            return
        parameters = self._parameters()
        self._sums.sizes = {name: _size(parameter) for name, parameter in parameters.items()}
        if "start" in self._reads:  # with the norm of the weights, so before the step as that is
            self._take_starts(parameters)
            self._sums.reads["start"] = self._travel(parameters)
        self._read_step(parameters, grad_scale)
        for measure in self._own:
            for name, parameter in parameters.items():
                grad = parameter.grad
                if grad is not None:
                    grad = grad if grad_scale is None else grad / grad_scale.to(grad.device)
                    self._sums.own[measure.name, name] = measure.number(parameter.detach(), grad)
        if "last gradient" in self._reads:
            self._compare_with_last(parameters, grad_scale)
        if self._micro is not None:
            names, sums = self._micro.sums(self._processes)
            if loss_scale is not None and names:
                one = sums.new_ones(())
                square = loss_scale.to(sums.device, sums.dtype).reshape(()).square()
                sums = sums / torch.stack([one, square, square])
            self._sums.reads["micro-batches"] = (names, sums)

    def _read_step(self, parameters: dict[str, nn.Parameter], grad_scale: Tensor | None) -> None:
        grads = {name: parameter.grad for name, parameter in parameters.items()}
        dense = {name: g for name, g in grads.items() if g is not None and not g.is_sparse}
        weights = [parameters[name] for name in dense]
        copies: list[Tensor] = []
        if self._reads_update:
            copies = [self._before.room(name, parameters[name]) for name in dense]
        self._grad_versions = {name: grad._version for name, grad in dense.items()}
        sums = product_sums(weights, list(dense.values()), copies)
        if grad_scale is not None:
            sums = _unscaled(sums, grad_scale)
        others = [name for name in parameters if name not in dense]
        if others:
            rows = [self._without_dense_gradient(name, parameters[name]) for name in others]
            sums = torch.cat([sums, torch.stack(rows)])
        self._sums.reads["step"] = ((*dense, *others), sums)

    def _without_dense_gradient(self, name: str, parameter: nn.Parameter) -> Tensor:
        """The sums of READS["step"] where there is no gradient, or a sparse one."""
        square = gradient_sums(parameter)[0]
        if parameter.grad is None:
            return torch.stack([square, *[square.new_tensor(torch.nan)] * 4])
        if self._reads_update:
            self._before.take(name, parameter)
        # Rows of an embedding that were looked up; the others have a gradient of 0.
        grad = parameter.grad.coalesce()
        rows = parameter.detach()[grad.indices()[0]]
        return torch.cat([square.reshape(1), product_sums([rows], [grad.values()])[0, 1:]])

    @property
    def _reads_update(self) -> bool:
        return not self._reads.isdisjoint({"update", "first order"})

    def after_step(self) -> ParameterSums:
        """Read what the step has changed; what was read before it and after it."""
        read, self._sums = self._sums, ParameterSums()
        parameters = self._parameters()
        if "update" in self._reads:
            read.reads["update"] = self._compare(parameters, self._before)
        if "first order" in self._reads:
            read.reads["first order"] = self._first_order(parameters)
        if "adam" in self._reads:
            read.reads["adam"] = self._adam(parameters)
        self._before.forget()
        return read

    def _compare(self, parameters: dict[str, nn.Parameter], copies: "_Copies") -> _Read:
        """DIFFERENCE_SUMS of each parameter and its copy."""
        pairs = {name: (p, copies.get(name, p)) for name, p in parameters.items()}
        known = {name: (p, copy) for name, (p, copy) in pairs.items() if copy is not None}
        return tuple(known), difference_sums(*zip(*known.values(), strict=True)) if known else _NONE

    def _first_order(self, parameters: dict[str, nn.Parameter]) -> _Read:
        """⟨g, Δw⟩, where the optimizer has not written into the gradient."""
        groups = _groups(self._optimizer)
        dots = {}
        for name, parameter in parameters.items():
            before, grad = self._before.get(name, parameter), parameter.grad
            if before is None or grad is None or grad.is_sparse:
                continue
            # A fused step is marked as if it wrote: it only divides by the scale of mixed
            # precision, as it should.
            is_fused = groups.get(id(parameter), {}).get("fused")
            if is_fused or grad._version == self._grad_versions.get(name):
                dots[name] = dot(grad, parameter.detach() - before)
        return _read(dots)

    def _travel(self, parameters: dict[str, nn.Parameter]) -> _Read:
        names, differences = self._compare(parameters, self._start)
        starts = torch.stack([gradient_sums(self._start.tensors[name])[0] for name in names])
        return names, torch.stack([starts, differences[:, 0]], dim=1)

    def _adam(self, parameters: dict[str, nn.Parameter]) -> _Read:
        assert self._optimizer is not None
        groups, moments = _groups(self._optimizer), {}
        for name, parameter in parameters.items():
            state = self._optimizer.state.get(parameter, {})
            if "exp_avg_sq" in state:
                moments[name] = _moments(state, groups[id(parameter)])
        return tuple(moments), adam_sums(list(moments.values()))

    def _compare_with_last(
        self, parameters: dict[str, nn.Parameter], grad_scale: Tensor | None
    ) -> None:
        sums = {}
        for name, parameter in parameters.items():
            grad = parameter.grad
            if grad is None:
                continue
            grad = grad.to_dense() if grad.is_sparse else grad
            grad = grad if grad_scale is None else grad / grad_scale.to(grad.device)
            last = self._last_grad.get(name, grad)
            if last is not None:
                sums[name] = product_sums([last], [grad])[0, [0, 3]]
            self._last_grad.take(name, grad)
        self._sums.reads["last gradient"] = _read(sums)

    # -- checkpoints -------------------------------------------------------------------------

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The copies that measures over several steps compare with."""
        return {"start": self._start.tensors, "last_grad": self._last_grad.tensors}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Go on from what `state_dict` gave."""
        parameters = self._parameters()
        for copies, key in ((self._start, "start"), (self._last_grad, "last_grad")):
            for name, tensor in state[key].items():
                if name in parameters:  # a checkpoint may have been read onto another device
                    copies.take(name, tensor.to(parameters[name].device))


class _Copies:
    """Copies of tensors by name, in memory that is used again at the next recorded step."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._taken: set[str] = set()

    def room(self, name: str, like: Tensor) -> Tensor:
        """Memory that the caller fills with a copy of `like`."""
        room = self.tensors.get(name)
        if room is None or not _match(room, like):
            # In the layout of the parameter, so that both are read as one run of memory.
            room = self.tensors[name] = torch.empty_like(like, requires_grad=False)
        self._taken.add(name)
        return room

    def take(self, name: str, tensor: Tensor) -> Tensor:
        return self.room(name, tensor).copy_(tensor.detach())

    def get(self, name: str, like: Tensor) -> Tensor | None:
        """The copy, if it was taken and still fits."""
        if name not in self._taken or not _match(self.tensors[name], like):
            return None
        return self.tensors[name]

    def forget(self) -> None:
        """The copies are out of date; their memory stays."""
        self._taken.clear()


def _match(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)


class _MicroBatches:
    """‖gᵢ‖² of what each backward pass adds to the gradient of a parameter.

    A hook fires when a gradient has been added to `.grad`. What it was before is kept as a copy:
    under DistributedDataParallel that is the sum of this process alone.
    """

    def __init__(self) -> None:
        self._so_far = _Copies()
        self._squares: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._versions: dict[str, int] = {}
        self._hooks: dict[nn.Parameter, RemovableHandle] = {}

    def attach(self, parameters: dict[str, nn.Parameter]) -> None:
        present = set(parameters.values())
        for parameter in [parameter for parameter in self._hooks if parameter not in present]:
            self._hooks.pop(parameter).remove()
        for name, parameter in parameters.items():
            if parameter.requires_grad and parameter not in self._hooks:
                self._hooks[parameter] = parameter.register_post_accumulate_grad_hook(
                    self._hook(name)
                )  # type: ignore[no-untyped-call]

    def detach(self) -> None:
        for hook in self._hooks.values():
            hook.remove()
        self._hooks = {}
        self._so_far = _Copies()

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        @torch.no_grad()
        def on_accumulated(parameter: Tensor) -> None:
            grad = parameter.grad
            if grad is None or grad.is_sparse:
                return
            before = self._so_far.get(name, grad)
            if (
                before is not None
                and grad.grad_fn is None
                and grad._version <= self._versions[name]
            ):
                # A new tensor: what was there is gone without a step, as where a GradScaler skips.
                before = None
                del self._squares[name], self._counts[name]
            self._versions[name] = grad._version
            if before is None:
                square = gradient_sums(grad)[0]
            else:
                square = difference_sums([grad], [before])[0, 0]
            self._squares[name] = self._squares.get(name, 0) + square
            self._counts[name] = self._counts.get(name, 0) + 1
            self._so_far.take(name, grad)

        return on_accumulated

    def sums(self, processes: Processes) -> _Read:
        """Number of micro-batches over all processes, Σᵢ‖gᵢ‖², ‖Σᵢgᵢ‖²; and start anew."""
        result = {}
        for name, square in self._squares.items():
            total = gradient_sums(processes.mean(self._so_far.tensors[name]))[0]
            square = processes.mean(square) / processes.count
            n = square.new_tensor(self._counts[name] * processes.count)
            result[name] = torch.stack([n, square, total])
        self._squares, self._counts = {}, {}
        self._so_far.forget()
        return _read(result)


def _size(parameter: Tensor) -> int:
    """Real numbers: a complex one is summed, and counted, as two."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def _unscaled(sums: Tensor, scale: Tensor) -> Tensor:
    """(parameters, sums) of READS["step"] for the gradients divided by `scale`."""
    s = scale.to(sums.device, torch.float64).reshape(())
    one = torch.ones_like(s)
    return sums / torch.stack([one, s * s, one, s, s * s])


def _read(sums: dict[str, Tensor]) -> _Read:
    rows = [x.reshape(-1) for x in sums.values()]
    return tuple(sums), torch.stack(rows) if rows else _NONE


def _moments(state: dict[str, Any], group: dict[str, Any]) -> Moments:
    second = state.get("max_exp_avg_sq", state["exp_avg_sq"])
    return Moments(state["exp_avg"], second, state["step"], group["betas"], group["eps"])


def _groups(optimizer: Optimizer | None) -> dict[int, dict[str, Any]]:
    """The parameter group of each parameter, by its identity."""
    groups = optimizer.param_groups if optimizer is not None else []
    return {id(parameter): group for group in groups for parameter in group["params"]}


def _check_is_adam(optimizer: Optimizer | None) -> None:
    groups: list[dict[str, Any]] = optimizer.param_groups if optimizer is not None else [{}]
    if not all({"betas", "eps"} <= group.keys() for group in groups):
        raise ValueError(
            "Expected Adam or AdamW for the measures `adam_attenuation` and `adam_update_rms`, "
            f"but got {type(optimizer).__name__}. Leave them out."
        )
