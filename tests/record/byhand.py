"""What a Recorder should say, by plain autograd: each output is kept and summed in float64.

It hooks no module, so that it cannot help or disturb the Recorder beside it: it wraps `forward`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gradflow import Trace

DEAD_WINDOW = 16
LAYERS = (nn.ReLU, nn.GELU, nn.Tanh, nn.MultiheadAttention, nn.modules.batchnorm._NormBase)


def is_site(module: nn.Module) -> bool:
    if isinstance(module, parametrize.ParametrizationList):
        return False
    has_weight = parametrize.is_parametrized(module) or bool(list(module.parameters(False)))
    return has_weight or isinstance(module, LAYERS)


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def as_double(x: Tensor) -> Tensor:
    x = x.detach()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj()).flatten(-2)
    return x.double().clone()


class Output:
    """One output: its values, and the gradient that came back to it, over all backward passes."""

    def __init__(self, tensor: Tensor, counts: Callable[[], bool] = lambda: True) -> None:
        self.z = as_double(tensor)
        self.grad: Tensor | None = None
        self._counts = counts
        if tensor.requires_grad:
            tensor.register_hook(self._add)

    def _add(self, grad: Tensor) -> None:
        if self._counts():
            grad = as_double(grad)
            self.grad = grad if self.grad is None else self.grad + grad

    def channels_alive(self) -> Tensor:
        z = torch.atleast_1d(self.z)
        dim = 1 if z.dim() == 4 else z.dim() - 1
        return (z.movedim(dim, 0).reshape(z.shape[dim], -1) != 0).any(1)


class ByHand:
    """Watches the forward passes and steps that a test names, and knows what they should give."""

    def __init__(
        self, model: nn.Module, optimizer: Any = None, unpack: Callable[[Any], Tensor] = first
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.step_index = 0
        self._unpack = unpack
        self._is_aside = False
        self._outputs: dict[int, dict[str, list[Output]]] = {}  # by step and site
        self._parameters: dict[int, dict[str, dict[str, float]]] = {}
        self._scales: dict[int, float] = {}
        self._starts: dict[str, Tensor] = {}
        self._all_grads: dict[int, dict[str, Tensor]] = {}

    # -- watching ----------------------------------------------------------------------------

    @contextmanager
    def forward(self, step: int | None = None) -> Iterator[None]:
        """One forward pass that counts in the step that comes, or in the given one."""
        seen = self._outputs.setdefault(self.step_index if step is None else step, {})
        calls: dict[str, int] = {}
        watched = [(name, m) for name, m in self.model.named_modules() if is_site(m)]
        for name, module in watched:
            module.forward = self._watched(name, module.forward, seen, calls)
        try:
            yield
        finally:
            for _, module in watched:
                del module.forward

    def _watched(
        self, name: str, forward: Callable[..., Any], seen: dict[str, Any], calls: dict[str, int]
    ) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if not torch.is_grad_enabled():
                return output
            call = calls[name] = calls.get(name, -1) + 1
            site = f"{name}#{call}" if call else name
            seen.setdefault(site, []).append(
                Output(self._unpack(output), lambda: not self._is_aside)
            )
            return output

        return watched

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Backward passes that do not count, as those of `autograd.grad`."""
        self._is_aside = True
        yield
        self._is_aside = False

    def forget(self) -> None:
        """What was seen for the coming step does not count."""
        self._outputs.pop(self.step_index, None)

    @contextmanager
    def step(self, scale: float = 1.0) -> Iterator[None]:
        """Around the optimizer's step; gradients are there on entry, multiplied by `scale`."""
        self.before_step(scale)
        yield
        self.after_step()

    def before_step(self, scale: float = 1.0) -> None:
        named = self.model.named_parameters()
        self._weights = {name: p.detach().to_dense().clone() for name, p in named}
        for name, w in self._weights.items():
            start = self._starts.get(name)
            if start is None or start.shape != w.shape:
                self._starts[name] = w.double()
        self.note_gradients(scale)

    def note_gradients(self, scale: float = 1.0) -> None:
        """As the step uses them, where others were there when it began."""
        self._scales[self.step_index] = scale
        self._grads = self._all_grads[self.step_index] = {
            name: as_double(p.grad.to_dense()) / scale
            for name, p in self.model.named_parameters()
            if p.grad is not None
        }

    def after_step(self) -> None:
        rows = self._parameters[self.step_index] = {}
        for name, parameter in self.model.named_parameters():
            w = self._weights[name].double()
            rows[name] = {
                "weight_norm": w.norm().item(),
                "angle_from_start": angle(w, self._starts[name]),
            }
            g = self._grads.get(name)
            if g is None:
                continue
            delta = parameter.detach().to_dense().double() - w
            row = (g.flatten(1), w.flatten(1)) if w.dim() > 1 else (g.view(1, -1), w.view(1, -1))
            squares = row[0].square().sum(1) * row[1].square().sum(1)
            rows[name] |= {
                "grad_norm": g.norm().item(),
                "grad_nonfinite": float((~g.isfinite()).sum()),
                "grad_dot_weight": (g * w).sum().item(),
                "filter_grad_size": squares.sum().sqrt().item(),
                "update_norm": delta.norm().item(),
                "update_changed_fraction": (delta != 0).double().mean().item(),
                "grad_dot_update": (g * delta).sum().item(),
            }
        self.step_index += 1

    # -- a loop ------------------------------------------------------------------------------

    def zero(self, set_to_none: bool = True) -> None:
        self.model.zero_grad(set_to_none=set_to_none)

    def backward(self, loss: Callable[..., Tensor], *args: Any, **options: Any) -> None:
        """A forward pass, in which `loss` is called, and its backward pass."""
        with self.forward():
            total = loss(*args)
        total.backward(**options)

    def update(self, scale: float = 1.0) -> None:
        """The optimizer's step."""
        with self.step(scale):
            self.optimizer.step()

    def train(self, loss: Callable[..., Tensor], *args: Any) -> None:
        """One step of the plainest loop."""
        self.zero()
        self.backward(loss, *args)
        self.update()

    # -- comparing ---------------------------------------------------------------------------

    def compare(self, trace: Trace, steps: Sequence[int] | None = None) -> None:
        """Every value of the trace, and that nothing is there besides."""
        steps = range(self.step_index) if steps is None else steps
        assert trace.steps.tolist() == list(steps)
        of_outputs = {name.startswith("output") for name in trace.measures}
        wanted = set()
        for step in steps if True in of_outputs else ():
            wanted |= set(self._outputs.get(step, {}))
        for step in steps if False in of_outputs else ():
            wanted |= set(self._parameters[step])
        assert set(trace.sites) == wanted
        for index, step in enumerate(steps):
            rows = self._rows(step)
            for site in trace.sites:
                row = rows.get(site, {})
                for measure in trace.measures:
                    if measure == "output_dead_window":
                        want = self._dead_window(steps[: index + 1], site)
                    elif measure == "grad_cosine":
                        want = self._cosine(steps[: index + 1], site)
                    else:
                        want = row.get(measure, np.nan)
                    got = float(trace.values[measure][index, trace.sites.index(site)])
                    if measure == "angle_from_start" and np.isnan(want):
                        continue  # weights that start at 0 have no direction
                    size = row.get("output_rms", row.get("grad_norm", 0))
                    slack = 1e-6 * size if np.isfinite(size) else 0
                    slack = 1e-7 if measure == "angle_from_start" else slack
                    assert got == pytest.approx(want, rel=1e-5, abs=slack, nan_ok=True), (
                        f"{measure} of {site} in step {step}: {got}, not {want}"
                    )

    def _rows(self, step: int) -> dict[str, dict[str, float]]:
        scale = self._scales[step]
        outputs = self._outputs.get(step, {})
        return {site: output_row(seen, scale) for site, seen in outputs.items()} | (
            self._parameters[step]
        )

    def _cosine(self, steps: Sequence[int], site: str) -> float:
        """Between the gradients of the last two recorded steps that have one."""
        grads = [self._all_grads[step].get(site) for step in steps]
        known = [grad for grad in grads if grad is not None]
        if grads[-1] is None or len(known) < 2 or known[-2].shape != known[-1].shape:
            return np.nan
        x, y = known[-2:]
        return ((x * y).sum() / (x.norm() * y.norm())).item()

    def _dead_window(self, steps: Sequence[int], site: str) -> float:
        seen = [self._outputs[step][site] for step in steps if site in self._outputs.get(step, {})]
        if len(seen) < DEAD_WINDOW or site not in self._outputs.get(steps[-1], {}):
            return np.nan
        alive = torch.stack([o.channels_alive() for one in seen[-DEAD_WINDOW:] for o in one])
        return (~alive.any(0)).double().mean().item()


def angle(x: Tensor, y: Tensor) -> float:
    """In radians, exact for small angles as well."""
    x, y = x.flatten() / x.norm(), y.flatten() / y.norm()
    return 2 * torch.atan2((x - y).norm(), (x + y).norm()).item()


def output_row(outputs: list[Output], scale: float = 1.0) -> dict[str, float]:
    """The measures of one site in one step, over its forward passes."""
    z = torch.cat([output.z.flatten() for output in outputs])
    alive = torch.stack([output.channels_alive() for output in outputs]).any(0)
    row = {
        "output_mean": z.mean().item(),
        "output_rms": z.square().mean().sqrt().item(),
        "output_zero_fraction": (z == 0).double().mean().item(),
        "output_dead_fraction": (~alive).double().mean().item(),
        "output_max_abs": z.abs().max().item(),
        "output_nonfinite": float((~z.isfinite()).sum()),
    }
    grads = [output.grad.flatten() / scale for output in outputs if output.grad is not None]
    if grads:
        g = torch.cat(grads)
        row |= {
            "output_grad_norm": g.norm().item(),
            "output_grad_rms": g.norm().item() / z.numel() ** 0.5,
            "output_grad_nonfinite": float((~g.isfinite()).sum()),
        }
    return row


def value(trace: Trace, measure: str, site: str, step: int = 0) -> float:
    return float(trace.values[measure][step, trace.sites.index(site)])


def values(trace: Trace, measure: str, site: str = "w") -> np.ndarray:
    """(steps,), also of a derived measure."""
    table = trace.select(measure)
    return table.values[:, table.sites.index(site)]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "gradflow"]


def assert_same_trace(got: Trace, want: Trace, rtol: float = 1e-5) -> None:
    assert got.steps.tolist() == want.steps.tolist()
    assert got.sites == want.sites
    assert got.kinds == want.kinds
    assert got.sizes.tolist() == want.sizes.tolist()
    assert got.measures == want.measures
    for measure in want.values:
        np.testing.assert_allclose(
            got.values[measure], want.values[measure], rtol=rtol, atol=1e-9, err_msg=measure
        )
