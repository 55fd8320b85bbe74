"""Linearity: does a step bring what the gradient promises, or does it leave the linear region?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

import torch
from torch import Tensor, nn

from gradflow.examine.noise import Batch, Loss, dot, gradients, in_mode, loss_at

# Of the step that was taken; Santurkar et al. 2018 look along the gradient, in steps like these.
ETAS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Linearity:
    """What a step promised, what it brought, and the ratio of the two.

    A ratio of 1 is a step inside the linear region, below 1 one that overshoots, below 0 one that
    does harm. NaN where nothing was promised.
    """

    promised: float  # ⟨g, ΔW⟩, in the unit of the loss
    actual: float  # L(W + ΔW) − L(W), in the unit of the loss
    ratio: float  # actual / promised

    def to_json(self) -> dict[str, float | None]:
        """Plain types; None stands for inf and NaN."""
        numbers = {"promised": self.promised, "actual": self.actual, "ratio": self.ratio}
        return {name: x if isfinite(x) else None for name, x in numbers.items()}


def linearity(
    model: nn.Module,
    next_state: Mapping[str, Tensor],
    batch: Batch,
    loss: Loss,
    groups: Mapping[str, Sequence[str]],
) -> dict[str, Linearity]:
    """[L(W + ΔW) − L(W)] / ⟨g, ΔW⟩ for the step from the model's weights to `next_state`.

    "all" moves every parameter, a group only those that it names. L and g are of the same batch,
    with BatchNorm on batch statistics and with the same dropout masks. `next_state` may hold
    buffers as well, which are not used. The step of an optimizer with momentum or weight decay
    need not promise a fall.

    The difference of two losses is known to about 1e-7 L in float32: a ratio says little where
    |promised| is not far above that. The model is left as it was. Raises ValueError for a parameter
    that `next_state` lacks, and for a group that names a parameter that the model lacks.

    Compare "gradient predictiveness", Santurkar et al. 2018, https://arxiv.org/abs/1805.11604.
    """
    weights, step = _weights_and_step(model, next_state)
    chosen = {"all": tuple(weights)} | {name: tuple(group) for name, group in groups.items()}
    _check_known(chosen, weights)
    with in_mode(model, training=True):
        grads = gradients(model, weights, batch, loss)
    promises = {name: dot(grads[name], step[name]) for name in weights}
    start = _loss(model, weights, batch, loss)
    result = {}
    for group, names in chosen.items():
        moved = weights | {name: next_state[name].to(weights[name]) for name in names}
        actual = (_loss(model, moved, batch, loss) - start).item()
        promised = sum(promises[name].item() for name in names)
        result[group] = Linearity(promised, actual, actual / promised if promised else nan)
    return result


def gradient_predictiveness(
    model: nn.Module,
    next_state: Mapping[str, Tensor],
    batch: Batch,
    loss: Loss,
    etas: Sequence[float] = ETAS,
) -> dict[float, float]:
    """‖g(W + η ΔW) − g(W)‖ / ‖g(W)‖ by η: how far the gradient turns or grows along the step.

    0 is a gradient that stays; NaN where g(W) is 0. ΔW leads from the model's weights to
    `next_state`; batch, mode and errors as in `linearity`. The model is left as it was.
    Santurkar et al. 2018, https://arxiv.org/abs/1805.11604, section 3.1.
    """
    weights, step = _weights_and_step(model, next_state)
    with in_mode(model, training=True):
        start = gradients(model, weights, batch, loss)
    size = _norm(start)
    result = {}
    for eta in etas:
        moved = {name: weight + eta * step[name] for name, weight in weights.items()}
        with in_mode(model, training=True):
            grads = gradients(model, moved, batch, loss)
        change = _norm({name: grads[name] - start[name] for name in weights})
        result[float(eta)] = change / size if size else nan
    return result


def _weights_and_step(
    model: nn.Module, next_state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """W and ΔW of every parameter."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    missing = [name for name in weights if name not in next_state]
    if missing:
        raise ValueError(
            f"Expected `next_state` to hold every parameter, but got none for {missing[0]}. "
            "Take it from `model.state_dict()` after the step."
        )
    return weights, {name: next_state[name].to(w) - w for name, w in weights.items()}


def _check_known(groups: Mapping[str, Sequence[str]], weights: Mapping[str, Tensor]) -> None:
    for group, names in groups.items():
        unknown = [name for name in names if name not in weights]
        if unknown:
            raise ValueError(
                f"Expected the group {group!r} to name parameters, but got {unknown[0]!r}. "
                "Take the names from `model.named_parameters()`."
            )


@torch.no_grad()
def _loss(model: nn.Module, weights: Mapping[str, Tensor], batch: Batch, loss: Loss) -> Tensor:
    """In float64, so that the difference of two is not rounded again."""
    with in_mode(model, training=True):
        return loss_at(model, weights, batch, loss).double()


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return torch.stack([dot(x, x) for x in tensors.values()]).sum().sqrt().item()
