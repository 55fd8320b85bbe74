"""Parameters, their gradients and updates: read when the optimizer steps, without hooks."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradflow.record import sparse
from gradflow.record.copies import Copies, Read, compare, table
from gradflow.record.exponents import read_histograms
from gradflow.record.histograms import HISTOGRAMS
from gradflow.record.measures import CHEAP_READS, Measure
from gradflow.record.memory import n_real
from gradflow.record.micro_batches import MicroBatches
from gradflow.record.processes import Processes
from gradflow.record.readable import NotTaken, unreadable
from gradflow.record.steps import ParameterSums
from gradflow.record.sums import adam_sums, gradient_sums, product_sums, square_sums
from gradflow.record.torch_sums import Moments, dot


class ParameterReads:
    """Takes the sums of READS that the measures need, around the step of each optimizer.

    `begin` when the user's step begins, `read` when the gradients are there, `end` when it ends;
    each reads the parameters of that optimizer, by its place among the optimizers. Those that none
    owns are read with the first, and have no update.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer | None],
        measures: Sequence[Measure],
        processes: Processes,
        not_taken: NotTaken,
        *,
        histograms: bool,
    ) -> None:
        chosen = [measure for measure in measures if measure.of == "parameter"]
        self._model = model
        self._optimizers = optimizers
        self._processes = processes
        self._not_taken = not_taken
        self._own = [measure for measure in chosen if measure.function is not None]
        self._reads = {measure.read for measure in chosen if measure.function is None}
        self._reads |= set(HISTOGRAMS if histograms else ())
        self._due: set[str] = set()  # of them, in the step that comes
        self._before = Copies()  # weights before the step
        self._start = Copies()
        self._last_grad = Copies()
        self._steps: dict[int, _Step] = {}  # of the step that is coming to its end
        self._micro = MicroBatches(not_taken) if "micro-batches" in self._reads else None
        if "adam" in self._reads:
            _check_is_adam(optimizers)
        if "start" in self._reads:
            self._take_starts(self._parameters())

    def attach(self, *, is_full: bool) -> None:
        """Before a step that is to be recorded; at a full one what is dear is read too."""
        self._steps = {}
        self._due = {read for read in self._reads if is_full or read in CHEAP_READS}
        # One read of weights and gradients brings what the others need as well.
        if not self._due.isdisjoint({"step", "update", "first order", "start"}):
            self._due = self._due - {"gradient"} | {"step"}
        elif "last gradient" in self._due:
            self._due.add("gradient")
        if self._micro is not None:
            if "micro-batches" in self._due:
                self._micro.attach(self._parameters())
            else:
                self._micro.detach()

    def detach(self) -> None:
        """Before a step that is not."""
        self._steps = {}
        if self._micro is not None:
            self._micro.detach()
        self._before = Copies()

    def _parameters(self) -> dict[str, nn.Parameter]:
        """By name, those that have values: a lazy layer's come with its first forward pass."""
        named = self._model.named_parameters()
        return {name: parameter for name, parameter in named if self._can_read(name, parameter)}

    def _can_read(self, name: str, parameter: nn.Parameter) -> bool:
        if is_lazy(parameter):
            return False
        why = unreadable(parameter)
        if why is not None and sparse.is_sparse(parameter):
            why = None
        if why is None and not (parameter.is_floating_point() or parameter.is_complex()):
            why = f"its type is {parameter.dtype}"
        if why is not None:
            self._not_taken.say(f"the parameter {name!r}", why)
        return why is None

    def _take_starts(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Where the parameters start: now, for those that are new."""
        for name, parameter in parameters.items():
            if self._start.get(name, parameter) is None:
                self._start.take(name, parameter)

    # -- before the step ---------------------------------------------------------------------

    def begin(self, index: int, *, has_closure: bool) -> None:
        """The step of an optimizer begins. With a closure, the weights may move before the
        gradients are there, so that they are copied now.
        """
        if not (self._due or self._own):
            return
        step = self._steps[index] = _Step(*self._of_optimizer(index))
        if has_closure:
            for name, parameter in step.parameters.items():
                if parameter.requires_grad:
                    step.weights[name] = self._before.take(name, parameter)

    def _of_optimizer(self, index: int) -> tuple[dict[str, nn.Parameter], set[str]]:
        """The parameters to read with this optimizer, and the names of those that it owns."""
        parameters = self._parameters()
        if self._optimizers[index] is None:
            return parameters, set(parameters)
        owner: dict[int, int] = {}
        for i in reversed(range(len(self._optimizers))):
            owner |= dict.fromkeys(_groups(self._optimizers[i]), i)
        mine = {name: p for name, p in parameters.items() if owner.get(id(p), 0) == index}
        return mine, {name for name, p in mine.items() if id(p) in owner}

    def read(self, index: int, grad_scale: Tensor | None, loss_scale: Tensor) -> None:
        """Read weights and gradients as the optimizer receives them; copy what changes.

        `grad_scale` is what a fused optimizer will divide the gradients by, `loss_scale` what
        they were multiplied by in the backward passes.
        """
        step = self._steps.get(index)
        if step is None:
            return
        step.grads = self._grads(step.parameters)
        if "start" in self._due:  # with the norm of the weights, so before the step as that is
            self._take_starts(step.parameters)
            step.reads["start"] = self._travel(step)
        if "step" in self._due:
            self._read_step(step, grad_scale)
        elif "gradient" in self._due:
            self._read_gradients(step, grad_scale)
        if "last gradient" in self._due:
            self._compare_with_last(step, grad_scale)
        if self._micro is not None and "micro-batches" in self._due:
            names, sums = self._micro.sums(self._processes, step.parameters)
            if names:
                sums = _unscaled(sums, loss_scale, 0, 2, 2)
            step.reads["micro-batches"] = (names, sums)
        if not self._due.isdisjoint(HISTOGRAMS):
            weights = {name: step.weight(name) for name in step.parameters}
            step.reads |= read_histograms(weights, step.grads, grad_scale)

    def _grads(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        grads = {}
        for name, parameter in parameters.items():
            grad = parameter.grad
            if grad is None:
                continue
            why = unreadable(grad)
            if grad.shape != parameter.shape:  # as where `.data` holds a part, or nothing, for now
                why = f"its shape is {tuple(grad.shape)}, the parameter's {tuple(parameter.shape)}"
            elif sparse.is_sparse(grad):
                why = None
            if why is None:
                grads[name] = grad
            else:
                self._not_taken.say(f"the gradient of {name!r}", why)
        return grads

    def read_own(self, index: int, grad_scale: Tensor | None) -> None:
        """The user's own measures, whose errors are the user's."""
        step = self._steps.get(index)
        for measure in self._own if step is not None else ():
            assert step is not None
            for name, grad in step.grads.items():
                grad = grad if grad_scale is None else grad / grad_scale.to(grad.device)
                step.own[measure.name, name] = measure.number(step.weight(name).detach(), grad)

    def _read_step(self, step: "_Step", grad_scale: Tensor | None) -> None:
        dense = [name for name in step.grads if not step.is_sparse(name)]
        copies: list[Tensor] = []
        if not step.weights and self._reads_update:
            copies = [self._before.room(name, step.parameters[name]) for name in dense]
        if "first order" in self._reads:
            step.marks = {name: (weakref.ref(g), g._version) for name, g in step.grads.items()}
        sums = product_sums(
            [step.weight(name) for name in dense], [step.grads[name] for name in dense], copies
        )
        others = [name for name in step.parameters if name not in dense]
        rows = [self._without_dense_gradient(step, name) for name in others]
        if rows:
            sums = torch.cat([sums, torch.stack(rows)])
        step.reads["step"] = (*dense, *others), _unscaled(sums, grad_scale, 0, 2, 0, 1, 2)

    def _read_gradients(self, step: "_Step", grad_scale: Tensor | None) -> None:
        """Without the weights: where a parameter has no gradient, there is nothing to tell."""
        names = list(step.grads)
        sums = square_sums([sparse.stored(grad) for grad in step.grads.values()])
        step.reads["gradient"] = tuple(names), _unscaled(sums, grad_scale, 2, 0)

    def _without_dense_gradient(self, step: "_Step", name: str) -> Tensor:
        """The sums of READS["step"] where there is no gradient, or something is sparse."""
        weight, grad = step.weight(name), step.grads.get(name)
        if grad is None:
            square = gradient_sums(sparse.stored(weight))[0]
            return torch.stack([square, *[square.new_tensor(torch.nan)] * 4])
        if not step.weights and self._reads_update:
            self._before.take(name, weight)
        return sparse.product_sums(weight, grad)

    @property
    def _reads_update(self) -> bool:
        return not self._due.isdisjoint({"update", "first order"})

    def _travel(self, step: "_Step") -> Read:
        names, differences = compare(step.parameters | step.weights, self._start)
        starts = [gradient_sums(sparse.stored(self._start.tensors[name]))[0] for name in names]
        return names, torch.stack([torch.stack(starts), differences[:, 0]], dim=1)

    def _compare_with_last(self, step: "_Step", grad_scale: Tensor | None) -> None:
        sums = {}
        for name, grad in step.grads.items():
            grad = grad.to_dense() if sparse.is_sparse(grad) else grad
            grad = grad if grad_scale is None else grad / grad_scale.to(grad.device)
            last = self._last_grad.get(name, grad)
            if last is not None:
                sums[name] = product_sums([last], [grad])[0, [0, 3]]
            self._last_grad.take(name, grad)
        step.reads["last gradient"] = table(sums)

    # -- after the step ----------------------------------------------------------------------

    def end(self, index: int) -> None:
        """Read what the step of an optimizer has changed."""
        step = self._steps.get(index)
        if step is None:
            return
        moved = {name: step.parameters[name] for name in step.grads if name in step.owned}
        if "update" in self._due:
            step.reads["update"] = compare(moved, self._before)
        if "first order" in self._due:
            step.reads["first order"] = self._first_order(step, moved, index)
        if "adam" in self._due:
            step.reads["adam"] = self._adam(step, index)
        self._before.forget(step.parameters)
        step.weights = {}

    def _first_order(self, step: "_Step", moved: Mapping[str, nn.Parameter], index: int) -> Read:
        """⟨g, Δw⟩, where the optimizer has not written into the gradient."""
        groups = _groups(self._optimizers[index])
        dots = {}
        for name, parameter in moved.items():
            before, grad = self._before.get(name, parameter), parameter.grad
            if before is None or grad is None or sparse.is_sparse(grad):
                continue
            tensor, version = step.marks[name]
            # A fused step is marked as if it wrote: it only divides by the scale of mixed
            # precision, as it should.
            is_fused = groups.get(id(parameter), {}).get("fused")
            if tensor() is grad and (is_fused or grad._version == version):
                dots[name] = dot(grad, parameter.detach() - before)
        return table(dots)

    def _adam(self, step: "_Step", index: int) -> Read:
        optimizer = self._optimizers[index]
        assert optimizer is not None
        groups, moments = _groups(optimizer), {}
        for name, parameter in step.parameters.items():
            state = optimizer.state.get(parameter, {})
            if "exp_avg_sq" in state and _is_adam(optimizer):
                moments[name] = _moments(state, groups[id(parameter)])
        return tuple(moments), adam_sums(list(moments.values()))

    def take(self) -> ParameterSums:
        """What was read around the steps of all optimizers."""
        steps, self._steps = self._steps, {}
        result = ParameterSums()
        read = {name: p for step in steps.values() for name, p in step.parameters.items()}
        names = [name for name, _ in self._model.named_parameters()] if len(steps) > 1 else read
        result.sizes = {name: n_real(read[name]) for name in names if name in read}
        for step in steps.values():
            result.own |= step.own
            for key, (some, sums) in step.reads.items():
                if key in result.reads:
                    before, others = result.reads[key]
                    some, sums = (*before, *some), _joined(others, sums)
                result.reads[key] = some, sums
        return result

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


class _Step:
    """What is read around one step of one optimizer."""

    def __init__(self, parameters: dict[str, nn.Parameter], owned: set[str]) -> None:
        self.parameters, self.owned = parameters, owned
        self.weights: dict[str, Tensor] = {}  # copies from its begin, where it has a closure
        self.grads: dict[str, Tensor] = {}
        self.marks: dict[str, tuple[weakref.ref[Tensor], int]] = {}
        self.reads: dict[str, Read] = {}
        self.own: dict[tuple[str, str], Tensor] = {}

    def weight(self, name: str) -> Tensor:
        """Before the step."""
        return self.weights.get(name, self.parameters[name])

    def is_sparse(self, name: str) -> bool:
        layouts = self.grads[name].layout, self.parameters[name].layout
        return any(layout is not torch.strided for layout in layouts)


def _joined(one: Tensor, other: Tensor) -> Tensor:
    if not (one.numel() and other.numel()):
        return one if one.numel() else other
    return torch.cat([one, other.to(one.device)])


def _unscaled(sums: Tensor, scale: Tensor | None, *powers: int) -> Tensor:
    """(parameters, sums) for the gradients divided by `scale`, which each sum holds so often."""
    if scale is None:
        return sums
    s = scale.to(sums.device, torch.float64).reshape(())
    by_power = torch.ones_like(s), s, s * s
    return sums / torch.stack([by_power[power] for power in powers])


def _moments(state: dict[str, Any], group: dict[str, Any]) -> Moments:
    second = state.get("max_exp_avg_sq", state["exp_avg_sq"])
    return Moments(state["exp_avg"], second, state["step"], group["betas"], group["eps"])


def _groups(optimizer: Optimizer | None) -> dict[int, dict[str, Any]]:
    """The parameter group of each parameter, by its identity."""
    groups = optimizer.param_groups if optimizer is not None else []
    return {id(parameter): group for group in groups for parameter in group["params"]}


def _check_is_adam(optimizers: Sequence[Optimizer | None]) -> None:
    if not any(map(_is_adam, optimizers)):
        raise ValueError(
            "Expected Adam or AdamW for the measures `adam_attenuation` and `adam_update_rms`, "
            f"but got {type(optimizers[0]).__name__}. Leave them out."
        )


def _is_adam(optimizer: Optimizer | None) -> bool:
    groups = optimizer.param_groups if optimizer is not None else []
    return bool(groups) and all({"betas", "eps"} <= group.keys() for group in groups)
