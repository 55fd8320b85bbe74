"""One forward and one backward pass of a network at its start: what goes in, and the record."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradflow.examine.trainability import DIFFERING
from gradflow.record import Recorder, Trace
from gradflow.record.sites import first_floating_tensor
from gradflow.typed import shown

Inputs = tuple[Any, ...]  # what the model is called with
Made = nn.Module | tuple[nn.Module, Any]  # a network, or one with its inputs
Model = nn.Module | Callable[[], Made]
Input = tuple[int, ...] | Tensor | Sequence["tuple[int, ...] | Tensor"] | None

# No update is made, so nothing of it is read.
MEASURES = (
    "output_rms", "output_dead_fraction", "output_nonfinite", "output_grad_norm",
    "output_grad_nonfinite", "weight_norm", "grad_norm", "grad_nonfinite", DIFFERING,
)  # fmt: skip

LIMITS = {"draws": (1, 1000), "batch_size": (1, 100_000), "seed": (0, 2**63 - 1)}
NEAR_ZERO = 1e-3  # what a last layer of so small weights makes of an input of rms 1; 0.6 by default
MAX_ELEMENTS = 2**31  # 8 GiB of float32
CROSS_ENTROPY = "cross-entropy against random labels"
OWN_LABELS = "cross-entropy against the given labels"
FUNCTIONAL = "a random linear function of the output"


@dataclass(frozen=True)
class Pass:
    """One forward and one backward pass."""

    trace: Trace
    loss: str  # in words
    input_shape: tuple[int, ...]


def pass_through(model: nn.Module, batch: Inputs, labels: Tensor | None, draw: int) -> Pass:
    model.train()
    if any(is_lazy(parameter) for parameter in model.parameters()):
        with torch.no_grad():
            _called(model, batch)
    model.zero_grad()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    with (
        torch.enable_grad(),
        Recorder(model, None, measures=MEASURES, cadence=1, first_step=draw) as recorder,
    ):
        outputs = _outputs(_called(model, batch))
        losses = [_loss(output, labels) for output in outputs]
        sum(loss for loss, _ in losses).backward()  # type: ignore[union-attr]
        with recorder.around_step():
            pass  # no update: the weights stay as they were drawn
    first = first_floating_tensor(batch)
    shape = next((x.shape for x in batch if isinstance(x, Tensor)), first.shape if first is not None
                 else ())  # fmt: skip
    words = " and ".join(dict.fromkeys(words for _, words in losses))
    return Pass(recorder.trace, words, tuple(shape))


def _called(model: nn.Module, batch: Inputs) -> Any:
    """What the model returns. Raises ValueError where it refuses the batch."""
    try:
        if len(batch) == 1 and isinstance(batch[0], Mapping):
            return model(**batch[0])
        return model(*batch)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ValueError(_refusal(model, batch, error)) from error


def _outputs(returned: Any) -> list[Tensor]:
    """The tensors that the loss is made of: those of a tuple or dict, else the first there is."""
    parts = returned.values() if isinstance(returned, Mapping) else returned
    parts = parts if isinstance(returned, (tuple, list, Mapping)) else ()
    found = [part for part in parts if isinstance(part, Tensor) and part.grad_fn is not None]
    if not found and (first := first_floating_tensor(returned)) is not None:
        found = [first]
    found = [one for one in found if one.grad_fn is not None and one.ndim > 0]
    if not found:
        raise ValueError(
            "Expected the model to return a floating-point tensor with one row for each input "
            "that depends on its weights, but found none in its output. Give a model that "
            "returns one."
        )
    return found


def _refusal(model: nn.Module, batch: Inputs, error: Exception) -> str:
    tensors = [one for one in batch if isinstance(one, Tensor)]
    shape = " and ".join(",".join(map(str, one.shape[1:])) for one in tensors)
    n = len(tensors[0]) if tensors else 0
    message = str(error).strip().split("\n")[0].rstrip(".")
    text = f"The model does not accept input of shape {shape} in batches of {n}: {message}. "
    is_tokens = any(isinstance(module, nn.Embedding) for module in model.modules())
    if is_tokens and any(one.is_floating_point() for one in tensors):
        return text + (
            "It has an nn.Embedding: where it reads token ids, call `gradflow.check(model, ids)` "
            "from Python with a tensor of them, or check a function that returns `model, ids`."
        )
    return text + (
        "Give the shape of one input, such as (3, 224, 224) for images (C, H, W), and a list of "
        "shapes for several inputs (on the command line 3,224,224, once for each)."
    )


def _loss(output: Tensor, labels: Tensor | None) -> tuple[Tensor, str]:
    """A loss for any output, and its name."""
    if output.dim() == 2 and output.shape[1] > 1 and not output.is_complex():
        if labels is not None:
            return F.cross_entropy(output, labels.to(output.device)), OWN_LABELS
        random = torch.randint(output.shape[1], (len(output),), device=output.device)
        return F.cross_entropy(output, random), CROSS_ENTROPY
    if labels is not None:
        raise ValueError(
            f"Expected an output of shape (B, K) for `labels`, but got {tuple(output.shape)}. "
            "Leave the labels out: the loss is then a random linear function of the output."
        )
    flat = output.flatten().abs() if output.is_complex() else output.flatten()
    return torch.randn_like(flat) @ flat / len(output), FUNCTIONAL


# -- what goes in ------------------------------------------------------------------------------


def made(make: Callable[[], Made], input: Input, batch_size: int) -> tuple[nn.Module, Inputs]:
    """A network and its inputs: the user's, or standard normal numbers in its number format."""
    built = make()
    model, own = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"Expected a factory that returns an nn.Module, but it returned "
            f"{type(model).__name__}. Return the network itself, or the network and its inputs."
        )
    if any(p.layout != torch.strided for p in model.parameters()):
        raise ValueError("Expected a model with dense weights, but some are sparse.")
    if any(p.is_meta and not is_lazy(p) for p in model.parameters()):
        raise ValueError("Expected a model with weights, but some are on the device meta.")
    if own is not None:
        return model, own if isinstance(own, tuple) else (own,)
    if input is None:
        raise ValueError(
            "Expected the shape of one input, such as (3, 224, 224), but got none. Give it, or a "
            "function that returns the network and its inputs."
        )
    floating = (
        p
        for p in model.parameters()
        if not is_lazy(p) and (p.is_floating_point() or p.is_complex())
    )
    like = next(floating, torch.zeros(()))
    return model, tuple(
        one.detach()
        if isinstance(one, Tensor)
        else torch.randn((batch_size, *one), dtype=like.dtype, device=like.device)
        for one in _each(input)
    )


def _each(input: Input) -> Sequence["tuple[int, ...] | Tensor"]:
    """One shape or batch for each input of the model."""
    if isinstance(input, Tensor) or not input or isinstance(input[0], int):
        return [input]  # type: ignore[list-item]
    return input  # type: ignore[return-value]


def draw_head_if_zero(model: nn.Module) -> bool:
    """No gradient passes a last layer of zeros, with which ViT, for one, begins its first step.

    Of one that is nearly so the same holds: it learns at once, and the rest after it.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    heads = [module for module in model.modules() if isinstance(module, kinds)][-1:]
    for head in heads:
        if is_lazy(head.weight):
            continue
        gain = math.sqrt(float(head.weight.detach().abs().square().mean()) * head.weight[0].numel())
        if gain < NEAR_ZERO:
            head.reset_parameters()
            return True
    return False


def copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(
            f"Expected a model that can be copied, so that yours stays unchanged, but got: "
            f"{error} Give a function that makes it: check(lambda: Net(), …)."
        ) from error


def check_arguments(model: Model, input: Input, numbers: Mapping[str, int]) -> None:
    if not callable(model):
        raise ValueError(
            f"Expected a model or a function that makes one, but got {type(model).__name__}."
        )
    for name, number in numbers.items():
        low, high = LIMITS[name]
        if not low <= number <= high:
            raise ValueError(f"Expected `{name}` to be from {low} to {high}, but got {number}.")
    for one in [] if input is None else _each(input):
        is_shape = isinstance(one, tuple) and all(isinstance(n, int) and n > 0 for n in one)
        if not (isinstance(one, Tensor) or (is_shape and one)):
            raise ValueError(
                "Expected `input_size` to be the shape of one input, such as (3, 224, 224), a "
                f"batch as a tensor, or a list of them, but got {input!r}."
            )
        if isinstance(one, tuple) and math.prod(one) * numbers["batch_size"] > MAX_ELEMENTS:
            raise ValueError(
                f"Expected `input_size`, the shape of one input, to give at most {MAX_ELEMENTS:,} "
                f"numbers in a batch, but got {shown(one)} in batches of {numbers['batch_size']}."
            )


def drawn(model: Model, input: object, labels: Tensor | None) -> str:
    parts = [] if isinstance(model, nn.Module) else ["weights"]
    is_given = input is not None and all(isinstance(one, Tensor) for one in _each(input))  # type: ignore[arg-type]
    parts += [] if is_given else ["inputs"]
    parts += ["loss"] if labels is None else []
    if not parts:
        return "nothing but chance inside the network"
    return ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1]
