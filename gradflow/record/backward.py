"""Which backward passes belong to a step, and what they brought to the outputs of the layers.

A hook on an output sees every backward pass: `torch.autograd.grad`, the loss of another network, an
attack, an inner loop. One counts if it added a gradient to a parameter of the model, and if that
gradient is still there at the optimizer's step. The engine gives each backward pass a number and
calls back at its end, where the gradients of the parameters are compared with those at its start.
"""

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradflow.record.hooks import untraced
from gradflow.record.measures import Measure
from gradflow.record.memory import HOST
from gradflow.record.readable import NotTaken, unreadable
from gradflow.record.steps import PassSums, Site
from gradflow.record.sums import gradient_sums

# Of the gradient of a parameter, to see later whether it is the same tensor in the same state.
_Mark = tuple["weakref.ref[Tensor]", int] | None


@dataclass(slots=True, eq=False)
class ForwardPass:
    """What the outputs of one forward pass summed to. It lives as long as its graph does: the hooks
    on the outputs hold it, and nothing else, until a backward pass through it counts.
    """

    number: int = field(default_factory=count().__next__)
    outputs: dict[Site, Tensor] = field(default_factory=dict)  # of OUTPUT_SUMS
    active: dict[Site, Tensor] = field(default_factory=dict)  # (channels,) uint8
    own: dict[tuple[str, Site], Tensor] = field(default_factory=dict)  # the user's own measures
    sizes: dict[Site, int] = field(default_factory=dict)  # elements
    had_backward: bool = False  # of any kind
    kept: set[Site] = field(default_factory=set)  # gradients, since others may meet them


class _Gradient(NamedTuple):
    """What one backward pass brought to one output."""

    sums: Tensor | None  # of GRADIENT_SUMS, where a measure needs them
    own: dict[str, Tensor]  # the user's own measures, by name
    vector: Tensor | None  # kept where another backward pass may meet this one


@dataclass(slots=True, eq=False)
class _BackwardPass:
    before: list[_Mark]
    keeps_graph: bool
    gradients: dict[ForwardPass, dict[Site, _Gradient]] = field(default_factory=dict)
    touched: list[int] = field(default_factory=list)  # parameters whose gradient it added to


class BackwardPasses:
    """Collects what backward passes bring to outputs; `settle` keeps those of a step.

    `on_count` is told of each backward pass that counts, through which forward passes it went, and
    `on_discard` when gradients were zeroed without a step, and whether one was not finite.
    """

    def __init__(
        self,
        measures: Sequence[Measure],
        not_taken: NotTaken,
        on_count: Callable[[Collection[ForwardPass]], None],
        on_discard: Callable[[bool], None],
    ) -> None:
        self.modules: list[nn.Module] = []  # of the watched model
        self.is_listening = True
        self.n_counted = 0
        self._own = [m for m in measures if m.of == "output gradient" and m.function is not None]
        self._reads = any(m.of == "output gradient" for m in measures)
        self._not_taken = not_taken
        self._on_count = on_count
        self._on_discard = on_discard
        self._on_gradient_untraced = untraced(self._on_gradient)
        self._running: dict[int, _BackwardPass | None] = {}  # by the engine's number
        self._counted: list[_BackwardPass] = []  # since the last step
        self._settled: dict[int, list[_BackwardPass]] = {}  # by optimizer
        self._parameters: list[nn.Parameter] = []  # of this step
        self._marks: list[_Mark] = []  # when the last counted backward pass ended
        self._witness: int | None = None  # a parameter whose gradient was not zero then

    # -- in the hooks ------------------------------------------------------------------------

    def on_gradient(self, of: ForwardPass, site: Site, grad: Tensor) -> None:
        """The hook on an output."""
        if torch.compiler.is_compiling():  # compiled autograd would trace it
            self._on_gradient_untraced(of, site, grad)
        elif self.is_listening:
            self._on_gradient(of, site, grad)

    def _on_gradient(self, of: ForwardPass, site: Site, grad: Tensor) -> None:
        of.had_backward = True
        try:
            one = self._current()
            if one is None:
                return
            why = unreadable(grad) if self._reads and not grad.is_sparse else None
            sums = vector = None
            if why is not None:
                self._not_taken.say(f"the gradient of the output of {site.module!r}", why)
                sums = torch.full((2,), torch.nan, dtype=torch.float64, device=HOST)
            elif self._reads:
                sums = _sums(grad)
                if one.keeps_graph or site in of.kept:
                    of.kept.add(site)
                    vector = grad.detach().clone()
        except Exception as error:
            self._not_taken.failed(f"the gradient of the output of {site.module!r}", error)
            return
        own = self._own_of(grad) if self._own and why is None else {}
        one.gradients.setdefault(of, {})[site] = _Gradient(sums, own, vector)

    def _own_of(self, grad: Tensor) -> dict[str, Tensor]:
        return {measure.name: measure.number(grad.detach()) for measure in self._own}

    def _current(self) -> _BackwardPass | None:
        """The backward pass that is running; None if it cannot count."""
        number = torch._C._current_graph_task_id()
        if number in self._running:
            return self._running[number]
        if not self._running:  # else one inside another, as in reentrant checkpointing
            self._discard_what_was_zeroed()
        if not self._parameters:
            found = (p for module in self.modules for p in module._parameters.values())
            self._parameters = [p for p in dict.fromkeys(found) if p is not None]
        one = None
        if not self._are_inputs():
            # Only where the graph is kept can a later backward pass come to the same outputs.
            keeps = torch._C._autograd._get_current_graph_task_keep_graph()
            one = _BackwardPass(self._mark(), keeps and self._are_reached())
        self._running[number] = one
        torch.autograd.Variable._execution_engine.queue_callback(partial(self._end, number))
        return one

    def _are_inputs(self) -> bool:
        """Whether `autograd.grad` is running for the parameters: it adds nothing to `.grad`."""
        try:
            next(self._will_be_reached(), False)
        except RuntimeError:
            return True
        return False

    def _are_reached(self) -> bool:
        """Whether the running backward pass comes to a parameter by itself."""
        try:
            return any(self._will_be_reached())
        except RuntimeError:
            return False

    def _will_be_reached(self) -> Iterator[bool]:
        for parameter in self._parameters:
            if parameter.requires_grad and unreadable(parameter) is None:
                edge = torch.autograd.graph.get_gradient_edge(parameter)
                yield torch._C._will_engine_execute_node(edge.node)

    def _end(self, number: int) -> None:
        """The engine has finished a backward pass."""
        try:
            one = self._running.pop(number, None)
            if one is not None and self.is_listening:
                self._count(one)
        except Exception as error:
            self._not_taken.failed("the outputs of a backward pass", error)

    def _count(self, one: _BackwardPass) -> None:
        """Keep it if it added to the gradient of a parameter."""
        now = self._mark()
        one.touched = [
            i for i, (mark, before) in enumerate(zip(now, one.before, strict=True))
            if not _is_same(mark, before)
        ]  # fmt: skip
        if one.touched:
            self._marks, self._witness = now, self._smallest_above_zero(one.touched)
            self._counted.append(one)
            self.n_counted += 1
            self._on_count(one.gradients.keys())

    # -- whether gradients are still there -----------------------------------------------------

    def _mark(self) -> list[_Mark]:
        grads = (parameter.grad for parameter in self._parameters)
        return [None if g is None else (weakref.ref(g), g._version) for g in grads]

    def _smallest_above_zero(self, touched: Sequence[int]) -> int | None:
        """The smallest parameter with a gradient above zero: `.grad.data.zero_()` leaves no mark.

        On a CPU only, since a look at values waits for a device.
        """
        by_size = sorted(touched, key=lambda i: self._parameters[i].numel())
        return next((i for i in by_size if self._is_nonzero_on_cpu(i)), None)

    def _is_nonzero_on_cpu(self, i: int) -> bool:
        grad = self._parameters[i].grad
        return grad is not None and grad.is_cpu and _is_nonzero(grad)

    def _discard_what_was_zeroed(self, *, by_value: bool = True) -> None:
        """A gradient that is gone without a step takes its backward passes with it."""
        if not self._counted:
            return
        witness = self._witness
        was_emptied = witness is not None and not self._is_nonzero_on_cpu(witness)
        there = [one for one in self._counted if self._is_there(one, was_emptied, by_value)]
        if len(there) < len(self._counted):
            gone = [one for one in self._counted if one not in there]
            self._counted = there
            self._on_discard(any(map(_has_nonfinite, gone)))

    def _is_there(self, one: _BackwardPass, was_emptied: bool, by_value: bool) -> bool:
        """Whether a gradient that it added to is there, as it was or otherwise than zero.

        A look at values waits for the device: right before a step, where clipping has just changed
        the gradients, they are looked at on a CPU only.
        """
        changed = []
        for i in one.touched:
            grad, mark = self._parameters[i].grad, self._marks[i]
            if grad is None:
                continue
            is_same = mark is not None and mark[0]() is grad and mark[1] == grad._version
            if is_same and not was_emptied:
                return True
            changed.append(grad)
        return any(not (by_value or grad.is_cpu) or _is_nonzero(grad) for grad in changed)

    # -- at the step -------------------------------------------------------------------------

    def forget_unfinished(self) -> None:
        """Those that raised: called where none can be running."""
        self._running.clear()

    def settle(self, optimizer: int) -> None:
        """The step of this optimizer uses what was counted so far."""
        if torch._C._current_graph_task_id() == -1:
            self.forget_unfinished()
        for number, one in self._running.items():  # a hook steps while gradients arrive
            if one is not None:
                self._count(one)
                self._running[number] = _BackwardPass(self._mark(), one.keeps_graph)
        self._discard_what_was_zeroed(by_value=False)
        counted, self._counted = self._counted, []
        if counted or optimizer not in self._settled:  # else a step that is tried again
            self._settled[optimizer] = counted

    def drop(self) -> None:
        """What was counted so far belongs to no recorded step."""
        self._counted = []

    def end(self) -> None:
        """No step will come: of what was counted since the last one, an inf may have been why."""
        counted, self._counted = self._counted, []
        if counted:
            self._on_discard(any(map(_has_nonfinite, counted)))

    def reset(self) -> None:
        """Start anew."""
        self._running.clear()
        self._counted, self._settled, self._parameters, self._marks = [], {}, [], []

    def take(self) -> list[PassSums]:
        """The forward passes of the step that has ended, with the gradients that came to them."""
        by_pass: dict[ForwardPass, list[Mapping[Site, _Gradient]]] = {}
        for settled in self._settled.values():
            for one in settled:
                for of, by_site in one.gradients.items():
                    by_pass.setdefault(of, []).append(by_site)
        self._settled = {}
        if not (self._counted or self._running):
            self._parameters = []
        passes = sorted(by_pass, key=lambda one: one.number)
        return [self._sums_of(one, by_pass[one]) for one in passes]

    def _sums_of(self, of: ForwardPass, parts: list[Mapping[Site, _Gradient]]) -> PassSums:
        of.kept.clear()
        gradients = parts[0]
        if len(parts) > 1:
            sites = dict.fromkeys(site for part in parts for site in part)
            gradients = {
                site: self._together([part[site] for part in parts if site in part])
                for site in sites
            }
        sums = {site: one.sums for site, one in gradients.items() if one.sums is not None}
        own = dict(of.own)
        for site, one in gradients.items() if self._own else ():
            own |= {(name, site): value for name, value in one.own.items()}
        # Copies: another thread may be running the model.
        return PassSums(dict(of.outputs), dict(of.active), sums, own, dict(of.sizes))

    def _together(self, several: list[_Gradient]) -> _Gradient:
        """Of backward passes through one output: those that were kept add as vectors."""
        if len(several) == 1:
            return several[0]
        parts = [one for one in several if one.vector is None]
        vectors = [one.vector for one in several if one.vector is not None]
        if vectors:
            total = torch.stack(vectors).sum(0)
            parts.append(_Gradient(_sums(total), self._own_of(total), None))
        known = [one.sums for one in parts if one.sums is not None]
        own = {
            measure.name: torch.stack(
                [part.own[measure.name] for part in parts if measure.name in part.own]
            ).sum(0)
            for measure in self._own
        }
        return _Gradient(torch.stack(known).sum(0) if known else None, own, None)


def _has_nonfinite(one: _BackwardPass) -> bool:
    found = [
        g.sums[1]
        for by_site in one.gradients.values()
        for g in by_site.values()
        if g.sums is not None
    ]
    return bool(found) and bool(torch.stack([x.cpu() for x in found]).ne(0).any())


def _sums(grad: Tensor) -> Tensor:
    return gradient_sums(grad.coalesce().values() if grad.is_sparse else grad)


def _is_same(one: _Mark, other: _Mark) -> bool:
    if one is None or other is None:
        return one is other
    return one[0] is other[0] and one[1] == other[1]  # a tensor has one weak reference


def _is_nonzero(grad: Tensor) -> bool:
    if grad.is_sparse:
        return bool(grad._nnz())
    return unreadable(grad) is not None or bool(grad.any())
