"""Outputs and their gradients: the hooks on a model's layers, and what they reduce on the spot."""

import sys
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.hooks import RemovableHandle

from gradflow.record.measures import Measure
from gradflow.record.paths import feeds
from gradflow.record.sites import (
    channel_dim,
    find_sites,
    first_floating_tensor,
    floating_tensors,
)
from gradflow.record.steps import Pass, Site
from gradflow.record.sums import OUTPUT_SUMS, as_real, gradient_sums, output_sums


class OutputHooks:
    """Measures outputs and their gradients while attached; keeps sums, never a tensor.

    A forward pass begins when the model is called, or with the first layer that runs after a
    backward pass, where a loop calls the parts of a model one by one. `take` hands out the passes
    since it was called last.
    """

    def __init__(
        self,
        model: nn.Module,
        measures: Sequence[Measure],
        on_discard: Callable[[], None],
    ) -> None:
        self.depth: dict[Site, int] = {}  # in order of first execution
        # Site -> the sites and weights that feed it; None where the graph is not to be had.
        self.feeds: dict[str, tuple[str, ...]] | None = {}
        self._n_mapped = -1  # sites that were known then
        self._sequence = 0  # of autograd, at the last output
        self._model = model
        self._on_discard = on_discard
        self._own = {
            of: [m for m in measures if m.of == of and m.function is not None]
            for of in ("output", "output gradient")
        }
        self._with_outputs = any(m.of == "output" for m in measures)
        self._with_gradients = any(m.of == "output gradient" for m in measures)
        self._hooks: dict[nn.Module, tuple[str, RemovableHandle]] = {}
        self._model_hook: RemovableHandle | None = None
        self._modules: list[nn.Module] = []  # that the hooks were made for
        self._passes: list[Pass] = []
        self._begin_pass()
        # torch.compile runs this one as it is, between its compiled regions. The compiler is
        # there as soon as there is an optimizer; nobody else should pay for its import.
        self.on_output_untraced = (
            torch.compiler.disable(self.on_output)  # type: ignore[no-untyped-call]
            if "torch._dynamo" in sys.modules
            else self.on_output
        )
        self._before_relu: set[str] = set()  # modules whose output goes straight into a ReLU

    def _begin_pass(self) -> None:
        is_mapped = self.feeds is None or self._n_mapped == len(self.depth)
        # It joins the others with its first output.
        self._pass = Pass(edges=None if is_mapped else {}, began=self._sequence)
        self._calls: dict[str, int] = {}
        self._calls_in_backward: dict[str, int] = {}
        self._calls_without_grad: dict[str, int] = {}
        self._channel_dim: int | None = None  # of the layer that ran before
        self._last: _Measured | None = None

    # -- attaching ---------------------------------------------------------------------------

    def attach(self) -> None:
        """Hook the layers that the model has now: those that came are added, those gone dropped."""
        modules = list(self._model.modules())
        if modules == self._modules:
            return
        self._modules = modules
        sites = {module: name for name, module in find_sites(self._model)}
        for module, (name, hook) in list(self._hooks.items()):
            if sites.get(module) != name:  # gone, or under another name
                hook.remove()
                del self._hooks[module]
        for module, name in sites.items():
            if module not in self._hooks:
                hook = module.register_forward_hook(_OutputHook(self, name))
                self._hooks[module] = name, hook
        if self._model_hook is None:
            self._model_hook = self._model.register_forward_pre_hook(_ForwardHook(self))

    def detach(self) -> None:
        """Take every hook off the model."""
        for _, hook in self._hooks.values():
            hook.remove()
        if self._model_hook is not None:
            self._model_hook.remove()
        self._hooks, self._model_hook, self._modules = {}, None, []

    def take(self) -> list[Pass]:
        """The passes since the last call, and start anew.

        A pass without a gradient, where others have one, is left out: it was no training, or its
        backward pass is still to come, and then it belongs to the next step.
        """
        passes, self._passes = self._passes, []
        self._begin_pass()
        if not any(one.had_backward for one in passes):
            return passes
        self._passes = [one for one in passes if not (one.had_backward or one.is_late)]
        for one in self._passes:
            one.is_late = True
        return [one for one in passes if one.had_backward]

    # -- forward -----------------------------------------------------------------------------

    def on_forward(self) -> None:
        """The model is called."""
        if torch._C._current_graph_task_id() == -1:  # else activation checkpointing repeats it
            self._begin_pass()
            if self._model_hook is not None:  # a compiled graph may outlive the hooks
                self.attach()

    def on_output(
        self, name: str, module: nn.Module, args: tuple[object, ...], output: object
    ) -> None:
        """A layer has run."""
        tensor = first_floating_tensor(output)
        if tensor is None or not self._model.training:
            return
        if not torch.is_grad_enabled():
            self._note_depth(name)
            return
        site = self._next_site(name)
        if site is None:
            return
        self._measure_output(site, module, args, tensor)
        if tensor.requires_grad:
            if self._pass.edges is not None:
                tensors = (one for one in floating_tensors(output) if one.requires_grad)
                self._pass.edges[str(site)] = tuple(map(get_gradient_edge, tensors))
                self._sequence = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
            # A full backward hook on the module would fail before an in-place ReLU or `+=`.
            hook = partial(self._on_gradient, self._pass, site)
            tensor.register_hook(hook)  # type: ignore[no-untyped-call]

    def _note_depth(self, name: str) -> None:
        """Reentrant checkpointing runs without grad first, and last to first when with grad."""
        call = self._calls_without_grad.get(name, 0)
        self._calls_without_grad[name] = call + 1
        self.depth.setdefault(Site(name, call), len(self.depth))

    def _next_site(self, name: str) -> Site | None:
        """The site of this call, or None where activation checkpointing repeats a known one."""
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward and name in self._calls:
            return None  # the first time was recorded, and its output carries the gradient hook
        if not in_backward and self._pass.had_backward:
            self._begin_pass()
        if not self._pass.outputs:
            self._discard_what_was_zeroed()
            self._passes.append(self._pass)
        if in_backward:
            self.feeds = None  # reentrant checkpointing cuts the graph into pieces
        calls = self._calls_in_backward if in_backward else self._calls
        site = Site(name, calls.get(name, 0))
        calls[name] = site.call + 1
        self.depth.setdefault(site, len(self.depth))
        return site

    def _discard_what_was_zeroed(self) -> None:
        """Passes whose gradients are gone without an optimizer step are no part of this step.

        A GradScaler met an inf and skipped the step, or the loop threw the gradients away.
        """
        if any(one.accumulates for one in self._passes) and self._are_zeroed():
            self._passes = []
            self._on_discard()

    def _are_zeroed(self) -> bool:
        """Whether the parameters' gradients are None, or 0 after a backward pass that was not.

        A look at values waits for the device. It is only taken between the forward passes of one
        step, and ends at the first gradient that is not 0.
        """
        grads = [p.grad for p in self._model.parameters() if p.grad is not None]
        if any(grad._nnz() if grad.is_sparse else grad.any() for grad in grads):
            return False
        sums = [sums for one in self._passes for sums in one.gradients.values()]
        return not grads or any(one.any() for one in sums)

    def _measure_output(
        self, site: Site, module: nn.Module, args: tuple[object, ...], tensor: Tensor
    ) -> None:
        x = as_real(tensor)
        x = x.reshape(1, -1) if x.dim() < 2 else x
        dim = self._channel_dim = channel_dim(module, x, self._channel_dim)
        if not self._with_outputs:
            nan = [torch.nan] * (len(OUTPUT_SUMS) - 1)
            sums = torch.tensor([x.numel(), *nan], dtype=torch.float64, device=x.device)
            self._pass.outputs[site] = sums
            return
        read = self._half_of_relu(module, args)
        if read is None:
            is_before_relu = site.module in self._before_relu
            read = OutputRead(*output_sums(x, dim, relu=is_before_relu))
            self._last = _Measured(tensor, site.module, read, is_before_relu)
            read = read.half(0) if is_before_relu else read
        else:
            self._last = None
        self._pass.outputs[site] = read.sums
        self._pass.active[site] = read.active
        for measure in self._own["output"]:
            value = measure.number(tensor.detach())
            self._pass.own[measure.name, site] = value

    def _half_of_relu(self, module: nn.Module, args: tuple[object, ...]) -> "OutputRead | None":
        """The sums of a ReLU that were taken with those of its input, in one read."""
        if type(module) is not nn.ReLU or self._last is None or not args:
            return None
        if len(module._forward_hooks) > 1:
            return None  # another's hook may have changed what the ReLU gave
        last = self._last
        if not last.is_input_of(module, args[0]):
            return None
        if not last.has_relu:
            self._before_relu.add(last.module)
            return None
        return last.read.half(1)

    # -- backward ----------------------------------------------------------------------------

    def _on_gradient(self, pass_: Pass, site: Site, grad: Tensor) -> None:
        if pass_.accumulates is None:
            pass_.accumulates = self._accumulates()
            self._map(pass_)
        if not self._with_gradients:
            return
        # Several backward passes through one forward pass: their squares add.
        _add(pass_.gradients, site, gradient_sums(grad))
        for measure in self._own["output gradient"]:
            _add(pass_.own, (measure.name, site), measure.number(grad.detach()))

    def _map(self, pass_: Pass) -> None:
        """Note what feeds what, in a pass that trains; from then on the graph can go."""
        if pass_.accumulates and pass_.edges and self.feeds is not None:
            self.feeds |= feeds(pass_.edges, dict(self._model.named_parameters()), pass_.began)
            self._n_mapped = len(self.depth)
        pass_.edges = None

    def _accumulates(self) -> bool:
        """Whether the backward pass that is running adds to a parameter's gradient."""
        leaves = (leaf for leaf in self._model.parameters() if leaf.requires_grad)
        edges = map(torch.autograd.graph.get_gradient_edge, leaves)
        try:
            return any(torch._C._will_engine_execute_node(edge.node) for edge in edges)
        except RuntimeError:  # parameters are the inputs of `autograd.grad`
            return False


def _add(to: dict[Any, Tensor], key: Any, value: Tensor) -> None:
    to[key] = to[key] + value if key in to else value


class OutputRead(NamedTuple):
    """What is read of an output. With `relu` both have a second half, that of max(z, 0)."""

    sums: Tensor  # (6,) of OUTPUT_SUMS
    active: Tensor  # (channels,) uint8

    def half(self, index: int) -> "OutputRead":
        return OutputRead(self.sums.chunk(2)[index], self.active.chunk(2)[index])


class _Measured:
    """The output that was measured last: which tensor, in which state, and its sums."""

    __slots__ = ("_tensor", "_version", "has_relu", "module", "read")

    def __init__(self, tensor: Tensor, module: str, read: OutputRead, has_relu: bool) -> None:
        self.module, self.read, self.has_relu = module, read, has_relu
        self._tensor = weakref.ref(tensor)
        self._version = tensor._version

    def is_input_of(self, relu: nn.ReLU, tensor: object) -> bool:
        """Whether `relu`, which has just run, was given this output as it was measured."""
        if self._tensor() is not tensor:
            return False
        assert isinstance(tensor, Tensor)
        return tensor._version == self._version + relu.inplace


class _Hook:
    """A hook that does nothing in a copy of its module: a copied or loaded model is not watched."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _ignore

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _ignored, ()


class _OutputHook(_Hook):
    def __init__(self, hooks: OutputHooks, name: str) -> None:
        self._hooks, self._name = hooks, name

    def __call__(self, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        if torch.compiler.is_compiling():
            self._hooks.on_output_untraced(self._name, module, args, output)
        else:
            self._hooks.on_output(self._name, module, args, output)


class _ForwardHook(_Hook):
    def __init__(self, hooks: OutputHooks) -> None:
        self._hooks = hooks

    def __call__(self, module: nn.Module, args: object) -> None:
        self._hooks.on_forward()


def _ignore(*args: object) -> None:
    """The hook of a copy."""


def _ignored() -> Callable[..., None]:
    return _ignore
