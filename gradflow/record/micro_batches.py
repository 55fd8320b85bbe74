"""What each backward pass of an accumulated step adds to the gradients of the parameters."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradflow.record.copies import Copies, Read, table
from gradflow.record.processes import Processes
from gradflow.record.readable import NotTaken, unreadable
from gradflow.record.sums import difference_sums, gradient_sums


class MicroBatches:
    """‖gᵢ‖² of what each backward pass adds to the gradient of a parameter.

    A hook fires when a gradient has been added to `.grad`. What it was before is kept as a copy:
    under DistributedDataParallel that is the sum of this process alone.
    """

    def __init__(self, not_taken: NotTaken) -> None:
        self._not_taken = not_taken
        self._so_far = Copies()
        self._squares: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._versions: dict[str, int] = {}
        self._hooks: dict[nn.Parameter, RemovableHandle] = {}

    def attach(self, parameters: Mapping[str, nn.Parameter]) -> None:
        present = set(parameters.values())
        for parameter in [parameter for parameter in self._hooks if parameter not in present]:
            self._hooks.pop(parameter).remove()
        for name, parameter in parameters.items():
            if parameter.requires_grad and parameter not in self._hooks:
                hook = partial(self._on_accumulated, name)
                register = parameter.register_post_accumulate_grad_hook
                self._hooks[parameter] = register(hook)  # type: ignore[no-untyped-call]

    def detach(self) -> None:
        for hook in self._hooks.values():
            hook.remove()
        self._hooks = {}
        self._so_far = Copies()

    def _on_accumulated(self, name: str, parameter: Tensor) -> None:
        try:
            self._add(name, parameter.grad)
        except Exception as error:
            self._not_taken.failed(f"the micro-batches of {name!r}", error)

    @torch.no_grad()
    def _add(self, name: str, grad: Tensor | None) -> None:
        if grad is None or unreadable(grad) is not None:
            return
        before = self._so_far.get(name, grad)
        if before is not None and grad.grad_fn is None and grad._version <= self._versions[name]:
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

    def sums(self, processes: Processes, parameters: Mapping[str, nn.Parameter]) -> Read:
        """Of these parameters the number of micro-batches over all processes, Σᵢ‖gᵢ‖², ‖Σᵢgᵢ‖²;
        and start anew.
        """
        result = {}
        for name in [name for name in self._squares if name in parameters]:
            total = gradient_sums(processes.mean(self._so_far.tensors[name]))[0]
            square = processes.mean(self._squares.pop(name)) / processes.count
            n = square.new_tensor(self._counts.pop(name) * processes.count)
            result[name] = torch.stack([n, square, total])
        self._so_far.forget(parameters)
        return table(result)
