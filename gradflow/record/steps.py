"""What a recorded step holds on the device, and how it becomes a Trace on the host."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gradflow.record import measures
from gradflow.record.trace import Trace


@dataclass(frozen=True)
class Site:
    """An output: the module's qualified name and which call of it in one forward pass."""

    module: str
    call: int

    def __str__(self) -> str:
        return self.module if self.call == 0 else f"{self.module}#{self.call}"


@dataclass
class RecordedStep:
    """What one optimizer step has brought so far; the tensors are still on their device."""

    # (sums, number of elements, number of channels), one entry per forward pass.
    outputs: dict[Site, list[tuple[Tensor, int, int]]] = field(default_factory=dict)
    gradients: dict[Site, list[tuple[Tensor, int]]] = field(default_factory=dict)
    parameters: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    updates: dict[str, Tensor] = field(default_factory=dict)
    grad_scale: Tensor | None = None  # of the output gradients, under automatic mixed precision
    found_inf: Tensor | None = None  # above 0 where a fused optimizer skips its step

    def was_skipped(self) -> bool:
        """Whether the optimizer met an inf and changed nothing. This waits for the device."""
        return self.found_inf is not None and bool(self.found_inf > 0)

    def tensors(self) -> Iterator[Tensor]:
        for passes in self.outputs.values():
            yield from (entry[0] for entry in passes)
        for grads in self.gradients.values():
            yield from (entry[0] for entry in grads)
        yield from (entry[0] for entry in self.parameters.values())
        yield from (update.reshape(1) for update in self.updates.values())
        if self.grad_scale is not None:
            yield self.grad_scale.reshape(1)


def to_trace(
    steps: list[tuple[int, RecordedStep]],
    depth: dict[Site, int],
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


def _finish(step: RecordedStep) -> Iterator[tuple[str, int, dict[str, float]]]:
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
    outputs: list[Site], parameters: list[str], depth: Mapping[Site, int]
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
        last = depth.get(Site(module, 0), last)
        order.append(((last, 1, index), name, module))
    return {name: module for _, name, module in sorted(order)}


def _site_kind(name: str, module: str, kinds: dict[str, str]) -> str:
    kind = kinds.get(module, "other")
    return kind if name.partition("#")[0] == module else f"{kind}.{name.rpartition('.')[2]}"
