"""Outputs and their gradients: the hooks on a model's layers, and what they reduce on the spot."""

import weakref
from collections.abc import Callable, Collection, MutableMapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from gradflow.record.backward import BackwardPasses, ForwardPass
from gradflow.record.hooks import OwnHook, leave_out_of_copies, remove, untraced
from gradflow.record.measures import Measure
from gradflow.record.memory import HOST, as_real, n_real
from gradflow.record.paths import feeds
from gradflow.record.readable import NotTaken, unreadable
from gradflow.record.sites import (
    Channels,
    find_sites,
    first_floating_tensor,
    floating_tensors,
    unknown_type,
)
from gradflow.record.steps import PassSums, Site
from gradflow.record.sums import OUTPUT_SUMS, output_sums

_NOT_TAKEN = torch.full((len(OUTPUT_SUMS),), torch.nan, dtype=torch.float64, device=HOST)


class OutputHooks:
    """Measures outputs and their gradients while attached; keeps sums, never a tensor.

    A forward pass begins when the model is called, or with the first layer that runs after a
    backward pass, where a loop calls the parts of a model one by one. Nothing is measured inside a
    step of the optimizer, but for the closure that counts.
    """

    def __init__(
        self,
        model: nn.Module,
        measures: Sequence[Measure],
        not_taken: NotTaken,
        on_discard: Callable[[bool], None],
        is_stepping: Callable[[], bool],
    ) -> None:
        self.are_wanted = any(measure.of != "parameter" for measure in measures)
        self.depth: dict[Site, int] = {}  # in order of first execution
        # Site -> the sites and weights that feed it; None where the graph is not to be had.
        self.feeds: dict[str, tuple[str, ...]] | None = {}
        self._n_mapped = -1  # sites that were known then
        self._sequence = 0  # of autograd, at the last output
        self.saw_output = False
        self.has_hooked = False  # an output, to see its gradient
        self.backward = BackwardPasses(measures, not_taken, self._map, on_discard)
        self._model = model
        self._not_taken = not_taken
        self._is_stepping = is_stepping
        self._own = [m for m in measures if m.of == "output" and m.function is not None]
        self._reads = any(m.of == "output" and m.function is None for m in measures)
        self._is_full = True  # the step that comes
        self._hooks: dict[nn.Module, tuple[_OutputHook, RemovableHandle]] = {}
        self._model_hook: RemovableHandle | None = None
        # A leaf lives on, and with it its hooks, of which it has one per site.
        self._leaf_hooks: MutableMapping[Tensor, dict[Site, _LeafHook]] = WeakIdKeyDictionary()
        self._begin_pass()
        # torch.compile runs this one as it is, between its compiled regions.
        self.on_output_untraced = untraced(self.on_output)

    def _begin_pass(self) -> None:
        self._pass = ForwardPass()
        # What autograd holds of each output of this pass, until it counts; None where all is known.
        is_mapped = self.feeds is None or self._n_mapped == len(self.depth)
        self._edges: dict[str, tuple[GradientEdge, ...]] | None = None if is_mapped else {}
        self._began = self._sequence
        self._channels = Channels()
        self._last: _Measured | None = None

    # -- attaching ---------------------------------------------------------------------------

    def attach(self, *, is_full: bool) -> None:
        """Before a recorded step; at a full one outputs are read, and not only their gradients."""
        self._is_full = is_full
        if self.are_wanted:
            self._attach()

    def _attach(self) -> None:
        """Hook the layers that the model has now: those that came are added, those gone dropped."""
        modules = list(self._model.modules())
        if modules == self.backward.modules:
            return
        self.backward.modules = modules
        sites = self._sites()
        for module, (hook, handle) in list(self._hooks.items()):
            if sites.get(module) != hook.name:  # gone, or under another name
                remove(handle, module._forward_hooks)
                del self._hooks[module]
        for module, name in sites.items():
            if module not in self._hooks:
                hook = _OutputHook(self, name)
                self._hooks[module] = hook, module.register_forward_hook(hook)
                leave_out_of_copies(module._forward_hooks)
        for name, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                why = "scripted modules take no hook; their parameters are recorded"
                self._not_taken.say(f"outputs inside {name.partition('.')[0]!r}", why)
        if self._model_hook is None and not isinstance(self._model, torch.jit.ScriptModule):
            self._model_hook = self._model.register_forward_pre_hook(_ForwardHook(self))
            leave_out_of_copies(self._model._forward_pre_hooks)

    def _sites(self) -> dict[nn.Module, str]:
        sites = {module: name for name, module in find_sites(self._model)}
        for module, name in [pair for pair in sites.items() if "#" in pair[1]]:
            why = "its name has a '#', which tells the calls of one layer apart"
            self._not_taken.say(f"the output of {name!r}", why)
            del sites[module]
        return sites

    def detach(self) -> None:
        """Take every hook off the model."""
        for module, (_, handle) in self._hooks.items():
            remove(handle, module._forward_hooks)
        if self._model_hook is not None:
            remove(self._model_hook, self._model._forward_pre_hooks)
        self._unhook_leaves(had_backward=False)
        self._hooks, self._model_hook = {}, None
        self.backward.modules = []
        self.backward.reset()
        self._begin_pass()

    def take(self) -> list[PassSums]:
        """The forward passes of the step that has ended."""
        self._unhook_leaves(had_backward=True)
        return self.backward.take()

    def not_run(self) -> dict[str, nn.Module]:
        """The layers that never ran through their hooks, by name."""
        hooks = self._hooks.items()
        return {hook.name: module for module, (hook, _) in hooks if not hook.has_run}

    def _unhook_leaves(self, *, had_backward: bool) -> None:
        """All leaves, or those whose last forward pass had its backward pass."""
        for leaf, hooks in list(self._leaf_hooks.items()):
            if not had_backward or all(hook.of.had_backward for hook in hooks.values()):
                for hook in hooks.values():
                    hook.handle.remove()
                del self._leaf_hooks[leaf]

    # -- forward -----------------------------------------------------------------------------

    def on_forward(self) -> None:
        """The model is called."""
        if torch._C._current_graph_task_id() != -1:
            return  # activation checkpointing repeats it
        self.backward.forget_unfinished()
        self._begin_pass()
        if self._model_hook is not None:  # a compiled graph may outlive the hooks
            self._attach()

    def on_output(
        self, hook: "_OutputHook", module: nn.Module, args: tuple[object, ...], output: object
    ) -> None:
        """A layer has run."""
        # A compiled graph may outlive the hooks. What torch.jit.trace runs is no training.
        if not (self._hooks and self._model.training and self._is_listening()):
            return
        if torch._C._get_tracing_state() is not None:
            return
        hook.has_run = self.saw_output = True
        try:
            tensor = first_floating_tensor(output)
            if tensor is None:
                self._say_what_is_unknown(hook.name, output)
                return
            if not torch.is_grad_enabled():
                self._note_depth(hook)
                return
            site = self._next_site(hook)
            if site is None:
                return
            is_measured = self._measure_output(hook, site, module, args, tensor)
            if is_measured and tensor.requires_grad:
                self._note_edges(output, site)
                self._hook_gradient(tensor, site)
        except Exception as error:
            self._not_taken.failed(f"the output of {hook.name!r}", error)
            return
        if is_measured:
            for measure in self._own:
                self._pass.own[measure.name, site] = measure.number(tensor.detach())

    def _is_listening(self) -> bool:
        if not self.backward.is_listening and not self._is_stepping():
            self.backward.is_listening = True  # the optimizer's step has raised
        return self.backward.is_listening

    def _say_what_is_unknown(self, name: str, output: object) -> None:
        unknown = unknown_type(output)
        if unknown is not None:
            self._not_taken.say(f"the output of {name!r}", f"it is a {unknown}")

    def _note_depth(self, hook: "_OutputHook") -> None:
        """Reentrant checkpointing runs without grad first, and last to first when with grad."""
        hook.join(self._pass)
        self._site(hook, hook.n_without_grad)
        hook.n_without_grad += 1

    def _next_site(self, hook: "_OutputHook") -> Site | None:
        """The site of this call, or None where activation checkpointing repeats a known one."""
        hook.join(self._pass)
        if torch._C._current_graph_task_id() == -1:
            if self._pass.had_backward:
                self._begin_pass()
                hook.join(self._pass)
            hook.n_calls += 1
            return self._site(hook, hook.n_calls - 1)
        if hook.n_calls:
            return None  # the first time was recorded, and its output carries the gradient hook
        self.feeds = None  # reentrant checkpointing cuts the graph into pieces
        hook.n_repeated += 1
        return self._site(hook, hook.n_repeated - 1)

    def _site(self, hook: "_OutputHook", call: int) -> Site:
        while call >= len(hook.sites):
            hook.sites.append(Site(hook.name, len(hook.sites)))
        site = hook.sites[call]
        if call >= hook.n_known:
            hook.n_known = call + 1
            self.depth.setdefault(site, len(self.depth))
        return site

    def _measure_output(
        self,
        hook: "_OutputHook",
        site: Site,
        module: nn.Module,
        args: tuple[object, ...],
        tensor: Tensor,
    ) -> bool:
        """Whether it could be."""
        why = unreadable(tensor)
        if why is not None:
            self._not_taken.say(f"the output of {hook.name!r}", why)
            self._pass.sizes[site] = 0
            if self._reads and self._is_full:
                self._pass.outputs[site] = _NOT_TAKEN
            return False
        self._pass.sizes[site] = n_real(tensor)
        if not (self._reads and self._is_full):
            return True
        read = self._half_of_relu(module, args) or self._read(hook, module, tensor)
        self._pass.outputs[site] = read.sums
        self._pass.active[site] = read.active
        return True

    def _read(self, hook: "_OutputHook", module: nn.Module, tensor: Tensor) -> "_OutputRead":
        last = self._last
        if last is not None and last.is_still(tensor):
            return last.own  # a container hands on what its last layer gave
        x = as_real(tensor)
        x = x.reshape(1, -1) if x.dim() < 2 else x
        dim = self._channels.dim_of(module, x)
        read = _OutputRead(*output_sums(x, dim, relu=hook.is_before_relu))
        self._last = last = _Measured(tensor, hook, read)
        return last.own

    def _half_of_relu(self, module: nn.Module, args: tuple[object, ...]) -> "_OutputRead | None":
        """The sums of a ReLU that were taken with those of its input, in one read."""
        if type(module) is not nn.ReLU or self._last is None or not args:
            return None
        if len(module._forward_hooks) > 1:
            return None  # another's hook may have changed what the ReLU gave
        last = self._last
        if not last.is_input_of(module, args[0]):
            return None
        if last.of_relu is None:
            last.hook.is_before_relu = True
            return None
        self._last = None
        return last.of_relu

    def _hook_gradient(self, tensor: Tensor, site: Site) -> None:
        self.has_hooked = True
        # A full backward hook on the module would fail before an in-place ReLU or `+=`.
        if not tensor.is_leaf:
            hook = partial(self.backward.on_gradient, self._pass, site)
            tensor.register_hook(hook)  # type: ignore[no-untyped-call]
            return
        by_site = self._leaf_hooks.setdefault(tensor, {})
        if site in by_site:
            by_site[site].of = self._pass
        else:
            by_site[site] = _LeafHook(self.backward, self._pass, site, tensor)

    # -- what feeds what ---------------------------------------------------------------------

    def _note_edges(self, output: object, site: Site) -> None:
        # Not kept by the pass, which the nodes hold through its hooks: they would never be freed.
        if (edges := self._edges) is not None:
            tensors = (one for one in floating_tensors(output) if one.requires_grad)
            edges[str(site)] = tuple(map(get_gradient_edge, tensors))
            self._sequence = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]

    def _map(self, passes: Collection[ForwardPass]) -> None:
        """Note what feeds what, in a pass that trains; from then on the graph can go."""
        if self._edges and self.feeds is not None and self._pass in passes:
            self.feeds |= feeds(self._edges, dict(self._model.named_parameters()), self._began)
            self._n_mapped = len(self.depth)
            self._edges = None


class _OutputRead(NamedTuple):
    """What is read of an output."""

    sums: Tensor  # (6,) of OUTPUT_SUMS
    active: Tensor  # (channels,) uint8


class _Measured:
    """The output that was measured last: which tensor, in which state, and its sums.

    Where it goes into a ReLU, what was read has a second half, that of max(z, 0).
    """

    __slots__ = ("_tensor", "_version", "hook", "of_relu", "own")

    def __init__(self, tensor: Tensor, hook: "_OutputHook", read: _OutputRead) -> None:
        self.hook = hook
        self.own, self.of_relu = read, None
        if len(read.sums) > len(OUTPUT_SUMS):
            self.own, self.of_relu = map(_OutputRead, *(part.chunk(2) for part in read))
        self._tensor = weakref.ref(tensor)
        self._version = tensor._version

    def is_still(self, tensor: Tensor) -> bool:
        return self._tensor() is tensor and tensor._version == self._version

    def is_input_of(self, relu: nn.ReLU, tensor: object) -> bool:
        """Whether `relu`, which has just run, was given this output as it was measured."""
        if self._tensor() is not tensor:
            return False
        assert isinstance(tensor, Tensor)
        return tensor._version == self._version + relu.inplace


# -- hooks -------------------------------------------------------------------------------------


class _OutputHook(OwnHook):
    def __init__(self, hooks: OutputHooks, name: str) -> None:
        self._hooks, self.name = hooks, name
        self.has_run = False
        self.is_before_relu = False  # the output goes straight into a ReLU
        self.sites: list[Site] = []  # by call in one forward pass
        self.n_known = 0  # of them
        self._pass = -1  # the number of the forward pass that these count calls of:
        self.n_calls = self.n_repeated = self.n_without_grad = 0

    def join(self, of: ForwardPass) -> None:
        """Calls are counted anew in each forward pass."""
        if self._pass != of.number:
            self._pass = of.number
            self.n_calls = self.n_repeated = self.n_without_grad = 0

    def __call__(self, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        if torch.compiler.is_compiling():
            self._hooks.on_output_untraced(self, module, args, output)
        else:
            self._hooks.on_output(self, module, args, output)


class _ForwardHook(OwnHook):
    def __init__(self, hooks: OutputHooks) -> None:
        self._hooks = hooks

    def __call__(self, module: nn.Module, args: object) -> None:
        self._hooks.on_forward()


class _LeafHook:
    """On a leaf: called once per backward pass, with the gradient of all its uses."""

    def __init__(self, backward: BackwardPasses, of: ForwardPass, site: Site, leaf: Tensor) -> None:
        self.of, self._backward, self._site = of, backward, site
        self.handle: RemovableHandle = leaf.register_hook(self)  # type: ignore[no-untyped-call]

    def __call__(self, grad: Tensor) -> None:
        self._backward.on_gradient(self.of, self._site, grad)
